"""The browser check finds each kind of broken page, and nothing on a sound one."""

from pathlib import Path

import pytest

from paperkit.publishing.browser import Inspection, find_browser, inspect

BROWSER = find_browser()
START = """<!doctype html><html lang="en"><head><title>t</title><link rel="icon" href="data:,">
</head><body><h1 id="top">Title</h1><a href="other.html#there">other</a>
<p>It costs $5</p></body></html>"""
OTHER = """<!doctype html><html lang="en"><head><title>t</title><link rel="icon" href="data:,">
</head><body><p id="there">text</p>{}</body></html>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


SOUND_BODY = """<style>.bd-header-article :focus-visible { outline: 2px solid }</style>
<div class="bd-header-article"><button>b</button><a href="start.html">start</a></div>
<article><figure id="f"><figcaption><span class="caption-number">Fig. 1 </span></figcaption>
</figure><a class="internal" href="#f">Fig. 1</a></article>
<div tabindex="0" style="overflow-x: auto"><p style="width: 900px">wide</p></div>
<pre>\\(x\\) costs $\\alpha$</pre>
<img alt="a dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">"""
BROKEN = {
    "unrendered": (
        '<span class="math">\\(x\\)</span>',
        "mathematics is not rendered: \\(x\\)",
    ),
    "raw": ("<p>\nso $\\alpha$ grows</p>", "raw TeX in the text: so $\\alpha$ grows"),
    "cut": ("<p>\nso p_i^\\top is cut</p>", "raw TeX in the text: so p_i^\\top is cut"),
    "merror": ('<mjx-merror title="Undefined">x</mjx-merror>', "MathJax reports an error"),
    "console": ("<script>console.error('broken')</script>", "console error: broken"),
    "script": ("<script>nothing()</script>", "script error: nothing is not defined"),
    "page": ('<a href="gone.html">x</a>', "dead link to gone.html"),
    "anchor": ('<a href="start.html#nowhere">x</a>', "dead link to start.html#nowhere"),
    "image": ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "no alternative text"),
    "contrast": (
        '<p style="color: #bbb; background: #fff">pale</p>',
        "color-contrast: Elements must meet",
    ),
    "night": (
        "<style>[data-theme=dark] p { color: #444; background: #222 }</style>",
        "color-contrast in dark mode: Elements must meet",
    ),
    "label": ("<input type='text'>", "label: Form elements must have labels: 1 times, first input"),
    "wide": (
        '<p style="width: 500px">too wide for a telephone</p>',
        "wider than a telephone: 508 instead of 390 px, because of <p",
    ),
    "code": (
        '<section><div class="highlight-python"><pre tabindex="0" style="width: 300px; '
        'overflow-x: auto">' + "x = 1; " * 60 + "</pre></div></section>",
        "code is wider than its column: x = 1;",
    ),
    "focus": (
        '<div class="bd-header-article"><button style="outline: none">Open</button></div>',
        "no ring shows that 'Open' in the top bar has the focus",
    ),
    "unreached": (
        '<div class="bd-header-article"><button style="outline: 2px solid">a</button>'
        '<button title="Later" onfocus="this.blur()">b</button></div>',
        "the keyboard does not reach 'Later' in the top bar",
    ),
    "number": (
        '<article><figure id="f"><figcaption><span class="caption-number">Fig. 2.1 </span>'
        '</figcaption></figure><a class="internal" href="#f">Fig. 2.2</a></article>',
        "a reference shows 'Fig. 2.2' where 'Fig. 2.1' stands",
    ),
    "notebooks/03_chapter": (
        '<article><h1><span class="section-number">2. </span>Title</h1></article>',
        "its title shows the number 2 instead of 3",
    ),
    "book/api/tall": (
        '<p style="height: 15001px">tall</p>',
        "px tall, more than 15000: split the page",
    ),
    "host": ('<script src="https://cdn.example/x.js"></script>', "asks another host for a script"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    """What the browser finds in a book with a sound page and one page for each fault."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "start.html").write_text(START)
    (folder / "other.html").write_text(OTHER.format(SOUND_BODY))
    for name, (body, _) in BROKEN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.html").write_text(OTHER.format(body))
    return inspect(folder, str(BROWSER), jobs=2)


def test_every_page_is_opened_and_every_internal_link_followed(found: Inspection) -> None:
    assert (found.pages, found.links, found.expressions) == (len(BROKEN) + 2, 6, 1)


def test_a_sound_page_has_no_problem(found: Inspection) -> None:
    assert [p for p in found.problems if p.startswith(("start.html", "other.html"))] == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_page_is_found(found: Inspection, name: str) -> None:
    sentence = BROKEN[name][1]
    problems = [problem for problem in found.problems if problem.startswith(f"{name}.html")]
    assert any(sentence in problem for problem in problems), found.problems


def test_a_page_that_hangs_is_named_and_the_rest_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperkit.publishing.browser.HANGING", 1)
    (tmp_path / "a.html").write_text(START.replace("other.html#there", "#top"))
    for name in "bc":
        body = "<script>addEventListener('load', () => { for (;;); })</script>"
        (tmp_path / f"{name}.html").write_text(OTHER.format(body))
    found = inspect(tmp_path, str(BROWSER), seconds=15)
    assert found.pages == 1
    assert found.problems == [
        "b.html: not done after 15 s",
        "c.html: not opened, because the browser does not answer",
    ]
