"""The benchmark's page is its record, and what is timed side by side is the same thing."""

import ast
import copy
import ctypes
import importlib
import itertools
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import paperkit.optim
from benchmarks import (
    comparing,
    device_section,
    measuring,
    networks,
    optimizers,
    references,
    render,
    steps,
    with_paperkit,
    with_torch,
)
from benchmarks.measuring import Settings, Work, measure
from benchmarks.problems import PROBLEMS, Problem
from benchmarks.quantities import (
    BASE_OPTIONS,
    BEST,
    COMBINED,
    NETWORK_ESTIMATES,
    NETWORK_PRODUCTS,
    NETWORK_QUANTITIES,
    OURS,
    QUANTITIES,
    REFERENCE_BATCH,
    REFERENCE_SAMPLES,
    SAM_RADIUS,
    STEP_KINDS,
    STEP_TOLERANCE,
)
from benchmarks.steps import MeasuredStep, TimedClosure, measure_step

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
    page = render.page(RECORD, device_section.read())
    assert render.PAGE.read_text(encoding="utf-8") == page


def test_every_quantity_is_measured_with_this_library_and_another() -> None:
    for quantity in QUANTITIES:
        tools = [row["tool"] for row in RECORD["rows"] if row["quantity"] == quantity.key]
        assert tools[0] == OURS
        assert len(tools) > 1
        assert len(set(tools)) == len(tools)


def test_no_tool_in_the_record_computed_something_else() -> None:
    assert [row for row in RECORD["rows"] if render.void(row)] == []
    compared = [row for row in RECORD["rows"] if row["difference"] is not None]
    assert len(compared) == len(RECORD["rows"]) - len(QUANTITIES) - 1  # ours, and the unit's first


@pytest.mark.parametrize("key", QUICK)
def test_the_plain_programs_compute_what_this_library_computes(key: str, device) -> None:
    (quantity,) = (q for q in QUANTITIES if q.key == key)
    problem = PROBLEMS[quantity.problem](2, device.type)

    def vector_of(work: Work) -> np.ndarray:
        return work.to_vector(work.action()).detach().double().flatten().cpu().numpy()

    reference = vector_of(with_paperkit.WAYS[key][OURS](problem))
    for way in with_torch.WAYS[key].values():
        other = vector_of(way(problem))
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
    record["settings"] |= {"samples": 8, "seeds": 5, "batch": 4, "estimates": 2}
    assert {target.verdict for target in render.targets(record)} == {"not judged"}
    assert "trial run" in render.page(record)
    reference = {
        "samples": REFERENCE_SAMPLES,
        "seeds": 100,
        "batch": REFERENCE_BATCH,
        "estimates": NETWORK_ESTIMATES,
    }
    record["settings"] |= reference
    assert {target.verdict for target in render.targets(record)} <= {"met", "NOT MET"}
    assert "trial run" not in render.page(record)
    for name in reference:
        record["settings"] |= reference | {name: 5}
        verdicts = [target.verdict for target in render.targets(record)]
        assert 0 < verdicts.count("not judged") < len(verdicts)
        assert "trial run" in render.page(record)


def test_a_ceiling_is_met_up_to_its_own_value() -> None:
    assert render.Target("", 2.0, 2.0, True).verdict == "met"
    assert render.Target("", 2.01, 2.0, True).verdict == "NOT MET"
    assert render.Target("", 2.0041, 2.0, True).shown == "2.004"
    assert render.Target("", 2.01, 2.0, True).shown == "2.01"
    assert render.Target("", 1.999, 2.0, True).shown == "2.00"
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


@pytest.fixture(autouse=True)
def allocator(monkeypatch) -> list[str]:
    """Keep this process's allocator as it is; note what it would be told."""
    told: list[str] = []
    for module in (measuring, steps):
        for name in ("return_freed_memory", "keep_freed_memory"):
            monkeypatch.setattr(module, name, lambda name=name: told.append(name))
    return told


def test_time_is_for_one_and_memory_counts_what_the_action_touches(monkeypatch, allocator) -> None:
    mebibytes, pause = 64, 0.05

    def action() -> torch.Tensor:
        touched = torch.ones(mebibytes * 2**18, dtype=torch.float32, device="cpu")
        time.sleep(pause)
        return touched[:3].clone()

    monkeypatch.setitem(with_torch.WAYS, "pause", {"tool": lambda problem: Work(action, count=2)})
    settings = Settings(1, repeats=1, enough=0)
    # Earlier tests of this process may have left free memory, which the action would take first.
    ctypes.CDLL(None).malloc_trim(0)
    row = measure("benchmarks.with_torch", "pause", "ResNet-20", "tool", settings)
    assert row.seconds >= pause / 2
    assert row.vector.tolist() == [1.0, 1.0, 1.0]
    assert allocator == ["return_freed_memory", "keep_freed_memory"]
    # A process may hold some free memory, and the system counts pages in batches.
    assert 0.9 * mebibytes <= row.peak / 2**20 <= 2 * mebibytes


@pytest.mark.parametrize(
    ("seconds", "settings", "gradients", "calls"),
    [
        # Units of 1, 3, 1, 3, … seconds: a call lies between two that are 2 on average.
        (4.0, Settings(1, repeats=3, enough=0), 2.0, 3),
        (4.0, Settings(1, repeats=3, enough=15), 2.0, 4),
        (4.0, Settings(1, repeats=3, enough=1e9), 2.0, 9),
        (12.0, Settings(1, repeats=3, enough=1e9, longest=10.0), 6.0, 1),
    ],
)
def test_a_call_is_compared_with_the_units_around_it(
    seconds: float, settings: Settings, gradients: float, calls: int, monkeypatch
) -> None:
    units = itertools.cycle([1.0, 3.0])

    def fake(action, device: str) -> tuple[float, object]:
        unit = getattr(action, "__name__", "") == "gradient"
        return (next(units) if unit else seconds), torch.ones(1)

    monkeypatch.setattr(measuring, "timed", fake)
    monkeypatch.setitem(with_torch.WAYS, "fake", {"tool": lambda problem: Work(lambda: None)})
    row = measure("benchmarks.with_torch", "fake", "ResNet-20", "tool", settings)
    assert (row.gradients, row.seconds, row.calls) == (gradients, seconds, calls)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_freed_memory_is_kept_or_given_back_as_the_allocator_is_told() -> None:
    program = """
import sys, torch
from benchmarks import measuring
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
for name in sys.argv[1:]:
    getattr(measuring, name)()
before = resident()
blocks = [torch.ones(2**18, device="cpu") for _ in range(256)]
del blocks[:-1]
print(resident() - before)
"""

    def remaining(*told: str) -> float:
        command = [sys.executable, "-c", program, *told]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout)

    # The program frees all of its 256 blocks of 1 MiB but the last, which holds the heap's end.
    assert remaining("return_freed_memory") < 20
    assert remaining("keep_freed_memory") > 200
    assert remaining("return_freed_memory", "keep_freed_memory") > 200


# -- steps of optimizers ---------------------------------------------------------------------------

KINDS = {kind.key: kind for kind in STEP_KINDS}
SMALL = Settings(batch=2, steps=1)


def step_of(key: str, settings: Settings = SMALL) -> MeasuredStep:
    (tool,) = optimizers.STEPS[key]
    return measure_step("benchmarks.optimizers", key, tool, settings)


def change(found: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def test_every_optimizer_of_this_library_is_timed() -> None:
    model = torch.nn.Linear(2, 2)
    made = {type(way[OURS](model)) for way in optimizers.STEPS.values() if OURS in way}
    public = [getattr(paperkit.optim, name) for name in paperkit.optim.__all__]
    kinds = {k for k in public if isinstance(k, type) and issubclass(k, torch.optim.Optimizer)}
    bases = {base for kind in kinds for base in kind.__mro__[1:]}
    assert made == kinds - bases
    assert list(optimizers.STEPS) == list(KINDS)


@pytest.mark.parametrize("key", list(KINDS))
def test_a_step_calls_its_closure_as_often_as_the_table_says(key: str, device) -> None:
    row = step_of(key, Settings(batch=2, steps=1, device=device.type))
    assert row.closures == KINDS[key].closures
    if key != "sgd":
        # A double backward pass is a gradient, too.
        assert row.evaluations == row.closures + (key == "gradient_regularization")


def test_the_record_has_every_kind_of_step_with_its_closures_counted() -> None:
    rows = {row["quantity"]: row for row in RECORD["steps"] if row["tool"] in (OURS, "torch")}
    assert list(rows) == list(KINDS)
    assert {key: row["closures"] for key, row in rows.items()} == {
        key: kind.closures for key, kind in KINDS.items()
    }
    others = [row for row in RECORD["steps"] if row["difference"] is not None]
    assert [row["tool"] for row in others] == ["pytorch-optimizer"]
    assert not any(render.void(row) for row in others)


def test_time_outside_the_closure_is_told_from_time_inside(monkeypatch) -> None:
    pause = 0.05

    class Slow(torch.optim.SGD):
        def step(self, closure):
            closure()
            time.sleep(pause)
            closure()
            super().step()

    way = {"tool": lambda model: Slow(model.parameters(), **BASE_OPTIONS)}
    monkeypatch.setitem(optimizers.STEPS, "sam", way)
    row = step_of("sam")
    assert row.outside >= pause
    assert row.closures == 2 and row.evaluations is None
    assert row.percent == pytest.approx(100 * row.outside / row.inside, rel=1e-12)
    gradient = TimedClosure._gradient
    monkeypatch.setattr(
        TimedClosure, "_gradient", lambda self: (time.sleep(1.0), gradient(self))[1]
    )
    row = step_of("sam")
    assert row.inside >= 2.0


def test_steps_that_are_not_alike_are_refused(monkeypatch) -> None:
    class Uneven(torch.optim.SGD):
        count = 0

        def step(self, closure):
            self.count += 1
            for _ in range(self.count):
                closure()

    way = {"tool": lambda model: Uneven(model.parameters())}
    monkeypatch.setitem(optimizers.STEPS, "sgd", way)
    with pytest.raises(RuntimeError, match="not alike"):
        step_of("sgd", Settings(batch=2, steps=2))


def test_another_radius_would_be_another_step(monkeypatch) -> None:
    ours = step_of("sam").vector
    assert change(step_of("sam").vector, ours) <= STEP_TOLERANCE
    way = {
        OURS: lambda model: paperkit.optim.SAM(
            model.parameters(), rho=1.1 * SAM_RADIUS, **BASE_OPTIONS
        )
    }
    monkeypatch.setitem(optimizers.STEPS, "sam", way)
    assert change(step_of("sam").vector, ours) > STEP_TOLERANCE


def test_a_void_step_shows_no_time_and_a_faster_one_is_a_weakness() -> None:
    record = copy.deepcopy(RECORD)
    (other,) = (row for row in record["steps"] if row["difference"] is not None)
    ours = next(row for row in record["steps"] if row["quantity"] == "sam")
    other["percent"] = 0.5 * ours["percent"]
    assert f"{other['tool']} spends {render.number(other['percent'])} %" in render.page(record)
    other["difference"] = 2 * STEP_TOLERANCE
    text = render.page(record)
    assert "| void | void | void |" in text
    assert f"{other['tool']} spends" not in text


def test_a_part_of_a_record_has_its_own_ceilings_only() -> None:
    counts = []
    for group in ("rows", "networks", "traces", "steps"):
        part = {"settings": RECORD["settings"], group: RECORD[group]}
        counts.append(len(render.targets(part)))
        assert render.console_summary(part)
    assert sum(counts) == len(render.targets(RECORD))
    assert counts[1:] == [1, 1, 1]


def test_the_other_libraries_are_pinned_exactly() -> None:
    text = (render.ROOT / "benchmarks" / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)


# -- other people's networks -----------------------------------------------------------------------


def small_problem() -> Problem:
    generator = torch.Generator(device="cpu").manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
        ).eval()
    inputs = torch.randn(5, 4, generator=generator, device="cpu")
    targets = torch.randint(0, 3, (5,), generator=generator, device="cpu")
    return Problem(model, inputs, targets)


def network(reference: str, density: tuple[int, int, int] = (0, 0, 0)) -> networks.Network:
    return networks.Network(
        name="small",
        build=lambda: small_problem().model,
        inputs=lambda digits: digits,
        samples=5,
        steps=0,
        rate=0.1,
        estimates=2,
        reference=reference,
        density=density,
    )


def test_references_without_the_matrix_are_those_of_the_matrix(monkeypatch) -> None:
    problem = small_problem()
    d = references.dimension(problem.model)
    exact = references.references(network("dense"), problem)
    # By another program than either: torch.func's Hessian of the flat parameters.
    shapes = {name: p.shape for name, p in problem.model.named_parameters()}

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        weights = {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        outputs = torch.func.functional_call(problem.model, weights, (problem.inputs.double(),))
        return torch.nn.functional.cross_entropy(outputs, problem.targets)

    flat = torch.cat([p.detach().flatten() for p in problem.model.parameters()]).double()
    matrix = torch.func.hessian(loss)(flat)
    values = torch.linalg.eigvalsh(matrix)
    assert exact.trace == pytest.approx(float(matrix.trace()), rel=1e-10)
    torch.testing.assert_close(exact.nodes, values, rtol=0, atol=1e-10)
    product = matrix @ references.direction(problem.model, 1).double()
    torch.testing.assert_close(exact.products[1], product, rtol=0, atol=1e-10)

    monkeypatch.setattr(references, "REMAINDER_PROBES", 200)
    probed = references.references(network("probes", (5, 4, d)), problem)
    assert probed.trace_error > 0
    assert abs(probed.trace - exact.trace) <= 4 * probed.trace_error
    torch.testing.assert_close(probed.top, exact.top, rtol=0, atol=1e-8)
    # The five largest by themselves, with the rules of four probes for the others.
    assert float(probed.weights.sum()) == pytest.approx(1, rel=1e-6)
    found = float((probed.weights * probed.nodes).sum())
    spread = float(values[:-5].square().sum() * 2) ** 0.5 / d / 2
    assert abs(found - exact.trace / d) <= 4 * spread


def test_the_gauss_newton_trace_is_the_whole_only_without_a_diagonal() -> None:
    problem = networks.in_double_precision(small_problem())
    with pytest.raises(RuntimeError, match="diagonal"):
        references.refuse_a_diagonal(problem)
    problem.model[1] = torch.nn.ReLU()
    references.refuse_a_diagonal(problem)
    hessian = references.dense(references.hessian_of(problem), references.dimension(problem.model))
    trace = references.gauss_newton_trace(problem)
    assert trace == pytest.approx(float(hessian.trace()), rel=1e-10)


@pytest.mark.parametrize("quantity", NETWORK_QUANTITIES)
def test_a_plain_program_and_this_library_find_what_the_reference_is(quantity: str) -> None:
    problem = small_problem()
    reference = references.references(network("dense"), problem)
    # Probes leave more open than a test of units and signs needs.
    bound = 1e-4 if quantity == "product" else 1.0
    for module in (with_paperkit, with_torch):
        for way in module.NETWORKS[quantity].values():
            found = way(problem)(0)
            assert comparing.error_of(quantity, found, reference, 0) < bound
            assert 0 < found.products <= max(NETWORK_PRODUCTS, references.dimension(problem.model))
            if quantity == "top":  # no Ritz value exceeds the eigenvalue of its place
                assert bool((found.values.double() <= reference.top + 1e-5).all())


def test_the_error_of_a_density_is_the_distance_of_two_sets_of_points() -> None:
    here = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    even = torch.full((3,), 1 / 3, dtype=torch.float64)
    reference = references.Reference(0.0, 0.0, here, here, even, 0.0)
    assert reference.scale == pytest.approx(4 / 3)
    found = comparing.Estimate(here + 0.5, 1, even)
    assert comparing.error_of("density", found, reference, 0) == pytest.approx(0.5 / (4 / 3))
    assert comparing.error_of("density", comparing.Estimate(here, 1, even), reference, 0) == 0


def test_the_spread_of_a_root_mean_square_comes_from_its_seeds() -> None:
    value, spread = comparing.root_mean_square([3.0, -3.0, 3.0])
    assert (value, spread) == (3.0, 0.0)
    assert comparing.root_mean_square([2.0])[1] == math.inf
    # The variance of the mean of x² is 2 σ⁴ / m, so that of its root is σ² / (2 m).
    errors = np.random.default_rng(0).normal(size=20000)
    value, spread = comparing.root_mean_square(list(errors))
    assert spread == pytest.approx(value / math.sqrt(2 * len(errors)), rel=0.05)


@pytest.fixture
def prepared(tmp_path, monkeypatch) -> str:
    """A small network in place of the others, trained and with its references on disk."""
    small = network("dense")
    monkeypatch.setitem(networks.BY_NAME, "small", small)
    monkeypatch.setattr(comparing, "trained", lambda network, device: small_problem())
    # The limit would stay with this process.
    monkeypatch.setattr(comparing, "_limit_memory", lambda: None)
    for name in ("return_freed_memory", "keep_freed_memory"):
        monkeypatch.setattr(comparing, name, lambda: None)
    found = comparing.prepare("small", tmp_path, Settings())
    assert found["parameters"] == references.dimension(small_problem().model)
    assert json.loads(json.dumps(found)) == found
    return "small"


def compared(tool: str, folder, quantity: str = "product") -> comparing.Compared:
    module = "benchmarks.with_torch"
    return comparing.compare(module, "small", quantity, tool, folder, Settings())


def test_each_seed_has_an_error_and_the_first_call_no_time(prepared: str, tmp_path) -> None:
    row = compared(with_torch.AUTOGRAD, tmp_path)
    assert (row.network, row.quantity, row.tool) == (prepared, "product", with_torch.AUTOGRAD)
    assert len(row.errors) == 2 and max(row.errors) < 1e-4
    assert row.products == 1 and row.calls == 1 and row.gradients > 0
    assert json.loads(json.dumps(row.record())) == row.record()


def test_a_tool_that_raises_says_so_in_its_row(prepared: str, tmp_path, monkeypatch) -> None:
    def fails(problem: Problem):
        raise NotImplementedError("no rule for this\nand a long trace")

    monkeypatch.setitem(with_torch.NETWORKS["product"], "failing", fails)
    row = compared("failing", tmp_path)
    assert row.errors == [] and row.gradients is None
    assert row.remark == "NotImplementedError: no rule for this"


def network_record() -> dict:
    """Return the record with a made-up part on one network."""
    rows = [
        comparing.Compared(
            "small", quantity, tool, 30, errors, cost, 0.1, 0.01, 2**20, len(errors) - 1
        ).record()
        for quantity in NETWORK_QUANTITIES
        for tool, errors, cost in ((OURS, [0.10, 0.11, 0.09], 5.0), ("other", [0.2, 0.19], 4.0))
    ]
    rows.append(comparing.Compared("small", "trace", "unable", remark="Error: a | b").record())
    found = {
        "name": "small",
        "samples": 5,
        "parameters": 51,
        "steps": 3,
        "loss": 0.5,
        "trace": 2.0,
        "trace_error": 0.01,
        "top": [1.0, 0.5],
        "reference": "probes",
        "density": [5, 4, 30],
        "density_moved": 0.01,
        "seconds": 1.0,
    }
    record = copy.deepcopy(RECORD)
    record["settings"]["estimates"] = NETWORK_ESTIMATES
    record["networks"] = {"prepared": [found], "rows": rows}
    return record


def test_a_record_with_networks_shows_them_and_one_without_does_not() -> None:
    record = network_record()
    text = render.page(record)
    assert "## Other people's networks" in text
    assert "In no call was another tool both faster and more accurate" in text
    assert "Error: a \\| b" in text
    assert "{" not in text.replace("{doc}", "").replace("```{warning}", "")
    for row in record["networks"]["rows"]:
        assert render.console_compared(row)
    del record["networks"]
    assert "Other people's networks" not in render.page(record)


def row_of(record: dict, quantity: str, tool: str) -> dict:
    rows = record["networks"]["rows"]
    return next(r for r in rows if (r["quantity"], r["tool"]) == (quantity, tool))


def test_a_tool_is_ahead_when_faster_and_more_accurate_than_chance() -> None:
    record = network_record()
    assert render.faster_networks(record) == []
    other = row_of(record, "top", "other")
    other["errors"] = [0.10, 0.09]
    assert [pair[1] for pair in render.faster_networks(record)] == [other]
    assert render.ahead(record) == []
    other["errors"] = [0.01, 0.011]
    assert [pair[1] for pair in render.ahead(record)] == [other]
    (target,) = (t for t in render.targets(record) if "other people's networks" in t.what)
    assert (target.value, target.verdict) == (1, "NOT MET")
    assert "both faster and more accurate** than this library in" in render.page(record)
    other["gradients"] = 6.0
    assert render.ahead(record) == [] and render.faster_networks(record) == []


def test_a_product_is_never_more_accurate_and_a_missing_result_always_less() -> None:
    record = network_record()
    row_of(record, "product", "other")["errors"] = [1e-7, 1e-7]
    assert render.ahead(record) == []
    assert len(render.faster_networks(record)) == 1
    row_of(record, "density", OURS).update(errors=[], gradients=None, remark="Error")
    assert [pair[1]["quantity"] for pair in render.ahead(record)] == ["density"]
    assert "this library no result" in render.page(record)


def test_a_measure_is_compared_with_the_fastest_plain_program() -> None:
    record = copy.deepcopy(RECORD)
    plain = [r for r in record["rows"] if r["quantity"] == "sharpness" and r["tool"] != OURS]
    (quantity,) = (q for q in QUANTITIES if q.key == "sharpness")
    (ours,) = (r for r in record["rows"] if r["quantity"] == "sharpness" and r["tool"] == OURS)
    for cost, row in enumerate(plain, start=2):
        row["gradients"] = cost * ours["gradients"]
    # The record has two plain programs, and a library that does not count among them.
    assert render.over_the_plain_program(record, quantity) == pytest.approx(1 / 2)
    plain[0]["difference"] = 1.0
    assert render.over_the_plain_program(record, quantity) == pytest.approx(1 / 3)
    measured = [q for q in QUANTITIES if q.measure]
    shown = [t for t in render.targets(record) if "over the plain program" in t.what]
    assert len(shown) == len(measured)


def test_names_that_the_benchmark_imports_from_the_library_exist():
    """Files that import other libraries cannot be imported without them, so they are read."""
    imported = [
        (node.module, alias.name)
        for path in Path(render.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paperkit")
        for alias in node.names
    ]
    assert imported
    missing = [f"{m}.{n}" for m, n in imported if not hasattr(importlib.import_module(m), n)]
    assert not missing


# --- throughput -----------------------------------------------------------------------------------


def test_the_throughput_is_measured_both_ways_and_a_quick_run_judges_nothing(
    tmp_path, monkeypatch, capsys
):
    from benchmarks import throughput
    from paperkit.experiments import studies

    monkeypatch.setattr(studies, "__path__", list(studies.__path__))
    threads = torch.get_num_threads()
    try:
        assert throughput.main(["--quick", "--output", str(tmp_path / "figures.json")]) == 2
    finally:
        torch.set_num_threads(threads)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["loop"]) == 2 and len(figures["study"]) == 3
    assert all(seconds > 0 for seconds in figures["study"].values())
    assert "do not count" in capsys.readouterr().out


@pytest.mark.parametrize(("loop", "two", "status"), [(1.01, 5, 0), (1.03, 5, 1), (1.01, 7, 1)])
def test_a_bound_on_the_throughput_that_is_broken_is_said(loop, two, status, monkeypatch):
    from benchmarks import throughput

    seconds = {"one process, one core": 10.0, "two processes, a core each": float(two)}
    monkeypatch.setattr(throughput, "loop_ratio", lambda epochs, repeats: [loop])
    monkeypatch.setattr(throughput, "study_seconds", lambda profile: seconds)
    monkeypatch.setattr(throughput.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert throughput.main([]) == status
