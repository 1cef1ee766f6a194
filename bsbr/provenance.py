"""What a result depends on: the code that measured it, its sources, the software and the machine."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import platform
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
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
            raise FileNotFoundError(f"source {path} is missing; run: python -m bsbr.tasks.sources")
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            name = file.resolve()
            shown = name.relative_to(ROOT) if name.is_relative_to(ROOT) else Path(name.name)
            with file.open("rb") as stream:
                hashes[shown.as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def packages() -> dict[str, str]:
    """Python and the packages that numbers depend on, with their versions."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def changed_files() -> list[str]:
    """Files of code that differ from the commit: what makes a run not repeatable from its commit alone."""
    return [line[3:] for line in (_git("status", "--porcelain", "--", *CODE_PATHS) or "").splitlines()]


def git_state() -> dict[str, Any]:
    """The commit (None outside a checkout) and whether the code that measures was as committed."""
    commit = _git("rev-parse", "HEAD")
    return {"commit": commit, "clean": commit is not None and not changed_files()}


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip("\n")


# -- Fingerprints ---------------------------------------------------------------------------------
# A measured cell is kept as long as the code that measured it means the same, so what is hashed is
# the syntax tree without docstrings: comments, wording and layout may change.


def fingerprint(code: Iterable[ModuleType | Callable[..., Any]]) -> str:
    """One SHA-256 over functions, modules and packages, and over what they use of this project.

    A module brings every `bsbr` module that it imports, however far down; a package every file in it. A
    function brings the functions and plain values of its own module that it refers to.
    """
    trees: dict[str, str] = {}
    for item in code:
        if isinstance(item, ModuleType):
            _add_module(item.__name__, trees, whole_package=True)
        else:
            _add_function(item, trees)
    return sha256("\n".join(f"{name}: {trees[name]}" for name in sorted(trees)))


def _add_module(name: str, trees: dict[str, str], whole_package: bool = False) -> None:
    spec = importlib.util.find_spec(name)
    if name in trees or spec is None or spec.origin is None:
        return
    tree = ast.parse(Path(spec.origin).read_text())
    trees[name] = _meaning(tree)
    package = name if spec.submodule_search_locations else name.rpartition(".")[0]
    for imported in _project_imports(tree, package):
        _add_module(imported, trees)
    if whole_package and spec.submodule_search_locations:
        for file in sorted(Path(spec.origin).parent.glob("*.py")):
            if file.stem != "__init__":
                _add_module(f"{name}.{file.stem}", trees)


def _project_imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("bsbr."))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = package.split(".")
                module = ".".join(filter(None, [*parents[: len(parents) - node.level + 1], module]))
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name for name in (module, *names) if name.startswith("bsbr.") and _is_module(name))


@functools.cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _add_function(function: Callable[..., Any], trees: dict[str, str]) -> None:
    function = inspect.unwrap(function)
    name = f"{function.__module__}.{function.__qualname__}"
    if name in trees:
        return
    trees[name] = _meaning(ast.parse(textwrap.dedent(inspect.getsource(function))))
    if not isinstance(function, FunctionType):
        return
    for used in sorted(_names(function.__code__)):
        value = function.__globals__.get(used)
        if isinstance(value, FunctionType | type) and value.__module__ == function.__module__:
            _add_function(value, trees)
        elif used.isupper() and isinstance(value, int | float | str | tuple | list | dict):
            trees[f"{name}.{used}"] = repr(value)


def _names(code: Any) -> set[str]:
    """Names that a function looks up, its nested functions and comprehensions included."""
    inner = (constant for constant in code.co_consts if hasattr(constant, "co_names"))
    return set(code.co_names).union(*map(_names, inner))


def _meaning(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest
    return ast.dump(tree)
