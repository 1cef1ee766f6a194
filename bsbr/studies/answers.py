"""What a trained model recalls and answers on the test part, and what guessing would come to.

Each gives rows for all, and for classes by how many tokens back the fact stands: the column `distance` has the class's
far end, and the next smaller one is where it begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike

from bsbr.store import Row, row
from bsbr.training import Run
from bsbr.training.heads import IGNORED
from bsbr.training.tasks import Questions, Recall, ask
from bsbr.training.tasks.questions import exact_match, f1

ANY_THING, COMMONEST = "a thing of the text", "the commonest answer"
ANY_VALUE, OWN_VALUE = "any value", "a value of the row"


@torch.inference_mode()
def recalled(
    run: Run, tasks: Sequence[Recall], rows: int = 1000, ends: Sequence[int] = (), batch: int = 100
) -> list[Row]:
    """`accuracy` in % over the keys that the test part of each task asks for, with its `pairs` and `n`.

    Args:
        rows: of each test part, at most.
        ends: far ends of the classes, ascending, in tokens between a value and where it is to be told.
        batch: rows read at once.
    """
    model = run.learner().model
    found: list[Row] = []
    for task in tasks:
        right: list[bool] = []
        back: list[int] = []
        count = min(rows, task.size("test"))
        for start in range(0, count, batch):
            some = task.rows("test", range(start, min(count, start + batch)))
            ids, labels = some["input_ids"], some["labels"]
            wanted = labels != IGNORED
            logits = F.linear(model.encode(ids)[wanted], model.embedding.weight)
            right += (logits.argmax(-1) == labels[wanted]).tolist()
            which, place = wanted.nonzero(as_tuple=True)
            told = ids[which, 1 : 2 * task.pairs : 2] == labels[wanted][:, None]
            back += (place - 2 * told.int().argmax(1) - 1).tolist()
        found += [{"pairs": task.pairs, "n": task.n, **row} for row in by_distance({"accuracy": right}, back, ends)]
    return found


def answered(run: Run, tasks: Sequence[Questions], rows: int = 200, ends: Sequence[int] = ()) -> list[Row]:
    """`f1` and `exact_match` in % over the questions of the test part of each task, with its `n`.

    Args:
        rows: of each test part, at most.
        ends: far ends of the classes, ascending, in tokens between a fact and the question.
    """
    model = run.learner().model
    found: list[Row] = []
    for task in tasks:
        given = ask(model, task, "test", range(min(rows, task.test_rows)))
        scores = {"f1": [one.f1 for one in given], "exact_match": [one.exact_match for one in given]}
        found += [{"n": task.n, **each} for each in by_distance(scores, [one.distance for one in given], ends)]
    return found


def guessed(task: Questions, rows: int = 200, training_rows: int = 2000) -> list[Row]:
    """`f1` and `exact_match` in % of what answers without reading, in place of a `mechanism`, with the task's `n`.

    `ANY_THING` draws one of the things that the text tells of: what is expected of it is computed, not drawn.
    `COMMONEST` is the commonest answer of the training part; of equally common ones the first in order.
    """
    asked = [task.question("test", index) for index in range(min(rows, task.test_rows))]
    answers = Counter(task.question("train", index).answer for index in range(training_rows))
    commonest = min(answers, key=lambda answer: (-answers[answer], answer))
    guesses: dict[str, list[tuple[str, ...]]] = {
        ANY_THING: [question.things for question in asked],
        COMMONEST: [(commonest,)] * len(asked),
    }
    found: list[Row] = []
    for name, given in guesses.items():
        for metric, score in {"f1": f1, "exact_match": exact_match}.items():
            expected = [
                np.mean([score(one, question.answer) for one in some])
                for some, question in zip(given, asked, strict=True)
            ]
            found.append(row(metric, 100 * float(np.mean(expected)), samples=len(asked), mechanism=name, n=task.n))
    return found


def chances(task: Recall) -> list[Row]:
    """`accuracy` in % of what recalls nothing, in place of a `mechanism`: any value, or one of the row's own.

    Each with `pairs` and `n`.
    """
    values = task.vocab_size - task.vocab_size // 2
    return [
        row("accuracy", 100 / values, mechanism=ANY_VALUE, pairs=task.pairs, n=task.n),
        row("accuracy", 100 / task.pairs, mechanism=OWN_VALUE, pairs=task.pairs, n=task.n),
    ]


def by_distance(scores: Mapping[str, Sequence[float]], distances: ArrayLike, ends: Sequence[int] = ()) -> list[Row]:
    """The mean of each score in %, over all, and over each class of distances that has any.

    Args:
        scores: by metric, each in [0, 1], one a question.
        distances: tokens, one a question.
        ends: far ends of the classes, ascending; what is farther is in none.
    """
    back = np.asarray(distances)
    classes = {end: (start < back) & (back <= end) for start, end in zip([-1, *ends], ends, strict=False)}
    rows = []
    for name, found in scores.items():
        values = np.asarray(found, float)
        rows.append(row(name, 100 * float(values.mean()), samples=len(values)))
        rows += [
            row(name, 100 * float(values[mine].mean()), samples=int(mine.sum()), distance=end)
            for end, mine in classes.items()
            if mine.any()
        ]
    return rows
