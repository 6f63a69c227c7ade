"""Heads, numbers, search and bibliography of the pages."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docutils import nodes
from pybtex.database import Entry, Person, parse_file
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle
from sphinxcontrib.bibtex.style.template import join, year

from paperkit.publishing import numbering, page_head, sidebar
from paperkit.publishing.author_year import AuthorYearLabels
from paperkit.publishing.browser import FLAGS, find_browser
from paperkit.publishing.search_language import AccentlessEnglish

ROOT = Path(__file__).resolve().parents[2]
BROWSER = find_browser()
SENTENCE = "A paragraph that is long enough to describe a page."


@pytest.fixture
def page() -> Iterator[Any]:
    """An empty page of the browser."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield browser.new_page()
        browser.close()


def document(*paragraphs: nodes.paragraph) -> nodes.document:
    root = nodes.document("", "")
    root += nodes.section("", *paragraphs)
    return root


def test_a_page_is_described_by_its_first_paragraph_of_words_alone() -> None:
    formula = nodes.paragraph("", f"{SENTENCE} With ", nodes.math("", "x"))
    plain = nodes.paragraph("", "", nodes.Text("A \n"), nodes.emphasis("", "b" * 40))
    found = page_head.describe(document(nodes.paragraph("", "Short."), formula, plain))
    assert found == "A " + "b" * 40


def test_a_page_without_a_paragraph_is_described_as_the_book() -> None:
    assert page_head.describe(None) == page_head.DESCRIPTION
    assert page_head.describe(document()) == page_head.DESCRIPTION


def test_a_description_ends_with_a_sentence_or_between_two_words() -> None:
    sentences = page_head.describe(document(nodes.paragraph("", f"{SENTENCE} " * 5)))
    assert sentences == f"{SENTENCE} {SENTENCE} {SENTENCE}"
    words = page_head.describe(document(nodes.paragraph("", "word " * 60)))
    assert words == "word " * 31 + "…"
    assert len(words) <= page_head.LONGEST


@pytest.mark.parametrize("has_equations", [True, False])
def test_only_a_page_with_a_formula_loads_mathjax_and_none_loads_thebe(has_equations) -> None:
    names = ("doctools.js", "mathjax/tex-mml-chtml.js", "https://unpkg.example/thebe@0.8")
    scripts = [SimpleNamespace(filename=name, attributes={}) for name in names]
    scripts.append(SimpleNamespace(filename=None, attributes={"body": "window.MathJax = {}"}))
    domain = {"math": {"has_equations": {"a": has_equations}}}
    context = {"script_files": scripts}
    app = SimpleNamespace(env=SimpleNamespace(domaindata=domain))
    page_head.complete(app, "a", "page.html", context, document(nodes.paragraph("", SENTENCE)))
    kept = [scripts[i] for i in ((0, 1, 3) if has_equations else (0,))]
    assert context["script_files"] == kept
    assert f'<meta name="description" content="{SENTENCE}">' in context["metatags"]


def test_an_arrow_of_the_sidebar_is_named_after_its_page() -> None:
    arrow = '<summary{}><span class="toggle"><i></i></span></summary>'
    item = '<li><a href="api.html">API</a><details open="open">{}<ul><li>a</li></ul></details></li>'
    assert sidebar.with_names(item.format(arrow.format(""))) == item.format(
        arrow.format(' aria-label="Pages under API"')
    )


def reference(text: str, target: str) -> dict[str, str]:
    return {"text": text, "href": f"http://book/{target}"}


@pytest.mark.parametrize(
    ("text", "target", "agrees"),
    [
        ("(3.1)", "notebooks/03_a.html#eq", True),
        ("(3.2)", "notebooks/03_a.html#eq", False),
        ("Theorem 3.1", "notebooks/03_a.html#theorem", True),
        ("Proposition 3.1", "notebooks/03_a.html#theorem", False),
        ("3.1", "notebooks/03_a.html#theorem", True),
        ("chapter 3", "notebooks/03_a.html", True),
        ("Chapter 3", "notebooks/03_a.html#a-section", True),
        ("chapter 2", "notebooks/03_a.html", False),
        ("3", "notebooks/03_a.html", True),
        ("2017", "book/bibliography.html#id5", True),
    ],
)
def test_a_reference_shows_the_number_of_its_target(text, target, agrees) -> None:
    numbers = {"eq": "3.1", "theorem": "Theorem 3.1"}
    pages = {
        "notebooks/03_a.html": {"number": "3", "numbers": numbers, "references": []},
        "book/bibliography.html": {"number": None, "numbers": {}, "references": []},
        "book/b.html": {"number": None, "numbers": {}, "references": [reference(text, target)]},
    }
    found = list(numbering.disagreements(pages, "http://book"))
    assert bool(found) is not agrees, found


def test_a_chapter_shows_the_number_of_its_file_and_a_page_shows_none() -> None:
    unnumbered = {"number": None, "numbers": {}, "references": []}
    pages = {
        "notebooks/02_a.html": unnumbered | {"number": "2"},
        "notebooks/10_b.html": unnumbered | {"number": "9"},
        "notebooks/04_c.html": unnumbered,
        "book/d.html": unnumbered | {"number": "1"},
    }
    assert list(numbering.disagreements(pages, "http://book")) == [
        "notebooks/10_b.html: its title shows the number 9 instead of 10",
        "notebooks/04_c.html: its title shows the number None instead of 4",
        "book/d.html: its title shows the number 1 instead of None",
    ]


TEXTS = ["Rényi sharpness, after Renyi", "renyi_sharpness(model) naïve", "Müller–Böhm α 15 steps"]


def test_words_are_indexed_without_accents() -> None:
    assert AccentlessEnglish({}).split(TEXTS[0]) == ["Renyi", "sharpness", "after", "Renyi"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_question_is_split_into_the_words_of_the_index(page, text) -> None:
    script = f"{AccentlessEnglish.js_splitter_code}; splitQuery({json.dumps(text)})"
    assert page.evaluate(script) == AccentlessEnglish({}).split(text)


def test_labels_of_the_bibliography_are_the_citations_of_the_text() -> None:
    entries = list(parse_file(str(ROOT / "book" / "references.bib")).entries.values())
    style = AuthorYearReferenceStyle()
    cited = join(sep=style.author_year_sep)[style.person.names("author", full=False), year]
    citations = [str(cited.format_data({"entry": entry, "style": style})) for entry in entries]
    assert list(AuthorYearLabels().format_labels(entries)) == citations


def test_entries_of_the_same_authors_and_year_are_told_apart() -> None:
    entries = [
        Entry("misc", {"year": when}, persons={"author": [Person("van Dam, Ada")]})
        for when in ("2020", "2021", "2020")
    ]
    labels = list(AuthorYearLabels().format_labels(entries))
    assert labels == ["van Dam, 2020a", "van Dam, 2021", "van Dam, 2020b"]


def test_printing_opens_what_is_folded_in_light_mode_and_restores_the_page(page) -> None:
    folded = "<details class='sd-dropdown'><summary>Solution</summary>text</details>"
    page.set_content(folded + folded.replace("<details", "<details open"))
    page.evaluate("() => { document.documentElement.dataset.theme = 'dark' }")
    page.add_script_tag(path=str(ROOT / "book" / "_static" / "print.js"))
    state = """() => [document.documentElement.dataset.theme,
      ...[...document.querySelectorAll('details')].map(d => d.open)]"""
    assert page.evaluate(state) == ["dark", False, True]
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(state) == ["light", True, True]
    page.evaluate("() => window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(state) == ["dark", False, True]
