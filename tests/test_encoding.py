"""Text is UTF-8 whatever the locale says: every place that reads or writes text names the encoding."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bsbr", "tools", "book", "notebooks")
FILES = sorted([ROOT / "noxfile.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
WITHOUT = {"safe_open", "tarfile.open", "gzip.open", "wave.open", "os.open", "Image.open"}  # not of text


def silent(tree: ast.AST) -> Iterator[int]:
    """The lines of calls that open a text without saying its encoding."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        called, name = ast.unparse(call.func), getattr(call.func, "attr", getattr(call.func, "id", ""))
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in given or None in given or called in WITHOUT:
            continue
        reads = name == "read_text" and not call.args
        writes = name == "write_text" and len(call.args) < 2
        literals = [ast.unparse(value).strip("'\"") for value in [*call.args, *given.values()]]
        binary = any(set(text) <= set("rwxab+") and "b" in text for text in literals)
        text_of_process = name in ("run", "Popen", "check_output") and "text" in given
        if reads or writes or text_of_process or (name == "open" and not binary):
            yield call.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_text_is_opened_with_a_stated_encoding(path: Path) -> None:
    lines = list(silent(ast.parse(path.read_text(encoding="utf-8"))))
    assert not lines, f"{path.relative_to(ROOT)}: lines {lines}"


def test_the_search_finds_what_states_none() -> None:
    wrong = ['open("x")', 'p.open("w")', "p.read_text()", 'p.write_text("x")', 'run("x", text=True)']
    right = ['open("x", "rb")', 'p.open(mode="wb")', 'p.read_text(encoding="utf-8")', 'run("x", encoding="utf-8")']
    assert sorted(silent(ast.parse("\n".join([*wrong, *right])))) == [1, 2, 3, 4, 5]


def test_results_are_read_under_a_locale_without_utf_8() -> None:
    """With UTF-8 mode switched off, as Python does not do by itself under POSIX."""
    code = "from bsbr.store import load, published; print(len([load(name) for name in published()]))"
    environment = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
