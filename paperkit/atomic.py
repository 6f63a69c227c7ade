"""Files that are replaced whole or not at all.

Ours, because the standard library has no such writer and ``atomicwrites`` is no longer maintained.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the name ``path`` when the block ends.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name
    in one step, which is flushed too: a process killed at any point leaves what ``path`` held
    before, and a reader finds the old file or the new one. An exception in the block removes the
    temporary file.

    Parameters
    ----------
    path : Path
        The file; its folder is made if it is missing.

    Yields
    ------
    file
        Open for writing bytes. Its name is ``.NAME.*.partial``; see :func:`forget_partial`.

    Raises
    ------
    OSError
        If the file cannot be written, also where the block made another error of that; it names
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    forget_partial(path)
    file, name = _new_file(path)
    # A second descriptor holds the file until it has its name; Windows renames no open file.
    held = None if fcntl is None else os.dup(file.fileno())
    try:
        with file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp gives 600, which git and other readers would notice
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        failed = file.error or error
        if not isinstance(failed, OSError) or failed.errno is None or failed.filename is not None:
            raise
        raise OSError(failed.errno, failed.strerror, str(path)) from error
    finally:
        if held is not None:
            os.close(held)
    _flush_folder(path.parent)


class _File(io.FileIO):
    """A file that remembers why it could not be written.

    PyTorch's writer makes a RuntimeError without a reason of what a full disk raises.
    """

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            view = memoryview(content).cast("B")
            done = 0
            while done < len(view):  # a raw file may take less than it is given
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.error = error
            raise
        return done


def forget_partial(path: Path) -> None:
    """Remove what killed writers of a file left beside it; a living writer holds its own."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            if _hold(file, wait=False):
                left.unlink()


def _new_file(path: Path) -> tuple[_File, str]:
    """Open a temporary file beside a path, and hold it, so that nobody takes it for left over."""
    while True:
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".partial"
        )
        file = _File(descriptor, "wb")
        _hold(file, wait=True)
        if os.fstat(file.fileno()).st_nlink:
            return file, name
        file.close()  # another writer removed the file before this one held it


def _hold(file: io.FileIO | BinaryIO, *, wait: bool) -> bool:
    """Hold a file while it is open; say whether it is held, which not every system can."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process holds the file, or its file system has no locks
        return False
    return True


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        # The file has its name already; some file systems of networks cannot flush a folder.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the content of a file by a text in UTF-8; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def copy(source: Path, target: Path) -> None:
    """Replace the content of a file by that of another; see :func:`replacing`."""
    with source.open("rb") as content, replacing(target) as file:
        shutil.copyfileobj(content, file)
