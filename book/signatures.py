"""Signatures and docstrings of the public names, read from the source without importing it: for the page of the API."""

import ast
import re
import textwrap
from pathlib import Path

from IPython.display import Markdown, display

ROOT = Path(__file__).resolve().parent.parent
Definition = ast.ClassDef | ast.FunctionDef
SECTION = re.compile(r"(Args|Returns|Raises|Attributes):$")


def show(module: str, *names: str) -> None:
    """Display names of a module such as `bsbr.model`: functions, or classes with their public methods."""
    path = ROOT.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    found = {n.name: n for n in ast.parse(source).body if isinstance(n, Definition)}
    for name in names:
        if name not in found:
            raise ValueError(f"{module} defines no {name!r}; it defines {', '.join(found)}")
    display(Markdown("\n\n".join(describe(found[name], source) for name in names)))


def describe(node: Definition, source: str, owner: str = "") -> str:
    """A signature, then the docstring; for a class its public methods follow."""
    heading = declaration(node, source) if isinstance(node, ast.ClassDef) else signature(node, owner)
    parts = [f"```python\n{heading}\n```", prose(ast.get_docstring(node) or "")]
    if isinstance(node, ast.ClassDef):
        parts += [describe(method, source, node.name) for method in public_methods(node)]
    return "\n\n".join(parts)


def public_methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    methods = (item for item in node.body if isinstance(item, ast.FunctionDef))
    return [item for item in methods if not item.name.startswith("_") and ast.get_docstring(item)]


def declaration(node: ast.ClassDef, source: str) -> str:
    """A class with its fields and their comments, as they stand in the source."""
    lines = source.splitlines()
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    head = f"class {node.name}" + (":" if fields else "")
    return "\n".join([head, *("\n".join(lines[f.lineno - 1 : f.end_lineno]) for f in fields)])


def signature(node: ast.FunctionDef, owner: str = "") -> str:
    """`Class.method(…) -> …`, one argument a line where it is long."""
    name = f"{owner}.{node.name}" if owner else node.name
    result = f" -> {quoted(ast.unparse(node.returns))}" if node.returns else ""
    parts = arguments(node.args)
    if owner and parts[0] in ("self", "cls"):
        parts = parts[1:]
    line = f"{name}({', '.join(parts)}){result}"
    return line if len(line) <= 84 else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


def arguments(args: ast.arguments) -> list[str]:
    """The arguments one by one: commas inside brackets don't part them."""
    depth, parts, start = 0, [], 0
    text = quoted(ast.unparse(args))
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


def quoted(source: str) -> str:
    return source.replace("'", '"')


def prose(docstring: str) -> str:
    """A docstring as Markdown: its `Args:`, `Returns:` and `Raises:` become lists."""
    blocks = [block if not block.startswith("    ") else f"```text\n{textwrap.dedent(block)}\n```"
              for block in docstring.split("\n\n")]  # fmt: skip
    return "\n\n".join(map(section, blocks))


def section(block: str) -> str:
    head, _, rest = block.partition("\n")
    if not SECTION.match(head):
        return block
    entries = re.split(r"\n(?=\S)", textwrap.dedent(rest))
    items = [re.sub(r"^(\w+): ", r"`\1`: ", " ".join(entry.split())) for entry in entries]
    return f"**{head[:-1]}**\n\n" + "\n".join(f"- {item}" for item in items)
