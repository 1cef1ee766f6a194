"""A model's folder: `config.json`, and `model.safetensors`, which holds the config again. Nothing is unpickled.

`bsbr.hf` writes such folders too, through transformers: its options lie one level deeper, and `model.` stands before
the name of each weight. Either kind is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from bsbr.config import ModelConfig
from bsbr.store.files import write_whole

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_TYPE = "bsbr"  # by which transformers knows what class reads a folder
PREFIX = "model."
TRAINING_ONLY = "dropout"  # the one option that may be changed in a saved config: it says nothing of the weights


def save(path: str | os.PathLike[str], config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write both files, each replaced whole, the weights first: a full disk is met before the config is touched.

    Raises:
        ValueError: `path` is not a path, or is a file.
    """
    folder = _folder(path)
    if folder.is_file():
        raise ValueError(f"path must be a folder, but {folder} is a file")
    options = asdict(config)
    metadata = {"format": "pt", "config": json.dumps(options)}
    write_whole(folder / WEIGHTS, to_bytes({name: t.contiguous() for name, t in tensors.items()}, metadata=metadata))
    write_whole(folder / CONFIG, json.dumps({"model_type": MODEL_TYPE, **options}, indent=2) + "\n")


def load(path: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """What `save` wrote, on the CPU.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: either file is damaged, or the two are of different models.
    """
    folder = _folder(path)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"path must be a folder written by save_pretrained, but {folder} has no {name}")
    options = _options((folder / CONFIG).read_bytes(), f"{CONFIG} in {folder}")
    tensors, own = _weights(folder)
    if own is not None:
        differing = sorted(
            name for name in options.keys() | own.keys() if name != TRAINING_ONLY and options.get(name) != own.get(name)
        )
        if differing:
            listed = ", ".join(f"{name} ({options.get(name)!r}, saved {own.get(name)!r})" for name in differing)
            raise ValueError(
                f"{CONFIG} in {folder} must be the one that {WEIGHTS} was saved with, but they differ in "
                f"{listed}; a save may have been stopped between the two files: save the model again, or put back what "
                f"was saved"
            )
    try:
        return ModelConfig(**options), tensors
    except ValueError as error:
        raise ValueError(f"{CONFIG} in {folder}: {error}") from error


def check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Raise ValueError where the tensors of a file are not those of the model: other names, shapes, or no numbers."""
    shapes, those = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (expected, found))
    wrong = sorted(name for name in shapes.keys() | those.keys() if shapes.get(name) != those.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{WEIGHTS} in {path} is not of the config beside it: {len(wrong)} tensors differ, first {name} "
            f"(config: {shapes.get(name)}, file: {those.get(name)}); save the model again, both files together"
        )
    whole = sorted(name for name, tensor in found.items() if tensor.dtype not in _WEIGHT_DTYPES)
    if whole:
        raise ValueError(
            f"{WEIGHTS} in {path} must hold weights in float16, bfloat16, float32 or float64, but {whole[0]} is "
            f"{found[whole[0]].dtype}; quantised weights cannot be read"
        )


_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _folder(path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path must be a folder's path, but is {path!r:.100}")
    return Path(path)


def _options(content: bytes, where: str) -> dict[str, Any]:
    try:
        options = json.loads(content)
    except ValueError as error:
        raise ValueError(
            f"{where} must be JSON, but {_looks_like(content)} ({error}); copy the folder again"
        ) from error
    if isinstance(options, dict) and options.pop("model_type", None) == MODEL_TYPE:
        options = options.get("backbone", options)
    if not isinstance(options, dict) or "mechanism" not in options:
        raise ValueError(f"{where} must be an object that names a mechanism, but is not one; is it of another project?")
    unknown = sorted(set(options) - {field.name for field in fields(ModelConfig)})
    if unknown:
        raise ValueError(f"{where} has options this version does not know: {', '.join(unknown)}")
    return options


def _weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors, and the config that they were saved with, where the file says it."""
    file = folder / WEIGHTS
    try:
        with safe_open(file, framework="pt") as opened:
            # Copied out of the file, which may then be replaced or removed.
            tensors = {name.removeprefix(PREFIX): opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
            saved = (opened.metadata() or {}).get("config")
    except (SafetensorError, OSError) as error:
        with file.open("rb") as stream:
            begins = stream.read(200)
        raise ValueError(
            f"{WEIGHTS} in {folder} must be a whole safetensors file, but {_looks_like(begins)} ({error}); copy or "
            f"save the model again"
        ) from error
    return tensors, None if saved is None else _options(saved.encode(), f"the config inside {file}")


def _looks_like(content: bytes) -> str:
    """What stands there instead, in words."""
    if not content.strip():
        return "is empty"
    if content.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, whose content `git lfs pull` fetches"
    if content.lstrip()[:1] == b"<":
        return "is a web page, as a failed download leaves it"
    return "is cut short or damaged"
