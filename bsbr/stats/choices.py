"""Which of what was measured to take: fronts, margins, and the few that matter most."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, spearmanr

from bsbr.stats.estimates import Estimate

Name = TypeVar("Name", bound=Hashable)


def pareto_front(points: Mapping[Name, tuple[float, float]]) -> list[Name]:
    """Those that no other beats, best gain first: each has a lower cost than all with at least its gain.

    Args:
        points: (gain, cost) by name, such as speedup and perplexity ratio. More gain and less cost are better. Of
            equals the first stands for all.

    Examples:
        >>> from bsbr import stats
        >>> stats.pareto_front({"a": (3.0, 1.2), "b": (2.0, 1.1), "c": (2.0, 1.3)})  # c costs more than both
        ['a', 'b']
    """
    front: list[Name] = []
    least = np.inf
    for name in sorted(points, key=lambda name: (-points[name][0], points[name][1])):
        if points[name][1] < least:
            front.append(name)
            least = points[name][1]
    return front


def best_within(points: Mapping[Name, tuple[float, float]], most: float) -> Name | None:
    """The one of the greatest gain whose cost is at most `most`, or None if none is."""
    near = {name: gain for name, (gain, cost) in points.items() if cost <= most}
    return max(near, key=lambda name: near[name]) if near else None


def as_good_as_best(costs: Mapping[Name, Estimate]) -> list[Name]:
    """The one of the least cost and all whose intervals meet its own, in the given order.

    Without intervals the one alone, and its equals.
    """
    best = min(costs.values(), key=lambda cost: cost.value)
    bound = best.value if best.high is None else best.high
    return [name for name, cost in costs.items() if (cost.value if cost.low is None else cost.low) <= bound]


def fewest_for_share(values: ArrayLike, share: float) -> int:
    """How many of the greatest it takes to make up `share` % of the sum, such as layers for half the divergence.

    Raises:
        ValueError: a value below zero, a sum of zero, or a share outside 0 … 100 %.
    """
    parts = _parts(values)
    if not 0 < share <= 100:
        raise ValueError(f"share must be above 0 and at most 100 %, not {share}")
    reached = 100 * np.cumsum(parts) / parts.sum()
    return min(int(np.searchsorted(reached, share - 1e-9)) + 1, len(parts))


def share_of_largest(values: ArrayLike, count: int) -> float:
    """Which share of the sum, in %, the `count` greatest hold. Raises ValueError as `fewest_for_share`."""
    parts = _parts(values)
    return 100 * float(parts[:count].sum() / parts.sum())


def _parts(values: ArrayLike) -> np.ndarray:
    parts = np.sort(np.asarray(values, float).ravel())[::-1]
    if not len(parts) or parts[-1] < 0 or not parts[0] > 0:
        raise ValueError("values must be zero or above, and not all zero")
    return parts


def costliest(costs: Mapping[Name, float], *, above: float, most: int) -> list[Name]:
    """Those that cost more than `above`, most costly first, and at most `most` of them: the layers to keep."""
    over = [name for name in costs if costs[name] > above]
    return sorted(over, key=lambda name: -costs[name])[:most]


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's: how alike two orders are, from −1 to 1; NaN where one side is constant or has fewer than two."""
    one, other = np.asarray(first, float), np.asarray(second, float)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"first and second must be pairs in a row, got shapes {one.shape} and {other.shape}")
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(spearmanr(one, other).statistic)


@dataclass(frozen=True)
class Paired:
    """How often two that tried the same things succeeded, and McNemar's exact probability.

    `probability` is that of so uneven a split of the trials that only one of them did, or a more uneven one, if both
    are equally good (McNemar, Psychometrika 1947, with the binomial in place of χ²).
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    probability: float


def pair(first: Sequence[bool] | ArrayLike, second: Sequence[bool] | ArrayLike) -> Paired:
    """Two rows of successes on the same trials, held against each other. Raises ValueError for different lengths."""
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"first and second must be of the same trials, got shapes {one.shape} and {other.shape}")
    a, b = int((one & ~other).sum()), int((other & ~one).sum())
    probability = float(binomtest(a, a + b).pvalue) if a + b else 1.0
    return Paired(int((one & other).sum()), a, b, int((~one & ~other).sum()), probability)
