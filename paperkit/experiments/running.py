"""Running a study: what is finished is skipped, what a run needs is run first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock
from tqdm import tqdm
from typing_extensions import override

from paperkit import arguments, atomic
from paperkit.experiments import provenance
from paperkit.experiments.archive import Archive
from paperkit.experiments.engines import engine_named
from paperkit.experiments.records import Configuration, Record, key_of, plain_metrics
from paperkit.experiments.study import (
    RunContext,
    Study,
    configurations,
    require_profile,
    study_named,
)

RERUN = ("stale", "dirty")


@dataclass(frozen=True)
class _RunContext(RunContext):
    """The context of a run in a session, which notes the records that the run was given."""

    device: torch.device
    store: Path
    checkpoint: Path
    progress: bool
    _study: Study = field(repr=False)
    _inputs: Session = field(repr=False)
    _watch: provenance.Stopwatch = field(repr=False)
    _given: dict[str, Record] = field(repr=False)

    @override
    def record_of(self, study: str, configuration: Configuration) -> Record:
        session = self._needed(study)
        with self._watch.paused():
            record = session.record(study_named(study), configuration)
        return self._accept(record)

    @override
    def checkpoint_of(self, study: str, configuration: Configuration) -> Path:
        session = self._needed(study)
        with self._watch.paused():
            record, path = session.checkpoint(study_named(study), configuration)
        self._accept(record)
        return path

    def _needed(self, study: str) -> Session:
        if study not in self._study.needs:
            raise ValueError(
                f"study {self._study.name!r} asks for study {study!r}; "
                f"add it to needs=({study!r},) of the asking study."
            )
        return self._inputs

    def _accept(self, record: Record) -> Record:
        # A fresh record must not rest on an outcome of older code.
        if self._inputs.archive.is_stale(study_named(record.study), record):
            raise ValueError(
                f"study {self._study.name!r} needs a record of study {record.study!r} that is "
                f"stale: run `paperkit audit {record.study}`, or run again with --rerun stale."
            )
        self._given[record.key] = record
        return record


@dataclass
class Session:
    """One call of `run_study`: an archive, a profile, a device and the state of the code.

    Attributes
    ----------
    archive : Archive
        Where records and checkpoints are looked for; new ones go to its working store.
    profile : str
    device : torch.device
    progress : bool
    rerun : sequence of {"stale", "dirty"}
        Which finished runs count as not finished.
    inputs : Session, optional
        The session that serves the runs that a run needs; by default this one.
    """

    archive: Archive
    profile: str
    device: torch.device
    progress: bool = False
    rerun: Sequence[str] = ()
    inputs: Session | None = None
    _performed: set[str] = field(default_factory=set, init=False)

    @cached_property
    def tree(self) -> provenance.TreeState:
        """State of the code when the session began to run; it is imported by then."""
        return provenance.tree_state()

    def finished(self, study: Study, configuration: Configuration) -> Record | None:
        """Return the record of a run, or None if it must be run."""
        return next(iter(self._finished(study, configuration)), None)

    def finished_checkpoint(
        self, study: Study, configuration: Configuration
    ) -> tuple[Record, Path] | None:
        """Return the best record of a run whose checkpoint was kept, or None if it must be run."""
        for record in self._finished(study, configuration):
            path = self.archive.checkpoint_of(record)
            if path is not None:
                return record, path
        return None

    def record(self, study: Study, configuration: Configuration) -> Record:
        """Return the record of a run; run it if it is not finished.

        A process that is at the same run in the same store is waited for.
        """
        found = self.finished(study, configuration)
        if found is None:
            with self._lock(study, configuration):
                found = self.finished(study, configuration) or self.perform(study, configuration)
        return found

    def checkpoint(self, study: Study, configuration: Configuration) -> tuple[Record, Path]:
        """Return a run's record and its checkpoint; run it if there is none. See `record`.

        Raises
        ------
        FileNotFoundError
            If the run writes no checkpoint.
        """
        found = self.finished_checkpoint(study, configuration)
        if found is None:
            with self._lock(study, configuration):
                found = self.finished_checkpoint(study, configuration)
                if found is None:
                    self.perform(study, configuration)
                    found = self.finished_checkpoint(study, configuration)
        if found is None:
            raise FileNotFoundError(
                f"study {study.name!r} wrote no checkpoint for {configuration}; "
                "its run must save one to context.checkpoint."
            )
        return found

    def perform(self, study: Study, configuration: Configuration) -> Record:
        """Run one configuration and write its record, last."""
        key = key_of(study.name, configuration)
        code = self.archive.code(study)
        resumed = self._prepare_checkpoint(study, key, code)
        given: dict[str, Record] = {}
        provenance.reset_peak_memory(self.device)
        watch = provenance.Stopwatch()
        context = _RunContext(
            self.device,
            self.archive.working.folder,
            self.archive.working.checkpoint(study.name, key),
            self.progress,
            study,
            self.inputs or self,
            watch,
            given,
        )
        devices = [self.device] if self.device.type == "cuda" else []
        # A study that forgets to seed must not depend on what ran before it.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(configuration["seed"])
            metrics = plain_metrics(study.run(dict(configuration), context), study.name)
        record = Record(
            study.name,
            self.profile,
            configuration,
            metrics,
            {
                **provenance.describe(self.tree, self.device),
                "dirty": _any_dirty(self.tree.dirty, given),
                "seconds": round(watch.seconds, 3),
                "peak_memory": provenance.peak_memory(self.device),
                "date": provenance.now(),
                "fingerprint": code,
                "inputs": {other.key: other.study for other in given.values()},
                "resumed": resumed,
            },
        )
        self.archive.working.add([record])
        self._performed.add(key)
        return record

    def _finished(self, study: Study, configuration: Configuration) -> list[Record]:
        """Return the records for which a run counts as finished, the best first."""
        key = key_of(study.name, configuration)
        if key in self._performed:
            record = self.archive.working.record(study.name, key)
            return [] if record is None else [record]
        candidates = self.archive.candidates(study.name, key, self.profile)
        return [record for record in candidates if not self._runs_again(study, record)]

    def _runs_again(self, study: Study, record: Record) -> bool:
        if "dirty" in self.rerun and not record.clean:
            return True
        return "stale" in self.rerun and self.archive.is_stale(study, record)

    def _lock(self, study: Study, configuration: Configuration) -> FileLock:
        return self.archive.working.lock(study.name, key_of(study.name, configuration))

    def _prepare_checkpoint(self, study: Study, key: str, code: str) -> bool:
        """Make room for a run's checkpoint; say whether one is there to resume from."""
        path = self.archive.working.checkpoint(study.name, key)
        note = path.with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = {"fingerprint": code, "dirty": self.tree.dirty}
        # A finished run that runs again begins anew; so does one begun by other code, or by
        # uncommitted code when this one is committed.
        again = self.archive.working.path(study.name, key)
        same = note.is_file() and json.loads(note.read_text(encoding="utf-8")) == begun
        if again.is_file() or not same:
            again.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            atomic.write_text(note, json.dumps(begun) + "\n")
        return path.is_file()


def run_study(
    study: Study | str,
    profile: str,
    store: str | Path | None = None,
    engine: str = "in-process",
    progress: bool = True,
    *,
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
    engine : {"in-process"}
    progress : bool
        Show a progress bar on standard error while something is run.
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
        If the study, profile, engine or a word in ``rerun`` is unknown.

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
    require_profile(profile)
    progress, device = arguments.flag("progress", progress), arguments.device("device", device)
    session = Session(Archive(store), profile, device, progress, tuple(words))
    grid = configurations(study, profile)
    done = {key_of(study.name, c): session.finished(study, c) for c in grid}
    pending = [c for c in grid if done[key_of(study.name, c)] is None]
    bar = tqdm(
        total=len(grid),
        initial=len(grid) - len(pending),
        desc=study.name,
        unit="run",
        disable=not (progress and pending),
    )
    with bar:
        for record in run_all(lambda c: session.record(study, c), pending):
            done[record.key] = record
            bar.update()
    return [record for record in done.values() if record is not None]


def _any_dirty(dirty: bool | None, given: dict[str, Record]) -> bool | None:
    """Return whether the run or one that it was given is dirty; None if that is unknown."""
    states = [dirty, *(record.provenance.get("dirty") for record in given.values())]
    if any(states):
        return True
    return None if None in states else False
