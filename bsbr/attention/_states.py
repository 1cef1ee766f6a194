"""How a chunk, or a token, mixes the states of the chunks before it."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bsbr.attention._shared import accumulate_in, no_autocast


def complete_chunks(
    x: Float[Tensor, "batch heads n dim"], chunk_size: int
) -> Float[Tensor, "batch heads complete chunk_size dim"]:
    """Cut into chunks, without the tokens of an incomplete last one."""
    complete = x.shape[2] // chunk_size
    return x[:, :, : complete * chunk_size].unflatten(2, (complete, chunk_size))


def mix(
    meta_q: Float[Tensor, "batch heads rows head_dim"],
    meta_k: Float[Tensor, "batch heads chunks head_dim"],
    states: Float[Tensor, "batch heads chunks head_dim state_dim"],
    top_k: int | None,
) -> Float[Tensor, "batch heads rows head_dim state_dim"]:
    """S for the last `rows` chunks that retrieve: the last row mixes all states, each row before it one fewer.

    A row is a chunk here, so this is causal attention of chunks.
    """
    return _weigh(_causal(meta_q @ meta_k.transpose(-1, -2) / math.sqrt(meta_q.shape[-1])), states, top_k)


def mix_and_mass(
    meta_q: Float[Tensor, "batch heads rows head_dim"],
    meta_k: Float[Tensor, "batch heads chunks head_dim"],
    states: Float[Tensor, "batch heads chunks head_dim state_dim"],
    top_k: int | None,
) -> tuple[Float[Tensor, "batch heads rows head_dim state_dim"], Float[Tensor, "batch heads rows"]]:
    """`mix`, and the logarithm of what its softmax divides by: of the sum of e^(R · H / √p)."""
    scores = _causal(exact_scores(meta_q, meta_k))
    return _weigh(scores.to(meta_q.dtype), states, top_k), _log_sum(scores, top_k)


def retrieve(
    meta_q: Float[Tensor, "rows heads head_dim"],
    meta_k: Float[Tensor, "rows heads chunks head_dim"],
    states: Float[Tensor, "rows heads chunks head_dim state_dim"],
    available: Int[Tensor, " rows"],
    top_k: int | None,
) -> tuple[Float[Tensor, "rows heads head_dim state_dim"], Float[Tensor, "rows heads"]]:
    """`mix_and_mass` for one chunk of each row and the row's first `available` states; zeros and −∞ without any."""
    scores, any_there = available_only(exact_scores(meta_q[:, :, None], meta_k), available)
    mixed = _weigh(scores.to(meta_q.dtype), states, top_k)[:, :, 0] * any_there
    return mixed, _log_sum(scores, top_k)[:, :, 0].masked_fill(~any_there[:, :, 0, 0], -math.inf)


def _causal(scores: Float[Tensor, "batch heads rows chunks"]) -> Float[Tensor, "batch heads rows chunks"]:
    """−∞ for the chunks that are too late: the last row has none, each row before it one more."""
    rows, chunks = scores.shape[-2:]
    later = torch.ones(rows, chunks, dtype=torch.bool, device=scores.device).triu(1 + chunks - rows)
    return scores.masked_fill(later, -math.inf)


def _log_sum(scores: Float[Tensor, "batch heads rows chunks"], top_k: int | None) -> Float[Tensor, "batch heads rows"]:
    """log Σ e^score over chunks, or over the `top_k` highest."""
    if top_k is not None and top_k < scores.shape[-1]:
        scores = scores.topk(top_k, dim=-1).values
    return scores.logsumexp(-1)


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


def available_only(
    scores: Float[Tensor, "rows heads one chunks"], available: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, "rows heads one chunks"], Bool[Tensor, "rows 1 1 1"]]:
    """The scores of each row's first `available` chunks, −∞ for others, or 0 for all where there are none; if any."""
    there = torch.arange(scores.shape[-1], device=scores.device) < available[:, None]
    any_there = (available > 0)[:, None, None, None]
    return scores.masked_fill(~there[:, None, None], -math.inf).masked_fill(~any_there, 0.0), any_there


# -- Equal weights --------------------------------------------------------------------------------


def means(
    states: Float[Tensor, "batch heads chunks head_dim state_dim"],
) -> Float[Tensor, "batch heads chunks head_dim state_dim"]:
    """Row c is the mean of the states 0 … c."""
    chunks = states.shape[2]
    wide = accumulate_in(states.dtype)
    count = torch.arange(1, chunks + 1, device=states.device)[:, None]
    weights = torch.ones(chunks, chunks, dtype=wide, device=states.device).tril() / count
    return (weights.to(states.dtype) @ states.flatten(3)).unflatten(-1, states.shape[-2:])


def mean_of_first(
    states: Float[Tensor, "rows heads chunks head_dim state_dim"], available: Int[Tensor, " rows"]
) -> Float[Tensor, "rows heads head_dim state_dim"]:
    """The mean of each row's first `available` states, in float32 or wider; zeros where there are none."""
    wide = accumulate_in(states.dtype)
    there = torch.arange(states.shape[2], device=states.device) < available[:, None]
    share = there.to(wide) / available.clamp(min=1)[:, None]
    return (states.to(wide) * share[:, None, :, None, None]).sum(2)


def one_more(
    mean: Float[Tensor, "rows heads head_dim state_dim"],
    state: Float[Tensor, "rows heads head_dim state_dim"],
    available: Int[Tensor, " rows"],
) -> Float[Tensor, "rows heads head_dim state_dim"]:
    """`mean` once `state` is the last of `available`; as it was where there are none."""
    share = (available > 0).to(mean.dtype) / available.clamp(min=1)
    return mean + share[:, None, None, None] * (state.to(mean.dtype) - mean)


# -- A choice by each token -----------------------------------------------------------------------


def exact_scores(
    meta_q: Float[Tensor, "batch heads rows head_dim"], meta_k: Float[Tensor, "batch heads chunks head_dim"]
) -> Float[Tensor, "batch heads rows chunks"]:
    """R · H / √p in float32 or wider, so that half precision does not choose other chunks."""
    wide = accumulate_in(meta_q.dtype)
    with no_autocast(meta_q):
        return meta_q.to(wide) @ meta_k.to(wide).transpose(-1, -2) / math.sqrt(meta_q.shape[-1])


def read_by_token(
    q: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    meta_q: Float[Tensor, "batch heads chunks chunk_size head_dim"],
    meta_k: Float[Tensor, "batch heads chunks head_dim"],
    states: Float[Tensor, "batch heads chunks head_dim state_dim"],
) -> tuple[Float[Tensor, "batch heads chunks chunk_size state_dim"], Float[Tensor, "batch heads chunks chunk_size"]]:
    """Σ_j A_tj q_t F_j for the tokens of the chunks that retrieve, of which number c reads the states 0 … c.

    And the logarithm of what the softmax of A_t divides by. Σ_j A_tj q_t F_j is one product, of the row A_t ⊗ q_t with
    the states beneath each other: no token's mix is built.
    """
    outputs, masses = [], []
    for c in range(states.shape[2]):
        scores = exact_scores(meta_q[:, :, c], meta_k[:, :, : c + 1])
        weighted = (scores.softmax(-1).to(q.dtype)[..., None] * q[:, :, c, :, None]).flatten(3)
        outputs.append(weighted @ states[:, :, : c + 1].flatten(2, 3))
        masses.append(scores.logsumexp(-1))
    return torch.stack(outputs, dim=2), torch.stack(masses, dim=2)


def mix_of_token(
    meta_q: Float[Tensor, "rows heads head_dim"],
    meta_k: Float[Tensor, "rows heads chunks head_dim"],
    states: Float[Tensor, "rows heads chunks head_dim state_dim"],
    available: Int[Tensor, " rows"],
) -> tuple[Float[Tensor, "rows heads head_dim state_dim"], Float[Tensor, "rows heads"]]:
    """One token's mix of its row's first `available` states, and its mass; zeros and −∞ where there are none."""
    scores, any_there = available_only(exact_scores(meta_q[:, :, None], meta_k), available)
    weights = (scores.softmax(-1) * any_there).to(states.dtype)
    mass = scores.logsumexp(-1)[:, :, 0].masked_fill(~any_there[:, :, 0, 0], -math.inf)
    return (weights @ states.flatten(3))[:, :, 0].unflatten(-1, states.shape[-2:]), mass
