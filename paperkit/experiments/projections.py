"""By which factor a plan was off: a study is planned, run in an empty store, and compared."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from paperkit import arguments, atomic
from paperkit.experiments import provenance
from paperkit.experiments.archive import Archive
from paperkit.experiments.paths import results_folder
from paperkit.experiments.plan_text import origins
from paperkit.experiments.planning import KindPlan, Measured, plan_of
from paperkit.experiments.records import Configuration, Record, read_text
from paperkit.experiments.session import Session
from paperkit.experiments.study import Study, configurations, require_runs


@dataclass(frozen=True)
class Projection:
    """What a plan said that a study would take, and what it then took.

    Attributes
    ----------
    study, profile : str
        Names of the study and of the profile.
    runs : int
        Number of runs, one after another.
    projected : float
        Seconds that the plan said before.
    taken : float
        Seconds by the clock.
    processor : float
        Seconds of the processor's cores; more work beside the runs leaves them as they are.
    origins : list of str
        Where the plan had its seconds from.
    device : str
        Device with its name.
    threads : int
        Threads of PyTorch.
    date : str
        Day and time of the end.
    commit : str or None
        Commit of the code.
    """

    study: str
    profile: str
    runs: int
    projected: float
    taken: float
    processor: float
    origins: list[str]
    device: str
    threads: int
    date: str
    commit: str | None

    @property
    def factor(self) -> float:
        """Seconds that were taken by the clock, over those that were projected."""
        return self.taken / self.projected

    @property
    def processor_factor(self) -> float:
        """Seconds of the processor, over those that were projected."""
        return self.processor / self.projected


def checked_projection(
    study: Study,
    profile: str,
    device: torch.device,
    *,
    measure: Measured | None = None,
    on_run: Callable[[Record], object] | None = None,
) -> Projection:
    """Plan all runs of a study, run them in an empty store, and compare.

    What the runs need of other studies is taken from the published records.

    Parameters
    ----------
    study : Study
        A study whose plan knows the time of every kind.
    profile : {"smoke", "laptop", "paper"}
        Profile that is run.
    device : torch.device
        Where to compute.
    measure : callable, optional
        Function that times trials before; by default the plan takes what is recorded.
    on_run : callable, optional
        Called with the record of each run.

    Raises
    ------
    ValueError
        If the study has nothing at the profile, or a kind's time is not known.
    """
    grid = require_runs(study, profile)
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(folder)
        kinds = _all_kinds(study, profile, archive, device, measure)
        unknown = [kind.kind for kind in kinds if kind.timing is None]
        if unknown:
            raise ValueError(
                f"the time of {unknown[0]!r} of study {study.name!r} is not known, so that there "
                "is no projection to check."
            )
        session = Session(archive, profile, device)
        begun, worked = time.perf_counter(), time.process_time()
        for configuration in grid:
            record = session.perform(study, configuration)
            if on_run is not None:
                on_run(record)
        taken, worked = time.perf_counter() - begun, time.process_time() - worked
    return Projection(
        study=study.name,
        profile=profile,
        runs=len(grid),
        projected=round(sum(kind.seconds or 0.0 for kind in kinds), 3),
        taken=round(taken, 3),
        processor=round(worked, 3),
        origins=origins(kinds),
        device=provenance.device_name(device),
        threads=torch.get_num_threads(),
        date=provenance.now(),
        commit=session.tree.commit,
    )


def _all_kinds(
    study: Study, profile: str, archive: Archive, device: torch.device, measure: Measured | None
) -> list[KindPlan]:
    """Return the plan's kinds; those that are finished are timed too."""
    kinds = plan_of(study, profile, archive, device).kinds
    if measure is None or study.trial is None:
        return list(kinds)
    first: dict[str, Configuration] = {}
    for configuration in configurations(study, profile):
        cost = study.cost_of(configuration)
        if cost.kind not in first or cost.size < study.cost_of(first[cost.kind]).size:
            first[cost.kind] = configuration
    return [
        KindPlan(
            kind.kind,
            kind.unit,
            kind.costs,
            kind.missing,
            measure(study, first[kind.kind], device),
            kind.has_trial,
        )
        for kind in kinds
    ]


def projections_file() -> Path:
    """Return the file of the projections that were checked, which need not exist."""
    return results_folder() / "projections.json"


def kept_projections() -> list[Projection]:
    """Read the projections that were checked, sorted by study and profile.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    path = projections_file()
    if not path.is_file():
        return []
    names = {field.name for field in fields(Projection)}
    try:
        content = json.loads(read_text(path))
        if not all(set(entry) == names for entry in content):
            raise ValueError("an entry has other fields")
        kept = [Projection(**entry) for entry in content]
        for one in kept:
            arguments.number("projected", one.projected, above=0)
            arguments.number("taken", one.taken, above=0)
            arguments.number("processor", one.processor, at_least=0)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore it from git, or delete it and run "
            "`paperkit plan NAME --check --save`."
        ) from None
    return kept


def keep_projection(projection: Projection) -> Path:
    """Write a projection to the file, in the place of an older one of its study and profile.

    Parameters
    ----------
    projection : Projection
        Outcome of a check.
    """
    found = {(one.study, one.profile): one for one in kept_projections()}
    found[projection.study, projection.profile] = projection
    lines = [asdict(one) for _, one in sorted(found.items())]
    text = json.dumps(lines, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    atomic.write_text(projections_file(), text)
    return projections_file()
