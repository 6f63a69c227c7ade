"""The state of the random number generators, so that every pass of a step draws the same."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from paperkit import arguments


class RandomState:
    """The global generators of torch (CPU and devices), NumPy and Python at one moment.

    Dropout and stochastic depth draw from them. A generator that a model holds itself is not seen.

    Parameters
    ----------
    devices : iterable of torch.device
        Devices in use besides the CPU.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import RandomState
    >>> state = RandomState([torch.device("cpu")])
    >>> first = torch.rand(3)
    >>> with state.replayed():
    ...     again = torch.rand(3)
    >>> torch.equal(first, again), torch.equal(first, torch.rand(3))
    (True, False)
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        items = arguments.iterable("devices", devices, "devices")
        homes = {arguments.device("devices", device) for device in items}
        self._cpu = torch.get_rng_state()
        self._devices = {
            device: torch.get_device_module(device).get_rng_state(device)
            for device in homes
            if device.type != "cpu"
        }
        self._numpy = np.random.get_state()  # noqa: NPY002 - the generator that layers draw from
        self._python = random.getstate()

    def set(self) -> None:
        """Put all generators back into this state."""
        torch.set_rng_state(self._cpu)
        for device, state in self._devices.items():
            torch.get_device_module(device).set_rng_state(state, device)
        np.random.set_state(self._numpy)  # noqa: NPY002
        random.setstate(self._python)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw from this state inside, and continue afterwards from where the generators were."""
        present = RandomState(self._devices)
        self.set()
        try:
            yield
        finally:
            present.set()
