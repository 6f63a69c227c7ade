"""Decide whether two texts show the same numbers.

Two printed numbers agree when they differ by at most

* the relative tolerance, 1e-6 by default, or
* one unit in the last printed digit, if both are printed to as many decimals and the committed one
  shows at least three significant digits: two values that agree can be rounded apart.

Whole numbers (``64``, but not ``64.0``) are counts and agree only when they are equal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

DEFAULT_RTOL = 1e-6
# Not the digits of a name (conv1, mnist5k), nor of a version (1.2.3).
NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?!\w|\.[0-9])"
)
SIGNIFICANT_DIGITS = 3


@dataclass(frozen=True)
class Difference:
    """Two numbers that do not agree.

    Attributes
    ----------
    committed, computed : str
        The numbers as they are printed.
    rtol : float
        The relative tolerance they were compared at.
    """

    committed: str
    computed: str
    rtol: float

    def __str__(self) -> str:
        """Name both numbers and the tolerance."""
        return (
            f"computed {self.computed}, committed {self.committed} "
            f"(relative tolerance {self.rtol:g})"
        )


def agree(committed: str, computed: str, rtol: float = DEFAULT_RTOL) -> bool:
    """Decide whether two printed numbers agree.

    Parameters
    ----------
    committed, computed : str
        Numbers as :data:`NUMBER` matches them; the first is the reference.
    rtol : float
        Relative tolerance.

    Returns
    -------
    bool
        Whether they agree, as the module's description says.
    """
    reference, value = _decimal(committed), _decimal(computed)
    if _is_whole(committed) and _is_whole(computed):
        return reference == value
    allowed = Decimal(repr(rtol)) * abs(reference)
    digits, exponent = reference.as_tuple().digits, reference.as_tuple().exponent
    is_rounded = _is_rounded(committed) and len(digits) >= SIGNIFICANT_DIGITS
    if is_rounded and exponent == value.as_tuple().exponent:
        allowed = max(allowed, Decimal(1).scaleb(int(exponent)))
    return abs(reference - value) <= allowed


def _decimal(number: str) -> Decimal:
    return Decimal(number.replace("−", "-"))


def _is_whole(number: str) -> bool:
    return not set(number) & set(".eE")


def _is_rounded(number: str) -> bool:
    """Tell ``0.25`` and ``2.50e+02`` from ``250`` and from ``250.``, which may end a sentence."""
    return "." in number.rstrip(".")


def snap(committed: str, computed: str, rtol: float = DEFAULT_RTOL) -> tuple[str, list[Difference]]:
    """Replace every recomputed number that agrees by the committed one.

    Parameters
    ----------
    committed, computed : str
        Texts to compare; the first is the reference.
    rtol : float
        Relative tolerance.

    Returns
    -------
    str
        The computed text with agreeing numbers replaced. If the texts differ in more than their
        numbers, it is returned as it came.
    list of Difference
        The numbers that do not agree.
    """
    if _skeleton(committed) != _skeleton(computed):
        return computed, []
    references = iter(NUMBER.findall(committed))
    differences: list[Difference] = []

    def replace(match: re.Match[str]) -> str:
        reference = next(references)
        if agree(reference, match[0], rtol):
            return reference
        differences.append(Difference(reference, match[0], rtol))
        return match[0]

    snapped = NUMBER.sub(replace, computed)
    # With every number in agreement, only the space between words can still differ.
    return (snapped if differences else committed), differences


def _skeleton(text: str) -> str:
    """Leave what is not a number; numbers of another width move spaces, line ends and rules."""
    numberless = re.sub(r"\s*\0\s*", "\0", NUMBER.sub("\0", text))
    return re.sub(r"-{2,}", "--", re.sub(r"\s+", " ", numberless))
