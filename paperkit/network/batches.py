"""Data as one batch, or as a stream of batches of any sizes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.network.precision import widened
from paperkit.network.samples import (
    Inputs,
    Samples,
    as_inputs,
    concatenate,
    refuse_unusable,
)

_ADVICE = "pass (inputs, targets), tensors both, or an iterable of such batches"

# Under these names a batch that is a dict holds its targets.
_TARGET_KEYS = ("labels", "label", "targets", "target")

# Sums over the data of two passes may differ by the order of the additions, not by more.
_SAME = 1e-9

_ENTRIES_AT_ONCE = 2**16


class DataChangedError(ValueError):
    """The data gave other samples in another pass."""


class Batches:
    """Data that can be read more than once, and are the same each time.

    Parameters
    ----------
    data : pair, object or iterable
        ``(inputs, targets)``; an object with these attributes; or an iterable of such pairs, for
        example a ``DataLoader``, which is read anew at every pass. Inputs are a tensor, or several
        in a tuple, list or dict; a batch may be one dict that has its targets under ``labels``.
    device : torch.device, optional
        Where batches are moved to.
    dtype : torch.dtype, optional
        Inputs of a narrower floating format are taken to this one, which is exact.

    Raises
    ------
    TypeError
        If ``data`` is of another kind.
    """

    def __init__(
        self,
        data: object,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = None if device is None else arguments.device("device", device)
        self.dtype = None if dtype is None else arguments.dtype("dtype", dtype)
        self._data = data
        self._single = _pair(data)
        self._first_pass: _Content | None = None
        if self._single is not None:
            self._single = self._checked(*self._single)
        elif isinstance(data, Iterator):
            raise TypeError(
                "data is a generator, which can be read only once: pass a list or a DataLoader."
            )
        elif not isinstance(data, Iterable) or isinstance(data, Tensor | str | Mapping):
            raise TypeError(f"data is a {type(data).__name__}: {_ADVICE}.")

    @classmethod
    def of(
        cls,
        data: object,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Batches:
        """Return the data themselves if they are batches already."""
        return data if isinstance(data, cls) else cls(data, device, dtype)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        """Yield inputs (n_b, …) and targets (n_b, …).

        Raises
        ------
        TypeError
            If a batch is of another kind.
        ValueError
            If there is no batch, or one is empty or has unequal numbers of inputs and targets.
        DataChangedError
            A ValueError: if a whole pass had other samples than the first.
        """
        if self._single is not None:
            yield self._single
            return
        seen = _Content()
        for batch in self._data:  # type: ignore[attr-defined]
            pair = _pair(batch)
            if pair is None:
                raise TypeError(f"data has a batch of type {type(batch).__name__}: {_ADVICE}.")
            inputs, targets = self._checked(*pair)
            seen = seen.plus(inputs, targets)
            yield inputs, targets
        if seen.samples == 0:
            raise ValueError(f"data is empty: {_ADVICE}.")
        self._first_pass = self._first_pass or seen
        if not self._first_pass.same(seen):
            raise DataChangedError(
                "data gave other samples in another pass: it augments, or shuffles and drops a "
                "part or pads to other lengths; pass one draw of it, list(data), or a loader "
                "without that."
            )

    def _checked(self, inputs: Any, targets: Tensor) -> tuple[Inputs, Tensor]:
        inputs = as_inputs(inputs)
        arguments.instance("targets", targets, Tensor, "samples come first")
        refuse_unusable("targets", targets)
        if targets.ndim == 0 or len(inputs) != len(targets):
            entries = len(targets) if targets.ndim else 0
            raise ValueError(f"targets has {entries} entries for {len(inputs)} inputs.")
        if len(inputs) == 0:
            raise ValueError("data has an empty batch: pass at least one sample.")
        if self.dtype is not None:
            inputs = widened(inputs, self.dtype)
        return _recordable(inputs, self.device), _recordable(targets, self.device)

    def joined(self) -> tuple[Any, Tensor]:
        """Return all data as one pair."""
        inputs, targets = zip(*self, strict=True)
        return concatenate(inputs), targets[0] if len(targets) == 1 else torch.cat(targets)


def _recordable(value: Any, device: torch.device | None) -> Any:
    """Move to a device; copy what was made in inference mode, which no graph may hold."""
    if isinstance(value, Samples):
        return value.map(lambda part: _recordable(part, device))
    if device is not None and value.device != device:
        value = value.to(device)
    if value.is_inference():
        with torch.inference_mode(False):
            value = value.clone()
    return value


class _Content(NamedTuple):
    """Sums over the samples of a pass, which do not depend on their order or on the batches.

    ``weighted`` and ``squared`` are of one number for each sample, a weighted sum of its entries
    and its targets': what belongs to which sample counts, and where.
    """

    samples: int = 0
    weighted: float = 0.0
    squared: float = 0.0
    power: float = 0.0

    def plus(self, inputs: Inputs, targets: Tensor) -> _Content:
        """Add a batch."""
        numbers: Any = 0.0
        power = self.power
        for index, tensor in enumerate((*_tensors(inputs), targets)):
            rows = tensor.detach().reshape(len(tensor), -1)
            weights = _weights(rows.shape[1], index, rows.device)
            found = []
            # A few at a time: a double of a large batch would cost more than the sums.
            for some in rows.split(max(1, _ENTRIES_AT_ONCE // max(1, rows.shape[1]))):
                double = some.to(torch.float64)
                found.append(double @ weights)
                power += float(torch.linalg.vector_norm(double)) ** 2
            numbers = numbers + torch.cat(found).to(targets.device)
        return _Content(
            self.samples + len(inputs),
            self.weighted + float(numbers.sum()),
            self.squared + float(numbers @ numbers),
            power,
        )

    def same(self, other: _Content) -> bool:
        """Whether the sums are equal up to the order of their additions."""
        size = (self.power * self.samples) ** 0.5
        return self.samples == other.samples and all(
            abs(mine - theirs) <= _SAME * scale
            for mine, theirs, scale in (
                (self.weighted, other.weighted, size),
                (self.squared, other.squared, self.squared + self.power),
                (self.power, other.power, self.power),
            )
        )


@functools.lru_cache(maxsize=16)
def _weights(entries: int, part: int, device: torch.device) -> Tensor:
    """Return weights of a sample's entries, other ones for each part of it."""
    places = torch.arange(1, entries + 1, dtype=torch.float64, device=device)
    return torch.cos((1 + part) * places)


def _tensors(inputs: Inputs) -> list[Tensor]:
    return inputs.tensors() if isinstance(inputs, Samples) else [inputs]


def batches(data: object) -> Iterator[tuple[Any, Tensor]]:
    """Yield the batches of ``data``, whose sizes may differ; see :class:`Batches`."""
    return iter(Batches.of(data))


def as_batch(data: object) -> tuple[Any, Tensor]:
    """Return all of ``data`` as one pair; for what it may be and errors, see :class:`Batches`."""
    return Batches.of(data).joined()


def _pair(data: object) -> tuple[Any, Tensor] | None:
    """Return inputs and targets if the object holds one batch."""
    if isinstance(data, tuple | list):
        if len(data) == 2 and isinstance(data[1], Tensor) and _are_inputs(data[0]):
            return data[0], data[1]
        return None
    if hasattr(data, "inputs") and hasattr(data, "targets"):
        return data.inputs, data.targets
    if isinstance(data, Mapping):
        for key in _TARGET_KEYS:
            if isinstance(data.get(key), Tensor):
                return {name: part for name, part in data.items() if name != key}, data[key]
    return None


def _are_inputs(value: object) -> bool:
    if isinstance(value, Tensor | Samples):
        return True
    if isinstance(value, Mapping):
        return any(isinstance(part, Tensor) for part in value.values())
    # Beside targets, several tensors are the inputs' parts.
    return isinstance(value, tuple | list) and all(isinstance(part, Tensor) for part in value)
