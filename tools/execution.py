"""Executing one notebook, in surroundings that are the run's own, with all it says in a log."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import jupyter_client.kernelspec
import nbclient.exceptions
import papermill
import papermill.clientwrap
import papermill.exceptions
from papermill.engines import NBClientEngine, papermill_engines

Watch = Callable[[str], object]
KERNEL = Path(__file__).resolve().with_name("kernel.py")
START_LIMIT = 600  # seconds until a kernel has to answer, which on a busy machine takes long
# What a person has set for other work: none of it may reach a measurement.
PERSONAL = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "PYTHONSTARTUP", "MATPLOTLIBRC")
PERSONAL_PREFIXES = ("JUPYTER_", "IPYTHON", "MPL")


@contextlib.contextmanager
def own_surroundings(folder: Path) -> Iterator[None]:
    """Give this process, and every one that it starts, a HOME, an IPython profile and a kernelspec of its own.

    Settings of a person or of the machine reach no kernel, a kernelspec from elsewhere does not win, and nothing is
    written to their HOME. The folder is emptied before and removed afterwards.
    """
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    # Each kernel would warn that it talks over a local port.
    command = [sys.executable, str(KERNEL), "-f", "{connection_file}", "--log-level=CRITICAL"]
    spec = {"argv": command, "display_name": "Python 3 (ipykernel)", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    before = dict(os.environ)
    for name in before:
        if name in PERSONAL or name.startswith(PERSONAL_PREFIXES):
            del os.environ[name]
    os.environ |= _own_variables(folder, before)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(folder, ignore_errors=True)


def _own_variables(folder: Path, before: dict[str, str]) -> dict[str, str]:
    jupyter = {f"JUPYTER_{name}": str(folder / "jupyter") for name in ("PATH", "DATA_DIR", "CONFIG_DIR", "RUNTIME_DIR")}
    own = {"HOME": str(folder), "IPYTHONDIR": str(folder / "ipython"), **jupyter}
    # Git is asked for the commit, and may need what a person told it: that a folder of another owner is safe.
    settings = (Path.home() / ".gitconfig", Path.home() / ".config" / "git" / "config")
    known = [str(path) for path in settings if path.is_file()]
    if known and "GIT_CONFIG_GLOBAL" not in before:
        own["GIT_CONFIG_GLOBAL"] = known[0]
    return own


def execute(notebook: Any, output: Path, log: Path, folder: Path, parameters: dict[str, str], watch: Watch) -> Any:
    """Run all cells of a notebook in a new kernel and return it with its outputs, which `output` keeps too.

    Args:
        notebook: the cells to run.
        output: where the notebook is written while it runs, as far as it got.
        log: gets the name of each cell and everything that kernel and cells print.
        folder: where the kernel runs.
        parameters: what the cell tagged `parameters` is overridden with.
        watch: is told where the run has got to.
    """
    papermill_engines.register("watched", WatchedEngine)
    for file in (output, log):
        file.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stream:
        return papermill.execute_notebook(
            notebook,
            output,
            parameters=parameters,
            engine_name="watched",
            kernel_name="python3",
            language="python",
            cwd=folder,
            progress_bar=False,
            log=stream,
            watch=watch,
        )


class WatchedEngine(NBClientEngine):
    """Papermill's engine, with everything that cells and kernel print in a log, and a word where it has got to."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, log: TextIO, watch: Watch, **_: Any) -> None:
        headings = list(_headings(nb_man.nb))
        begin, shown = nb_man.cell_start, _Log(log, watch)

        def cell_start(cell: Any, cell_index: int, **more: Any) -> None:
            if cell.cell_type == "code":
                shown.head(f"cell {cell_index + 1}/{len(headings)}  {headings[cell_index]}")
            begin(cell, cell_index, **more)

        nb_man.cell_start = cell_start
        client = papermill.clientwrap.PapermillNotebookClient(
            nb_man, kernel_name=kernel_name, startup_timeout=START_LIMIT, stdout_file=shown, stderr_file=shown
        )
        client.execute(stdout=log, stderr=log)  # what the kernel says outside its cells


class _Log:
    """A log that tells its latest line on."""

    def __init__(self, stream: TextIO, watch: Watch) -> None:
        self.stream, self.watch, self.heading, self.line = stream, watch, "", ""

    def head(self, heading: str) -> None:
        self.heading = heading
        self.write(f"{heading}\n")

    def write(self, text: str) -> None:
        self.stream.write(text)
        self.flush()
        *whole, self.line = (self.line + text).splitlines(keepends=True) or [""]
        latest = self.line.strip() or (whole or [""])[-1].strip()
        if self.line.endswith("\n"):
            self.line = ""
        self.watch(self.heading if latest in ("", self.heading) else f"{self.heading} · {latest}")

    def flush(self) -> None:
        self.stream.flush()


def _headings(notebook: Any) -> Iterator[str]:
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next((line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")), heading)
        yield heading


# -- What went wrong ------------------------------------------------------------------------------


def sentence(error: BaseException) -> str:
    """One line about a failure that says what a person can do, where something can be done."""
    if isinstance(error, papermill.exceptions.PapermillExecutionError):
        return _short(f"{error.ename}: {error.evalue}")
    if isinstance(error, nbclient.exceptions.DeadKernelError):
        return (
            "its kernel died, as when memory runs out or somebody ends it. What was measured is kept: free memory, and "
            "run it again"
        )
    if isinstance(error, jupyter_client.kernelspec.NoSuchKernel):
        return f"{error}: the environment is damaged; remove .nox and run again"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left on the disk of {error.filename or 'the data folder'}. Free some, and run it again"
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{error.filename or 'the data folder'} cannot be written: {error.strerror}"
    return _short(f"{type(error).__name__}: {error}")


def _short(text: str, limit: int = 300) -> str:
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= limit else line[:limit] + " …"


def tail(log: Path, lines: int = 25) -> str:
    """The end of a log, where a failure has its reasons."""
    try:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        return "\n".join(_short(line, 160) for line in said)
    except OSError:
        return ""
