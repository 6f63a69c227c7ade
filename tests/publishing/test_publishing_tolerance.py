"""Committed numbers are compared within their tolerance, and a failure names them."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from paperkit.publishing import nbval_tolerance
from paperkit.publishing.nbval_tolerance import cell_rtol
from paperkit.publishing.printed_numbers import agree, snap

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("committed", "computed"),
    [
        ("0.123456789", "0.123456790"),
        ("1234.5", "1234.6"),
        ("1.2345e-05", "1.2346e-05"),
        ("-0.5", "-0.5000001"),
        ("−0.5", "-0.5"),
        ("64", "64"),
        ("0.000", "-0.000"),
    ],
)
def test_numbers_within_the_tolerance_agree(committed: str, computed: str) -> None:
    assert agree(committed, computed)


@pytest.mark.parametrize(
    ("committed", "computed"),
    [
        ("0.123456789", "0.1234570"),
        ("1234.5", "1234.7"),
        ("1.2345e-05", "1.2347e-05"),
        ("0.5", "-0.5"),
        ("0.5", "0.6"),
        ("5000", "5001"),
        ("5000.", "5001."),
        ("10000000", "10000001"),
        ("0.0", "1e-17"),
        ("1e-12", "2e-12"),
    ],
)
def test_numbers_beyond_the_tolerance_do_not_agree(committed: str, computed: str) -> None:
    assert not agree(committed, computed)


def test_a_cells_tag_widens_its_tolerance() -> None:
    assert not agree("0.1000000", "0.1000500")
    assert agree("0.1000000", "0.1000500", cell_rtol(["hide-input", "nbval-rtol=1e-3"]))


@pytest.mark.parametrize(
    "tag", ["nbval-rtol=loose", "nbval-rtol=-1", "nbval-rtol=1", "nbval-rtol="]
)
def test_a_tolerance_that_is_no_number_below_one_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="needs a number from 0 to below 1"):
        cell_rtol([tag])


@pytest.mark.parametrize(
    ("committed", "computed"),
    [
        ("loss 0.1234567 at n = 64", "loss 0.1234568 at n = 64"),
        ("[1.2345678 2.3456789]", "[ 1.2345678  2.3456789]"),
        ("<td>0.1234567</td>", "<td>0.1234568</td>"),
        ("| 0.1234567 |\n|-----|", "| 0.1234568 |\n|------|"),
    ],
)
def test_text_with_agreeing_numbers_becomes_the_committed_text(
    committed: str, computed: str
) -> None:
    assert snap(committed, computed) == (committed, [])


@pytest.mark.parametrize(
    ("committed", "computed"),
    [
        ("verified 0.5", "refuted 0.5"),
        ("conv1 0.5", "conv2 0.5"),
        ("0.5 0.5", "0.5"),
        ("a non-zero 0.5", "a non zero 0.5"),
        ("version 1.2.3", "version 1.2.4"),
        ("nan", "0.5"),
    ],
)
def test_text_that_differs_in_words_is_left_as_it_came(committed: str, computed: str) -> None:
    assert snap(committed, computed) == (computed, [])


def test_a_difference_names_both_numbers_and_the_tolerance() -> None:
    text, (difference,) = snap("a 0.1234567, b 0.5", "a 0.1234568, b 0.7")
    assert text == "a 0.1234567, b 0.7"
    assert str(difference) == "computed 0.7, committed 0.5 (relative tolerance 1e-06)"


CODE = """\
import warnings; warnings.warn("of a library, on standard error", stacklevel=1)
from IPython.display import HTML, SVG, Markdown, display
print("entropy", {value})
display(Markdown("| {value} |"), HTML("<b>{value}</b>"), SVG("<svg>{value}</svg>"))
{value}"""


def _committed_notebook(path: Path, computed: str, committed: str, tags: list[str]) -> None:
    """Write a notebook whose code prints one number and whose outputs show another."""
    texts = {"text/markdown": "| {} |", "text/html": "<b>{}</b>", "image/svg+xml": "<svg>{}</svg>"}
    classes = dict(zip(texts, ("Markdown", "HTML", "SVG"), strict=True))
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"entropy {committed}\n")]
    for kind, text in texts.items():
        plain = f"<IPython.core.display.{classes[kind]} object>"
        data = {kind: text.format(committed), "text/plain": plain}
        outputs.append(nbformat.v4.new_output("display_data", data=data))
    result = {"text/plain": committed}
    outputs.append(nbformat.v4.new_output("execute_result", data=result, execution_count=2))
    cell = nbformat.v4.new_code_cell(
        CODE.format(value=computed), outputs=outputs, execution_count=2, metadata={"tags": tags}
    )
    first = nbformat.v4.new_code_cell("1", execution_count=1)
    first.outputs = [
        nbformat.v4.new_output("execute_result", data={"text/plain": "1"}, execution_count=1)
    ]
    notebook = nbformat.v4.new_notebook(cells=[first, cell])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)


PLUGIN = ("-p", "paperkit.publishing.nbval_tolerance")


def _nbval(folder: Path, *options: str) -> str:
    """Run nbval on a folder and return what pytest printed."""
    command = [sys.executable, "-m", "pytest", "--nbval", *options, "-p", "no:cacheprovider"]
    command += ["-p", "no:xdist", "--color=no", "--rootdir", str(folder), str(folder)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_nbval_passes_within_the_tolerance_and_names_the_cell_beyond_it(tmp_path: Path) -> None:
    _committed_notebook(tmp_path / "within.ipynb", "0.12345678", "0.12345679", [])
    _committed_notebook(tmp_path / "tagged.ipynb", "0.1234567", "0.1234999", ["nbval-rtol=1e-3"])
    _committed_notebook(tmp_path / "beyond.ipynb", "0.1234567", "0.1234999", [])
    printed = _nbval(tmp_path, *PLUGIN)
    assert "1 failed, 5 passed" in printed, printed
    sentence = "beyond.ipynb, code cell 1: computed 0.1234567, committed 0.1234999"
    assert sentence in printed


def test_without_the_plugin_nbval_compares_exactly(tmp_path: Path) -> None:
    _committed_notebook(tmp_path / "within.ipynb", "0.12345678", "0.12345679", [])
    printed = _nbval(tmp_path)
    assert "1 failed, 1 passed" in printed, printed


def test_the_repository_loads_the_plugin_for_every_run(request) -> None:
    assert request.config.pluginmanager.has_plugin(PLUGIN[1])


def test_the_plugin_leaves_tests_that_are_no_notebooks_alone(request) -> None:
    own = dict(vars(request.node))
    nbval_tolerance.pytest_itemcollected(request.node)
    assert vars(request.node) == own
