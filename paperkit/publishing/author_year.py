"""Labels of the bibliography that match the citations in the text: "Zhang et al., 2025"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from string import ascii_lowercase

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle

NAME = "author_year"
"""Name under which the styles of labels and of the bibliography are known."""


class AuthorYearLabels(BaseLabelStyle):
    """Last names and the year, as in a citation; a letter parts entries that would agree."""

    def format_labels(self, sorted_entries: Sequence[Entry]) -> Iterator[str]:
        """Yield the label of each entry, in their order."""
        labels = [_label(entry) for entry in sorted_entries]
        several = {label for label, count in Counter(labels).items() if count > 1}
        seen: Counter[str] = Counter()
        for label in labels:
            yield label + ascii_lowercase[seen[label]] if label in several else label
            seen[label] += 1


def _label(entry: Entry) -> str:
    # Rich names are without the braces and accents of TeX, which a name of an institution has.
    parts = [[*p.rich_prelast_names, *p.rich_last_names] for p in entry.persons["author"]]
    names = [" ".join(map(str, own)) for own in parts]
    authors = " and ".join(names) if len(names) <= 2 else f"{names[0]} et al."
    return f"{authors}, {entry.fields['year']}"


class AuthorYearStyle(PlainStyle):
    """Entries by author and year, with labels to match."""

    default_label_style = NAME


def register() -> None:
    """Make the styles known to pybtex by :data:`NAME`."""
    register_plugin("pybtex.style.labels", NAME, AuthorYearLabels)
    register_plugin("pybtex.style.formatting", NAME, AuthorYearStyle)
