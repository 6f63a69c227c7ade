"""The working store: one JSON file a record, written whole or not at all, and checkpoints.

``<store>/records/<study>/<key>.json`` and ``<store>/checkpoints/<study>/<key>.pt``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from paperkit.experiments.records import Record, from_json, to_json


def record_path(store: Path, study: str, key: str) -> Path:
    """Return the file of a record in the store."""
    return store / "records" / study / f"{key}.json"


def checkpoint_path(store: Path, study: str, key: str) -> Path:
    """Return the file of a run's checkpoint in the store."""
    return store / "checkpoints" / study / f"{key}.pt"


def write_record(store: Path, record: Record) -> Path:
    """Write a record so that a reader finds it whole or not at all."""
    path = record_path(store, record.study, record.key)
    write_atomically(path, to_json(record) + "\n")
    return path


def read_record(store: Path, study: str, key: str) -> Record | None:
    """Read one record from the store; None if there is none."""
    path = record_path(store, study, key)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return from_json(text, str(path))


def read_records(store: Path, study: str) -> list[Record]:
    """Read every record of a study in the store, sorted by key."""
    folder = store / "records" / study
    # A file that a killed writer left behind begins with a dot and is not matched.
    paths = sorted(p for p in folder.glob("*.json") if not p.name.startswith("."))
    return [from_json(path.read_text(encoding="utf-8"), str(path)) for path in paths]


def write_atomically(path: Path, text: str) -> None:
    """Write a text file through a temporary one in the same folder, synced and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp gives 600, which git and other readers would notice
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
