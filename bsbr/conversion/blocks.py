"""Blocks of far tokens that are read exactly: which ones are chosen, and gathering them.

A block is chosen by its mean key (a meta key, H of the mechanism) against mean queries of blocks (meta queries, R).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.precision import wide, without_autocast

CHUNKS_AT_ONCE = 32  # bounds the memory of gathered keys and values; larger is not faster
MASK_BYTES = 2**26  # of masks that are kept for the next layer and text
TIE_BITS = 11  # of a relevance's 23 that rounding may have touched


class BlockSums(NamedTuple):
    """What retrieval chooses by: sums of queries and of keys over blocks of `block_size` tokens, in float32 or wider.

    The mean query of a block is a meta query (R of the mechanism), its mean key a meta key (H). Both tensors have
    the batch first, so that beam search reorders them by rows.
    """

    queries: Float[Tensor, "batch heads blocks head_dim"]
    keys: Float[Tensor, "batch kv_heads blocks head_dim"]


def block_sums(q: Tensor, k: Tensor, config: ConversionConfig) -> BlockSums:
    """Sums of queries and keys over blocks; the last block may be partly filled."""

    def sums(x: Tensor) -> Tensor:
        size = min(config.block, x.shape[2])  # a block may be far longer than the text
        padded = F.pad(x, (0, 0, 0, -x.shape[2] % size))
        return wide(padded.unflatten(2, (-1, size))).sum(3)

    return BlockSums(sums(q), sums(k))


# -- Choosing --------------------------------------------------------------------------------------


def choose_for_chunks(
    sums: BlockSums, config: ConversionConfig, scaling: float, a: int, b: int
) -> Int[Tensor, "chunks batch kv_heads picks"] | None:
    """The blocks that chunks a … b−1 retrieve, best first; None if there are none to choose from."""
    picks = min(config.top_k, _count(config, a))
    if picks == 0:
        return None
    per_chunk = config.chunk_size // config.block
    before = sums.queries[:, :, (a - 1) * per_chunk : (b - 1) * per_chunk]
    meta_queries = before.unflatten(2, (b - a, per_chunk)).movedim(2, 0)
    counts = torch.tensor([_count(config, c) for c in range(a, b)], device=sums.keys.device)
    meta_keys = sums.keys[:, :, : config.first_block + _count(config, b - 1)]
    return _choose(meta_queries, meta_keys, counts[:, None], picks, config, scaling)


def choose_for_token(
    q: Tensor, sums: BlockSums, config: ConversionConfig, scaling: float, chunk: Tensor, far_end: Tensor
) -> tuple[Int[Tensor, "batch kv_heads picks"], Bool[Tensor, "batch picks"]]:
    """The blocks that one new token a row reads, and which of them are real."""
    counts = (far_end // config.block - config.first_block).clamp(min=0)
    picks = min(config.top_k, max(0, sums.keys.shape[2] - config.first_block))
    if config.retrieval != "top_k_per_token":
        per_chunk = config.chunk_size // config.block
        before = (chunk - 1).clamp(min=0)[:, None] * per_chunk + torch.arange(per_chunk, device=q.device)
        index = before.clamp(max=sums.queries.shape[2] - 1)[:, None, :, None]
        queries = sums.queries.gather(2, index.expand(-1, q.shape[1], -1, q.shape[3]))
    else:
        queries = wide(q) * config.block
    chosen = _choose(queries, sums.keys, counts, picks, config, scaling)
    return chosen, torch.arange(picks, device=q.device) < counts[:, None]


def _choose(
    query_sums: Float[Tensor, "*rows heads queries head_dim"],
    key_sums: Float[Tensor, "batch kv_heads blocks head_dim"],
    counts: Int[Tensor, "*rows"],
    picks: int,
    config: ConversionConfig,
    scaling: float,
) -> Int[Tensor, "*rows kv_heads picks"]:
    """The blocks with the highest relevance, which is the mean over meta queries of softmax(R Hᵀ) over blocks.

    Only blocks from the sinks on, and of these the first `counts`, can be chosen. A row with fewer than `picks`
    of them gets others behind those; the caller's mask hides them.
    """
    skip = config.first_block
    key_sums = key_sums[:, :, skip:]
    kv_heads, size = key_sums.shape[1], config.block
    grouped = query_sums.unflatten(-3, (kv_heads, -1)).flatten(-3, -2)
    with without_autocast(key_sums):
        scores = grouped @ key_sums.mT * (scaling / size**2)
    possible = torch.arange(key_sums.shape[2], device=scores.device) < counts[..., None, None, None]
    relevance = scores.masked_fill(~possible, -math.inf).softmax(-1).mean(-2)
    return best(relevance.masked_fill(~possible.squeeze(-2), -1.0), picks) + skip


def best(relevance: Float[Tensor, "*rows blocks"], picks: int) -> Int[Tensor, "*rows picks"]:
    """The blocks of highest relevance. Of those that are equal but for rounding, the earlier come first.

    `topk` orders equals one way or another, and sums in another order make equals unequal: what a token reads would
    depend on how its text was fed.
    """
    rounded = relevance.float().view(torch.int32) >> TIE_BITS  # the bits of positive numbers are in their order
    return rounded.sort(dim=-1, descending=True, stable=True).indices[..., :picks]


def _count(config: ConversionConfig, chunk: int) -> int:
    """Blocks that a chunk can choose from."""
    return max(0, config.far_end(chunk) // config.block - config.first_block)


# -- Gathering -------------------------------------------------------------------------------------


def attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: ConversionConfig,
    scaling: float,
    first: int,
    sums: BlockSums | None,
    dropout: float,
) -> Float[Tensor, "batch new heads head_dim"]:
    """Gather for each chunk the blocks that it reads, then one fused attention over all chunks.

    q starts at chunk `first`; its length and that of k and v are whole chunks.
    """
    batch, heads, rows, dim = q.shape
    kv_heads, size, unit = k.shape[1], config.chunk_size, _unit(config)
    group, end = heads // kv_heads, k.shape[2] // size
    q = q.view(batch, kv_heads, group, rows // size, size, dim).permute(3, 0, 1, 2, 4, 5)
    k_rows, v_rows = (x.reshape(-1, unit * dim) for x in (k, v))
    row_start = torch.arange(batch * kv_heads, device=q.device).view(batch, kv_heads, 1) * (k.shape[2] // unit)
    outputs = []
    for a, b in _slices(config, first, end):
        blocks = _always_read(config, a, b, q.device)
        mask = _mask(config, min(a, max(0, _steady(config))), group, q.dtype, q.device)
        read = blocks[:, None, None].expand(-1, batch, kv_heads, -1)
        if sums is not None and (picks := choose_for_chunks(sums, config, scaling, a, b)) is not None:
            read = torch.cat([picks, read], dim=-1)
        index = (read + row_start).flatten()
        k_read, v_read = (x.index_select(0, index).view(b - a, batch * kv_heads, -1, dim) for x in (k_rows, v_rows))
        q_now = q[a - first : b - first].reshape(b - a, batch * kv_heads, group * size, dim)
        out = F.scaled_dot_product_attention(q_now, k_read, v_read, mask, dropout_p=dropout, scale=scaling)
        outputs.append(out.view(b - a, batch, kv_heads, group, size, dim))
    return torch.cat(outputs).permute(1, 0, 4, 2, 3, 5).reshape(batch, rows, heads, dim)


def _unit(config: ConversionConfig) -> int:
    """Tokens that are gathered as one. Without retrieval only the sinks ask for less than a chunk."""
    return config.block if config.retrieves_blocks else math.gcd(config.chunk_size, 32)


def _slices(config: ConversionConfig, first: int, end: int) -> list[tuple[int, int]]:
    """Ranges of chunks to compute together: those that still lack earlier chunks, then the steady rest."""
    steady = min(max(_steady(config), first), end)
    starts = range(steady, end, CHUNKS_AT_ONCE)
    early = [(c, c + 1) for c in range(first, steady)]
    return early + [(a, min(a + CHUNKS_AT_ONCE, end)) for a in starts]


def _steady(config: ConversionConfig) -> int:
    """From this chunk on, every chunk reads equally many blocks in the same arrangement."""
    far = config.sink_tokens + (config.top_k * config.block if config.retrieval == "top_k" else 0)
    return config.local_chunks - 1 - (-far // config.chunk_size)


def _always_read(config: ConversionConfig, a: int, b: int, device: torch.device) -> Int[Tensor, "chunks units"]:
    """What chunks a … b−1 read beside their picks: sinks and local tokens, in units."""
    unit, size = _unit(config), config.chunk_size
    sinks = torch.arange(-(-min(config.sink_tokens, config.far_end(a)) // unit), device=device)
    local = torch.arange(config.far_end(a) // unit, (a + 1) * size // unit, device=device)
    steps = torch.arange(b - a, device=device)[:, None] * (size // unit)
    return torch.cat([sinks.expand(b - a, -1), local + steps], dim=1)


_masks: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()


def _mask(*key: Any) -> Float[Tensor, "1 1 rows keys"]:
    """`_make_mask`, of which the last ones are kept: all layers, and all steady chunks, have the same."""
    mask = _masks.pop(key, None)
    _masks[key] = mask = _make_mask(*key) if mask is None else mask
    while _masks and sum(each.nbytes for each in _masks.values()) > MASK_BYTES:
        _masks.popitem(last=False)
    return mask


def _make_mask(
    config: ConversionConfig, chunk: int, group: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "1 1 rows keys"]:
    """The mask over picks, sinks and local tokens of one chunk.

    All chunks from the steady ones on are arranged alike. In an earlier one the local window may reach before the
    start and the sinks may lie inside it.
    """
    # Kept for later calls, so it must not be born an inference tensor, which autograd refuses.
    with torch.inference_mode(False):
        unit, size, far_end = _unit(config), config.chunk_size, config.far_end(chunk)
        read = _always_read(config, chunk, chunk + 1, device)[0]
        position = (read[:, None] * unit + torch.arange(unit, device=device)).flatten()
        is_sink = torch.arange(len(position), device=device) < len(position) - ((chunk + 1) * size - far_end)
        reader = torch.arange(chunk * size, (chunk + 1) * size, device=device)[:, None]
        allowed = (position <= reader) & (~is_sink | (position < config.sink_tokens))
        picks = min(config.top_k, _count(config, chunk)) * unit if config.retrieval == "top_k" else 0
        allowed = F.pad(allowed, (picks, 0), value=True)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, -math.inf)
        return mask.repeat(group, 1)[None, None]


def tokens_of(picks: Int[Tensor, "batch kv_heads picks"], x: Tensor, size: int) -> Tensor:
    """The tokens of the chosen blocks of `size`: (batch, kv_heads, picks · size, head_dim)."""
    position = (picks[..., None] * size + torch.arange(size, device=x.device)).flatten(2)
    return x.gather(2, position[..., None].expand(-1, -1, -1, x.shape[3]))


def marked(
    picks: Int[Tensor, "batch kv_heads picks"], blocks: int, real: Bool[Tensor, "batch kv_heads picks"] | None = None
) -> Bool[Tensor, "batch kv_heads blocks"]:
    """Which of all blocks are chosen."""
    mark = torch.zeros(*picks.shape[:2], blocks, dtype=torch.bool, device=picks.device)
    return mark.scatter_(2, picks, torch.ones_like(picks, dtype=torch.bool) if real is None else real)


def token_mask(
    q: Float[Tensor, "batch kv_heads group size head_dim"],
    k: Tensor,
    config: ConversionConfig,
    scaling: float,
    chunk: int,
) -> Bool[Tensor, "batch kv_heads size end"]:
    """What each token of a chunk reads when each chooses blocks for itself; one choice for a group of heads."""
    size, far_end, end = config.block, config.far_end(chunk), (chunk + 1) * config.chunk_size
    position = torch.arange(end, device=q.device)
    reader = position[chunk * config.chunk_size :, None]
    allowed = (position <= reader) & ((position < config.sink_tokens) | (position >= far_end))
    allowed = allowed.expand(*q.shape[:2], -1, -1)
    count = _count(config, chunk)
    if count == 0:
        return allowed
    key_sums = wide(k[:, :, :far_end].unflatten(2, (-1, size))).sum(3)
    own = wide(q).permute(3, 0, 1, 2, 4).flatten(2, 3).unsqueeze(3) * size  # (size, batch, heads, 1, dim)
    counts = torch.full((1, 1), count, device=q.device)
    picks = _choose(own, key_sums, counts, min(config.top_k, count), config, scaling)
    chosen = torch.zeros(*allowed.shape[:3], end // size, dtype=torch.bool, device=q.device)
    chosen.scatter_(3, picks.permute(1, 2, 0, 3), True)
    return allowed | chosen.repeat_interleave(size, dim=3)
