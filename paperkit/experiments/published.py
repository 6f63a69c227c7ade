"""Published records: ``results/<study>.jsonl``, one line a record, sorted by key."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from paperkit import arguments
from paperkit.experiments.paths import results_folder, store_folder
from paperkit.experiments.records import Record, from_json, key_of, to_json
from paperkit.experiments.store import checkpoint_path, read_records, write_atomically
from paperkit.experiments.study import configurations, require_profile, study_named


def published_path(study: str) -> Path:
    """Return the file of a study's published records."""
    return results_folder() / f"{study}.jsonl"


def published_checkpoint_path(study: str, key: str) -> Path:
    """Return the file of a run's published checkpoint."""
    return results_folder() / "checkpoints" / study / f"{key}.pt"


def read_published(study: str) -> list[Record]:
    """Read a study's published records; an empty list if none were published.

    Raises
    ------
    ValueError
        If a line is damaged or belongs to another study; the sentence names file and line.
    """
    path = published_path(study)
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


def write_published(study: str, records: Iterable[Record]) -> Path:
    """Write a study's published records, sorted by key; the same records give the same bytes."""
    lines = [to_json(record) + "\n" for record in sorted(records, key=lambda r: r.key)]
    write_atomically(published_path(study), "".join(lines))
    return published_path(study)


def preferred(records: Iterable[Record]) -> dict[str, Record]:
    """Keep one record a key: a clean one before a dirty one, then the latest, then the first."""
    best: dict[str, Record] = {}
    for record in records:
        other = best.get(record.key)
        if other is None or _rank(record) > _rank(other):
            best[record.key] = record
    return best


def _rank(record: Record) -> tuple[bool, bool, str]:
    return record.profile != "smoke", record.clean, str(record.provenance["date"])


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
    """
    arguments.instance("study", study, str, "the name of one")
    if profile is not None:
        require_profile(profile)
    working = read_records(store_folder(store), study)
    if profile is None:
        # Published first: of two equally good records the published one is kept.
        known = preferred([*read_published(study), *working])
        if not known:
            study_named(study)  # refuses a name that is none
        return [record for _, record in sorted(known.items())]
    if profile == "smoke":
        found = preferred(working)
    else:
        serious = [r for r in working if r.profile != "smoke"]
        found = preferred([*read_published(study), *serious])
    keys = [key_of(study, c) for c in configurations(study_named(study), profile)]
    return [found[key] for key in keys if key in found]


@dataclass(frozen=True)
class Publication:
    """What publishing did: the file, its records, and how many of them are new or replaced."""

    path: Path
    total: int
    changed: int


def publish(
    study: str, store: str | Path | None = None, *, allow_dirty: bool = False
) -> Publication:
    """Merge a study's records from the working store into its published file.

    Records of the smoke profile are left out. Publishing the same records again changes no
    byte.

    Raises
    ------
    ValueError
        If there is nothing to publish, or a record comes from a tree with uncommitted changes
        and ``allow_dirty`` is not set.
    """
    study_named(study)
    before = read_published(study)
    working = [r for r in read_records(store_folder(store), study) if r.profile != "smoke"]
    if not working and not before:
        raise ValueError(
            f"study {study!r} has no laptop or paper record in {store_folder(store)}; run it first."
        )
    merged = preferred([*before, *working])
    dirty = [record for record in merged.values() if not record.clean]
    if dirty and not allow_dirty:
        raise ValueError(
            f"{len(dirty)} of {len(merged)} records of study {study!r} come from uncommitted "
            "code; commit, then run the study again with --rerun dirty, or pass --allow-dirty "
            "(such records earn no verdict)."
        )
    known = {record.key: record for record in before}
    changed = sum(known.get(key) != record for key, record in merged.items())
    return Publication(write_published(study, merged.values()), len(merged), changed)


def publish_checkpoint(study: str, key: str, store: str | Path | None = None) -> Path:
    """Copy one run's checkpoint from the working store to ``results/checkpoints/``.

    Raises
    ------
    ValueError
        If the run has no published record.
    FileNotFoundError
        If the store has no checkpoint of it.
    """
    if key not in {record.key for record in read_published(study)}:
        raise ValueError(f"study {study!r} has no published record {key!r}; publish it first.")
    source = checkpoint_path(store_folder(store), study, key)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; run the study in this store first.")
    target = published_checkpoint_path(study, key)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
