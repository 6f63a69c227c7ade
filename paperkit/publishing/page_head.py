"""What stands in the head of a page: a description, and only the scripts that the page needs."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

DESCRIPTION = "The sharpness of loss minima: four papers derived, audited, implemented and tested."
"""Description of pages that have no paragraph of their own, such as the index."""

LONGEST = 160
"""Characters of a description, which search engines show whole up to about this length."""

SHORTEST = 40
"""Characters below which a paragraph says too little to describe a page."""


def describe(document: nodes.document | None) -> str:
    """Describe a page by its first paragraph that is long enough and has no formula.

    Parameters
    ----------
    document : nodes.document or None
        Document of the page.

    Returns
    -------
    str
        Plain text of at most :data:`LONGEST` characters, cut between two words.
    """
    for paragraph in document.findall(nodes.paragraph) if document else ():
        if any(paragraph.findall(_is_no_text)) or not isinstance(paragraph.parent, nodes.section):
            continue
        text = " ".join(paragraph.astext().split())
        if len(text) >= SHORTEST:
            return _cut(text)
    return DESCRIPTION


def _is_no_text(node: nodes.Node) -> bool:
    return isinstance(node, nodes.math | nodes.raw | nodes.image)


def _cut(text: str) -> str:
    """Shorten a text to its first sentences that fit, or else to its first words."""
    if len(text) <= LONGEST:
        return text
    start = text[: LONGEST - 1]
    sentences = start.rpartition(". ")[0]
    return f"{sentences}." if len(sentences) >= SHORTEST else start.rpartition(" ")[0] + " …"


def complete(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add the description of a page, and leave out scripts that it does not need.

    These are MathJax, which Sphinx loads for a page without a formula that lists pages with some,
    and the scripts of sphinx-thebe, which Jupyter Book always loads: the book has no cells that run
    in the page, the second copy of the first script would be an error in every console, and its
    address is that of another host.

    Parameters
    ----------
    app : Sphinx
        Application.
    page, template : str
        Names of the page and of its template.
    context : dict
        Template variables of the page, changed in place.
    doctree : nodes.document or None
        Document of the page.
    """
    content = escape(describe(doctree), quote=True)
    context["metatags"] = (
        f'{context.get("metatags", "")}\n<meta name="description" content="{content}">'
    )
    unneeded = ["thebe"]
    if not app.env.domaindata["math"]["has_equations"].get(page):
        unneeded.append("mathjax")
    context["script_files"] = [
        script
        for script in context["script_files"]
        if not any(name in _words(script) for name in unneeded)
    ]


def _words(script: Any) -> str:
    return f"{script.filename} {script.attributes.get('body')}".lower()
