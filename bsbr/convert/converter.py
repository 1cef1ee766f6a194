"""A pretrained model with BSBR attention: same class, same weights, same `generate`."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

from torch import nn

from bsbr.convert import interface
from bsbr.convert.config import ConversionConfig

SUPPORTED = ("llama", "mistral", "qwen2")


def convert(model: Any, config: ConversionConfig | None = None) -> Any:
    """A model that reads its text with BSBR attention instead of full attention.

    The result is a new model of the same class that *shares* the original's weights: converting takes no memory,
    training one trains both. Modules and configuration are its own, so the original keeps its attention.
    `copy.deepcopy(convert(model, config))` has weights of its own.

    Args:
        model: a Llama-like causal language model of transformers, in memory.
        config: what its attention reads; the defaults of `ConversionConfig` if left out.

    Returns:
        The converted model, in the mode (train or eval), dtype and device of the original.

    Raises:
        ValueError: the architecture is not supported, or the model's own attention is not fully causal.
    """
    config = config or ConversionConfig()
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in SUPPORTED:
        raise ValueError(f"model: expected an architecture among {', '.join(SUPPORTED)}, got {kind!r}")
    window = getattr(model.config, "sliding_window", None)
    if window is not None and getattr(model.config, "use_sliding_window", True):
        raise ValueError(
            f"model: expected full causal attention, got a sliding window of {window} tokens; "
            f"set sliding_window=None in its config if the model was trained without"
        )
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    converted = copy.deepcopy(model, shared)
    converted.config.bsbr = asdict(config)
    converted.set_attn_implementation(interface.NAME)
    for module in attention_modules(converted):
        if not hasattr(module, "bsbr"):  # a model that is converted again has its hook already
            module.register_forward_pre_hook(interface.give_layer, with_kwargs=True)
        module.bsbr = config  # type: ignore[assignment]
    return converted


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a Llama-like model that call transformers' attention interface, in order of layer."""
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]
