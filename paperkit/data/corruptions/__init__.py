"""Corruptions of images in the style of CIFAR-10-C, for images of any size."""

from paperkit.data.corruptions.apply import CORRUPTIONS, corrupt

__all__ = ["CORRUPTIONS", "corrupt"]
