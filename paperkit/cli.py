"""The command line: ``paperkit COMMAND …``.

Each room that has commands adds its own: a function ``add_commands(subparsers)`` gives every
sub-command a default ``command``, a function of the parsed arguments to the exit status.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

ROOMS = {
    "paperkit.experiments.commands": ("study", "plan", "measure", "audit"),
    "paperkit.ledger.commands": ("claims", "verdict", "schema"),
    "paperkit.publishing.commands": ("book", "html", "refresh", "smoke", "browse", "run"),
}
"""Rooms that add commands, with the names of these, for where a room cannot be imported."""

_EXTRAS = {"paperkit.ledger.commands": "studies", "paperkit.publishing.commands": "book"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with the commands of every room.

    The library by itself brings the packages that studies run with, and neither those of the
    ledger nor those of the book. A command whose packages are missing says so when it is called.
    """
    parser = argparse.ArgumentParser(
        prog="paperkit", description="Run studies, compute verdicts, build the book."
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error came from, not its sentence"
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for room, commands in ROOMS.items():
        try:
            module = importlib.import_module(room)
        except ModuleNotFoundError as error:
            if room not in _EXTRAS or str(error.name).startswith("paperkit"):
                raise
            for name in commands:
                absent = _absent(name, str(error.name), _EXTRAS[room])
                needs = f"not here: needs {error.name}"
                # A command that is not here takes any words, so that it can say why.
                subparser = subparsers.add_parser(
                    name, help=needs, prefix_chars="\0", add_help=False
                )
                subparser.add_argument("words", nargs="*")
                subparser.set_defaults(command=absent)
        else:
            module.add_commands(subparsers)
    return parser


def _absent(name: str, package: str, extra: str) -> Callable[[argparse.Namespace], NoReturn]:
    def refuse(_: argparse.Namespace) -> NoReturn:
        raise ValueError(
            f"`paperkit {name}` needs the package {package}, which is not installed: run "
            f"`pip install 'paperkit[{extra}]'`."
        )

    return refuse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments of the command; by default the process's.

    Returns
    -------
    int
        Exit status 0, or 1 after a refusal, which is printed as one sentence, or 130 after an
        interrupt.
    """
    parsed = build_parser().parse_args(arguments)
    try:
        status = int(parsed.command(parsed))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader, such as head, has what it wanted; the interpreter would flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError) as error:
        if parsed.traceback:
            raise
        print(f"paperkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("paperkit: interrupted; what was finished is kept, start it again.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
