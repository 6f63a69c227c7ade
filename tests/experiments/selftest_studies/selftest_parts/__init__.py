"""Passes names on."""

from .arithmetic import double
from .unrelated import triple

__all__ = ["double", "triple"]
