"""Telling documents apart: what trained models say of the test part, and what has to be beaten.

Two pages share the models that are trained here, by a `Plan`: whichever runs second finds them trained.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from bsbr import stats
from bsbr.config import ModelConfig
from bsbr.mechanisms import MECHANISMS
from bsbr.store import Row, row, select
from bsbr.studies import learning
from bsbr.training import Classifier, Run, Settings, baselines
from bsbr.training.tasks import Classification
from bsbr.training.tokens import encoded, labels, tokenizer

CORPORA = {"genres": "brown", "groups": "emails"}  # what is told apart, and in which texts
MAJORITY, WORDS = "majority class", "bag of words"
BASELINES = (MAJORITY, WORDS)
READ_AT_ONCE = 16_384  # tokens, by a trained model that is judged
PIECES = 8  # of a training document, at most, for the bag of words


@dataclass(frozen=True)
class Plan:
    """How models are trained to tell documents apart.

    Args:
        sizes: of the backbones.
        tokens: that a step reads: the longer its rows, the fewer they are.
        steps: updates of the weights.
        rates: the grid of learning rates.
        seeds: fresh ones; without any there is the grid alone.
        mechanisms: which are trained.
    """

    sizes: Mapping[str, Any]
    tokens: int
    steps: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    mechanisms: tuple[str, ...] = tuple(MECHANISMS)


SMALL: dict[str, Any] = {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "ff_dim": 32}
SIZES: dict[str, Any] = {"hidden_dim": 128, "num_layers": 2, "num_heads": 4, "ff_dim": 256}
STEPS, RATES = 200, (3e-4, 1e-3, 3e-3)
NOTHING_LEARNED = (
    "**No mechanism is right more often than the commonest class: so short a training teaches none, and neither "
    "the differences here nor the verdicts on them say what they could learn.**"
)
PLANS = {
    "tiny": Plan(SMALL, 512, 2, (1e-3,), (1, 2, 3), ("standard", "bsbr")),
    "quick": Plan(SIZES, 4096, STEPS, RATES[1:2], (), ("bsbr",)),
    "full": Plan(SIZES, 4096, STEPS, RATES, (1, 2, 3, 4, 5)),
}


def chunk(task: Classification) -> int:
    """Tokens of a chunk, and of a window: a power of two, at most 128, and at most an eighth of what a row holds.

    A row holds n tokens, or what the median document has of the training part, if that is less.
    """
    median = int(np.median([len(ids) for ids in encoded(task.corpus, "train")]))
    return min(128, 1 << (max(1, min(task.n, median) // 8).bit_length() - 1))


def models(plan: Plan, task: Classification) -> dict[str, ModelConfig]:
    """The backbone of each mechanism, for rows of a task."""
    part = chunk(task)
    return {name: ModelConfig(name, **plan.sizes, chunk_size=part, window_size=part) for name in plan.mechanisms}


def contest(
    plan: Plan, task: Classification, *, chosen: Mapping[Any, float] | None = None, judged: Classification | None = None
) -> learning.Contest:
    """The mechanisms of a plan, trained alike on a task and judged on its test part.

    Args:
        chosen: learning rates that were chosen at another length.
        judged: the same documents at another length, where they are to be judged at that.

    Raises:
        ValueError: a step has no room for one row.
    """
    if plan.tokens < task.n:
        raise ValueError(f"tokens of a step must hold a row of n = {task.n}, but are {plan.tokens}; read more a step")
    return learning.Contest(
        factor="mechanism",
        models=models(plan, task),
        task=task,
        training=Settings(steps=plan.steps, batch=plan.tokens // task.n, warm_up=plan.steps // 10),
        rates=plan.rates,
        seeds=plan.seeds,
        judge=functools.partial(judge, judged or task),
        classes=len(task.classes),
        chosen=chosen,
    )


# -- On the test part -----------------------------------------------------------------------------


def judge(task: Classification, run: Run) -> list[Row]:
    """Rows `accuracy` and `macro_f1` of a trained classifier on the test part, read in float32."""
    learner = run.learner()
    assert isinstance(learner, Classifier)
    right = list(labels(task.corpus, "test").values())
    return scores([task.classes[label] for label in told(learner, task, "test")], right)


@torch.inference_mode()
def told(learner: Classifier, task: Classification, part: str) -> NDArray[np.int64]:
    """The number of the label that a classifier gives to each document of a part, in their order."""
    lengths = [min(task.n, len(ids)) for ids in encoded(task.corpus, part)]
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    found = np.empty(len(lengths), dtype=np.int64)
    rows = max(1, READ_AT_ONCE // max(lengths))
    for start in range(0, len(by_length), rows):
        chosen = by_length[start : start + rows]
        batch = task.rows(part, chosen)
        found[chosen] = learner.logits(batch["input_ids"], batch["attention_mask"]).argmax(-1).numpy()
    return found


def baseline(name: str, task: Classification) -> list[Row]:
    """The same rows of what takes no model: the commonest class, or a bag of words, learned from pieces of n tokens.

    Args:
        name: of `BASELINES`.

    Raises:
        ValueError: there is no such baseline.
    """
    wanted, right = _texts(task, "test")
    known, said = _texts(task, "train")
    if name == MAJORITY:
        given = baselines.majority(list(labels(task.corpus, "train").values()), len(wanted))
    elif name == WORDS:
        given = baselines.bag_of_words(known, said, _texts(task, "validation"), wanted)
    else:
        raise ValueError(f"name must be one of {', '.join(BASELINES)}, not {name!r}")
    return scores(given, right)


def scores(given: Sequence[str], right: Sequence[str]) -> list[Row]:
    """`accuracy`, with the interval of a share of documents, and `macro_f1`, in %, of labels given to documents."""
    found = stats.share(sum(one == other for one, other in zip(given, right, strict=True)), len(right))
    return [row("accuracy", found), row("macro_f1", 100 * baselines.macro_f1(given, right), samples=len(right))]


def _texts(task: Classification, part: str) -> tuple[list[str], list[str]]:
    """What models read of a part, and its labels: the first n tokens of each document, and in training all pieces.

    Of a document that has more than `PIECES` there are fewer, evenly spaced.
    """
    pieces: list[list[int]] = []
    said: list[str] = []
    for ids, label in zip(encoded(task.corpus, part), labels(task.corpus, part).values(), strict=True):
        starts = range(0, len(ids) if part == "train" else 1, task.n)
        starts = starts[:: -(-len(starts) // PIECES)]
        pieces += [ids[start : start + task.n].tolist() for start in starts]
        said += [label] * len(starts)
    return tokenizer().decode_batch(pieces), said


def has_learned(table: pd.DataFrame, **where: Any) -> bool:
    """Whether a mechanism is right more often than the commonest class, beyond the spread of its seeds.

    Where none is, differences between mechanisms say nothing of what they could learn.

    Args:
        table: rows of `learning.hold` and of `baseline`.
        where: factors of these rows, such as task and n.
    """
    rows = select(table, "accuracy", learning_rate=None, seed=None, **where)
    level = float(rows[rows["mechanism"] == MAJORITY]["value"].iloc[0])
    return bool((rows[rows["mechanism"].isin(list(MECHANISMS))]["low"] > level).any())
