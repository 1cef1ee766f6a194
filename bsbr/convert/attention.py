"""The attention of a converted model: pure functions on queries, keys and values.

Positions count real tokens from 0 in every row; the caller packs padding away. `heads` is a multiple of
`kv_heads`, and head h reads key/value head h // (heads // kv_heads), as in grouped-query attention. Keys and
values are never repeated: the queries of one group are stacked along the length instead.

Nothing here holds n × n numbers. "top_k_per_token" and "states" hold chunk_size × n of them at a time; choosing
blocks compares n / block_size meta queries with as many meta keys, the only work that grows with n².
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bsbr.convert.config import ConversionConfig

ROWS_AT_ONCE = 128  # of full attention after a cache: the mask is (rows, n)
BASIS_ROUNDS = 3  # of subspace iteration
CHUNKS_AT_ONCE = 32  # bounds the memory of gathered keys and values; larger is not faster


class Meta(NamedTuple):
    """What retrieval chooses by: sums of queries and of keys over blocks of `block_size` tokens, in float32 or wider.

    The mean query of a block is a meta query (R of the mechanism), its mean key a meta key (H). Both tensors have
    the batch first, so that beam search reorders them by rows.
    """

    queries: Float[Tensor, "batch heads blocks head_dim"]
    keys: Float[Tensor, "batch kv_heads blocks head_dim"]


def wide(x: Tensor) -> Tensor:
    """float32 at least: sums and exponentials of half-precision numbers are taken in it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Fit(nn.Module):
    """What `calibrate` fits in one layer: how its heads read far chunks through their states.

    Softmax attention to a far chunk is expanded for queries near `query`, the head's mean far query, instead of near
    zero; the chunk's moments are then those under the weights that this query gives its tokens, one set a head.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(heads, head_dim))
        self.log_gate = nn.Parameter(torch.zeros(heads))
        self.temperature = nn.Parameter(torch.ones(heads))


def reference(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch kv_heads n head_dim"],
    v: Float[Tensor, "batch kv_heads n head_dim"],
    config: ConversionConfig,
    scaling: float,
    fit: Fit | None = None,
) -> Float[Tensor, "batch n heads head_dim"]:
    """The definition, token by token and head by head. Slow; what the fast forms are held to."""
    batch, heads, n, dim = q.shape
    group = heads // k.shape[1]
    fit = fit or Fit(heads, dim).to(q.dtype)
    out = torch.empty_like(q)
    for b in range(batch):
        for h in range(heads):
            q_group = q[b, h - h % group : h - h % group + group] * scaling
            far_head = (fit.query[h] * scaling, fit.log_gate[h], fit.temperature[h])
            for t in range(n):
                keys, values = k[b, h // group], v[b, h // group]
                out[b, h, t] = _reference_token(q_group, h % group, t, keys, values, config, far_head)
    return out.transpose(1, 2)


def _reference_token(
    q_group: Tensor,
    h: int,
    t: int,
    k: Tensor,
    v: Tensor,
    config: ConversionConfig,
    far_head: tuple[Tensor, Tensor, Tensor],
) -> Float[Tensor, " head_dim"]:
    """Output of token t in head h of one group. q_group is (group, n, head_dim), already scaled."""
    size, chunk = config.block, t // config.chunk_size
    far_start, far_end = config.sink_tokens, config.far_end(chunk)
    q = q_group[h, t]
    if t < config.original_below:
        return (k[: t + 1] @ q).softmax(0) @ v[: t + 1]
    exact = set(range(min(far_start, t + 1))) | set(range(far_end, t + 1))
    blocks = range(config.first_block, far_end // size)
    picks: list[int] = []
    if config.retrieves_blocks and len(blocks):
        meta_keys = torch.stack([k[j * size : (j + 1) * size].mean(0) for j in blocks])
        if config.retrieval == "top_k_per_token":
            meta_queries = q_group[:, t : t + 1]
        else:
            before = q_group[:, (chunk - 1) * config.chunk_size : chunk * config.chunk_size]
            meta_queries = before.unflatten(1, (-1, size)).mean(2)
        relevance = (meta_queries @ meta_keys.T).softmax(-1).mean((0, 1))
        picks = [blocks[j] for j in relevance.topk(min(config.top_k, len(blocks))).indices.tolist()]
        for j in picks:
            exact |= set(range(j * size, (j + 1) * size))
    read = sorted(exact)
    weights = (k[read] @ q).exp()
    total, numerator = weights.sum(), weights @ v[read]
    if config.reads_states:
        for j in range(far_end // config.chunk_size):
            far = slice(max(j * config.chunk_size, far_start), (j + 1) * config.chunk_size)
            if far.start < far.stop and j not in picks:
                mass, value = _reference_state(q, k[far], v[far], config.rank(len(q)), *far_head)
                total, numerator = total + mass, numerator + value
    return numerator / total


def _reference_state(
    q: Tensor, k: Tensor, v: Tensor, rank: int, centre: Tensor, log_gate: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """A far chunk's share of normaliser and numerator: exp(q·k) and exp(q·k) v, expanded around the centre query.

    With w_i = e^{c·k_i} / Σ e^{c·k_i}, k̄ and v̄ the means under w, and δ_i = (q − c)·P(k_i − k̄), P being the projection
    on the directions that are kept:
    Σ e^{q·k_i} ≈ e^{(q−c)·k̄} Σ e^{c·k_i} g = m with g = 1 + ½ Σ w_i δ_i², and
    Σ e^{q·k_i} v_i ≈ m (v̄ + Σ w_i δ_i (v_i − v̄) / g).
    Gate and temperature, where they were fitted, make the mass e^gate m^temperature.
    """
    scores = k @ centre
    w = scores.softmax(0)
    k_off, v_off = k - w @ k, v - w @ v
    covariance = k_off.T * w @ k_off
    basis = _basis(covariance, rank) if rank < len(q) else torch.eye(len(q), dtype=q.dtype)
    delta = k_off @ basis @ basis.T @ (q - centre)
    growth = 1 + (w @ delta.square()) / 2
    log_mass = (q - centre) @ (w @ k) + scores.logsumexp(0) + growth.log()
    mass = (log_gate + temperature * log_mass).exp()
    return mass, mass * (w @ v + (w * delta / growth) @ v_off)


# -- Whole sequences ------------------------------------------------------------------------------


def attend(
    q: Float[Tensor, "batch heads new head_dim"],
    k: Float[Tensor, "batch kv_heads n head_dim"],
    v: Float[Tensor, "batch kv_heads n head_dim"],
    config: ConversionConfig | None,
    scaling: float,
    meta: Meta | None = None,
    dropout: float = 0.0,
    fit: Fit | None = None,
) -> Float[Tensor, "batch new heads head_dim"]:
    """Attention of the last `new` of n tokens, many chunks at once. Strictly causal; differentiable.

    Args:
        q, k, v: with positions already applied.
        config: what is read; None for full attention.
        scaling: of the scores, 1/√head_dim in most models.
        meta: block sums over all n tokens; needed only if `new` < n and blocks are retrieved by chunk.
        dropout: of the attention weights, while training.
        fit: how states are read, if that was calibrated.
    """
    n, start = k.shape[2], k.shape[2] - q.shape[2]
    if config is None or (start == 0 and n <= config.window) or n <= config.original_below:
        return _full(q, k, v, scaling, dropout)
    if config.retrieval not in ("top_k", "both"):
        meta = None
    elif meta is None:
        meta = block_sums(q, k, config)
    if start < config.original_below:
        below = config.original_below
        early = _full(q[:, :, : below - start], k[:, :, :below], v[:, :, :below], scaling, dropout)
        return torch.cat([early, attend(q[:, :, below - start :], k, v, config, scaling, meta, dropout, fit)], dim=1)
    size = config.chunk_size
    first, end = start // size, -(-n // size)
    q = F.pad(q, (0, 0, start - first * size, end * size - n))
    k, v = (F.pad(x, (0, 0, 0, end * size - n)) for x in (k, v))
    if config.retrieval in ("none", "top_k"):
        out = _attend_blocks(q, k, v, config, scaling, first, meta, dropout)
    else:
        out = _attend_by_chunk(q, k, v, config, scaling, first, meta, fit)
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


def block_sums(q: Tensor, k: Tensor, config: ConversionConfig) -> Meta:
    """Sums of queries and keys over blocks; the last block may be partly filled."""
    size = config.block

    def sums(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 0, -x.shape[2] % size))
        return wide(padded.unflatten(2, (-1, size))).sum(3)

    return Meta(sums(q), sums(k))


def _attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: ConversionConfig,
    scaling: float,
    first: int,
    meta: Meta | None,
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
        blocks, mask = _layout(config, a, b, group, q.dtype, q.device)
        read = blocks[:, None, None].expand(-1, batch, kv_heads, -1)
        if meta is not None and (picks := _choose_for_chunks(meta, config, scaling, a, b)) is not None:
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


def _count(config: ConversionConfig, chunk: int) -> int:
    """Blocks that a chunk can choose from."""
    return max(0, config.far_end(chunk) // config.block - config.first_block)


@functools.lru_cache(maxsize=64)
def _layout(
    config: ConversionConfig, a: int, b: int, group: int, dtype: torch.dtype, device: torch.device
) -> tuple[Int[Tensor, "chunks units"], Float[Tensor, "1 1 rows keys"]]:
    """What chunks a … b−1 always read, in units, and the mask over picks, sinks and local tokens.

    All chunks of one slice are arranged alike, so the mask is built for one of them. Where a slice is a single
    early chunk, the local window may reach before the start and the sinks may lie inside it.
    """
    # Kept for later calls, so it must not be born an inference tensor, which autograd refuses.
    with torch.inference_mode(False):
        unit, size = _unit(config), config.chunk_size
        local = torch.arange(config.far_end(a) // unit, (a + 1) * size // unit, device=device)
        sinks = torch.arange(-(-min(config.sink_tokens, config.far_end(a)) // unit), device=device)
        steps = torch.arange(b - a, device=device)[:, None] * (size // unit)
        blocks = torch.cat([sinks.expand(b - a, -1), local + steps], dim=1)

        position = (torch.cat([sinks, local])[:, None] * unit + torch.arange(unit, device=device)).flatten()
        is_sink = torch.arange(len(position), device=device) < len(sinks) * unit
        query = torch.arange(a * size, (a + 1) * size, device=device)[:, None]
        allowed = (position <= query) & (~is_sink | (position < config.sink_tokens))
        picks = min(config.top_k, _count(config, a)) * unit if config.retrieval == "top_k" else 0
        allowed = F.pad(allowed, (picks, 0), value=True)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, -math.inf)
        return blocks, mask.repeat(group, 1)[None, None]


def _choose_for_chunks(
    meta: Meta, config: ConversionConfig, scaling: float, a: int, b: int
) -> Int[Tensor, "chunks batch kv_heads picks"] | None:
    """The blocks that chunks a … b−1 retrieve, best first; None if there are none to choose from."""
    picks = min(config.top_k, _count(config, a))
    if picks == 0:
        return None
    per_chunk = config.chunk_size // config.block
    before = meta.queries[:, :, (a - 1) * per_chunk : (b - 1) * per_chunk]
    meta_queries = before.unflatten(2, (b - a, per_chunk)).movedim(2, 0)
    counts = torch.tensor([_count(config, c) for c in range(a, b)], device=meta.keys.device)
    meta_keys = meta.keys[:, :, : config.first_block + _count(config, b - 1)]
    return _choose(meta_queries, meta_keys, counts[:, None], picks, config, scaling)


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
    scores = grouped @ key_sums.mT * (scaling / size**2)
    possible = torch.arange(key_sums.shape[2], device=scores.device) < counts[..., None, None, None]
    relevance = scores.masked_fill(~possible, -math.inf).softmax(-1).mean(-2)
    return relevance.masked_fill(~possible.squeeze(-2), -1.0).topk(picks, dim=-1).indices + skip


# -- Chunk by chunk: the kinds whose reading differs from token to token --------------------------


class States(NamedTuple):
    """What the far tokens of each chunk leave behind: moments of keys and values, sinks left out.

    Heads are those of the keys, or of the queries where a fit gives each head weights of its own. `directions` is the
    rank that is kept; without compression it is head_dim, and there is no `basis`. All is in float32 or wider.
    """

    log_size: Float[Tensor, "batch heads chunks"]
    key_mean: Float[Tensor, "batch heads chunks head_dim"]
    value_mean: Float[Tensor, "batch heads chunks head_dim"]
    key_covariance: Float[Tensor, "batch heads chunks directions directions"]
    key_value_covariance: Float[Tensor, "batch heads chunks directions head_dim"]
    basis: Float[Tensor, "batch heads chunks head_dim directions"] | None

    def map(self, change: Callable[[Tensor], Tensor]) -> States:
        """The states with each tensor changed."""
        return States(*(None if x is None else change(x) for x in self))  # type: ignore[arg-type]

    def then(self, later: States) -> States:
        """These chunks and the `later` ones."""
        both = zip(self, later, strict=True)
        return States(*(None if x is None or y is None else torch.cat([x, y], dim=2) for x, y in both))  # type: ignore[arg-type]


def chunk_states(
    k: Float[Tensor, "batch kv_heads n head_dim"],
    v: Float[Tensor, "batch kv_heads n head_dim"],
    config: ConversionConfig,
    scaling: float,
    fit: Fit | None = None,
    first: int = 0,
) -> States:
    """The states of all whole chunks from number `first` on."""
    size, dim = config.chunk_size, k.shape[3]
    chunks = k.shape[2] // size - first
    k, v = (wide(x[:, :, first * size : (first + chunks) * size].unflatten(2, (chunks, size))) for x in (k, v))
    is_far = (
        torch.arange(first * size, (first + chunks) * size, device=k.device).view(chunks, size) >= config.sink_tokens
    )
    if fit is None:
        scores = torch.zeros_like(k[..., 0])
    else:
        group = len(fit.query) // k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        scores = (k @ wide(fit.query)[:, None, :, None]).squeeze(-1) * scaling
    scores = scores.masked_fill(~is_far, -math.inf)
    share = scores.softmax(-1).masked_fill(~is_far.any(1)[:, None], 0)[..., None]
    key_mean, value_mean = ((x * share).sum(3) for x in (k, v))
    k, v = k - key_mean[..., None, :], v - value_mean[..., None, :]
    basis = None
    if (rank := config.rank(dim)) < dim:
        basis = _basis((k * share).mT @ k, rank)
        k = k @ basis
    weighted = (k * share).mT
    return States(scores.logsumexp(-1), key_mean, value_mean, weighted @ k, weighted @ v, basis)


@torch.no_grad()
def _basis(covariance: Float[Tensor, "... dim dim"], rank: int) -> Float[Tensor, "... dim rank"]:
    """Orthonormal directions in which the keys vary most, by subspace iteration from a fixed start.

    A few rounds are as good as the eigenvectors here and take a tenth of their time. No gradient goes through the
    choice of directions.
    """
    dim = covariance.shape[-1]
    start = torch.randn(dim, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = start.to(covariance).expand(*covariance.shape[:-2], dim, rank)
    for _ in range(BASIS_ROUNDS):
        basis = torch.linalg.qr(covariance @ basis).Q
    return basis


def _attend_by_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: ConversionConfig,
    scaling: float,
    first: int,
    meta: Meta | None,
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
            mask = _token_mask(q_now, k, config, scaling, c).repeat(1, 1, group, 1)
            out = F.scaled_dot_product_attention(q_now.flatten(2, 3), k[:, :, :end], v[:, :, :end], mask, scale=scaling)
        else:
            sinks, far_chunks = min(config.sink_tokens, far_end), far_end // size
            k_read, v_read = (torch.cat([x[:, :, :sinks], x[:, :, far_end:end]], dim=2) for x in (k, v))
            causal = torch.ones(size, k_read.shape[2], dtype=torch.bool, device=k.device)
            hidden = ~causal.tril(k_read.shape[2] - size).repeat(group, 1)
            far_hidden = None
            if meta is not None and (picks := _choose_for_chunks(meta, config, scaling, c, c + 1)) is not None:
                k_read = torch.cat([_tokens_of(picks[0], k, size), k_read], dim=2)
                v_read = torch.cat([_tokens_of(picks[0], v, size), v_read], dim=2)
                hidden = F.pad(hidden, (picks.shape[3] * size, 0), value=False)
                far_hidden = _marked(picks[0], far_chunks)[:, :, None]
            far = states.map(lambda x, far_chunks=far_chunks: x[:, :, :far_chunks])  # type: ignore[misc]
            out = _attend_with_states(q_now, k_read, v_read, hidden, far, scaling, fit, far_hidden).flatten(2, 3)
        outputs.append(out.unflatten(2, (group, size)))
    return torch.stack(outputs, dim=3).permute(0, 3, 4, 1, 2, 5).reshape(batch, rows, heads, dim)


def _tokens_of(picks: Int[Tensor, "batch kv_heads picks"], x: Tensor, size: int) -> Tensor:
    """The tokens of the chosen blocks of `size`: (batch, kv_heads, picks · size, head_dim)."""
    position = (picks[..., None] * size + torch.arange(size, device=x.device)).flatten(2)
    return x.gather(2, position[..., None].expand(-1, -1, -1, x.shape[3]))


def _marked(
    picks: Int[Tensor, "batch kv_heads picks"], blocks: int, real: Bool[Tensor, "batch kv_heads picks"] | None = None
) -> Bool[Tensor, "batch kv_heads blocks"]:
    """Which of all blocks are chosen."""
    mark = torch.zeros(*picks.shape[:2], blocks, dtype=torch.bool, device=picks.device)
    return mark.scatter_(2, picks, torch.ones_like(picks, dtype=torch.bool) if real is None else real)


def _token_mask(
    q: Float[Tensor, "batch kv_heads group size head_dim"],
    k: Tensor,
    config: ConversionConfig,
    scaling: float,
    chunk: int,
) -> Bool[Tensor, "batch kv_heads size end"]:
    """What each token of a chunk reads when each chooses blocks for itself; one choice for a group of heads."""
    size, far_end, end = config.block, config.far_end(chunk), (chunk + 1) * config.chunk_size
    position = torch.arange(end, device=q.device)
    query = position[chunk * config.chunk_size :, None]
    allowed = (position <= query) & ((position < config.sink_tokens) | (position >= far_end))
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


def _attend_with_states(
    q: Float[Tensor, "batch kv_heads group queries head_dim"],
    k: Float[Tensor, "batch kv_heads exact head_dim"],
    v: Float[Tensor, "batch kv_heads exact head_dim"],
    hidden: Bool[Tensor, "... exact"],
    far: States,
    scaling: float,
    fit: Fit | None = None,
    far_hidden: Bool[Tensor, "... chunks"] | None = None,
) -> Float[Tensor, "batch kv_heads group queries head_dim"]:
    """Exact tokens and far states under one normaliser. `hidden` has the queries of a group stacked.

    The expansion is the one that `reference` states. It is a polynomial, so that a key far from its chunk's mean
    cannot blow up a weight, as it can in the exponential of the variance.
    """
    dtype, heads = q.dtype, far.log_size.shape[1]
    q, k, v = wide(q) * scaling, wide(k), wide(v)
    q_exact = q.flatten(2, 3)
    q_far = q.reshape(q.shape[0], heads, -1, q.shape[4])
    if fit is not None:
        q_far = q_far - wide(fit.query)[:, None] * scaling
    along = _along(q_far, far)
    bent = torch.einsum("bhqcr,bhcrs->bhqcs", along, far.key_covariance)
    growth = 1 + (bent * along).sum(-1).clamp(min=0) / 2
    mass = q_far @ far.key_mean.mT + far.log_size[:, :, None] + growth.log()
    if fit is not None:
        mass = mass * wide(fit.temperature)[:, None, None] + wide(fit.log_gate)[:, None, None]
    mass = mass.reshape(*q_exact.shape[:3], -1)
    if far_hidden is not None:
        mass = mass.masked_fill(far_hidden, -math.inf)
    exact = (q_exact @ k.mT).masked_fill(hidden, -math.inf)
    weights = torch.cat([exact, mass], dim=-1).softmax(-1)
    near, share = weights[..., : k.shape[2]], weights[..., k.shape[2] :].reshape(growth.shape)
    slope = ((share / growth)[..., None] * along).flatten(3) @ far.key_value_covariance.flatten(2, 3)
    from_far = (share @ far.value_mean + slope).reshape(q_exact.shape)
    return (near @ v + from_far).to(dtype).view(q.shape)


def _along(
    q: Float[Tensor, "batch heads queries head_dim"], far: States
) -> Float[Tensor, "batch heads queries chunks directions"]:
    """Each query along the directions that each state keeps."""
    chunks = far.log_size.shape[2]
    if far.basis is None:
        return q[:, :, :, None].expand(-1, -1, -1, chunks, -1)
    return (q @ far.basis.transpose(2, 3).flatten(3)).unflatten(3, (chunks, far.basis.shape[4]))


# -- One token ------------------------------------------------------------------------------------


def step(
    q: Float[Tensor, "batch heads 1 head_dim"],
    k: Float[Tensor, "batch kv_heads cached head_dim"],
    v: Float[Tensor, "batch kv_heads cached head_dim"],
    config: ConversionConfig | None,
    scaling: float,
    lengths: Int[Tensor, " batch"],
    order: Int[Tensor, "batch cached"] | None = None,
    meta: Meta | None = None,
    states: States | None = None,
    fit: Fit | None = None,
) -> Float[Tensor, "batch 1 heads head_dim"]:
    """Attention of one new token a row, which is the last of that row's `lengths` tokens.

    Reads only what the token may read: work that does not grow with the text, but for choosing among its blocks.

    Args:
        config: what is read; None for full attention.
        lengths: real tokens of each row, the new one included.
        order: for each row, where in k and v its tokens lie, in order; None if they lie at 0, 1, 2, …
        meta: block sums over all tokens, needed if blocks are retrieved.
        states: of all far chunks, needed if states are retrieved.
        fit: how states are read, if that was calibrated.
    """
    near_start = None if config is None else lengths <= config.original_below
    if config is None or bool(near_start.all()):  # type: ignore[union-attr]
        return _step_full(q, k, v, scaling, lengths, order)
    out = _step_sparse(q, k, v, config, scaling, lengths, order, meta, states, fit)
    if config.original_below and bool(near_start.any()):  # type: ignore[union-attr]
        full = _step_full(q, k, v, scaling, lengths, order)
        out = torch.where(near_start[:, None, None, None], full, out)  # type: ignore[index]
    return out


def _step_full(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, lengths: Tensor, order: Tensor | None
) -> Float[Tensor, "batch 1 heads head_dim"]:
    """One new token a row that reads all of the row's tokens."""
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    real = (torch.arange(k.shape[2], device=q.device) < lengths[:, None]).to(torch.bool)
    if order is not None:
        real = torch.zeros_like(real).scatter_(1, order, real)
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
    meta: Meta | None,
    states: States | None,
    fit: Fit | None,
) -> Float[Tensor, "batch 1 heads head_dim"]:
    batch, kv_heads, _, dim = k.shape
    group = q.shape[1] // kv_heads
    chunk = (lengths - 1).clamp(min=0) // config.chunk_size
    far_end = (chunk - config.local_chunks + 1).clamp(min=0) * config.chunk_size
    sinks = torch.arange(config.sink_tokens, device=q.device).expand(batch, -1)
    local = far_end[:, None] + torch.arange(config.window, device=q.device)
    position = torch.cat([sinks, local], dim=1)[:, None].expand(-1, kv_heads, -1)
    allowed = torch.cat([sinks < far_end[:, None], local < lengths[:, None]], dim=1)[:, None].expand_as(position)
    far_hidden = None
    if states is not None:
        chunks = torch.arange(states.log_size.shape[2], device=q.device)
        far_hidden = (chunks >= (far_end // config.chunk_size)[:, None])[:, None].expand(-1, kv_heads, -1)
    if config.retrieves_blocks and meta is not None:
        picks, real = _choose_for_token(q, meta, config, scaling, chunk, far_end)
        real = real[:, None].expand_as(picks)
        tokens = picks[..., None] * config.block + torch.arange(config.block, device=q.device)
        position = torch.cat([position, tokens.flatten(2)], dim=2)
        allowed = torch.cat([allowed, real[..., None].expand_as(tokens).flatten(2)], dim=2)
        if far_hidden is not None:
            blocks = max(far_hidden.shape[2], meta.keys.shape[2])
            far_hidden = far_hidden | _marked(picks, blocks, real)[:, :, : far_hidden.shape[2]]
    position = position.clamp(max=k.shape[2] - 1)
    if order is not None:
        position = order[:, None].expand(-1, kv_heads, -1).gather(2, position)
    keys, values = (x.gather(2, position[..., None].expand(-1, -1, -1, dim)) for x in (k, v))
    grouped = q.reshape(batch, kv_heads, group, dim)
    if states is None or far_hidden is None:
        out = F.scaled_dot_product_attention(grouped, keys, values, allowed[:, :, None], scale=scaling)
    else:
        hidden, far_hidden = ~allowed[:, :, None], far_hidden[:, :, None]
        out = _attend_with_states(grouped[:, :, :, None], keys, values, hidden, states, scaling, fit, far_hidden)
    return out.reshape(batch, 1, q.shape[1], dim)


def _choose_for_token(
    q: Tensor, meta: Meta, config: ConversionConfig, scaling: float, chunk: Tensor, far_end: Tensor
) -> tuple[Int[Tensor, "batch kv_heads picks"], Bool[Tensor, "batch picks"]]:
    """The blocks that one new token a row reads, and which of them are real."""
    counts = (far_end // config.block - config.first_block).clamp(min=0)
    picks = min(config.top_k, max(0, meta.keys.shape[2] - config.first_block))
    if config.retrieval != "top_k_per_token":
        per_chunk = config.chunk_size // config.block
        before = (chunk - 1).clamp(min=0)[:, None] * per_chunk + torch.arange(per_chunk, device=q.device)
        index = before.clamp(max=meta.queries.shape[2] - 1)[:, None, :, None]
        queries = meta.queries.gather(2, index.expand(-1, q.shape[1], -1, q.shape[3]))
    else:
        queries = wide(q) * config.block
    chosen = _choose(queries, meta.keys, counts, picks, config, scaling)
    return chosen, torch.arange(picks, device=q.device) < counts[:, None]
