"""One way to print a table, and one to print a number.

Jupyter and the book read a table as Markdown, so that it looks like the tables of the text, in
light and in dark, and its headers may hold formulas; a terminal shows the same cells as plain text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from paperkit import arguments
from paperkit.ledger.formatting import NOTHING, ROUND_OFF, markdown_table

# A column is set to the right if each of its cells is a number, or begins with one.
_SPEC = re.compile(r"\.\d{1,2}[efg]")
_LIKE_A_NUMBER = re.compile(
    rf"[-+−]?(?:\d[\d,]*(?:\.\d*)?|∞)(?:e[-+]?\d+)?(?:$|[ %])|below |{NOTHING}$"
)


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes
    ----------
    header : tuple of str
        Names of the columns, in Markdown.
    rows : tuple of tuple of str
        Cells, as many in each row as there are columns.

    Examples
    --------
    >>> from paperkit.chapter import Table
    >>> Table(("layer", "rank"), (("stem", "3"), ("head", "9")))
    layer  rank
    -----  ----
    stem      3
    head      9
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether each column holds numbers, which are set to the right."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.header)
        return tuple(all(_LIKE_A_NUMBER.match(cell) for cell in column) for column in columns)

    def __repr__(self) -> str:
        """Return the table as a terminal shows it, the header underlined."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        filled = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, self.right, strict=True)
            ).rstrip()
            for line in lines
        ]
        filled.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(filled)

    def _repr_markdown_(self) -> str:
        """Return the table as Jupyter and the book read it."""
        return markdown_table(self.header, self.rows, self.right)


def table(
    header: Iterable[str],
    rows: Mapping[Any, Any] | Iterable[Sequence[Any]],
    *,
    spec: str | Mapping[str, str] = ".4f",
    round_off: float = ROUND_OFF,
) -> Table:
    """Return rows of values as a table; a notebook shows it if it ends a cell.

    Parameters
    ----------
    header : iterable of str
        Names of the columns, those of the labels first. Markdown and its formulas are allowed.
    rows : iterable of sequence, or mapping
        Rows of cells, of which the first is the row's label; or a mapping from labels to the cells
        beside them. Such a label is one value, or a tuple where several columns label a row; the
        cells are a sequence, or one value. A label is printed as it is. Among the other cells a
        number that is no integer is printed by :func:`number`, a truth as yes or no, and None as a
        dash.
    spec : str or mapping of str to str
        Format of the numbers, as in :func:`number`, or of single columns by name; the rest have
        ``".4f"``.
    round_off : float
        Size below which a number is round-off, as in :func:`number`.

    Returns
    -------
    Table

    Raises
    ------
    TypeError
        If a cell is neither text nor a number, or an argument is of another kind.
    ValueError
        If a row has not one cell for each column, or ``spec`` is no format or names no column.

    Examples
    --------
    >>> from paperkit.chapter import table
    >>> table(["layer", "rank", "trace"], {"stem": (3, 0.25), "head": (9, 1e-17)})
    layer  rank        trace
    -----  ----  -----------
    stem      3       0.2500
    head      9  below 1e-12
    """
    names = tuple(arguments.strings("header", header, "a list of names of columns"))
    specs = _specs(names, spec)
    round_off = arguments.number("round_off", round_off, at_least=0)
    lines = []
    for labels, cells in _split(rows):
        if len(labels) + len(cells) != len(names):
            raise ValueError(
                f"rows has one of {len(labels) + len(cells)} cells, {arguments.shown(labels)} "
                f"first: pass one for each of the {len(names)} columns of header."
            )
        beside = zip(names[len(labels) :], cells, strict=True)
        shown = [_text(cell, specs[name], round_off) for name, cell in beside]
        lines.append((*map(_label, labels), *shown))
    return Table(names, tuple(lines))


def number(value: Any, spec: str = ".4f", round_off: float = ROUND_OFF) -> str:
    """Return a number as the book prints it; round-off is printed as a bound, never as its value.

    Round-off differs between machines, so its value says nothing. A number that is larger, and of
    which the format would leave only zeros, is printed with its exponent.

    Parameters
    ----------
    value : float
        A number, or an object that is one to ``float``.
    spec : str
        Format specification of Python: a point, the number of digits, and ``f``, ``e`` or ``g``.
    round_off : float
        Size below which a number is round-off.

    Returns
    -------
    str

    Raises
    ------
    TypeError, ValueError
        If an argument is of another kind, or out of range.

    Examples
    --------
    >>> from paperkit.chapter import number
    >>> number(0.15925), number(-3e-17), number(2.5e-7), number(1e-11, round_off=1e-10)
    ('0.1593', 'below 1e-12', '2.50e-07', 'below 1e-10')
    """
    value = _real("value", value)
    spec = _spec("spec", spec)
    round_off = arguments.number("round_off", round_off, at_least=0)
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) < round_off:
        return f"below {round_off:.0e}"
    text = format(value, spec)
    return f"{value:.2e}" if value and float(text) == 0 else text


def _real(name: str, value: Any) -> float:
    """Return what ``float`` makes of a number, a tensor of one entry or a measurement."""
    if isinstance(value, str | bytes | bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}={arguments.shown(value)} must be a number: pass a float.")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        sort = f"{name}={arguments.shown(value)} must be one number: pass a float."
        raise TypeError(sort) from None


def _spec(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}={arguments.shown(value)} must be a format such as '.4f'.")
    if not _SPEC.fullmatch(value):
        raise ValueError(f"{name}={value!r} is no format: pass one such as '.4f', '.2e' or '.4g'.")
    return value


def _specs(names: Sequence[str], spec: str | Mapping[str, str]) -> dict[str, str]:
    if not isinstance(spec, Mapping):
        return dict.fromkeys(names, _spec("spec", spec))
    for name in spec:
        if name not in names:
            raise ValueError(f"spec names the column {name!r}, which header does not have.")
    chosen = {name: _spec(f"spec[{name!r}]", one) for name, one in spec.items()}
    return dict.fromkeys(names, ".4f") | chosen


def _split(rows: Any) -> Iterable[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Yield for each row its labels and its other cells."""
    if isinstance(rows, Mapping):
        for key, cells in rows.items():
            yield _several(key), _several(cells)
        return
    for row in arguments.iterable("rows", rows, "rows of cells"):
        if isinstance(row, str) or not isinstance(row, Sequence) or not row:
            raise TypeError(f"rows has {arguments.shown(row)}: pass rows with a label and cells.")
        yield tuple(row[:1]), tuple(row[1:])


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(value: Any, spec: str, round_off: float) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return str(value)
    return number(_real("rows", value), spec, round_off)
