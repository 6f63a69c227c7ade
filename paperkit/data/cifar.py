"""CIFAR-10 and CIFAR-100 in their Python version: pickled batches, read by torchvision.

The batches are looked for in ``<root>/cifar-10-batches-py`` and ``<root>/cifar-100-python``, and
downloaded by torchvision where one is missing. Every file is checked against torchvision's own MD5
sum before the first is unpickled, since unpickling runs code, and a wrong one is named. The labels
of CIFAR-100 are the fine ones, of 100 classes.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from paperkit.data import files
from paperkit.data.files import RawDataset, RawImages


def read(dataset: str, root: Path) -> RawDataset:
    """Read a set, downloading it into ``root`` if a file is missing.

    Parameters
    ----------
    dataset : str
        Name of the class in :mod:`torchvision.datasets`: ``CIFAR10`` or ``CIFAR100``.
    root : Path
        Folder of downloaded sets.

    Raises
    ------
    FileNotFoundError
        If a file is missing and the download fails.
    ValueError
        If a file has another checksum.
    """
    from torchvision import datasets  # costs a second, and only these sets need it

    source = getattr(datasets, dataset)
    folder = root / source.base_folder
    sums = dict([*source.train_list, *source.test_list])
    sums[source.meta["filename"]] = source.meta["md5"]
    if not all((folder / name).is_file() for name in sums):
        files.download(dataset, root, folder)
    for name, md5 in sums.items():
        files.read_verified(folder / name, md5, algorithm="md5")
    with warnings.catch_warnings():
        # The arrays were pickled by a numpy that wrote booleans as integers and lived in
        # numpy.core; numpy reads both, and warns.
        warnings.simplefilter("ignore")
        parts = [source(root, train=train) for train in (True, False)]
    train, test = (
        # torchvision puts the channels last.
        RawImages(part.data.transpose(0, 3, 1, 2), np.asarray(part.targets, dtype=np.int64))
        for part in parts
    )
    return RawDataset(train, test, tuple(parts[0].classes))
