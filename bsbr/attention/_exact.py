"""Exact reading: of the own chunk and its neighbours, and with them of earlier chunks that were chosen.

With L = `local_chunks`, token t of chunk c reads the tokens i of its own chunk and of the L − 1 before it, and of those
`top_k` chunks j ≤ c − L for which R_c · H_j is highest, by one softmax whose scores are

    q_t · k_i / √p                       near
    q_t · k_i / √p + R_c · H_j / √p      in a chosen chunk j

The second summand lets gradients reach the choice: without it meta queries and keys would stay as they were drawn.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsbr.attention import standard
from bsbr.attention._shared import Operations, put, split_chunks
from bsbr.attention._states import exact_scores


def local(
    q: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    k: Float[Tensor, "batch heads known chunk_size head_dim"],
    v: Float[Tensor, "batch heads known chunk_size head_dim"],
    local_chunks: int,
) -> Float[Tensor, "batch heads chunks chunk_size head_dim"]:
    """Exact causal attention to the own chunk and the `local_chunks` − 1 before it."""
    batch, heads, chunks, chunk_size, _ = q.shape
    if local_chunks == 1:
        return standard.attend(*(x.flatten(0, 2)[:, None] for x in (q, k, v))).reshape(q.shape)
    missing = chunks + local_chunks - 1 - k.shape[2]  # chunks of the first windows that lie before the sequence
    k, v = (_windows(x, chunks, local_chunks).flatten(0, 2)[:, None] for x in (k, v))
    mask = _window_mask(chunks, missing, chunk_size, local_chunks, q.device)
    mask = mask.expand(batch * heads, -1, -1, -1).flatten(0, 1)[:, None]
    return F.scaled_dot_product_attention(q.flatten(0, 2)[:, None], k, v, attn_mask=mask).reshape(q.shape)


def _windows(
    x: Float[Tensor, "batch heads known chunk_size head_dim"], chunks: int, local_chunks: int
) -> Float[Tensor, "batch heads chunks window head_dim"]:
    """Each of the last `chunks` behind the `local_chunks` − 1 before it; zeros where there are none."""
    padded = F.pad(x, (0, 0, 0, 0, chunks + local_chunks - 1 - x.shape[2], 0))
    return torch.cat([padded[:, :, i : i + chunks] for i in range(local_chunks)], dim=3)


def _window_mask(
    chunks: int, missing: int, chunk_size: int, local_chunks: int, device: torch.device
) -> Bool[Tensor, "chunks chunk_size window"]:
    """True where a token of a chunk reads a token of its window: not later, and not before the sequence begins."""
    window = chunk_size * local_chunks
    behind = window - chunk_size
    token, slot = torch.arange(chunk_size, device=device), torch.arange(window, device=device)
    start = (torch.arange(chunks, device=device) - missing) * chunk_size
    return (slot <= token[:, None] + behind) & (slot + start[:, None, None] >= 0)


# -- Chosen chunks --------------------------------------------------------------------------------


class State(NamedTuple):
    """All tokens, chunk by chunk, keys beside values; and what the open chunk reads of them.

    `chosen` is −1 where there are fewer chunks to choose from. `slots` are those of a chunk and `choices` top_k, or
    fewer while the text is shorter.
    """

    kv: Float[Tensor, "batch heads capacity slots twice_head_dim"]
    meta_k: Float[Tensor, "batch heads closed_capacity head_dim"]
    chosen: Int[Tensor, "batch heads choices"]
    bias: Float[Tensor, "batch heads choices"]
    length: Int[Tensor, " batch"]


def attend(
    q: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    k: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    v: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    meta_q: Float[Tensor, "batch heads retrieving head_dim"],
    meta_k: Float[Tensor, "batch heads retrieving head_dim"],
    local_chunks: int,
    top_k: int,
) -> Float[Tensor, "batch heads chunks chunk_size head_dim"]:
    """All chunks at once; row c of the meta queries belongs to chunk c + `local_chunks`, which may choose 0 … c.

    A softmax whose mask needs gradients is no fused kernel: it holds n · chunk_size · (local_chunks + top_k) weights.
    """
    batch, heads, chunks, chunk_size, _ = q.shape
    retrieving = meta_k.shape[2]
    scores = exact_scores(meta_q, meta_k)
    later = torch.ones(retrieving, retrieving, dtype=torch.bool, device=scores.device).triu(1)
    best, chosen = scores.masked_fill(later, -math.inf).topk(min(top_k, retrieving), dim=-1)
    # The first chunks choose nothing: one batched product then serves all.
    best, chosen = F.pad(best, (0, 0, local_chunks, 0), value=-math.inf), F.pad(chosen, (0, 0, local_chunks, 0))
    seen = _window_mask(chunks, local_chunks - 1, chunk_size, local_chunks, q.device)
    near = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -math.inf)
    far = best.to(q.dtype).repeat_interleave(chunk_size, -1)[:, :, :, None]
    mask = torch.cat([near.expand(batch, heads, -1, -1, -1), far.expand(-1, -1, -1, chunk_size, -1)], -1)
    keys, values = (torch.cat([_windows(x, chunks, local_chunks), chunk_tokens(x, chosen)], dim=3) for x in (k, v))
    alone, keys, values, mask = (x.flatten(0, 2)[:, None] for x in (q, keys, values, mask))
    return F.scaled_dot_product_attention(alone, keys, values, attn_mask=mask).reshape(q.shape)


def chunk_tokens(
    x: Float[Tensor, "batch heads known chunk_size dim"], chosen: Int[Tensor, "batch heads rows count"]
) -> Float[Tensor, "batch heads rows tokens dim"]:
    """The tokens of the chunks that each row has chosen."""
    flat = x.flatten(3)
    found = flat.gather(2, chosen.flatten(2)[..., None].expand(-1, -1, -1, flat.shape[-1]))
    return found.unflatten(-1, x.shape[3:]).unflatten(2, chosen.shape[2:]).flatten(3, 4)


def remember(
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    meta_q: Float[Tensor, "batch heads complete head_dim"],
    meta_k: Float[Tensor, "batch heads complete head_dim"],
    lengths: Int[Tensor, " batch"],
    chunk_size: int,
    local_chunks: int,
    top_k: int,
) -> State:
    """The state after the first `lengths` tokens of each row."""
    closed, rows = lengths // chunk_size, torch.arange(len(lengths), device=k.device)
    last = meta_q[rows, :, (closed - 1).clamp(min=0)] if meta_k.shape[2] else k[:, :, 0]
    bias, chosen = _choose(last, meta_k, closed - local_chunks + 1, min(top_k, max(meta_k.shape[2], 1)))
    kv = split_chunks(torch.cat([k, v], dim=-1), min(chunk_size, k.shape[2]))
    return State(kv, meta_k, chosen, bias, lengths.clone())


def _choose(
    meta_q: Float[Tensor, "rows heads head_dim"],
    meta_k: Float[Tensor, "rows heads chunks head_dim"],
    available: Int[Tensor, " rows"],
    top_k: int,
) -> tuple[Float[Tensor, "rows heads top_k"], Int[Tensor, "rows heads top_k"]]:
    """What one chunk of each row adds to scores, and where: the best of the row's first `available` chunks."""
    scores = exact_scores(meta_q[:, :, None], meta_k)[:, :, 0]
    there = torch.arange(scores.shape[-1], device=scores.device) < available[:, None]
    best, chosen = scores.masked_fill(~there[:, None], -math.inf).topk(min(top_k, scores.shape[-1]), dim=-1)
    none, room = best == -math.inf, (0, top_k - best.shape[-1])
    return F.pad(best.masked_fill(none, 0.0), room), F.pad(chosen.masked_fill(none, -1), room, value=-1)


def keep_token(
    kv: Float[Tensor, "batch heads capacity slots twice_head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    position: Int[Tensor, " batch"],
    chunk_size: int,
) -> Float[Tensor, "batch heads capacity slots twice_head_dim"]:
    """Chunks of keys beside values with one more token of each row, and with room for it."""
    now, slot = position // chunk_size, position % chunk_size
    if kv.shape[3] < chunk_size and int(slot.max()) >= kv.shape[3]:  # the first chunk, which has no end yet
        kv = F.pad(kv, (0, 0, 0, min(max(kv.shape[3], 64), chunk_size - kv.shape[3])))
    if int(now.max()) >= kv.shape[2]:
        kv = F.pad(kv, (0, 0, 0, 0, 0, kv.shape[2]))
    rows = torch.arange(len(position), device=kv.device)
    return put(kv, (rows, slice(None), now, slot), torch.cat([k, v], dim=-1))


def step(
    q: Float[Tensor, "batch heads head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    state: State,
    chunk_size: int,
    local_chunks: int,
) -> tuple[Float[Tensor, "batch heads head_dim"], State]:
    """One token after `state`, which reads local_chunks + top_k chunks, whatever came before."""
    position, heads = state.length, q.shape[1]
    now, kv = position // chunk_size, keep_token(state.kv, k, v, position, chunk_size)
    offset = torch.arange(kv.shape[3], device=q.device)
    near_chunks = torch.arange(min(local_chunks, kv.shape[2]), device=q.device)
    window = now[:, None] - near_chunks  # its own first; negative before the text
    place = window[:, :, None] * chunk_size + offset
    seen = ((place >= 0) & (place <= position[:, None, None])).flatten(1)[:, None].expand(-1, heads, -1)
    near = torch.zeros(seen.shape, dtype=state.bias.dtype, device=q.device).masked_fill(~seen, -math.inf)
    far = state.bias.masked_fill(state.chosen < 0, -math.inf).repeat_interleave(kv.shape[3], -1)
    which = torch.cat([window[:, None].expand(-1, heads, -1), state.chosen], dim=-1).clamp(min=0)
    keys, values = chunk_tokens(kv, which[:, :, None])[:, :, 0].chunk(2, dim=-1)
    mask = torch.cat([near, far], dim=-1)[:, :, None].to(q.dtype)
    out = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask)
    return out[:, :, 0], state._replace(kv=kv, length=position + 1)


def close(
    rows: Int[Tensor, " rows"],
    meta_q: Float[Tensor, "rows heads head_dim"],
    meta_k: Float[Tensor, "rows heads head_dim"],
    state: State,
    chunk_size: int,
    local_chunks: int,
    top_k: int,
) -> State:
    """Make the completed chunk of each of the rows one to choose from, and choose for their next chunk."""
    closed, known = state.length[rows] // chunk_size - 1, state.meta_k
    if int(closed.max()) >= known.shape[2]:
        known = F.pad(known, (0, 0, 0, max(known.shape[2], 8)))
    known = put(known, (rows, slice(None), closed), meta_k)
    choices = max(min(top_k, known.shape[2]), state.chosen.shape[2])
    more = (0, choices - state.chosen.shape[2])
    all_bias, all_chosen = F.pad(state.bias, more), F.pad(state.chosen, more, value=-1)
    bias, chosen = _choose(meta_q, known[rows], closed + 2 - local_chunks, choices)
    return state._replace(meta_k=known, chosen=put(all_chosen, (rows,), chosen), bias=put(all_bias, (rows,), bias))


def operations(n: int, dims: int, chunk_size: int, local_chunks: int, top_k: int) -> Operations:
    """Of `attend` on one row of n tokens; `dims` are those of all heads together."""
    chunks = -(-n // chunk_size)
    retrieving = chunks - local_chunks
    pairs = chunks * chunk_size**2 * (local_chunks + min(top_k, retrieving))
    return Operations.of_products(2 * retrieving**2 * dims + 4 * pairs * dims)
