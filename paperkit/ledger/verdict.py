"""Verdicts: a claim's criterion applied to the records that its profile demands."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from paperkit import arguments
from paperkit.experiments.archive import Archive
from paperkit.experiments.records import Configuration, Record, key_of
from paperkit.experiments.study import configurations, study_named
from paperkit.ledger.claims import Claim, chapter_of, load_claims
from paperkit.ledger.criteria import (
    CRITERIA,
    EXACT,
    INCONCLUSIVE,
    NOT_RUN,
    OWN,
    OWN_WORDS,
    REFUTED,
    TESTED,
    Finding,
    matches,
    value_of,
)
from paperkit.ledger.formatting import counted
from paperkit.ledger.lists import planned_studies
from paperkit.statistics.intervals import holm


@dataclass(frozen=True)
class Verdict:
    """A computed verdict.

    Attributes
    ----------
    claim : Claim
    word : str
        The verdict, from `paperkit.ledger.criteria.WORDS`.
    evidence : str
        Sentence about the records that decided.
    scale : str
        Data set, model, samples and seeds of the records that are the evidence.
    value : float or None
        Our value.
    interval : tuple of float or None
        Its interval; an end may be infinite.
    value_text : str
        Our value as it is shown; empty if there is none.
    side : {"for", "against", ""}
        Side of the claim on which the evidence lies, and of which the p-values speak; empty where
        nothing is left to chance.
    p_value : float or None
        Probability of evidence that lies as far on this side, were the other side true; None where
        nothing is left to chance.
    adjusted_p_value : float or None
        The same, adjusted by Holm's method for the tests of the whole ledger, two for each claim:
        one for it, one against it.
    records : tuple of Record
        The records that are the evidence.
    stale : bool
        Whether the code behind one of them has changed since it was made.
    decisive : str
        Key of the one record that decided, such as a counterexample; empty where several did.

    Examples
    --------
    >>> from paperkit.ledger import verdicts
    >>> from paperkit.ledger.criteria import WORDS
    >>> verdict = verdicts(anchor="notebooks/03_reparametrization#prop-2-2")[0]
    >>> verdict.claim.place, verdict.claim.kind
    ('Proposition 2.2 (E.1), equation 1 (50); Corollary E.2, equation 56', 'identity')
    >>> verdict.word in WORDS  # computed from the records, never typed
    True
    """

    claim: Claim
    word: str
    evidence: str
    scale: str = ""
    value: float | None = None
    interval: tuple[float, float] | None = None
    value_text: str = ""
    side: Literal["for", "against", ""] = ""
    p_value: float | None = None
    adjusted_p_value: float | None = None
    records: tuple[Record, ...] = ()
    stale: bool = False
    decisive: str = ""


def verdicts(
    paper: str | None = None,
    anchor: str | None = None,
    store: str | Path | None = None,
    *,
    claims: Sequence[Claim] | None = None,
) -> list[Verdict]:
    """Compute the verdicts of the claims, in the order of the claims.

    A claim needs a clean record of every configuration that it selects from its study's grid at
    its profile. While some are missing the verdict is *not run*, unless what there is refutes.

    Parameters
    ----------
    paper : str, optional
        Keep the claims of this paper.
    anchor : str, optional
        Keep the claims of this chapter (``03_reparametrization``), or of one target in it
        (``notebooks/03_reparametrization#prop-2-2``).
    store : path, optional
        The working store that is read beside the published records.
    claims : sequence of Claim, optional
        By default those of ``claims/`` in the repository.

    Returns
    -------
    list of Verdict

    Examples
    --------
    >>> from collections import Counter
    >>> from paperkit.ledger import verdicts
    >>> found = verdicts(anchor="03_reparametrization")
    >>> counts = Counter(verdict.word for verdict in found)  # the chapter's part of the scoreboard
    >>> counts.total() == len(found) > 0
    True
    """
    if claims is None:
        everything = chosen = load_claims()
    else:
        chosen = list(arguments.iterable("claims", claims, "claims"))
        for claim in chosen:
            arguments.instance("claims", claim, Claim)
        everything = chosen
    archive = Archive(store)
    if anchor is not None:
        arguments.instance("anchor", anchor, str, "as in a claim")
    if paper is not None:
        arguments.choice("paper", paper, dict.fromkeys(claim.paper for claim in chosen))
        chosen = [claim for claim in chosen if claim.paper == paper]
    if anchor is not None:
        chosen = [claim for claim in chosen if _is_at(claim, anchor)]
    # A p-value is adjusted for all tests of the ledger, however few of them are asked for.
    tested = [claim for claim in everything if claim.kind in TESTED]
    judged = [*tested, *(claim for claim in chosen if claim.kind not in TESTED)]
    planned = planned_studies()
    evidence = {(claim.criterion.study, claim.profile) for claim in judged}
    evidence = {(study, profile) for study, profile in evidence if study not in planned}
    records = {(name, profile): archive.records(name, profile) for name, profile in evidence}
    found = {
        claim.id: _judge(claim, records.get((claim.criterion.study, claim.profile), []), archive)
        for claim in judged
    }
    found |= _adjusted([verdict for verdict in found.values() if verdict.p_value is not None])
    return [found[claim.id] for claim in chosen]


def _adjusted(tests: Sequence[Verdict]) -> dict[str, Verdict]:
    p_values = [verdict.p_value for verdict in tests if verdict.p_value is not None]
    # Each claim is tested on two sides, and only the smaller p-value is kept.
    larger = [1.0] * len(p_values)
    return {
        verdict.claim.id: replace(verdict, adjusted_p_value=p_value)
        for verdict, p_value in zip(tests, holm([*p_values, *larger]), strict=False)
    }


def _is_at(claim: Claim, anchor: str) -> bool:
    target = anchor.partition("#")[2]
    same_target = not target or claim.anchor.partition("#")[2] == target
    return same_target and claim.chapter == chapter_of(anchor)


def _judge(claim: Claim, records: Sequence[Record], archive: Archive) -> Verdict:
    question = planned_studies().get(claim.criterion.study)
    if question is not None:
        return Verdict(claim, NOT_RUN, f"the study is planned, and asks: {question}")
    selected = _selected(claim)
    keys = {key_of(claim.criterion.study, configuration) for configuration in selected}
    found = [record for record in records if record.key in keys]
    clean = [record for record in found if record.clean]
    complete = len(clean) == len(selected)
    # A single counterexample refutes; nothing else can be said of an unfinished grid.
    refutable = bool(clean) and claim.kind in EXACT
    evident = _evident(claim, clean)
    finding = _finding(claim, evident) if complete or (refutable and evident) else None
    if finding is None or (not complete and finding.word != REFUTED):
        return Verdict(claim, NOT_RUN, _missing(claim, len(selected), len(found), len(clean)))
    study = study_named(claim.criterion.study)
    evidence = finding.evidence
    if len(evident) < len(clean):
        left_out = counted(len(clean) - len(evident), "run")
        evidence += f"; {left_out} without `{claim.criterion.only}` left out"
    if not complete:
        evidence += f"; {len(clean)} of {len(selected)} runs are finished"
    return Verdict(
        claim,
        OWN_WORDS.get(finding.word, finding.word) if claim.paper == OWN else finding.word,
        evidence,
        scale_of(claim, evident or clean),
        finding.value,
        finding.interval,
        finding.value_text,
        *_one_side(finding),
        None,
        tuple(evident),
        any(archive.is_stale(study, record) for record in clean),
        finding.decisive,
    )


def _one_side(finding: Finding) -> tuple[Literal["for", "against", ""], float | None]:
    """Return the side of the claim that has the smaller p-value, and that p-value.

    A positive word's side is for the claim and a negative word's is against it.
    """
    if finding.p_values is None:
        return "", None
    supporting, opposing = finding.p_values
    return ("against", opposing) if opposing < supporting else ("for", supporting)


def _selected(claim: Claim) -> list[Configuration]:
    grid = configurations(study_named(claim.criterion.study), claim.profile)
    selected = [c for c in grid if matches(c, claim.criterion.where)]
    if not selected:
        raise ValueError(
            f"claim {claim.id!r} selects no configuration of study {claim.criterion.study!r} at "
            f"the {claim.profile} profile; correct its where or its profile."
        )
    return selected


def _evident(claim: Claim, records: Sequence[Record]) -> list[Record]:
    """Return the records that are evidence, where the criterion leaves some out."""
    only = claim.criterion.only
    if only is None:
        return list(records)
    try:
        return [record for record in records if value_of(record, only) == 1]
    except ValueError as error:
        raise ValueError(f"claim {claim.id!r}: {error}") from error


def _finding(claim: Claim, records: Sequence[Record]) -> Finding:
    if not records:
        return Finding(INCONCLUSIVE, f"no run has `{claim.criterion.only}`")
    arguments = dict(claim.criterion.arguments)
    if claim.paper_value is not None:
        arguments["paper_value"] = claim.paper_value
    try:
        return CRITERIA[claim.criterion.name].function(records, **arguments)
    except (ValueError, KeyError) as error:
        raise ValueError(f"claim {claim.id!r}: {error}") from error


def _missing(claim: Claim, selected: int, found: int, clean: int) -> str:
    sentence = f"{clean} of {selected} runs of the {claim.profile} profile are finished"
    if found > clean:
        sentence += f"; {found - clean} more come from uncommitted code and earn no verdict"
    if claim.paper_value is not None and claim.paper_value.measured:
        sentence += "; a smaller scale does not decide a number that the paper measured"
    return sentence


def scale_of(claim: Claim, records: Sequence[Record]) -> str:
    """Return the scale of the evidence: the claim's template filled in, or what is known.

    Raises
    ------
    ValueError
        If the template names something that is in no configuration.
    """
    entries = _entries(records)
    if not claim.scale:
        named = [entries[name] for name in ("dataset", "model") if name in entries]
        if "n" in entries:
            named.append(f"n = {entries['n']}")
        return ", ".join(
            [*named, counted(entries["runs"], "run"), counted(entries["seeds"], "seed")]
        )
    for _, name, _, _ in string.Formatter().parse(claim.scale):
        if name is not None and name not in entries:
            known = ", ".join(sorted(entries))
            raise ValueError(f"claim {claim.id!r}: scale names {{{name}}}; there is {known}.")
    return claim.scale.format_map(entries)


def _entries(records: Sequence[Record]) -> dict[str, Any]:
    """Return for each entry of the configurations its values, joined, and the counts."""
    values: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.configuration.items():
            known = values.setdefault(name, [])
            if value not in known:
                known.append(value)
    entries: dict[str, Any] = {n: ", ".join(map(str, known)) for n, known in values.items()}
    return entries | {"seeds": len(values["seed"]), "runs": len(records)}
