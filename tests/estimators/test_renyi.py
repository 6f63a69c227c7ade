"""Rényi entropy on known spectra, and the sharpness of layers against dense Hessians."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from paperkit.estimators import layer_spectra, renyi_entropy, renyi_sharpness
from paperkit.linearize import dense_hessian

ORDERS = (0.0, 0.25, 0.5, 0.99, 1.0, 1.01, 1.5, 2.0, 5.0, math.inf)
spectra = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30)


@pytest.mark.parametrize("alpha", ORDERS)
def test_uniform_spectrum_has_the_logarithm_of_its_size(alpha: float) -> None:
    assert renyi_entropy([0.3] * 17, alpha) == pytest.approx(math.log(17), rel=1e-14)


@pytest.mark.parametrize("alpha", ORDERS)
def test_one_eigenvalue_has_entropy_zero(alpha: float) -> None:
    assert renyi_entropy([0.0, 4.2, 0.0], alpha) == pytest.approx(0.0, abs=1e-15)


def test_known_values_of_a_power_law() -> None:
    eigenvalues = torch.arange(1, 1001, dtype=torch.float64) ** -1.5
    p = eigenvalues / eigenvalues.sum()
    assert renyi_entropy(eigenvalues, 0.5) == pytest.approx(2 * math.log(p.sqrt().sum()), rel=1e-13)
    assert renyi_entropy(eigenvalues, 2) == pytest.approx(-math.log(p.square().sum()), rel=1e-13)
    assert renyi_entropy(eigenvalues, 1) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-13)
    assert renyi_entropy(eigenvalues, math.inf) == pytest.approx(-math.log(p.max()), rel=1e-13)
    assert renyi_entropy(eigenvalues, 0) == pytest.approx(math.log(1000), rel=1e-13)


@given(spectra, st.floats(0.05, 8))
def test_entropy_is_continuous_at_one_and_bounded(values: list[float], alpha: float) -> None:
    assert renyi_entropy(values, 1 + 2e-6) == pytest.approx(renyi_entropy(values, 1), abs=1e-3)
    assert -1e-12 <= renyi_entropy(values, alpha) <= math.log(len(values)) + 1e-12


@given(spectra, st.floats(0.05, 8), st.floats(0.05, 8))
def test_entropy_decreases_in_the_order(values: list[float], a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert renyi_entropy(values, low) >= renyi_entropy(values, high) - 1e-9


@given(spectra, st.floats(0.05, 8), st.floats(1e-200, 1e200))
def test_entropy_does_not_see_the_scale(values: list[float], alpha: float, scale: float) -> None:
    scaled = [scale * value for value in values]
    assert renyi_entropy(scaled, alpha) == pytest.approx(renyi_entropy(values, alpha), abs=1e-9)


def test_policies_differ_only_on_negative_eigenvalues() -> None:
    assert renyi_entropy([2.0, -2.0], 0.5, "abs") == pytest.approx(math.log(2))
    assert renyi_entropy([2.0, -2.0], 0.5, "clamp") == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([1.0], -1.0), "alpha=-1.0 must be in"),
        (([1.0], math.nan), "alpha=nan must be in"),
        (([0.0], 1.0), "no nonzero entry"),
        (([], 1.0), "no nonzero entry"),
        (([math.nan], 1.0), "NaN or infinite"),
        (([1.0], 1.0, "mixed"), "policy='mixed' is unknown"),
    ],
)
def test_bad_arguments_of_the_entropy_get_one_sentence(arguments: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        renyi_entropy(*arguments)


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), activation, nn.Linear(5, 4)).double()


def batch(n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 4, (n,), generator=generator)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()], ids=["inside", "outside"])
def test_sharpness_equals_the_dense_hessian_inside_and_outside_the_proposition(
    activation: nn.Module,
) -> None:
    model, data = network(activation), batch()
    for name, by_order in renyi_sharpness(model, data, (0.5, 1.0, 1.5)).items():
        hessian = dense_hessian(model, *data, parameters=[f"{name}.weight"])
        eigenvalues = torch.linalg.eigvalsh(hessian)
        # The dense route has round-off where the Gram route has exact zeros.
        eigenvalues = eigenvalues[eigenvalues.abs() > 1e-14 * eigenvalues.abs().max()]
        for alpha, result in by_order.items():
            expected = -renyi_entropy(eigenvalues, alpha)
            assert float(result) == pytest.approx(expected, rel=1e-6)
    assert layer_spectra(model, data)["0"].method == (
        "gram" if isinstance(activation, nn.ReLU) else "dense"
    )


def test_one_order_gives_one_result_a_layer_and_batches_equal_their_union() -> None:
    model, (inputs, targets) = network(nn.ReLU()), batch()
    whole = renyi_sharpness(model, (inputs, targets), 0.5)
    uneven = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]
    for name, result in renyi_sharpness(model, uneven, 0.5).items():
        assert float(result) == pytest.approx(float(whole[name]), rel=1e-12)
        assert result.standard_error is None
        assert "exact_block=True" in repr(result)


def test_bad_arguments_of_the_sharpness_get_one_sentence() -> None:
    model, data = network(nn.Tanh()), batch()
    with pytest.raises(ValueError, match="alpha=0 must be positive"):
        renyi_sharpness(model, data, 0)
    with pytest.raises(ValueError, match="method='magic' is unknown"):
        renyi_sharpness(model, data, method="magic")
    with pytest.raises(ValueError, match="data is empty"):
        renyi_sharpness(model, [])
    with pytest.raises(ValueError, match=r"0 \(30 weights: Tanh is not known"):
        layer_spectra(model, data, max_dense=10)
