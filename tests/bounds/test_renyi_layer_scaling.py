"""Proposition 2.2: which changes of scale keep the entropy of a layer, and which do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paperkit.bounds import renyi
from paperkit.curvature import dense_hessian
from paperkit.estimators import renyi_entropy
from paperkit.experiments.studies.reparametrization import measure, random_problem
from paperkit.linearize import layers_of
from paperkit.models.symmetries import (
    layerwise,
    layerwise_with_biases,
    nodewise,
    nodewise_uncompensated,
    rescale,
)

ORDERS = (0.25, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0)


FACTORS = (3.0, 1 / 2, 2 / 3)


def entropy_change(network: str, scaling, factors, epsilon: float = 0.0, of: str = "layers"):
    """Largest relative changes of an entropy of order 0.5, and of the outputs."""
    problem = random_problem(network, seed=3, epsilon=epsilon)
    scaled = rescale(problem.model, scaling(problem.model, factors))
    before, after = (
        measure(problem),
        measure(replace(problem, model=scaled)),
    )
    pairs = (
        [(before.joint, after.joint)]
        if of == "joint"
        else zip(getattr(before, of), getattr(after, of), strict=True)
    )
    entropies = [(renyi_entropy(a, 0.5), renyi_entropy(b, 0.5)) for a, b in pairs]
    changes = [abs(b - a) / a for a, b in entropies]
    outputs = float((after.outputs - before.outputs).abs().max() / before.outputs.abs().max())
    return changes, outputs


@pytest.mark.parametrize("alpha", ORDERS)
def test_layer_scaling_keeps_the_entropy_of_every_layer(alpha: float) -> None:
    problem = random_problem("relu", seed=3)
    factors = dict(zip(layers_of(problem.model), FACTORS, strict=True))
    bounds = renyi.layer_scaling_invariance(
        problem.model, (problem.inputs, problem.targets), factors, alpha
    )
    assert len(bounds) == 3
    for bound in bounds.values():
        assert bound.certified
        assert bound.left == pytest.approx(bound.right, rel=1e-8)


def test_the_scaled_layers_trace_is_divided_by_the_square_of_its_factor() -> None:
    problem = random_problem("relu", seed=3)
    scaled = rescale(problem.model, layerwise(problem.model, FACTORS))
    for name, factor in zip(layers_of(problem.model), FACTORS, strict=True):
        traces = [
            dense_hessian(m, problem.inputs, problem.targets, parameters=[f"{name}.weight"]).trace()
            for m in (problem.model, scaled)
        ]
        assert float(traces[0] / traces[1]) == pytest.approx(factor**2, rel=1e-9)


def test_scaling_single_units_keeps_the_function_and_changes_the_entropy() -> None:
    changes, outputs = entropy_change("relu", nodewise, (3.0,))
    assert outputs < 1e-12
    assert max(changes) > 0.01


def test_layer_scaling_changes_the_entropy_of_the_joint_hessian() -> None:
    changes, outputs = entropy_change("relu", layerwise, FACTORS, of="joint")
    assert outputs < 1e-12
    assert max(changes) > 0.01


def test_scaling_weights_alone_changes_a_network_with_biases() -> None:
    problem = random_problem("relu_bias", seed=3)
    factors = dict(zip(layers_of(problem.model), FACTORS, strict=True))
    bounds = renyi.layer_scaling_invariance(
        problem.model, (problem.inputs, problem.targets), factors, 0.5
    )
    assert not any(bound.certified for bound in bounds.values())
    assert max(abs(bound.difference) / bound.right for bound in bounds.values()) > 1e-3


def test_with_scaled_biases_the_joint_block_changes_beyond_the_first_layer() -> None:
    changes, outputs = entropy_change(
        "relu_bias", layerwise_with_biases, FACTORS, of="layers_with_bias"
    )
    assert outputs < 1e-12
    assert changes[0] < 1e-8 < 1e-4 < min(changes[1:])
    weights, _ = entropy_change("relu_bias", layerwise_with_biases, FACTORS)
    assert max(weights) < 1e-8


def test_under_normalisation_a_factor_is_free_only_at_epsilon_zero() -> None:
    exact, _ = entropy_change("relu_norm", layerwise, (0.05, 7.0, 1.0))
    assert max(exact) < 1e-8
    changed, _ = entropy_change("relu_norm", layerwise, (0.05, 7.0, 1.0), epsilon=1e-2)
    assert max(changed) > 1e-3
    units, outputs = entropy_change("relu_norm", nodewise_uncompensated, (3.0,))
    assert outputs < 1e-12
    assert max(units) > 0.01


@pytest.mark.parametrize("network", ["tanh", "gelu"])
def test_activations_that_are_not_homogeneous_break_the_invariance(network: str) -> None:
    problem = random_problem(network, seed=3)
    factors = dict(zip(layers_of(problem.model), FACTORS, strict=True))
    bounds = renyi.layer_scaling_invariance(
        problem.model, (problem.inputs, problem.targets), factors, 0.5
    )
    for bound in bounds.values():
        assert bound.assumptions["homogeneous"] is False
    assert max(abs(bound.difference) / bound.right for bound in bounds.values()) > 0.01
