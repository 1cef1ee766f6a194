"""The page on training: its command and its code run as they stand, at a tiny size."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bsbr import TransformerLM
from bsbr.mechanisms import MECHANISMS
from bsbr.training import __main__ as command

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "train.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMAND = re.findall(r"^\$ python -m bsbr.training (.*)$", PAGE, re.MULTILINE)
TINY = (
    "--steps 6 --n 32 --batch 2 --vocabulary 300 --hidden-dim 16 --num-heads 2 --ff-dim 16 --chunk-size 4 --device cpu"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which `my-texts` has three texts."""
    folder = tmp_path / "my-texts"
    (folder / "more").mkdir(parents=True)
    for name in ("one.txt", "two.md", "more/three.txt"):
        (folder / name).write_text(f"The beginning of {name} is like that of any other text.\n" * 30, encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\xff")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*more: str) -> int:
    return command.main([*shlex.split(COMMAND[0]), *TINY.split(), "--device", "cpu", *more])


def test_the_page_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    said = capsys.readouterr()
    assert "my-model: bsbr," in said.out and "validation: loss" in said.out
    assert re.search(r"bsbr: 100%.* 6/6 .*loss \d\.\d+, [\d,]+ tokens/s", said.err)
    files = set(re.findall(r"`([a-z]+\.[a-z]+)`", PAGE.partition("| file |")[2].partition("and is read")[0]))
    assert {path.name for path in (here / "my-model").iterdir()} == files
    assert list(pd.read_csv(here / "my-model" / "curve.csv")["step"]) == [1, 2, 3, 4, 5, 6]

    exec(CODE[0], {})
    assert capsys.readouterr().out.startswith("The beginning")
    exec(CODE[1], {"my_folder": here})
    assert 0 <= float(capsys.readouterr().out.split()[-1]) <= 1

    before = (here / "my-model" / "model.safetensors").stat().st_mtime_ns
    assert run() == 0 and (here / "my-model" / "model.safetensors").stat().st_mtime_ns == before
    assert run("--seed", "1") == 1 and "has a run of other settings" in capsys.readouterr().err


def test_the_launch_line_of_the_page_trains_over_two_processes(here: Path) -> None:
    [launch] = re.findall(r"^\$ accelerate launch (.*)$", PAGE, re.MULTILINE)
    start = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *launch.split(), *TINY.split()], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((here / "my-model" / "record.json").read_text(encoding="utf-8"))["processes"] == 2
    assert done.stdout.count("my-model: bsbr,") == 1  # one of the two speaks


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda here: (here / "my-texts" / "one.txt").write_bytes(b"caf\xe9"), "must be UTF-8"),
        (lambda here: [path.write_text(" ") for path in (here / "my-texts").rglob("*.*")], "files that are not empty"),
        (lambda here: (here / "my-texts").rename(here / "elsewhere"), "must be a folder"),
        (lambda here: (here / "my-texts" / "one.txt").rename(here / "my-texts" / "one.pdf"), "n must be below"),
    ],
    ids=["latin-1", "empty", "no folder", "too short"],
)
def test_what_cannot_be_trained_on_is_told_in_one_line(
    here: Path, spoil: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(here)  # type: ignore[operator]
    assert run(*(["--n", "5000"] if "below" in said else [])) == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("training: ") and len(error.splitlines()) == 1


def test_the_command_knows_every_mechanism(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "{" + ",".join(MECHANISMS) + "}" in capsys.readouterr().out


def test_the_command_takes_a_mechanism_for_each_layer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--mechanism", "linear,linear,standard", "--short-conv", "4") == 0
    assert "my-model: linear+standard," in capsys.readouterr().out
    config = TransformerLM.from_pretrained(here / "my-model").config
    assert (config.mechanisms, config.short_conv) == (("linear", "linear", "standard"), 4)
    assert run("--mechanism", "linear,standard", "--num-layers", "3") == 1
    assert "set num_layers=2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--mechanism", "linear,mamba")
    assert "choose from standard, bsbr" in capsys.readouterr().err


def test_files_are_kept_for_validation_whole_if_there_are_enough() -> None:
    texts = {f"{i}.txt": f"text {i}" * 10 for i in range(20)}
    found = command.divided(texts)
    assert len(found["validation"]) == 2 and sorted([*found["train"], *found["validation"]]) == sorted(texts.values())
    assert command.divided({"a": "x" * 100}) == {"train": ["x" * 90], "validation": ["x" * 10]}
