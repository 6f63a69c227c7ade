from textwrap import dedent

import pytest

from paperkit.ledger.claims import load_claims

CLAIM = """
    - id: test-identity
      paper: Test
      place: Theorem 1
      kind: identity
      statement: |
        The gap
        is $0$.
      criterion: {name: identity_holds, study: selftest_measure, metric: gap, at_most: 1e-10}
      profile: laptop
      anchor: notebooks/09_test#thm-1
"""
NUMBER = """
    - id: test-number
      paper: Test
      place: Table 1
      kind: number
      statement: The size is 1.
      paper_value: {value: 1, standard_error: 0.1, unit: m}
      criterion:
        name: number_matches
        study: selftest_measure
        metric: size
        unit: seed
        margin: 0.5
      profile: paper
"""

pytestmark = pytest.mark.usefixtures("studies_folder")


def load(root, text):
    (root / "claims" / "test.yml").write_text(dedent(text))
    return load_claims()


def test_a_claim_is_read(root):
    (claim,) = load(root, CLAIM)
    assert claim.statement == "The gap is $0$."
    assert claim.criterion.arguments == {"metric": "gap", "at_most": 1e-10}
    assert (claim.chapter, claim.profile, claim.changed) == ("09_test", "laptop", ())


def test_the_papers_value_is_read(root):
    (claim,) = load(root, NUMBER)
    value = claim.paper_value
    assert (value.value, value.standard_error, value.unit, value.measured) == (1.0, 0.1, "m", True)


def test_a_changed_criterion_is_read_with_its_date_as_text(root):
    changed = "      changed: [{date: 2026-01-31, was: at most 1, why: too weak}]\n"
    (claim,) = load(root, CLAIM + changed)
    assert claim.changed[0].date == "2026-01-31"


def test_an_empty_folder_and_an_empty_file_have_no_claims(root):
    assert load_claims() == []
    assert load(root, "") == []


def test_a_document_that_repeats_itself_without_end_is_refused(root):
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ValueError, match=r"test\.yml is not valid YAML: aliases are not read"):
        load(root, "\n".join(lines))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("kind: identity", "kind: identty", "unknown kind 'identty'; did you mean 'identity'?"),
        ("profile: laptop", "profile: smoke", "unknown profile 'smoke'; choose one of laptop"),
        ("place:", "plce:", "unknown field 'plce'; did you mean 'place'?"),
        ("place: Theorem 1", "place: ''", "place is ''; give text."),
        (
            "#thm-1",
            "#Thm 1",
            "anchor: 'notebooks/09_test#Thm 1' is no anchor; give notebooks/NN_name#label",
        ),
        ("place: Theorem 1", "place: 1", "place is 1; give text."),
        ("identity_holds", "identity_hold", "did you mean 'identity_holds'?"),
        ("selftest_measure", "selftest_mesure", "did you mean 'selftest_measure'?"),
        ("at_most:", "at_mst:", "criterion: unknown field 'at_mst'; did you mean 'at_most'?"),
        ("metric: gap, ", "", "criterion: the field 'metric' is missing."),
        ("1e-10", "tiny", "criterion: at_most is 'tiny'; give a number."),
        (
            "metric: gap",
            "metric: gap, where: small",
            "criterion: where is 'small'; give a mapping.",
        ),
        (
            "kind: identity",
            "kind: trend",
            "the kinds definition, identity, algorithm, not 'trend'",
        ),
        ("criterion: {", "criterion: [", "test.yml is not valid YAML"),
        ("1e-10", ".inf", "criterion: at_most is inf; give a finite number."),
        ("1e-10", ".nan", "criterion: at_most is nan; give a finite number."),
        (
            "at_most: 1e-10",
            "at_most: 1e-10, at_most: 1",
            "test.yml is not valid YAML: the key 'at_most' is given twice",
        ),
        (
            "profile: laptop",
            "profile: laptop\n      profile: paper",
            "test.yml is not valid YAML: the key 'profile' is given twice",
        ),
        ("name: identity_holds, ", "", "criterion: the field 'name' is missing."),
        (
            "profile: laptop",
            "profile: laptop\n      paper_value: {value: 1}",
            "paper_value is what a claim of kind 'number' has, and no other",
        ),
        (
            "profile: laptop",
            "profile: laptop\n      changed: [{date: 2026-01-31, was: other}]",
            "changed[0]: the field 'why' is missing.",
        ),
    ],
)
def test_a_malformed_claim_is_refused_in_a_sentence_with_file_and_id(root, old, new, sentence):
    assert old in CLAIM
    with pytest.raises(ValueError) as caught:
        load(root, CLAIM.replace(old, new))
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("test.yml")
    assert str(caught.value).endswith((".", "?")) or "YAML" in sentence
    assert "test-identity" in str(caught.value) or "YAML" in sentence
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "profile: paper",
            "profile: laptop",
            "laptop evidence cannot decide a number that the paper measured",
        ),
        ("value: 1,", "value: 0,", "make it an identity"),
        ("value: 1,", "value: one,", "paper_value: value is 'one'; give a number."),
        (
            "standard_error: 0.1",
            "standard_error: -0.1",
            "standard_error is -0.1; give a number of at least 0.",
        ),
        ("unit: m", "measured: yes please", "measured is 'yes please'; give true or false."),
    ],
)
def test_a_malformed_number_is_refused(root, old, new, sentence):
    assert old in NUMBER
    with pytest.raises(ValueError) as caught:
        load(root, NUMBER.replace(old, new))
    assert sentence in str(caught.value)


def test_a_closed_form_can_be_decided_on_a_laptop(root):
    text = NUMBER.replace("profile: paper", "profile: laptop")
    (claim,) = load(root, text.replace("unit: m", "measured: false"))
    assert claim.profile == "laptop"


def test_an_id_that_is_taken_is_refused(root):
    (root / "claims" / "another.yml").write_text(dedent(CLAIM))
    with pytest.raises(ValueError, match=r"test\.yml, test-identity: the id is taken in another"):
        load(root, CLAIM)


@pytest.mark.parametrize("content", ["a: 1", "- just text"])
def test_a_file_that_is_no_list_of_claims_is_refused(root, content):
    with pytest.raises(ValueError, match=r"test\.yml"):
        load(root, content)


ORDERING = CLAIM.replace("kind: identity", "kind: ordering").replace(
    "name: identity_holds, study: selftest_measure, metric: gap, at_most: 1e-10",
    "name: ordering_holds, study: selftest_measure, unit: seed, larger: {metric: size}, "
    "smaller: {where: {part: small}}",
)
TREND = CLAIM.replace("kind: identity", "kind: trend").replace(
    "name: identity_holds, study: selftest_measure, metric: gap, at_most: 1e-10",
    "name: trend_holds, study: selftest_measure, metric: gap, against: n, unit: seed, "
    "direction: upwards",
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ORDERING, "criterion: smaller needs a metric, or ordering_holds one for both."),
        (
            ORDERING.replace("{where:", "{were:"),
            "criterion, smaller: unknown field 'were'; did you mean 'where'?",
        ),
        (TREND, "criterion: unknown direction 'upwards'; choose one of decreasing, increasing."),
    ],
)
def test_an_argument_of_a_criterion_is_refused_by_its_place(root, text, sentence):
    with pytest.raises(ValueError) as caught:
        load(root, text)
    assert str(caught.value) == f"test.yml, test-identity, {sentence}"


def test_sides_may_share_a_metric(root):
    (claim,) = load(root, ORDERING.replace("larger: {metric: size}", "metric: size, larger: {}"))
    assert list(claim.criterion.arguments) == ["larger", "smaller", "unit", "metric"]
