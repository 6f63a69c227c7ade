"""The local dimension, against known spectra and the covariance that it is about."""

import math

import pytest
import torch
from helpers import gaussian
from jacobians import Squares, brute_force_jacobian, linear, with_singular_values
from torch import nn

from paperkit.estimators.local_dimension import local_dimension, local_dimensions


@pytest.mark.parametrize(
    ("spectrum", "dimension"),
    [([1.0, 1.0, 1.0], 3.0), ([5.0, 0.0, 0.0], 1.0), ([2.0, 1.0], 25.0 / 17.0)],
)
def test_the_local_dimension_is_the_participation_ratio(spectrum, dimension) -> None:
    jacobian = with_singular_values(spectrum, 6)[None]
    assert float(local_dimensions(jacobian)) == pytest.approx(dimension, rel=1e-13)
    assert float(local_dimensions(1e-30 * jacobian)) == pytest.approx(dimension, rel=1e-13)


def test_samples_with_a_zero_jacobian_have_no_dimension_and_are_counted() -> None:
    inputs = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    result = local_dimension(Squares(), (inputs, torch.zeros(3, dtype=torch.int64)))
    assert float(result) == pytest.approx(1.5, rel=1e-13)  # mean of 2 and 1
    assert result.assumptions["undefined"] == 1
    alone = local_dimension(Squares(), (inputs[:1], torch.zeros(1, dtype=torch.int64)))
    assert math.isnan(float(alone))


def test_the_covariance_of_a_small_ball_tends_to_the_squared_jacobian() -> None:
    # Equation 14 by antithetic sampling: for f(x + √α ξ), Cov/α → J Jᵀ with error O(α) + noise.
    model = nn.Sequential(linear(gaussian(4, 5)), nn.Tanh(), linear(gaussian(3, 4)))
    x = 0.3 * gaussian(1, 5, seed=4)
    alpha, draws = 1e-8, 40000
    noise = gaussian(draws, 5, seed=5)
    with torch.no_grad():
        moved = (model(x + alpha**0.5 * noise) - model(x - alpha**0.5 * noise)) / 2
    covariance = moved.T @ moved / (alpha * draws)
    jacobian = brute_force_jacobian(model, x)[0]
    exact = jacobian @ jacobian.T
    # Each entry's standard error is at most √(2/draws) of the trace; five of them.
    error = float((covariance - exact).abs().max())
    assert error <= 5 * math.sqrt(2 / draws) * float(exact.trace())
