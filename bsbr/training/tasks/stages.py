"""A curriculum: rows of one task after another, easier ones first, in the same order for every mechanism."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bsbr.training.heads import IGNORED
from bsbr.training.settings import Batch, Task

PLACES = 1 << 32  # of a seed's stretch of a training part that never ends; see `settings.indices`


@dataclass(frozen=True)
class Stages:
    """The training part is that of each task in turn; validation and test are those of `judged`.

    Args:
        stages: how many rows, and of which task. From the last on there is no other.
        judged: the task that settings are chosen by.

    Raises:
        ValueError: there is no stage, one has no rows, or tasks have unlike vocabularies.

    Examples:
        >>> from bsbr.training.tasks import Recall, Stages
        >>> easy, hard = Recall(pairs=1, n=16, vocab_size=64), Recall(pairs=4, n=32, vocab_size=64)
        >>> task = Stages(stages=((1000, easy), (4000, hard)), judged=hard)
        >>> task.rows("train", [0])["input_ids"].shape, task.rows("train", [1000])["input_ids"].shape
        (torch.Size([1, 16]), torch.Size([1, 32]))
        >>> task.size("train") is None, task.vocab_size, task.sources
        (True, 64, ())
        >>> task.fingerprint() == hard.fingerprint()
        False
    """

    stages: tuple[tuple[int, Task], ...]
    judged: Task

    def __post_init__(self) -> None:
        if not self.stages or min(rows for rows, _ in self.stages) < 1:
            raise ValueError(f"stages must be one or more, each of ≥ 1 rows, but are {self.stages!r}")
        if {task.vocab_size for _, task in self.stages} != {self.judged.vocab_size}:
            raise ValueError("stages must have one vocabulary, that of judged; make them from the same tokenizer")

    @property
    def vocab_size(self) -> int:
        """Of all tasks."""
        return self.judged.vocab_size

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the pinned sources of all tasks."""
        tasks = [self.judged, *(task for _, task in self.stages)]
        return tuple(dict.fromkeys(name for task in tasks for name in getattr(task, "sources", ())))

    def size(self, part: str) -> int | None:
        """Rows in a part; those of training never end."""
        return None if part == "train" else self.judged.size(part)

    def rows(self, part: str, indices: Sequence[int]) -> Batch:
        """`input_ids` and `labels`, (batch, longest row) each; shorter rows of an earlier stage end in padding."""
        if part != "train":
            return self.judged.rows(part, indices)
        found = [task.rows(part, _within(task, list(some))) for task, some in itertools.groupby(indices, self._task)]
        longest = max(batch["input_ids"].shape[1] for batch in found)
        filled = {"input_ids": 0, "labels": IGNORED}
        return {
            name: torch.cat([_padded(batch[name], longest, filler) for batch in found])
            for name, filler in filled.items()
        }

    def _task(self, index: int) -> Task:
        """The task whose turn it is at that row of a seed's stretch."""
        place = index % PLACES
        for rows, task in self.stages[:-1]:
            if place < rows:
                return task
            place -= rows
        return self.stages[-1][1]

    def fingerprint(self) -> str:
        """One hash over all tasks and how many rows each gives."""
        parts = [self.judged.fingerprint(), *(f"{rows} {task.fingerprint()}" for rows, task in self.stages)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _within(task: Task, indices: list[int]) -> list[int]:
    """The same rows, of a training part that ends again from its beginning."""
    size = task.size("train")
    return indices if size is None else [index % size for index in indices]


def _padded(rows: torch.Tensor, n: int, filler: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, n - rows.shape[1]), value=filler)
