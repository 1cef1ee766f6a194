"""Block sparse attention with block retrieval.

A sequence of n tokens is cut into chunks of B tokens, numbered c = 0, 1, …. With head dimension p, chunk c's output is

    O_c = softmax(Q_c K_cᵀ / √p + causal mask) V_c + Q_c S_c                exact inside, retrieved from before
    S_c = Σ_{j < c} A_cj F_j,      F_j = K_jᵀ V_j / B                       one p × p state a chunk
    A_c = softmax over j < c of (R_c · H_j / √p)                            meta query against meta keys

Causality fixes where each part may come from. F_j and the meta key H_j use chunk j alone; the meta query R_c uses
tokens before chunk c, in practice its predecessor's last one; chunk 0 retrieves nothing; a chunk that the softmax reads
exactly is not retrieved as well. Every state that a later chunk can retrieve therefore belongs to a complete chunk.

The meta queries and keys are arguments, one row for each of the n // B complete chunks: `meta_q[…, c, :]` is R_{c+1},
the query that chunk c + 1 retrieves with, and `meta_k[…, c, :]` is H_c. Six options change the retrieval:

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

`chunk_encoder`: what F_j is; `"sum"` is the formula, `"delta"` is not linear in the keys (`bsbr.attention._encoders`);
`normaliser`: `"separate"` is the formula, which adds what is retrieved to what is read exactly; with `"shared"` the
chunks j enter the softmax of the tokens i that are read exactly, and one sum normalises both:

    o_t = (Σ_i a_i v_i + Σ_j w_j F_jᵀ q_t) / (Σ_i a_i + Σ_j w_j),  a_i = e^(q_t · k_i / √p),  w_j = B e^(R_c · H_j / √p)

A chunk counts for its B tokens, as it does in a converted model (`bsbr.conversion.states`), where the token's query
stands for R and the chunk's mean key for H; with `"uniform"`, R · H is 0. Zheng et al. 2023, "Efficient Attention via
Control Variates" (arXiv:2302.04542), have one softmax over near tokens and over vectors that stand for chunks. All
weights are positive and add up to one; what is retrieved, F_jᵀ q_t, is as linear in the query as in the formula.

Time: O(n·B·p) inside chunks, O(n·p²) for states and reading, O((n/B)²·p²) for mixing or O((n/B)·top_k·p²) with `top_k`;
`"per_token"` mixes in O(n·(n/B)·p²), and `"exact"` reads in O(n·top_k·B·p) and chooses in O((n/B)²·p).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bsbr.attention import _encoders, _exact, standard
from bsbr.attention._decoding import AnyState, State, close, ended, step
from bsbr.attention._encoders import ENCODERS, chunk_states
from bsbr.attention._exact import local, local_beside
from bsbr.attention._shared import Operations, accumulate_in, checked, fused, ring, split_chunks
from bsbr.attention._states import (
    complete_chunks,
    mean_of_first,
    means,
    mix,
    mix_and_mass,
    read_by_token,
    retrieve,
)

__all__ = ["AnyState", "State", "attend", "close", "ended", "operations", "prefill", "reference", "step"]

RETRIEVALS = ("states", "none", "uniform", "per_token", "exact")
CHOOSING = ("states", "per_token", "exact")  # by meta queries and meta keys
NORMALISERS = ("separate", "shared")  # of what is read exactly, and of what is retrieved


def check_options(
    retrieval: str,
    top_k: int | None,
    compression: object | None,
    chunk_encoder: str = "sum",
    normaliser: str = "separate",
) -> None:
    """Raise ValueError where a name is unknown, or the kind of retrieval does not go with the other options."""
    for option, value, known in (
        ("retrieval", retrieval, RETRIEVALS),
        ("chunk_encoder", chunk_encoder, ENCODERS),
        ("normaliser", normaliser, NORMALISERS),
    ):
        if value not in known:
            raise ValueError(f"{option} must be one of {', '.join(known)}, but is {value!r}")
    if retrieval == "exact" and top_k is None:
        raise ValueError("top_k must be a whole number ≥ 1 with retrieval 'exact', the chunks to read, but is None")
    if top_k is not None and retrieval not in ("states", "exact"):
        raise ValueError(f"top_k must be None with retrieval {retrieval!r}, which takes no best chunks, but is {top_k}")
    if retrieval not in ("none", "exact"):
        return
    if compression is not None:
        raise ValueError(f"retrieval must keep states for them to be compressed, but is {retrieval!r}; do not compress")
    if chunk_encoder != "sum":
        raise ValueError(
            f"chunk_encoder must be 'sum' with retrieval {retrieval!r}, which makes no states, but is "
            f"{chunk_encoder!r}; choose a retrieval that reads states"
        )
    if normaliser != "separate":
        raise ValueError(
            f"normaliser must be 'separate' with retrieval {retrieval!r}, which has one softmax and nothing beside it, "
            f"but is {normaliser!r}; choose a retrieval that reads states"
        )


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
    chunk_encoder: str = "sum",
    normaliser: str = "separate",
) -> Float[Tensor, "batch heads n head_dim"]:
    """The formula of this module's docstring, token by token."""
    check_options(retrieval, top_k, compress, chunk_encoder, normaliser)
    scale = 1 / math.sqrt(q.shape[-1])
    states = []
    for j in range(q.shape[2] // chunk_size if retrieval not in ("none", "exact") else 0):
        own = slice(j * chunk_size, (j + 1) * chunk_size)
        values = v[:, :, own] if compress is None else v[:, :, own] @ compress
        states.append(_encoders.reference(k[:, :, own], values, chunk_encoder))
    outputs = []
    for t in range(q.shape[2]):
        chunk = t // chunk_size
        first_exact = max(0, chunk - local_chunks + 1)
        exact = slice(first_exact * chunk_size, t + 1)
        query, bias = q[:, :, t : t + 1], torch.zeros_like(k[:, :, : t + 1, 0])
        scores = torch.zeros_like(k[:, :, :first_exact, 0])  # of the chunks before, all the same without a choice
        if first_exact > 0 and retrieval in CHOOSING:
            row = t if retrieval == "per_token" else chunk - 1
            scores = (meta_q[:, :, row, None] * meta_k[:, :, :first_exact]).sum(-1) * scale
            if top_k is not None and top_k < first_exact:
                threshold = scores.topk(top_k, dim=-1).values[..., -1:]
                scores = scores.masked_fill(scores < threshold, -math.inf)
            if retrieval == "exact":
                bias = F.pad(scores.repeat_interleave(chunk_size, dim=-1), (0, t + 1 - exact.start))
                exact = slice(0, t + 1)
        near = (query @ k[:, :, exact].transpose(-1, -2) * scale + bias[:, :, None, exact])[:, :, 0]
        if normaliser == "shared":
            both = torch.cat([near, scores + math.log(chunk_size)], dim=-1).softmax(-1)
            weights, shares = both.split([near.shape[-1], first_exact], dim=-1)
        else:
            weights, shares = near.softmax(-1), scores.softmax(-1)
        out = weights[:, :, None] @ v[:, :, exact]
        for j, state in enumerate(states[:first_exact]):
            retrieved = query @ state if expand is None else query @ state @ expand
            out = out + shares[:, :, j, None, None] * retrieved
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
    chunk_encoder: str = "sum",
    normaliser: str = "separate",
) -> Float[Tensor, "batch heads n head_dim"]:
    """`reference` in batched matrix products over chunks; nothing of size n × n is built.

    Raises:
        ValueError: an argument of another shape or range; not one meta query and key for each complete chunk; a
            `retrieval`, `chunk_encoder` or `normaliser` that is unknown, or does not go with the other options.
    """
    check_options(retrieval, top_k, compress, chunk_encoder, normaliser)
    _check(meta_q, meta_k, q.shape[2], chunk_size, retrieval)
    retrievable = max(math.ceil(q.shape[2] / chunk_size) - local_chunks, 0) * chunk_size
    states = _states(k[:, :, :retrievable], v[:, :, :retrievable], chunk_size, compress, retrieval, chunk_encoder)
    return _attend(q, k, v, meta_q, meta_k, states, chunk_size, local_chunks, top_k, expand, retrieval, normaliser)


def _check(meta_q: Tensor, meta_k: Tensor, n: int, chunk_size: int, retrieval: str) -> None:
    if retrieval == "per_token" and meta_q.shape[2] != n:
        raise ValueError(f"meta_q must have a row for each of the {n} tokens, but has {meta_q.shape[2]}")
    for meta in (meta_k,) if retrieval == "per_token" else (meta_q, meta_k):
        if meta.shape[2] != n // chunk_size:
            raise ValueError(
                f"meta_q and meta_k must have a row for each of the {n // chunk_size} complete chunks of {chunk_size} "
                f"in {n} tokens, but have {meta.shape[2]}; leave an incomplete last chunk out"
            )


def _states(
    k: Tensor, v: Tensor, chunk_size: int, compress: Tensor | None, retrieval: str, chunk_encoder: str
) -> Tensor:
    """Those of the complete chunks; none where none is read."""
    if retrieval in ("none", "exact"):
        k, v = k[:, :, :0], v[:, :, :0]
    return chunk_states(complete_chunks(k, chunk_size), complete_chunks(v, chunk_size), compress, chunk_encoder)


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
    normaliser: str,
) -> Float[Tensor, "batch heads n head_dim"]:
    n, shared = q.shape[2], normaliser == "shared"
    if n <= chunk_size * local_chunks:
        return standard.attend(q, k, v)
    q, k, v = (split_chunks(x, chunk_size) for x in (q, k, v))
    retrieving = q.shape[2] - local_chunks
    meta_k, states = meta_k[:, :, :retrieving], states[:, :, :retrieving]
    if retrieval == "none":
        out = local(q, k, v, local_chunks)
    elif retrieval == "per_token":
        tokens_q = split_chunks(meta_q, chunk_size)[:, :, local_chunks:]
        retrieved, mass = read_by_token(q[:, :, local_chunks:], tokens_q, meta_k, states)
        retrieved = retrieved if expand is None else retrieved @ expand[:, None]
        retrieved = F.pad(retrieved, (0, 0, 0, 0, local_chunks, 0))
        out = _join(q, k, v, retrieved, local_chunks, mass if shared else None)
    elif retrieval == "uniform":
        count = torch.arange(1, retrieving + 1, dtype=accumulate_in(q.dtype), device=q.device)
        mass = count.log()[:, None].expand(*q.shape[:2], -1, -1)
        out = read(q, k, v, means(states), local_chunks, expand, mass if shared else None)
    else:
        meta_q = meta_q[:, :, local_chunks - 1 :][:, :, :retrieving]
        if retrieval == "exact":
            assert top_k is not None
            out = _exact.attend(q, k, v, meta_q, meta_k, local_chunks, top_k)
        elif shared:
            mixed, mass = mix_and_mass(meta_q, meta_k, states, top_k)
            out = read(q, k, v, mixed, local_chunks, expand, mass[..., None])
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
    chunk_encoder: str = "sum",
    normaliser: str = "separate",
    lengths: Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch heads n head_dim"], AnyState]:
    """`attend`, and the state after the first `lengths` tokens of each row (all n of them by default)."""
    batch, heads, n, _ = q.shape
    check_options(retrieval, top_k, compress, chunk_encoder, normaliser)
    _check(meta_q, meta_k, n, chunk_size, retrieval)
    if lengths is None:
        lengths = torch.full((batch,), n, device=q.device)
    states = _states(k, v, chunk_size, compress, retrieval, chunk_encoder)
    out = _attend(q, k, v, meta_q, meta_k, states, chunk_size, local_chunks, top_k, expand, retrieval, normaliser)
    if retrieval == "exact":
        assert top_k is not None
        return out, _exact.remember(k, v, meta_q, meta_k, lengths, chunk_size, local_chunks, top_k)
    window_k, window_v = (ring(x, lengths, chunk_size * local_chunks) for x in (k, v))
    closed, rows = lengths // chunk_size, torch.arange(batch, device=q.device)
    mass = q.new_full((batch, heads), -math.inf, dtype=accumulate_in(q.dtype))
    if retrieval in ("none", "per_token"):
        mixed = states.new_zeros(batch, heads, 0, states.shape[-1])
    elif retrieval == "uniform":
        mixed = mean_of_first(states, closed - local_chunks + 1)
        states = states.new_zeros(batch, heads, 0, *states.shape[-2:])
    elif states.shape[2]:
        last = meta_q[rows, :, (closed - 1).clamp(min=0)]
        mixed, mass = retrieve(last, meta_k, states, closed - local_chunks + 1, top_k)
    else:
        mixed = states.new_zeros(batch, heads, *states.shape[-2:])
    mass = mass if retrieval == "states" and normaliser == "shared" else mass[:, :0]
    kept_k = meta_k if retrieval in CHOOSING else meta_k.new_zeros(batch, heads, 0, meta_k.shape[-1])
    return out, State(window_k, window_v, states, kept_k, mixed, mass, lengths.clone())


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
    chunk_encoder: str = "sum",
    normaliser: str = "separate",
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
    if normaliser == "shared":  # no fused kernel has a softmax with one more entry
        near = Operations.of_products(4 * tokens * chunk_size * local_chunks * dims)
    elif local_chunks > 1:
        near = fused(tokens * chunk_size * local_chunks, dims)
    if retrieval == "none":
        return near
    sizes = chunk_size, heads, head_dim, state_dim
    near += _encoders.operations(chunk_encoder, retrieving, *sizes, compressed=compress is not None)
    if retrieval == "per_token":
        mixing = retrieving * (retrieving + 1) * chunk_size * dims * (1 + state_dim)
        expanding = 0 if expand is None else 2 * retrieving * chunk_size * dims * state_dim
        return near + Operations.of_products(mixing + expanding)
    mixing = 2 * retrieving**2 * dims * state_dim if all_share else 0
    reading = 2 * tokens * dims * state_dim * (1 if expand is None else 2)
    if retrieval == "uniform":  # equal weights take no scores, and no gradients
        return near + Operations.of_products(mixing + reading, -mixing)
    return near + Operations.of_products(2 * retrieving**2 * dims + mixing + reading)


def read(
    q: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    k: Float[Tensor, "batch heads known chunk_size head_dim"],
    v: Float[Tensor, "batch heads known chunk_size head_dim"],
    mixed: Float[Tensor, "batch heads rows head_dim state_dim"],
    local_chunks: int,
    expand: Float[Tensor, "heads state_dim head_dim"] | None,
    mass: Float[Tensor, "batch heads rows tokens"] | None = None,
) -> Float[Tensor, "batch heads chunks chunk_size head_dim"]:
    """O: what each chunk reads exactly and, in the last `rows` of them, from the mixed states.

    `k` and `v` may begin up to `local_chunks` − 1 chunks before `q`; they end with the same chunk. With `mass` one
    normaliser is shared: the logarithm of the sum of the weights in each mix.
    """
    # Chunks that retrieve nothing get a state of zeros: one batched product then serves all.
    mixed = F.pad(mixed, (0, 0, 0, 0, q.shape[2] - mixed.shape[2], 0))
    retrieved = q @ mixed if expand is None else (q @ mixed) @ expand[:, None]
    return _join(q, k, v, retrieved, local_chunks, mass)


def _join(
    q: Tensor, k: Tensor, v: Tensor, retrieved: Tensor, local_chunks: int, mass: Tensor | None
) -> Float[Tensor, "batch heads chunks chunk_size head_dim"]:
    """What is read exactly and what was retrieved: their sum, or by one normaliser. `mass` is of the last rows."""
    if mass is None:
        return local(q, k, v, local_chunks) + retrieved
    mass = F.pad(mass + math.log(q.shape[3]), (0, 0, q.shape[2] - mass.shape[2], 0), value=-math.inf)
    return local_beside(q, k, v, retrieved, mass, local_chunks)
