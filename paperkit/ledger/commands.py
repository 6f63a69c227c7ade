"""The commands of claims and verdicts: ``paperkit claims | schema``."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from paperkit import atomic
from paperkit.experiments.paths import claims_folder
from paperkit.ledger.claims import SCHEMA, claims_schema, load_claims, missing
from paperkit.ledger.criteria import KINDS, WORDS
from paperkit.ledger.verdict import Verdict, verdicts

STALE = "stale"
CHANGED = "criterion changed"
MARKS = (*WORDS, STALE, CHANGED)
"""Words that stand beside a claim: its verdict, and what is said of its evidence."""


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands; each sets ``command``, a function of the arguments to the exit status."""
    parser = subparsers.add_parser(
        "claims",
        aliases=["verdict"],
        help="compute the verdicts of the claims: the ledger",
        description="Compute the verdicts of the claims from the records: the ledger.",
        epilog="For example `paperkit claims --word refuted`, or, in a script, `paperkit claims "
        "--fail-on stale --fail-on 'not run'`. The exit status is 1 where --fail-on finds a claim.",
    )
    parser.set_defaults(command=_claims)
    parser.add_argument("id", nargs="*", help="only these claims")
    parser.add_argument("--paper", help="only the claims of this paper")
    parser.add_argument("--anchor", help="only the claims of this chapter or target")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only claims of this kind")
    parser.add_argument(
        "--word", action="append", choices=MARKS, help="only claims that this word stands beside"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list, whole")
    parser.add_argument(
        "--fail-on",
        action="append",
        choices=MARKS,
        default=[],
        help="exit with status 1 if this word stands beside a shown claim",
    )
    parser.add_argument(
        "--missing",
        action="store_true",
        help="print the papers' statements that no claim decides; status 1 where there are any",
    )
    parser.add_argument("--store", help="the working store")

    text = "rewrite claims/schema.json, from which editors complete and check claims"
    parser = subparsers.add_parser("schema", help=text, description=text.capitalize() + ".")
    parser.set_defaults(command=_schema)


def _claims(arguments: argparse.Namespace) -> int:
    if arguments.missing:
        return _missing(arguments.paper)
    found = verdicts(arguments.paper, arguments.anchor, arguments.store)
    shown = _named(found, arguments.id)
    if arguments.kind:
        shown = [verdict for verdict in shown if verdict.claim.kind in arguments.kind]
    if arguments.word:
        shown = [verdict for verdict in shown if marks(verdict) & set(arguments.word)]
    print(json.dumps([plain(v) for v in shown], indent=2) if arguments.json else _text(shown))
    return int(any(marks(verdict) & set(arguments.fail_on) for verdict in shown))


def _missing(paper: str | None) -> int:
    left = {name: ids for name, ids in missing(load_claims()).items() if paper in (None, name)}
    for name, ids in left.items():
        print("\n".join(f"{name}: {statement}" for statement in ids))
    return int(bool(left))


def _named(found: Sequence[Verdict], names: Sequence[str]) -> list[Verdict]:
    unknown = sorted(set(names) - {verdict.claim.id for verdict in found})
    if unknown:
        raise ValueError(f"there is no claim {unknown[0]!r} among these; `paperkit claims` lists.")
    return [verdict for verdict in found if not names or verdict.claim.id in names]


def marks(verdict: Verdict) -> set[str]:
    """Return the words that stand beside a claim."""
    beside = {verdict.word}
    if verdict.stale:
        beside.add(STALE)
    if verdict.claim.changed:
        beside.add(CHANGED)
    return beside


def plain(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON can say it; an end of an interval that is infinite is null."""
    interval = verdict.interval
    return {
        "id": verdict.claim.id,
        "paper": verdict.claim.paper,
        "place": verdict.claim.place,
        "kind": verdict.claim.kind,
        "statement": verdict.claim.statement,
        "criterion": verdict.claim.criterion.model_dump(mode="json"),
        "covers": list(verdict.claim.covers),
        "correction": verdict.claim.correction and verdict.claim.correction.model_dump(mode="json"),
        "profile": verdict.claim.profile,
        "anchor": verdict.claim.anchor,
        "verdict": verdict.word,
        "stale": verdict.stale,
        "changed": [change.model_dump(mode="json") for change in verdict.claim.changed],
        "evidence": verdict.evidence,
        "scale": verdict.scale,
        "value": verdict.value,
        "interval": interval and [end if math.isfinite(end) else None for end in interval],
        "side": verdict.side or None,
        "p_value": verdict.p_value,
        "adjusted_p_value": verdict.adjusted_p_value,
        "records": [{"study": r.study, "key": r.key} for r in verdict.records],
    }


def _text(found: Sequence[Verdict]) -> str:
    lines = []
    for verdict in found:
        beside = sorted(marks(verdict) - {verdict.word})
        noted = f" ({', '.join(beside)})" if beside else ""
        lines.append(f"{verdict.word}{noted}: {verdict.claim.id}, {verdict.claim.place}")
        lines.append(f"    {verdict.evidence}")
    counts = Counter(verdict.word for verdict in found)
    lines.append(", ".join(f"{n} {word}" for word, n in counts.items()) or "no claim")
    return "\n".join(lines)


def _schema(arguments: argparse.Namespace) -> int:
    path = claims_folder() / SCHEMA
    atomic.write_text(path, claims_schema())
    print(path)
    return 0
