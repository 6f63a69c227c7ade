"""Real image sets as tensors, split and normalised, and their augmentation."""

from paperkit.data.augmentation import augment
from paperkit.data.datasets import NAMES, ImageData, Split, load

__all__ = ["NAMES", "ImageData", "Split", "augment", "load"]
