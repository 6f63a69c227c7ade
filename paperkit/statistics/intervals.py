"""Intervals over seeds: Student t for means, the beta distribution for fractions."""

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
