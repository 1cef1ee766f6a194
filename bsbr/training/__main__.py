"""`python -m bsbr.training`: train any mechanism on a folder of texts; get a model, its curve and its record."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from accelerate import PartialState

from bsbr.config import ModelConfig
from bsbr.mechanisms import MECHANISMS
from bsbr.training.runs import Run, fit
from bsbr.training.settings import PRECISIONS, Settings
from bsbr.training.tasks import text_windows
from bsbr.training.tokens import byte_pairs

SUFFIXES = (".txt", ".md")
TENTH = 10


def read_texts(folder: Path) -> dict[str, str]:
    """The text files of a folder and the folders in it, by name.

    Raises:
        ValueError: it is no folder, has no text, or a text that is not UTF-8.
    """
    if not folder.is_dir():
        raise ValueError(f"texts must be a folder, but {str(folder)!r} is none")
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    texts = {}
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"texts must be UTF-8, but {path} is not; convert it, such as by iconv") from None
        if text.strip():
            texts[path.relative_to(folder).as_posix()] = text
    if not texts:
        raise ValueError(f"texts must hold {' or '.join(SUFFIXES)} files that are not empty, but {folder} has none")
    return texts


def divided(texts: dict[str, str]) -> dict[str, list[str]]:
    """Texts for training and for validation: of ten files or more every tenth in order of their content's hashes, of
    fewer the last tenth of each."""
    found = sorted(texts.values(), key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    if len(found) >= TENTH:
        held = set(range(TENTH - 1, len(found), TENTH))
        return {
            "train": [text for i, text in enumerate(found) if i not in held],
            "validation": [found[i] for i in sorted(held)],
        }
    cuts = [len(text) - len(text) // TENTH for text in found]
    return {
        "train": [text[:cut] for text, cut in zip(found, cuts, strict=True)],
        "validation": [text[cut:] for text, cut in zip(found, cuts, strict=True)],
    }


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(prog="python -m bsbr.training", description=(__doc__ or "").partition(": ")[2])
    add = made.add_argument
    add("texts", type=Path, help="folder of .txt and .md files, in folders or not")
    known = "{" + ",".join(MECHANISMS) + "}"
    how = "how tokens mix; or one for each layer, such as bsbr,bsbr,standard (default: bsbr)"
    add("--mechanism", type=_mechanism, metavar=known, default="bsbr", help=how)
    add(
        "--short-conv", type=int, default=None, help="width of a convolution over q, k and v, such as 4 (default: none)"
    )
    add("--out", type=Path, default=Path("trained"), help="folder of the model (default: trained)")
    add("--n", type=int, default=512, help="tokens in a row (default: 512)")
    add("--steps", type=int, default=1000, help="updates (default: 1000)")
    add("--batch", type=int, default=8, help="rows an update reads (default: 8)")
    add("--accumulation", type=int, default=1, help="parts in which they are read, to spare memory (default: 1)")
    add("--learning-rate", type=float, default=1e-3, help="the highest (default: 0.001)")
    add("--vocabulary", type=int, default=4096, help="tokens of the tokenizer that is made (default: 4096)")
    add("--hidden-dim", type=int, default=256, help="width (default: 256)")
    add("--num-layers", type=int, default=None, help="(default: 2, or one for each mechanism that is named)")
    add("--num-heads", type=int, default=4, help="(default: 4)")
    add("--ff-dim", type=int, default=512, help="width of the feed-forward layers (default: 512)")
    add(
        "--chunk-size",
        type=int,
        default=64,
        help="of bsbr and gau, at most n / 8 (default: 64)",
    )
    add("--window-size", type=int, default=128, help="of sliding_window (default: 128)")
    add("--precision", choices=PRECISIONS, default="bfloat16", help="of the arithmetic (default: bfloat16)")
    add("--seed", type=int, default=0, help="of weights and order (default: 0)")
    add("--device", choices=["cpu"], default=None, help="keep to the CPU; a GPU is taken where there is one")
    return made


def _mechanism(text: str) -> str | list[str]:
    """A name, or the names between commas."""
    names = text.split(",")
    if wrong := [name for name in names if name not in MECHANISMS]:
        raise argparse.ArgumentTypeError(f"choose from {', '.join(MECHANISMS)}, not {wrong[0]!r}")
    return names if len(names) > 1 else text


def train_folder(options: argparse.Namespace) -> Run:
    """Train on the folder that the options name. Raises ValueError if they do not go together."""
    texts = divided(read_texts(options.texts))
    tokenizer = byte_pairs(texts["train"], options.vocabulary)
    task = text_windows(texts, tokenizer, options.n)
    sizes = ("hidden_dim", "num_heads", "ff_dim", "chunk_size", "window_size", "short_conv")
    layers = options.num_layers
    if layers is None:
        layers = 2 if isinstance(options.mechanism, str) else len(options.mechanism)
    chosen = {name: getattr(options, name) for name in sizes}
    config = ModelConfig(options.mechanism, num_layers=layers, **chosen)
    plain = ("steps", "batch", "accumulation", "learning_rate", "precision", "seed")
    settings = Settings(
        **{name: getattr(options, name) for name in plain},
        warm_up=options.steps // 10,
        evaluate_every=max(1, options.steps // 10),
        save_every=max(1, options.steps // 20),
    )
    beside = {"tokenizer.json": tokenizer.to_str()}
    return fit(config, task, settings, folder=options.out, device=options.device, beside=beside)


def main(arguments: list[str] | None = None) -> int:
    """Train, and say in a few lines what came of it, or in one what was wrong."""
    options = parser().parse_args(arguments)
    try:
        run = train_folder(options)
    except ValueError as error:
        print(f"training: {error}", file=sys.stderr)
        return 1
    if PartialState().is_main_process:
        record = run.record
        print(f"{run.folder}: {ModelConfig(**record['model']).name}, {record['parameters']:,} parameters")
        print(f"{record['tokens']:,.0f} tokens in {record['seconds']:.0f} s, {record['steps']} steps")
        if record["diverged"]:
            print(f"diverged at step {record['diverged']}: try a lower --learning-rate")
        elif record["validation"]:
            found = record["validation"]
            print(f"validation: loss {found['loss']:.3f} nats a token, accuracy {found['accuracy']:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
