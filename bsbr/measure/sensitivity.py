"""Which layers and heads of a model suffer when their attention alone is converted.

A text is read once by the original. What lies before a changed layer is known from there, so that trying a layer
costs only the layers from it on: half a pass in the mean. `bsbr.convert.sensitivity`, which reads the whole model
anew for every layer, is what this is held to.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bsbr.convert import attention, interface
from bsbr.convert.config import ConversionConfig
from bsbr.convert.converter import attention_modules, convert
from bsbr.measure import similarity


@torch.inference_mode()
def layer_sensitivity(
    model: Any, ids: Int[Tensor, "1 n"], config: ConversionConfig, every: int = 1
) -> Float[Tensor, " layers"]:
    """KL divergence (nats, mean over positions) from the original, when one layer alone is converted.

    Args:
        model: a model that `convert` takes, in memory.
        ids: one text, longer than what is read exactly.
        config: the conversion. Each of its `layers` is tried in turn, by default all.
        every: the divergence is taken at every so many-th position, the last included.

    Returns:
        one number a layer, in the order of the layers that were tried.

    Raises:
        ValueError: the text is too short for the conversion to change anything, the model lacks one of `config.layers`,
            or `every` is not positive.
    """
    with _Trial(model, ids, config, every) as trial:
        every_head = torch.ones(1, trial.heads, dtype=torch.bool)
        return torch.cat([trial.divergence(layer, every_head) for layer in trial.layers])


@torch.inference_mode()
def head_sensitivity(
    model: Any, ids: Int[Tensor, "1 n"], config: ConversionConfig, every: int = 1
) -> Float[Tensor, "layers heads"]:
    """The same when one head of one layer alone is converted. All heads of a layer are read as one batch.

    Arguments and errors are those of `layer_sensitivity`.
    """
    with _Trial(model, ids, config, every) as trial:
        each_head = torch.eye(trial.heads, dtype=torch.bool)
        return torch.stack([trial.divergence(layer, each_head) for layer in trial.layers])


@torch.inference_mode()
def attention_error(model: Any, ids: Int[Tensor, "1 n"], config: ConversionConfig) -> Float[Tensor, "layers heads"]:
    """By how much (%) each head's attention outputs change, on the original's inputs: one pass tells it of all heads.

    The norm of the change over the norm of the original's outputs, over all positions of the text. What later layers
    make of the change is not in it. Arguments and errors are those of `layer_sensitivity`.
    """
    _check(ids, config)
    errors = []

    def compare(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **settings: Any) -> tuple[Tensor, None]:
        scaling = settings.get("scaling") or q.shape[3] ** -0.5
        before = attention.attend(q, k, v, None, scaling)
        if module.bsbr is not None:
            change = attention.attend(q, k, v, config, scaling) - before
            errors.append(100 * _norm_by_head(change) / _norm_by_head(before))
        return before, None

    changed = convert(model, config)
    with interface.attending_by(changed, compare):
        changed.base_model(ids, use_cache=False)
    return torch.stack(errors)


class _Trial:
    """The original's reading of one text, and a copy of the model in which one layer at a time is changed.

    Layers have to be tried in ascending order: the copy's layers before the changed one are replaced, one by one and
    for good, by what they gave in the original. The copy shares the original's weights and leaves the original alone.
    """

    def __init__(self, model: Any, ids: Tensor, config: ConversionConfig, every: int) -> None:
        _check(ids, config)
        if every < 1:
            raise ValueError(f"every: expected at least 1, got {every}")
        self.config, self.every = config, every
        self.changed = convert(model, replace(config, layers=None))
        self.modules = attention_modules(self.changed)
        self.layers = config.layers_of(len(self.modules))
        self.heads = int(self.changed.config.num_attention_heads)
        self.blocks = [block for block in self.changed.modules() if set(block.children()) & set(self.modules)]
        self.reading = similarity.read(model, ids)
        self.log_p = self._log_probabilities(self.reading.hidden[-1])
        self.now: tuple[nn.Module, Bool[Tensor, "variants heads"]] | None = None
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> _Trial:
        self.stack.enter_context(interface.attending_by(self.changed, self._attend))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def divergence(self, layer: int, chosen: Bool[Tensor, "variants heads"]) -> Float[Tensor, " variants"]:
        """Of variants of the model, in each of which the chosen heads of this layer are converted."""
        ids, variants = self.reading.ids, len(chosen)
        for before, block in enumerate(self.blocks[:layer], start=1):
            block.forward = functools.partial(_known, self.reading.hidden[before].expand(variants, -1, -1))
        self.now = (self.modules[layer], chosen.to(ids.device))
        hidden = self.changed.base_model(ids.expand(variants, -1), use_cache=False).last_hidden_state
        return torch.stack([self._divergence(each) for each in hidden])

    def _attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **settings: Any) -> Any:
        scaling = settings.get("scaling") or q.shape[3] ** -0.5
        if self.now is None or module is not self.now[0]:
            return attention.attend(q, k, v, None, scaling), None
        q, k, v = q[:1], k[:1], v[:1]  # up to here all variants are alike
        before, after = (attention.attend(q, k, v, config, scaling) for config in (None, self.config))
        return torch.where(self.now[1][:, None, :, None], after, before), None

    def _log_probabilities(self, hidden: Float[Tensor, "n hidden_dim"]) -> Float[Tensor, "positions vocab"]:
        chosen = hidden[(len(hidden) - 1) % self.every :: self.every]
        return attention.wide(self.reading.head(chosen)).log_softmax(-1)

    def _divergence(self, hidden: Float[Tensor, "n hidden_dim"]) -> Float[Tensor, ""]:
        log_q = self._log_probabilities(hidden)
        total = F.kl_div(log_q, self.log_p, log_target=True, reduction="none").sum(-1)
        return total.mean().clamp(min=0)  # rounding alone can take the divergence of equals below zero


def _known(output: Tensor, *_: Any, **__: Any) -> Tensor:
    """A layer's forward where what it gives is known."""
    return output


def _norm_by_head(x: Float[Tensor, "1 n heads head_dim"]) -> Float[Tensor, " heads"]:
    return attention.wide(x).square().sum((0, 1, 3)).sqrt()


def _check(ids: Tensor, config: ConversionConfig) -> None:
    exact = max(config.window, config.original_below)
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] <= exact:
        raise ValueError(
            f"ids: expected one row of more than {exact} tokens, which this conversion reads as the original does, "
            f"got shape {tuple(ids.shape)}"
        )
