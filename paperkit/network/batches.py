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

# Keys under which a batch that is a dict may hold its targets; the first that is there counts.
_TARGET_KEYS = ("labels", "label", "targets", "target")

# Relative tolerance between the sums of two passes. A loader that shuffles adds the same samples in
# another order, and the sums then differ by round-off, which is far below this.
_SUMS_TOLERANCE = 1e-9

# Entries that are copied to float64 at a time, so that the copy stays small beside the batch.
_ENTRIES_AT_ONCE = 2**16


class DataChangedError(ValueError):
    """The data gave other samples in another pass.

    Examples
    --------
    >>> import torch
    >>> from paperkit.network import Batches
    >>> class Augmenting:
    ...     def __iter__(self):
    ...         yield torch.rand(4, 2), torch.zeros(4)
    >>> data = Batches(Augmenting())
    >>> first_pass = list(data)
    >>> second_pass = list(data)
    Traceback (most recent call last):
        ...
    paperkit.network.batches.DataChangedError: data gave other samples in another pass: it augments,
        or shuffles and drops a part or pads to other lengths; pass one draw of it, list(data), or a
        loader without that.
    """


class Batches:
    """Data that can be read more than once, and are the same each time.

    Parameters
    ----------
    data : pair, object or iterable
        ``(inputs, targets)``; an object with these attributes; or an iterable of such pairs, for
        example a ``DataLoader``, which is read anew at every pass. Inputs are a tensor, or several
        in a tuple, list or dict; a batch may be one dict that has its targets under ``labels``.
    device : torch.device, optional
        Device to which every batch is moved; default where it is.
    dtype : torch.dtype, optional
        Floating format to which inputs of a narrower one are converted, which is exact.

    Raises
    ------
    TypeError
        If ``data`` is of another kind.

    Examples
    --------
    >>> import torch
    >>> from paperkit.network import Batches
    >>> data = Batches([(torch.ones(2, 3), torch.zeros(2)), (torch.ones(1, 3), torch.ones(1))])
    >>> [len(targets) for _, targets in data], [len(targets) for _, targets in data]  # read twice
    ([2, 1], [2, 1])
    >>> inputs, targets = data.joined()
    >>> inputs.shape, targets
    (torch.Size([3, 3]), tensor([0., 0., 1.]))
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
        self._single = _find_pair(data)
        self._first_pass: _Content | None = None
        if self._single is not None:
            self._single = self._check_pair(*self._single)
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
        content = _Content()
        for batch in self._data:  # type: ignore[attr-defined]
            pair = _find_pair(batch)
            if pair is None:
                raise TypeError(f"data has a batch of type {type(batch).__name__}: {_ADVICE}.")
            inputs, targets = self._check_pair(*pair)
            content = content.plus(inputs, targets)
            yield inputs, targets
        if content.samples == 0:
            raise ValueError(f"data is empty: {_ADVICE}.")
        self._first_pass = self._first_pass or content
        if not self._first_pass.same(content):
            raise DataChangedError(
                "data gave other samples in another pass: it augments, or shuffles and drops a "
                "part or pads to other lengths; pass one draw of it, list(data), or a loader "
                "without that."
            )

    def _check_pair(self, inputs: Any, targets: Tensor) -> tuple[Inputs, Tensor]:
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
        return _make_recordable(inputs, self.device), _make_recordable(targets, self.device)

    def joined(self) -> tuple[Any, Tensor]:
        """Return all data as one pair."""
        inputs, targets = zip(*self, strict=True)
        return concatenate(inputs), targets[0] if len(targets) == 1 else torch.cat(targets)


def _make_recordable(value: Any, device: torch.device | None) -> Any:
    """Move tensors to a device; copy those made in inference mode, which no graph can hold."""
    if isinstance(value, Samples):
        return value.map(lambda part: _make_recordable(part, device))
    if device is not None and value.device != device:
        value = value.to(device)
    if value.is_inference():
        with torch.inference_mode(False):
            value = value.clone()
    return value


class _Content(NamedTuple):
    """Sums over the samples of a pass, which do not depend on their order or on the batches.

    Each sample is condensed to a single number, a weighted sum of its entries and of its targets'.
    ``weighted`` is the sum of these numbers and ``squared`` the sum of their squares. The weights
    differ from place to place, so that entries which move within a sample, or from a sample to
    another, change the sums. ``power`` is the sum of squares of all entries and gives the scale.
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
            weights = _entry_weights(rows.shape[1], index, rows.device)
            products = []
            # Convert a few rows at a time: a float64 copy of a large batch would take more memory
            # than everything else here.
            for piece in rows.split(max(1, _ENTRIES_AT_ONCE // max(1, rows.shape[1]))):
                precise = piece.to(torch.float64)
                products.append(precise @ weights)
                power += float(torch.linalg.vector_norm(precise)) ** 2
            numbers = numbers + torch.cat(products).to(targets.device)
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
            abs(mine - theirs) <= _SUMS_TOLERANCE * scale
            for mine, theirs, scale in (
                (self.weighted, other.weighted, size),
                (self.squared, other.squared, self.squared + self.power),
                (self.power, other.power, self.power),
            )
        )


@functools.lru_cache(maxsize=16)
def _entry_weights(entries: int, part: int, device: torch.device) -> Tensor:
    """Return a weight for each entry of a sample; each part of the inputs has its own weights."""
    places = torch.arange(1, entries + 1, dtype=torch.float64, device=device)
    return torch.cos((1 + part) * places)


def _tensors(inputs: Inputs) -> list[Tensor]:
    return inputs.tensors() if isinstance(inputs, Samples) else [inputs]


def batches(data: object) -> Iterator[tuple[Any, Tensor]]:
    """Yield the batches of ``data``, whose sizes may differ; see :class:`Batches`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.network import batches
    >>> samples = [(torch.ones(2), 0), (torch.zeros(2), 1), (torch.ones(2), 1)]
    >>> loader = torch.utils.data.DataLoader(samples, batch_size=2)
    >>> for inputs, targets in batches(loader):
    ...     print(inputs.shape, targets)
    torch.Size([2, 2]) tensor([0, 1])
    torch.Size([1, 2]) tensor([1])
    """
    return iter(Batches.of(data))


def as_batch(data: object) -> tuple[Any, Tensor]:
    """Return all of ``data`` as one pair; for what it may be and errors, see :class:`Batches`."""
    return Batches.of(data).joined()


def _find_pair(data: object) -> tuple[Any, Tensor] | None:
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
    # A tuple or list of tensors beside the targets holds the parts of the inputs.
    return isinstance(value, tuple | list) and all(isinstance(part, Tensor) for part in value)
