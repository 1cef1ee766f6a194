"""The attention of a converted model as it is defined: token by token and head by head. Slow, and obviously right."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bsbr.conversion.blocks import best
from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.states import Fit, directions


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
            far_head = (fit.centre[h] * scaling, fit.log_gate[h], fit.temperature[h])
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
        picks = [blocks[j] for j in best(relevance, min(config.top_k, len(blocks))).tolist()]
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
    basis = directions(covariance, rank) if rank < len(q) else torch.eye(len(q), dtype=q.dtype)
    delta = k_off @ basis @ basis.T @ (q - centre)
    growth = 1 + (w @ delta.square()) / 2
    log_mass = (q - centre) @ (w @ k) + scores.logsumexp(0) + growth.log()
    mass = (log_gate + temperature * log_mass).exp()
    return mass, mass * (w @ v + (w * delta / growth) @ v_off)
