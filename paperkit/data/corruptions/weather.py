"""Weather: snow, frost, fog, and drops of water or mud on the lens.

Snow and spatter are made for images of the constants' size and stretched to the image, so that
flakes and drops grow with it and cover the same share.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from paperkit.data.corruptions.blur import blurred_along, scale_of, zoomed
from paperkit.data.corruptions.draws import Draws

# Weights of red, green and blue in the brightness of a colour (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114])


def small_size(images: np.ndarray) -> tuple[int, int]:
    """Return height and width of images of the constants' size and the same proportions."""
    scale = scale_of(images)
    height, width = (max(1, round(size / scale)) for size in images.shape[2:])
    return height, width


def stretched(layers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate layers of shape (n, channels, height, width) linearly to another size."""
    layer = torch.from_numpy(layers)
    return functional.interpolate(layer, size, mode="bilinear", align_corners=False).numpy()


def in_colour(colour: tuple[float, float, float], images: np.ndarray) -> np.ndarray:
    """Return a colour for images of three channels, its brightness for those of one."""
    channels = np.array(colour) if images.shape[1] == 3 else np.array([_LUMA @ colour])
    return channels[:, None, None]


def snow(
    images: np.ndarray,
    draws: Draws,
    mean: float,
    deviation: float,
    size: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> np.ndarray:
    """Whiten the image and add flakes that fall from two sides."""
    flakes = mean + deviation * draws.normal(1, *small_size(images))
    flakes = zoomed(flakes, size)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = blurred_along(flakes, draws.uniform(-135, -45), radius, sigma)
    height, width = images.shape[2:]
    flakes = stretched(flakes, (height, width))
    weights = _LUMA[:, None, None] if images.shape[1] == 3 else 1.0
    grey = (images * weights).sum(axis=1, keepdims=True)
    whitened = np.maximum(images, 1.5 * grey + 0.5)
    return share * images + (1 - share) * whitened + flakes + flakes[:, :, ::-1, ::-1]


def procedural_frost(
    images: np.ndarray, draws: Draws, image_factor: float, frost_factor: float
) -> np.ndarray:
    """Lay bluish white veins over the image: the ridges of a fractal.

    The archive has photographs of frost in their place, so this is another corruption.
    """
    height, width = images.shape[2:]
    veins = (1 - np.abs(2 * plasma(draws, height, width, decay=1.5) - 1)) ** 2
    return image_factor * images + frost_factor * veins * in_colour((0.85, 0.93, 1.0), images)


def fog(images: np.ndarray, draws: Draws, amount: float, decay: float) -> np.ndarray:
    """Add a fractal and return to the image's own maximum."""
    height, width = images.shape[2:]
    brightest = images.max(axis=(1, 2, 3), keepdims=True)
    foggy = images + amount * plasma(draws, height, width, decay)
    return foggy * brightest / (brightest + amount)


def plasma(draws: Draws, height: int, width: int, decay: float) -> np.ndarray:
    """Return fractals of midpoint displacement on a torus, between 0 and 1.

    Each halving of the grid's steps gives the new points the mean of their four neighbours and
    uniform noise, whose amplitude then falls by ``decay`` squared.

    Returns
    -------
    numpy.ndarray
        Shape (n, 1, height, width): a corner of a fractal whose side is a power of 2.
    """
    amplitude = 1.0
    corners = 0 * draws.uniform(0, 1, 1, 1)
    while corners.shape[1] < max(height, width):
        n, side, _ = corners.shape
        noise = amplitude * draws.uniform(-1, 1, 3, side, side)
        below = np.roll(corners, -1, axis=1)
        centres = (corners + below + np.roll(corners + below, -1, axis=2)) / 4 + noise[:, 0]
        across = corners + np.roll(corners, -1, axis=2) + centres + np.roll(centres, 1, axis=1)
        down = corners + below + centres + np.roll(centres, 1, axis=2)
        finer = np.empty((n, 2 * side, 2 * side))
        finer[:, ::2, ::2] = corners
        finer[:, 1::2, 1::2] = centres
        finer[:, ::2, 1::2] = across / 4 + noise[:, 1]
        finer[:, 1::2, ::2] = down / 4 + noise[:, 2]
        corners = finer
        amplitude /= decay**2
    corners -= corners.min(axis=(1, 2), keepdims=True)
    corners /= corners.max(axis=(1, 2), keepdims=True)
    return corners[:, None, :height, :width]


def spatter(
    images: np.ndarray,
    draws: Draws,
    mean: float,
    deviation: float,
    smoothing: float,
    threshold: float,
    strength: float,
    is_mud: float,
) -> np.ndarray:
    """Lay drops of water or of mud over the image."""
    height, width = images.shape[2:]
    noise = mean + deviation * draws.normal(1, *small_size(images))
    smooth = (0, 0, smoothing, smoothing)
    liquid = ndimage.gaussian_filter(noise, smooth, mode="nearest", truncate=4)
    liquid = np.where(liquid < threshold, 0, liquid)
    if is_mud:
        smooth = (0, 0, strength, strength)
        drops = (liquid > threshold).astype(np.float64)
        drops = ndimage.gaussian_filter(drops, smooth, mode="nearest", truncate=4)
        drops = stretched(np.where(drops < 0.8, 0, drops), (height, width))
        return (1 - drops) * images + drops * in_colour((63 / 255, 42 / 255, 20 / 255), images)
    drops = np.stack([_lit(layer) for layer in liquid[:, 0]])[:, None]
    brightest = drops.max(axis=(1, 2, 3), keepdims=True)
    drops = strength * drops / np.where(brightest > 0, brightest, 1)
    turquoise = in_colour((175 / 255, 238 / 255, 238 / 255), images)
    return images + stretched(drops, (height, width)) * turquoise


def _lit(liquid: np.ndarray) -> np.ndarray:
    """Return the light in drops of water: an embossed map of the distance to their edges.

    The published script finds edges with Canny's method. A layer that is 0 outside of drops and
    almost constant within has its edges at the drops' border, which is taken here.
    """
    is_drop = liquid > 0
    edges = is_drop & ~ndimage.binary_erosion(is_drop, border_value=1)
    # Where there is no edge, every pixel is far from one.
    distance = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(edges.shape, 20.0)
    distance = ndimage.uniform_filter(np.minimum(distance, 20), 3, mode="mirror")
    levels = _equalized(distance.astype(np.uint8))
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    light = np.clip(ndimage.correlate(levels, emboss, mode="mirror"), 0, 255)
    return liquid * ndimage.uniform_filter(light, 3, mode="mirror")


def _equalized(levels: np.ndarray) -> np.ndarray:
    """Spread levels so that their cumulative distribution is linear, from 0 to 255."""
    below = np.bincount(levels.ravel(), minlength=256).cumsum()
    least, total = below[levels.min()], below[-1]
    if least == total:
        return levels.astype(np.float64)
    return np.rint((below[levels] - least) / (total - least) * 255)
