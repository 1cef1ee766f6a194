"""Softmax attention (Vaswani et al. 2017, "Attention Is All You Need", equation 1), made causal."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsbr.attention._shared import Operations, checked, fused, put


class State(NamedTuple):
    """The key/value cache: grows with the sequence, in steps of doubled capacity."""

    k: Float[Tensor, "batch heads capacity head_dim"]
    v: Float[Tensor, "batch heads capacity head_dim"]
    length: Int[Tensor, " batch"]


def reference(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
) -> Float[Tensor, "batch heads n head_dim"]:
    """softmax(Q Kᵀ / √head_dim + causal mask) V, with the whole n × n matrix (Vaswani et al. 2017, equation 1)."""
    n, head_dim = q.shape[-2:]
    scores = q @ k.transpose(-1, -2) / math.sqrt(head_dim)
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ v


@checked
def attend(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
) -> Float[Tensor, "batch heads n head_dim"]:
    """`reference` by PyTorch's fused kernel: O(n²) time, O(n) memory."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@checked
def prefill(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], State]:
    """`attend`, and the cache after the first `lengths` tokens of each row (all n of them by default)."""
    if lengths is None:
        lengths = torch.full((q.shape[0],), q.shape[2], device=q.device)
    return attend(q, k, v), remember(k, v, lengths)


def step(
    q: Float[Tensor, "batch heads head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    state: State,
) -> tuple[Float[Tensor, "batch heads head_dim"], State]:
    """One token after `state`: O(n) time, since every earlier key is read again."""
    keys, values, written, state = append(k, v, state)
    out = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=written)
    return out[:, :, 0], state


def operations(n: int, heads: int, head_dim: int) -> Operations:
    """Of `attend` on one row of n tokens."""
    return fused(n * (n + 1) // 2, heads * head_dim)


def remember(
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    lengths: Int[Tensor, " batch"],
) -> State:
    """The cache after the first `lengths` tokens of each row."""
    return State(_grow(k, 64), _grow(v, 64), lengths.clone())


def append(
    k: Float[Tensor, "batch heads head_dim"], v: Float[Tensor, "batch heads head_dim"], state: State
) -> tuple[
    Float[Tensor, "batch heads longest head_dim"],
    Float[Tensor, "batch heads longest head_dim"],
    Bool[Tensor, "batch 1 1 longest"],
    State,
]:
    """One more token in the cache: keys and values up to the longest row, which of them each row holds, the cache."""
    keys, values, length = state
    longest = int(length.max()) + 1
    if longest > keys.shape[2]:
        keys, values = _grow(keys, keys.shape[2]), _grow(values, values.shape[2])
    rows = torch.arange(len(length), device=length.device)
    keys = put(keys, (rows, slice(None), length), k)
    values = put(values, (rows, slice(None), length), v)
    written = (torch.arange(longest, device=length.device) <= length[:, None])[:, None, None]
    return keys[:, :, :longest], values[:, :, :longest], written, State(keys, values, length + 1)


def _grow(cache: Tensor, extra: int) -> Tensor:
    """The cache with room for `extra` more tokens."""
    return F.pad(cache, (0, 0, 0, extra))
