"""The floating-point format in which a network is measured.

Weights in half precision are exact numbers, and what they define is a function like any other; only
a pass in half precision has hardly a digit of its second derivatives. So such a network runs with
the same weights in single precision while it is measured, and its result says so. A network of
several formats runs in the widest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_FULL = (torch.float32, torch.float64)


def _floating(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None and tensor.is_floating_point()]


def _is_narrower(dtype: torch.dtype, than: torch.dtype) -> bool:
    return torch.finfo(dtype).eps > torch.finfo(than).eps


def formats_of(model: nn.Module) -> tuple[torch.dtype, ...]:
    """Return the formats of a model's weights, the narrowest first."""
    formats = {parameter.dtype for parameter in _floating(model.parameters())}
    return tuple(sorted(formats, key=lambda dtype: -torch.finfo(dtype).eps))


def working_format(formats: Iterable[torch.dtype]) -> torch.dtype:
    """Return the format in which weights of these formats are measured: the widest, or single."""
    return torch.float64 if torch.float64 in formats else torch.float32


def is_mixed(formats: tuple[torch.dtype, ...]) -> bool:
    """Whether such weights are measured in another format than their own."""
    return len(formats) > 1 or (len(formats) == 1 and formats[0] not in _FULL)


def widened(value: Any, dtype: torch.dtype | None) -> Any:
    """Take tensors of a narrower floating format to another, which is exact.

    Parameters
    ----------
    value : Tensor or Samples
        Tensor, or samples of several.
    dtype : torch.dtype or None
        Wider format; None leaves the tensors as they are.
    """
    if dtype is None:
        return value
    if not isinstance(value, Tensor):
        return value.widened(dtype) if hasattr(value, "widened") else value
    if not value.is_floating_point() or not _is_narrower(value.dtype, dtype):
        return value
    return value.to(dtype)


@contextmanager
def one_format(model: nn.Module) -> Iterator[None]:
    """Let weights and buffers be in the working format meanwhile, and come back as they were.

    The same tensors hold converted values, so that it does not matter where a forward pass reads
    them.
    """
    formats = formats_of(model)
    if not is_mixed(formats):
        yield
        return
    dtype = working_format(formats)
    tensors = _floating([*model.parameters(), *model.buffers()])
    saved = [(t, t.data) for t in dict.fromkeys(tensors) if _is_narrower(t.dtype, dtype)]
    try:
        for tensor, data in saved:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in saved:
            tensor.data = data


@contextmanager
def without_autocast(model: nn.Module, noticed: Callable[[], None] | None = None) -> Iterator[None]:
    """Switch automatic mixed precision off: where it is on, and where the model switches it on.

    Parameters
    ----------
    model : nn.Module
        Model whose parameters tell on which devices autocast is switched off.
    noticed : callable, optional
        Function that is called each time the model would have switched it on.
    """
    kinds = {"cpu", *(parameter.device.type for parameter in model.parameters())}
    active = [kind for kind in sorted(kinds) if _autocast_is_on(kind)]
    contexts = [torch.autocast(kind, enabled=False) for kind in active]
    enter = torch.autocast.__enter__

    def enter_disabled(context: torch.autocast) -> Any:
        enabled, context._enabled = context._enabled, False
        if enabled and noticed is not None:
            noticed()
        try:
            return enter(context)
        finally:
            context._enabled = enabled

    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        try:
            # The model enters contexts of its own, which are out of reach. So the method is
            # replaced in torch's class, and a context that is entered meanwhile is a disabled one.
            torch.autocast.__enter__ = enter_disabled  # type: ignore[method-assign]
            yield
        finally:
            torch.autocast.__enter__ = enter  # type: ignore[method-assign]


def _autocast_is_on(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def narrowest_format(outputs: Tensor) -> torch.dtype:
    """Return the narrowest floating format in autograd's graph of the outputs."""
    formats = {outputs.dtype}
    stack = [outputs.grad_fn] if outputs.grad_fn is not None else []
    visited = set(stack)
    while stack:
        node = stack.pop()
        formats |= {part.dtype for part in node._input_metadata if part.dtype.is_floating_point}
        for operand, _ in node.next_functions:
            if operand is not None and operand not in visited:
                visited.add(operand)
                stack.append(operand)
    return max(formats, key=lambda dtype: torch.finfo(dtype).eps)
