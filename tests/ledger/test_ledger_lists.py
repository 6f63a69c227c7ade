"""The papers' statements, the claims that decide them, and the studies that are planned."""

import subprocess
import sys
from textwrap import dedent

import pytest

from paperkit.cli import main
from paperkit.experiments.published import published_digest, published_names, published_table
from paperkit.experiments.study import study_names
from paperkit.ledger import render, verdicts
from paperkit.ledger.claims import load_claims, missing
from paperkit.ledger.lists import planned_studies, statements

CLAIM = """
    - id: {id}
      paper: Test
      place: Theorem 1
      kind: algorithm
      statement: The loop ends.
      criterion: {{name: identity_holds, study: {study}, metric: gap}}
      profile: laptop
      covers: [{covers}]
      correction: {{fault: slip, printed: $i$, repair: $i + 1$}}
"""


@pytest.fixture
def lists(root):
    folder = root / "claims" / "lists"
    folder.mkdir()
    (folder / "statements.yml").write_text("Test: [one, two, three]\nOther: [four]\n")
    (folder / "planned_studies.yml").write_text("later: Does it end?\n")
    return root / "claims"


def write(folder, name="one", study="later", covers="two"):
    claim = dedent(CLAIM).format(id=name, study=study, covers=covers)
    (folder / "test.yml").write_text(claim)


def test_every_paper_has_its_statements_once():
    listed = [name for names in statements().values() for name in names]
    assert len(listed) == len(set(listed)) == 226
    assert list(statements()) == ["Rényi", "SA-SAM", "Compression", "IGS"]


def test_every_statement_of_the_papers_is_decided_by_a_claim():
    assert missing(load_claims()) == {}


def test_every_refuted_statement_of_a_paper_says_what_should_stand_there():
    papers = statements()
    refuted = [v for v in verdicts() if v.word == "refuted" and v.claim.paper in papers]
    assert len(refuted) > 40
    assert [v.claim.id for v in refuted if v.claim.correction is None] == []


def test_no_planned_study_has_been_written():
    assert not set(planned_studies()) & set(study_names())
    assert all(question.endswith("?") for question in planned_studies().values())


def test_a_statement_is_decided_by_a_claim_of_its_id_or_one_that_covers_it(lists, capsys):
    write(lists)
    assert missing(load_claims()) == {"Test": ["three"], "Other": ["four"]}
    assert main(["claims", "--missing"]) == 1
    assert capsys.readouterr().out == "Test: three\nOther: four\n"
    write(lists, covers="two, three, four")
    assert main(["claims", "--missing"]) == 0


def test_a_claim_cannot_cover_what_no_paper_states(lists):
    write(lists, covers="twoo")
    with pytest.raises(ValueError, match=r"covers names 'twoo', no statement; did you mean 'two'"):
        load_claims()


def test_a_claim_on_a_planned_study_has_not_been_run_and_shows_no_command(lists):
    write(lists)
    (verdict,) = verdicts()
    assert (verdict.word, verdict.records) == ("not run", ())
    assert verdict.evidence == "the study is planned, and asks: Does it end?"
    text = render.ledger([verdict])
    assert "paperkit study run" not in text
    assert "* **Decides as well**: `two`" in text
    assert "* **Repair**: $i + 1$" in text


def test_an_unknown_study_is_refused(lists):
    write(lists, study="latr")
    with pytest.raises(ValueError, match=r"unknown study 'latr'; did you mean 'later'"):
        load_claims()


def test_a_published_table_is_read_and_its_digest_goes_with_its_text(lists):
    folder = lists / "published"
    folder.mkdir()
    path = folder / "table.yml"
    path.write_text("source: Table 1\nvalues: [1, 2]\n")
    assert published_names() == ["table"]
    assert published_table("table") == {"source": "Table 1", "values": [1, 2]}
    before = published_digest("table")
    path.write_bytes(b"source: Table 1\r\nvalues: [1, 2]\r\n")
    assert published_digest("table") == before
    path.write_text("source: Table 1\nvalues: [1, 3]\n")
    assert published_digest("table") != before
    with pytest.raises(ValueError, match="there is no table 'tabel'; did you mean 'table'"):
        published_table("tabel")
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"table\.yml must be a mapping"):
        published_table("table")


def test_a_reader_that_stops_reading_is_no_error():
    command = f"{sys.executable} -m paperkit.cli claims | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
