"""How numbers are written in verdicts, and tables and plain texts in Markdown.

Round-off is written as a bound, every other number with four digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

ROUND_OFF = 1e-12
NOTHING = "–"

# Signs that begin syntax in Markdown or HTML; an underscore does not inside of a word.
_SYNTAX = re.compile(r"[&<>\"`*\[\]{}$|~\\]|(?<![^\W_])_|_(?![^\W_])")


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


def escaped(text: str) -> str:
    """Return a plain text on one line, for Markdown or HTML that shows it as it is."""
    return _escaped_piece(text.strip())


def code(name: str) -> str:
    """Return a name in the type of code; one that is no plain name is escaped and left as text."""
    return f"`{name}`" if re.fullmatch(r"[\w.-]+", name) else escaped(name)


def escaped_but_code(text: str, names: Iterable[str]) -> str:
    """Return a plain text as `escaped` does, with these names between backticks left as code."""
    marked = "|".join(f"`{re.escape(name)}`" for name in names)
    pieces = re.split(f"({marked})", text) if marked else [text]
    # Each second piece is a name with its backticks.
    return "".join(
        code(piece[1:-1]) if i % 2 else _escaped_piece(piece) for i, piece in enumerate(pieces)
    )


def _escaped_piece(text: str) -> str:
    # A character reference means its character in Markdown as in HTML, and is never syntax.
    return _SYNTAX.sub(lambda sign: f"&#{ord(sign[0])};", re.sub(r"\s+", " ", text))


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


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 run`` or ``5 runs``."""
    return f"{count} {noun}{'s' * (count != 1)}"
