"""Rényi entropy on known spectra, and the sharpness of layers against dense Hessians."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from networks import CASES, NAMED
from torch import nn

from paperkit.curvature import dense_hessian
from paperkit.estimators import (
    global_renyi_sharpness,
    layer_spectra,
    renyi_entropy,
    renyi_sharpness,
)
from paperkit.linearize.costs import held_bytes

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
        (([1.0], -1.0), "alpha=-1.0 must be at least 0"),
        (([1.0], math.nan), "alpha=nan must be at least 0"),
        (([0.0], 1.0), "eigenvalues="),
        (([], 1.0), "eigenvalues="),
        (([math.nan], 1.0), r"eigenvalues\[0\]=nan"),
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
    with pytest.raises(ValueError, match=r"alpha=\(0,\) has 0"):
        renyi_sharpness(model, data, 0)
    with pytest.raises(ValueError, match="method='magic' is unknown"):
        renyi_sharpness(model, data, method="magic")
    with pytest.raises(ValueError, match="data is empty"):
        renyi_sharpness(model, [])
    with pytest.raises(ValueError, match=r"0 cannot be measured: .*Tanh is not known"):
        layer_spectra(model, data, layers=["0"], max_dense=10)


def test_the_estimate_is_within_three_standard_errors_plus_bracket_in_97_of_100_seeds() -> None:
    model, inputs, targets = NAMED["relu MLP"].make(40)
    exact = renyi_sharpness(model, (inputs, targets), layers=["0"])["0"]
    misses = dict.fromkeys((0.5, 1.5), 0)
    for seed in range(100):
        found = renyi_sharpness(
            model, (inputs, targets), layers=["0"], method="lanczos", probes=20, seed=seed
        )["0"]
        for order, one in found.items():
            low, high = one.bracket
            assert one.converged and low <= high
            room = 3 * one.standard_error
            misses[order] += not low - room <= float(exact[order]) <= high + room
    assert max(misses.values()) <= 3


def test_a_capped_step_count_is_reported_as_not_converged() -> None:
    model, inputs, targets = NAMED["relu MLP"].make(40)
    options = {"layers": ["0"], "method": "lanczos", "probes": 50}
    few = renyi_sharpness(model, (inputs, targets), 0.5, max_steps=2, **options)["0"]
    enough = renyi_sharpness(model, (inputs, targets), 0.5, **options)["0"]
    assert not few.converged and enough.converged
    assert few.bracket[1] - few.bracket[0] > few.standard_error


def test_blocks_outside_the_proposition_are_estimated_by_hessian_products() -> None:
    case = next(case for case in CASES if case.inexact == {"first"})
    model, inputs, targets = case.make(30)
    (name,) = case.inexact
    exact = renyi_sharpness(model, (inputs, targets), 1.5, layers=[name])[name]
    found = renyi_sharpness(
        model, (inputs, targets), 1.5, layers=[name], method="lanczos", probes=100
    )[name]
    assert found.converged and not found.assumptions["exact_block"]
    # The bracket is narrower than the standard error.
    assert abs(float(found) - float(exact)) < 4 * found.standard_error


def test_layers_that_do_not_fit_the_budget_are_measured_in_groups_or_streamed() -> None:
    model, inputs, targets = NAMED["LeNet"].make(10)
    whole = renyi_sharpness(model, (inputs, targets), 1.5)
    held = held_bytes(model, inputs)
    grouped = renyi_sharpness(model, (inputs, targets), 1.5, memory_budget=2 * held - 2)
    streamed = renyi_sharpness(model, (inputs, targets), 1.5, probes=20, memory_budget=held // 2)
    assert {one.method for one in grouped.values()} == {"gram"}
    assert "lanczos" in {one.method for one in streamed.values()}
    for name, one in whole.items():
        assert float(grouped[name]) == pytest.approx(float(one), rel=1e-10)
        low, high = streamed[name].bracket or (float(streamed[name]),) * 2
        room = 4 * (streamed[name].standard_error or 0.0) + 1e-10
        assert low - room <= float(one) <= high + room
    with pytest.raises(ValueError, match="memory_budget"):
        renyi_sharpness(model, (inputs, targets), method="exact", memory_budget=held // 2)


def test_the_joint_hessian_of_all_weights_leaves_out_biases() -> None:
    model, inputs, targets = NAMED["residual"].make(10)
    weights = [name for name, p in model.named_parameters() if p.ndim > 1]
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(model, inputs, targets, parameters=weights))
    found = global_renyi_sharpness(model, (inputs, targets))
    for order, one in found.items():
        assert float(one) == pytest.approx(-renyi_entropy(eigenvalues, order), rel=1e-8)


def test_the_joint_entropy_is_estimated_by_hessian_products() -> None:
    model, inputs, targets = NAMED["tanh before the second layer"].make(10)
    exact = global_renyi_sharpness(model, (inputs, targets), 1.5)
    found = global_renyi_sharpness(model, (inputs, targets), 1.5, method="lanczos", probes=40)
    # The steps resolve what decides order 1.5; the probes' error is left.
    assert abs(float(found) - float(exact)) < 4 * found.standard_error
