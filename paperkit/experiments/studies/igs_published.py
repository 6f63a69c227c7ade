"""What the information-geometric paper's Table 1 says by its own numbers, row by row.

No network is trained. A difference of two means of three runs is given with Welch's one-sided 95 %
bound, from the printed standard errors.
"""

from __future__ import annotations

import math
from typing import Any

from scipy.stats import t as student

from paperkit.experiments import RunContext, Study
from paperkit.experiments.published import published_digest, published_names, published_table

TABLE = "igs_table_1"
RIVALS = ("SGD", "GR", "SAM", "ASAM")


def lower_bound(
    first: tuple[float, float], second: tuple[float, float], runs: int
) -> tuple[float, float]:
    """Return the difference of two means, and its one-sided lower 95 % bound (Welch 1947).

    Parameters
    ----------
    first, second : tuple of float
        Mean and standard error.
    runs : int
        Number of runs behind each mean.
    """
    difference = first[0] - second[0]
    squares = [first[1] ** 2, second[1] ** 2]
    freedom = sum(squares) ** 2 / sum(square**2 / (runs - 1) for square in squares)
    width = float(student.ppf(0.95, freedom)) * math.sqrt(sum(squares))
    return difference, difference - width


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each row of the table with each other method.

    A folder of claims without the table has nothing to run of it.
    """
    if TABLE not in published_names():
        return []
    table = published_table(TABLE)
    rows = list(table["rows"])[: 2 if profile == "smoke" else None]
    return [
        {"table": TABLE, "digest": published_digest(TABLE), "row": row, "rival": rival, "seed": 0}
        for row in rows
        for rival in RIVALS
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Compare the regulariser's accuracy with another method's in one row.

    A shortfall is how far the lower bound of a difference lies below zero.
    """
    table = published_table(configuration["table"])
    row = table["rows"][configuration["row"]]
    ours, other = (tuple(row[name]) for name in ("IGS", configuration["rival"]))
    gain, lower = lower_bound(ours, other, table["runs"])
    loss, loss_lower = lower_bound(other, ours, table["runs"])
    return {
        "gain": round(gain, 2),
        "gain_lower_bound": lower,
        "gain_shortfall": max(0.0, -lower),
        "loss": round(loss, 2),
        "loss_lower_bound": loss_lower,
        "loss_shortfall": max(0.0, -loss_lower),
        "within_a_point": round(1.0 - abs(gain), 2),
    }


STUDY = Study(
    name="igs_published",
    question="Do the numbers of the information-geometric paper's Table 1 say what it concludes?",
    grid=grid,
    run=run,
)
