"""Tables: one number a row, with its factors, its interval and what it is over. Reading and checking them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bsbr import stats
from bsbr.store import provenance
from bsbr.store.metrics import metric

Row = dict[str, Any]
MEASURED = ["metric", "value", "unit", "low", "high", "interval", "samples", "over", "status", "reason"]
NUMBERS = ["value", "low", "high"]
WORDS = {"unit": "", "interval": "", "over": "", "status": "ok", "reason": ""}  # columns of text, and what empty means
STATUSES = ("ok", "out_of_memory", "too_long", "not_available")


class ResultError(RuntimeError):
    """A result cannot be read."""


class MissingResultError(ResultError):
    """A result has not been published."""


class AlteredResultError(ResultError):
    """A result is incomplete or not what its record says: it was changed by hand or is torn."""


# -- Rows -----------------------------------------------------------------------------------------


def row(
    name: str,
    value: float | stats.Estimate | None,
    *,
    low: float | None = None,
    high: float | None = None,
    interval: str = "",
    samples: int | None = None,
    over: str = "",
    status: str = "ok",
    reason: str = "",
    **factors: Hashable,
) -> Row:
    """One row of a table: a metric's value, its 95 % interval and what they rest on, and its factors.

    Args:
        name: of a registered metric.
        value: the number, None where there is none, or an estimate that brings value, bounds, method and samples.
        low, high, interval: the 95 % interval and its method, a key of `stats.METHODS`; or none of the three.
        samples: how many samples the value rests on.
        over: what an aggregate is over, a label made by `over`.
        status: `"ok"`, or why there is no number: `"out_of_memory"`, `"too_long"`, `"not_available"`.
        reason: the same in words.
        factors: what tells this row from others of the same metric.

    Raises:
        ValueError: the metric or the status is unknown, bounds have no method or fewer samples than it needs, or a
            number is missing without a reason.

    Examples:
        >>> from bsbr import stats
        >>> from bsbr.store import row
        >>> found = row("time", stats.median([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]), mechanism="bsbr", n=4096)
        >>> found["value"], found["low"], found["high"], found["unit"], found["interval"]
        (1.3, 1.0, 1.6, 's', 'order statistics')
        >>> row("time", None, status="out_of_memory", reason="64 GB were asked for", n=10**7)["status"]
        'out_of_memory'
    """
    if isinstance(value, stats.Estimate):
        if (low, high, interval, samples) != (None, None, "", None):
            raise ValueError(f"{name}: an estimate brings its own bounds, interval and samples; give none beside it")
        low, high, interval, samples = value.low, value.high, value.interval, value.samples
        value = value.value
    measured = {
        "metric": name, "value": value, "unit": metric(name).unit, "low": low, "high": high, "interval": interval,
        "samples": samples, "over": over, "status": status, "reason": reason,
    }  # fmt: skip
    if wrong := _what_is_wrong(measured):
        raise ValueError(f"{name} with {factors}: {wrong}")
    return {**factors, **measured}


def _what_is_wrong(measured: Row) -> str:
    """What makes a row unfit for a table, in a sentence, or nothing."""
    numbers: dict[str, float | None] = {
        name: None if pd.isna(measured[name]) else float(measured[name]) for name in NUMBERS
    }
    value, low, high = numbers["value"], numbers["low"], numbers["high"]
    method, samples = measured["interval"], measured["samples"]
    if measured["status"] not in STATUSES:
        return f"status must be one of {', '.join(STATUSES)}, not {measured['status']!r}"
    if measured["status"] == "ok" and value is None:
        return "a row with status 'ok' must have a number; say by status and reason why there is none"
    if (low is None) != (high is None) or (low is not None) != bool(method):
        return f"low, high and interval go together, but they are {low}, {high} and {method!r}"
    if low is None or high is None:
        return ""
    if method not in stats.METHODS:
        return f"interval must be one of {', '.join(stats.METHODS)}, not {method!r}"
    least = stats.METHODS[method].least
    if pd.isna(samples) or samples < least:
        return f"{method} reaches 95 % from {least} samples on, but there are {0 if pd.isna(samples) else samples}"
    return "" if low <= high else f"low must not be above high, but they are {low} and {high}"


_items: dict[str, list[str]] = {}  # by label, what has been named in this process


def over(kind: str, items: Iterable[Hashable]) -> str:
    """The label of what an aggregate is over, such as `6 documents 3f9a1c2b`.

    Two labels are equal when kind and items are, in whatever order. The items stand in the record of the table that
    uses the label.

    Args:
        kind: what the items are, in the singular: `"document"`, `"seed"`, `"trial"`.
        items: their names, all different.

    Raises:
        ValueError: there are none, or one comes twice.

    Examples:
        >>> from bsbr.store import over
        >>> over("document", ["moby", "emma"])
        '2 documents ...'
        >>> over("document", ["moby", "emma"]) == over("document", ["emma", "moby"])
        True
    """
    names = sorted(map(str, items))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"an aggregate is over one {kind} or more, each once, not over {names}")
    digest = provenance.sha256("\n".join([kind, *names]))[:8]
    label = f"{len(names)} {kind}{'s' if len(names) > 1 else ''} {digest}"
    _items[label] = names
    return label


def items_of(labels: Iterable[str]) -> dict[str, list[str]]:
    """What the labels are over, of those that this process has named or read back."""
    return {label: _items[label] for label in sorted(set(labels)) if label in _items}


def remember_items(items: dict[str, list[str]]) -> None:
    """Learn labels from a kept cell."""
    _items.update(items)


# -- Tables ---------------------------------------------------------------------------------------


def factor_columns(table: pd.DataFrame) -> list[str]:
    return [str(column) for column in table.columns if column not in MEASURED]


def select(table: pd.DataFrame, name: str, **factors: Hashable) -> pd.DataFrame:
    """The rows of one metric, with the given factors. A factor given as None must be empty.

    Args:
        table: rows of a result.
        name: of the metric.
        factors: the values that factors are to have.

    Examples:
        >>> import pandas as pd
        >>> from bsbr.store import row, select
        >>> rows = [row("time", seconds, mechanism="bsbr", n=n) for n, seconds in ((1024, 0.1), (2048, 0.2))]
        >>> select(pd.DataFrame(rows), "time", n=2048)["value"].tolist()
        [0.2]
    """
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

    Args:
        table: rows of a result.
        name: of the metric.
        factors: the values that factors are to have.

    Raises:
        ValueError: no row or more than one matches.

    Examples:
        >>> import pandas as pd
        >>> from bsbr.store import row, only
        >>> rows = [row("time", seconds, mechanism="bsbr", n=n) for n, seconds in ((1024, 0.1), (2048, 0.2))]
        >>> float(only(pd.DataFrame(rows), "time", n=2048)["value"])
        0.2
        >>> only(pd.DataFrame(rows), "time", mechanism="bsbr")
        Traceback (most recent call last):
        ValueError: one row of 'time' with {'mechanism': 'bsbr'} was expected, 2 were found
    """
    rows = select(table, name, **factors)
    if len(rows) != 1:
        raise ValueError(f"one row of {name!r} with {factors} was expected, {len(rows)} were found")
    return rows.iloc[0]


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Factors first, then the measured columns.

    Args:
        table: rows as `row` makes them, with the factors that they share.

    Raises:
        ValueError: a metric is unknown, two rows have the same metric and factors, or a row is unfit (see `row`).

    Examples:
        >>> import pandas as pd
        >>> from bsbr.store import row, tidy
        >>> rows = [row("time", seconds, mechanism="bsbr", n=n) for n, seconds in ((1024, 0.1), (2048, 0.2))]
        >>> tidy(pd.DataFrame(rows)).columns[:5].tolist()
        ['mechanism', 'n', 'metric', 'value', 'unit']
    """
    table = typed(table.reindex(columns=[*factor_columns(table), *MEASURED]))
    for name in table["metric"].unique():
        metric(name)
    identity = keys(table, factor_columns(table))
    if identity.duplicated().any():
        raise ValueError(f"two rows have the same metric and factors: {identity[identity.duplicated()].iloc[0]}")
    for key, record in zip(identity, table[MEASURED].to_dict("records"), strict=True):
        if wrong := _what_is_wrong({str(name): value for name, value in record.items()}):
            raise ValueError(f"{key}: {wrong}")
    return table


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the types of its columns, whatever a CSV or a cell gave them."""
    table = table.convert_dtypes()
    table[NUMBERS] = table[NUMBERS].astype("float64")
    table["samples"] = table["samples"].astype("Int64")
    for column, empty in WORDS.items():
        table[column] = table[column].astype("string").fillna(empty)
    return table


def keys(table: pd.DataFrame, factors: Sequence[str]) -> pd.Series:
    """What identifies a row: its metric and those factors that it has, whatever types a CSV gave them."""
    names = sorted(factors)
    found = [
        " ".join([record["metric"], *(f"{name}={_shown(record[name])}" for name in names if pd.notna(record[name]))])
        for record in table.to_dict("records")
    ]
    return pd.Series(found, index=table.index, dtype="string")


def _shown(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and math.isfinite(value) and value.is_integer() else str(value)


# -- Published results ----------------------------------------------------------------------------


def data_folder() -> Path:
    """Where results and the journal live: `data/`, or what the environment variable BSBR_DATA names."""
    return Path(os.environ.get("BSBR_DATA") or provenance.ROOT / "data")


def published_folder(target: str, profile: str) -> Path:
    return data_folder() / "results" / target / profile


def journal_folder(target: str, profile: str) -> Path:
    return data_folder() / "journal" / target / profile


@dataclass(frozen=True)
class Result:
    """A published table, its record (where it came from), and the CSV it was read from.

    Examples:
        >>> from bsbr.store import load
        >>> result = load("benchmarks/inference_time")
        >>> times = result.select("time", mechanism="bsbr", n=4096)
        >>> times["unit"].unique().tolist()
        ['s']
        >>> result.value("speedup", mechanism="bsbr", size="256x2x4", phase="prefill", n=16384) > 1
        True
    """

    experiment: str  # its name, which is the notebook's path
    target: str  # "cpu" or "gpu"
    profile: str  # "full", "quick" or "tiny"
    table: pd.DataFrame  # one number a row
    provenance: dict[str, Any]  # its record: parameters, commit, packages, machine, dates, hashes
    path: Path  # of the CSV

    def select(self, name: str, **factors: Hashable) -> pd.DataFrame:
        """The rows of one metric, with the given factors."""
        return select(self.table, name, **factors)

    def value(self, name: str, **factors: Hashable) -> float:
        """The one value of a metric at the given factors."""
        return float(only(self.table, name, **factors)["value"])


def load(experiment: str, target: str = "cpu", profile: str = "full") -> Result:
    """Read a result of the store.

    Args:
        experiment: its name, which is the notebook's path, such as `"benchmarks/inference_time"`.
        target: `"cpu"` or `"gpu"`.
        profile: `"full"`, as published, `"quick"` or `"tiny"`.

    Raises:
        MissingResultError: it has not been published.
        AlteredResultError: its record is missing or damaged, or the table is not the one that the record describes.

    Examples:
        >>> from bsbr.store import load
        >>> result = load("benchmarks/inference_time")
        >>> result.target, result.profile, result.path.name
        ('cpu', 'full', 'inference_time.csv')
    """
    path = published_folder(target, profile) / f"{experiment}.csv"
    remedy = f"run: nox -s reproduce -- --target {target} --profile {profile} {experiment}"
    if not path.exists() and not path.with_suffix(".json").exists():
        raise MissingResultError(f"no result of {experiment} for {target}, {profile}; {remedy}")
    return read(path, experiment, target, profile, remedy)


def read(path: Path, experiment: str, target: str, profile: str, remedy: str = "publish it again") -> Result:
    """Read a table and its record from a file (see `load`)."""
    try:
        recorded = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        wanted, found = recorded["table_sha256"], provenance.sha256(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AlteredResultError(f"{path} and its record cannot be read together ({error}); {remedy}") from None
    if wanted != found:
        raise AlteredResultError(f"{path} is not the table that its record describes; {remedy}")
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    if "rungs" in recorded.get("parameters", {}):  # as settings of conversion were called in tables from before
        recorded["parameters"] = {**recorded["parameters"], "settings": recorded["parameters"]["rungs"]}
    return Result(experiment, target, profile, typed(_with_all_columns(table)), recorded, path)


def _with_all_columns(table: pd.DataFrame) -> pd.DataFrame:
    """A table from before intervals had a method: bounds of which nobody says what they are do not count.

    Conversion's settings were called rungs then, and no mean said that it was over all documents.
    """
    if "interval" not in table:
        table[["low", "high"]] = math.nan
        if "document" in table:
            table.insert(0, "documents", table["document"].isna().map({True: "all"}))
    table = table.rename(columns={"rung": "setting"})
    return table.reindex(columns=[*factor_columns(table), *MEASURED])


def published(target: str = "cpu", profile: str = "full") -> list[str]:
    """Names of the experiments that have a result, sorted.

    Args:
        target: `"cpu"` or `"gpu"`.
        profile: `"full"`, as published, `"quick"` or `"tiny"`.

    Examples:
        >>> from bsbr.store import published
        >>> "benchmarks/inference_time" in published()
        True
    """
    folder = published_folder(target, profile)
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.csv"))
