"""Hold a chapter's own lines against other ways to the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.chapter.tables import Table, table


def distance(one: Any, other: Any) -> float:
    r"""Return the largest relative distance of two results, ‖one − other‖ / ‖one‖.

    Parameters
    ----------
    one, other : number, Tensor, or mapping of them
        Results of the same shape; the first is the reference. Mappings, also nested ones, are
        compared entry by entry, and the largest distance counts.

    Returns
    -------
    float
        Relative distance in the Euclidean norm, computed in float64: 0 between two zeros,
        infinite between zero and anything else.

    Raises
    ------
    TypeError
        If a result is of another kind.
    ValueError
        If the shapes or the entries' names differ.

    Examples
    --------
    >>> from paperkit.chapter import distance
    >>> distance(2.0, 1.5), distance({"a": 2.0, "b": 1.0}, {"a": 1.5, "b": 1.0})
    (0.25, 0.25)
    """
    if isinstance(one, Mapping) or isinstance(other, Mapping):
        if not (isinstance(one, Mapping) and isinstance(other, Mapping) and one):
            shown = f"one={arguments.shown(one)} and other={arguments.shown(other)}"
            raise TypeError(f"{shown} must both be mappings with entries, or neither.")
        if one.keys() != other.keys():
            raise ValueError(f"other has the entries {list(other)}, but one has {list(one)}.")
        distances = [distance(one[key], other[key]) for key in one]
        return max(distances) if not any(map(math.isnan, distances)) else math.nan
    x, y = _tensor("one", one), _tensor("other", other)
    if x.shape != y.shape:
        raise ValueError(f"other has the shape {tuple(y.shape)}, but one has {tuple(x.shape)}.")
    difference, size = float((x - y).norm()), float(x.norm())
    if size == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / size


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor) and not value.is_complex() and not value.is_meta:
        return value.detach().to("cpu", torch.float64)
    if isinstance(value, str | bytes | bool | Tensor) or not hasattr(value, "__float__"):
        raise TypeError(
            f"{name}={arguments.shown(value)} must be a number or a tensor, or a mapping of them."
        )
    return torch.tensor(float(value), dtype=torch.float64, device="cpu")


class Comparisons:
    """Results of a chapter that agree with brute force and with the library.

    Examples
    --------
    >>> from paperkit.chapter import Comparisons
    >>> checked = Comparisons()
    >>> checked.agree("a half", 0.5, brute_force=1 / 2, library=0.5)
    >>> checked.table()
    quantity  against brute force  against the library
    --------  -------------------  -------------------
    a half            below 1e-12          below 1e-12
    """

    def __init__(self) -> None:
        self._tolerances: dict[str, float] = {}

    def agree(
        self,
        quantity: str,
        ours: Any,
        *,
        brute_force: Any,
        library: Any,
        tolerance: float = 1e-12,
    ) -> None:
        """Assert that three ways to a quantity agree, and enter it in the table.

        Parameters
        ----------
        quantity : str
            Name of the quantity.
        ours, brute_force, library : number, Tensor, or mapping of them
            Results of the chapter's lines, of the definition written out, and of the library.
        tolerance : float
            Relative :func:`distance` that the chapter's result must stay below.

        Raises
        ------
        AssertionError
            If one of the two is further away.
        """
        for way, result in (("brute force", brute_force), ("the library", library)):
            found = distance(ours, result)
            assert found < tolerance, f"{quantity}, against {way}: {found:.1e}"
        self._tolerances[quantity] = tolerance

    def table(self) -> Table:
        """Return every quantity with the bound that its two comparisons kept to."""
        rows = {name: (f"below {bound:.0e}",) * 2 for name, bound in self._tolerances.items()}
        return table(["quantity", "against brute force", "against the library"], rows)
