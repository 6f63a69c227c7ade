"""The API pages name what the library knows, each name once, and nothing else."""

import importlib
import re
from collections import Counter
from inspect import ismodule
from pathlib import Path

import pytest

from paperkit import data, models, network
from paperkit.publishing.api_pages import members

BOOK = Path(__file__).parents[2] / "book"
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in (BOOK / "api").glob("*.md")}
ALL = "\n".join(TEXTS.values())


def documented() -> Counter[str]:
    """Count how often each name stands on the pages, as a member or as data."""
    blocks = re.findall(r"```\{members\} (\S+)\n(.*?)```", ALL, flags=re.DOTALL)
    names = [f"{module}.{name}" for module, block in blocks for name in block.split()]
    for module, block in re.findall(
        r"\.\. py:currentmodule:: (\S+)\n(.*?)```", ALL, flags=re.DOTALL
    ):
        names += [f"{module}.{name}" for name in re.findall(r"\.\. py:data:: (\w+)", block)]
    return Counter(names)


DOCUMENTED = documented()
MODULES = sorted({name.rpartition(".")[0] for name in DOCUMENTED})


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_stands_on_one_page(module: str) -> None:
    library = importlib.import_module(module)
    public = [name for name in library.__all__ if not ismodule(getattr(library, name))]
    counts = {name: DOCUMENTED[f"{module}.{name}"] for name in public}
    assert counts == dict.fromkeys(public, 1)


def test_no_room_of_the_library_is_left_out() -> None:
    rooms = {
        *("linalg", "network", "curvature", "linearize", "estimators", "bounds", "statistics"),
        *("data", "models", "optim", "training", "monitor", "experiments", "ledger"),
    }
    assert {module.split(".")[1] for module in MODULES} == rooms


def test_the_first_page_lists_every_other() -> None:
    listed = re.findall(r"\{doc\}`api/(\w+)`", (BOOK / "api.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(TEXTS)


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(ValueError, match=r"paperkit\.data has no public Loader: correct the API"):
        members("paperkit.data", ["load", "Loader"])


def test_a_page_begins_with_a_table_and_documents_classes_with_their_members() -> None:
    text = members("paperkit.monitor", ["SharpnessMonitor", "MonitorWarning"])
    assert text.startswith(".. currentmodule:: paperkit.monitor\n\n.. autosummary::\n")
    assert ".. autoclass:: SharpnessMonitor\n   :members:\n" in text
    assert ".. autoexception:: MonitorWarning\n" in text


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
def test_the_pages_list_the_names_that_the_library_knows(constant, known):
    entry = ALL.split(f":canonical: {constant}\n")[1].split("\n.. ")[0].split("\n```")[0]
    assert re.findall(r"``([\w-]+)``", entry) == list(known)
