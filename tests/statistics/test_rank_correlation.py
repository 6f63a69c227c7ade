"""Kendall's coefficient and its permutation null, against SciPy and full enumeration."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from scipy import stats

from paperkit.statistics.rank_correlation import (
    kendall_tau,
    kendall_tau_by_group,
    null_standard_deviation,
    permutation_test,
)

columns = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n)] * 2)
)


def _score(x, y, groups=None) -> int:
    """Concordant minus discordant pairs, counted one by one."""
    total = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        if groups is None or groups[i] == groups[j]:
            product = (x[i] - x[j]) * (y[i] - y[j])
            total += (product > 0) - (product < 0)
    return total


@given(columns)
def test_tau_is_the_sum_of_sign_products_over_all_pairs(xy) -> None:
    x, y = xy
    tau = kendall_tau(x, y)
    assert tau.concordant - tau.discordant == _score(x, y)
    assert tau.pairs == math.comb(len(x), 2)
    assert tau.concordant + tau.discordant == tau.pairs - tau.ties_x - tau.ties_y + tau.ties_both


@given(columns)
def test_tau_b_of_scipy_follows_from_the_counts(xy) -> None:
    x, y = xy
    tau = kendall_tau(x, y)
    untied = (tau.pairs - tau.ties_x) * (tau.pairs - tau.ties_y)
    if untied == 0:
        return
    expected = (tau.concordant - tau.discordant) / math.sqrt(untied)
    assert stats.kendalltau(x, y).statistic == pytest.approx(expected, abs=1e-12)


def test_tau_a_is_smaller_than_tau_b_where_there_are_ties() -> None:
    x, y = [1, 1, 2, 3], [1, 2, 3, 4]
    assert float(kendall_tau(x, y)) == pytest.approx(5 / 6, rel=1e-15)
    assert stats.kendalltau(x, y).statistic == pytest.approx(5 / math.sqrt(30), rel=1e-12)


def test_thirty_models_give_odd_multiples_of_one_435th() -> None:
    generator = torch.Generator().manual_seed(0)
    tau = kendall_tau(torch.rand(30, generator=generator), torch.rand(30, generator=generator))
    assert tau.pairs == 435
    assert (tau.concordant - tau.discordant) % 2 == 1


def test_infinite_values_rank_like_any_other() -> None:
    assert float(kendall_tau([-math.inf, 0.0, math.inf], [1, 2, 3])) == 1.0
    assert kendall_tau([math.inf, math.inf], [1, 2]).ties_x == 1


def test_groups_undo_simpsons_paradox() -> None:
    x = [0.0, 1.0, 2.0, 10.0, 11.0, 12.0]
    y = [2.0, 1.0, 0.0, 12.0, 11.0, 10.0]
    groups = ["sgd"] * 3 + ["adam"] * 3
    assert float(kendall_tau(x, y)) == pytest.approx((9 - 6) / 15, rel=1e-15)
    within = kendall_tau(x, y, groups)
    assert (float(within), within.pairs) == (-1.0, 6)
    by_group = kendall_tau_by_group(x, y, groups)
    assert {name: float(tau) for name, tau in by_group.items()} == {"sgd": -1.0, "adam": -1.0}


def test_null_standard_deviation_is_that_of_all_permutations() -> None:
    taus = [float(kendall_tau(range(6), order)) for order in itertools.permutations(range(6))]
    mean_square = sum(tau**2 for tau in taus) / len(taus)
    assert null_standard_deviation(6) == pytest.approx(math.sqrt(mean_square), rel=1e-12)
    assert null_standard_deviation(30) == pytest.approx(0.129, abs=5e-4)


MEASURES = {"a": [1, 2, 3, 5, 4], "b": [2, 1, 3, 3, 5], "c": [5, 1, 2, 3, 4]}
GAP = [0.1, 0.2, 0.3, 0.4, 0.5]
DRAWS = 20_000
# The tolerance is five binomial standard errors, and the observed order counts as one more draw.
SAMPLING_ERROR = 5 * math.sqrt(0.25 / DRAWS) + 1 / DRAWS


def _null(groups) -> list[dict[str, int]]:
    """The scores of all measures under each permutation, within groups where there are groups."""
    return [
        {name: _score(x, [GAP[k] for k in order], groups) for name, x in MEASURES.items()}
        for order in itertools.permutations(range(5))
        if groups is None or all(groups[k] == groups[m] for k, m in enumerate(order))
    ]


@pytest.mark.parametrize("groups", [None, ["s", "t", "s", "t", "s"]])
def test_p_values_agree_with_the_enumeration_of_all_permutations(groups) -> None:
    test = permutation_test(MEASURES, GAP, groups, permutations=DRAWS)
    null = _null(groups)
    for name, x in MEASURES.items():
        observed = _score(x, GAP, groups)
        alone = sum(draw[name] >= observed for draw in null) / len(null)
        of_maximum = sum(max(draw.values()) >= observed for draw in null) / len(null)
        assert test.p_value[name] == pytest.approx(alone, abs=SAMPLING_ERROR)
        assert test.p_value_of_maximum[name] == pytest.approx(of_maximum, abs=SAMPLING_ERROR)


@pytest.mark.parametrize("level", [0.05, 0.3])
def test_critical_value_is_the_quantile_of_the_maximum(level: float) -> None:
    test = permutation_test(MEASURES, GAP, permutations=DRAWS, level=level)
    largest = [max(draw.values()) / 10 for draw in _null(None)]
    above = sum(value > test.critical + 1e-12 for value in largest) / len(largest)
    reached = sum(value > test.critical - 1e-12 for value in largest) / len(largest)
    assert above <= level + SAMPLING_ERROR
    assert reached >= level - SAMPLING_ERROR


def test_a_maximum_over_copies_of_one_measure_costs_nothing() -> None:
    one = permutation_test({"a": MEASURES["a"]}, GAP, permutations=500)
    many = permutation_test({k: MEASURES["a"] for k in range(20)}, GAP, permutations=500)
    assert many.p_value_of_maximum[7] == one.p_value["a"]
    assert many.critical == one.critical


def test_two_sided_p_value_counts_both_tails() -> None:
    up, down = GAP, GAP[::-1]
    one_sided = permutation_test({"up": up, "down": down}, GAP, permutations=4000)
    two_sided = permutation_test({"up": up, "down": down}, GAP, permutations=4000, two_sided=True)
    assert one_sided.p_value["down"] == 1.0
    assert two_sided.p_value["down"] == two_sided.p_value["up"]
    # Only 2 of the 120 permutations have |τ| = 1.
    error = math.sqrt(2 / 120 * 118 / 120 / 4000)
    assert two_sided.p_value["up"] == pytest.approx(2 / 120, abs=5 * error + 1 / 4000)


def test_everything_runs_with_explicit_devices(explicit_devices) -> None:
    with explicit_devices():
        test = permutation_test(MEASURES, GAP, ["s"] * 5, permutations=50)
        tau = kendall_tau(MEASURES["a"], GAP, ["s"] * 5)
    assert test.tau["a"] == float(tau)


def test_bad_columns_are_refused_with_their_names() -> None:
    with pytest.raises(ValueError, match=r"x\[1\]=nan"):
        kendall_tau([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"y\[1\]=nan"):
        kendall_tau([1.0, 2.0], [1.0, math.nan])
    with pytest.raises(ValueError, match="x has 2 values and y 1"):
        kendall_tau([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no pair to compare"):
        kendall_tau([1.0], [1.0])
    with pytest.raises(ValueError, match="no pair to compare"):
        kendall_tau([1.0, 2.0], [1.0, 2.0], ["s", "t"])
    with pytest.raises(ValueError, match="groups has 1"):
        kendall_tau([1.0, 2.0], [1.0, 2.0], ["s"])
    with pytest.raises((ValueError, TypeError), match=r"measures=\{\}"):
        permutation_test({}, GAP)
    with pytest.raises(ValueError, match="permutations=0"):
        permutation_test(MEASURES, GAP, permutations=0)
    with pytest.raises(ValueError, match=r"level=1\.5"):
        permutation_test(MEASURES, GAP, level=1.5)
    with pytest.raises(ValueError, match="n=1"):
        null_standard_deviation(1)
