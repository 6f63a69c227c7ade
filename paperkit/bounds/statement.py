"""Both sides of an inequality, an identity or an approximation, computed on given data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from typing_extensions import override

from paperkit import arguments


@dataclass(frozen=True, kw_only=True, repr=False)
class Statement(ABC):
    """Left and right side of a claim, and whether the theorem behind it applies.

    Attributes
    ----------
    statement : str
        Claim, in words or symbols.
    source : str
        Paper and statement number.
    left, right : float
        Both sides, in the same units. Infinite sides are allowed, as for the logarithm of a volume
        that is zero.
    assumptions : mapping of str to bool or None
        Hypotheses of the theorem by name: True (checked, met), False (checked, violated) or None
        (could not be checked). Kept as a read-only copy.
    tolerance, absolute_tolerance : float
        Round-off of the sides: ``tolerance`` times the larger finite magnitude of the two, plus
        ``absolute_tolerance``. The absolute part serves sides that are logarithms or differences,
        because their round-off does not shrink with them.

    Raises
    ------
    ValueError
        If a side is NaN, or a tolerance is negative or not finite.

    Examples
    --------
    >>> from paperkit.bounds import Inequality
    >>> facts = {"smooth": True, "convex": None}  # checked and met; not checked
    >>> claim = Inequality(statement="a ≤ b", source="text", left=1.0, right=3.0, assumptions=facts)
    >>> claim.difference, claim.certified
    (2.0, False)
    >>> claim
    Inequality(text: a ≤ b: 1 ≤ 3, not certified: convex=unchecked)
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
    def difference(self) -> float:
        """``right − left``; zero where both sides are the same infinity."""
        return 0.0 if self.left == self.right else self.right - self.left

    @property
    def round_off(self) -> float:
        """The largest difference that round-off explains between equal sides."""
        finite = [abs(side) for side in (self.left, self.right) if math.isfinite(side)]
        return self.tolerance * max(finite, default=0.0) + self.absolute_tolerance

    @property
    def certified(self) -> bool:
        """Whether every hypothesis was checked and is met, so that the theorem applies."""
        return all(met is True for met in self.assumptions.values())

    @property
    @abstractmethod
    def relation(self) -> str:
        """The sign between the two numbers, one of ≤, ≰, =, ≠ and ≈."""

    def __repr__(self) -> str:
        unmet = ", ".join(
            f"{name}={'unchecked' if met is None else 'violated'}"
            for name, met in self.assumptions.items()
            if met is not True
        )
        status = "certified" if self.certified else f"not certified: {unmet}"
        return (
            f"{type(self).__name__}({self.source}: {self.statement}: "
            f"{self.left:.6g} {self.relation} {self.right:.6g}, {status})"
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Inequality(Statement):
    """A claim ``left ≤ right`` on given data; for the attributes see :class:`Statement`.

    ``holds`` compares the numbers; ``certified`` says that the theorem applies. An inequality may
    hold without being certified, by luck; a certified one that does not hold refutes the theorem or
    the code.

    Examples
    --------
    >>> from paperkit.bounds import Inequality
    >>> Inequality(statement="a ≤ b", source="example", left=1.0, right=1.5).holds
    True
    >>> Inequality(statement="a ≤ b", source="example", left=1.0, right=0.5)
    Inequality(example: a ≤ b: 1 ≰ 0.5, certified)
    """

    @property
    def slack(self) -> float:
        """``right − left``; zero where both sides are the same infinity."""
        return self.difference

    @property
    def holds(self) -> bool:
        """Whether left ≤ right, up to round-off."""
        return self.difference >= -self.round_off

    @property
    @override
    def relation(self) -> str:
        return "≤" if self.holds else "≰"


@dataclass(frozen=True, kw_only=True, repr=False)
class Identity(Statement):
    """A claim ``left = right`` on given data; for the attributes see :class:`Statement`.

    Examples
    --------
    >>> from paperkit.bounds import Identity
    >>> Identity(statement="a = b", source="example", left=0.3, right=0.1 + 0.2).holds
    True
    >>> Identity(statement="a = b", source="example", left=0.0, right=1.0)
    Identity(example: a = b: 0 ≠ 1, certified)
    """

    @property
    def holds(self) -> bool:
        """Whether left = right, up to round-off; moving either side makes it fail."""
        return abs(self.difference) <= self.round_off

    @property
    @override
    def relation(self) -> str:
        return "=" if self.holds else "≠"


@dataclass(frozen=True, kw_only=True, repr=False)
class Approximation(Statement):
    """A claim ``left ≈ right`` up to terms of a stated order; see :class:`Statement`.

    A single pair of numbers cannot refute it, so that it has no verdict. A test can see how the
    difference shrinks with the small quantity that its ``statement`` names.

    Examples
    --------
    >>> import math
    >>> from paperkit.bounds import Approximation
    >>> def sine(x):
    ...     text = "sin x ≈ x, difference O(x³)"
    ...     return Approximation(statement=text, source="Taylor", left=math.sin(x), right=x)
    >>> round(sine(0.2).difference / sine(0.1).difference)
    8
    """

    @property
    @override
    def relation(self) -> str:
        return "≈"
