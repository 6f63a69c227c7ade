"""What the ledger has to decide, and the studies that wait to be written: ``claims/lists/``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from paperkit.experiments.paths import claims_folder
from paperkit.experiments.plain_yaml import read_yaml


def statements() -> dict[str, list[str]]:
    """Return the ids of what each paper states, in the papers' order."""
    return _list("statements.yml")


def planned_studies() -> dict[str, str]:
    """Return the question of each study that is not written yet, by the study's name."""
    return _list("planned_studies.yml")


def _list(name: str) -> dict[str, Any]:
    path = claims_folder() / "lists" / name
    if not path.is_file():
        return {}
    state = path.stat()
    return dict(_content(path, state.st_mtime_ns, state.st_size))


# Every claim asks whether its study is planned, so a file is read once until it changes.
@lru_cache(maxsize=8)
def _content(path: Path, changed: int, size: int) -> dict[str, Any]:
    """Read a list; its size and the time of its last change tell whether it is the same."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must be a mapping.")
    return content
