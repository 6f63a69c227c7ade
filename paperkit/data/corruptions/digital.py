"""Elastic maps, large pixels and JPEG."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from scipy import ndimage

from paperkit.data.corruptions.blur import scale_of
from paperkit.data.corruptions.constants import SIDE
from paperkit.data.corruptions.draws import Draws
from paperkit.data.corruptions.weather import small_size, stretched


def elastic_transform(
    images: np.ndarray, draws: Draws, strength: float, smoothing: float, shift: float
) -> np.ndarray:
    """Apply a random affine map that is near the identity, then smooth random displacements."""
    n, _, height, width = images.shape
    small = small_size(images)
    grid = np.indices((height, width)).astype(np.float64)
    maps = _affine_maps(draws.uniform(-shift, shift, 3, 2), height, width)
    points = np.concatenate([grid, np.ones((1, height, width))])
    affine = np.einsum("nij,jhw->nihw", maps, points)

    sigma = (0, 0, smoothing * SIDE, smoothing * SIDE)
    noise = draws.uniform(-1, 1, 2, *small)
    fields = strength * SIDE * ndimage.gaussian_filter(noise, sigma, mode="reflect", truncate=3)
    displaced = grid + scale_of(images) * stretched(fields, (height, width))

    result = np.empty_like(images)
    for k in range(n):
        for channel, image in enumerate(images[k]):
            image = ndimage.map_coordinates(image, affine[k], order=1, mode="mirror")
            image = ndimage.map_coordinates(image, displaced[k], order=1, mode="reflect")
            result[k, channel] = image
    return result


def _affine_maps(shifts: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return maps (n, 2, 3) that bring three shifted points back to where they were.

    Parameters
    ----------
    shifts : numpy.ndarray
        Shape (n, 3, 2), over the shorter side.
    height, width : int
        Size of the images.
    """
    side = min(height, width)
    reach = side // 3
    corners = np.array([[1, 1], [1, -1], [-1, -1]]) * reach + np.array([height // 2, width // 2])
    moved = corners + shifts * side
    with_one = np.concatenate([moved, np.ones((*moved.shape[:2], 1))], axis=2)
    return np.linalg.solve(with_one, np.broadcast_to(corners.astype(float), moved.shape)).swapaxes(
        1, 2
    )


def pixelate(images: np.ndarray, draws: Draws, factor: float) -> np.ndarray:
    """Replace each block of pixels by its mean; a side has ``factor`` as many blocks as pixels."""
    rows, columns = (_block_means(size, int(size * factor)) for size in images.shape[2:])
    return rows @ images @ columns.T


def _block_means(size: int, blocks: int) -> np.ndarray:
    """Return the projection of a line's pixels onto the means of its blocks."""
    # A pixel belongs to the block that its centre lies in; integers, so that no tie is rounded.
    block = (2 * np.arange(size) + 1) * blocks // (2 * size)
    together = (block[:, None] == block).astype(np.float64)
    return together / together.sum(axis=1, keepdims=True)


def jpeg_compression(images: np.ndarray, draws: Draws, quality: float) -> np.ndarray:
    """Round to bytes, and write and read as JPEG."""
    from PIL import Image  # comes with torchvision; only this corruption needs it

    result = np.empty_like(images)
    for k, image in enumerate(np.rint(images * 255).astype(np.uint8)):
        picture = Image.fromarray(image.transpose(1, 2, 0).squeeze())
        content = BytesIO()
        picture.save(content, "JPEG", quality=int(quality))
        decoded = np.asarray(Image.open(content)).reshape(*image.shape[1:], -1)
        result[k] = decoded.transpose(2, 0, 1) / 255
    return result
