"""The process in which a worker measures cells: `python -m bsbr.cluster.measuring`, asked line by line.

It gets no code, only where a cell stands: experiment, profile, and which call of `Sweep.measure` in the notebook's
script. It runs the script up to that call, in the main thread and with the settings of an ordinary process, and
answers the calls before with the rows that were measured. What a kept cell depends on (`Sweep.basis`) must be the same
here as where the cell is asked for; else it is refused with what differs.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import json
import linecache
import os
import queue
import re
import sys
import threading
import traceback
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from bsbr.sources import SourceError, cache_folder
from bsbr.sources.__main__ import fetch_all
from bsbr.store import Part, Row, Sweep, cells, executor, fingerprint, lock, machine, provenance
from bsbr.store.metrics import metric

NOTEBOOKS = provenance.ROOT / "notebooks"
SHOWN = 3  # differences that a refusal names
STALE = 75  # exit code: the code has changed since this process has read it
BESIDE = "measured beside other cells, or on another machine"


class RefusedError(Exception):
    """This checkout cannot measure the cell; the message is one line that says why."""


class _Reached(BaseException):
    """The call that is asked for. Not an Exception, so that no notebook catches it."""


# -- Finding a cell -------------------------------------------------------------------------------


class Rehearsal(executor.Here):
    """Answers a notebook's calls of `measure` with what they came to, up to the call that is asked for."""

    def __init__(self, rows: Sequence[list[list[list[Row]]]]) -> None:
        self.rows = rows
        self.sweep: Sweep | None = None
        self.parts: Sequence[Part] = ()

    def answer(self, sweep: Sweep, parts: Sequence[Part]) -> list[list[list[Row]]]:
        if len(sweep.rows) == len(self.rows):
            self.sweep, self.parts = sweep, parts
            raise _Reached
        known = self.rows[len(sweep.rows)]
        if [len(part.cells) for part in parts] != [len(rows) for rows in known]:
            raise RefusedError("its notebook measures other cells before this one")
        return known


def rehearse(experiment: str, target: str, profile: str, rows: Sequence[list[list[list[Row]]]]) -> Rehearsal:
    """Run a notebook's script up to the call of `measure` that follows those whose rows are given.

    Raises:
        RefusedError: there is no such notebook here, or it does not get there.
    """
    path = NOTEBOOKS / f"{experiment}.py"
    if not path.is_file():
        raise RefusedError(f"it has no notebook {experiment}")
    linecache.checkcache(str(path))
    code = compile(script(path.read_text(encoding="utf-8"), target, profile), str(path), "exec")
    rehearsal = Rehearsal(rows)
    os.chdir(path.parent)
    try:
        with executor.using(rehearsal):
            exec(code, {"__name__": "__main__"})
    except _Reached:
        return rehearsal
    except (RefusedError, SourceError):
        raise
    except Exception as error:
        raise RefusedError(
            f"its notebook {experiment} ends before this cell: {type(error).__name__}: {error}"
        ) from error
    raise RefusedError(f"its notebook {experiment} does not measure this cell")


def script(text: str, target: str, profile: str) -> ast.Module:
    """A notebook's script, with target and profile set after the cell that is tagged `parameters`."""
    tree = ast.parse(text)
    heads = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.startswith("# %%")]
    ends = [
        following[0]
        for (_, line), following in zip(heads, [*heads[1:], (sys.maxsize, "")], strict=True)
        if re.search(r"tags=.*\"parameters\"", line)
    ]
    if ends:
        first = next((index for index, node in enumerate(tree.body) if node.lineno > ends[0]), len(tree.body))
        tree.body[first:first] = ast.parse(f"target, profile = {target!r}, {profile!r}").body
    return tree


# -- Whether it is the same here ------------------------------------------------------------------


def code_parts(part: Part) -> dict[str, str]:
    """What the fingerprint of a part's function is made of, each by a short hash."""
    return {name: provenance.sha256(found)[:12] for name, found in fingerprint.parts(part.measure).items()}


def differences(asked: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """In words, what differs between what a cell depends on where it is asked for, and here."""
    found = []
    for name, wanted in _other(asked["packages"], own["packages"]):
        found.append(f"its {name} is {own['packages'].get(name, 'missing')}, not {wanted or 'missing'}")
    found += [f"its {name} is another file" for name, _ in _other(asked["sources"], own["sources"])]
    found += [f"its parameter {name} is another" for name, _ in _other(asked["parameters"], own["parameters"])]
    found += [f"its {name} is {own[name]}, not {asked[name]}" for name in ("seed",) if asked[name] != own[name]]
    return found


def _other(asked: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in sorted({*asked, *own}):
        if asked.get(name) != own.get(name):
            yield name, asked.get(name)


class Measuring:
    """Answers requests, and keeps the notebook that it has run last for the cells that follow."""

    def __init__(self) -> None:
        self.key: Any = None
        self.found: Rehearsal | None = None
        self.bases: dict[int, dict[str, Any]] = {}  # of its parts, as they are here

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """An entry of the journal, or why there is none."""
        try:
            if "place" not in request:
                return {"machine": describe()}
            return {"entry": self._with_sources(request)}
        except RefusedError as reason:
            self.key = None  # what is wrong may be put right
            return {"refused": str(reason)}
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}

    def _with_sources(self, request: dict[str, Any]) -> dict[str, Any]:
        """The entry; what it needs of texts and models is fetched if it is not here."""
        try:
            return self._entry(request)
        except SourceError:
            try:
                with lock.held(cache_folder() / "fetching.lock", "fetching", print):
                    fetch_all()
            except SourceError as error:
                raise RefusedError(f"a text or model is not there, and cannot be fetched: {error}") from error
            self.key = None
            return self._entry(request)

    def _entry(self, request: dict[str, Any]) -> dict[str, Any]:
        part, basis = self._part(request)
        cell = part.cells[request["index"]] if request["index"] < len(part.cells) else None
        if cell is None or cells.canonical(cell) != cells.canonical(request["cell"]):
            raise RefusedError("its notebook measures other cells")
        if basis["machine"] != request["basis"]["machine"] and (part.is_exclusive or request["target"] == "gpu"):
            raise RefusedError(f"its machine is {basis['machine']}, not {request['basis']['machine']}")
        entry = cells.measured(part.measure, cell, request["basis"])
        if not part.is_exclusive and (request["shared"] or basis["machine"] != request["basis"]["machine"]):
            entry["rows"] = [_without_clock(found) for found in entry["rows"]]
        return entry

    def _part(self, request: dict[str, Any]) -> tuple[Part, dict[str, Any]]:
        """The part that a request is about, once it is known to be the same here, and the basis here."""
        place = request["place"], request["target"], request["profile"]
        path = NOTEBOOKS / f"{request['place']}.py"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        key = (*place, provenance.sha256(text), provenance.sha256(request["rows"]))
        if key != self.key or self.found is None:
            self.key, self.bases = None, {}
            self.found = rehearse(*place, json.loads(zlib.decompress(base64.b64decode(request["rows"]))))
            self.key = key
        sweep, position = self.found.sweep, request["position"]
        if sweep is None or position >= len(self.found.parts):
            raise RefusedError("its notebook measures other cells")
        part, asked = self.found.parts[position], request["basis"]
        if position not in self.bases:
            if part.is_exclusive:
                describe()
            self.bases[position] = json.loads(cells.canonical(sweep.basis(part)))
        own = self.bases[position]
        found = differences(asked, own)
        if not found and own["code"] != asked["code"]:
            here = code_parts(part)
            found = [f"its code differs: {name}" for name, _ in _other(request["code_parts"], here)]
            found = found or ["its code differs"]
        if found:
            more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise RefusedError("; ".join(found[:SHOWN]) + more)
        return part, own


def describe() -> dict[str, Any]:
    """The machine as a cell that has it for itself finds it: with the threads that PyTorch takes."""
    import torch  # noqa: F401 (without it no threads are told)

    return machine.describe()


def _without_clock(found: Row) -> Row:
    """A row less what a clock touches."""
    if not metric(found["metric"]).clock or found["status"] != "ok":
        return found
    nothing = {"value": None, "low": None, "high": None, "interval": "", "samples": None}
    return {**found, **nothing, "status": "not_available", "reason": BESIDE}


# -- The process ----------------------------------------------------------------------------------


def code_state() -> str:
    """One hash over the library's files: the code that a process has read is that of its start."""
    found = sorted((provenance.ROOT / "bsbr").rglob("*.py"))
    return provenance.sha256("\n".join(provenance.sha256(path.read_bytes()) for path in found))


def main() -> None:
    """Answer each line of standard input with one line; end with the input, whatever is being measured."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what cells print goes to the worker's log
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, asked), daemon=True).start()
    begun, measuring = code_state(), Measuring()
    while True:
        request = json.loads(asked.get())
        if code_state() != begun:
            os._exit(STALE)
        answer = measuring.answer(request)
        with contextlib.suppress(BrokenPipeError):
            answers.write(cells.canonical(answer) + "\n")
            answers.flush()


def _listen(stream: TextIO, asked: queue.SimpleQueue[str]) -> None:
    for line in stream:
        asked.put(line)
    os._exit(0)  # the worker has ended


if __name__ == "__main__":
    main()
