"""CIFAR-10 in its Python version: six pickled batches of 10,000 images.

The batches are looked for in ``<root>/cifar-10-batches-py`` and downloaded by torchvision
where one is missing. A batch is unpickled only after its checksum was found right, since
unpickling runs code. The MD5 sums are the ones torchvision checks.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np

from paperkit.data import files
from paperkit.data.files import RawDataset, RawImages

FOLDER = "cifar-10-batches-py"

TRAIN_BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
TEST_BATCHES = {"test_batch": "40351d587109b95175f43aff81a1287e"}

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def read_batch(path: Path, md5: str) -> RawImages:
    """Read one batch file.

    A batch is a dictionary pickled by Python 2: ``data`` is an (n, 3072) array of uint8,
    each row the red, green and blue planes of a 32 × 32 image, and ``labels`` a list.

    Parameters
    ----------
    path : Path
        The file.
    md5 : str
        Its MD5 sum.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the checksum is wrong (a truncated file's always is).
    """
    content = files.read_verified(path, md5, algorithm="md5")
    with warnings.catch_warnings():
        # The arrays were pickled by a numpy that wrote booleans as integers and lived in
        # numpy.core; numpy reads both, and warns.
        warnings.simplefilter("ignore")
        batch = pickle.loads(content, encoding="bytes")
    images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    return RawImages(images, np.asarray(batch[b"labels"], dtype=np.int64))


def _read_batches(folder: Path, batches: dict[str, str]) -> RawImages:
    parts = [read_batch(folder / name, md5) for name, md5 in batches.items()]
    return RawImages(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def read(root: Path) -> RawDataset:
    """Read the set, downloading it into ``root`` if a batch is missing.

    Parameters
    ----------
    root : Path
        Folder of downloaded sets.

    Raises
    ------
    FileNotFoundError
        If a batch is missing and the download fails.
    ValueError
        If a batch has another checksum.
    """
    folder = root / FOLDER
    if not all((folder / name).is_file() for name in TRAIN_BATCHES | TEST_BATCHES):
        files.download("CIFAR10", root, folder)
    train, test = (_read_batches(folder, batches) for batches in (TRAIN_BATCHES, TEST_BATCHES))
    return RawDataset(train, test, CLASSES)
