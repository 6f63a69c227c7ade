import math

import numpy as np
import pytest

from paperkit.experiments import Record
from paperkit.ledger.calls import Side
from paperkit.ledger.criteria import (
    CRITERIA,
    PaperValue,
    counterexample_exists,
    difference_within,
    fraction_at_least,
    identity_holds,
    inequality_holds,
    number_matches,
    ordering_holds,
    select,
    trend_holds,
    values_of,
)
from paperkit.ledger.formatting import bound, interval


def records(metric, values, **configuration):
    return [
        Record("study", "laptop", {"seed": seed, **configuration}, {metric: value}, {})
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "word"), [([1e-15, -1e-11], "verified"), ([1e-15, -1e-3], "refuted")]
)
def test_an_identity_is_verified_unless_one_record_exceeds_the_bound(values, word):
    assert identity_holds(records("error", values), metric="error", at_most=1e-10).word == word


def test_an_identity_names_where_it_fails_and_hides_round_off():
    failed = identity_holds(records("error", [0.0, 0.25], model="mlp"), metric="error")
    assert failed.evidence == ("`error` is 0.25 at model = mlp, seed = 1 (at most 1e-10 allowed)")
    assert identity_holds(records("error", [3e-15]), metric="error").evidence == (
        "largest `error` below 1e-12 in 1 run (at most 1e-10 allowed)"
    )


def test_an_identity_looks_at_every_entry_of_a_list_or_dictionary():
    nested = records("error", [{"conv": 0.0, "fc": [0.0, 1.0]}])
    assert identity_holds(nested, metric="error").word == "refuted"
    assert identity_holds(nested, metric="error.conv").word == "verified"


@pytest.mark.parametrize(
    ("values", "word"), [([0.0, 0.3], "refuted"), ([0.0, 0.1], "inconclusive")]
)
def test_one_counterexample_refutes_and_none_verifies_nothing(values, word):
    found = counterexample_exists(records("change", values), metric="change", at_least=0.2)
    assert found.word == word


@pytest.mark.parametrize(("values", "word"), [([0.0, 2.0], "verified"), ([2.0, -1e-9], "refuted")])
def test_an_inequality_is_verified_unless_a_slack_is_negative(values, word):
    found = inequality_holds(records("slack", values), metric="slack", tolerance=1e-12)
    assert found.word == word


@pytest.mark.parametrize(
    ("value", "word"), [(1e-10, "verified"), (1.1e-10, "inconclusive"), (2e-7, "refuted")]
)
def test_between_the_tolerance_and_a_thousand_times_it_nothing_is_decided(value, word):
    assert identity_holds(records("x", [value]), metric="x", at_most=1e-10).word == word
    found = inequality_holds(records("x", [-value]), metric="x", tolerance=1e-10)
    assert found.word == word
    assert word != "inconclusive" or "from 1e-07 on it refutes" in found.evidence


def test_the_bound_of_refutation_can_be_stated_and_whole_numbers_have_none_between():
    slightly = records("x", [1.1e-10])
    assert identity_holds(slightly, metric="x", refuted_from=1.05e-10).word == "refuted"
    assert inequality_holds(records("rank", [-1]), metric="rank").word == "refuted"


PAPER = PaperValue(value=1.0)
# The standard error of these values is 0.1, and Student's quantile for two degrees of freedom is
# 4.3027, so that the interval is the mean ± 0.43.
AROUND = (-0.1 * 3**0.5, 0.0, 0.1 * 3**0.5)


@pytest.mark.parametrize(
    ("mean", "margin", "word"),
    [
        (1.0, 0.44, "reproduced"),
        (1.0, 0.42, "inconclusive"),
        (1.2, 0.64, "reproduced"),
        (1.2, 0.62, "inconclusive"),
        (2.0, 0.56, "not reproduced"),
        (2.0, 0.58, "inconclusive"),
        (0.0, 0.56, "not reproduced"),
    ],
)
def test_a_number_is_reproduced_where_its_interval_lies_within_the_margin(mean, margin, word):
    found = number_matches(
        records("gap", [mean + x for x in AROUND]),
        paper_value=PAPER,
        metric="gap",
        unit="seed",
        margin=margin,
    )
    assert found.word == word
    assert found.interval == pytest.approx((mean - 0.43027, mean + 0.43027), rel=1e-4)


def test_noise_does_not_reproduce_a_number_and_a_sharp_value_nearby_does():
    percent = PaperValue(value=93.69, standard_error=0.12)
    options = {"paper_value": percent, "metric": "x", "unit": "seed", "margin": 1.5}
    assert number_matches(records("x", [30.0, 95.0, 110.0]), **options).word == "inconclusive"
    assert number_matches(records("x", [93.0, 93.1, 93.05]), **options).word == "reproduced"
    assert number_matches(records("x", [60.0, 60.5, 61.0]), **options).word == "not reproduced"


@pytest.mark.parametrize(
    ("mean", "word"),
    [
        (1.0, "reproduced"),
        (2.0, "reproduced with deviation"),
        (1.5, "inconclusive"),
        (3.0, "inconclusive"),
        (4.0, "not reproduced"),
    ],
)
def test_a_deviation_has_a_margin_of_its_own(mean, word):
    found = number_matches(
        records("gap", [mean + 0.1 * x for x in AROUND]),
        paper_value=PAPER,
        metric="gap",
        unit="seed",
        margin=0.5,
        wide_margin=2.0,
    )
    assert found.word == word


@pytest.mark.parametrize("name", ["standard_error", "stderr"])
def test_a_number_of_one_record_uses_the_error_that_the_record_states(name):
    stated = records("gap", [{"value": 1.2, name: 0.05, "n": 64, "method": "lanczos"}])
    found = number_matches(stated, paper_value=PAPER, metric="gap", unit="seed", margin=0.3)
    assert found.word == "reproduced"
    assert found.interval == pytest.approx((1.102, 1.298), abs=1e-4)


def test_a_measurement_that_states_no_error_says_nothing_of_the_spread_over_seeds():
    exact = records("gap", [{"value": 1.2, "standard_error": None, "n": 64, "method": "exact"}])
    found = number_matches(exact, paper_value=PAPER, metric="gap", unit="seed", margin=10.0)
    assert found.word == "inconclusive"


def test_a_measurement_is_one_number_wherever_it_stands():
    measured = {"standard_error": 0.1, "n": 64, "method": "lanczos", "converged": True}
    runs = records("trace", [{"conv": {"value": 1.0, **measured}, "fc": [{"value": 3.0}]}])
    assert values_of(runs[0], "trace") == [1.0, 3.0]
    assert values_of(runs[0], "trace.conv") == [1.0]
    assert values_of(runs[0], "trace.conv.standard_error") == [0.1]


def test_a_deterministic_number_agrees_within_the_papers_rounding():
    exact = PaperValue(value=3.14, measured=False)
    for value, word in ((3.1416, "reproduced"), (3.2, "not reproduced")):
        found = number_matches(
            records("x", [value]),
            paper_value=exact,
            metric="x",
            unit="seed",
            margin=0.01,
            rounding=0.005,
            deterministic=True,
        )
        assert found.word == word


SIDES = {name: Side(where={"optimizer": one}) for name, one in (("larger", "a"), ("smaller", "b"))}


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ([2.0, 3.1, 4.0], [1.0, 2.0, 3.0], "reproduced"),
        ([1.0, 2.0, 3.0], [2.0, 3.1, 4.0], "not reproduced"),
        ([1.0, 5.0, 1.0], [2.0, 2.0, 2.0], "inconclusive"),
        ([2.0], [1.0], "inconclusive"),
    ],
)
def test_an_ordering_is_judged_by_differences_seed_by_seed(a, b, word):
    both = records("loss", a, optimizer="a") + records("loss", b, optimizer="b")
    assert ordering_holds(both, metric="loss", unit="seed", **SIDES).word == word


def test_an_ordering_of_two_metrics_of_the_same_runs():
    runs = [
        Record("s", "laptop", {"seed": seed}, {"a": 1.0 + seed, "b": 0.1 * seed}, {})
        for seed in range(3)
    ]
    found = ordering_holds(runs, larger=Side(metric="a"), smaller=Side(metric="b"), unit="seed")
    assert found.word == "reproduced"
    assert found.value == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("a", "b", "c", "together", "each"),
    [
        # Rivals of which one is above a in every seed may average out below it.
        ([2.0, 3.1, 4.0], [3.0, 4.0, 5.0], [0.0, 1.0, 1.5], "reproduced", "not reproduced"),
        ([2.0, 3.1, 4.0], [1.0, 2.0, 3.0], [0.0, 1.0, 1.5], "reproduced", "reproduced"),
        ([2.0, 3.1, 4.0], [1.0, 2.0, 3.0], [1.0, 5.0, 3.0], "inconclusive", "inconclusive"),
        ([2.0], [1.0], [1.0], "inconclusive", "inconclusive"),
    ],
)
def test_an_ordering_against_several_is_one_against_each(a, b, c, together, each):
    runs = [
        record
        for name, values in (("a", a), ("b", b), ("c", c))
        for record in records("loss", values, optimizer=name)
    ]
    sides = {"larger": SIDES["larger"], "smaller": Side(where={"optimizer": ["b", "c"]})}
    given = {"metric": "loss", "unit": "seed", **sides}
    assert ordering_holds(runs, **given).word == together
    found = ordering_holds(runs, **given, each="optimizer")
    assert found.word == each
    if found.p_values is not None:
        supporting, opposing = found.p_values
        assert (supporting < 0.05) == (each == "reproduced")
        assert (opposing < 0.05) == (each == "not reproduced")


def test_against_several_chance_refutes_as_seldom_as_against_one():
    rng = np.random.default_rng(0)
    words = []
    for _ in range(300):
        values = rng.normal(size=(5, 4)).tolist()
        runs = [r for i, v in enumerate(values) for r in records("loss", v, optimizer=str(i))]
        sides = {
            "larger": Side(where={"optimizer": "0"}),
            "smaller": Side(where={"optimizer": list("1234")}),
        }
        given = {"metric": "loss", "unit": "seed", "each": "optimizer"}
        words.append(ordering_holds(runs, **given, **sides).word)
    # With 5 % in truth the standard deviation of the share is 1.3 %.
    assert words.count("not reproduced") / 300 < 0.09
    assert words.count("reproduced") / 300 < 0.09


def test_an_ordering_of_logarithms_is_not_swamped_by_one_that_diverged():
    a, b = [2.0, 2.1, 2.2, 1e20], [1.0, 1.1, 1.2, 1e21]
    both = records("loss", a, optimizer="a") + records("loss", b, optimizer="b")
    plain = ordering_holds(both, metric="loss", unit="seed", **SIDES)
    assert plain.value == pytest.approx(-9e20 / 4)
    found = ordering_holds(both, metric="loss", unit="seed", logarithm=True, **SIDES)
    by_hand = (math.log(2) + math.log(2.1 / 1.1) + math.log(2.2 / 1.2) - math.log(10)) / 4
    assert found.value == pytest.approx(by_hand)
    assert "mean difference of logarithms" in found.evidence
    zero = both + records("loss", [0.0], optimizer="a")
    with pytest.raises(ValueError, match="no logarithm"):
        ordering_holds(zero[-1:] + both[4:], metric="loss", unit="seed", logarithm=True, **SIDES)


def trend_records(slopes):
    return [
        Record("s", "laptop", {"seed": seed, "n": n}, {"entropy": slope * n + seed}, {})
        for seed, slope in enumerate(slopes)
        for n in (1, 2, 4)
    ]


@pytest.mark.parametrize(
    ("slopes", "direction", "word"),
    [
        ([1.0, 1.1, 0.9], "increasing", "reproduced"),
        ([1.0, 1.1, 0.9], "decreasing", "not reproduced"),
        ([1.0, -1.1, 0.9], "increasing", "inconclusive"),
    ],
)
def test_a_trend_is_judged_by_slopes_seed_by_seed(slopes, direction, word):
    options = {"metric": "entropy", "against": "n", "unit": "seed"}
    found = trend_holds(trend_records(slopes), direction=direction, **options)
    assert found.word == word
    # Student's t with two degrees of freedom: P(T > t) = (1 − t / √(2 + t²)) / 2.
    if word != "inconclusive":
        t = 1.0 / (0.1 / 3**0.5)
        tail = 0.5 * (1 - t / (2 + t * t) ** 0.5)
        supporting, opposing = found.p_values
        small, large = (supporting, opposing) if word == "reproduced" else (opposing, supporting)
        assert small == pytest.approx(tail, rel=1e-9)
        assert large == pytest.approx(1 - tail)


def test_a_trend_over_one_value_is_refused():
    runs = [run for run in trend_records([1.0]) if run.configuration["n"] == 1]
    with pytest.raises(ValueError, match="one value of 'n'; a trend needs at least two"):
        trend_holds(runs, metric="entropy", against="n", direction="increasing", unit="seed")


@pytest.mark.parametrize(
    ("true", "word"), [(60, "reproduced"), (45, "inconclusive"), (10, "not reproduced")]
)
def test_a_frequency_is_judged_by_its_one_sided_bounds(true, word):
    runs = records("holds", [True] * true + [False] * (60 - true))
    assert fraction_at_least(runs, metric="holds", unit="seed", fraction=0.8).word == word


def test_the_layers_of_one_network_are_one_trial():
    layers = {f"layer{i}": 1.0 for i in range(8)}
    found = fraction_at_least(
        records("share", [layers] * 5), metric="share", unit="seed", fraction=0.9
    )
    # The exact bound for five successes is 0.05^(1/5), however many layers there are.
    assert found.word == "inconclusive"
    assert found.interval == pytest.approx((0.05 ** (1 / 5), 1.0))
    assert found.p_values == pytest.approx((0.9**5, 1.0))
    one_fails = [{**layers, "layer3": 0.5}, *[layers] * 4]
    found = fraction_at_least(
        records("share", one_fails), metric="share", unit="seed", fraction=0.5
    )
    assert found.value == 0.8


def test_failures_speak_against_a_frequency():
    runs = records("holds", [False] * 5)
    found = fraction_at_least(runs, metric="holds", unit="seed", fraction=0.5)
    assert found.word == "not reproduced"
    assert found.p_values == pytest.approx((1.0, 0.5**5))


def test_records_of_one_unit_are_one_trial():
    runs = [run for n in (50, 100) for run in records("share", [1.0, float(n == 50)], n=n)]
    found = fraction_at_least(runs, metric="share", unit="seed", fraction=0.5)
    assert found.evidence.startswith("1 of 2 seeds")
    assert fraction_at_least(runs, metric="share", unit="n", fraction=0.5).value == 0.5


@pytest.mark.parametrize(
    ("shift", "word"), [(0.0, "reproduced"), (1.0, "not reproduced"), (0.5, "inconclusive")]
)
def test_two_sides_are_as_good_as_equal_within_a_margin(shift, word):
    noise = [0.01, -0.02, 0.015, 0.0, -0.005]
    one = records("x", [shift + value for value in noise], side=1)
    other = records("x", [0.0] * 5, side=0)
    given = {"larger": Side(where={"side": 1}), "smaller": Side(where={"side": 0}), "unit": "seed"}
    found = difference_within([*one, *other], **given, metric="x", margin=0.5)
    assert (found.word, found.p_values) == (word, None)
    low, high = found.interval
    assert low < shift < high
    few = [one[0], other[0]]
    assert difference_within(few, **given, metric="x", margin=9).word == "inconclusive"


def test_a_unit_that_no_configuration_has_is_refused():
    with pytest.raises(ValueError, match="unit is 'layer', which is no entry of the configuration"):
        fraction_at_least(records("holds", [True]), metric="holds", unit="layer", fraction=0.5)


CALLS = {
    "identity_holds": {"metric": "x"},
    "inequality_holds": {"metric": "x"},
    "counterexample_exists": {"metric": "x", "at_least": 0.5},
    "number_matches": {
        "metric": "x",
        "unit": "seed",
        "margin": 0.5,
        "paper_value": PaperValue(value=1.0),
    },
    "ordering_holds": {
        "metric": "x",
        "unit": "seed",
        "larger": Side(where={"side": 1}),
        "smaller": Side(where={"side": 0}),
    },
    "difference_within": {
        "metric": "x",
        "unit": "seed",
        "larger": Side(where={"side": 1}),
        "smaller": Side(where={"side": 0}),
        "margin": 0.5,
    },
    "trend_holds": {"metric": "x", "unit": "seed", "against": "side", "direction": "increasing"},
    "fraction_at_least": {"metric": "x", "unit": "seed", "fraction": 0.5},
    "rank_correlation": {"metrics": ["x"], "against": "x", "within": "side", "at_least": 0.5},
    "correlation_exceeds": {"larger": ["x"], "smaller": ["x"], "against": "x", "within": "side"},
}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", CRITERIA)
def test_no_criterion_passes_over_a_value_that_is_not_finite(name, wrong):
    for place in range(16):
        evidence = [
            Record("study", "laptop", {"seed": i // 2, "side": i % 2}, {"x": 1.0 + i}, {})
            for i in range(16)
        ]
        CRITERIA[name].function(evidence, **CALLS[name])
        evidence[place].metrics["x"] = wrong
        with pytest.raises(ValueError, match="is not finite; no verdict rests on that"):
            CRITERIA[name].function(evidence, **CALLS[name])


def test_a_missing_metric_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="has no metric 'los'; it has loss"):
        values_of(records("loss", [1.0])[0], "los")


def test_a_metric_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="is not a number"):
        values_of(records("loss", ["low"])[0], "loss")


def test_records_are_selected_by_value_or_by_list():
    runs = records("x", [1.0, 2.0, 3.0])
    assert [r.seed for r in select(runs, {"seed": [0, 2]})] == [0, 2]
    assert [r.seed for r in select(runs, {"seed": 1})] == [1]
    assert select(runs, {"colour": "red"}) == []


def test_the_promised_criteria_exist():
    assert set(CRITERIA) >= {
        "identity_holds",
        "counterexample_exists",
        "inequality_holds",
        "number_matches",
        "ordering_holds",
        "trend_holds",
        "fraction_at_least",
    }


def test_numbers_are_written_with_four_digits_and_round_off_as_a_bound():
    assert [bound(x) for x in (0.0, 3e-15, -2e-13, 0.123456)] == [*["below 1e-12"] * 3, "0.1235"]
    assert interval(0.5, math.inf) == "above 0.5"
    assert interval(-math.inf, 0.5) == "below 0.5"
    assert interval(1.0, 2.0) == "1 to 2"
    assert interval(-math.inf, math.inf) == "unbounded"


def test_a_whole_number_is_printed_as_one() -> None:
    found = inequality_holds(records("rank", [0, 3]), metric="rank")
    assert found.evidence == "smallest slack `rank` 0 in 2 runs (round-off of 0 allowed)"
    assert bound(0.0) == "below 1e-12"
