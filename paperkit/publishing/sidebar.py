"""Names for the arrows of the sidebar, which open and close the pages under a page."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

# The theme's markup: a link to the page, then a fold whose arrow is an icon without a word.
_ARROW = re.compile(r"(>([^<>]*)</a><details[^>]*><summary)>")


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
        return with_names(str(generate(*arguments, **options)))

    context["generate_toctree_html"] = generate_with_names
