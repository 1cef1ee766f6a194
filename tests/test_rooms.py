"""Models below, instruments beside them, studies above; the store knows no model, and only `show` knows notebooks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsbr.store.provenance import ROOT

PACKAGE = ROOT / "bsbr"
# For each room those that it may know, beside itself. What stands here has no circle: a test below sees to it.
BELOW: dict[str, set[str]] = {
    "stats": set(),
    "store": {"stats"},
    "attention": set(),
    "mechanisms": set(),
    "config": {"mechanisms"},
    "rotary": set(),
    "short_conv": set(),
    "mixers": {"attention", "config", "mechanisms", "rotary", "short_conv"},
    "saving": {"config", "store"},
    "model": {"config", "mixers", "rotary", "saving", "short_conv"},
    "hf": {"config", "model", "saving"},
    "parallel": {"attention", "config", "mixers", "model", "rotary"},
    "sources": {"store"},
    "conversion": {"attention", "sources", "store"},
    "training": {"config", "mechanisms", "model", "sources", "store", "stats"},
    "measure": {"stats", "store"},
    "cluster": {"sources", "store"},
    "claims": {"stats", "store"},
    "studies": {
        "attention", "mechanisms", "config", "rotary", "mixers", "model", "parallel", "sources", "conversion",
        "training", "measure", "stats", "store",
    },
    "show": {"claims", "mechanisms", "stats", "store"},
}  # fmt: skip
LONGEST = 360  # lines of a file, beyond which it is two; docstrings, with their examples, are beside


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in it but for the checker of types alone."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bsbr":
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield deeper if deeper in MODULES else str(node.module)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "bsbr"


def test_imports_run_down_only() -> None:
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imported(module)
        if room(module) not in ("bsbr", room(other)) and room(other) not in BELOW[room(module)]
    ]
    assert not wrong


def test_no_room_and_no_file_stands_in_a_circle() -> None:
    arrows = {module: set(imported(module)) - {module} for module in MODULES}
    for graph in (BELOW, arrows):
        done: set[str] = set()

        def visit(name: str, path: tuple[str, ...], graph: dict[str, set[str]] = graph, done: set[str] = done) -> None:
            assert name not in path, " → ".join([*path, name])
            if name not in done:
                for other in graph.get(name, ()):
                    visit(other, (*path, name))
                done.add(name)

        for name in graph:
            visit(name, ())


def test_only_show_knows_notebooks() -> None:
    for module, path in MODULES.items():
        if room(module) != "show":
            text = path.read_text(encoding="utf-8")
            assert "IPython" not in text and "plotly" not in text, module


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_can_be_read_in_one_sitting(module: str) -> None:
    if module != "bsbr.store.metrics":  # a list
        text = MODULES[module].read_text(encoding="utf-8")
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        said = [
            one.body[0] for one in ast.walk(ast.parse(text)) if isinstance(one, documented) and ast.get_docstring(one)
        ]
        docstrings = sum((one.end_lineno or one.lineno) - one.lineno + 1 for one in said)
        assert len(text.splitlines()) - docstrings <= LONGEST
