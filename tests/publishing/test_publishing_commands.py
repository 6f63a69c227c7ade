"""``paperkit run``: a chapter with parameters of one's own."""

import shlex

import nbformat
import pytest

from paperkit.cli import main
from paperkit.publishing.notebooks import INJECTED

CHAPTER = """
# %% [markdown]
# # A chapter

# %% tags=["parameters"]
profile = "laptop"  # smoke, laptop or paper
seed = 0  # of the network

# %%
print(profile, seed)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one chapter."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "09_test.py").write_text(CHAPTER)
    monkeypatch.setenv("PAPERKIT_ROOT", str(tmp_path))
    return tmp_path


def test_the_parameters_of_a_chapter_are_listed(root, capsys):
    assert main(["run", "09_test", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'profile = "laptop"  smoke, laptop or paper',
        "seed = 0  of the network",
    ]


def test_papermills_own_line_is_shown_and_nothing_run(root, capsys):
    words = ["run", "09_test", "--profile", "smoke", "-p", "seed=a b", "--dry-run"]
    assert main(words) == 0
    line = shlex.split(capsys.readouterr().out)
    assert line[:3] == [
        "papermill",
        str(root / "notebooks" / "09_test.ipynb"),
        str(root / "_build" / "runs" / "09_test.ipynb"),
    ]
    assert line[3:] == ["-p", "seed", "a b", "-p", "profile", "smoke"]
    assert not (root / "_build").exists()


def test_a_copy_is_executed_with_the_parameters(root, capsys):
    target = root / "new folder" / "own.ipynb"
    assert main(["run", "09_test", "-p", "seed=3", "--output", str(target)]) == 0
    executed = nbformat.read(target, as_version=4)
    printed = [o["text"] for c in executed.cells for o in c.get("outputs", []) if "text" in o]
    assert printed == ["laptop 3\n"]
    assert any(INJECTED in cell.metadata.get("tags", []) for cell in executed.cells)
    assert (root / "notebooks" / "09_test.py").read_text() == CHAPTER


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["09_test", "-p", "sede=3"], "'sede' is not a parameter of 09_test; did you mean 'seed'?"),
        (["09_test", "-p", "seed"], "-p seed is no assignment; write -p NAME=VALUE"),
        (["08_test"], "no chapter 08_test in"),
    ],
)
def test_what_a_chapter_does_not_know_is_refused_in_a_sentence(root, words, sentence, capsys):
    assert main(["run", *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not (root / "_build").exists()
