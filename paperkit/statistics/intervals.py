"""Intervals and p-values over independent units: Student t for means, exact ones for fractions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats

CONFIDENCE = 0.95
"""Confidence of the one-sided intervals that decide an ordering, a trend or a fraction."""

PREDICTION = 0.99
"""Coverage of the interval in which an audited value must lie."""


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; the error of one value is infinite.

    The deviation is that of Python's ``statistics``, in exact arithmetic, and not
    ``scipy.stats.sem``: equal values have exactly no spread.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def one_sided_bounds(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return a lower and an upper bound of the mean, each with the given confidence.

    Student t with one degree of freedom less than there are values; infinite for one value.
    """
    mean, error = mean_and_error(values)
    if math.isinf(error):
        return -math.inf, math.inf
    width = float(stats.t.ppf(confidence, len(values) - 1)) * error
    return mean - width, mean + width


def two_sided_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval of the mean by Student t; infinite for one value."""
    return one_sided_bounds(values, 0.5 + confidence / 2)


def mean_p_value(values: Sequence[float], above: float = 0.0) -> float:
    """Return the one-sided p-value of the mean being at most ``above``, by Student t.

    Raises
    ------
    ValueError
        If there is one value only, which has no spread.
    """
    mean, error = mean_and_error(values)
    if math.isinf(error):
        raise ValueError("a p-value of a mean needs at least 2 values.")
    if error == 0:
        return 0.0 if mean > above else 1.0
    return float(stats.t.sf((mean - above) / error, len(values) - 1))


def fraction_p_value(successes: int, trials: int, fraction: float) -> float:
    """Return the exact one-sided p-value of the success rate being at most ``fraction``."""
    return float(stats.binom.sf(successes - 1, trials, fraction))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are adjusted for their number, each at least as large as before.

    Holm, Scandinavian Journal of Statistics 6 (1979): where those below a level are called
    significant, the probability of any false call is at most that level, however they depend on
    each other.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def sample_size(population: int, bad: float, power: float) -> int:
    """Return how many of a population to draw so that a bad one is among them.

    Parameters
    ----------
    population : int
        Number of all.
    bad : float
        Share of bad ones, of which at least one is to be drawn; at least one is bad.
    power : float
        Least probability that one is.
    """
    wrong = max(1, math.ceil(bad * population))
    for size in range(1, population):
        if float(stats.hypergeom.sf(0, population, wrong, size)) >= power:
            return size
    return population


def prediction_interval(
    values: Sequence[float], coverage: float = PREDICTION
) -> tuple[float, float]:
    """Return the two-sided interval for one more value from where these are from.

    Mean ± t s √(1 + 1/k) over k values, Student t with k − 1 degrees of freedom. Ours, because
    SciPy has intervals for a mean and none for a further value.

    Raises
    ------
    ValueError
        If there are fewer than three values.
    """
    count = len(values)
    if count < 3:
        raise ValueError(f"a prediction interval needs at least 3 seeds, there are {count}.")
    quantile = float(stats.t.ppf(0.5 + coverage / 2, count - 1))
    width = quantile * statistics.stdev(values) * math.sqrt(1 + 1 / count)
    mean = statistics.fmean(values)
    return mean - width, mean + width


def fraction_bounds(
    successes: int, trials: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return one-sided bounds of a fraction, each with the given confidence.

    Clopper and Pearson's exact bounds (Biometrika 26, 1934), as quantiles of the beta distribution;
    ``scipy.stats.binomtest`` looks for the same numbers by bisection, to nine digits.
    """
    low, high = 0.0, 1.0
    if successes > 0:
        low = float(stats.beta.ppf(1 - confidence, successes, trials - successes + 1))
    if successes < trials:
        high = float(stats.beta.ppf(confidence, successes + 1, trials - successes))
    return low, high
