"""The papers' printed tables, ``claims/published/NAME.yml``: data that a comparison reads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from paperkit.experiments.paths import claims_folder
from paperkit.experiments.plain_yaml import read_yaml
from paperkit.experiments.sentences import suggestion


def published_names() -> list[str]:
    """Return the names of the tables, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yml"))


def published_table(name: str) -> dict[str, Any]:
    """Return a table of a paper, as its file has it.

    Parameters
    ----------
    name : str
        The file's name in ``claims/published/`` without its ending.

    Raises
    ------
    ValueError
        If there is no such table, or it is no mapping.
    """
    content = read_yaml(_path(name))
    if not isinstance(content, dict):
        raise ValueError(f"{name}.yml must be a mapping, with `source:` among its keys.")
    return content


def published_digest(name: str) -> str:
    """Return a digest of a table's file.

    A configuration that is read from a table holds it, so that a table that was corrected asks for
    other runs.
    """
    # Line ends may differ from one checkout to the next.
    text = _path(name).read_text(encoding="utf-8").replace("\r\n", "\n")
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _path(name: str) -> Path:
    if name not in published_names():
        raise ValueError(f"there is no table {name!r}{suggestion(name, published_names())}")
    return _folder() / f"{name}.yml"


def _folder() -> Path:
    return claims_folder() / "published"
