"""Where a result comes from: the commit, the packages, and the sources by their hashes."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CODE_PATHS = ("bsbr", ":(glob)notebooks/**/*.py", "requirements.txt", "pyproject.toml")
PACKAGES = ("torch", "transformers", "numpy", "pandas", "scipy", "tokenizers", "safetensors", "gguf")


def sha256(data: bytes | str) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def hash_sources(paths: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of each file, and of each file in a folder, by its path below the project's root.

    Raises:
        FileNotFoundError: a source is missing.
    """
    hashes = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"source {path} is missing; run: python -m bsbr.sources")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            name = file.resolve()
            shown = name.relative_to(ROOT) if name.is_relative_to(ROOT) else Path(name.name)
            with file.open("rb") as stream:
                hashes[shown.as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


@functools.cache
def _packages() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def packages() -> dict[str, str]:
    """Python and the packages that numbers depend on, with their versions."""
    return dict(_packages())


@functools.cache
def version_of(module: str) -> str:
    """The version of the installed package that brings a top-level module, or nothing where none does."""
    names = importlib.metadata.packages_distributions().get(module, [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


def changed_files() -> list[str]:
    """Files of code that differ from the commit: what makes a run not repeatable from its commit alone."""
    found = (_git("status", "--porcelain", "-z", "--no-renames", "--", *CODE_PATHS) or "").split("\0")
    return [entry[3:] for entry in found if entry]


def git_state() -> dict[str, Any]:
    """The commit (None outside a checkout of its own) and whether the code that measures was as committed."""
    commit = _git("rev-parse", "HEAD")
    return {"commit": commit, "clean": commit is not None and not changed_files()}


def _git(*arguments: str) -> str | None:
    """What git says of this checkout; None where it has no repository of its own, be it inside another's or not."""
    if not (ROOT / ".git").exists():
        return None
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as a hook sets them
    try:
        run = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", *arguments],
            cwd=ROOT, env=kept, capture_output=True, encoding="utf-8", check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip("\n")
