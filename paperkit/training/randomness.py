"""Random numbers of a run: each purpose, epoch and step has a seed of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from paperkit.optim import RandomState

# The position of a purpose is part of its seed: new ones go to the end.
_PURPOSES = ("order", "augmentation", "layers", "global augmentation")


class Randomness:
    """Seeds and generators of a run on a device.

    Parameters
    ----------
    seed : int
        Seed of the run.
    device : torch.device
        Device of the model.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.device = device

    def generator(self, purpose: str, *position: int) -> torch.Generator:
        """Return a CPU generator for a purpose at an epoch or step."""
        return torch.Generator(device="cpu").manual_seed(self._seed(purpose, position))

    def seed_global(self, purpose: str, step: int) -> None:
        """Seed the global generators of torch, NumPy and Python for a purpose at a step."""
        seed = self._seed(purpose, (step,))
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that layers draw from
        random.seed(seed)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the global generators back at the end, also after an exception."""
        before = RandomState([self.device])
        try:
            yield
        finally:
            before.set()

    def _seed(self, purpose: str, position: tuple[int, ...]) -> int:
        key = (_PURPOSES.index(purpose), *position)
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        return int(sequence.generate_state(1, np.uint64)[0])
