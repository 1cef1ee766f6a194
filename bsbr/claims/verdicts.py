"""A stated number beside a measured one: confirmed, right in direction, contradicted, or open."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bsbr.stats import Estimate

DECIDED = ["confirmed", "direction only", "contradicted"]
OPEN, BASE, LATER, NEVER = "open", "base of its table", "not measured yet", "cannot be measured here"
VERDICTS = [*DECIDED, OPEN, BASE, LATER, NEVER]


@dataclass(frozen=True)
class Tolerance:
    """How near is near enough: a share of the stated effect, plus one of the stated number, plus a margin.

    `equal` is how far from no effect still counts as equal.
    """

    share: float = 0
    relative: float = 0
    margin: float = 0
    equal: float = 0

    def around(self, stated: float, neutral: float | None) -> float:
        effect = 0 if neutral is None else abs(stated - neutral)
        at_neutral = neutral is not None and math.isclose(stated, neutral, rel_tol=1e-9, abs_tol=1e-12)
        return self.share * effect + self.relative * abs(stated) + self.margin + self.equal * at_neutral


def verdict(
    stated: float,
    found: Estimate,
    tolerance: Tolerance,
    *,
    neutral: tuple[float, float] | None = None,
    ratio: bool = False,
    interval: bool = False,
) -> str:
    """`confirmed`, `direction only`, `contradicted` or `open`.

    Confirmed: the measured number lies within the tolerance of the stated one, and its interval is no wider than that
    tolerance. Open: the interval is wider, and reaches into the tolerance. Direction only: neither, but the whole
    interval lies on the stated side of no effect; to be equal is a direction of its own. Contradicted: all else.

    Args:
        neutral: no effect, among the stated and among the measured numbers; without it there is no direction.
        ratio: both are ratios, of which 2 and ½ are equally far from no effect.
        interval: a number without an interval is no evidence; otherwise it counts as exact.
    """
    ends = (found.low, found.high)
    if interval and None in ends:
        return OPEN
    low, high = (found.value if end is None else end for end in ends)
    value, middle = found.value, neutral
    if ratio and neutral is not None:
        stated, (low, value, high) = stated / neutral[0], (x / neutral[1] for x in (low, value, high))
        middle = (1.0, 1.0)
        if stated < 1:
            stated, low, value, high = _inverse(stated), _inverse(high), _inverse(value), _inverse(low)
    if math.isinf(stated):
        return (
            "direction only" if middle and low > middle[1] else OPEN if middle and high > middle[1] else "contradicted"
        )
    around = tolerance.around(stated, middle[0] if middle else None)
    if (high - low) / 2 > around * (1 + 1e-9) and low <= stated + around and high >= stated - around:
        return OPEN
    said = _side(stated, stated, middle[0], 0) if middle else None
    if abs(stated - value) <= around * (1 + 1e-9) and not (middle and said and said * (value - middle[1]) < 0):
        return "confirmed"
    if middle and said == _side(low, high, middle[1], tolerance.equal + tolerance.relative * abs(middle[1])):
        return "direction only"
    return "contradicted"


def _side(low: float, high: float, middle: float, equal: float) -> int | None:
    """−1 below, 1 above, 0 equal, None where the interval leaves it open."""
    equal = max(equal, 1e-9 * abs(middle), 1e-12)
    if middle - equal <= low and high <= middle + equal:
        return 0
    if low > middle + equal:
        return 1
    return -1 if high < middle - equal else None


def _inverse(number: float) -> float:
    return 1 / number if number else math.inf


def against_bounds(
    found: Estimate,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    neutral: float | None = None,
    interval: bool = False,
) -> str:
    """Whether a measured number keeps its bounds, as a verdict (see `verdict` for `neutral` and `interval`)."""
    if interval and found.low is None:
        return OPEN
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    kept = [low >= at_least] if at_least is not None else []
    kept += [high <= at_most] if at_most is not None else []
    kept += [low > above] if above is not None else []
    kept += [high < below] if below is not None else []
    if all(kept):
        return "confirmed"
    broken = (at_least is not None and high < at_least) or (at_most is not None and low > at_most)
    broken = broken or (above is not None and high <= above) or (below is not None and low >= below)
    if not broken:
        return OPEN
    upwards = at_least is not None or above is not None
    right = neutral is not None and (low > neutral if upwards else high < neutral)
    return "direction only" if right else "contradicted"


def together(verdicts: list[str]) -> str:
    """The verdict on what holds only if all of its parts do: one that does not hold contradicts it."""
    order = ["contradicted", NEVER, LATER, OPEN, "direction only", "confirmed"]
    return min(verdicts, key=order.index)
