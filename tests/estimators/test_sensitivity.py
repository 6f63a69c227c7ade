"""Sensitivities to the input: what they weigh, and Lanczos steps where the outputs are many."""

import itertools

import pytest
import torch
from helpers import gaussian
from jacobians import Squares, linear
from networks import NAMED
from torch import Tensor, nn

from paperkit.estimators.sensitivity import (
    input_invariant_local_sensitivity,
    input_invariant_sensitivities,
    maximum_local_sensitivity,
    normalized_maximum_local_sensitivity,
)


def test_input_invariant_sensitivity_weighs_columns_by_the_input() -> None:
    jacobian, inputs = gaussian(3, 2, 5), gaussian(3, 5, seed=1)
    expected = sum(
        (jacobian[:, :, p].square().sum(1) * inputs[:, p].square() for p in range(5)),
        start=torch.zeros(3, dtype=torch.float64),
    )
    ours = input_invariant_sensitivities(jacobian, inputs)
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0.0)
    # The later public code's ‖J x‖² is another quantity.
    other = torch.einsum("nop,np->no", jacobian, inputs).square().sum(1)
    assert float((other - ours).abs().min()) > 0.01


def test_input_invariant_sensitivity_survives_rescaling_the_input() -> None:
    weight, inputs = gaussian(3, 5), gaussian(4, 5, seed=1)
    scales = torch.tensor([1e-3, 2.0, 5.0, 100.0, 0.1], dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64)
    before = input_invariant_local_sensitivity(linear(weight), (inputs, labels))
    after = input_invariant_local_sensitivity(linear(weight / scales), (inputs * scales, labels))
    assert float(after) == pytest.approx(float(before), rel=1e-12)
    assert float(maximum_local_sensitivity(linear(weight / scales), (inputs, labels))) > 100.0


def test_normalized_sensitivity_is_a_mean_of_squares() -> None:
    inputs = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
    data = (inputs, torch.zeros(2, dtype=torch.int64))
    # ‖J‖₂ = 4 and 1, ‖x‖ = 5 and 1: (400 + 1)/2, not the square of a mean.
    assert float(normalized_maximum_local_sensitivity(Squares(), data)) == pytest.approx(
        200.5, rel=1e-13
    )


def many_outputs() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 150)).double()
    return model, gaussian(5, 12)


def test_lanczos_finds_the_largest_singular_value_of_many_outputs(device) -> None:
    model, inputs = many_outputs()
    model, inputs = model.to(device), inputs.to(device)
    data = (inputs, torch.zeros(5, dtype=torch.int64))
    result = maximum_local_sensitivity(model, data, tolerance=1e-5)
    exact = maximum_local_sensitivity(model, data, method="exact")
    assert (result.method, exact.method) == ("lanczos", "exact")
    assert result.converged
    # With residual r·θ the error of θ is at most (r θ)²/gap: 1e-8 for relative gaps above 1 %.
    assert float(result) == pytest.approx(float(exact), rel=1e-8)
    normalized = normalized_maximum_local_sensitivity(model, data, tolerance=1e-5)
    reference = normalized_maximum_local_sensitivity(model, data, method="exact")
    assert float(normalized) == pytest.approx(float(reference), rel=1e-8)


def test_lanczos_is_a_lower_bound_that_never_falls(device) -> None:
    model, inputs = many_outputs()
    model, inputs = model.to(device), inputs.to(device)
    data = (inputs, torch.zeros(5, dtype=torch.int64))
    exact = float(maximum_local_sensitivity(model, data, method="exact"))
    values = [
        float(maximum_local_sensitivity(model, data, max_iterations=m, tolerance=1e-12))
        for m in (1, 2, 4, 8, 16)
    ]
    assert all(one <= two * (1 + 1e-13) for one, two in itertools.pairwise([*values, exact]))
    unfinished = maximum_local_sensitivity(model, data, max_iterations=1, tolerance=1e-12)
    assert not unfinished.converged


def test_lanczos_of_a_constant_network_is_zero() -> None:
    model = linear(torch.zeros(120, 3, dtype=torch.float64))
    result = maximum_local_sensitivity(model, (gaussian(2, 3), torch.zeros(2)))
    assert float(result) == 0.0
    assert result.converged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "qr"}, "method='qr'"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"memory_budget": 0}, "memory_budget=0"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message) -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    with pytest.raises(ValueError, match=message):
        maximum_local_sensitivity(model, (inputs, targets), **options)
