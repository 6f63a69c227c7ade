"""The benchmark's page is its record, and what is timed side by side is the same thing."""

import copy
import json
import math
import re
import time

import numpy as np
import pytest
import torch

from benchmarks import render, with_paperkit, with_torch
from benchmarks.measuring import Settings, Work, measure
from benchmarks.problems import PROBLEMS
from benchmarks.quantities import BEST, COMBINED, OURS, QUANTITIES, REFERENCE_SAMPLES

RECORD = json.loads(render.RECORD.read_text(encoding="utf-8"))
# The others multiply with many vectors, or invert a large matrix.
QUICK = [
    "hessian_product",
    "preparation",
    "layer_products",
    "exact_sharpness",
    "normalized_sensitivity",
    "sharpness",
    "layer_sensitivities",
    "layer_volumes",
]


def test_the_page_is_what_the_record_renders_to() -> None:
    assert render.PAGE.read_text(encoding="utf-8") == render.page(RECORD)


def test_every_quantity_is_measured_with_this_library_and_another() -> None:
    for quantity in QUANTITIES:
        tools = [row["tool"] for row in RECORD["rows"] if row["quantity"] == quantity.key]
        assert tools[0] == OURS
        assert len(tools) > 1
        assert len(set(tools)) == len(tools)


def test_no_tool_in_the_record_computed_something_else() -> None:
    assert [row for row in RECORD["rows"] if render.void(row)] == []
    compared = [row for row in RECORD["rows"] if row["difference"] is not None]
    assert len(compared) == len(RECORD["rows"]) - len(QUANTITIES) - 1  # ours, and the unit


@pytest.mark.parametrize("key", QUICK)
def test_the_plain_programs_compute_what_this_library_computes(key: str, device) -> None:
    (quantity,) = (q for q in QUANTITIES if q.key == key)
    problem = PROBLEMS[quantity.problem](2, device.type)

    def found(work: Work) -> np.ndarray:
        return work.found(work.action()).detach().double().flatten().cpu().numpy()

    reference = found(with_paperkit.WAYS[key][OURS](problem))
    for way in with_torch.WAYS[key].values():
        other = found(way(problem))
        assert np.linalg.norm(other - reference) <= quantity.tolerance * np.linalg.norm(reference)


def test_a_result_that_differs_is_void() -> None:
    (quantity,) = (q for q in QUANTITIES if q.key == "sharpness")
    row = {"quantity": "sharpness", "difference": 0.99 * quantity.tolerance}
    assert not render.void(row)
    assert render.void(row | {"difference": 1.01 * quantity.tolerance})
    assert render.void(row | {"difference": math.nan})


def test_a_void_row_shows_no_time_and_beats_nobody() -> None:
    record = copy.deepcopy(RECORD)
    for row in record["rows"]:
        if row["quantity"] == "sharpness" and row["tool"] != OURS:
            row |= {"difference": 1.0, "gradients": 1e-3}
    lines = [line for line in render.page(record).splitlines() if "| void | void |" in line]
    voided = [r for r in RECORD["rows"] if r["quantity"] == "sharpness" and r["tool"] != OURS]
    assert len(lines) == len(voided)
    assert "sharpness" not in [quantity.key for quantity, _, _ in render.beaten(record)]


def test_ceilings_are_judged_at_their_own_size_only() -> None:
    record = copy.deepcopy(RECORD)
    record["settings"] |= {"samples": 8, "seeds": 5}
    assert {target.verdict for target in render.targets(record)} == {"not judged"}
    assert "trial run" in render.page(record)
    record["settings"] |= {"samples": REFERENCE_SAMPLES, "seeds": 100}
    assert {target.verdict for target in render.targets(record)} <= {"met", "NOT MET"}
    assert "trial run" not in render.page(record)


def test_a_ceiling_is_met_up_to_its_own_value() -> None:
    assert render.Target("", 2.0, 2.0, True).verdict == "met"
    assert render.Target("", 2.01, 2.0, True).verdict == "NOT MET"
    assert render.Target("", math.nan, 2.0, True).verdict == "NOT MET"


def test_the_combined_ratio_divides_one_call_by_the_sum_of_the_best_others() -> None:
    best = []
    for quantity in (q for q in QUANTITIES if q.combined):
        rows = [row for row in RECORD["rows"] if row["quantity"] == quantity.key]
        best.append(min(row["gradients"] for row in rows if row["tool"] != OURS))
    together = {row["tool"]: row for row in RECORD["rows"] if row["quantity"] == COMBINED}
    assert together[BEST]["gradients"] == pytest.approx(sum(best), rel=1e-12)
    (target,) = (t for t in render.targets(RECORD) if BEST in t.what)
    assert target.value == pytest.approx(together[OURS]["gradients"] / sum(best), rel=1e-12)


def test_time_is_for_one_and_memory_counts_what_the_action_touches(monkeypatch) -> None:
    mebibytes, pause = 64, 0.05

    def action() -> torch.Tensor:
        touched = torch.ones(mebibytes * 2**18, dtype=torch.float32, device="cpu")
        time.sleep(pause)
        return touched[:3].clone()

    monkeypatch.setitem(with_torch.WAYS, "pause", {"tool": lambda problem: Work(action, count=2)})
    row = measure("benchmarks.with_torch", "pause", "ResNet-20", "tool", Settings(1, repeats=1))
    assert row.seconds >= pause / 2
    assert row.gradients == row.seconds / row.gradient_seconds
    assert row.found.tolist() == [1.0, 1.0, 1.0]
    # A process may hold some free memory, and the system counts pages in batches.
    assert 0.9 * mebibytes <= row.peak / 2**20 <= 2 * mebibytes


def test_the_other_libraries_are_pinned_exactly() -> None:
    text = (render.ROOT / "benchmarks" / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
