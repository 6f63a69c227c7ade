"""Noise: Gaussian, of photons, of dead and hot pixels, and in proportion to the intensity."""

from __future__ import annotations

import numpy as np

from paperkit.data.corruptions.draws import Draws


def gaussian_noise(images: np.ndarray, draws: Draws, sigma: float) -> np.ndarray:
    """Add normal noise of standard deviation ``sigma``."""
    return images + sigma * draws.normal(*images.shape[1:])


def shot_noise(images: np.ndarray, draws: Draws, rate: float) -> np.ndarray:
    """Count photons, of which full intensity has ``rate`` in the mean."""
    return draws.poisson(images * rate) / rate


def impulse_noise(images: np.ndarray, draws: Draws, amount: float) -> np.ndarray:
    """Replace a share ``amount`` of the values by 0 or 1, which are equally likely."""
    shape = images.shape[1:]
    is_hit = draws.uniform(0, 1, *shape) < amount
    is_salt = draws.uniform(0, 1, *shape) < 0.5
    return np.where(is_hit, is_salt, images)


def speckle_noise(images: np.ndarray, draws: Draws, sigma: float) -> np.ndarray:
    """Multiply by 1 plus normal noise of standard deviation ``sigma``."""
    return images + images * sigma * draws.normal(*images.shape[1:])
