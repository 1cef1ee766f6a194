"""Charts, tables and numbers look the same everywhere, and reading them needs no PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bsbr.show import figures
from bsbr.store import Result, provenance, row, tidy


def test_results_claims_and_figures_are_read_without_pytorch() -> None:
    code = "import sys, bsbr.store, bsbr.claims, bsbr.show.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=provenance.ROOT).returncode == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.012345, "0.0123"), (16384, "16,384"), (2073936.4, "2,073,936"), (None, "–"), (float("nan"), "–"),
        (0, "0"), (0.0, "0"), (-1.5, "−1.50"), (float("inf"), "∞"), (pd.NA, "–"), (99.96, "100.0"),
    ],
)  # fmt: skip
def test_numbers_are_shown_with_three_digits(value: Any, text: str) -> None:
    assert figures.number(value) == text


def test_a_chart_shows_intervals_and_leaves_out_what_failed() -> None:
    rows = [
        row("time", n / 7, low=n / 8, high=n / 6, interval="order statistics", samples=9, n=n, mechanism="bsbr")
        for n in (64, 256)
    ]
    rows.append(row("time", None, status="out_of_memory", reason="gone", n=128, mechanism="bsbr"))
    chart = figures.lines(tidy(pd.DataFrame(rows)), "n", log_x=True)
    assert list(chart.data[0].x) == [64, 256]
    assert chart.data[0].error_y.array[0] == pytest.approx(64 / 6 - 64 / 7)
    assert chart.layout.yaxis.title.text == "Time (s)"


def test_what_a_record_says_is_text_on_a_page() -> None:
    planted = "<img src=x onerror=alert(1)> [here](javascript:alert) `code` $x$"
    machine = {"cpu": planted, "cores": 2, "threads": 2, "gpu": None}
    group = {"commit": planted, "clean": True, "packages": {}, "machine": machine}
    record = {"ended": "2026-01-01", "measured": [group, {**group, "clean": False}]}
    line = figures.provenance_line(Result("group/name", "cpu", "full", pd.DataFrame(), record, Path("name.csv")))
    assert "<img" not in line and "[here](" not in line and "`code`" not in line and "$x$" not in line
    assert "with uncommitted changes" in line


@pytest.mark.parametrize(
    ("cores", "threads", "said"),
    [(2, 2, "2 cores, 2 threads"), (2, 1, "2 cores, 1 thread"), (1, None, "1 core, 1 thread")],
)
def test_one_thread_is_no_threads(cores: int, threads: int | None, said: str) -> None:
    machine = {"cpu": "a processor", "cores": cores, "threads": threads, "gpu": None}
    group = {"commit": "", "clean": True, "packages": {}, "machine": machine}
    record = {"ended": "2026-01-01", "measured": [group]}
    line = figures.provenance_line(Result("group/name", "cpu", "full", pd.DataFrame(), record, Path("name.csv")))
    assert f"no commit on a processor, {said};" in line


def test_a_table_can_be_shown_in_another_unit() -> None:
    rows = pd.DataFrame(
        [row("time", 0.002, low=0.001, high=0.003, interval="order statistics", samples=9, n=1, size=8)]
    )
    assert figures.pivot(rows, "size", "n", scale=1000).loc[0, 1] == "2.00 (1.00–3.00)"
    assert rows["value"].tolist() == [0.002]


def test_what_a_table_keeps_a_place_for_is_told_with_the_reason() -> None:
    rows = [
        row("accuracy", None, status="not_available", reason="not measured yet: another will", size=size)
        for size in (1, 2)
    ]
    rows.append(row("accuracy", None, status="not_available", reason="not measured: too long", size=3))
    rows.append(row("density", None, status="not_available", reason="there is one chunk", size=1))
    result = Result("experiments/a", "cpu", "full", tidy(pd.DataFrame(rows)), {}, Path("a.csv"))
    assert figures.missing(result) == "- Accuracy: not measured yet: another will.\n- Accuracy: not measured: too long."
