"""The archive of finished runs: one interface to two shelves.

The working store has a file for each record, because runs finish at any time and in several
processes. The published results have one file of sorted lines for each study, because a commit
should show which records are new. Both keep a run's checkpoint under the same name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from paperkit import arguments, atomic
from paperkit.experiments.fingerprint import fingerprint
from paperkit.experiments.paths import locks_folder, results_folder, store_folder
from paperkit.experiments.records import Record, from_json, key_of, to_json
from paperkit.experiments.study import Study, configurations, require_profile, study_named


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


class WorkingStore(Shelf):
    """The records of the runs of this machine, ``<store>/records/<study>/<key>.json``."""

    def path(self, study: str, key: str) -> Path:
        """Return the file of a record, which need not exist."""
        return self.folder / "records" / study / f"{key}.json"

    def record(self, study: str, key: str) -> Record | None:  # noqa: D102
        path = self.path(study, key)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return from_json(text, str(path))

    def records(self, study: str) -> list[Record]:  # noqa: D102
        # A file that a killed writer left behind begins with a dot and is not matched.
        paths = (self.folder / "records" / study).glob("*.json")
        keys = sorted(path.stem for path in paths if not path.name.startswith("."))
        found = (self.record(study, key) for key in keys)
        return [record for record in found if record is not None]

    def add(self, records: Iterable[Record]) -> None:  # noqa: D102
        for record in records:
            atomic.write_text(self.path(record.study, record.key), to_json(record) + "\n")

    def lock(self, study: str, key: str) -> FileLock:
        """Return the lock that a process holds while it is at a run; ``with`` waits for it."""
        return FileLock(self.folder / "locks" / study / f"{key}.lock")


class PublishedResults(Shelf):
    """The committed records, ``results/<study>.jsonl``: one line a record, sorted by key.

    A study's file is read once and remembered, so that whoever holds this object judges all along
    by one state of it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
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
            self._known[study] = dict(sorted(preferred(self._read(study)).items()))
        return self._known[study]

    def _read(self, study: str) -> list[Record]:
        path = self.path(study)
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [from_json(line, f"{path}:{i}") for i, line in enumerate(lines, start=1)]
        for record in records:
            if record.study != study:
                raise ValueError(
                    f"{record.location} is a record of study {record.study!r}, not of {study!r}."
                )
        return records


def preferred(records: Iterable[Record]) -> dict[str, Record]:
    """Keep one record a key: a clean one before a dirty one, then the latest, then the first."""
    return {record.key: record for record in sorted(reversed(list(records)), key=_rank)}


def _rank(record: Record) -> tuple[bool, bool, str]:
    return record.profile != "smoke", record.clean, str(record.provenance["date"])


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
        self.published = PublishedResults(results_folder())
        self._codes: dict[str, str] = {}

    def candidates(self, study: str, key: str, profile: str) -> list[Record]:
        """Return the records of one run that count at a profile, the best first.

        A record made at the smoke profile counts for that profile alone, and published records,
        which none of a smoke run's results may come from, do not count for it. A clean record is
        better than a dirty one, then a later one, then a published one.
        """
        found = (shelf.record(study, key) for shelf in self._shelves(profile))
        counting = [record for record in found if record is not None and _counts(record, profile)]
        return sorted(counting, key=_rank, reverse=True)

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
        found = preferred(
            record
            for shelf in self._shelves(profile)
            for record in shelf.records(study)
            if _counts(record, profile)
        )
        if profile is None:
            return [record for _, record in sorted(found.items())]
        keys = [key_of(study, c) for c in configurations(study_named(study), profile)]
        return [found[key] for key in keys if key in found]

    def checkpoint_of(self, record: Record) -> Path | None:
        """Return the checkpoint of the very run that made a record; None if it was not kept."""
        for shelf in (self.published, self.working):
            path = shelf.checkpoint(record.study, record.key)
            own = shelf.record(record.study, record.key)
            # A checkpoint beside no record may be that of a run killed halfway. An audit renews a
            # published record and keeps its date.
            if own is not None and _date(own) == _date(record) and path.is_file():
                return path
        return None

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
            merged = preferred([*before, *serious])
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
        if self.published.record(study, key) is None:
            raise ValueError(f"study {study!r} has no published record {key!r}; publish it first.")
        source = self.working.checkpoint(study, key)
        if not source.is_file():
            raise FileNotFoundError(f"{source} does not exist; run the study in this store first.")
        target = self.published.checkpoint(study, key)
        with atomic.replacing(target) as file:
            file.write(source.read_bytes())
        return target

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


def _counts(record: Record, profile: str | None) -> bool:
    return profile in (None, "smoke") or record.profile != "smoke"


def _date(record: Record) -> str:
    return str(record.provenance["date"])
