"""How a cost grows with n: a power law by least squares, and where two curves cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress, t


@dataclass(frozen=True)
class PowerLaw:
    """cost = coefficient · n^exponent, with the exponent's 95 % interval and the fit's R²."""

    coefficient: float
    exponent: float
    low: float
    high: float
    r_squared: float
    points: int


def fit_power_law(n: Sequence[float], cost: Sequence[float]) -> PowerLaw:
    """Fit log cost = log a + b · log n by ordinary least squares; the interval is Student's t on n − 2 degrees.

    A cost that is fixed overhead at small n bends the curve, so an exponent holds for the range it was fitted on.

    Raises:
        ValueError: fewer than three points, lists of different lengths, or a number that is not positive.
    """
    if len(n) != len(cost) or len(n) < 3:
        raise ValueError(f"n and cost must be of one length, at least 3, not {len(n)} and {len(cost)}")
    if min(n) <= 0 or min(cost) <= 0:
        raise ValueError(f"n and cost must be positive for a power law, the least are {min(n)} and {min(cost)}")
    fit = linregress(np.log(n), np.log(cost))
    reach = float(t.ppf(0.975, len(n) - 2)) * fit.stderr
    return PowerLaw(
        coefficient=float(np.exp(fit.intercept)),
        exponent=float(fit.slope),
        low=float(fit.slope - reach),
        high=float(fit.slope + reach),
        r_squared=float(fit.rvalue**2),
        points=len(n),
    )


@dataclass(frozen=True)
class Slope:
    """The exponent between a measured n and the one before it, with a 95 % interval where the costs have one."""

    n: int
    value: float
    low: float | None
    high: float | None


def local_exponents(
    n: Sequence[float],
    cost: Sequence[float],
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
) -> list[Slope]:
    """The slope between neighbouring n on logarithmic axes, from the second on: log(cost ratio) / log(n ratio).

    The interval takes the two costs for independent: their logarithms' half intervals add as squares, each side on its
    own.

    Raises:
        ValueError: lists of different lengths, an n that comes twice, or a number that is not positive.
    """
    given = [cost, *(bound for bound in (low, high) if bound is not None)]
    if any(len(values) != len(n) for values in given):
        raise ValueError(f"n and cost, and bounds if given, must be of one length, not {[len(n), *map(len, given)]}")
    if len(n) and (min(n) <= 0 or min(map(min, given)) <= 0 or len(set(n)) < len(n)):
        raise ValueError(f"n and cost must be positive and no n may come twice, n is {list(n)}")
    order = np.argsort(n)
    at = np.asarray(n)[order]
    log_cost, step = np.log(np.asarray(cost, float)[order]), np.diff(np.log(at.astype(float)))
    slopes = np.diff(log_cost) / step
    if low is None or high is None:
        return [Slope(int(x), float(slope), None, None) for x, slope in zip(at[1:], slopes, strict=True)]
    below, above = (np.abs(np.log(np.asarray(bound, float)[order]) - log_cost) for bound in (low, high))
    down = slopes - np.hypot(below[1:], above[:-1]) / step  # least where the later cost is low and the earlier high
    up = slopes + np.hypot(above[1:], below[:-1]) / step
    return [Slope(int(x), *map(float, found)) for x, *found in zip(at[1:], slopes, down, up, strict=True)]


def extrapolate(n: Sequence[float], cost: Sequence[float], to: float) -> float:
    """The cost at `to` if the growth between the two greatest n goes on."""
    last = local_exponents(n, cost)[-1]
    order = np.argsort(n)
    return float(cost[order[-1]] * (to / n[order[-1]]) ** last.value)


def crossover(n: Sequence[float], speedup: Sequence[float]) -> float | None:
    """The n from which speedup stays at 1 or above, interpolated between measured n on logarithmic axes.

    Returns:
        The least measured n if speedup is never below 1; None if it is below 1 at the greatest.
    """
    order = np.argsort(n)
    log_n, log_speedup = np.log(np.asarray(n, float)[order]), np.log(np.asarray(speedup, float)[order])
    below = np.flatnonzero(log_speedup < 0)
    if len(below) == 0:
        return float(np.exp(log_n[0]))
    last = below[-1]
    if last == len(log_n) - 1:
        return None
    return float(np.exp(np.interp(0.0, log_speedup[last : last + 2], log_n[last : last + 2])))
