"""Sliding-window attention: softmax attention to the last `window_size` tokens, the current one among them.

    o_t = Σ_i softmax_i(q_t · k_i / √p) v_i over t − window_size < i ≤ t

Beltagy et al. 2020, "Longformer" (arXiv:2004.05150), section 3.1, made causal. Time: O(n·w·p). State: the last w keys
and values.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bsbr.attention import standard
from bsbr.attention._shared import Operations, checked, fused, put, ring, ring_tokens, with_room


class State(NamedTuple):
    """Rings of the latest keys and values: token t lies in slot t mod window_size. Shorter while the text is."""

    k: Float[Tensor, "batch heads slots head_dim"]
    v: Float[Tensor, "batch heads slots head_dim"]
    length: Int[Tensor, " batch"]


def reference(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    window_size: int,
) -> Float[Tensor, "batch heads n head_dim"]:
    """The formula of this module's docstring, token by token."""
    outputs = []
    for t in range(q.shape[2]):
        seen = slice(max(0, t - window_size + 1), t + 1)
        scores = q[:, :, t : t + 1] @ k[:, :, seen].transpose(-1, -2) / math.sqrt(q.shape[-1])
        outputs.append(scores.softmax(-1) @ v[:, :, seen])
    return torch.cat(outputs, dim=2)


@checked
def attend(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    window_size: int,
) -> Float[Tensor, "batch heads n head_dim"]:
    """`reference` block by block: b queries against the window + b keys they can reach, without copying any.

    The first window of tokens is plain causal attention.
    """
    return attend_after(q, k, v, window_size)


def attend_after(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads earlier_and_n head_dim"],
    v: Float[Tensor, "batch heads earlier_and_n head_dim"],
    window_size: int,
) -> Float[Tensor, "batch heads n head_dim"]:
    """`attend` for the tokens after others, of which k and v have the last, as far as the window reaches."""
    n, known = q.shape[2], k.shape[2]
    sees_all = window_size - (known - n)  # so many tokens see all that are known before them
    first = _causal(q[:, :, :sees_all], k[:, :, :window_size], v[:, :, :window_size])
    if n <= sees_all:
        return first
    block = _block(window_size)
    q, k, v = (F.pad(x, (0, 0, 0, (window_size - known) % block)).flatten(0, 1) for x in (q, k, v))
    k, v = (x.unfold(1, window_size + block, block).transpose(-1, -2) for x in (k, v))
    query, key = torch.arange(block, device=q.device), torch.arange(window_size + block, device=q.device)
    reach = key - query[:, None]
    within = (reach > 0) & (reach <= window_size)
    rest = F.scaled_dot_product_attention(q[:, sees_all:].unflatten(1, (-1, block)), k, v, attn_mask=within)
    rest = rest.flatten(1, 2).unflatten(0, first.shape[:2])[:, :, : n - sees_all]
    return torch.cat([first, rest], dim=2)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token reads all up to its own; k and v may begin before q."""
    n, known = q.shape[2], k.shape[2]
    if n == known:
        return standard.attend(q, k, v)
    seen = torch.ones(n, known, dtype=torch.bool, device=q.device).tril(known - n)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


@checked
def prefill(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    window_size: int,
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], State]:
    """`attend`, and the rings after the first `lengths` tokens of each row (all n of them by default)."""
    if lengths is None:
        lengths = torch.full((q.shape[0],), q.shape[2], device=q.device)
    state = State(ring(k, lengths, window_size), ring(v, lengths, window_size), lengths.clone())
    return attend(q, k, v, window_size), state


def step(
    q: Float[Tensor, "batch heads head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    state: State,
    window_size: int,
) -> tuple[Float[Tensor, "batch heads head_dim"], State]:
    """One token after `state`: O(window_size) time, whatever came before."""
    position = state.length
    rows = torch.arange(len(position), device=position.device)
    slot = rows, slice(None), position % window_size
    keys, values = (put(with_room(held, position, window_size), slot, x) for held, x in ((state.k, k), (state.v, v)))
    written = (ring_tokens(position, window_size, keys.shape[2]) >= 0)[:, None, None]
    out = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=written)
    return out[:, :, 0], State(keys, values, position + 1)


def operations(n: int, heads: int, head_dim: int, window_size: int) -> Operations:
    """Of `attend` on one row of n tokens."""
    if n <= window_size:
        return standard.operations(n, heads, head_dim)
    block = _block(window_size)
    later = -(-(n - window_size) // block) * block
    return standard.operations(window_size, heads, head_dim) + fused(later * (window_size + block), heads * head_dim)


def _block(window_size: int) -> int:
    """Queries read at once: fewer waste less on keys out of reach, too few waste the processor."""
    return max(window_size // 4, 32)
