"""Rows of growth say what the curve in the table is: its exponents, slopes, crossovers and noise."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from bsbr import stats
from bsbr.store import row, tidy
from bsbr.studies import scaling

WHERE = {"mechanism": "bsbr"}


def table(name: str, costs: dict[int, Any], **where: Any) -> pd.DataFrame:
    return tidy(pd.DataFrame([row(name, cost, n=n, **{**WHERE, **where}) for n, cost in costs.items()]))


def timed(value: float) -> stats.Estimate:
    return stats.Estimate(value, value * 0.98, value * 1.02, 7, "order statistics")


def test_a_measured_exponent_has_an_interval_and_a_counted_one_has_none() -> None:
    times = table("time", {n: timed(3e-6 * n**2) for n in (64, 128, 256, 512)})
    exponent, r_squared = scaling.exponents(times, "time", WHERE, [(64, 512)])
    assert exponent["value"] == pytest.approx(2) and exponent["low"] < 2 < exponent["high"]
    assert (exponent["n_from"], exponent["n_to"], exponent["mechanism"]) == (64, 512, "bsbr")
    assert (r_squared["metric"], r_squared["value"]) == ("r_squared", pytest.approx(1))
    (counted,) = scaling.exponents(table("flops", {n: 7.0 * n for n in (64, 128, 256)}), "flops", WHERE, [(64, 256)])
    assert counted["value"] == pytest.approx(1)
    assert counted["low"] is None and counted["interval"] == ""


def test_an_exponent_needs_three_lengths_and_both_ends_of_its_range() -> None:
    times = table("time", {n: timed(n) for n in (64, 128, 512)})
    assert scaling.exponents(times, "time", WHERE, [(64, 128), (64, 1024), (32, 512)]) == []
    assert len(scaling.exponents(times, "time", WHERE, [(64, 512)])) == 2


def test_lengths_without_a_number_are_left_out() -> None:
    rows = [row("time", timed(n), n=n, **WHERE) for n in (64, 128, 256)]
    rows.append(row("time", None, status="too_long", reason="would take over 4 s", n=512, **WHERE))
    assert scaling.curve(tidy(pd.DataFrame(rows)), "time", WHERE)[0] == [64, 128, 256]


def test_slopes_go_from_half_of_n_to_n_only() -> None:
    times = table("time", {64: timed(1), 128: timed(4), 512: timed(8)})
    (slope,) = scaling.slopes(times, "time", WHERE)
    assert (slope["metric"], slope["n"], slope["value"]) == ("local_exponent", 128, pytest.approx(2))


def test_a_crossover_lies_between_lengths_or_is_infinite() -> None:
    gains = table("speedup", {64: timed(0.5), 256: timed(2), 1024: timed(4)})
    found = scaling.crossover(gains, "speedup", WHERE)
    assert found["value"] == pytest.approx(128) and found["low"] < 128 < found["high"]
    slower = table("speedup", {64: timed(0.5), 256: timed(0.6), 1024: timed(0.7)})
    never = scaling.crossover(slower, "speedup", WHERE)
    assert never["value"] == math.inf and never["status"] == "ok"
    assert never["reason"] == "no crossover up to n = 1,024"


def test_a_crossover_takes_three_lengths_up_to_the_longest_that_counts() -> None:
    gains = table("speedup", {64: timed(0.5), 256: timed(0.7), 512: timed(0.8), 1024: timed(4)})
    assert scaling.crossover(gains, "speedup", WHERE, longest=512)["value"] == math.inf
    assert scaling.crossover(gains, "speedup", WHERE, longest=256)["status"] == "not_available"


def test_noise_is_how_far_the_repeats_of_a_cell_differ() -> None:
    rows = [row("time", timed(value), repeat=repeat, **WHERE) for repeat, value in enumerate([1.0, 1.1, 1.05])]
    found = scaling.noise(tidy(pd.DataFrame(rows)), "time", WHERE)
    assert found["value"] == pytest.approx(10) and found["samples"] == 3
