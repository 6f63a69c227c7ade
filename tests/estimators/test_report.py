"""One call, every measure: each equals what its own function returns."""

import pandas as pd
import pytest
import torch
from networks import CASES, NAMED
from torch import nn

import paperkit.estimators as estimators
from paperkit.estimators import DEFAULT_MEASURES, MEASURES, PASS_MEASURES, measure, plan
from paperkit.linearize.costs import held_bytes

# Measures whose value in a report differs from that of their own function's default call.
SPECIAL = {"adaptive_weight_sharpness", "relative_flatness"}


def flat(result):
    if isinstance(result, dict):
        return [value for one in result.values() for value in flat(one)]
    return [float(result)]


@pytest.mark.parametrize("tight", [False, True], ids=["one chunk", "several chunks"])
@pytest.mark.parametrize("number", [0, 4, 7], ids=lambda number: CASES[number].name)
def test_every_measure_of_the_pass_equals_its_own_function(number, tight, device):
    model, inputs, targets = CASES[number].make(20, device=device)
    # A loop gives a chunk half of the budget, which holds the pairs of three quarters of the
    # samples.
    budget = 3 * held_bytes(model, inputs) // 2 if tight else 2**30
    # Spectra and row spaces cannot be had from a few samples at a time.
    joint = ("renyi_sharpness", "information_geometric_sharpness")
    names = [name for name in PASS_MEASURES if not tight or name not in joint]
    report = measure(model, (inputs, targets), names, memory_budget=budget)
    assert list(report) == names
    for name in set(names) - SPECIAL:
        function = getattr(estimators, name)
        expected = flat(function(model, (inputs, targets)))
        found = flat(report[name])
        # A Gram matrix and a factorization agree to half of the digits and more.
        assert found == pytest.approx(expected, rel=1e-7), name


@pytest.mark.parametrize("number", [0, 4, 7], ids=lambda number: CASES[number].name)
def test_flatness_and_adaptive_sharpness_are_those_of_the_weights(number, device):
    model, inputs, targets = CASES[number].make(20, device=device)
    data = (inputs, targets)
    budget = held_bytes(model, inputs)
    report = measure(model, data, sorted(SPECIAL), products=1000, memory_budget=budget)
    assert flat(report["relative_flatness"]) == pytest.approx(
        flat(estimators.relative_flatness(model, data)), rel=1e-10
    )
    modules = (nn.Linear, nn.Conv1d, nn.Conv2d)
    weights = [f"{name}.weight" for name, m in model.named_modules() if isinstance(m, modules)]
    expected = estimators.adaptive_sharpness(model, data, parameters=weights)
    assert float(report["adaptive_weight_sharpness"]) == pytest.approx(float(expected), rel=1e-10)


def test_the_default_leaves_out_only_what_takes_many_passes():
    assert set(DEFAULT_MEASURES) < set(MEASURES)
    assert {"hessian_trace", "sam_sharpness"} <= set(MEASURES) - set(DEFAULT_MEASURES)


def test_all_measures_in_one_call(device):
    model, inputs, targets = NAMED["relu MLP"].make(12, device=device)
    report = measure(model, [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])], "all")
    assert list(report) == list(MEASURES)
    frame = report.frame()
    assert isinstance(frame, pd.DataFrame)
    assert set(frame["measure"]) == set(MEASURES)
    assert set(frame["n"]) == {12, 0}  # the parameter norm needs no sample
    assert frame["value"].notna().all()
    assert "renyi_sharpness" in repr(report) and "<table" in report._repr_html_()


def test_a_single_result_is_found_by_measure_layer_and_order(device):
    model, inputs, targets = NAMED["relu MLP"].make(device=device)
    report = measure(model, (inputs, targets), ["renyi_sharpness"], alpha=(0.5,))
    one = report["renyi_sharpness"]["0"][0.5]
    assert one.layer == "0" and one.alpha == 0.5
    assert len(report.measurements()) == len(report.frame()) == 3


def test_a_network_that_reads_integers_has_no_input_sensitivity_but_the_rest(device):
    model = nn.Sequential(
        nn.Embedding(7, 4, device=device, dtype=torch.float64),
        nn.Flatten(),
        nn.Linear(12, 5, device=device, dtype=torch.float64),
        nn.ReLU(),
        nn.Linear(5, 3, device=device, dtype=torch.float64),
    )
    inputs = torch.arange(12, device=device).reshape(4, 3) % 7
    targets = torch.arange(4, device=device) % 3
    measure(model, (inputs, targets), ["network_maximum_local_sensitivity", "gauss_newton_trace"])
    with pytest.raises(ValueError, match="not a floating-point tensor"):
        measure(model, (inputs, targets), ["maximum_local_sensitivity"])


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        (["sharpness"], "choose among"),
        ([], "must be a list of names"),
        ("mean_loss", "pass a list of names"),
    ],
)
def test_unknown_names_are_refused(measures, message, device):
    model, inputs, targets = NAMED["relu MLP"].make(device=device)
    with pytest.raises(ValueError, match=message):
        measure(model, (inputs, targets), measures)


class Backbone(nn.Module):
    """Its first layer runs without a graph, its second is tied to nothing, its third is dead."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.free = nn.Linear(6, 5), nn.Linear(5, 4)
        self.dead, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs):
        with torch.no_grad():
            inputs = self.frozen(inputs).tanh()
        hidden = self.free(inputs).relu()
        return self.head(hidden + 0.0 * self.dead(hidden).relu())


def backbone(device):
    torch.manual_seed(0)
    model = Backbone().to(device, torch.float64)
    inputs = torch.randn(7, 6, dtype=torch.float64, device="cpu").to(device)
    return model, (inputs, torch.arange(7, device=device) % 3)


def test_a_default_report_holds_what_can_be_had_and_says_why_the_rest_is_missing(device):
    model, data = backbone(device)
    report = measure(model, data)
    assert set(report) | set(report.missing) == set(DEFAULT_MEASURES)
    assert {"mean_loss", "parameter_norm"} <= set(report)
    assert "fisher_rao_norm" in report.missing
    for name, reason in report.missing.items():
        assert f"not computed: {name}: {reason}" in repr(report)
        assert name in report._repr_html_()
    with pytest.raises(KeyError, match="fisher_rao_norm was not computed: "):
        report["fisher_rao_norm"]


def test_a_named_measure_is_refused_and_strict_decides_otherwise(device):
    model, data = backbone(device)
    with pytest.raises(ValueError, match="frozen"):
        measure(model, data, ["mean_loss", "fisher_rao_norm"])
    with pytest.raises((ValueError, RuntimeError)):
        measure(model, data, strict=True)
    partial = measure(model, data, ["mean_loss", "fisher_rao_norm"], strict=False)
    assert list(partial) == ["mean_loss"] and list(partial.missing) == ["fisher_rao_norm"]
    with pytest.raises(ValueError, match="none of them can be computed; fisher_rao_norm: "):
        measure(model, data, ["fisher_rao_norm"], strict=False)


def test_what_is_wrong_with_the_data_ends_a_default_report_too(device):
    model, (inputs, targets) = backbone(device)
    with pytest.raises(ValueError, match="labels must lie in"):
        measure(model, (inputs, targets + 3))
    with pytest.raises(ValueError, match="NaN"):
        measure(model, (inputs * torch.nan, targets))


def test_layers_restrict_what_is_measured_layer_by_layer(device):
    model, inputs, targets = NAMED["relu MLP"].make(10, device=device)
    data = (inputs, targets)
    whole = measure(model, data)
    some = measure(model, data, layers=["0", "4"])
    assert list(some["renyi_sharpness"]) == ["0", "4"]
    assert list(some["layer_gauss_newton_traces"]) == ["0", "4"]
    assert list(some["relative_flatness"]) == ["0", "4"]
    for name in ("gauss_newton_trace", "information_geometric_sharpness", "local_dimension"):
        assert float(some[name]) == pytest.approx(float(whole[name]), rel=1e-9), name
    weights = ["0.weight", "4.weight"]
    expected = estimators.adaptive_sharpness(model, data, parameters=weights)
    assert float(some["adaptive_weight_sharpness"]) == pytest.approx(float(expected), rel=1e-9)
    with pytest.raises(ValueError, match="layers"):
        measure(model, data, layers=["nowhere"])


def test_the_share_of_the_parameters_that_layers_cover_is_stated(device):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)
    ).to(device, torch.float64)
    inputs = torch.arange(12, device=device).reshape(4, 3) % 7
    report = measure(model, (inputs, torch.arange(4, device=device) % 3), layers=["2", "4"])
    total = sum(parameter.numel() for parameter in model.parameters())
    assert report.coverage == pytest.approx((60 + 15) / total)
    assert report.uncovered == ("0.weight",)
    assert "not the weights 0.weight" in repr(report)


def test_very_many_outputs_are_left_out_of_a_default_report_but_not_of_a_named_one(
    device, monkeypatch
):
    monkeypatch.setattr(plan, "_NO_COST", 0.0)  # else a network so small is measured whole
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 120)).to(device, torch.float64)
    inputs = torch.randn(3, 5, dtype=torch.float64, device="cpu").to(device)
    data = (inputs, torch.arange(3, device=device))
    report = measure(model, data)
    assert "each of the 120 outputs, about 49 gradients" in report.missing["local_dimension"]
    assert "fisher_rao_norm" in report
    assert list(measure(model, data, ["local_dimension"])) == ["local_dimension"]


def test_every_tensor_names_its_device(explicit_devices, device):
    model, inputs, targets = NAMED["residual"].make(device=device)
    with explicit_devices():
        measure(model, (inputs, targets))
