"""How alike two language models are on one text: perplexity, agreement of predictions, distance of logits and layers.

Logits are computed from the last hidden states a slice at a time, so memory stays at a few slices of
positions × vocabulary, whatever the length of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

TOP = (1, 5, 10)
POSITIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Reading:
    """What a model makes of one text: hidden states, of all layers or the last, and what turns the last into logits."""

    ids: Int[Tensor, " n"]
    hidden: Float[Tensor, "layers n hidden_dim"]
    head: nn.Module


@dataclass(frozen=True)
class Similarity:
    """A model's reading beside the original's. Means over positions; agreement and accuracy in %, divergence in nats.

    `loss`, `original_loss` and `divergence` are what the means of perplexity and divergence are of: −log of the
    probability that a model gives to the token that follows, and KL, position by position. The last position has a
    divergence and no token that follows.
    """

    perplexity: float
    original_perplexity: float
    next_token_accuracy: float
    agreement: dict[int, float]
    rank_agreement: list[float]
    cosine: float
    mse: float
    kl: float
    hidden_cosine: list[float]
    loss: Float[Tensor, " n-1"]
    original_loss: Float[Tensor, " n-1"]
    divergence: Float[Tensor, " n"]

    @property
    def perplexity_ratio(self) -> float:
        """The model's perplexity over the original's."""
        return self.perplexity / self.original_perplexity


@torch.inference_mode()
def read(model: Any, ids: Int[Tensor, "1 n"], layers: bool = True) -> Reading:
    """One pass over a text, without a cache.

    Args:
        model: a causal language model of transformers.
        ids: one row of at least two tokens.
        layers: whether the layers are to be compared; if not, the states that give the predictions are kept alone.

    Returns:
        hidden states after the embedding, after each layer and, last, after the final norm; or the last alone.

    Raises:
        ValueError: ids is not one row of two tokens or more.
    """
    if not isinstance(ids, Tensor) or ids.is_floating_point():
        raise ValueError(f"ids: expected a tensor of token ids, got {getattr(ids, 'dtype', type(ids).__name__)}")
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] < 2:
        raise ValueError(f"ids: expected one row of two tokens or more, got shape {tuple(ids.shape)}")
    found = model.base_model(ids, use_cache=False, output_hidden_states=layers)
    hidden = torch.cat(found.hidden_states) if layers else found.last_hidden_state
    return Reading(ids[0], hidden, model.get_output_embeddings())


@torch.inference_mode()
def compare(original: Reading, model: Reading) -> Similarity:
    """How far a model's predictions and layers are from the original's on the same text.

    - agreement at k: share of the original's k most likely next tokens that are among the model's k;
    - agreement at rank r: how often both models have the same token as their r-th choice, the first to the tenth;
    - next-token accuracy: how often the model's first choice is the token that follows;
    - cosine and MSE: between the two vectors of logits at a position;
    - KL: Σ p log(p/q), p the original's next-token distribution and q the model's;
    - hidden cosine: by layer, the embedding first.

    Raises:
        ValueError: the two have read different texts.
    """
    if not torch.equal(original.ids, model.ids):
        raise ValueError("model: expected a reading of the same text as the original's, got another text")
    n = len(original.ids)
    slices = [_compare_slice(original, model, a, min(a + POSITIONS_AT_ONCE, n)) for a in range(0, n, POSITIONS_AT_ONCE)]
    at = {name: torch.cat([part[name] for part in slices]) for name in slices[0]}
    means = {name: values.double().mean(0) for name, values in at.items()}
    return Similarity(
        perplexity=means["loss"].exp().item(),
        original_perplexity=means["original_loss"].exp().item(),
        next_token_accuracy=100 * means["right"].item(),
        agreement={k: 100 * means[f"top_{k}"].item() for k in TOP},
        rank_agreement=(100 * means["same_rank"]).tolist(),
        cosine=means["cosine"].item(),
        mse=means["mse"].item(),
        kl=max(0.0, means["kl"].item()),  # rounding alone can take the divergence of equals below zero
        hidden_cosine=[
            F.cosine_similarity(a.double(), b.double(), dim=-1).mean().item()
            for a, b in zip(original.hidden, model.hidden, strict=True)
        ],
        loss=at["loss"],
        original_loss=at["original_loss"],
        divergence=at["kl"],
    )


def _compare_slice(original: Reading, model: Reading, a: int, b: int) -> dict[str, Tensor]:
    """Numbers of positions a … b−1, one each; of those with a token that follows where it is about that token."""
    p, q = (reading.head(reading.hidden[-1, a:b]).float() for reading in (original, model))
    next_tokens = original.ids[a + 1 : b + 1]
    top_p, top_q = (x.topk(min(max(TOP), x.shape[1]), dim=-1).indices for x in (p, q))
    at = {
        "cosine": F.cosine_similarity(p, q, dim=-1),
        "mse": (p - q).square().mean(-1),
        "same_rank": (top_p == top_q).float(),
        "right": (top_q[: len(next_tokens), 0] == next_tokens).float(),
    }
    for k in TOP:
        at[f"top_{k}"] = (top_p[:, :k, None] == top_q[:, None, :k]).any(-1).float().mean(-1)
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    at["kl"] = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    for name, log in (("original_loss", log_p), ("loss", log_q)):
        at[name] = F.nll_loss(log[: len(next_tokens)], next_tokens, reduction="none")
    return at
