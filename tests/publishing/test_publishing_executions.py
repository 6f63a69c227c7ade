"""Chapters are executed a few at a time, and again only if something behind them has changed."""

import threading
from pathlib import Path

import pytest

from paperkit.experiments.study import study_names
from paperkit.publishing import executions, notebooks
from paperkit.publishing.executions import at_once, executed, fingerprint_of
from paperkit.publishing.notebooks import NotebookError

CHAPTER = """\
# %% [markdown]
# # A chapter

# %% tags=["parameters"]
seed = 0

# %%
from paperkit.statistics import kendall_tau

print(seed, float(kendall_tau([1, 2, 3], [1, 2, 3])))
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one chapter, in which executing is only noted."""
    for folder in ("notebooks", "paperkit", "claims", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "requirements.lock").write_text("torch==2\n")
    (tmp_path / "results" / "a.jsonl").write_text("{}\n")
    (tmp_path / "notebooks" / "01_a.py").write_text(CHAPTER)
    runs: list[Path] = []

    def note(source: Path, target: Path, *, quiet: bool) -> None:
        runs.append(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("executed")

    monkeypatch.setattr(notebooks, "execute_for_book", note)
    monkeypatch.setattr(executions, "runs", runs, raising=False)
    monkeypatch.setenv("PAPERKIT_STORE", str(tmp_path / "store"))
    return tmp_path


def runs_of(tree: Path) -> int:
    before = len(executions.runs)
    executed([tree / "notebooks" / "01_a.py"], tree, jobs=1)
    return len(executions.runs) - before


def test_a_chapter_is_executed_once_until_something_behind_it_changes(tree, monkeypatch):
    source = tree / "notebooks" / "01_a.py"
    assert [runs_of(tree), runs_of(tree)] == [1, 0]
    source.write_text(CHAPTER + "\nprint('more')\n")
    assert [runs_of(tree), runs_of(tree)] == [1, 0]
    (tree / "requirements.lock").write_text("torch==3\n")
    assert [runs_of(tree), runs_of(tree)] == [1, 0]
    monkeypatch.setenv("MKL_CBWR", "another")
    assert [runs_of(tree), runs_of(tree)] == [1, 0]
    # A chapter without claims and studies does not depend on the records.
    (tree / "results" / "a.jsonl").write_text("{}\n{}\n")
    assert runs_of(tree) == 0
    source.write_text(CHAPTER.replace("paperkit.statistics", "paperkit.ledger"))
    assert [runs_of(tree), runs_of(tree)] == [1, 0]
    (tree / "results" / "a.jsonl").write_text("{}\n")
    assert [runs_of(tree), runs_of(tree)] == [1, 0]
    (tree / "store" / "records").mkdir(parents=True)
    (tree / "store" / "records" / "new.json").write_text("{}")
    assert [runs_of(tree), runs_of(tree)] == [1, 0]
    (tree / "_build" / "executed" / "01_a.ipynb").unlink()
    assert runs_of(tree) == 1


def test_a_chapter_that_failed_is_executed_again(tree, monkeypatch):
    assert runs_of(tree) == 1
    (tree / "notebooks" / "01_a.py").write_text(CHAPTER + "\n1 / 0\n")

    def fail(source, target, *, quiet):
        raise NotebookError("01_a.py failed")

    with monkeypatch.context() as patch:
        patch.setattr(notebooks, "execute_for_book", fail)
        with pytest.raises(NotebookError, match=r"01_a\.py failed"):
            runs_of(tree)
    (tree / "notebooks" / "01_a.py").write_text(CHAPTER)
    assert runs_of(tree) == 1


def test_the_code_that_a_chapter_imports_is_behind_it(tree, monkeypatch):
    source = tree / "notebooks" / "01_a.py"
    before = fingerprint_of(source, tree)
    imported = executions.code_behind(source.read_text())
    assert "paperkit.statistics.rank_correlation" in imported
    assert not any(name.startswith("paperkit.optim") for name in imported)
    changed = {**imported, "paperkit.statistics.rank_correlation": "another"}
    monkeypatch.setattr(executions, "code_behind", lambda *given: changed)
    assert fingerprint_of(source, tree) != before


def test_a_chapter_that_shows_verdicts_has_every_study_behind_it():
    text = CHAPTER.replace("paperkit.statistics import kendall_tau", "paperkit.ledger import x")
    names = [f"paperkit.experiments.studies.{name}" for name in study_names()]
    assert set(names) <= set(executions.code_behind(text, names))


def test_work_is_done_by_as_many_as_are_asked_for_and_kept_in_order():
    both = threading.Barrier(2, timeout=20)
    sources = [Path(f"{i}.py") for i in range(4)]

    def work(source):
        both.wait()  # passes only if two are at work
        return source.stem

    assert list(at_once(work, sources, jobs=2).items()) == [(s, s.stem) for s in sources]
    assert at_once(lambda source: 1, [], jobs=2) == {}


def test_after_a_failure_nothing_more_is_begun():
    begun = []

    def work(source):
        begun.append(source)
        raise NotebookError(f"{source} failed")

    with pytest.raises(NotebookError, match=r"0\.py failed"):
        at_once(work, [Path(f"{i}.py") for i in range(5)], jobs=1)
    assert begun == [Path("0.py")]
