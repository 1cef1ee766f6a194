"""Mixture of block attention: each token reads its own chunk, and the few earlier ones whose mean key fits its query.

With chunks of B tokens and r = `read_chunks`, token t of chunk c chooses the r − 1 earlier chunks j < c for which
q_t · k̄_j is greatest, k̄_j being the mean of the chunk's keys; with r or fewer chunks up to its own, all of them. Over
the tokens i of these and the tokens i ≤ t of its own there is one softmax:

    o_t = Σ_i softmax_i(q_t · k_i / √p) v_i

Lu et al. 2025, "MoBA" (arXiv:2502.13189), section 2.2. As there, r counts the own chunk, which is always read; there
chunks are called blocks and r is k. A choice has no gradient, and nothing is learned for it. Where r is at least the
number of chunks, this is standard attention.

Time: O(n·r·B·p), and O(n·(n/B)·p) for the choice, 1/B of what standard attention takes. State: all keys and values,
and the sum of each chunk's keys.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsbr.attention import standard
from bsbr.attention._exact import chunk_tokens, keep_token
from bsbr.attention._routing import Tiles, pieces_of, tile_count, tile_size
from bsbr.attention._shared import Operations, accumulate_in, checked, is_before, no_autocast, put, split_chunks

CHOOSING_AT_ONCE = 8  # chunks whose tokens choose at once
READING_AT_ONCE = 64  # tiles that are read at once: what lies between their products stays in the cache


class State(NamedTuple):
    """All tokens, chunk by chunk, keys beside values; and the sum of each chunk's keys so far, in float32 or wider.

    `slots` are those of a chunk, or fewer while the text is shorter.
    """

    kv: Float[Tensor, "batch heads capacity slots twice_head_dim"]
    key_sums: Float[Tensor, "batch heads capacity head_dim"]
    length: Int[Tensor, " batch"]


def reference(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    chunk_size: int,
    read_chunks: int,
) -> Float[Tensor, "batch heads n head_dim"]:
    """The formula of this module's docstring, token by token."""
    outputs = []
    for t in range(q.shape[2]):
        start = t // chunk_size * chunk_size
        query = q[:, :, t : t + 1]
        means = k[:, :, :start].unflatten(2, (start // chunk_size, chunk_size)).mean(3)
        fits = (query * means).sum(-1)
        chosen = fits.topk(min(read_chunks - 1, fits.shape[-1]), dim=-1).indices
        read = torch.zeros_like(fits, dtype=torch.bool).scatter(-1, chosen, True)
        read = F.pad(read.repeat_interleave(chunk_size, -1), (0, t + 1 - start), value=True)[:, :, None]
        scores = query @ k[:, :, : t + 1].transpose(-1, -2) / math.sqrt(q.shape[-1])
        outputs.append(scores.masked_fill(~read, -math.inf).softmax(-1) @ v[:, :, : t + 1])
    return torch.cat(outputs, dim=2)


@checked
def attend(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    chunk_size: int,
    read_chunks: int,
) -> Float[Tensor, "batch heads n head_dim"]:
    """`reference` by dense products: the tokens that have chosen a chunk are brought together before it.

    What a token reads of each chunk is a softmax of its own; these are merged by their greatest scores and their sums.
    """
    n, dtype, shape = q.shape[2], q.dtype, q.shape
    if n <= chunk_size * read_chunks:
        return standard.attend(q, k, v)
    with no_autocast(q):
        q, k, v = (x.to(accumulate_in(dtype)).flatten(0, 1) for x in (q, k, v))  # (rows, n, …), a row for each head
        keys, values = (split_chunks(x[:, None], chunk_size)[:, 0] for x in (k, v))
        scaled = q / math.sqrt(q.shape[-1])
        queries = split_chunks(scaled[:, None], chunk_size)[:, 0]
        later = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=q.device).triu(1)
        near = _read(*(x.flatten(0, 1).split(READING_AT_ONCE) for x in (queries, keys, values)), later)
        parts = [[x.unflatten(0, keys.shape[:2]).flatten(1, 2)[:, :n, None] for x in near]]
        if read_chunks > 1:
            tiles = Tiles.of(*choose(q, keys[:, :-1].sum(2), chunk_size, read_chunks), keys.shape[1], chunk_size)
            source = (pieces_of(x.flatten(0, 1), tiles.chunks, READING_AT_ONCE) for x in (keys, values))
            far = _read(tiles.gather(scaled).split(READING_AT_ONCE), *source)
            parts.append(tiles.by_token(*far))
        return _merged(parts).view(shape).to(dtype)


def choose(
    q: Float[Tensor, "rows n head_dim"],
    key_sums: Float[Tensor, "rows earlier head_dim"],
    chunk_size: int,
    read_chunks: int,
) -> tuple[Int[Tensor, "rows n choices"], Bool[Tensor, "n choices"]]:
    """The earlier chunks that each token reads, the best first; and which there are, as the first have fewer before.

    All earlier chunks are whole, so the sums of their keys order them as the means do.
    """
    own = torch.arange(q.shape[1], device=q.device)[:, None] // chunk_size
    chosen = []
    with torch.no_grad():
        for tokens, earlier in _choosers(q.shape[1], chunk_size, read_chunks):
            fits = q[:, tokens] @ key_sums[:, :earlier].transpose(-1, -2)
            fits.masked_fill_(torch.arange(earlier, device=q.device) >= own[tokens], -math.inf)
            chosen.append(fits.topk(read_chunks - 1, dim=-1).indices)
    return torch.cat(chosen, dim=1), torch.arange(read_chunks - 1, device=q.device) < own


def _choosers(n: int, chunk_size: int, read_chunks: int) -> Iterator[tuple[slice, int]]:
    """Tokens that choose at once, and how many chunks there are to choose from before the last one's own."""
    size = chunk_size * max(CHOOSING_AT_ONCE, read_chunks)
    for start in range(0, n, size):
        end = min(start + size, n)
        yield slice(start, end), (end - 1) // chunk_size


def _read(
    queries: Iterable[Float[Tensor, "tiles queries head_dim"]],
    keys: Iterable[Float[Tensor, "tiles chunk_size head_dim"]],
    values: Iterable[Float[Tensor, "tiles chunk_size head_dim"]],
    later: Bool[Tensor, "queries chunk_size"] | None = None,
) -> list[Tensor]:
    """What the queries of each tile read of its chunk: Σ_i w_i v_i, Σ_i w_i and m, where w_i = exp(q · k_i − m)."""
    found = []
    for q, k, v in zip(queries, keys, values, strict=True):
        scores = q @ k.transpose(-1, -2)
        if later is not None:
            scores.masked_fill_(later, -math.inf)
        greatest = scores.detach().amax(-1, keepdim=True)
        weights = scores.sub_(greatest).exp_()
        found.append((weights @ v, weights.sum(-1, keepdim=True), greatest))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _merged(parts: list[list[Tensor]]) -> Float[Tensor, "rows n head_dim"]:
    """One softmax of those of several chunks, (rows, n, chunks, …) each."""
    greatest = torch.cat([part[-1] for part in parts], dim=2).amax(2, keepdim=True)
    read = total = torch.zeros((), dtype=greatest.dtype, device=greatest.device)
    for values, sums, own in parts:
        weights = (own - greatest).exp()
        read, total = read + (values * weights).sum(2), total + (sums * weights).sum(2)
    return read / total


@checked
def prefill(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    chunk_size: int,
    read_chunks: int,
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], State]:
    """`attend`, and the state after the first `lengths` tokens of each row (all n of them by default)."""
    n, slots = k.shape[2], min(chunk_size, k.shape[2])
    if lengths is None:
        lengths = torch.full((k.shape[0],), n, device=k.device)
    real = k.detach().to(accumulate_in(k.dtype)).masked_fill(~is_before(lengths, n), 0.0)
    state = State(split_chunks(torch.cat([k, v], dim=-1), slots), split_chunks(real, slots).sum(3), lengths.clone())
    return attend(q, k, v, chunk_size, read_chunks), state


def step(
    q: Float[Tensor, "batch heads head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    state: State,
    chunk_size: int,
    read_chunks: int,
) -> tuple[Float[Tensor, "batch heads head_dim"], State]:
    """One token after `state`: it reads `read_chunks` chunks, whatever came before, and compares the sums of all."""
    position, heads = state.length, q.shape[1]
    kv, sums = keep_token(state.kv, k, v, position, chunk_size), state.key_sums
    sums = F.pad(sums, (0, 0, 0, kv.shape[2] - sums.shape[2]))
    own = position // chunk_size
    here = torch.arange(len(position), device=q.device), slice(None), own
    sums = put(sums, here, sums[here] + k.detach())
    with torch.no_grad():
        fits = (q[:, :, None] * sums).sum(-1)
        earlier = torch.arange(sums.shape[2], device=q.device) < own[:, None]
        best, chosen = fits.masked_fill(~earlier[:, None], -math.inf).topk(min(read_chunks - 1, sums.shape[2]), dim=-1)
    which = torch.cat([own[:, None, None].expand(-1, heads, 1), chosen], dim=-1)
    keys, values = chunk_tokens(kv, which[:, :, None])[:, :, 0].chunk(2, dim=-1)
    near = torch.arange(kv.shape[3], device=q.device) <= (position % chunk_size)[:, None]
    far = (best > -math.inf).repeat_interleave(kv.shape[3], -1)
    read = torch.cat([near[:, None].expand(-1, heads, -1), far], dim=-1)[:, :, None]
    out = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=read)
    return out[:, :, 0], State(kv, sums, position + 1)


def operations(n: int, heads: int, head_dim: int, chunk_size: int, read_chunks: int) -> Operations:
    """Of `attend` on one row of n tokens. The choice has no gradient."""
    if n <= chunk_size * read_chunks:
        return standard.operations(n, heads, head_dim)
    pairs = -(-n // chunk_size) * chunk_size**2
    choosing = 0
    if read_chunks > 1:
        pairs += tile_count(n, chunk_size, read_chunks - 1) * tile_size(chunk_size) * chunk_size
        choosers = _choosers(n, chunk_size, read_chunks)
        choosing = sum(2 * (tokens.stop - tokens.start) * earlier for tokens, earlier in choosers) * head_dim
    return (Operations.of_products(4 * pairs * head_dim) + Operations(choosing, 0)).times(heads)
