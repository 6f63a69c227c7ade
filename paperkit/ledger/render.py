"""Verdicts as Markdown: the scoreboard, a chapter's verdicts, the ledger.

The Markdown is read by MyST and by Jupyter alike, but for the ledger, which is a page of the book
only; a badge is a ``span`` of the classes ``verdict`` and ``verdict-WORD`` with hyphens for blanks.
A claim's statement is Markdown; whatever else comes from claims and records is escaped. The same
verdicts give the same text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from paperkit import arguments
from paperkit.experiments.archive import Archive
from paperkit.experiments.paths import claims_folder, store_folder
from paperkit.experiments.study import require_profile, study_named
from paperkit.ledger.claims import Claim, file_of, load_claims
from paperkit.ledger.criteria import OWN, REFUTED, WORDS, PaperValue, counterexample_exists
from paperkit.ledger.formatting import (
    NOTHING,
    code,
    counted,
    escaped,
    escaped_but_code,
    interval,
    markdown_table,
    number,
)
from paperkit.ledger.lists import planned_studies
from paperkit.ledger.verdict import Verdict, verdicts
from paperkit.ledger.wording import criterion_sentence, value_name

AGAIN = "further evidence on claims above"
"""Row of the scoreboard for claims that try a fact again, which counts once."""

OPEN = 5
"""Verdicts that a chapter shows at its head; the others are folded."""


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
        A row for each paper, two for this book (its statements, and the limits that it entered to
        be refuted), and one for what is tried again on other evidence.
    """
    if not verdicts:
        return "No claim has been entered yet."
    groups: dict[str, list[Verdict]] = {paper: [] for paper in papers}
    for verdict in verdicts:
        groups.setdefault(_row_name(verdict.claim), []).append(verdict)
    # The row of further evidence comes last, below the claims that it repeats.
    ordered = sorted(groups.items(), key=lambda group: group[0] == AGAIN)
    rows = [[escaped(name), str(len(own)), _counts(own)] for name, own in ordered]
    lines = [markdown_table(["paper", "claims", "verdicts"], rows)]
    stale = sum(v.stale for v in verdicts)
    if stale:
        lines.append(f"{stale} of {len(verdicts)} verdicts rest on {badge('stale')} records.")
    return "\n\n".join(lines)


def of_chapter(verdicts: Sequence[Verdict], first: Iterable[str] = (), root: str = "..") -> str:
    """Return the verdicts at the head of a chapter: a few in sight, the others folded.

    Parameters
    ----------
    verdicts : sequence of Verdict
    first : iterable of str
        Ids of the claims that stand in sight, in this order; by default the first five.
    root : str
        The way from the page to the repository's root, for links to ledger and records.

    Returns
    -------
    str
        A list with an item for each verdict, and the commands that make the records.

    Raises
    ------
    ValueError
        If ``first`` names a claim that is not among the verdicts.
    """
    first = list(first)
    if not verdicts:
        return "This chapter has no claim in the ledger yet."
    found = {verdict.claim.id: verdict for verdict in verdicts}
    for name in first:
        if name not in found:
            raise ValueError(f"first names {name!r}; the claims are {', '.join(found)}.")
    chosen = [found[name] for name in first] or list(verdicts[:OPEN])
    others = [verdict for verdict in verdicts if verdict not in chosen]
    words = f"[How to read them]({root}/book/how_to_read_a_verdict.md)."
    parts = [
        f"**Verdicts** on {counted(len(verdicts), 'claim')}: {_counts(verdicts)} {words}",
        "\n".join(_item(verdict, root) for verdict in chosen),
    ]
    if others:
        summary = f"{counted(len(others), 'more verdict')}: {_counts(others)}"
        parts.append(_folded(summary, "\n".join(_item(verdict, root) for verdict in others)))
    parts.append(_folded("The records, and how to make them again", _commands(verdicts)))
    return "\n\n".join(parts)


def ledger_page(paper: str) -> str:
    """Return the page of a paper's ledger, seen from the folder of the book's pages."""
    return f"ledger/{_slug(paper)}"


def ledger_index(verdicts: Sequence[Verdict]) -> str:
    """Return the ways into the ledger: a page for each paper, a part of it for each chapter.

    Parameters
    ----------
    verdicts : sequence of Verdict

    Returns
    -------
    str
        A list in Markdown.
    """
    if not verdicts:
        return "No claim has been entered yet.\n"
    return _jump_list(verdicts)


def ledger(verdicts: Sequence[Verdict], root: str = "../..") -> str:
    """Return the body of one paper's page of the ledger, by chapters and by studies.

    Parameters
    ----------
    verdicts : sequence of Verdict
    root : str
        The way from the page to the repository's root, for links to records and chapters.

    Returns
    -------
    str
        MyST Markdown with a second-level heading for each chapter, and for each study whose claims
        belong to no chapter yet. Under it stands a table of the claims, and below the table each
        of them with all that is known of it, folded.
    """
    if not verdicts:
        return "No claim has been entered yet.\n"
    parts = [_counts(verdicts)]
    for name, part in sorted(_grouped(verdicts, _group)):
        paper = part[0].claim.paper
        parts.append(f"({_label(paper, name)})=\n## {_group_title(name)}")
        question = _question(part[0].claim.criterion.study)
        if name not in {verdict.claim.chapter for verdict in part} and question:
            parts.append(escaped(question))
        parts.append(_table(part))
        parts.extend(_details(verdict, root) for verdict in part)
    return "\n\n".join(parts) + "\n"


def corrections(verdicts: Sequence[Verdict], papers: Iterable[str]) -> str:
    """Return what the papers print and what should stand there, as Markdown, paper by paper.

    Parameters
    ----------
    verdicts : sequence of Verdict
    papers : iterable of str
        The papers, in their order.

    Returns
    -------
    str
        An item for each claim of a paper that is refuted or carries a correction: the place, the
        fault, the printed line, the repair, and the run that shows it.
    """
    parts = []
    for paper in papers:
        items = correction_items([v for v in verdicts if v.claim.paper == paper])
        if items:
            parts.append(f"(corrections-{_slug(paper)})=\n## {escaped(paper)}\n\n{items}")
    return "\n\n".join(parts) + "\n" if parts else "No line has been found to need a correction.\n"


def correction_items(verdicts: Sequence[Verdict]) -> str:
    """Return the items of `corrections` as one Markdown list; empty where nothing is corrected."""
    return "\n".join(_correction(verdict) for verdict in verdicts if _is_corrected(verdict))


def _is_corrected(verdict: Verdict) -> bool:
    return verdict.word == REFUTED or verdict.claim.correction is not None


def _correction(verdict: Verdict) -> str:
    claim, correction = verdict.claim, verdict.claim.correction
    fault = correction.fault if correction else "false"
    printed = correction.printed if correction else claim.statement
    lines = [f"* **{escaped(claim.place)}**, {fault}. {printed}"]
    if correction:
        lines.append(f"  *Instead:* {correction.repair}")
    shown = f"  {badges(verdict)} {_value_text(verdict)} ([claim](#{target(claim)}))"
    if verdict.decisive and verdict.word == REFUTED:
        shown += f"; to see it, `{repeat_command(verdict)}`"
    return "<br>\n".join([*lines, shown + "."])


def repeat_command(verdict: Verdict) -> str:
    """Return the command that makes the record which decided a verdict again, and compares."""
    call, profile = verdict.claim.criterion, verdict.claim.profile
    chosen = "" if profile == "laptop" else f" --profile {profile}"
    return f".venv/bin/paperkit audit {call.study} --run {verdict.decisive}{chosen}"


def _group(claim: Claim) -> str:
    # A study's name sorts behind the chapters' numbers.
    return claim.chapter or claim.criterion.study


def _group_title(name: str) -> str:
    title = _chapter_name(name)
    return f"{title[0].upper()}{title[1:]}" if name[:1].isdigit() else f"Study: {_words(name)}"


def _words(name: str) -> str:
    return escaped(name.replace("_", " "))


def _question(study: str) -> str:
    planned = planned_studies()
    return planned[study] if study in planned else study_named(study).question


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
        links = [f"[claim](#{target(verdict.claim)})"]
        if verdict.claim.chapter:
            links.append(_chapter_link(verdict.claim, root))
        items.append(f"* {badges(verdict)} {sentence} ({', '.join(links)})")
    return "\n".join(items)


def target(claim: Claim) -> str:
    """Return the label of a claim on the ledger page."""
    return f"claim-{_slug(claim.id)}"


def with_links_to_the_ledger(text: str) -> str:
    """Return a page's text with the links to criteria leading to the built ledger pages.

    MyST finds no target that a directive makes on another page, so that these are links in HTML.
    Their quotation marks are single ones, because the text may be a notebook's JSON.
    """
    link = re.compile(r"\[criterion\]\(([./]*)/claims/[\w.-]+\.yml#(claim-[a-z0-9-]+)\)")
    if not link.search(text):
        return text
    pages = _pages_of_claims(claims_folder())

    def in_the_book(found: re.Match[str]) -> str:
        root, name = found.groups()
        return f"<a href='{root}/book/{pages.get(name, 'ledger')}.html#{name}'>criterion</a>"

    return link.sub(in_the_book, text)


@lru_cache(maxsize=1)
def _pages_of_claims(folder: Path) -> dict[str, str]:
    """Return the ledger page of each claim by its anchor; a build of the book asks once a page."""
    return {target(claim): ledger_page(claim.paper) for claim in load_claims(folder)}


def show_verdicts(
    chapter: str,
    profile: str = "laptop",
    store: str | Path | None = None,
    root: str = "..",
    *,
    first: Iterable[str] = (),
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
    first : iterable of str
        Ids of the claims that stand in sight, in this order; by default the first five. The others
        are folded.

    Raises
    ------
    ValueError
        If ``first`` names a claim that the chapter does not decide.

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
    first = arguments.strings("first", first, "a list of claims' ids")
    if profile == "smoke":
        text = "A smoke run only exercises the code: it earns no verdict."
    else:
        text = of_chapter(verdicts(anchor=chapter, store=store), first, root)
    display(Markdown(text))


def _grouped(
    verdicts: Iterable[Verdict], key: Callable[[Claim], str]
) -> list[tuple[str, list[Verdict]]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(key(verdict.claim), []).append(verdict)
    return list(groups.items())


def _row_name(claim: Claim) -> str:
    if claim.repeats:
        return AGAIN
    if claim.paper != OWN:
        return claim.paper
    if _is_limit(claim):
        return "this book: limits, entered to be refuted"
    return "this book: its own statements"


def _is_limit(claim: Claim) -> bool:
    """Return whether a claim of this book's own was entered to be refuted."""
    return claim.paper == OWN and claim.criterion.name == counterexample_exists.__name__


def _counts(verdicts: Sequence[Verdict]) -> str:
    # Badges with their counts wrap like text; a column for each word is wider than a page.
    counts = Counter(v.word for v in verdicts)
    found = [f"{counts[word]} {badge(word)}" for word in WORDS if counts[word]]
    return " ".join(found) if found else NOTHING


def _folded(summary: str, content: str) -> str:
    # The blank lines end the HTML, so that the content is read as Markdown.
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"


def _item(verdict: Verdict, root: str) -> str:
    """Return a verdict as an item of a list: word, place, claim, what was found, and links."""
    claim = verdict.claim
    place = claim.place if claim.paper == OWN else f"{claim.paper}, {claim.place}"
    place += ", entered to be refuted" * _is_limit(claim)
    paper = _paper_text(claim.paper_value)
    found = [_value_text(verdict), verdict.scale and escaped(verdict.scale)]
    found += [f"the paper has {paper}" if paper != NOTHING else ""]
    # A notebook opens this file; `with_links_to_the_ledger` leads the built page to the ledger.
    file = file_of(claim)
    criterion = f"[criterion]({root}/claims/{file}#{target(claim)})" if file else NOTHING
    links = [criterion, _records_link(verdict, root)]
    return (
        f"* {badges(verdict)} **{escaped(place)}.** {claim.statement} "
        f"*Found:* {'; '.join(filter(None, found))} "
        f"({', '.join(link for link in links if link != NOTHING)})."
    )


def _commands(verdicts: Iterable[Verdict]) -> str:
    """Return the commands for the records of some verdicts, each study once."""
    calls = {
        (v.claim.criterion.study, v.claim.profile): None
        for v in verdicts
        if v.claim.criterion.study not in planned_studies()
    }
    runs = "\n".join(run_command(study, profile) for study, profile in calls)
    audits = "\n".join(audit_command(study, profile) for study, profile in calls)
    return (
        f"What is missing is run and published by\n\n```bash\n{runs}\n```\n\n"
        "A sample of what is there is run again, and compared with the records, by\n\n"
        f"```bash\n{audits}\n```"
    )


def run_command(study: str, profile: str) -> str:
    """Return the command that makes and publishes what is missing of a study's records."""
    paperkit = ".venv/bin/paperkit study"
    return f"{paperkit} run {study} --profile {profile} && {paperkit} publish {study}"


def audit_command(study: str, profile: str) -> str:
    """Return the command that makes a sample of a study's published records again."""
    return f".venv/bin/paperkit audit {study} --profile {profile}"


def _jump_list(verdicts: Sequence[Verdict]) -> str:
    papers = [
        f"[{escaped(paper)}]({ledger_page(paper)}.md) ({len(own)})"
        for paper, own in _grouped(verdicts, lambda claim: claim.paper)
    ]
    lines = [f"* **By paper:** {', '.join(papers)}"]
    for name, own in sorted(_grouped(verdicts, _group)):
        parts = [
            f"[{escaped(paper)}](#{_label(paper, name)}) ({len(part)})"
            for paper, part in _grouped(own, lambda claim: claim.paper)
        ]
        lines.append(f"* **{_group_title(name)}:** {', '.join(parts)}")
    return "\n".join(lines)


def _label(*names: str) -> str:
    return "-".join(["ledger", *(_slug(name) for name in names)])


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "none"


def _chapter_name(name: str) -> str:
    if not name:
        return "without a chapter"
    number = name.partition("_")[0]
    return f"chapter {int(number)}" if number.isdigit() else escaped(name)


def _table(verdicts: Sequence[Verdict]) -> str:
    """Return a table of claims: each with its sentence, its word and what was found."""
    rows = []
    for v in verdicts:
        found = f"{badges(v)}<br>{_value_text(v)}"
        if v.adjusted_p_value is not None:
            found += f"; adjusted p = {number(v.adjusted_p_value)} {v.side} it"
        rows.append([f"[{escaped(v.claim.id)}](#{target(v.claim)}): {v.claim.statement}", found])
    # The table has two columns, because a telephone has no room for more.
    return markdown_table(["claim", "verdict, and what was found"], rows)


def _details(verdict: Verdict, root: str) -> str:
    """Return all that is known of a verdict, folded under the claim's id."""
    claim = verdict.claim
    call = (claim.criterion.study, claim.profile)
    written = claim.criterion.study not in planned_studies()
    items = [
        ("Place", escaped(claim.place)),
        ("Kind", claim.kind + ", entered to be refuted" * _is_limit(claim)),
        (
            "Tries again",
            f"[{escaped(claim.repeats)}](#claim-{_slug(claim.repeats)})"
            if claim.repeats
            else NOTHING,
        ),
        ("Criterion", criterion_sentence(claim)),
        ("The paper has", _paper_text(claim.paper_value)),
        ("Found", _value_text(verdict) if verdict.value_text else NOTHING),
        ("Chance", _chance_text(verdict)),
        ("Evidence", f"{_evidence(verdict)}."),
        ("Scale", escaped(verdict.scale) or NOTHING),
        ("Records", _records_text(verdict, root)),
        ("To make what is missing", f"`{run_command(*call)}`" if written else NOTHING),
        ("To run a sample again", f"`{audit_command(*call)}`" if written else NOTHING),
        ("The run that decided", f"`{repeat_command(verdict)}`" if verdict.decisive else NOTHING),
        ("Derived in", _chapter_link(claim, root)),
        ("Decides as well", ", ".join(map(code, claim.covers)) or NOTHING),
    ]
    if claim.correction is not None:
        items += [("Printed", claim.correction.printed), ("Repair", claim.correction.repair)]
    items += [
        (
            "Criterion changed",
            f"on {escaped(change.date)}; it was: {escaped(change.was)}; "
            f"because: {escaped(change.why)}",
        )
        for change in claim.changed
    ]
    lines = [f"* **{name}**: {text}" for name, text in items if text != NOTHING]
    # A colon fence, because the lines hold code.
    title = f"{escaped(claim.id)} {badges(verdict)}"
    return "\n".join([f":::{{dropdown}} {title}", f":name: {target(claim)}", "", *lines, ":::"])


def _paper_text(value: PaperValue | None) -> str:
    if value is None:
        return NOTHING
    error = f" ± {number(value.standard_error)}" if value.standard_error else ""
    return f"{number(value.value)}{error} {escaped(value.unit)}".strip()


def _value_text(verdict: Verdict) -> str:
    """Return the value that was found, with its name; the evidence where there is none."""
    if not verdict.value_text:
        return _evidence(verdict)
    unit = verdict.claim.paper_value.unit if verdict.claim.paper_value else ""
    text = f"{value_name(verdict.claim)} {verdict.value_text} {escaped(unit)}".strip()
    return f"{text} ({interval(*verdict.interval)})" if verdict.interval else text


def _evidence(verdict: Verdict) -> str:
    names = [v for v in verdict.claim.criterion.arguments.values() if isinstance(v, str)]
    return escaped_but_code(verdict.evidence, names)


def _chance_text(verdict: Verdict) -> str:
    if verdict.p_value is None or verdict.adjusted_p_value is None:
        return NOTHING
    shown, adjusted = map(number, (verdict.p_value, verdict.adjusted_p_value))
    side = f"{verdict.side} the claim"
    return f"p = {shown} {side}; {adjusted} when adjusted for all tests of the ledger (Holm)"


def _records_link(verdict: Verdict, root: str) -> str:
    study = verdict.claim.criterion.study
    if not verdict.records:
        return NOTHING
    name = counted(len(verdict.records), "record")
    if not Archive().published.path(study).is_file():
        return f"{name} of {code(study)}"
    return f"[{name}]({root}/results/{study}.jsonl)"


def _records_text(verdict: Verdict, root: str) -> str:
    """Return the link to the records' file with the lines that decided, or the runs' keys."""
    path = Archive().published.path(verdict.claim.criterion.study)
    places = [record.location.rpartition(":") for record in verdict.records]
    lines = sorted(int(line) for file, _, line in places if file == str(path))
    own = [record.key for record in verdict.records if not record.location.startswith(f"{path}:")]
    parts = [_records_link(verdict, root)]
    if lines:
        parts.append(f"{'lines' if len(lines) > 1 else 'line'} {_ranges(lines)} of the file")
    if own:
        parts.append(f"{counted(len(own), 'run')} of the working store: {', '.join(own)}")
    return ", ".join(parts)


def _ranges(numbers: Sequence[int]) -> str:
    """Return rising whole numbers with their runs drawn together: ``1–3, 7``."""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][-1] + 1:
            found[-1][1:] = [n]
        else:
            found.append([n])
    return ", ".join("–".join(map(str, ends)) for ends in found)


def _chapter_link(claim: Claim, root: str) -> str:
    if not claim.anchor:
        return NOTHING
    document, hash_, label = claim.anchor.partition("#")
    # The built page's address: MyST resolves no label of a theorem or proof block.
    address = f"{root}/{document.removesuffix('.ipynb')}.html{hash_}{label}"
    return f'<a href="{html.escape(address)}">{_chapter_name(claim.chapter)}</a>'
