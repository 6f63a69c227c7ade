"""The code on the errata page runs as it stands, and its assertions hold."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "book" / "errata.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_errata_page_has_code():
    assert BLOCKS


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_each_erratum_proves_its_point(code):
    assert "assert" in code
    exec(compile(code, str(PAGE), "exec"), {"__name__": "errata"})
