"""Docstrings, comments and statements use the symbols of the notation page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_words import ROOMS, ROOT, files_of

PAGE = ROOT / "book" / "notation.md"

# The measures' docstrings still have letters of their papers; the patterns hold everywhere else.
NOT_YET_COVERED = ("paperkit/estimators",)

# Each pattern finds another letter; its value says what the page writes there.
FORBIDDEN = {
    r"F†|F\^\{?\\dagger": "F⁺ for a pseudo-inverse",
    r"\bJ_x\b|‖Jx|\bJx\b": "X for a Jacobian in an activation",
    r"‖T‖|\\\|T\\\||\bT_l\b": "A for a layer's linear map",
    r"\b[aB]_\{?i?c?p\b": "t for a position",
    r"(?<![\w\\{])H_(?:\\alpha|α)": "ℋ_α for an entropy",
    r"\bw_\{?t\b|\\Delta w\b|Δw": "θ for the parameters",
    r"\bM_\{?i\b": "Λ for the outputs' Hessian, R for a factor of it",
    r"[λ]I\b|\\lambda I\b": "ν for a damping",
}


def covered_files() -> Iterator[Path]:
    """Yield the files of all rooms but this one, whose patterns match themselves."""
    for room in ROOMS:
        if room not in NOT_YET_COVERED:
            yield from (path for path in files_of(room) if path != Path(__file__))


@pytest.mark.parametrize("pattern", FORBIDDEN, ids=FORBIDDEN.get)
def test_a_letter_of_a_paper_is_not_used_for_the_pages(pattern: str) -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in covered_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not bad, "\n" + "\n".join(bad)


def exceptions() -> dict[tuple[str, str], tuple[str, str]]:
    """Return the page's table: (argument, owner) → (symbol here, symbol in the paper)."""
    section = PAGE.read_text(encoding="utf-8").split("## In code")[1].split("\n## ")[0]
    table = {}
    for row in section.splitlines():
        if row.startswith("| `"):
            argument, owners, here, there = (cell.strip() for cell in row.strip("|").split("|"))
            for owner in re.findall(r"`(\w+)`", owners):
                table[argument.strip("`"), owner] = here.partition(",")[0], there
    return table


def public_docstrings() -> Iterator[tuple[str, list[str], str]]:
    """Yield name, arguments and docstring of the public functions and classes of two rooms."""
    for room in ("optim", "bounds"):
        for path in sorted((ROOT / "paperkit" / room).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
                    makers = [n for n in node.body if getattr(n, "name", "") == "__init__"]
                    maker = node if isinstance(node, ast.FunctionDef) else next(iter(makers), None)
                    arguments = (
                        [a.arg for a in (*maker.args.args, *maker.args.kwonlyargs)] if maker else []
                    )
                    yield node.name, arguments, ast.get_docstring(node) or ""


def papers_letters(arguments: list[str], docstring: str) -> Iterator[tuple[str, str, str]]:
    """Yield (argument, text about it, the paper's symbol) where a docstring names that symbol."""
    for entry in re.split(r"\n(?=\S)", docstring):
        head, _, description = entry.partition("\n")
        names, colon, _ = head.partition(" : ")
        text = " ".join(description.split())
        paper = re.search(r"the paper's (\S)[.;,]", text)
        if colon and paper:
            yield from ((name, text, paper[1]) for name in names.split(", ") if name in arguments)
    text = " ".join(docstring.split())
    for match in re.finditer(r"argument ``(\w+)`` is \S, the paper's (\S)[.;,]", text):
        yield match[1], match[0], match[2]


def test_the_page_lists_each_argument_that_has_a_papers_letter() -> None:
    here = {key: symbol for key, (symbol, _) in exceptions().items()}
    there = {key: symbol for key, (_, symbol) in exceptions().items()}
    described = {
        (argument, owner): (text, paper)
        for owner, arguments, docstring in public_docstrings()
        for argument, text, paper in papers_letters(arguments, docstring)
    }
    assert {key: paper for key, (_, paper) in described.items()} == there
    assert all(here[key] in text for key, (text, _) in described.items())
