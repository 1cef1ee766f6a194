"""One command runs every notebook, can be stopped at any moment, and publishes tables and pages together."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import psutil
import pytest

from bsbr.store import table
from bsbr.store.provenance import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import pairs
import reproduce

EXPERIMENTS = pairs.experiments()
REFERENCE = ROOT / "data" / "reference"
SPEED = "benchmarks/inference_time"
LIMIT = 900  # seconds, after which something hangs


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "reproduce.py"), "--profile", "tiny", "--no-book", *arguments]


def environment(data: Path) -> dict[str, str]:
    return {**os.environ, "BSBR_DATA": str(data), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(data), capture_output=True, encoding="utf-8", timeout=LIMIT
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """Every notebook run at a tiny size: the data folder it filled, the code it ended with, and what it printed."""
    data = tmp_path_factory.mktemp("data")
    if REFERENCE.exists():
        shutil.copytree(REFERENCE, data / "reference")
    finished = run(data, "--target", "cpu", "--strict")
    assert finished.returncode in (0, reproduce.DRIFTED), finished.stdout[-4000:] + finished.stderr[-4000:]
    return data, finished.returncode, finished.stdout


# -- A whole run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_notebook_publishes_a_table_with_its_record(
    experiment: str, tiny: tuple[Path, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSBR_DATA", str(tiny[0]))
    result = table.load(experiment, "cpu", "tiny")
    assert len(result.table) > 0
    assert result.provenance["code"] and result.provenance["parameters"]
    assert result.path.is_relative_to(tiny[0])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_answer_is_left_open(experiment: str, tiny: tuple[Path, int, str]) -> None:
    executed = nbformat.read(tiny[0] / "journal" / "cpu" / "tiny" / f"{experiment}.ipynb", as_version=4)
    assert "when the cells below have run" not in nbformat.writes(executed)


@pytest.mark.skipif(not REFERENCE.exists(), reason="no reference: nox -s reproduce -- --profile tiny --set-reference")
def test_no_number_that_no_clock_touches_has_drifted(tiny: tuple[Path, int, str]) -> None:
    assert tiny[1] == 0, tiny[2][-4000:]


def test_progress_names_the_notebook_and_its_log_the_cells(tiny: tuple[Path, int, str]) -> None:
    total = len(EXPERIMENTS)
    for position, experiment in enumerate(EXPERIMENTS, start=1):
        assert f"[{position}/{total}] {experiment} (cpu, tiny)" in tiny[2]
        log = (tiny[0] / "journal" / "cpu" / "tiny" / f"{experiment}.log").read_text(encoding="utf-8")
        assert re.search(r"cell \d+/\d+  Measuring", log)
        assert re.search(r"1/\d+  \w+=", log)


def test_the_whole_report_fits_on_a_few_screens(tiny: tuple[Path, int, str]) -> None:
    assert len(tiny[2].splitlines()) <= 80
    assert "Warning" not in tiny[2]


def test_a_second_run_measures_nothing_again_and_finds_every_number(tiny: tuple[Path, int, str]) -> None:
    published = tiny[0] / "results" / "cpu"
    shutil.copytree(published / "tiny", published / "full", dirs_exist_ok=True)
    finished = run(tiny[0], "--target", "cpu", "inference_time")
    assert finished.returncode == 0, finished.stdout
    assert "kept from an earlier run" in (tiny[0] / "journal/cpu/tiny" / f"{SPEED}.log").read_text(encoding="utf-8")
    assert re.search(r"All together: [1-9]\d* reproduced, 0 drifted", finished.stdout)


def test_a_gpu_that_was_asked_for_and_is_not_there_is_one_line(tmp_path: Path) -> None:
    finished = subprocess.run(
        command("--target", "gpu"),
        env={**environment(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
    )
    assert finished.returncode == 1
    assert finished.stdout.splitlines() == [finished.stdout.strip()]
    assert "needs a CUDA GPU" in finished.stdout


def test_an_unknown_notebook_is_answered_with_those_there_are(tmp_path: Path) -> None:
    finished = run(tmp_path, "beauty")
    assert finished.returncode == 2
    assert "no notebook is called 'beauty'" in finished.stderr and SPEED in finished.stderr


# -- Stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_files_whole_and_the_next_goes_on(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    journal = tmp_path / "journal" / "cpu" / "tiny" / SPEED
    runner = subprocess.Popen(
        command("--target", "cpu", SPEED), env=environment(tmp_path), stdout=subprocess.PIPE, encoding="utf-8"
    )
    _wait_for(lambda: any(journal.glob("*.json")))
    kernels = psutil.Process(runner.pid).children(recursive=True)
    runner.send_signal(how)
    printed, _ = runner.communicate(timeout=60)
    _wait_for(lambda: not any(kernel.is_running() and kernel.status() != "zombie" for kernel in kernels))
    if how != signal.SIGKILL:
        assert runner.returncode == reproduce.STOPPED
        assert "what was measured is kept" in printed
    assert table.published("cpu", "tiny") == []
    kept = set(journal.glob("*.json"))

    finished = run(tmp_path, "--target", "cpu", SPEED)
    assert finished.returncode == 0, finished.stderr
    log = (tmp_path / "journal" / "cpu" / "tiny" / f"{SPEED}.log").read_text(encoding="utf-8")
    assert log.count("kept from an earlier run") == len(kept)
    assert kept < set(journal.glob("*.json"))
    assert len(table.load(SPEED, "cpu", "tiny").table) > 0


def _wait_for(condition: object) -> None:
    end = time.monotonic() + 90
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


# -- The notebooks as files -----------------------------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_notebook_has_the_parameters_that_the_runner_sets(experiment: str) -> None:
    cells = jupytext.read(ROOT / "notebooks" / f"{experiment}.py").cells
    (parameters,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert parameters.split() == ["target", "=", '"cpu"', "profile", "=", '"quick"']


NOT_PROSE = [
    r"```.*?```", r"`[^`]*`",  # code
    r"\$\$.*?\$\$", r"\$[^$]*\$",  # formulas
    r"\]\([^)]*\)", r"<[^>]*>", r"\{[a-z:]+\}",  # where links lead, markup, roles
    r"\b95 %",  # the one level of confidence
    r"\bGPT-2\b",  # a name
]  # fmt: skip


def typed_numbers(prose: str) -> list[str]:
    """The numbers that stand in prose as text."""
    for pattern in NOT_PROSE:
        prose = re.sub(pattern, " ", prose, flags=re.DOTALL)
    return re.findall(r"(?<![A-Za-z\d])\d[\d.,]*", prose)


def spoken(code: str) -> Iterator[str]:
    """The literal text of a cell's f-strings and of what it displays as Markdown."""
    tree = ast.parse(code)
    formats = [node.format_spec for node in ast.walk(tree) if isinstance(node, ast.FormattedValue)]
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and node not in formats:
            yield "".join(part.value for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("say", "Markdown"):
            yield from (word.value for word in node.args if isinstance(word, ast.Constant))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_number_in_a_notebooks_prose_is_typed_by_hand(experiment: str) -> None:
    found = []
    for cell in jupytext.read(ROOT / "notebooks" / f"{experiment}.py").cells:
        texts = [cell.source] if cell.cell_type == "markdown" else []
        if "remove-input" in cell.metadata.get("tags", []):
            texts = list(spoken(cell.source))
        found += [(number, text[:80]) for text in texts for number in typed_numbers(text)]
    assert found == []


def test_the_search_for_typed_numbers_finds_them() -> None:
    assert typed_numbers("It is 4.7 times as fast at n = 1024.") == ["4.7", "1024."]
    assert typed_numbers("`n = 3`, $n^2$, [a link](page2.md), a 95 % interval, SmolLM2, [x](y#3)") == []
    assert list(spoken('say(f"up to {n:.2f} of 12"); x = "7"')) == ["up to  of 12"]
