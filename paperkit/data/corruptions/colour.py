"""Changes of brightness, contrast and saturation."""

from __future__ import annotations

import numpy as np

from paperkit.data.corruptions.draws import Draws


def brightness(images: np.ndarray, draws: Draws, addition: float) -> np.ndarray:
    """Add to the value of HSV, which is the largest channel; hue and saturation stay.

    A black pixel has neither, and becomes grey.
    """
    value = images.max(axis=1, keepdims=True)
    brighter = np.minimum(value + addition, 1)
    return np.where(value > 0, images * _ratio(brighter, value), brighter)


def contrast(images: np.ndarray, draws: Draws, factor: float) -> np.ndarray:
    """Scale the deviation from each channel's mean."""
    mean = images.mean(axis=(2, 3), keepdims=True)
    return mean + factor * (images - mean)


def saturate(images: np.ndarray, draws: Draws, factor: float, addition: float) -> np.ndarray:
    """Scale the saturation of HSV and add to it; hue and value stay.

    Pixels of grey have no hue. By the usual convention theirs is 0, which is red, so they turn
    red where ``addition`` is not 0, in the archive too.
    """
    value = images.max(axis=1, keepdims=True)
    spread = value - images
    saturation = _ratio(spread.max(axis=1, keepdims=True), value)
    changed = np.clip(saturation * factor + addition, 0, 1)
    red = np.array([0.0, 1.0, 1.0])[:, None, None] * value
    missing = np.where(saturation > 0, _ratio(spread, saturation), red)
    return value - missing * changed


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with 0 where the denominator is 0."""
    return numerator / np.where(denominator > 0, denominator, 1) * (denominator > 0)
