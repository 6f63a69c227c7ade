"""A repository of its own for every test, with two small studies beside the real ones."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

from paperkit.experiments import provenance, studies

HERE = Path(__file__).parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The root of an empty repository."""
    folder = tmp_path / "repository"
    for name in ("results", "claims", "store"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setenv("PAPERKIT_ROOT", str(folder))
    return folder


@pytest.fixture
def store(root):
    return root / "store"


@pytest.fixture
def studies_folder(root, monkeypatch):
    """A copy of the self-test studies, importable and free to be edited."""
    folder = root / "studies"
    shutil.copytree(HERE / "experiments" / "selftest_studies", folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(folder)])
    forget_studies()
    yield folder
    forget_studies()


def forget_studies():
    """Let the next import read the self-test studies from their files again."""
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if ".selftest_" in name]:
        del sys.modules[name]


@pytest.fixture
def committed(monkeypatch):
    """Pretend that the code is committed: the state of this checkout is no part of a test."""
    monkeypatch.setattr(provenance, "tree_state", lambda: provenance.TreeState(COMMIT, False))


@pytest.fixture
def uncommitted(monkeypatch):
    monkeypatch.setattr(provenance, "tree_state", lambda: provenance.TreeState(COMMIT, True))


@pytest.fixture
def edit(studies_folder):
    """Replace a piece of a self-test study's code."""

    def replace(name, old, new):
        path = studies_folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        forget_studies()

    return replace


@pytest.fixture
def log(store):
    """Read what the self-test studies ran."""
    return lambda: (store / "log").read_text().splitlines() if (store / "log").is_file() else []
