"""Names for the arrows of the sidebar, which open and close the pages under a page."""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

from docutils import nodes
from sphinx.application import Sphinx

# The theme's markup: a link to the page, then a fold whose arrow is an icon without a word.
_ARROW = re.compile(r"(>([^<>]*)</a><details[^>]*><summary)>")
_WRITTEN: WeakKeyDictionary[Sphinx, dict[Any, str]] = WeakKeyDictionary()
"""Sidebars of a build's pages that the sidebar does not list."""


def with_names(html: str) -> str:
    """Name each arrow after the page whose pages it shows.

    Parameters
    ----------
    html : str
        List of pages, as the theme writes it.

    Returns
    -------
    str
        The same list, in which a screen reader finds a name for each arrow.
    """
    return _ARROW.sub(r'\1 aria-label="Pages under \2">', html)


def name_arrows(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Let the theme's function that writes the sidebar name its arrows.

    Pages of source code stand in no list of pages, so that no entry is marked for them: their
    sidebars differ in the way to the root alone, and are written once for each depth.

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
    generate = context["generate_toctree_html"]

    def generate_with_names(*arguments: Any, **options: Any) -> str:
        if page in app.env.found_docs:
            return with_names(str(generate(*arguments, **options)))
        written = _WRITTEN.setdefault(app, {})
        key = (page.count("/"), arguments, *sorted(options.items()))
        if key not in written:
            written[key] = with_names(str(generate(*arguments, **options)))
        return written[key]

    context["generate_toctree_html"] = generate_with_names
