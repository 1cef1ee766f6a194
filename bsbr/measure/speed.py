"""The one timer: tasks in turn, round after round, so that whatever slows the machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import binom
from torch.utils.benchmark import Timer

Samples = Float[np.ndarray, " rounds"]


@dataclass(frozen=True)
class Task:
    """Something to time: `run(prepare())`, where only `run` is on the clock."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Estimate:
    """A median with its 95 % interval, and the number of samples they rest on."""

    value: float
    low: float
    high: float
    samples: int

    @property
    def spread(self) -> float:
        """Width of the interval relative to the median."""
        return (self.high - self.low) / self.value


def median(samples: Samples) -> Estimate:
    """The median with a 95 % interval that assumes nothing about the distribution: two order statistics.

    The number of samples below the true median is binomial with probability ½, which gives the ranks (David and
    Nagaraja, Order Statistics, 2003, section 7.1). Below six samples no pair of ranks reaches 95 %; the interval is
    then the whole range.
    """
    ordered, count = np.sort(samples), len(samples)
    rank = max(int(binom.ppf(0.025, count, 0.5)), 1)
    return Estimate(float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[count - rank]), count)


def ratio(numerator: Samples, denominator: Samples) -> Estimate:
    """How many times longer one task took than another: the median of the ratios of each round, with interval."""
    return median(numerator / denominator)


def clone(state: Any) -> Any:
    """A copy of a decoding state (nested tuples of tensors): a step may reuse the memory of the one it is given."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, tuple):
        parts = [clone(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def interleave(
    tasks: Mapping[str, Task | Callable[[], object]],
    *,
    seconds: float = 10.0,
    precision: float = 0.05,
    min_rounds: int = 7,
    max_rounds: int = 60,
    block: float = 0.01,
) -> dict[str, Samples]:
    """Time several tasks in turn and return the seconds a call of each took, one sample a round.

    Each sample is the median of a block of calls by `torch.utils.benchmark`, which waits for a GPU to finish and calls
    once before it counts. The order rotates from round to round. Rounds end when every median's 95 % interval is
    narrower than `precision`, or after `seconds`, but never before `min_rounds`.

    Args:
        tasks: by name. A plain callable is a task that needs nothing prepared.
        seconds: how long to go on in search of that precision.
        precision: width of the interval to reach, relative to the median.
        min_rounds, max_rounds: samples a task at least and at most.
        block: seconds that a block of calls lasts at least.
    """
    timers = {name: _timer(task if isinstance(task, Task) else _plain(task)) for name, task in tasks.items()}
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    begin = time.perf_counter()
    for done in range(1, max_rounds + 1):
        for name in names:
            samples[name].append(timers[name].blocked_autorange(min_run_time=block).median)
        names = names[1:] + names[:1]
        if done >= min_rounds:
            precise = all(median(np.array(found)).spread <= precision for found in samples.values())
            if precise or time.perf_counter() - begin > seconds:
                break
    return {name: np.array(found) for name, found in samples.items()}


def _plain(task: Callable[[], object]) -> Task:
    return Task(run=lambda _: task())


def _timer(task: Task) -> Timer:
    return Timer(
        stmt="run(prepared)",
        setup="prepared = prepare()",
        globals={"run": task.run, "prepare": task.prepare},
        num_threads=torch.get_num_threads(),
    )
