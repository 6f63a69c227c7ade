"""Examples in docstrings run and print what they show; every public name has one."""

import doctest
import importlib
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from examples import failures
from public_calls import public_names

import paperkit

PACKAGE = Path(paperkit.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)
NAMES = public_names()


@pytest.fixture(autouse=True)
def a_place_of_its_own(tmp_path, monkeypatch):
    """Run each example in an empty folder, from a fixed random state, and put all settings back."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(), mpl.rc_context():
        torch.manual_seed(0)
        yield
    plt.close("all")


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_show(module, pytestconfig):
    # Nothing is imported beforehand, because a reader copies the lines into an empty session.
    found = doctest.DocTestFinder().find(importlib.import_module(module), globs={})
    if report := "".join(failures(test, pytestconfig) for test in found):
        pytest.fail(report, pytrace=False)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name_has_an_example(name):
    examples = doctest.DocTestParser().get_examples(NAMES[name].__doc__ or "")
    assert any(example.want for example in examples), f"{name} shows nothing in its docstring"
