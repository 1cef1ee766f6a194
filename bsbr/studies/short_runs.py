"""One short training beside a page's long ones: what the quick profile repeats of it within seconds.

A run of a contest takes a minute or more, and its first steps are no run: the learning rate has not fallen by then. So
every profile of a page trains one model for a few steps besides, and the quick one has a number of the same cell.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import pandas as pd

from bsbr.store import Sweep
from bsbr.studies import learning


def hold(
    sweep: Sweep, contest: learning.Contest, name: Any, *, rate: float, steps: int, device: str, **factors: Hashable
) -> pd.DataFrame:
    """The rows that any run has, of one model after a few steps, with the factor `steps`; the test part is not read.

    Args:
        sweep: keeps the run, as a cell that depends on nothing of the contest but the model, its task and its settings.
        contest: whose task, settings and seed of the grid it has.
        name: of its model.
        rate: the learning rate.
        steps: updates, over which the learning rate rises and falls.
        device: `"cpu"`, or anything else for the GPU.
        factors: of every row, such as n and task.

    Raises:
        ValueError: the contest has no such model, or there is no step.
    """
    if name not in contest.models:
        raise ValueError(f"name must be one of {', '.join(map(str, contest.models))}, but is {name!r}")
    training = replace(contest.training, steps=steps, warm_up=steps // 10, evaluate_every=0)
    what = contest.models[name], contest.task_of(name), training, contest.classes, contest.pooling, device, None
    cell = {contest.factor: name, **factors, "steps": steps, "learning_rate": rate, "seed": training.seed}
    return sweep.measure(
        [cell], functools.partial(learning.train, *what, start=contest.start), machine_bound=True, exclusive=False
    )
