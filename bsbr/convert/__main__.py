"""`python -m bsbr.convert MODEL --out FOLDER`: convert a pretrained model, calibrate it on texts, and save it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

import torch
from transformers.utils import logging

from bsbr.convert import loading
from bsbr.convert.calibration import calibrate, least_sensitive
from bsbr.convert.config import ConversionConfig, Retrieval
from bsbr.convert.converter import attention_modules, convert
from bsbr.convert.memory import cache_bytes

DTYPES = ("auto", "float32", "float16", "bfloat16")
EXAMPLE_TOKENS = 4096  # the length for which the report states the cache


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options. Those of ConversionConfig have its names and defaults."""
    parser = argparse.ArgumentParser(prog="python -m bsbr.convert", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("model", help="a local folder, a .gguf file, or a name on the Hugging Face hub")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where to save; must be new or empty")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as they are kept)")
    for field in fields(ConversionConfig):
        option = f"--{field.name.replace('_', '-')}"
        if field.name == "retrieval":
            parser.add_argument(option, choices=get_args(Retrieval), default=field.default)
        elif field.name == "layers":
            parser.add_argument(option, type=_numbers, metavar="0,1,…", help="layers to convert (default: all)")
        else:
            parser.add_argument(option, type=int, default=field.default, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--layer-budget", type=int, metavar="N", help="convert the N layers that suffer least by it")
    parser.add_argument("--texts", type=Path, nargs="+", default=[], metavar="FILE", help="to calibrate and measure on")
    parser.add_argument("--tokens", type=int, default=2048, metavar="N", help="of each text (default: %(default)s)")
    return parser.parse_args(arguments)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def run(options: argparse.Namespace) -> None:
    """Convert, calibrate and save. Raises ValueError or OSError, whose messages are sentences for the user."""
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ValueError(f"--out: expected a new or empty folder, got {str(options.out)!r}, which is not empty")
    if options.layer_budget is not None and options.layers is not None:
        raise ValueError("--layer-budget: expected without --layers, which names the layers itself; leave one out")
    if options.layer_budget is not None and not options.texts:
        raise ValueError("--layer-budget: expected --texts beside it, on which the layers' sensitivity is measured")
    config = ConversionConfig(**{field.name: getattr(options, field.name) for field in fields(ConversionConfig)})
    _say(f"Loading {options.model}.")
    model = loading.load(options.model, dtype=options.dtype)
    tokenizer = _tokenizer(options)
    documents = [_read(path, tokenizer, options.tokens) for path in options.texts]
    if options.layer_budget is not None:
        _say("Measuring how sensitive each layer is.")
        layers = least_sensitive(model, documents[:1], options.layer_budget, config, _say)
        config = ConversionConfig(**asdict(config) | {"layers": layers})
    converted = convert(model, config)
    if documents and config.reads_states:
        kept = len(documents) // 2  # half of the texts, rounded down, are held out; a single one is fitted to
        _say(f"Calibrating on {len(documents) - kept} of the texts, {kept} held out.")
        _say(_gain(calibrate(converted, documents[kept:], documents[:kept], report=_say)))
    _say(f"Saving to {options.out}.")
    converted.save_pretrained(options.out)
    if tokenizer is not None:
        tokenizer.save_pretrained(options.out)
    for line in summary(converted, config):
        _say(line)


def _tokenizer(options: argparse.Namespace) -> Any:
    """The model's tokenizer, which is saved with it; None if it has none and no text is to be read."""
    try:
        return loading.load_tokenizer(options.model)
    except OSError:
        if options.texts:
            raise
        return None


def _read(path: Path, tokenizer: Any, tokens: int) -> torch.Tensor:
    ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][:, :tokens]
    return ids


def _gain(found: Any) -> str:
    if found.gap_closed is None:
        return "Calibrated; give two texts or more to learn the gain on one that was not fitted to."
    return (
        f"On held-out text: perplexity {found.original_perplexity:.2f} of the original, {found.perplexity_before:.2f} "
        f"converted, {found.perplexity_after:.2f} calibrated."
    )


def summary(model: Any, config: ConversionConfig) -> list[str]:
    """What was made: parameters, layers, cache, settings."""
    count = len(attention_modules(model))
    bytes_here, bytes_before = (cache_bytes(model, EXAMPLE_TOKENS, use) for use in (config, None))
    settings = ", ".join(f"{name}={value}" for name, value in asdict(config).items() if value is not None)
    return [
        f"Model: {model.config.model_type}, {model.num_parameters():,} parameters, {model.dtype}.".replace(
            "torch.", ""
        ),
        f"Converted: {len(config.layers_of(count))} of {count} layers.",
        f"Cache at {EXAMPLE_TOKENS:,} tokens: {bytes_here / EXAMPLE_TOKENS:,.0f} bytes a token, "
        f"{bytes_before / EXAMPLE_TOKENS:,.0f} in the original.",
        f"Settings: {settings}.",
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
