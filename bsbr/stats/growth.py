"""How a cost grows with n: power laws, slopes between lengths, and where two curves cross.

A cost is an `Estimate`, or a plain number if it is known exactly, such as a count of bytes or operations. What is
derived has an interval only if every cost has one: it says how far off the costs may be. How well a law fits is told
by R² and by the slopes between lengths, never by an interval: a bend is no error of measurement.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bsbr.stats.estimates import Costs, Estimate, log_ends, median


@dataclass(frozen=True)
class PowerLaw:
    """cost = coefficient · n^exponent; the fit's R², and how many lengths it is over.

    Examples:
        >>> from bsbr import stats
        >>> law = stats.power_law([1, 2, 4], [3.0, 6.0, 12.0])
        >>> round(law.coefficient, 6), round(law.exponent.value, 6), law.points
        (3.0, 1.0, 3)
    """

    coefficient: float  # the cost at n = 1
    exponent: Estimate  # with the interval that those of the costs make
    r_squared: float  # the share of the variance of log cost that the fit explains
    points: int  # lengths that it is over


@dataclass(frozen=True)
class Slope:
    """The exponent between a measured n and the one before it.

    Examples:
        >>> from bsbr import stats
        >>> [slope] = stats.local_exponents([1024, 2048], [3.0, 6.0])
        >>> slope.n, slope.before
        (2048, 1024)
    """

    n: int  # the greater length
    before: int  # the smaller one
    exponent: Estimate  # of the growth between the two


def power_law(n: Sequence[float], cost: Costs) -> PowerLaw:
    """Fit log cost = log a + b · log n by ordinary least squares.

    The exponent is a weighted sum of the logarithms of the costs, b = Σ wᵢ log cᵢ with wᵢ = (xᵢ − x̄) / Σ (xⱼ − x̄)² and
    x = log n. So its half intervals are √Σ (wᵢ eᵢ)² of those of the log costs, each on the side that its weight takes
    it. Its `samples` are the fewest of any cost, or the number of lengths if costs are exact.

    A cost that is fixed overhead at small n bends the curve, so an exponent holds for the range it was fitted on. Costs
    of different lengths are taken as measured independently of each other: a machine that was slower all through one
    of them is in no interval.

    Args:
        n: the lengths.
        cost: of each length.

    Raises:
        ValueError: fewer than three points, lists of different lengths, an n that comes twice, or a number that is not
            positive.

    Examples:
        >>> from bsbr import stats
        >>> law = stats.power_law([1024, 2048, 4096], [3.0, 12.0, 48.0])
        >>> round(law.exponent.value, 6), round(law.r_squared, 6)
        (2.0, 1.0)
    """
    if len(n) != len(cost) or len(n) < 3:
        raise ValueError(f"n and cost must be of one length, at least 3, not {len(n)} and {len(cost)}")
    x, y = _log_points(n, cost)
    weights = _weights(x)
    slope = float(weights @ y)
    intercept = float(y.mean() - slope * x.mean())
    total = float(((y - y.mean()) ** 2).sum())
    left = float(((y - intercept - slope * x) ** 2).sum())
    return PowerLaw(
        coefficient=math.exp(intercept),
        exponent=_weighted(slope, weights, cost),
        r_squared=1 - left / total if total else 1.0,
        points=len(n),
    )


def power_law_of_rounds(n: Sequence[float], rounds: Sequence[ArrayLike]) -> PowerLaw:
    """The same where all lengths took turns: one exponent a round, their median and its order statistics.

    What slows a whole round moves all of its costs alike, and leaves its exponent as it is.

    Args:
        n: the lengths.
        rounds: for each of them the costs, one a round.

    Raises:
        ValueError: as `power_law`; or the lengths have different numbers of rounds.
    """
    counts = {np.size(costs) for costs in rounds}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"rounds: expected as many for each length, got {[np.size(costs) for costs in rounds]}")
    costs = np.array([np.asarray(taken, float) for taken in rounds])
    fit = power_law(n, [float(np.median(taken)) for taken in costs])
    if costs.min() <= 0:
        raise ValueError("rounds must be positive")
    exponents = median(_weights(np.log(np.asarray(n, float))) @ np.log(costs))
    return PowerLaw(fit.coefficient, exponents, fit.r_squared, fit.points)


def local_exponents(n: Sequence[float], cost: Costs) -> list[Slope]:
    """The slope between neighbouring n on logarithmic axes, from the second on: log(cost ratio) / log(n ratio).

    The interval is that of a power law through the two points.

    Args:
        n: the lengths.
        cost: of each length.

    Raises:
        ValueError: lists of different lengths, an n that comes twice, or a number that is not positive.

    Examples:
        >>> from bsbr import stats
        >>> for slope in stats.local_exponents([1024, 2048, 4096], [3.0, 6.0, 24.0]):
        ...     print(slope.before, slope.n, round(slope.exponent.value, 6))
        1024 2048 1.0
        2048 4096 2.0
    """
    if len(n) != len(cost):
        raise ValueError(f"n and cost must be of one length, not {len(n)} and {len(cost)}")
    if not len(n):
        return []
    x, y = _log_points(n, cost)
    order = np.argsort(x)
    found = []
    for i, j in itertools.pairwise(order):
        weights = np.array([-1.0, 1.0]) / (x[j] - x[i])
        slope = float(weights @ y[[i, j]])
        found.append(Slope(int(n[j]), int(n[i]), _weighted(slope, weights, [cost[i], cost[j]])))
    return found


def extrapolate(n: Sequence[float], cost: Costs, to: float) -> float:
    """The cost at `to` if the growth between the two greatest n goes on. Raises ValueError as `local_exponents`.

    Args:
        n: the lengths.
        cost: of each length.
        to: the length that is asked for.

    Examples:
        >>> from bsbr import stats
        >>> round(stats.extrapolate([1024, 2048], [3.0, 12.0], to=4096), 6)
        48.0
    """
    last = local_exponents(n, cost)[-1]
    end = _value(cost[int(np.argmax(n))])
    return end * (to / last.n) ** last.exponent.value


def crossover(n: Sequence[float], gain: Costs) -> Estimate:
    """The n from which a gain stays at 1 or above, interpolated between measured n on logarithmic axes.

    Its interval runs from where the upper ends of the gains' intervals cross 1 to where their lower ends do.

    Args:
        n: the lengths.
        gain: of each length, such as a speedup.

    Returns:
        value infinite where the gain is below 1 at the greatest n: it does not come up to there. `high` is infinite
        where it may not. The least measured n where the gain is never below 1: it may have come before.

    Raises:
        ValueError: lists of different lengths, none at all, an n that comes twice, or a number that is not positive.

    Examples:
        >>> from bsbr import stats
        >>> round(stats.crossover([1024, 2048, 4096], [0.5, 0.5, 2.0]).value)
        2896
    """
    if len(n) != len(gain) or not len(n):
        raise ValueError(f"n and gain must be of one length, at least 1, not {len(n)} and {len(gain)}")
    x, y = _log_points(n, gain)
    order = np.argsort(x)
    at, samples = _crossing(x[order], y[order]), _samples(gain)
    ends = [log_ends(one) if isinstance(one, Estimate) else None for one in gain]
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return Estimate(at, None, None, samples, "")
    below, above = np.array(known).T
    earliest, latest = _crossing(x[order], (y + above)[order]), _crossing(x[order], (y - below)[order])
    return Estimate(at, earliest, latest, samples, "ends of intervals")


def _crossing(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    below = np.flatnonzero(y < 0)
    if len(below) == 0:
        return float(np.exp(x[0]))
    last = below[-1]
    if last == len(y) - 1:
        return math.inf
    return float(np.exp(np.interp(0.0, y[last : last + 2], x[last : last + 2])))


def quadratic(once: float, twice: float, thrice: float, step: float) -> tuple[float, float]:
    """a and b of a cost a·n + b·n² + c, exactly, from the costs at step, 2·step and 3·step.

    A unit of n then costs a + b·n, and from n = a/b on the growing part outweighs the fixed one.
    """
    growing = (thrice - 2 * twice + once) / (2 * step**2)
    return (twice - once) / step - 3 * step * growing, growing


def repeat_spread(values: ArrayLike) -> float:
    """By how many % the greatest of repeated measurements exceeds the least: the noise of a run.

    Raises:
        ValueError: fewer than two, or one that is not positive.
    """
    found = np.asarray(values, float)
    if found.size < 2 or not found.min() > 0:
        raise ValueError(f"values must be two or more positive numbers, not {found.tolist()}")
    return 100 * float(found.max() / found.min() - 1)


def _value(cost: float | Estimate) -> float:
    return cost.value if isinstance(cost, Estimate) else float(cost)


def _samples(costs: Costs) -> int:
    """The fewest of any cost; the number of costs if all are exact."""
    return min((cost.samples for cost in costs if isinstance(cost, Estimate)), default=len(costs))


def _log_points(n: Sequence[float], cost: Costs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(n, float), np.array([_value(one) for one in cost])
    if not (x.min() > 0 and y.min() > 0):
        raise ValueError(f"n and cost must be positive, the least are {x.min()} and {y.min()}")
    if len(set(x)) < len(x):
        raise ValueError(f"n and cost must be one cost for each n, n is {x.tolist()}")
    return np.log(x), np.log(y)


def _weights(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of least squares: what each point adds to the slope."""
    off = x - x.mean()
    return np.asarray(off / (off**2).sum())


def _weighted(value: float, weights: NDArray[np.float64], cost: Costs) -> Estimate:
    ends = [log_ends(one) if isinstance(one, Estimate) else None for one in cost]
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return Estimate(value, None, None, _samples(cost), "")
    below, above = np.array(known).T
    down = float(np.hypot.reduce(weights * np.where(weights > 0, below, above)))
    up = float(np.hypot.reduce(weights * np.where(weights > 0, above, below)))
    return Estimate(value, value - down, value + up, _samples(cost), "errors of logs")
