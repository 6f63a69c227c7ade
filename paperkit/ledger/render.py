"""Verdicts as Markdown: the scoreboard, a chapter's table, the ledger.

The Markdown is read by MyST and by Jupyter alike; a badge is a ``span`` of the classes
``verdict`` and ``verdict-WORD`` with hyphens for blanks. The same verdicts give the same text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from paperkit import arguments
from paperkit.experiments.archive import Archive
from paperkit.experiments.paths import store_folder
from paperkit.experiments.study import require_profile
from paperkit.ledger.calls import Side
from paperkit.ledger.claims import Claim
from paperkit.ledger.criteria import CRITERIA, OWN, WORDS, PaperValue, counterexample_exists
from paperkit.ledger.formatting import NOTHING, interval, markdown_table, number
from paperkit.ledger.verdict import Verdict, verdicts


def badge(word: str) -> str:
    """Return a word as a badge, ``<span class="verdict verdict-not-run">not run</span>``."""
    return f'<span class="verdict verdict-{word.replace(" ", "-")}">{word}</span>'


def badges(verdict: Verdict) -> str:
    """Return the verdict's badge, with one for stale evidence and one for a changed criterion."""
    words = [verdict.word]
    if verdict.stale:
        words.append("stale")
    if verdict.claim.changed:
        words.append("criterion changed")
    return " ".join(map(badge, words))


def scoreboard(verdicts: Sequence[Verdict], papers: Sequence[str] = ()) -> str:
    """Return how many claims of each paper have each verdict, as a Markdown table.

    Parameters
    ----------
    verdicts : sequence of Verdict
    papers : sequence of str
        Papers that have a row even if no claim of theirs has been entered.

    Returns
    -------
    str
        A row for each paper, and two for this book: its statements, and the limits that it entered
        to be refuted.
    """
    if not verdicts:
        return "No claim has been entered yet."
    groups: dict[str, list[Verdict]] = {paper: [] for paper in papers}
    for verdict in verdicts:
        groups.setdefault(_row_name(verdict.claim), []).append(verdict)
    rows = [[name, str(len(own)), _counts(own)] for name, own in groups.items()]
    lines = [markdown_table(["paper", "claims", "verdicts"], rows)]
    stale = sum(v.stale for v in verdicts)
    if stale:
        lines.append(f"{stale} of {len(verdicts)} verdicts rest on {badge('stale')} records.")
    return "\n\n".join(lines)


def table(verdicts: Sequence[Verdict], root: str = "..") -> str:
    """Return a chapter's verdicts as a Markdown table, one row a claim.

    Parameters
    ----------
    verdicts : sequence of Verdict
    root : str
        The way from the page to the repository's root, for the links to the records.

    Returns
    -------
    str
    """
    if not verdicts:
        return "This chapter has no claim in the ledger yet."
    rows = [
        [
            f"{v.claim.statement} ({v.claim.place})",
            _paper_text(v.claim.paper_value),
            _ours_text(v),
            badges(v),
            v.scale or NOTHING,
            _records_link(v, root),
        ]
        for v in verdicts
    ]
    header = ["claim", "paper", "ours", "verdict", "scale", "records"]
    # Identities and inequalities have no number of the paper's: a column of dashes says nothing.
    filled = [i for i in range(len(header)) if any(row[i] != NOTHING for row in rows)]
    return markdown_table([header[i] for i in filled], [[row[i] for i in filled] for row in rows])


def ledger(verdicts: Sequence[Verdict], root: str = "..") -> str:
    """Return the body of the ledger page: a section a paper, with a table and each claim.

    Parameters
    ----------
    verdicts : sequence of Verdict
    root : str
        The way from the page to the repository's root, for links to records and chapters.

    Returns
    -------
    str
        MyST Markdown that begins with second-level headings.
    """
    sections = []
    for paper, own in _by_paper(verdicts):
        rows = [
            [f"[{v.claim.id}](#{target(v.claim)})", v.claim.place, v.claim.kind, badges(v)]
            for v in own
        ]
        sections.append(f"## {paper}")
        header = ["claim", "place", "kind", "verdict"]
        if any(v.adjusted_p_value is not None for v in own):
            header.append("adjusted p")
            rows = [[*row, _adjusted_text(v)] for row, v in zip(rows, own, strict=True)]
        sections.append(markdown_table(header, rows))
        sections.extend(_details(v, root) for v in own)
    return "\n\n".join(sections) + "\n" if sections else "No claim has been entered yet.\n"


def findings(lines: Iterable[str], verdicts: Sequence[Verdict], root: str = "..") -> str:
    """Return sentences with the badges of the claims that they rest on, as a Markdown list.

    Parameters
    ----------
    lines : iterable of str
        Lines ``claim-id (word): sentence``, with the verdict for which the sentence was written.
    verdicts : sequence of Verdict
    root : str
        The way from the page to the repository's root, for links to chapters.

    Raises
    ------
    ValueError
        If a line is malformed, a claim is unknown, or its verdict is another one by now.
    """
    found = {verdict.claim.id: verdict for verdict in verdicts}
    items = []
    for line in lines:
        match = re.fullmatch(r"([\w-]+) \(([^)]+)\): (.+)", line.strip())
        if match is None:
            raise ValueError(f"{line!r} is no finding: write claim-id (word): sentence.")
        name, word, sentence = match.groups()
        if name not in found:
            raise ValueError(f"there is no claim {name!r} in the ledger.")
        verdict = found[name]
        if verdict.word != word:
            raise ValueError(
                f"the claim {name!r} is {verdict.word} by now, and its sentence was written for "
                f"{word}: write it anew."
            )
        link = f"[claim](#{target(verdict.claim)})"
        items.append(
            f"* {badges(verdict)} {sentence} ({link}, {_chapter_link(verdict.claim, root)})"
        )
    return "\n".join(items)


def target(claim: Claim) -> str:
    """Return the label of a claim on the ledger page."""
    return "claim-" + re.sub(r"[^a-z0-9]+", "-", claim.id.lower()).strip("-")


def show_verdicts(
    chapter: str, profile: str = "laptop", store: str | Path | None = None, root: str = ".."
) -> None:
    """Display a chapter's verdicts in its notebook.

    Parameters
    ----------
    chapter : str
        The notebook's name, ``03_reparametrization``.
    profile : {"smoke", "laptop", "paper"}
        The profile of the notebook's run; at smoke a sentence says that it earns no verdict.
    store : path, optional
        The working store that is read beside the published records.
    root : str
        The way from the notebook's folder to the repository's root.

    Examples
    --------
    >>> from paperkit.ledger import show_verdicts
    >>> show_verdicts("03_reparametrization", profile="smoke")  # a notebook shows the text
    <IPython.core.display.Markdown object>
    """
    from IPython.display import Markdown, display

    arguments.instance("chapter", chapter, str, "as in the anchors of claims")
    arguments.instance("root", root, str, "the way to the book's top folder")
    require_profile(profile)
    store_folder(store)
    if profile == "smoke":
        text = "A smoke run only exercises the code: it earns no verdict."
    else:
        text = table(verdicts(anchor=chapter, store=store), root)
    display(Markdown(text))


def _by_paper(verdicts: Iterable[Verdict]) -> list[tuple[str, list[Verdict]]]:
    papers: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        papers.setdefault(verdict.claim.paper, []).append(verdict)
    return list(papers.items())


def _row_name(claim: Claim) -> str:
    if claim.paper != OWN:
        return claim.paper
    if claim.criterion.name == counterexample_exists.__name__:
        return "this book: limits, entered to be refuted"
    return "this book: its own statements"


def _counts(verdicts: Sequence[Verdict]) -> str:
    # Badges with their counts wrap like text; a column for each word is wider than a page.
    counts = Counter(v.word for v in verdicts)
    found = [f"{counts[word]} {badge(word)}" for word in WORDS if counts[word]]
    return " ".join(found) if found else NOTHING


def _details(verdict: Verdict, root: str) -> str:
    claim = verdict.claim
    items = [
        ("Verdict", badges(verdict)),
        ("Place", claim.place),
        ("Kind", claim.kind),
        ("Criterion", criterion_text(claim)),
        ("Paper", _paper_text(claim.paper_value)),
        ("Ours", _ours_text(verdict)),
        ("Chance", _chance_text(verdict)),
        ("Evidence", f"{verdict.evidence}."),
        ("Scale", verdict.scale or NOTHING),
        ("Records", _records_link(verdict, root)),
        ("Derived in", _chapter_link(claim, root)),
    ]
    items += [
        ("Criterion changed", f"on {change.date}; it was: {change.was}; because: {change.why}")
        for change in claim.changed
    ]
    lines = [f"* **{name}**: {text}" for name, text in items if text != NOTHING]
    heading = f"({target(claim)})=\n### {claim.place}: {claim.id}"
    return "\n\n".join([heading, claim.statement, "\n".join(lines)])


def criterion_text(claim: Claim) -> str:
    """Return the criterion as it was fixed: its sentence, then its arguments."""
    call = claim.criterion
    document = CRITERIA[call.name].function.__doc__ or ""
    arguments = {**call.arguments, **({"where": call.where} if call.where else {})}
    shown = ", ".join(f"{name} = {_argument(value)}" for name, value in arguments.items())
    return (
        f"{document.partition(chr(10))[0]} `{call.name}`: {shown}; study `{call.study}`, "
        f"{claim.profile} profile"
    ).replace("``", "`")


def _argument(value: object) -> str:
    if isinstance(value, Side):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_argument(item)}" for name, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return f"`{value}`"


def _paper_text(value: PaperValue | None) -> str:
    if value is None:
        return NOTHING
    error = f" ± {number(value.standard_error)}" if value.standard_error else ""
    return f"{number(value.value)}{error} {value.unit}".strip()


def _ours_text(verdict: Verdict) -> str:
    if not verdict.value_text:
        return NOTHING
    unit = verdict.claim.paper_value.unit if verdict.claim.paper_value else ""
    text = f"{verdict.value_text} {unit}".strip()
    return f"{text} ({interval(*verdict.interval)})" if verdict.interval else text


def _adjusted_text(verdict: Verdict) -> str:
    return NOTHING if verdict.adjusted_p_value is None else number(verdict.adjusted_p_value)


def _chance_text(verdict: Verdict) -> str:
    if verdict.p_value is None or verdict.adjusted_p_value is None:
        return NOTHING
    shown, adjusted = map(number, (verdict.p_value, verdict.adjusted_p_value))
    return f"p = {shown}; {adjusted} when adjusted for all tests of the ledger (Holm)"


def _records_link(verdict: Verdict, root: str) -> str:
    study = verdict.claim.criterion.study
    if not verdict.records:
        return NOTHING
    name = str(len(verdict.records))
    if not Archive().published.path(study).is_file():
        return f"{name} of `{study}`"
    return f"[{name}]({root}/results/{study}.jsonl)"


def _chapter_link(claim: Claim, root: str) -> str:
    if not claim.anchor:
        return NOTHING
    document, hash_, label = claim.anchor.partition("#")
    number = claim.chapter.partition("_")[0]
    shown = f"chapter {int(number)}" if number.isdigit() else claim.chapter
    # The built page's address: MyST resolves no label of a theorem or proof block.
    return f'<a href="{root}/{document.removesuffix(".ipynb")}.html{hash_}{label}">{shown}</a>'
