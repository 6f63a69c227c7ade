"""Tiny ImageNet: 200 classes of ImageNet in 64 × 64 pixels, 500 training images a class.

The set is ``<root>/tiny-imagenet-200.zip`` as it is published, or the folder
``<root>/tiny-imagenet-200`` that it unpacks to. The archive is taken first, because it can be
verified byte by byte: its MD5 sum is known, and members are read without unpacking it to disk. A
folder's files have no published checksums, so there the numbers of classes and images and the size
of each image are checked. Nothing is downloaded.

The labels of the official test part were never published. As everywhere in the literature, the
official *validation* part of 10,000 images serves as test part here; a validation part, where one
is asked for, is taken out of the training part as for every other set.

Labels are read first and images only when they are used, so that a subset costs its own images
alone. Images of grey become RGB.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np

from paperkit.data.files import RawDataset, read_verified

CLASSES, IMAGES_PER_CLASS, TEST_IMAGES, SIDE = 200, 500, 10_000, 64
ARCHIVE_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_FOLDER = "tiny-imagenet-200"
_ADDRESS = f"http://cs231n.stanford.edu/{_FOLDER}.zip"


@dataclass(frozen=True)
class _Source:
    """The files of the set, in a folder or in the archive.

    Attributes
    ----------
    place : str
        Path that messages name.
    names : tuple of str
        Names of all files, relative to the set's own folder, sorted.
    read_bytes : callable
        Content of a file, by its name.
    """

    place: str
    names: tuple[str, ...]
    read_bytes: Callable[[str], bytes]

    def read_lines(self, name: str) -> list[str]:
        """Return the lines of a text file."""
        if name not in self.names:
            raise ValueError(self.complaint(f"{name} is not there"))
        return self.read_bytes(name).decode("utf-8").splitlines()

    def complaint(self, fault: str) -> str:
        """Return the message about an incomplete or damaged set."""
        return f"{self.place} is incomplete or altered ({fault}); delete it and unpack {_ADDRESS}"


@dataclass(frozen=True)
class ImageFiles:
    """Labels, and the files of images that are decoded when they are used.

    Attributes
    ----------
    source : _Source
        Place of the files.
    names : numpy.ndarray
        Shape (n,), the file's name of each image.
    labels : numpy.ndarray
        Shape (n,), int64.
    """

    source: _Source
    names: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: np.ndarray) -> ImageFiles:
        """Return the samples at ``index``, in that order."""
        return ImageFiles(self.source, self.names[index], self.labels[index])

    @cached_property
    def images(self) -> np.ndarray:
        """Images of shape (n, 3, 64, 64), uint8."""
        images = np.empty((len(self), 3, SIDE, SIDE), dtype=np.uint8)
        for image, name in zip(images, self.names, strict=True):
            image[:] = _decoded(self.source, name)
        return images


def read(root: Path) -> RawDataset:
    """Read the set's labels and names; its images are read when they are used.

    Parameters
    ----------
    root : Path
        Folder of downloaded sets.

    Raises
    ------
    FileNotFoundError
        If neither the archive nor the folder is there.
    ValueError
        If the archive has another checksum, or numbers of classes or images are wrong; the size
        of an image, when it is used.
    """
    source = _source(root)
    train = _train(source)
    classes = sorted({name.split("/")[1] for name in train})
    labels = np.repeat(np.arange(len(classes)), IMAGES_PER_CLASS)
    words = dict(line.split("\t", 1) for line in source.read_lines("words.txt"))
    test_names, test_classes = _test(source, classes)
    return RawDataset(
        train=ImageFiles(source, np.array(train), labels),
        test=ImageFiles(source, np.array(test_names), np.searchsorted(classes, test_classes)),
        classes=tuple(words.get(name, name) for name in classes),
    )


def _source(root: Path) -> _Source:
    archive, folder = root / f"{_FOLDER}.zip", root / _FOLDER
    if archive.is_file():
        content = read_verified(archive, ARCHIVE_MD5, algorithm="md5")
        members = zipfile.ZipFile(BytesIO(content))
        prefix = f"{_FOLDER}/"
        names = (name.removeprefix(prefix) for name in members.namelist() if name[-1] != "/")
        return _Source(str(archive), tuple(sorted(names)), lambda name: members.read(prefix + name))
    if folder.is_dir():
        paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        names = (path.as_posix() for path in paths)
        return _Source(str(folder), tuple(sorted(names)), lambda name: (folder / name).read_bytes())
    raise FileNotFoundError(
        f"tiny-imagenet is neither in {archive} nor in {folder}; download {_ADDRESS} into {root}, "
        "or pass root= (or set PAPERKIT_DATA) to a folder that has it"
    )


def _train(source: _Source) -> list[str]:
    """Return the names of the training images, sorted by class, all classes complete."""
    names = [name for name in source.names if _is_image(name, "train")]
    folders, counts = np.unique([name.split("/")[1] for name in names], return_counts=True)
    if len(folders) != CLASSES:
        raise ValueError(source.complaint(f"train has {len(folders)} of {CLASSES} classes"))
    for folder, count in zip(folders, counts, strict=True):
        if count != IMAGES_PER_CLASS:
            fault = f"train/{folder} has {count} of {IMAGES_PER_CLASS} images"
            raise ValueError(source.complaint(fault))
    return names


def _test(source: _Source, classes: list[str]) -> tuple[list[str], list[str]]:
    """Return the names of the validation part's images and their classes, in the file's order."""
    annotations = "val/val_annotations.txt"
    rows = [f"{line}\t".split("\t") for line in source.read_lines(annotations)]
    names = [f"val/images/{row[0]}" for row in rows]
    there = {name for name in source.names if _is_image(name, "val")}
    if len(names) != TEST_IMAGES or set(names) != there:
        fault = f"val has {len(there)} and {annotations} {len(names)} of {TEST_IMAGES} images"
        raise ValueError(source.complaint(fault))
    unknown = {row[1] for row in rows} ^ set(classes)
    if unknown:
        fault = f"{annotations} and the folders in train differ in {min(unknown)!r}"
        raise ValueError(source.complaint(fault))
    return names, [row[1] for row in rows]


def _is_image(name: str, part: str) -> bool:
    return name.startswith(f"{part}/") and name.endswith(".JPEG")


def _decoded(source: _Source, name: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError  # comes with torchvision; only this set needs it

    try:
        with Image.open(BytesIO(source.read_bytes(name))) as file:
            image = np.asarray(file.convert("RGB"))
    except (UnidentifiedImageError, OSError):
        raise ValueError(source.complaint(f"{name} is no image that can be read")) from None
    if image.shape[:2] != (SIDE, SIDE):
        raise ValueError(source.complaint(f"{name} has {image.shape[1]} × {image.shape[0]} pixels"))
    return image.transpose(2, 0, 1)
