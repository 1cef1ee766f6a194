"""A pretrained model with BSBR attention: same class, same weights, same `generate`."""

from __future__ import annotations

import copy
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bsbr.conversion import interface, loading
from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.states import Fit

OUTPUT_PROJECTIONS = ("o_proj", "c_proj", "dense")  # of the Llama-like, of GPT-2, of GPT-NeoX
FIT = "bsbr_fit"  # what an attention module calls what was fitted in it
# Stands in the config of a converted model, so that transformers alone refuses to load it, and its error says this.
LOADED_BY = "bsbr: this model was converted, load it with bsbr.conversion.from_pretrained"


def convert(model: Any, config: ConversionConfig | None = None) -> Any:
    """A model that reads its text with BSBR attention instead of full attention.

    The result is a new model of the same class that *shares* the original's weights: converting takes no memory,
    training one trains both, and moving or casting one does it to both. Modules and configuration are its own, so the
    original keeps its attention. `copy.deepcopy(convert(model, config))` has weights of its own; so have the tables of
    a converted model whose vocabulary is resized. Resize an original before it is converted.

    Args:
        model: a causal language model of transformers, in memory; or the folder of one, a GGUF file, or its name on
            the Hugging Face hub, which are loaded with `bsbr.conversion.load`.
        config: what its attention reads; the defaults of `ConversionConfig` if left out.

    Returns:
        The converted model, in the mode (train or eval), dtype and device of the original.

    Raises:
        ValueError: the architecture is not supported, the model's own attention is not fully causal, `config` is of
            another kind, or `config.layers` names layers that the model does not have.
        OSError: there is no such folder, file or model, or the hub cannot be reached.

    Examples:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48)
        >>> depth = dict(num_hidden_layers=2, num_attention_heads=4, eos_token_id=None)  # no token ends a text
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **depth)).eval()
        >>> from bsbr import ConversionConfig, convert
        >>> converted = convert(model, ConversionConfig(chunk_size=16, block_size=8, sink_tokens=8, top_k=2))
        >>> converted.generate(torch.randint(97, (1, 100)), max_new_tokens=5, do_sample=False).shape
        torch.Size([1, 105])
    """
    if config is None:
        config = ConversionConfig()
    if not isinstance(config, ConversionConfig):
        raise ValueError(
            f"config: expected a ConversionConfig, got {config!r}; make one of a dict by ConversionConfig(**…)"
        )
    if isinstance(model, str | Path):
        model = loading.load(model)
    loading.check_architecture(getattr(model, "config", model))
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    converted = copy.deepcopy(model, shared)
    modules = attention_modules(converted)
    chosen = config.layers_of(len(modules))
    converted.config.bsbr = asdict(config)
    converted.config.attn_implementation = LOADED_BY
    converted.config.output_attentions = False  # nothing here gives matrices of weights, and no file with it is saved
    converted.resize_token_embeddings = types.MethodType(_resize_token_embeddings, converted)
    converted.set_attn_implementation(interface.NAME)
    for layer, module in enumerate(modules):
        if not hasattr(module, "bsbr"):  # a model that is converted again has its hook already
            module.register_forward_pre_hook(interface.give_layer, with_kwargs=True)
        module.bsbr = config if layer in chosen else None  # type: ignore[assignment]
        module.bsbr_fit = None  # type: ignore[assignment]
    return converted


def _resize_token_embeddings(model: Any, *args: Any, **options: Any) -> nn.Module:
    """transformers' own, on tables that are not shared: it would change those of the original behind its config."""
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    shared = {parameter for table in tables for parameter in table.parameters(recurse=False)}
    own = {old: nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad) for old in shared}
    for table in tables:
        for name, parameter in list(table.named_parameters(recurse=False)):
            setattr(table, name, own.get(parameter, parameter))
    return type(model).resize_token_embeddings(model, *args, **options)


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that call transformers' attention interface, in order of layer."""
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


def output_projection(module: nn.Module) -> Float[Tensor, "heads*head_dim hidden_dim"]:
    """The matrix, without its bias, through which an attention module passes what its heads have read."""
    project = next(getattr(module, name) for name in OUTPUT_PROJECTIONS if hasattr(module, name))
    return project.weight if isinstance(project, Conv1D) else project.weight.T


def head_sizes(model: Any) -> tuple[int, int, int]:
    """heads, kv_heads and head_dim of a model."""
    config = model.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def from_pretrained(folder: str | Path, **options: Any) -> Any:
    """A converted model that was kept with `model.save_pretrained(folder)`, its calibration included.

    Args:
        folder: a local folder, or the name of a converted model on the Hugging Face hub.
        options: of transformers' `from_pretrained`, such as `dtype`, `subfolder` or `variant`.

    Returns:
        The converted model, in evaluation mode. Unless `dtype` asks for one, each weight has the precision that it
        was saved in.

    Raises:
        ValueError: what lies there is a model that was not converted, or of another architecture, or its setting or
            its calibration is damaged.
        OSError: there is no such folder or model.

    Examples:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48)
        >>> depth = dict(num_hidden_layers=2, num_attention_heads=4)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **depth)).eval()
        >>> from bsbr.conversion import convert, from_pretrained
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     convert(model).save_pretrained(folder)
        ...     again = from_pretrained(folder)
        >>> again.config.bsbr["chunk_size"]
        128
    """
    model = loading.load(folder, **options)
    config = ConversionConfig.kept_in(model.config)
    if config is None:
        raise ValueError(f"folder: expected a converted model, got {str(folder)!r}, which is not; use convert(…) on it")
    converted = convert(model, config)
    if fitted := loading.tensors(folder, f".{FIT}.", **options):
        _put_in(converted, fitted)
    return converted


def _put_in(model: Any, fitted: dict[str, Tensor]) -> None:
    """Give a converted model what was fitted in it. Raises ValueError unless all converted layers have theirs whole."""
    heads, _, head_dim = head_sizes(model)
    modules = {name: module for name, module in model.named_modules() if getattr(module, "bsbr", None) is not None}
    for module in modules.values():
        like = next(module.parameters())
        module.bsbr_fit = Fit(heads, head_dim).to(like.device, like.dtype)
    shapes = {
        f"{name}.{FIT}.{part}": parameter.shape
        for name, module in modules.items()
        for part, parameter in module.bsbr_fit.named_parameters()
    }
    missing, unknown = (sorted(a.keys() - b.keys()) for a, b in ((shapes, fitted), (fitted, shapes)))
    wrong = [name for name in sorted(shapes.keys() & fitted.keys()) if fitted[name].shape != shapes[name]]
    for what, names in (("lacks", missing), ("has beside it", unknown), ("has in another shape", wrong)):
        if names:
            raise ValueError(
                f"folder: expected a calibration of every converted layer, but its file {what} {', '.join(names[:3])}"
                f"{' and more' if names[3:] else ''}; save the model anew, or convert and calibrate its original again"
            )
    model.load_state_dict(fitted, strict=False)
