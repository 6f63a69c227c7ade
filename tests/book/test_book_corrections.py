"""A chapter that calls something in a paper wrong says where the errata page has it."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from paperkit.publishing.notebooks import chapters, read_source

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book" / "errata.md").read_text(encoding="utf-8")
SOURCES = chapters(ROOT / "notebooks")

CORRECTION = re.compile(r"\b(?:should be|corrected|misprint\w*|prints|is false)\b")
LINK = re.compile(r"\{ref\}`(?:[^`<]*<)?errata|\(\.\./book/errata\.md|\{doc\}`[^`]*book/errata")

# Sentences that have such a word and correct no paper.
NO_CORRECTION = {
    ("07_one_step_nine_ways", "prints one direction, that of $p = 2$"): (
        "the paper's ball is right for every p, and its direction for p = 2"
    ),
    ("04_stochastic_estimators", "It is false for every layer of"): (
        "it is about a flag of the library, whose value is False there"
    ),
    ("08_sharpness_while_training", "the cell prints only what holds"): "a cell prints, no paper",
}

# Sentences whose section has no link to the errata page: there the page has to lead to the chapter.
LISTED = {
    ("04_stochastic_estimators", "it should be $\\beta_{i+1}$"): "errata-lanczos-index",
    ("05_one_linearization", "which is false for $0 < |w| < 2$"): "errata-tied-weights",
    ("05_one_linearization", "which is false for $|w| < \\sqrt 2$"): "errata-tied-weights",
}


def sections(text: str) -> list[str]:
    """Return the parts of a page from one heading to the next."""
    starts = [match.start() for match in re.finditer(r"^#+ ", text, re.M)]
    return [text[start:end] for start, end in pairwise([0, *starts, len(text)])]


def unlinked(text: str) -> Iterator[str]:
    """Yield the lines that correct something in a section without a link to the errata page."""
    for section in sections(text):
        if not LINK.search(section):
            yield from (line for line in section.splitlines() if CORRECTION.search(line))


def prose(source: Path) -> str:
    cells = read_source(source).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def erratum(label: str) -> str:
    """Return the section of the errata page behind a label; empty where there is none."""
    found = re.search(rf"^\({label}\)=\n(.*?)(?=^\([\w-]+\)=$|\Z)", PAGE, re.M | re.S)
    return found[1] if found else ""


def excepted(stem: str, line: str) -> bool:
    return any(stem == chapter and part in line for chapter, part in (*NO_CORRECTION, *LISTED))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_correction_leads_to_the_errata_page(source):
    bad = [line for line in unlinked(prose(source)) if not excepted(source.stem, line)]
    assert bad == []


@pytest.mark.parametrize(("key", "label"), LISTED.items())
def test_the_errata_page_leads_to_a_correction_that_has_no_link(key, label):
    chapter = ROOT / "notebooks" / f"{key[0]}.py"
    labels = set(re.findall(r"^\(([\w-]+)\)=$", prose(chapter), re.M))
    linked = set(re.findall(r"\{ref\}`[^`<]*<([\w-]+)>`", erratum(label)))
    assert labels & linked or f"<../notebooks/{key[0]}>" in erratum(label)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_what_a_chapter_links_to_is_on_the_errata_page(source):
    labels = re.findall(r"\{ref\}`(?:[^`<]*<)?(errata[\w-]*)>?`", prose(source))
    assert [label for label in labels if not erratum(label).strip()] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("# A\nThe paper's $i$ should be $i + 1$.", 1),
        ("# A\nIts index should be $i + 1$ ({ref}`errata <errata-index>`).", 0),
        ("# A\nEquation 5 is false.\n\n## B\nSee {ref}`errata-index`.", 1),
        (
            "# A\nSee the {ref}`page <errata>`.\n\n## B\nLine 5 prints $i$, a misprint.",
            1,
        ),
        ("# A\nEquation 5, corrected, holds.\n\nSee [there](../book/errata.md).", 0),
        ("# A\nThe paper's equation 5 holds.", 0),
    ],
)
def test_a_correction_without_a_link_in_its_section_is_seen(text, count):
    assert len(list(unlinked(text))) == count
