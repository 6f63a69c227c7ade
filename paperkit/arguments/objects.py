"""Models, functions, and other objects of a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paperkit.arguments.numbers import entries_of
from paperkit.arguments.sentences import sentence, shown

T = TypeVar("T")


def module(name: str, value: Any, also: type | tuple[type, ...] = ()) -> Any:
    """Return a model: a ``torch.nn.Module``, or an object of a type that is allowed beside it.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if not isinstance(value, nn.Module) and not isinstance(value, also):
        hint = " or its class: pass an object" if isinstance(value, type) else ""
        raise TypeError(sentence(name, value, f"a torch.nn.Module{hint}", kind=True))
    return value


def instance(name: str, value: object, kind: type[T] | tuple[type[T], ...], source: str = "") -> T:
    """Return an object of a given class, or of one of several.

    Parameters
    ----------
    name : str
        Name of the argument.
    value : object
        Value that the caller passed.
    kind : type or tuple of type
        Class, or several of them.
    source : str
        Clause that says where such an object comes from, with which the sentence closes.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if not isinstance(value, kind):
        kinds = " or ".join(cls.__name__ for cls in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(sentence(name, value, f"a {kinds}", source, kind=True))
    return value


def function(name: str, value: Any, expected: str = "a function") -> Callable[..., Any]:
    """Return something that can be called.

    Raises
    ------
    TypeError
        If it cannot.
    """
    if not callable(value):
        raise TypeError(sentence(name, value, expected, kind=True))
    return value


def functions(name: str, value: object, of: str) -> tuple[Callable[..., Any], ...]:
    """Return a sequence of functions, none included.

    Raises
    ------
    TypeError
        If it is no sequence, or an entry cannot be called.
    """
    expected = f"a sequence of functions {of}"
    if isinstance(value, Tensor):
        raise TypeError(sentence(name, value, expected, kind=True))
    entries = entries_of(name, value, expected)
    return tuple(
        function(f"{name}[{index}]", entry, f"a function {of}")
        for index, entry in enumerate(entries)
    )


def iterable(name: str, value: Any, of: str) -> Iterable[Any]:
    """Return something to go through that is no string; a tensor is none.

    Raises
    ------
    TypeError
        If it cannot be gone through.
    """
    if isinstance(value, str | bytes | Tensor) or not isinstance(value, Iterable):
        raise TypeError(sentence(name, value, f"a list of {of}", kind=True))
    return value


def dtype(name: str, value: object) -> torch.dtype:
    """Return a real floating-point dtype.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise TypeError(sentence(name, value, "a floating-point dtype such as torch.float64"))
    return value


def device(name: str, value: object) -> torch.device:
    """Return a device.

    Raises
    ------
    TypeError, ValueError
        If it is neither a device nor a string, or there is no such device.
    """
    expected = 'a device such as "cpu" or "cuda:0"'
    if not isinstance(value, str | torch.device):
        raise TypeError(sentence(name, value, expected, kind=True))
    try:
        result = torch.device(value)
    except RuntimeError:
        raise ValueError(sentence(name, value, expected)) from None
    try:
        torch.empty(0, device=result)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"{name}={shown(value)} is not there: pass {expected}.") from None
    return result
