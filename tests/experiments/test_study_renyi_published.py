"""Arithmetic on published tables: known on tables of two rows."""

import pytest

from paperkit.experiments.published import published_table
from paperkit.experiments.studies import renyi_published
from paperkit.experiments.studies.renyi_published import (
    CORRELATIONS,
    TABLE_1,
    TABLES_4_6,
    chance_of_fit,
    hundredths,
    legible,
    mean_of,
)


def row(**means):
    return {"cells": {m: {"mean": v, "error": 0.3} for m, v in means.items()}}


TABLE = {"rows": [row(SGD=90.0, SAM=91.0, ASAM=92.0, RSAM=92.1), row(SGD=1, SAM=3, ASAM=2, RSAM=4)]}


def test_gains_margins_and_leads_are_counted_in_hundredths():
    gain = renyi_published._gain(TABLE, "low")
    assert (gain["largest_gain"], gain["second_gain"]) == (110, 100)
    margin = renyi_published._margin(TABLE, "low")
    assert margin["margins"] == [10, 200]
    assert margin["tasks_within_one_error"] == 1
    lead = renyi_published._lead(TABLE, "low")
    assert lead["lead"] == [10, 100]
    assert lead["rows_below_two_errors"] == 1
    assert hundredths(0.29) == 29


def test_a_cell_that_is_not_legible_has_two_readings_and_makes_no_lead():
    cell = {"mean": None, "readings": [1.0, 1.9], "error": 0.1}
    assert [mean_of(cell, reading) for reading in ("low", "high")] == [1.0, 1.9]
    assert not legible({"cells": {"RSAM": cell}})


def test_settings_are_counted_by_method_where_there_are_several_networks():
    one = {"data": "a", "rho": {"SAM": {"x": 1}, "RSAM": {"x": 2}}, "alpha": {}}
    two = {
        "data": "b",
        "rho": {"SAM": {"x": 1, "y": 1}, "RSAM": {"x": 2, "y": 2}},
        "alpha": {"RSAM": {"x": 1.1, "y": 1.2}},
    }
    found = renyi_published._settings({"tables": [one, two]}, "low")
    assert found == {"extra_settings_slack": [0], "settings": {"b": {"SAM": 1, "RSAM": 2}}}


def test_correlations_of_ten_models_fit_ten_models_best():
    values = [round(2 * c / 45 - 1, 4) for c in (3, 11, 20, 29, 37, 40, 44)]
    chances = {n: chance_of_fit(values, n) for n in range(5, 40)}
    assert min(chances, key=chances.get) == 10
    # A value that lies between two that are possible fits none.
    assert chance_of_fit([0.01], 10) == pytest.approx(0.0)


def test_the_published_tables_have_the_cells_that_the_paper_has():
    table = published_table(TABLE_1)
    cells = [cell for r in table["rows"] for cell in r["cells"].values()]
    assert len(cells) == 34
    for cell in cells:
        assert (cell["mean"] is None) == ("readings" in cell)
    settings = published_table(TABLES_4_6)
    assert {(t["data"], name) for t in settings["tables"] for name in t["rho"]["RSAM"]} == {
        (r["data"], r["model"]) for r in table["rows"]
    }
    orders = published_table(CORRELATIONS)["orders"]
    assert orders["matches"] + orders["mismatches"] == orders["cases"]


def test_each_configuration_holds_the_digest_of_its_table():
    for configuration in renyi_published.grid("laptop"):
        assert len(configuration["digest"]) == 12
        assert renyi_published.run(configuration, context=None)
