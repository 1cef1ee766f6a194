"""A notebook is two files: its .py, which people edit and which runs, and the .ipynb that shows its last full run.

Everything goes one way, from the .py to the .ipynb; nothing here writes a .py. Called by `nox -s pair`:

    python tools/pairs.py [names …]      bring each .ipynb to what its .py says, with the outputs of unchanged cells
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from bsbr.store import files, provenance, table

NOTEBOOKS = provenance.ROOT / "notebooks"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
MARK = "cells_sha256"


def experiments() -> list[str]:
    """The name of every notebook: its path below `notebooks/`. Hidden folders, such as checkpoints, hold none."""
    found = (path.relative_to(NOTEBOOKS).with_suffix("") for path in NOTEBOOKS.glob("*/*.py"))
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def script(experiment: str) -> Path:
    return NOTEBOOKS / f"{experiment}.py"


def page(experiment: str) -> Path:
    return NOTEBOOKS / f"{experiment}.ipynb"


def read(experiment: str) -> Any:
    """The notebook as its .py has it, without outputs."""
    return jupytext.read(script(experiment))


def tidy(notebook: Any) -> Any:
    """The notebook as it pairs with its .py file, without anything that differs from run to run by itself."""
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for position, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{position}"
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":  # warnings of libraries name paths of the machine; the log of the run has them
            shown = [] if tags and "remove-output" in tags else cell.outputs
            cell.outputs = [output for output in shown if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}, MARK: cells_sha256(notebook)}
    return notebook


def written(notebook: Any) -> str:
    """The text of the .ipynb."""
    return nbformat.writes(tidy(notebook)) + "\n"


def cells_sha256(notebook: Any) -> str:
    """What the cells say, whatever they put out: it tells whether an .ipynb was edited after it was written."""
    cells = [(cell.cell_type, cell.source.strip(), cell.metadata.get("tags", [])) for cell in notebook.cells]
    return provenance.sha256(json.dumps(cells))


def was_edited(experiment: str) -> bool:
    """Whether somebody has changed the .ipynb, of which the .py knows nothing."""
    try:
        notebook = nbformat.read(page(experiment), as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError):
        return False
    mark = notebook.metadata.get(MARK)
    said = cells_sha256(notebook)
    return mark is not None and said not in (mark, cells_sha256(read(experiment)))


def set_aside(experiment: str) -> str:
    """Keep an edited .ipynb from being overwritten, and say where; nothing to say where nobody edited it."""
    if not was_edited(experiment):
        return ""
    place = table.data_folder() / "journal" / "edited" / f"{experiment}.ipynb"
    number = 1
    while place.exists() and place.read_bytes() != page(experiment).read_bytes():
        number += 1
        place = place.with_name(f"{page(experiment).stem}-{number}.ipynb")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(page(experiment), place)
    return (
        f"{page(experiment)} was edited, but {script(experiment).name} is the source and is unchanged by that. "
        f"The edited file is kept as {place}: bring what you want of it into the .py."
    )


def pair(experiment: str) -> bool:
    """Write the .ipynb anew if it says something else than the .py, and return whether it did."""
    notebook = read(experiment)
    outputs: dict[str, list[Any]] = defaultdict(list)
    if page(experiment).exists():
        shown = nbformat.read(page(experiment), as_version=4)
        if cells_sha256(shown) == cells_sha256(notebook):
            return False
        for cell in shown.cells:
            outputs[cell.source.strip()].append(cell)
    for cell in notebook.cells:
        if cell.cell_type == "code" and outputs[cell.source.strip()]:
            kept = outputs[cell.source.strip()].pop(0)
            cell.outputs, cell.execution_count = kept.get("outputs", []), kept.get("execution_count")
    files.write_whole(page(experiment), written(notebook))
    return True


def main(names: list[str]) -> int:
    known = experiments()
    for name in names:
        if name not in known:
            print(f"no notebook is called {name!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
    for experiment in names or known:
        if said := set_aside(experiment):
            print(said)
        if pair(experiment):
            print(f"{page(experiment)}: written from {script(experiment).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
