"""The runner on toy experiments: what reaches a kernel, what fails, what is reported, and who may run."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsbr.store import reference
from bsbr.store.provenance import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import execution
import reproduce

LIMIT = 300  # seconds, after which something hangs
START = """# %% [markdown]
# # A toy
# %% tags=["parameters"]
target = "cpu"
profile = "quick"
# %% [markdown]
# ## Measuring
# %%
import json, os, signal, sys, time, warnings
from pathlib import Path
from bsbr.store import Sweep, row
"""
END = """
def measure(n):
    return [row("parameters", 2.0 * n), row("time", 0.1 * n)]

sweep = Sweep("toys/{name}", target=target, profile=profile, parameters={{}})
sweep.publish(sweep.measure([{{"n": n}} for n in (1, 2, 3)], measure, machine_bound=False))
"""
DRIVER = """
import sys
from pathlib import Path
import pairs, reproduce
pairs.NOTEBOOKS = Path(sys.argv[1])
sys.exit(reproduce.main(sys.argv[2:]))
"""


class Project:
    """Toy experiments and their data in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notebooks, self.data = folder, folder / "notebooks", folder / "data"
        self.more: dict[str, str] = {}

    def add(self, name: str, body: str = "", end: str = END) -> None:
        path = self.notebooks / "toys" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(START + body + end.format(name=name), encoding="utf-8")

    def start(self, *arguments: str, profile: str = "quick", out: int = subprocess.PIPE) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, str(self.notebooks), "--no-book", "--target", "cpu"]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
        environment = {**os.environ, "BSBR_DATA": str(self.data), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        return subprocess.Popen(
            [*command, "--profile", profile, *arguments],
            env={**environment, **self.more}, stdout=out, stderr=subprocess.STDOUT, encoding="utf-8",
        )  # fmt: skip

    def run(self, *arguments: str, profile: str = "quick") -> tuple[int, str]:
        process = self.start(*arguments, profile=profile)
        said, _ = process.communicate(timeout=LIMIT)
        return process.returncode, said

    def log(self, name: str, profile: str = "quick") -> str:
        return (self.data / "journal" / "cpu" / profile / "toys" / f"{name}.log").read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def wait_for(condition: object) -> None:
    end = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


# -- The terminal ---------------------------------------------------------------------------------


def test_a_run_says_one_line_per_notebook_and_one_per_comparison(project: Project) -> None:
    project.add("good", 'warnings.warn("IProgress not found"); print("a line of a cell"); os.write(2, b"raw words\\n")')
    code, said = project.run(profile="full")
    assert code == 0, said
    assert "nothing was published before" in said
    code, said = project.run()
    assert code == 0, said
    assert re.search(r"^\[1/1\] toys/good \(cpu, quick\) … \d+ s$", said, re.MULTILINE)
    assert re.search(r"toys/good \(cpu, quick\): 3 reproduced, 0 drifted, 3 not compared, 0 not measured here", said)
    assert len(said.splitlines()) < 10
    for words in ("IProgress", "a line of a cell", "raw words"):
        assert words not in said
        assert words in project.log("good")
    assert "Measuring" in project.log("good") and "3/3  n=3" in project.log("good")


def test_a_terminal_has_one_line_that_is_kept_up_to_date(project: Project) -> None:
    project.add("good", "print('a line of a cell')")
    leader, follower = pty.openpty()
    process = project.start(out=follower)
    os.close(follower)
    said = ""
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while piece := os.read(leader, 4096):
            said += piece.decode()
    assert process.wait(timeout=LIMIT) == 0
    (line,) = [line for line in said.split("\n") if "[1/1]" in line and "cell" in line]
    assert "Measuring · 3/3  n=3  0.0 s" in line
    assert re.search(r"\r\x1b\[K\[1/1\] toys/good \(cpu, quick\): \d+ s\r?$", line)


def test_the_terminal_shows_drifted_numbers_alone_and_strict_has_a_code_of_its_own(project: Project) -> None:
    project.add("good")
    assert project.run(profile="full")[0] == 0
    project.add("good", end=END.replace("2.0 * n", "2.0 * n + (n == 3)"))
    code, said = project.run()
    assert code == 0, said
    assert "Drifted: 1 that no clock touches, 0 that one does" in said
    assert "  toys/good parameters n=3: 6.00 → 7.00" in said
    assert "n=2" not in said
    project.add("good", end=END.replace("2.0 * n", "2.0 * n + (n == 3) / 1e5"))
    assert "  toys/good parameters n=3: 6.00000 → 6.00001" in project.run()[1]
    code, said = project.run("--strict")
    assert code == reproduce.DRIFTED
    assert "1 numbers that no clock touches have drifted" in said
    rows = (project.data / "journal/cpu/quick/toys/good.comparison.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 7


def test_strict_needs_something_to_compare_with(project: Project) -> None:
    project.add("good")
    code, said = project.run("--strict")
    assert code == reproduce.DRIFTED
    assert "none of these experiments has a published number" in said


def test_a_reference_holds_the_numbers_that_no_clock_touches(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.add("good")
    assert project.run("--set-reference", profile="tiny")[0] == 0
    monkeypatch.setenv("BSBR_DATA", str(project.data))
    kept = reference.load_reference("toys/good", "cpu", "tiny")
    assert list(kept.table["metric"]) == ["parameters"] * 3
    code, said = project.run("--strict", profile="tiny")
    assert code == 0, said
    assert "3 reproduced" in said
    project.add("good", end=END.replace("2.0 * n", "2.5 * n"))
    assert project.run("--strict", profile="tiny")[0] == reproduce.DRIFTED


# -- What fails -----------------------------------------------------------------------------------


def test_the_failure_of_one_experiment_is_its_own(project: Project) -> None:
    project.add("a_killed", "os.kill(os.getpid(), signal.SIGKILL)")
    project.add("b_wrong", 'print("its last words"); raise ValueError("n must be positive")')
    project.add("c_full", 'raise OSError(28, "No space left on device")')
    project.add("d_silent", end="")
    project.add("e_good")
    code, said = project.run()
    assert code == reproduce.FAILED
    assert "a_killed (cpu, quick): failed: its kernel died" in said
    assert "b_wrong (cpu, quick): failed: ValueError: n must be positive" in said
    assert "its last words" in said
    assert "c_full (cpu, quick): failed: OSError: [Errno 28] No space left on device" in said
    assert "d_silent (cpu, quick): failed: MissingResultError: no result of toys/d_silent" in said
    assert "e_good (cpu, quick): nothing was published before" in said
    assert "Traceback" not in said.split("Published numbers")[1]


def test_an_altered_published_table_is_no_unpublished_one(project: Project) -> None:
    project.add("good")
    assert project.run(profile="full")[0] == 0
    published = project.data / "results/cpu/full/toys/good.csv"
    published.write_text(published.read_text(encoding="utf-8").replace("6", "8"), encoding="utf-8")
    code, said = project.run()
    assert code == reproduce.FAILED
    assert "failed: " in said and "is not the table that its record describes" in said


def test_data_that_cannot_be_written_is_one_sentence(project: Project) -> None:
    project.add("good")
    project.data.write_text("a file where a folder should be", encoding="utf-8")
    code, said = project.run()
    assert code == reproduce.FAILED
    assert "The run cannot go on" in said and "Traceback" not in said


def test_a_full_disk_is_one_sentence() -> None:
    said = execution.sentence(OSError(28, "No space left on device", "data/x.csv"))
    assert said == "no space is left on the disk of data/x.csv. Free some, and run it again"


def test_a_copied_checkout_does_not_run_with_the_code_of_the_other(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    call = [sys.executable, str(tmp_path / "tools" / "reproduce.py"), "--no-book"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BSBR_DATA": str(tmp_path / "data")}
    done = subprocess.run(call, env=environment, capture_output=True, encoding="utf-8", timeout=LIMIT)
    assert done.returncode == reproduce.FAILED
    assert "the code of" in done.stdout and "another checkout" in done.stdout
    assert not (tmp_path / "data").exists()


# -- One run at a time ----------------------------------------------------------------------------


def test_a_second_run_names_the_first_and_ends_or_waits(project: Project) -> None:
    project.add("slow", f'while not Path(r"{project.folder / "go"}").exists(): time.sleep(0.1)')
    first = project.start()
    wait_for(lambda: (project.data / "journal" / "run.holder").exists())
    code, said = project.run()
    assert code == reproduce.BUSY
    assert f"nox -s reproduce (process {first.pid}, since " in said
    second = project.start("--wait")
    assert second.stdout and f"process {first.pid}" in second.stdout.readline()
    (project.folder / "go").touch()
    assert first.wait(timeout=LIMIT) == 0
    assert second.wait(timeout=LIMIT) == 0


def test_a_killed_run_holds_no_lock(project: Project) -> None:
    project.add("slow", "time.sleep(60)")
    first = project.start()
    wait_for(lambda: (project.data / "journal" / "run.holder").exists())
    first.send_signal(signal.SIGKILL)
    first.wait()
    project.add("slow")
    assert project.run()[0] == 0


# -- Surroundings ---------------------------------------------------------------------------------


def test_no_setting_of_a_person_reaches_a_kernel(project: Project) -> None:
    """A profile, the machine's settings, stale kernelspecs in HOME and on JUPYTER_PATH; and HOME stays as it was."""
    home, found, machine = (project.folder / name for name in ("home", "found.json", "etc"))
    config = home / ".ipython" / "profile_default" / "ipython_kernel_config.py"
    stale = {"argv": ["/nowhere/python", "{connection_file}"], "display_name": "stale", "language": "python"}
    for file, text in {
        config: "c.InteractiveShell.ast_node_interactivity = 'all'\n",
        config.parent / "startup" / "hello.py": "hello = 1\n",
        machine / "ipython_config.py": "c.InteractiveShell.ast_node_interactivity = 'all'\n",
        machine / "startup" / "hello.py": "hello = 1\n",
        project.folder / "site" / "sitecustomize.py": (  # stands in for /etc, which is not a test's to write to
            f"from IPython.core import application\napplication.SYSTEM_CONFIG_DIRS[:] = [{str(machine)!r}]\n"
        ),
        home / ".local/share/jupyter/kernels/python3/kernel.json": json.dumps(stale),
        project.folder / "path/kernels/python3/kernel.json": json.dumps(stale),
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    before = sorted(home.rglob("*"))
    project.more = {
        "HOME": str(home),
        "JUPYTER_PATH": str(project.folder / "path"),
        "IPYTHONDIR": str(home / ".ipython"),
        "PYTHONPATH": os.pathsep.join(map(str, [project.folder / "site", ROOT, ROOT / "tools"])),
    }
    project.add(
        "curious",
        "shell = get_ipython()\n"
        f'Path(r"{found}").write_text(json.dumps({{"home": os.environ["HOME"], "all": shell.ast_node_interactivity,'
        ' "hello": "hello" in globals(), "python": sys.executable, "path": sys.path}))',
    )
    code, said = project.run()
    assert code == 0, said
    seen = json.loads(found.read_text(encoding="utf-8"))
    assert seen["all"] == "last_expr" and not seen["hello"]
    assert seen["python"] == sys.executable
    assert seen["path"].count(str(ROOT / "tools")) == 1  # that of PYTHONPATH above: starting the kernel adds none
    assert Path(seen["home"]).is_relative_to(project.data) and not Path(seen["home"]).exists()
    assert sorted(home.rglob("*")) == before


def test_folders_of_checkpoints_hold_no_experiments(project: Project) -> None:
    project.add("good")
    hidden = project.notebooks / ".ipynb_checkpoints"
    hidden.mkdir()
    (hidden / "good-checkpoint.py").write_text("1", encoding="utf-8")
    code, said = project.run("nonsense")
    assert code == 2
    assert said.strip().endswith("there are toys/good")
