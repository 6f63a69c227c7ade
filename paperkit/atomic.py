"""Files that are replaced whole or not at all.

Ours, because the standard library has no such writer and ``atomicwrites`` is no longer maintained.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the name ``path`` when the block ends.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name
    in one step: a process killed at any point leaves what ``path`` held before, and a reader finds
    the old file or the new one. An exception in the block removes the temporary file.

    Parameters
    ----------
    path : Path
        The file; its folder is made if it is missing.

    Yields
    ------
    file
        Open for writing bytes. Its name begins with a dot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp gives 600, which git and other readers would notice
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace the content of a file by a text in UTF-8; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(text.encode())
