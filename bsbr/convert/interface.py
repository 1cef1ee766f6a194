"""Where transformers calls us: an attention function and a mask function, registered under the name `bsbr`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from bsbr.convert import attention
from bsbr.convert.cache import RetrievalLayer, retrieval_layer

NAME = "bsbr"


def mask_forward(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> Tensor | None:
    """Which cached tokens are real, (batch, tokens), or None if all are. Never (tokens, tokens): causality is ours.

    Raises:
        ValueError: the model asks for a mask that is not causal, such as that of packed sequences.
    """
    if mask_function is not causal_mask_function:
        raise ValueError(
            "a converted model reads one causal text a row; packed sequences (position_ids that start again) and "
            "other mask functions are not supported: give each text its own row and pass attention_mask"
        )
    tokens = int(q_offset) + q_length
    if attention_mask is None:
        return None if kv_length == tokens else torch.ones(batch_size, tokens, dtype=torch.bool)
    real = attention_mask[:, :tokens].bool()
    return None if kv_length == tokens and bool(real.all()) else real


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    bsbr_layer: RetrievalLayer | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of the new tokens, which are the last of those cached.

    Args:
        module: the attention module; `convert` has set its `bsbr`.
        query: (batch, heads, new, head_dim).
        key, value: (batch, kv_heads, cached, head_dim), the new tokens included.
        attention_mask: what `mask_forward` returned.
        scaling: of the scores.
        dropout: of the attention weights.
        bsbr_layer: this layer's cache, if there is a cache and the kind of retrieval needs more than keys and values.

    Returns:
        ((batch, new, heads, head_dim), None: there is no matrix of weights to return).
    """
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(f"attention_mask: expected (batch, tokens), got shape {tuple(attention_mask.shape)}")
    config: Any = module.bsbr
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    if dropout and config.retrieval == "states":
        raise ValueError("attention_dropout: expected 0 with retrieval='states', which has no dropout")
    if attention_mask is not None:
        key, value = (x[:, :, : attention_mask.shape[1]] for x in (key, value))
        if bool(attention_mask.all()):
            attention_mask = None
    if attention_mask is None:
        return _unpadded(query, key, value, config, scaling, dropout, bsbr_layer), None
    real = attention_mask.to(query.device)
    return _padded(query, key, value, real, config, scaling, dropout, bsbr_layer), None


def _unpadded(
    q: Tensor, k: Tensor, v: Tensor, config: Any, scaling: float, dropout: float, layer: RetrievalLayer | None
) -> Tensor:
    batch, new, n = q.shape[0], q.shape[2], k.shape[2]
    meta = None
    if layer is not None and config.retrieves_blocks:
        position = torch.arange(n - new, n, device=q.device).expand(batch, -1) if new < n else None
        real = torch.ones_like(position, dtype=torch.bool) if position is not None else None
        meta = layer.add(q, k[:, :, n - new :], position, real, config)
    if new > 1 or n == 1:
        return attention.attend(q, k, v, config, scaling, meta, dropout)
    lengths = torch.full((batch,), n, device=q.device)
    states = layer.far_states(k, v, None, lengths, config) if layer and config.retrieval == "states" else None
    return attention.step(q, k, v, config, scaling, lengths, None, meta, states)


def _padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    real: Tensor,
    config: Any,
    scaling: float,
    dropout: float,
    layer: RetrievalLayer | None,
) -> Tensor:
    """Each row's real tokens count from 0, wherever its padding lies, so that padding changes nothing."""
    new, n = q.shape[2], k.shape[2]
    lengths, position = real.sum(1), real.cumsum(1) - 1
    order = real.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    meta = None
    if layer is not None and config.retrieves_blocks:
        meta = layer.add(q, k[:, :, n - new :], position[:, n - new :], real[:, n - new :], config)
    if new == n:
        return _packed(q, k, v, order, config, scaling, dropout)
    if new == 1:
        states = layer.far_states(k, v, order, lengths, config) if layer and config.retrieval == "states" else None
        return attention.step(q, k, v, config, scaling, lengths, order, meta, states)
    # Several new tokens after some cached ones, and padding: rows start at different positions, one at a time.
    out = torch.zeros_like(q.transpose(1, 2))
    for b in range(q.shape[0]):
        here = real[b, n - new :]
        if here.any():
            row_meta = None if meta is None else attention.Meta(*(x[b : b + 1] for x in meta))
            q_row, k_row, v_row = q[b : b + 1][:, :, here], *(x[b : b + 1][:, :, real[b]] for x in (k, v))
            out[b, here] = attention.attend(q_row, k_row, v_row, config, scaling, row_meta, dropout)[0]
    return out


def _packed(q: Tensor, k: Tensor, v: Tensor, order: Tensor, config: Any, scaling: float, dropout: float) -> Tensor:
    q, k, v = (x.gather(2, order[:, None, :, None].expand_as(x)) for x in (q, k, v))
    out = attention.attend(q, k, v, config, scaling, None, dropout)
    return out.gather(1, order.argsort(dim=1)[:, :, None, None].expand_as(out))


def give_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A forward pre-hook: hands the module's cache layer on to `attention_forward`, which is not given the cache."""
    config: Any = module.bsbr
    cache = kwargs.get("past_key_values")
    if cache is not None and config.retrieval != "none":
        kwargs["bsbr_layer"] = retrieval_layer(cache, int(module.layer_idx))  # type: ignore[arg-type]
    return args, kwargs


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, mask_forward)
