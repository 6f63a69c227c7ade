"""Rows of results as a table, in plain text and in HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def plain_table(rows: Rows, columns: Sequence[str]) -> str:
    """Return lines of text with right-aligned columns; None leaves its place empty."""
    lines = [list(columns), *([_shown(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        " ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in lines
    )


def html_table(rows: Rows, columns: Sequence[str]) -> str:
    """Return a table as notebooks style those of pandas; None leaves its place empty."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(_shown(row[name]))}</td>" for name in columns) + "</tr>"
        for row in rows
    )
    return (
        f'<table class="dataframe">\n<thead>\n<tr>{head}</tr>\n</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
