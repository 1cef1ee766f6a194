"""Models by name: a folder, a GGUF file, or the Hugging Face hub. Weights are safetensors or GGUF, never pickle."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file, logging

ON_THE_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")  # where a model lies
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SUPPORTED = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "smollm3")


def load(source: str | Path, **options: Any) -> Any:
    """The causal language model of that name, in evaluation mode. No code that comes with it is run.

    How its files say that attention is to be computed (`attn_implementation`, `output_attentions`) is not followed:
    it is PyTorch's own, unless `options` ask for another.

    Args:
        source: a folder with config.json and safetensors, a `.gguf` file, or a name on the hub such as `"gpt2"`.
        options: of transformers' `from_pretrained`, such as `dtype`, `subfolder`, `revision` or `variant`. Without
            `dtype`, weights of a folder that were saved in several precisions keep them.

    Raises:
        ValueError: the architecture is not one that can be converted, or a setting asks for pickle or foreign code.
        OSError: nothing is there, its weights are in another format, or the hub cannot be reached.

    Examples:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48)
        >>> depth = dict(num_hidden_layers=2, num_attention_heads=4)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, **depth)).eval()
        >>> from bsbr.conversion import load
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     type(load(folder)).__name__
        'LlamaForCausalLM'
    """
    for name, safe in (("trust_remote_code", False), ("use_safetensors", True)):
        if options.pop(name, safe) != safe:
            raise ValueError(f"{name}: expected {safe}, for no code and no pickle is loaded; leave it out")
    where, which, rest = _where(source, options)
    config = _attempt(source, AutoConfig.from_pretrained, where, output_attentions=False, **which)
    check_architecture(config)
    rest = {"attn_implementation": "sdpa", **rest}
    if "gguf_file" in which:
        with _without_report():
            return _plain(_attempt(source, AutoModelForCausalLM.from_pretrained, where, **which, **rest)).eval()
    config._attn_implementation = rest["attn_implementation"]
    if Path(where).is_dir():
        _files(where, rest.get("variant"), which)  # before anything reads what its index names
    with _without_report():
        read = functools.partial(AutoModelForCausalLM.from_pretrained, config=config, use_safetensors=True)
        model = _attempt(source, read, where, **which, **rest)
    was_saved_here = Path(where).is_dir() or getattr(config, "bsbr", None) is not None  # in files of known names
    if was_saved_here and rest.get("dtype", rest.get("torch_dtype", "auto")) == "auto":
        _keep_precisions(model, _files(where, rest.get("variant"), which))
    return model.eval()


def tensors(source: str | Path, part: str, **options: Any) -> dict[str, Tensor]:
    """The tensors of a model's safetensors files whose names contain `part`. `options` are those of `load`."""
    where, which, rest = _where(source, options)
    found: dict[str, Tensor] = {}
    for file in _files(where, rest.get("variant"), which):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys() if part in name}  # noqa: SIM118
    return found


def _files(where: str, variant: str | None, which: dict[str, Any]) -> list[str]:
    """The safetensors files of a folder, or of a model on the hub, which are then on this disk."""

    def find(name: str) -> str | None:
        return cached_file(where, name, _raise_exceptions_for_missing_entries=False, **which)

    def named(name: str) -> str:
        stem, _, ending = name.rpartition(".")
        return name if variant is None else f"{stem}.{variant}.{ending}"

    names = [named("model.safetensors")]
    if find(names[0]) is None and (index := find(named("model.safetensors.index.json"))):
        try:
            names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()), key=str)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise OSError(f"model: {index!r} is not an index of shards: {error}") from error
    if outside := [name for name in names if Path(str(name)).name != name or Path(name).suffix != ".safetensors"]:
        raise OSError(
            f"model: {where!r} has an index that names {outside[0]!r}, which is no safetensors file beside it"
        )
    if missing := [name for name in names if find(name) is None]:
        raise OSError(f"model: {where!r} has no {missing[0]}; its weights have to be safetensors")
    return [str(find(name)) for name in names]


def _keep_precisions(model: Any, files: list[str]) -> None:
    """Where weights were saved in several precisions, give each its own: transformers makes all of them alike."""
    weights, kept = dict(model.named_parameters()), {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name in weights:
                    kept[name] = (file, DTYPES.get(opened.get_slice(name).get_dtype(), weights[name].dtype))
    if len({dtype for _, dtype in kept.values()}) > 1:
        for name, (file, dtype) in kept.items():
            if weights[name].dtype != dtype:
                with safe_open(file, framework="pt") as opened:
                    weights[name].data = opened.get_tensor(name).to(weights[name].device)


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Keeps transformers from reporting tensors that its model has no place for: those are what was calibrated."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_tokenizer(source: str | Path, **options: Any) -> Any:
    """The tokenizer that lies beside the model. `options` are those of `load`. Raises OSError if there is none.

    Args:
        source: as `load` takes it.
        options: those of `load`.

    Examples:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, PreTrainedTokenizerFast
        >>> from bsbr.conversion import load_tokenizer
        >>> words = Tokenizer(models.WordLevel({"to": 0, "be": 1, "or": 2, "not": 3}))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     LlamaConfig().save_pretrained(folder)
        ...     _ = PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
        ...     load_tokenizer(folder)("to be or not to be").input_ids
        [0, 1, 2, 3, 0, 1]
    """
    where, which, rest = _where(source, options)
    return _attempt(source, AutoTokenizer.from_pretrained, where, **which, **rest)


def check_architecture(config: Any) -> None:
    """Refuse what cannot be converted.

    Raises:
        ValueError: `config`, of a model of transformers, names another architecture than the supported ones, or
            attention that is not fully causal.
    """
    kind = getattr(config, "model_type", type(config).__name__)
    if kind not in SUPPORTED:
        raise ValueError(f"model: expected an architecture among {', '.join(SUPPORTED)}, got {kind!r}")
    if getattr(config, "add_cross_attention", False):
        raise ValueError(f"model: expected a decoder alone, got a {kind!r} with cross-attention to an encoder")
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        raise ValueError(
            f"model: expected full causal attention, got a sliding window of {window} tokens; "
            f"set sliding_window=None in its config if the model was trained without"
        )


def _where(source: str | Path, options: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What transformers is to be given: a folder or a name; where in it the model lies; and the other options."""
    which = {name: value for name, value in options.items() if name in ON_THE_HUB}
    rest = {name: value for name, value in options.items() if name not in ON_THE_HUB}
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"model: there is no file {str(source)!r}")
        return str(path.parent), {"gguf_file": path.name}, rest
    if path.is_dir():
        path /= which.pop("subfolder", None) or ""
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"model: {str(path)!r} has no config.json; for a GGUF, name the file itself")
        return str(path), which, rest
    is_path = isinstance(source, Path) or path.is_absolute() or str(source).startswith((".", "~"))
    if path.exists() or is_path or str(source).count("/") > 1:
        raise FileNotFoundError(f"model: expected a folder, a .gguf file or a name on the hub, got {str(source)!r}")
    return str(source), which, rest


def _attempt(source: str | Path, read: Any, where: str, **options: Any) -> Any:
    """`read(where, …)`; whatever goes wrong is told in one sentence that names the source."""
    try:
        return read(where, trust_remote_code=False, **options)
    except Exception as error:
        if "does not recognize this architecture" in str(error) or "with architecture" in str(error):
            kind = str(error).partition("`")[2].partition("`")[0] or "another one"
            raise ValueError(f"model: expected an architecture among {', '.join(SUPPORTED)}, got {kind!r}") from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if "ignore_mismatched_sizes" in reason:  # and refers to a report, which is kept from the reader
            reason = "its weights are of other shapes than its config states"
        hint = (
            "" if Path(where).is_dir() else ". On the hub it needs a network and the right name; or give a local folder"
        )
        raise OSError(f"model: {str(source)!r} could not be loaded: {reason}{hint}") from error


def _plain(model: Any) -> Any:
    """The same weights in a model whose config does not say "gguf": transformers saves no such model."""
    options = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    plain = type(model)(type(model.config)(**options)).to(next(model.parameters()).dtype)
    plain.load_state_dict(model.state_dict())
    return plain
