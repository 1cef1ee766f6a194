"""How a run is trained, and what follows from the step alone: the rows that it reads and its learning rate."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Batch = dict[str, Tensor]
PRECISIONS = ("float32", "bfloat16")


class Task(Protocol):
    """What is learned: rows by number, each a pure function of the part, the task's own settings and its number.

    Examples:
        A task of one's own, which counts on from a number, for a vocabulary of 100 tokens:

        >>> import torch
        >>> class Counting:
        ...     vocab_size = 100
        ...
        ...     def size(self, part):
        ...         return 80
        ...
        ...     def rows(self, part, indices):
        ...         numbers = torch.tensor(indices)[:, None] + torch.arange(17)
        ...         return {"input_ids": numbers[:, :-1], "labels": numbers[:, 1:]}
        ...
        ...     def fingerprint(self):
        ...         return "counting, first version"
        >>> Counting().rows("train", [0, 5])["input_ids"].shape
        torch.Size([2, 16])
    """

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""

    def size(self, part: str) -> int | None:
        """How many rows a part, `"train"`, `"validation"` or `"test"`, has; None if they never end.

        Args:
            part: `"train"`, `"validation"` or `"test"`.
        """

    def rows(self, part: str, indices: Sequence[int]) -> Batch:
        """The rows of these numbers as the tensors that the learner's `forward` takes by name, each (batch, …).

        Args:
            part: `"train"`, `"validation"` or `"test"`.
            indices: the numbers of the rows.
        """

    def fingerprint(self) -> str:
        """One hash over all settings and data that the rows depend on."""


@dataclass(frozen=True)
class Settings:
    """How a run is trained.

    Args:
        steps: updates of the weights.
        batch: rows an update reads, over all processes and parts.
        learning_rate: the highest; it rises over `warm_up` steps and falls along half a cosine to `final_rate` of it.
        accumulation: parts in which a process reads its rows, one after the other, to spare memory.
        weight_decay: of matrices; none of norms, biases and embeddings.
        largest_gradient: the norm to which gradients are clipped.
        precision: `"bfloat16"` for autocast, the weights and their updates staying float32; or `"float32"`.
        seed: of the first weights, the order of the data and dropout.
        evaluate_every: steps between looks at the validation part; 0 for one at the end only.
        evaluate_rows: of the validation part, at most; 0 for all, if they end.
        save_every: steps between checkpoints.
        warm_up: steps over which the learning rate rises.
        final_rate: where it ends, as a share of `learning_rate`.
        beta_2: of AdamW, whose beta_1 is 0.9.

    Raises:
        ValueError: a number is out of its range, or `precision` is neither.

    Examples:
        >>> from bsbr.training import Settings
        >>> settings = Settings(steps=1000, batch=32, warm_up=100)
        >>> settings.precision
        'bfloat16'
        >>> Settings(steps=1000, warm_up=2000)
        Traceback (most recent call last):
        ValueError: warm_up must be at most steps = 1000, but is 2000
    """

    steps: int
    batch: int = 8
    learning_rate: float = 1e-3
    warm_up: int = 0
    final_rate: float = 0.0
    accumulation: int = 1
    weight_decay: float = 0.1
    beta_2: float = 0.95
    largest_gradient: float = 1.0
    precision: str = "bfloat16"
    seed: int = 0
    evaluate_every: int = 0
    evaluate_rows: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "accumulation": 1, "save_every": 1}
        least |= dict.fromkeys(("warm_up", "evaluate_every", "evaluate_rows", "seed"), 0)
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name} must be a whole number ≥ {low}, but is {value!r}")
        for name, open_end in {"learning_rate": math.inf, "largest_gradient": math.inf, "beta_2": 1.0}.items():
            if not 0 < getattr(self, name) < open_end:
                raise ValueError(f"{name} must lie between 0 and {open_end:g}, but is {getattr(self, name)!r}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be ≥ 0, but is {self.weight_decay!r}")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate must lie in [0, 1], but is {self.final_rate!r}")
        if self.warm_up > self.steps:
            raise ValueError(f"warm_up must be at most steps = {self.steps}, but is {self.warm_up}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, but is {self.precision!r}")


def learning_rate(step: int, settings: Settings) -> float:
    """Rises linearly over the warm-up, then falls along half a cosine. The first step is 1."""
    if step <= settings.warm_up:
        return settings.learning_rate * step / settings.warm_up
    share = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    falling = (1 + math.cos(math.pi * share)) / 2
    return settings.learning_rate * (settings.final_rate + (1 - settings.final_rate) * falling)


def indices(step: int, settings: Settings, size: int | None) -> list[int]:
    """The numbers of the rows that a step reads: by seed and step alone, so that nothing of an order is to be kept.

    Every row is read once in an epoch, in an order that is the epoch's own. Of rows that never end, each seed reads a
    stretch of its own in sequence.
    """
    places = range((step - 1) * settings.batch, step * settings.batch)
    if size is None:
        return [(settings.seed << 32) + place for place in places]
    return [_order(settings.seed, place // size, size)[place % size] for place in places]


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> list[int]:
    return torch.randperm(size, generator=generator("order", seed, epoch)).tolist()


def generator(*what: object) -> torch.Generator:
    """A source of chance that is a function of what it is for, and of nothing else."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
