"""The book's commands; the Makefile calls them."""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from paperkit.experiments.paths import repository_root
from paperkit.experiments.sentences import suggestion
from paperkit.publishing import book, browser, executions, notebooks

Command = Callable[[argparse.Namespace], int]
# Processor seconds that a smoke run may take: 20 s on two cores. Wall time is not judged, because
# other work on the machine must not make a run fail. A run that takes more is reported, so that a
# slower machine passes; a run that takes three times as much fails.
SMOKE_PROCESSOR_SECONDS = 40


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the publishing commands to the ``paperkit`` command line.

    Parameters
    ----------
    subparsers : argparse subparsers
        Result of ``ArgumentParser.add_subparsers``. Each command sets the default ``command``, a
        function from the parsed arguments to an exit status.
    """
    for name, command, sentence in (
        ("book", _book, "execute copies of the chapters and build the book from them"),
        ("html", _html, "build the book from the committed outputs"),
        ("refresh", _refresh, "rewrite the chapters' committed outputs"),
        ("smoke", _smoke, "run every chapter at the smoke profile on an empty store"),
        ("browse", _browse, "check the built book in a headless browser"),
    ):
        parser = subparsers.add_parser(name, help=sentence, description=sentence)
        parser.set_defaults(command=_print_failures(command))
        if command in (_refresh, _smoke):
            parser.add_argument(
                "chapters", nargs="*", help="such as 01_five_minutes (default: all)"
            )
        if command in (_book, _refresh, _smoke):
            parser.add_argument("--jobs", type=int, default=1, help="chapters at a time (1)")
        if command is _browse:
            parser.add_argument("--jobs", type=int, default=1, help="pages open at once (1)")
            parser.add_argument("--live", action="store_true", help="the book of `paperkit book`")
            parser.add_argument(
                "--screenshots", type=Path, help="a folder for light and dark views"
            )

    parser = subparsers.add_parser(
        "run",
        help="execute a copy of a chapter with parameters of your own",
        description="Execute a copy of a chapter with parameters of your own, by papermill.",
        epilog="For example `paperkit run 01_five_minutes --profile smoke -p dataset=digits`; "
        "without parameters, --list shows those of the chapter.",
    )
    parser.set_defaults(command=_print_failures(_run))
    parser.add_argument("chapter", help="such as 01_five_minutes")
    parser.add_argument("--profile", help="smoke, laptop or paper (laptop)")
    parser.add_argument(
        "-p",
        dest="parameters",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a parameter of the chapter, as often as needed",
    )
    parser.add_argument("--output", type=Path, help="file (_build/runs/CHAPTER.ipynb)")
    parser.add_argument("--list", action="store_true", help="show the parameters, run nothing")
    parser.add_argument("--dry-run", action="store_true", help="show papermill's line, run nothing")


def _print_failures(command: Command) -> Command:
    """Print the sentence of a failure with a known remedy, in place of a traceback."""

    @functools.wraps(command)
    def run(arguments: argparse.Namespace) -> int:
        try:
            return command(arguments)
        except (notebooks.NotebookError, book.BookError) as error:
            print(f"paperkit: {error}", file=sys.stderr)
            return 1

    return run


def _book(arguments: argparse.Namespace) -> int:
    root = repository_root()
    sources = notebooks.chapters(root / "notebooks")
    executed = executions.executed(sources, root, arguments.jobs)
    page = _build(root, root / "_build" / "live", executed)
    _print_scoreboard()
    _print_address(root, page)
    return 0


def _html(arguments: argparse.Namespace) -> int:
    root = repository_root()
    committed = sorted((root / "notebooks").glob("*.ipynb"))
    _print_address(root, _build(root, root / "_build" / "committed", committed))
    return 0


def _refresh(arguments: argparse.Namespace) -> int:
    root = repository_root()
    sources = notebooks.chapters(root / "notebooks", arguments.chapters)
    copies = executions.executed(sources, root, arguments.jobs)
    for source, copy in zip(sources, copies, strict=True):
        shutil.copyfile(copy, source.with_suffix(".ipynb"))
        print(f"-- notebooks/{source.stem}.ipynb rewritten", flush=True)
    return 0


def _smoke(arguments: argparse.Namespace) -> int:
    root = repository_root()
    quiet = arguments.jobs > 1

    def run(source: Path) -> None:
        scratch = root / "_build" / "smoke" / source.stem
        shutil.rmtree(scratch, ignore_errors=True)
        asked = {"profile": "smoke", "store": scratch / "store"}
        target = scratch / f"{source.stem}.ipynb"
        took = notebooks.execute(source, target, parameters=asked, quiet=quiet)
        print(smoke_verdict(source.name, took), flush=True)

    sources = notebooks.chapters(root / "notebooks", arguments.chapters)
    executions.at_once(run, sources, arguments.jobs)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    root = repository_root()
    (source,) = notebooks.chapters(root / "notebooks", [arguments.chapter])
    known = notebooks.parameters_of(source)
    if arguments.list:
        for parameter in known:
            print(f"{parameter.name} = {parameter.default}  {parameter.help}".rstrip())
        return 0
    given = dict(_assignment(text) for text in arguments.parameters)
    if arguments.profile is not None:
        given["profile"] = arguments.profile
    for name in given:
        if name not in [parameter.name for parameter in known]:
            names = [parameter.name for parameter in known]
            raise notebooks.NotebookError(
                f"{name!r} is not a parameter of {source.stem}{suggestion(name, names)}"
            )
    target = (arguments.output or root / "_build" / "runs" / f"{source.stem}.ipynb").resolve()
    line = notebooks.papermill_line(source.with_suffix(".ipynb"), target, given)
    print(line, flush=True)
    if not arguments.dry_run:
        took = notebooks.execute(source, target, parameters=given)
        print(f"{target}: {took.wall:.0f} s", flush=True)
    return 0


def _assignment(text: str) -> tuple[str, str]:
    name, is_one, value = text.partition("=")
    if not is_one or not name:
        raise notebooks.NotebookError(f"-p {text} is no assignment; write -p NAME=VALUE")
    return name, value


def smoke_verdict(name: str, took: notebooks.Duration) -> str:
    """Say how long a chapter's smoke run took; refuse one that is three times over its limit.

    Parameters
    ----------
    name : str
        Name of the chapter's file.
    took : Duration
        Duration of the run; its processor seconds are judged, its wall time is only told.

    Raises
    ------
    NotebookError
        If the run took more than three times ``SMOKE_PROCESSOR_SECONDS``.
    """
    used = f"{took.processor:.0f} processor seconds"
    if took.processor > 3 * SMOKE_PROCESSOR_SECONDS:
        raise notebooks.NotebookError(
            f"{name} took {used} at the smoke profile, where {SMOKE_PROCESSOR_SECONDS} are "
            "allowed; make its smoke profile smaller"
        )
    slow = f" -- MORE THAN THE {SMOKE_PROCESSOR_SECONDS} ALLOWED"
    return f"-- {name}: {took.wall:.1f} s, {used}" + slow * (
        took.processor > SMOKE_PROCESSOR_SECONDS
    )


def _browse(arguments: argparse.Namespace) -> int:
    built = repository_root() / "_build" / ("live" if arguments.live else "committed")
    html = book.html_folder(built)
    if not (html / "index.html").is_file():
        raise book.BookError(f"there is no book in {html}; run `make html` or `make book` first")
    executable = browser.find_browser()
    if executable is None:
        remedy = "install Chromium (Debian and Ubuntu: sudo apt-get install chromium)"
        if os.environ.get("CI") == "true":
            raise book.BookError(f"no browser to check the book in; {remedy}")
        print(f"*** THE BOOK WAS NOT CHECKED IN A BROWSER: none is installed; {remedy}. ***")
        return 0
    result = browser.inspect(
        html, executable, jobs=arguments.jobs, screenshots=arguments.screenshots
    )
    print(
        f"-- {result.pages} pages, {result.expressions} expressions, "
        f"{result.links} internal links, {len(result.problems)} problems"
    )
    if result.problems:
        print("\n".join(result.problems), file=sys.stderr)
        raise book.BookError("the book is broken in the browser: correct each problem listed above")
    return 0


def _build(root: Path, staged: Path, executed: list[Path]) -> Path:
    print("-- building the pages, every warning an error", flush=True)
    started = time.perf_counter()
    book.stage(root, staged, executed)
    page = book.build(staged)
    print(f"-- built in {time.perf_counter() - started:.0f} s", flush=True)
    return page


def _print_scoreboard() -> None:
    from paperkit.ledger import render, verdicts

    print("\n" + re.sub(r"<[^>]+>", "", render.scoreboard(verdicts())) + "\n")


def _print_address(root: Path, page: Path) -> None:
    if book.repository_url(root) is None:
        print(
            "The pages have no launch and source buttons, because this clone has no GitHub remote; "
            "set GITHUB_SERVER_URL and GITHUB_REPOSITORY to have them."
        )
    print(f"Open {page}", flush=True)
