"""CIFAR-10 in its Python version: six pickled batches of 10,000 images, read by torchvision.

The batches are looked for in ``<root>/cifar-10-batches-py`` and downloaded by torchvision
where one is missing. Every file is checked against torchvision's own MD5 sum before the first
is unpickled, since unpickling runs code, and a wrong one is named.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from paperkit.data import files
from paperkit.data.files import RawDataset, RawImages


def read(root: Path) -> RawDataset:
    """Read the set, downloading it into ``root`` if a file is missing.

    Parameters
    ----------
    root : Path
        Folder of downloaded sets.

    Raises
    ------
    FileNotFoundError
        If a file is missing and the download fails.
    ValueError
        If a file has another checksum.
    """
    from torchvision.datasets import CIFAR10  # costs a second, and only this set needs it

    folder = root / CIFAR10.base_folder
    sums = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    sums[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    if not all((folder / name).is_file() for name in sums):
        files.download("CIFAR10", root, folder)
    for name, md5 in sums.items():
        files.read_verified(folder / name, md5, algorithm="md5")
    with warnings.catch_warnings():
        # The arrays were pickled by a numpy that wrote booleans as integers and lived in
        # numpy.core; numpy reads both, and warns.
        warnings.simplefilter("ignore")
        parts = [CIFAR10(root, train=train) for train in (True, False)]
    train, test = (
        # torchvision puts the channels last.
        RawImages(part.data.transpose(0, 3, 1, 2), np.asarray(part.targets, dtype=np.int64))
        for part in parts
    )
    return RawDataset(train, test, tuple(parts[0].classes))
