"""What the page on verdicts says is what the code does."""

import re
from pathlib import Path

from paperkit.ledger.claims import load_claims
from paperkit.ledger.criteria import CRITERIA, WORDS
from paperkit.ledger.render import badge

TEXT = (Path(__file__).parents[2] / "book" / "how_to_read_a_verdict.md").read_text(encoding="utf-8")


def test_every_word_that_can_be_computed_is_defined_on_the_page():
    defined = re.findall(r"^\| (<span .*?</span>) \|", TEXT, re.M)
    assert defined == [badge(word) for word in (*WORDS, "stale", "criterion changed")]


def test_every_criterion_is_listed_on_the_page():
    section = TEXT.split("### The criteria")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == CRITERIA.keys()


def test_the_example_of_a_claim_is_an_entry_of_the_ledger(tmp_path):
    example = TEXT.split("```yaml\n")[1].split("```\n")[0]
    (tmp_path / "example.yml").write_text(example, encoding="utf-8")
    (claim,) = load_claims(tmp_path)
    assert claim in load_claims()
