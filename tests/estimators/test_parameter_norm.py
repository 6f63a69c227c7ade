"""The norm of the parameters: which of them count, and that nothing overflows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from paperkit.estimators.parameter_norm import parameter_norm, weight_names


def _network() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(3.0 if name.endswith("weight") else 4.0)
    return model


def test_weights_are_the_tensors_with_several_axes() -> None:
    assert weight_names(_network()) == ["0.weight", "3.weight"]


def test_norm_of_weights_leaves_biases_and_normalisation_out() -> None:
    assert float(parameter_norm(_network())) == pytest.approx(math.sqrt((8 + 16) * 9), rel=1e-15)


def test_norm_of_all_parameters_counts_each_entry_once() -> None:
    square = (8 + 16 + 2) * 9 + (2 + 2 + 2) * 16
    assert float(parameter_norm(_network(), "all", squared=True)) == pytest.approx(
        square, rel=1e-15
    )


def test_a_weight_that_two_modules_share_counts_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert float(parameter_norm(model)) == pytest.approx(
        float(model[0].weight.detach().double().norm()), rel=1e-15
    )


def test_half_precision_does_not_overflow() -> None:
    model = nn.Linear(4, 1, bias=False).half()
    nn.init.constant_(model.weight, 2.0**15)
    assert float(parameter_norm(model)) == 2.0**16


def test_norm_runs_on_the_models_device(device: torch.device, explicit_devices) -> None:
    model = _network().to(device)
    with explicit_devices():
        assert float(parameter_norm(model)) == pytest.approx(math.sqrt(216), rel=1e-15)


@pytest.mark.parametrize("entry", [math.nan, math.inf])
def test_parameters_that_are_not_finite_are_refused(entry: float) -> None:
    model = _network()
    with torch.no_grad():
        model[3].weight[0, 0] = entry
    with pytest.raises(ValueError, match="NaN or infinite"):
        parameter_norm(model)


def test_bad_arguments_are_refused_with_their_names() -> None:
    with pytest.raises(ValueError, match="parameters='some'"):
        parameter_norm(_network(), "some")
    with pytest.raises(ValueError, match="no weight tensor"):
        parameter_norm(nn.BatchNorm1d(3))
