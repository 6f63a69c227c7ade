"""CIFAR-10-C: the test images of CIFAR-10 under 19 corruptions, as their authors published them.

The archive of Hendrycks and Dietterich (2019), https://zenodo.org/records/2535967, unpacks to
``<root>/CIFAR-10-C``: an array of 50,000 images for each corruption, 10,000 for each severity in
the order of CIFAR-10's test part, and ``labels.npy``. Nothing is downloaded. The archive's own
checksum is published, those of its arrays are not, so shapes, types, and the labels' five equal
parts are checked. No array is unpickled, and only the images that are asked for are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from paperkit import arguments
from paperkit.data.corruptions import CORRUPTIONS
from paperkit.data.datasets import TEST, ImageData, Split, subset, subset_size, to_split
from paperkit.data.files import Images, RawImages, data_root

ARCHIVE_CORRUPTIONS: tuple[str, ...] = tuple(
    name.removeprefix("procedural_") for name in CORRUPTIONS
)
"""The names that :func:`load_corrupted` knows."""

IMAGES, SEVERITIES = 10_000, 5
_FOLDER = "CIFAR-10-C"
_ADDRESS = "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar"


def load_corrupted(
    name: str,
    severity: int,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    seed: int = 0,
    like: ImageData | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Split:
    """Load one corruption of the archive CIFAR-10-C at one severity.

    The files are looked for in ``<root>/CIFAR-10-C`` and never downloaded. An array is mapped
    into memory, so that of its 154 MB only the images asked for are read, 31 MB for a whole
    severity. The archive publishes a checksum of the whole and none of its files: shapes, types
    and labels are what is verified. For corruptions of other images see :func:`corrupt`.

    Parameters
    ----------
    name : str
        The corruption, in :data:`ARCHIVE_CORRUPTIONS`.
    severity : int
        From 1 to 5.
    root : str or Path, optional
        Folder of downloaded sets; by default the environment variable ``PAPERKIT_DATA``,
        else ``~/.cache/paperkit/data``.
    size : int, optional
        Size of a subset that keeps the proportions of the classes; by default all 10,000
        images in the order of CIFAR-10's test part. ``load("cifar10", test_size=size)`` with
        the same seed has the same images without corruption, in the same order.
    seed : int
        Seed of the subset.
    like : ImageData, optional
        The data whose ``mean`` and ``std`` normalise the inputs, usually those that a network
        was trained on; by default inputs lie between 0 and 1.
    device : torch.device or str
        Where the tensors live.
    dtype : torch.dtype
        Floating-point type of the inputs.

    Returns
    -------
    Split
        Inputs of shape (n, 3, 32, 32), and the labels of CIFAR-10.

    Raises
    ------
    FileNotFoundError
        If the archive's files are not there.
    TypeError, ValueError
        If an argument is not as described, or a file is damaged.

    Examples
    --------
    The archive in small, with ten images for each severity:

    >>> import tempfile
    >>> from pathlib import Path
    >>> from unittest.mock import patch
    >>> import numpy as np
    >>> from paperkit.data import load_corrupted
    >>> with tempfile.TemporaryDirectory() as root, patch("paperkit.data.cifar10c.IMAGES", 10):
    ...     Path(root, "CIFAR-10-C").mkdir()
    ...     severities = np.repeat(np.arange(1, 6, dtype=np.uint8), 10)
    ...     pixels = severities[:, None, None, None] * np.ones((32, 32, 3), dtype=np.uint8)
    ...     np.save(Path(root, "CIFAR-10-C", "fog.npy"), pixels)
    ...     np.save(Path(root, "CIFAR-10-C", "labels.npy"), np.tile(np.arange(10), 5))
    ...     foggy = load_corrupted("fog", severity=3, root=root)
    >>> foggy, foggy.inputs.mul(255).unique()
    (Split(n=10, shape=(3, 32, 32)), tensor([3.]))
    """
    name = arguments.choice("name", name, ARCHIVE_CORRUPTIONS)
    severity = arguments.integer("severity", severity, at_least=1, at_most=SEVERITIES)
    seed = arguments.integer("seed", seed, at_least=0)
    device, dtype = arguments.device("device", device), arguments.dtype("dtype", dtype)
    size = IMAGES if size is None else subset_size("size", size, IMAGES)
    if like is not None:
        arguments.instance("like", like, ImageData, "as paperkit.data.load returns")
        if like.shape[0] != 3:
            raise ValueError(f"like={like!r} must have 3 channels, as CIFAR-10 has.")
    whole = _read(data_root(root) / _FOLDER, name, severity)
    part = subset(whole, size, seed, stream=TEST)
    # The copy is what reads the file.
    part = RawImages(np.array(part.images), part.labels)
    statistics = None
    if like is not None:
        mean, std = (moment.to(device=device, dtype=dtype) for moment in (like.mean, like.std))
        statistics = mean, std
    return to_split(part, 255, statistics, device=device, dtype=dtype)


def _read(folder: Path, name: str, severity: int) -> Images:
    """Return the images of one severity, still in the file, and their labels."""
    images = _mapped(folder / f"{name}.npy", (SEVERITIES * IMAGES, 32, 32, 3))
    labels = _mapped(folder / "labels.npy", (SEVERITIES * IMAGES,))
    parts = labels.reshape(SEVERITIES, IMAGES)
    if not (parts == parts[0]).all() or parts[0].min() < 0 or parts[0].max() > 9:
        raise ValueError(
            f"{folder / 'labels.npy'} must repeat {IMAGES} labels from 0 to 9 for each of "
            f"{SEVERITIES} severities; delete it and unpack {_ADDRESS} again"
        )
    rows = slice((severity - 1) * IMAGES, severity * IMAGES)
    return RawImages(images[rows].transpose(0, 3, 1, 2), parts[0].astype(np.int64))


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Map an array of bytes of a known shape; an array of labels may have any integer type."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; download {_ADDRESS} and unpack it into {path.parents[1]}, or pass "
            "root= (or set PAPERKIT_DATA) to a folder that has it"
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise ValueError(
            f"{path} is truncated or no array of bytes; delete it and unpack {_ADDRESS} again"
        ) from None
    fits = array.dtype == np.uint8 if len(shape) > 1 else array.dtype.kind in "iu"
    if array.shape != shape or not fits:
        raise ValueError(
            f"{path} has shape {array.shape} and type {array.dtype} where CIFAR-10-C has {shape} "
            f"and integers of a byte; delete it and unpack {_ADDRESS} again"
        )
    return array
