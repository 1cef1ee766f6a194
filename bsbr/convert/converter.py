"""A pretrained model with BSBR attention: same class, same weights, same `generate`."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bsbr.convert import interface, loading
from bsbr.convert.attention import Fit
from bsbr.convert.config import ConversionConfig

OUTPUT_PROJECTIONS = ("o_proj", "c_proj", "dense")  # of the Llama-like, of GPT-2, of GPT-NeoX
FIT = "bsbr_fit"  # what an attention module calls what was fitted in it


def convert(model: Any, config: ConversionConfig | None = None) -> Any:
    """A model that reads its text with BSBR attention instead of full attention.

    The result is a new model of the same class that *shares* the original's weights: converting takes no memory,
    training one trains both. Modules and configuration are its own, so the original keeps its attention.
    `copy.deepcopy(convert(model, config))` has weights of its own.

    Args:
        model: a causal language model of transformers, in memory; or the folder of one, a GGUF file, or its name on
            the Hugging Face hub, which are loaded with `bsbr.convert.load`.
        config: what its attention reads; the defaults of `ConversionConfig` if left out.

    Returns:
        The converted model, in the mode (train or eval), dtype and device of the original.

    Raises:
        ValueError: the architecture is not supported, the model's own attention is not fully causal, or
            `config.layers` names layers that the model does not have.
        OSError: there is no such folder, file or model, or the hub cannot be reached.
    """
    if isinstance(model, str | Path):
        model = loading.load(model)
    config = config or ConversionConfig()
    loading.check_architecture(getattr(model, "config", model))
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    converted = copy.deepcopy(model, shared)
    modules = attention_modules(converted)
    chosen = config.layers_of(len(modules))
    converted.config.bsbr = asdict(config)
    converted.set_attn_implementation(interface.NAME)
    for layer, module in enumerate(modules):
        if not hasattr(module, "bsbr"):  # a model that is converted again has its hook already
            module.register_forward_pre_hook(interface.give_layer, with_kwargs=True)
        module.bsbr = config if layer in chosen else None  # type: ignore[assignment]
        module.bsbr_fit = None  # type: ignore[assignment]
    return converted


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that call transformers' attention interface, in order of layer."""
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


def output_projection(module: nn.Module) -> Float[Tensor, "heads*head_dim hidden_dim"]:
    """The matrix, without its bias, through which an attention module passes what its heads have read."""
    project = next(getattr(module, name) for name in OUTPUT_PROJECTIONS if hasattr(module, name))
    return project.weight if isinstance(project, Conv1D) else project.weight.T


def from_pretrained(folder: str | Path, **settings: Any) -> Any:
    """A converted model that was kept with `model.save_pretrained(folder)`, its calibration included.

    Args:
        folder: a local folder, or the name of a converted model on the Hugging Face hub.
        settings: of transformers' `from_pretrained`, such as `dtype`.

    Returns:
        The converted model, in evaluation mode.

    Raises:
        ValueError: what lies there is a model that was not converted, or of another architecture.
        OSError: there is no such folder or model.
    """
    model = loading.load(folder, **settings)
    kept = getattr(model.config, "bsbr", None)
    if kept is None:
        raise ValueError(f"folder: expected a converted model, got {str(folder)!r}, which is not; use convert(…) on it")
    converted = convert(model, ConversionConfig(**kept))
    fitted = loading.tensors(folder, f".{FIT}.")
    for name, query in fitted.items():
        if name.endswith(f".{FIT}.query"):
            module = converted.get_submodule(name.removesuffix(f".{FIT}.query"))
            module.bsbr_fit = Fit(*query.shape).to(converted.device, converted.dtype)
    converted.load_state_dict(fitted, strict=False)
    return converted
