"""Examples run and print what they show: those of the docstrings and those of README."""

import doctest
import importlib
import io
import re
import warnings
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

import paperkit
from tests.public_calls import public_names

PACKAGE = Path(paperkit.__file__).parent
ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.fixture(autouse=True)
def a_place_of_its_own(tmp_path, monkeypatch):
    """Run each example in an empty folder, from a fixed random state, and put all settings back."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(), mpl.rc_context():
        torch.manual_seed(0)
        yield
    plt.close("all")


def failures(test: doctest.DocTest, flags: int) -> str:
    """Run an example; return what did not print as shown. A warning is an error."""
    runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
    report = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.run(test, out=report.write)
    return report.getvalue()


@pytest.fixture
def flags(pytestconfig) -> int:
    """The options that pytest's own runner of docstrings has, so that both say the same."""
    names = pytestconfig.getini("doctest_optionflags")
    return sum(doctest.OPTIONFLAGS_BY_NAME[name] for name in names)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_print_what_they_show(module, flags):
    # Nothing is imported beforehand, because a reader copies the lines into an empty session.
    found = doctest.DocTestFinder().find(importlib.import_module(module), globs={})
    if report := "".join(failures(test, flags) for test in found):
        pytest.fail(report, pytrace=False)


@pytest.mark.parametrize("name", sorted(public_names()))
def test_a_public_name_has_an_example(name):
    examples = doctest.DocTestParser().get_examples(public_names()[name].__doc__ or "")
    assert any(example.want for example in examples), f"{name} shows nothing in its docstring"
