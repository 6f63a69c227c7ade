"""One call, every measure: each equals what its own function returns."""

import pandas as pd
import pytest
import torch
from networks import CASES
from torch import nn

import paperkit.estimators as estimators
from paperkit.estimators import DEFAULT_MEASURES, MEASURES, PASS_MEASURES, measure
from paperkit.linearize.linearize import held_bytes

# What differs from the function of the same name.
SPECIAL = {"adaptive_weight_sharpness", "relative_flatness"}


def flat(result):
    if isinstance(result, dict):
        return [value for one in result.values() for value in flat(one)]
    return [float(result)]


@pytest.mark.parametrize("tight", [False, True], ids=["one chunk", "several chunks"])
@pytest.mark.parametrize("number", [0, 4, 7], ids=lambda number: CASES[number].name)
def test_every_measure_of_the_pass_equals_its_own_function(number, tight, device):
    model, inputs, targets = CASES[number].make(20, device=device)
    # Half of it holds the pairs of three quarters of the samples.
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
    report = measure(model, data, sorted(SPECIAL), memory_budget=held_bytes(model, inputs))
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
    model, inputs, targets = CASES[0].make(12, device=device)
    report = measure(model, [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])], "all")
    assert list(report) == list(MEASURES)
    frame = report.frame()
    assert isinstance(frame, pd.DataFrame)
    assert set(frame["measure"]) == set(MEASURES)
    assert set(frame["n"]) == {12, 0}  # the parameter norm needs no sample
    assert frame["value"].notna().all()
    assert "renyi_sharpness" in repr(report) and "<table" in report._repr_html_()


def test_a_single_result_is_found_by_measure_layer_and_order(device):
    model, inputs, targets = CASES[0].make(device=device)
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
        ([], "choose among"),
        ("mean_loss", "pass a list of names"),
    ],
)
def test_unknown_names_are_refused(measures, message, device):
    model, inputs, targets = CASES[0].make(device=device)
    with pytest.raises(ValueError, match=message):
        measure(model, (inputs, targets), measures)


def test_every_tensor_names_its_device(explicit_devices, device):
    model, inputs, targets = CASES[4].make(device=device)
    with explicit_devices():
        measure(model, (inputs, targets))
