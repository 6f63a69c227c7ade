"""A plan as a table in a terminal, as Markdown for the book, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paperkit.experiments.planning import KindPlan, StudyPlan

UNKNOWN = "unknown"

HEADER = (
    "study",
    "runs",
    "finished",
    "missing",
    "steps of the missing",
    "seconds a step",
    "time left",
    "time in all",
)


def duration(seconds: float) -> str:
    """Return a number of seconds in the unit that a reader would take: seconds, minutes or hours.

    Parameters
    ----------
    seconds : float
        Number of seconds.
    """
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    if seconds < 5400.0:
        return f"{seconds / 60.0:.0f} min"
    number = seconds / 3600.0
    return f"{number:.1f} h" if number < 10 else f"{number:,.0f} h"


def told_time(seconds: float, runs: int, unknown: int) -> str:
    """Return a time; where that of some runs is unknown, the time of the others, and that.

    Parameters
    ----------
    seconds : float
        Seconds of the runs of which they are known.
    runs : int
        Number of runs.
    unknown : int
        Number of runs of which they are not known.
    """
    if unknown and unknown == runs:
        return UNKNOWN
    return f"{duration(seconds)} + {UNKNOWN}" if unknown else duration(seconds)


def step_range(kinds: Sequence[KindPlan]) -> str:
    """Return the seconds of a step of several kinds, from the shortest to the longest.

    Parameters
    ----------
    kinds : sequence of KindPlan
        Kinds of one study.
    """
    known = sorted(kind.seconds_a_step for kind in kinds if kind.seconds_a_step is not None)
    if not known:
        return UNKNOWN if kinds else ""
    low, high = (f"{end:,.0f}" if end >= 10 else f"{end:.2g}" for end in (known[0], known[-1]))
    return low if low == high else f"{low} to {high}"


def origins(kinds: Sequence[KindPlan]) -> list[str]:
    """Return where the seconds of several kinds come from, each origin once.

    Parameters
    ----------
    kinds : sequence of KindPlan
        Kinds of one study.
    """
    counts: dict[str, int] = {}
    for timing in (kind.timing for kind in kinds if kind.timing is not None):
        words = f"{timing.origin} on {timing.device}"
        counts[words] = counts.get(words, 0) + timing.records
    found = [f"{count} {words}" if count else words for words, count in counts.items()]
    if any(kind.timing is None for kind in kinds):
        can = any(kind.timing is None and kind.has_trial for kind in kinds)
        remedy = "--measure times a trial" if can else "the study has no trial to time"
        found.append(f"{UNKNOWN}: no record of its kind ({remedy})")
    return found


def text(plans: Sequence[StudyPlan], price: float | None = None, *, kinds: bool = False) -> str:
    """Return plans as a table with its sum and the origins of its seconds.

    Parameters
    ----------
    plans : sequence of StudyPlan
        Plans of one profile.
    price : float, optional
        Price of an hour of the machine.
    kinds : bool
        Give each kind a row of its own.
    """
    there = [plan for plan in plans if plan.runs]
    rows = [_row(plan, price) for plan in there]
    if kinds:
        rows = [
            row
            for plan in there
            for row in (_row(plan, price), *(_kind_row(k, price) for k in plan.kinds))
        ]
    header = [*HEADER, *(["cost left"] if price is not None else [])]
    lines = _aligned([header, *rows, _sum(there, price)]) if there else []
    width = max((len(plan.study.name) for plan in there), default=0) + 2
    for plan in there:
        noted = "" if plan.is_written else " (not written yet: a grid alone)"
        for number, origin in enumerate(origins(plan.kinds)):
            lines.append(f"{plan.study.name if number == 0 else '':<{width}}{origin}{noted}")
            noted = ""
    without = [plan.study.name for plan in plans if not plan.runs]
    if without:
        lines.append(f"without a {plans[0].profile} profile: {', '.join(without)}")
    if there:
        lines.append("Times are of one run after another on one device. Nothing was run.")
    return "\n".join(lines)


def _row(plan: StudyPlan, price: float | None) -> list[str]:
    left = sum(kind.steps_left for kind in plan.kinds)
    units = list(dict.fromkeys(kind.unit for kind in plan.kinds))
    told = [
        plan.study.name,
        str(plan.runs),
        str(plan.finished),
        str(plan.missing),
        f"{left:,} {' or '.join(units)}",
        step_range(plan.kinds),
        told_time(plan.seconds_left, plan.missing, plan.unknown_left),
        told_time(plan.seconds, plan.runs, plan.unknown),
    ]
    return [*told, *_cost(plan.seconds_left, plan.unknown_left, plan.missing, price)]


def _kind_row(kind: KindPlan, price: float | None) -> list[str]:
    unknown = 0 if kind.timing is not None else kind.runs
    unknown_left = 0 if kind.timing is not None else kind.missing
    told = [
        f"  {kind.kind}",
        str(kind.runs),
        str(kind.runs - kind.missing),
        str(kind.missing),
        f"{kind.steps_left:,} {kind.unit}",
        step_range([kind]),
        told_time(kind.seconds_left or 0.0, kind.missing, unknown_left),
        told_time(kind.seconds or 0.0, kind.runs, unknown),
    ]
    return [*told, *_cost(kind.seconds_left or 0.0, unknown_left, kind.missing, price)]


def _sum(plans: Sequence[StudyPlan], price: float | None) -> list[str]:
    runs, missing = sum(p.runs for p in plans), sum(p.missing for p in plans)
    left, unknown_left = sum(p.seconds_left for p in plans), sum(p.unknown_left for p in plans)
    everything, unknown = sum(p.seconds for p in plans), sum(p.unknown for p in plans)
    told = [
        "all",
        str(runs),
        str(runs - missing),
        str(missing),
        "",
        "",
        told_time(left, missing, unknown_left),
        told_time(everything, runs, unknown),
    ]
    return [*told, *_cost(left, unknown_left, missing, price)]


def _cost(seconds: float, unknown: int, runs: int, price: float | None) -> list[str]:
    if price is None:
        return []
    if unknown and unknown == runs:
        return [UNKNOWN]
    return [f"{seconds / 3600.0 * price:,.2f}" + (" + unknown" if unknown else "")]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def plain(plan: StudyPlan, price: float | None = None) -> dict[str, Any]:
    """Return a plan as JSON can say it; what is not known is null.

    Parameters
    ----------
    plan : StudyPlan
        Plan of a study.
    price : float, optional
        Price of an hour of the machine.
    """
    left = None if plan.unknown_left else plan.seconds_left
    told: dict[str, Any] = {
        "study": plan.study.name,
        "profile": plan.profile,
        "written": plan.is_written,
        "runs": plan.runs,
        "finished": plan.finished,
        "missing": plan.missing,
        "runs_of_unknown_time": plan.unknown,
        "missing_runs_of_unknown_time": plan.unknown_left,
        "seconds_left": left,
        "seconds": None if plan.unknown else plan.seconds,
        "kinds": [_plain_kind(kind) for kind in plan.kinds],
    }
    if price is not None:
        told["cost_left"] = None if left is None else left / 3600.0 * price
    return told


def _plain_kind(kind: KindPlan) -> dict[str, Any]:
    timing = kind.timing
    return {
        "kind": kind.kind,
        "unit": kind.unit,
        "runs": kind.runs,
        "missing": kind.missing,
        "steps": kind.steps,
        "steps_left": kind.steps_left,
        "seconds_a_step": kind.seconds_a_step,
        "seconds_left": kind.seconds_left,
        "seconds": kind.seconds,
        "origin": None if timing is None else timing.origin,
        "device": None if timing is None else timing.device,
    }
