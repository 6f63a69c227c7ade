"""Checks of arguments: each returns the value in its Python type, or raises one sentence.

The sentence begins with ``name=value`` and says what to pass: a ``TypeError`` where the value is of
another kind, a ``ValueError`` where it is of the right kind and out of range. Checks come before
anything is computed. A scalar of NumPy and a tensor without dimensions count as the number they
hold; a ``bool`` is no number.
"""

from __future__ import annotations

import difflib
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Shape = Sequence[int | str]
"""Expected sizes; a letter stands for any size, a last "…" for any number of sizes."""

_LARGEST_COUNT = 2**63 - 1  # the largest size or index of a tensor
_SEEDS = -(2**63), 2**64 - 1  # the range that torch.Generator.manual_seed accepts
# Orders beyond this are refused: α and α − 1 are then the same float64, and so are the entropies of
# order α and infinity.
_LARGEST_ORDER = 2**53
_MOST_NAMES = 12


def integer(
    name: str,
    value: object,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    because: str = "",
) -> int:
    """Return an integer in a range; without ``at_most``, one that fits 64 bits.

    Parameters
    ----------
    name : str
        Name of the argument.
    value : object
        Value that the caller passed.
    at_least, at_most : int, optional
        Ends of the range, which belong to it.
    because : str
        Reason for the range, with which the sentence closes.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or out of range.
    """
    within = _range(at_least=at_least, at_most=at_most)
    scalar = _scalar(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Integral):
        raise TypeError(_sentence(name, value, _joined("an integer", within), because, kind=True))
    result = int(scalar)
    low = -_LARGEST_COUNT if at_least is None else at_least
    high = _LARGEST_COUNT if at_most is None else at_most
    if not low <= result <= high:
        fitting = within if within and result < low else _joined(within, "at most 2⁶³ − 1")
        raise ValueError(
            _sentence(name, value, within if at_most is not None else fitting, because)
        )
    return result


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
    nan: bool = False,
    because: str = "",
) -> float:
    """Return a real number in a range, as a float.

    Parameters
    ----------
    name, value
        As in :func:`integer`.
    above, at_least, below, at_most : float, optional
        Ends of the range: ``above`` and ``below`` do not belong to it, the others do.
    finite : bool
        Whether infinity is refused.
    nan : bool
        Whether NaN is accepted.
    because : str
        As in :func:`integer`.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or out of range.
    """
    limits = _range(above=above, at_least=at_least, below=below, at_most=at_most)
    closed = below is not None or at_most is not None
    within = " and ".join(filter(None, [limits, "finite" if finite and not closed else ""]))
    scalar = _scalar(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Real):
        raise TypeError(
            _sentence(
                name,
                value,
                _joined("a finite number" if finite else "a number", limits),
                because,
                kind=True,
            )
        )
    try:
        result = float(scalar)
    except OverflowError:
        raise ValueError(_sentence(name, value, "a number that fits a float")) from None
    if nan and result != result:
        return result
    inside = (
        (above is None or result > above)
        and (at_least is None or result >= at_least)
        and (below is None or result < below)
        and (at_most is None or result <= at_most)
    )
    if result != result or not inside or (finite and abs(result) == float("inf")):
        raise ValueError(_sentence(name, value, within or "a number", because))
    return result


def order(
    name: str, value: object, *, one_allowed: bool = True, ends_allowed: bool = False
) -> float:
    """Return the order α of a Rényi entropy: positive, at most 2⁵³.

    Parameters
    ----------
    name, value
        As in :func:`integer`.
    one_allowed : bool
        Whether α = 1 is accepted; False where the formula divides by 1 − α.
    ends_allowed : bool
        Whether 0 and infinity are orders too.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or out of range.
    """
    if ends_allowed:
        alpha = number(name, value, at_least=0, finite=False)
        if _LARGEST_ORDER < alpha < float("inf"):
            raise ValueError(f"{name}={shown(value)} is as good as infinity: pass math.inf.")
        return alpha
    alpha = number(name, value, above=0, at_most=_LARGEST_ORDER)
    if alpha == 1 and not one_allowed:
        raise ValueError(f"{name}={shown(value)} divides by zero here: pass another order.")
    return alpha


def orders(name: str, value: object, *, infinite: bool = False) -> tuple[float, ...]:
    """Return one or more orders α, each once, in the order in which they came.

    Parameters
    ----------
    name, value
        As in :func:`order`, for every entry.
    infinite : bool
        Whether infinity is an order too.

    Raises
    ------
    TypeError, ValueError
        If it is no sequence of numbers, empty, or one of them is out of range.
    """
    expected = "a sequence of positive numbers"
    alphas = tuple(
        order(name, entry, ends_allowed=infinite) for entry in _entries(name, value, expected)
    )
    if 0 in alphas:
        raise ValueError(f"{name}={shown(value)} has 0, at which the entropy counts the rank.")
    if not alphas:
        raise ValueError(_sentence(name, value, expected + ", one at least"))
    return tuple(dict.fromkeys(alphas))


def seed(name: str, value: object) -> int:
    """Return a seed that a ``torch.Generator`` takes: an integer from −2⁶³ to 2⁶⁴ − 1.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or out of range.
    """
    low, high = _SEEDS
    scalar = _scalar(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Integral):
        raise TypeError(_sentence(name, value, "an integer", kind=True))
    if not low <= int(scalar) <= high:
        raise ValueError(_sentence(name, value, "an integer of at most 64 bits"))
    return int(scalar)


def memory_budget(name: str, value: object) -> int:
    """Return a number of bytes, at least 1; a float such as 2e9 is rounded down.

    Raises
    ------
    TypeError, ValueError
        If it is no number, below 1 or not finite.
    """
    return min(int(number(name, value, at_least=1, because="it counts bytes")), _LARGEST_COUNT)


def flag(name: str, value: object) -> bool:
    """Return True or False.

    Raises
    ------
    TypeError
        If it is neither.
    """
    scalar = _scalar(value)
    if not isinstance(scalar, bool):
        raise TypeError(_sentence(name, value, "True or False", kind=True))
    return scalar


def choice(name: str, value: object, options: Iterable[str]) -> str:
    """Return one of the known strings.

    Raises
    ------
    TypeError, ValueError
        If it is no string, or unknown; a similar option is proposed.
    """
    known = list(options)
    expected = f"one of {_listed(known)}"
    if not isinstance(value, str):
        raise TypeError(_sentence(name, value, expected, kind=True))
    if value not in known:
        close = difflib.get_close_matches(value[:80], known, n=1)
        proposal = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{name}={shown(value)} is unknown{proposal}: choose {expected}.")
    return value


def names(name: str, value: object, known: Iterable[str], *, at_least: int = 1) -> list[str]:
    """Return names out of those that are known, each once, in the order in which they came.

    Parameters
    ----------
    name : str
        Name of the argument.
    value : object
        Iterable of strings. A single string is refused, because it would be read letter by letter.
    known : iterable of str
        Names to choose from.
    at_least : int
        Smallest number of different names.

    Raises
    ------
    TypeError, ValueError
        If it is no iterable of strings, one of them is unknown, or they are too few.
    """
    known = list(known)
    expected = f"a list of names out of {_listed(known)}"
    chosen = list(dict.fromkeys(strings(name, value, expected)))
    unknown = [entry for entry in chosen if entry not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0][:80], known, n=1)
        proposal = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"{name}={shown(unknown)} not found{proposal}: choose among {_listed(known)}."
        )
    if len(chosen) < at_least:
        raise ValueError(_sentence(name, value, f"{expected}, {at_least} at least"))
    return chosen


def strings(name: str, value: object, expected: str = "a list of strings") -> list[str]:
    """Return the strings of an iterable that is not itself a string.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    entries = _entries(name, value, expected)
    if not all(isinstance(entry, str) for entry in entries):
        raise TypeError(_sentence(name, value, expected))
    return entries


def integers(
    name: str,
    value: object,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    length: int | None = None,
    empty: bool = False,
) -> tuple[int, ...]:
    """Return a sequence of integers in a range, of a given length or of one entry at least.

    Parameters
    ----------
    name, value, at_least, at_most
        As in :func:`integer`, for every entry.
    length : int, optional
        Number of entries; default any.
    empty : bool
        Whether there may be none.

    Raises
    ------
    TypeError, ValueError
        If it is no sequence of integers, one of them is out of range, or they are too few or many.
    """
    expected = "a sequence of "
    expected += "integers" if length is None else f"{length} integers"
    expected = _joined(expected, _range(at_least=at_least, at_most=at_most))
    entries = _entries(name, value, expected)
    if (length is not None and len(entries) != length) or not (entries or empty):
        raise ValueError(_sentence(name, value, expected))
    return tuple(
        integer(f"{name}[{index}]", entry, at_least=at_least, at_most=at_most)
        for index, entry in enumerate(entries)
    )


def known_truths(
    name: str, value: object, known: Iterable[str], unknown: str = "is unknown"
) -> dict[str, bool]:
    """Return a mapping from known names to True or False; None stands for an empty one.

    Raises
    ------
    TypeError, ValueError
        If it is no mapping, has another name, or a value that is neither.
    """
    known = list(known)
    if value is None:
        return {}
    truths = mapping(name, value, f"a mapping from {_listed(known)} to True or False")
    for key in truths:
        if key not in known:
            raise ValueError(
                f"{name}={shown(value)}: {key!r} {unknown}: choose among {_listed(known)}."
            )
    return {key: flag(f"{name}[{key!r}]", truth) for key, truth in truths.items()}


def mapping(name: str, value: object, expected: str = "a mapping") -> dict[str, Any]:
    """Return a mapping from strings, as a dictionary.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(_sentence(name, value, expected, kind=True))
    return dict(value)


def tensor(
    name: str,
    value: object,
    *,
    ndim: int | None = None,
    shape: Shape | None = None,
    floating: bool | None = None,
    finite: bool = False,
    dense: bool = False,
    empty: bool = False,
) -> Tensor:
    """Return a tensor of a given shape and kind.

    Parameters
    ----------
    name, value
        As in :func:`integer`.
    ndim : int, optional
        Number of dimensions.
    shape : sequence of int or str, optional
        Sizes; see :data:`Shape`.
    floating : bool, optional
        Kind of the entries: True for real floating-point numbers, False for integers that are not
        bool; default either.
    finite : bool
        Whether NaN and infinite entries are refused.
    dense : bool
        Whether a tensor that holds no values, or not all of them, is refused; ``finite`` implies
        it.
    empty : bool
        Whether the tensor may have no entry.

    Raises
    ------
    TypeError, ValueError
        If it is no tensor; if its shape, its dtype or its entries do not fit.
    """
    expected = "a Tensor"
    if shape is not None:
        expected += f" of shape {_shape(shape)}"
    elif ndim is not None:
        expected += f" with {ndim} dimension{'s' * (ndim != 1)}"
    if not isinstance(value, Tensor):
        raise TypeError(_sentence(name, value, expected, kind=True))
    if floating is not None and value.is_floating_point() != floating:
        kind = "floating-point numbers" if floating else "integers"
        raise ValueError(_sentence(name, value, f"{expected} of {kind}"))
    if value.is_complex() or (floating is False and value.dtype == torch.bool):
        kind = "integers" if floating is False else "real numbers"
        raise ValueError(_sentence(name, value, f"{expected} of {kind}"))
    if not (shape is None or _fits(value.shape, shape)) or (
        ndim is not None and value.ndim != ndim
    ):
        raise ValueError(_sentence(name, value, expected))
    if value.numel() == 0 and not empty:
        raise ValueError(_sentence(name, value, f"{expected} with one entry at least"))
    if finite or dense:
        _check_dense(name, value)
    if finite:
        _check_entries(name, value)
    return value


def vector(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: int = 1,
    finite: bool = True,
) -> Tensor:
    """Return numbers as a float64 vector on the CPU, off any graph.

    Parameters
    ----------
    name : str
        Name of the argument.
    value : Tensor or sequence of float
        Numbers; a tensor is flattened.
    above : float, optional
        Number that every entry must exceed.
    at_least : int
        Smallest number of entries.
    finite : bool
        Whether infinity is refused, as NaN always is.

    Raises
    ------
    TypeError, ValueError
        If it is no sequence of numbers, too short, or an entry is out of range.
    """
    kind = "finite numbers" if finite else "numbers"
    expected = _joined(f"{at_least} or more {kind}", _range(above=above))
    if isinstance(value, Tensor):
        tensor(name, value, dense=True)
        _check_entries(name, value, infinite=not finite)
        numbers = value
    elif getattr(getattr(value, "dtype", None), "kind", None) in ("i", "u", "f"):
        return vector(name, torch.as_tensor(value), above=above, at_least=at_least, finite=finite)
    else:
        entries = _entries(name, value, expected)
        rows = [
            number(f"{name}[{index}]", entry, finite=finite) for index, entry in enumerate(entries)
        ]
        numbers = torch.tensor(rows, dtype=torch.float64, device="cpu")
    result = numbers.detach().to(device="cpu", dtype=torch.float64).flatten()
    if len(result) < at_least or (above is not None and not bool((result > above).all())):
        raise ValueError(_sentence(name, value, expected))
    return result


def square_matrix(name: str, value: object, *, symmetric: bool = False) -> Tensor:
    """Return a finite square matrix in float64 on the CPU, off any graph.

    Raises
    ------
    TypeError, ValueError
        If it is no matrix, not square, not finite, or not symmetric where it must be.
    """
    matrix = tensor(name, value, shape=("d", "d"), finite=True)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(_sentence(name, value, "a square matrix"))
    result = matrix.detach().to(device="cpu", dtype=torch.float64)
    scale = float(result.abs().max())
    if symmetric and not torch.allclose(result, result.T, rtol=1e-6, atol=1e-6 * scale):
        raise ValueError(f"{name}={shown(value)} is not symmetric: pass (M + Mᵀ) / 2.")
    return result


def module(name: str, value: Any, also: type | tuple[type, ...] = ()) -> Any:
    """Return a model: a ``torch.nn.Module``, or an object of a type that is allowed beside it.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if not isinstance(value, nn.Module) and not isinstance(value, also):
        hint = " or its class: pass an object" if isinstance(value, type) else ""
        raise TypeError(_sentence(name, value, f"a torch.nn.Module{hint}", kind=True))
    return value


def instance(name: str, value: object, kind: type[T] | tuple[type[T], ...], source: str = "") -> T:
    """Return an object of a given class, or of one of several.

    Parameters
    ----------
    name, value
        As in :func:`integer`.
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
        raise TypeError(_sentence(name, value, f"a {kinds}", source, kind=True))
    return value


def function(name: str, value: Any, expected: str = "a function") -> Callable[..., Any]:
    """Return something that can be called.

    Raises
    ------
    TypeError
        If it cannot.
    """
    if not callable(value):
        raise TypeError(_sentence(name, value, expected, kind=True))
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
        raise TypeError(_sentence(name, value, expected, kind=True))
    entries = _entries(name, value, expected)
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
        raise TypeError(_sentence(name, value, f"a list of {of}", kind=True))
    return value


def dtype(name: str, value: object) -> torch.dtype:
    """Return a real floating-point dtype.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise TypeError(_sentence(name, value, "a floating-point dtype such as torch.float64"))
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
        raise TypeError(_sentence(name, value, expected, kind=True))
    try:
        result = torch.device(value)
    except RuntimeError:
        raise ValueError(_sentence(name, value, expected)) from None
    try:
        torch.empty(0, device=result)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"{name}={shown(value)} is not there: pass {expected}.") from None
    return result


def path(name: str, value: object) -> Path:
    """Return a path.

    Raises
    ------
    TypeError, ValueError
        If it is neither a string nor a path, or empty.
    """
    expected = "a path, as a string or a pathlib.Path"
    if not isinstance(value, str | os.PathLike):
        raise TypeError(_sentence(name, value, expected, kind=True))
    text = os.fspath(value)
    if not isinstance(text, str):
        raise TypeError(_sentence(name, value, expected, kind=True))
    if not text or "\0" in text:
        raise ValueError(_sentence(name, value, expected))
    return Path(text)


def shown(value: object) -> str:
    """Return a value in a form that fits a sentence: short, on one line; a tensor by its shape."""
    if isinstance(value, Tensor):
        return f"<Tensor {tuple(value.shape)} of {value.dtype}>"
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        value = dict(value)
    try:
        text = " ".join(_SHORT.repr(value).split())
    except Exception:  # repr of some class may fail, as that of an integer of 4,301 digits does
        return f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


_LONGEST = 80
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlong = 40


def _scalar(value: object) -> object:
    """Return the number inside a scalar of NumPy or a tensor without dimensions."""
    if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided):
        return value
    item = getattr(value, "item", None)
    if getattr(value, "ndim", None) == 0 and callable(item):
        return item()
    return value


def _entries(name: str, value: object, expected: str) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(_sentence(name, value, expected, kind=True))
    if getattr(value, "ndim", 1) != 1:
        raise TypeError(_sentence(name, value, expected))
    return list(value)


def _check_dense(name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_meta:
        raise ValueError(_sentence(name, value, "a dense Tensor that holds values"))


def _check_entries(name: str, value: Tensor, *, infinite: bool = False) -> None:
    if not value.is_floating_point():
        return
    # torch.isfinite does not support the dtypes of 8 bits, so these are converted to float32.
    entries = value.float() if value.element_size() == 1 else value
    # A finite sum proves that all entries are finite, in a single pass over them. An infinite sum
    # proves nothing, because a sum of finite entries can overflow.
    if math.isfinite(float(entries.detach().sum())):
        return
    bad = torch.isnan(entries) if infinite else ~torch.isfinite(entries)
    if bool(bad.any()):
        kind, allowed = ("NaN", "") if infinite else ("NaN or infinite", "finite ")
        raise ValueError(
            f"{name}={shown(value)} has {kind} entries: pass a Tensor of {allowed}numbers."
        )


def _sentence(
    name: str, value: object, expected: str, because: str = "", *, kind: bool = False
) -> str:
    given = f", not {type(value).__name__}" if kind and value is not None else ""
    return f"{name}={shown(value)} must be {expected}{given}{': ' * bool(because)}{because}."


def _range(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> str:
    if at_least is not None and at_most is not None:
        return f"between {at_least} and {at_most}"
    if above is not None and below is not None:
        return f"strictly between {above} and {below}"
    parts = [
        "" if above is None else "positive" if above == 0 else f"above {above}",
        "" if at_least is None else f"at least {at_least}",
        "" if below is None else f"below {below}",
        "" if at_most is None else f"at most {at_most}",
    ]
    return " and ".join(part for part in parts if part)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _fits(sizes: torch.Size, shape: Shape) -> bool:
    if shape[-1:] == ("…",):
        shape = shape[:-1]
        sizes = sizes[: len(shape)]
    return len(sizes) == len(shape) and all(
        isinstance(expected, str) or expected == size
        for expected, size in zip(shape, sizes, strict=True)
    )


def _shape(shape: Shape) -> str:
    sizes = ", ".join(map(str, shape))
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def _listed(known: Sequence[str]) -> str:
    omitted = len(known) - _MOST_NAMES
    listed = ", ".join(name or "''" for name in known[:_MOST_NAMES]) or "none"
    return f"{listed}, … ({omitted} more)" if omitted > 0 else listed
