"""Cells that workers measure: the numbers of one process, whoever dies, and from nobody whose code is another."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bsbr import cluster
from bsbr.cluster import measuring
from bsbr.store import Sweep, executor, fingerprint, machine, row
from bsbr.store.provenance import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import reproduce

LIMIT = 240  # seconds, after which something hangs
CELLS = 13  # of the toy at the profile tiny
KILLS = int(os.environ.get("BSBR_KILLS", "4"))  # more of them: BSBR_KILLS=20
NOTEBOOK = """# %% [markdown]
# # A toy
# %% tags=["parameters"]
target = "cpu"
profile = "quick"
# %% [markdown]
# ## Measuring
# %%
import os, time
from pathlib import Path
import pandas as pd
from bsbr.store import Part, Sweep, provenance, row

PAUSE, FACTOR = 0.2, 2.0

def mark(what, n, begin):
    line = f"{what} {n} {begin} {time.time()} {os.environ.get('TOY_NAME', 'here')}\\n"
    with Path(os.environ["TOY_MARKS"]).open("a") as stream:
        stream.write(line)

def counting(n):
    begin = time.time()
    time.sleep(PAUSE)
    mark("counting", n, begin)
    return [row("parameters", FACTOR * n / 7)]

sweep = Sweep(
    "toys/toy", target=target, profile=profile, parameters={"a": 1}, sources=[provenance.ROOT / "data" / "words.txt"]
)
first = sweep.measure([{"n": n} for n in range(1, 7)], counting, machine_bound=False)
best = float(first["value"].max())
# %%
def training(n):
    begin = time.time()
    time.sleep(PAUSE)
    mark("training", n, begin)
    return [row("perplexity", best / n, part="loss"), row("training_time", 1.0 * n)]

def large(n):
    begin = time.time()
    mark("large", n, begin)
    return [row("perplexity", n + best, part="large")]

parts = [Part([{"n": n} for n in range(1, 5)], training, machine_bound=True, exclusive=False)]
parts.append(Part([{"n": n} for n in range(1, 4)], large, machine_bound=False, memory=8))
tables = [first, *sweep.measure_all(parts)]
# %%
def timing(n):
    begin = time.time()
    time.sleep(PAUSE / 2)
    mark("timing", n, begin)
    return [row("time", 1.0 * n)]

if profile != "tiny":
    tables.append(sweep.measure([{"n": n} for n in range(1, 4)], timing, machine_bound=True))
sweep.publish(pd.concat(tables, ignore_index=True))
"""
DRIVER = """
import sys
from bsbr.cluster.measuring import NOTEBOOKS, script
from bsbr.store import executor
if sys.argv[1]:
    from bsbr.cluster.client import Workers
    executor.use(Workers(sys.argv[1]))
path = NOTEBOOKS / "toys" / "toy.py"
exec(compile(script(path.read_text(), "cpu", sys.argv[2]), str(path), "exec"), {"__name__": "__main__"})
"""


class Checkout:
    """The library and a toy experiment, in a folder of its own."""

    def __init__(self, folder: Path, name: str = "checkout") -> None:
        self.folder, self.name, self.marks = folder / name, name, folder / "marks"
        for room in ("bsbr", "tools"):
            shutil.copytree(ROOT / room, self.folder / room, ignore=shutil.ignore_patterns("__pycache__"))
        self.write("notebooks/toys/toy.py", NOTEBOOK)
        self.write("data/words.txt", "words")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "TOY_NAME": self.name}
        environment |= {"TOY_MARKS": str(self.marks), "BSBR_CACHE": str(self.folder / "cache"), **more}
        return subprocess.Popen(
            [sys.executable, *command], env=environment, cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        )  # fmt: skip

    def drive(self, address: str, data: str, profile: str = "tiny") -> subprocess.Popen[str]:
        return self.start("-c", DRIVER, address, profile, BSBR_DATA=str(self.folder / data))

    def table(self, data: str, profile: str = "tiny") -> bytes:
        return (self.folder / data / "results" / "cpu" / profile / "toys" / "toy.csv").read_bytes()

    def entries(self, data: str) -> int:
        return len(list((self.folder / data / "journal").rglob("toy/*.json")))

    def measured(self) -> list[tuple[str, int, float, float, str]]:
        lines = self.marks.read_text().splitlines() if self.marks.exists() else []
        self.marks.unlink(missing_ok=True)
        return [(a, int(b), float(c), float(d), e) for a, b, c, d, e in (line.split() for line in lines)]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def said_by(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=LIMIT)[0]
    finally:
        process.kill()


class Deployment:
    """A scheduler and workers as a person or a batch system starts them, each a process that is started again."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.commands: dict[str, tuple[Checkout, list[str]]] = {}
        self.running: dict[str, subprocess.Popen[str]] = {}
        command = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port)]
        self.add("scheduler", checkout, [*command, "--no-dashboard", "--no-show"])

    def add(self, name: str, checkout: Checkout, command: list[str]) -> None:
        self.commands[name] = checkout, command
        self.start(name)

    def worker(self, name: str, checkout: Checkout, host: str = "127.0.0.1", memory: str = "16GiB") -> None:
        command = ["-m", "distributed.cli.dask_worker", self.address, "--no-nanny", "--nthreads", "1", "--host", host]
        self.add(name, checkout, [*command, "--memory-limit", memory, "--no-dashboard", "--name", name])

    def start(self, name: str) -> None:
        checkout, command = self.commands[name]
        self.running[name] = checkout.start(*command)

    def kill(self, name: str) -> None:
        self.running[name].send_signal(signal.SIGKILL)

    def keep_up(self) -> None:
        """Start again what has ended."""
        for name, process in self.running.items():
            if process.poll() is not None:
                self.start(name)

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


@pytest.fixture
def deployment(checkout: Checkout) -> Iterator[Deployment]:
    pytest.importorskip("distributed")
    deployment = Deployment(checkout)
    yield deployment
    deployment.end()


# -- The same numbers -----------------------------------------------------------------------------


def test_workers_give_the_table_of_one_process(checkout: Checkout) -> None:
    pytest.importorskip("distributed")
    alone = checkout.drive("", "one", "quick")
    assert alone.wait(timeout=LIMIT) == 0, said_by(alone)
    cells = {"one": checkout.measured()}
    command = ["tools/reproduce.py", "--no-book", "--target", "cpu", "--profile", "quick", "--workers", "2"]
    process = checkout.start(*command, BSBR_DATA=str(checkout.folder / "two"))
    said = said_by(process)
    log = (checkout.folder / "two/journal/cpu/quick/toys/toy.log").read_text()
    assert process.returncode == 0, said + log
    cells["two"] = checkout.measured()
    assert "Cells are handed to 2 workers" in said
    assert "0 failed" in log and " done, 2 under way" in log
    one, two = (
        pd.read_csv(checkout.folder / data / "results/cpu/quick/toys/toy.csv", dtype=str) for data in ("one", "two")
    )
    clocked = one["metric"] == "training_time"
    assert (two[clocked]["status"] == "not_available").all() and two[clocked]["value"].isna().all()
    pd.testing.assert_frame_equal(one[~clocked], two[~clocked])
    assert sorted(cell[:2] for cell in cells["one"]) == sorted(cell[:2] for cell in cells["two"])  # each once
    for what, n, begin, end, _ in cells["two"]:
        if what == "timing":
            others = [cell for cell in cells["two"] if cell[:2] != (what, n)]
            assert all(end <= other[2] or other[3] <= begin for other in others)
    record = json.loads((checkout.folder / "two/results/cpu/quick/toys/toy.json").read_text())
    assert {group["machine"]["cpu"] for group in record["measured"]} == {machine.cpu_model()}


# -- Whoever dies ---------------------------------------------------------------------------------


def test_no_kill_loses_or_doubles_a_cell(checkout: Checkout, deployment: Deployment) -> None:
    alone = checkout.drive("", "alone")
    assert alone.wait(timeout=LIMIT) == 0, said_by(alone)
    assert checkout.entries("alone") == CELLS
    chance, left = random.Random(KILLS), [("one", "scheduler", "two", "run")[number % 4] for number in range(KILLS)]
    for name in ("one", "two"):
        deployment.worker(name, checkout)
    for run in range(-(-KILLS // 4)):
        data, end = f"killed-{run}", time.monotonic() + LIMIT
        mine, left = left[:4], left[4:]
        moments = sorted(chance.sample(range(CELLS - 2), len(mine)))  # after so many cells
        process = checkout.drive(deployment.address, data)
        while process.poll() is None or mine:
            assert time.monotonic() < end, "it hangs"
            if mine and checkout.entries(data) >= moments[0]:
                time.sleep(chance.uniform(0, 0.3))
                moments.pop(0)
                if (victim := mine.pop(0)) == "run":
                    process.kill()
                    process.wait()
                    process = checkout.drive(deployment.address, data)
                else:
                    deployment.kill(victim)
            deployment.keep_up()
            time.sleep(0.02)
        assert process.returncode == 0, said_by(process)
        assert unclocked(checkout.table(data)) == unclocked(checkout.table("alone"))
        assert checkout.entries(data) == CELLS


def unclocked(table: bytes) -> list[bytes]:
    return [line for line in table.splitlines() if b"training_time" not in line]


def test_a_cell_whose_process_dies_again_and_again_is_named(checkout: Checkout, deployment: Deployment) -> None:
    start = "def counting(n):\n"
    checkout.write("notebooks/toys/toy.py", NOTEBOOK.replace(start, f"{start}    if n == 3:\n        os._exit(7)\n"))
    deployment.worker("one", checkout)
    said = said_by(checkout.drive(deployment.address, "deadly"))
    assert "n=3 is given out again: the process that measured it ended with code 7" in said
    assert "ClusterError: n=3: the process that measured it ended with code 7" in said
    assert checkout.entries("deadly") == 5  # all others of that call


# -- Who may measure what -------------------------------------------------------------------------


def test_a_worker_with_other_code_or_sources_is_refused_and_a_good_one_takes_over(
    tmp_path: Path, checkout: Checkout, deployment: Deployment
) -> None:
    """Workers in checkouts of their own, with caches of their own, at addresses of their own."""
    other, good, small = (Checkout(tmp_path, name) for name in ("other", "good", "small"))
    other.write("notebooks/toys/toy.py", NOTEBOOK.replace("n / 7", "n / 8"))
    deployment.worker("other", other, "127.0.0.2")
    process = checkout.drive(deployment.address, "refused")
    said = said_by(process)
    assert process.returncode != 0 and checkout.entries("refused") == 0
    assert "no worker can help: tcp://127.0.0.2:" in said and "its code differs: counting" in said

    other.write("notebooks/toys/toy.py", NOTEBOOK)
    other.write("data/words.txt", "other words")
    deployment.worker("good", good, "127.0.0.3")
    deployment.worker("small", small, "127.0.0.4", memory="2GiB")
    process = checkout.drive(deployment.address, "taken", "quick")
    said = said_by(process)
    assert process.returncode == 0, said
    assert "cannot help: its data/words.txt is another file" in said
    cells = checkout.measured()
    assert {name for *_, name in cells} == {"good", "small"}
    assert {name for what, *_, name in cells if what == "large"} == {"good"}  # it alone has the memory
    assert len({name for what, *_, name in cells if what == "timing"}) == 1
    assert len(cells) == CELLS + 3 == checkout.entries("taken")


def test_what_differs_is_said_in_words() -> None:
    asked: dict[str, Any] = {
        "packages": {"torch": "1", "numpy": "2"},
        "sources": {"data/x": "a"},
        "parameters": {},
        "seed": 0,
    }
    own = {**asked, "packages": {"torch": "3"}, "sources": {"data/x": "b"}, "parameters": {"steps": 4}, "seed": 5}
    assert measuring.differences(asked, own) == [
        "its numpy is missing, not 2", "its torch is 3, not 1", "its data/x is another file",
        "its parameter steps is another", "its seed is 5, not 0",
    ]  # fmt: skip
    assert measuring.differences(asked, asked) == []


def test_a_script_gets_its_parameters_where_the_notebook_would() -> None:
    found: dict[str, Any] = {}
    text = '# %% tags=["parameters", "remove-cell"]\ntarget = "cpu"\nprofile = "quick"\n# %%\nseen = target, profile\n'
    exec(compile(measuring.script(text, "gpu", "tiny"), "x", "exec"), found)
    assert found["seen"] == ("gpu", "tiny")
    found.clear()
    exec(compile(measuring.script(text.partition("# %%\n")[0], "gpu", "full"), "x", "exec"), found)
    assert found["profile"] == "full"


# -- Without Dask ---------------------------------------------------------------------------------


def test_without_dask_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "distributed" else found(name))
    for option in (["--workers", "2"], ["--scheduler", "tcp://127.0.0.1:1"]):
        with pytest.raises(SystemExit):
            reproduce.parse(option)
        assert cluster.MISSING in capsys.readouterr().err
    assert reproduce.parse([]).workers is None


def test_dask_is_imported_only_when_it_is_asked_for() -> None:
    code = "import sys, bsbr.store, bsbr.cluster.measuring; sys.exit('dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


# -- Executors of other kinds ---------------------------------------------------------------------


class Threads(executor.Here):
    """Several at once, in threads."""

    at_once = 3

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(3)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.pool.submit(fn, *args, **kwargs)


def test_any_executor_can_measure_and_a_failed_cell_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("BSBR_DATA", str(tmp_path))
    failing = [3]

    def measure(n: int) -> list[dict[str, Any]]:
        if n in failing:
            raise ValueError("three is too many")
        return [row("parameters", 2.0 * n)]

    def table() -> pd.DataFrame:
        sweep = Sweep("toys/threads", target="cpu", profile="tiny", parameters={})
        monkeypatch.setattr(fingerprint, "of", lambda _: "the same")
        return sweep.measure([{"n": n} for n in range(1, 6)], measure, machine_bound=False)

    with executor.using(Threads()):
        with pytest.raises(ValueError, match="three is too many"):
            table()
        assert "n=3  failed: three is too many" in capsys.readouterr().out
        failing.clear()
        found = table()
    said = capsys.readouterr().out
    assert said.count("kept from an earlier run") == 4 and "n=3  0.0 s  (5 done, 0 under way, 0 failed" in said
    assert list(found["n"]) == [1, 2, 3, 4, 5] and list(found["value"]) == [2, 4, 6, 8, 10]
    pd.testing.assert_frame_equal(found, table())
