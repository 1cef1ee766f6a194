"""Linear attention: a feature map in place of the softmax, so that a sum of outer products stands for all the past.

    o_t = φ(q_t)ᵀ Σ_{i ≤ t} φ(k_i) v_iᵀ / φ(q_t)ᵀ Σ_{i ≤ t} φ(k_i)

Katharopoulos et al. 2020, "Transformers are RNNs" (arXiv:2006.16236), section 3.3, with φ = elu + 1. Features cannot be
negative, so the divisor is a sum of positive terms; it is held above 1e-6, where all features of a token may be zero.

Time: O(n·p²) and O(n·B·p) in chunks of B tokens, B a choice of speed alone. State: p·(p + 1) numbers, p features.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bsbr.attention._shared import (
    Operations,
    accumulate_in,
    checked,
    is_before,
    no_autocast,
    pieces,
    running_sums,
    scan,
    split_chunks,
)

SMALLEST_DIVISOR = 1e-6


def _elu(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def _hedgehog(x: Tensor) -> Tensor:
    return torch.cat([x, -x], dim=-1).softmax(-1)


def _dpfp(x: Tensor) -> Tensor:
    r = torch.cat([x, -x], dim=-1).relu()
    return r * r.roll(1, dims=-1)


FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": _elu,  # Katharopoulos et al. 2020
    "relu": F.relu,  # Kasai et al. 2021 (arXiv:2103.13076)
    "dpfp": _dpfp,  # Schlag et al. 2021 (arXiv:2102.11174), ν = 1: twice the dimensions
    "hedgehog": _hedgehog,  # Zhang et al. 2024 (arXiv:2402.04347), learned by the projections: twice the dimensions
}


class State(NamedTuple):
    """Σ φ(k_i) [v_i, 1]ᵀ over the tokens so far, in float32 or wider; its last column is the divisor's sum."""

    sums: Float[Tensor, "batch heads features head_dim_plus_1"]


def reference(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    feature_map: str = "elu",
) -> Float[Tensor, "batch heads n head_dim"]:
    """The formula of this module's docstring as a recurrence, token by token (section 3.4 of the paper)."""
    q, k = feature_map_named(feature_map)(q), feature_map_named(feature_map)(k)
    values = torch.zeros_like(k[:, :, 0, :, None] * v[:, :, 0, None])
    divisor = torch.zeros_like(k[:, :, 0])
    outputs = []
    for t in range(q.shape[2]):
        values = values + k[:, :, t, :, None] * v[:, :, t, None]
        divisor = divisor + k[:, :, t]
        numerator = (q[:, :, t, :, None] * values).sum(2)
        outputs.append(numerator / (q[:, :, t] * divisor).sum(-1, keepdim=True).clamp(min=SMALLEST_DIVISOR))
    return torch.stack(outputs, dim=2)


@checked
def attend(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    feature_map: str = "elu",
    chunk_size: int = 64,
) -> Float[Tensor, "batch heads n head_dim"]:
    """`reference` in batched products over chunks: exact inside a chunk, by the sums before it for the rest.

    Raises:
        ValueError: `feature_map` is not one of `FEATURE_MAPS`.
    """
    return _scan(q, k, _with_one(v), feature_map_named(feature_map), chunk_size)[0]


@checked
def attend_after(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    state: State,
    feature_map: str = "elu",
    chunk_size: int = 64,
) -> Float[Tensor, "batch heads n head_dim"]:
    """`attend` for the tokens after `state`."""
    return _scan(q, k, _with_one(v), feature_map_named(feature_map), chunk_size, state.sums)[0]


def sums(
    k: Float[Tensor, "batch heads n head_dim"], v: Float[Tensor, "batch heads n head_dim"], feature_map: str = "elu"
) -> Float[Tensor, "batch heads features head_dim_plus_1"]:
    """The sums of a `State`, over all tokens."""
    wide = accumulate_in(k.dtype)
    with no_autocast(k):
        return feature_map_named(feature_map)(k.to(wide)).transpose(-1, -2) @ _with_one(v).to(wide)


@checked
def prefill(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    feature_map: str = "elu",
    chunk_size: int = 64,
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], State]:
    """`attend`, and the sums over the first `lengths` tokens of each row (all n of them by default)."""
    v = _with_one(v)
    if lengths is not None:
        v = v * is_before(lengths, v.shape[2])
    out, sums = _scan(q, k, v, feature_map_named(feature_map), chunk_size)
    return out, State(sums)


def step(
    q: Float[Tensor, "batch heads head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    state: State,
    feature_map: str = "elu",
) -> tuple[Float[Tensor, "batch heads head_dim"], State]:
    """One token after `state`: O(head_dim²) time, whatever came before."""
    dtype, phi = q.dtype, feature_map_named(feature_map)
    q, k, v = (x.to(accumulate_in(dtype)) for x in (q, k, _with_one(v)))
    sums = state.sums + phi(k)[..., None] * v[..., None, :]
    with no_autocast(q):
        out = (phi(q)[..., None, :] @ sums)[..., 0, :]
    return _divide(out).to(dtype), State(sums)


def operations(n: int, heads: int, head_dim: int, feature_map: str = "elu", chunk_size: int = 64) -> Operations:
    """Of `attend` on one row of n tokens."""
    features, columns = feature_map_named(feature_map)(torch.zeros(1, head_dim)).shape[-1], head_dim + 1
    forward = triangles = 0
    for chunks, size in pieces(n, chunk_size):
        inside = 2 * chunks * size * size * (features + columns)
        sums_and_reading = 4 * chunks * size * features * columns
        triangle = 2 * (chunks + 1) * chunks * features * columns  # of ones: a constant, so it has no gradient
        forward += heads * (inside + sums_and_reading + triangle)
        triangles += heads * triangle
    return Operations.of_products(forward, -triangles)


def feature_map_named(name: str) -> Callable[[Tensor], Tensor]:
    """The feature map of that name. Raises ValueError, with the names there are, if there is none."""
    if name not in FEATURE_MAPS:
        raise ValueError(f"feature_map must be one of {', '.join(FEATURE_MAPS)}, but is {name!r}")
    return FEATURE_MAPS[name]


def _with_one(v: Float[Tensor, "*rest head_dim"]) -> Float[Tensor, "*rest head_dim_plus_1"]:
    """[v, 1]: with the extra column, one product gives the numerator and the divisor."""
    return F.pad(v, (0, 1), value=1.0)


def _divide(out: Float[Tensor, "*rest head_dim_plus_1"]) -> Float[Tensor, "*rest head_dim"]:
    return out[..., :-1] / out[..., -1:].clamp(min=SMALLEST_DIVISOR)


def _scan(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim_plus_1"],
    phi: Callable[[Tensor], Tensor],
    chunk_size: int,
    before: Float[Tensor, "batch heads features head_dim_plus_1"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], Float[Tensor, "batch heads features head_dim_plus_1"]]:
    """All outputs, and the last sums, from those before the first token."""
    dtype, wide = q.dtype, accumulate_in(q.dtype)

    def read(sums: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        n = q.shape[2]
        q, k, v = (split_chunks(x, min(chunk_size, n)) for x in (phi(q.to(wide)), phi(k.to(wide)), v.to(wide)))
        before, sums = running_sums(sums, k.transpose(-1, -2) @ v)
        inside = (q @ k.transpose(-1, -2)).tril_()
        out = (inside @ v).add_(q @ before)
        return _divide(out).flatten(2, 3)[:, :, :n].to(dtype), sums

    if before is None:
        features = phi(k[:, :, :1].to(wide)).shape[-1]
        before = torch.zeros(*k.shape[:2], features, v.shape[-1], dtype=wide, device=k.device)
    with no_autocast(q):
        return scan(read, (q, k, v), before, chunk_size)
