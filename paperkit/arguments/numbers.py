"""Integers, real numbers, and what is given as one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from paperkit.arguments.sentences import join_parts, sentence, shown

_LARGEST_COUNT = 2**63 - 1  # the largest size or index of a tensor


_SEEDS = -(2**63), 2**64 - 1  # the range that torch.Generator.manual_seed accepts


# Orders beyond this are refused: α and α − 1 are then the same float64, and so are the entropies of
# order α and infinity.
_LARGEST_ORDER = 2**53


def scalar_of(value: object) -> object:
    """Return the number inside a scalar of NumPy or a tensor without dimensions."""
    if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided):
        return value
    item = getattr(value, "item", None)
    if getattr(value, "ndim", None) == 0 and callable(item):
        return item()
    return value


def entries_of(name: str, value: object, expected: str) -> list[Any]:
    """Return what a list, a tuple or another iterable holds; texts and mappings are none."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(sentence(name, value, expected, kind=True))
    if getattr(value, "ndim", 1) != 1:
        raise TypeError(sentence(name, value, expected))
    return list(value)


def range_of(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> str:
    """Return a range in words."""
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
    within = range_of(at_least=at_least, at_most=at_most)
    scalar = scalar_of(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Integral):
        raise TypeError(sentence(name, value, join_parts("an integer", within), because, kind=True))
    result = int(scalar)
    low = -_LARGEST_COUNT if at_least is None else at_least
    high = _LARGEST_COUNT if at_most is None else at_most
    if not low <= result <= high:
        fitting = within if within and result < low else join_parts(within, "at most 2⁶³ − 1")
        raise ValueError(sentence(name, value, within if at_most is not None else fitting, because))
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
    limits = range_of(above=above, at_least=at_least, below=below, at_most=at_most)
    closed = below is not None or at_most is not None
    within = " and ".join(filter(None, [limits, "finite" if finite and not closed else ""]))
    scalar = scalar_of(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Real):
        raise TypeError(
            sentence(
                name,
                value,
                join_parts("a finite number" if finite else "a number", limits),
                because,
                kind=True,
            )
        )
    try:
        result = float(scalar)
    except OverflowError:
        raise ValueError(sentence(name, value, "a number that fits a float")) from None
    if nan and result != result:
        return result
    inside = (
        (above is None or result > above)
        and (at_least is None or result >= at_least)
        and (below is None or result < below)
        and (at_most is None or result <= at_most)
    )
    if result != result or not inside or (finite and abs(result) == float("inf")):
        raise ValueError(sentence(name, value, within or "a number", because))
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
        order(name, entry, ends_allowed=infinite) for entry in entries_of(name, value, expected)
    )
    if 0 in alphas:
        raise ValueError(f"{name}={shown(value)} has 0, at which the entropy counts the rank.")
    if not alphas:
        raise ValueError(sentence(name, value, expected + ", one at least"))
    return tuple(dict.fromkeys(alphas))


def seed(name: str, value: object) -> int:
    """Return a seed that a ``torch.Generator`` takes: an integer from −2⁶³ to 2⁶⁴ − 1.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or out of range.
    """
    low, high = _SEEDS
    scalar = scalar_of(value)
    if isinstance(scalar, bool) or not isinstance(scalar, Integral):
        raise TypeError(sentence(name, value, "an integer", kind=True))
    if not low <= int(scalar) <= high:
        raise ValueError(sentence(name, value, "an integer of at most 64 bits"))
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
    scalar = scalar_of(value)
    if not isinstance(scalar, bool):
        raise TypeError(sentence(name, value, "True or False", kind=True))
    return scalar


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
    expected = join_parts(expected, range_of(at_least=at_least, at_most=at_most))
    entries = entries_of(name, value, expected)
    if (length is not None and len(entries) != length) or not (entries or empty):
        raise ValueError(sentence(name, value, expected))
    return tuple(
        integer(f"{name}[{index}]", entry, at_least=at_least, at_most=at_most)
        for index, entry in enumerate(entries)
    )
