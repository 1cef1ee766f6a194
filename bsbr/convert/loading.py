"""Models by name: a folder, a GGUF file, or the Hugging Face hub. Weights are safetensors or GGUF, never pickle."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file, logging

SUPPORTED = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "smollm3")


def load(source: str | Path, **settings: Any) -> Any:
    """The causal language model of that name, in evaluation mode. No code that comes with it is run.

    Args:
        source: a folder with config.json and safetensors, a `.gguf` file, or a name on the hub such as `"gpt2"`.
        settings: of transformers' `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: the architecture is not one that can be converted.
        OSError: nothing is there, its weights are in another format, or the hub cannot be reached.
    """
    where, which = _where(source)
    check_architecture(_attempt(source, AutoConfig.from_pretrained, where, **which))
    use = {"use_safetensors": True, **settings}
    with _without_report():
        model = _attempt(source, AutoModelForCausalLM.from_pretrained, where, **which, **use)
    return (_plain(model) if "gguf_file" in which else model).eval()


def tensors(source: str | Path, part: str) -> dict[str, Tensor]:
    """The tensors of a model's safetensors files whose names contain `part`."""
    where, _ = _where(source)
    found: dict[str, Tensor] = {}
    for file in _files(where):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys() if part in name}  # noqa: SIM118
    return found


def _files(where: str) -> list[str]:
    """The safetensors files of a folder, or of a model on the hub, which by now are on this disk."""
    find = functools.partial(cached_file, where, _raise_exceptions_for_missing_entries=False)
    if index := find("model.safetensors.index.json"):
        shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
        return [str(find(shard)) for shard in sorted(shards)]
    return [str(find("model.safetensors"))]


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Keeps transformers from reporting tensors that its model has no place for: those are what was calibrated."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_tokenizer(source: str | Path) -> Any:
    """The tokenizer that lies beside the model. Raises OSError if there is none."""
    where, which = _where(source)
    return _attempt(source, AutoTokenizer.from_pretrained, where, **which)


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


def _where(source: str | Path) -> tuple[str, dict[str, str]]:
    """What transformers is to be given: a folder or a name, and which file of it if that is a GGUF."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"model: there is no file {str(source)!r}")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"model: {str(source)!r} has no config.json; for a GGUF, name the file itself")
        return str(path), {}
    is_path = isinstance(source, Path) or path.is_absolute() or str(source).startswith((".", "~"))
    if path.exists() or is_path or str(source).count("/") > 1:
        raise FileNotFoundError(f"model: expected a folder, a .gguf file or a name on the hub, got {str(source)!r}")
    return str(source), {}


def _attempt(source: str | Path, read: Any, where: str, **settings: Any) -> Any:
    """`read(where, …)`; whatever goes wrong is told in one sentence that names the source."""
    try:
        return read(where, trust_remote_code=False, **settings)
    except Exception as error:
        if "does not recognize this architecture" in str(error) or "is not supported" in str(error):
            kind = str(error).partition("`")[2].partition("`")[0] or "another one"
            raise ValueError(f"model: expected an architecture among {', '.join(SUPPORTED)}, got {kind!r}") from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        hint = (
            "" if Path(where).is_dir() else ". On the hub it needs a network and the right name; or give a local folder"
        )
        raise OSError(f"model: {str(source)!r} could not be loaded: {reason}{hint}") from error


def _plain(model: Any) -> Any:
    """The same weights in a model whose config does not say "gguf": transformers saves no such model."""
    settings = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    plain = type(model)(type(model.config)(**settings)).to(next(model.parameters()).dtype)
    plain.load_state_dict(model.state_dict())
    return plain
