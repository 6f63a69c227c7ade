"""The device check finds what differs between places, and nothing where only round-off does."""

import copy
import dataclasses
import json
import math

import pytest
import torch

from benchmarks import device_check, device_section
from benchmarks.device_calls import (
    Place,
    called_names,
    compare_call,
    compare_results,
    moved_to,
)
from benchmarks.device_record import PARTS, failures, summary
from paperkit.experiments import records_of
from paperkit.experiments.study import study_named
from tests import public_calls
from tests.explicit_devices import ExplicitDevices
from tests.round_off import moved

CPU = Place(torch.device("cpu"), torch.float64)
NAMES = called_names()


class Elsewhere(Place):
    """Stands for another device: what it is given differs by a unit of round-off."""

    def put(self, tensor):
        copied = super().put(tensor)
        if not copied.is_floating_point():
            return copied
        return moved(copied, torch.Generator(device="cpu").manual_seed(0))


def test_only_what_draws_and_keeps_records_is_not_tried():
    left_out = {name for name, call in public_calls.CALLS.items() if call.runs} - set(NAMES)
    rooms = {name.partition(".")[0] for name in left_out}
    assert rooms <= {"chapter", "experiments", "ledger", "plotting"}


@pytest.mark.parametrize("name", NAMES)
def test_round_off_is_no_difference(name, device):
    there = (
        Elsewhere(device, torch.float64) if device.type == "cpu" else Place(device, torch.float64)
    )
    outcome = compare_call(name, NAMES[name], there)
    assert outcome.agrees, outcome


def test_a_slightly_different_number_is_found():
    def different(model, data):
        loss = model(data[0]).square().mean()
        return loss + 1e-6 * isinstance(data[0], Marked)

    class Marked(torch.Tensor):
        pass

    class Wrong(Place):
        def put(self, tensor):
            return super().put(tensor).as_subclass(Marked)

    public_calls.CALLS["a test"] = public_calls.Call()
    try:
        found = compare_call("a test", different, Wrong(CPU.device, CPU.dtype))
        assert not found.agrees and found.difference > 1
        assert compare_call("a test", different, CPU).agrees
    finally:
        del public_calls.CALLS["a test"]


def test_a_tensor_without_a_device_is_found_on_the_cpu():
    def careless(data):
        return data[0] + torch.zeros(1)

    public_calls.CALLS["a test"] = public_calls.Call()
    try:
        found = compare_call("a test", careless, CPU, ExplicitDevices)
        assert not found.agrees and "torch.zeros is called without a device" in found.remark
    finally:
        del public_calls.CALLS["a test"]


@dataclasses.dataclass
class Result:
    value: float
    rank: int = 3
    vector: torch.Tensor | None = None


@pytest.mark.parametrize(
    ("here", "there", "agree"),
    [
        (Result(1.0), Result(1.0 + 1e-9), True),
        (Result(1.0), Result(1.0 + 1e-7), False),
        (Result(1.0), Result(1.0, rank=4), False),
        (Result(math.nan), Result(math.nan), True),
        (Result(math.nan), Result(1.0), False),
        (Result(math.inf), Result(-math.inf), False),
        (Result(1.0), {"value": 1.0}, False),
        (Result(0.0, vector=torch.ones(2)), Result(1e-12, vector=torch.ones(2)), True),
        (Result(0.0, vector=torch.ones(2)), Result(0.0, vector=torch.ones(2).double()), False),
        ("yes", "no", False),
        ([], [], False),
        (ValueError("refused"), ValueError("refused"), False),
        (Result(1.0), RuntimeError("out of memory"), False),
    ],
)
def test_results_agree_to_half_of_their_digits_and_in_all_that_is_exact(here, there, agree):
    assert compare_results("name", torch.float64, here, there).agrees is agree


def test_a_call_may_be_refused_alike_in_single_precision_only():
    refused = ValueError("x is too large.")
    assert compare_results("name", torch.float32, refused, refused).agrees
    assert not compare_results("name", torch.float32, TypeError("x"), TypeError("x")).agrees


def test_what_is_moved_shares_nothing_and_has_the_format():
    model = public_calls.model()
    twin = moved_to({"of": [model, public_calls.labels()]}, Place(CPU.device, torch.float32))["of"]
    assert twin[0][0].weight.dtype == torch.float32 and twin[1].dtype == torch.int64
    assert twin[0][0].bias.requires_grad is False and twin[0].training
    assert twin[0][0].weight.data_ptr() != model[0].weight.data_ptr()


def test_a_run_that_differs_from_its_record_is_found():
    study = study_named("curvature_blocks")
    (record, *_) = records_of("curvature_blocks", "laptop")
    same = device_check._compared_run(study, record, record)
    assert same["agrees"] and not same["metrics_apart"]
    metrics = copy.deepcopy(record.metrics)
    metrics["full_difference"] *= 1 + 2 * study.tolerance
    other = device_check._compared_run(study, dataclasses.replace(record, metrics=metrics), record)
    assert not other["agrees"] and list(other["metrics_apart"]) == ["full_difference"]


def test_a_measure_keeps_its_budget_and_one_that_does_not_is_found(monkeypatch):
    clock = device_check.Clock(1.0)
    monkeypatch.setattr(device_check, "MEASURES", ("gauss_newton_trace",))
    (row,) = device_check.checked_budgets(CPU.device, clock)
    assert row["agrees"] and row["refused"] == "" and row["peak"] > 0
    monkeypatch.setattr(device_check, "BUDGET", 2**20)
    row = device_check.budget_row("gauss_newton_trace", row["peak"], "")
    assert not row["agrees"]
    refused = device_check.budget_row("measure", 0, "memory_budget=1 is too small")
    assert refused["agrees"]
    assert not device_check.budget_row("measure", 0, "another refusal")["agrees"]


def test_without_time_everything_is_left_out_and_the_check_fails():
    record = device_check.check(torch.device("cpu"), samples=2, minutes=0.0)
    assert len(record["left_out"]) == sum((2 * len(NAMES), 27, len(device_check.MEASURES), 11))
    assert len(failures(record)) == len(record["left_out"])
    json.dumps(record)


def part(*agree, stopped=""):
    rows = [{"agrees": one, "quantity": "preparation", "tool": "paperkit"} for one in agree]
    return {"rows": rows, "stopped": stopped, "seconds": 2.0}


def test_failures_say_what_differs_and_what_stopped():
    record = {name: part(True, True) for name in PARTS} | {"left_out": []}
    assert failures(record) == []
    record["calls"] = part(True, False, stopped="RuntimeError: x")
    assert [text.split(":")[0] for text in failures(record)] == ["calls stopped", "calls"]
    assert summary(record["calls"]) == "1 of 2 agree, 2 s; stopped: RuntimeError: x"


def test_the_page_shows_a_gpu_beside_the_cpu_or_says_that_there_is_none():
    row = {"quantity": "preparation", "tool": "paperkit", "gradients": 4.5, "seconds": 0.0123}
    cpu = {"rows": [row | {"gradients": 5.25}]}
    assert "not yet been run on a GPU" in device_section.section(cpu, None)
    record = {name: part(True) for name in PARTS} | {
        "left_out": [],
        "device": "cuda (a GPU)",
        "versions": {"torch": "2.11.0"},
        "date": "2026-01-02T03:04:05Z",
        "seconds": 90.0,
        "benchmark": part() | {"rows": [row | {"agrees": True}]},
    }
    text = device_section.section(cpu, record)
    assert "cuda (a GPU)" in text and "in 1.5 minutes" in text and "Findings" not in text
    assert "| paperkit | 5.25 | 4.50 | 12.30 |" in text
    record["budgets"] = part(False)
    assert "Findings" in device_section.section(cpu, record)
