import re
from dataclasses import replace

import pytest

from paperkit.experiments import run_study
from paperkit.experiments.archive import Archive
from paperkit.ledger import show_verdicts, verdicts
from paperkit.ledger.criteria import WORDS
from paperkit.ledger.render import badge, findings, ledger, scoreboard, table

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


def test_records_of_other_code_show_as_stale(published, edit):
    assert not any(verdict.stale for verdict in verdicts())
    edit("selftest_parts/arithmetic.py", "2 * value", "value + value")
    assert [verdict.stale for verdict in verdicts()] == [True, True, True, False]
    assert badge("stale") in scoreboard(verdicts())
    assert badge("stale") in table(verdicts())


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


def test_the_table_has_one_row_a_claim_with_a_link_to_its_records(published):
    lines = table(verdicts()).splitlines()
    assert len(lines) == 2 + 4
    assert lines[2] == (
        r"| The gap $\|a - b\|$ is 0. (Theorem 1) | – | below 1e-12 | "
        f"{badge('verified')} | 6 runs, 3 seeds | "
        "[6](../results/selftest_measure.jsonl) |"
    )
    assert badge("criterion changed") in lines[3]
    assert "| 1 ± 0.1 m | – |" in lines[5]


def test_the_ledger_has_a_section_a_paper_and_everything_about_a_claim(published):
    text = ledger(verdicts(), root=".")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## First",
        "## Second",
    ]
    assert "(claim-slack)=\n### Theorem 2: slack" in text
    assert (
        "* **Criterion changed**: on 2026-01-31; it was: half of them; because: the paper" in text
    )
    assert "(./results/selftest_measure.jsonl)" in text
    assert '<a href="./notebooks/09_test.html#thm-1">chapter 9</a>' in text
    assert '<a href="./notebooks/10_other.html">chapter 10</a>' in text
    assert "`at_least`" not in text and "study `selftest_measure`, laptop profile" in text
    assert text == ledger(verdicts(), root=".")


def test_without_claims_the_pages_say_so():
    assert scoreboard([]) == "No claim has been entered yet."
    assert ledger([]) == "No claim has been entered yet.\n"
    assert table([]) == "This chapter has no claim in the ledger yet."


@pytest.mark.parametrize("word", WORDS)
def test_a_badge_has_a_class_for_its_word(word):
    slug = word.replace(" ", "-")
    assert badge(word) == f'<span class="verdict verdict-{slug}">{word}</span>'


def test_a_notebook_shows_its_chapters_verdicts(published, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    show_verdicts("09_test")
    show_verdicts("09_test", profile="smoke")
    assert shown[0].data == table(verdicts(anchor="09_test"))
    assert "earns no verdict" in shown[1].data


def test_a_verdict_does_not_change_with_the_order_of_the_records(published):
    before = [replace(verdict, records=()) for verdict in verdicts()]
    path = Archive().published.path("selftest_measure")
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
    assert [replace(verdict, records=()) for verdict in verdicts()] == before
