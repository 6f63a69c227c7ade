"""Data as one batch, or as a stream of batches of any sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor
from torch import cat as concatenate

_ADVICE = "pass (inputs, targets) or an iterable of such batches"


def batches(data: object) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of ``data``, whose sizes may differ.

    Parameters
    ----------
    data : pair, object or iterable
        ``(inputs, targets)``; an object with these attributes; or an iterable of such pairs, for
        example a ``DataLoader``. It is read anew at every pass, so a generator is refused.

    Yields
    ------
    tuple of Tensor
        Inputs (n_b, …) and targets (n_b, …).

    Raises
    ------
    TypeError
        If ``data`` is of another kind.
    ValueError
        If there is no batch, or a batch is empty or has unequal numbers of inputs and targets.
    """
    if _is_pair(data):
        yield _checked(*data)  # type: ignore[misc]
        return
    if hasattr(data, "inputs") and hasattr(data, "targets"):
        yield _checked(data.inputs, data.targets)
        return
    if isinstance(data, Iterator):
        raise TypeError(
            "data is a generator, which can be read only once: pass a list or a DataLoader."
        )
    if not isinstance(data, Iterable) or isinstance(data, Tensor):
        raise TypeError(f"data is a {type(data).__name__}: {_ADVICE}.")
    count = 0
    for batch in data:
        if not _is_pair(batch):
            raise TypeError(f"data has a batch of type {type(batch).__name__}: {_ADVICE}.")
        count += 1
        yield _checked(*batch)
    if count == 0:
        raise ValueError(f"data is empty: {_ADVICE}.")


def as_batch(data: object) -> tuple[Tensor, Tensor]:
    """Return all of ``data`` as one pair; for what it may be and errors, see :func:`batches`."""
    inputs, targets = zip(*batches(data), strict=True)
    if len(inputs) == 1:
        return inputs[0], targets[0]
    return concatenate(inputs), concatenate(targets)


def _is_pair(data: object) -> bool:
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and all(isinstance(part, Tensor) for part in data)
    )


def _checked(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if len(inputs) != len(targets):
        raise ValueError(f"targets has {len(targets)} entries for {len(inputs)} inputs.")
    if len(inputs) == 0:
        raise ValueError("data has an empty batch: pass at least one sample.")
    return inputs, targets
