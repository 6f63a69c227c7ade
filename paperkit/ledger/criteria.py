"""Criteria: named functions from records to a finding, fixed before the run.

Each takes the records of the configurations that a claim selects, all of them finished, and
keyword arguments from the claim's YAML, and returns a `Finding`.

An identity or an inequality is *verified* or *refuted*; between its tolerance and a second bound,
where round-off could be the reason, it is *inconclusive*. A measurement is judged by an interval
over independent units, which the criterion names: layers of a network or orders of a spectrum are
none. A number is *reproduced* where its interval lies within a margin that the claim states, *not
reproduced* where it lies outside, and *inconclusive* where it is too wide. An ordering, a trend or
a frequency is *reproduced* where a one-sided interval lies on the claim's side, *not reproduced*
where it lies on the other, and *inconclusive* else. A claim of this book's own is *supported* or
*not supported* instead.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field
from scipy.special import stdtr, stdtrit

from paperkit.experiments.entries import Entry
from paperkit.experiments.records import Record
from paperkit.ledger.calls import CriterionCall, Side, call_of
from paperkit.ledger.correlation import Statistic, jackknife, tau
from paperkit.ledger.formatting import bound, counted, number
from paperkit.ledger.formatting import interval as interval_text
from paperkit.statistics.intervals import (
    CONFIDENCE,
    fraction_bounds,
    fraction_p_value,
    mean_and_error,
    mean_p_value,
    one_sided_bounds,
    two_sided_interval,
)

VERIFIED = "verified"
REFUTED = "refuted"
SUPPORTED = "supported"
REPRODUCED = "reproduced"
DEVIATION = "reproduced with deviation"
NOT_SUPPORTED = "not supported"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
NOT_RUN = "not run"
WORDS = (
    VERIFIED,
    REFUTED,
    SUPPORTED,
    REPRODUCED,
    DEVIATION,
    NOT_SUPPORTED,
    NOT_REPRODUCED,
    INCONCLUSIVE,
    NOT_RUN,
)

OWN = "This book"
"""Name under which claims of this book's own are entered: there is nothing to reproduce."""

OWN_WORDS = {REPRODUCED: SUPPORTED, DEVIATION: NOT_SUPPORTED, NOT_REPRODUCED: NOT_SUPPORTED}
"""Words for measurements that decide a claim of this book's own."""

Kind = Literal[
    "definition",
    "identity",
    "inequality",
    "algorithm",
    "number",
    "ordering",
    "trend",
    "frequency",
]
KINDS: tuple[str, ...] = get_args(Kind)

EXACT = ("definition", "identity", "inequality", "algorithm")
"""Kinds that a single counterexample refutes. A definition is decided by whether it says what the
paper uses it for, an algorithm by whether it computes what it is said to compute."""

TESTED = ("ordering", "trend", "frequency")
"""Kinds that a one-sided test decides, so that some would come out by chance."""


class PaperValue(Entry):
    """A number as the paper prints it."""

    value: float
    """The number; not 0, which has no order of magnitude."""
    standard_error: Annotated[float, Field(ge=0)] = 0.0
    """Its standard error; 0 where the paper gives none."""
    unit: str = ""
    measured: bool = True
    """Whether it is a measurement at the paper's own scale, which only a run at the paper profile
    can decide, and not a closed form."""


@dataclass(frozen=True)
class Finding:
    """What a criterion found.

    Attributes
    ----------
    word : str
        The verdict.
    evidence : str
        Sentence about the records that decided.
    value : float or None
        Our value, where the criterion has one.
    interval : tuple of float or None
        Its interval; an end may be infinite.
    value_text : str
        Our value as it is shown.
    p_values : tuple of float or None
        P-values of two one-sided tests, for the claim and against it: how probable evidence is that
        favours it as much, were it false, or speaks against it as much, were it true. None where
        nothing is left to chance.
    """

    word: str
    evidence: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    value_text: str = ""
    p_values: tuple[float, float] | None = None
    decisive: str = ""
    """Key of the one record that decided, where one did."""


@dataclass(frozen=True)
class Criterion:
    """A criterion's function, the kinds of claim that it can decide, and how it is called."""

    function: Callable[..., Finding]
    kinds: tuple[str, ...]
    call: type[CriterionCall]


CRITERIA: dict[str, Criterion] = {}

GREY = 1000.0
"""Multiple of its tolerance from which on a difference refutes, unless the claim states a bound."""


def _decides(*kinds: str) -> Callable[[Callable[..., Finding]], Callable[..., Finding]]:
    def register(function: Callable[..., Finding]) -> Callable[..., Finding]:
        call = call_of(function, given=("records", "paper_value"))
        CRITERIA[function.__name__] = Criterion(function, kinds, call)
        return function

    return register


@_decides("definition", "identity", "algorithm")
def identity_holds(
    records: Sequence[Record],
    *,
    metric: str,
    at_most: float = 1e-10,
    refuted_from: float | None = None,
) -> Finding:
    """The metric's magnitude is at most ``at_most`` in every record.

    Parameters
    ----------
    records : sequence of Record
    metric : str
    at_most : float
        Tolerance of round-off.
    refuted_from : float, optional
        Magnitude that round-off cannot explain; default 1,000 times the tolerance.
    """
    worst, where, key = _extreme(records, metric, largest_magnitude=True)
    text = bound(worst)
    held = f"largest `{metric}` {text} in {counted(len(records), 'run')}"
    failed = f"`{metric}` is {text} at {where}"
    allowed = f"at most {at_most:g} allowed"
    word, sentence = _graded(worst, at_most, refuted_from, held, failed, allowed)
    return Finding(word, sentence, worst, value_text=text, decisive=key)


@_decides(*EXACT)
def counterexample_exists(records: Sequence[Record], *, metric: str, at_least: float) -> Finding:
    """Some record's metric is at least ``at_least``, which refutes the claim.

    Finding none verifies nothing: the verdict is then inconclusive.
    """
    worst, where, key = _extreme(records, metric)
    text = bound(worst)
    if worst >= at_least:
        sentence = f"`{metric}` is {text} at {where} ({at_least:g} refutes)"
        return Finding(REFUTED, sentence, worst, value_text=text, decisive=key)
    runs = counted(len(records), "run")
    sentence = f"no counterexample in {runs}: largest `{metric}` {text}, not {at_least:g}"
    return Finding(INCONCLUSIVE, sentence, worst, value_text=text, decisive=key)


@_decides("definition", "inequality", "algorithm")
def inequality_holds(
    records: Sequence[Record],
    *,
    metric: str,
    tolerance: float = 0.0,
    refuted_from: float | None = None,
) -> Finding:
    """The slack ``metric`` is at least ``-tolerance`` in every record.

    Parameters
    ----------
    records : sequence of Record
    metric : str
    tolerance : float
        Tolerance of round-off; 0 for whole numbers.
    refuted_from : float, optional
        Negative slack that round-off cannot explain; default 1,000 times the tolerance.
    """
    worst, where, key = _extreme(records, metric, smallest=True)
    text = bound(worst)
    held = f"smallest slack `{metric}` {text} in {counted(len(records), 'run')}"
    failed = f"the slack `{metric}` is {text} at {where}"
    allowed = f"round-off of {tolerance:g} allowed"
    word, sentence = _graded(-worst, tolerance, refuted_from, held, failed, allowed)
    return Finding(word, sentence, worst, value_text=text, decisive=key)


@_decides("number")
def number_matches(
    records: Sequence[Record],
    *,
    paper_value: PaperValue,
    metric: str,
    unit: str,
    margin: float,
    wide_margin: float | None = None,
    rounding: float = 0.0,
    deterministic: bool = False,
) -> Finding:
    """The metric's mean over the units is within ``margin`` of the paper's value.

    Its two-sided 95 % interval, by Student t and with the paper's own error, must lie within the
    margin. An interval that lies partly in it decides nothing.

    Parameters
    ----------
    records : sequence of Record
    paper_value : PaperValue
    metric : str
    unit : str
        Entry of the configuration that tells independent trials apart.
    margin : float
        Largest difference that still counts as the paper's value.
    wide_margin : float, optional
        Largest difference that still counts as a deviation of it.
    rounding : float
        Error of the paper's rounding: half a unit of the last digit that is printed.
    deterministic : bool
        Whether the value has no spread, so that one record is enough.
    """
    values = list(by_unit(records, metric, unit).values())
    ours, error = mean_and_error(values)
    width = 0.0
    if len(values) == 1 and not deterministic:
        error = _own_error(records, metric)
        width = _NORMAL * error
    elif not deterministic:
        width = two_sided_interval(values)[1] - ours
    low, high = ours - width, ours + width
    difference = abs(ours - paper_value.value)
    spread = math.hypot(width, _NORMAL * paper_value.standard_error) + rounding
    shown = "no spread" if math.isinf(width) else f"± {number(width)}"
    sentence = (
        f"{number(ours)}, {shown} over {counted(len(values), unit)}; "
        f"the paper has {number(paper_value.value)}"
    )
    if paper_value.standard_error > 0:
        sentence += f" ± {number(paper_value.standard_error)}"
    sentence += f"; a difference of {number(margin)} is allowed"
    if difference + spread <= margin:
        word = REPRODUCED
    elif difference - spread <= margin:
        word = INCONCLUSIVE
    elif wide_margin is not None and difference + spread <= wide_margin:
        word = DEVIATION
    elif wide_margin is not None and difference - spread <= wide_margin:
        word = INCONCLUSIVE
    else:
        word = NOT_REPRODUCED
    return Finding(word, sentence, ours, (low, high), number(ours))


# Quantile of the normal distribution for a two-sided interval of 95 %.
_NORMAL = 1.959964


@_decides("ordering")
def ordering_holds(
    records: Sequence[Record],
    *,
    larger: Side,
    smaller: Side,
    unit: str,
    metric: str | None = None,
    each: str | None = None,
    logarithm: bool = False,
) -> Finding:
    """The metric of the larger side exceeds that of the smaller one, unit by unit.

    Parameters
    ----------
    records : sequence of Record
    larger, smaller : Side
    unit : str
        Entry of the configuration that tells independent trials apart.
    metric : str, optional
        The metric of a side that names none.
    each : str, optional
        Entry of the configuration that tells rivals apart: each of the larger side has to exceed
        each of the smaller one. Without it the records of one unit are averaged.
    logarithm : bool
        Whether logarithms are compared, of a metric that spans orders of magnitude.
    """
    pairs = _pairs_of_rivals(records, larger, smaller, each)
    tests = [_differences(*pair, unit, metric, logarithm=logarithm) for pair in pairs]
    what = "mean difference of logarithms" if logarithm else "mean difference"
    if len(tests) == 1:
        return _sign_of_mean(tests[0], what, unit)
    return _sign_of_each_mean(tests, what, unit)


def _pairs_of_rivals(
    records: Sequence[Record], larger: Side, smaller: Side, each: str | None
) -> list[tuple[Sequence[Record], Side, Side]]:
    """Return for each pair of rivals, one of each side, the records and the two sides."""
    if each is None:
        return [(records, larger, smaller)]
    sides = [
        [side.model_copy(update={"where": {**side.where, each: rival}}) for rival in rivals]
        for side in (larger, smaller)
        for rivals in [grouped(select(records, side.where), each)]
    ]
    return [(records, upper, lower) for upper in sides[0] for lower in sides[1]]


def _differences(
    records: Sequence[Record],
    larger: Side,
    smaller: Side,
    unit: str,
    metric: str | None,
    *,
    logarithm: bool = False,
) -> list[float]:
    upper, lower = (
        by_unit(select(records, side.where), side.metric or metric, unit)
        for side in (larger, smaller)
    )
    units = sorted(upper.keys() & lower.keys())
    if not logarithm:
        return [upper[name] - lower[name] for name in units]
    least = min(value for side in (upper, lower) for value in side.values())
    if least <= 0:
        raise ValueError(
            f"{metric or larger.metric} is {number(least)} in one unit, which has no logarithm."
        )
    return [math.log(upper[name] / lower[name]) for name in units]


@_decides("ordering")
def difference_within(
    records: Sequence[Record],
    *,
    larger: Side,
    smaller: Side,
    unit: str,
    margin: float,
    metric: str | None = None,
) -> Finding:
    """The two sides are as good as equal: their mean difference is within ``margin``.

    The two-sided 95 % interval of the differences, unit by unit, must lie within it.

    Parameters
    ----------
    records : sequence of Record
    larger, smaller : Side
    unit : str
        Entry of the configuration that tells independent trials apart.
    margin : float
        Largest difference that counts as none.
    metric : str, optional
        The metric of a side that names none.
    """
    differences = _differences(records, larger, smaller, unit, metric)
    if len(differences) < 2:
        return _too_few(differences, unit)
    mean = statistics.fmean(differences)
    low, high = two_sided_interval(differences)
    inside, apart = -margin < low and high < margin, low > margin or high < -margin
    word = REPRODUCED if inside else NOT_REPRODUCED if apart else INCONCLUSIVE
    sentence = (
        f"mean difference {number(mean)} over {counted(len(differences), unit)}, "
        f"two-sided 95 % interval {interval_text(low, high)}; {margin:g} is allowed"
    )
    return Finding(word, sentence, mean, (low, high), number(mean))


@_decides("trend")
def trend_holds(
    records: Sequence[Record],
    *,
    metric: str,
    against: str,
    direction: Literal["increasing", "decreasing"],
    unit: str,
) -> Finding:
    """The metric rises or falls with an entry of the configuration, by slopes unit by unit.

    The slope is that of the least-squares line through one unit's records.

    Parameters
    ----------
    records : sequence of Record
    metric : str
    against : str
        The entry of the configuration, a number.
    direction : {"increasing", "decreasing"}
    unit : str
        Entry of the configuration that tells independent trials apart.
    """
    sign = {"increasing": 1, "decreasing": -1}[direction]
    slopes = []
    for name, own in grouped(records, unit).items():
        x = [float(record.configuration[against]) for record in own]
        y = [value_of(record, metric) for record in own]
        if len(set(x)) < 2:
            raise ValueError(
                f"{unit} {name} has one value of {against!r}; a trend needs at least two."
            )
        slopes.append(statistics.linear_regression(x, y).slope)
    return _sign_of_mean([sign * slope for slope in slopes], f"mean {direction} slope", unit)


@_decides("frequency")
def fraction_at_least(
    records: Sequence[Record],
    *,
    metric: str,
    unit: str,
    at_least: float = 1.0,
    fraction: float,
) -> Finding:
    """In at least ``fraction`` of the units all values of the metric are at least ``at_least``.

    A unit is one trial, however many records, layers or orders it has. With the default a boolean
    metric must be true throughout.

    Parameters
    ----------
    records : sequence of Record
    metric : str
    unit : str
        Entry of the configuration that tells independent trials apart.
    at_least : float
    fraction : float
    """
    trials = [
        all(value >= at_least for record in own for value in values_of(record, metric))
        for own in grouped(records, unit).values()
    ]
    successes = sum(trials)
    low, high = fraction_bounds(successes, len(trials))
    word = REPRODUCED if low >= fraction else NOT_REPRODUCED if high < fraction else INCONCLUSIVE
    share = successes / len(trials)
    sentence = (
        f"{successes} of {counted(len(trials), unit)}, one-sided 95 % bounds "
        f"{interval_text(low, high)}, claimed at least {number(fraction)}"
    )
    # Against the claim, the failures are counted.
    p_values = (
        fraction_p_value(successes, len(trials), fraction),
        fraction_p_value(len(trials) - successes, len(trials), 1 - fraction),
    )
    return Finding(word, sentence, share, (low, high), number(share), p_values)


@_decides("trend")
def rank_correlation(
    records: Sequence[Record],
    *,
    metrics: list[str],
    against: str,
    within: str,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Finding:
    """Kendall's τ-a of each metric with ``against``, over networks, is within the bound.

    A record is one network. In each group of ``within`` the smallest coefficient of the metrics
    is taken with ``at_least``, the largest with ``at_most``; their mean over the groups decides,
    with a one-sided interval of 95 % by the jackknife over networks. The smallest of several
    estimates is below the smallest of what they estimate, which is safe where the claim holds;
    against the claim, the level is divided by the number of choices of a metric in each group.

    Parameters
    ----------
    records : sequence of Record
    metrics : list of str
        Each metric is a number, or a dictionary of which every number is a metric.
    against : str
        Such as ``gap``.
    within : str
        Entry of the configuration; only networks that share it are compared.
    at_least, at_most : float, optional
        The bound; one of the two is given.
    """
    if (at_least is None) == (at_most is None):
        raise ValueError("rank_correlation needs one of at_least and at_most.")
    groups = _tables(records, metrics, against, within)
    choose: Callable[..., float] = min if at_most is None else max

    def chosen(rows: np.ndarray) -> float:
        return choose(tau(column, rows[:, 0]) for column in rows[:, 1:].T)

    bound = at_least if at_most is None else at_most
    assert bound is not None  # the call gives one of the two
    choices = math.prod(group.shape[1] - 1 for group in groups)
    found = _one_sided(chosen, groups, bound, choices, above=at_most is None)
    which = "" if groups[0].shape[1] == 2 else "smallest " if at_most is None else "largest "
    rule = f"{bound:g} is the bound{_shared(choices)}"
    return _correlated(found, f"{which}τ with `{against}`", groups, rule)


@_decides("ordering")
def correlation_exceeds(
    records: Sequence[Record],
    *,
    larger: list[str],
    smaller: list[str],
    against: str,
    within: str,
) -> Finding:
    """Every metric of ``larger`` has a higher τ-a with ``against`` than every one of ``smaller``.

    A record is one network. In each group of ``within`` the smallest coefficient of ``larger`` less
    the largest of ``smaller`` is taken, and the mean over the groups has to be above 0. Against the
    claim, the level is divided by the number of choices of a pair in each group.

    Parameters
    ----------
    records : sequence of Record
    larger, smaller : list of str
        As the metrics of `rank_correlation`.
    against : str
    within : str
        Entry of the configuration; only networks that share it are compared.
    """
    upper = _tables(records, larger, against, within)
    lower = _tables(records, smaller, against, within)
    groups = [np.hstack([a, b[:, 1:]]) for a, b in zip(upper, lower, strict=True)]
    split = upper[0].shape[1] - 1

    def lead(rows: np.ndarray) -> float:
        taus = [tau(column, rows[:, 0]) for column in rows[:, 1:].T]
        return min(taus[:split]) - max(taus[split:])

    choices = math.prod(split * (group.shape[1] - 1 - split) for group in groups)
    found = _one_sided(lead, groups, 0.0, choices, above=True)
    rule = f"it has to be above 0{_shared(choices)}"
    return _correlated(found, f"lead in τ with `{against}`", groups, rule)


def _tables(
    records: Sequence[Record], metrics: Sequence[str], against: str, within: str
) -> list[np.ndarray]:
    """Return for each group an array of a row for each network: ``against``, then the metrics."""
    tables = []
    for name, own in grouped(records, within).items():
        rows = [
            [value_of(r, against), *(value for m in metrics for value in values_of(r, m))]
            for r in own
        ]
        if len(rows) < _FEWEST or len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"{within} {name} has {len(rows)} networks with {metrics}; a rank correlation "
                f"needs at least {_FEWEST}, and the same metrics of all."
            )
        tables.append(np.array(rows))
    return tables


# Networks below which the jackknife says nothing.
_FEWEST = 8


def _one_sided(
    statistic: Statistic, groups: Sequence[np.ndarray], bound: float, choices: int, *, above: bool
) -> Finding:
    """Judge a statistic that takes the worst of some metrics in each group.

    Where the claim is true, each choice of metrics has a mean within the bound; the worst choice
    was made by looking at the data, so that the level against the claim is shared by all of them.
    """
    value, error, freedom = jackknife(statistic, groups)
    width = float(stdtrit(freedom, CONFIDENCE)) * error
    against = float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / choices)) * error
    low, high = (value - width, value + against) if above else (value - against, value + width)
    excess = value - bound if above else bound - value
    if error == 0:
        p_values = float(excess <= 0), float(excess >= 0)
    else:
        opposing = choices * float(stdtr(freedom, excess / error))
        p_values = float(stdtr(freedom, -excess / error)), min(1.0, opposing)
    inside, outside = (low > bound, high < bound) if above else (high < bound, low > bound)
    word = REPRODUCED if inside else NOT_REPRODUCED if outside else INCONCLUSIVE
    return Finding(word, "", value, (low, high), number(value), p_values)


def _shared(choices: int) -> str:
    return f", and the bound against the claim is for {choices:,} choices" if choices > 1 else ""


def _correlated(found: Finding, what: str, groups: Sequence[np.ndarray], rule: str) -> Finding:
    assert found.value is not None  # a correlation always has one
    assert found.interval is not None  # and an interval
    networks = counted(sum(map(len, groups)), "network")
    sentence = (
        f"{what} {number(found.value)} over {networks} in {counted(len(groups), 'group')}, "
        f"one-sided 95 % bounds {interval_text(*found.interval)}; {rule}"
    )
    return replace(found, evidence=sentence)


def _graded(
    violation: float,
    tolerance: float,
    refuted_from: float | None,
    held: str,
    failed: str,
    allowed: str,
) -> tuple[str, str]:
    """Return the word for a violation of an identity or an inequality, and its sentence."""
    limit = GREY * tolerance if refuted_from is None else refuted_from
    if violation <= tolerance:
        return VERIFIED, f"{held} ({allowed})"
    if violation < limit:
        return INCONCLUSIVE, f"{failed} ({allowed}; from {limit:g} on it refutes)"
    return REFUTED, f"{failed} ({allowed})"


def _too_few(values: Sequence[float], unit: str) -> Finding:
    sentence = f"an interval needs at least 2 values of {unit}, there are {len(values)}"
    return Finding(INCONCLUSIVE, sentence)


def _sign_of_mean(values: Sequence[float], what: str, unit: str) -> Finding:
    if len(values) < 2:
        return _too_few(values, unit)
    mean = statistics.fmean(values)
    low, high = one_sided_bounds(values)
    word = REPRODUCED if low > 0 else NOT_REPRODUCED if high < 0 else INCONCLUSIVE
    sentence = (
        f"{what} {number(mean)} over {counted(len(values), unit)}, "
        f"one-sided 95 % bounds {interval_text(low, high)}"
    )
    p_values = mean_p_value(values), mean_p_value([-value for value in values])
    return Finding(word, sentence, mean, (low, high), number(mean), p_values)


def _sign_of_each_mean(tests: Sequence[Sequence[float]], what: str, unit: str) -> Finding:
    """Judge several means, all of which have to be positive.

    For the claim speaks the weakest of them, at the full level, because every one is needed.
    Against it speaks the one that is most clearly negative, at a level divided by their number.
    """
    fewest = min(tests, key=len)
    if len(fewest) < 2:
        return _too_few(fewest, unit)
    smallest = min(map(statistics.fmean, tests))
    shared = 1 - (1 - CONFIDENCE) / len(tests)
    low = min(one_sided_bounds(values)[0] for values in tests)
    high = min(one_sided_bounds(values, shared)[1] for values in tests)
    word = REPRODUCED if low > 0 else NOT_REPRODUCED if high < 0 else INCONCLUSIVE
    sentence = (
        f"smallest of {len(tests)} leads, by the {what}, {number(smallest)} over "
        f"{counted(len(fewest), unit)}, one-sided 95 % bounds {interval_text(low, high)}"
    )
    opposing = min(mean_p_value([-value for value in values]) for values in tests)
    p_values = max(map(mean_p_value, tests)), min(1.0, len(tests) * opposing)
    return Finding(word, sentence, smallest, (low, high), number(smallest), p_values)


def select(records: Sequence[Record], where: Mapping[str, Any]) -> list[Record]:
    """Return the records whose configuration has the given values.

    Parameters
    ----------
    records : sequence of Record
    where : mapping
        A value, or a list of values of which one must match, for each entry.
    """
    return [record for record in records if matches(record.configuration, where)]


def matches(configuration: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Return whether a configuration has the given values; see `select`."""
    return all(
        name in configuration
        and configuration[name] in (value if isinstance(value, list) else [value])
        for name, value in where.items()
    )


def values_of(record: Record, metric: str) -> list[float]:
    """Return the numbers of a metric, those of a list or dictionary one after another.

    Parameters
    ----------
    record : Record
    metric : str
        A name in the record's metrics; dots lead into dictionaries.

    Raises
    ------
    ValueError
        If the record has no such metric or it holds something else than finite numbers.
    """
    found: Any = record.metrics
    for part in metric.split("."):
        if not isinstance(found, dict) or part not in found:
            raise ValueError(
                f"the record {record.location or record.key} of study {record.study!r} has no "
                f"metric {metric!r}; it has {', '.join(sorted(record.metrics))}."
            )
        found = found[part]
    numbers = list(_numbers(found))
    if not numbers or any(value is None for value in numbers):
        raise ValueError(
            f"the metric {metric!r} of the record {record.location or record.key} is not a "
            "number, a list of numbers or a dictionary of them."
        )
    finite = [value for value in numbers if value is not None]
    wrong = next((value for value in finite if not math.isfinite(value)), None)
    if wrong is not None:
        raise ValueError(
            f"the metric {metric!r} of the record {record.location or record.key} holds {wrong}, "
            "which is not finite; no verdict rests on that."
        )
    return finite


def _numbers(found: Any) -> Collection[float | None]:
    if isinstance(found, dict):
        items = [found["value"]] if "value" in found else list(found.values())
    elif isinstance(found, list):
        items = found
    else:
        is_whole = isinstance(found, int) and not isinstance(found, bool)
        return [found if is_whole else float(found) if isinstance(found, bool | float) else None]
    return [number for item in items for number in _numbers(item)]


def value_of(record: Record, metric: str) -> float:
    """Return a metric that is one number; see `values_of`."""
    values = values_of(record, metric)
    if len(values) != 1:
        raise ValueError(
            f"the metric {metric!r} of study {record.study!r} holds {len(values)} numbers; "
            "this criterion needs one."
        )
    return values[0]


def grouped(records: Sequence[Record], unit: str) -> dict[Any, list[Record]]:
    """Return the records of each independent trial.

    Raises
    ------
    ValueError
        If the configurations have no such entry.
    """
    groups: dict[Any, list[Record]] = {}
    for record in records:
        if unit not in record.configuration:
            known = ", ".join(sorted(record.configuration))
            raise ValueError(
                f"unit is {unit!r}, which is no entry of the configuration of study "
                f"{record.study!r}; it has {known}."
            )
        groups.setdefault(record.configuration[unit], []).append(record)
    return dict(sorted(groups.items(), key=lambda item: str(item[0])))


def by_unit(records: Sequence[Record], metric: str | None, unit: str) -> dict[Any, float]:
    """Return a metric's mean for each independent trial."""
    if metric is None:
        raise ValueError("the criterion names no metric for one of its sides; add metric.")
    return {
        name: statistics.fmean(value_of(record, metric) for record in own)
        for name, own in grouped(records, unit).items()
    }


def _own_error(records: Sequence[Record], metric: str) -> float:
    """Return the standard error that a single record states; infinite if it states none.

    The name is that of a measurement's metrics; records of before measurements have ``stderr``.
    """
    found: Any = records[0].metrics
    for part in metric.split("."):
        found = found[part]
    stated = None
    if isinstance(found, dict):
        stated = found.get("standard_error", found.get("stderr"))
    return float(stated) if len(records) == 1 and stated is not None else math.inf


def _extreme(
    records: Sequence[Record],
    metric: str,
    *,
    largest_magnitude: bool = False,
    smallest: bool = False,
) -> tuple[float, str, str]:
    """Return the extreme value, the configuration of its record in words, and the record's key."""
    pairs = [(value, record) for record in records for value in values_of(record, metric)]
    if largest_magnitude:
        pairs = [(abs(value), record) for value, record in pairs]
    value, record = (min if smallest else max)(pairs, key=lambda pair: pair[0])
    shown = ", ".join(f"{name} = {entry}" for name, entry in sorted(record.configuration.items()))
    return value, shown, record.key
