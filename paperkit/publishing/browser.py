"""Look at the built book in a real browser, with no network.

Every page is opened in headless Chromium from a server on this machine, a few at a time, because
each page has a process of its own. A page passes when it is done within its time, its
mathematics is rendered, nothing was written to the console as an error, nothing was asked of
another host, every internal link leads somewhere, every image has alternative text, axe-core finds
nothing against it, it fits a telephone and shows the keyboard's focus
(:mod:`paperkit.publishing.accessibility`), its numbers agree with those that it refers to
(:mod:`paperkit.publishing.numbering`), and a page of the API is not too tall.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.server
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from paperkit.publishing import accessibility, numbering

# Time after which a page counts as hanging. The longest takes 20 s on a quiet machine, and beside
# much other work no page may fail.
SECONDS = 300
# After so many pages that hang, the browser does not answer, and the rest is not tried.
HANGING = 3
# Pages between two lines that tell how far the check is.
REPORTED = 50

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The network flags keep Chromium from calling home, and the pages from reaching another host.
# Unlike intercepted requests they leave the browser's cache alone. The sandbox is off because root
# in a container has none.
FLAGS = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Pages of source code, which Sphinx writes all alike; axe-core tries their index alone.
LISTINGS = "_modules/paperkit/"
# Pages of the API, and the height in pixels up to which a reader finds a name by scrolling.
API, TALLEST = "book/api", 15_000
WINDOW = {"width": 1280, "height": 900}
# Script that runs in the page once MathJax has finished, and returns the facts that are checked.
INSPECT = r"""
async () => {
  const expressions = [...document.querySelectorAll('.math')];
  if (expressions.length && window.MathJax?.startup) await MathJax.startup.promise;
  const visible = document.body.cloneNode(true);
  for (const node of visible.querySelectorAll('script, style, pre, code, mjx-container, textarea'))
    node.remove();
  const short = text => text.trim().replace(/\s+/g, ' ').slice(0, 80);
  return {
    unrendered: expressions.filter(e => !e.querySelector('mjx-container'))
      .map(e => short(e.textContent)),
    errors: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')]
      .map(e => short(e.getAttribute('data-mjx-error') || e.title || e.textContent)),
    raw: (visible.textContent.match(/[^\n]{0,40}\\(?:[([]|[a-zA-Z]{2,})[^\n]{0,40}/g) || [])
      .map(short),
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    anchors: [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name),
    cut: [...document.querySelectorAll('.cell_input pre, section > div.highlight-python pre')]
      .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1)
      .map(e => short(e.textContent)),
    covered: [...document.querySelectorAll('div.math')].filter(e => {
      const number = e.querySelector('.eqno')?.getBoundingClientRect();
      const formula = e.querySelector('mjx-math')?.getBoundingClientRect();
      return number && formula && formula.right > number.left + 1
        && formula.top < number.bottom && number.top < formula.bottom;
    }).map(e => e.id),
    images: [...document.images].filter(i => !i.alt.trim()).map(i => i.src.slice(0, 80)),
    mathematics: expressions.length,
    height: document.documentElement.scrollHeight,
  };
}
"""


@dataclass
class Inspection:
    """Counts and problems from the browser.

    Attributes
    ----------
    pages : int
        Number of pages opened.
    expressions : int
        Number of mathematical expressions on them.
    links : int
        Number of internal links followed.
    problems : list of str
        Sentences, one a problem; empty when the book passes.
    """

    pages: int = 0
    expressions: int = 0
    links: int = 0
    problems: list[str] = field(default_factory=list)


def find_browser() -> str | None:
    """Find an installed Chromium.

    Returns
    -------
    str or None
        Path of the browser, or None when there is none.
    """
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def inspect(
    html: Path,
    executable: str,
    *,
    jobs: int = 1,
    seconds: float = SECONDS,
    screenshots: Path | None = None,
) -> Inspection:
    """Open every page of a built book and list what is wrong with it.

    Parameters
    ----------
    html : Path
        Folder with the pages.
    executable : str
        Path of the browser, as :func:`find_browser` returns it.
    jobs : int, optional
        Number of pages that are open at once.
    seconds : float, optional
        Time after which a page counts as hanging.
    screenshots : Path, optional
        Folder for pictures of the book's pages and chapters, light and dark.

    Returns
    -------
    Inspection
        Counts and problems.
    """
    with _serve(html) as address:
        visits = asyncio.run(_visit_all(html, executable, address, jobs, seconds, screenshots))
        inspection = Inspection(problems=[p for visit in visits.values() for p in visit.problems])
        pages = {name: visit.facts for name, visit in visits.items() if visit.facts is not None}
        inspection.problems.extend(numbering.disagreements(pages, address))
        for name, page in pages.items():
            inspection.links += _check_links(
                html, address, name, page["links"], pages, inspection.problems
            )
    inspection.pages = len(pages)
    inspection.expressions = sum(page["mathematics"] for page in pages.values())
    return inspection


@dataclass
class _Visit:
    """Facts of one page, None where it was not opened or hung, and its problems."""

    facts: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)


async def _visit_all(
    html: Path, executable: str, address: str, jobs: int, seconds: float, screenshots: Path | None
) -> dict[str, _Visit]:
    """Visit the book's pages in one browser, a few at a time, and return the visits in order."""
    from playwright.async_api import async_playwright

    visits = {name: _Visit() for name in _list_pages(html)}
    waiting = iter(visits.items())
    hanging: list[str] = []
    done = 0

    async def work(browser: Any) -> None:
        nonlocal done
        for name, visit in waiting:
            if len(hanging) >= HANGING:
                visit.problems.append(f"{name}: not opened, because the browser does not answer")
                continue
            page = await browser.new_page()
            try:
                await asyncio.wait_for(_open_page(page, address, name, visit), seconds)
                if screenshots and name.startswith(("book/", "notebooks/")):
                    pictures = _save_pictures(browser, f"{address}/{name}", screenshots, name)
                    await asyncio.wait_for(pictures, seconds)
            except TimeoutError:
                hanging.append(name)
                visit.problems.append(f"{name}: not done after {seconds:g} s")
            finally:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(page.close(), seconds)
            done += 1
            if done % REPORTED == 0:
                print(f"-- {done} of {len(visits)} pages", flush=True)

    with tempfile.TemporaryDirectory() as profile:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch_persistent_context(
                profile, executable_path=executable, args=list(FLAGS), headless=True
            )
            await asyncio.gather(*(work(browser) for _ in range(jobs)))
            await browser.close()
    return visits


def _list_pages(html: Path) -> list[str]:
    """List the book's own pages, without index.html, which only forwards to the landing page."""
    names = [path.relative_to(html).as_posix() for path in sorted(html.rglob("*.html"))]
    return [name for name in names if name != "index.html" and not name.startswith("_static/")]


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Keep requests out of the terminal."""

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


async def _open_page(page: Any, address: str, name: str, visit: _Visit) -> None:
    """Open a page with every other host cut off, and note its facts and its problems."""
    problems = visit.problems
    # The whole visit has a time, so that no single step needs one.
    page.set_default_timeout(0)
    await page.set_viewport_size(WINDOW)

    def request(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            problems.append(
                f"{name}: asks another host for a {request.resource_type}: {request.url}"
            )

    def console(message: Any) -> None:
        if message.type == "error":
            problems.append(f"{name}: console error: {message.text}")

    page.on("request", request)
    page.on("console", console)
    page.on("pageerror", lambda error: problems.append(f"{name}: script error: {error}"))
    await page.goto(f"{address}/{name}", wait_until="load")
    facts = await page.evaluate(INSPECT) | await page.evaluate(numbering.COLLECT)
    if name.startswith(API) and facts["height"] > TALLEST:
        problems.append(f"{name}: {facts['height']} px tall, more than {TALLEST}: split the page")
    found: list[str] = []
    if not name.startswith(LISTINGS):
        found += await accessibility.broken_rules(page, name)
        # The focus opens tooltips, whose fading axe-core would take for a lack of contrast.
        found += await accessibility.invisible_focus(page)
    found += await accessibility.too_wide(page)
    for kind, sentence in (
        ("unrendered", "mathematics is not rendered"),
        ("errors", "MathJax reports an error"),
        ("raw", "raw TeX in the text"),
        ("images", "an image has no alternative text"),
        ("cut", "code is wider than its column"),
        ("covered", "an equation runs into its number"),
    ):
        found += [f"{sentence}: {detail}" for detail in facts[kind]]
    problems.extend(f"{name}: {problem}" for problem in found)
    visit.facts = facts


def _check_links(
    html: Path,
    address: str,
    name: str,
    links: list[str],
    pages: dict[str, dict[str, Any]],
    problems: list[str],
) -> int:
    """Check a page's internal links with their anchors, and return the number of links."""
    internal = {link for link in links if link.startswith(address)}
    for link in sorted(internal):
        url, anchor = urldefrag(link)
        target = unquote(urlsplit(url).path).lstrip("/") or "index.html"
        if not (html / target).is_file():
            problems.append(f"{name}: dead link to {target}")
        elif anchor and target in pages and unquote(anchor) not in pages[target]["anchors"]:
            problems.append(f"{name}: dead link to {target}#{anchor}")
    return len(internal)


async def _save_pictures(browser: Any, url: str, folder: Path, name: str) -> None:
    """Save pictures of a page in light and in dark mode."""
    for mode in ("light", "dark"):
        page = await browser.new_page()
        page.set_default_timeout(0)
        await page.add_init_script(f"localStorage.setItem('mode', '{mode}')")
        await page.set_viewport_size(WINDOW)
        await page.goto(url, wait_until="load")
        await page.evaluate("async () => { await window.MathJax?.startup?.promise }")
        folder.mkdir(parents=True, exist_ok=True)
        picture = folder / f"{name.replace('/', '-').removesuffix('.html')}.{mode}.png"
        await page.screenshot(path=str(picture), full_page=True)
        await page.close()
