"""The store keeps what was measured, writes tables whole, and says which numbers another run reproduced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bsbr import claims, figures, files, provenance, results
from bsbr.metrics import METRICS
from bsbr.results import ResultError, Sweep, row

SCALE = 2.0


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    for name in ("BSBR_FRESH", "BSBR_STAGING"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


class Meter:
    """A stand-in for something slow: counts how often it was asked, and can be told to fail at some n."""

    def __init__(self, failing: dict[int, BaseException] | None = None) -> None:
        self.calls: list[int] = []
        self.failing = failing or {}

    def sweep(self, **changes: Any) -> Sweep:
        fixed: dict[str, Any] = {"target": "cpu", "profile": "full", "parameters": {"a": 1}, "code": []}
        return Sweep("group/name", **{**fixed, **changes})

    def run(self, lengths: tuple[int, ...] = (64, 128), **changes: Any) -> pd.DataFrame:
        def measure(n: int) -> list[dict[str, Any]]:
            self.calls.append(n)
            if n in self.failing:
                raise self.failing[n]
            return [row("time", n / 7, low=n / 8, high=n / 6, samples=9, mechanism="bsbr")]

        return self.sweep(**changes).measure([{"n": n} for n in lengths], measure)


# -- Measuring ------------------------------------------------------------------------------------


def test_a_cell_is_measured_once() -> None:
    meter = Meter()
    first, second = meter.run(), meter.run()
    assert meter.calls == [64, 128]
    pd.testing.assert_frame_equal(first, second)
    assert list(first.columns) == ["n", "mechanism", *results.MEASURED]


def test_an_interrupted_sweep_goes_on_from_where_it_was() -> None:
    with pytest.raises(KeyboardInterrupt):
        Meter(failing={128: KeyboardInterrupt()}).run((64, 128, 256))
    meter = Meter()
    assert list(meter.run((64, 128, 256))["n"]) == [64, 128, 256]
    assert meter.calls == [128, 256]


@pytest.mark.parametrize("change", [{"parameters": {"a": 2}}, {"seed": 1}, {"code": [json]}])
def test_what_a_number_depends_on_decides_whether_it_is_measured_again(change: dict[str, Any]) -> None:
    meter = Meter()
    meter.run()
    meter.run(**change)
    assert meter.calls == [64, 128, 64, 128]


def test_a_changed_source_is_measured_again_and_a_missing_one_is_named(data_folder: Path) -> None:
    source, meter = data_folder / "speech.txt", Meter()
    for text in ("one", "one", "two"):
        source.write_text(text)
        meter.run((64,), sources=[source])
    assert meter.calls == [64, 64]
    source.unlink()
    with pytest.raises(FileNotFoundError, match=r"speech\.txt is missing; run: python -m bsbr\.tasks\.sources"):
        meter.run(sources=[source])


def test_fresh_forgets_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()
    meter.run()
    monkeypatch.setenv("BSBR_FRESH", "1")
    meter.run()
    assert meter.calls == [64, 128, 64, 128]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_cell_out_of_memory_is_a_row_that_says_so(error: Exception) -> None:
    table = Meter(failing={128: error}).run()
    assert list(table["status"]) == ["ok", "out_of_memory"]
    assert table["reason"].iloc[1]


def test_any_other_error_is_not_swallowed() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        Meter(failing={128: RuntimeError("a bug")}).run()


# -- Fingerprints ---------------------------------------------------------------------------------


def _helper(n: float) -> float:
    return n * SCALE


def _measure(n: float) -> list[float]:
    return [_helper(value) for value in (n, n + 1)]


def test_a_fingerprint_ignores_comments_and_docstrings_but_no_code(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file, seen = tmp_path / "some_module.py", []
    for text in (
        "def f():\n    return 1\n",
        '"""Why."""\ndef f():\n    # how\n    return 1\n',
        "def f():\n    return 2\n",
    ):
        file.write_text(text)
        import some_module  # type: ignore[import-not-found]

        seen.append(provenance.fingerprint([some_module]))
    assert seen[0] == seen[1] != seen[2]


def test_a_function_brings_the_helpers_and_constants_that_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    before = provenance.fingerprint([_measure])
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    changed_constant = provenance.fingerprint([_measure])
    monkeypatch.undo()
    monkeypatch.setattr(sys.modules[__name__], "_helper", _other_helper)
    assert len({before, changed_constant, provenance.fingerprint([_measure])}) == 3


def _other_helper(n: float) -> float:
    return n + SCALE


def test_a_module_brings_the_project_modules_that_it_imports() -> None:
    import bsbr.model

    trees: dict[str, str] = {}
    provenance._add_module("bsbr.model", trees)
    assert {"bsbr.model", "bsbr.mixers", "bsbr.attention.bsbr", "bsbr.attention.standard"} <= trees.keys()
    assert not {"bsbr.results", "bsbr.figures"} & trees.keys()
    assert provenance.fingerprint([bsbr.model]) == provenance.fingerprint([bsbr.model])


# -- Publishing -----------------------------------------------------------------------------------


def test_what_is_published_is_what_is_read() -> None:
    meter = Meter()
    sweep = meter.sweep()
    published = sweep.publish(meter.run())
    loaded = results.load("group/name")
    pd.testing.assert_frame_equal(published.table, loaded.table)
    assert loaded.value("time", n=64, mechanism="bsbr") == pytest.approx(64 / 7)
    assert loaded.table.dtypes["n"] == "Int64"
    wanted = {"target", "profile", "parameters", "commit", "clean", "packages", "machine", "seed", "started", "ended"}
    assert wanted | {"sources", "table_sha256"} <= loaded.provenance.keys()
    assert results.published() == ["group/name"]


def test_an_unchanged_result_keeps_its_record() -> None:
    def publish() -> Path:
        sweep = Meter().sweep()
        return sweep.publish(sweep.measure([{"n": 64}], _constant)).path.with_suffix(".json")

    record = publish()
    record.write_text(record.read_text() + "\n")  # which publishing anew would undo
    marked = record.read_bytes()
    assert publish().read_bytes() == marked


def _constant(n: int) -> list[dict[str, Any]]:
    return [row("time", 1.0, mechanism="bsbr")]


def test_an_altered_table_is_refused_with_the_remedy() -> None:
    meter = Meter()
    path = meter.sweep().publish(meter.run()).path
    path.write_text(path.read_text().replace("9", "8"))
    with pytest.raises(ResultError, match="nox -s reproduce -- --target cpu --profile full group/name"):
        results.load("group/name")


def test_a_missing_result_is_named_with_the_remedy() -> None:
    with pytest.raises(ResultError, match=r"no result of group/other for gpu, quick; run: nox -s reproduce"):
        results.load("group/other", "gpu", "quick")


def test_staging_leaves_the_published_table_alone(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()
    before = meter.sweep().publish(meter.run()).path.read_bytes()
    monkeypatch.setenv("BSBR_STAGING", str(data_folder / "staging"))
    staged = meter.sweep().publish(meter.run((64, 128, 256)))
    assert staged.path == data_folder / "staging" / "group" / "name.csv"
    assert results.load("group/name").path.read_bytes() == before


KILLED_WHILE_WRITING = """
import os, sys
from pathlib import Path
from bsbr import files
os.replace = lambda *paths: os._exit(9)
files.write_whole(Path(sys.argv[1]), "new " * 100_000)
"""


def test_a_kill_while_writing_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    files.write_whole(path, "old")
    run = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, path], env={**os.environ, "PYTHONPATH": "."})
    assert run.returncode == 9
    assert path.read_text() == "old"


def test_a_table_refuses_unknown_metrics_and_repeated_rows() -> None:
    with pytest.raises(ValueError, match="metric must be one of time, "):
        row("seconds", 1.0)
    twice = pd.DataFrame([row("time", 1.0, n=64), row("time", 2.0, n=64)])
    with pytest.raises(ValueError, match="two rows have the same metric and factors: time n=64"):
        results.tidy(twice)


def test_one_row_is_asked_for_and_one_is_found() -> None:
    table = Meter().run()
    with pytest.raises(ValueError, match=r"one row of 'time' with \{\} was expected, 2 were found"):
        results.only(table, "time")
    with pytest.raises(ValueError, match="'length' is no factor of this table; it has n, mechanism"):
        results.select(table, "time", length=64)


# -- Comparing ------------------------------------------------------------------------------------


def compared(published: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[str]:
    return list(results.compare(results.tidy(pd.DataFrame(published)), results.tidy(pd.DataFrame(ours)))["verdict"])


@pytest.mark.parametrize(
    ("metric", "published", "here", "verdict"),
    [
        ("time", 1.0, 9.0, "hardware-bound"),
        ("speedup", 2.0, 2.9, "reproduced"),
        ("speedup", 2.9, 2.0, "reproduced"),
        ("speedup", 2.0, 3.1, "drifted"),
        ("exponent", 1.0, 1.14, "reproduced"),
        ("exponent", 1.0, 0.8, "drifted"),
        ("perplexity", 20.0, 20.1, "reproduced"),
        ("perplexity", 20.0, 21.0, "drifted"),
        ("parameters", 3_600_000, 3_600_000, "reproduced"),
        ("parameters", 3_600_000, 3_600_001, "drifted"),
        ("crossover_n", None, None, "reproduced"),
        ("crossover_n", 500.0, None, "drifted"),
    ],
)
def test_each_metric_is_compared_by_its_rule(metric: str, published: Any, here: Any, verdict: str) -> None:
    assert compared([row(metric, published, n=64)], [row(metric, here, n=64)]) == [verdict]


def test_rows_are_joined_by_their_factors_whatever_type_they_have() -> None:
    published = [row("exponent", 1.0, n=64, phase="prefill"), row("exponent", 1.0, n=16384, phase="prefill")]
    ours = [row("exponent", 1.0, phase="prefill", n=64.0), row("exponent", 5.0, phase="prefill", n=128.0, extra="x")]
    assert compared(published, ours) == ["reproduced", "not measured here"]


def test_memory_belongs_to_the_machine() -> None:
    gone = row("speedup", None, status="out_of_memory", reason="out of memory", n=64)
    assert compared([row("speedup", 2.0, n=64)], [gone]) == ["hardware-bound"]


def test_what_is_not_available_here_was_not_measured_here() -> None:
    absent = row("crossover_n", None, status="not_available", reason="too few lengths", n=64)
    assert compared([row("crossover_n", 500.0, n=64)], [absent]) == ["not measured here"]
    assert compared([absent], [absent]) == ["reproduced"]
    assert compared([absent], [row("crossover_n", 500.0, n=64)]) == ["drifted"]


def test_every_metric_states_its_rule() -> None:
    for name, metric in METRICS.items():
        assert metric.title and metric.description.endswith("."), name
        assert metric.rule_in_words, name


# -- Figures and claims ---------------------------------------------------------------------------


def test_results_claims_and_figures_are_read_without_pytorch() -> None:
    code = "import sys, bsbr.results, bsbr.claims, bsbr.figures; sys.exit('torch' in sys.modules)"
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
    table = Meter(failing={128: MemoryError()}).run((64, 128, 256))
    chart = figures.lines(results.select(table, "time"), "n", log_x=True)
    assert list(chart.data[0].x) == [64, 256]
    assert chart.data[0].error_y.array[0] == pytest.approx(64 / 6 - 64 / 7)
    assert chart.layout.yaxis.title.text == "Time (s)"


def test_a_table_links_to_where_it_came_from() -> None:
    meter = Meter()
    line = figures.provenance_line(meter.sweep().publish(meter.run()))
    for part in ("../../data/results/cpu/full/group/name.csv", "(name.py)", "profile full"):
        assert part in line
    assert "(../notebooks/group/name.py)" in figures.provenance_line(results.load("group/name"), "book")


def test_claims_are_numbers_with_their_conditions() -> None:
    stated = claims.load()
    assert not stated.duplicated(["document", "section", "quantity", "mechanism", "conditions"]).any()
    assert claims.load("crossover_n")["value"].unique() == [1024]
    complexity = claims.load("exponent").query("section == 'Complexity Analysis'")
    assert complexity["n"].isna().all() and len(complexity) == 7
    with pytest.raises(ValueError, match="no claim is about 'beauty'"):
        claims.load("beauty")
