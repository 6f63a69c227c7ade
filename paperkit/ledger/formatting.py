"""How numbers are written in verdicts: round-off as a bound, the rest with four digits."""

from __future__ import annotations

import math

ROUND_OFF = 1e-12


def number(value: float) -> str:
    """Return a value with four significant digits."""
    return f"{value:.4g}"


def bound(value: float) -> str:
    """Return ``below 1e-12`` for a magnitude at round-off, else the value.

    Round-off differs between machines; its value is never shown.
    """
    return "below 1e-12" if abs(value) < ROUND_OFF else number(value)


def interval(low: float, high: float) -> str:
    """Return an interval; an infinite end is left open."""
    if math.isinf(low) and math.isinf(high):
        return "unbounded"
    if math.isinf(high):
        return f"above {number(low)}"
    if math.isinf(low):
        return f"below {number(high)}"
    return f"{number(low)} to {number(high)}"
