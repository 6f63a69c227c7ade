"""Tensors of a shape and kind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from paperkit.arguments.numbers import entries_of, number, range_of
from paperkit.arguments.sentences import join_parts, sentence, shown

Shape = Sequence[int | str]
"""Expected sizes; a letter stands for any size, a last "…" for any number of sizes."""


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
    name : str
        Name of the argument.
    value : object
        Value that the caller passed.
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
        raise TypeError(sentence(name, value, expected, kind=True))
    if floating is not None and value.is_floating_point() != floating:
        kind = "floating-point numbers" if floating else "integers"
        raise ValueError(sentence(name, value, f"{expected} of {kind}"))
    if value.is_complex() or (floating is False and value.dtype == torch.bool):
        kind = "integers" if floating is False else "real numbers"
        raise ValueError(sentence(name, value, f"{expected} of {kind}"))
    if not (shape is None or _fits(value.shape, shape)) or (
        ndim is not None and value.ndim != ndim
    ):
        raise ValueError(sentence(name, value, expected))
    if value.numel() == 0 and not empty:
        raise ValueError(sentence(name, value, f"{expected} with one entry at least"))
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
    expected = join_parts(f"{at_least} or more {kind}", range_of(above=above))
    if isinstance(value, Tensor):
        tensor(name, value, dense=True)
        _check_entries(name, value, infinite=not finite)
        numbers = value
    elif getattr(getattr(value, "dtype", None), "kind", None) in ("i", "u", "f"):
        return vector(name, torch.as_tensor(value), above=above, at_least=at_least, finite=finite)
    else:
        entries = entries_of(name, value, expected)
        rows = [
            number(f"{name}[{index}]", entry, finite=finite) for index, entry in enumerate(entries)
        ]
        numbers = torch.tensor(rows, dtype=torch.float64, device="cpu")
    result = numbers.detach().to(device="cpu", dtype=torch.float64).flatten()
    if len(result) < at_least or (above is not None and not bool((result > above).all())):
        raise ValueError(sentence(name, value, expected))
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
        raise ValueError(sentence(name, value, "a square matrix"))
    result = matrix.detach().to(device="cpu", dtype=torch.float64)
    scale = float(result.abs().max())
    if symmetric and not torch.allclose(result, result.T, rtol=1e-6, atol=1e-6 * scale):
        raise ValueError(f"{name}={shown(value)} is not symmetric: pass (M + Mᵀ) / 2.")
    return result


def _check_dense(name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_meta:
        raise ValueError(sentence(name, value, "a dense Tensor that holds values"))


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
