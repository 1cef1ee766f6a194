"""What several test modules share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from browser import FLAGS, chromium

ROOT = Path(__file__).resolve().parent.parent
BUILD_LIMIT = 180  # seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-page",
        action="store_true",
        help="look at all pages of the book, not at some of each kind, and run slow examples",
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None:
        pytest.skip("no Chromium found: install one (apt-get install chromium) or set BSBR_CHROMIUM to its path")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def build(output: Path, **environment: str) -> Path:
    """Build the book as `nox -s book` does, but into a folder of its own."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-W", "--nitpick", "--keep-going"]
    command += ["--path-output", str(output)]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert run.returncode == 0, f"the book does not build cleanly:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return output / "_build" / "html"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built book. BSBR_SITE may name one that is already built, to try the browser tests again quickly."""
    if os.environ.get("BSBR_SITE"):
        return Path(os.environ["BSBR_SITE"])
    begin = time.perf_counter()
    pages = build(tmp_path_factory.mktemp("book"))
    assert time.perf_counter() - begin < BUILD_LIMIT
    return pages
