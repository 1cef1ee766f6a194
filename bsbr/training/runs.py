"""Runs: a backbone, a head and a task trained once, and kept with their curve and record."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from bsbr.config import ModelConfig
from bsbr.model import TransformerLM
from bsbr.sources import made
from bsbr.sources.pins import cache_folder, pin_path
from bsbr.store import fingerprint, lock, machine, provenance
from bsbr.store.files import write_whole
from bsbr.training.checkpoints import OtherRunError
from bsbr.training.heads import Classifier, LanguageModel
from bsbr.training.settings import Settings, Task
from bsbr.training.trainer import Trained, train

NO_NUMBERS = ("bsbr.sources", "bsbr.training.tokens", "bsbr.mechanisms")


@dataclass(frozen=True)
class Run:
    """A trained model in its folder: `config.json`, `model.safetensors`, `curve.csv`, `record.json`, and a head.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from bsbr import ModelConfig
        >>> from bsbr.training import Settings, fit
        >>> from bsbr.training.tasks import Recall
        >>> config = ModelConfig("bsbr", hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16, chunk_size=8)
        >>> task = Recall(pairs=2, n=16, vocab_size=32, train_rows=8, test_rows=4)
        >>> settings = Settings(steps=2, batch=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = fit(config, task, settings, folder=Path(folder, "run"), device="cpu", quiet=True)
        ...     list(run.curve.columns)[:5]
        ...     run.record["task"]["name"], type(run.learner()).__name__
        ['step', 'tokens', 'learning_rate', 'loss', 'gradient_norm']
        ('Recall', 'LanguageModel')
    """

    folder: Path  # where it is kept

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """Settings, data, seed, versions and commit; `tokens`, `seconds`, `diverged`, and the last `validation`."""
        return json.loads((self.folder / "record.json").read_text(encoding="utf-8"))

    @functools.cached_property
    def curve(self) -> pd.DataFrame:
        """One row a step, as `trainer.Trained.curve`; empty cells where validation was not looked at."""
        return pd.read_csv(self.folder / "curve.csv")

    def learner(self) -> LanguageModel | Classifier:
        """Backbone and head in eval mode, in float32 on the CPU."""
        model = TransformerLM.from_pretrained(self.folder)
        head = self.record["head"]
        if head is None:
            return LanguageModel(model).eval()
        classifier = Classifier(model, **head)
        classifier.output.load_state_dict(load_file(self.folder / "head.safetensors"))
        return classifier.eval()


def fit(
    config: ModelConfig,
    task: Task,
    settings: Settings,
    *,
    classes: int | None = None,
    pooling: str = "mean",
    folder: Path | None = None,
    device: str | None = None,
    quiet: bool = False,
    beside: Mapping[str, str] | None = None,
) -> Run:
    """Train a mechanism on a task, or return what was trained already with the same settings, data, seed and code.

    Stopped at any moment, the next call goes on from the last checkpoint.

    Args:
        config: of the backbone. Its vocabulary is set to the task's.
        task: what is learned; its labels are next tokens, or classes of rows where `classes` is given.
        settings: how.
        classes: how many classes the task's labels are; None for a language model.
        pooling: of a classifier, `"mean"` or `"last"`.
        folder: where the run is to be; by default in the cache, under a name made of all that it depends on.
        device: `"cpu"` keeps to it; None takes a GPU where there is one.
        quiet: whether there is no line of progress.
        beside: texts to be kept in the folder by file name, such as a tokenizer.

    Raises:
        ValueError: settings that do not go together.
        checkpoints.OtherRunError: `folder` has another run.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from bsbr import ModelConfig
        >>> from bsbr.training import Settings, fit
        >>> from bsbr.training.tasks import Recall
        >>> config = ModelConfig("bsbr", hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16, chunk_size=8)
        >>> task = Recall(pairs=2, n=16, vocab_size=32, train_rows=8, test_rows=4)
        >>> settings = Settings(steps=2, batch=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = fit(config, task, settings, folder=Path(folder, "run"), device="cpu", quiet=True)
        ...     run.record["steps"], run.record["tokens"]
        (2, 128)
    """
    config = ModelConfig(**{**asdict(config), "vocab_size": task.vocab_size})
    head = None if classes is None else {"classes": classes, "pooling": pooling}
    key = run_key(config, task, settings, head, device)
    where = folder or cache_folder() / "runs" / f"{config.name}-{key[:16]}"
    checkpoint = where.with_name(f"{where.name}.checkpoint")
    state = PartialState(cpu=device == "cpu")
    if _is_there(where, key):
        return Run(where)
    together, alone = state.num_processes > 1, where.with_name(f"{where.name}.lock")
    with contextlib.nullcontext() if together else lock.held(alone, "a training", _wait):
        if together or not _is_there(where, key):  # which another process may have trained meanwhile
            if state.is_main_process:
                made.remove_leftovers(where.parent)
            make = functools.partial(_new, config, head)
            train_it = functools.partial(train, run=key, device=device, name=config.name, quiet=quiet)
            trained = train_it(make, task, settings, checkpoint)
            if state.is_main_process:
                record = _record(key, config, head, task, settings, trained, state)
                made.keep(where, lambda empty: _fill(empty, trained, record, beside or {}))
        if state.is_main_process:
            shutil.rmtree(checkpoint, ignore_errors=True)
            alone.unlink(missing_ok=True)  # whoever waits for it finds the run there
        state.wait_for_everyone()
    return Run(where)


def _wait(sentence: str) -> None:
    """Two trainings of one run at once would write over each other's checkpoints: the second waits for the first."""
    print(f"{sentence}: waiting for its end.", flush=True)


def run_key(
    config: ModelConfig, task: Task, settings: Settings, head: dict[str, Any] | None, device: str | None
) -> str:
    """One hash over all that a run's numbers depend on: settings, data, seed, code, packages and kind of device."""
    kind = "cpu" if device == "cpu" or not torch.cuda.is_available() else "cuda"
    basis = [_code(config, task, settings), provenance.packages(), head, kind]
    return provenance.sha256(json.dumps(basis, sort_keys=True))


def _code(config: ModelConfig, task: Task, settings: Settings) -> dict[str, str]:
    """The code and settings that a run reaches, less what can change none of its numbers.

    What sources give is in the task's hash, and of the mechanisms only its own count: days of training are not thrown
    away for a message or for another mechanism's sake.
    """
    own: dict[str, str] = {}
    for name in dict.fromkeys(config.mechanisms):
        own |= fingerprint.parts(importlib.import_module(f"bsbr.attention.{name}").attend)
    found = fingerprint.parts(functools.partial(fit, config, task, settings))
    others = {name for name in found if name.startswith("bsbr.attention.")} - own.keys()
    return {name: part for name, part in found.items() if name not in others and not name.startswith(NO_NUMBERS)}


def _is_there(folder: Path, key: str) -> bool:
    """Whether the run is there and whole; one that is damaged, or was stopped before its hash was kept, is not."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    try:
        found = Run(folder).record["run"]
    except (OSError, ValueError, KeyError, TypeError):
        if made.record_path(folder).is_file():  # ours, but too damaged to say which
            return False
        raise OtherRunError(f"{folder} has files that are of no run: name another folder, or empty that one") from None
    if found != key:
        raise OtherRunError(
            f"{folder} has a run of other settings, data or code: name another folder, or delete that one"
        )
    return made.is_whole(folder)


def _new(config: ModelConfig, head: dict[str, Any] | None) -> nn.Module:
    model = TransformerLM(config)
    return LanguageModel(model) if head is None else Classifier(model, **head)


def _record(
    key: str,
    config: ModelConfig,
    head: dict[str, Any] | None,
    task: Task,
    settings: Settings,
    trained: Trained,
    state: PartialState,
) -> dict[str, Any]:
    curve = trained.curve
    looks = [point for point in curve if "validation_loss" in point]
    return {
        "run": key,
        "model": asdict(config),
        "parameters": sum(p.numel() for p in trained.learner.parameters()),
        "head": head,
        "task": {"name": type(task).__name__, "sha256": task.fingerprint()},
        "sources": provenance.hash_sources([pin_path(name) for name in getattr(task, "sources", ())]),
        "settings": asdict(settings),
        "steps": len(curve),
        "tokens": curve[-1]["tokens"] if curve else 0,
        "seconds": trained.seconds,
        "diverged": trained.diverged,
        "validation": {name: looks[-1][f"validation_{name}"] for name in ("loss", "accuracy")} if looks else None,
        "device": str(state.device),
        "processes": state.num_processes,
        "machine": machine.describe(),
        "packages": provenance.packages(),
        **provenance.git_state(),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _fill(folder: Path, trained: Trained, record: dict[str, Any], beside: Mapping[str, str]) -> None:
    learner: Any = trained.learner.cpu()
    learner.model.save_pretrained(folder)
    if record["head"] is not None:
        head = learner.output.state_dict()
        save_file({name: value.contiguous() for name, value in head.items()}, folder / "head.safetensors")
    write_whole(folder / "curve.csv", pd.DataFrame(trained.curve).to_csv(index=False))
    write_whole(folder / "record.json", json.dumps(record, indent=2) + "\n")
    for name, text in beside.items():
        write_whole(folder / name, text)
