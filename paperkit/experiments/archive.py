"""The archive of finished runs: one interface to two shelves.

The working store has a file for each record, because runs finish at any time and in several
processes. The published results have one file of sorted lines for each study, because a commit
should show which records are new. Both keep a run's checkpoint under the same name.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from paperkit import arguments, atomic
from paperkit.experiments.fingerprint import fingerprint
from paperkit.experiments.paths import locks_folder, results_folder, store_folder
from paperkit.experiments.records import Record, from_json, key_of, read_text, to_json
from paperkit.experiments.study import (
    Study,
    configurations,
    require_profile,
    study_named,
    study_names,
)


class Shelf(ABC):
    """A place that keeps records and checkpoints.

    Parameters
    ----------
    folder : Path
        Where its files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def record(self, study: str, key: str) -> Record | None:
        """Read one record; None if there is none."""

    @abstractmethod
    def records(self, study: str) -> list[Record]:
        """Read every record of a study, sorted by key.

        Raises
        ------
        ValueError
            If a file is damaged; the sentence names it.
        """

    @abstractmethod
    def add(self, records: Iterable[Record]) -> None:
        """Write records, each in the place of an older one with its key.

        A reader finds each record whole, in its old or its new state.
        """

    def checkpoint(self, study: str, key: str) -> Path:
        """Return the file of a run's checkpoint, which need not exist."""
        return self.folder / "checkpoints" / study / f"{key}.pt"

    def checkpoint_of(self, record: Record) -> Path | None:
        """Return the checkpoint of the very run that made a record; None if it is not here."""
        path = self.checkpoint(record.study, record.key)
        digest = record.provenance.get("checkpoint")
        if digest is not None:
            return path if digest_of(path) == digest else None
        # Records of before digests name none. An audit renews a record and keeps its date.
        own = self.record(record.study, record.key)
        is_own = own is not None and own.provenance["date"] == record.provenance["date"]
        return path if is_own and path.is_file() else None


class WorkingStore(Shelf):
    """The records of the runs of this machine, ``<store>/records/<study>/<key>.json``."""

    def path(self, study: str, key: str) -> Path:
        """Return the file of a record, which need not exist."""
        return self.folder / "records" / study / f"{key}.json"

    def record(self, study: str, key: str) -> Record | None:  # noqa: D102
        path = self.path(study, key)
        try:
            text = read_text(path)
        except FileNotFoundError:
            return None
        record = from_json(text, str(path))
        if (record.study, record.key) != (study, key):
            raise ValueError(
                f"{path} holds the record {record.key} of study {record.study!r}: move it to "
                f"{self.path(record.study, record.key)}."
            )
        return record

    def records(self, study: str) -> list[Record]:  # noqa: D102
        keys = sorted(path.stem for path in (self.folder / "records" / study).glob("*.json"))
        found = (self.record(study, key) for key in keys)
        return [record for record in found if record is not None]

    def add(self, records: Iterable[Record]) -> None:  # noqa: D102
        for record in records:
            atomic.write_text(self.path(record.study, record.key), to_json(record) + "\n")

    def unfinished_checkpoint(self, study: str, key: str) -> Path:
        """Return the file of the checkpoint of a run that is not finished, or not yet put away."""
        return self.folder / "unfinished" / study / f"{key}.pt"

    def checkpoint_of(self, record: Record) -> Path | None:  # noqa: D102
        unfinished = self.unfinished_checkpoint(record.study, record.key)
        digest = record.provenance.get("checkpoint")
        if digest is not None and digest_of(unfinished) == digest:
            return unfinished
        return super().checkpoint_of(record)

    def lock(self, study: str, key: str) -> FileLock:
        """Return the lock that a process holds while it is at a run; ``with`` waits for it."""
        return FileLock(self.folder / "locks" / study / f"{key}.lock")


class PublishedResults(Shelf):
    """The committed records, ``results/<study>.jsonl``: one line a record, sorted by key.

    A study's file is read once and remembered, so that whoever holds this object judges all along
    by one state of it.

    Parameters
    ----------
    folder : Path
    is_current : callable
        Says of a record whether the present code made it.
    """

    def __init__(self, folder: Path, is_current: Callable[[Record], bool]) -> None:
        super().__init__(folder)
        self._is_current = is_current
        self._known: dict[str, dict[str, Record]] = {}

    def path(self, study: str) -> Path:
        """Return the file of a study's records, which need not exist."""
        return self.folder / f"{study}.jsonl"

    def studies(self) -> list[str]:
        """Return the names of the studies that have published records, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.jsonl"))

    def record(self, study: str, key: str) -> Record | None:  # noqa: D102
        return self._by_key(study).get(key)

    def records(self, study: str) -> list[Record]:  # noqa: D102
        return list(self._by_key(study).values())

    def add(self, records: Iterable[Record]) -> None:  # noqa: D102
        by_study: dict[str, list[Record]] = {}
        for record in records:
            by_study.setdefault(record.study, []).append(record)
        for study, new in by_study.items():
            with self.lock(study):
                self.forget(study)
                merged = self._by_key(study) | {record.key: record for record in new}
                lines = [to_json(record) + "\n" for _, record in sorted(merged.items())]
                atomic.write_text(self.path(study), "".join(lines))
                self.forget(study)

    def lock(self, study: str) -> FileLock:
        """Return the lock that a process holds while it changes a study's file."""
        # Reentrant, so that `add` can be called by who already holds it.
        return FileLock(locks_folder() / f"{study}.lock", is_singleton=True)

    def forget(self, study: str) -> None:
        """Let the next question read the study's file again."""
        self._known.pop(study, None)

    def _by_key(self, study: str) -> dict[str, Record]:
        if study not in self._known:
            kept = preferred(self._read(study), self._is_current)
            self._known[study] = dict(sorted(kept.items()))
        return self._known[study]

    def _read(self, study: str) -> list[Record]:
        path = self.path(study)
        if not path.is_file():
            return []
        # A string may hold other characters at which `splitlines` would cut.
        text = read_text(path).removesuffix("\n")
        lines = text.split("\n") if text else []
        records = [from_json(line, f"{path}:{i}") for i, line in enumerate(lines, start=1)]
        for record in records:
            if record.study != study:
                raise ValueError(
                    f"{record.location} is a record of study {record.study!r}, not of {study!r}."
                )
        return records


def preferred(records: Iterable[Record], is_current: Callable[[Record], bool]) -> dict[str, Record]:
    """Keep the best record of each key, as `best_first` ranks them."""
    by_key: dict[str, list[Record]] = {}
    for record in records:
        by_key.setdefault(record.key, []).append(record)
    return {key: best_first(own, is_current)[0] for key, own in by_key.items()}


def best_first(records: Sequence[Record], is_current: Callable[[Record], bool]) -> list[Record]:
    """Return records of one run, the best first.

    A record of the laptop or paper profile is better than a smoke run's, then a clean one than a
    dirty one, then one by the present code than a stale one, then a later one than an earlier one,
    because clocks go wrong and code does not; of two alike the first stays the first.
    """
    if len(records) < 2:
        return list(records)

    def rank(record: Record) -> tuple[bool, bool, bool, str]:
        date = str(record.provenance["date"])
        return record.profile != "smoke", record.clean, is_current(record), date

    return sorted(records, key=rank, reverse=True)


@dataclass(frozen=True)
class Publication:
    """The outcome of publishing: the file, its records, and how many are new or replaced."""

    path: Path
    total: int
    changed: int


class Archive:
    """Both shelves, read as one.

    Parameters
    ----------
    store : path, optional
        The working store; by default ``_build/store`` in the repository.

    Attributes
    ----------
    working : WorkingStore
    published : PublishedResults
    """

    def __init__(self, store: str | Path | None = None) -> None:
        self.working = WorkingStore(store_folder(store))
        self.published = PublishedResults(results_folder(), self._is_current)
        self._codes: dict[str, str] = {}

    def with_store(self, folder: Path) -> Archive:
        """Return this archive with another working store; published results and code are shared."""
        other = copy.copy(self)
        other.working = WorkingStore(folder)
        return other

    def candidates(self, study: str, key: str, profile: str) -> list[Record]:
        """Return the records of one run that count at a profile, the best first.

        A record made at the smoke profile counts for that profile alone, and published records,
        which none of a smoke run's results may come from, do not count for it. See `best_first`;
        of two alike the published one comes first.
        """
        found = (shelf.record(study, key) for shelf in self._shelves(profile))
        counting = [record for record in found if record is not None and _counts(record, profile)]
        return best_first(counting, self._is_current)

    def records(self, study: str, profile: str | None = None) -> list[Record]:
        """Return the best record of every finished run of a study; see `candidates`.

        Parameters
        ----------
        study : str
            The study's name.
        profile : {"smoke", "laptop", "paper"}, optional
            Keep the configurations of this profile's grid, in the grid's order. Without a profile
            every record counts, and they are sorted by key.
        """
        counting = (
            record
            for shelf in self._shelves(profile)
            for record in shelf.records(study)
            if _counts(record, profile)
        )
        found = preferred(counting, self._is_current)
        if profile is None:
            return [record for _, record in sorted(found.items())]
        keys = [key_of(study, c) for c in configurations(study_named(study), profile)]
        return [found[key] for key in keys if key in found]

    def checkpoint_of(self, record: Record) -> Path | None:
        """Return the checkpoint of the very run that made a record; None if it was not kept."""
        found = (shelf.checkpoint_of(record) for shelf in (self.published, self.working))
        return next((path for path in found if path is not None), None)

    def better(self, one: Record, other: Record) -> Record:
        """Return the better of two records of one run; see `best_first`."""
        return best_first([one, other], self._is_current)[0]

    def code(self, study: Study) -> str:
        """Return the fingerprint of the study's code when this archive was first asked for it."""
        if study.name not in self._codes:
            self._codes[study.name] = fingerprint(study)
        return self._codes[study.name]

    def is_stale(self, study: Study, record: Record) -> bool:
        """Return whether the code behind a record of the study has changed since it was made."""
        return record.fingerprint != self.code(study)

    def publish(self, study: str, *, allow_dirty: bool = False) -> Publication:
        """Merge a study's records from the working store into its published file.

        Records of the smoke profile are left out. Publishing the same records again changes no
        byte.

        Raises
        ------
        ValueError
            If there is nothing to publish, or a record comes from a tree with uncommitted changes
            and ``allow_dirty`` is not set.
        """
        study_named(study)  # refuses a name that is none
        with self.published.lock(study):
            self.published.forget(study)
            before = self.published.records(study)
            serious = [r for r in self.working.records(study) if _counts(r, "laptop")]
            if not serious and not before:
                raise ValueError(
                    f"study {study!r} has no laptop or paper record in {self.working.folder}; "
                    "run it first."
                )
            merged = preferred([*before, *serious], self._is_current)
            dirty = [record for record in merged.values() if not record.clean]
            if dirty and not allow_dirty:
                raise ValueError(
                    f"{len(dirty)} of {len(merged)} records of study {study!r} come from "
                    "uncommitted code; commit, then run the study again with --rerun dirty, or "
                    "pass --allow-dirty (such records earn no verdict)."
                )
            changed = [r for r in merged.values() if r != self.published.record(study, r.key)]
            self.published.add(changed)
        return Publication(self.published.path(study), len(merged), len(changed))

    def publish_checkpoint(self, study: str, key: str) -> Path:
        """Copy one run's checkpoint from the working store to ``results/checkpoints/``.

        Raises
        ------
        ValueError
            If the run has no published record.
        FileNotFoundError
            If the store has no checkpoint of it.
        """
        record = self.published.record(study, key)
        if record is None:
            raise ValueError(f"study {study!r} has no published record {key!r}; publish it first.")
        source, target = self.checkpoint_of(record), self.published.checkpoint(study, key)
        if source is None:
            raise FileNotFoundError(
                f"{self.working.checkpoint(study, key)} does not exist or is another run's than "
                "that of the published record; run the study in this store first."
            )
        if source != target:
            atomic.copy(source, target)
        return target

    def _is_current(self, record: Record) -> bool:
        # Nothing is current of a study that is no more.
        if record.study not in study_names():
            return False
        return not self.is_stale(study_named(record.study), record)

    def _shelves(self, profile: str | None) -> tuple[Shelf, ...]:
        # A smoke run exercises every live path, so nothing is finished before it begins.
        if profile == "smoke":
            return (self.working,)
        # Published first: of two equally good records the first is kept.
        return (self.published, self.working)


def records_of(
    study: str, profile: str | None = None, store: str | Path | None = None
) -> list[Record]:
    """Return the finished runs of a study from the published records and a working store.

    Parameters
    ----------
    study : str
        The study's name.
    profile : {"smoke", "laptop", "paper"}, optional
        Keep the configurations of this profile's grid, in the grid's order. A record made at
        the smoke profile counts for that profile alone, and published records, which none of
        a smoke run's results may come from, do not count for it. Without a profile every
        record is returned, sorted by key.
    store : path, optional
        The working store; by default ``_build/store`` in the repository.

    Returns
    -------
    list of Record

    Raises
    ------
    TypeError, ValueError
        If there is no such study or profile.

    Examples
    --------
    >>> from paperkit.experiments import records_of
    >>> records = records_of("entropy_facts", "laptop")
    >>> {record.study for record in records}, all(record.clean for record in records)
    ({'entropy_facts'}, True)
    """
    arguments.instance("study", study, str, "the name of one")
    if profile is not None:
        require_profile(profile)
    found = Archive(store).records(study, profile)
    if not found:
        study_named(study)  # refuses a name that is none
    return found


def digest_of(path: Path) -> str | None:
    """Return the SHA-256 of a file's content; None if there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _counts(record: Record, profile: str | None) -> bool:
    return profile in (None, "smoke") or record.profile != "smoke"
