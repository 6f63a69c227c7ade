"""The committed chapters are what their sources and `make refresh` say they are."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from paperkit.publishing import book
from paperkit.publishing.notebooks import (
    NotebookError,
    chapters,
    execute,
    execute_for_book,
    normalise,
    pair_differences,
    read_source,
    refuse_addresses,
)

ROOT = Path(__file__).resolve().parents[2]
SOURCES = chapters(ROOT / "notebooks")
IGNORED = {"nbval-ignore-output", "nbval-skip"}
IGNORING_COMMENT = re.compile(r"#\s*(NBVAL_IGNORE_OUTPUT|NBVAL_SKIP|PYTEST_VALIDATE_IGNORE_OUTPUT)")

SOURCE = """\
# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A chapter

# %% tags=["parameters"]
seed = 0

# %%
import sys
print("seed", seed)
print("a progress bar", file=sys.stderr)
print("done")
"""


def uncompared_cells(notebook: NotebookNode) -> list[int]:
    """Return the numbers of the cells whose outputs nbval would not compare."""
    return [
        number
        for number, cell in enumerate(notebook.cells)
        if cell.cell_type == "code"
        and (IGNORED & set(cell.metadata.get("tags", [])) or IGNORING_COMMENT.search(cell.source))
    ]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_source_and_executed_pair_have_the_same_cells(source: Path) -> None:
    assert pair_differences(source, source.with_suffix(".ipynb")) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_committed_notebook_was_written_by_refresh(source: Path) -> None:
    path = source.with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    assert normalise(notebook) == notebook, "run `make refresh` and commit the result"
    refuse_addresses(notebook, path.name)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_cell_shows_what_any_processor_would_and_is_compared(source: Path) -> None:
    assert uncompared_cells(read_source(source)) == []


@pytest.mark.parametrize("mark", ["nbval-ignore-output", "nbval-skip", "# NBVAL_IGNORE_OUTPUT"])
def test_an_uncompared_cell_is_found(mark: str) -> None:
    comment = mark if mark.startswith("#") else "# trains"
    cells = [new_code_cell("1 + 1"), new_code_cell(f"{comment}\nprint(train())")]
    cells[1].metadata["tags"] = [] if comment == mark else [mark]
    assert uncompared_cells(new_notebook(cells=cells)) == [1]


def test_table_of_contents_and_folder_hold_the_same_chapters() -> None:
    listed = [page for page in book.contents(ROOT) if page.startswith("notebooks/")]
    assert listed == [f"notebooks/{source.stem}" for source in SOURCES]


def test_normalising_keeps_what_the_book_shows_and_drops_what_varies() -> None:
    injected = new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]})
    outputs = [
        new_output("stream", name="stdout", text="a\n"),
        new_output("stream", name="stderr", text="100%|####|"),
        new_output("stream", name="stdout", text="b\n"),
    ]
    metadata = {"tags": ["x"], "papermill": {"start_time": "now"}, "execution": {"busy": "now"}}
    code = new_code_cell("print()", outputs=outputs, execution_count=3, metadata=metadata)
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), injected, code])
    notebook.metadata["papermill"] = {"input_path": "somewhere"}
    clean = normalise(notebook)
    assert [cell.source for cell in clean.cells] == ["# Title", "print()"]
    assert clean.cells[1].metadata == {"tags": ["x"]}
    assert [dict(output) for output in clean.cells[1].outputs] == [
        {"output_type": "stream", "name": "stdout", "text": "a\nb\n"}
    ]
    assert set(clean.metadata) == {"kernelspec", "language_info"}


def test_cell_ids_depend_on_place_and_source_only() -> None:
    def ids(*sources: str) -> list[str]:
        return [c.id for c in normalise(new_notebook(cells=[*map(new_code_cell, sources)])).cells]

    assert ids("a", "a") == ids("a", "a")
    assert len(set(ids("a", "a"))) == 2
    assert ids("a", "b")[1] != ids("a", "c")[1]


def test_a_memory_address_in_an_output_is_refused() -> None:
    result = new_output("execute_result", data={"text/plain": "<Axes at 0x7f00deadbeef>"})
    with pytest.raises(NotebookError, match=r"chapter, cell 0 prints '<Axes at 0x7f00deadbeef>'"):
        refuse_addresses(new_notebook(cells=[new_code_cell("x", outputs=[result])]), "chapter")


def test_pair_differences_name_the_cell_that_was_edited(tmp_path: Path) -> None:
    source, executed = tmp_path / "01_a.py", tmp_path / "01_a.ipynb"
    source.write_text(SOURCE)
    nbformat.write(read_source(source), executed)
    assert pair_differences(source, executed) == []
    source.write_text(SOURCE.replace("seed = 0", "seed = 1"))
    assert pair_differences(source, executed) == [
        "01_a.py, cell 1 ('seed = 1'): source differs from 01_a.ipynb"
    ]
    source.write_text(SOURCE + "\n# %%\n1 + 1\n")
    assert pair_differences(source, executed) == ["01_a.py has 4 cells, 01_a.ipynb has 3"]


def test_an_unknown_chapter_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "01_a.py").write_text(SOURCE)
    with pytest.raises(NotebookError, match=r"no chapter 02_b in .*; there are: 01_a"):
        chapters(tmp_path, ["02_b"])


def test_executing_twice_gives_the_same_bytes_and_leaves_the_source_alone(tmp_path: Path) -> None:
    source = tmp_path / "01_a.py"
    source.write_text(SOURCE)
    targets = [tmp_path / run / "01_a.ipynb" for run in ("first", "second")]
    for target in targets:
        execute_for_book(source, target)
    assert targets[0].read_bytes() == targets[1].read_bytes()
    assert source.read_text() == SOURCE
    assert pair_differences(source, targets[0]) == []
    printed = nbformat.read(targets[0], as_version=4).cells[2].outputs
    assert [output.text for output in printed] == ["seed 0\ndone\n"]
    assert sorted(path.name for path in targets[0].parent.iterdir()) == ["01_a.ipynb"]


def test_parameters_reach_the_chapter_and_a_failing_cell_is_named(tmp_path: Path) -> None:
    source, target = tmp_path / "01_a.py", tmp_path / "run" / "01_a.ipynb"
    source.write_text(SOURCE + "\n# %%\nassert seed != 3, 'three'\n")
    with pytest.raises(NotebookError, match=r"01_a\.py failed in cell 3, .* \"assert seed != 3"):
        execute(source, target, parameters={"seed": 3})
