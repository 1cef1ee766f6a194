"""The store: the one place where tables are written, read and compared.

A notebook measures the cells of a sweep and publishes one tidy table, one number a row. Each measured cell is
kept in a journal: a run that was interrupted continues, and a run of unchanged code measures nothing again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from bsbr import provenance
from bsbr.files import write_whole
from bsbr.measure import machine
from bsbr.metrics import metric

Row = dict[str, Any]
MEASURED = ["metric", "value", "unit", "low", "high", "samples", "status", "reason"]
NUMBERS = ["value", "low", "high"]


class ResultError(RuntimeError):
    """A result is missing, incomplete or not what its provenance says."""


def row(
    name: str,
    value: float | None,
    *,
    low: float | None = None,
    high: float | None = None,
    samples: int | None = None,
    status: str = "ok",
    reason: str = "",
    **factors: Hashable,
) -> Row:
    """One row of a table: a metric's value, its 95 % interval, the samples it rests on, and its factors."""
    measured = {"value": value, "unit": metric(name).unit, "low": low, "high": high, "samples": samples}
    return {**factors, "metric": name, **measured, "status": status, "reason": reason}


# -- Files ----------------------------------------------------------------------------------------


def data_folder() -> Path:
    """Where results and the journal live: `data/`, or what the environment variable BSBR_DATA names."""
    return Path(os.environ.get("BSBR_DATA") or provenance.ROOT / "data")


def published_folder(target: str, profile: str) -> Path:
    return data_folder() / "results" / target / profile


def journal_folder(target: str, profile: str) -> Path:
    return data_folder() / "journal" / target / profile


@dataclass(frozen=True)
class Result:
    """A published table, where it came from, and the CSV it was read from."""

    experiment: str
    target: str
    profile: str
    table: pd.DataFrame
    provenance: dict[str, Any]
    path: Path

    def select(self, name: str, **factors: Hashable) -> pd.DataFrame:
        """The rows of one metric, with the given factors."""
        return select(self.table, name, **factors)

    def value(self, name: str, **factors: Hashable) -> float:
        """The one value of a metric at the given factors."""
        return float(only(self.table, name, **factors)["value"])


def load(experiment: str, target: str = "cpu", profile: str = "full") -> Result:
    """Read a result of the store.

    Raises:
        ResultError: it has not been measured, or the table is not the one its provenance describes.
    """
    path = published_folder(target, profile) / f"{experiment}.csv"
    remedy = f"run: nox -s reproduce -- --target {target} --profile {profile} {experiment}"
    if not path.exists() or not path.with_suffix(".json").exists():
        raise ResultError(f"no result of {experiment} for {target}, {profile}; {remedy}")
    return _read(path, experiment, target, profile, remedy)


def _read(path: Path, experiment: str, target: str, profile: str, remedy: str = "publish it again") -> Result:
    recorded = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if provenance.sha256(path.read_bytes()) != recorded["table_sha256"]:
        raise ResultError(f"{path} is not the table that its provenance describes; {remedy}")
    table = _typed(pd.read_csv(path, keep_default_na=False, na_values=[""]))
    return Result(experiment, target, profile, table, recorded, path)


def published(target: str = "cpu", profile: str = "full") -> list[str]:
    """Names of the experiments that have a result, sorted."""
    folder = published_folder(target, profile)
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.csv"))


def select(table: pd.DataFrame, name: str, **factors: Hashable) -> pd.DataFrame:
    """The rows of one metric, with the given factors. A factor given as None must be empty."""
    metric(name)
    chosen = table["metric"] == name
    for factor, wanted in factors.items():
        if factor not in table:
            known = ", ".join(factor_columns(table))
            raise ValueError(f"{factor!r} is no factor of this table; it has {known}")
        chosen &= (table[factor].isna() if wanted is None else table[factor] == wanted).fillna(False)
    return table[chosen]


def only(table: pd.DataFrame, name: str, **factors: Hashable) -> pd.Series:
    """The one row of a metric at the given factors.

    Raises:
        ValueError: no row or more than one matches.
    """
    rows = select(table, name, **factors)
    if len(rows) != 1:
        raise ValueError(f"one row of {name!r} with {factors} was expected, {len(rows)} were found")
    return rows.iloc[0]


def factor_columns(table: pd.DataFrame) -> list[str]:
    return [str(column) for column in table.columns if column not in MEASURED]


# -- Sweep ----------------------------------------------------------------------------------------


class Sweep:
    """The measuring of one experiment: cells in, one tidy table out.

    Args:
        experiment: its name, which is the notebook's path, such as `"benchmarks/inference_time"`.
        target: `"cpu"` or `"gpu"`.
        profile: `"tiny"`, `"quick"` or `"full"`.
        parameters: every setting that the numbers depend on and that is not a factor of a cell.
        code: modules, packages and functions that do the measuring (see `provenance.fingerprint`).
        sources: files or folders read, such as a checkpoint.
        seed: the seed that the measuring functions use.

    With the environment variable BSBR_FRESH set to 1 the journal of this experiment is emptied first.
    """

    def __init__(
        self,
        experiment: str,
        *,
        target: str,
        profile: str,
        parameters: dict[str, Any],
        code: Sequence[ModuleType | Callable[..., Any]],
        sources: Sequence[Path] = (),
        seed: int = 0,
    ) -> None:
        self.experiment, self.target, self.profile = experiment, target, profile
        self.parameters, self.code, self.seed = parameters, list(code), seed
        self.sources = provenance.hash_sources(sources)
        self.journal = journal_folder(target, profile) / experiment
        self.kept: list[dict[str, Any]] = []
        if os.environ.get("BSBR_FRESH") == "1":
            shutil.rmtree(self.journal, ignore_errors=True)

    def measure(self, cells: Iterable[Row], measure: Callable[..., list[Row]]) -> pd.DataFrame:
        """Measure each cell, or take it from the journal, and return all rows.

        A cell is a dict of factors; `measure(**cell)` returns its rows, and each gets the cell's factors. A cell
        that runs out of memory becomes one row that says so.
        """
        cells = list(cells)
        basis = self._basis(measure)
        rows: list[Row] = []
        begin = time.perf_counter()
        for number, cell in enumerate(cells, start=1):
            shown = " ".join(f"{factor}={value}" for factor, value in cell.items())
            print(f"    {number:>3}/{len(cells)}  {shown}", end="", flush=True)
            entry = self._cell(cell, basis, measure)
            rows += [{**cell, **found} for found in entry["rows"]]
            how = f"{entry['seconds']:.1f} s" if entry.pop("new") else "kept from an earlier run"
            print(f"  {how}  (elapsed {time.perf_counter() - begin:.0f} s)", flush=True)
            self.kept.append(entry)
        return tidy(pd.DataFrame(rows))

    def _basis(self, measure: Callable[..., Any]) -> dict[str, Any]:
        """Everything but the cell that a kept measurement must share with a new one."""
        here = machine.describe()
        return {
            "code": provenance.fingerprint([*self.code, measure]),
            "parameters": self.parameters,
            "sources": self.sources,
            "seed": self.seed,
            "packages": {name: provenance.packages().get(name) for name in ("torch", "transformers")},
            "machine": [here["cpu"], here["threads"], here["gpu"] if self.target == "gpu" else None],
        }

    def _cell(self, cell: Row, basis: dict[str, Any], measure: Callable[..., list[Row]]) -> dict[str, Any]:
        key = provenance.sha256(json.dumps({"cell": cell, **basis}, sort_keys=True, default=str))
        path = self.journal / f"{key}.json"
        if path.exists():
            return {**json.loads(path.read_text(encoding="utf-8")), "new": False}
        started, begin = _now(), time.perf_counter()
        rows = _or_out_of_memory(measure, cell)
        entry = {"cell": cell, "code": basis["code"], "rows": rows, "started": started, "ended": _now()}
        entry["seconds"] = round(time.perf_counter() - begin, 3)
        write_whole(path, json.dumps(entry, default=_plain))
        # Read back, so that a kept and a new cell give the same bytes.
        return {**json.loads(path.read_text(encoding="utf-8")), "new": True}

    def publish(self, table: pd.DataFrame) -> Result:
        """Write the table and its provenance whole, and return what a reader now finds.

        A published result that says the same and was measured by the same code stays as it is, with its date.
        """
        table = tidy(table)
        text = table.to_csv(index=False, float_format="%.12g", lineterminator="\n")
        path = _publishing_folder(self.target, self.profile) / f"{self.experiment}.csv"
        record = self._provenance(provenance.sha256(text))
        if not self._unchanged(record):
            write_whole(path, text)
            write_whole(path.with_suffix(".json"), json.dumps(record, indent=2, default=_plain) + "\n")
        return _read(path, self.experiment, self.target, self.profile) if path.exists() else self._published()

    def _published(self) -> Result:
        return load(self.experiment, self.target, self.profile)

    def _unchanged(self, record: dict[str, Any]) -> bool:
        with contextlib.suppress(ResultError):
            old = self._published().provenance
            return all(old[name] == record[name] for name in ("table_sha256", "code", "ended"))
        return False

    def _provenance(self, table_sha256: str) -> dict[str, Any]:
        return {
            "experiment": self.experiment,
            "target": self.target,
            "profile": self.profile,
            "parameters": self.parameters,
            "seed": self.seed,
            "sources": self.sources,
            **provenance.git_state(),
            "code": sorted({entry["code"] for entry in self.kept}),
            "packages": provenance.packages(),
            "machine": machine.describe(),
            "started": min((entry["started"] for entry in self.kept), default=_now()),
            "ended": max((entry["ended"] for entry in self.kept), default=_now()),
            "seconds": round(sum(entry["seconds"] for entry in self.kept), 1),
            "table_sha256": table_sha256,
        }


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Factors first, then the measured columns.

    Raises:
        ValueError: a metric is not registered, or two rows have the same metric and factors.
    """
    table = _typed(table.reindex(columns=[*factor_columns(table), *MEASURED]))
    for name in table["metric"].unique():
        metric(name)
    keys = _keys(table, factor_columns(table))
    if keys.duplicated().any():
        raise ValueError(f"two rows have the same metric and factors: {keys[keys.duplicated()].iloc[0]}")
    return table


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    table = table.convert_dtypes()
    table[NUMBERS] = table[NUMBERS].astype("float64")
    table["samples"] = table["samples"].astype("Int64")
    for column, empty in {"unit": "", "status": "ok", "reason": ""}.items():
        table[column] = table[column].astype("string").fillna(empty)
    return table


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


def _publishing_folder(target: str, profile: str) -> Path:
    """BSBR_STAGING names a folder to publish into when a runner means to replace several files at once."""
    staging = os.environ.get("BSBR_STAGING")
    return Path(staging) if staging else published_folder(target, profile)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """NumPy scalars, paths and the like as JSON."""
    return value.item() if hasattr(value, "item") else str(value)


# -- Comparing ------------------------------------------------------------------------------------


def compare(published: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Each published number beside ours.

    Returns:
        The factors, metric and unit, `published`, `here`, and a `verdict`: `reproduced` or `drifted` by the
        metric's rule, `hardware-bound` where the number belongs to the machine, `not measured here` where ours
        has no such row, or one that says that it was not available.
    """
    factors = factor_columns(published)
    extra = [factor for factor in factor_columns(ours) if factor not in factors]
    left = published.assign(key=_keys(published, factors))
    right = ours.assign(key=_keys(ours.reindex(columns=[*factors, *MEASURED, *extra]), [*factors, *extra]))
    joined = left.merge(right[["key", "value", "status"]], on="key", how="left", suffixes=("", "_here"))
    joined["verdict"] = [
        _verdict(name, status, value, here_status, here)
        for name, status, value, here_status, here in joined[
            ["metric", "status", "value", "status_here", "value_here"]
        ].itertuples(index=False)
    ]
    joined = joined.rename(columns={"value": "published", "value_here": "here"})
    return joined[[*factors, "metric", "unit", "published", "here", "verdict"]]


def _verdict(name: str, status: str, value: float, here_status: Any, here: float) -> str:
    if pd.isna(here_status) or (status == "ok" and here_status == "not_available"):
        return "not measured here"
    if metric(name).rule == "hardware" or "out_of_memory" in (status, here_status):
        return "hardware-bound"
    if status != "ok" or here_status != "ok" or pd.isna(value) or pd.isna(here):
        return "reproduced" if status == here_status and pd.isna(value) and pd.isna(here) else "drifted"
    return "reproduced" if metric(name).agrees(value, here) else "drifted"


def _keys(table: pd.DataFrame, factors: Sequence[str]) -> pd.Series:
    """What identifies a row: its metric and those factors that it has, whatever types a CSV gave them."""
    names = sorted(factors)
    keys = [
        " ".join(
            [
                record["metric"],
                *(f"{name}={_shown(record[name])}" for name in names if pd.notna(record[name])),
            ]
        )
        for record in table.to_dict("records")
    ]
    return pd.Series(keys, index=table.index, dtype="string")


def _shown(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
