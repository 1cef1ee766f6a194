"""The journal: what a sweep has measured, cell by cell, so that a stopped run goes on and an unchanged one is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bsbr.store import cells as handed
from bsbr.store import executor, fingerprint, machine, provenance
from bsbr.store.cells import Job, Part, plain, read_entry
from bsbr.store.files import write_whole
from bsbr.store.table import (
    Result,
    ResultError,
    Row,
    items_of,
    journal_folder,
    load,
    published_folder,
    read,
    remember_items,
    tidy,
)

RETRIED = {"out_of_memory", "too_long"}  # what another day, or a larger machine's quota, may change
FRESH, RETRY, STAGING = "BSBR_FRESH", "BSBR_RETRY", "BSBR_STAGING"  # environment variables, see `Sweep`
ORIGIN = ("commit", "clean", "packages", "machine")


class Sweep:
    """The measuring of one experiment: cells in, one tidy table out.

    A measured cell is kept under a key of all that it depends on: its factors, the code that its measuring function
    reaches (`fingerprint.of`), parameters, sources, seed, packages and, if it belongs to a machine, its processor and
    threads.

    Args:
        experiment: its name, which is the notebook's path, such as `"benchmarks/inference_time"`.
        target: `"cpu"` or `"gpu"`.
        profile: `"tiny"`, `"quick"` or `"full"`.
        parameters: every setting that the numbers depend on and that is not a factor of a cell.
        sources: files or folders read, such as a checkpoint.
        seed: the seed that the measuring functions use.

    Environment:
        BSBR_FRESH: `1` measures every cell anew. Interrupted, it goes on with the cells that are not yet new.
        BSBR_RETRY: `1` tries cells again that ran out of memory or took too long.
        BSBR_STAGING: a folder to publish into, for a runner that means to replace several files at once.

    Examples:
        >>> from bsbr.store import Sweep, row
        >>> def measure(n):
        ...     return [row("flops", 2 * n)]
        >>> sweep = Sweep("examples/sweep", target="cpu", profile="tiny", parameters={})
        >>> table = sweep.measure([{"n": 128}, {"n": 256}], measure, machine_bound=False)
            1/2  n=128 ...
            2/2  n=256 ...
        >>> sweep.publish(table).value("flops", n=256)
        512.0
    """

    def __init__(
        self,
        experiment: str,
        *,
        target: str,
        profile: str,
        parameters: dict[str, Any],
        sources: Sequence[Path] = (),
        seed: int = 0,
    ) -> None:
        self.experiment, self.target, self.profile = experiment, target, profile
        self.parameters, self.seed = parameters, seed
        self.sources = provenance.hash_sources(sources)
        self.journal = journal_folder(target, profile) / experiment
        self.kept: list[dict[str, Any]] = []
        self.rows: list[list[list[list[Row]]]] = []  # of each call so far, by part and cell
        self.oldest = _fresh_since(self.journal)

    def extend(self, *, parameters: dict[str, Any], sources: Sequence[Path] = ()) -> None:
        """Have the cells from here on depend on further parameters and sources; the record names them too.

        Cells before keep their keys: what is timed need not be timed anew because something is trained beside it.

        Args:
            parameters: settings, by names that there are none of yet.
            sources: files or folders read.

        Raises:
            ValueError: there is a parameter of that name.

        Examples:
            >>> from bsbr.store import Sweep
            >>> sweep = Sweep("examples/sweep", target="cpu", profile="tiny", parameters={"batch": 1})
            >>> sweep.extend(parameters={"steps": 100})
            >>> sweep.parameters
            {'batch': 1, 'steps': 100}
        """
        if twice := sorted(parameters.keys() & self.parameters.keys()):
            raise ValueError(f"parameters must have new names, but {', '.join(twice)} is there already; rename it")
        self.parameters = {**self.parameters, **parameters}
        self.sources = {**self.sources, **provenance.hash_sources(sources)}

    def measure(
        self,
        cells: Iterable[Row],
        measure: Callable[..., list[Row]],
        *,
        machine_bound: bool,
        exclusive: bool | None = None,
        memory: float | None = None,
    ) -> pd.DataFrame:
        """Measure each cell, or take it from the journal, and return all rows.

        A cell is a dict of factors; `measure(**cell)` returns its rows, and each gets the cell's factors. A cell that
        runs out of memory becomes one row that says so.

        Args:
            cells: the combinations of factors.
            measure: measures one of them.
            machine_bound: whether the numbers belong to this machine, as times and resident memory do, so that a cell
                is kept for this processor and number of threads only; counts and qualities are kept for any.
            exclusive: whether a cell needs a machine for itself, as one that times something does; by default if it is
                `machine_bound`. It matters where cells are handed to several processes (`bsbr.cluster`): exclusive ones
                are measured one after the other, all on one machine. Others run beside each other, anywhere, and what a
                clock touches in their rows is left out unless this machine measured it undisturbed.
            memory: GiB that a cell needs, for workers that share a machine.

        Raises:
            ValueError: a cell gave no rows.
            fingerprint.UnseenError: what `measure` depends on cannot be seen.
        """
        return self.measure_all([Part(list(cells), measure, machine_bound, exclusive, memory)])[0]

    def measure_all(self, parts: Sequence[Part]) -> list[pd.DataFrame]:
        """Measure cells of several functions together, none of which waits for another: one table a part.

        Args:
            parts: the cells of each function.

        Raises:
            ValueError: a cell gave no rows.
            fingerprint.UnseenError: what a function depends on cannot be seen.

        Examples:
            >>> from bsbr.store import Part, Sweep, row
            >>> def measure(n):
            ...     return [row("flops", 2 * n)]
            >>> sweep = Sweep("examples/sweep", target="cpu", profile="tiny", parameters={})
            >>> [table] = sweep.measure_all([Part([{"n": 128}], measure, machine_bound=False)])
            1/1  n=128 ...
            >>> table["value"].tolist()
            [256.0]
        """
        found = executor.used().answer(self, parts)
        if found is None:
            jobs = [
                Job(self, len(self.rows), position, index, part, basis)
                for position, (part, basis) in enumerate((part, self.basis(part)) for part in parts)
                for index in range(len(part.cells))
            ]
            entries = handed.entries(jobs, self._kept)
            self.kept += entries
            rows = iter([entry["rows"] for entry in entries])
            found = [[next(rows) for _ in part.cells] for part in parts]
        self.rows.append(found)
        return [part.table(rows) for part, rows in zip(parts, found, strict=True)]

    def basis(self, part: Part) -> dict[str, Any]:
        """Everything but the cell that a kept measurement must share with a new one."""
        here = executor.used().machine(part.is_exclusive)
        processor = [here["cpu"], here["threads"]] if part.machine_bound else []
        return {
            "code": fingerprint.of(part.measure),
            "parameters": self.parameters,
            "sources": self.sources,
            "seed": self.seed,
            "packages": provenance.packages(),
            "machine": [*processor, here["gpu"] if self.target == "gpu" else None],
        }

    def _kept(self, job: Job) -> dict[str, Any] | None:
        kept = read_entry(job.path)
        if kept is None or kept["started"] < self.oldest or self._tried_again(kept):
            return None
        remember_items(kept["over"])
        return kept

    @staticmethod
    def _tried_again(entry: dict[str, Any]) -> bool:
        return os.environ.get(RETRY) == "1" and any(found["status"] in RETRIED for found in entry["rows"])

    def publish(self, table: pd.DataFrame) -> Result:
        """Write the table and its record whole, and return what a reader now finds.

        A published result that says the same and was measured by the same code stays as it is, with its date.

        Args:
            table: of rows that `measure` returned.

        Raises:
            ValueError: the table is unfit (see `table.tidy`).
        """
        table = tidy(table)
        text = table.to_csv(index=False, float_format="%.12g", lineterminator="\n")
        path = _publishing_folder(self.target, self.profile) / f"{self.experiment}.csv"
        record = self._record(table, provenance.sha256(text))
        if not self._unchanged(record):
            write_whole(path, text)
            write_whole(path.with_suffix(".json"), json.dumps(record, indent=2, default=plain) + "\n")
        (self.journal / "fresh").unlink(missing_ok=True)
        if path.exists():
            return read(path, self.experiment, self.target, self.profile)
        return load(self.experiment, self.target, self.profile)

    def _unchanged(self, record: dict[str, Any]) -> bool:
        try:
            old = load(self.experiment, self.target, self.profile).provenance
        except ResultError:
            return False
        return all(old.get(name) == record[name] for name in ("table_sha256", "code", "ended", "over"))

    def _record(self, table: pd.DataFrame, table_sha256: str) -> dict[str, Any]:
        measured = _origins(self.kept) or [{**_origin_here(), "cells": 0}]
        return {
            "experiment": self.experiment,
            "target": self.target,
            "profile": self.profile,
            "parameters": self.parameters,
            "seed": self.seed,
            "sources": self.sources,
            "code": sorted({entry["code"] for entry in self.kept}),
            "measured": measured,
            # What all cells share; where they differ, it is not one, and `measured` has them apart.
            **{name: _shared([group[name] for group in measured]) for name in ORIGIN},
            "clean": all(group["clean"] for group in measured),
            "started": min((entry["started"] for entry in self.kept), default=handed.now()),
            "ended": max((entry["ended"] for entry in self.kept), default=handed.now()),
            "seconds": round(sum(entry["seconds"] for entry in self.kept), 1),
            "over": items_of(table["over"]),
            "table_sha256": table_sha256,
        }


# -- Where cells come from ------------------------------------------------------------------------


def _fresh_since(journal: Path) -> str:
    """From when on cells count: a run that measures everything anew notes its start, until it has published."""
    note = journal / "fresh"
    if os.environ.get(FRESH) == "1" and not note.exists():
        write_whole(note, handed.now())
    return note.read_text(encoding="utf-8") if note.exists() else ""


def _origin_here() -> dict[str, Any]:
    return {**provenance.git_state(), "packages": provenance.packages(), "machine": machine.describe()}


def _origins(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The commits, packages and machines that cells were measured with, and how many cells each."""
    groups: list[dict[str, Any]] = []
    for entry in sorted(entries, key=lambda entry: entry["started"]):
        origin = {name: entry[name] for name in ORIGIN}
        group = next((one for one in groups if all(one[name] == origin[name] for name in ORIGIN)), None)
        if group is None:
            groups.append({**origin, "cells": 1, "started": entry["started"], "ended": entry["ended"]})
        else:
            group |= {"cells": group["cells"] + 1, "ended": max(group["ended"], entry["ended"])}
    return groups


def _shared(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else None


def _publishing_folder(target: str, profile: str) -> Path:
    staging = os.environ.get(STAGING)
    return Path(staging) if staging else published_folder(target, profile)
