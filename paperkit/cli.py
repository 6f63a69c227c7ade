"""The command line: ``paperkit COMMAND …``.

Each room that has commands adds its own: a function ``add_commands(subparsers)`` gives every
sub-command a default ``command``, a function of the parsed arguments to the exit status.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

ROOMS = (
    "paperkit.experiments.commands",
    "paperkit.ledger.commands",
    "paperkit.publishing.commands",
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with the commands of every room that is present."""
    parser = argparse.ArgumentParser(
        prog="paperkit", description="Run studies, compute verdicts, build the book."
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error came from, not its sentence"
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for room in ROOMS:
        # Publishing needs packages that a plain install of the library may lack.
        if importlib.util.find_spec(room) is not None:
            importlib.import_module(room).add_commands(subparsers)
    return parser


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
