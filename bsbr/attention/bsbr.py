"""Block sparse attention with block retrieval.

A sequence of n tokens is cut into chunks of B tokens, numbered c = 0, 1, …. With head dimension p, chunk c's output is

    O_c = softmax(Q_c K_cᵀ / √p + causal mask) V_c + Q_c S_c                exact inside, retrieved from before
    S_c = Σ_{j < c} A_cj F_j,      F_j = K_jᵀ V_j / B                       one p × p state a chunk
    A_c = softmax over j < c of (R_c · H_j / √p)                            meta query against meta keys

Causality fixes where each part may come from. F_j and the meta key H_j use chunk j alone; the meta query R_c uses
tokens before chunk c, in practice its predecessor's last one; chunk 0 retrieves nothing; a chunk that the softmax reads
exactly is not retrieved as well. Every state that a later chunk can retrieve therefore belongs to a complete chunk.

The meta queries and keys are arguments, one row for each of the n // B complete chunks: `meta_q[…, c, :]` is R_{c+1},
the query that chunk c + 1 retrieves with, and `meta_k[…, c, :]` is H_c. Four options change the retrieval:

`local_chunks` = L: the softmax also reads the L − 1 chunks before its own, and retrieval begins behind them;
`top_k`: only the `top_k` chunks that score highest share the weights;
`compress` (heads, p, p′) and `expand` (heads, p′, p): a state is kept as K_jᵀ (V_j compress) / B, p·p′ numbers;
`retrieval`: which part of the formula is changed, to see what it does.

| `retrieval` | what is read of the chunks j ≤ c − L | |
|---|---|---|
| `"states"` | their states, weighed by A_c | the formula |
| `"none"` | nothing | `meta_q` and `meta_k` are not used |
| `"uniform"` | the mean of their states | `meta_q` and `meta_k` are not used |
| `"per_token"` | their states, weighed by each token: A_t = softmax of R_t · H_j / √p | `meta_q` has a row a token |
| `"exact"` | the tokens of the `top_k` best, in the softmax of the own chunk | formula: `bsbr.attention._exact` |

Time: O(n·B·p) inside chunks, O(n·p²) for states and reading, O((n/B)²·p²) for mixing or O((n/B)·top_k·p²) with `top_k`;
`"per_token"` mixes in O(n·(n/B)·p²), and `"exact"` reads in O(n·top_k·B·p) and chooses in O((n/B)²·p).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bsbr.attention import _exact, standard
from bsbr.attention._exact import local
from bsbr.attention._shared import Operations, checked, fused, put, ring, split_chunks, with_room
from bsbr.attention._states import (
    chunk_states,
    complete_chunks,
    mean_of_first,
    means,
    mix,
    mix_of_token,
    one_more,
    read_by_token,
    retrieve,
)

RETRIEVALS = ("states", "none", "uniform", "per_token", "exact")
CHOOSING = ("states", "per_token", "exact")  # by meta queries and meta keys


def check_retrieval(retrieval: str, top_k: int | None, compression: object | None) -> None:
    """Raise ValueError where a kind of retrieval is unknown, or does not go with `top_k` or with compressed states."""
    if retrieval not in RETRIEVALS:
        raise ValueError(f"retrieval must be one of {', '.join(RETRIEVALS)}, but is {retrieval!r}")
    if retrieval == "exact" and top_k is None:
        raise ValueError("top_k must be a whole number ≥ 1 with retrieval 'exact', the chunks to read, but is None")
    if top_k is not None and retrieval not in ("states", "exact"):
        raise ValueError(f"top_k must be None with retrieval {retrieval!r}, which takes no best chunks, but is {top_k}")
    if compression is not None and retrieval in ("none", "exact"):
        raise ValueError(f"retrieval must keep states for them to be compressed, but is {retrieval!r}; do not compress")


class State(NamedTuple):
    """What one more token needs: the exact window (a ring), the states of closed chunks, and the mix now in use.

    `slots` are those of the window, or fewer while the text is shorter; `capacity` has room for the closed chunks of
    the longest row. What a kind of retrieval does not need is empty: `"none"` has the window alone, `"uniform"` no
    states beside their mean (in `mixed`, in float32 or wider), `"per_token"` nothing mixed. `"exact"` has a state of
    its own, `bsbr.attention._exact.State`.
    """

    k: Float[Tensor, "batch heads slots head_dim"]
    v: Float[Tensor, "batch heads slots head_dim"]
    states: Float[Tensor, "batch heads capacity head_dim state_dim"]
    meta_k: Float[Tensor, "batch heads capacity head_dim"]
    mixed: Float[Tensor, "batch heads head_dim state_dim"]
    length: Int[Tensor, " batch"]


AnyState = State | _exact.State


def reference(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    meta_q: Float[Tensor, "batch heads queries head_dim"],
    meta_k: Float[Tensor, "batch heads chunks head_dim"],
    chunk_size: int,
    local_chunks: int = 1,
    top_k: int | None = None,
    compress: Float[Tensor, "heads head_dim state_dim"] | None = None,
    expand: Float[Tensor, "heads state_dim head_dim"] | None = None,
    retrieval: str = "states",
) -> Float[Tensor, "batch heads n head_dim"]:
    """The formula of this module's docstring, token by token."""
    check_retrieval(retrieval, top_k, compress)
    scale = 1 / math.sqrt(q.shape[-1])
    outputs = []
    for t in range(q.shape[2]):
        chunk = t // chunk_size
        first_exact = max(0, chunk - local_chunks + 1)
        exact = slice(first_exact * chunk_size, t + 1)
        query, bias = q[:, :, t : t + 1], torch.zeros_like(k[:, :, : t + 1, 0])
        weights = torch.zeros_like(k[:, :, :first_exact, 0])
        if first_exact > 0 and retrieval in CHOOSING:
            row = t if retrieval == "per_token" else chunk - 1
            scores = (meta_q[:, :, row, None] * meta_k[:, :, :first_exact]).sum(-1) * scale
            if top_k is not None and top_k < first_exact:
                threshold = scores.topk(top_k, dim=-1).values[..., -1:]
                scores = scores.masked_fill(scores < threshold, -math.inf)
            if retrieval == "exact":
                bias = F.pad(scores.repeat_interleave(chunk_size, dim=-1), (0, t + 1 - exact.start))
                exact = slice(0, t + 1)
            else:
                weights = scores.softmax(-1)
        if retrieval == "uniform":
            weights = weights + 1 / max(first_exact, 1)
        near = query @ k[:, :, exact].transpose(-1, -2) * scale + bias[:, :, None, exact]
        out = near.softmax(-1) @ v[:, :, exact]
        for j in range(first_exact if retrieval not in ("none", "exact") else 0):
            own = slice(j * chunk_size, (j + 1) * chunk_size)
            values = v[:, :, own] if compress is None else v[:, :, own] @ compress
            state = k[:, :, own].transpose(-1, -2) @ values / chunk_size
            retrieved = query @ state if expand is None else query @ state @ expand
            out = out + weights[:, :, j, None, None] * retrieved
        outputs.append(out)
    return torch.cat(outputs, dim=2)


@checked
def attend(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    meta_q: Float[Tensor, "batch heads queries head_dim"],
    meta_k: Float[Tensor, "batch heads chunks head_dim"],
    chunk_size: int,
    local_chunks: int = 1,
    top_k: int | None = None,
    compress: Float[Tensor, "heads head_dim state_dim"] | None = None,
    expand: Float[Tensor, "heads state_dim head_dim"] | None = None,
    retrieval: str = "states",
) -> Float[Tensor, "batch heads n head_dim"]:
    """`reference` in batched matrix products over chunks; nothing of size n × n is built.

    Raises:
        ValueError: an argument of another shape or range; not one meta query and key for each complete chunk; a
            `retrieval` that is unknown, or does not go with the other options.
    """
    _check(meta_q, meta_k, q.shape[2], chunk_size, top_k, compress, retrieval)
    retrievable = max(math.ceil(q.shape[2] / chunk_size) - local_chunks, 0) * chunk_size
    states = _states(k[:, :, :retrievable], v[:, :, :retrievable], chunk_size, compress, retrieval)
    return _attend(q, k, v, meta_q, meta_k, states, chunk_size, local_chunks, top_k, expand, retrieval)


def _check(
    meta_q: Tensor, meta_k: Tensor, n: int, chunk_size: int, top_k: int | None, compress: Tensor | None, retrieval: str
) -> None:
    check_retrieval(retrieval, top_k, compress)
    if retrieval == "per_token" and meta_q.shape[2] != n:
        raise ValueError(f"meta_q must have a row for each of the {n} tokens, but has {meta_q.shape[2]}")
    for meta in (meta_k,) if retrieval == "per_token" else (meta_q, meta_k):
        if meta.shape[2] != n // chunk_size:
            raise ValueError(
                f"meta_q and meta_k must have a row for each of the {n // chunk_size} complete chunks of {chunk_size} "
                f"in {n} tokens, but have {meta.shape[2]}; leave an incomplete last chunk out"
            )


def _states(k: Tensor, v: Tensor, chunk_size: int, compress: Tensor | None, retrieval: str) -> Tensor:
    """Those of the complete chunks; none where none is read."""
    if retrieval in ("none", "exact"):
        k, v = k[:, :, :0], v[:, :, :0]
    return chunk_states(complete_chunks(k, chunk_size), complete_chunks(v, chunk_size), compress)


def _attend(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    meta_q: Float[Tensor, "batch heads queries head_dim"],
    meta_k: Float[Tensor, "batch heads complete head_dim"],
    states: Float[Tensor, "batch heads kept head_dim state_dim"],
    chunk_size: int,
    local_chunks: int,
    top_k: int | None,
    expand: Float[Tensor, "heads state_dim head_dim"] | None,
    retrieval: str,
) -> Float[Tensor, "batch heads n head_dim"]:
    n = q.shape[2]
    if n <= chunk_size * local_chunks:
        return standard.attend(q, k, v)
    q, k, v = (split_chunks(x, chunk_size) for x in (q, k, v))
    retrieving = q.shape[2] - local_chunks
    meta_k, states = meta_k[:, :, :retrieving], states[:, :, :retrieving]
    if retrieval == "none":
        out = local(q, k, v, local_chunks)
    elif retrieval == "per_token":
        tokens_q = split_chunks(meta_q, chunk_size)[:, :, local_chunks:]
        retrieved = read_by_token(q[:, :, local_chunks:], tokens_q, meta_k, states)
        retrieved = retrieved if expand is None else retrieved @ expand[:, None]
        out = local(q, k, v, local_chunks) + F.pad(retrieved, (0, 0, 0, 0, local_chunks, 0))
    elif retrieval == "uniform":
        out = read(q, k, v, means(states), local_chunks, expand)
    else:
        meta_q = meta_q[:, :, local_chunks - 1 :][:, :, :retrieving]
        if retrieval == "exact":
            assert top_k is not None
            out = _exact.attend(q, k, v, meta_q, meta_k, local_chunks, top_k)
        else:
            out = read(q, k, v, mix(meta_q, meta_k, states, top_k), local_chunks, expand)
    return out.flatten(2, 3)[:, :, :n]


@checked
def prefill(
    q: Float[Tensor, "batch heads n head_dim"],
    k: Float[Tensor, "batch heads n head_dim"],
    v: Float[Tensor, "batch heads n head_dim"],
    meta_q: Float[Tensor, "batch heads queries head_dim"],
    meta_k: Float[Tensor, "batch heads chunks head_dim"],
    chunk_size: int,
    local_chunks: int = 1,
    top_k: int | None = None,
    compress: Float[Tensor, "heads head_dim state_dim"] | None = None,
    expand: Float[Tensor, "heads state_dim head_dim"] | None = None,
    retrieval: str = "states",
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], AnyState]:
    """`attend`, and the state after the first `lengths` tokens of each row (all n of them by default)."""
    batch, heads, n, _ = q.shape
    _check(meta_q, meta_k, n, chunk_size, top_k, compress, retrieval)
    if lengths is None:
        lengths = torch.full((batch,), n, device=q.device)
    states = _states(k, v, chunk_size, compress, retrieval)
    out = _attend(q, k, v, meta_q, meta_k, states, chunk_size, local_chunks, top_k, expand, retrieval)
    if retrieval == "exact":
        assert top_k is not None
        return out, _exact.remember(k, v, meta_q, meta_k, lengths, chunk_size, local_chunks, top_k)
    window_k, window_v = (ring(x, lengths, chunk_size * local_chunks) for x in (k, v))
    closed, rows = lengths // chunk_size, torch.arange(batch, device=q.device)
    if retrieval in ("none", "per_token"):
        mixed = states.new_zeros(batch, heads, 0, states.shape[-1])
    elif retrieval == "uniform":
        mixed = mean_of_first(states, closed - local_chunks + 1)
        states = states.new_zeros(batch, heads, 0, *states.shape[-2:])
    elif states.shape[2]:
        last = meta_q[rows, :, (closed - 1).clamp(min=0)]
        mixed = retrieve(last, meta_k, states, closed - local_chunks + 1, top_k)
    else:
        mixed = states.new_zeros(batch, heads, *states.shape[-2:])
    kept_k = meta_k if retrieval in CHOOSING else meta_k.new_zeros(batch, heads, 0, meta_k.shape[-1])
    return out, State(window_k, window_v, states, kept_k, mixed, lengths.clone())


def step(
    q: Float[Tensor, "batch heads head_dim"],
    k: Float[Tensor, "batch heads head_dim"],
    v: Float[Tensor, "batch heads head_dim"],
    state: AnyState,
    chunk_size: int,
    local_chunks: int = 1,
    expand: Float[Tensor, "heads state_dim head_dim"] | None = None,
    retrieval: str = "states",
    meta_q: Float[Tensor, "batch heads head_dim"] | None = None,
) -> tuple[Float[Tensor, "batch heads head_dim"], AnyState]:
    """One token after `state`, in O(window + head_dim · state_dim) time, whatever came before.

    With retrieval `"per_token"` it is O(window + (n / chunk_size) · head_dim · state_dim), and `meta_q` is the token's.
    With `"exact"` it is O((window + top_k · chunk_size) · head_dim). A row whose chunk this token completes,
    `ended(state, chunk_size)`, is to be closed before its next step: `close`.
    """
    if isinstance(state, _exact.State):
        return _exact.step(q, k, v, state, chunk_size, local_chunks)
    position, window = state.length, chunk_size * local_chunks
    rows, now = torch.arange(len(position), device=position.device), position % window
    keys, values = (
        put(with_room(held, position, window), (rows, slice(None), now), x) for held, x in ((state.k, k), (state.v, v))
    )
    # How far back each slot of the ring lies, and how far the first token of the exact chunks does.
    age = (now[:, None] - torch.arange(keys.shape[2], device=position.device)) % window
    reach = torch.minimum(position, position % chunk_size + (window - chunk_size))
    read = (age <= reach[:, None])[:, None, None]
    out = F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=read)
    if retrieval != "none":
        mixed = state.mixed
        if retrieval == "per_token":
            assert meta_q is not None
            mixed = mix_of_token(meta_q, state.meta_k, state.states, position // chunk_size - local_chunks + 1)
        elif retrieval == "uniform":
            mixed = mixed.to(q.dtype)
        retrieved = q[:, :, None] @ mixed
        out = out + (retrieved if expand is None else retrieved @ expand)
    return out[:, :, 0], state._replace(k=keys, v=values, length=position + 1)


def ended(state: AnyState, chunk_size: int) -> Int[Tensor, " rows"]:
    """The rows whose last token completed a chunk."""
    return (state.length % chunk_size == 0).nonzero()[:, 0]


def close(
    rows: Int[Tensor, " rows"],
    meta_q: Float[Tensor, "rows heads head_dim"] | None,
    meta_k: Float[Tensor, "rows heads head_dim"] | None,
    state: AnyState,
    chunk_size: int,
    local_chunks: int = 1,
    top_k: int | None = None,
    compress: Float[Tensor, "heads head_dim state_dim"] | None = None,
    retrieval: str = "states",
) -> AnyState:
    """Turn the completed chunk of each of the rows into a state, and mix what their next chunk retrieves.

    `meta_q` and `meta_k` belong to the completed chunk, as in `attend`; without a choice by them, they are None. Time:
    O((n/chunk_size) · head_dim · state_dim).
    """
    if retrieval == "none":
        return state
    if isinstance(state, _exact.State):
        assert meta_q is not None and meta_k is not None and top_k is not None
        return _exact.close(rows, meta_q, meta_k, state, chunk_size, local_chunks, top_k)
    closed = state.length[rows] // chunk_size - 1
    # A state is made of the chunk just completed; but the mean takes in the oldest in the window, which will leave it.
    part = (closed + 1 if retrieval == "uniform" else closed) % local_chunks
    slots = (part * chunk_size)[:, None] + torch.arange(chunk_size, device=rows.device)
    slots = slots.clamp(max=state.k.shape[2] - 1)  # there is no oldest chunk yet while the text fits in its window
    keys, values = (x[rows[:, None], :, slots].transpose(1, 2) for x in (state.k, state.v))
    of_chunk = chunk_states(keys[:, :, None], values[:, :, None], compress)[:, :, 0]
    available = closed + 2 - local_chunks
    if retrieval == "uniform":
        mean = one_more(state.mixed[rows], of_chunk, available)
        return state._replace(mixed=put(state.mixed, (rows,), mean))
    assert meta_q is not None and meta_k is not None
    capacity = state.states.shape[2]
    if int(closed.max()) >= capacity:
        room = max(capacity, 8)
        state = state._replace(
            states=F.pad(state.states, (0, 0, 0, 0, 0, room)), meta_k=F.pad(state.meta_k, (0, 0, 0, room))
        )
    states = put(state.states, (rows, slice(None), closed), of_chunk)
    known = put(state.meta_k, (rows, slice(None), closed), meta_k)
    if retrieval == "per_token":
        return state._replace(states=states, meta_k=known)
    mixed = retrieve(meta_q, known[rows], states[rows], available, top_k)
    return state._replace(states=states, meta_k=known, mixed=put(state.mixed, (rows,), mixed))


def operations(
    n: int,
    heads: int,
    head_dim: int,
    chunk_size: int,
    local_chunks: int = 1,
    top_k: int | None = None,
    compress: Float[Tensor, "heads head_dim state_dim"] | None = None,
    expand: Float[Tensor, "heads state_dim head_dim"] | None = None,
    retrieval: str = "states",
) -> Operations:
    """Of `attend` on one row of n tokens."""
    if n <= chunk_size * local_chunks:
        return standard.operations(n, heads, head_dim)
    dims, chunks = heads * head_dim, -(-n // chunk_size)
    if retrieval == "exact":
        assert top_k is not None
        return _exact.operations(n, dims, chunk_size, local_chunks, top_k)
    retrieving, state_dim = chunks - local_chunks, head_dim if compress is None else compress.shape[-1]
    tokens, all_share = chunks * chunk_size, top_k is None or top_k >= retrieving
    near = standard.operations(chunk_size, heads, head_dim).times(chunks)
    if local_chunks > 1:
        near = fused(tokens * chunk_size * local_chunks, dims)
    if retrieval == "none":
        return near
    states = 2 * retrieving * chunk_size * dims * state_dim * (1 if compress is None else 2)
    if retrieval == "per_token":
        mixing = retrieving * (retrieving + 1) * chunk_size * dims * (1 + state_dim)
        expanding = 0 if expand is None else 2 * retrieving * chunk_size * dims * state_dim
        return near + Operations.of_products(states + mixing + expanding)
    mixing = 2 * retrieving**2 * dims * state_dim if all_share else 0
    reading = 2 * tokens * dims * state_dim * (1 if expand is None else 2)
    if retrieval == "uniform":  # equal weights take no scores, and no gradients
        return near + Operations.of_products(states + mixing + reading, -mixing)
    return near + Operations.of_products(states + 2 * retrieving**2 * dims + mixing + reading)


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
    return local(q, k, v, local_chunks) + retrieved
