"""What there is to run: `nox -l` lists it. All sessions share one environment, which the first one sets up."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import nox
from filelock import FileLock
from nox.command import CommandFailed

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "none"  # nox would make one environment a session, each with its own PyTorch

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".nox" / "bsbr"
SCRIPTS = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
HARNESS = HERE / ".nox" / "harness"
PACKAGES = Path("Lib" if os.name == "nt" else f"lib/python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
# What a person has set for other work: None takes it away, so that only what requirements.txt pins is imported.
VARIABLES: dict[str, str | None] = {
    "VIRTUAL_ENV": str(ENVIRONMENT),
    "PATH": os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", os.defpath)]),
    "PYTHONPATH": None,
    "PYTHONHOME": None,
    "PYTHONSTARTUP": None,
    "PYTHONNOUSERSITE": "1",
    "PYTHONUTF8": "1",  # whatever the locale is
    "PIP_USER": "0",  # also against `user = true` in a configuration of pip, whose other settings stay
    "PIP_TARGET": None,
    "PIP_PREFIX": None,
    "JUPYTER_PATH": None,
}


def run(session: nox.Session, command: str, *arguments: str) -> None:
    """Run a command of the shared environment, which is made, or brought to what requirements.txt pins, if need be."""
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    with FileLock(ENVIRONMENT.parent / "bsbr.lock"):  # two sessions at once: the second waits for the first
        set_up(session)
    session.run(str(SCRIPTS / command), *arguments, env=VARIABLES)


def set_up(session: nox.Session) -> None:
    stamp = ENVIRONMENT / "installed.sha256"
    # The path is part of it: in a checkout that was moved or copied, the environment still points to the old one.
    pins = [(HERE / name).read_text(encoding="utf-8") for name in ("requirements.txt", "requirements-hashes.txt")]
    parts = [*pins, sys.version, str(HERE)]
    wanted = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    if sys.version_info < (3, 11, 5):
        session.error(f"nox runs on Python {sys.version.split()[0]}: install it with 3.11.5 or newer.")
    session.log("Installing what requirements.txt pins: on a first run this takes some minutes.")
    make_environment(session, ENVIRONMENT)
    pip = [str(SCRIPTS / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    pip += [] if sys.stdout.isatty() else ["--quiet"]
    try:
        session.run(*pip, "--require-hashes", "--no-deps", "--requirement", "requirements-hashes.txt", env=VARIABLES)
    except CommandFailed:
        session.warn("Not every file here has the hash of what was tested: installing by version alone.")
    report = ENVIRONMENT / "installed.json"
    # torch, and CUDA where it needs it
    session.run(*pip, "--report", str(report), "--requirement", "requirements.txt", env=VARIABLES)
    if by_version := without_hash(report):
        session.log(f"Installed by version alone, no hash being pinned: {', '.join(by_version)}.")
    session.run(*pip, "--no-deps", "--no-build-isolation", "--editable", ".", env=VARIABLES)
    stamp.write_text(wanted, encoding="utf-8")


def set_up_harness(session: nox.Session) -> None:
    """An environment that has the shared one's packages behind its own."""
    stamp, pins = HARNESS / "installed.sha256", HERE / "requirements-harness.txt"
    parts = [(ENVIRONMENT / "installed.sha256").read_text(encoding="utf-8"), pins.read_text(encoding="utf-8")]
    wanted = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    make_environment(session, HARNESS)
    pip = [str(HARNESS / SCRIPTS.name / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    session.run(*pip, "--require-hashes", "--no-deps", "--requirement", str(pins), env=VARIABLES)
    shared = f"import site; site.addsitedir({str(ENVIRONMENT / PACKAGES)!r})\n"
    (HARNESS / PACKAGES / "shared.pth").write_text(shared, encoding="utf-8")
    stamp.write_text(wanted, encoding="utf-8")


def make_environment(session: nox.Session, folder: Path) -> None:
    """An empty one, by virtualenv: it comes with nox and brings its own pip, where Debian's Python has no ensurepip."""
    make = [sys.executable, "-m", "virtualenv", "--quiet", "--clear", "--app-data", str(HERE / ".nox" / "virtualenv")]
    session.run(*make, str(folder), env=VARIABLES)


def without_hash(report: Path) -> list[str]:
    """What pip reports to have installed from files whose hash is not in requirements-hashes.txt, and from where."""
    pinned = re.findall(r"sha256:(\w{64})", (HERE / "requirements-hashes.txt").read_text(encoding="utf-8"))
    found = []
    for one in json.loads(report.read_text(encoding="utf-8"))["install"] if report.exists() else ():
        came = one["download_info"]
        if came.get("archive_info", {}).get("hashes", {}).get("sha256") not in pinned:
            place = re.sub(r"//[^/@]*@", "//", came["url"]).rpartition("/")[0]  # without a password
            found.append(f"{one['metadata']['name']} {one['metadata']['version']} from {place}")
    return found


@nox.session
def reproduce(session: nox.Session) -> None:
    """Run the experiments, build the book, and report each published number beside this machine's."""
    try:
        run(session, "python", "tools/reproduce.py", *session.posargs)
    except CommandFailed as error:
        sys.exit(error.return_code or 1)  # nox itself would end with 1, whatever the runner's code means


@nox.session
def book(session: nox.Session) -> None:
    """Build the book from the published results, without measuring."""
    run(session, "python", "tools/reproduce.py", "--only-book")


@nox.session
def pdf(session: nox.Session) -> None:
    """Make a PDF of the book, and one HTML file that holds all of it, from the published results."""
    run(session, "python", "tools/pdf.py")


@nox.session
def pages(session: nox.Session) -> None:
    """Look at every page of the book in a browser, light and dark, wide and narrow; `tests` looks at some of them."""
    run(session, "python", "-m", "pytest", "--every-page", "tests/test_site.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the unit tests, every notebook at a tiny size, a build of the book, and a browser over its pages."""
    run(session, "python", "-m", "pytest", *session.posargs)


@nox.session
def harness(session: nox.Session) -> None:
    """Evaluate a trained and a converted model by EleutherAI's harness, as the book's page on other tools shows it."""
    with FileLock(ENVIRONMENT.parent / "bsbr.lock"):
        set_up(session)
        set_up_harness(session)
    python = str(HARNESS / SCRIPTS.name / "python")
    session.run(python, "-m", "pytest", "tests/test_tools_page.py", *session.posargs, env=VARIABLES)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and types, and change nothing."""
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")
    run(session, "mypy")


@nox.session
def lab(session: nox.Session) -> None:
    """Open JupyterLab on the experiments: a .py opens as a notebook, and saving it writes that .py only."""
    run(session, "python", "tools/lab.py", *session.posargs)


@nox.session
def pair(session: nox.Session) -> None:
    """Bring each notebook's .ipynb to what its .py says, keeping the outputs of unchanged cells."""
    run(session, "python", "tools/pairs.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure mechanisms (speed, memory), pages (first paint, size) and workers, and hold them against the aims."""
    parts = [part for part in session.posargs if part not in ("pages", "workers")]
    failed = []
    if not session.posargs or "pages" in session.posargs:
        failed += attempt(session, "python", "tools/weigh.py")
    if not session.posargs or "workers" in session.posargs:
        failed += attempt(session, "python", "tools/share.py")
    if not session.posargs or parts:
        failed += attempt(session, "python", "-m", "bsbr.studies.bench", *parts)
    if failed:
        session.error("not every aim was kept")


def attempt(session: nox.Session, *command: str) -> list[str]:
    """Run a command, and return its name if it fails, so that another can still run."""
    try:
        run(session, *command)
    except CommandFailed:
        return [" ".join(command)]
    return []


@nox.session
def audit(session: nox.Session) -> None:
    """List the licence of every installed package, and the known vulnerabilities of those that are pinned."""
    run(session, "python", "tools/audit.py", *session.posargs)
