"""Chunk encoders: what makes the state of a chunk of its B keys and values, and of nothing else.

A state F maps a key, of p dimensions, to a value. `chunk_encoder` names the rule by which the chunk's tokens are
written to it in order, beginning with F = 0:

| `chunk_encoder` | one token | |
|---|---|---|
| `"sum"` | F ← F + k vᵀ / B | linear: F = Kᵀ V / B, the formula of the documents |
| `"delta"` | F ← F + k (v − Fᵀ k)ᵀ / (p + k·k) | what F recalls at the key is moved towards the value |

The delta rule writes what a key does not yet recall, so that keys of a chunk which resemble each other do not blur
their values. Schlag et al. 2021 (arXiv:2102.11174) have it for one memory of a whole text, Munkhdalai et al. 2024
("Infini-attention", arXiv:2404.07143) segment by segment. How far a token corrects is that of Liu et al. 2025
("Longhorn", arXiv:2407.14207), with 1 / p for the weight that they learn: the new F makes p |F − old F|² + |Fᵀ k − v|²
least. So it goes k·k / (p + k·k) of the way, half of it for a key whose numbers are of order 1, and never beyond.

All B corrections u = (v − Fᵀ k) / (p + k·k) at once (the UT transform of Yang et al. 2024, arXiv:2406.06484, in this
case): F before a token is Σ k_l u_lᵀ over the tokens before it, and so

    (p I + lower triangle of K Kᵀ, diagonal included) U = V,      F = Kᵀ U

which takes O(B²·p) time beyond that of the sum, about as much as reading the chunk exactly does. Either F is
linear in V.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from bsbr.attention._shared import Operations, accumulate_in, no_autocast


def _sum(k: Tensor, v: Tensor) -> Tensor:
    scale = k.shape[-2] ** -0.5  # on both before they are summed, since float16 does not hold the sum of a chunk
    return (k * scale).transpose(-1, -2) @ (v * scale)


def _delta(k: Tensor, v: Tensor) -> Tensor:
    dtype, wide = k.dtype, accumulate_in(k.dtype)
    k, v = k.to(wide), v.to(wide)
    with no_autocast(k):
        transposed = k.transpose(-1, -2)
        kept = k.shape[-1] * torch.eye(k.shape[-2], dtype=wide, device=k.device)
        # The solver reads no more than the lower triangle.
        corrections = torch.linalg.solve_triangular(k @ transposed + kept, v, upper=False)
        return (transposed @ corrections).to(dtype)


ENCODERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sum": _sum, "delta": _delta}


def reference(
    k: Float[Tensor, "*rows chunk_size head_dim"], v: Float[Tensor, "*rows chunk_size state_dim"], chunk_encoder: str
) -> Float[Tensor, "*rows head_dim state_dim"]:
    """The state of a chunk by the rule of this module's docstring, token by token."""
    chunk_size, p = k.shape[-2:]
    state = torch.zeros_like(k[..., 0, :, None] * v[..., 0, None, :])
    for key, value in zip(k.unbind(-2), v.unbind(-2), strict=True):
        if chunk_encoder == "delta":
            recalled = (state * key[..., :, None]).sum(-2)
            written = (value - recalled) / (p + key.square().sum(-1, keepdim=True))
        else:
            written = value / chunk_size
        state = state + key[..., :, None] * written[..., None, :]
    return state


def chunk_states(
    k: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    v: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    compress: Float[Tensor, "heads head_dim state_dim"] | None,
    chunk_encoder: str = "sum",
) -> Float[Tensor, "batch heads chunks head_dim state_dim"]:
    """F_j of each chunk, all at once, with compressed values if asked."""
    if compress is not None:
        v = v @ compress[:, None]
    return ENCODERS[chunk_encoder](k, v)


def operations(
    chunk_encoder: str, chunks: int, chunk_size: int, heads: int, head_dim: int, state_dim: int, compressed: bool
) -> Operations:
    """Of `chunk_states` on one row of so many chunks."""
    tokens = chunks * chunk_size
    forward = 2 * tokens * heads * head_dim * state_dim * (2 if compressed else 1)
    if chunk_encoder == "sum":
        return Operations.of_products(forward)
    scores, solve = 2 * tokens * chunk_size * heads * head_dim, tokens * chunk_size * heads * state_dim
    return Operations.of_products(forward + scores + solve, solve)  # a solve's gradient is a solve and a whole product
