"""A directive of Sphinx whose content is Markdown that is computed when the book is built."""

from __future__ import annotations

from abc import ABC, abstractmethod

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class MarkdownDirective(SphinxDirective, ABC):
    """A directive whose content is Markdown that is computed when the book is built."""

    optional_arguments = 1
    has_content = False

    @abstractmethod
    def markdown(self, argument: str | None) -> str:
        """Compute the directive's Markdown.

        Parameters
        ----------
        argument : str or None
            Text after the directive's name.

        Returns
        -------
        str
            Markdown in the MyST dialect.
        """

    def run(self) -> list[nodes.Node]:
        """Parse the computed Markdown in the place of the directive."""
        argument = self.arguments[0] if self.arguments else None
        source = f"<{self.name}>"
        lines = StringList(self.markdown(argument).splitlines(), source=source)
        container = nodes.container(classes=[f"paperkit-{self.name}"])
        self.state.nested_parse(lines, self.content_offset, container, match_titles=True)
        return container.children
