"""The pretrained language model: a pinned GGUF, unpacked once to the folder that any loader of models reads."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsbr.sources import made
from bsbr.sources.gguf import unpack
from bsbr.sources.pins import REMEDY, Source, SourceError, cache_folder, check_files, read_pin
from bsbr.store import fingerprint
from bsbr.store.provenance import sha256

if TYPE_CHECKING:
    import torch

UNPACKING = ("torch", "transformers", "gguf")  # the packages that read a GGUF


def unpacked_folder(source: Source) -> Path:
    """Named after the pin and what unpacks it, so that a new pin, code or package unpacks it anew."""
    basis = [source.files_sha256, fingerprint.of(unpack), *(importlib.metadata.version(name) for name in UNPACKING)]
    return cache_folder() / f"{source.name}-{sha256(' '.join(basis))[:12]}"


def convert_gguf(source: Source, report: Callable[[str], None] = print) -> Path:
    """Unpack a GGUF's 4-bit weights to float32 safetensors once, since reading the GGUF takes twenty seconds.

    Raises:
        SourceError: the GGUF was not fetched, or was altered.
    """
    folder = unpacked_folder(source)
    if made.is_whole(folder):
        return folder
    gguf = next(check_files(source).glob("*.gguf"))
    report(f"{source.name}: converting {gguf.name} to safetensors, about half a minute")
    made.keep(folder, lambda empty: unpack(gguf, empty))
    report(f"{source.name}: converted")
    return folder


def smollm2_folder() -> Path:
    """The verified Hugging Face folder of SmolLM2-135M-Instruct. Raises SourceError if missing or altered."""
    source = read_pin("smollm2")
    folder = unpacked_folder(source)
    if not made.is_whole(folder):
        how = "was altered" if made.record_path(folder).is_file() and folder.is_dir() else "is not unpacked yet"
        raise SourceError(f"{source.title} {how}. {REMEDY}")
    return folder


def load_smollm2(dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in eval mode and its tokenizer, loaded as any folder is; needs no network.

    Args:
        dtype: of the weights; float32 unless said otherwise.

    Returns:
        (LlamaForCausalLM with PyTorch's fused attention, tokenizer).

    Raises:
        SourceError: the checkpoint was not fetched, or was altered.

    Examples:
        >>> from bsbr.sources import load_smollm2
        >>> model, tokenizer = load_smollm2()
        >>> model.config.num_hidden_layers, tokenizer.decode(tokenizer("To be or not to be").input_ids)
        (30, 'To be or not to be')
    """
    folder = smollm2_folder()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it takes a third of a second
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    return model.eval(), tokenizer
