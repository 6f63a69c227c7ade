"""A criterion in words, with the claim's own thresholds, and the name of the value it judges.

Each criterion of `paperkit.ledger.criteria` has one entry in `WORDINGS`. All texts are Markdown, in
which everything that a claim gives is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paperkit.ledger.calls import CriterionCall
from paperkit.ledger.claims import Claim
from paperkit.ledger.criteria import GREY
from paperkit.ledger.formatting import code, escaped, number


@dataclass(frozen=True)
class Wording:
    """What a criterion asks for, and what its value is.

    Attributes
    ----------
    condition : callable
        From a claim to a clause with all of its thresholds.
    value_name : callable
        From a criterion's call to the name of the value, such as ``smallest slack``.
    """

    condition: Callable[[Claim], str]
    value_name: Callable[[Any], str]


def criterion_sentence(claim: Claim) -> str:
    """Return what a claim's criterion asks for, and of which runs."""
    call = claim.criterion
    runs = f"runs of the study {code(call.study)} at the {claim.profile} profile"
    chosen = f"those with {_where(call.where)}" if call.where else "all of them"
    left_out = f", without those of which {code(call.only)} is false" if call.only else ""
    return f"{WORDINGS[call.name].condition(claim)}. It looks at the {runs}, {chosen}{left_out}."


def value_name(claim: Claim) -> str:
    """Return the name of the value that a claim's criterion judges."""
    return WORDINGS[claim.criterion.name].value_name(claim.criterion)


def _identity(claim: Claim) -> str:
    call: Any = claim.criterion
    limit = GREY * call.at_most if call.refuted_from is None else call.refuted_from
    return (
        f"In every run {code(call.metric)} is at most {call.at_most:g} in magnitude; from "
        f"{limit:g} on it refutes, and in between it decides nothing"
    )


def _inequality(claim: Claim) -> str:
    call: Any = claim.criterion
    limit = GREY * call.tolerance if call.refuted_from is None else call.refuted_from
    metric = code(call.metric)
    if limit == call.tolerance == 0:
        return f"In every run the slack {metric} is at least 0; a negative one refutes"
    return (
        f"In every run the slack {metric} is at least −{call.tolerance:g}, which allows for "
        f"round-off; −{limit:g} or less refutes, and in between it decides nothing"
    )


def _counterexample(claim: Claim) -> str:
    call: Any = claim.criterion
    return (
        f"One run in which {code(call.metric)} is at least {call.at_least:g} refutes the claim; "
        "without one it stays undecided"
    )


def _number(claim: Claim) -> str:
    call: Any = claim.criterion
    assert claim.paper_value is not None  # a claim of this kind has one, or it is refused
    unit = f" {escaped(claim.paper_value.unit)}" if claim.paper_value.unit else ""
    text = (
        f"The mean of {code(call.metric)} over {_units(call.unit)} is within {call.margin:g}{unit} "
        f"of the paper's {number(claim.paper_value.value)}{unit}, with its whole interval "
        "(two-sided, 95 %)"
    )
    if call.deterministic:
        text = text.replace(", with its whole interval (two-sided, 95 %)", "")
    if call.rounding:
        text += f", where {call.rounding:g} is allowed for the paper's rounding"
    if call.wide_margin is not None:
        text += f"; within {call.wide_margin:g}{unit} it is a deviation"
    return text


def _ordering(claim: Claim) -> str:
    call: Any = claim.criterion
    larger, smaller = _sides(call)
    each = f", for every pair of the two sides' {_units(call.each)}" if call.each else ""
    of_logarithms = " of logarithms" if call.logarithm else ""
    return (
        f"{larger} exceeds {smaller}{each}: over {_units(call.unit)}, the interval (one-sided, "
        f"95 %) of the mean difference{of_logarithms} lies above 0"
    )


def _equality(claim: Claim) -> str:
    call: Any = claim.criterion
    larger, smaller = _sides(call)
    return (
        f"{larger} and {smaller} are as good as equal: over {_units(call.unit)}, the interval "
        f"(two-sided, 95 %) of the mean difference lies within ±{call.margin:g}"
    )


def _sides(call: Any) -> tuple[str, str]:
    larger, smaller = (
        code(side.metric or call.metric) + (f" where {_where(side.where)}" if side.where else "")
        for side in (call.larger, call.smaller)
    )
    return larger, smaller


def _trend(claim: Claim) -> str:
    call: Any = claim.criterion
    verb, side = {"increasing": ("rises", "above"), "decreasing": ("falls", "below")}[
        call.direction
    ]
    return (
        f"{code(call.metric)} {verb} with {code(call.against)}: over {_units(call.unit)}, the "
        f"interval (one-sided, 95 %) of the mean slope lies {side} 0"
    )


def _fraction(claim: Claim) -> str:
    call: Any = claim.criterion
    return (
        f"In at least {100 * call.fraction:g} % of {_units(call.unit)} every value of "
        f"{code(call.metric)} is at least {call.at_least:g}, by a bound that holds with 95 %"
    )


def _correlation(claim: Claim) -> str:
    call: Any = claim.criterion
    above = call.at_most is None
    bound = call.at_least if above else call.at_most
    several = "" if len(call.metrics) == 1 else "the smallest of " if above else "the largest of "
    side = "above" if above else "below"
    return (
        f"Over the networks of each {escaped(_words(call.within))} {several}Kendall's τ of "
        f"{_codes(call.metrics)} with {code(call.against)} is taken, and averaged; its interval "
        f"(one-sided, 95 %) lies {side} {bound:g}"
    )


def _lead(claim: Claim) -> str:
    call: Any = claim.criterion
    return (
        f"Kendall's τ with {code(call.against)} over the networks of each "
        f"{escaped(_words(call.within))} is larger for each of {_codes(call.larger)} than for all "
        f"of {_codes(call.smaller)}: the interval (one-sided, 95 %) of the mean lead lies above 0"
    )


def _codes(metrics: Sequence[str]) -> str:
    return ", ".join(map(code, metrics))


def _named(kind: str) -> Callable[[CriterionCall], str]:
    """Return a function to a name such as ``largest entropy change``, with no word twice."""

    def name(call: Any) -> str:
        metric = _words(call.metric)
        return escaped(metric if metric.startswith(kind) else f"{kind} {metric}")

    return name


def _slack_name(call: Any) -> str:
    metric = _words(call.metric)
    return escaped(f"smallest {metric if 'slack' in metric else f'slack, {metric}'}")


def _difference_name(call: Any) -> str:
    shared = call.metric or call.larger.metric
    same = shared is not None and {call.larger.metric, call.smaller.metric} <= {None, shared}
    kind = "smallest lead" if getattr(call, "each", None) else "mean difference"
    return escaped(f"{kind} in {_words(shared)}" if same else kind)


def _slope_name(call: Any) -> str:
    change = {"increasing": "rise", "decreasing": "fall"}[call.direction]
    return escaped(f"mean {change} of {_words(call.metric)} per unit of {_words(call.against)}")


def _fraction_name(call: Any) -> str:
    return f"fraction of {_units(call.unit)}"


WORDINGS: dict[str, Wording] = {
    "identity_holds": Wording(_identity, _named("largest")),
    "counterexample_exists": Wording(_counterexample, _named("largest")),
    "inequality_holds": Wording(_inequality, _slack_name),
    "number_matches": Wording(_number, _named("mean")),
    "ordering_holds": Wording(_ordering, _difference_name),
    "difference_within": Wording(_equality, _difference_name),
    "trend_holds": Wording(_trend, _slope_name),
    "fraction_at_least": Wording(_fraction, _fraction_name),
    "rank_correlation": Wording(_correlation, lambda call: f"τ with {_words(call.against)}"),
    "correlation_exceeds": Wording(_lead, lambda call: f"lead in τ with {_words(call.against)}"),
}


def _words(metric: str) -> str:
    """Return a metric's name in words: ``at_order_1_2.batch`` is *at order 1.2, batch*."""
    parts = metric.replace(".", ", ")
    return re.sub(r"(?<=\d)_(?=\d)", ".", parts).replace("_", " ")


def _units(unit: str) -> str:
    return f"{escaped(_words(unit))}s"


def _where(where: Mapping[str, Any]) -> str:
    """Return a selection of runs in words: ``case “a” or “b”, n = 100``."""
    return " and ".join(f"{code(name)} {_values(values)}" for name, values in where.items())


def _values(values: Any) -> str:
    listed = values if isinstance(values, list) else [values]
    shown = [f"“{escaped(value)}”" if isinstance(value, str) else _plain(value) for value in listed]
    *first, last = shown
    return f"{', '.join(first)} or {last}" if first else last


def _plain(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else escaped(str(value))
