"""What the command lines share: a conversion's setting as options, and texts from files."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from jaxtyping import Int
from torch import Tensor

from bsbr.conversion.config import ConversionConfig, Retrieval


def add_setting(parser: argparse.ArgumentParser) -> None:
    """An option for each field of ConversionConfig, with its default."""
    for field in fields(ConversionConfig):
        option = f"--{field.name.replace('_', '-')}"
        if field.name == "retrieval":
            parser.add_argument(option, choices=get_args(Retrieval), default=field.default)
        elif field.name == "layers":
            parser.add_argument(option, type=_numbers, metavar="0,1,…", help="layers to convert (default: all)")
        else:
            parser.add_argument(option, type=int, default=field.default, metavar="N", help="(default: %(default)s)")


def setting_of(options: argparse.Namespace) -> ConversionConfig:
    """The setting that the options make. Raises ValueError if there cannot be such a one."""
    return ConversionConfig(**{field.name: getattr(options, field.name) for field in fields(ConversionConfig)})


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def read_text(path: Path, tokenizer: Any, tokens: int) -> Int[Tensor, "1 n"]:
    """The first tokens of a text file, (1, n). Raises ValueError if it is not UTF-8, OSError if it is not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--texts: expected text in UTF-8, got other bytes in {str(path)!r}") from error
    return tokenizer(text, return_tensors="pt")["input_ids"][:, :tokens]
