"""Rank correlations over networks: closed forms, intervals, and what they refuse."""

import math

import numpy as np
import pytest
from scipy import stats

from paperkit.experiments import Record
from paperkit.ledger.correlation import jackknife, tau
from paperkit.ledger.criteria import correlation_exceeds, rank_correlation

N = 30


def networks(columns, cells="a"):
    """Records of N networks a cell, from functions of (rank, generator)."""
    found = []
    for number, cell in enumerate(cells):
        rng = np.random.default_rng(number)
        values = {name: column(np.arange(N), rng) for name, column in columns.items()}
        for i in range(N):
            metrics = {name: float(column[i]) for name, column in values.items()}
            found.append(Record("study", "laptop", {"seed": i, "cell": cell}, metrics, {}))
    return found


def rank(i, rng):
    return i


def falling(i, rng):
    return -(i**3.0)


def noise(i, rng):
    return rng.normal(size=len(i))


def noisy(i, rng):
    return i + 6 * rng.normal(size=len(i))


def test_the_jackknife_of_a_mean_is_its_textbook_standard_error():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(20, 1)), rng.normal(size=(15, 1))
    value, error, freedom = jackknife(lambda rows: float(rows.mean()), [one, two])
    assert math.isclose(value, (one.mean() + two.mean()) / 2)
    by_hand = math.hypot(stats.sem(one[:, 0]), stats.sem(two[:, 0])) / 2
    assert math.isclose(error, by_hand, rel_tol=1e-12)
    assert freedom == 19 + 14


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # A Gaussian pair of correlation ½ has τ = 2/π arcsin ½ = 1/3.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x, z = rng.normal(size=(2, N))
        rows = np.column_stack([x, 0.5 * x + math.sqrt(0.75) * z])
        value, error, freedom = jackknife(lambda r: tau(r[:, 0], r[:, 1]), [rows])
        covered += value - stats.t.ppf(0.95, freedom) * error <= 1 / 3
    # A one-sided 95 % bound: 400 trials have a standard deviation of 1.1 %.
    assert 0.91 <= covered / 400 <= 0.98


COLUMNS = {"gap": rank, "good": noisy, "bad": falling, "none": noise}


@pytest.mark.parametrize(
    ("metrics", "bound", "word"),
    [
        (["good"], {"at_least": 0.0}, "reproduced"),
        (["good"], {"at_most": 0.3}, "not reproduced"),
        (["good", "bad"], {"at_least": 0.0}, "not reproduced"),
        (["bad"], {"at_most": 0.3}, "reproduced"),
        (["bad", "good"], {"at_most": 0.3}, "not reproduced"),
        (["none"], {"at_least": 0.0}, "inconclusive"),
        (["none"], {"at_least": 0.5}, "not reproduced"),
    ],
)
def test_the_worst_of_the_metrics_decides(metrics, bound, word):
    found = rank_correlation(
        networks(COLUMNS, "ab"), metrics=metrics, against="gap", within="cell", **bound
    )
    assert found.word == word
    supporting, opposing = found.p_values
    assert (supporting < 0.05) == (word == "reproduced")
    assert (opposing < 0.05) == (word == "not reproduced")


def test_the_sentence_has_value_interval_and_counts():
    found = rank_correlation(
        networks(COLUMNS, "ab"), metrics=["bad"], against="gap", within="cell", at_most=0.3
    )
    assert found.value == -1
    assert found.evidence == (
        "τ with `gap` -1 over 60 networks in 2 groups, one-sided 95 % bounds -1 to -1; "
        "0.3 is the bound"
    )


def test_networks_of_different_groups_are_not_compared():
    # Within each group the metric falls with the gap; over both it would rise.
    records = networks({"gap": rank, "m": falling}, "ab")
    for record in records:
        if record.configuration["cell"] == "b":
            record.metrics["gap"] += 1e3
            record.metrics["m"] += 1e6
    found = rank_correlation(records, metrics=["m"], against="gap", within="cell", at_most=0.0)
    assert (found.word, found.value) == ("reproduced", -1)


@pytest.mark.parametrize(
    ("larger", "smaller", "word"),
    [
        (["good"], ["bad"], "reproduced"),
        (["good"], ["bad", "none"], "reproduced"),
        (["good", "none"], ["bad"], "reproduced"),
        (["none"], ["good"], "not reproduced"),
        (["good", "bad"], ["none"], "not reproduced"),
        (["good"], ["good"], "inconclusive"),
    ],
)
def test_every_coefficient_of_one_side_exceeds_all_of_the_other(larger, smaller, word):
    found = correlation_exceeds(
        networks(COLUMNS, "ab"), larger=larger, smaller=smaller, against="gap", within="cell"
    )
    assert found.word == word


def test_a_dictionary_is_as_many_metrics_as_it_has_numbers():
    records = networks(COLUMNS)
    for record in records:
        record.metrics["layers"] = {"one": record.metrics["good"], "two": record.metrics["bad"]}
    found = rank_correlation(
        records, metrics=["layers"], against="gap", within="cell", at_least=0.0
    )
    assert (found.word, found.value) == ("not reproduced", -1)


def test_too_few_networks_and_no_or_two_bounds_are_refused():
    records = networks(COLUMNS)
    given = {"metrics": ["good"], "against": "gap", "within": "cell"}
    with pytest.raises(ValueError, match=r"cell a has 5 networks .* needs at least 8"):
        rank_correlation(records[:5], **given, at_least=0.0)
    for bounds in ({}, {"at_least": 0.0, "at_most": 1.0}):
        with pytest.raises(ValueError, match="needs one of at_least and at_most"):
            rank_correlation(records, **given, **bounds)
