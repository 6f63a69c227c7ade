"""Intervals over seeds, against tables, SciPy's tests and simulation."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from paperkit.statistics.intervals import (
    fraction_bounds,
    fraction_p_value,
    holm,
    mean_and_error,
    mean_p_value,
    one_sided_bounds,
    prediction_interval,
    sample_size,
    two_sided_interval,
)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=9, unique=True))
def test_the_error_and_the_bounds_of_a_mean_are_those_of_scipys_t_test(values):
    mean, error = mean_and_error(values)
    assert error == pytest.approx(stats.sem(values), rel=1e-6)
    test = stats.ttest_1samp(values, 0.0, alternative="greater")
    expected = test.confidence_interval(0.95).low
    assert one_sided_bounds(values)[0] == pytest.approx(expected, rel=1e-6)
    assert one_sided_bounds(values)[1] == pytest.approx(2 * mean - expected, rel=1e-6)


def test_equal_values_have_no_spread():
    mean, error = mean_and_error([0.1] * 3)
    assert error == 0.0
    assert one_sided_bounds([0.1] * 3) == (mean, mean)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_fraction_bounds_are_what_scipys_binomial_test_finds_by_bisection(counts):
    successes, trials = counts
    low, high = fraction_bounds(successes, trials)
    above = stats.binomtest(successes, trials, alternative="greater").proportion_ci(0.95, "exact")
    below = stats.binomtest(successes, trials, alternative="less").proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((above.low, below.high), abs=1e-8)


def test_one_sided_bounds_are_student_t():
    # Values 1, 2, 3: mean 2, error 1/sqrt(3), t(0.95, 2) = 2.919986.
    low, high = one_sided_bounds([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.919986 / 3**0.5, 2 + 2.919986 / 3**0.5), rel=1e-6)
    assert one_sided_bounds([1.0]) == (-math.inf, math.inf)


def test_the_prediction_interval_is_student_t_with_room_for_one_more_value():
    # t(0.995, 2) = 9.924843; s = 1; sqrt(1 + 1/3).
    low, high = prediction_interval([1.0, 2.0, 3.0])
    assert high - 2 == pytest.approx(9.924843 * (4 / 3) ** 0.5, rel=1e-6)
    assert 2 - low == pytest.approx(high - 2)
    with pytest.raises(ValueError, match="at least 3 seeds, there are 2"):
        prediction_interval([1.0, 2.0])


def test_fraction_bounds_are_those_of_clopper_and_pearson():
    # All of 10: the lower bound solves p**10 = 0.05.
    assert fraction_bounds(10, 10) == pytest.approx((0.05**0.1, 1.0))
    assert fraction_bounds(0, 10) == pytest.approx((0.0, 1 - 0.05**0.1))


def test_the_one_sided_bound_misses_five_times_in_a_hundred():
    generator = random.Random(0)
    trials = 2000
    missed = sum(
        one_sided_bounds([generator.gauss(0, 1) for _ in range(5)])[0] > 0 for _ in range(trials)
    )
    # The tolerance is four standard errors of a binomial fraction of 0.05.
    assert abs(missed / trials - 0.05) < 4 * (0.05 * 0.95 / trials) ** 0.5


def test_holm_multiplies_the_smallest_by_all_and_each_next_one_by_one_less() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_p_value_of_a_fraction_is_the_binomial_tail() -> None:
    assert fraction_p_value(5, 5, 0.5) == pytest.approx(0.5**5)
    assert fraction_p_value(0, 5, 0.5) == pytest.approx(1.0)


def test_a_p_value_and_a_one_sided_bound_decide_alike() -> None:
    values = [0.1, 0.3, 0.2, 0.45]
    low, _ = one_sided_bounds(values)
    assert mean_p_value(values, above=low) == pytest.approx(0.05)
    assert (mean_p_value([1.0, 1.0]), mean_p_value([-1.0, -1.0])) == (0.0, 1.0)
    with pytest.raises(ValueError, match="at least 2 values"):
        mean_p_value([1.0])


def test_a_two_sided_interval_has_half_of_the_doubt_on_each_side() -> None:
    values = [0.1, 0.3, 0.2, 0.45]
    assert two_sided_interval(values) == one_sided_bounds(values, 0.975)


def test_a_sample_meets_a_bad_record_with_the_given_probability() -> None:
    # If three of fifteen are bad, eight miss them with probability 35/455, and seven with 56/455.
    assert sample_size(15, 0.2, 0.9) == 8
    assert sample_size(1, 0.2, 0.9) == 1
    assert sample_size(4, 0.2, 0.9) == 4
