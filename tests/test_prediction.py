"""What is read off trained language models: perplexity by position, beside n-grams, and how soon a run had learned."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bsbr import MECHANISMS, ModelConfig, TransformerLM, stats
from bsbr.store import machine, only, tidy
from bsbr.studies import convergence, prediction
from bsbr.training import LanguageModel, Settings, evaluate
from bsbr.training.ngrams import Ngrams
from bsbr.training.tasks import Windows

SMALL = dict(vocab_size=32, hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16, chunk_size=4, window_size=4, key_dim=8)


def windows(n: int = 40, tokens: int = 2000) -> Windows:
    stream = np.random.default_rng(0).integers(1, 32, tokens)
    return Windows(dict.fromkeys(("train", "validation", "test"), stream), n, vocab_size=32)


def learner(mechanism: str = "standard") -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(TransformerLM(ModelConfig(mechanism, **SMALL))).eval()


# -- Perplexity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "ends"), [(20, [20]), (32, [32]), (100, [32, 64, 100]), (256, [32, 64, 128, 256])])
def test_stretches_end_at_doubled_positions_and_hold_every_token(n: int, ends: list[int]) -> None:
    assert prediction.stretches(n) == ends


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_perplexity_is_that_of_the_same_rows_and_its_stretches_make_it_up(mechanism: str) -> None:
    model, task, far = learner(mechanism), windows(), windows(130)
    run: Any = SimpleNamespace(learner=lambda: model)
    table = tidy(pd.DataFrame(prediction.judge(run, task, 7, far, 3)))
    own = only(table, "perplexity", position=None, read=None)["value"]
    assert math.log(own) == pytest.approx(evaluate(model, task, "test", rows=7)["loss"], rel=1e-5)
    first, last = (only(table, "perplexity", read=40, position=end)["value"] for end in (32, 40))
    assert (32 * math.log(first) + 8 * math.log(last)) / 40 == pytest.approx(math.log(own), rel=1e-5)
    assert list(table[(table["read"] == 130).fillna(False)]["position"]) == [32, 64, 128, 130]
    with pytest.raises(ValueError, match="rows must be ≥ 1"):
        prediction.losses_by_position(model.model, task, 0)


def test_a_stretch_is_of_the_tokens_at_its_positions() -> None:
    stream = np.tile(np.concatenate([np.full(32, 5), np.full(32, 9)]), 20)
    task = Windows({part: np.append(5, stream) for part in ("train", "test")}, 64, vocab_size=32)

    class Nine(torch.nn.Module):
        """Sure of one token, whatever was read."""

        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(10.0 * torch.nn.functional.one_hot(torch.tensor(9), 32))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(*ids.shape, 32)

    losses = prediction.losses_by_position(Nine(), task, 5)
    assert losses[:32].min() > 9 and losses[32:].max() < 0.01


# -- n-grams --------------------------------------------------------------------------------------


def test_n_grams_count_what_the_run_has_read_each_token_once() -> None:
    task = windows()
    part = prediction.tokens_read(task, Settings(steps=3, batch=4, seed=1))
    assert len(part) == 3 * 4 * 40 and len(prediction.tokens_read(task, Settings(steps=100, batch=4))) == 49 * 40
    rows = task.streams["train"][: 49 * 40].reshape(49, 40)
    starts = [int(np.flatnonzero((rows == one).all(1))[0]) for one in part.reshape(-1, 40)]
    assert starts == sorted(starts) and len(set(starts)) == 12


def test_the_perplexity_of_n_grams_is_of_the_tokens_that_models_predict() -> None:
    task, training = windows(), Settings(steps=3, batch=4)
    (found,) = prediction.ngram(task, training, 5, order=1, seed=1, n=40)
    counted = Ngrams(prediction.tokens_read(task, Settings(steps=3, batch=4, seed=1)), 1, 32)
    assert found["value"] == pytest.approx(counted.perplexity(task.streams["test"][1 : 5 * 40 + 1]))
    other = prediction.ngram(task, training, 5, order=1, seed=2)[0]
    assert other["value"] != found["value"]
    table = tidy(pd.DataFrame([{**one, "n": 40, "seed": seed} for seed, one in ((1, found), (2, other))]))
    (mean,) = prediction.over_seeds(table, ["n"])
    assert (mean["n"], mean["value"]) == (40, stats.normal_mean([found["value"], other["value"]]).value)


# -- Convergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "expected"),
    [([4.0, 2.0, 2.0], 1.99), ([4.0, 2.0, 3.0], 1.99), ([2.0, 4.0, 2.0], 1.0), ([4.0, 3.0, 2.0], 2.98)],
)
def test_a_run_has_converged_when_it_is_first_near_its_best(losses: list[float], expected: float) -> None:
    assert convergence.epochs_to_converge([1.0, 2.0, 3.0], losses, near=0.01) == pytest.approx(expected)


def test_losses_that_are_no_curve_are_refused() -> None:
    for epochs, losses in (([], []), ([1.0], [2.0, 3.0])):
        with pytest.raises(ValueError, match="losses must be one for each of one look or more"):
            convergence.epochs_to_converge(epochs, losses)


def test_the_operations_of_training_include_the_head() -> None:
    one, other = (ModelConfig("linear", **{**SMALL, "vocab_size": size}) for size in (32, 132))
    found = convergence.flops_of_a_row(other, 64) - convergence.flops_of_a_row(one, 64)
    assert found == 3 * 2 * 64 * 16 * 100


def test_a_curve_is_told_by_tokens_seconds_and_operations() -> None:
    curve = pd.DataFrame(
        {"tokens": [100, 200, 300, 400], "seconds": [1.0, 2.0, 3.0, 4.0], "validation_loss": [None, 4.0, None, 2.0],
         "validation_accuracy": [None, 0.1, None, 0.25]}
    )  # fmt: skip
    record = {"validation": {"loss": 2.0, "accuracy": 0.25}, "model": {"mechanism": "linear", **SMALL}}
    run: Any = SimpleNamespace(curve=curve, record={**record, "machine": machine.describe()})
    table = tidy(pd.DataFrame(convergence.judge(run, epoch=200, n=50)))
    assert only(table, "final_loss")["value"] == 2 and only(table, "accuracy")["value"] == 25
    assert only(table, "epochs_to_converge")["value"] == pytest.approx(1 + (4 - 2.02) / 2)
    operations = convergence.flops_of_a_row(ModelConfig(**record["model"]), 50)
    assert only(table, "training_flops", tokens=400)["value"] == operations * 8
    assert only(table, "training_time", tokens=200)["value"] == 2
    run.record["machine"] = {**run.record["machine"], "cpu": "another"}
    assert "training_time" not in {one["metric"] for one in convergence.judge(run, epoch=200, n=50)}
