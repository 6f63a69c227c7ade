"""Criteria in words: one for each, with the thresholds of the claim, and with no placeholder."""

import re

import pytest
import yaml

from paperkit.experiments.plain_yaml import PlainLoader
from paperkit.ledger import wording
from paperkit.ledger.calls import Side
from paperkit.ledger.claims import Claim, load_claims
from paperkit.ledger.criteria import CRITERIA
from paperkit.ledger.wording import WORDINGS, criterion_sentence, value_name

CLAIMS = load_claims()
CASES = {
    "{name: identity_holds, metric: gap_of_all, at_most: 2e-10}": (
        "In every run `gap_of_all` is at most 2e-10 in magnitude; from 2e-07 on it refutes, and in "
        "between it decides nothing",
        "largest gap of all",
    ),
    "{name: identity_holds, metric: largest_gap, at_most: 0.5, refuted_from: 3}": (
        "In every run `largest_gap` is at most 0.5 in magnitude; from 3 on it refutes, and in "
        "between it decides nothing",
        "largest gap",
    ),
    "{name: counterexample_exists, metric: gap, at_least: 0.05}": (
        "One run in which `gap` is at least 0.05 refutes the claim; without one it stays undecided",
        "largest gap",
    ),
    "{name: inequality_holds, metric: rank_slack}": (
        "In every run the slack `rank_slack` is at least 0; a negative one refutes",
        "smallest rank slack",
    ),
    "{name: inequality_holds, metric: margin, tolerance: 1e-9}": (
        "In every run the slack `margin` is at least −1e-09, which allows for round-off; −1e-06 or "
        "less refutes, and in between it decides nothing",
        "smallest slack, margin",
    ),
    "{name: number_matches, metric: size, unit: seed, margin: 0.5, wide_margin: 2}": (
        "The mean of `size` over seeds is within 0.5 m of the paper's 1.25 m, with its whole "
        "interval (two-sided, 95 %); within 2 m it is a deviation",
        "mean size",
    ),
    "{name: number_matches, metric: size, unit: seed, margin: 1, deterministic: true}": (
        "The mean of `size` over seeds is within 1 m of the paper's 1.25 m",
        "mean size",
    ),
    "{name: number_matches, metric: size, unit: seed, margin: 1, rounding: 0.05}": (
        "The mean of `size` over seeds is within 1 m of the paper's 1.25 m, with its whole "
        "interval (two-sided, 95 %), where 0.05 is allowed for the paper's rounding",
        "mean size",
    ),
    "{name: ordering_holds, metric: size, unit: seed, "
    "larger: {where: {alpha: [1.5, 2]}}, smaller: {where: {fact: order}}}": (
        "`size` where `alpha` 1.5 or 2 exceeds `size` where `fact` “order”: over seeds, the "
        "interval (one-sided, 95 %) of the mean difference lies above 0",
        "mean difference in size",
    ),
    "{name: ordering_holds, metric: size, unit: seed, each: fact, logarithm: true, "
    "larger: {where: {alpha: 2}}, smaller: {where: {alpha: 1}}}": (
        "`size` where `alpha` 2 exceeds `size` where `alpha` 1, for every pair of the two sides' "
        "facts: over seeds, the interval (one-sided, 95 %) of the mean difference of logarithms "
        "lies above 0",
        "smallest lead in size",
    ),
    "{name: ordering_holds, unit: seed, larger: {metric: a_b}, smaller: {metric: c}}": (
        "`a_b` exceeds `c`: over seeds, the interval (one-sided, 95 %) of the mean difference lies "
        "above 0",
        "mean difference",
    ),
    "{name: trend_holds, metric: size, against: dimension, direction: decreasing, unit: seed}": (
        "`size` falls with `dimension`: over seeds, the interval (one-sided, 95 %) of the mean "
        "slope lies below 0",
        "mean fall of size per unit of dimension",
    ),
    "{name: fraction_at_least, metric: size, unit: seed, at_least: 0.9, fraction: 0.75}": (
        "In at least 75 % of seeds every value of `size` is at least 0.9, by a bound that holds "
        "with 95 %",
        "fraction of seeds",
    ),
    "{name: difference_within, larger: {where: {alpha: 0.5}}, smaller: {where: {alpha: 2.0}}, "
    "metric: entropy, unit: seed, margin: 0.1}": (
        "`entropy` where `alpha` 0.5 and `entropy` where `alpha` 2 are as good as equal: over "
        "seeds, the interval (two-sided, 95 %) of the mean difference lies within ±0.1",
        "mean difference in entropy",
    ),
    "{name: rank_correlation, metrics: [a, b], against: gap, within: cell, at_least: 0.3}": (
        "Over the networks of each cell the smallest of Kendall's τ of `a`, `b` with `gap` is "
        "taken, and averaged; its interval (one-sided, 95 %) lies above 0.3",
        "τ with gap",
    ),
    "{name: correlation_exceeds, larger: [a], smaller: [b], against: gap, within: cell}": (
        "Kendall's τ with `gap` over the networks of each cell is larger for each of `a` than for "
        "all of `b`: the interval (one-sided, 95 %) of the mean lead lies above 0",
        "lead in τ with gap",
    ),
}


def claim_with(call: str) -> Claim:
    criterion = yaml.load(call, PlainLoader) | {"study": "entropy_facts"}
    entry = {"id": "c", "paper": "This book", "place": "p", "statement": "S.", "profile": "laptop"}
    entry |= {"kind": CRITERIA[criterion["name"]].kinds[0], "criterion": criterion}
    if entry["kind"] == "number":
        entry["paper_value"] = {"value": 1.25, "unit": "m", "measured": False}
    return Claim.model_validate(entry)


def test_every_criterion_has_its_words_and_a_case_here():
    assert WORDINGS.keys() == CRITERIA.keys()
    assert {claim_with(call).criterion.name for call in CASES} == CRITERIA.keys()


@pytest.mark.parametrize("call", CASES)
def test_a_criterion_is_said_with_the_claims_own_thresholds(call):
    claim = claim_with(call)
    condition, name = CASES[call]
    assert criterion_sentence(claim) == (
        f"{condition}. It looks at the runs of the study `entropy_facts` at the laptop profile, "
        "all of them."
    )
    assert value_name(claim) == name


def test_the_selection_of_runs_is_part_of_the_sentence():
    call = "{name: identity_holds, metric: gap, where: {fact: [a | b, c], dimension: 2, x: null}}"
    assert criterion_sentence(claim_with(call)).endswith(
        "laptop profile, those with `fact` “a &#124; b” or “c” and `dimension` 2 and `x` none."
    )


def test_runs_that_are_left_out_are_part_of_the_sentence():
    call = "{name: identity_holds, metric: gap, where: {dimension: 2}, only: learned}"
    assert criterion_sentence(claim_with(call)).endswith(
        "those with `dimension` 2, without those of which `learned` is false."
    )


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_no_claim_of_the_ledger_shows_a_placeholder(claim):
    sentence = criterion_sentence(claim)
    in_code = set(re.findall(r"`([^`]+)`", sentence))
    texts = [value for value in claim.criterion.arguments.values() if isinstance(value, str | list)]
    named = {name for text in texts for name in ([text] if isinstance(text, str) else text)}
    sides = [value for value in claim.criterion.arguments.values() if isinstance(value, Side)]
    named |= {name for side in sides for name in (*side.where, side.metric)}
    called = {claim.criterion.study, claim.criterion.only}
    assert in_code <= {*called, *claim.criterion.where, *named}
    for value in claim.criterion.arguments.values():
        if isinstance(value, float):
            assert f"{value:g}" in sentence or f"{100 * value:g} %" in sentence


# A sentence that begins so, or says so, points at another one.
POINTS_ELSEWHERE = re.compile(
    r"^(?:The same|Its?|That|This|Such|These|Those|There|In such|Under the same|With \*)\b"
    r"|\bsuch a\b|\bthe proposition extends\b|\bstill holds?\b|\bthe corollary\b(?! repeats)"
)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_claims_sentence_reads_alone(claim):
    assert not POINTS_ELSEWHERE.search(claim.statement)


@pytest.mark.parametrize(
    "text", ["The same at weights that were trained.", "Its rank is at most 3.", "It still holds."]
)
def test_a_sentence_that_points_elsewhere_is_found(text):
    assert POINTS_ELSEWHERE.search(text)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_place_and_scale_are_plain_text(claim):
    # They are escaped on the page, so that mathematics would be shown as it is typed.
    assert "$" not in claim.place + claim.scale


def test_an_order_in_a_metrics_name_is_a_decimal_number() -> None:
    assert wording._words("at_order_1_2.mean_of_squares") == "at order 1.2, mean of squares"
    assert wording._words("renyi_mean.0_5") == "renyi mean, 0.5"
    assert wording._words("stage_2_error") == "stage 2 error"
