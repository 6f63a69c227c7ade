"""The commands of claims and verdicts: ``paperkit verdict | schema``."""

from __future__ import annotations

import argparse

from paperkit import atomic
from paperkit.experiments.paths import claims_folder
from paperkit.ledger.claims import SCHEMA, claims_schema
from paperkit.ledger.verdict import verdicts


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; each sets ``command``, a function of the arguments to the exit status."""
    text = "compute the verdicts of the claims"
    parser = subparsers.add_parser("verdict", help=text, description=text.capitalize() + ".")
    parser.set_defaults(command=_verdict)
    parser.add_argument("--paper", help="only the claims of this paper")
    parser.add_argument("--anchor", help="only the claims of this chapter or target")
    parser.add_argument("--store", help="the working store")

    text = "rewrite claims/schema.json, from which editors complete and check claims"
    parser = subparsers.add_parser("schema", help=text, description=text.capitalize() + ".")
    parser.set_defaults(command=_schema)


def _verdict(arguments: argparse.Namespace) -> int:
    found = verdicts(arguments.paper, arguments.anchor, arguments.store)
    for verdict in found:
        stale = " (stale)" if verdict.stale else ""
        print(f"{verdict.word}{stale}: {verdict.claim.id}, {verdict.claim.place}")
        print(f"    {verdict.evidence}")
    counts: dict[str, int] = {}
    for verdict in found:
        counts[verdict.word] = counts.get(verdict.word, 0) + 1
    print(", ".join(f"{count} {word}" for word, count in counts.items()) or "no claim")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    path = claims_folder() / SCHEMA
    atomic.write_text(path, claims_schema())
    print(path)
    return 0
