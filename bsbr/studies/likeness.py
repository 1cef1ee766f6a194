"""How alike two models' attention maps are on one text, and how much of their weight lies on a token's own chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from bsbr.store import Row, over, row
from bsbr.studies import attention_maps
from bsbr.studies.attention_maps import Layer


def compare(
    original: Sequence[Layer],
    other: Sequence[Layer],
    chunk_size: int,
    lengths: Sequence[int],
    *,
    names: tuple[str, str],
    heads_at: int | None = None,
) -> list[Row]:
    """Both models' maps, layer by layer and head by head: rows with `n`, `model` and `chunk_size`.

    `within_mass` of each model: the share of a token's weight on its own chunk, mean over tokens. `map_similarity` with
    `scope`: the cosine between the two models' rows, mean over tokens, of the whole row, the part within the token's
    chunk, and the part before it. Each is a mean over all heads, with `layer` over that layer's heads, and at one
    length, with `head`, that of each.

    Args:
        original, other: the layers of two models that have read the same text (see `attention_maps.visit`).
        lengths: whole numbers of chunks. With one chunk alone there is no part before it, and no row of it.
        names: what the models are called in the rows; a similarity is a row of the second.
        heads_at: the length at which heads have rows of their own, of within_mass and of overall similarity.

    Raises:
        ValueError: a length is no whole number of chunks.
    """
    if wrong := [n for n in lengths if n % chunk_size or n > original[0].n]:
        raise ValueError(f"lengths must be whole numbers of {chunk_size} tokens up to {original[0].n}, not {wrong}")
    chunks = max(lengths) // chunk_size
    masses, cosines = _sums(original, other, chunk_size, chunks)
    rows: list[Row] = []
    for n in lengths:
        where: dict[str, Any] = {"n": n, "chunk_size": chunk_size}
        tokens = {"overall": n, "within": n, "between": n - chunk_size}
        for i, name in enumerate(names):
            found = 100 * masses[:, : n // chunk_size, i].sum(1) / n
            rows += _means("within_mass", found, n == heads_at, model=name, **where)
        for i, (scope, count) in enumerate(tokens.items()):
            if count:
                found = cosines[:, : n // chunk_size, i].sum(1) / count
                each = n == heads_at and scope == "overall"
                rows += _means("map_similarity", found, each, model=names[1], scope=scope, **where)
    return rows


def of_mechanism(found: attention_maps.Rows, chunk_size: int) -> list[Row]:
    """A row of `within_mass` with `chunk_size`, of a whole map (heads, n, n), mean over tokens and heads."""
    starts = range(0, found.shape[1], chunk_size)
    sums = [
        attention_maps.within_mass(np.abs(found[:, start : start + chunk_size, : start + chunk_size]))
        for start in starts
    ]
    return [row("within_mass", 100 * float(np.sum(sums)) / (found.shape[0] * found.shape[1]), chunk_size=chunk_size)]


def _sums(
    original: Sequence[Layer], other: Sequence[Layer], chunk_size: int, chunks: int
) -> tuple[Float[np.ndarray, "layers chunks 2 heads"], Float[np.ndarray, "layers chunks 3 heads"]]:
    """Sums over each chunk's tokens: of the mass within in both models, and of the cosines of the parts of a row."""
    mass, alike = [], []
    for one, another in zip(original, other, strict=True):
        for start in range(0, chunks * chunk_size, chunk_size):
            a, b = (layer.rows(start, start + chunk_size).cpu().numpy() for layer in (one, another))
            mass.append([attention_maps.within_mass(rows) for rows in (a, b)])
            whole, own = attention_maps.cosine(a, b), attention_maps.cosine(a[..., start:], b[..., start:])
            before = attention_maps.cosine(a[..., :start], b[..., :start]) if start else np.zeros_like(whole)
            alike.append([part.sum(-1) for part in (whole, own, before)])
    shape = len(original), chunks
    return np.array(mass).reshape(*shape, 2, -1), np.array(alike).reshape(*shape, 3, -1)


def _means(name: str, found: Float[np.ndarray, "layers heads"], each: bool, **where: Any) -> list[Row]:
    """The mean over all heads, over each layer's heads, and each head if asked for."""
    layers, heads = found.shape
    every = over("head", [f"{layer}.{head}" for layer in range(layers) for head in range(heads)])
    rows = [row(name, float(found.mean()), over=every, **where)]
    for layer, of_layer in enumerate(found):
        names = over("head", [f"{layer}.{head}" for head in range(heads)])
        rows.append(row(name, float(of_layer.mean()), over=names, layer=layer, **where))
        if each:
            rows += [row(name, float(value), layer=layer, head=head, **where) for head, value in enumerate(of_layer)]
    return rows
