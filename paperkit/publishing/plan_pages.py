"""Plans of the studies as the book shows them, and by which factor plans were off.

``{plan} PROFILE`` is a table of every study that has the profile; with names of studies after the
profile, a table of their kinds of runs. ``{projections}`` lists the plans that were held against
what the runs then took.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from paperkit.experiments.archive import Archive
from paperkit.experiments.plan_text import origins, step_range, told_time
from paperkit.experiments.planned import any_study, every_study
from paperkit.experiments.planning import StudyPlan, plan_of
from paperkit.experiments.projections import kept_projections
from paperkit.ledger.formatting import counted, markdown_table
from paperkit.publishing.markdown_directive import MarkdownDirective


class Plan(MarkdownDirective):
    """What every study would take at a profile, or the kinds of runs of some."""

    required_arguments = 1
    optional_arguments = 0
    final_argument_whitespace = True

    def markdown(self, argument: str | None) -> str:
        """Render the plan of the profile, and of the studies that are named after it."""
        profile, *names = (argument or "").split()
        return kinds(profile, names) if names else plan(profile)


class Projections(MarkdownDirective):
    """Plans beside what the runs then took."""

    optional_arguments = 0

    def markdown(self, argument: str | None) -> str:
        """Render the projections that were checked."""
        return projections()


def plan(profile: str) -> str:
    """Return what every study would take at a profile, begun anew, as Markdown.

    Parameters
    ----------
    profile : {"smoke", "laptop", "paper"}
        Profile whose grids are planned.
    """
    plans = [_plan(study.name, profile) for study in every_study()]
    there = [one for one in plans if one.runs]
    rows = [_row(one) for one in there]
    seconds, runs = sum(one.seconds for one in there), sum(one.runs for one in there)
    total = told_time(seconds, runs, sum(one.unknown for one in there))
    rows.append(["**all**", f"{runs:,}", "", "", f"**{total}**", ""])
    lines = [markdown_table(_HEADER, rows, _RIGHT)]
    without = [f"`{one.study.name}`" for one in plans if not one.runs]
    if without:
        lines += ["", f"Without a {profile} profile: {', '.join(without)}."]
    return "\n".join(lines)


_HEADER = ("study", "runs", "steps", "seconds a step", "time", "seconds from")
_RIGHT = (False, True, True, True, True, False)


def _row(one: StudyPlan) -> list[str]:
    steps: dict[str, int] = {}
    for kind in one.kinds:
        steps[kind.unit] = steps.get(kind.unit, 0) + kind.steps
    waiting = "" if one.is_written else " (waits to be written)"
    return [
        f"`{one.study.name}`{waiting}",
        f"{one.runs:,}",
        " and ".join(f"{count:,} {unit}" for unit, count in steps.items()),
        step_range(one.kinds),
        told_time(one.seconds, one.runs, one.unknown),
        _sources(one),
    ]


def _sources(one: StudyPlan) -> str:
    """Return where the seconds come from, in few words: the tables of kinds tell the rest."""
    timings = [kind.timing for kind in one.kinds if kind.timing is not None]
    recorded = sum(timing.records for timing in timings)
    told = [counted(recorded, "record")] if recorded else []
    if any(not timing.records for timing in timings):
        told.append("trials")
    if one.unknown:
        told.append("nothing, for some" if timings else "nothing")
    return ", ".join(told)


def kinds(profile: str, names: Sequence[str]) -> str:
    """Return the kinds of runs of some studies at a profile, begun anew, as Markdown.

    Parameters
    ----------
    profile : {"smoke", "laptop", "paper"}
        Profile whose grids are planned.
    names : sequence of str
        Names of the studies.
    """
    rows = []
    for name in names:
        for kind in _plan(name, profile).kinds:
            unknown = kind.runs if kind.timing is None else 0
            rows.append(
                [
                    f"`{name}`",
                    kind.kind,
                    f"{kind.runs:,}",
                    f"{kind.steps:,} {kind.unit}",
                    step_range([kind]),
                    told_time(kind.seconds or 0.0, kind.runs, unknown),
                    "; ".join(origins([kind])),
                ]
            )
    header = ("study", "kind of run", "runs", "steps", "seconds a step", "time", "seconds from")
    return markdown_table(header, rows, (False, False, True, True, True, True, False))


@cache
def _archive() -> Archive:
    """Return the published records, which the directives of a page read once."""
    return Archive()


def _plan(name: str, profile: str) -> StudyPlan:
    return plan_of(any_study(name), profile, _archive(), torch.device("cpu"))


def projections() -> str:
    """Return the plans that were checked, with the factor by which each was off, as Markdown."""
    rows = [
        [
            f"`{one.study}`, {one.profile}",
            f"{one.runs}",
            *(f"{seconds:.1f} s" for seconds in (one.projected, one.taken, one.processor)),
            f"{one.factor:.2f}",
            f"{one.processor_factor:.2f}",
            f"{'; '.join(one.origins)}; checked on {one.date[:10]}",
        ]
        for one in kept_projections()
    ]
    if not rows:
        return "No plan has been held against its runs yet."
    header = (
        *("study", "runs", "plan", "by the clock", "processor"),
        *("clock / plan", "processor / plan", "the plan's seconds"),
    )
    return markdown_table(header, rows, (False, *[True] * 6, False))
