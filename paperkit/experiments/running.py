"""Running a study: what is finished is skipped, what a run needs is run first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from paperkit import arguments
from paperkit.experiments.archive import Archive
from paperkit.experiments.engines import Allotment, engine_named
from paperkit.experiments.errand import Errand
from paperkit.experiments.outlook import BAR, Outlook
from paperkit.experiments.records import Record, key_of
from paperkit.experiments.session import Session
from paperkit.experiments.study import Study, require_profile, require_runs, study_named

RERUN = ("stale", "dirty")


def run_study(
    study: Study | str,
    profile: str,
    store: str | Path | None = None,
    engine: str = "in-process",
    progress: bool = True,
    *,
    allotment: Allotment | None = None,
    device: str | torch.device = "cpu",
    rerun: Sequence[str] = (),
) -> list[Record]:
    """Run what is missing of a study's grid and return its records in the grid's order.

    A configuration whose record exists, in the store or published, is skipped, so an
    interrupted study goes on where it stopped. At the smoke profile published records do not
    count, and a smoke record does not count at the other profiles.

    Parameters
    ----------
    study : Study or str
    profile : {"smoke", "laptop", "paper"}
    store : path, optional
        The working store; by default ``_build/store`` in the repository.
    engine : {"in-process", "processes", "ray"}
        This process, which runs one configuration after another; several processes of this
        machine, which share its cores; or a cluster. The records are the same.
    progress : bool
        Show a progress bar on standard error while something is run, with the time that the missing
        runs will take by their kinds.
    allotment : Allotment, optional
        Number of runs at a time, and what each is given of cores, GPUs and memory; by default what
        the engine finds best.
    device : str or torch.device
    rerun : sequence of {"stale", "dirty"}
        Run again what was finished by other code, or by uncommitted code; also the runs that
        this study needs.

    Returns
    -------
    list of Record

    Raises
    ------
    ValueError
        If the study, profile, engine or a word in ``rerun`` is unknown, or the study has no such
        profile.

    Examples
    --------
    >>> from paperkit.experiments import run_study
    >>> records = run_study("entropy_facts", "smoke", store="store", progress=False)
    >>> again = run_study("entropy_facts", "smoke", store="store", progress=False)
    >>> records == again  # what is finished is read, not run again
    True
    """
    study = study if isinstance(study, Study) else study_named(study)
    words = arguments.names("rerun", rerun, RERUN, at_least=0)
    run_all = engine_named(engine)
    if allotment is not None:
        arguments.instance("allotment", allotment, Allotment)
    require_profile(profile)
    progress, device = arguments.flag("progress", progress), arguments.device("device", device)
    if device.type == "meta":
        raise ValueError("device='meta' holds no numbers: pass 'cpu' or 'cuda'.")
    session = Session(Archive(store), profile, device, progress, tuple(words))
    grid = require_runs(study, profile)
    for configuration in grid:
        session.tidy(study.name, key_of(study.name, configuration))
    done = {key_of(study.name, c): session.finished(study, c) for c in grid}
    pending = [c for c in grid if done[key_of(study.name, c)] is None]
    given = allotment or Allotment()
    finishing = run_all(Errand.of(session, study), pending, given) if pending else iter(())
    shown = progress and bool(pending)
    bar = tqdm(
        total=len(grid),
        initial=len(grid) - len(pending),
        desc=study.name,
        unit="run",
        bar_format=BAR,
        disable=not shown,
    )
    with bar:
        outlook = Outlook(session, study, pending, given.jobs) if shown else None
        if outlook is not None:
            bar.set_postfix_str(str(outlook))
        for record in finishing:
            done[record.key] = record
            if outlook is not None:
                outlook.finished(record)
                bar.set_postfix_str(str(outlook), refresh=False)
            bar.update()
    return [record for record in done.values() if record is not None]
