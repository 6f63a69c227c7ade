"""When, at which commit and on which machine the published results were last made."""

from __future__ import annotations

from typing import Any

from paperkit.experiments.archive import Archive
from paperkit.ledger.formatting import escaped


def newest_provenance() -> dict[str, Any] | None:
    """Find the provenance of the newest published record.

    Returns
    -------
    dict or None
        Provenance of the record; None when nothing has been published.

    Raises
    ------
    ValueError
        If a file of records is damaged; the sentence names file and line.
    """
    published = Archive().published
    provenances = [r.provenance for study in published.studies() for r in published.records(study)]
    return max(provenances, key=lambda provenance: str(provenance["date"]), default=None)


def last_verified() -> str:
    """Say when, at which commit and on what the newest published record was made.

    Returns
    -------
    str
        Sentence for the pages, in Markdown and HTML alike: what the record holds is escaped.
    """
    newest = newest_provenance()
    if newest is None:
        return "Not verified yet: no record has been published."
    commit = str(newest["commit"] or "unknown")[:10]
    date, device = escaped(str(newest["date"])[:10]), escaped(str(newest["device"]))
    return f"Last verified {date}, at commit {escaped(commit)}, on {device}."
