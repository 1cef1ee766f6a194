"""Chunk states: what the far tokens of each chunk leave behind, and how a query reads it.

A state is the Taylor expansion of softmax attention to its chunk around a centre query (`reference` has the formula).
It is a polynomial, so that a key far from its chunk's mean cannot blow up a weight, as it can in the exponential of the
variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.precision import wide, without_autocast

BASIS_ROUNDS = 3  # of subspace iteration


class Fit(nn.Module):
    """What `calibrate` fits in one layer: how its heads read far chunks through their states.

    Softmax attention to a far chunk is expanded for queries near `centre`, the head's mean far query, instead of near
    zero; the chunk's moments are then those under the weights that the centre gives its tokens, one set a head.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(heads, head_dim))
        self.log_gate = nn.Parameter(torch.zeros(heads))
        self.temperature = nn.Parameter(torch.ones(heads))


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
        group = len(fit.centre) // k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        scores = (k * wide(fit.centre)[:, None, None] * scaling).sum(-1)
    scores = scores.masked_fill(~is_far, -math.inf)
    with without_autocast(k):
        share = scores.softmax(-1).masked_fill(~is_far.any(1)[:, None], 0)[..., None]
        key_mean, value_mean = ((x * share).sum(3) for x in (k, v))
        k, v = k - key_mean[..., None, :], v - value_mean[..., None, :]
        basis = None
        if (rank := config.rank(dim)) < dim:
            basis = directions((k * share).mT @ k, rank)
            k = k @ basis
        weighted = (k * share).mT
        return States(scores.logsumexp(-1), key_mean, value_mean, weighted @ k, weighted @ v, basis)


@torch.no_grad()
def directions(covariance: Float[Tensor, "... dim dim"], rank: int) -> Float[Tensor, "... dim rank"]:
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


def attend_with_states(
    q: Float[Tensor, "batch kv_heads group queries head_dim"],
    k: Float[Tensor, "batch kv_heads exact head_dim"],
    v: Float[Tensor, "batch kv_heads exact head_dim"],
    masked: Bool[Tensor, "... exact"],
    far: States,
    scaling: float,
    fit: Fit | None = None,
    far_masked: Bool[Tensor, "... chunks"] | None = None,
) -> Float[Tensor, "batch kv_heads group queries head_dim"]:
    """Exact tokens and far states under one normaliser. `masked` has the queries of a group stacked."""
    dtype, heads = q.dtype, far.log_size.shape[1]
    q, k, v = wide(q) * scaling, wide(k), wide(v)
    q_exact = q.flatten(2, 3)
    q_far = q.reshape(q.shape[0], heads, -1, q.shape[4])
    if fit is not None:
        q_far = q_far - wide(fit.centre)[:, None] * scaling
    with without_autocast(q):
        along = _along(q_far, far)
        bent = torch.einsum("bhqcr,bhcrs->bhqcs", along, far.key_covariance)
        growth = 1 + (bent * along).sum(-1).clamp(min=0) / 2
        mass = q_far @ far.key_mean.mT + far.log_size[:, :, None] + growth.log()
        if fit is not None:
            mass = mass * wide(fit.temperature)[:, None, None] + wide(fit.log_gate)[:, None, None]
        mass = mass.reshape(*q_exact.shape[:3], -1)
        if far_masked is not None:
            mass = mass.masked_fill(far_masked, -math.inf)
        exact = (q_exact @ k.mT).masked_fill(masked, -math.inf)
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
