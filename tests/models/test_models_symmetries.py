"""Changes of parameters: what they do to the function and to the Hessian, by their laws."""

import pytest
import torch
from torch import nn

from paperkit.curvature import dense_hessian
from paperkit.experiments.studies.reparametrization import random_problem
from paperkit.models.small import build_dense_network
from paperkit.models.symmetries import (
    SCALINGS,
    RadialMap,
    bias_name,
    changed_model,
    flat_parameters,
    layerwise,
    layerwise_with_biases,
    nodewise,
    nodewise_uncompensated,
    radial_map_at,
    reparametrized_by,
    reparametrized_by_sinh,
    rescale,
    weight_names,
)

FACTORS = (3.0, 1 / 2, 2 / 3)


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def hessian_of(problem, model=None):
    model = problem.model if model is None else model
    return dense_hessian(model, problem.inputs, problem.targets, problem.loss)


def gradient_of(problem):
    loss = nn.functional.cross_entropy(problem.model(problem.inputs), problem.targets)
    gradients = torch.autograd.grad(loss, list(problem.model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


SYMMETRIES = [
    ("relu", layerwise, FACTORS),
    ("leaky_relu", layerwise, FACTORS),
    ("relu_brier", layerwise, FACTORS),
    ("relu_bias", layerwise_with_biases, FACTORS),
    ("relu", nodewise, (3.0,)),
    ("relu_norm", layerwise, (0.05, 7.0, 1.0)),
    ("relu_norm", nodewise_uncompensated, (3.0,)),
    ("relu_residual", layerwise, (3.0, 0.5, 2.0, 1 / 3)),
]


@pytest.mark.parametrize(("network", "scaling", "factors"), SYMMETRIES)
def test_a_symmetry_keeps_the_function_and_divides_the_hessian_by_its_factors(
    network, scaling, factors
):
    problem = random_problem(network, seed=3)
    scales = scaling(problem.model, factors)
    model = rescale(problem.model, scales)
    with torch.no_grad():
        outputs, changed = problem.model(problem.inputs), model(problem.inputs)
    assert (changed - outputs).abs().max() < 1e-12 * outputs.abs().max()
    t = torch.cat([scales[name].flatten() for name, _ in problem.model.named_parameters()])
    assert relative(hessian_of(problem, model), hessian_of(problem) / t.outer(t)) < 1e-12


@pytest.mark.parametrize(
    ("network", "factors"),
    [("relu_bias", FACTORS), ("relu_residual", (3.0, 0.5, 1.0, 2 / 3)), ("gelu", FACTORS)],
)
def test_layerwise_factors_with_product_one_change_functions_outside_the_proposition(
    network, factors
):
    problem = random_problem(network, seed=0)
    model = rescale(problem.model, layerwise(problem.model, factors))
    change = (model(problem.inputs) - problem.model(problem.inputs)).abs().max()
    assert change > 0.01


def test_rescaling_leaves_the_original_network_alone():
    model = build_dense_network("relu", seed=0)
    before = flat_parameters(model).clone()
    rescale(model, layerwise(model, FACTORS))
    assert torch.equal(flat_parameters(model), before)


def test_the_hessian_in_sinh_parameters_obeys_the_transformation_law():
    problem = random_problem("relu", seed=1)
    theta, hessian, gradient = (
        flat_parameters(problem.model),
        hessian_of(problem),
        gradient_of(problem),
    )
    slope, bend = 1 / theta.cosh(), -theta.sinh() / theta.cosh() ** 3
    law = slope.outer(slope) * hessian + torch.diag(gradient * bend)
    assert relative(hessian_of(problem, reparametrized_by_sinh(problem.model)), law) < 1e-12


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.5), (-0.25, 0.5), (-0.4, 2.0)])
@pytest.mark.parametrize("distance", [0.0, 0.5])
def test_the_hessian_in_radial_parameters_obeys_the_transformation_law(a, b, distance):
    problem = random_problem("relu", seed=1)
    theta = flat_parameters(problem.model)
    radial = radial_map_at(theta, a, b, distance, seed=0)
    jacobian = torch.func.jacfwd(radial.forward)(theta)
    gt = torch.linalg.solve(jacobian.T, gradient_of(problem))
    second = torch.func.hessian(lambda t: gt @ radial.forward(t))(theta)
    inverse = torch.linalg.inv(jacobian)
    law = inverse.T @ (hessian_of(problem) - second) @ inverse
    assert relative(hessian_of(problem, reparametrized_by(problem.model, radial)), law) < 1e-10


def test_the_radial_map_is_inverted_with_two_exact_derivatives():
    generator = torch.Generator().manual_seed(0)
    theta, centre = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    radial = RadialMap(centre, a=-0.25, b=0.5)
    inverse = radial.inverse_near(theta)
    eta = radial.forward(theta)
    assert torch.allclose(inverse(eta), theta, rtol=1e-13)
    # φ(ψ(η)) = η has the identity for its first derivative and zero for its second.
    both = lambda x: radial.forward(inverse(x))  # noqa: E731
    identity = torch.eye(5, dtype=torch.float64)
    assert torch.allclose(torch.func.jacfwd(both)(eta), identity, atol=1e-13)
    assert torch.func.jacfwd(torch.func.jacrev(both))(eta).abs().max() < 1e-12


def test_at_its_centre_the_radial_map_divides_the_hessian_by_one_number():
    problem = random_problem("relu", seed=0)
    radial = radial_map_at(flat_parameters(problem.model), 1.0, 0.5, 0.0, seed=0)
    changed = hessian_of(problem, reparametrized_by(problem.model, radial))
    assert relative(changed, hessian_of(problem) / 0.5**2) < 1e-12


def test_layers_are_weights_and_not_biases():
    model = build_dense_network("relu_bias", seed=0)
    assert weight_names(model) == ["0.weight", "2.weight", "4.weight"]
    assert bias_name("2.weight") in dict(model.named_parameters())


def test_a_change_is_found_by_its_name():
    problem = random_problem("relu", seed=0)
    outputs = problem.model(problem.inputs)
    named = [("nodewise", (3.0,)), ("sinh", ()), ("radial", (1.0, 0.5, 0.5))]
    for transformation, factors in named:
        changed = changed_model(problem.model, transformation, factors, seed=0)
        assert not torch.equal(flat_parameters(changed), flat_parameters(problem.model))
        torch.testing.assert_close(changed(problem.inputs), outputs, rtol=1e-11, atol=1e-12)


def test_unknown_changes_and_factors_that_do_not_fit_are_refused():
    model = build_dense_network("relu", seed=0)
    with pytest.raises(ValueError, match="transformation='rotation' is unknown: use one of layer"):
        changed_model(model, "rotation", (), seed=0)
    with pytest.raises(ValueError, match="factors has 2 entries"):
        SCALINGS["layerwise"](model, (2.0, 0.5))
