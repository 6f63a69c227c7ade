"""The pages of users: their examples print what they show, their costs are the benchmark's."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import pytest

import paperkit.optim
from benchmarks import render
from paperkit.models import build
from tests.examples import failures

BOOK = Path(__file__).parents[2] / "book"
PAGES = ("measure_your_network", "train_with_sam")


@pytest.mark.parametrize("page", PAGES)
def test_examples_print_what_they_show(page, pytestconfig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (BOOK / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    parser = doctest.DocTestParser()
    assert all(parser.get_examples(block)[-1].want for block in blocks)
    example = parser.get_doctest("\n".join(blocks), {}, page, page, 0)
    if report := failures(example, pytestconfig):
        pytest.fail(report, pytrace=False)


def test_costs_are_those_of_the_benchmark():
    record = json.loads(render.RECORD.read_text(encoding="utf-8"))
    text = render.USERS_PAGE.read_text(encoding="utf-8")
    assert render.with_costs(text, record) == text
    rows = re.findall(r"^\| .* \| [\d,]+ \|", text, flags=re.MULTILINE)
    assert len(rows) == 10  # The reference network has one, and each other network three.


def test_the_reference_network_has_the_parameters_that_the_table_says():
    model = build("resnet20", in_channels=3, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == render.RESNET20_PARAMETERS


def test_the_table_of_optimizers_has_all_of_them():
    text = (BOOK / "train_with_sam.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))
    bases = {"MultiPassOptimizer", "SmoothnessAdaptiveOptimizer", "WrappedOptimizer"}
    public = {
        name
        for name in paperkit.optim.__all__
        if isinstance(found := getattr(paperkit.optim, name), type)
        and issubclass(found, paperkit.optim.MultiPassOptimizer)
    }
    assert named == public - bases
