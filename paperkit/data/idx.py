"""MNIST and Fashion-MNIST, four files in the IDX format each, parsed by torchvision.

A file is looked for, plain or gzipped, in ``<root>/MNIST/raw`` or
``<root>/FashionMNIST/raw`` (where torchvision puts it), then, for Fashion-MNIST, in the
folder of Debian's package ``dataset-fashion-mnist``; what is found nowhere is downloaded.
Checksums are those of the decompressed files.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from paperkit.data import files
from paperkit.data.files import RawDataset, RawImages


@dataclass(frozen=True)
class IdxFile:
    """One file: its name, the shape of its array, and the SHA-256 of its content."""

    name: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class IdxSource:
    """One set: torchvision's name for it, its files, its classes, and system folders."""

    dataset: str
    files: tuple[IdxFile, IdxFile, IdxFile, IdxFile]
    classes: tuple[str, ...]
    folders: tuple[Path, ...] = ()


def _idx_files(checksums: tuple[str, str, str, str]) -> tuple[IdxFile, IdxFile, IdxFile, IdxFile]:
    train_images, train_labels, test_images, test_labels = checksums
    return (
        IdxFile("train-images-idx3-ubyte", (60000, 28, 28), train_images),
        IdxFile("train-labels-idx1-ubyte", (60000,), train_labels),
        IdxFile("t10k-images-idx3-ubyte", (10000, 28, 28), test_images),
        IdxFile("t10k-labels-idx1-ubyte", (10000,), test_labels),
    )


MNIST = IdxSource(
    "MNIST",
    _idx_files(
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        )
    ),
    classes=tuple("0123456789"),
)

FASHION_MNIST = IdxSource(
    "FashionMNIST",
    _idx_files(
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        )
    ),
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    folders=(Path("/usr/share/datasets/fashion-mnist"),),
)


def _find(name: str, folders: tuple[Path, ...]) -> Path | None:
    candidates = (folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _read_array(file: IdxFile, folders: tuple[Path, ...]) -> np.ndarray:
    path = _find(file.name, folders)
    if path is None:
        raise FileNotFoundError(f"{file.name} is in none of {', '.join(map(str, folders))}")
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor  # costs a second

    size = 4 + 4 * len(file.shape) + prod(file.shape)
    with files.verified_copy(path, file.sha256, size=size) as copy:
        return read_sn3_pascalvincent_tensor(str(copy)).numpy()


def read(source: IdxSource, root: Path) -> RawDataset:
    """Read a set, downloading it into ``root`` if any of its files is found nowhere.

    Parameters
    ----------
    source : IdxSource
        :data:`MNIST` or :data:`FASHION_MNIST`.
    root : Path
        Folder of downloaded sets.

    Raises
    ------
    FileNotFoundError
        If a file is missing and the download fails.
    ValueError
        If a file is truncated or has another checksum.
    """
    own_folder = root / source.dataset / "raw"
    folders = (own_folder, *source.folders)
    if any(_find(file.name, folders) is None for file in source.files):
        files.download(source.dataset, root, own_folder)
    arrays = [_read_array(file, folders) for file in source.files]
    train, test = (
        RawImages(images[:, None], labels.astype(np.int64))
        for images, labels in (arrays[:2], arrays[2:])
    )
    return RawDataset(train, test, source.classes)
