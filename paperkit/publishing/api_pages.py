"""The directive of the API pages: a table of names on top, and each name's docstring under it.

``{members} MODULE``, with public names of the module one a line, makes a table of the names with
the first sentence of each docstring, linked, and then documents them in that order by autodoc.
"""

from __future__ import annotations

import importlib
import inspect

from paperkit.publishing.markdown_directive import MarkdownDirective


def members(module: str, names: list[str]) -> str:
    """Write the reStructuredText that documents names of a module.

    Parameters
    ----------
    module : str
        Name of the module.
    names : list of str
        Public names of the module, in the order of the page.

    Returns
    -------
    str
        Summary table, then an entry for each name.

    Raises
    ------
    ValueError
        If a name is not public in the module; the message names it.
    """
    documented = importlib.import_module(module)
    if unknown := [name for name in names if name not in documented.__all__]:
        raise ValueError(f"{module} has no public {', '.join(unknown)}: correct the API page.")
    table = [f".. currentmodule:: {module}", "", ".. autosummary::", "   :nosignatures:", ""]
    table += [f"   {name}" for name in names]
    entries = [_entry(name, getattr(documented, name)) for name in names]
    return "\n".join([*table, "", *entries])


def _entry(name: str, documented: object) -> str:
    """Choose autodoc's directive for an object; only a class has members of its own."""
    if not inspect.isclass(documented):
        return f".. autofunction:: {name}\n"
    kind = "autoexception" if issubclass(documented, Exception) else "autoclass"
    return f".. {kind}:: {name}\n   :members:\n"


class Members(MarkdownDirective):
    """Public names of a module: their table, and their docstrings."""

    required_arguments = 1
    optional_arguments = 0
    has_content = True

    def markdown(self, argument: str | None) -> str:
        """Document the names in the directive's content."""
        return f"```{{eval-rst}}\n{members(str(argument), list(self.content))}\n```"
