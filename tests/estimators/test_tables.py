"""Tables of results: as wide as their text, and empty where nothing applies."""

import pandas as pd

from paperkit.estimators.tables import html_table, plain_table

ROWS = [
    {"measure": "hessian_trace", "value": 1.23456789, "n": 8, "note": "x < y"},
    {"measure": "loss", "value": -1e-9, "n": 1000, "note": "a & b"},
]
COLUMNS = ("measure", "value", "n", "note")


def test_a_full_table_is_printed_as_pandas_prints_it():
    frame = pd.DataFrame(ROWS)
    assert plain_table(ROWS, COLUMNS) == frame.to_string(index=False, float_format="{:.6g}".format)


def test_what_does_not_apply_is_empty():
    table = plain_table([{"measure": "loss", "value": None}], ("measure", "value"))
    assert table == "measure value\n   loss      "
    assert "<td></td>" in html_table([{"measure": "loss", "value": None}], ("measure", "value"))


def test_html_escapes_what_it_shows():
    table = html_table(ROWS, COLUMNS)
    assert "x &lt; y" in table and "a &amp; b" in table
    assert [line.count("<td>") for line in table.splitlines() if "<td>" in line] == [4, 4]
    assert table.count("<th>") == 4
