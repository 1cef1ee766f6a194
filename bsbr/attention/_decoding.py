"""Decoding with `bsbr.attention.bsbr`: what is kept, one more token, and the end of a chunk."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bsbr.attention import _exact
from bsbr.attention._encoders import chunk_states
from bsbr.attention._exact import read_beside
from bsbr.attention._shared import put, with_room
from bsbr.attention._states import mix_of_token, one_more, retrieve


class State(NamedTuple):
    """What one more token needs: the exact window (a ring), the states of closed chunks, and the mix now in use.

    `slots` are those of the window, or fewer while the text is shorter; `capacity` has room for the closed chunks of
    the longest row. `mass` is the logarithm of the sum of the weights e^(R · H / √p) in the mix, in float32 or wider.
    What a kind of retrieval does not need is empty: `"none"` has the window alone, `"uniform"` no states beside their
    mean (in `mixed`, in float32 or wider), `"per_token"` nothing mixed; and `mass` where normalisers are separate, or
    where it is known without. `"exact"` has a state of its own, `bsbr.attention._exact.State`.
    """

    k: Float[Tensor, "batch heads slots head_dim"]
    v: Float[Tensor, "batch heads slots head_dim"]
    states: Float[Tensor, "batch heads capacity head_dim state_dim"]
    meta_k: Float[Tensor, "batch heads capacity head_dim"]
    mixed: Float[Tensor, "batch heads head_dim state_dim"]
    mass: Float[Tensor, "batch heads_or_0"]
    length: Int[Tensor, " batch"]


AnyState = State | _exact.State


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
    normaliser: str = "separate",
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
    seen = (age <= reach[:, None])[:, None, None]
    query, after = q[:, :, None], state._replace(k=keys, v=values, length=position + 1)
    if retrieval == "none":
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)[:, :, 0], after
    mixed, mass = state.mixed, state.mass
    available = position // chunk_size - local_chunks + 1
    if retrieval == "per_token":
        assert meta_q is not None
        mixed, mass = mix_of_token(meta_q, state.meta_k, state.states, available)
    elif retrieval == "uniform":
        mass = available.clamp(min=0).to(mixed.dtype).log()[:, None].expand(q.shape[:2])
        mixed = mixed.to(q.dtype)
    retrieved = query @ mixed if expand is None else query @ mixed @ expand
    if normaliser == "shared":
        out = read_beside(query, keys, values, seen, retrieved, mass[..., None] + math.log(chunk_size))
    else:
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen) + retrieved
    return out[:, :, 0], after


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
    chunk_encoder: str = "sum",
    normaliser: str = "separate",
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
    of_chunk = chunk_states(keys[:, :, None], values[:, :, None], compress, chunk_encoder)[:, :, 0]
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
    state = state._replace(states=states, meta_k=known)
    if retrieval == "per_token":
        return state
    mixed, mass = retrieve(meta_q, known[rows], states[rows], available, top_k)
    state = state._replace(mixed=put(state.mixed, (rows,), mixed))
    return state._replace(mass=put(state.mass, (rows,), mass)) if normaliser == "shared" else state
