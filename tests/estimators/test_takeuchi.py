"""Takeuchi's criterion against dense traces, the sharpness, and the gap that it estimates."""

from __future__ import annotations

import pytest
import torch
from helpers import gaussian, random_labels, shallow
from networks import NAMED
from torch import Tensor, nn

from paperkit.curvature import dense_empirical_fisher, dense_hessian
from paperkit.estimators.information_geometry import information_geometric_sharpness
from paperkit.estimators.takeuchi import takeuchi_information_criterion

RELU_MLP = NAMED["relu MLP"]


def test_the_fisher_criterion_is_the_sharpness_over_n() -> None:
    model, inputs, targets = RELU_MLP.make(n=40)
    data = inputs, targets
    criterion = takeuchi_information_criterion(model, data)
    sharpness = float(information_geometric_sharpness(model, data))
    assert float(criterion) == pytest.approx(sharpness / 40, rel=1e-12)


def test_in_softmax_regression_both_curvatures_agree() -> None:
    data = gaussian(60, 5), random_labels(60, 3)
    model = nn.Linear(5, 3).double()
    by_hessian = takeuchi_information_criterion(model, data, curvature="hessian", tolerance=1e-10)
    by_fisher = takeuchi_information_criterion(model, data)
    assert float(by_hessian) == pytest.approx(float(by_fisher), rel=1e-9)
    assert by_hessian.assumptions["negative_eigenvalues"] == 0
    assert by_hessian.assumptions["outside_range"] == pytest.approx(0.0, abs=1e-12)


def test_the_hessian_criterion_is_the_dense_trace_and_counts_negative_curvature() -> None:
    model, inputs, targets = shallow(3, 3, 3), gaussian(30, 3), random_labels(30, 3)
    result = takeuchi_information_criterion(model, (inputs, targets), curvature="hessian")
    hessian = dense_hessian(model, inputs, targets)
    moment = dense_empirical_fisher(model, inputs, targets)
    values, vectors = torch.linalg.eigh(hessian)
    kept = values.abs() > 24 * 2.3e-16 * values.abs().max()
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    assert float(result) == pytest.approx(float((inverse * moment).sum()) / 30, rel=1e-9)
    assert result.assumptions["rank"] == int(kept.sum())
    assert result.assumptions["negative_eigenvalues"] == int((values[kept] < 0).sum()) > 0


class Logistic(nn.Module):
    """Two classes, two parameters: logits (0, wx + b)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        score = self.linear(inputs)
        return torch.cat([torch.zeros_like(score), score], dim=1)


def newton(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Logistic regression by Newton's method for many weightings of the cells: (k, 2)."""
    features = torch.stack([x, torch.ones_like(x)], dim=1)
    theta = torch.zeros(len(weights), 2, dtype=torch.float64)
    for _ in range(25):
        p = torch.sigmoid(theta @ features.T)
        gradient = ((p - y) * weights) @ features
        hessian = torch.einsum("kc,ci,cj->kij", p * (1 - p) * weights, features, features)
        theta = theta - torch.linalg.solve(hessian, gradient.unsqueeze(2)).squeeze(2)
    return theta


def test_n_times_the_gap_tends_to_the_trace_of_the_criterion() -> None:
    # A population of 40 equally likely cells whose log-odds are not linear in x: misspecified.
    x = torch.tensor([-2.0, -1.0, 0.0, 1.5], dtype=torch.float64).repeat_interleave(10)
    ones = torch.tensor([7, 2, 4, 9])
    y = torch.cat([(torch.arange(10) < k).double() for k in ones])
    population = torch.full((1, 40), 1 / 40, dtype=torch.float64)
    optimum = newton(population, x, y)
    model = Logistic().double()
    with torch.no_grad():
        model.linear.weight.fill_(float(optimum[0, 0]))
        model.linear.bias.fill_(float(optimum[0, 1]))
    data = x.unsqueeze(1), y.long()
    trace = 40 * float(takeuchi_information_criterion(model, data, curvature="hessian"))

    n, draws = 2000, 3000
    generator = torch.Generator(device="cpu").manual_seed(0)
    cells = torch.randint(40, (draws, n), generator=generator)
    counts = torch.zeros(draws, 40, dtype=torch.float64)
    counts.scatter_add_(1, cells, torch.ones(draws, n, dtype=torch.float64))
    weights = counts / n
    features = torch.stack([x, torch.ones_like(x)], dim=1)

    def losses(theta: Tensor) -> Tensor:
        return nn.functional.softplus(-(2 * y - 1) * (theta @ features.T))

    fitted, at_optimum = losses(newton(weights, x, y)), losses(optimum)
    # The optimum's own gap has mean zero; taking it away leaves a variance of order one.
    gap = ((population - weights) * (fitted - at_optimum)).sum(dim=1) * n
    error = float(gap.std()) / draws**0.5
    assert error < 0.05 * trace
    assert abs(trace - 2) > 0.02  # the criterion of Akaike would be the number of parameters
    assert float(gap.mean()) == pytest.approx(trace, abs=3 * error)


@pytest.mark.parametrize("curvature", ["fisher", "hessian"])
def test_a_criterion_that_another_tolerance_would_change_shows_both(curvature: str) -> None:
    model, data = nn.Linear(5, 3).double(), (gaussian(60, 5), random_labels(60, 3))
    data[0][:, 4] *= 1e-4
    # Singular values of G, but eigenvalues of H: their squares.
    tolerance = 1e-4 if curvature == "fisher" else 1e-8
    options = {"curvature": curvature, "tolerance": tolerance}
    assert not takeuchi_information_criterion(model, data, **options).converged
    options["tolerance"] = 1e-8 if curvature == "fisher" else 1e-12
    assert takeuchi_information_criterion(model, data, **options).converged


def test_bad_arguments_are_refused_by_name() -> None:
    model, inputs, targets = RELU_MLP.make(n=6)
    with pytest.raises(ValueError, match="curvature='kfac'"):
        takeuchi_information_criterion(model, (inputs, targets), curvature="kfac")
    with pytest.raises(ValueError, match="107 parameters"):
        takeuchi_information_criterion(model, (inputs, targets), curvature="hessian", max_dense=100)


@pytest.mark.parametrize("n", [4, 60])
def test_the_measure_stays_on_the_models_device(
    n: int, device: torch.device, explicit_devices
) -> None:
    model, inputs, targets = RELU_MLP.make(n=n, device=device)
    with explicit_devices():
        takeuchi_information_criterion(model, (inputs, targets), curvature="hessian")
