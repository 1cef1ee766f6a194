"""The .py of a notebook is the source: JupyterLab and the runner change no other file, and none changes it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from jupyter_server.services.contents.largefilemanager import LargeFileManager

from bsbr.store import load, published
from bsbr.store.provenance import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import lab
import pairs

EXPERIMENTS = pairs.experiments()
KERNEL = {"kernelspec": pairs.KERNEL, "language_info": {"name": "python", "version": "3.11.7", "file_extension": ".py"}}
SCRIPT = """# %% [markdown]
# # A toy

# %% tags=["parameters"]
target = "cpu"

# %%
print(1 + 1)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one notebook, whose page has run."""
    monkeypatch.setattr(pairs, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setenv("BSBR_DATA", str(tmp_path / "data"))
    shutil.copy(ROOT / "jupytext.toml", tmp_path)
    (tmp_path / "notebooks" / "toys").mkdir(parents=True)
    pairs.script("toys/a").write_text(SCRIPT, encoding="utf-8")
    notebook = pairs.read("toys/a")
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="2\n")]
    pairs.page("toys/a").write_text(pairs.written(notebook), encoding="utf-8")
    return tmp_path


def contents(root: Path) -> Any:
    """What JupyterLab reads and writes files with, in the folder that `nox -s lab` gives it."""
    manager = jupytext.build_sync_jupytext_contents_manager_class(LargeFileManager)()
    manager.root_dir = str(root)
    return manager


def save(manager: Any, path: str, change: str = "") -> None:
    """Open a file as a notebook and save it as JupyterLab does, with the kernel's metadata."""
    model = manager.get(path, type="notebook")
    model["content"].metadata.update(KERNEL)
    if change:
        model["content"].cells[-1].source += change
    manager.save({"type": "notebook", "format": "json", "content": model["content"]}, path)


# -- JupyterLab -----------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_page_keeps_no_warning_and_no_path_of_a_machine(experiment: str) -> None:
    outputs = [output for cell in nbformat.read(pairs.page(experiment), 4).cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "site-packages" not in json.dumps(outputs)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_opening_and_saving_a_script_changes_nothing(experiment: str, tmp_path: Path) -> None:
    folder = tmp_path / "notebooks" / Path(experiment).parent
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "jupytext.toml", tmp_path)
    for suffix in (".py", ".ipynb"):
        shutil.copy(ROOT / "notebooks" / f"{experiment}{suffix}", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save(contents(tmp_path / "notebooks"), f"{experiment}.py")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("newer", [".py", ".ipynb"])
def test_saving_writes_the_opened_file_only(newer: str, project: Path) -> None:
    """Whichever file has the younger time stamp."""
    path = pairs.NOTEBOOKS / "toys" / "a"
    os.utime(path.with_suffix(newer), (time.time() + 100,) * 2)
    page = pairs.page("toys/a").read_bytes()
    manager = contents(pairs.NOTEBOOKS)
    save(manager, "toys/a.py", "  # edited")
    assert pairs.script("toys/a").read_text(encoding="utf-8") == SCRIPT.replace("1)", "1)  # edited")
    assert pairs.page("toys/a").read_bytes() == page
    script = pairs.script("toys/a").read_bytes()
    save(manager, "toys/a.ipynb", "  # edited in the wrong file")
    assert pairs.script("toys/a").read_bytes() == script


def test_the_list_of_files_has_the_scripts_alone() -> None:
    call = " ".join(lab.command([]))
    assert "inference_time.ipynb" in call and "inference_time.py" not in call


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root is refused")
def test_jupyterlab_stays_up_as_root(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], "secret"
    call = lab.command(["--no-browser", f"--port={port}", f"--IdentityProvider.token={token}"])
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    api, log = f"http://127.0.0.1:{port}/api/contents/benchmarks", tmp_path / "log"
    with log.open("w", encoding="utf-8") as stream:
        server = subprocess.Popen(call, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    try:
        listed = _ask(server, f"{api}?token={token}", log)
        names = {entry["name"] for entry in listed["content"]}
        assert "inference_time.py" in names and "inference_time.ipynb" not in names
        opened = _ask(
            server, f"http://127.0.0.1:{port}/api/contents/benchmarks/memory.py?type=notebook&token={token}", log
        )
        assert opened["content"]["cells"]
    finally:
        server.terminate()
        server.wait(timeout=30)


def _ask(server: subprocess.Popen[bytes], url: str, log: Path) -> Any:
    end = time.monotonic() + 120
    while True:
        assert server.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")[-3000:]
        try:
            with urllib.request.urlopen(url) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.5)


# -- Bringing the page to its script --------------------------------------------------------------


def test_a_page_follows_its_script_and_keeps_the_outputs_of_unchanged_cells(project: Path) -> None:
    assert not pairs.pair("toys/a")
    script = SCRIPT.replace("# # A toy", "# # A better toy")
    pairs.script("toys/a").write_text(script, encoding="utf-8")
    assert pairs.pair("toys/a")
    page = nbformat.read(pairs.page("toys/a"), as_version=4)
    assert page.cells[0].source == "# A better toy"
    assert page.cells[2].outputs[0].text == "2\n"
    pairs.script("toys/a").write_text(script.replace("1 + 1", "1 + 2"), encoding="utf-8")
    assert pairs.pair("toys/a")
    assert nbformat.read(pairs.page("toys/a"), as_version=4).cells[2].outputs == []
    assert pairs.script("toys/a").read_text(encoding="utf-8") == script.replace("1 + 1", "1 + 2")


def test_an_edited_page_is_a_sentence_and_both_files_are_kept(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(contents(pairs.NOTEBOOKS), "toys/a.ipynb", "  # lost?")
    edited = pairs.page("toys/a").read_bytes()
    assert pairs.was_edited("toys/a")
    assert pairs.main([]) == 0
    said = capsys.readouterr().out
    assert "was edited, but a.py is the source" in said
    assert (project / "data" / "journal" / "edited" / "toys" / "a.ipynb").read_bytes() == edited
    assert pairs.script("toys/a").read_text(encoding="utf-8") == SCRIPT
    assert not pairs.was_edited("toys/a")


def test_an_edited_page_that_its_script_agrees_with_is_no_conflict(project: Path) -> None:
    save(contents(pairs.NOTEBOOKS), "toys/a.ipynb", "  # in both")
    pairs.script("toys/a").write_text(SCRIPT.replace("1)", "1)  # in both"), encoding="utf-8")
    assert not pairs.was_edited("toys/a") and not pairs.set_aside("toys/a")


def test_checkpoints_are_no_experiments(project: Path) -> None:
    for folder in (pairs.NOTEBOOKS / ".ipynb_checkpoints", pairs.NOTEBOOKS / "toys" / ".ipynb_checkpoints"):
        folder.mkdir()
        (folder / "a-checkpoint.py").write_text(SCRIPT, encoding="utf-8")
    assert pairs.experiments() == ["toys/a"]


# -- The notebooks of this project ----------------------------------------------------------------


def _cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str, list[str]]]:
    return [(cell.cell_type, cell.source.strip(), cell.metadata.get("tags", [])) for cell in notebook.cells]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_notebook_and_its_script_say_the_same(experiment: str) -> None:
    if (
        experiment in published() and "measured" not in load(experiment).provenance
    ):  # every record of a run by the present store has it
        pytest.xfail(f"{experiment} shows a run from before intervals had a method; a full run replaces it")
    script, page = jupytext.read(pairs.script(experiment)), nbformat.read(pairs.page(experiment), as_version=4)
    assert _cells(script) == _cells(page), f"{experiment}.ipynb is behind its .py: run nox -s pair, or a full run"
