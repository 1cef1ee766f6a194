"""Cells of a sweep: handed to the executor, measured, and their entries in the journal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bsbr.store import executor, machine, provenance
from bsbr.store.files import write_whole
from bsbr.store.table import Row, items_of, remember_items, row, tidy

if TYPE_CHECKING:
    from bsbr.store.journal import Sweep

Entry = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Part:
    """Cells, and the function that measures each of them: what `Sweep.measure` is given.

    Examples:
        >>> from bsbr.store import Part, row
        >>> part = Part([{"n": 128}, {"n": 256}], lambda n: [row("flops", 2 * n)], machine_bound=False)
        >>> part.is_exclusive
        False
        >>> part.table([part.measure(**cell) for cell in part.cells])["value"].tolist()
        [256.0, 512.0]
    """

    cells: Sequence[Row]  # the combinations of factors
    measure: Callable[..., list[Row]]  # measures one of them
    machine_bound: bool  # whether the numbers belong to this machine
    exclusive: bool | None = None  # whether a cell needs a machine for itself; None for as `machine_bound`
    memory: float | None = None  # GiB that a cell needs

    @property
    def is_exclusive(self) -> bool:
        """Whether a cell needs a machine for itself."""
        return self.machine_bound if self.exclusive is None else self.exclusive

    def table(self, rows: Sequence[Sequence[Row]]) -> pd.DataFrame:
        """The rows of all cells, each with its cell's factors."""
        pairs = zip(self.cells, rows, strict=True)
        return tidy(pd.DataFrame([{**cell, **found} for cell, measured in pairs for found in measured]))


@dataclass(frozen=True, eq=False)
class Job:
    """A cell to be measured: by a call in this process, or by another that finds it by its place in the experiment.

    Attributes:
        sweep: whose cell it is.
        call: which call of `measure` or `measure_all` it belongs to, counted from zero.
        position: which part of that call.
        index: which cell of the part.
        part: that part.
        basis: what a kept measurement must share with it, beside the cell (`Sweep.basis`).
    """

    sweep: Sweep
    call: int
    position: int
    index: int
    part: Part
    basis: dict[str, Any]

    def __call__(self) -> dict[str, Any]:
        return measured(self.part.measure, self.cell, self.basis)

    @property
    def cell(self) -> Row:
        return self.part.cells[self.index]

    @property
    def path(self) -> Path:
        """Where its entry is kept."""
        key = provenance.sha256(json.dumps({"cell": self.cell, **self.basis}, sort_keys=True, default=plain))
        return self.sweep.journal / f"{key}.json"

    def __str__(self) -> str:
        return " ".join(f"{factor}={value}" for factor, value in self.cell.items())


# -- Handing over ---------------------------------------------------------------------------------


def entries(jobs: Sequence[Job], kept: Callable[[Job], Entry | None]) -> list[Entry]:
    """The entry of each job in the journal, in their order: kept from before, or measured by the executor.

    Each is kept as soon as it is there. Where several are measured at once, one that fails does not keep the others
    from being measured and kept.

    Args:
        jobs: the cells.
        kept: the entry of one that counts as measured, or None.

    Raises:
        Exception: what a cell raised; of several, the first.
    """
    handed = _Handed(jobs)
    try:
        handed.run(kept)
    finally:
        for future in handed.running:  # where it was interrupted
            future.cancel()
    if handed.failed:
        raise handed.failed[0]
    return [handed.entries[number] for number in range(len(jobs))]


class _Handed:
    """Jobs on their way, and what is said of them: a line a cell, with how far all of them are."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, self.hands = jobs, executor.used()
        self.entries: dict[int, Entry] = {}
        self.running: dict[Future[Any], int] = {}
        self.failed: list[Exception] = []
        self.measured, self.begin = 0, time.perf_counter()

    def run(self, kept: Callable[[Job], Entry | None]) -> None:
        for number, job in enumerate(self.jobs):
            if self.alone:
                print(self._name(number), end="", flush=True)
            if entry := kept(job):
                self._keep(number, entry, "kept from an earlier run")
                continue
            self.running[self.hands.submit(job)] = number
            if len(self.running) >= self.hands.at_once:
                self._collect()
        while self.running:
            self._collect()

    @property
    def alone(self) -> bool:
        return self.hands.at_once == 1

    def _collect(self) -> None:
        """Wait a little, and take what is done."""
        for future in wait(self.running, timeout=1, return_when=FIRST_COMPLETED).done:
            number = self.running.pop(future)
            try:
                entry = future.result()
            except Exception as error:
                if self.alone:
                    raise
                self.failed.append(error)
                self._say(f"{self._name(number)}  failed: {error}")
                continue
            self.measured += 1
            # Read back, so that a kept and a new cell give the same bytes.
            self._keep(number, write_entry(self.jobs[number].path, entry), f"{entry['seconds']:.1f} s")
        for sentence in self.hands.said():
            print(f"    {sentence}", flush=True)

    def _keep(self, number: int, entry: Entry, how: str) -> None:
        remember_items(entry["over"])
        self.entries[number] = entry
        if self.alone:
            print(f"  {how}  (elapsed {self._elapsed():.0f} s)", flush=True)
        else:
            self._say(f"{self._name(number)}  {how}")

    def _name(self, number: int) -> str:
        return f"    {number + 1:>3}/{len(self.jobs)}  {self.jobs[number]}"

    def _say(self, what: str) -> None:
        left = len(self.jobs) - len(self.entries) - len(self.failed)
        far = f"{len(self.entries)} done, {self.hands.under_way()} under way, {len(self.failed)} failed"
        if left and self.measured:
            far += f", about {self._elapsed() / self.measured * left:.0f} s left"
        print(f"{what}  ({far}; elapsed {self._elapsed():.0f} s)", flush=True)

    def _elapsed(self) -> float:
        return time.perf_counter() - self.begin


# -- Entries --------------------------------------------------------------------------------------


def read_entry(path: Path) -> dict[str, Any] | None:
    """A kept cell, or None if there is none or the file is damaged, so that it is measured again."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        entry = kept["entry"]
        whole = kept["sha256"] == provenance.sha256(canonical(entry)) and entry["rows"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if whole else None


def write_entry(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Keep a measured cell with a hash of its content, and return it as it will be read."""
    text = canonical(entry)
    write_whole(path, json.dumps({"sha256": provenance.sha256(text), "entry": json.loads(text)}))
    return json.loads(text)


def measured(measure: Callable[..., list[Row]], cell: Row, basis: dict[str, Any]) -> dict[str, Any]:
    """Measure a cell in this process, and return its entry in the journal.

    Raises:
        ValueError: it gave no rows.
    """
    state = provenance.git_state()
    started, begin = now(), time.perf_counter()
    rows = _or_out_of_memory(measure, cell)
    if not rows:
        raise ValueError(f"{getattr(measure, '__name__', measure)} gave no rows for {cell}; every cell has one or more")
    entry = {"cell": cell, "code": basis["code"], "rows": rows, "over": items_of(found["over"] for found in rows)}
    entry |= {"started": started, "ended": now(), "seconds": round(time.perf_counter() - begin, 3), **state}
    return entry | {"packages": basis["packages"], "machine": machine.describe()}


def canonical(entry: Any) -> str:
    """JSON that is the same for the same content."""
    return json.dumps(entry, sort_keys=True, default=plain)


# -- One cell -------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a CPU or a GPU."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def _or_out_of_memory(measure: Callable[..., list[Row]], cell: Row) -> list[Row]:
    try:
        return measure(**cell)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first_line = (str(error).splitlines() or ["memory ran out"])[0]
        return [row("cell", None, status="out_of_memory", reason=first_line)]


def now() -> str:
    """The moment, as entries have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """NumPy scalars, paths and the like as JSON."""
    return value.item() if hasattr(value, "item") else str(value)
