"""DeltaNet: linear attention that corrects its memory with each token instead of adding to it.

The state S maps keys to values. A token first reads what its key recalls, then moves that towards its value by β:

    S_t = S_{t−1} + β_t k_t (v_t − S_{t−1}ᵀ k_t)ᵀ,      o_t = S_tᵀ q_t

with k and q divided by their L2 norms, as then β ∈ (0, 1) keeps S from growing. Schlag et al. 2021 (arXiv:2102.11174),
section 4.2; L2 norms and the chunkwise form from Yang et al. 2024 (arXiv:2406.06484), section 3.

Time: O(n·p²) and O(n·B·p) in chunks of B tokens, B a choice of speed alone. State: p² numbers.
"""

import math
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
    return scan_chunks(q, k, v, beta, None, chunk_size)[0]


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
    out, memory = scan_chunks(q, k, v, beta, None, chunk_size)
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
    q, k = normalise(q)[:, :, None], normalise(k)[:, :, None]
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


def normalise(x: Float[Tensor, "*rest head_dim"]) -> Float[Tensor, "*rest head_dim"]:
    """Divided by the L2 norm, in float32 or wider."""
    return F.normalize(x.to(accumulate_in(x.dtype)), dim=-1, eps=SMALLEST_NORM)


def scan_chunks(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    beta: Float[Tensor, "batch heads n"],
    log_decay: Float[Tensor, "batch heads n"] | None,
    chunk_size: int,
) -> tuple[Float[Tensor, "batch heads n head_dim"], Float[Tensor, "batch heads head_dim head_dim"]]:
    """All outputs, and the last state.

    The corrections of a chunk depend on each other. Solving for them (the UT transform) makes them linear in the state
    S before the chunk: U − W S, with [W, U] = T [K, V] and T = (I + strictly lower part of diag(β) K Kᵀ)⁻¹ diag(β).

        O  = Q S + A (U − W S) = A U + (Q − A W) S        A = lower part of Q Kᵀ
        S' = S + Kᵀ (U − W S) = Kᵀ U + (I − Kᵀ W) S

    With a decay, `bsbr.attention.gated_deltanet`, what was written at i has faded by t to γ_t / γ_i of itself, where
    γ_t is the product of the chunk's decays up to t and γ that of all. K Kᵀ and Q Kᵀ are multiplied by those quotients,
    K in [W, U] and the Q that reads S by γ_t, and S and K in S' by γ and γ / γ_t.
    """
    dtype, wide, dim = q.dtype, accumulate_in(q.dtype), k.shape[-1]
    identity = torch.eye(dim, dtype=wide, device=k.device)

    def read(memory: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *gate: Tensor) -> tuple[Tensor, Tensor]:
        n = q.shape[2]
        inputs = (normalise(q), normalise(k), v.to(wide), *(x[..., None].to(wide) for x in (beta, *gate)))
        q, k, v, beta, *decay = (split_chunks(x, min(chunk_size, n)) for x in inputs)
        transposed = k.transpose(-1, -2)
        triangle, scores = beta * (k @ transposed), q @ transposed
        reader, writer, keep = k, transposed, identity  # K of [W, U], Kᵀ of S', and what S' keeps of S
        if decay:
            faded = Faded.within(decay[0])
            triangle, scores, q, reader = (
                x * y for x, y in ((triangle, faded.pairs), (scores, faded.pairs), (q, faded.start), (k, faded.start))
            )
            writer, keep = transposed * faded.end.transpose(-1, -2), identity * faded.whole
        # The solver reads no more of the triangle than what lies below the diagonal.
        solved = torch.linalg.solve_triangular(triangle, beta[..., 0].diag_embed(), upper=False, unitriangular=True)
        corrections = solved @ torch.cat([reader, v], dim=-1)
        reads = scores.tril_() @ corrections
        writes = writer @ corrections
        before, memory = _run(memory, keep - writes[..., :dim], writes[..., dim:])
        out = (q - reads[..., :dim]) @ before + reads[..., dim:]
        return out.flatten(2, 3)[:, :, :n].to(dtype), memory

    start = torch.zeros(*k.shape[:2], dim, v.shape[-1], dtype=wide, device=k.device)
    with no_autocast(q):
        return scan(read, (q, k, v, beta) if log_decay is None else (q, k, v, beta, log_decay), start, chunk_size)


class Faded(NamedTuple):
    """What a chunk's decays leave: of token i at token t, 0 where i is later; of the state before it, at each token and
    behind the last; of each token behind the last. Quotients are differences of logarithms, so none is 0 / 0.
    """

    pairs: Float[Tensor, "batch heads chunks chunk_size chunk_size"]
    start: Float[Tensor, "batch heads chunks chunk_size 1"]
    end: Float[Tensor, "batch heads chunks chunk_size 1"]
    whole: Float[Tensor, "batch heads chunks 1 1"]

    @classmethod
    def within(cls, log_decay: Float[Tensor, "batch heads chunks chunk_size 1"]) -> "Faded":
        """From the logarithms of the tokens' decays."""
        total = log_decay.cumsum(-2)
        later = torch.ones(total.shape[-2], total.shape[-2], dtype=torch.bool, device=total.device).triu(1)
        pairs = (total - total.transpose(-1, -2)).masked_fill(later, -math.inf)  # before exp, which would overflow
        last = total[..., -1:, :]
        return cls(pairs.exp(), total.exp(), (last - total).exp(), last.exp())


def _run(
    memory: Float[Tensor, "batch heads head_dim head_dim"],
    keep: Float[Tensor, "batch heads chunks head_dim head_dim"],
    write: Float[Tensor, "batch heads chunks head_dim head_dim"],
) -> tuple[Float[Tensor, "batch heads chunks head_dim head_dim"], Float[Tensor, "batch heads head_dim head_dim"]]:
    """S before each chunk and after the last, from S' = keep S + write: the part that has to go chunk by chunk."""
    before = [memory.flatten(0, 1)]
    for chunk_keep, chunk_write in zip(keep.flatten(0, 1).unbind(1), write.flatten(0, 1).unbind(1), strict=True):
        before.append(torch.baddbmm(chunk_write, chunk_keep, before[-1]))
    return torch.stack(before[:-1], dim=1).view(write.shape), before[-1].view(memory.shape)
