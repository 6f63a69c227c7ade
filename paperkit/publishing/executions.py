"""Execute several chapters: a few at a time, and only those of which something has changed."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from paperkit.experiments import studies
from paperkit.experiments.archive import Archive
from paperkit.experiments.fingerprint import code_behind
from paperkit.experiments.study import study_names
from paperkit.publishing import notebooks

Result = TypeVar("Result")

# Settings of the environment from which a number may depend on the machine's instructions, on its
# threads, or on where records and data lie.
SETTINGS = ("ATEN_", "CUDA_", "DEVICE", "MKL_", "OMP_", "ONEDNN_", "PAPERKIT_", "TORCH_")
# A chapter that imports one of these reads claims, or records of studies that it calls by name.
READERS = ("paperkit.experiments", "paperkit.ledger")


def at_once(
    work: Callable[[Path], Result], sources: Sequence[Path], jobs: int
) -> dict[Path, Result]:
    """Do the work of each chapter, ``jobs`` at a time, and return the results in order.

    After a failure no further chapter is begun, those that run are finished, and the failure is
    raised.

    Parameters
    ----------
    work : callable
        From a chapter's source to a result.
    sources : sequence of Path
        Files ``NN_name.py``.
    jobs : int
        Chapters at a time; at least 1.

    Returns
    -------
    dict of Path to result
    """
    stopped = threading.Event()

    def begin(source: Path) -> Result:
        if stopped.is_set():
            raise CancelledError
        try:
            return work(source)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(max(1, min(jobs, len(sources)))) as pool:
        futures = {source: pool.submit(begin, source) for source in sources}
        try:
            wait(futures.values())
        finally:  # also after an interruption from the keyboard
            stopped.set()
    errors = (future.exception() for future in futures.values())
    failure = next((e for e in errors if e is not None and not isinstance(e, CancelledError)), None)
    if failure is not None:
        raise failure
    return {source: future.result() for source, future in futures.items()}


def executed(sources: Sequence[Path], root: Path, jobs: int) -> list[Path]:
    """Return executed copies of the chapters at their default parameters.

    A copy is kept with the fingerprint of all that it was made from, and serves again for as long
    as that is the same.

    Parameters
    ----------
    sources : sequence of Path
        Files ``NN_name.py``.
    root : Path
        Root of the repository.
    jobs : int
        Chapters at a time.

    Returns
    -------
    list of Path
        The executed notebooks, in the order of the sources.

    Raises
    ------
    NotebookError
        If a chapter cannot be executed.
    """
    folder = root / "_build" / "executed"

    def copy_of(source: Path) -> Path:
        target, mark = folder / f"{source.stem}.ipynb", folder / f"{source.stem}.fingerprint"
        before = fingerprint_of(source, root)
        if target.is_file() and mark.is_file() and mark.read_text() == before:
            print(f"-- {source.name}: as executed before; nothing behind it changed", flush=True)
            return target
        mark.unlink(missing_ok=True)
        notebooks.execute_for_book(source, target, quiet=jobs > 1)
        mark.write_text(before)
        return target

    return list(at_once(copy_of, sources, jobs).values())


def fingerprint_of(source: Path, root: Path) -> str:
    """Return the SHA-256 of all that a chapter's outputs are made from.

    That is the chapter's source; the code of this package that it imports, the framework included;
    the versions of all installed packages, the machine, and the settings of the environment; the
    data files in the package. A chapter that reads claims or records also has all claims, all
    records and the code of every study, because it calls them by name.

    Parameters
    ----------
    source : Path
        File ``NN_name.py``.
    root : Path
        Root of the repository.

    Returns
    -------
    str
        The sum in 64 hexadecimal digits.
    """
    text = source.read_text(encoding="utf-8")
    code = code_behind(text)
    files = [root / "requirements.lock", *_files(root / "paperkit", ".yml", ".yaml", ".json")]
    if any(name.startswith(READERS) for name in code):
        code = code_behind(text, [f"{studies.__name__}.{name}" for name in study_names()])
        files += [*_files(root / "claims", ".yml"), *_files(root / "results")]
        files += _files(Archive().working.folder, ".json", ".jsonl")
    digest = hashlib.sha256(text.encode())
    for line in (*_surroundings(), *(f"{name}\n{tree}" for name, tree in sorted(code.items()))):
        digest.update(f"{line}\n".encode())
    for path in files:
        digest.update(f"{path}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(folder: Path, *endings: str) -> Iterator[Path]:
    chosen = (path for path in folder.rglob("*") if path.is_file())
    yield from sorted(path for path in chosen if not endings or path.suffix in endings)


def _surroundings() -> Iterable[str]:
    yield f"{platform.platform()} {platform.processor()} {platform.python_version()}"
    yield from sorted(f"{d.metadata['Name']} {d.version}" for d in metadata.distributions())
    yield from sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(SETTINGS))
