"""What there is to run: `nox -l` lists it. All sessions share one environment, which the first one sets up."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "none"  # nox would make one environment a session, each with its own PyTorch

ENVIRONMENT = Path(".nox", "bsbr")
SCRIPTS = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")


def run(session: nox.Session, command: str, *arguments: str) -> None:
    """Run a command of the shared environment, which is made, or brought to what requirements.txt pins, if need be."""
    stamp = ENVIRONMENT / "installed.sha256"
    wanted = hashlib.sha256(Path("requirements.txt").read_bytes() + sys.version.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        session.log("Installing what requirements.txt pins: on a first run this takes some minutes.")
        session.run(sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT))
        pip = [str(SCRIPTS / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar=off"]
        session.run(*pip, "--requirement", "requirements.txt")
        session.run(*pip, "--no-deps", "--no-build-isolation", "--editable", ".")
        stamp.write_text(wanted)
    path = os.pathsep.join([str(SCRIPTS.resolve()), os.environ["PATH"]])
    session.run(str(SCRIPTS / command), *arguments, env={"PATH": path, "VIRTUAL_ENV": str(ENVIRONMENT.resolve())})


@nox.session
def reproduce(session: nox.Session) -> None:
    """Run the experiments, build the book, and report each published number beside this machine's."""
    run(session, "python", "notebooks/reproduce.py", *session.posargs)


@nox.session
def book(session: nox.Session) -> None:
    """Build the book from the published results, without measuring."""
    run(session, "python", "notebooks/reproduce.py", "--only-book")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the unit tests, every notebook at a tiny size, a build of the book, and a browser over its pages."""
    run(session, "python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and types, and change nothing."""
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")
    run(session, "mypy")


@nox.session
def lab(session: nox.Session) -> None:
    """Open JupyterLab on the experiments; saving a notebook keeps its .py twin in step."""
    run(session, "jupytext", "--sync", *sorted(str(path) for path in Path("notebooks").glob("*/*.py")))
    run(session, "jupyter", "lab", "notebooks", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure speed and memory of every mechanism and hold them against what the project aims at."""
    run(session, "python", "-m", "bsbr.measure.bench", *session.posargs)
