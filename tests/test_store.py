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

from bsbr import stats
from bsbr.store import (
    MEASURED,
    AlteredResultError,
    MissingResultError,
    Result,
    Sweep,
    cells,
    compare,
    files,
    journal,
    load,
    lock,
    machine,
    only,
    over,
    provenance,
    published,
    row,
    select,
    tidy,
)
from bsbr.store.metrics import METRICS


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    for name in (journal.FRESH, journal.RETRY, journal.STAGING):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


class Meter:
    """A stand-in for something slow: counts how often it was asked, and can be told to fail at some n."""

    def __init__(self, failing: dict[int, BaseException] | None = None) -> None:
        self.calls: list[int] = []
        self.failing = failing or {}

    def fingerprint(self) -> str:
        return "what it counts is not what it measures"

    def sweep(self, **changes: Any) -> Sweep:
        fixed: dict[str, Any] = {"target": "cpu", "profile": "full", "parameters": {"a": 1}}
        return Sweep("group/name", **{**fixed, **changes})

    def run(self, lengths: tuple[int, ...] = (64, 128), machine_bound: bool = True, **changes: Any) -> pd.DataFrame:
        def measure(n: int) -> list[dict[str, Any]]:
            self.calls.append(n)
            if n in self.failing:
                raise self.failing[n]
            return [timed(n / 7, n / 8, n / 6, mechanism="bsbr", over=over("trial", range(n)))]

        sweep = self.sweep(**changes)
        return sweep.measure([{"n": n} for n in lengths], measure, machine_bound=machine_bound)

    def publish(self, lengths: tuple[int, ...] = (64, 128)) -> Result:
        sweep = self.sweep()
        return sweep.publish(sweep.measure([{"n": n} for n in lengths], _constant, machine_bound=False))


def timed(value: float, low: float, high: float, name: str = "time", **more: Any) -> dict[str, Any]:
    return row(name, value, low=low, high=high, interval="order statistics", samples=9, **more)


def _constant(n: int) -> list[dict[str, Any]]:
    return [row("time", n / 7, mechanism="bsbr")]


# -- Rows and tables ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (dict(low=1.0, high=3.0), "low, high and interval go together"),
        (dict(low=1.0, high=3.0, interval="order statistics", samples=3), r"reaches 95 % from \d+ samples on.*are 3"),
        (dict(low=1.0, high=3.0, interval="order statistics"), r"reaches 95 % from \d+ samples on.*are 0"),
        (dict(low=1.0, high=3.0, interval="a guess", samples=90), "interval must be one of"),
        (dict(low=1.0, interval="order statistics", samples=90), "low, high and interval go together"),
        (dict(status="fine"), "status must be one of ok"),
    ],
)
def test_bounds_without_a_method_that_can_reach_95_percent_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        row("time", 2.0, **given)
    plain = row("time", 2.0, n=64)
    with pytest.raises(ValueError, match=complaint):
        tidy(pd.DataFrame([plain | given]))


def test_a_number_that_is_missing_says_why() -> None:
    for nothing in (None, float("nan")):
        with pytest.raises(ValueError, match="must have a number"):
            row("time", nothing)
    assert row("time", None, status="too_long", reason="over 60 s")["status"] == "too_long"
    assert row("crossover_n", float("inf"))["value"] == float("inf")


def test_an_estimate_brings_its_bounds_method_and_samples() -> None:
    estimate = stats.median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    found = row("time", estimate, n=64)
    brought = [found[name] for name in ("value", "low", "high", "interval", "samples")]
    assert brought == [estimate.value, estimate.low, estimate.high, estimate.interval, 7]
    with pytest.raises(ValueError, match="brings its own bounds"):
        row("time", estimate, samples=7)
    few = row("time", stats.median([1.0, 2.0]), n=64)
    assert (few["low"], few["interval"], few["samples"]) == (None, "", 2)


def test_two_labels_are_equal_when_they_are_over_the_same() -> None:
    label = over("document", ["b", "a"])
    assert label == over("document", ["a", "b"]) and label.startswith("2 documents ")
    assert len({label, over("document", ["a"]), over("seed", ["a", "b"]), over("document", ["a", "c"])}) == 4
    with pytest.raises(ValueError, match="each once"):
        over("seed", [1, 1])


def test_a_table_refuses_unknown_metrics_and_repeated_rows() -> None:
    with pytest.raises(ValueError, match="metric must be one of time, "):
        row("seconds", 1.0)
    twice = pd.DataFrame([row("time", 1.0, n=64), row("time", 2.0, n=64)])
    with pytest.raises(ValueError, match="two rows have the same metric and factors: time n=64"):
        tidy(twice)


def test_one_row_is_asked_for_and_one_is_found() -> None:
    table = Meter().run()
    with pytest.raises(ValueError, match=r"one row of 'time' with \{\} was expected, 2 were found"):
        only(table, "time")
    with pytest.raises(ValueError, match="'length' is no factor of this table; it has n, mechanism"):
        select(table, "time", length=64)


# -- Measuring ------------------------------------------------------------------------------------


def test_a_cell_is_measured_once() -> None:
    meter = Meter()
    first, second = meter.run(), meter.run()
    assert meter.calls == [64, 128]
    pd.testing.assert_frame_equal(first, second)
    assert list(first.columns) == ["n", "mechanism", *MEASURED]


def test_an_interrupted_sweep_goes_on_from_where_it_was() -> None:
    with pytest.raises(KeyboardInterrupt):
        Meter(failing={128: KeyboardInterrupt()}).run((64, 128, 256))
    meter = Meter()
    assert list(meter.run((64, 128, 256))["n"]) == [64, 128, 256]
    assert meter.calls == [128, 256]


@pytest.mark.parametrize("change", [{"parameters": {"a": 2}}, {"seed": 1}, {"profile": "quick"}])
def test_what_a_number_depends_on_decides_whether_it_is_measured_again(change: dict[str, Any]) -> None:
    meter = Meter()
    meter.run()
    meter.run(**change)
    assert meter.calls == [64, 128, 64, 128]


def test_only_what_belongs_to_a_machine_is_measured_anew_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, counting = Meter(), Meter()
    for processor in ("one", "another"):
        monkeypatch.setattr(machine, "cpu_model", lambda processor=processor: processor)
        timing.run((64,))
        counting.run((64,), machine_bound=False)
    assert timing.calls == [64, 64]
    assert counting.calls == [64]


def test_packages_decide_too(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter()
    meter.run((64,), machine_bound=False)
    other = {**provenance.packages(), "tokenizers": "0.0.1"}
    monkeypatch.setattr(provenance, "packages", lambda: other)
    meter.run((64,), machine_bound=False)
    assert meter.calls == [64, 64]


def test_a_changed_source_is_measured_again_and_a_missing_one_is_named(data_folder: Path) -> None:
    source, meter = data_folder / "speech.txt", Meter()
    for text in ("one", "one", "two"):
        source.write_text(text)
        meter.run((64,), sources=[source])
    assert meter.calls == [64, 64]
    source.unlink()
    with pytest.raises(FileNotFoundError, match=r"speech\.txt is missing; run: python -m bsbr\.sources"):
        meter.run(sources=[source])


def test_fresh_forgets_what_was_kept_and_goes_on_when_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = (f"2026-01-01T00:00:{second:02d}+00:00" for second in range(60))
    monkeypatch.setattr(cells, "now", lambda: next(moments))
    meter = Meter(failing={256: KeyboardInterrupt()})
    meter.run()
    monkeypatch.setenv(journal.FRESH, "1")
    with pytest.raises(KeyboardInterrupt):
        meter.run((64, 128, 256))
    assert meter.calls == [64, 128, 64, 128, 256]
    meter.failing.clear()
    for asked in ("1", ""):  # what was begun anew goes on, asked for again or not
        monkeypatch.setenv(journal.FRESH, asked)
        table = meter.run((64, 128, 256))
    assert meter.calls == [64, 128, 64, 128, 256, 256]
    meter.sweep().publish(table)
    monkeypatch.setenv(journal.FRESH, "1")
    meter.run((64,))
    assert meter.calls[-1] == 64


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_cell_out_of_memory_is_a_row_that_says_so(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(failing={128: error})
    table = meter.run()
    assert list(table["status"]) == ["ok", "out_of_memory"]
    assert table["reason"].iloc[1]
    meter.failing.clear()
    assert list(meter.run()["status"]) == ["ok", "out_of_memory"]
    monkeypatch.setenv(journal.RETRY, "1")
    assert list(meter.run()["status"]) == ["ok", "ok"]
    assert meter.calls == [64, 128, 128]


def test_any_other_error_is_not_swallowed() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        Meter(failing={128: RuntimeError("a bug")}).run()


def _cut_short(text: str) -> str:
    return text[: len(text) // 2]


def _another_number(text: str) -> str:
    return text.replace("9.14", "9.41")


def _no_rows(text: str) -> str:
    entry = json.loads(text)["entry"] | {"rows": []}
    return json.dumps({"entry": entry, "sha256": provenance.sha256(json.dumps(entry, sort_keys=True))})


@pytest.mark.parametrize(
    "damage", [_cut_short, _another_number, _no_rows, lambda text: "", lambda text: "[]", lambda text: "\0" * len(text)]
)
def test_a_damaged_cell_is_measured_again(damage: Any, data_folder: Path) -> None:
    meter = Meter()
    first = meter.run((64,))
    (kept,) = data_folder.rglob("*.json")
    damaged = damage(kept.read_text())
    assert damaged != kept.read_text()
    kept.write_text(damaged)
    pd.testing.assert_frame_equal(meter.run((64,)), first)
    assert meter.calls == [64, 64]


# -- Publishing -----------------------------------------------------------------------------------


def test_what_is_published_is_what_is_read() -> None:
    result = Meter().publish()
    loaded = load("group/name")
    pd.testing.assert_frame_equal(result.table, loaded.table)
    assert loaded.value("time", n=64, mechanism="bsbr") == pytest.approx(64 / 7)
    assert loaded.table.dtypes["n"] == "Int64"
    wanted = {"target", "profile", "parameters", "commit", "clean", "packages", "machine", "seed", "started", "ended"}
    assert wanted | {"sources", "measured", "over", "table_sha256"} <= loaded.provenance.keys()
    assert published() == ["group/name"]


def test_a_record_names_the_items_of_its_aggregates_also_those_of_kept_cells() -> None:
    for _ in range(2):
        sweep = Meter().sweep()
        record = sweep.publish(Meter().run((2,))).provenance
        assert record["over"] == {over("trial", [0, 1]): ["0", "1"]}
        from bsbr.store import table

        table._items.clear()


def test_a_record_says_when_cells_come_from_different_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {64: {"commit": "a" * 40, "clean": True}, 128: {"commit": "b" * 40, "clean": False}}
    sweep, tables = Meter().sweep(), []
    for n, state in states.items():
        monkeypatch.setattr(provenance, "git_state", lambda state=state: state)
        tables.append(sweep.measure([{"n": n}], _constant, machine_bound=False))
    record = sweep.publish(pd.concat(tables)).provenance
    assert [(group["commit"][0], group["clean"], group["cells"]) for group in record["measured"]] == [
        ("a", True, 1),
        ("b", False, 1),
    ]
    assert record["commit"] is None and record["clean"] is False
    assert record["packages"] == provenance.packages()


def test_an_unchanged_result_keeps_its_record() -> None:
    record = Meter().publish().path.with_suffix(".json")
    record.write_text(record.read_text() + "\n")  # which publishing anew would undo
    marked = record.read_bytes()
    assert Meter().publish().path.with_suffix(".json").read_bytes() == marked


@pytest.mark.parametrize("damage", ["another table", "no record", "half a record", "no table"])
def test_an_altered_result_is_refused_with_the_remedy(damage: str) -> None:
    path = Meter().publish().path
    if damage == "another table":
        path.write_text(path.read_text().replace("9", "8"))
    elif damage == "no table":
        path.unlink()
    elif damage == "no record":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text(path.with_suffix(".json").read_text()[:100])
    with pytest.raises(AlteredResultError, match="nox -s reproduce -- --target cpu --profile full group/name"):
        load("group/name")


def test_a_missing_result_is_named_with_the_remedy() -> None:
    with pytest.raises(MissingResultError, match=r"no result of group/other for gpu, quick; run: nox -s reproduce"):
        load("group/other", "gpu", "quick")


def test_staging_leaves_the_published_table_alone(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Meter().publish().path.read_bytes()
    monkeypatch.setenv(journal.STAGING, str(data_folder / "staging"))
    staged = Meter().publish((64, 128, 256))
    assert staged.path == data_folder / "staging" / "group" / "name.csv"
    assert load("group/name").path.read_bytes() == before


KILLED_WHILE_WRITING = """
import os, sys
from pathlib import Path
from bsbr.store import files
os.replace = lambda *paths: os._exit(9)
files.write_whole(Path(sys.argv[1]), "new " * 100_000)
"""


def test_a_kill_while_writing_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    files.write_whole(path, "old")
    environment = {**os.environ, "PYTHONPATH": str(provenance.ROOT)}
    run = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, path], env=environment)
    assert run.returncode == 9
    assert path.read_text() == "old"


# -- Comparing ------------------------------------------------------------------------------------


def result(rows: list[dict[str, Any]], **packages: str) -> Result:
    record = {"packages": {"torch": "2.13.0", **packages}}
    return Result("group/name", "cpu", "full", tidy(pd.DataFrame(rows)), record, Path("name.csv"))


def compared(published: list[dict[str, Any]], here: list[dict[str, Any]], **packages: str) -> list[str]:
    return list(compare(result(published), result(here, **packages))["verdict"])


@pytest.mark.parametrize(
    ("metric", "published", "here", "same_packages", "other_packages"),
    [
        ("perplexity", 20.0, 20.0001, "reproduced", "reproduced"),
        ("perplexity", 20.0, 20.1, "drifted", "reproduced"),
        ("perplexity", 20.0, 21.0, "drifted", "drifted"),
        ("parameters", 3_600_000, 3_600_000, "reproduced", "reproduced"),
        ("parameters", 3_600_000, 3_600_001, "drifted", "drifted"),
        ("time", 1.0, 9.0, "not compared", "not compared"),
    ],
)
def test_what_no_clock_touches_is_the_same_within_rounding(
    metric: str, published: Any, here: Any, same_packages: str, other_packages: str
) -> None:
    rows = [row(metric, published, n=64)], [row(metric, here, n=64)]
    assert compared(*rows) == [same_packages]
    assert compared(*rows, torch="2.14.0") == [other_packages]


@pytest.mark.parametrize(
    ("published", "here", "verdict"),
    [
        ((2.0, 1.9, 2.1), (2.9, 2.8, 3.0), "reproduced"),  # 2.1 × 1.5 > 2.8
        ((2.0, 1.9, 2.1), (3.4, 3.2, 3.6), "drifted"),  # 2.1 × 1.5 < 3.2
        ((3.4, 3.2, 3.6), (2.0, 1.9, 2.1), "drifted"),
        ((2.0, 1.0, 3.0), (4.4, 4.2, 4.6), "reproduced"),  # a wide interval reaches further
    ],
)
def test_a_timed_ratio_has_drifted_if_widened_intervals_do_not_meet(
    published: tuple[float, ...], here: tuple[float, ...], verdict: str
) -> None:
    assert compared([timed(*published, "speedup", n=64)], [timed(*here, "speedup", n=64)]) == [verdict]


def test_without_an_interval_the_value_stands_for_it() -> None:
    assert compared([row("exponent", 1.0, n=64)], [row("exponent", 1.14, n=64)]) == ["reproduced"]
    assert compared([row("exponent", 1.0, n=64)], [row("exponent", 0.8, n=64)]) == ["drifted"]


def test_what_comes_of_a_training_is_not_held_to_the_rounding_of_its_arithmetic() -> None:
    assert compared([row("perplexity", 20.0, seed=1)], [row("perplexity", 20.1, seed=1)]) == ["reproduced"]
    assert compared([row("perplexity", 20.0, seed=1)], [row("perplexity", 21.0, seed=1)]) == ["drifted"]
    ends = {"interval": "Student t", "samples": 3, "over": over("seed", [1, 2, 3])}
    means = [row("perplexity", value, low=value - 1, high=value + 1, **ends) for value in (20.0, 21.5, 23.0)]
    assert compared(means[:1], means[1:2]) == ["reproduced"] and compared(means[:1], means[2:]) == ["drifted"]


def test_an_aggregate_is_compared_only_with_one_over_the_same() -> None:
    def mean(value: float, documents: list[str]) -> dict[str, Any]:
        return row("perplexity", value, over=over("document", documents))

    assert compared([mean(20.0, ["a", "b"])], [mean(20.0, ["b", "a"])]) == ["reproduced"]
    assert compared([mean(20.0, ["a", "b"])], [mean(25.0, ["b", "a"])]) == ["drifted"]
    shown = compare(result([mean(20.0, ["a", "b"])]), result([mean(25.0, ["a"])])).iloc[0]
    assert shown["verdict"] == "not compared" and shown["reason"].startswith("over other items: 2 documents")


def test_rows_are_joined_by_their_factors_whatever_type_they_have() -> None:
    published = [row("exponent", 1.0, n=64, phase="prefill"), row("exponent", 1.0, n=16384, phase="prefill")]
    ours = [row("exponent", 1.0, phase="prefill", n=64.0), row("exponent", 5.0, phase="prefill", n=128.0, extra="x")]
    assert compared(published, ours) == ["reproduced", "not measured here"]


def test_what_could_not_be_measured() -> None:
    gone = row("speedup", None, status="out_of_memory", reason="out of memory", n=64)
    absent = row("crossover_n", None, status="not_available", reason="too few lengths", n=64)
    assert compared([row("speedup", 2.0, n=64)], [gone]) == ["not measured here"]
    assert compared([gone], [row("speedup", 2.0, n=64)]) == ["not compared"]
    assert compared([row("crossover_n", 500.0, n=64)], [absent]) == ["not measured here"]
    assert compared([absent], [absent]) == ["reproduced"]
    assert compared([absent], [row("crossover_n", 500.0, n=64)]) == ["drifted"]


def test_a_comparison_shows_both_with_their_intervals() -> None:
    shown = compare(
        result([timed(2.0, 1.9, 2.1, "speedup", n=64)]), result([timed(3.0, 2.9, 3.1, "speedup", n=64)])
    ).iloc[0]
    names = ["published", "published_low", "published_high", "here", "here_low", "here_high"]
    assert [shown[name] for name in names] == [2.0, 1.9, 2.1, 3.0, 2.9, 3.1]
    assert shown["clock"]


def test_every_metric_states_its_rule() -> None:
    for name, metric in METRICS.items():
        assert metric.title and metric.description.endswith("."), name
        assert metric.rule_in_words, name


def test_a_lock_removes_what_a_holder_left_that_was_killed_as_it_wrote_its_name(tmp_path: Path) -> None:
    half, other = tmp_path / "run.holder.999.part", tmp_path / "table.csv.999.part"
    for path in (half, other):
        path.write_text("half of")
    with lock.held(tmp_path / "run.lock", "a test"):
        assert not half.exists() and "a test" in (tmp_path / "run.holder").read_text()
    assert other.exists() and not (tmp_path / "run.holder").exists()
