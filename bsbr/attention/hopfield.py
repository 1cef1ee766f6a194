"""Modern Hopfield retrieval: the query moves towards the stored patterns before it reads their values.

The patterns token t can retrieve are the keys up to t. With inverse temperature β, starting from ξ = q_t,

    ξ ← Σ_{i ≤ t} softmax_i(β ξ · k_i) k_i      repeated num_steps − 1 times
    o_t = Σ_{i ≤ t} softmax_i(β ξ · k_i) v_i

Ramsauer et al. 2020, "Hopfield Networks is All You Need" (arXiv:2008.02217): the update is equation 3, and reading
values with the last association makes one update with β = 1/√p the attention of transformers. A larger β retrieves
single patterns, a smaller one averages; more steps come closer to a fixed point.

Time: O(num_steps · n² · p). Memory: O(n·p), nothing of size n × n. State: every key and value, as in `standard`.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bsbr.attention import standard
from bsbr.attention._shared import Operations, checked
from bsbr.attention.standard import State

__all__ = ["State", "attend", "operations", "prefill", "reference", "step"]


def reference(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    num_steps: int = 1,
    inverse_temperature: float | None = None,
) -> Float[Tensor, "batch heads n head_dim"]:
    """The formula of this module's docstring, token by token; `inverse_temperature` is 1/√head_dim by default."""
    beta = 1 / math.sqrt(q.shape[-1]) if inverse_temperature is None else inverse_temperature
    outputs = []
    for t in range(q.shape[2]):
        patterns, state = k[:, :, : t + 1], q[:, :, t : t + 1]
        for _ in range(num_steps - 1):
            state = (beta * state @ patterns.transpose(-1, -2)).softmax(-1) @ patterns
        outputs.append((beta * state @ patterns.transpose(-1, -2)).softmax(-1) @ v[:, :, : t + 1])
    return torch.cat(outputs, dim=2)


@checked
def attend(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    num_steps: int = 1,
    inverse_temperature: float | None = None,
) -> Float[Tensor, "batch heads n head_dim"]:
    """`reference` by PyTorch's fused kernel: an update is attention whose values are the keys."""
    for _ in range(num_steps - 1):
        q = F.scaled_dot_product_attention(q, k, k, is_causal=True, scale=inverse_temperature)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=inverse_temperature)


@checked
def prefill(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    num_steps: int = 1,
    inverse_temperature: float | None = None,
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], State]:
    """`attend`, and the cache after the first `lengths` tokens of each row (all n of them by default)."""
    if lengths is None:
        lengths = torch.full((q.shape[0],), q.shape[2], device=q.device)
    return attend(q, k, v, num_steps, inverse_temperature), standard.remember(k, v, lengths)


def step(
    q: Float[Tensor, "batch heads head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    state: State,
    num_steps: int = 1,
    inverse_temperature: float | None = None,
) -> tuple[Float[Tensor, "batch heads head_dim"], State]:
    """One token after `state`: O(num_steps · n) time, since every stored pattern is compared again."""
    keys, values, written, state = standard.append(k, v, state)
    query = q[:, :, None]
    for _ in range(num_steps - 1):
        query = F.scaled_dot_product_attention(query, keys, keys, attn_mask=written, scale=inverse_temperature)
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=written, scale=inverse_temperature)
    return out[:, :, 0], state


def operations(
    n: int, heads: int, head_dim: int, num_steps: int = 1, inverse_temperature: float | None = None
) -> Operations:
    """Of `attend` on one row of n tokens."""
    return standard.operations(n, heads, head_dim).times(num_steps)
