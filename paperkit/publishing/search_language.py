"""The language of the book's search, in which a letter and its accented form are one.

"Renyi" finds what "Rényi" finds, because both the index and the question are stripped of accents.
"""

from __future__ import annotations

import unicodedata

from sphinx.search.en import SearchEnglish


def without_accents(text: str) -> str:
    """Replace each letter with an accent by the letter.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str
        The text in compatible form, without combining marks.
    """
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


class AccentlessEnglish(SearchEnglish):
    """English whose words are indexed and looked up without accents."""

    # The marks are those of the block of combining diacritical marks.
    js_splitter_code = r"""
var splitQuery = (query) => query
  .normalize("NFD").replace(/[\u0300-\u036f]/g, "")
  .split(/[^\p{Letter}\p{Number}_\p{Emoji_Presentation}]+/gu)
  .filter(term => term);
"""

    def split(self, input: str) -> list[str]:
        """Split a text into words without accents."""
        return super().split(without_accents(input))
