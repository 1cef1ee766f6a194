"""What is made once is kept whole, found again by what it was made of, and made anew where that or it has changed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsbr.store import artefact as kept
from bsbr.store import provenance
from bsbr.store.artefact import artefact

calls: list[str] = []  # what was made, in order


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BSBR_CACHE", str(tmp_path / "cache"))
    del calls[:]
    return tmp_path / "cache"


WORD = "weights"


def make(folder: Path, report: kept.Report, size: int) -> None:
    (folder / "inside").mkdir(exist_ok=True)
    (folder / "inside" / "weights").write_text(WORD * size)
    report(f"made {size}")


def note(said: str) -> None:
    calls.append(said)


def test_it_is_made_once(cache: Path) -> None:
    first = artefact("model", make, report=note, size=2)
    assert artefact("model", make, report=print, size=2) == first
    assert calls == ["made 2"]
    assert (first / "inside" / "weights").read_text() == "weightsweights"
    assert list(cache.iterdir()) == [first] and first.name.startswith("model-")


def test_other_settings_are_another_artefact() -> None:
    assert artefact("model", make, report=note, size=1) != artefact("model", make, report=note, size=2)
    assert calls == ["made 1", "made 2"]


def test_other_code_is_another_artefact(monkeypatch: pytest.MonkeyPatch) -> None:
    before = artefact("model", make, report=note, size=1)
    monkeypatch.setitem(globals(), "WORD", "other")
    after = artefact("model", make, report=note, size=1)
    assert after != before and (after / "inside" / "weights").read_text() == "other"


def test_other_sources_are_another_artefact(tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.write_text("one")
    before = artefact("model", make, sources=[source], size=1)
    source.write_text("two")
    assert artefact("model", make, sources=[source], size=1) != before


@pytest.mark.parametrize("harm", ["changed", "removed", "added", "no record"])
def test_a_damaged_one_is_made_anew(harm: str) -> None:
    folder = artefact("model", make, report=note, size=1)
    weights = folder / "inside" / "weights"
    match harm:
        case "changed":
            weights.write_text("weightz")
        case "removed":
            weights.unlink()
        case "added":
            (folder / "more").write_text("")
        case "no record":
            (folder / kept.RECORD).unlink()
    assert not kept.is_whole(folder)
    assert artefact("model", make, report=note, size=1) == folder
    assert calls == ["made 1", "made 1"] and kept.is_whole(folder) and weights.read_text() == "weights"
    assert not (folder / "more").exists()


def make_in_two_goes(folder: Path, report: kept.Report) -> None:
    if not (folder / "half").exists():
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    (folder / "whole").write_text("whole")
    (folder / "half").unlink()


def test_one_that_was_stopped_goes_on_and_is_not_taken_for_whole(cache: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        artefact("model", make_in_two_goes)
    assert not any(path.name.startswith("model-") for path in cache.iterdir())
    folder = artefact("model", make_in_two_goes)
    assert {path.name for path in folder.iterdir()} == {"whole", kept.RECORD}
    assert list(cache.iterdir()) == [folder]


SCRIPT = """
import sys, time
from pathlib import Path
from bsbr.store.artefact import artefact


def make(folder, report, room):
    room = Path(room)
    with (room / "made").open("a") as made:
        made.write(f"{sys.argv[2]}\\n")
    (folder / "half").write_text("half")
    (room / "begun").touch()
    until = time.monotonic() + 60
    while not (room / "waiting").exists() and time.monotonic() < until:
        time.sleep(0.01)
    (folder / "half").replace(folder / "whole")


def report(sentence):
    if "waiting" in sentence:
        (Path(sys.argv[1]) / "waiting").touch()


print(artefact("model", make, report=report, room=sys.argv[1]))
"""


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path: Path, cache: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(provenance.ROOT)}
    with subprocess.Popen([*command, "first"], env=environment, stdout=subprocess.PIPE, text=True) as first:
        while not (tmp_path / "begun").exists() and first.poll() is None:
            time.sleep(0.01)
        second = subprocess.run([*command, "second"], env=environment, capture_output=True, text=True, timeout=120)
        said, _ = first.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert said == second.stdout and (tmp_path / "waiting").exists()
    assert (tmp_path / "made").read_text() == "first\n"
    folder = Path(said.strip())
    assert kept.is_whole(folder) and {path.name for path in folder.iterdir()} == {"whole", kept.RECORD}
    assert list(cache.iterdir()) == [folder]
