import json
import re
import shlex
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis.strategies import text
from markdown_it.renderer import RendererHTML
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

from paperkit.cli import main
from paperkit.experiments import run_study
from paperkit.experiments.archive import Archive
from paperkit.experiments.study import study_named
from paperkit.ledger import show_verdicts, verdicts
from paperkit.ledger.claims import Change, load_claims
from paperkit.ledger.commands import plain
from paperkit.ledger.criteria import WORDS
from paperkit.ledger.formatting import escaped
from paperkit.ledger.render import (
    AGAIN,
    audit_command,
    badge,
    correction_items,
    corrections,
    findings,
    ledger,
    ledger_index,
    ledger_page,
    of_chapter,
    run_command,
    scoreboard,
    with_links_to_the_ledger,
)
from paperkit.publishing.sphinx_extension import PAPERS

REPOSITORY = Path(__file__).resolve().parents[2]
CLAIMS = """
- id: gap
  paper: First
  place: Theorem 1
  kind: identity
  statement: The gap $|a - b|$ is 0.
  criterion: {name: identity_holds, study: selftest_measure, metric: gap}
  profile: laptop
  anchor: notebooks/09_test#thm-1
- id: slack
  paper: First
  place: Theorem 2
  kind: inequality
  statement: The slack is positive.
  criterion: {name: inequality_holds, study: selftest_measure, metric: slack}
  profile: laptop
  anchor: notebooks/09_test#thm-2
  changed: [{date: 2026-01-31, was: half of them, why: the paper says all}]
- id: larger
  paper: Second
  place: Figure 3
  kind: ordering
  statement: The large part is larger.
  criterion:
    name: ordering_holds
    study: selftest_measure
    metric: size
    unit: seed
    larger: {where: {part: large}}
    smaller: {where: {part: small}}
  profile: laptop
  anchor: notebooks/10_other
  scale: "parts {part} at {runs} runs"
- id: table
  paper: Second
  place: Table 1
  kind: number
  statement: The size is 1.
  paper_value: {value: 1.0, standard_error: 0.1, unit: m}
  criterion:
    name: number_matches
    study: selftest_measure
    metric: size
    unit: seed
    margin: 0.5
    where: {part: small}
  profile: paper
"""

pytestmark = pytest.mark.usefixtures("studies_folder")


@pytest.fixture
def claims(root):
    (root / "claims" / "test.yml").write_text(CLAIMS)


@pytest.fixture
def published(claims, committed, store):
    for name in ("selftest_training", "selftest_measure"):
        run_study(name, "laptop", store, progress=False)
        Archive(store).publish(name)


def words(**arguments):
    return {verdict.claim.id: verdict.word for verdict in verdicts(**arguments)}


def test_verdicts_are_computed_from_records(published):
    assert words() == {
        "gap": "verified",
        "slack": "refuted",
        "larger": "reproduced",
        "table": "not run",
    }


def test_a_verdict_carries_its_scale_its_evidence_and_its_records(published):
    gap, slack, larger, _ = verdicts()
    assert gap.evidence == "largest `gap` below 1e-12 in 6 runs (at most 1e-10 allowed)"
    assert gap.scale == "6 runs, 3 seeds"
    assert len(gap.records) == 6
    assert "part = small, seed = 2" in slack.evidence
    assert larger.scale == "parts small, large at 6 runs"
    assert larger.value == pytest.approx(9.0)
    assert larger.interval == pytest.approx((9.0, 9.0))


def test_laptop_evidence_never_decides_a_number_of_the_paper(published):
    found = verdicts()[3]
    assert (found.word, found.value, found.records) == ("not run", None, ())
    assert found.evidence == (
        "3 of 4 runs of the paper profile are finished; "
        "a smaller scale does not decide a number that the paper measured"
    )


def test_the_papers_own_grid_decides_its_number(published, store):
    run_study("selftest_measure", "paper", store, progress=False)
    found = verdicts(store=store)[3]
    # Sizes 1.0, 1.1, 1.2, 1.3: mean 1.15, error 0.0645; 0.15 is within 2 * 0.119.
    assert found.word == "reproduced"
    assert found.value == pytest.approx(1.15)


def test_without_records_nothing_is_judged(claims, store):
    assert set(words(store=store).values()) == {"not run"}


def test_a_smoke_run_earns_no_verdict(claims, store, committed):
    run_study("selftest_measure", "smoke", store, progress=False)
    assert set(words(store=store).values()) == {"not run"}


def test_records_of_uncommitted_code_earn_no_verdict(claims, store, uncommitted):
    run_study("selftest_measure", "laptop", store, progress=False)
    found = verdicts(store=store)[0]
    assert found.word == "not run"
    assert "6 more come from uncommitted code and earn no verdict" in found.evidence


def test_an_unfinished_grid_refutes_but_verifies_nothing(published, root):
    published = Archive().published
    records = [r for r in published.records("selftest_measure") if r.seed > 0]
    published.path("selftest_measure").unlink()
    published.add(records)
    assert words() == {
        "gap": "not run",
        "slack": "refuted",
        "larger": "not run",
        "table": "not run",
    }
    assert verdicts()[1].evidence.endswith("; 4 of 6 runs are finished")


def test_runs_that_are_no_evidence_are_left_out_and_counted(published, root):
    claim = next(claim for claim in load_claims() if claim.id == "gap")
    # Runs of seed 2, two of the six, would refute the claim.
    call = claim.criterion.model_copy(update={"only": "kept"})
    archive = Archive().published
    records = archive.records("selftest_measure")
    archive.path("selftest_measure").unlink()
    archive.add(
        replace(
            record,
            metrics={
                "kept": record.seed != 2,
                "gap": float(record.seed == 2),
            },
        )
        for record in records
    )
    (found,) = verdicts(claims=[claim.model_copy(update={"criterion": call})])
    assert (found.word, len(found.records)) == ("verified", 4)
    assert found.evidence.endswith("(at most 1e-10 allowed); 2 runs without `kept` left out")
    assert verdicts(claims=[claim])[0].word == "refuted"
    none = claim.criterion.model_copy(update={"only": "gap", "where": {"seed": 0}})
    (found,) = verdicts(claims=[claim.model_copy(update={"criterion": none})])
    assert (found.word, found.records) == ("inconclusive", ())
    assert found.evidence == "no run has `gap`; 2 runs without `gap` left out"
    unknown = claim.criterion.model_copy(update={"only": "learned"})
    with pytest.raises(ValueError, match=r"claim 'gap': the record .* has no metric 'learned'"):
        verdicts(claims=[claim.model_copy(update={"criterion": unknown})])


def test_records_of_other_code_show_as_stale(published, edit):
    assert not any(verdict.stale for verdict in verdicts())
    edit("selftest_parts/arithmetic.py", "2 * value", "value + value")
    assert [verdict.stale for verdict in verdicts()] == [True, True, True, False]
    assert badge("stale") in scoreboard(verdicts())
    assert badge("stale") in of_chapter(verdicts())


def test_claims_are_filtered_by_paper_chapter_and_target(published):
    assert list(words(paper="Second")) == ["larger", "table"]
    for anchor in ("09_test", "notebooks/09_test", "notebooks/09_test.ipynb"):
        assert list(words(anchor=anchor)) == ["gap", "slack"]
    assert list(words(anchor="notebooks/09_test#thm-2")) == ["slack"]
    assert words(anchor="nowhere") == {}


def test_a_claim_that_selects_nothing_is_refused(root):
    text = CLAIMS.replace(
        "where: {part: small}\n  profile: paper", "where: {part: tiny}\n  profile: paper"
    )
    (root / "claims" / "test.yml").write_text(text)
    with pytest.raises(ValueError, match="claim 'table' selects no configuration"):
        verdicts(paper="Second")


def test_a_scale_that_names_nothing_known_is_refused(root, published):
    (root / "claims" / "test.yml").write_text(CLAIMS.replace("{part} at", "{prt} at"))
    with pytest.raises(ValueError, match=r"claim 'larger': scale names {prt}; there is part,"):
        verdicts()


def test_a_missing_metric_names_the_claim(root, published):
    (root / "claims" / "test.yml").write_text(CLAIMS.replace("metric: gap", "metric: gp"))
    with pytest.raises(ValueError, match=r"claim 'gap': the record .*selftest_measure\.jsonl:\d "):
        verdicts()


def test_the_scoreboard_counts_by_word_and_by_paper(published):
    assert scoreboard(verdicts(), ("First", "Third")).splitlines() == [
        "| paper | claims | verdicts |",
        "| --- | --- | --- |",
        f"| First | 2 | 1 {badge('verified')} 1 {badge('refuted')} |",
        "| Third | 0 | – |",
        f"| Second | 2 | 1 {badge('reproduced')} 1 {badge('not run')} |",
    ]


def test_the_scoreboard_counts_limits_that_were_entered_to_be_refuted_apart(root, published):
    limit = """
- id: limit
  paper: This book
  place: Limits
  kind: identity
  statement: The gap is 0 in every network.
  criterion: {name: counterexample_exists, study: selftest_measure, metric: size, at_least: 0.5}
  profile: laptop
- id: own
  paper: This book
  place: Here
  kind: identity
  statement: The gap is 0.
  criterion: {name: identity_holds, study: selftest_measure, metric: gap}
  profile: laptop
"""
    (root / "claims" / "test.yml").write_text(limit)
    assert [line.split(" | ")[0] for line in scoreboard(verdicts()).splitlines()[2:]] == [
        "| this book: limits, entered to be refuted",
        "| this book: its own statements",
    ]


def test_findings_carry_the_badges_of_their_claims_and_notice_when_these_move(published):
    text = findings(["gap (verified): The gap is closed."], verdicts(), root=".")
    assert text == (
        f"* {badge('verified')} The gap is closed. ([claim](#claim-gap), "
        '<a href="./notebooks/09_test.html#thm-1">chapter 9</a>)'
    )
    for line, sentence in {
        "gap (refuted): It is open.": "'gap' is verified by now, and its sentence was written for",
        "gulf (verified): It is closed.": "no claim 'gulf'",
        "The gap is closed.": "is no finding: write claim-id (word): sentence",
    }.items():
        with pytest.raises(ValueError, match=re.escape(sentence)):
            findings([line], verdicts())


def test_a_criterions_link_opens_its_file_in_a_notebook_and_the_ledger_in_the_book(published):
    shown = of_chapter(verdicts())
    assert shown.count("[criterion](../claims/test.yml#claim-") == 4
    built = with_links_to_the_ledger(json.dumps(shown))
    assert built.count("<a href='../book/ledger/first.html#claim-gap'>criterion</a>") == 1
    assert "[criterion]" not in json.loads(built)


def test_what_repeats_a_claim_is_counted_apart(published, root):
    repeated = CLAIMS.split("- id: slack")[0].replace("id: gap", "id: again")
    file = root / "claims" / "test2.yml"
    file.write_text(repeated + "  repeats: gap\n")
    last = scoreboard(verdicts()).splitlines()[-1]
    assert last == f"| {AGAIN} | 1 | 1 {badge('verified')} |"
    assert "* **Tries again**: [gap](#claim-gap)" in ledger(verdicts())
    file.write_text(repeated + "  repeats: gapp\n")
    with pytest.raises(ValueError, match="repeats names 'gapp', no claim; did you mean 'gap'"):
        load_claims()


def test_a_chapter_shows_what_was_found_by_its_name_with_links_to_criterion_and_records(published):
    first, second, third, fourth = re.findall(r"(?m)^\* .*$", of_chapter(verdicts()))
    assert first == (
        f"* {badge('verified')} **First, Theorem 1.** The gap $|a - b|$ is 0. "
        "*Found:* largest gap below 1e-12; 6 runs, 3 seeds "
        "([criterion](../claims/test.yml#claim-gap), "
        "[6 records](../results/selftest_measure.jsonl))."
    )
    assert badge("criterion changed") in second and "smallest slack -" in second
    assert "*Found:* mean difference in size 9 (9 to 9); parts small, large at 6 runs" in third
    assert "3 of 4 runs of the paper profile are finished" in fourth
    assert "; the paper has 1 ± 0.1 m (" in fourth


def test_a_chapter_shows_the_verdicts_that_its_author_names_and_folds_the_others(published):
    text = of_chapter(verdicts(), first=["table", "gap"])
    in_sight, folded = text.split("<details>", maxsplit=1)
    assert re.findall(r"#claim-(\w+)", in_sight) == ["table", "gap"]
    assert re.findall(r"#claim-(\w+)", folded) == ["slack", "larger"]
    assert "2 more verdicts: 1 " in folded and f"2 {badge('verified')}" not in text
    assert text.startswith(f"**Verdicts** on 4 claims: 1 {badge('verified')} 1 {badge('refuted')}")


def test_a_chapter_without_a_choice_shows_its_first_five(published):
    found = [
        replace(verdict, claim=verdict.claim.model_copy(update={"id": f"{verdict.claim.id}-{i}"}))
        for i in range(2)
        for verdict in verdicts()
    ]
    in_sight, folded = of_chapter(found).split("<details>", maxsplit=1)
    assert (in_sight.count("*Found:*"), folded.count("*Found:*")) == (5, 3)


def test_a_chosen_verdict_that_the_chapter_has_not_is_refused(published):
    with pytest.raises(ValueError, match="first names 'gulf'; the claims are gap, slack, larger"):
        of_chapter(verdicts(), first=["gulf"])


def test_the_commands_beside_the_records_work_as_they_are_printed(published, monkeypatch, store):
    monkeypatch.setenv("PAPERKIT_STORE", str(store))
    shown = of_chapter(verdicts()) + ledger(verdicts())
    commands = (
        run_command("selftest_measure", "laptop"),
        audit_command("selftest_measure", "laptop"),
    )
    for command in commands:
        assert command in shown
        for part in command.split(" && "):
            program, *arguments = shlex.split(part)
            assert program == ".venv/bin/paperkit"
            assert main(arguments) == 0


def test_the_ledger_has_a_section_a_chapter_or_study_and_everything_about_a_claim(published):
    text = "".join(
        ledger([v for v in verdicts() if v.claim.paper == paper], root=".")
        for paper in ("First", "Second")
    )
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "## Chapter 9",
        "## Chapter 10",
        "## Study: selftest measure",
    ]
    assert escaped(study_named("selftest_measure").question) in text
    assert f":::{{dropdown}} slack {badge('refuted')} {badge('criterion changed')}" in text
    assert ":name: claim-slack\n" in text
    assert (
        "* **Criterion changed**: on 2026-01-31; it was: half of them; because: the paper" in text
    )
    assert "[6 records](./results/selftest_measure.jsonl), lines 1–6 of the file" in text
    assert '<a href="./notebooks/09_test.html#thm-1">chapter 9</a>' in text
    assert '<a href="./notebooks/10_other.html">chapter 10</a>' in text
    assert "is at most 1e-10 in magnitude" in text
    assert "study `selftest_measure` at the laptop profile" in text
    decisive = next(v for v in verdicts() if v.claim.id == "slack").decisive
    assert f"`.venv/bin/paperkit audit selftest_measure --run {decisive}`" in text


def test_the_ledgers_tables_have_each_claim_in_words_and_each_value_with_its_name(published):
    rows = [line for line in ledger(verdicts()).splitlines() if line.startswith("| [")]
    assert rows[0] == (
        r"| [gap](#claim-gap): The gap $\|a - b\|$ is 0. | "
        f"{badge('verified')}<br>largest gap below 1e-12 |"
    )
    assert any("<br>mean difference in size 9 (9 to 9); adjusted p = 0 for it" in r for r in rows)
    assert {re.search(r"#claim-(\w+)", row)[1] for row in rows} == {
        "gap",
        "slack",
        "table",
        "larger",
    }


def test_a_p_value_is_of_the_side_on_which_the_evidence_lies(published):
    (larger,) = (claim for claim in load_claims() if claim.id == "larger")
    sides = {"larger": larger.criterion.smaller, "smaller": larger.criterion.larger}
    reversed_ = larger.model_copy(
        update={"id": "reversed", "criterion": larger.criterion.model_copy(update=sides)}
    )
    right, wrong = verdicts(claims=[larger, reversed_])
    assert [(v.word, v.side) for v in (right, wrong)] == [
        ("reproduced", "for"),
        ("not reproduced", "against"),
    ]
    # The parts differ by 9 in every seed, so that nothing is left to chance on either side.
    assert right.p_value == wrong.p_value == wrong.adjusted_p_value == 0.0
    assert "p = 0 against the claim; 0 when adjusted" in ledger([wrong])
    assert (plain(right)["side"], plain(wrong)["side"]) == ("for", "against")
    assert plain(verdicts()[0])["side"] is None


def test_the_ledger_can_be_jumped_through_by_paper_and_by_chapter(published):
    assert ledger_index(verdicts()).splitlines() == [
        "* **By paper:** [First](ledger/first.md) (2), [Second](ledger/second.md) (2)",
        "* **Chapter 9:** [First](#ledger-first-09-test) (2)",
        "* **Chapter 10:** [Second](#ledger-second-10-other) (1)",
        "* **Study: selftest measure:** [Second](#ledger-second-selftest-measure) (1)",
    ]
    for paper in ("First", "Second"):
        own = [verdict for verdict in verdicts() if verdict.claim.paper == paper]
        text = ledger(own)
        for target in re.findall(rf"#(ledger-{paper.lower()}-[\w-]+)\)", ledger_index(own)):
            assert f"({target})=\n## " in text


def test_every_paper_of_the_ledger_has_its_page_and_every_page_its_paper():
    claims = [path.read_text() for path in (REPOSITORY / "claims").glob("*.yml")]
    papers = {name for claim in claims for name in re.findall(r"(?m)^  paper: (.+)$", claim)}
    folder = REPOSITORY / "book" / "ledger"
    assert {f"ledger/{path.stem}" for path in folder.glob("*.md")} == {
        ledger_page(paper) for paper in papers | set(PAPERS)
    }
    for paper in papers:
        text = (REPOSITORY / "book" / f"{ledger_page(paper)}.md").read_text()
        assert f"```{{ledger}} {paper}\n" in text


def test_corrections_have_line_repair_counterexample_and_the_command_that_shows_it(root, published):
    path = root / "claims" / "test.yml"
    text = path.read_text().replace(
        "- id: slack\n",
        "- id: slack\n"
        "  correction: {fault: slip, printed: The slack is $>0$., repair: Its sign is free.}\n",
    )
    path.write_text(text)
    found = verdicts()
    decisive = next(v for v in found if v.claim.id == "slack").decisive
    shown = corrections(found, ["First", "Second"])
    assert shown.splitlines()[:3] == ["(corrections-first)=", "## First", ""]
    assert "slip. The slack is $>0$.<br>\n  *Instead:* Its sign is free.<br>\n" in shown
    assert f"{badge('refuted')} {badge('criterion changed')} smallest slack" in shown
    assert f"to see it, `.venv/bin/paperkit audit selftest_measure --run {decisive}`." in shown
    assert "Second" not in shown and corrections([], ["First"]).startswith("No line")
    items = correction_items([verdict for verdict in found if verdict.claim.paper == "First"])
    assert items and shown.endswith(f"{items}\n") and correction_items([]) == ""


def test_a_record_of_the_working_store_is_named_by_its_run(claims, committed, store):
    for name in ("selftest_training", "selftest_measure"):
        run_study(name, "laptop", store, progress=False)
    found = verdicts(store=store)
    text = ledger(found)
    assert "6 runs of the working store: " in text and "lines" not in text
    assert all(record.key in text for record in found[0].records)


NASTY = "<script>alert('x')</script> *a* _b_ `c` [d](e) {f}`g` $h$ | & \\"


def shown(markdown):
    """Return the text that a page shows for Markdown, as the book reads it."""
    config = MdParserConfig(enable_extensions={"dollarmath", "colon_fence", "substitution"})
    html = create_md_parser(config, RendererHTML).render(markdown)
    return unescape(re.sub(r"<[^>]*>", "", html))


@given(text(alphabet="<>&*_`[](){}$|~\\\"'a1 #-.", min_size=1).map(str.strip).filter(bool))
def test_an_escaped_text_is_shown_as_it_is(given_text):
    plain = " ".join(given_text.split())
    assert shown(f"Text: {escaped(given_text)}").strip() == f"Text: {plain}"


def test_what_comes_from_records_and_claims_is_shown_as_text(published):
    hostile = [
        replace(
            verdict,
            evidence=f"`gap` is 1 at device = {NASTY}",
            scale=NASTY,
            claim=verdict.claim.model_copy(
                update={
                    "paper": NASTY,
                    "place": NASTY,
                    "changed": (Change(date=NASTY, was=NASTY, why=NASTY),),
                    "criterion": verdict.claim.criterion.model_copy(
                        update={"where": {NASTY: [NASTY, 1]}}
                    ),
                }
            ),
        )
        for verdict in verdicts()
    ]
    for page in (scoreboard(hostile), of_chapter(hostile), ledger(hostile)):
        assert "<script" not in page and "`c`" not in page and "](e)" not in page
        assert NASTY in shown(page)


def test_without_claims_the_pages_say_so():
    assert scoreboard([]) == "No claim has been entered yet."
    assert ledger([]) == "No claim has been entered yet.\n"
    assert of_chapter([]) == "This chapter has no claim in the ledger yet."


@pytest.mark.parametrize("word", WORDS)
def test_a_badge_has_a_class_for_its_word(word):
    slug = word.replace(" ", "-")
    assert badge(word) == f'<span class="verdict verdict-{slug}">{word}</span>'


def test_a_notebook_shows_its_chapters_verdicts(published, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    show_verdicts("09_test")
    show_verdicts("09_test", profile="smoke")
    show_verdicts("09_test", first=["slack"])
    assert shown[0].data == of_chapter(verdicts(anchor="09_test"))
    assert "earns no verdict" in shown[1].data
    assert shown[2].data == of_chapter(verdicts(anchor="09_test"), first=["slack"])


def test_a_verdict_does_not_change_with_the_order_of_the_records(published):
    before = [replace(verdict, records=()) for verdict in verdicts()]
    path = Archive().published.path("selftest_measure")
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
    assert [replace(verdict, records=()) for verdict in verdicts()] == before
