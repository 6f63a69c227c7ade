"""Running a study: what is finished is skipped, what a run needs is run first."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm
from typing_extensions import override

from paperkit import arguments, atomic
from paperkit.experiments import provenance, studies
from paperkit.experiments.archive import Archive, digest_of
from paperkit.experiments.engines import engine_named
from paperkit.experiments.records import Configuration, Record, key_of, plain_metrics
from paperkit.experiments.study import (
    RunContext,
    Study,
    configurations,
    require_profile,
    study_named,
    study_names,
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
    name : str
        Shared by the processes that serve one call; what it has run is not run again.
    """

    archive: Archive
    profile: str
    device: torch.device
    progress: bool = False
    rerun: Sequence[str] = ()
    inputs: Session | None = None
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

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
        self.put_away(study.name, found.key)
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
        checkpoint = self.archive.working.unfinished_checkpoint(study.name, key)
        self.put_away(study.name, key)
        resumed = self._prepare(checkpoint, code)
        given: dict[str, Record] = {}
        provenance.reset_peak_memory(self.device)
        watch = provenance.Stopwatch()
        context = _RunContext(
            self.device,
            self.archive.working.folder,
            checkpoint,
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
                "checkpoint": digest_of(checkpoint),
                "session": self.name,
            },
        )
        self.archive.working.add([record])
        self.put_away(study.name, key)
        for path in (self.archive.working.path(study.name, key), checkpoint):
            atomic.forget_partial(path)
            atomic.forget_partial(path.with_suffix(".json"))
        return record

    def _finished(self, study: Study, configuration: Configuration) -> list[Record]:
        """Return the records for which a run counts as finished, the best first."""
        key = key_of(study.name, configuration)
        own = self.archive.working.record(study.name, key)
        if own is not None and own.provenance.get("session") == self.name:
            return [own]
        candidates = self.archive.candidates(study.name, key, self.profile)
        return [record for record in candidates if not self._runs_again(study, record)]

    def _runs_again(self, study: Study, record: Record) -> bool:
        if "dirty" in self.rerun and not record.clean:
            return True
        return "stale" in self.rerun and self.archive.is_stale(study, record)

    def _lock(self, study: Study, configuration: Configuration) -> FileLock:
        return self.archive.working.lock(study.name, key_of(study.name, configuration))

    def _prepare(self, checkpoint: Path, code: str) -> bool:
        """Make room for a run's checkpoint; say whether one is there to resume from."""
        note = checkpoint.with_suffix(".json")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        begun = json.dumps({"fingerprint": code, "dirty": self.tree.dirty}) + "\n"
        # A run begun by other code begins anew; so does one begun by uncommitted code when this
        # one is committed.
        if not note.is_file() or note.read_bytes() != begun.encode():
            checkpoint.unlink(missing_ok=True)
            atomic.write_text(note, begun)
        return checkpoint.is_file()

    def put_away(self, study: str, key: str) -> None:
        """Move the checkpoint of a finished run to its place, also that of one killed before that.

        The record comes first and names its checkpoint by its digest, so that one is found for the
        other wherever it is, and the checkpoint of an older run is never taken for this one's.
        """
        working = self.archive.working
        checkpoint = working.unfinished_checkpoint(study, key)
        note = checkpoint.with_suffix(".json")
        record = working.record(study, key) if note.is_file() else None
        if record is None or "checkpoint" not in record.provenance:
            return
        if checkpoint.is_file() and digest_of(checkpoint) != record.provenance["checkpoint"]:
            return  # a later run is under way
        place = working.checkpoint(study, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        # Another process may be doing the same; a run without a checkpoint has none to move.
        with suppress(FileNotFoundError):
            os.replace(checkpoint, place)
        note.unlink(missing_ok=True)


def run_study(
    study: Study | str,
    profile: str,
    store: str | Path | None = None,
    engine: str = "in-process",
    progress: bool = True,
    *,
    jobs: int | None = None,
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
    engine : {"in-process", "processes"}
        This process, which runs one configuration after another, or several processes of this
        machine, which share its cores; the records are the same.
    progress : bool
        Show a progress bar on standard error while something is run.
    jobs : int, optional
        Number of processes; by default one a core.
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
    if jobs is not None:
        jobs = arguments.integer("jobs", jobs, at_least=1)
    require_profile(profile)
    progress, device = arguments.flag("progress", progress), arguments.device("device", device)
    if device.type == "meta":
        raise ValueError("device='meta' holds no numbers: pass 'cpu' or 'cuda'.")
    session = Session(Archive(store), profile, device, progress, tuple(words))
    grid = configurations(study, profile)
    for configuration in grid:
        session.put_away(study.name, key_of(study.name, configuration))
    done = {key_of(study.name, c): session.finished(study, c) for c in grid}
    pending = [c for c in grid if done[key_of(study.name, c)] is None]
    finishing = run_all(_Errand.of(session, study), pending, jobs) if pending else iter(())
    bar = tqdm(
        total=len(grid),
        initial=len(grid) - len(pending),
        desc=study.name,
        unit="run",
        disable=not (progress and pending),
    )
    with bar:
        for record in finishing:
            done[record.key] = record
            bar.update()
    return [record for record in done.values() if record is not None]


@dataclass(frozen=True)
class _Errand:
    """A function from a configuration to its record, for an engine: plain, so that it travels."""

    study: str | Study
    code: str
    store: Path
    profile: str
    device: torch.device
    progress: bool
    rerun: tuple[str, ...]
    name: str
    tree: provenance.TreeState

    @classmethod
    def of(cls, session: Session, study: Study) -> _Errand:
        """Return the errand of a session; a study that can be imported travels as its name."""
        is_named = study.name in study_names() and study_named(study.name) is study
        return cls(
            study.name if is_named else study,
            session.archive.code(study),
            session.archive.working.folder,
            session.profile,
            session.device,
            session.progress,
            tuple(session.rerun),
            session.name,
            session.tree,
        )

    def __call__(self, configuration: Configuration) -> Record:
        session, study = _session_of(self)
        return session.record(study, configuration)

    def __reduce__(self) -> str | tuple[Any, ...]:
        if isinstance(self.study, Study):
            raise ValueError(
                f"study {self.study.name!r} cannot be imported by another process: put it into a "
                f"module of {studies.__name__}, or take engine='in-process'."
            )
        return type(self), tuple(getattr(self, f.name) for f in fields(self))


@lru_cache(maxsize=1)
def _session_of(errand: _Errand) -> tuple[Session, Study]:
    """Return the session that serves an errand in this process, and the study."""
    study = errand.study if isinstance(errand.study, Study) else study_named(errand.study)
    session = Session(
        Archive(errand.store),
        errand.profile,
        errand.device,
        errand.progress,
        errand.rerun,
        name=errand.name,
    )
    session.tree = errand.tree
    if session.archive.code(study) != errand.code:
        raise RuntimeError(
            f"the code of study {study.name!r} was changed while it ran: start it again."
        )
    return session, study


def _any_dirty(dirty: bool | None, given: dict[str, Record]) -> bool | None:
    """Return whether the run or one that it was given is dirty; None if that is unknown."""
    states = [dirty, *(record.provenance.get("dirty") for record in given.values())]
    if any(states):
        return True
    return None if None in states else False
