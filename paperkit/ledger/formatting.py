"""How numbers are written in verdicts, and tables in Markdown.

Round-off is written as a bound, every other number with four digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

ROUND_OFF = 1e-12
NOTHING = "–"


def number(value: float) -> str:
    """Return a value with four significant digits."""
    return f"{value:.4g}"


def bound(value: float) -> str:
    """Return ``below 1e-12`` for a magnitude at round-off, else the value.

    Round-off differs between machines; its value is never shown. A whole number has none.
    """
    if isinstance(value, int):
        return str(value)
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


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool] = ()
) -> str:
    """Return a table in Markdown, for MyST and for Jupyter.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : iterable of sequence of str
        Cells, as many in each row as there are columns.
    right : sequence of bool
        Whether each column is set to the right; none is, if it is empty.

    Returns
    -------
    str
        A line for each row, with pipes inside cells escaped.
    """
    rule = ["---:" if to_the_right else "---" for to_the_right in right] or ["---"] * len(header)
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines)


def _markdown_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
