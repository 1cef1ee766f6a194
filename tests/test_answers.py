"""What a model recalls and answers: by distance, in stages of training, and beside guesses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pinned import skip_without

from bsbr import ModelConfig
from bsbr.store import Row
from bsbr.studies import answers, starts
from bsbr.training import Settings, fit
from bsbr.training.heads import IGNORED
from bsbr.training.tasks import Questions, Recall, Stages
from bsbr.training.tasks.questions import Answer
from bsbr.training.tokens import tokenizer


@pytest.fixture(scope="module")
def fetched() -> None:
    skip_without("brown", "emails", "speeches")


def at(rows: list[Row], metric: str, **factors: Any) -> Row:
    """The one row of a metric that has these factors and no other."""
    measured = {"metric", "value", "unit", "low", "high", "interval", "samples", "over", "status", "reason"}
    (found,) = [
        row for row in rows if row["metric"] == metric and {k: row[k] for k in row.keys() - measured} == factors
    ]
    return found


class Sees:
    """Recalls what lies at most so many tokens back, and nothing else."""

    def __init__(self, task: Recall, back: int) -> None:
        self.task, self.back = task, back
        self.embedding = SimpleNamespace(weight=torch.eye(task.vocab_size))

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(ids)
        for row, tokens in enumerate(ids.tolist()):
            for place, token in enumerate(tokens):
                told = [i for i in range(0, 2 * self.task.pairs, 2) if tokens[i] == token and i < place]
                if told and place - told[0] - 1 <= self.back:
                    found[row, place] = tokens[told[0] + 1]
        return F.one_hot(found, self.task.vocab_size).float()


def test_a_model_that_sees_eight_tokens_back_recalls_those_and_no_others() -> None:
    task = Recall(2, 32, vocab_size=64, test_rows=90)
    run: Any = SimpleNamespace(learner=lambda: SimpleNamespace(model=Sees(task, 8)))
    rows = answers.recalled(run, [task], rows=200, ends=(8, 16, 32), batch=40)
    near, middle, far = (at(rows, "accuracy", pairs=2, n=32, distance=end) for end in (8, 16, 32))
    assert (near["value"], middle["value"], far["value"]) == (100, 0, 0)
    whole = at(rows, "accuracy", pairs=2, n=32)
    assert whole["samples"] == 90 * 2 == sum(row["samples"] for row in (near, middle, far))
    assert whole["value"] == pytest.approx(100 * near["samples"] / 180) and 0 < whole["value"] < 100


def test_chances_are_one_in_as_many_as_there_are() -> None:
    rows = answers.chances(Recall(4, 64, vocab_size=256))
    assert at(rows, "accuracy", pairs=4, n=64, mechanism=answers.ANY_VALUE)["value"] == 100 / 128
    assert at(rows, "accuracy", pairs=4, n=64, mechanism=answers.OWN_VALUE)["value"] == 25


@pytest.mark.usefixtures("fetched")
def test_a_thing_of_the_text_is_right_as_often_as_there_are_things() -> None:
    for people in (1, 4):
        rows = answers.guessed(Questions(256, people=people, kinds=1), rows=30, training_rows=40)
        drawn = at(rows, "exact_match", mechanism=answers.ANY_THING, n=256)["value"]
        assert drawn == pytest.approx(100 / people)
        assert at(rows, "f1", mechanism=answers.ANY_THING, n=256)["value"] >= drawn
        assert at(rows, "exact_match", mechanism=answers.COMMONEST, n=256)["value"] < 10


def test_answers_are_averaged_by_length_and_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(model: object, task: Questions, part: str, indices: range) -> list[Answer]:
        assert (part, len(indices)) == ("test", 2)
        return [Answer("a red cat", "red cat", 1.0, 1.0, 10), Answer("red dog", "red cat", 0.0, 0.5, task.n - 50)]

    monkeypatch.setattr(answers, "ask", ask)
    run: Any = SimpleNamespace(learner=lambda: SimpleNamespace(model=None))
    rows = answers.answered(run, [Questions(256), Questions(512)], rows=2, ends=(64, 256, 512))
    for n, end in ((256, 256), (512, 512)):
        assert at(rows, "f1", n=n)["value"] == 75 and at(rows, "exact_match", n=n)["value"] == 50
        assert [at(rows, "f1", n=n, distance=each)["value"] for each in (64, end)] == [100, 50]
    assert {row["distance"] for row in rows if row.get("distance")} == {64, 256, 512}


@pytest.mark.usefixtures("fetched")
def test_stages_take_turns_and_are_judged_by_one() -> None:
    short, long, judged = Questions(160, 2, 1), Questions(256, 2, 1), Questions(200, 2, 1)
    task = Stages(((3, short), (5, long)), judged)
    start = 7 << 32  # where the rows of the seventh seed begin
    first = task.rows("train", [start, start + 2])
    assert torch.equal(first["input_ids"], short.rows("train", [start, start + 2])["input_ids"])
    mixed = task.rows("train", [start + 2, start + 3, start + 99])
    assert mixed["input_ids"].shape == mixed["labels"].shape == (3, 256)
    assert torch.equal(mixed["input_ids"][1:], long.rows("train", [start + 3, start + 99])["input_ids"])
    assert (mixed["labels"][0, 160:] == IGNORED).all()
    for part in ("validation", "test"):
        assert task.size(part) == judged.size(part)
        assert torch.equal(task.rows(part, [1])["labels"], judged.rows(part, [1])["labels"])
    assert task.fingerprint() != Stages(((4, short), (5, long)), judged).fingerprint()
    with pytest.raises(ValueError, match="stages must have one vocabulary"):
        Stages(((3, Recall(4, 64, vocab_size=512)),), judged)


def test_a_stage_whose_rows_end_begins_again() -> None:
    few = Recall(2, 16, vocab_size=64, train_rows=5)
    task = Stages(((12, few), (1, Recall(4, 32, vocab_size=64))), few)
    rows = task.rows("train", range(12))["input_ids"]
    assert torch.equal(rows[:5], rows[5:10]) and len(rows[:5].unique(dim=0)) == 5
    assert task.rows("train", [12])["input_ids"].shape == (1, 32)


@pytest.mark.usefixtures("fetched")
def test_every_question_of_a_training_row_is_answered_by_its_label() -> None:
    task, plain = Questions(512, people=3, kinds=2, asked=6), Questions(512, people=3, kinds=2)
    for index in range(20):
        row = task.rows("train", [index])
        ids, labels = row["input_ids"][0], row["labels"][0]
        question = task.question("train", index)
        wanted = (
            tokenizer().decode(labels[labels != IGNORED].tolist(), skip_special_tokens=False).split("<|endoftext|>")
        )
        given = [answer.strip() for answer in wanted if answer]
        assert sorted(given) == sorted(question.things) and given[-1] == question.answer
        text = tokenizer().decode(ids.tolist(), skip_special_tokens=False)
        assert all(f"Answer: {answer}" in text for answer in given[:-1]) and text.count("Question:") == 6
        assert plain.question("train", index).answer == question.answer
    test = task.rows("test", [0])
    assert torch.equal(test["labels"], plain.rows("test", [0])["labels"])
    with pytest.raises(ValueError, match="forms must be 1 … 3 and asked 1 … people · kinds = 6, got 1 and 7"):
        Questions(512, people=3, kinds=2, forms=1, asked=7)


def test_a_larger_start_multiplies_the_first_matrices_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "cache_folder", lambda: tmp_path)
    task = Recall(2, 16, vocab_size=64, test_rows=4)
    config = ModelConfig("bsbr", hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16, chunk_size=4, short_conv=2)
    settings = Settings(steps=1, batch=2, learning_rate=1e-9, precision="float32")
    plain = fit(config, task, settings, folder=tmp_path / "plain", device="cpu", quiet=True).learner()
    run = starts.fit_from(3, config, task, settings, device="cpu")
    for (name, own), (_, other) in zip(run.learner().named_parameters(), plain.named_parameters(), strict=True):
        drawn = own.ndim >= 2 and "short_conv" not in name
        assert torch.allclose(own, (3 if drawn else 1) * other, atol=1e-6), name
    assert starts.fit_from(3, config, task, settings, device="cpu").folder == run.folder
    assert run.record["settings"]["steps"] == run.record["steps"] == 1
    with pytest.raises(ValueError, match="times must be positive, but is 0"):
        starts.fit_from(0, config, task, settings)
