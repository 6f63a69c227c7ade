"""A session: what serves the runs of one call of `run_study`, in one process."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from typing_extensions import override

from paperkit import atomic
from paperkit.experiments import provenance
from paperkit.experiments.archive import Archive, digest_of
from paperkit.experiments.records import Configuration, Record, key_of, plain_metrics
from paperkit.experiments.study import RunContext, Study, study_named


@dataclass(frozen=True)
class _RunContext(RunContext):
    """The context of a run in a session, which notes the records that the run was given."""

    store: Path
    checkpoint: Path
    progress: bool
    _device: torch.device
    _study: Study = field(repr=False)
    _inputs: Session = field(repr=False)
    _watch: provenance.Stopwatch = field(repr=False)
    _given: dict[str, Record] = field(repr=False)
    _asked: list[torch.device] = field(repr=False, default_factory=list)

    @property
    @override
    def device(self) -> torch.device:  # type: ignore[override]
        self._asked.append(self._device)
        return self._device

    @property
    def computed_on(self) -> torch.device:
        """Device where the run computed, which is the CPU if it never asked for one."""
        return self._asked[0] if self._asked else torch.device("cpu")

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
        self.tidy(study.name, found.key)
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
        resumed = self.prepare(checkpoint, code)
        given: dict[str, Record] = {}
        provenance.reset_peak_memory(self.device)
        watch = provenance.Stopwatch()
        context = _RunContext(
            self.archive.working.folder,
            checkpoint,
            self.progress,
            self.device,
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
                **provenance.describe(self.tree, context.computed_on),
                "dirty": _any_dirty(self.tree.dirty, given),
                "seconds": round(watch.seconds, 3),
                "peak_memory": provenance.peak_memory(context.computed_on),
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

    def prepare(self, checkpoint: Path, code: str) -> bool:
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

    def tidy(self, study: str, key: str) -> None:
        """Put away what a run left that was killed once its record was written.

        A run that another process is at is left to it.
        """
        working = self.archive.working
        if working.unfinished_checkpoint(study, key).with_suffix(".json").is_file():
            with suppress(Timeout), working.lock(study, key).acquire(timeout=0):
                self.put_away(study, key)

    def put_away(self, study: str, key: str) -> None:
        """Move the checkpoint of a finished run to its place; the caller holds its lock.

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
        # A run without a checkpoint has none to move.
        with suppress(FileNotFoundError):
            os.replace(checkpoint, place)
        note.unlink(missing_ok=True)


def _any_dirty(dirty: bool | None, given: dict[str, Record]) -> bool | None:
    """Return whether the run or one that it was given is dirty; None if that is unknown."""
    states = [dirty, *(record.provenance.get("dirty") for record in given.values())]
    if any(states):
        return True
    return None if None in states else False
