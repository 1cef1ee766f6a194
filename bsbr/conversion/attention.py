"""The attention of a converted model: pure functions on queries, keys and values.

Positions count real tokens from 0 in every row; the caller packs padding away. `heads` is a multiple of
`kv_heads`, and head h reads key/value head h // (heads // kv_heads), as in grouped-query attention. Keys and
values are never repeated: the queries of one group are stacked along the length instead.

Nothing here holds n × n numbers. "top_k_per_token" and "states" hold chunk_size × n of them at a time; choosing
blocks compares n / block_size meta queries with as many meta keys, the only work that grows with n².
`bsbr.conversion.reference` is the definition that all of it is held to.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bsbr.conversion.blocks import (
    BlockSums,
    attend_blocks,
    block_sums,
    choose_for_chunks,
    choose_for_token,
    marked,
    token_mask,
    tokens_of,
)
from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.states import Fit, States, attend_with_states, chunk_states

ROWS_AT_ONCE = 128  # of full attention after a cache: the mask is (rows, n)

# -- Whole sequences ------------------------------------------------------------------------------


def attend(
    q: Float[Tensor, "batch heads new head_dim"],
    k: Float[Tensor, "batch kv_heads n head_dim"],
    v: Float[Tensor, "batch kv_heads n head_dim"],
    config: ConversionConfig | None,
    scaling: float,
    sums: BlockSums | None = None,
    dropout: float = 0.0,
    fit: Fit | None = None,
) -> Float[Tensor, "batch new heads head_dim"]:
    """Attention of the last `new` of n tokens, many chunks at once. Strictly causal; differentiable.

    Args:
        q, k, v: with positions already applied.
        config: what is read; None for full attention.
        scaling: of the scores, 1/√head_dim in most models.
        sums: block sums over all n tokens; needed only if `new` < n and blocks are retrieved by chunk.
        dropout: of the attention weights, while training.
        fit: how states are read, if that was calibrated.
    """
    n, start = k.shape[2], k.shape[2] - q.shape[2]
    if config is None or n <= max(config.window, config.original_below):
        return _full(q, k, v, scaling, dropout)
    if config.retrieval not in ("top_k", "both"):
        sums = None
    elif sums is None:
        sums = block_sums(q, k, config)
    if start < config.original_below:
        below = config.original_below
        early = _full(q[:, :, : below - start], k[:, :, :below], v[:, :, :below], scaling, dropout)
        return torch.cat([early, attend(q[:, :, below - start :], k, v, config, scaling, sums, dropout, fit)], dim=1)
    size = config.chunk_size
    first, end = start // size, -(-n // size)
    q = F.pad(q, (0, 0, start - first * size, end * size - n))
    k, v = (F.pad(x, (0, 0, 0, end * size - n)) for x in (k, v))
    if config.retrieval in ("none", "top_k"):
        out = attend_blocks(q, k, v, config, scaling, first, sums, dropout)
    else:
        out = _attend_by_chunk(q, k, v, config, scaling, first, sums, fit)
    return out[:, start - first * size : n - first * size]


def _full(q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float) -> Float[Tensor, "batch new heads head_dim"]:
    """Full causal attention of the last tokens. With earlier ones before them, a slice of rows at a time."""
    new, n, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    attention = functools.partial(F.scaled_dot_product_attention, scale=scaling, dropout_p=dropout)
    if new == n:
        return attention(q, k, v, is_causal=True).transpose(1, 2)
    outputs = []
    for a in range(0, new, ROWS_AT_ONCE):
        b = min(a + ROWS_AT_ONCE, new)
        end = n - new + b
        mask = torch.ones(b - a, end, dtype=torch.bool, device=q.device).tril(end - (b - a))
        outputs.append(attention(q[:, :, a:b], k[:, :, :end], v[:, :, :end], mask))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _attend_by_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: ConversionConfig,
    scaling: float,
    first: int,
    sums: BlockSums | None,
    fit: Fit | None,
) -> Float[Tensor, "batch new heads head_dim"]:
    """A loop over chunks; q starts at chunk `first`."""
    batch, heads, rows, dim = q.shape
    kv_heads, size = k.shape[1], config.chunk_size
    group = heads // kv_heads
    grouped = q.view(batch, kv_heads, group, rows // size, size, dim)
    states = chunk_states(k, v, config, scaling, fit) if config.reads_states else None
    outputs = []
    for c in range(first, k.shape[2] // size):
        q_now, end, far_end = grouped[:, :, :, c - first], (c + 1) * size, config.far_end(c)
        if states is None:
            mask = token_mask(q_now, k, config, scaling, c).repeat(1, 1, group, 1)
            out = F.scaled_dot_product_attention(q_now.flatten(2, 3), k[:, :, :end], v[:, :, :end], mask, scale=scaling)
        else:
            sinks, far_chunks = min(config.sink_tokens, far_end), far_end // size
            k_read, v_read = (torch.cat([x[:, :, :sinks], x[:, :, far_end:end]], dim=2) for x in (k, v))
            causal = torch.ones(size, k_read.shape[2], dtype=torch.bool, device=k.device)
            masked = ~causal.tril(k_read.shape[2] - size).repeat(group, 1)
            far_masked = None
            if sums is not None and (picks := choose_for_chunks(sums, config, scaling, c, c + 1)) is not None:
                k_read = torch.cat([tokens_of(picks[0], k, size), k_read], dim=2)
                v_read = torch.cat([tokens_of(picks[0], v, size), v_read], dim=2)
                masked = F.pad(masked, (picks.shape[3] * size, 0), value=False)
                far_masked = marked(picks[0], far_chunks)[:, :, None]
            far = states.map(lambda x, far_chunks=far_chunks: x[:, :, :far_chunks])  # type: ignore[misc]
            out = attend_with_states(q_now, k_read, v_read, masked, far, scaling, fit, far_masked).flatten(2, 3)
        outputs.append(out.unflatten(2, (group, size)))
    return torch.stack(outputs, dim=3).permute(0, 3, 4, 1, 2, 5).reshape(batch, rows, heads, dim)


# -- One token ------------------------------------------------------------------------------------


def step(
    q: Float[Tensor, "batch heads 1 head_dim"],
    k: Float[Tensor, "batch kv_heads cached head_dim"],
    v: Float[Tensor, "batch kv_heads cached head_dim"],
    config: ConversionConfig | None,
    scaling: float,
    lengths: Int[Tensor, " batch"],
    order: Int[Tensor, "batch cached"] | None = None,
    sums: BlockSums | None = None,
    states: States | None = None,
    fit: Fit | None = None,
) -> Float[Tensor, "batch 1 heads head_dim"]:
    """Attention of one new token a row, which is the last of that row's `lengths` tokens.

    Reads only what the token may read: work that does not grow with the text, but for choosing among its blocks.

    Args:
        config: what is read; None for full attention.
        lengths: real tokens of each row, the new one included.
        order: for each row, where in k and v its tokens lie, in order; None if they lie at 0, 1, 2, …
        sums: block sums over all tokens, needed if blocks are retrieved.
        states: of all far chunks, needed if states are retrieved.
        fit: how states are read, if that was calibrated.
    """
    lengths = lengths.clamp(min=1)  # a row that has no token yet reads its padding: anything finite, for no one to see
    if config is None or k.shape[2] <= max(config.window, config.original_below):
        return _step_full(q, k, v, scaling, lengths, order)
    near_start = lengths <= config.original_below
    if config.original_below and bool(near_start.all()):
        return _step_full(q, k, v, scaling, lengths, order)
    out = _step_sparse(q, k, v, config, scaling, lengths, order, sums, states, fit)
    if config.original_below and bool(near_start.any()):
        full = _step_full(q, k, v, scaling, lengths, order)
        out = torch.where(near_start[:, None, None, None], full, out)
    return out


def _step_full(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, lengths: Tensor, order: Tensor | None
) -> Float[Tensor, "batch 1 heads head_dim"]:
    """One new token a row that reads all of the row's tokens."""
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    real = (torch.arange(k.shape[2], device=q.device) < lengths[:, None]).to(torch.bool)
    if order is not None:
        real = torch.zeros_like(real).scatter_(1, order, real)
        k, v = (x.masked_fill(~real[:, None, :, None], 0) for x in (k, v))  # padding may hold NaN
    out = F.scaled_dot_product_attention(grouped, k, v, real[:, None, None], scale=scaling)
    return out.reshape(q.shape[0], 1, q.shape[1], q.shape[3])


def _step_sparse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: ConversionConfig,
    scaling: float,
    lengths: Tensor,
    order: Tensor | None,
    sums: BlockSums | None,
    states: States | None,
    fit: Fit | None,
) -> Float[Tensor, "batch 1 heads head_dim"]:
    batch, kv_heads, _, dim = k.shape
    group = q.shape[1] // kv_heads
    chunk = (lengths - 1) // config.chunk_size
    far_end = (chunk - config.local_chunks + 1).clamp(min=0) * config.chunk_size
    sinks = torch.arange(min(config.sink_tokens, k.shape[2]), device=q.device).expand(batch, -1)
    local = far_end[:, None] + torch.arange(config.window, device=q.device)
    position = torch.cat([sinks, local], dim=1)[:, None].expand(-1, kv_heads, -1)
    allowed = torch.cat([sinks < far_end[:, None], local < lengths[:, None]], dim=1)[:, None].expand_as(position)
    far_masked = None
    if states is not None:
        chunks = torch.arange(states.log_size.shape[2], device=q.device)
        far_masked = (chunks >= (far_end // config.chunk_size)[:, None])[:, None].expand(-1, kv_heads, -1)
    if config.retrieves_blocks and sums is not None:
        picks, real = choose_for_token(q, sums, config, scaling, chunk, far_end)
        real = real[:, None].expand_as(picks)
        tokens = picks[..., None] * config.block + torch.arange(config.block, device=q.device)
        position = torch.cat([position, tokens.flatten(2)], dim=2)
        allowed = torch.cat([allowed, real[..., None].expand_as(tokens).flatten(2)], dim=2)
        if far_masked is not None:
            blocks = max(far_masked.shape[2], sums.keys.shape[2])
            far_masked = far_masked | marked(picks, blocks, real)[:, :, : far_masked.shape[2]]
    position = position.clamp(max=k.shape[2] - 1)
    if order is not None:
        position = order[:, None].expand(-1, kv_heads, -1).gather(2, position)
    keys, values = (x.gather(2, position[..., None].expand(-1, -1, -1, dim)) for x in (k, v))
    if order is not None:
        keys, values = (x.masked_fill(~allowed[..., None], 0) for x in (keys, values))  # padding may hold NaN
    grouped = q.reshape(batch, kv_heads, group, dim)
    if states is None or far_masked is None:
        out = F.scaled_dot_product_attention(grouped, keys, values, allowed[:, :, None], scale=scaling)
    else:
        masked, far_masked = ~allowed[:, :, None], far_masked[:, :, None]
        out = attend_with_states(grouped[:, :, :, None], keys, values, masked, states, scaling, fit, far_masked)
    return out.reshape(batch, 1, q.shape[1], dim)
