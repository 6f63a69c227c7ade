"""Random numbers of a batch of images, each image with a generator of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Draws:
    """The random numbers of consecutive images under one corruption.

    An image's numbers depend on the seed, the corruption and the image's place alone, so that a
    batch's beginning is corrupted as the whole batch is, and severities are compared with the
    same draws.

    Parameters
    ----------
    seed : int
        Seed of all images.
    name : str
        Name of the corruption.
    images : range
        Places of the images in the whole batch.
    """

    def __init__(self, seed: int, name: str, images: range) -> None:
        self._generators = [np.random.default_rng([seed, k, *name.encode()]) for k in images]

    def normal(self, *shape: int) -> np.ndarray:
        """Draw standard normal numbers, of shape (n, *shape)."""
        return self._each(lambda rng: rng.standard_normal(shape))

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """Draw numbers from ``low`` to ``high``, of shape (n, *shape)."""
        return self._each(lambda rng: rng.uniform(low, high, shape))

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Draw integers from ``low`` to below ``high``, of shape (n, *shape)."""
        return self._each(lambda rng: rng.integers(low, high, shape))

    def poisson(self, rates: np.ndarray) -> np.ndarray:
        """Draw a count for each rate; ``rates`` has shape (n, …)."""
        pairs = zip(self._generators, rates, strict=True)
        return np.stack([rng.poisson(rate) for rng, rate in pairs])

    def _each(self, draw: Callable[[np.random.Generator], np.ndarray | float]) -> np.ndarray:
        return np.stack([np.asarray(draw(rng)) for rng in self._generators])
