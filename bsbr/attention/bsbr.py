"""Block sparse attention with block retrieval.

A sequence of n tokens is cut into chunks of B tokens, numbered c = 0, 1, …. With head dimension p, chunk c's output is

    O_c = softmax(Q_c K_cᵀ / √p + causal mask) V_c + Q_c S_c                exact inside, retrieved from before
    S_c = Σ_{j < c} A_cj F_j,      F_j = K_jᵀ V_j / B                       one p × p state a chunk
    A_c = softmax over j < c of (R_c · H_j / √p)                            meta query against meta keys

Causality fixes where each part may come from. F_j and the meta key H_j use chunk j alone; the meta query R_c uses
tokens before chunk c, in practice its predecessor's last one; chunk 0 retrieves nothing; a chunk that the softmax reads
exactly is not retrieved as well. Every state that a later chunk can retrieve therefore belongs to a complete chunk.

The meta queries and keys are arguments, one row for each of the n // B complete chunks: `meta_q[…, c, :]` is R_{c+1},
the query that chunk c + 1 retrieves with, and `meta_k[…, c, :]` is H_c. Three options change the retrieval:

`local_chunks` = L: the softmax also reads the L − 1 chunks before its own, and retrieval begins behind them;
`top_k`: only the `top_k` chunks that score highest share the weights;
`compress` (heads, p, p′) and `expand` (heads, p′, p): a state is kept as K_jᵀ (V_j compress) / B, p·p′ numbers.

Time: O(n·B·p) inside chunks, O(n·p²) for states and reading, O((n/B)²·p²) for mixing or O((n/B)·top_k·p²) with `top_k`.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsbr.attention import standard
from bsbr.attention._shared import gather_tokens, ring_tokens, split_chunks


class State(NamedTuple):
    """What one more token needs: the exact window (a ring), the states of closed chunks, and the mix now in use.

    `count` below is length // chunk_size, the closed chunks of a row; `capacity` has room for the longest row's.
    """

    k: Float[Tensor, "batch heads window head_dim"]
    v: Float[Tensor, "batch heads window head_dim"]
    states: Float[Tensor, "batch heads capacity head_dim state_dim"]
    meta_k: Float[Tensor, "batch heads capacity head_dim"]
    mixed: Float[Tensor, "batch heads head_dim state_dim"]
    length: Int[Tensor, " batch"]


def reference(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    meta_q: Float[Tensor, "batch heads chunks head_dim"],
    meta_k: Float[Tensor, "batch heads chunks head_dim"],
    chunk_size: int,
    local_chunks: int = 1,
    top_k: int | None = None,
    compress: Float[Tensor, "heads head_dim state_dim"] | None = None,
    expand: Float[Tensor, "heads state_dim head_dim"] | None = None,
) -> Float[Tensor, "batch heads n head_dim"]:
    """The formula of this module's docstring, token by token."""
    scale = 1 / math.sqrt(q.shape[-1])
    outputs = []
    for t in range(q.shape[2]):
        chunk = t // chunk_size
        first_exact = max(0, chunk - local_chunks + 1)
        exact = slice(first_exact * chunk_size, t + 1)
        query = q[:, :, t : t + 1]
        out = (query @ k[:, :, exact].transpose(-1, -2) * scale).softmax(-1) @ v[:, :, exact]
        if first_exact > 0:
            scores = (meta_q[:, :, chunk - 1, None] * meta_k[:, :, :first_exact]).sum(-1) * scale
            if top_k is not None and top_k < first_exact:
                threshold = scores.topk(top_k, dim=-1).values[..., -1:]
                scores = scores.masked_fill(scores < threshold, -math.inf)
            weights = scores.softmax(-1)
            for j in range(first_exact):
                own = slice(j * chunk_size, (j + 1) * chunk_size)
                values = v[:, :, own] if compress is None else v[:, :, own] @ compress
                state = k[:, :, own].transpose(-1, -2) @ values / chunk_size
                retrieved = query @ state if expand is None else query @ state @ expand
                out = out + weights[:, :, j, None, None] * retrieved
        outputs.append(out)
    return torch.cat(outputs, dim=2)


def attend(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    meta_q: Float[Tensor, "batch heads chunks head_dim"],
    meta_k: Float[Tensor, "batch heads chunks head_dim"],
    chunk_size: int,
    local_chunks: int = 1,
    top_k: int | None = None,
    compress: Float[Tensor, "heads head_dim state_dim"] | None = None,
    expand: Float[Tensor, "heads state_dim head_dim"] | None = None,
) -> Float[Tensor, "batch heads n head_dim"]:
    """`reference` in batched matrix products over chunks; nothing of size n × n is built."""
    retrievable = max(math.ceil(q.shape[2] / chunk_size) - local_chunks, 0) * chunk_size
    earlier_k, earlier_v = (complete_chunks(x[:, :, :retrievable], chunk_size) for x in (k, v))
    states = chunk_states(earlier_k, earlier_v, compress)
    return _attend(q, k, v, meta_q, meta_k, states, chunk_size, local_chunks, top_k, expand)


def _attend(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    meta_q: Float[Tensor, "batch heads complete head_dim"],
    meta_k: Float[Tensor, "batch heads complete head_dim"],
    states: Float[Tensor, "batch heads complete head_dim state_dim"],
    chunk_size: int,
    local_chunks: int,
    top_k: int | None,
    expand: Float[Tensor, "heads state_dim head_dim"] | None,
) -> Float[Tensor, "batch heads n head_dim"]:
    n = q.shape[2]
    if n <= chunk_size * local_chunks:
        return standard.attend(q, k, v)
    q, k, v = (split_chunks(x, chunk_size) for x in (q, k, v))
    retrieving = q.shape[2] - local_chunks
    meta_q, meta_k = meta_q[:, :, local_chunks - 1 :][:, :, :retrieving], meta_k[:, :, :retrieving]
    mixed = mix(meta_q, meta_k, states[:, :, :retrieving], top_k)
    return read(q, k, v, mixed, local_chunks, expand).flatten(2, 3)[:, :, :n]


def prefill(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    meta_q: Float[Tensor, "batch heads chunks head_dim"],
    meta_k: Float[Tensor, "batch heads chunks head_dim"],
    chunk_size: int,
    local_chunks: int = 1,
    top_k: int | None = None,
    compress: Float[Tensor, "heads head_dim state_dim"] | None = None,
    expand: Float[Tensor, "heads state_dim head_dim"] | None = None,
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], State]:
    """`attend`, and the state after the first `lengths` tokens of each row (all n of them by default)."""
    batch, heads, n, _ = q.shape
    if lengths is None:
        lengths = torch.full((batch,), n, device=q.device)
    states = chunk_states(complete_chunks(k, chunk_size), complete_chunks(v, chunk_size), compress)
    out = _attend(q, k, v, meta_q, meta_k, states, chunk_size, local_chunks, top_k, expand)
    # The token that stands in each slot of a row's ring; slots not yet written point at token 0 and are never read.
    held = ring_tokens(lengths - 1, chunk_size * local_chunks).clamp(min=0)
    window_k, window_v = gather_tokens(k, held), gather_tokens(v, held)
    closed, rows = lengths // chunk_size, torch.arange(batch, device=q.device)
    if states.shape[2]:
        last = meta_q[rows, :, (closed - 1).clamp(min=0)]
        mixed = _retrieve(last, meta_k, states, closed - local_chunks + 1, top_k)
    else:
        mixed = states.new_zeros(batch, heads, *states.shape[-2:])
    return out, State(window_k, window_v, states, meta_k, mixed, lengths.clone())


def step(
    q: Float[Tensor, "batch heads head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    state: State,
    chunk_size: int,
    local_chunks: int = 1,
    expand: Float[Tensor, "heads state_dim head_dim"] | None = None,
) -> tuple[Float[Tensor, "batch heads head_dim"], State]:
    """One token after `state`, in O(window + head_dim · state_dim) time, whatever came before.

    A row whose chunk this token completes, `ended(state, chunk_size)`, is to be closed before its next step: `close`.
    """
    position, window = state.length, chunk_size * local_chunks
    rows, now = torch.arange(len(position), device=position.device), position % window
    state.k[rows, :, now] = k
    state.v[rows, :, now] = v
    # How far back each slot of the ring lies, and how far the first token of the exact chunks does.
    age = (now[:, None] - torch.arange(window, device=position.device)) % window
    reach = torch.minimum(position, position % chunk_size + (window - chunk_size))
    read = (age <= reach[:, None])[:, None, None]
    out = F.scaled_dot_product_attention(q[:, :, None], state.k, state.v, attn_mask=read)
    retrieved = q[:, :, None] @ state.mixed
    out = out + (retrieved if expand is None else retrieved @ expand)
    return out[:, :, 0], state._replace(length=position + 1)


def ended(state: State, chunk_size: int) -> Int[Tensor, " rows"]:
    """The rows whose last token completed a chunk."""
    return (state.length % chunk_size == 0).nonzero()[:, 0]


def close(
    rows: Int[Tensor, " rows"],
    meta_q: Float[Tensor, "rows heads head_dim"],
    meta_k: Float[Tensor, "rows heads head_dim"],
    state: State,
    chunk_size: int,
    local_chunks: int = 1,
    top_k: int | None = None,
    compress: Float[Tensor, "heads head_dim state_dim"] | None = None,
) -> State:
    """Turn the completed chunk of each of the rows into a state, and mix what their next chunk retrieves.

    `meta_q` and `meta_k` belong to the completed chunk, as in `attend`. Time: O((n/chunk_size) · head_dim · state_dim).
    """
    closed = state.length[rows] // chunk_size - 1
    capacity = state.states.shape[2]
    if int(closed.max()) >= capacity:
        room = max(capacity, 8)
        state = state._replace(
            states=F.pad(state.states, (0, 0, 0, 0, 0, room)), meta_k=F.pad(state.meta_k, (0, 0, 0, room))
        )
    part = closed % local_chunks
    keys, values = (x.unflatten(2, (local_chunks, chunk_size))[rows, :, part] for x in (state.k, state.v))
    state.states[rows, :, closed] = chunk_states(keys[:, :, None], values[:, :, None], compress)[:, :, 0]
    state.meta_k[rows, :, closed] = meta_k
    state.mixed[rows] = _retrieve(meta_q, state.meta_k[rows], state.states[rows], closed + 2 - local_chunks, top_k)
    return state


def complete_chunks(
    x: Float[Tensor, "batch heads n dim"], chunk_size: int
) -> Float[Tensor, "batch heads complete chunk_size dim"]:
    """Cut into chunks, without the tokens of an incomplete last one."""
    complete = x.shape[2] // chunk_size
    return x[:, :, : complete * chunk_size].unflatten(2, (complete, chunk_size))


def chunk_states(
    k: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    v: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    compress: Float[Tensor, "heads head_dim state_dim"] | None,
) -> Float[Tensor, "batch heads chunks head_dim state_dim"]:
    """F_j = K_jᵀ V_j / B, with compressed values if asked."""
    if compress is not None:
        v = v @ compress[:, None]
    return k.transpose(-1, -2) @ v / k.shape[-2]


def mix(
    meta_q: Float[Tensor, "batch heads rows head_dim"],
    meta_k: Float[Tensor, "batch heads chunks head_dim"],
    states: Float[Tensor, "batch heads chunks head_dim state_dim"],
    top_k: int | None,
) -> Float[Tensor, "batch heads rows head_dim state_dim"]:
    """S for the last `rows` chunks that retrieve: the last row mixes all states, each row before it one fewer.

    A row is a chunk here, so this is causal attention of chunks.
    """
    rows, chunks = meta_q.shape[2], meta_k.shape[2]
    scores = meta_q @ meta_k.transpose(-1, -2) / math.sqrt(meta_q.shape[-1])
    later = torch.ones(rows, chunks, dtype=torch.bool, device=scores.device).triu(1 + chunks - rows)
    return _weigh(scores.masked_fill(later, -math.inf), states, top_k)


def read(
    q: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    k: Float[Tensor, "batch heads known chunk_size head_dim"],
    v: Float[Tensor, "batch heads known chunk_size head_dim"],
    mixed: Float[Tensor, "batch heads rows head_dim state_dim"],
    local_chunks: int,
    expand: Float[Tensor, "heads state_dim head_dim"] | None,
) -> Float[Tensor, "batch heads chunks chunk_size head_dim"]:
    """O: what each chunk reads exactly and, in the last `rows` of them, from the mixed states.

    `k` and `v` may begin up to `local_chunks` − 1 chunks before `q`; they end with the same chunk.
    """
    # Chunks that retrieve nothing get a state of zeros: one batched product then serves all.
    mixed = F.pad(mixed, (0, 0, 0, 0, q.shape[2] - mixed.shape[2], 0))
    retrieved = q @ mixed if expand is None else (q @ mixed) @ expand[:, None]
    return _local(q, k, v, local_chunks) + retrieved


def _retrieve(
    meta_q: Float[Tensor, "rows heads head_dim"],
    meta_k: Float[Tensor, "rows heads chunks head_dim"],
    states: Float[Tensor, "rows heads chunks head_dim state_dim"],
    available: Int[Tensor, " rows"],
    top_k: int | None,
) -> Float[Tensor, "rows heads head_dim state_dim"]:
    """One row's mix of its first `available` states; zeros where there are none."""
    scores = meta_q[:, :, None] @ meta_k.transpose(-1, -2) / math.sqrt(meta_q.shape[-1])
    there = torch.arange(meta_k.shape[2], device=scores.device) < available[:, None]
    any_there = (available > 0)[:, None, None, None]
    scores = scores.masked_fill(~there[:, None, None], -math.inf).masked_fill(~any_there, 0.0)
    return _weigh(scores, states, top_k)[:, :, 0] * any_there


def _weigh(
    scores: Float[Tensor, "batch heads rows chunks"],
    states: Float[Tensor, "batch heads chunks head_dim state_dim"],
    top_k: int | None,
) -> Float[Tensor, "batch heads rows head_dim state_dim"]:
    """The softmax of the scores over chunks, or over the `top_k` highest of them, applied to the states."""
    flat = states.flatten(3)
    if top_k is None or top_k >= scores.shape[-1]:
        return (scores.softmax(-1) @ flat).unflatten(-1, states.shape[-2:])
    best, chosen = scores.topk(top_k, dim=-1)
    weights = best.softmax(-1)[..., None]
    mixed = torch.zeros((), dtype=flat.dtype, device=flat.device)
    for rank in range(top_k):  # gathering rank by rank keeps memory at one state a row
        mixed = mixed + weights[..., rank, :] * flat.gather(
            2, chosen[..., rank, None].expand(-1, -1, -1, flat.shape[-1])
        )
    return mixed.unflatten(-1, states.shape[-2:])


def _local(
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
