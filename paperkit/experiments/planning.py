"""What a study would take: its runs, finished and missing, their steps, and projected hours.

Nothing is run, and nothing is guessed: where no time of a kind is known, the plan says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from paperkit.experiments import provenance
from paperkit.experiments.archive import Archive
from paperkit.experiments.cost import Cost
from paperkit.experiments.records import Configuration, key_of
from paperkit.experiments.study import Study, configurations, study_names
from paperkit.experiments.timing import Timing, from_records, kept_timings, measured
from paperkit.experiments.training_cost import timed_as

Measured = Callable[[Study, Configuration, torch.device], Timing]


@dataclass(frozen=True)
class KindPlan:
    """The runs of one kind: how many, how long, and how that is known.

    Attributes
    ----------
    kind : str
        Name of the kind.
    unit : str
        Name of its steps, in the plural.
    costs : tuple of Cost
        Costs of all runs, the missing ones first.
    missing : int
        Number of runs that are not finished.
    timing : Timing or None
        Seconds of a step; None where nothing is known.
    has_trial : bool
        Whether the study says how a run is timed.
    """

    kind: str
    unit: str
    costs: tuple[Cost, ...]
    missing: int
    timing: Timing | None
    has_trial: bool

    @property
    def runs(self) -> int:
        """Number of runs, the finished ones too."""
        return len(self.costs)

    @property
    def steps(self) -> int:
        """Number of steps of all runs."""
        return sum(cost.steps for cost in self.costs)

    @property
    def steps_left(self) -> int:
        """Number of steps of the runs that are missing."""
        return sum(cost.steps for cost in self.costs[: self.missing])

    @property
    def seconds_a_step(self) -> float | None:
        """Seconds of a step, as a mean over the runs; None where they are not known."""
        if self.timing is None:
            return None
        return sum(cost.amount for cost in self.costs) * self.timing.seconds / self.steps

    @property
    def seconds(self) -> float | None:
        """Seconds of all runs, one after another."""
        return self._seconds(self.costs)

    @property
    def seconds_left(self) -> float | None:
        """Seconds of the missing runs, one after another."""
        return self._seconds(self.costs[: self.missing])

    def _seconds(self, costs: Sequence[Cost]) -> float | None:
        if not costs:
            return 0.0
        return None if self.timing is None else sum(self.timing.of(cost) for cost in costs)


@dataclass(frozen=True)
class StudyPlan:
    """The plan of one study at one profile.

    Attributes
    ----------
    study : Study
        The study.
    profile : str
        The profile.
    kinds : tuple of KindPlan
        Its kinds of runs, in the grid's order; none where the study has no such profile.
    is_written : bool
        Whether the study can be run; if not, its grid is there alone.
    """

    study: Study
    profile: str
    kinds: tuple[KindPlan, ...]
    is_written: bool

    @cached_property
    def runs(self) -> int:
        """Number of runs."""
        return sum(kind.runs for kind in self.kinds)

    @cached_property
    def missing(self) -> int:
        """Number of runs that are not finished."""
        return sum(kind.missing for kind in self.kinds)

    @property
    def finished(self) -> int:
        """Number of runs that are finished."""
        return self.runs - self.missing

    @property
    def unknown(self) -> int:
        """Number of runs of which it is not known how long they take."""
        return sum(kind.runs for kind in self.kinds if kind.timing is None)

    @property
    def unknown_left(self) -> int:
        """Number of missing runs of which it is not known how long they take."""
        return sum(kind.missing for kind in self.kinds if kind.timing is None)

    @property
    def seconds(self) -> float:
        """Seconds of all runs of which they are known, one after another."""
        return sum(kind.seconds or 0.0 for kind in self.kinds)

    @property
    def seconds_left(self) -> float:
        """Seconds of the missing runs of which they are known, one after another."""
        return sum(kind.seconds_left or 0.0 for kind in self.kinds)


def plan_of(
    study: Study,
    profile: str,
    archive: Archive,
    device: torch.device,
    *,
    measure: Measured | None = None,
) -> StudyPlan:
    """Return the plan of a study at a profile.

    Parameters
    ----------
    study : Study
        A study, or one of which only the grid is there.
    profile : {"smoke", "laptop", "paper"}
        Profile whose grid is planned; an empty grid has an empty plan.
    archive : Archive
        Where finished runs are looked for.
    device : torch.device
        Device that a projection is for.
    measure : callable, optional
        Function that times the trial of a kind of which runs are missing, as `measured` does; by
        default nothing is timed.
    """
    runs: dict[str, list[tuple[bool, Configuration]]] = {}
    for configuration in configurations(study, profile):
        found = archive.candidates(study.name, key_of(study.name, configuration), profile)
        kind = study.cost_of(configuration).kind
        runs.setdefault(kind, []).append((bool(found), configuration))
    known = timings_of(study, archive, device) if runs else {}
    kinds = []
    for kind, own in runs.items():
        left = [configuration for is_finished, configuration in own if not is_finished]
        costs = {id(c): study.cost_of(c) for _, c in own}
        timing = known.get(kind)
        if measure is not None and study.trial is not None and left:
            timing = measure(study, min(left, key=lambda c: costs[id(c)].size), device)
        done = [configuration for is_finished, configuration in own if is_finished]
        ordered = tuple(costs[id(c)] for c in [*left, *done])
        has_trial = study.trial is not None
        kinds.append(KindPlan(kind, ordered[0].unit, ordered, len(left), timing, has_trial))
    return StudyPlan(study, profile, tuple(kinds), study.name in study_names())


def timings_of(study: Study, archive: Archive, device: torch.device) -> dict[str, Timing]:
    """Return what is known of a study's kinds without running anything.

    Records of this device come first, then kept timings of it, then records and kept timings of
    other devices, whose origin names them.

    Parameters
    ----------
    study : Study
        The study.
    archive : Archive
        Where records are looked for.
    device : torch.device
        Device that is asked about.
    """
    name = provenance.device_name(device)
    recorded = from_records(archive.records(study.name), study, name)
    kept = [one for one in kept_timings() if one.study == timed_as(study)]
    found: dict[str, Timing] = {}
    # A later entry takes the place of an earlier one.
    for here in (False, True):
        found |= {one.kind: one.timing for one in kept if (one.device == name) == here}
        found |= {kind: t for kind, t in recorded.items() if (t.device == name) == here}
    return found


def measured_aloud(tell: Callable[[str], Any]) -> Measured:
    """Return a function that times trials, as `measured` does, and tells of each before.

    Parameters
    ----------
    tell : callable
        Takes a sentence.
    """

    def measure(study: Study, configuration: Configuration, device: torch.device) -> Timing:
        tell(f"timing {study.name}: {study.cost_of(configuration).kind}")
        return measured(study, configuration, device)

    return measure
