"""Gated DeltaNet: the delta rule on a memory that fades.

Before a token reads what its key recalls and corrects it, the state is multiplied by the token's own α in (0, 1]:

    S_t = α_t S_{t−1} + β_t k_t (v_t − α_t S_{t−1}ᵀ k_t)ᵀ,      o_t = S_tᵀ q_t

with k and q divided by their L2 norms. So one token can let go of everything (α near 0), and another correct a single
key (α near 1). Yang, Kautz and Hatamizadeh 2025 (arXiv:2412.06464), equation 10, which has the transpose of S here; the
form over chunks is section 3.3, and that of `deltanet` with decays in it. Where all α are 1, this is `deltanet`.

α is given by its logarithm, whose sums do not underflow. Time and state: as of `deltanet`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bsbr.attention import deltanet
from bsbr.attention._shared import Operations, accumulate_in, checked, is_before
from bsbr.attention.deltanet import SMALLEST_NORM, scan_chunks


class State(NamedTuple):
    """S, from keys to values, in float32 or wider."""

    memory: Float[Tensor, "batch heads head_dim head_dim"]


def reference(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    beta: Float[Tensor, "batch heads n"],
    log_decay: Float[Tensor, "batch heads n"],
) -> Float[Tensor, "batch heads n head_dim"]:
    """The recurrence of this module's docstring, token by token."""
    q, k = (x / x.norm(dim=-1, keepdim=True).clamp(min=SMALLEST_NORM) for x in (q, k))
    memory = torch.zeros_like(k[:, :, 0, :, None] * v[:, :, 0, None])
    outputs = []
    for t in range(q.shape[2]):
        memory = log_decay[:, :, t, None, None].exp() * memory
        recalled = (memory * k[:, :, t, :, None]).sum(2)
        correction = beta[:, :, t, None] * (v[:, :, t] - recalled)
        memory = memory + k[:, :, t, :, None] * correction[:, :, None]
        outputs.append((memory * q[:, :, t, :, None]).sum(2))
    return torch.stack(outputs, dim=2)


@checked
def attend(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    beta: Float[Tensor, "batch heads n"],
    log_decay: Float[Tensor, "batch heads n"],
    chunk_size: int = 64,
) -> Float[Tensor, "batch heads n head_dim"]:
    """`reference` in batched products over chunks; only one p × p product a chunk is left in sequence."""
    return scan_chunks(q, k, v, beta, log_decay, chunk_size)[0]


@checked
def prefill(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    beta: Float[Tensor, "batch heads n"],
    log_decay: Float[Tensor, "batch heads n"],
    chunk_size: int = 64,
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], State]:
    """`attend`, and the state after the first `lengths` tokens of each row (all n of them by default)."""
    if lengths is not None:  # a token with β = 0 and α = 1 changes nothing
        beta, log_decay = (x * is_before(lengths, k.shape[2])[..., 0] for x in (beta, log_decay))
    out, memory = scan_chunks(q, k, v, beta, log_decay, chunk_size)
    return out, State(memory)


def step(
    q: Float[Tensor, "batch heads head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    beta: Float[Tensor, "batch heads"],
    log_decay: Float[Tensor, "batch heads"],
    state: State,
) -> tuple[Float[Tensor, "batch heads head_dim"], State]:
    """One token after `state`: O(head_dim²) time, whatever came before."""
    decay = log_decay.to(accumulate_in(q.dtype)).exp()
    out, after = deltanet.step(q, k, v, beta, deltanet.State(decay[..., None, None] * state.memory))
    return out, State(after.memory)


def operations(n: int, heads: int, head_dim: int, chunk_size: int = 64) -> Operations:
    """Of `attend` on one row of n tokens: the products are those of `deltanet`, since decays are no matrices."""
    return deltanet.operations(n, heads, head_dim, chunk_size)
