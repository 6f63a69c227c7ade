"""Criteria: named functions from records to a finding, fixed before the run.

Each takes the records of the configurations that a claim selects, all of them finished, and
keyword arguments from the claim's YAML, and returns a `Finding`. The words: for an identity or an
inequality *verified* or *refuted*; for a number *reproduced* within two combined standard errors,
*reproduced with deviation* at the same sign and order of magnitude, else *not reproduced*; for an
ordering or a trend *reproduced* where a one-sided interval over the seeds excludes zero, *not
reproduced* where it does so on the other side, and *inconclusive* where the interval is too wide
to say.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from paperkit.experiments.entries import Entry
from paperkit.experiments.records import Record
from paperkit.ledger.calls import CriterionCall, Side, call_of
from paperkit.ledger.formatting import bound, number
from paperkit.ledger.formatting import interval as interval_text
from paperkit.statistics.intervals import fraction_bounds, mean_and_error, one_sided_bounds

VERIFIED = "verified"
REFUTED = "refuted"
REPRODUCED = "reproduced"
DEVIATION = "reproduced with deviation"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive"
NOT_RUN = "not run"
WORDS = (VERIFIED, REFUTED, REPRODUCED, DEVIATION, NOT_REPRODUCED, INCONCLUSIVE, NOT_RUN)

Kind = Literal["identity", "inequality", "number", "ordering", "trend"]
KINDS: tuple[str, ...] = get_args(Kind)


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
    """

    word: str
    evidence: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    value_text: str = ""


@dataclass(frozen=True)
class Criterion:
    """A criterion's function, the kinds of claim that it can decide, and how it is called."""

    function: Callable[..., Finding]
    kinds: tuple[str, ...]
    call: type[CriterionCall]


CRITERIA: dict[str, Criterion] = {}


def _decides(*kinds: str) -> Callable[[Callable[..., Finding]], Callable[..., Finding]]:
    def register(function: Callable[..., Finding]) -> Callable[..., Finding]:
        call = call_of(function, given=("records", "paper_value"))
        CRITERIA[function.__name__] = Criterion(function, kinds, call)
        return function

    return register


@_decides("identity")
def identity_holds(records: Sequence[Record], *, metric: str, at_most: float = 1e-10) -> Finding:
    """The metric's magnitude is at most ``at_most`` in every record."""
    worst, where = _extreme(records, metric, largest_magnitude=True)
    text = bound(worst)
    if worst <= at_most:
        sentence = f"largest `{metric}` {text} in {_runs(records)} (at most {at_most:g} allowed)"
        return Finding(VERIFIED, sentence, worst, value_text=text)
    sentence = f"`{metric}` is {text} at {where} (at most {at_most:g} allowed)"
    return Finding(REFUTED, sentence, worst, value_text=text)


@_decides("identity", "inequality")
def counterexample_exists(records: Sequence[Record], *, metric: str, at_least: float) -> Finding:
    """Some record's metric is at least ``at_least``, which refutes the claim.

    Finding none verifies nothing: the verdict is then inconclusive.
    """
    worst, where = _extreme(records, metric)
    text = bound(worst)
    if worst >= at_least:
        sentence = f"`{metric}` is {text} at {where} ({at_least:g} refutes)"
        return Finding(REFUTED, sentence, worst, value_text=text)
    sentence = f"no counterexample in {_runs(records)}: largest `{metric}` {text}, not {at_least:g}"
    return Finding(INCONCLUSIVE, sentence, worst, value_text=text)


@_decides("inequality")
def inequality_holds(records: Sequence[Record], *, metric: str, tolerance: float = 0.0) -> Finding:
    """The slack ``metric`` is at least ``-tolerance`` in every record."""
    worst, where = _extreme(records, metric, smallest=True)
    text = bound(worst)
    if worst >= -tolerance:
        sentence = (
            f"smallest slack `{metric}` {text} in {_runs(records)} (round-off of {tolerance:g} "
            "allowed)"
        )
        return Finding(VERIFIED, sentence, worst, value_text=text)
    sentence = f"the slack `{metric}` is {text} at {where} (round-off of {tolerance:g} allowed)"
    return Finding(REFUTED, sentence, worst, value_text=text)


@_decides("number")
def number_matches(
    records: Sequence[Record],
    *,
    paper_value: PaperValue,
    metric: str,
    rounding: float = 0.0,
    deterministic: bool = False,
) -> Finding:
    """The metric's mean over seeds is within two combined standard errors of the paper's value.

    Parameters
    ----------
    records : sequence of Record
    paper_value : PaperValue
    metric : str
    rounding : float
        Error of the paper's rounding: half a unit of the last digit that is printed.
    deterministic : bool
        Whether the value has no spread, so that one record is enough.
    """
    values = list(by_seed(records, metric).values())
    ours, error = mean_and_error(values)
    if deterministic:
        error = 0.0
    elif len(values) == 1:
        error = _own_error(records, metric)
    combined = math.hypot(error, paper_value.standard_error)
    window = 2 * combined + rounding
    low, high = ours - 2 * error, ours + 2 * error
    spread = "no spread" if math.isinf(error) else f"± {number(error)}"
    sentence = (
        f"{number(ours)}, {spread} over {_seeds(len(values))}; "
        f"the paper has {number(paper_value.value)}"
    )
    if paper_value.standard_error > 0:
        sentence += f" ± {number(paper_value.standard_error)}"
    if not window < abs(paper_value.value):
        sentence += "; the interval does not even fix the sign"
        word = INCONCLUSIVE
    elif abs(ours - paper_value.value) <= window:
        word = REPRODUCED
    elif 0.1 <= ours / paper_value.value <= 10:
        word = DEVIATION
    else:
        word = NOT_REPRODUCED
    return Finding(word, sentence, ours, (low, high), number(ours))


@_decides("ordering")
def ordering_holds(
    records: Sequence[Record],
    *,
    larger: Side,
    smaller: Side,
    metric: str | None = None,
) -> Finding:
    """The metric of the larger side exceeds that of the smaller one, seed by seed.

    Parameters
    ----------
    records : sequence of Record
    larger, smaller : Side
    metric : str, optional
        The metric of a side that names none.
    """
    upper, lower = (
        by_seed(select(records, side.where), side.metric or metric) for side in (larger, smaller)
    )
    differences = [upper[seed] - lower[seed] for seed in sorted(upper.keys() & lower.keys())]
    return _sign_of_mean(differences, "mean difference")


@_decides("trend")
def trend_holds(
    records: Sequence[Record],
    *,
    metric: str,
    against: str,
    direction: Literal["increasing", "decreasing"],
) -> Finding:
    """The metric rises or falls with an entry of the configuration, by slopes seed by seed.

    The slope is that of the least-squares line through one seed's records.

    Parameters
    ----------
    records : sequence of Record
    metric : str
    against : str
        The entry of the configuration, a number.
    direction : {"increasing", "decreasing"}
    """
    sign = {"increasing": 1, "decreasing": -1}[direction]
    slopes = []
    for seed in sorted({record.seed for record in records}):
        own = [record for record in records if record.seed == seed]
        x = [float(record.configuration[against]) for record in own]
        y = [value_of(record, metric) for record in own]
        if len(set(x)) < 2:
            raise ValueError(
                f"seed {seed} has one value of {against!r}; a trend needs at least two."
            )
        slopes.append(statistics.linear_regression(x, y).slope)
    return _sign_of_mean([sign * slope for slope in slopes], f"mean {direction} slope")


@_decides("ordering", "trend")
def fraction_at_least(
    records: Sequence[Record], *, metric: str, at_least: float = 1.0, fraction: float
) -> Finding:
    """The metric is at least ``at_least`` in at least ``fraction`` of the records.

    With the default a boolean metric counts its true values.
    """
    values = [value for record in records for value in values_of(record, metric)]
    successes = sum(value >= at_least for value in values)
    low, high = fraction_bounds(successes, len(values))
    word = REPRODUCED if low >= fraction else NOT_REPRODUCED if high < fraction else INCONCLUSIVE
    share = successes / len(values)
    sentence = (
        f"{successes} of {len(values)}, one-sided 95 % bounds {interval_text(low, high)}, "
        f"claimed at least {number(fraction)}"
    )
    return Finding(word, sentence, share, (low, high), number(share))


def _sign_of_mean(values: Sequence[float], what: str) -> Finding:
    if len(values) < 2:
        sentence = f"an interval needs at least 2 seeds, there are {len(values)}"
        return Finding(INCONCLUSIVE, sentence)
    mean = statistics.fmean(values)
    low, high = one_sided_bounds(values)
    word = REPRODUCED if low > 0 else NOT_REPRODUCED if high < 0 else INCONCLUSIVE
    sentence = (
        f"{what} {number(mean)} over {_seeds(len(values))}, "
        f"one-sided 95 % bounds {interval_text(low, high)}"
    )
    return Finding(word, sentence, mean, (low, high), number(mean))


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
        If the record has no such metric or it holds something else than numbers.
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
    return [value for value in numbers if value is not None]


def _numbers(found: Any) -> Collection[float | None]:
    if isinstance(found, dict):
        items = [found["value"]] if "value" in found else list(found.values())
    elif isinstance(found, list):
        items = found
    else:
        return [float(found) if isinstance(found, bool | int | float) else None]
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


def by_seed(records: Sequence[Record], metric: str | None) -> dict[int, float]:
    """Return a metric's mean for each seed."""
    if metric is None:
        raise ValueError("the criterion names no metric for one of its sides; add metric.")
    grouped: dict[int, list[float]] = {}
    for record in records:
        grouped.setdefault(record.seed, []).append(value_of(record, metric))
    return {seed: statistics.fmean(values) for seed, values in grouped.items()}


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
) -> tuple[float, str]:
    pairs = [(value, record) for record in records for value in values_of(record, metric)]
    if largest_magnitude:
        pairs = [(abs(value), record) for value, record in pairs]
    value, record = (min if smallest else max)(pairs, key=lambda pair: pair[0])
    shown = ", ".join(f"{name} = {entry}" for name, entry in sorted(record.configuration.items()))
    return value, shown


def _runs(records: Sequence[Record]) -> str:
    return f"{len(records)} run{'s' * (len(records) != 1)}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"
