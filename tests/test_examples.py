"""Examples in docstrings run and print what they show; every public name has one."""

import ast
import doctest
import gc
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from examples import failures
from public_calls import public_names

import paperkit

PACKAGE = Path(paperkit.__file__).parent
FILES = sorted(
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
NAMES = public_names()
PARSER = doctest.DocTestParser()


@pytest.fixture(autouse=True)
def a_place_of_its_own(tmp_path, monkeypatch):
    """Run each example in an empty folder, from a fixed random state, and put all settings back."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(), mpl.rc_context():
        torch.manual_seed(0)
        yield
    plt.close("all")
    gc.unfreeze()  # A chapter's setup freezes what is there, which no other test expects.


def examples_in(path: Path) -> Iterator[doctest.DocTest]:
    """Read the docstrings from the source, because doctest does not look into decorated functions.

    Nothing is imported beforehand: a reader copies the lines into an empty session.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text, name = ast.get_docstring(node), getattr(node, "name", path.stem)
            if text and ">>> " in text:
                session = {"__name__": "__main__"}
                line = node.body[0].lineno - 1
                yield PARSER.get_doctest(text, session, name, str(path), line)


@pytest.mark.parametrize("file", FILES)
def test_examples_print_what_they_show(file, pytestconfig):
    found = list(examples_in(PACKAGE / file))
    assert found
    if report := "".join(failures(test, pytestconfig) for test in found):
        pytest.fail(report, pytrace=False)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name_has_an_example(name):
    examples = PARSER.get_examples(NAMES[name].__doc__ or "")
    assert any(example.want for example in examples), f"{name} shows nothing in its docstring"
