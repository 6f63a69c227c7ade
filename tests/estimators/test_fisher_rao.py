"""The Fisher–Rao norm against dense quadratic forms and variances of logits."""

from __future__ import annotations

import pytest
import torch
from helpers import every_case, every_loss, gaussian, random_labels, targets_for
from networks import NAMED, Case
from torch import nn

from paperkit.curvature import dense_empirical_fisher, dense_gauss_newton
from paperkit.estimators.fisher_rao import fisher_rao_norm

RELU_MLP = NAMED["relu MLP"]


@every_case
@every_loss
def test_fisher_rao_norms_are_the_dense_quadratic_forms(
    case: Case, loss: str, device: torch.device
) -> None:
    model, inputs, targets = case.make(n=9, device=device)
    targets = targets_for(loss, targets)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    halves = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    matrices = {
        "model": dense_gauss_newton(model, inputs, loss),
        "observed": dense_empirical_fisher(model, inputs, targets, loss),
    }
    for name, matrix in matrices.items():
        value = float(fisher_rao_norm(model, halves, loss, labels=name))
        assert value == pytest.approx(float(theta @ matrix @ theta), rel=1e-10)


def homogeneous(activation: type[nn.Module]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Linear(6, 8, bias=False),
            activation(),
            nn.Linear(8, 7, bias=False),
            activation(),
            nn.Linear(7, 4, bias=False),
        ).double()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
def test_fisher_rao_norm_of_a_homogeneous_network_is_a_variance_of_its_logits(
    activation: type[nn.Module],
) -> None:
    model, inputs, targets = homogeneous(activation), 3 * gaussian(30, 6), random_labels(30, 4)
    outputs = model(inputs).detach()
    p = torch.softmax(outputs, dim=1)
    mean = (p * outputs).sum(dim=1)
    variance = (p * outputs.square()).sum(dim=1) - mean.square()
    norm = fisher_rao_norm(model, (inputs, targets))
    assert float(norm) == pytest.approx(9 * float(variance.mean()), rel=1e-10)
    margin = mean - outputs.gather(1, targets.unsqueeze(1)).squeeze(1)
    observed = fisher_rao_norm(model, (inputs, targets), labels="observed")
    assert float(observed) == pytest.approx(9 * float(margin.square().mean()), rel=1e-10)


def test_fisher_rao_norm_of_a_tanh_network_is_not() -> None:
    model, inputs, targets = homogeneous(nn.Tanh), 3 * gaussian(30, 6), random_labels(30, 4)
    outputs = model(inputs).detach()
    p = torch.softmax(outputs, dim=1)
    variance = (p * outputs.square()).sum(dim=1) - (p * outputs).sum(dim=1).square()
    norm = float(fisher_rao_norm(model, (inputs, targets)))
    assert abs(norm / (9 * float(variance.mean())) - 1) > 0.1


def test_bad_arguments_are_refused_by_name() -> None:
    model, inputs, targets = RELU_MLP.make(n=6)
    with pytest.raises(ValueError, match="labels='true'"):
        fisher_rao_norm(model, (inputs, targets), labels="true")
    with pytest.raises(ValueError, match="labels must lie in"):
        fisher_rao_norm(model, (inputs, targets + 5))


@pytest.mark.parametrize("name", ["model", "observed"])
def test_the_measure_stays_on_the_models_device(
    name: str, device: torch.device, explicit_devices
) -> None:
    model, inputs, targets = RELU_MLP.make(n=4, device=device)
    with explicit_devices():
        fisher_rao_norm(model, (inputs, targets), labels=name)
