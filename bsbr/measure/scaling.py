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
