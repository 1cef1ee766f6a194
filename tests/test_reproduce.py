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

from bsbr import files, results
from bsbr.provenance import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
import reproduce

EXPERIMENTS = reproduce.experiments()
SPEED = "benchmarks/inference_time"
LIMIT = 900  # seconds, after which something hangs


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "notebooks" / "reproduce.py"), "--profile", "tiny", "--no-book", *arguments]


def environment(data: Path) -> dict[str, str]:
    return {**os.environ, "BSBR_DATA": str(data), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=environment(data), capture_output=True, text=True, timeout=LIMIT)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Every notebook run at a tiny size: the data folder it filled, and what it printed."""
    data = tmp_path_factory.mktemp("data")
    finished = run(data, "--target", "cpu")
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    return data, finished.stdout


# -- A whole run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_notebook_publishes_a_table_with_its_record(
    experiment: str, tiny: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSBR_DATA", str(tiny[0]))
    result = results.load(experiment, "cpu", "tiny")
    assert len(result.table) > 0
    assert result.provenance["code"] and result.provenance["parameters"]
    assert result.path.is_relative_to(tiny[0])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_answer_is_left_open(experiment: str, tiny: tuple[Path, str]) -> None:
    executed = nbformat.read(tiny[0] / "journal" / "cpu" / "tiny" / f"{experiment}.ipynb", as_version=4)
    assert "when the cells below have run" not in nbformat.writes(executed)


def test_progress_names_the_notebook_the_cell_and_how_far(tiny: tuple[Path, str]) -> None:
    total = len(EXPERIMENTS)
    for position, experiment in enumerate(EXPERIMENTS, start=1):
        assert f"[{position}/{total}] {experiment} (cpu, tiny)" in tiny[1]
    assert re.search(r"cell \d+/\d+  Measuring", tiny[1])
    assert re.search(r"1/\d+  phase=", tiny[1])


def test_without_published_results_the_report_says_so(tiny: tuple[Path, str]) -> None:
    assert "nothing was published" in tiny[1]


def test_the_report_sets_each_published_number_beside_this_machines(tiny: tuple[Path, str]) -> None:
    published = tiny[0] / "results" / "cpu"
    shutil.copytree(published / "tiny", published / "full", dirs_exist_ok=True)
    finished = run(tiny[0], "--target", "cpu", "inference_time")
    assert finished.returncode == 0, finished.stderr
    assert "kept from an earlier run" in finished.stdout
    assert re.search(r"speedup +phase=prefill .*mechanism=bsbr .* reproduced", finished.stdout)
    assert re.search(r"time +phase=prefill .* hardware-bound", finished.stdout)
    assert re.search(r"All together: [1-9]\d* reproduced, 0 drifted", finished.stdout)


def test_a_gpu_that_was_asked_for_and_is_not_there_is_one_line(tmp_path: Path) -> None:
    finished = subprocess.run(
        command("--target", "gpu"),
        env={**environment(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
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
        command("--target", "cpu", SPEED), env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    _wait_for(lambda: any(journal.glob("*.json")))
    kernels = psutil.Process(runner.pid).children(recursive=True)
    runner.send_signal(how)
    printed, _ = runner.communicate(timeout=60)
    _wait_for(lambda: not any(kernel.is_running() and kernel.status() != "zombie" for kernel in kernels))
    if how != signal.SIGKILL:
        assert runner.returncode == reproduce.STOPPED
        assert "what was measured is kept" in printed
    assert results.published("cpu", "tiny") == []
    kept = set(journal.glob("*.json"))

    finished = run(tmp_path, "--target", "cpu", SPEED)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("kept from an earlier run") == len(kept)
    assert kept < set(journal.glob("*.json"))
    assert len(results.load(SPEED, "cpu", "tiny").table) > 0


def _wait_for(condition: object) -> None:
    end = time.monotonic() + 90
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


# -- Publishing -----------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A staging folder of a full run, and a project to publish it into that holds an older table and page."""
    monkeypatch.setenv("BSBR_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(reproduce, "NOTEBOOKS", tmp_path / "notebooks")
    staging = tmp_path / "data" / "journal" / "cpu" / "full" / "group" / "name.staging"
    for folder in (results.published_folder("cpu", "full"), staging / "results"):
        for suffix in ("csv", "json"):
            files.write_whole(folder / "group" / f"name.{suffix}", folder.parent.name)
    for folder in (tmp_path / "notebooks", staging / "notebooks"):
        files.write_whole(folder / "group" / "name.ipynb", folder.parent.name)
    yield staging, tmp_path


def _published(project: Path) -> set[str]:
    table = project / "data" / "results" / "cpu" / "full" / "group" / "name.csv"
    files = (table, table.with_suffix(".json"), project / "notebooks" / "group" / "name.ipynb")
    return {file.read_text() for file in files}


def test_a_full_run_replaces_table_record_and_page_together(places: tuple[Path, Path]) -> None:
    staging, project = places
    reproduce.install(staging)
    assert _published(project) == {"name.staging"}
    assert not list(staging.parent.iterdir())


@pytest.mark.parametrize("files_done", [0, 1, 2])
def test_a_kill_while_publishing_is_finished_by_the_next_run(
    files_done: int, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, project = places
    write, written = files.write_whole, []

    def write_until_killed(path: Path, text: str) -> None:
        if len(written) == files_done:
            raise KeyboardInterrupt
        written.append(path)
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", write_until_killed)
        with pytest.raises(KeyboardInterrupt):
            reproduce.install(staging)
    reproduce.finish_installing()
    assert _published(project) == {"name.staging"}


# -- The notebooks as files -----------------------------------------------------------------------


def _cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str, list[str]]]:
    return [(cell.cell_type, cell.source.strip(), cell.metadata.get("tags", [])) for cell in notebook.cells]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_notebook_and_its_script_say_the_same(experiment: str) -> None:
    path = ROOT / "notebooks" / experiment
    script, page = jupytext.read(path.with_suffix(".py")), nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    hint = f"{experiment}.ipynb is behind its .py: run `jupytext --sync`, and `nox -s reproduce -- --profile full`"
    assert _cells(script) == _cells(page), hint


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
