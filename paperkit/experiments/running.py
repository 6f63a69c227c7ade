"""Running a study: what is finished is skipped, what a run needs is run first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from tqdm import tqdm
from typing_extensions import override

from paperkit import arguments
from paperkit.experiments import provenance
from paperkit.experiments.engines import engine_named
from paperkit.experiments.fingerprint import fingerprint
from paperkit.experiments.paths import store_folder
from paperkit.experiments.published import (
    preferred,
    published_checkpoint_path,
    read_published,
)
from paperkit.experiments.records import Record, key_of, plain_metrics
from paperkit.experiments.store import (
    checkpoint_path,
    read_record,
    record_path,
    write_atomically,
    write_record,
)
from paperkit.experiments.study import (
    Configuration,
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
        record = self._needed(study).finished(study_named(study), configuration)
        if record is None:
            record = self._run_first(study, configuration)
        return self._accept(record)

    @override
    def checkpoint_of(self, study: str, configuration: Configuration) -> Path:
        session = self._needed(study)
        found = session.finished_checkpoint(study_named(study), configuration)
        if found is None:
            record = self._run_first(study, configuration)
            path = checkpoint_path(session.store, study, record.key)
            if not path.is_file():
                raise FileNotFoundError(
                    f"study {study!r} wrote no checkpoint for {configuration}; "
                    "its run must save one to context.checkpoint."
                )
        else:
            record, path = found
        self._accept(record)
        return path

    def _needed(self, study: str) -> Session:
        if study not in self._study.needs:
            raise ValueError(
                f"study {self._study.name!r} asks for study {study!r}; "
                f"add it to needs=({study!r},) of the asking study."
            )
        return self._inputs

    def _run_first(self, study: str, configuration: Configuration) -> Record:
        with self._watch.paused():
            return self._inputs.perform(study_named(study), configuration)

    def _accept(self, record: Record) -> Record:
        # A fresh record must not rest on an outcome of older code.
        if record.fingerprint != self._inputs.code(study_named(record.study)):
            raise ValueError(
                f"study {self._study.name!r} needs a record of study {record.study!r} that is "
                f"stale: run `paperkit audit {record.study}`, or run again with --rerun stale."
            )
        self._given[record.key] = record
        return record


@dataclass
class Session:
    """One call of `run_study`: a store, a profile, a device and the state of the code.

    Attributes
    ----------
    store : Path
        Where records and checkpoints are written.
    profile : str
    device : torch.device
    progress : bool
    rerun : sequence of {"stale", "dirty"}
        Which finished runs count as not finished.
    inputs : Session, optional
        The session that serves the runs that a run needs; by default this one.
    """

    store: Path
    profile: str
    device: torch.device
    progress: bool = False
    rerun: Sequence[str] = ()
    inputs: Session | None = None
    _performed: set[str] = field(default_factory=set, init=False)
    _published: dict[str, dict[str, Record]] = field(default_factory=dict, init=False)
    _codes: dict[str, str] = field(default_factory=dict, init=False)

    @cached_property
    def tree(self) -> provenance.TreeState:
        """State of the code when the session began to run; it is imported by then."""
        return provenance.tree_state()

    def code(self, study: Study) -> str:
        """Return the fingerprint of the study's code when this session first asked for it."""
        if study.name not in self._codes:
            self._codes[study.name] = fingerprint(study)
        return self._codes[study.name]

    def finished(self, study: Study, configuration: Configuration) -> Record | None:
        """Return the record of a run, or None if it must be run."""
        key = key_of(study.name, configuration)
        candidates = (self._published_record(study, key), self._own_record(study, key))
        return preferred(record for record in candidates if record is not None).get(key)

    def finished_checkpoint(
        self, study: Study, configuration: Configuration
    ) -> tuple[Record, Path] | None:
        """Return a run's record and its checkpoint, or None if the run must be run."""
        key = key_of(study.name, configuration)
        published = self._published_record(study, key)
        own = self._own_record(study, key)
        path = checkpoint_path(self.store, study.name, key)
        # A checkpoint beside no record may be that of a run killed halfway.
        if own is not None and path.is_file():
            # The published copy of the same run may have been renewed by an audit.
            if published is not None and _date(published) == _date(own):
                return published, path
            return own, path
        path = published_checkpoint_path(study.name, key)
        return (published, path) if published is not None and path.is_file() else None

    def perform(self, study: Study, configuration: Configuration) -> Record:
        """Run one configuration and write its record, last."""
        key = key_of(study.name, configuration)
        code = self.code(study)
        resumed = self._prepare_checkpoint(study, key, code)
        given: dict[str, Record] = {}
        provenance.reset_peak_memory(self.device)
        watch = provenance.Stopwatch()
        context = _RunContext(
            self.device,
            self.store,
            checkpoint_path(self.store, study.name, key),
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
        write_record(self.store, record)
        self._performed.add(key)
        return record

    def _own_record(self, study: Study, key: str) -> Record | None:
        record = read_record(self.store, study.name, key)
        return record if record is not None and self._counts(study, record) else None

    def _published_record(self, study: Study, key: str) -> Record | None:
        # A smoke run exercises every live path, so nothing is finished before it begins.
        if self.profile == "smoke" or key in self._performed:
            return None
        if study.name not in self._published:
            self._published[study.name] = {r.key: r for r in read_published(study.name)}
        record = self._published[study.name].get(key)
        return record if record is not None and self._counts(study, record) else None

    def _counts(self, study: Study, record: Record) -> bool:
        if record.key in self._performed:
            return True
        if record.profile == "smoke" and self.profile != "smoke":
            return False
        if "dirty" in self.rerun and not record.clean:
            return False
        return "stale" not in self.rerun or record.fingerprint == self.code(study)

    def _prepare_checkpoint(self, study: Study, key: str, code: str) -> bool:
        """Make room for a run's checkpoint; say whether one is there to resume from."""
        path = checkpoint_path(self.store, study.name, key)
        note = path.with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = {"fingerprint": code, "dirty": self.tree.dirty}
        # A finished run that runs again begins anew; so does one begun by other code, or by
        # uncommitted code when this one is committed.
        again = record_path(self.store, study.name, key)
        same = note.is_file() and json.loads(note.read_text(encoding="utf-8")) == begun
        if again.is_file() or not same:
            again.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            write_atomically(note, json.dumps(begun) + "\n")
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
    """
    study = study if isinstance(study, Study) else study_named(study)
    words = arguments.names("rerun", rerun, RERUN, at_least=0)
    run_all = engine_named(engine)
    require_profile(profile)
    progress, device = arguments.flag("progress", progress), arguments.device("device", device)
    session = Session(store_folder(store), profile, device, progress, tuple(words))
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
        for record in run_all(lambda c: session.perform(study, c), pending):
            done[record.key] = record
            bar.update()
    return [record for record in done.values() if record is not None]


def _any_dirty(dirty: bool | None, given: dict[str, Record]) -> bool | None:
    """Return whether the run or one that it was given is dirty; None if that is unknown."""
    states = [dirty, *(record.provenance.get("dirty") for record in given.values())]
    if any(states):
        return True
    return None if None in states else False


def _date(record: Record) -> str:
    return str(record.provenance["date"])
