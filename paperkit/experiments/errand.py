"""An errand: what an engine carries to whoever performs a study's runs.

It is plain, so that it travels to other processes and machines. In this machine's processes an
errand is called with a configuration, and the run's record is written to the store. On another
machine the run has a store of its own, and what it made is delivered, so that one process writes
all records; what a run needs of other studies is offered to it, or asked for by `NeedError`.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from filelock import FileLock
from typing_extensions import override

from paperkit import atomic
from paperkit.experiments import provenance, studies
from paperkit.experiments.archive import Archive
from paperkit.experiments.records import Configuration, Record
from paperkit.experiments.session import Session
from paperkit.experiments.study import Study, study_named, study_names

_FOLDER = "paperkit-run-"


@dataclass(frozen=True)
class Delivery:
    """A finished run with the content of its checkpoint, None if it kept none."""

    record: Record
    checkpoint: bytes | None


class NeedError(Exception):
    """A run that cannot go on before another study's run is offered to it.

    Attributes
    ----------
    study : str
    configuration : dict
    with_checkpoint : bool
        Whether the record alone is not enough.
    """

    def __init__(self, study: str, configuration: Configuration, with_checkpoint: bool) -> None:
        super().__init__(study, configuration, with_checkpoint)
        self.study, self.configuration = study, configuration
        self.with_checkpoint = with_checkpoint


class _Offered(Session):
    """A session that runs nothing that a run needs, and asks for it."""

    @override
    def record(self, study: Study, configuration: Configuration) -> Record:
        found = self.finished(study, configuration)
        return found or _ask(study, configuration, with_checkpoint=False)

    @override
    def checkpoint(self, study: Study, configuration: Configuration) -> tuple[Record, Path]:
        found = self.finished_checkpoint(study, configuration)
        return found or _ask(study, configuration, with_checkpoint=True)


def _ask(study: Study, configuration: Configuration, *, with_checkpoint: bool) -> NoReturn:
    raise NeedError(study.name, configuration, with_checkpoint)


@dataclass(frozen=True)
class Errand:
    """The runs of a study at the state of the code in which a session began."""

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
    def of(cls, session: Session, study: Study) -> Errand:
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
        """Return the record of a run; run it, if it is not finished, into the store."""
        session, study = self.session()
        return session.record(study, configuration)

    def session(self) -> tuple[Session, Study]:
        """Return the session that serves this errand in this process, and the study."""
        return _session_of(self)

    def elsewhere(
        self, study: str, configuration: Configuration, offered: Iterable[Delivery]
    ) -> Delivery:
        """Run a configuration of a study in a store of its own.

        Parameters
        ----------
        study : str
            The errand's study, or one that its runs need.
        configuration : dict
        offered : iterable of Delivery
            Runs of other studies that this one needs.

        Raises
        ------
        NeedError
            If it needs what is not offered.
        """
        with _folder_of_a_run() as folder:
            shared, _ = self.session()
            session = replace(shared, archive=shared.archive.with_store(folder))
            session.inputs = _Offered(
                session.archive, self.profile, self.device, rerun=self.rerun, name=self.name
            )
            session.tree = self.tree
            for delivery in offered:
                receive(session, delivery)
            record = session.perform(study_named(study), configuration)
            path = session.archive.working.checkpoint_of(record)
            return Delivery(record, None if path is None else path.read_bytes())

    def __reduce__(self) -> str | tuple[Any, ...]:
        if isinstance(self.study, Study):
            raise ValueError(
                f"study {self.study.name!r} cannot be imported by another process: put it into a "
                f"module of {studies.__name__}, or take engine='in-process'."
            )
        return type(self), tuple(getattr(self, f.name) for f in fields(self))


@contextmanager
def _folder_of_a_run() -> Iterator[Path]:
    """Make a folder for a run, and remove those that killed runs have left on this machine.

    A file beside the folder is locked while the run lives, so that a lock that is free belongs to
    none.
    """
    machine = Path(tempfile.gettempdir())
    for left in machine.glob(f"{_FOLDER}*.lock"):
        # Another user's cannot be opened; another process may be removing it, too.
        with suppress(OSError), FileLock(left, timeout=0):
            shutil.rmtree(left.with_suffix(""), ignore_errors=True)
            left.unlink(missing_ok=True)
    folder = machine / f"{_FOLDER}{uuid.uuid4().hex}"
    lock = folder.with_suffix(".lock")
    with FileLock(lock):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _session_of(errand: Errand) -> tuple[Session, Study]:
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


def receive(session: Session, delivery: Delivery) -> None:
    """Put a delivered run into a session's store; the caller holds its lock."""
    record, working = delivery.record, session.archive.working
    if delivery.checkpoint is not None:
        checkpoint = working.unfinished_checkpoint(record.study, record.key)
        session.prepare(checkpoint, record.fingerprint)
        with atomic.replacing(checkpoint) as file:
            file.write(delivery.checkpoint)
    working.add([record])
    session.put_away(record.study, record.key)
