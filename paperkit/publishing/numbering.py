"""Check that the numbers on the pages agree: with the files' names, and with each other.

A chapter shows the number that its file's name begins with. A reference to a chapter, a theorem, a
figure or an equation shows the number that stands at its target.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

# Script that runs in a page and returns its number, the numbers of what others refer to, and the
# references of its text that show one.
COLLECT = r"""
() => {
  const article = document.querySelector('article');
  if (!article) return {number: null, numbers: {}, references: []};
  const numbers = {};
  const number = (element, selector) => {
    const shown = element.querySelector(selector);
    return shown && shown.firstChild.textContent.replace(/[()]/g, '').trim();
  };
  const numbered = [['div.math[id]', '.eqno'], ['figure[id]', 'figcaption .caption-number'],
    ['div.proof[id]', '.admonition-title .caption-number']];
  for (const [element, label] of numbered)
    for (const e of article.querySelectorAll(element))
      if (number(e, label)) numbers[e.id] = number(e, label);
  const shown = /^(?:\((\d[\d.]*)\)|(?:[A-Z][a-z]+\.? |[Cc]hapter )?(\d[\d.]*))$/;
  const references = [...article.querySelectorAll('a.internal')]
    .map(a => ({href: a.href, text: a.textContent.trim()}))
    .filter(a => shown.test(a.text));
  const title = article.querySelector('h1 .section-number');
  return {number: title && title.textContent.trim().replace(/\.$/, ''), numbers, references};
}
"""


def disagreements(pages: Mapping[str, Mapping[str, Any]], address: str) -> Iterator[str]:
    """Yield a sentence for each number that disagrees.

    Parameters
    ----------
    pages : mapping
        Results of :data:`COLLECT`, by the page's file relative to the book's folder.
    address : str
        Address of the book's folder, which the references begin with.

    Yields
    ------
    str
        Page, what it shows and what it should.
    """
    for name, page in pages.items():
        chapter = re.match(r"notebooks/(\d+)_", name)
        expected = str(int(chapter[1])) if chapter else None
        if page["number"] != expected:
            yield f"{name}: its title shows the number {page['number']} instead of {expected}"
        for reference in page["references"]:
            url, anchor = urldefrag(reference["href"])
            target = pages.get(unquote(urlsplit(url).path).lstrip("/"), {})
            # The number at the anchor, else that of the page, as in "chapter 3".
            there = target.get("numbers", {}).get(unquote(anchor)) or target.get("number")
            if url.startswith(address) and there and not _agree(reference["text"], there):
                yield f"{name}: a reference shows {reference['text']!r} where {there!r} stands"


def _agree(shown: str, there: str) -> bool:
    """Compare numbers, and words such as "Theorem" where both have one."""
    first, second = (re.fullmatch(r"\(?(.*?) ?(\d[\d.]*)\)?", text) for text in (shown, there))
    if first is None or second is None:
        return False
    words = {first[1].lower(), second[1].lower()} - {"", "chapter"}
    return first[2] == second[2] and len(words) <= 1
