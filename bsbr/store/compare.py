"""Two runs of one experiment beside each other: which numbers are the same, and which cannot be compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from bsbr.store.metrics import Metric, metric
from bsbr.store.table import MEASURED, NUMBERS, Result, factor_columns, keys

REPRODUCED, DRIFTED = "reproduced", "drifted"
NOT_COMPARED, NOT_MEASURED = "not compared", "not measured here"
VERDICTS = (REPRODUCED, DRIFTED, NOT_COMPARED, NOT_MEASURED)
# The columns of a comparison behind the factors.
COMPARED = tuple(f"{run}{end}" for run in ("published", "here") for end in ("", "_low", "_high"))
ABOUT = ("metric", "unit", *COMPARED, "clock", "verdict", "reason")


class Judged(NamedTuple):
    """A verdict of `VERDICTS`, and why where the number alone does not say."""

    verdict: str
    reason: str = ""


def compare(published: Result, here: Result) -> pd.DataFrame:
    """Each published number beside the one of another run.

    A number that no clock touches is the same if it is within the rounding of its arithmetic, where both runs had the
    same packages, and within its metric's tolerance where they had not. One that a clock touches has drifted only if
    its interval, widened by the metric's tolerance, does not meet the other run's. An aggregate is compared only with
    one over the same items.

    Args:
        published: the one that is held against.
        here: the other run's.

    Returns:
        The factors, `metric` and `unit`; `published` and `here`, each with `_low` and `_high`; `clock`, whether a
        clock touches it; `verdict`, one of `VERDICTS`; and `reason`.

    Examples:
        >>> from bsbr.store import compare, load
        >>> result = load("benchmarks/inference_time")
        >>> found = compare(result, result)  # a run against itself
        >>> sorted(found["verdict"].unique())
        ['not compared', 'reproduced']
    """
    factors = factor_columns(published.table)
    extra = [factor for factor in factor_columns(here.table) if factor not in factors]
    columns = [*factors, *extra]
    left = published.table.assign(key=keys(published.table, factors))
    right = here.table.assign(key=keys(here.table.reindex(columns=[*columns, *MEASURED]), columns))
    wanted = ["key", *NUMBERS, "over", "status"]
    joined = left.merge(right[wanted], on="key", how="left", suffixes=("", "_here"))
    same_packages = packages_of(published) == packages_of(here)
    records = joined.to_dict("records")
    judged = [_judge({str(name): value for name, value in record.items()}, same_packages) for record in records]
    names = {"value": "published", "low": "published_low", "high": "published_high", "value_here": "here"}
    shown = joined.rename(columns={**names, "low_here": "here_low", "high_here": "here_high"})
    shown["clock"] = [metric(name).clock for name in shown["metric"]]
    shown["verdict"], shown["reason"] = [one.verdict for one in judged], [one.reason for one in judged]
    return shown[[*factors, *ABOUT]]


def packages_of(result: Result) -> list[dict[str, str]]:
    """The sets of packages that a result's cells were measured with."""
    groups = result.provenance.get("measured") or [result.provenance]
    found = [group["packages"] for group in groups]
    return sorted((one for n, one in enumerate(found) if one not in found[:n]), key=str)


def _judge(row: dict[str, Any], same_packages: bool) -> Judged:
    found, status, status_here = metric(row["metric"]), row["status"], row["status_here"]
    if pd.isna(status_here):
        return Judged(NOT_MEASURED)
    if status == "ok" and status_here != "ok":
        return Judged(NOT_MEASURED, str(status_here).replace("_", " "))
    if found.rule == "hardware":
        return Judged(NOT_COMPARED, "it belongs to the machine")
    if status in ("out_of_memory", "too_long"):
        return Judged(NOT_COMPARED, f"{status.replace('_', ' ')} where it was published, which belongs to the machine")
    if row["over"] != row["over_here"]:
        return Judged(NOT_COMPARED, f"over other items: {row['over'] or 'one'}, here {row['over_here'] or 'one'}")
    if status != "ok":
        same = status == status_here
        return Judged(REPRODUCED if same else DRIFTED, f"{status.replace('_', ' ')} where it was published")
    return Judged(REPRODUCED if _agrees(found, row, same_packages) else DRIFTED)


def _agrees(found: Metric, row: dict[str, Any], same_packages: bool) -> bool:
    if not (found.by_interval or _is_of_training(row)):
        return found.agrees(row["value"], row["value_here"], same_packages=same_packages)
    ends = [row["value"] if pd.isna(row[name]) else row[name] for name in ("low", "high")]
    ends_here = [row["value_here"] if pd.isna(row[name]) else row[name] for name in ("low_here", "high_here")]
    meet = ends[0] <= ends_here[1] and ends_here[0] <= ends[1]
    nearest = (ends[0], ends_here[1]) if ends_here[1] < ends[0] else (ends[1], ends_here[0])
    return meet or found.agrees(*nearest)


def _is_of_training(row: dict[str, Any]) -> bool:
    """Whether a number comes of a training with a seed, or is over several: perplexity, too, is one that need not."""
    return not pd.isna(row.get("seed")) or " seed" in row["over"]
