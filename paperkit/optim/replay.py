"""The state of the random number generators, so that every pass of a step draws the same."""

from __future__ import annotations

import copy
import ctypes
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
        self._numpy = _NumpyState.at_present()
        self._python = random.getstate()

    def set(self) -> None:
        """Put all generators back into this state."""
        torch.set_rng_state(self._cpu)
        for device, state in self._devices.items():
            torch.get_device_module(device).set_rng_state(state, device)
        self._numpy.set()
        random.setstate(self._python)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw from this state inside, and continue afterwards from where the generators were."""
        present = self._at_present()
        self.set()
        try:
            yield
        finally:
            present.set()

    def _at_present(self) -> RandomState:
        present = copy.copy(self)
        present._cpu = torch.get_rng_state()
        present._devices = {
            device: torch.get_device_module(device).get_rng_state(device)
            for device in self._devices
        }
        present._numpy = _NumpyState.at_present()
        present._python = random.getstate()
        return present


class _NumpyState:
    """The state of NumPy's global generator, which takes 70 µs to read and 90 to write.

    Most models do not draw from it, so the memory of the default generator is compared first. A
    second normal number that waits to be drawn lies elsewhere: then nothing is compared.
    """

    _last: _NumpyState | None = None

    def __init__(self) -> None:
        self._state = np.random.get_state()  # noqa: NPY002 - the generator that layers draw from
        _, _, _, waits, _ = self._state
        self._memory = None if waits else self._present_memory()

    @classmethod
    def at_present(cls) -> _NumpyState:
        """Return the present state, the last one that was read if it is still in place."""
        if cls._last is None or not cls._last.is_present():
            cls._last = cls()
        return cls._last

    @staticmethod
    def _present_memory() -> bytes | None:
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if type(generator) is not np.random.MT19937:
            return None
        # The state is 624 words and the place of the next word, 4 bytes each.
        return ctypes.string_at(generator.ctypes.state_address, 4 * 625)

    def is_present(self) -> bool:
        """Say whether the generator is known to be in this state."""
        return self._memory is not None and self._memory == self._present_memory()

    def set(self) -> None:
        """Put the generator back."""
        if not self.is_present():
            np.random.set_state(self._state)  # noqa: NPY002
