"""Blur: of a lens, of frosted glass, of motion and of zooming.

Radii and standard deviations grow with the image: the published pixels are those of images of 32.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from paperkit.data.corruptions.constants import SIDE
from paperkit.data.corruptions.draws import Draws


def scale_of(images: np.ndarray) -> float:
    """Return the shorter side over the side that the constants are meant for."""
    return min(images.shape[2:]) / SIDE


def gaussian_blur(images: np.ndarray, draws: Draws, sigma: float) -> np.ndarray:
    """Blur with a normal kernel."""
    sigma *= scale_of(images)
    return ndimage.gaussian_filter(images, (0, 0, sigma, sigma), mode="nearest", truncate=4)


def defocus_blur(images: np.ndarray, draws: Draws, radius: float, alias: float) -> np.ndarray:
    """Blur with a disk of ``radius`` that is smoothed by ``alias``."""
    kernel = stretched_kernel(disk(radius, alias), scale_of(images))
    return ndimage.correlate(images, kernel[None, None], mode="mirror")


def disk(radius: float, alias: float) -> np.ndarray:
    """Return the kernel of defocus: a disk of whole pixels, smoothed over 3 × 3 pixels.

    Returns
    -------
    numpy.ndarray
        Shape (k, k), k odd, of sum 1.
    """
    half = math.ceil(radius) + 1
    grid = np.arange(-half, half + 1)
    pixels = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(np.float64)
    smoothing = np.exp(-np.array([1.0, 0.0, 1.0]) / (2 * alias**2))
    smoothing /= smoothing.sum()
    for axis in (0, 1):
        pixels = ndimage.correlate1d(pixels, smoothing, axis=axis, mode="constant")
    return pixels / pixels.sum()


def stretched_kernel(kernel: np.ndarray, scale: float) -> np.ndarray:
    """Enlarge a kernel whose weights are spread evenly over their pixels; its sum stays.

    Parameters
    ----------
    kernel : numpy.ndarray
        Shape (k, k), k odd.
    scale : float
        Factor of the pixels' sides.

    Returns
    -------
    numpy.ndarray
        Shape (m, m), m odd; ``kernel`` itself where ``scale`` is 1.
    """
    half = len(kernel) // 2
    new_half = math.ceil((half + 0.5) * scale - 0.5)
    old, new = np.arange(-half, half + 1), np.arange(-new_half, new_half + 1)[:, None]
    overlap = np.minimum(new + 0.5, (old + 0.5) * scale) - np.maximum(
        new - 0.5, (old - 0.5) * scale
    )
    shares = np.maximum(overlap, 0) / scale
    return shares @ kernel @ shares.T


def glass_blur(
    images: np.ndarray, draws: Draws, sigma: float, shift: float, rounds: float
) -> np.ndarray:
    """Let pixels take the value of a random neighbour, between two normal blurs.

    The published script means to exchange two neighbours, but writes both through views of the
    same array, so that a pixel takes its neighbour's value and the neighbour keeps it. The
    archive's images were made so, and these are.
    """
    most = max(1, round(shift * scale_of(images)))
    images = gaussian_blur(images, draws, sigma)
    n, channels, height, width = images.shape
    # As published, a shift goes from −most to most − 1, and the pixels near the border stay.
    rows, columns = np.arange(height)[:, None], np.arange(width)
    moves = (rows > most) & (rows <= height - most) & (columns > most) & (columns <= width - most)
    for _ in range(int(rounds)):
        shifts = np.where(moves, draws.integers(-most, most, 2, height, width), 0)
        sources = (rows + shifts[:, 0]) * width + columns + shifts[:, 1]
        sources = np.broadcast_to(sources.reshape(n, 1, -1), (n, channels, height * width))
        flat = images.reshape(n, channels, -1)
        images = np.take_along_axis(flat, sources, axis=2).reshape(images.shape)
    return gaussian_blur(images, draws, sigma)


def motion_blur(images: np.ndarray, draws: Draws, radius: float, sigma: float) -> np.ndarray:
    """Blur along a direction of up to 45 degrees from the horizontal."""
    scale = scale_of(images)
    return blurred_along(images, draws.uniform(-45, 45), radius * scale, sigma * scale)


def blurred_along(
    images: np.ndarray, angles: np.ndarray, radius: float, sigma: float
) -> np.ndarray:
    """Average the pixels that follow each pixel in a direction, with the half of a normal kernel.

    Parameters
    ----------
    images : numpy.ndarray
        Shape (n, channels, height, width).
    angles : numpy.ndarray
        Shape (n,), degrees; 0 points right, 90 down.
    radius : float
        Pixels of half the kernel's length.
    sigma : float
        Standard deviation of the kernel, in pixels.
    """
    n, channels, height, width = images.shape
    length = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(length) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    radians = np.deg2rad(angles)[:, None]
    blurred = np.zeros_like(images)
    samples, colours = np.arange(n)[:, None, None, None], np.arange(channels)[:, None, None]
    for k, weight in enumerate(weights):
        down, right = (
            np.ceil(k * part - 0.5).astype(int) for part in (np.sin(radians), np.cos(radians))
        )
        rows = np.clip(np.arange(height) + down, 0, height - 1)[:, None, :, None]
        columns = np.clip(np.arange(width) + right, 0, width - 1)[:, None, None, :]
        blurred += weight * images[samples, colours, rows, columns]
    return blurred


def zoom_blur(images: np.ndarray, draws: Draws, end: float) -> np.ndarray:
    """Average the image, and the image enlarged by factors from 1 to ``end``.

    Round-off decides whether ``end`` itself is in NumPy's range. The same range was used for the
    archive, where the first two severities have it and the others do not.
    """
    factors = np.arange(1, end, 0.01)
    return (images + sum(zoomed(images, factor) for factor in factors)) / (len(factors) + 1)


def zoomed(images: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the middle of images by linear interpolation; their size stays."""
    rows, columns = (_zoom_matrix(size, factor) for size in images.shape[2:])
    return rows @ images @ columns.T


def _zoom_matrix(size: int, factor: float) -> np.ndarray:
    """Return the weights of a line's pixels in each pixel of its enlarged middle."""
    part = math.ceil(size / factor)
    # The first and the last pixel of the part become those of the enlarged part, which is trimmed.
    enlarged = round(part * factor)
    places = (np.arange(size) + (enlarged - size) // 2) * (part - 1) / (enlarged - 1)
    places += (size - part) // 2
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size)))
