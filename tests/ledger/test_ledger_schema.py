"""The schema from which editors complete claims: up to date, and as strict as the code."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from paperkit.experiments.plain_yaml import PlainLoader
from paperkit.ledger.claims import SCHEMA, claims_schema

FOLDER = Path(__file__).parents[2] / "claims"
CLAIM = """
- id: test-identity
  paper: Test
  place: Theorem 1
  kind: identity
  statement: The gap is $0$.
  criterion: {name: identity_holds, study: entropy_facts, metric: gap, at_most: 1e-10}
  profile: laptop
  anchor: notebooks/09_test#thm-1
"""
FILES = sorted(FOLDER.glob("*.yml"))


def test_the_committed_schema_is_that_of_the_code():
    assert (FOLDER / SCHEMA).read_text() == claims_schema(), "run `paperkit schema`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_claims_names_its_schema_and_fits_it(path):
    text = path.read_text()
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA}\n")
    jsonschema.validate(yaml.load(text, PlainLoader), json.loads((FOLDER / SCHEMA).read_text()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: identity", "kind: identty"),
        ("place: ", "plce: "),
        ("#thm-1", "#Thm 1"),
        ("identity_holds", "identity_hold"),
        ("entropy_facts", "entropy_fact"),
        ("at_most: 1e-10", "at_mst: 1e-10"),
        ("metric: gap, ", ""),
        ("1e-10", "tiny"),
        ("metric: gap", "metric: gap, where: {n: {m: 1}}"),
    ],
)
def test_an_editor_with_the_schema_marks_what_the_code_refuses(old, new):
    schema = json.loads((FOLDER / SCHEMA).read_text())
    assert old in CLAIM
    jsonschema.validate(yaml.load(CLAIM, PlainLoader), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.load(CLAIM.replace(old, new), PlainLoader), schema)
