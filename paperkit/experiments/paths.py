"""Where the repository keeps its results, claims and working store."""

from __future__ import annotations

import os
from pathlib import Path

from paperkit import arguments

ROOT_VARIABLE = "PAPERKIT_ROOT"
STORE_VARIABLE = "PAPERKIT_STORE"
PACKAGE = Path(__file__).resolve().parents[1]


def repository_root() -> Path:
    """Return the folder that holds ``results/`` and ``claims/``.

    It is the folder above the package, which is the repository in an editable install; the
    environment variable ``PAPERKIT_ROOT`` overrides it.

    Raises
    ------
    FileNotFoundError
        If the variable names no folder, or if it is unset and the package does not lie in a
        repository.
    """
    named = os.environ.get(ROOT_VARIABLE)
    if named is not None:
        root = Path(named).expanduser().resolve()
        if not root.is_dir():
            raise FileNotFoundError(f"{ROOT_VARIABLE} names {root}, which is not a folder.")
        return root
    root = PACKAGE.parent
    if not (root / "pyproject.toml").is_file():
        raise FileNotFoundError(
            f"{root} is not the repository: install it with `pip install -e .` or set "
            f"{ROOT_VARIABLE} to the repository's folder."
        )
    return root


def store_folder(store: str | Path | None = None, name: str = "store") -> Path:
    """Return the working store: the given folder, or ``_build/store`` in the repository.

    The environment variable ``PAPERKIT_STORE`` overrides the latter: the book is built and
    compared on an empty store, so that a study of the user's own does not leak into it.

    Raises
    ------
    ValueError
        If the path is a file or a loop of links.
    """
    if store is None:
        named = os.environ.get(STORE_VARIABLE)
        if not named:
            return repository_root() / "_build" / "store"
        return _folder(STORE_VARIABLE, Path(named))
    return _folder(name, arguments.path(name, store).expanduser())


def results_folder() -> Path:
    """Return the folder of the published records, ``results/`` in the repository."""
    return repository_root() / "results"


def locks_folder() -> Path:
    """Return the folder of the locks on published results, ``_build/locks`` in the repository.

    A lock stays behind as an empty file, and ``results/`` holds what is committed.
    """
    return repository_root() / "_build" / "locks"


def claims_folder() -> Path:
    """Return the folder of the claims' YAML files, ``claims/`` in the repository."""
    return repository_root() / "claims"


def _folder(name: str, path: Path) -> Path:
    """Return the absolute path of a folder, which need not exist."""
    try:
        folder = path.resolve()
        is_other = folder.exists() and not folder.is_dir()
    except (OSError, RuntimeError) as error:  # Python before 3.13 raises RuntimeError for a loop
        reason = str(error) if isinstance(error, OSError) else "its links lead in a circle"
        raise ValueError(f"{name}={str(path)!r} cannot be used: {reason}.") from None
    if is_other:
        raise ValueError(f"{name}={str(path)!r} is no folder: name one, or a path that is free.")
    return folder
