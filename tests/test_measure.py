"""The timer, the fit and the machine."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bsbr.measure import machine, scaling, speed

# -- Timer ----------------------------------------------------------------------------------------


def sleeper(seconds: float) -> speed.Task:
    return speed.Task(run=time.sleep, prepare=lambda: seconds)


def test_a_known_time_and_a_known_ratio_are_found() -> None:
    samples = speed.interleave({"short": sleeper(0.002), "long": sleeper(0.006)}, seconds=2)
    assert 0.002 <= speed.median(samples["short"]).value < 0.006
    times = speed.ratio(samples["long"], samples["short"])
    assert times.low <= times.value <= times.high
    assert 1.5 < times.value < 6


def test_tasks_take_turns_and_the_order_rotates() -> None:
    order: list[str] = []
    tasks = {name: speed.Task(run=lambda _, name=name: order.append(name)) for name in "ab"}
    speed.interleave(tasks, seconds=0, min_rounds=2, max_rounds=2, block=0)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == ["a", "b", "a"] or turns == ["a", "b"]
    assert order[0] == "a" and order[-1] == "a"


def test_what_is_prepared_is_not_on_the_clock() -> None:
    task = speed.Task(run=lambda _: None, prepare=lambda: time.sleep(0.02))
    assert speed.median(speed.interleave({"task": task}, seconds=0)["task"]).value < 0.01


def test_rounds_end_at_the_precision_or_the_time_but_not_before_the_least() -> None:
    steady = speed.interleave({"steady": sleeper(0.01)}, seconds=30, precision=0.5)
    assert len(steady["steady"]) < 30
    assert len(speed.interleave({"task": sleeper(0.001)}, seconds=0, precision=0)["task"]) == 7


def test_the_interval_of_a_median_holds_it_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        found = speed.median(generator.lognormal(size=15))  # skewed, with a median of 1
        held += found.low <= 1 <= found.high
    assert held >= 930


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60))
@settings(deadline=None)
def test_a_median_lies_in_its_interval_and_the_interval_among_the_samples(samples: list[float]) -> None:
    found = speed.median(np.array(samples))
    assert min(samples) <= found.low <= found.value <= found.high <= max(samples)
    assert found.samples == len(samples)


def test_a_cloned_state_shares_nothing() -> None:
    state = (torch.zeros(2), (torch.zeros(1), 3))
    copy = speed.clone(state)
    copy[0][0] = copy[1][0][0] = 7
    assert state[0].sum() == 0 and state[1][0].sum() == 0 and copy[1][1] == 3


# -- Fit ------------------------------------------------------------------------------------------


@given(st.floats(-1, 3), st.floats(1e-6, 1e3))
def test_an_exact_power_law_is_recovered(exponent: float, coefficient: float) -> None:
    n = [64, 128, 256, 512, 1024]
    fit = scaling.fit_power_law(n, [coefficient * x**exponent for x in n])
    assert fit.exponent == pytest.approx(exponent, abs=1e-6)
    assert fit.coefficient == pytest.approx(coefficient, rel=1e-5)


def test_the_interval_of_an_exponent_holds_it_nineteen_times_in_twenty() -> None:
    generator, n = np.random.default_rng(0), np.array([64, 128, 256, 512, 1024, 2048])
    held = 0
    for _ in range(500):
        fit = scaling.fit_power_law(n, n**1.5 * np.exp(generator.normal(0, 0.1, len(n))))
        held += fit.low <= 1.5 <= fit.high
    assert 460 <= held <= 490


@pytest.mark.parametrize("n, cost", [([1, 2], [1, 2]), ([1, 2, 3], [1, 2]), ([1, 2, 3], [1, 0, 3])])
def test_a_fit_refuses_what_has_no_power_law(n: list[float], cost: list[float]) -> None:
    with pytest.raises(ValueError, match="n and cost must be"):
        scaling.fit_power_law(n, cost)


@pytest.mark.parametrize(
    ("speedup", "crossing"),
    [
        ([0.5, 2.0, 4.0], 128**0.5 * 64**0.5),  # halfway between 64 and 128, on logarithmic axes
        ([0.5, 1.0, 4.0], 128),
        ([2.0, 2.0, 2.0], 64),
        ([2.0, 0.5, 2.0], 128**0.5 * 256**0.5),  # a gain that is lost again does not count
        ([2.0, 2.0, 0.5], None),
    ],
)
def test_the_crossover_is_where_a_gain_begins_to_stay(speedup: list[float], crossing: float | None) -> None:
    found = scaling.crossover([64, 128, 256], speedup)
    assert found == (crossing if crossing is None else pytest.approx(crossing))


# -- Machine --------------------------------------------------------------------------------------


def test_the_machine_is_described() -> None:
    here = machine.describe()
    assert here["cpu"] and here["cores"] >= 1 and here["memory_gib"] > 0
    assert here["threads"] == torch.get_num_threads()


def test_a_gpu_that_is_not_there_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(machine.DeviceNotFoundError, match=r"target='gpu' needs a CUDA GPU .* use target='cpu'"):
        machine.device("gpu")
    assert machine.device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="target must be 'cpu' or 'gpu', not 'tpu'"):
        machine.device("tpu")
