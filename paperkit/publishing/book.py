"""Build the book's pages from a staged copy of its sources."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml


class BookError(RuntimeError):
    """A book that cannot be built; the message says what to do."""


def stage(root: Path, target: Path, notebooks: Iterable[Path]) -> None:
    """Copy everything the book is built from into an empty folder.

    Parameters
    ----------
    root : Path
        Root of the repository.
    target : Path
        Folder to fill; files that an earlier build left there are removed.
    notebooks : iterable of Path
        Executed chapters to show.

    Raises
    ------
    BookError
        If a chapter of the table of contents has no executed notebook.
    """
    chosen = {path.stem: path for path in notebooks}
    pages = [Path(page) for page in contents(root)]
    expected = [page.stem for page in pages if page.parent.name == "notebooks"]
    missing = [name for name in expected if name not in chosen or not chosen[name].is_file()]
    if missing:
        raise BookError(
            f"no executed notebook for {', '.join(missing)}; run `make refresh` to make it"
        )
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(root / "book", target / "book", ignore=shutil.ignore_patterns(".*"))
    (target / "notebooks").mkdir()
    for path in chosen.values():
        shutil.copy2(path, target / "notebooks" / path.name)
    # The verdicts link to their records, so these are copied for download.
    (target / "results").mkdir()
    for path in (root / "results").glob("*.jsonl"):
        shutil.copy2(path, target / "results" / path.name)
    for name in ("_toc.yml", "CHANGELOG.md", "LICENSE"):
        shutil.copy2(root / name, target / name)
    config = configuration(root, repository_url(root))
    (target / "_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True))


def configuration(root: Path, url: str | None) -> dict[str, Any]:
    """Complete the book's configuration by the address of the repository.

    Parameters
    ----------
    root : Path
        Folder with ``_config.yml``.
    url : str or None
        Address that the launch and source buttons point to; without one there are no buttons.

    Returns
    -------
    dict
        Content of the configuration.
    """
    config: dict[str, Any] = yaml.safe_load((root / "_config.yml").read_text())
    if url is not None:
        config["repository"]["url"] = url
        return config
    for section in ("repository", "launch_buttons"):
        del config[section]
    for button in ("use_repository_button", "use_issues_button"):
        config["html"][button] = False
    return config


def repository_url(root: Path, environment: Mapping[str, str] = os.environ) -> str | None:
    """Find the address that the book's launch and source buttons point to.

    Parameters
    ----------
    root : Path
        Root of the repository.
    environment : mapping
        Environment variables, of which ``GITHUB_SERVER_URL`` and ``GITHUB_REPOSITORY`` are read.

    Returns
    -------
    str or None
        Address from these variables where both are set, else that of a GitHub remote, else None.
    """
    server, name = environment.get("GITHUB_SERVER_URL"), environment.get("GITHUB_REPOSITORY")
    if server and name:
        return f"{server}/{name}"
    answer = subprocess.run(
        ["git", "-C", str(root), "remote", "-v"], capture_output=True, text=True, check=False
    )
    remote = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?\s", answer.stdout)
    return f"https://github.com/{remote[1]}" if remote else None


def build(staged: Path) -> Path:
    """Build the HTML with every warning an error.

    Parameters
    ----------
    staged : Path
        Folder that :func:`stage` has filled.

    Returns
    -------
    Path
        Page to open.

    Raises
    ------
    BookError
        If Sphinx warns or fails; its messages stand above.
    """
    from jupyter_book.cli.main import main

    words = ["build", str(staged), "-W", "-n", "--keep-going", "--quiet"]
    # Warnings go to standard error and are shown. Standard output is kept back, because it tells of
    # another way to open the book.
    told = io.StringIO()
    # This process has already imported what the pages document, which a new one would do again.
    with contextlib.redirect_stdout(told), _objects_of_the_build_alone():
        status, error = _status(main, words)
    page = html_folder(staged) / "index.html"
    if status or not page.is_file():
        print(told.getvalue(), error, sep="")
        raise BookError(
            "the book did not build: correct each WARNING and ERROR above in book/ or notebooks/ "
            "(a notebook's text is edited in its .py, then `make refresh`)"
        )
    return page


@contextlib.contextmanager
def _objects_of_the_build_alone() -> Iterator[None]:
    """Show the garbage collector what the build makes, and let it look at that rarely.

    An extension of jupyter-book asks the collector for every object there is and looks at each,
    for the sake of one that the build has made. Another one, left behind by other code, may raise
    an error when it is looked at. And each collection walks through all pages that were read.
    """
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _status(main: Callable[..., Any], words: list[str]) -> tuple[object, str]:
    """Call a command; return its exit status, and a sentence where it raised an error."""
    try:
        main(args=words, standalone_mode=False)
    except SystemExit as stopped:
        return stopped.code, ""
    except Exception as error:  # An extension of Sphinx may raise any kind.
        return 1, f"{error}\n"
    return 0, ""


def html_folder(staged: Path) -> Path:
    """Return the folder in which :func:`build` puts the pages of a staged book."""
    return staged / "_build" / "html"


def contents(root: Path) -> list[str]:
    """List the pages of the table of contents, the landing page first.

    Parameters
    ----------
    root : Path
        Folder with ``_toc.yml``.

    Returns
    -------
    list of str
        Paths without suffix, such as ``"book/index"``.
    """
    table = yaml.safe_load((root / "_toc.yml").read_text())
    entries = [entry for part in table["parts"] for entry in part["chapters"]]
    return [table["root"], *(file for entry in entries for file in _files(entry))]


def _files(entry: dict[str, Any]) -> Iterator[str]:
    """Yield the page of an entry, then those under it."""
    yield entry["file"]
    for section in entry.get("sections", ()):
        yield from _files(section)
