"""Checkpoints: written whole or not at all, and never read when damaged."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from paperkit.atomic import replacing


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` so that ``path`` holds either what it held before or all of it.

    A process killed at any point leaves the previous checkpoint intact; see
    :func:`paperkit.atomic.replacing`.

    Parameters
    ----------
    state : mapping
        Tensors and plain containers, as :func:`torch.load` reads with ``weights_only=True``.
    path : Path
        The file; its folder is made if it is missing.
    """
    with replacing(path) as file:
        torch.save(dict(state), file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Parameters
    ----------
    path : Path
        A file written by :func:`save`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, altered, or no checkpoint.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        # torch.load does not look at the archive's checksums, so a flipped bit in a weight
        # would pass unseen. PyTorch packs nothing, so what is packed may unpack without end.
        with zipfile.ZipFile(content) as archive:
            is_plain = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
            is_whole = is_plain and archive.testzip() is None
        content.seek(0)
        state = torch.load(content, map_location="cpu", weights_only=True) if is_whole else None
    except Exception:  # the parsers of archives and pickles raise a dozen kinds of errors
        state = None
    if not isinstance(state, dict):
        raise ValueError(f"the checkpoint {path} is damaged; delete it to train from the start")
    return state
