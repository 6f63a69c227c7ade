"""Both sides of an inequality, with what was checked of its hypotheses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from paperkit import arguments


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Left and right side of a claim ``left ≤ right`` on given data.

    ``holds`` compares the numbers; ``certified`` says that the theorem applies. A bound may hold
    without being certified, by luck; a certified bound that does not hold refutes the theorem or
    the code.

    Attributes
    ----------
    statement : str
        The inequality, in words or symbols.
    source : str
        Paper and statement number.
    left, right : float
        The two sides, in the same units. Infinite sides are allowed, as for the logarithm of a
        volume that is zero.
    assumptions : mapping of str to bool or None
        The theorem's hypotheses by name: True (checked, met), False (checked, violated) or None
        (could not be checked). Kept as a read-only copy.
    tolerance, absolute_tolerance : float
        A slack of no less than minus (tolerance times the larger finite magnitude of the two sides,
        plus absolute_tolerance) is round-off and still counts as holding. The absolute part is for
        sides that are logarithms or differences, whose round-off does not shrink with them.

    Raises
    ------
    ValueError
        If a side is NaN, or a tolerance is negative or not finite.
    """

    statement: str
    source: str
    left: float
    right: float
    assumptions: Mapping[str, bool | None] = field(default_factory=dict)
    tolerance: float = 1e-9
    absolute_tolerance: float = 0.0

    def __post_init__(self) -> None:
        for name in ("statement", "source"):
            arguments.instance(name, getattr(self, name), str)
        for name in ("left", "right"):
            side = arguments.number(name, getattr(self, name), finite=False)
            object.__setattr__(self, name, side)
        for name in ("tolerance", "absolute_tolerance"):
            arguments.number(name, getattr(self, name), at_least=0)
        assumptions = arguments.mapping("assumptions", self.assumptions)
        object.__setattr__(self, "assumptions", MappingProxyType(assumptions))

    @property
    def slack(self) -> float:
        """``right − left``; zero where both sides are the same infinity."""
        return 0.0 if self.left == self.right else self.right - self.left

    @property
    def holds(self) -> bool:
        """Whether left ≤ right, up to the stated round-off."""
        finite = [abs(side) for side in (self.left, self.right) if math.isfinite(side)]
        return self.slack >= -(self.tolerance * max(finite, default=0.0) + self.absolute_tolerance)

    @property
    def certified(self) -> bool:
        """Whether every hypothesis was checked and is met."""
        return all(met is True for met in self.assumptions.values())

    def __repr__(self) -> str:
        unmet = ", ".join(
            f"{name}={'unchecked' if met is None else 'violated'}"
            for name, met in self.assumptions.items()
            if met is not True
        )
        relation = "≤" if self.holds else "≰"
        status = "certified" if self.certified else f"not certified: {unmet}"
        return (
            f"Bound({self.source}: {self.statement}: "
            f"{self.left:.6g} {relation} {self.right:.6g}, {status})"
        )
