"""A kept cell depends on all that its measuring function reaches, and on nothing else."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bsbr import ModelConfig, TransformerLM
from bsbr.store import UnseenError, fingerprint, provenance

# A notebook in short: what its measuring function reaches stands in its globals.
NOTEBOOK = '''
import functools
from dataclasses import dataclass
from bsbr import stats

settings = {"memory": [64, 128], "inner": {"rounds": 7}}
FACTOR = 2.0

@functools.cache
def loaded(n):
    return n + 1

def helper(n):
    return loaded(n) * FACTOR

def by_name(n):
    return n

tasks = {"read": by_name, "twice": functools.partial(helper, 2)}

def make(offset):
    def inner(n, scale=3):
        return helper(n) + offset + scale + settings["inner"]["rounds"] + len(tasks)
    return inner

class Meter:
    """A class of the notebook."""
    def read(self, n):
        return by_name(n)

shift = make(10)

def measure(n):
    """What it measures."""
    return [shift(n), Meter().read(n), [helper(x) for x in settings["memory"]]]
'''


def hash_of(tmp_path: Path, text: str) -> str:
    """The fingerprint of `measure` in a module with this text, from a process of its own."""
    file = tmp_path / "notebook.py"
    file.write_text(text)
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom bsbr.store import fingerprint\nimport notebook\n"
    code += "print(fingerprint.of(notebook.measure))"
    environment = {**os.environ, "PYTHONPATH": str(provenance.ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


CHANGES = {
    "a cached helper": ("return n + 1", "return n + 2"),
    "a constant": ("FACTOR = 2.0", "FACTOR = 3.0"),
    "a constant that a closure holds": ("make(10)", "make(11)"),
    "a default": ("scale=3", "scale=4"),
    "a lower-case setting": ('"memory": [64, 128]', '"memory": [64, 129]'),
    "a setting deep in a dict": ('"rounds": 7', '"rounds": 8'),
    "a function in a dict": ("def by_name(n):\n    return n", "def by_name(n):\n    return n + 1"),
    "an argument of a partial": ("partial(helper, 2)", "partial(helper, 3)"),
    "a method of a class": ("return by_name(n)\n", "return by_name(n) + 1\n"),
    "the function itself": ("return [shift(n)", "return [1 + shift(n)"),
}


def test_what_a_function_reaches_changes_its_fingerprint_and_a_comment_does_not(tmp_path: Path) -> None:
    before = hash_of(tmp_path, NOTEBOOK)
    seen = {before}
    for what, (old, new) in CHANGES.items():
        assert old in NOTEBOOK, what
        changed = hash_of(tmp_path, NOTEBOOK.replace(old, new, 1))
        assert changed not in seen, what
        seen.add(changed)
    comment = NOTEBOOK.replace("def helper(n):", "def helper(n):\n    # why")
    words = comment.replace("What it measures.", "In other words.").replace("A class of", "A kind in")
    assert hash_of(tmp_path, words + "\n\nunused = 3\n") == before


def _double(n: float) -> float:
    return n * 2


def reach(value: Any) -> Callable[[int], Any]:
    """A measuring function that reaches a value."""

    def measure(n: int) -> Any:
        return value, n

    return measure


@dataclass(frozen=True)
class Setting:
    size: int


class Unseen:
    pass


class Seen:
    def __init__(self, version: str) -> None:
        self.version = version

    def fingerprint(self) -> str:
        return self.version


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (torch.ones(3), torch.ones(3), torch.zeros(3)),
        (np.ones(3), np.ones(3), np.ones(4)),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})),
        (Setting(1), Setting(1), Setting(2)),
        (Seen("1"), Seen("1"), Seen("2")),
        ({"a", "b"}, {"b", "a"}, {"a", "c"}),
        (functools.partial(_double, 1), functools.partial(_double, 1), functools.partial(_double, 2)),
        (torch.device("cpu"), torch.device("cpu"), torch.device("meta")),
        ("x" * 10_000, "x" * 10_000, "x" * 9_999 + "y"),
        (lambda x: x + 1, lambda x: x + 1, lambda x: x + 2),
    ],
)
def test_values_count_by_their_content(one: Any, same: Any, other: Any) -> None:
    assert fingerprint.of(reach(one)) == fingerprint.of(reach(same)) != fingerprint.of(reach(other))


def test_what_a_decorator_of_another_package_closes_over_is_not_followed() -> None:
    @torch.inference_mode()
    def once(n: int) -> int:
        return n

    @torch.inference_mode()
    def twice(n: int) -> int:
        return 2 * n

    assert fingerprint.of(reach(once)) != fingerprint.of(reach(twice))


def test_a_model_counts_by_its_class_settings_and_weights() -> None:
    def model(seed: int, **changes: Any) -> TransformerLM:
        torch.manual_seed(seed)
        return TransformerLM(ModelConfig("bsbr", vocab_size=8, hidden_dim=8, num_heads=2, ff_dim=8, **changes))

    hashes = [fingerprint.of(reach(one)) for one in (model(0), model(0), model(1), model(0, chunk_size=16))]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert "bsbr.attention.bsbr" in fingerprint.parts(reach(model(0)))


def test_what_cannot_be_seen_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        UnseenError, match=r"closes over value is a .*Unseen, whose content cannot be seen.*fingerprint\(\)"
    ):
        fingerprint.of(reach(Unseen()))
    with pytest.raises(UnseenError, match=r"value\['a'\]\[0\] is a "):
        fingerprint.of(reach({"a": [Unseen()]}))


def test_what_goes_round_in_a_circle_is_followed_once() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert fingerprint.of(reach(circle))

    def calls_itself(n: int) -> int:
        return calls_itself(n - 1) if n else 0

    assert fingerprint.of(calls_itself)


def test_a_module_brings_what_it_imports_but_nothing_that_only_records() -> None:
    from bsbr.studies import variants

    def measure(n: int) -> Any:
        return variants.times

    found = fingerprint.parts(measure).keys()
    assert {"bsbr.studies.variants", "bsbr.measure.speed", "bsbr.attention.bsbr", "bsbr.stats"} <= {
        name.removesuffix(".estimates") for name in found
    }
    assert not {name for name in found if name.startswith(fingerprint.RECORDING)}


def test_the_public_names_lead_to_where_they_are_defined() -> None:
    def measure(n: int) -> Any:
        from bsbr import convert

        return convert

    assert "bsbr.conversion.converter" in fingerprint.parts(measure)


def test_of_a_package_only_the_modules_that_are_used_count() -> None:
    import bsbr.measure.memory
    import bsbr.measure.speed

    def measure(n: int) -> Any:
        return bsbr.measure.memory.tensors

    found = fingerprint.parts(measure).keys()
    assert "bsbr.measure.memory" in found and "bsbr.measure.speed" not in found


def test_no_place_of_the_checkout_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(root: Path) -> str:
        monkeypatch.setattr(fingerprint, "ROOT", root)
        return fingerprint.of(reach(root / "data" / "speech.txt"))

    assert hashed(Path("/one")) == hashed(Path("/another/place"))


def test_a_file_that_a_module_stands_on_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("bsbr.measure.machine")
    pin = tmp_path / "pin.json"
    monkeypatch.setattr(module, "READS", (pin,), raising=False)

    def measure(n: int) -> Any:
        return module

    seen = []
    for text in ("1", "1", "2"):
        pin.write_text(text)
        seen.append(fingerprint.of(measure))
    assert seen[0] == seen[1] != seen[2]


def test_the_locale_and_the_process_do_not_count(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        from bsbr.store import fingerprint
        from bsbr.studies import variants
        print(fingerprint.of(variants.times))
    """)
    seen = set()
    for settings in ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"}):
        environment = {**os.environ, "PYTHONPATH": str(provenance.ROOT), **settings}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        seen.add(run.stdout)
    assert len(seen) == 1


# -- Commits --------------------------------------------------------------------------------------


def test_the_commit_of_another_repository_is_not_this_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "another")
    unpacked = tmp_path / "archive"
    unpacked.mkdir()
    monkeypatch.setattr(provenance, "ROOT", unpacked)
    assert provenance.git_state() == {"commit": None, "clean": False}
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    own = provenance.git_state()
    assert own["commit"] and own["clean"]
    monkeypatch.setenv("GIT_DIR", str(provenance.Path(__file__).resolve().parents[1] / ".git"))
    assert provenance.git_state() == own
    (tmp_path / "bsbr").mkdir()
    (tmp_path / "bsbr" / "zwei Wörter ü.py").write_text("")
    assert provenance.changed_files() == ["bsbr/zwei Wörter ü.py"] or provenance.changed_files() == ["bsbr/"]
