"""Who tells documents apart: each is asked about the same documents, and reads no further than the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from bsbr.mechanisms import MECHANISMS
from bsbr.store import row, tidy
from bsbr.studies import classifying
from bsbr.training.tasks import Classification, classification

LABELS = ("left", "right", "third")
SIZES = {"train": 12, "validation": 6, "test": 9}
LENGTHS = (9, 30, 5, 12, 40)  # in turn


def document(number: int, part: str) -> np.ndarray:
    """Tokens whose first one says the label, and the others nothing."""
    ids = np.full(LENGTHS[number % len(LENGTHS)], 3 + number % 2, dtype=np.int64)
    ids[0] = number % 3
    return ids


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus called toys."""

    def encoded(corpus: str, part: str) -> tuple[np.ndarray, ...]:
        return tuple(document(number, part) for number in range(SIZES[part]))

    def labels(corpus: str, part: str) -> dict[str, str]:
        return {f"{part} {number}": LABELS[number % 3] for number in range(SIZES[part])}

    class Words:
        def decode_batch(self, batch: list[list[int]]) -> list[str]:
            return [" ".join(f"word{'abcdef'[token]}" for token in ids) for ids in batch]

    for module in (classification, classifying):
        monkeypatch.setattr(module, "encoded", encoded)
        monkeypatch.setattr(module, "labels", labels)
    monkeypatch.setattr(classifying, "tokenizer", Words)


class FirstToken:
    """A classifier that goes by the first token of each row, and keeps how much it was given at once."""

    def __init__(self) -> None:
        self.longest, self.rows = 0, 0

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.longest, self.rows = max(self.longest, input_ids.shape[1]), max(self.rows, len(input_ids))
        assert attention_mask[:, 0].all()
        return torch.nn.functional.one_hot(input_ids[:, 0], 3).float()


@pytest.mark.usefixtures("toys")
def test_each_document_gets_its_own_label_whatever_the_order_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifying, "READ_AT_ONCE", 48)
    task, learner = Classification("toys", 16), FirstToken()
    told = classifying.told(learner, task, "test")  # type: ignore[arg-type]
    assert told.tolist() == [number % 3 for number in range(SIZES["test"])]
    assert (learner.longest, learner.rows) == (16, 3)


@pytest.mark.usefixtures("toys")
def test_a_bag_of_words_reads_as_far_as_the_models_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Classification("toys", 5)
    assert values(classifying.baseline(classifying.WORDS, task)) == {"accuracy": 100, "macro_f1": 100}
    whole = classifying.encoded

    def later(corpus: str, part: str) -> tuple[np.ndarray, ...]:
        """The same, with what tells the label behind the fifth token."""
        return tuple(np.concatenate([np.full(5, 3), ids]) for ids in whole(corpus, part))

    monkeypatch.setattr(classifying, "encoded", later)
    assert values(classifying.baseline(classifying.WORDS, task))["accuracy"] < 50
    assert values(classifying.baseline(classifying.WORDS, Classification("toys", 6)))["accuracy"] == 100


@pytest.mark.usefixtures("toys")
def test_the_commonest_class_is_right_for_its_share_and_has_an_interval_over_documents() -> None:
    rows = classifying.baseline(classifying.MAJORITY, Classification("toys", 8))
    assert values(rows) == pytest.approx({"accuracy": 100 / 3, "macro_f1": 100 / 6})
    assert rows[0]["interval"] == "Clopper-Pearson" and rows[0]["samples"] == SIZES["test"]
    with pytest.raises(ValueError, match="name must be one of majority class, bag of words, not 'tarot'"):
        classifying.baseline("tarot", Classification("toys", 8))


@pytest.mark.parametrize(
    ("n", "lengths", "wanted"), [(512, 9000, 64), (2048, 9000, 128), (512, 250, 16), (64, 9000, 8), (16, 3, 1)]
)
def test_a_chunk_is_at_most_an_eighth_of_what_is_read(
    n: int, lengths: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifying, "encoded", lambda corpus, part: (np.zeros(lengths, dtype=np.int64),) * 3)
    assert classifying.chunk(Classification("toys", n)) == wanted <= max(1, min(n, lengths) / 8)


@pytest.mark.usefixtures("toys")
def test_every_length_reads_as_many_tokens_in_a_step_and_judging_changes_no_training() -> None:
    plan: Any = classifying.PLANS["full"]
    short, long = (classifying.contest(plan, Classification("toys", n)) for n in (512, 2048))
    assert short.training.batch * 512 == long.training.batch * 2048 == plan.tokens
    assert list(short.models) == list(MECHANISMS)
    whole = classifying.contest(plan, Classification("toys", 2048), judged=Classification("toys", 8192))
    assert (whole.training, whole.models, whole.task) == (long.training, long.models, long.task)
    with pytest.raises(ValueError, match="must hold a row of n = 8192, but are 4096"):
        classifying.contest(plan, Classification("toys", 8192))


@pytest.mark.parametrize(("low", "learned"), [(17.1, False), (17.3, True)])
def test_to_have_learned_is_to_beat_the_commonest_class_beyond_the_spread_of_seeds(low: float, learned: bool) -> None:
    found = {"low": low, "high": 30, "interval": "Student t", "samples": 5}
    rows = [
        row("accuracy", 17.2, mechanism=classifying.MAJORITY, n=64),
        row("accuracy", 50, low=40, high=60, interval="Student t", samples=5, mechanism=classifying.WORDS, n=64),
        row("accuracy", 25, mechanism="bsbr", n=64, **found),
        row("accuracy", 90, mechanism="bsbr", n=64, learning_rate=0.1, seed=1, **(found | {"low": 80, "high": 95})),
        row("accuracy", 90, mechanism="bsbr", n=128, **(found | {"low": 80, "high": 95})),
    ]
    assert classifying.has_learned(tidy(pd.DataFrame(rows)), n=64) == learned


def values(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows}
