"""The API page names what the library knows, and nothing else."""

import re
from pathlib import Path

import pytest

from paperkit import data, models, network

PAGE = Path(__file__).parents[2] / "book" / "api.md"


@pytest.mark.parametrize(
    ("constant", "known"),
    [
        ("paperkit.data.datasets.NAMES", data.NAMES),
        ("paperkit.data.corruptions.apply.CORRUPTIONS", data.CORRUPTIONS),
        ("paperkit.models.registry.NAMES", models.NAMES),
        ("paperkit.models.activations.ACTIVATIONS", models.ACTIVATIONS),
        ("paperkit.network.losses.LOSSES", network.LOSSES),
    ],
)
def test_the_page_lists_the_names_that_the_library_knows(constant, known):
    page = PAGE.read_text(encoding="utf-8")
    entry = page.split(f":canonical: {constant}\n")[1].split("\n.. ")[0].split("\n```")[0]
    assert re.findall(r"``([\w-]+)``", entry) == list(known)
