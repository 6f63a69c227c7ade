"""Data as one batch, or as a stream of batches of any sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linearize.precision import widened
from paperkit.linearize.samples import Inputs, Samples, as_inputs, concatenate

_ADVICE = "pass (inputs, targets), tensors both, or an iterable of such batches"

# Under these names a batch that is a dict holds its targets.
_TARGET_KEYS = ("labels", "label", "targets", "target")

# Sums over the data of two passes may differ by the order of the additions, not by more.
_SAME = 1e-9


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
        self._first_pass: tuple[int, float, float] | None = None
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
        count, total, squares = 0, 0.0, 0.0
        for batch in self._data:  # type: ignore[attr-defined]
            pair = _pair(batch)
            if pair is None:
                raise TypeError(f"data has a batch of type {type(batch).__name__}: {_ADVICE}.")
            inputs, targets = self._checked(*pair)
            part, power = _content(inputs, targets)
            count, total, squares = count + len(inputs), total + part, squares + power
            yield inputs, targets
        if count == 0:
            raise ValueError(f"data is empty: {_ADVICE}.")
        self._refuse_change((count, total, squares))

    def _refuse_change(self, seen: tuple[int, float, float]) -> None:
        if self._first_pass is None:
            self._first_pass = seen
            return
        count, total, squares = self._first_pass
        scale = _SAME * (squares * max(count, 1)) ** 0.5 + 1e-300
        if seen[0] != count or not (
            abs(seen[1] - total) <= scale and abs(seen[2] - squares) <= _SAME * squares + 1e-300
        ):
            raise DataChangedError(
                "data gave other samples in another pass: it augments, or shuffles and drops a "
                "part; pass one draw of it, list(data), or a loader without either."
            )

    def _checked(self, inputs: Any, targets: Tensor) -> tuple[Inputs, Tensor]:
        inputs = as_inputs(inputs)
        arguments.instance("targets", targets, Tensor, "samples come first")
        for tensor in (*(inputs.tensors() if isinstance(inputs, Samples) else [inputs]), targets):
            _refuse_unusable(tensor, "targets" if tensor is targets else "inputs")
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


def _refuse_unusable(tensor: Tensor, name: str) -> None:
    """Raise if a tensor has no values, or not the kind that a mean over samples can be made of."""
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device, without values: pass the data themselves.")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise ValueError(
            f"{name} is a nested or sparse tensor: pass a dense one (to_dense(), to_padded_tensor)."
        )
    if tensor.is_complex():
        raise ValueError(
            f"{name} is complex: pass its real and imaginary parts (torch.view_as_real) and join "
            "them in the model."
        )


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


def _content(inputs: Inputs, targets: Tensor) -> tuple[float, float]:
    """Return a weighted sum over the batch's entries and a sum of squares.

    The order of samples does not matter, their own entries' order does.
    """
    total = power = 0.0
    parts = inputs.tensors() if isinstance(inputs, Samples) else [inputs]
    for tensor in (*parts, targets):
        rows = tensor.detach().reshape(len(tensor), -1).to(torch.float64)
        weights = torch.cos(torch.arange(rows.shape[1], dtype=torch.float64, device=rows.device))
        total += float((rows @ weights).sum())
        power += float(rows.square().sum())
    return total, power


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
