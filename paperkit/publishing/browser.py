"""Look at the built book in a real browser, with no network.

Every page is opened in headless Chromium from a server on this machine. A page passes when its
mathematics is rendered, nothing was written to the console as an error, nothing was asked of
another host, every internal link leads somewhere, and every image has alternative text.
"""

from __future__ import annotations

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

# What a page may take to load: a guard against one that hangs, also beside much other work.
MILLISECONDS = 600_000

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# The network flags keep Chromium from calling home and the pages from reaching another host, and,
# unlike an intercepted request, leave its cache alone; root in a container has no sandbox.
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
# Runs in the page once MathJax has finished.
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
    images: [...document.images].filter(i => !i.alt.trim()).map(i => i.src.slice(0, 80)),
    mathematics: expressions.length,
  };
}
"""


@dataclass
class Inspection:
    """What the browser found.

    Attributes
    ----------
    pages : int
        Pages opened.
    expressions : int
        Mathematical expressions on them.
    links : int
        Internal links followed.
    problems : list of str
        One sentence each; empty when the book passes.
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
        Its path, or None when there is none.
    """
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def inspect(html: Path, executable: str, *, screenshots: Path | None = None) -> Inspection:
    """Open every page of a built book and list what is wrong with it.

    Parameters
    ----------
    html : Path
        The folder with the pages.
    executable : str
        The browser, as :func:`find_browser` returns it.
    screenshots : Path, optional
        A folder for pictures of the book's pages and chapters, light and dark.

    Returns
    -------
    Inspection
        Counts and problems.
    """
    from playwright.sync_api import sync_playwright

    found = Inspection()
    pages: dict[str, dict[str, Any]] = {}
    with _serve(html) as address, sync_playwright() as playwright:
        with tempfile.TemporaryDirectory() as profile:
            browser = playwright.chromium.launch_persistent_context(
                profile, executable_path=executable, args=list(FLAGS), headless=True
            )
            for name in _pages(html):
                pages[name] = _open(browser, address, name, found.problems)
                if screenshots and name.startswith(("book/", "notebooks/")):
                    _picture(browser, f"{address}/{name}", screenshots, name)
            browser.close()
        for name, page in pages.items():
            found.links += _check_links(html, address, name, page["links"], pages, found.problems)
    found.pages = len(pages)
    found.expressions = sum(page["mathematics"] for page in pages.values())
    return found


def _pages(html: Path) -> list[str]:
    """List the book's own pages; the front door only forwards to the landing page."""
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


def _open(browser: Any, address: str, name: str, problems: list[str]) -> dict[str, Any]:
    """Open one page with every other host cut off, and note what goes wrong."""
    page = browser.new_page()
    page.set_default_timeout(MILLISECONDS)

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
    page.goto(f"{address}/{name}", wait_until="load")
    facts: dict[str, Any] = page.evaluate(INSPECT)
    page.close()
    for kind, sentence in (
        ("unrendered", "mathematics is not rendered"),
        ("errors", "MathJax reports an error"),
        ("raw", "raw TeX in the text"),
        ("images", "an image has no alternative text"),
    ):
        problems.extend(f"{name}: {sentence}: {detail}" for detail in facts[kind])
    return facts


def _check_links(
    html: Path,
    address: str,
    name: str,
    links: list[str],
    pages: dict[str, dict[str, Any]],
    problems: list[str],
) -> int:
    """Follow one page's internal links, their anchors included; return how many there are."""
    internal = {link for link in links if link.startswith(address)}
    for link in sorted(internal):
        url, anchor = urldefrag(link)
        target = unquote(urlsplit(url).path).lstrip("/") or "index.html"
        if not (html / target).is_file():
            problems.append(f"{name}: dead link to {target}")
        elif anchor and target in pages and unquote(anchor) not in pages[target]["anchors"]:
            problems.append(f"{name}: dead link to {target}#{anchor}")
    return len(internal)


def _picture(browser: Any, url: str, folder: Path, name: str) -> None:
    """Save one page as it looks in light and in dark mode."""
    for mode in ("light", "dark"):
        page = browser.new_page()
        page.set_default_timeout(MILLISECONDS)
        page.add_init_script(f"localStorage.setItem('mode', '{mode}')")
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(url, wait_until="load")
        page.evaluate("async () => { await window.MathJax?.startup?.promise }")
        folder.mkdir(parents=True, exist_ok=True)
        picture = folder / f"{name.replace('/', '-').removesuffix('.html')}.{mode}.png"
        page.screenshot(path=str(picture), full_page=True)
        page.close()
