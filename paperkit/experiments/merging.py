"""Merging working stores: what another machine has run joins what this one has.

The union is the same in whatever order stores are merged. Two records of one run that disagree,
though the same code made both, are a conflict: it is reported, and neither is overwritten. Ours,
because the records are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from paperkit import atomic
from paperkit.experiments import provenance
from paperkit.experiments.archive import Archive, WorkingStore
from paperkit.experiments.paths import store_folder
from paperkit.experiments.records import Record
from paperkit.experiments.study import study_named, study_names


@dataclass(frozen=True)
class Conflict:
    """Two records of one run by the same code, with other metrics."""

    study: str
    kept: str
    other: str


@dataclass(frozen=True)
class Merge:
    """The outcome of a merge.

    Attributes
    ----------
    added : int
        Records that the store did not have.
    replaced : int
        Records that were better than those of the store.
    kept : int
        Records that the store had, as good or better.
    vouched : int
        Records from a tree without a repository whose code is the committed code of this one.
    conflicts : tuple of Conflict
    """

    added: int
    replaced: int
    kept: int
    vouched: int
    conflicts: tuple[Conflict, ...]


def merge(other: str | Path, store: str | Path | None = None) -> Merge:
    """Merge another working store's records and checkpoints into a store.

    Of two records of one run the better one stays, as `best_first` ranks them; its checkpoint comes
    with it. A record that was made in a copy of the tree, where the state of the code is unknown,
    is vouched for if its code is that of this tree and this tree has no uncommitted changes.

    Parameters
    ----------
    other : path
        A working store, which is only read.
    store : path, optional
        The store that grows; by default ``_build/store`` in the repository.

    Raises
    ------
    ValueError
        If ``other`` holds no records or is the store itself, or a file is damaged.

    Examples
    --------
    >>> from paperkit.experiments import merge, run_study
    >>> records = run_study("entropy_facts", "smoke", store="elsewhere", progress=False)
    >>> merge("elsewhere", "here").added == len(records)
    True
    """
    archive, source = Archive(store), WorkingStore(store_folder(other, "other"))
    if source.folder == archive.working.folder:
        raise ValueError(f"other={str(other)!r} is the store itself: name another machine's.")
    records = [record for study in _studies(source) for record in source.records(study)]
    if not records:
        raise ValueError(f"other={str(other)!r} holds no records: name a working store.")
    tree = provenance.tree_state()
    counts = dict.fromkeys(("added", "replaced", "kept"), 0)
    vouched, conflicts = 0, []
    for found in records:
        record = _vouched(archive, found, tree)
        vouched += record is not found
        with archive.working.lock(record.study, record.key):
            own = archive.working.record(record.study, record.key)
            if own is not None and _disagree(own, record):
                conflicts.append(Conflict(record.study, own.location or record.key, found.location))
                continue
            best = record if own is None else archive.better(own, record)
            outcome = "added" if own is None else "kept" if best is own else "replaced"
            counts[outcome] += 1
            _take(archive.working, source, best, is_new=best is not own)
    return Merge(**counts, vouched=vouched, conflicts=tuple(conflicts))


def _studies(store: WorkingStore) -> Iterator[str]:
    folders = (store.folder / "records").glob("*")
    yield from sorted(folder.name for folder in folders if folder.is_dir())


def _vouched(archive: Archive, record: Record, tree: provenance.TreeState) -> Record:
    if record.provenance["dirty"] is not None or tree.dirty is not False:
        return record
    if record.study not in study_names():
        return record
    if archive.is_stale(study_named(record.study), record):
        return record
    note = {"dirty": False, "commit": tree.commit, "vouched": True}
    return replace(record, provenance={**record.provenance, **note})


def _disagree(own: Record, other: Record) -> bool:
    return own.fingerprint == other.fingerprint and own.metrics != other.metrics


def _take(target: WorkingStore, source: WorkingStore, record: Record, *, is_new: bool) -> None:
    """Write a record if it is new and, if it lacks its checkpoint, that."""
    if is_new:
        target.add([record])
    checkpoint = None if target.checkpoint_of(record) else source.checkpoint_of(record)
    if checkpoint is not None:
        atomic.copy(checkpoint, target.checkpoint(record.study, record.key))
