"""The language models that are converted, loaded once a process, and calibrated conversions of them."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bsbr import sources
from bsbr.conversion import calibrate, convert, from_pretrained
from bsbr.conversion.config import ConversionConfig
from bsbr.store.artefact import artefact
from bsbr.store.files import write_whole
from bsbr.studies import documents
from bsbr.training import small_gpt2

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TRAINED_HERE = {"GPT-2": "full", "GPT-2 tiny": "tiny"}  # and the profiles of their training


@functools.cache
def load(
    name: str, dtype: str = "float32", device: torch.device | str = "cpu", layers: int | None = None
) -> tuple[Any, Any]:
    """A pretrained model in eval mode and its tokenizer; later calls return the same.

    Args:
        name: `"SmolLM2"`, or `"GPT-2"` and `"GPT-2 tiny"`, which are trained here if they were not yet.
        dtype: a key of `DTYPES`.
        layers: of SmolLM2, only so many of its first ones: what it then says makes no sense, but costs little.

    Raises:
        ValueError: there is no such model.
        sources.SourceError: what it is made of was not fetched.
    """
    if name in TRAINED_HERE:
        model, tokenizer = small_gpt2.load(small_gpt2.train(TRAINED_HERE[name]))
        return model.to(device, DTYPES[dtype]), tokenizer
    if name != "SmolLM2":
        raise ValueError(f"name: expected one of {['SmolLM2', *TRAINED_HERE]}, got {name!r}")
    model, tokenizer = sources.load_smollm2(DTYPES[dtype])
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = len(model.model.layers)
    return model.to(device), tokenizer


@functools.cache
def development(name: str) -> list[Int[Tensor, "1 n"]]:
    """The development speeches, which choices and calibrations may see, as a model's tokens."""
    tokenizer = load(name)[1]
    return [documents.ids_of(speech.key, tokenizer) for speech in sources.load_speeches("development")]


def calibrated(
    name: str,
    config: ConversionConfig,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    **fit: int,
) -> Any:
    """A conversion calibrated on development speeches, now or in an earlier run.

    Args:
        name, dtype: of `load`.
        fit: `speeches` and `tokens` of each that are fitted to, and `steps` of the fit.
    """
    return from_pretrained(_calibration(name, config, **fit), dtype=DTYPES[dtype]).to(device)


def seconds_to_calibrate(name: str, config: ConversionConfig, **fit: int) -> float:
    """How long calibrating took when it was done, loading left out (see `calibrated`)."""
    record = (_calibration(name, config, **fit) / "record.json").read_text(encoding="utf-8")
    return float(json.loads(record)["seconds"])


def _calibration(name: str, config: ConversionConfig, *, speeches: int, tokens: int, steps: int) -> Path:
    return artefact(
        "calibrated", _calibrate, sources=[sources.pin_path(pin) for pin in ("smollm2", "speeches")], report=_silently,
        name=name, config=config, speeches=speeches, tokens=tokens, steps=steps,
    )  # fmt: skip


def _calibrate(
    folder: Path,
    report: Callable[[str], None],
    name: str,
    config: ConversionConfig,
    speeches: int,
    tokens: int,
    steps: int,
) -> None:
    model = convert(load(name)[0], config)
    longest = min(tokens, model.config.max_position_embeddings)
    texts = [ids[:, :longest] for ids in development(name)[:speeches]]
    begin = time.perf_counter()
    calibrate(model, texts, steps=steps, report=report)
    seconds = time.perf_counter() - begin
    model.save_pretrained(folder)
    write_whole(folder / "record.json", json.dumps({"seconds": seconds}) + "\n")


def _silently(_: str) -> None:
    """Reports to nobody: a measured cell has one line of progress."""
