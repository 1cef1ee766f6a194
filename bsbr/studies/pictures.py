"""Emoji told by their words, their pictures or both: what trained models say of them, and what has to be beaten."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from bsbr import stats
from bsbr.config import ModelConfig
from bsbr.mechanisms import MECHANISMS
from bsbr.sources.emoji import Emoji, load_emoji, load_picture
from bsbr.store import Row, over, row
from bsbr.studies import learning
from bsbr.training import Classifier, Run, Settings, baselines
from bsbr.training.tasks import Pictures
from bsbr.training.tasks.pictures import halved

INPUTS = {"text": "name", "image": "picture", "joint": "both"}  # as the documents call them, and as the task does
SEEN, UNSEEN = "twitter", "google"  # whose pictures are trained on, and whose are not
MAJORITY, WORDS, PIXELS = "majority class", "bag of words", "pixels"
BASELINES = {"text": (MAJORITY, WORDS), "image": (MAJORITY, PIXELS), "joint": (MAJORITY, WORDS)}
READ_AT_ONCE = 64  # rows, by a trained model that is judged


@dataclass(frozen=True)
class Plan:
    """How models are trained to tell emoji.

    Args:
        sizes: of the backbones.
        batch: rows of a step.
        steps: updates of the weights, by input.
        rates: the grid of learning rates.
        seeds: fresh ones; without any there is the grid alone.
        mechanisms: which are trained.
    """

    sizes: Mapping[str, Any]
    batch: int
    steps: Mapping[str, int]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    mechanisms: tuple[str, ...] = tuple(MECHANISMS)


def typical_length(inputs: str) -> int:
    """The median number of tokens of the training part's rows."""
    task = _task(inputs)
    rows = task.rows("train", range(task.size("train")))
    return int(median(rows["attention_mask"].sum(1).tolist()))


def chunk_size(inputs: str) -> int:
    """Tokens of a chunk and of a window: an eighth of a typical row, but at least two, so that tokens meet in them."""
    return max(2, typical_length(inputs) // 8)


def contest(plan: Plan, inputs: str) -> learning.Contest:
    """The mechanisms of a plan, trained alike on one input and judged on the test part.

    Args:
        inputs: a key of `INPUTS`.

    Raises:
        ValueError: there is no such input.
    """
    task, size = _task(inputs), chunk_size(inputs)
    steps = plan.steps[inputs]
    return learning.Contest(
        factor="mechanism",
        models={name: ModelConfig(name, **plan.sizes, chunk_size=size, window_size=size) for name in plan.mechanisms},
        task=task,
        training=Settings(steps=steps, batch=plan.batch, warm_up=steps // 10),
        rates=plan.rates,
        seeds=plan.seeds,
        judge=functools.partial(judge, inputs),
        classes=len(task.classes),
    )


# -- On the test part -----------------------------------------------------------------------------


def judge(inputs: str, run: Run) -> list[Row]:
    """Rows `accuracy` and `macro_f1` of a trained classifier on the test part, read in float32.

    Of inputs with a picture also those of the same emoji as `UNSEEN` draws them, with that as their `vendor`.
    """
    learner = run.learner()
    assert isinstance(learner, Classifier)
    return [found for vendor in _vendors(inputs) for found in scores(told(learner, _task(inputs, vendor)), vendor)]


@torch.inference_mode()
def told(learner: Classifier, task: Pictures, part: str = "test") -> list[str]:
    """The group that a classifier says of each emoji of a part, in their order."""
    found: list[str] = []
    for start in range(0, task.size(part), READ_AT_ONCE):
        batch = task.rows(part, range(start, min(start + READ_AT_ONCE, task.size(part))))
        chosen = learner.logits(batch["input_ids"], batch["attention_mask"]).argmax(-1)
        found += [task.classes[label] for label in chosen.tolist()]
    return found


def baseline(*, mechanism: str, input: str) -> list[Row]:
    """The same rows of what takes no model: the commonest group, a bag of the words, or single pixels.

    Args:
        mechanism: its name, one of the input's `BASELINES`.
        input: a key of `INPUTS`.

    Raises:
        ValueError: there is no such input, or no such baseline for it.
    """
    _task(input)
    if mechanism not in BASELINES[input]:
        raise ValueError(f"mechanism must be one of {', '.join(BASELINES[input])} for {input}, but is {mechanism!r}")
    train, held, test = (load_emoji(part) for part in ("train", "validation", "test"))
    labels, wanted = ([emoji.group for emoji in part] for part in (train, held))
    if mechanism == MAJORITY:
        return scores(baselines.majority(labels, len(test)), SEEN)
    if mechanism == WORDS:
        words, new, held_words = ([emoji.words for emoji in part] for part in (train, test, held))
        return scores(baselines.bag_of_words(words, labels, (held_words, wanted), new), SEEN)
    drawn = {vendor: _drawn("test", vendor) for vendor in _vendors(input)}
    given = baselines.pixels(
        _drawn("train", SEEN), labels, (_drawn("validation", SEEN), wanted), np.concatenate(list(drawn.values()))
    )
    return [
        found
        for at, vendor in enumerate(drawn)
        for found in scores(given[at * len(test) : (at + 1) * len(test)], vendor)
    ]


def scores(given: Sequence[str], vendor: str) -> list[Row]:
    """`accuracy`, with the interval of a share of emoji, and `macro_f1`, in %, of groups given to the test part.

    Rows about `UNSEEN` name it as their `vendor`; others have none.
    """
    test = load_emoji("test")
    right = [emoji.group for emoji in test]
    what: dict[str, Any] = {"over": over("emoji", (emoji.key for emoji in test))}
    what |= {} if vendor == SEEN else {"vendor": vendor}
    share = stats.share(sum(one == other for one, other in zip(given, right, strict=True)), len(right))
    return [row("accuracy", share, **what), row("macro_f1", 100 * baselines.macro_f1(given, right), **what)]


def examples(part: str = "validation") -> list[Emoji]:
    """The first emoji of each group in a part, by group."""
    first: dict[str, Emoji] = {}
    for emoji in load_emoji(part):
        first.setdefault(emoji.group, emoji)
    return [first[group] for group in sorted(first)]


def _task(inputs: str, vendor: str = SEEN) -> Pictures:
    if inputs not in INPUTS:
        raise ValueError(f"inputs must be one of {', '.join(INPUTS)}, but is {inputs!r}")
    return Pictures(INPUTS[inputs], vendor)


def _vendors(inputs: str) -> tuple[str, ...]:
    return (SEEN,) if inputs == "text" else (SEEN, UNSEEN)


def _drawn(part: str, vendor: str) -> np.ndarray:
    """The pictures of a part at the size at which models read them, (emoji, 32, 32, 3)."""
    return np.stack([halved(load_picture(emoji, vendor)) for emoji in load_emoji(part)])
