"""A full run's table, record and page change together, whenever it is stopped."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bsbr.store import files, table
from bsbr.store.provenance import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import pairs
import publishing
import reproduce

NAMES = [f"group/{name}" for name in "abcd"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose tables, records and pages all say `old`."""
    monkeypatch.setenv("BSBR_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(pairs, "NOTEBOOKS", tmp_path / "notebooks")
    for name in NAMES:
        write(table.published_folder("cpu", "full"), tmp_path / "notebooks", name, "old")
    yield tmp_path


def write(results: Path, notebooks: Path, name: str, text: str) -> None:
    for file in (results / f"{name}.csv", results / f"{name}.json", notebooks / f"{name}.ipynb"):
        files.write_whole(file, text)


def publish(name: str, text: str) -> None:
    staging = publishing.staging_folder(name, "cpu")
    write(staging / "results", staging / "notebooks", name, text)
    publishing.install(staging)


def published(project: Path, name: str) -> set[str]:
    path = table.published_folder("cpu", "full") / name
    found = (path.with_suffix(".csv"), path.with_suffix(".json"), project / "notebooks" / f"{name}.ipynb")
    return {file.read_text(encoding="utf-8") for file in found}


def test_a_full_run_replaces_table_record_and_page_together(project: Path) -> None:
    publish("group/a", "new")
    assert published(project, "group/a") == {"new"}
    assert not list((project / "data" / "journal").rglob("*.*"))


def test_a_run_that_failed_before_publishing_leaves_nothing_to_publish(project: Path) -> None:
    staging = publishing.staging_folder("group/a", "cpu")
    write(staging / "results", staging / "notebooks", "group/a", "half")
    publishing.finish()
    assert published(project, "group/a") == {"old"}
    assert not publishing.staging_folder("group/a", "cpu").exists()


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_stop_between_any_two_files_is_finished(done: int, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole, written = files.write_whole, []

    def write_until_stopped(path: Path, content: bytes) -> None:
        if path.is_relative_to(table.published_folder("cpu", "full")) or path.is_relative_to(pairs.NOTEBOOKS):
            if len(written) == done:
                raise KeyboardInterrupt
            written.append(path)
        write_whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", write_until_stopped)
        with pytest.raises(KeyboardInterrupt):
            publish("group/a", "new")
    publishing.finish()
    assert published(project, "group/a") == {"new"}


def test_building_the_book_alone_finishes_it_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = publishing.staging_folder("group/a", "cpu")
    write(staging / "results", staging / "notebooks", "group/a", "new")
    staging.rename(staging.with_suffix(".ready"))
    seen = []
    monkeypatch.setattr(reproduce, "build_book", lambda quietly: seen.append(published(project, "group/a")) or 0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert reproduce.main(["--only-book"]) == 0
    assert seen == [{"new"}]


def _publish_all(begun: Any, text: str) -> None:
    """Publish everything again and again, slowly enough to be hit anywhere."""
    replace = os.replace

    def slowly(*paths: Any) -> None:
        time.sleep(random.random() * 0.004)
        replace(*paths)

    os.replace = slowly
    begun.set()
    for turn in range(1000):
        for name in NAMES:
            publish(name, f"{text}, turn {turn}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork and SIGKILL")
def test_twenty_kills_at_random_lose_nothing_and_leave_nothing(project: Path) -> None:
    context = multiprocessing.get_context("fork")
    chance = random.Random(0)
    for kill in range(20):
        begun = context.Event()
        process = context.Process(target=_publish_all, args=(begun, f"kill {kill}"))
        process.start()
        assert begun.wait(timeout=30)
        time.sleep(chance.random() * 0.3)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        publishing.finish()
        for name in NAMES:
            assert len(published(project, name)) == 1, f"kill {kill}: {name} is torn"
        assert not list((project / "data" / "journal").rglob("*.ready"))
        assert not list(project.rglob("*.part"))
    for name in NAMES:
        publish(name, "the end")
        assert published(project, name) == {"the end"}
