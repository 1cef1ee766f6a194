"""DeltaNet: linear attention that corrects its memory with each token instead of adding to it.

The state S maps keys to values. A token first reads what its key recalls, then moves that towards its value by β:

    S_t = S_{t−1} + β_t k_t (v_t − S_{t−1}ᵀ k_t)ᵀ,      o_t = S_tᵀ q_t

with k and q divided by their L2 norms, as then β ∈ (0, 1) keeps S from growing. Schlag et al. 2021 (arXiv:2102.11174),
section 4.2; L2 norms and the chunkwise form from Yang et al. 2024 (arXiv:2406.06484), section 3.

Time: O(n·p²) and O(n·B·p) in chunks of B tokens, B a choice of speed alone. State: p² numbers.
"""

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
    scan,
    split_chunks,
)

SMALLEST_NORM = 1e-6


class State(NamedTuple):
    """S, from keys to values, in float32 or wider."""

    memory: Float[Tensor, "batch heads head_dim head_dim"]


def reference(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    beta: Float[Tensor, "batch heads n"],
) -> Float[Tensor, "batch heads n head_dim"]:
    """The recurrence of this module's docstring, token by token."""
    q, k = (x / x.norm(dim=-1, keepdim=True).clamp(min=SMALLEST_NORM) for x in (q, k))
    memory = torch.zeros_like(k[:, :, 0, :, None] * v[:, :, 0, None])
    outputs = []
    for t in range(q.shape[2]):
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
    chunk_size: int = 64,
) -> Float[Tensor, "batch heads n head_dim"]:
    """`reference` in batched products over chunks; only one p × p product a chunk is left in sequence."""
    return _scan(q, k, v, beta, chunk_size)[0]


@checked
def prefill(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    beta: Float[Tensor, "batch heads n"],
    chunk_size: int = 64,
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], State]:
    """`attend`, and the state after the first `lengths` tokens of each row (all n of them by default)."""
    if lengths is not None:  # a token with β = 0 changes nothing
        beta = beta * is_before(lengths, k.shape[2])[..., 0]
    out, memory = _scan(q, k, v, beta, chunk_size)
    return out, State(memory)


def step(
    q: Float[Tensor, "batch heads head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    beta: Float[Tensor, "batch heads"],
    state: State,
) -> tuple[Float[Tensor, "batch heads head_dim"], State]:
    """One token after `state`: O(head_dim²) time, whatever came before."""
    dtype, memory = q.dtype, state.memory
    q, k = _normalise(q)[:, :, None], _normalise(k)[:, :, None]
    with no_autocast(q):
        correction = beta[..., None, None] * (v[:, :, None] - k @ memory)
        memory = memory + k.transpose(-1, -2) * correction
        return (q @ memory)[:, :, 0].to(dtype), State(memory)


def operations(n: int, heads: int, head_dim: int, chunk_size: int = 64) -> Operations:
    """Of `attend` on one row of n tokens."""
    p, forward, solves, parts = head_dim, 0, 0, list(pieces(n, chunk_size))
    for chunks, size in parts:
        tokens = chunks * size
        inside = 2 * tokens * size * p * (1 + 1 + 2 + 2)  # K Kᵀ, Q Kᵀ, T [K, V] and A [W, U]
        solve = tokens * size * size  # its gradient is a solve and a whole product
        outside = 2 * tokens * p * p * 3 + 2 * chunks * p * p * p  # Kᵀ [W, U], reading; S from chunk to chunk
        forward += inside + solve + outside
        solves += solve
    last_chunks, last_size = parts[-1]
    unused = 4 * p * p * p  # the state behind the last chunk
    if last_chunks == 1:
        unused += 8 * last_size * p * p  # what a chunk on its own would write to it
    start = 2 * p * p * (last_size if n <= chunk_size else p)  # the constant that the first chunk reads or goes on from
    return Operations.of_products(forward, solves - unused - start).times(heads)


def _normalise(x: Float[Tensor, "*rest head_dim"]) -> Float[Tensor, "*rest head_dim"]:
    return F.normalize(x.to(accumulate_in(x.dtype)), dim=-1, eps=SMALLEST_NORM)


def _scan(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    beta: Float[Tensor, "batch heads n"],
    chunk_size: int,
) -> tuple[Float[Tensor, "batch heads n head_dim"], Float[Tensor, "batch heads head_dim head_dim"]]:
    """All outputs, and the last state."""
    dtype, wide = q.dtype, accumulate_in(q.dtype)

    def read(memory: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        n = q.shape[2]
        maps = chunk_maps(q, k, v, beta, chunk_size)
        before, memory = run(memory, maps.keep, maps.write)
        return (maps.reads @ before + maps.own).flatten(2, 3)[:, :, :n].to(dtype), memory

    start = torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1], dtype=wide, device=k.device)
    with no_autocast(q):
        return scan(read, (q, k, v, beta), start, chunk_size)


class ChunkMaps(NamedTuple):
    """What chunks do, each by a map that is affine in the state S before it: O = reads S + own, S' = keep S + write."""

    reads: Float[Tensor, "batch heads chunks chunk_size head_dim"]
    own: Float[Tensor, "batch heads chunks chunk_size head_dim"]
    keep: Float[Tensor, "batch heads chunks head_dim head_dim"]
    write: Float[Tensor, "batch heads chunks head_dim head_dim"]


def chunk_maps(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    beta: Float[Tensor, "batch heads n"],
    chunk_size: int = 64,
) -> ChunkMaps:
    """The map of each chunk, in float32 or wider.

    The corrections of a chunk depend on each other. Solving for them (the UT transform) makes them linear in the state
    S before the chunk: U − W S, with [W, U] = T [K, V] and T = (I + strictly lower part of diag(β) K Kᵀ)⁻¹ diag(β).

        O  = Q S + A (U − W S) = A U + (Q − A W) S        A = lower part of Q Kᵀ
        S' = S + Kᵀ (U − W S) = Kᵀ U + (I − Kᵀ W) S
    """
    wide, dim = accumulate_in(q.dtype), k.shape[-1]
    inputs = (_normalise(q), _normalise(k), v.to(wide), beta[..., None].to(wide))
    q, k, v, beta = (split_chunks(x, min(chunk_size, q.shape[2])) for x in inputs)
    with no_autocast(q):
        transposed = k.transpose(-1, -2)
        triangle = beta * (k @ transposed)  # the solver reads no more than what lies below the diagonal
        solved = torch.linalg.solve_triangular(triangle, beta[..., 0].diag_embed(), upper=False, unitriangular=True)
        corrections = solved @ torch.cat([k, v], dim=-1)
        reads = (q @ transposed).tril_() @ corrections
        writes = transposed @ corrections
    identity = torch.eye(dim, dtype=wide, device=k.device)
    return ChunkMaps(q - reads[..., :dim], reads[..., dim:], identity - writes[..., :dim], writes[..., dim:])


def run(
    memory: Float[Tensor, "batch heads head_dim value_dim"],
    keep: Float[Tensor, "batch heads chunks head_dim head_dim"],
    write: Float[Tensor, "batch heads chunks head_dim value_dim"],
) -> tuple[Float[Tensor, "batch heads chunks head_dim value_dim"], Float[Tensor, "batch heads head_dim value_dim"]]:
    """S before each chunk and after the last, from S' = keep S + write: the part that has to go chunk by chunk."""
    before = [memory.flatten(0, 1)]
    for chunk_keep, chunk_write in zip(keep.flatten(0, 1).unbind(1), write.flatten(0, 1).unbind(1), strict=True):
        before.append(torch.baddbmm(chunk_write, chunk_keep, before[-1]))
    return torch.stack(before[:-1], dim=1).view(write.shape), before[-1].view(memory.shape)
