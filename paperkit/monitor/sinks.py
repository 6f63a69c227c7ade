"""Places to which a monitor writes its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from paperkit import arguments

Numbers = Mapping[str, float]
Sink = Callable[[Numbers, int], object]


def sinks_of(log: object) -> list[Sink]:
    """Return functions of the numbers and the step that write to the given objects.

    Parameters
    ----------
    log : object or list of objects
        Each with a method ``add_scalar(name, value, step)``, as TensorBoard's writer,
        ``log_metrics(numbers, step=...)``, as Lightning's loggers and MLflow, ``log_dict(numbers)``
        or ``log(numbers)``, as Weights & Biases; or a function of the numbers.

    Raises
    ------
    TypeError
        If one of them is none of these.
    """
    if log is None:
        return []
    targets = log if isinstance(log, list | tuple) else [log]
    return [_sink_of(target) for target in targets]


def _sink_of(target: Any) -> Sink:
    if isinstance(target, Tensor):  # Its method log is the logarithm.
        raise TypeError(f"log={arguments.shown(target)} is a tensor: pass a logger or a function.")
    if callable(getattr(target, "add_scalar", None)):

        def add_scalars(numbers: Numbers, step: int) -> None:
            for name, value in numbers.items():
                target.add_scalar(name, value, step)

        return add_scalars
    if callable(getattr(target, "log_metrics", None)):
        return lambda numbers, step: target.log_metrics(dict(numbers), step=step)
    for name in ("log_dict", "log"):
        method = getattr(target, name, None)
        if callable(method):
            return _without_step(method)
    if callable(target):
        return _without_step(target)
    raise TypeError(
        f"log={arguments.shown(target)} has no method log, log_dict, log_metrics or add_scalar and "
        "is no function: pass a run, a logger, a SummaryWriter, or a function of a dict."
    )


def _without_step(write: Callable[[dict[str, float]], object]) -> Sink:
    return lambda numbers, _: write(dict(numbers))
