"""The tutorial: its command and its code run from top to bottom as they stand, at a tiny size."""

from __future__ import annotations

import math
import random
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from conftest import ROOT
from test_convert_page import WORDS, make
from test_train_page import TINY

from bsbr.measure import speed
from bsbr.training import __main__ as command

PAGE = (ROOT / "book" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", PAGE, re.DOTALL)
INTERVAL = r"[\d.e+-]+, 95 % interval -?[\d.e+-]+ to -?[\d.e+-]+"

START = subprocess.run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the page asks for, in which whatever is trained or timed is small."""
    chance = random.Random(0)
    (tmp_path / "my-texts").mkdir()
    for name in (*(f"my-texts/{i}.txt" for i in range(12)), "unseen.txt"):
        (tmp_path / name).write_text(" ".join(chance.choices(WORDS[1:], k=500)), encoding="utf-8")
    make("llama", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    take_turns = speed.interleave
    monkeypatch.setattr(speed, "interleave", lambda calls, seconds: take_turns(calls, seconds=0, block=0))
    return tmp_path


def started(arguments: list[str], **options: Any) -> Any:
    """Trains here, small, instead of starting another Python for it, which would take seconds; starts all else."""
    if arguments[1:3] != ["-m", "bsbr.training"]:
        return START(arguments, **options)
    assert command.main([*arguments[3:], *TINY.split()]) == 0


def test_the_page_runs_from_top_to_bottom(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", started)
    names: dict[str, Any] = {}
    for kind, code in BLOCKS:
        if kind == "console":
            (line,) = code.strip().splitlines()
            started(shlex.split(line.removeprefix("$ ")))
        else:
            exec(code, names)
    said = capsys.readouterr().out
    assert (here / "curve.png").stat().st_size and len(names["looks"]) > 1
    assert math.isfinite(float(re.search(r"^perplexity ([\d.]+)$", said, re.MULTILINE)[1]))  # type: ignore[index]
    assert re.search(r"^bits per byte [\d.]+$", said, re.MULTILINE)

    records = [run.record for found in names["runs"].values() for run in found]
    assert len({record["task"]["sha256"] for record in records}) == 1  # all have read the same
    assert [record["settings"]["seed"] for record in records] == [1, 2, 3] * 2
    assert len(list((here / "runs").glob("*/record.json"))) == 12
    for name in ("standard", "bsbr"):
        for what in (r"[\d,]+ parameters", f"loss {INTERVAL}", f"{INTERVAL} s", r"[\d.]+ MB at the peak"):
            assert re.search(rf"^{name}: {what}$", said, re.MULTILINE), what
    for line in (
        "loss of bsbr less that of standard",
        "speed of bsbr, times that of standard",
        "perplexity, times the original's",
        "same first choice, % of positions",
        "speed at 500 tokens, times the original's",
    ):
        assert re.search(rf"^{line}: -?{INTERVAL}$", said, re.MULTILINE), line
    assert names["converted"].config.bsbr["chunk_size"] == 128 and not hasattr(names["original"].config, "bsbr")


def test_a_newcomer_is_led_to_the_page() -> None:
    assert "book/tutorial" in (ROOT / "_toc.yml").read_text(encoding="utf-8")
    assert "(tutorial.md)" in (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    title = PAGE.splitlines()[0].removeprefix("# ")
    assert title in (ROOT / "README.md").read_text(encoding="utf-8")
