"""Real image sets as tensors, split and normalised, their augmentation and their corruption."""

from paperkit.data.augmentation import augment
from paperkit.data.cifar10c import ARCHIVE_CORRUPTIONS, load_corrupted
from paperkit.data.corruptions import CORRUPTIONS, corrupt
from paperkit.data.datasets import NAMES, ImageData, Split, load

__all__ = [
    "ARCHIVE_CORRUPTIONS",
    "CORRUPTIONS",
    "NAMES",
    "ImageData",
    "Split",
    "augment",
    "corrupt",
    "load",
    "load_corrupted",
]
