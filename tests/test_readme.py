"""README tells the truth: its examples, its commands, its table, and what it says was found."""

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from examples import failures

import paperkit.estimators
import paperkit.statistics
from paperkit.ledger import verdicts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"\.venv/bin/(papermill [^`\n]+)", README)

# README's three sentences rest on these claims of the ledger; where one changes, they must change.
FINDINGS = {
    "block-proposition": "verified",
    "block-gelu": "refuted",
    "block-layer-norm": "refuted",
    "block-batch-statistics": "refuted",
    "renyi-prop-2-2": "verified",
    "renyi-gelu": "not supported",
    "reparam-nodewise": "refuted",
    "reparam-joint-hessian": "refuted",
    "renyi-zero-dominant": "supported",
    "entropy-grows-with-samples": "supported",
}

# Numbers of gradients in README's table, by the quantity of the benchmark that measured them.
COSTS = {
    "exact_sharpness": r"(\d+) gradients for all exact spectra",
    "hessian_product": r"(\d+) gradients a product",
    "normalized_sensitivity": r"(\d+) gradients with 10 outputs",
}


def test_examples_print_what_they_show(pytestconfig, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    parser = doctest.DocTestParser()
    assert all(parser.get_examples(block)[-1].want for block in blocks)
    example = parser.get_doctest("\n".join(blocks), {}, "README.md", "README.md", 0)
    if report := failures(example, pytestconfig):
        pytest.fail(report, pytrace=False)


def test_findings_are_those_of_the_ledger():
    found = {verdict.claim.id: verdict.word for verdict in verdicts()}
    assert {claim: found.get(claim) for claim in FINDINGS} == FINDINGS


def test_functions_to_begin_with_exist():
    table = README[README.index("## Which measure") : README.index("## Three doors")]
    rows = re.findall(r"^\|(?:[^|]*)\|([^|]*)\|", table, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    known = {*paperkit.estimators.__all__, *paperkit.statistics.__all__}
    assert named
    assert named <= known


@pytest.mark.parametrize("quantity, told", COSTS.items())
def test_costs_are_those_of_the_benchmarks(quantity, told):
    rows = json.loads((ROOT / "results" / "benchmarks.json").read_text())["rows"]
    (row,) = [row for row in rows if (row["quantity"], row["tool"]) == (quantity, "paperkit")]
    count = int(re.search(told, README).group(1))
    assert row["gradients"] == pytest.approx(count, rel=0.1)


@pytest.mark.parametrize("command", COMMANDS)
def test_papermill_lines_run(command, tmp_path):
    folder = Path(sys.executable).parent
    words = command.replace("_build/", f"{tmp_path}/").split()
    if "--help-notebook" not in words:
        words += ["-p", "profile", "smoke"]
    settings = {"JUPYTER_PREFER_ENV_PATH": "1", "PAPERKIT_STORE": str(tmp_path / "store")}
    run = subprocess.run(
        [folder / words[0], *words[1:]],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
