"""A contest gives each model a learning rate of its own, by one rule, and compares them seed by seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bsbr import MECHANISMS, ModelConfig, stats
from bsbr.show import learning as shown
from bsbr.store import Result, Sweep, journal, machine, only, row, select
from bsbr.studies import learning
from bsbr.studies.learning import Contest
from bsbr.training import Settings
from bsbr.training.runs import Run
from bsbr.training.tasks import Windows

SMALL = dict(hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16, chunk_size=4, window_size=4, key_dim=8)
MODELS = {name: ModelConfig(name, **SMALL) for name in ("standard", "bsbr", "linear")}
RATES, SEEDS = (0.01, 0.03, 0.1), (1, 2, 3)


def windows() -> Windows:
    """A stream in which each token says what comes next."""
    stream = np.arange(1500) * 5 % 31
    return Windows({"train": stream, "validation": stream[:200], "test": stream[:200]}, 16, vocab_size=32)


def judge(run: Run) -> list[dict[str, Any]]:
    found = run.record["quality"]
    return [
        row("accuracy", found),
        row("perplexity", 1000 / found),
        row("perplexity", 900 / found, position="late"),
    ]


@dataclass
class World:
    """What trainings come to, made up: by mechanism the best rate, the rate from which it diverges, and a quality."""

    best: dict[str, float]
    diverges: dict[str, float]
    quality: dict[str, float]
    trained: list[tuple[str, float, int]]

    def fit(self, config: ModelConfig, task: Any, settings: Settings, **_: Any) -> Any:
        name, rate, seed = config.mechanism, settings.learning_rate, settings.seed
        self.trained.append((name, rate, seed))
        gone = rate >= self.diverges.get(name, math.inf)
        loss = 2 + abs(math.log(rate / self.best.get(name, 0.03)))
        hard = {1: -10.0, 2: 0.0, 3: 10.0}.get(seed, 0.0)  # what a seed does to all alike
        record = {
            "diverged": 2 if gone else None,
            "validation": None if gone else {"loss": loss, "accuracy": 0.5},
            "quality": self.quality.get(name, 50) + hard + 0.1 * seed * len(name),
            "seconds": 2.0,
            "tokens": 1000,
            "machine": machine.describe(),
        }
        return SimpleNamespace(
            record=record, curve=pd.DataFrame({"loss": [4.0, 3.0], "gradient_norm": [rate, 2 * rate]})
        )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    for name in (journal.FRESH, journal.RETRY, journal.STAGING):
        monkeypatch.delenv(name, raising=False)
    made = World({}, {}, {}, [])
    monkeypatch.setattr(learning, "fit", made.fit)
    return made


def contest(**changes: Any) -> Contest:
    fixed = {"factor": "mechanism", "models": MODELS, "task": windows(), "training": Settings(steps=2, batch=2)}
    return Contest(**{**fixed, "rates": RATES, "seeds": SEEDS, "judge": judge, **changes})


def sweep() -> Sweep:
    return Sweep("benchmarks/toy", target="cpu", profile="tiny", parameters={})


def hold(against: str = "standard", **changes: Any) -> pd.DataFrame:
    return learning.hold(sweep(), contest(**changes), device="cpu", against=against, n=16, task="next")


def rates(table: pd.DataFrame, name: str, seed: int = 0) -> set[float]:
    rows = select(table, "diverged", mechanism=name, seed=seed)
    return {float(rate) for rate in rows["learning_rate"]}


# -- The grid -------------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_least_validation_loss_and_the_seeds_are_trained_at_it(world: World) -> None:
    world.best = {"standard": 0.03, "bsbr": 0.04}
    table = hold()
    assert learning.chosen(table, "mechanism") == {"standard": 0.03, "bsbr": 0.03, "linear": 0.03}
    assert rates(table, "bsbr") == set(RATES)  # the whole grid is in the table
    assert {(rate, seed) for name, rate, seed in world.trained if seed} == {(0.03, seed) for seed in SEEDS}


def test_a_run_that_diverged_is_never_chosen(world: World) -> None:
    world.best, world.diverges = {"bsbr": 0.1}, {"bsbr": 0.1}
    table = hold()
    assert learning.chosen(table, "mechanism")["bsbr"] == 0.03
    assert rates(table, "bsbr") == set(RATES)  # the best of the others is no end: what lies beyond diverges
    gone = only(table, "validation_loss", mechanism="bsbr", learning_rate=0.1, seed=0)
    assert (gone["status"], gone["reason"]) == ("not_available", "diverged in step 2")
    assert only(table, "diverged_runs", mechanism="bsbr", learning_rate="all")["value"] == pytest.approx(100 / 6)
    assert only(table, "diverged_runs", mechanism="bsbr", learning_rate=None)["value"] == 0


@pytest.mark.parametrize(
    ("best", "more", "found"),
    [
        (0.15, {0.333}, 0.1),
        (0.3, {0.333, 1.11}, 0.333),
        (5.0, {0.333, 1.11}, 1.11),
        (1e-6, {0.00333, 0.00111}, 0.00111),
    ],
)
def test_a_grid_whose_best_is_at_its_end_is_widened_twice_at_most(
    best: float, more: set[float], found: float, world: World
) -> None:
    world.best = {"linear": best}
    table = hold()
    assert rates(table, "linear") == set(RATES) | more and learning.chosen(table, "mechanism")["linear"] == found
    assert rates(table, "standard") == set(RATES)


def test_where_all_diverged_the_grid_goes_down_and_then_the_table_says_so(world: World) -> None:
    world.diverges = {"bsbr": 1e-9}
    table = hold()
    assert min(rates(table, "bsbr")) == 0.00111 and "bsbr" not in learning.chosen(table, "mechanism")
    for metric in ("learning_rate", "accuracy", "accuracy_difference"):
        found = only(table, metric, mechanism="bsbr", learning_rate=None, seed=None)
        assert found["status"] == "not_available" and found["reason"]
    assert select(table, "diverged_runs", mechanism="bsbr")["learning_rate"].tolist() == ["all"]


def test_rates_that_were_chosen_elsewhere_need_no_grid(world: World) -> None:
    table = hold(chosen={"standard": 0.5, "bsbr": 0.2, "linear": 0.1}, rates=())
    assert {(name, rate) for name, rate, _ in world.trained} == {("standard", 0.5), ("bsbr", 0.2), ("linear", 0.1)}
    assert {seed for *_, seed in world.trained} == set(SEEDS)
    assert learning.chosen(table, "mechanism")["bsbr"] == 0.2


def test_without_seeds_there_is_a_part_of_the_grid_and_nothing_else(world: World) -> None:
    world.best = {"bsbr": 100}
    table = hold(models={"bsbr": MODELS["bsbr"]}, seeds=(), rates=(0.03,))
    assert world.trained == [("bsbr", 0.03, 0)]
    assert set(table["metric"]) == {
        "parameters", "flops", "state_bytes", "validation_loss", "validation_accuracy", "diverged", "largest_gradient",
        "training_time", "training_speed",
    }  # fmt: skip


# -- Seeds ----------------------------------------------------------------------------------------


def test_means_and_differences_are_over_seeds_and_paired(world: World) -> None:
    world.quality = {"bsbr": 60}
    table = hold()
    runs = {name: select(table, "accuracy", mechanism=name, seed=None)["value"].iloc[0] for name in MODELS}
    each = {name: [only(table, "accuracy", mechanism=name, seed=seed)["value"] for seed in SEEDS] for name in MODELS}
    assert runs == {name: pytest.approx(np.mean(found)) for name, found in each.items()}
    found = only(table, "accuracy_difference", mechanism="bsbr")
    assert (found["value"], found["samples"], found["interval"]) == (pytest.approx(9.2, abs=1), 3, "Student t")
    expected = stats.normal_mean(np.subtract(each["bsbr"], each["standard"]))
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    alone = only(table, "accuracy", mechanism="bsbr", seed=None)
    assert found["high"] - found["low"] < 0.2 * (alone["high"] - alone["low"])  # what a seed does to all cancels
    gain = only(table, "perplexity_gain", mechanism="bsbr", position=None)
    ratios = [(1000 / b) / (1000 / a) for a, b in zip(each["bsbr"], each["standard"], strict=True)]
    assert gain["value"] == pytest.approx(np.mean(ratios)) and gain["value"] > 1
    assert only(table, "perplexity_gain", mechanism="bsbr", position="late")["value"] == pytest.approx(gain["value"])
    assert select(table, "accuracy_difference", mechanism="standard").empty


def test_differences_to_another_model_are_those_to_standard_the_other_way_round(world: World) -> None:
    world.quality = {"bsbr": 60}
    table = hold()
    other = learning.differences(table, contest(), "bsbr", n=16)
    assert set(other["against"]) == {"bsbr"} and "bsbr" not in set(other["mechanism"])
    here = only(table, "accuracy_difference", mechanism="bsbr")
    there = only(other, "accuracy_difference", mechanism="standard")
    assert [-there[name] for name in ("value", "low", "high")] == pytest.approx(
        [here["value"], here["high"], here["low"]]
    )
    assert len(other) == len(select(table, "accuracy_difference")) + len(select(table, "perplexity_gain"))
    with pytest.raises(ValueError, match="against must be one of standard, bsbr, linear, but is 'gau'"):
        learning.differences(table, contest(), "gau", n=16)


def test_costs_stand_beside_the_qualities_once_a_model(world: World) -> None:
    table = hold(seeds=())
    assert only(table, "state_bytes", mechanism="standard")["value"] >= 4 * 2 * 16 * 16  # keys and values of 16 tokens
    assert only(table, "parameters", mechanism="standard")["value"] > 32 * 16
    assert (table["n"] == 16).all() and (table["task"] == "next").all()


@pytest.mark.parametrize("name", MECHANISMS)
def test_widths_make_parameters_equal(name: str) -> None:
    sizes = dict(vocab_size=512, hidden_dim=64, ff_dim=256, key_dim=32)
    wanted = learning.parameters(ModelConfig("standard", **sizes))
    config = ModelConfig(name, **sizes)
    found = learning.with_parameters(config, wanted)
    step = 2 * found.hidden_dim * found.num_layers  # what one more column of each feed-forward layer has
    assert abs(learning.parameters(found) - wanted) <= step / 2
    assert replace(found, ff_dim=256) == config
    with pytest.raises(ValueError, match="wanted must be ≥"):
        learning.with_parameters(config, 1000)


def test_another_model_keeps_what_was_trained(world: World) -> None:
    hold(models={name: MODELS[name] for name in ("standard", "bsbr")})
    before = len(world.trained)
    hold()
    assert {name for name, *_ in world.trained[before:]} == {"linear"}
    hold(models={**MODELS, "bsbr": replace(MODELS["bsbr"], chunk_size=2)})
    assert {name for name, *_ in world.trained[before + 6 :]} == {"bsbr"}


def test_a_run_that_another_machine_trained_has_no_seconds_here(world: World) -> None:
    run = world.fit(MODELS["bsbr"], None, Settings(steps=2, learning_rate=0.03))
    assert {found["metric"]: found["value"] for found in learning.rows_of(run)}["training_speed"] == 500
    run.record["machine"] = {**run.record["machine"], "cpu": "another"}
    found = {one["metric"]: one for one in learning.rows_of(run)}
    assert found["training_time"]["value"] is None and "another machine: another" in found["training_time"]["reason"]
    assert found["validation_loss"]["value"] == 2


def test_a_loss_that_ends_above_its_beginning_has_diverged() -> None:
    def run(losses: list[float], gone: int | None = None) -> Any:
        return SimpleNamespace(record={"diverged": gone}, curve=pd.DataFrame({"loss": losses}))

    assert not learning.has_diverged(run([4, 9, 3])) and learning.has_diverged(run([4, 3, 9]))
    assert learning.has_diverged(run([4, 3], gone=3)) and learning.has_diverged(run([], gone=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {}}, "models must name one or more"),
        ({"rates": ()}, "rates must have one or more"),
        ({"rates": (0.1, 0.1)}, "rates must be positive, each once"),
        ({"seeds": (0, 1)}, "seeds must be fresh: each once, and not the grid's, which is 0"),
        ({"chosen": {"bsbr": 0.1}, "seeds": ()}, "seeds must have one or more"),
        ({"models": {"bsbr": MODELS["bsbr"]}}, "against must be one of bsbr, but is 'standard'"),
    ],
)
def test_what_is_no_contest_is_refused(changes: dict[str, Any], message: str, world: World) -> None:
    with pytest.raises(ValueError, match=message):
        hold(**changes)


def test_a_contest_trains_and_judges_real_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    monkeypatch.setattr("bsbr.training.runs.cache_folder", lambda: tmp_path)

    def real(run: Run) -> list[dict[str, Any]]:
        with torch.no_grad():
            batch = windows().rows("test", [0, 1])
            score = run.learner()(**batch)
        return [row("accuracy", 100 * float(score.right / score.targets))]

    training = Settings(steps=40, batch=4, precision="float32", warm_up=4)
    table = hold(
        models={"bsbr": MODELS["bsbr"]}, rates=(0.01,), seeds=(1,), training=training, judge=real, against="bsbr"
    )
    assert only(table, "accuracy", mechanism="bsbr", seed=1)["value"] > 30
    assert only(table, "validation_loss", mechanism="bsbr", seed=1)["value"] < 3


# -- What is said ---------------------------------------------------------------------------------


@pytest.fixture
def publish(world: World) -> Callable[..., Result]:
    def published(**changes: Any) -> Result:
        made = sweep()
        table = learning.hold(made, contest(**changes), device="cpu", n=16)
        baseline = pd.DataFrame([row("accuracy", 55.0, mechanism="bag of words", n=16)])
        return made.publish(pd.concat([table, baseline], ignore_index=True))

    return published


def test_a_sentence_says_who_differs_beyond_the_spread_of_seeds(world: World, publish: Callable[..., Result]) -> None:
    world.quality = {"standard": 50, "bsbr": 60, "linear": 50.4}
    result = publish()
    said = shown.differing(result, "accuracy_difference", n=16)
    assert said.startswith("Beyond the spread of seeds, BSBR (")
    assert "points) is better than standard attention; linear attention cannot be told from it." in said
    less = shown.differing(result, "perplexity_gain", n=16)
    assert less.startswith("Beyond the spread of seeds, BSBR (1.") and "×) is better" in less
    beaten = shown.beating(result, "accuracy", "bag of words", n=16)
    assert beaten == (
        "No model beats bag of words (55.0 %); standard attention, BSBR and linear attention cannot be told from it."
    )


def test_where_no_seed_was_trained_nothing_is_compared(publish: Callable[..., Result]) -> None:
    result = publish(models={"bsbr": MODELS["bsbr"]}, seeds=(), rates=(0.03,))
    assert shown.differing(result, "accuracy_difference", n=16) == shown.NOT_COMPARED


def test_the_grid_is_drawn_from_a_table_that_was_read_back(publish: Callable[..., Result]) -> None:
    chart = shown.grid(publish(), 0, "The grid", n=16)
    assert {line.name: list(line.x) for line in chart.data} == {name: list(RATES) for name in MODELS}
