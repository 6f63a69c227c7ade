"""What every chapter of the book does alike.

A chapter begins with `setup`, prints each table with `table` and each small number with `number`,
and holds its own lines against brute force and the library with `distance` and `Comparisons`. The
chapters on optimizers let the library's optimizers step on a problem that they compute by hand
(`take_steps`, `follow_quadratic`). ``notebooks/TEMPLATE.py`` shows all of it in its place.
"""

from paperkit.chapter.comparisons import Comparisons, distance
from paperkit.chapter.start import setup
from paperkit.chapter.steps import Steps, batch_closure, follow_quadratic, take_steps
from paperkit.chapter.tables import Table, number, table

__all__ = [
    "Comparisons",
    "Steps",
    "Table",
    "batch_closure",
    "distance",
    "follow_quadratic",
    "number",
    "setup",
    "table",
    "take_steps",
]
