"""Claims in words against the tables: bounds, trends, and what is best."""

from __future__ import annotations

import dataclasses
import math

from bsbr import stats
from bsbr.claims.loading import title
from bsbr.claims.readings import Reading
from bsbr.claims.rules import Part
from bsbr.claims.tables import ANY, Table, UnjudgedError
from bsbr.claims.verdicts import LATER, OPEN, against_bounds, together
from bsbr.stats import Estimate

MONOTONE = 0.5  # rank correlation from which a trend is one, and not two ends


def read(parts: tuple[Part, ...], tables: dict[str, Table], size: str) -> Reading:
    """What the tables say of all parts together."""
    whose = "their code" if any(part.where.get("implementation") == "original" for part in parts) else "the formula"
    verdicts, found, reasons = [], [], []
    experiment = parts[0].experiment
    for part in parts:
        try:
            result, finding = _judge(part, tables, size if part.sized else "")
            verdicts.append(result)
            found.append(f"{_name(part)}: {finding}")
            if result == OPEN:
                reasons.append(f"{_name(part)}: too wide an interval, or none")
        except UnjudgedError as why:
            verdicts.append(why.verdict)
            reasons.append(why.reason)
            experiment = part.experiment if why.verdict == LATER else experiment
    verdict = together(verdicts)
    reason = "; ".join(dict.fromkeys(reasons)) if verdict not in ("confirmed", "contradicted", "direction only") else ""
    return Reading(whose, experiment, verdict=verdict, reason=reason, finding="; ".join(found))


def _judge(part: Part, tables: dict[str, Table], size: str) -> tuple[str, str]:
    table = tables.get(part.experiment)
    if table is None:
        raise UnjudgedError(LATER, f"{part.experiment} will measure it")
    if not part.along:
        found = _number(part, table, size)
        bounds = {
            name: getattr(part, name) for name in ("at_least", "at_most", "above", "below", "neutral", "interval")
        }
        return against_bounds(found, **bounds), shown(found)
    points = table.along(part.along, part.metric, part.where, size)
    if part.order:
        points = {name: points[name] for name in part.order if name in points}
    else:
        first, last = (-math.inf if part.start is None else part.start), (math.inf if part.end is None else part.end)
        points = {name: points[name] for name in sorted(points) if first <= name <= last}
    if len(points) < 2:
        raise UnjudgedError(LATER, f"{part.experiment} has no {part.metric} along {part.along} yet")
    if part.trend:
        return _trend(part, points)
    return _best(part, points) if part.best else _every(part, points)


def _number(part: Part, table: Table, size: str) -> Estimate:
    found = table.find(part.metric, part.where, size)
    change = part.over if part.over is not None else part.minus
    if change is None:
        return found
    metric = str(change.get("metric", part.metric))
    where = {**part.where, **{name: value for name, value in change.items() if name != "metric"}}
    other = table.find(metric, where, size)
    if part.over is not None:
        return stats.independent_ratio(found, other)
    if part.from_one:
        found, other = _from_one(found), _from_one(other)
    return stats.independent_difference(found, other)


def _from_one(number: Estimate) -> Estimate:
    """How far from 1."""
    if number.low is None or number.high is None:
        return dataclasses.replace(number, value=abs(number.value - 1))
    ends = sorted(abs(end - 1) for end in (number.low, number.high))
    low = 0.0 if number.low <= 1 <= number.high else ends[0]
    return dataclasses.replace(number, value=abs(number.value - 1), low=low, high=ends[1])


def _trend(part: Part, points: dict[object, Estimate]) -> tuple[str, str]:
    """From the first to the last: their intervals must not meet, and the ranks between must follow."""
    numbers = list(points.values())
    first, last = numbers[0], numbers[-1]
    (low, high), (last_low, last_high) = _ends(first), _ends(last)
    finding = f"{shown(first)} → {shown(last)}"
    if part.interval and (first.low is None or last.low is None):
        return OPEN, finding
    rises, falls = last_low > high, last_high < low
    if not rises and not falls:
        return ("contradicted" if low == high == last_low == last_high else OPEN), finding
    if part.trend == "changes":
        return "confirmed", finding
    if rises != (part.trend == "rises"):
        return "contradicted", finding
    order = stats.rank_correlation(range(len(numbers)), [number.value for number in numbers])
    return "confirmed" if order * (1 if rises else -1) >= MONOTONE else "direction only", finding


def _best(part: Part, points: dict[object, Estimate]) -> tuple[str, str]:
    """Whether the value at one place is near the best of all."""
    if part.at not in points:
        raise UnjudgedError(LATER, f"{part.experiment} has no {part.metric} at {part.along}={part.at} yet")
    chosen = points[part.at]
    pick = min if part.best == "least" else max
    best = pick(points, key=lambda name: points[name].value)
    finding = f"{shown(chosen)}, the best is {shown(points[best])} at {best}"
    if best == part.at:
        return (OPEN if part.interval and chosen.low is None else "confirmed"), finding
    worse = (chosen, points[best]) if part.best == "least" else (points[best], chosen)
    return against_bounds(stats.independent_ratio(*worse), at_most=part.within, interval=part.interval), finding


def _every(part: Part, points: dict[object, Estimate]) -> tuple[str, str]:
    least = min(points.values(), key=lambda number: number.value)
    return against_bounds(least, at_least=part.every_at_least, interval=part.interval), f"at least {shown(least)}"


def _ends(number: Estimate) -> tuple[float, float]:
    return (number.value, number.value) if number.low is None or number.high is None else (number.low, number.high)


def _name(part: Part) -> str:
    """A part in a few words: its metric, and what tells it from the others."""
    shown = [f"{name}={value}" for name, value in part.where.items() if name in ("n", "task", "epochs")]
    change = [
        value if isinstance(value, str) else f"{name}={value}"
        for name, value in (part.over or part.minus or {}).items()
        if value not in ("", ANY)
    ]
    shown += [f"{'over that of' if part.over else 'less that of'} {', '.join(change)}"] if change else []
    shown += [f"along {part.along}"] if part.along else []
    return " ".join([title(part.metric), *shown])


def shown(number: Estimate) -> str:
    """A number with its interval, four significant digits."""
    text = f"{number.value:.4g}"
    return text if number.low is None else f"{text} ({number.low:.4g} to {number.high:.4g})"
