"""A pass that measures share: what it records, what it holds, and measures of one's own."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch
from helpers import every_case, gaussian
from networks import NAMED, Case
from torch import Tensor, nn

import paperkit.estimators as estimators
from paperkit.estimators import DEFAULT_MEASURES, Measurement, PassMeasure, Problem, measure
from paperkit.estimators.passes import Chunk, run_alone, run_pass
from paperkit.estimators.registry import SHARED
from paperkit.linearize.costs import held_bytes
from paperkit.memory import MemoryBudgetError
from paperkit.network.losses import get_loss


def problem_of(case: Case, n: int = 12, **options) -> Problem:
    model, inputs, targets = case.make(n)
    return Problem.of(model, (inputs, targets), loss=get_loss("cross_entropy"), **options)


def mean_of(values, needs=("pairs",), name: str = "own") -> PassMeasure:
    def finish(parts: list[Tensor], _: Problem) -> Measurement:
        every = torch.cat(parts)
        return Measurement(value=float(every.mean()), measure=name, method="exact", n=len(every))

    return PassMeasure(name, finish, values, needs=needs)


def lengths(chunk: Chunk) -> Tensor:
    return chunk.linearization.outputs.norm(dim=1)


# --- one's own measures -------------------------------------------------------------------------


@every_case
def test_a_measure_of_ones_own_stands_beside_the_librarys(case: Case) -> None:
    model, inputs, targets = case.make()
    own = mean_of(lengths, name="length of the outputs")
    report = measure(model, (inputs, targets), ["gauss_newton_trace", own, "mean_loss"])
    assert list(report) == ["gauss_newton_trace", "length of the outputs", "mean_loss"]
    with torch.no_grad():
        expected = float(model.eval()(inputs).norm(dim=1).mean())
    assert float(report["length of the outputs"]) == pytest.approx(expected, rel=1e-12)
    assert "length of the outputs" in repr(report)
    alone = estimators.gauss_newton_trace(model, (inputs, targets))
    assert report["gauss_newton_trace"] == alone


def test_a_measure_of_ones_own_that_fails_ends_the_call_or_is_missing() -> None:
    model, inputs, targets = NAMED["LeNet"].make()

    def refuse(chunk: Chunk) -> Tensor:
        raise ValueError("it is not for these data.")

    own = mean_of(refuse)
    with pytest.raises(ValueError, match="not for these data"):
        measure(model, (inputs, targets), ["mean_loss", own])
    report = measure(model, (inputs, targets), ["log_volume", own], strict=False)
    assert list(report) == ["log_volume"]
    assert report.missing == {"own": "it is not for these data."}


def test_a_measure_of_ones_own_that_returns_nothing_is_told_so() -> None:
    model, inputs, targets = NAMED["LeNet"].make()
    own = PassMeasure("own", lambda parts, problem: None, lengths)
    with pytest.raises(TypeError, match="finish of the measure 'own' returned a NoneType"):
        measure(model, (inputs, targets), [own])


def test_a_joint_measure_of_ones_own_gets_all_samples_or_goes_another_way() -> None:
    model, inputs, targets = NAMED["LeNet"].make(20)

    def count(whole, problem: Problem) -> Measurement:
        return Measurement(value=float(whole.num_samples), measure="count", method="joint", n=20)

    def otherwise(problem: Problem) -> Measurement:
        return Measurement(value=-1.0, measure="count", method="otherwise", n=20)

    data, held = (inputs, targets), held_bytes(model, inputs)
    both = PassMeasure("count", count, otherwise=otherwise)
    assert float(measure(model, data, [both])["count"]) == 20
    assert float(measure(model, data, [both], memory_budget=held)["count"]) == -1
    with pytest.raises(MemoryBudgetError, match="too small for count"):
        measure(model, data, [PassMeasure("count", count)], memory_budget=held)


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        ([mean_of(lengths, name="mean_loss")], "two measures named 'mean_loss'"),
        ([mean_of(lengths), mean_of(lengths)], "two measures named 'own'"),
        ([mean_of(lengths), "nowhere"], "choose among"),
    ],
)
def test_names_that_clash_or_are_unknown_are_refused(measures, message) -> None:
    model, inputs, targets = NAMED["LeNet"].make()
    with pytest.raises(ValueError, match=message):
        measure(model, (inputs, targets), measures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "name=3"),
        ({"finish": None}, "finish=None"),
        ({"of_chunk": "x"}, "of_chunk='x'"),
        ({"otherwise": 1}, "otherwise=1"),
        ({"needs": ("hessian",)}, "needs="),
        ({"needs": ()}, "needs="),
    ],
)
def test_a_measure_that_cannot_be_is_refused(changes, message) -> None:
    valid = {"name": "own", "finish": lambda parts, problem: None, "of_chunk": lengths}
    with pytest.raises((TypeError, ValueError), match=message):
        PassMeasure(**{**valid, **changes})


# --- what a pass records and computes -----------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "needs"),
    [
        (lambda chunk: chunk.inputs, ("pairs",)),
        (lambda chunk: chunk.input_jacobian, ("pairs", "layer_inputs")),
        (lambda chunk: chunk.linearization, ("network_input",)),
    ],
)
def test_what_nobody_needs_is_not_recorded(read, needs) -> None:
    with pytest.raises(ValueError, match="the measure must have"):
        run_alone(mean_of(read, needs), problem_of(NAMED["relu MLP"]))


def test_needs_are_recorded() -> None:
    def check(chunk: Chunk) -> Tensor:
        n, parameters = chunk.num_samples, dict(chunk.problem.model.named_parameters())
        assert chunk.inputs.shape == (n, 8) and chunk.input_jacobian.shape == (n, 3, 8)
        assert list(chunk.layers) == ["0", "2", "4"]
        uses = [use for layer in chunk.layers.values() for use in layer.uses]
        assert all(use.input_jacobian is not None for use in uses)
        blocks = dict(chunk.linearization.jacobian_blocks())
        assert blocks.keys() == parameters.keys()
        return torch.ones(n)

    needs = ("layer_inputs", "network_input", "all_parameters")
    assert run_alone(mean_of(check, needs), problem_of(NAMED["relu MLP"])).n == 12


def test_inputs_alone_are_recorded_without_a_linearization(monkeypatch) -> None:
    def refuse(*_, **__):
        raise AssertionError("a linearization costs more")

    monkeypatch.setattr("paperkit.estimators.passes.linearize_in_chunks", refuse)
    model, inputs, targets = NAMED["LeNet"].make()
    names = [one.name for one in SHARED if one.needs == ("network_input",)]
    assert len(names) == 5
    report = measure(model, (inputs, targets), names)
    for name in names:
        assert report[name] == getattr(estimators, name)(model, (inputs, targets))


def test_what_two_measures_share_is_computed_once() -> None:
    calls = []

    def shared(chunk: Chunk, power: int) -> Tensor:
        calls.append(power)
        return lengths(chunk) ** power

    measures = [
        mean_of(lambda chunk: chunk.once(shared, 2), name="one"),
        mean_of(lambda chunk: chunk.once(shared, 2) + 1, name="two"),
        mean_of(lambda chunk: chunk.once(shared, 3), name="three"),
    ]
    found = run_pass(measures, problem_of(NAMED["LeNet"]))
    assert calls == [2, 3]
    assert float(found["two"]) == pytest.approx(float(found["one"]) + 1, rel=1e-14)


@every_case
def test_a_measure_shared_is_the_measure_alone(case: Case) -> None:
    model, inputs, targets = case.make()
    names = [
        "maximum_local_sensitivity",
        "normalized_maximum_local_sensitivity",
        "input_invariant_local_sensitivity",
        "log_volume",
        "local_dimension",
        "network_maximum_local_sensitivity",
        "network_log_volume",
        "layer_gauss_newton_traces",
        "gauss_newton_trace",
    ]
    report = measure(model, (inputs, targets), names)
    for name in names:
        alone = getattr(estimators, name)(model, (inputs, targets))
        shared = report[name]
        results = [(shared, alone)]
        if isinstance(alone, dict):
            assert list(shared) == list(alone) and shared.left_out == alone.left_out
            results = list(zip(shared.values(), alone.values(), strict=True))
        for one, other in results:
            assert float(one) == pytest.approx(float(other), rel=1e-12, nan_ok=True), name
            assert (one.measure, one.method, one.n) == (other.measure, other.method, other.n)


# --- what a pass holds --------------------------------------------------------------------------


@pytest.mark.parametrize("needs", [("pairs",), ("network_input",), ("pairs", "network_input")])
def test_a_chunk_is_gone_before_the_next_is_made(needs) -> None:
    problem = problem_of(NAMED["LeNet"], 40, memory_budget=60_000)
    alive: list[weakref.ref] = []

    def watch(chunk: Chunk) -> Tensor:
        assert all(one() is None for one in alive)
        if "pairs" in needs:
            alive.append(weakref.ref(chunk.linearization))
        if "network_input" in needs:
            alive.append(weakref.ref(chunk.input_jacobian))
        alive.append(weakref.ref(chunk))
        return torch.ones(chunk.num_samples)

    enabled = gc.isenabled()
    gc.disable()  # reference counts alone have to free it
    try:
        run_alone(mean_of(watch, needs), problem)
    finally:
        if enabled:
            gc.enable()
    assert len(alive) > 3 * len(needs)


@pytest.mark.parametrize("needs", [("pairs",), ("network_input",)])
def test_an_error_leaves_the_model_as_it_was(needs) -> None:
    model, inputs, targets = NAMED["residual"].make()
    model.train()

    def fail(chunk: Chunk) -> Tensor:
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway") as caught:
        measure(model, (inputs, targets), [mean_of(fail, needs)])
    # The traceback, which holds the frames of the pass, is still there.
    assert caught.tb is not None
    assert all(module.training for module in model.modules())
    assert all(not module._forward_hooks for module in model.modules())


# --- plain numbers ------------------------------------------------------------------------------


def test_a_measurement_has_plain_metrics() -> None:
    one = Measurement(value=2.5, measure="a", method="lanczos", n=7, standard_error=0.5)
    assert one.metrics() == {
        "value": 2.5,
        "standard_error": 0.5,
        "n": 7,
        "method": "lanczos",
        "converged": True,
    }
    open_ended = Measurement(value=float("-inf"), measure="a", method="exact", n=7, converged=False)
    assert open_ended.metrics()["value"] is None
    assert open_ended.metrics()["converged"] is False


def test_a_report_has_plain_metrics_by_measure_layer_and_order() -> None:
    model, inputs, targets = NAMED["LeNet"].make()
    report = measure(model, (inputs, targets))
    metrics = report.metrics()
    assert list(metrics) == list(report) == list(DEFAULT_MEASURES)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert metrics["mean_loss"] == report["mean_loss"].metrics()
    sharpness = report["renyi_sharpness"]
    assert metrics["renyi_sharpness"]["6"]["0.5"] == sharpness["6"][0.5].metrics()
    traces = report["layer_gauss_newton_traces"]
    assert metrics["layer_gauss_newton_traces"] == traces.metrics()
    assert traces.metrics()["0"]["value"] == float(traces["0"])


def test_layer_results_in_half_precision_keep_what_they_know() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).bfloat16()
    data = gaussian(5, 4).bfloat16(), torch.tensor([0, 1, 2, 0, 1])
    traces = estimators.layer_gauss_newton_traces(model, data)
    assert "precision" in traces["0"].assumptions
    assert traces.coverage > 0.5 and traces.left_out == {}
    assert list(traces.metrics()) == ["0", "2"]


def test_spectra_have_no_metrics() -> None:
    model, inputs, targets = NAMED["LeNet"].make()
    with pytest.raises(TypeError, match="only a Measurement has metrics"):
        estimators.layer_spectra(model, (inputs, targets)).metrics()


class Twice(nn.Module):
    """One weight under two names; the forward pass calls the first of them first."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 3)
        self.right.weight = self.left.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head((self.left(inputs) + self.right(inputs.flip(1))).relu())


@pytest.mark.parametrize(
    "name", ["relative_flatness", "layer_gauss_newton_traces", "renyi_sharpness"]
)
@pytest.mark.parametrize("beside", [[], ["gauss_newton_trace"]], ids=["alone", "all layers"])
def test_a_weight_is_found_under_each_of_its_names(name: str, beside: list[str]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Twice().double()
    data = gaussian(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    names, products = [name, *beside], 1000  # enough for a block to be exact
    found = measure(model, data, names, layers=["right", "head"], products=products)[name]
    expected = measure(model, data, [name], layers=["left", "head"], products=products)[name]
    assert set(found) == {"right", "head"}
    for mine, other in ((found["right"], expected["left"]), (found["head"], expected["head"])):
        one, two = (v[0.5] if isinstance(v, dict) else v for v in (mine, other))
        assert float(one) == pytest.approx(float(two), rel=1e-9)
    assert (found["right"][0.5] if name == "renyi_sharpness" else found["right"]).layer == "right"
