"""How the costs in a table grow with n: rows of exponents, of slopes between lengths, of crossovers and of noise.

Each function takes a table that has a factor `n`, and `where`: the other factors of one curve in it. Numbers that were
measured have an interval and give one; counts are exact and give none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from bsbr import stats
from bsbr.stats.estimates import Costs
from bsbr.store import Row, row, select
from bsbr.store.metrics import metric

EXPONENTS = {  # the metric of a cost's exponent
    "time": "exponent",
    "time_per_token": "exponent",
    "peak_memory": "memory_exponent",
    "resident_peak": "resident_exponent",
    "flops": "flops_exponent",
}
SLOPES = {"time": "local_exponent", "time_per_token": "local_exponent", "flops": "flops_local_exponent"}

Where = Mapping[str, Any]


def curve(table: pd.DataFrame, cost: str, where: Where) -> tuple[list[int], Costs]:
    """The lengths at which a metric has a finite, positive number, shortest first, and the numbers there."""
    rows = select(table, cost, **where)
    rows = rows[rows["value"].gt(0)].sort_values("n")
    n = [int(length) for length in rows["n"]]
    if metric(cost).clock:
        return n, stats.from_rows(rows.to_dict("records"))
    return n, [float(value) for value in rows["value"]]


def exponents(table: pd.DataFrame, cost: str, where: Where, ranges: Iterable[tuple[int, int]]) -> list[Row]:
    """The exponent of a power law on each range of n that has three lengths or more, both of its ends included.

    Of times there is also the R² of the fit.

    Args:
        cost: a metric, a key of `EXPONENTS`.
        ranges: the least and the greatest n of each.

    Returns:
        rows with the factors of `where`, `n_from` and `n_to`.
    """
    n, costs = curve(table, cost, where)
    rows = []
    for start, end in ranges:
        inside = [i for i, length in enumerate(n) if start <= length <= end]
        lengths = [n[i] for i in inside]
        if len(lengths) < 3 or not {start, end} <= set(lengths):
            continue
        fit = stats.power_law(lengths, [costs[i] for i in inside])
        span = {**where, "n_from": start, "n_to": end}
        rows.append(row(EXPONENTS[cost], fit.exponent, **span))
        if EXPONENTS[cost] == "exponent":
            rows.append(row("r_squared", fit.r_squared, samples=fit.points, **span))
    return rows


def slopes(table: pd.DataFrame, cost: str, where: Where) -> list[Row]:
    """The slope from n/2 to n on logarithmic axes, wherever both were measured: rows with `n`."""
    return [
        row(SLOPES[cost], slope.exponent, n=slope.n, **where)
        for slope in stats.local_exponents(*curve(table, cost, where))
        if 2 * slope.before == slope.n
    ]


def crossover(
    table: pd.DataFrame, gain: str, where: Where, *, name: str = "crossover_n", longest: int | None = None
) -> Row:
    """From which n a gain, such as a speedup, stays at 1 or above.

    Args:
        gain: a metric.
        name: the metric of the row.
        longest: lengths above it are left out, such as those beyond a model's context.

    Returns:
        a row whose value is infinite if the gain has not come by the longest length; its `reason` says which that is.
        Not available below three lengths.
    """
    n, gains = curve(table, gain, where)
    n, gains = n[: sum(length <= (longest or length) for length in n)], list(gains)
    if len(n) < 3:
        reason = f"{len(n)} lengths were measured, and it takes three"
        return row(name, None, status="not_available", reason=reason, **where)
    found = stats.crossover(n, gains[: len(n)])
    reason = f"no crossover up to n = {n[-1]:,}" if found.value == float("inf") else ""
    return row(name, found, reason=reason, **where)


def noise(table: pd.DataFrame, cost: str, where: Where) -> Row:
    """By how many % the repeats of one cell differ: the noise of a run. The repeats are all rows with these factors."""
    values = select(table, cost, **where)["value"].dropna()
    return row("noise", stats.repeat_spread(values), samples=len(values), **where)
