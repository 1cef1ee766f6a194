"""How many weights of an attention map matter: within a token's own chunk, between chunks, and overall.

Counts are of causal pairs, a token with itself or an earlier one. Everything is causal, so the counts of a text's
beginning are sums over its first chunks, and a text is read once for all lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from bsbr.store import Row, row
from bsbr.studies import attention_maps

SCOPES = ("within", "between", "overall")
Counts = Float[np.ndarray, "*shape chunks thresholds scopes"]


def pairs_up_to(chunks: int, chunk_size: int) -> Int[np.ndarray, "chunks scopes"]:
    """Causal pairs of the first chunk, the first two, …: within chunks, between them, and all.

    >>> pairs_up_to(2, 4).tolist()
    [[10, 0, 10], [20, 16, 36]]
    """
    starts = range(0, chunks * chunk_size, chunk_size)
    return _with_sum(np.cumsum([attention_maps.pairs(start, start + chunk_size) for start in starts], axis=0))


def density_rows(counts: Counts, chunk_size: int, lengths: Sequence[int], thresholds: Sequence[float]) -> list[Row]:
    """Rows of `density` with `n`, `scope` and `threshold`: the share of pairs whose weight is above it.

    Args:
        counts: of one map, or means over several, of each chunk's rows.
        lengths: whole numbers of chunks.

    Raises:
        ValueError: a length is no whole number of chunks, or longer than what was counted.
    """
    rows = []
    for n in lengths:
        chunks = _chunks(n, chunk_size, len(counts))
        pairs, total = pairs_up_to(chunks, chunk_size)[-1], counts[:chunks].sum(0)
        for i, scope in enumerate(SCOPES):
            for threshold, count in zip(thresholds, total[:, i], strict=True):
                where: dict[str, Any] = {"n": n, "scope": scope, "threshold": threshold}
                if pairs[i] == 0:
                    rows.append(row("density", None, status="not_available", reason="there is one chunk", **where))
                else:
                    rows.append(row("density", 100 * float(count) / float(pairs[i]), **where))
    return rows


def of_mechanism(found: attention_maps.Rows, chunk_size: int, lengths: Sequence[int]) -> list[Row]:
    """Rows of `density` above zero of a whole map (heads, n, n), mean over its heads."""
    starts = range(0, found.shape[1], chunk_size)
    chunks = [np.abs(found[:, start : start + chunk_size, : start + chunk_size]) for start in starts]
    counts = np.array([attention_maps.count_above(rows, 0.0).mean(0) for rows in chunks])
    return density_rows(_with_sum(counts)[:, None], chunk_size, lengths, [0.0])


def of_model(
    model: Any,
    ids: Int[Tensor, "1 n"],
    chunk_size: int,
    lengths: Sequence[int],
    *,
    thresholds: Sequence[float],
    masses: Sequence[int],
    every: int = 1,
    by_layer: tuple[int, float] | None = None,
) -> list[Row]:
    """How sparse a model's attention is on one text, mean over all layers and heads.

    Rows of `density` (see `density_rows`), and of `weights_for_mass` with `n` and `mass`: the fewest weights of a token
    that carry a share of its mass, as a share of all it could have.

    Args:
        model, ids: of `attention_maps.visit`; as many tokens as the greatest length, or more.
        masses: shares of the mass in %.
        every: sorting is slow, so of each chunk's tokens every so many-th is asked how many weights carry its mass.
        by_layer: a length and a threshold at which there is a row of overall density for each `layer`, mean over its
            heads.

    Raises:
        ValueError: as `density_rows`, or `by_layer` is not among lengths and thresholds.
    """
    if by_layer and (by_layer[0] not in lengths or by_layer[1] not in thresholds):
        raise ValueError(f"by_layer must be one of the lengths and one of the thresholds, not {by_layer}")
    above, carrying = _count(model, ids, chunk_size, thresholds, [mass / 100 for mass in masses], every)
    rows = density_rows(above.mean(0), chunk_size, lengths, thresholds)
    if by_layer:
        n, threshold = by_layer
        chunks = _chunks(n, chunk_size, above.shape[1])
        total = above[:, :chunks, list(thresholds).index(threshold), SCOPES.index("overall")].sum(1)
        pairs = pairs_up_to(chunks, chunk_size)[-1, SCOPES.index("overall")]
        where: dict[str, Any] = {"n": n, "scope": "overall", "threshold": threshold}
        rows += [
            row("density", 100 * float(count) / float(pairs), layer=index, **where) for index, count in enumerate(total)
        ]
    tokens = np.arange(len(carrying) * chunk_size)
    asked = tokens[(tokens % chunk_size) % every == 0]
    for n in lengths:
        could = float((asked[asked < n] + 1).sum())
        for mass, count in zip(masses, carrying[: n // chunk_size].sum(0), strict=True):
            rows.append(row("weights_for_mass", 100 * float(count) / could, n=n, mass=mass))
    return rows


def _count(
    model: Any, ids: Tensor, chunk_size: int, thresholds: Sequence[float], masses: Sequence[float], every: int
) -> tuple[Counts, Float[np.ndarray, "chunks masses"]]:
    """Counts above each threshold (layers, chunks, thresholds, scopes), and for each mass; means over heads."""
    above, carrying = [], []

    def look(layer: attention_maps.Layer) -> None:
        for start, end in attention_maps.by_chunk(layer, chunk_size):
            if end - start == chunk_size:
                rows = layer.rows(start, end).cpu().numpy()
                above.append([attention_maps.count_above(rows, threshold).mean(0) for threshold in thresholds])
                carrying.append(attention_maps.count_for_mass(rows[:, ::every], masses).mean(0))

    attention_maps.visit(model, ids, look)
    chunks = ids.shape[1] // chunk_size
    counts = _with_sum(np.array(above).reshape(-1, chunks, len(thresholds), 2))
    return counts, np.array(carrying).reshape(-1, chunks, len(masses)).mean(0)


def _chunks(n: int, chunk_size: int, counted: int) -> int:
    if n % chunk_size or not 0 < n // chunk_size <= counted:
        raise ValueError(f"lengths must be whole numbers of {chunk_size} tokens up to {counted * chunk_size}, not {n}")
    return n // chunk_size


def _with_sum(counts: np.ndarray) -> np.ndarray:
    """(…, 2) within and between, as (…, 3) with their sum."""
    return np.concatenate([counts, counts.sum(-1, keepdims=True)], axis=-1)
