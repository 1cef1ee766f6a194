"""Where transformers calls us: an attention function and a mask function, registered under the name `bsbr`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from bsbr.conversion import attention
from bsbr.conversion.blocks import BlockSums
from bsbr.conversion.cache import RetrievalLayer, retrieval_layer
from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.states import Fit

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
        ValueError: the mask does not cover all tokens, or the model asks for one that is not causal, such as that of
            packed sequences.
    """
    if mask_function is not causal_mask_function:
        raise ValueError(
            "a converted model reads one causal text a row; packed sequences (position_ids that start again) and "
            "other mask functions are not supported: give each text its own row and pass attention_mask"
        )
    tokens = int(q_offset) + q_length
    if attention_mask is None:
        return None if kv_length == tokens else torch.ones(batch_size, tokens, dtype=torch.bool)
    if attention_mask.shape[0] != batch_size or attention_mask.shape[1] < tokens:
        raise ValueError(
            f"attention_mask: expected ({batch_size}, {tokens}), a number for each token of each row, those in the "
            f"cache included, got shape {tuple(attention_mask.shape)}"
        )
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
    if not hasattr(module, "bsbr"):
        raise ValueError(
            f"attn_implementation: {NAME!r} is for converted models, this one is not; use convert(…) on it"
        )
    config: ConversionConfig | None = module.bsbr  # type: ignore[assignment]
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    if dropout and config is not None and config.reads_states:
        raise ValueError(f"attention_dropout: expected 0 with retrieval={config.retrieval!r}, which has no dropout")
    how = _How(config, scaling, dropout, bsbr_layer, getattr(module, "bsbr_fit", None))
    if attention_mask is not None:
        key, value = (x[:, :, : attention_mask.shape[1]] for x in (key, value))
        if bool(attention_mask.all()):
            attention_mask = None
    if attention_mask is None:
        return _unpadded(query, key, value, how), None
    return _padded(query, key, value, attention_mask.to(query.device), how), None


@dataclass(frozen=True)
class _How:
    """How one module reads in one call; without a config, it is a layer that keeps full attention."""

    config: ConversionConfig | None
    scaling: float
    dropout: float
    layer: RetrievalLayer | None
    fit: Fit | None

    def add(self, q: Tensor, k: Tensor, position: Tensor | None, real: Tensor | None) -> BlockSums | None:
        if self.layer is None or self.config is None or not self.config.retrieves_blocks:
            return None
        return self.layer.add(q, k, position, real, self.config)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, sums: BlockSums | None) -> Tensor:
        return attention.attend(q, k, v, self.config, self.scaling, sums, self.dropout, self.fit)

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, order: Tensor | None, sums: BlockSums | None
    ) -> Tensor:
        states = None
        if self.layer is not None and self.config is not None and self.config.reads_states:
            states = self.layer.far_states(k, v, order, lengths, self.config, self.scaling, self.fit)
        return attention.step(q, k, v, self.config, self.scaling, lengths, order, sums, states, self.fit)


def _unpadded(q: Tensor, k: Tensor, v: Tensor, how: _How) -> Tensor:
    batch, new, n = q.shape[0], q.shape[2], k.shape[2]
    position = torch.arange(n - new, n, device=q.device).expand(batch, -1) if new < n else None
    real = torch.ones_like(position, dtype=torch.bool) if position is not None else None
    sums = how.add(q, k[:, :, n - new :], position, real)
    if new > 1 or n == 1:
        return how.attend(q, k, v, sums)
    return how.step(q, k, v, torch.full((batch,), n, device=q.device), None, sums)


def _padded(q: Tensor, k: Tensor, v: Tensor, real: Tensor, how: _How) -> Tensor:
    """Each row's real tokens count from 0, wherever its padding lies, so that padding changes nothing."""
    new, n = q.shape[2], k.shape[2]
    position = real.cumsum(1) - 1
    order = real.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    sums = how.add(q, k[:, :, n - new :], position[:, n - new :], real[:, n - new :])
    if new == n:
        return _packed(q, k, v, real, order, how)
    if new == 1:
        return how.step(q, k, v, real.sum(1), order, sums)
    # Several new tokens after some cached ones, and padding: rows start at different positions, one at a time.
    out = torch.zeros_like(q.transpose(1, 2))
    for b in range(q.shape[0]):
        here = real[b, n - new :]
        if here.any():
            row_sums = None if sums is None else BlockSums(*(x[b : b + 1] for x in sums))
            q_row, k_row, v_row = q[b : b + 1][:, :, here], *(x[b : b + 1][:, :, real[b]] for x in (k, v))
            out[b, here] = how.attend(q_row, k_row, v_row, row_sums)[0]
    return out


def _packed(q: Tensor, k: Tensor, v: Tensor, real: Tensor, order: Tensor, how: _How) -> Tensor:
    """All tokens of each row, the padding behind them and empty: what stands in it, NaN included, reaches no one."""
    k, v = (x.masked_fill(~real[:, None, :, None], 0) for x in (k, v))
    q, k, v = (x.gather(2, order[:, None, :, None].expand_as(x)) for x in (q, k, v))
    out = how.attend(q, k, v, None)
    return out.gather(1, order.argsort(dim=1)[:, :, None, None].expand_as(out))


def give_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A forward pre-hook: hands the module's cache layer on to `attention_forward`, which is not given the cache."""
    config: Any = module.bsbr
    cache = kwargs.get("past_key_values", kwargs.get("layer_past"))  # the latter is GPT-NeoX's name for it
    if cache is not None:
        fit: Any = getattr(module, "bsbr_fit", None)
        kwargs["bsbr_layer"] = retrieval_layer(cache, int(module.layer_idx), config, fit)  # type: ignore[arg-type]
    return args, kwargs


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, mask_forward)


@contextlib.contextmanager
def attending_by(model: Any, function: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """A converted model with another function in place of attention, without gradients."""
    name = f"{NAME}_other"
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, mask_forward)
    model.set_attn_implementation(name)
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(NAME)
