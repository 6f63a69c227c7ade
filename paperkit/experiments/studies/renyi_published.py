"""Arithmetic on the Rényi paper's own numbers: Table 1, Tables 4 to 6, and its correlations.

Every configuration carries the digest of the table that it reads, so that a digit that is corrected
asks for another run. Accuracies are counted in hundredths of a percentage point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import scipy.stats

from paperkit.experiments import RunContext, Study
from paperkit.experiments.published import published_digest, published_names, published_table
from paperkit.experiments.studies._renyi_facts import Configuration, Metrics

TABLE_1, TABLES_4_6, CORRELATIONS = "renyi_table_1", "renyi_tables_4_6", "renyi_correlations"
MODELS = range(5, 101)
"""Numbers of models that the correlations are tried with."""


def mean_of(cell: dict[str, Any], reading: str) -> float:
    """Return a cell's mean; where it is not legible the lower or the upper reading."""
    if cell["mean"] is not None:
        return float(cell["mean"])
    return float(cell["readings"][{"low": 0, "high": 1}[reading]])


def hundredths(points: float) -> int:
    """Return percentage points in hundredths; the table has two decimals."""
    return round(100 * points)


def legible(row: dict[str, Any]) -> bool:
    """Return whether every mean and every error of a row can be read."""
    return all(
        cell["mean"] is not None and cell["error"] is not None for cell in row["cells"].values()
    )


def _gain(table: dict[str, Any], reading: str) -> Metrics:
    """Return RSAM's largest gain over SAM, the second largest, and over stochastic descent."""

    def gains(method: str) -> list[int]:
        return sorted(
            hundredths(mean_of(row["cells"]["RSAM"], reading))
            - hundredths(mean_of(row["cells"][method], reading))
            for row in table["rows"]
        )

    over_sam = gains("SAM")
    return {
        "largest_gain": over_sam[-1],
        "second_gain": over_sam[-2],
        "gains_over_sgd": gains("SGD"),
    }


def _margin(table: dict[str, Any], reading: str) -> Metrics:
    """Count the tasks on which RSAM leads ASAM by less than one combined standard error."""
    within, margins = 0, []
    for row in table["rows"]:
        ours, theirs = row["cells"]["RSAM"], row["cells"]["ASAM"]
        margin = mean_of(ours, reading) - mean_of(theirs, reading)
        margins.append(hundredths(margin))
        if ours["error"] is not None and theirs["error"] is not None:
            within += 0 <= margin < math.hypot(ours["error"], theirs["error"])
    return {"tasks_within_one_error": within, "slack": within - 1, "margins": margins}


def _lead(table: dict[str, Any], reading: str) -> Metrics:
    """Return RSAM's lead over the best other method, in the rows that are legible."""
    leads, in_errors = [], []
    for row in filter(legible, table["rows"]):
        others = [cell for method, cell in row["cells"].items() if method != "RSAM"]
        best = max(others, key=lambda cell: cell["mean"])
        ours = row["cells"]["RSAM"]
        leads.append(hundredths(ours["mean"]) - hundredths(best["mean"]))
        in_errors.append((ours["mean"] - best["mean"]) / math.hypot(ours["error"], best["error"]))
    return {
        "lead": leads,
        "rows": len(leads),
        "rows_below_two_errors": sum(lead < 2 for lead in in_errors),
        "lead_in_standard_errors": in_errors,
    }


def _settings(tables: dict[str, Any], reading: str) -> Metrics:
    """Count the settings of a method on one data set of several networks."""
    extra, counts = [], {}
    for table in tables["tables"]:
        networks = next(iter(table["rho"].values()))
        if len(networks) < 2:
            continue
        distinct = {
            method: len(
                {(rho, table["alpha"].get(method, {}).get(name)) for name, rho in radii.items()}
            )
            for method, radii in table["rho"].items()
        }
        counts[table["data"]] = distinct
        extra.append(distinct["RSAM"] - max(n for m, n in distinct.items() if m != "RSAM"))
    return {"extra_settings_slack": [count - 1 for count in extra], "settings": counts}


def chance_of_fit(values: list[float], models: int) -> float:
    """Return the logarithm of the chance that as many values fit a number of models.

    Without ties τ is (2c − P) / P with P pairs and a whole c; four decimals are printed. A value
    from elsewhere fits if it comes within half a unit of the last digit of one of these.
    """
    pairs = models * (models - 1) // 2
    spacing, rounding = 2.0 / pairs, 0.5e-4
    fits = 0
    for value in values:
        concordant = round((value + 1.0) / spacing)
        fits += abs(concordant * spacing - 1.0 - value) <= rounding * 1.000001
    chance = min(1.0, 2.0 * rounding / spacing)
    return float(scipy.stats.binom.logsf(fits - 1, len(values), chance))


def _models(table: dict[str, Any], reading: str) -> Metrics:
    """Return the number of models that the printed correlations fit best, by chance the least."""
    values = [v for figure in table["figures"] for v in figure["layers"] + figure["others"]]
    chances = {n: chance_of_fit(values, n) for n in MODELS}
    order = sorted(chances, key=lambda n: chances[n])
    in_grid = {name: math.prod(counts.values()) for name, counts in table["grid"].items()}
    return {
        "models": order[0],
        "models_in_the_grid": in_grid["CIFAR"],
        "models_in_the_grid_tiny": in_grid["TinyImageNet"],
        "log_chance": chances[order[0]],
        "log_chance_of_the_next": chances[order[1]],
        "next": order[1],
        "values": len(values),
    }


FACTS: dict[str, tuple[Callable[[dict[str, Any], str], Metrics], str, tuple[str, ...]]] = {
    "gain over SAM": (_gain, TABLE_1, ("low", "high")),
    "margin over ASAM": (_margin, TABLE_1, ("low", "high")),
    "lead": (_lead, TABLE_1, ("low",)),
    "settings": (_settings, TABLES_4_6, ("low",)),
    "number of models": (_models, CORRELATIONS, ("low",)),
}


def grid(profile: str) -> list[Configuration]:
    """List the configurations: each fact by how digits are read that are not legible.

    A folder of claims without a table has nothing to run of it.
    """
    tables = published_names()
    return [
        {
            "fact": name,
            "table": table,
            "digest": published_digest(table),
            "reading": reading,
            "seed": 0,
        }
        for name, (_, table, readings) in FACTS.items()
        for reading in readings
        if table in tables
    ]


def run(configuration: Configuration, context: RunContext) -> Metrics:
    """Do the arithmetic of one fact on the table as it is printed."""
    fact, table, _ = FACTS[configuration["fact"]]
    return fact(published_table(table), configuration["reading"])


STUDY = Study(
    name="renyi_published",
    question="Do the Rényi paper's own numbers bear out what it says of them?",
    grid=grid,
    run=run,
)
