"""Check a page as people meet it who read it in other ways: axe-core's rules, and a telephone.

axe-core, which comes with the package ``axe-playwright-python``, tries the rules of the Web Content
Accessibility Guidelines at levels A and AA in light mode, and contrast in dark mode too; it leaves
out the mathematics, whose markup is MathJax's. At the width of a telephone a page may not be wider
than its window; a wide table or formula scrolls by itself. With the keyboard, each button of the
top bar shows that it has the focus.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

TELEPHONE = {"width": 390, "height": 844}
GUIDELINES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa")
FOREIGN = {
    # Sphinx nests the lists of its index of modules without an item around the inner one.
    "_modules/index.html": ("list",),
    # docutils gives the list of citations and its entries roles that no longer fit together.
    "book/bibliography.html": ("aria-deprecated-role", "aria-required-children"),
}
"""Rules that a page breaks by its generator's own markup."""

# Without preloading, which asks for style sheets that are imported as if they lay beside the page.
_RUN = """
async options => {
  const asked = {resultTypes: ['violations'], preload: false, ...options};
  const result = await axe.run({exclude: ['mjx-container']}, asked);
  return result.violations.map(
    v => ({rule: v.id, help: v.help, nodes: v.nodes.map(n => n.target.join(' '))}));
}
"""
# A colour on its way from one mode to the other has any contrast.
_STILL = "*, *::before, *::after { transition: none !important; animation: none !important }"
_DARK = "() => { document.documentElement.dataset.theme = 'dark' }"
_LIGHT = "() => { document.documentElement.dataset.theme = 'light' }"
# Returns null where the page fits, else the page's width and what sticks out of it.
_WIDER = """
() => {
  const root = document.documentElement, width = root.clientWidth;
  if (root.scrollWidth <= width + 1) return null;
  const scrolls = e => ['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(e).overflowX);
  const held = e => { for (let p = e; p && p !== document.body; p = p.parentElement)
    if (scrolls(p)) return true; return false; };
  const wide = [...document.body.querySelectorAll('*')].filter(e => !held(e) &&
    Math.max(e.getBoundingClientRect().right, e.getBoundingClientRect().left + e.scrollWidth)
      > width + 1);
  const last = wide.at(-1);
  return {width: root.scrollWidth, element: last ? last.outerHTML.slice(0, 90) : 'unknown'};
}
"""
# Elements of the top bar that the keyboard can reach; a menu's entries are reached once it is open.
_BUTTONS = """
() => {
  const shown = e => e.offsetParent && e.tabIndex >= 0 && !e.closest('.dropdown-menu');
  const bar = document.querySelector('.bd-header-article');
  window.barButtons = bar ? [...bar.querySelectorAll('a, button, [tabindex]')].filter(shown) : [];
  return window.barButtons.length;
}
"""
_FOCUSED = """
i => {
  const e = window.barButtons[i], style = getComputedStyle(e);
  const ring = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2
    && style.outlineColor !== 'rgba(0, 0, 0, 0)';
  return {reached: document.activeElement === e, ring,
    name: e.getAttribute('aria-label') || e.title || e.textContent.trim()};
}
"""


@cache
def _axe() -> str:
    """Return the source of axe-core."""
    folder = resources.files("axe_playwright_python")
    return (folder / "axe.min.js").read_text(encoding="utf-8")


async def broken_rules(page: Any, name: str) -> list[str]:
    """Return a sentence for each rule of axe-core that an open page breaks.

    Parameters
    ----------
    page : playwright.async_api.Page
        Page whose mathematics is rendered.
    name : str
        Name of its file, relative to the book's folder.

    Returns
    -------
    list of str
        Rule, the number of places and the first place.
    """
    await page.evaluate(_axe())
    await page.add_style_tag(content=_STILL)
    await page.evaluate(_LIGHT)
    rules = {rule: {"enabled": False} for rule in FOREIGN.get(name, ())}
    guidelines = {"runOnly": {"type": "tag", "values": GUIDELINES}, "rules": rules}
    broken = await _broken(page, guidelines, "")
    await page.evaluate(_DARK)
    contrast = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
    return broken + await _broken(page, contrast, " in dark mode")


async def too_wide(page: Any) -> list[str]:
    """Return a sentence if an open page is wider than the window of a telephone.

    Parameters
    ----------
    page : playwright.async_api.Page
        Page whose mathematics is rendered.

    Returns
    -------
    list of str
        Width and the innermost element that sticks out; empty where the page fits.
    """
    await page.set_viewport_size(TELEPHONE)
    wider = await page.evaluate(_WIDER)
    if wider is None:
        return []
    return [
        f"wider than a telephone: {wider['width']} instead of {TELEPHONE['width']} px, "
        f"because of {wider['element']}"
    ]


async def invisible_focus(page: Any) -> list[str]:
    """Return a sentence for each button of an open page's top bar that hides the keyboard's focus.

    Parameters
    ----------
    page : playwright.async_api.Page
        Page in the window of a desktop.

    Returns
    -------
    list of str
        Name of the button, and what is wrong with it.
    """
    broken = []
    count = await page.evaluate(_BUTTONS)
    # The first key tells the browser that this reader uses the keyboard.
    await page.keyboard.press("Tab")
    for i in range(count):
        if i == 0:
            await page.evaluate("() => window.barButtons[0].focus()")
        else:
            await page.keyboard.press("Tab")
        found = await page.evaluate(_FOCUSED, i)
        if not found["reached"]:
            broken.append(f"the keyboard does not reach {found['name']!r} in the top bar")
        elif not found["ring"]:
            broken.append(f"no ring shows that {found['name']!r} in the top bar has the focus")
    return broken


async def _broken(page: Any, options: dict[str, Any], mode: str) -> list[str]:
    violations = await page.evaluate(_RUN, options)
    return [
        f"{found['rule']}{mode}: {found['help']}: {len(places)} times, first {places[0]}"
        for found in violations
        for places in [found["nodes"]]
    ]
