"""Numbers with a 95 % interval, and the methods that give one."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, binomtest, t


@dataclass(frozen=True)
class Method:
    """A way to an interval: from how many samples on it reaches 95 %, and what it is and assumes, in a sentence."""

    least: int
    about: str


METHODS = {
    "order statistics": Method(
        6,
        "Two of the ordered samples hold the median between them, whatever the distribution; samples are independent.",
    ),
    "bootstrap t": Method(
        6,
        "A mean's interval by Student's t, widened to the one by bootstrapped t, which sees skew; independent samples.",
    ),
    "bootstrap t of logs": Method(6, "The same for the mean of the logarithms, taken back: for ratios."),
    "Student t": Method(
        3,
        "A mean's interval by Student's t; independent samples that scatter evenly about it, as seeds do.",
    ),
    "Clopper-Pearson": Method(
        1, "The shares under which a binomial count as far out as the one found is not below 2.5 %; never under 95 %."
    ),
    "Fieller": Method(
        6, "The ratios of two paired means that Student's t does not reject; none where the denominator may be zero."
    ),
    "errors of logs": Method(
        3, "Half intervals of independent estimates, as logarithms, add as squares, each side on its own."
    ),
    "errors": Method(3, "Half intervals of independent estimates add as squares, each side on its own."),
    "ends of intervals": Method(
        6, "Where the upper and where the lower ends of the intervals cross, pointwise between measured lengths."
    ),
}


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Without an interval `low` and `high` are None and `interval` is empty.

    Args:
        value: the number.
        low, high: ends of the interval.
        samples: how many rounds, documents or trials it rests on.
        interval: the method, a key of `METHODS`.

    Examples:
        >>> from bsbr import stats
        >>> seconds = stats.Estimate(1.3, low=1.0, high=1.6, samples=7, interval="order statistics")
        >>> round(seconds.spread, 2)
        0.46
        >>> seconds.scaled(1000).value  # milliseconds
        1300.0
    """

    value: float
    low: float | None
    high: float | None
    samples: int
    interval: str

    @property
    def spread(self) -> float:
        """Width of the interval relative to the value; infinite where there is none."""
        if self.low is None or self.high is None or not self.value:
            return math.inf
        return (self.high - self.low) / abs(self.value)

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit: `factor` > 0 times as many.

        Args:
            factor: by which value and bounds are multiplied.
        """
        if not factor > 0:
            raise ValueError(f"factor must be positive, not {factor}")
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Estimate(self.value * factor, low, high, self.samples, self.interval)


Costs = Sequence[float | Estimate]  # plain numbers are exact


def from_rows(rows: Iterable[Mapping[Any, Any]]) -> list[Estimate]:
    """Estimates back from a table's rows with value, low, high, samples and interval, e.g. `table.to_dict("records")`.

    A missing number (None or NaN) among low, high and samples is one that there is none of.

    Args:
        rows: mappings from the names of columns.

    Examples:
        >>> from bsbr import stats
        >>> from bsbr.store import row
        >>> seconds = stats.median([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
        >>> stats.from_rows([row("time", seconds, n=1024)]) == [seconds]
        True
    """

    def number(value: Any) -> float | None:
        return None if value is None or value != value else float(value)

    found = []
    for row in rows:
        low, high, samples = (number(row.get(name)) for name in ("low", "high", "samples"))
        method = row.get("interval")
        known = low is not None and high is not None and isinstance(method, str) and method != ""
        ends = (low, high) if known else (None, None)
        found.append(Estimate(float(row["value"]), *ends, int(samples or 0), str(method) if known else ""))
    return found


# -- Of samples -----------------------------------------------------------------------------------


def median(samples: ArrayLike) -> Estimate:
    """The median with an interval that assumes nothing about the distribution: two order statistics.

    The number of samples below the true median is binomial with probability ½, which gives the ranks (David and
    Nagaraja, Order Statistics, 2003, section 7.1). From six samples on they reach 95 %: their range then does.

    Samples whose level drifts are still held by the median of the whole run, as long as each is independent of the
    others (Hoeffding 1956: unequal chances only narrow a binomial). Slow swings that neighbours share make
    the interval too narrow: compare by `ratio` what took turns.

    Args:
        samples: numbers that are independent of each other, such as the seconds of each round.

    Raises:
        ValueError: there are no samples, or one is not finite.

    Examples:
        >>> from bsbr import stats
        >>> stats.median([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
        Estimate(value=1.3, low=1.0, high=1.6, samples=7, interval='order statistics')
        >>> stats.median([1.0, 1.1, 1.2]).low is None  # too few for an interval
        True
    """
    values = _checked(samples, "samples")
    value, count = float(np.median(values)), len(values)
    if count < METHODS["order statistics"].least:
        return _without(value, count)
    low, high = median_ends(values)
    return Estimate(value, float(low), float(high), count, "order statistics")


def median_ends(samples: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval of `median` for each row of samples (…, n)."""
    ordered, count = np.sort(samples), samples.shape[-1]
    rank = _rank(count)
    return ordered[..., rank - 1], ordered[..., count - rank]


@functools.cache
def _rank(count: int) -> int:
    """The greatest k for which fewer than k of `count` samples lie below the median in at most 2.5 % of cases."""
    return int(binom.ppf(0.025, count, 0.5))


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Estimate:
    """How many times the one is the other, of samples taken in the same rounds: the median of each round's ratio.

    What slows a whole round, be it drift or a busy neighbour, cancels. What changes within a round does not; the timer
    rotates the order so that it hits all alike.

    Args:
        numerator: positive numbers, one a round.
        denominator: those of the same rounds, in the same order.

    Raises:
        ValueError: of different lengths, empty, or a number that is not positive.

    Examples:
        >>> from bsbr import stats
        >>> slow = [2.0, 2.2, 2.4, 4.0, 2.0, 2.1]  # the fourth round was disturbed
        >>> fast = [1.0, 1.1, 1.2, 2.0, 1.0, 1.0]
        >>> stats.ratio(slow, fast).value
        2.0
    """
    above, below = _paired(numerator, denominator, "numerator", "denominator")
    if min(above.min(), below.min()) <= 0:
        raise ValueError("numerator and denominator must be positive")
    return median(above / below)


def mean(samples: ArrayLike) -> Estimate:
    """The mean, with the wider at each end of two intervals: Student's t and the bootstrapped t.

    The first is x̄ ± t₀.₉₇₅(n − 1) · s / √n. The second takes the quantiles of t from resamples instead of a table
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5): x̄ − t*₀.₉₇₅ · s / √n to
    x̄ − t*₀.₀₂₅ · s / √n. Student's alone holds the mean of long tails, but that of skewed samples too rarely (88 % for
    six from an exponential distribution), where the bootstrap reaches further on the side of the tail.

    No method holds the mean of whatever there is: of log-normal samples with σ = 1 this one does in 90 % of cases at
    six samples, and in 93 % only from about twenty on. For such, `geometric_mean` or `median` say more.
    Where most samples are equal, so that many resamples have no spread, there is no interval, unless all are equal.

    Args:
        samples: numbers that are independent of each other, such as one of each document.

    Raises:
        ValueError: there are no samples, or one is not finite.

    Examples:
        >>> from bsbr import stats
        >>> found = stats.mean([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
        >>> round(found.value, 2), found.interval
        (1.3, 'bootstrap t')
    """
    values = _checked(samples, "samples")
    value, count = float(values.mean()), len(values)
    if count < METHODS["bootstrap t"].least:
        return _without(value, count)
    low, high = (float(end) for end in mean_ends(values))
    return Estimate(value, low, high, count, "bootstrap t") if math.isfinite(high - low) else _without(value, count)


def mean_ends(samples: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval of `mean` for each row of samples (…, n); infinite where there is none."""
    values = np.sort(samples)  # the resamples are the same each time, and the order of samples is to mean nothing
    count = values.shape[-1]
    center, error = values.mean(-1), values.std(-1, ddof=1) / math.sqrt(count)
    off = values - center[..., None]
    weights = _resamples(count)
    moved = off @ weights
    spread = np.sqrt(np.maximum(off**2 @ weights - moved**2, 0) / (count - 1))
    flat = spread <= 1e-9 * error[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ts = np.where(flat, np.copysign(np.inf, moved), moved / spread)
    ts[error == 0] = 0
    least, most = np.quantile(ts, [0.025, 0.975], axis=-1, method="nearest")
    student = _student(count)
    with np.errstate(invalid="ignore"):
        reach_up, reach_down = (np.where(error == 0, 0, error * np.maximum(student, end)) for end in (-least, most))
    return center - reach_down, center + reach_up


@functools.cache
def _resamples(count: int) -> NDArray[np.float64]:
    """(count, 1999): which share of a resample each sample makes up."""
    drawn = np.random.default_rng(0).integers(0, count, (1999, count))
    return np.asarray((drawn[:, :, None] == np.arange(count)).sum(1).T / count)


def normal_mean(samples: ArrayLike) -> Estimate:
    """The mean, x̄ ± t₀.₉₇₅(n − 1) · s / √n (Student 1908), from three samples on, as few as a training has seeds.

    It holds the mean of samples that scatter evenly about it, with long tails too; of flat ones 92 % at three samples.
    Few samples cannot show skew, and where they have it this is too narrow (88 % of exponential ones): from six on,
    of what may be skewed, take `mean`.

    Args:
        samples: numbers that are independent of each other, such as one of each seed.

    Raises:
        ValueError: there are no samples, or one is not finite.

    Examples:
        >>> from bsbr import stats
        >>> found = stats.normal_mean([20.1, 20.4, 20.2])
        >>> round(found.low, 2), round(found.value, 2), round(found.high, 2)
        (19.85, 20.23, 20.61)
    """
    values = _checked(samples, "samples")
    value, count = float(values.mean()), len(values)
    if count < METHODS["Student t"].least:
        return _without(value, count)
    reach = _student(count) * float(values.std(ddof=1)) / math.sqrt(count)
    return Estimate(value, value - reach, value + reach, count, "Student t")


@functools.cache
def _student(count: int) -> float:
    """t₀.₉₇₅(n − 1)."""
    return float(t.ppf(0.975, count - 1))


def paired_difference(first: ArrayLike, second: ArrayLike, *, normal: bool = False) -> Estimate:
    """The mean of first − second over the same documents or seeds: what all share, such as their difficulty, cancels.

    Args:
        first, second: numbers in the same order.
        normal: whether differences scatter evenly, as those of seeds do, so that three have an interval
            (`normal_mean`); else it is that of `mean`.

    Raises:
        ValueError: of different lengths, empty, or a number that is not finite.

    Examples:
        >>> from bsbr import stats
        >>> found = stats.paired_difference([20.5, 31.4, 11.6], [20.0, 31.0, 11.0], normal=True)
        >>> round(found.value, 6), found.samples
        (0.5, 3)
    """
    one, other = _paired(first, second, "first", "second")
    return (normal_mean if normal else mean)(one - other)


def geometric_mean(samples: ArrayLike) -> Estimate:
    """exp of the mean logarithm, with the interval of that mean.

    Args:
        samples: positive numbers that are independent of each other, such as ratios.

    Raises:
        ValueError: there are no samples, or one is not positive and finite.

    Examples:
        >>> from bsbr import stats
        >>> found = stats.geometric_mean([1.0, 2.0, 4.0, 1.0, 2.0, 4.0])
        >>> round(found.value, 6), found.interval
        (2.0, 'bootstrap t of logs')
    """
    values = _checked(samples, "samples")
    if values.min() <= 0:
        raise ValueError(f"samples must be positive, the least is {values.min()}")
    logs = mean(np.log(values))
    if logs.low is None or logs.high is None:
        return _without(math.exp(logs.value), logs.samples)
    value, low, high = math.exp(logs.value), math.exp(logs.low), math.exp(logs.high)
    return Estimate(value, low, high, logs.samples, "bootstrap t of logs")


def geometric_ratio(numerator: ArrayLike, denominator: ArrayLike) -> Estimate:
    """How many times the one is the other over the same documents: exp of the mean difference of logarithms.

    Of perplexities it is the perplexity ratio over all documents together, each counted once.

    Args:
        numerator: positive numbers, one a document.
        denominator: those of the same documents, in the same order.

    Raises:
        ValueError: of different lengths, empty, or a number that is not positive.

    Examples:
        >>> from bsbr import stats
        >>> stats.geometric_ratio([22.0, 33.0, 11.0], [20.0, 30.0, 10.0]).value  # perplexities
        1.1
    """
    above, below = _paired(numerator, denominator, "numerator", "denominator")
    if min(above.min(), below.min()) <= 0:
        raise ValueError("numerator and denominator must be positive")
    return geometric_mean(above / below)


def share(successes: int, trials: int) -> Estimate:
    """Successes among trials in %, with the interval of Clopper and Pearson (Biometrika 1934), at least 95 % always.

    Wilson's, though right on average, holds a share near 0 or 100 % far less often at few trials.

    Args:
        successes: how many trials succeeded.
        trials: how many there were.

    Raises:
        ValueError: no trials, or successes that are not among them.

    Examples:
        >>> from bsbr import stats
        >>> found = stats.share(9, 10)
        >>> found.value, round(found.low, 1), round(found.high, 1)
        (90.0, 55.5, 99.7)
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes must be among trials, of at least one, not {successes} of {trials}")
    ends = binomtest(int(successes), int(trials)).proportion_ci(method="exact")
    low, high = 100 * float(ends.low), 100 * float(ends.high)
    return Estimate(100 * successes / trials, low, high, int(trials), "Clopper-Pearson")


def gap_closed(before: ArrayLike, after: ArrayLike) -> Estimate:
    """What share of a gap was closed, in %: 100 · (1 − mean after / mean before), over the same documents.

    Of gaps in mean log-likelihood: `before` and `after` are log perplexity ratios to the original. The interval is
    Fieller's (Journal of the Royal Statistical Society B 1954): all ratios r for which Student's t does not reject that
    after − r · before has mean zero. They are a bounded interval only if `before` itself is different from zero by that
    test. Otherwise there is no interval: where there may be no gap, no share of it is known.

    Args:
        before: the gap of each document.
        after: what is left of it, in the same order.

    Raises:
        ValueError: of different lengths, empty, or a mean gap of zero.

    Examples:
        >>> from bsbr import stats
        >>> found = stats.gap_closed([0.4, 0.5, 0.6, 0.4, 0.5, 0.6], [0.1, 0.1, 0.2, 0.1, 0.1, 0.15])
        >>> round(found.value, 1), found.interval
        (75.0, 'Fieller')
    """
    gap, left = _paired(before, after, "before", "after")
    count, whole, rest = len(gap), float(gap.mean()), float(left.mean())
    if whole == 0:
        raise ValueError("before has mean zero: there is no gap to close")
    value = 100 * (1 - rest / whole)
    if count < METHODS["Fieller"].least:
        return _without(value, count)
    margins = np.cov(gap, left) * (_student(count) ** 2 / count)
    (var_gap, covariance), (_, var_left) = margins.tolist()
    a, b, c = whole**2 - var_gap, whole * rest - covariance, rest**2 - var_left  # a r² − 2 b r + c ≤ 0
    if a <= 0:
        return _without(value, count)
    reach = math.sqrt(max(b * b - a * c, 0.0))
    return Estimate(value, 100 * (1 - (b + reach) / a), 100 * (1 - (b - reach) / a), count, "Fieller")


def deviation(samples: ArrayLike) -> float:
    """The standard deviation between samples, with n − 1. Raises ValueError for fewer than two."""
    values = _checked(samples, "samples")
    if len(values) < 2:
        raise ValueError("samples must be at least two to deviate from each other, got one")
    return float(values.std(ddof=1))


# -- Of estimates ---------------------------------------------------------------------------------


def independent_ratio(numerator: Estimate, denominator: Estimate) -> Estimate:
    """The ratio of two numbers that were measured apart; the half intervals of their logarithms add as squares.

    No interval where either has none, or one that reaches zero. Numbers from the same rounds or documents have a
    narrower one by `ratio` or `geometric_ratio`.

    Args:
        numerator: the one estimate.
        denominator: the other, measured apart.

    Raises:
        ValueError: the denominator is zero.

    Examples:
        >>> from bsbr import stats
        >>> times = stats.median([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
        >>> found = stats.independent_ratio(times.scaled(2), times)
        >>> found.value, found.interval
        (2.0, 'errors of logs')
    """
    if denominator.value == 0:
        raise ValueError("denominator must not be zero")
    value, samples = numerator.value / denominator.value, min(numerator.samples, denominator.samples)
    above, below = log_ends(numerator), log_ends(denominator)
    if above is None or below is None:
        return _without(value, samples)
    down, up = math.hypot(above[0], below[1]), math.hypot(above[1], below[0])
    return Estimate(value, value * math.exp(-down), value * math.exp(up), samples, "errors of logs")


def independent_difference(first: Estimate, second: Estimate) -> Estimate:
    """first − second, measured apart; the half intervals add as squares. No interval where either has none.

    Of two shares it holds the difference in 92.5 % of cases at worst, where both are near the ends.
    Numbers of the same documents or seeds have a narrower one by `paired_difference`.

    Args:
        first: the one estimate.
        second: the other, measured apart.

    Examples:
        >>> from bsbr import stats
        >>> found = stats.independent_difference(stats.share(80, 100), stats.share(60, 100))
        >>> found.value, found.low > 0
        (20.0, True)
    """
    value, samples = first.value - second.value, min(first.samples, second.samples)
    ends = (first.low, first.high, second.low, second.high)
    if None in ends or samples < METHODS["errors"].least:
        return _without(value, samples)
    low, high, other_low, other_high = (float(end) for end in ends if end is not None)
    down = math.hypot(first.value - low, other_high - second.value)
    up = math.hypot(high - first.value, second.value - other_low)
    return Estimate(value, value - down, value + up, samples, "errors")


def complement(percentage: Estimate) -> Estimate:
    """What a percentage leaves of 100 %."""
    low, high = (None if end is None else 100 - end for end in (percentage.high, percentage.low))
    return Estimate(100 - percentage.value, low, high, percentage.samples, percentage.interval)


def log_ends(estimate: Estimate) -> tuple[float, float] | None:
    """How far an interval reaches below and above its value, as logarithms; None where that is not known."""
    if estimate.low is None or estimate.high is None or estimate.samples < METHODS["errors of logs"].least:
        return None
    if not 0 < estimate.low <= estimate.value <= estimate.high:
        return None
    return math.log(estimate.value / estimate.low), math.log(estimate.high / estimate.value)


def _without(value: float, samples: int) -> Estimate:
    return Estimate(value, None, None, samples, "")


def _checked(samples: ArrayLike, name: str) -> NDArray[np.float64]:
    values = np.asarray(samples, float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name}: expected at least one number in a row, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: expected finite numbers, got {values[~np.isfinite(values)][0]}")
    return values


def _paired(
    first: ArrayLike, second: ArrayLike, one: str, other: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = _checked(first, one), _checked(second, other)
    if len(a) != len(b):
        raise ValueError(f"{one} and {other} must be pairs, got {len(a)} and {len(b)} numbers")
    return a, b
