"""What there is to run. Every session sets itself up in one shared environment, and `nox -l` lists them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]

HERE = Path(__file__).parent
SHARED = ".nox/bsbr"


def install(session: nox.Session) -> None:
    """The pinned packages and this one, installed again only if the pins have changed."""
    stamp = HERE / SHARED / "installed.sha256"
    wanted = hashlib.sha256((HERE / "requirements.txt").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        session.log("installing what requirements.txt pins; this is the longest step of a first run")
        session.install("--requirement", "requirements.txt", silent=False)
        session.install("--no-deps", "--no-build-isolation", "--editable", ".")
        stamp.write_text(wanted)


@nox.session(venv_location=SHARED)
def reproduce(session: nox.Session) -> None:
    """Run the experiments, build the book, and report each published number beside this machine's."""
    install(session)
    session.run("python", "notebooks/reproduce.py", *session.posargs)


@nox.session(venv_location=SHARED)
def book(session: nox.Session) -> None:
    """Build the book from the published results, without measuring."""
    install(session)
    session.run("python", "notebooks/reproduce.py", "--only-book")


@nox.session(venv_location=SHARED)
def tests(session: nox.Session) -> None:
    """Run the unit tests, both notebooks at a tiny size, a build of the book, and a browser over its pages."""
    install(session)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(venv_location=SHARED)
def lint(session: nox.Session) -> None:
    """Check style, formatting and types, and change nothing."""
    install(session)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session(venv_location=SHARED)
def lab(session: nox.Session) -> None:
    """Open JupyterLab on the experiments; saving a notebook keeps its .py twin in step."""
    install(session)
    session.run("jupytext", "--sync", *sorted(str(path) for path in Path("notebooks").glob("*/*.py")))
    session.run("jupyter", "lab", "notebooks", *session.posargs)


@nox.session(venv_location=SHARED)
def bench(session: nox.Session) -> None:
    """Time BSBR against standard attention and hold the ratios against what the project aims at."""
    install(session)
    session.run("python", "-m", "bsbr.measure.bench", *session.posargs)
