"""`python -m bsbr.conversion MODEL --out FOLDER`: convert a pretrained model, calibrate it on texts, and save it."""

from __future__ import annotations

import argparse
import errno
import glob
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from transformers.utils import logging

from bsbr.conversion import loading
from bsbr.conversion.calibration import calibrate
from bsbr.conversion.config import ConversionConfig
from bsbr.conversion.converter import attention_modules, convert
from bsbr.conversion.memory import cache_bytes
from bsbr.conversion.options import add_setting, read_text, setting_of

DTYPES = ("auto", "float32", "float16", "bfloat16")
EXAMPLE_TOKENS = 4096  # the length for which the report states the cache


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options. Those of ConversionConfig have its names and defaults."""
    parser = argparse.ArgumentParser(prog="python -m bsbr.conversion", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("model", help="a local folder, a .gguf file, or a name on the Hugging Face hub")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where to save; must be new or empty")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as they are kept)")
    add_setting(parser)
    parser.add_argument("--texts", type=Path, nargs="+", default=[], metavar="FILE", help="to calibrate and measure on")
    parser.add_argument("--tokens", type=int, default=2048, metavar="N", help="of each text (default: %(default)s)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Convert, calibrate and save. Raises ValueError or OSError, whose messages are sentences for the user."""
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ValueError(f"--out: expected a new or empty folder, got {str(options.out)!r}, which is not empty")
    config = setting_of(options)
    _say(f"Loading {options.model}.")
    model = loading.load(options.model, dtype=options.dtype)
    tokenizer = _tokenizer(options)
    documents = [read_text(path, tokenizer, options.tokens) for path in options.texts]
    converted = convert(model, config)
    if documents and config.reads_states:
        kept = len(documents) // 2  # half of the texts, rounded down, are held out; a single one is fitted to
        _say(f"Calibrating on {len(documents) - kept} of the texts, {kept} held out.")
        _say(_gain(calibrate(converted, documents[kept:], documents[:kept], report=_say)))
    _say(f"Saving to {options.out}.")
    _save(converted, tokenizer, options.out)
    for line in summary(converted, config):
        _say(line)


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write the folder whole or not at all: beside its place, then put there. What stopped runs left is removed."""
    out = out.absolute()
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        owner = left.name.split(".")[-2]
        if owner.isdecimal() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(left, ignore_errors=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        if out.is_dir():
            out.rmdir()  # it is empty
        partial.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ValueError(
            f"--out: another run has filled {str(out)!r} meanwhile; what it saved is left there"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tokenizer(options: argparse.Namespace) -> Any:
    """The model's tokenizer, which is saved with it; None if it has none and no text is to be read."""
    try:
        return loading.load_tokenizer(options.model)
    except OSError:
        if options.texts:
            raise
        return None


def _gain(found: Any) -> str:
    if found.gap_closed is None:
        return "Calibrated; give two texts or more to learn the gain on one that was not fitted to."
    return (
        f"On held-out text: perplexity {found.original_perplexity:.2f} of the original, {found.perplexity_before:.2f} "
        f"converted, {found.perplexity_after:.2f} calibrated."
    )


def summary(model: Any, config: ConversionConfig) -> list[str]:
    """What was made: parameters, layers, cache, setting."""
    count = len(attention_modules(model))
    bytes_here, bytes_before = (cache_bytes(model, EXAMPLE_TOKENS, use) for use in (config, None))
    setting = ", ".join(f"{name}={value}" for name, value in asdict(config).items() if value is not None)
    return [
        f"Model: {model.config.model_type}, {model.num_parameters():,} parameters, {model.dtype}.".replace(
            "torch.", ""
        ),
        f"Converted: {len(config.layers_of(count))} of {count} layers.",
        f"Cache at {EXAMPLE_TOKENS:,} tokens: {bytes_here / EXAMPLE_TOKENS:,.0f} bytes a token, "
        f"{bytes_before / EXAMPLE_TOKENS:,.0f} in the original.",
        f"Setting: {setting}.",
    ]


def _say(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """0 when saved, 1 when something was wrong with what was asked for, 2 for unknown options."""
    options = parse(arguments)
    logging.disable_progress_bar()
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
