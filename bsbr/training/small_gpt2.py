"""A small GPT-2, trained here in minutes: the architecture of `gpt2`, whose own weights no package registry has.

It is trained on the State of the Union addresses that are in no part of the pinned split, so that nothing it is tried
on, and nothing a conversion of it is calibrated on, was trained on. `train` leaves a Hugging Face folder in the cache.
It can be stopped at any moment and goes on from its last checkpoint to the same weights as without the stop.
"""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging

from bsbr import sources
from bsbr.store import provenance
from bsbr.store.artefact import Report, artefact, folder_of, is_whole
from bsbr.store.files import write_whole
from bsbr.training.heads import IGNORED, Score, score
from bsbr.training.settings import Settings
from bsbr.training.tasks.windows import Windows, text_windows
from bsbr.training.tokens import END, byte_pairs
from bsbr.training.trainer import Trained
from bsbr.training.trainer import train as train_learner


@dataclass(frozen=True)
class Profile:
    """What is trained, and how. A row is `n_positions` tokens."""

    vocabulary: int
    n_embd: int
    n_layer: int
    n_head: int
    n_positions: int
    speeches: int  # at most, evenly over the years
    settings: Settings


PROFILES = {
    "tiny": Profile(
        vocabulary=512, n_embd=32, n_layer=2, n_head=2, n_positions=512, speeches=8,
        settings=Settings(steps=20, batch=2, warm_up=4, save_every=5, learning_rate=4e-3),
    ),
    "full": Profile(
        vocabulary=4096, n_embd=256, n_layer=6, n_head=4, n_positions=1024, speeches=1000,
        settings=Settings(steps=700, batch=1, warm_up=100, save_every=50),
    ),
}  # fmt: skip


class NextToken(nn.Module):
    """A causal language model of transformers as the trainer takes it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Int[Tensor, "batch n"], labels: Int[Tensor, "batch n"]) -> Score:
        """Cross-entropy of the tokens `labels`, each of which follows on the token at its place."""
        logits = self.model(input_ids, use_cache=False).logits
        wanted = labels != IGNORED
        return score(logits[wanted], labels[wanted])


def training_texts(most: int) -> list[str]:
    """The speeches that are in no part of the split, or `most` of them."""
    kept = {key for part in (sources.read_pin("speeches").split or {}).values() for key in part}
    texts = [speech.text for speech in sources.load_speeches() if speech.key not in kept]
    return sources.evenly(texts, min(most, len(texts)))


def train(profile: str, report: Report = print, *, quiet: bool = False) -> Path:
    """Train the model of a profile unless it is there and whole; return its folder.

    Args:
        profile: `"tiny"` (seconds, for trying out) or `"full"` (minutes).
        report: is told in a sentence when a training begins.
        quiet: whether there is no line of progress.

    Raises:
        ValueError: there is no such profile.
        SourceError: the speeches were not fetched, or were altered.
    """

    def announced(text: str) -> None:
        if not quiet:
            report(text)

    return artefact(f"small_gpt2-{profile}", _make, report=announced, **_made_of(profile))


def _made_of(profile: str) -> dict[str, Any]:
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {sorted(PROFILES)}, got {profile!r}")
    return {"profile": PROFILES[profile], "sources": [sources.pin_path("speeches")]}


def _make(folder: Path, report: Report, profile: Profile) -> None:
    """Train into a folder; go on from the checkpoint that a stopped run has left there."""
    texts = training_texts(profile.speeches)
    tokenizer = byte_pairs(texts, profile.vocabulary)
    task = text_windows({"train": texts, "validation": texts[:1]}, tokenizer, profile.n_positions)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)
    report(f"small GPT-2: training {profile.settings.steps} steps on {len(texts)} speeches")
    make = functools.partial(_new, profile, wrapped)
    trained = train_learner(make, task, profile.settings, folder / "checkpoint", device="cpu", name="small GPT-2")
    _fill(profile, trained, wrapped, task, len(texts), folder)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def load(folder: Path) -> tuple[Any, Any]:
    """The trained model in eval mode, in float32, and its tokenizer."""
    logging.disable_progress_bar()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return GPT2LMHeadModel.from_pretrained(folder, local_files_only=True).eval(), tokenizer


def record(profile: str) -> dict[str, Any]:
    """How the model of a profile was trained: tokens read, steps, seconds, and its loss on development speeches.

    Raises:
        SourceError: it was not trained yet, or is damaged.
    """
    folder = folder_of(f"small_gpt2-{profile}", _make, **_made_of(profile))
    if not is_whole(folder):
        raise sources.SourceError(
            f"The small GPT-2 {profile!r} is not trained yet, or damaged: call small_gpt2.train({profile!r})."
        )
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any) -> float:
    """Mean loss, in nats a token, over the first full window of each development speech."""
    texts = [speech.text for speech in sources.load_speeches("development")]
    windows = [tokenizer(text, return_tensors="pt")["input_ids"][:, : model.config.n_positions + 1] for text in texts]
    scores = [NextToken(model)(ids[:, :-1], ids[:, 1:]) for ids in windows]
    return sum((found.loss / found.targets).item() for found in scores) / len(scores)


def _new(profile: Profile, tokenizer: Any) -> NextToken:
    """Untrained. Without dropout: the texts are read about once."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=profile.n_embd,
        n_layer=profile.n_layer,
        n_head=profile.n_head,
        n_positions=profile.n_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return NextToken(GPT2LMHeadModel(config))


def _fill(profile: Profile, trained: Trained, tokenizer: Any, task: Windows, speeches: int, folder: Path) -> None:
    logging.disable_progress_bar()
    model: Any = trained.learner.model
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = {
        "tokens": trained.curve[-1]["tokens"],
        "steps": len(trained.curve),
        "seconds": trained.seconds,
        "loss": evaluate(model, tokenizer),
        "speeches": speeches,
        "stream": len(task.streams["train"]),
        "settings": asdict(profile),
        "packages": provenance.packages(),
        **provenance.git_state(),
    }
    write_whole(folder / "record.json", json.dumps(found, indent=2) + "\n")
