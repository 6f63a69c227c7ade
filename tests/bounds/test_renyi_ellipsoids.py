"""Means over ellipsoids, and the PAC-Bayes divergence that they give."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import random_matrix
from torch import Tensor

from paperkit.bounds import renyi


def uniform_in_ball(d: int, draws: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(draws, d, generator=generator, dtype=torch.float64)
    radii = torch.rand(draws, 1, generator=generator, dtype=torch.float64) ** (1 / d)
    return radii * x / x.norm(dim=1, keepdim=True)


def test_mean_of_the_quadratic_form_over_its_ellipsoid() -> None:
    d, rho, draws = 3, 0.7, 40_000
    hessian = random_matrix(d, 0)
    # Rejection from a box knows nothing of the closed form.
    half = rho * torch.linalg.inv(hessian).diagonal().sqrt()
    generator = torch.Generator().manual_seed(0)
    points = half * (2 * torch.rand(draws, d, generator=generator, dtype=torch.float64) - 1)
    values = (points @ hessian * points).sum(1)
    values = values[values <= rho**2]
    error = float(values.std() / len(values) ** 0.5)
    assert float(values.mean()) == pytest.approx(renyi.ellipsoid_mean(d, rho), abs=4 * error)


def test_divergence_is_the_logarithm_of_the_ratio_of_volumes() -> None:
    d, rho, radius, draws = 3, 0.7, 2.0, 40_000
    hessian = torch.diag(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    points = radius * uniform_in_ball(d, draws, 0)
    inside = ((points @ hessian * points).sum(1) <= rho**2).double().mean()
    probability = math.exp(-renyi.ellipsoid_divergence(hessian.diagonal(), rho, radius))
    error = (probability * (1 - probability) / draws) ** 0.5
    assert float(inside) == pytest.approx(probability, abs=4 * error)


@pytest.mark.parametrize("d", [1, 2, 5, 6, 10, 15, 1000, 10**6])
def test_stirlings_rise_is_no_upper_bound_beyond_dimension_5(d: int) -> None:
    bound = renyi.neighbourhood_rise(torch.ones(d, dtype=torch.float64), log_volume=0.0)
    assert bound.holds == (d <= 5)
    assert bound.certified == (d <= 5)
    known = {1: 2.2073, 10: 0.95003, 1000: 0.99510}
    if d in known:
        assert bound.right / bound.left == pytest.approx(known[d], rel=1e-4)
    assert bound.right / bound.left > 0.944


def test_exact_rise_is_the_mean_over_the_level_ellipsoid() -> None:
    d, rho = 3, 0.7
    hessian = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    # Volume of {ΔᵀHΔ ≤ ρ²} in three dimensions.
    volume = 4 / 3 * math.pi * rho**3 / float(hessian.prod().sqrt())
    rise = renyi.neighbourhood_rise(hessian, math.log(volume)).left
    assert rise == pytest.approx(0.5 * renyi.ellipsoid_mean(d, rho), rel=1e-12)
