"""Mixed chunk attention, the attention of the gated attention unit: relu² inside a chunk, linear across earlier chunks.

With chunks of B tokens numbered g = 0, 1, … and keys of s dimensions, the output of chunk g is

    V̂_g = relu²(Q_g K_gᵀ / √s + causal mask) V_g / B + Q′_g Σ_{h < g} K′_hᵀ V_h / (g·B)

Hua et al. 2022, "Transformer Quality in Linear Time" (arXiv:2202.10447), section 3.2: Q, K are its "quad", Q′, K′ its
"lin" queries and keys; all four are scales and offsets of one shared projection, by the mixer, which also gates. Two
things differ. The paper divides the second term by the length of the whole sequence; dividing by the tokens summed lets
a token's output depend on nothing after it. Its relative position bias is left out: rotary positions do that work.

Time: O(n·B·(s + e) + n·s·e), e the dimensions of a value. State: a chunk's keys and values, and 2·s·e numbers.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bsbr.attention._shared import (
    Operations,
    accumulate_in,
    checked,
    gather_tokens,
    is_before,
    no_autocast,
    pieces,
    put,
    running_sums,
    scan,
    split_chunks,
    with_room,
)


class State(NamedTuple):
    """The open chunk's keys and values (token t in slot t mod chunk_size); Σ k′ vᵀ over closed chunks, and over it.

    `slots` are those of a chunk, or fewer while the text is shorter.
    """

    k: Float[Tensor, "batch heads slots key_dim"]
    v: Float[Tensor, "batch heads slots value_dim"]
    closed: Float[Tensor, "batch heads key_dim value_dim"]
    opened: Float[Tensor, "batch heads key_dim value_dim"]
    length: Int[Tensor, " batch"]


def reference(
    q: Float[Tensor, "batch heads n key_dim"],
    k: Float[Tensor, "batch heads n key_dim"],
    q_lin: Float[Tensor, "batch heads n key_dim"],
    k_lin: Float[Tensor, "batch heads n key_dim"],
    v: Float[Tensor, "batch heads n value_dim"],
    chunk_size: int,
) -> Float[Tensor, "batch heads n value_dim"]:
    """The formula of this module's docstring, token by token."""
    outputs = []
    for t in range(q.shape[2]):
        start = t // chunk_size * chunk_size
        own, query = slice(start, t + 1), slice(t, t + 1)
        scores = q[:, :, query] @ k[:, :, own].transpose(-1, -2) / math.sqrt(q.shape[-1])
        out = scores.relu().square() / chunk_size @ v[:, :, own]
        if start > 0:
            out = out + q_lin[:, :, query] @ (k_lin[:, :, :start].transpose(-1, -2) @ v[:, :, :start]) / start
        outputs.append(out)
    return torch.cat(outputs, dim=2)


@checked
def attend(
    q: Float[Tensor, "batch heads n key_dim"],
    k: Float[Tensor, "batch heads n key_dim"],
    q_lin: Float[Tensor, "batch heads n key_dim"],
    k_lin: Float[Tensor, "batch heads n key_dim"],
    v: Float[Tensor, "batch heads n value_dim"],
    chunk_size: int,
) -> Float[Tensor, "batch heads n value_dim"]:
    """`reference` in batched products over chunks."""
    return _scan(q, k, q_lin, k_lin, v, chunk_size)[0]


def attend_after(
    q: Float[Tensor, "batch heads n key_dim"],
    k: Float[Tensor, "batch heads n key_dim"],
    q_lin: Float[Tensor, "batch heads n key_dim"],
    k_lin: Float[Tensor, "batch heads n key_dim"],
    v: Float[Tensor, "batch heads n value_dim"],
    before: Float[Tensor, "batch heads key_dim value_dim"],
    position: int,
    chunk_size: int,
) -> Float[Tensor, "batch heads n value_dim"]:
    """`attend` for the tokens after `position` others, which are whole chunks, with their sum Σ k′ vᵀ."""
    return _scan(q, k, q_lin, k_lin, v, chunk_size, before, position)[0]


@checked
def prefill(
    q: Float[Tensor, "batch heads n key_dim"],
    k: Float[Tensor, "batch heads n key_dim"],
    q_lin: Float[Tensor, "batch heads n key_dim"],
    k_lin: Float[Tensor, "batch heads n key_dim"],
    v: Float[Tensor, "batch heads n value_dim"],
    chunk_size: int,
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n value_dim"], State]:
    """`attend`, and the state after the first `lengths` tokens of each row (all n of them by default)."""
    n = q.shape[2]
    if lengths is None:
        lengths = torch.full((q.shape[0],), n, device=q.device)
    start = lengths // chunk_size * chunk_size
    # No token reads the sum of its own chunk, so leaving out the open one changes no real token's output.
    out, closed = _scan(q, k, q_lin, k_lin * is_before(start, n), v, chunk_size)
    slots = min(chunk_size, n)
    held = (start[:, None] + torch.arange(slots, device=q.device)).clamp(max=n - 1)
    held_k, held_v, held_k_lin = (gather_tokens(x, held) for x in (k, v, k_lin))
    opened = sums(held_k_lin * is_before(lengths - start, slots), held_v)
    return out, State(held_k, held_v, closed, opened, lengths.clone())


def step(
    q: Float[Tensor, "batch heads key_dim"],
    k: Float[Tensor, "batch heads key_dim"],
    q_lin: Float[Tensor, "batch heads key_dim"],
    k_lin: Float[Tensor, "batch heads key_dim"],
    v: Float[Tensor, "batch heads value_dim"],
    state: State,
    chunk_size: int,
) -> tuple[Float[Tensor, "batch heads value_dim"], State]:
    """One token after `state`: O(chunk_size · (key_dim + value_dim) + key_dim · value_dim), whatever came before."""
    position = state.length
    rows, slot = torch.arange(len(position), device=position.device), position % chunk_size
    held_k, held_v = (
        put(with_room(held, slot, chunk_size), (rows, slice(None), slot), x) for held, x in ((state.k, k), (state.v, v))
    )
    begins = (slot == 0)[:, None, None, None]
    closed = state.closed + state.opened * begins
    opened = state.opened * ~begins + sums(k_lin[:, :, None], v[:, :, None])
    q, q_lin, keys, values = (x.to(accumulate_in(x.dtype)) for x in (q, q_lin, held_k, held_v))
    earlier = (position - slot).clamp(min=1)[:, None, None, None]
    with no_autocast(q):
        scores = (q[:, :, None] @ keys.transpose(-1, -2)).relu().square() / (q.shape[-1] * chunk_size)
        inside = scores * is_before(slot + 1, held_k.shape[2]).transpose(-1, -2)
        out = inside @ values + q_lin[:, :, None] / earlier @ closed
    return out[:, :, 0].to(v.dtype), State(held_k, held_v, closed, opened, position + 1)


def operations(n: int, key_dim: int, value_dim: int, chunk_size: int) -> Operations:
    """Of `attend` on one row of n tokens with one head."""
    forward = triangles = 0
    for chunks, size in pieces(n, chunk_size):
        inside, sums_and_reading = (
            2 * chunks * size * size * (key_dim + value_dim),
            4 * chunks * size * key_dim * value_dim,
        )
        triangle = 2 * (chunks + 1) * chunks * key_dim * value_dim  # of ones: a constant, so it has no gradient
        forward += inside + sums_and_reading + triangle
        triangles += triangle
    return Operations.of_products(forward, -triangles)


def sums(
    k_lin: Float[Tensor, "batch heads n key_dim"], v: Float[Tensor, "batch heads n value_dim"]
) -> Float[Tensor, "batch heads key_dim value_dim"]:
    """Σ k′ vᵀ, in float32 or wider."""
    k_lin, v = (x.to(accumulate_in(x.dtype)) for x in (k_lin, v))
    with no_autocast(v):
        return k_lin.transpose(-1, -2) @ v


def _scan(
    q: Float[Tensor, "batch heads n key_dim"],
    k: Float[Tensor, "batch heads n key_dim"],
    q_lin: Float[Tensor, "batch heads n key_dim"],
    k_lin: Float[Tensor, "batch heads n key_dim"],
    v: Float[Tensor, "batch heads n value_dim"],
    chunk_size: int,
    before: Float[Tensor, "batch heads key_dim value_dim"] | None = None,
    position: int = 0,
) -> tuple[Float[Tensor, "batch heads n value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """All outputs, and Σ k′ vᵀ over all tokens, from that over the `position` tokens before the first."""
    dtype, wide = v.dtype, accumulate_in(v.dtype)
    # relu² of a scaled product, with the division by the chunk's size drawn into the scale.
    scale = 1 / math.sqrt(q.shape[-1] * chunk_size)
    chunk = torch.arange(position, position + q.shape[2], device=q.device) // chunk_size
    share = 1 / (chunk * chunk_size).clamp(min=1).to(wide)  # of each token summed by the linear part

    def read(sums: Tensor, q: Tensor, k: Tensor, q_lin: Tensor, k_lin: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        n = q.shape[2]
        inputs = (q.to(wide) * scale, k.to(wide), q_lin.to(wide), k_lin.to(wide), v.to(wide))
        q, k, q_lin, k_lin, v = (split_chunks(x, min(chunk_size, n)) for x in inputs)
        before, sums = running_sums(sums, k_lin.transpose(-1, -2) @ v)
        inside = (q @ k.transpose(-1, -2)).tril_().relu_().square()
        out = (inside @ v).add_(q_lin @ before)
        return out.flatten(2, 3)[:, :, :n].to(dtype), sums

    if before is None:
        before = torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1], dtype=wide, device=k.device)
    with no_autocast(q):
        return scan(read, (q, k, q_lin * share[:, None], k_lin, v), before, chunk_size)
