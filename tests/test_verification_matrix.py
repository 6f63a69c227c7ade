"""The Rényi paper's statements, one by one: what is true, and counterexamples to what is not.

V3 (stochastic Lanczos quadrature) is in tests/linalg, V12 and later in the tests of their measures.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn

from paperkit.bounds import renyi
from paperkit.curvature import dense_hessian, hessian_product
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

orders = st.floats(0.1, 5.0)
positive = hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(1e-4, 1e4))


def random_matrix(d: int, seed: int) -> Tensor:
    """Draw a positive definite matrix with eigenvalues over several decades."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, d, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-2, 1, d, dtype=torch.float64)
    return factor * scales @ factor.T


def small_network(activation: nn.Module, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3)).double()
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    return model, inputs, torch.randint(0, 3, (10,), generator=generator)


def gradient_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(model(inputs), targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


# --- V1: the entropy ------------------------------------------------------------------------


@given(positive, orders, st.data())
def test_v1_mixing_outcomes_never_lowers_the_entropy(values, alpha, data) -> None:
    permutations = st.permutations(range(len(values)))
    mixed = values / 2 + values[data.draw(permutations)] / 3 + values[data.draw(permutations)] / 6
    assert renyi_entropy(torch.tensor(mixed), alpha) >= renyi_entropy(values, alpha) - 1e-9


@given(positive, orders, orders)
def test_v1_the_entropy_decreases_in_the_order(values, a, b) -> None:
    assert renyi.decrease_in_order(values, min(a, b), max(a, b)).slack >= -1e-9


@given(positive, st.floats(0.2, 4.0))
def test_v1_the_slope_in_the_order_is_a_divergence(values, alpha) -> None:
    assume(abs(alpha - 1) > 0.05)
    p = torch.tensor(values / values.sum())
    z = p**alpha / (p**alpha).sum()
    divergence = float((z * (z / p).log()).sum())
    h = 1e-4
    slope = (renyi_entropy(p, alpha + h) - renyi_entropy(p, alpha - h)) / (2 * h)
    # A central difference errs by h²/6 times the third derivative.
    assert slope == pytest.approx(-divergence / (1 - alpha) ** 2, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("alpha", ORDERS)
def test_v1_two_vertices_refute_convexity_by_log_two(alpha: float) -> None:
    bound = renyi.convexity([1.0, 0.0], [0.0, 1.0], alpha)
    assert -bound.slack == pytest.approx(math.log(2), rel=1e-12)
    assert not bound.holds and not bound.certified


@given(st.floats(0.1, 1.0), st.integers(2, 8), st.data())
def test_v1_the_entropy_is_concave_up_to_order_one(alpha, d, data) -> None:
    draw = hnp.arrays(np.float64, d, elements=st.floats(1e-6, 1.0))
    p, q = (x / x.sum() for x in (data.draw(draw), data.draw(draw)))
    bound = renyi.convexity(p, q, alpha, "corrected")
    assert bound.certified
    assert bound.slack >= -1e-10


@given(st.floats(1.0, 2.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_v1_for_two_outcomes_the_entropy_is_concave_up_to_order_two(alpha, a, b) -> None:
    bound = renyi.convexity([a, 1 - a], [b, 1 - b], alpha, "corrected")
    assert bound.certified
    assert bound.slack >= -1e-10


@pytest.mark.parametrize(("alpha", "d", "gap"), [(2.0, 10, -0.0274), (1.1, 10**5, -0.880)])
def test_v1_a_vertex_and_the_uniform_distribution_refute_concavity_above_one(
    alpha: float, d: int, gap: float
) -> None:
    vertex = torch.zeros(d, dtype=torch.float64)
    vertex[0] = 1.0
    bound = renyi.convexity(vertex, torch.full_like(vertex, 1 / d), alpha, "corrected")
    assert bound.slack == pytest.approx(gap, rel=2e-3)
    assert not bound.holds and not bound.certified


# --- V2: equation 6 and negative eigenvalues --------------------------------------------------


@pytest.mark.parametrize("alpha", [a for a in ORDERS if a != 1])
def test_v2_equation_6_is_an_identity_for_semidefinite_matrices(alpha: float) -> None:
    for seed in range(5):
        bound = renyi.trace_form(random_matrix(6, seed), alpha)
        assert bound.certified
        assert bound.left == pytest.approx(bound.right, rel=1e-8)


def test_v2_equation_6_agrees_with_powers_of_the_matrix_at_integer_orders() -> None:
    matrix = random_matrix(6, 0)
    for alpha in (2, 3, 4):
        power = float(torch.linalg.matrix_power(matrix, alpha).trace())
        expected = math.log(power / float(matrix.trace()) ** alpha) / (1 - alpha)
        assert renyi.trace_form(matrix, alpha).left == pytest.approx(expected, rel=1e-8)


def test_v2_a_signed_trace_under_absolute_powers_diverges_at_order_one() -> None:
    steps = torch.arange(20, dtype=torch.float64) / 19
    matrix = torch.diag(torch.cat([1 + steps, -0.1 - 0.8 * steps]))
    bounds = {d: renyi.trace_form(matrix, 1 + d) for d in (-1e-3, -1e-2, 1e-2, 1e-3)}
    lefts = [bound.left for bound in bounds.values()]
    assert max(lefts) - min(lefts) < 0.01  # the entropy of |λ| passes order one smoothly
    assert not any(bound.certified for bound in bounds.values())
    # Dividing by the power of Σλ and not of Σ|λ| adds α log(Σ|λ| / Σλ) / (1 − α).
    ratio = math.log(float(matrix.abs().sum() / matrix.trace()))
    for distance, bound in bounds.items():
        expected = bound.left - (1 + distance) * ratio / distance
        assert bound.right == pytest.approx(expected, rel=1e-9)
    assert bounds[-1e-3].right > 5 * bounds[-1e-2].right > 100
    assert bounds[1e-3].right < 5 * bounds[1e-2].right < -100


# --- V4: Hessians -----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU(), nn.GELU()], ids=str)
def test_v4_layer_hessians_by_products_dense_and_by_differences_agree(
    activation: nn.Module,
) -> None:
    model, inputs, targets = small_network(activation)
    for layer in layers_of(model):
        name = f"{layer}.weight"
        dense = dense_hessian(model, inputs, targets, parameters=[name])
        identity = torch.eye(len(dense), dtype=torch.float64)
        products = hessian_product(model, inputs, targets, identity, parameters=[name])
        assert float((products - dense).norm() / dense.norm()) < 1e-12

        weight = model.get_parameter(name)

        def gradient(at: Tensor, name: str = name) -> Tensor:
            leaf = at.detach().requires_grad_()
            outputs = torch.func.functional_call(model, {name: leaf}, (inputs,))
            loss = nn.functional.cross_entropy(outputs, targets)
            return torch.autograd.grad(loss, leaf)[0].flatten()

        h = 1e-5
        columns = [
            (gradient(weight + h * e.view_as(weight)) - gradient(weight - h * e.view_as(weight)))
            / (2 * h)
            for e in identity
        ]
        # Central differences: h² from the remainder and eps/h from round-off, both near 1e-10.
        assert float((torch.stack(columns) - dense).norm() / dense.norm()) < 1e-7


# --- V5: invariance (Proposition 2.2) ------------------------------------------------------------

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
def test_v5_layer_scaling_keeps_the_entropy_of_every_layer(alpha: float) -> None:
    problem = random_problem("relu", seed=3)
    factors = dict(zip(layers_of(problem.model), FACTORS, strict=True))
    bounds = renyi.layer_scaling_invariance(
        problem.model, (problem.inputs, problem.targets), factors, alpha
    )
    assert len(bounds) == 3
    for bound in bounds.values():
        assert bound.certified
        assert bound.left == pytest.approx(bound.right, rel=1e-8)


def test_v5_the_scaled_layers_trace_is_divided_by_the_square_of_its_factor() -> None:
    problem = random_problem("relu", seed=3)
    scaled = rescale(problem.model, layerwise(problem.model, FACTORS))
    for name, factor in zip(layers_of(problem.model), FACTORS, strict=True):
        traces = [
            dense_hessian(m, problem.inputs, problem.targets, parameters=[f"{name}.weight"]).trace()
            for m in (problem.model, scaled)
        ]
        assert float(traces[0] / traces[1]) == pytest.approx(factor**2, rel=1e-9)


def test_v5_scaling_single_units_keeps_the_function_and_changes_the_entropy() -> None:
    changes, outputs = entropy_change("relu", nodewise, (3.0,))
    assert outputs < 1e-12
    assert max(changes) > 0.01


def test_v5_layer_scaling_changes_the_entropy_of_the_joint_hessian() -> None:
    changes, outputs = entropy_change("relu", layerwise, FACTORS, of="joint")
    assert outputs < 1e-12
    assert max(changes) > 0.01


def test_v5_scaling_weights_alone_changes_a_network_with_biases() -> None:
    problem = random_problem("relu_bias", seed=3)
    factors = dict(zip(layers_of(problem.model), FACTORS, strict=True))
    bounds = renyi.layer_scaling_invariance(
        problem.model, (problem.inputs, problem.targets), factors, 0.5
    )
    assert not any(bound.certified for bound in bounds.values())
    assert max(abs(bound.difference) / bound.right for bound in bounds.values()) > 1e-3


def test_v5_with_scaled_biases_the_joint_block_changes_beyond_the_first_layer() -> None:
    changes, outputs = entropy_change(
        "relu_bias", layerwise_with_biases, FACTORS, of="layers_with_bias"
    )
    assert outputs < 1e-12
    assert changes[0] < 1e-8 < 1e-4 < min(changes[1:])
    weights, _ = entropy_change("relu_bias", layerwise_with_biases, FACTORS)
    assert max(weights) < 1e-8


def test_v5_under_normalisation_a_factor_is_free_only_at_epsilon_zero() -> None:
    exact, _ = entropy_change("relu_norm", layerwise, (0.05, 7.0, 1.0))
    assert max(exact) < 1e-8
    changed, _ = entropy_change("relu_norm", layerwise, (0.05, 7.0, 1.0), epsilon=1e-2)
    assert max(changed) > 1e-3
    units, outputs = entropy_change("relu_norm", nodewise_uncompensated, (3.0,))
    assert outputs < 1e-12
    assert max(units) > 0.01


@pytest.mark.parametrize("network", ["tanh", "gelu"])
def test_v5_activations_that_are_not_homogeneous_break_the_invariance(network: str) -> None:
    problem = random_problem(network, seed=3)
    factors = dict(zip(layers_of(problem.model), FACTORS, strict=True))
    bounds = renyi.layer_scaling_invariance(
        problem.model, (problem.inputs, problem.targets), factors, 0.5
    )
    for bound in bounds.values():
        assert bound.assumptions["homogeneous"] is False
    assert max(abs(bound.difference) / bound.right for bound in bounds.values()) > 0.01


# --- V6, V7: the regularizer and its perturbation ----------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.2, 2.0])
def test_v6_power_ratio_of_an_explicit_gradient(alpha: float) -> None:
    g = torch.tensor([3.0, -4.0, 0.0])
    expected = (3 ** (2 * alpha) + 4 ** (2 * alpha)) / 25**alpha
    assert renyi.gradient_power_ratio(g, alpha) == pytest.approx(expected, rel=1e-13)
    entropy = renyi_entropy([9.0, 16.0, 0.0], alpha)
    assert math.log(expected) / (1 - alpha) == pytest.approx(entropy, rel=1e-12)


@given(
    hnp.arrays(np.float64, st.integers(2, 20), elements=st.floats(-1e3, 1e3)),
    st.floats(0.1, 4.0),
    st.floats(1e-3, 10.0),
)
def test_v6_first_order_term_of_equation_12_is_exact(values, alpha, rho) -> None:
    assume(abs(alpha - 1) > 1e-3 and np.abs(values).max() > 1e-3)
    bound = renyi.first_order_regularizer(torch.tensor(values), rho, alpha)
    assert bound.certified
    assert bound.left == pytest.approx(bound.right, rel=1e-10)


@given(
    hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(0.01, 10.0)),
    st.floats(0.2, 4.0),
    st.data(),
)
def test_v6_derivative_of_the_ratio_matches_autograd_and_is_orthogonal(values, alpha, data) -> None:
    signs = data.draw(hnp.arrays(np.float64, len(values), elements=st.sampled_from([-1.0, 1.0])))
    g = torch.tensor(values * signs, requires_grad=True)
    ratio = (g.abs() ** (2 * alpha)).sum() / g.square().sum() ** alpha
    (expected,) = torch.autograd.grad(ratio, g)
    u = renyi.gradient_power_ratio_derivative(g, alpha)
    scale = 2 * alpha * float(ratio.detach()) / float(g.detach().norm())
    # Autograd cancels the two terms too; both errors are a few eps of the terms' size.
    terms = scale * max(1.0, float(g.detach().abs().max() / g.detach().abs().min()))
    assert float((u - expected).abs().max()) < 1e-11 * terms
    assert abs(float(u @ g.detach())) < 1e-11 * terms * float(g.detach().norm())


def test_v6_gradient_of_the_regularizer_in_the_parameters_is_the_hessian_times_u() -> None:
    model, inputs, targets = small_network(nn.Tanh())
    alpha = 1.2
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(model(inputs), targets)
    g = torch.cat([x.flatten() for x in torch.autograd.grad(loss, parameters, create_graph=True)])
    ratio = (g.abs() ** (2 * alpha)).sum() / g.square().sum() ** alpha
    expected = torch.cat([x.flatten() for x in torch.autograd.grad(ratio, parameters)])
    u = renyi.gradient_power_ratio_derivative(g, alpha)
    ours = dense_hessian(model, inputs, targets) @ u
    assert float((ours - expected).norm() / expected.norm()) < 1e-10


@pytest.mark.parametrize("alpha", [0.5, 1.2, 2.0])
def test_v6_equation_12_holds_to_first_order_in_rho(alpha: float) -> None:
    model, inputs, targets = small_network(nn.Tanh())
    sizes = (4e-3, 2e-3, 1e-3)
    errors = []
    for rho in sizes:
        bound = renyi.regularized_loss(model, (inputs, targets), rho, alpha)
        errors.append(abs(bound.difference))
        assert bound.assumptions["loss_is_affine_along_the_gradient"] is None
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([2.0, 2.0], abs=0.1)


@pytest.mark.parametrize("alpha", [0.5, 1.2, 2.0])
def test_v7_the_perturbation_is_that_of_sam_with_radius_rho_r_over_the_norm(alpha: float) -> None:
    g = gradient_of(*small_network(nn.Tanh()))
    rho = 0.65
    epsilon = renyi.renyi_perturbation(g, rho, alpha)
    radius = rho * renyi.gradient_power_ratio(g, alpha) / float(g.norm())
    sam = radius * g / g.norm()
    direction = 1.0 if alpha > 1 else -1.0
    assert torch.allclose(epsilon, direction * sam, rtol=1e-12, atol=0)
    # Algorithm 2 prints the opposite sign.
    opposite = renyi.renyi_perturbation(g, rho, alpha, "algorithm")
    assert torch.allclose(opposite, -epsilon, rtol=1e-14, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.2, 2.0])
def test_v7_descent_on_equation_11_often_ascends_equation_12(alpha: float) -> None:
    draws = 60
    ascents = 0
    for seed in range(draws):
        model, inputs, targets = small_network(nn.Tanh(), seed)
        bound = renyi.regularizer_descent(
            dense_hessian(model, inputs, targets), gradient_of(model, inputs, targets), alpha
        )
        assert not bound.certified
        ascents += not bound.holds
    # A descent method would have none; 6 of 60 is four standard errors above one in fifty.
    assert ascents >= 6


# --- V8: the determinant -----------------------------------------------------------------------


@given(positive, orders)
def test_v8_the_chain_from_the_determinant_to_the_entropy_holds(values, alpha) -> None:
    bounds = renyi.determinant_chain(values, alpha)
    scale = max(abs(b.left) for b in bounds) + 1
    for bound in bounds:
        assert bound.certified
        assert bound.slack >= -1e-10 * scale
    for lower, upper in itertools.pairwise(bounds):
        assert lower.right == upper.left


@pytest.mark.parametrize("alpha", ORDERS)
def test_v8_at_fixed_trace_the_bound_falls_where_the_determinant_rises(alpha: float) -> None:
    spectra = [[4 - 3 * t, t, t, t] for t in (0.05, 0.2, 0.5, 0.8, 1.0)]
    chains = [renyi.determinant_chain(spectrum, alpha) for spectrum in spectra]
    determinants = [chain[0].left for chain in chains]
    bounds = [chain[-1].right for chain in chains]
    assert determinants == sorted(determinants)
    assert bounds == sorted(bounds, reverse=True)


def test_v8_known_values_of_the_two_ends() -> None:
    uniform = renyi.determinant_chain([1.0] * 4, 1.5)
    assert uniform[0].left == pytest.approx(0, abs=1e-14)
    assert uniform[-1].right == pytest.approx(3 * math.log(4), rel=1e-12)  # 4.159
    peaked = renyi.determinant_chain([3.85, 0.05, 0.05, 0.05], 1.5)
    assert peaked[0].left == pytest.approx(math.log(3.85 * 0.05**3), rel=1e-12)  # −7.64
    assert peaked[-1].right > 5.4


@given(positive, orders)
def test_v8_the_sum_of_logarithms_is_below_d_entropies_and_so_below_one(values, alpha) -> None:
    printed = renyi.sum_of_logarithms(values, alpha)
    sharper = renyi.sum_of_logarithms(values, alpha, "sharper")
    assert printed.slack >= -1e-9 and sharper.slack >= -1e-9
    assert sharper.right <= printed.right + 1e-12


# --- V9: the ellipsoid ---------------------------------------------------------------------------


def uniform_in_ball(d: int, draws: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(draws, d, generator=generator, dtype=torch.float64)
    radii = torch.rand(draws, 1, generator=generator, dtype=torch.float64) ** (1 / d)
    return radii * x / x.norm(dim=1, keepdim=True)


def test_v9_mean_of_the_quadratic_form_over_its_ellipsoid() -> None:
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


def test_v9_divergence_is_the_logarithm_of_the_ratio_of_volumes() -> None:
    d, rho, radius, draws = 3, 0.7, 2.0, 40_000
    hessian = torch.diag(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    points = radius * uniform_in_ball(d, draws, 0)
    inside = ((points @ hessian * points).sum(1) <= rho**2).double().mean()
    probability = math.exp(-renyi.ellipsoid_divergence(hessian.diagonal(), rho, radius))
    error = (probability * (1 - probability) / draws) ** 0.5
    assert float(inside) == pytest.approx(probability, abs=4 * error)


@pytest.mark.parametrize("d", [1, 2, 5, 6, 10, 15, 1000, 10**6])
def test_v9_stirlings_rise_is_no_upper_bound_beyond_dimension_5(d: int) -> None:
    bound = renyi.neighbourhood_rise(torch.ones(d, dtype=torch.float64), log_volume=0.0)
    assert bound.holds == (d <= 5)
    assert bound.certified == (d <= 5)
    known = {1: 2.2073, 10: 0.95003, 1000: 0.99510}
    if d in known:
        assert bound.right / bound.left == pytest.approx(known[d], rel=1e-4)
    assert bound.right / bound.left > 0.944


def test_v9_exact_rise_is_the_mean_over_the_level_ellipsoid() -> None:
    d, rho = 3, 0.7
    hessian = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    # Volume of {ΔᵀHΔ ≤ ρ²} in three dimensions.
    volume = 4 / 3 * math.pi * rho**3 / float(hessian.prod().sqrt())
    rise = renyi.neighbourhood_rise(hessian, math.log(volume)).left
    assert rise == pytest.approx(0.5 * renyi.ellipsoid_mean(d, rho), rel=1e-12)


# --- V10: the whole Hessian and its layers -----------------------------------------------------


def block_diagonal(*blocks: Tensor) -> tuple[Tensor, list[int]]:
    return torch.block_diag(*blocks), [len(block) for block in blocks]


@pytest.mark.parametrize("alpha", ORDERS)
def test_v10_decomposition_over_blocks_is_exact(alpha: float) -> None:
    hessian, sizes = block_diagonal(*(random_matrix(d, d) for d in (2, 3, 4)))
    bound = renyi.block_decomposition(hessian, sizes, alpha)
    assert bound.certified
    assert bound.left == pytest.approx(bound.right, rel=1e-9)
    coupled = random_matrix(9, 0)
    assert not renyi.block_decomposition(coupled, sizes, alpha).certified


@given(positive, orders)
def test_v10_power_sums_lie_between_one_and_the_uniform_value(values, alpha) -> None:
    for bound in renyi.power_sum_range(values, alpha):
        assert bound.certified
        assert bound.slack >= -1e-12 * max(bound.right, 1)


@pytest.mark.parametrize("alpha", [a for a in ORDERS if a != 1])
def test_v10_uniform_spectra_attain_the_bound_of_lemma_f3(alpha: float) -> None:
    d = 7
    lower, upper = renyi.power_sum_range([0.3] * d, alpha)
    attained = lower if alpha > 1 else upper
    assert attained.left == pytest.approx(attained.right, rel=1e-12)


@pytest.mark.parametrize("alpha", [1.1, 1.5, 3.0])
def test_v10_lower_bounds_of_theorem_f4_hold_also_with_couplings(alpha: float) -> None:
    for seed in range(20):
        for bound in renyi.layerwise_lower_bounds(random_matrix(9, seed), [2, 3, 4], alpha):
            assert bound.certified and bound.holds
    for bound in renyi.layerwise_lower_bounds(2.5 * torch.eye(9), [2, 3, 4], alpha):
        assert bound.left == pytest.approx(bound.right, rel=1e-12)
    # Uniform blocks of unequal mean curvature attain the first bound, not the second.
    unequal, sizes = block_diagonal(torch.eye(2), 3 * torch.eye(3))
    first, second = renyi.layerwise_lower_bounds(unequal, sizes, alpha)
    assert first.slack == pytest.approx(0, abs=1e-12)
    assert second.slack > 1e-3


@pytest.mark.parametrize("beta", ORDERS)
def test_v10_multiples_of_the_identity_make_every_layer_uniform(beta: float) -> None:
    for bound in renyi.layers_are_uniform(0.3 * torch.eye(6), [2, 4], beta):
        assert bound.certified
        assert bound.left == pytest.approx(bound.right, rel=1e-12)
    for bound in renyi.layers_are_uniform(torch.diag(torch.arange(1.0, 7.0)), [2, 4], beta):
        assert not bound.holds and not bound.certified


def test_v10_lowering_the_global_sharpness_can_raise_a_layers() -> None:
    before = torch.diag(torch.tensor([1.0, 1.0, 10.0, 10.0], dtype=torch.float64))
    after = torch.diag(torch.tensor([1.2, 0.8, 3.0, 3.0], dtype=torch.float64))
    alpha = 1.5
    assert -renyi_entropy(before.diagonal(), alpha) == pytest.approx(-0.917, abs=1e-3)
    assert -renyi_entropy(after.diagonal(), alpha) == pytest.approx(-1.199, abs=1e-3)
    first, second = renyi.layerwise_consequence(before, after, [2, 2], alpha)
    assert (first.right, first.left) == pytest.approx((-math.log(2), -0.6633), abs=1e-4)
    assert not first.holds
    assert second.slack == pytest.approx(0, abs=1e-12)
    lacking = [name for name, met in first.assumptions.items() if met is not True]
    assert lacking == ["global_minimum_is_attained"]


@given(st.integers(0, 10**6), orders)
@settings(max_examples=60)
def test_v10_pinching_never_lowers_the_entropy(seed: int, alpha: float) -> None:
    matrix = random_matrix(6, seed)
    for sizes in ([2, 4], [1] * 6):
        bound = renyi.pinching(matrix, sizes, alpha)
        assert bound.certified
        assert bound.slack >= -1e-10


@pytest.mark.parametrize("alpha", [1.1, 1.5, 2.0, 3.0])
def test_v10_perturbation_bound_holds_and_the_sharper_one_is_smaller(alpha: float) -> None:
    for seed in range(30):
        matrix = random_matrix(6, seed)
        printed = renyi.coupling_perturbation(matrix, [2, 4], alpha)
        sharper = renyi.coupling_perturbation(matrix, [2, 4], alpha, "sharper")
        assert printed.certified and printed.holds
        assert sharper.certified and sharper.holds
        assert sharper.right <= printed.right * (1 + 1e-12)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75, 0.9])
def test_v10_below_order_one_no_constant_bounds_the_change_by_the_norm(alpha: float) -> None:
    ratios = []
    for s in (1e-3, 1e-6, 1e-9):
        h = torch.tensor([[1, 0, 0], [0, s, s], [0, s, s]], dtype=torch.float64)
        printed = renyi.coupling_perturbation_below_one(h, [2, 1], alpha)
        corrected = renyi.coupling_perturbation_below_one(h, [2, 1], alpha, "corrected")
        assert not printed.certified
        assert corrected.certified and corrected.holds
        # {1, s, s} becomes {1, 2s, 0}
        change = (2 * s**alpha - (2 * s) ** alpha) / (1 + 2 * s) ** alpha
        assert printed.left == pytest.approx(change, rel=1e-6)
        ratios.append(printed.left / printed.right)
    growth = [b / a for a, b in itertools.pairwise(ratios)]
    assert growth == pytest.approx([1000 ** (1 - alpha)] * 2, rel=0.01)


def test_v10_the_two_by_two_counterexample_of_order_a_quarter() -> None:
    t = 1e-4
    h = torch.tensor([[1, t], [t, t * t]], dtype=torch.float64)
    bound = renyi.coupling_perturbation_below_one(h, [1, 1], 0.25)
    assert bound.left == pytest.approx(1.0e-2, rel=1e-3)
    assert bound.right == pytest.approx(1.414e-4, rel=1e-3)
    assert not bound.holds


# --- V11: Haar translations ----------------------------------------------------------------------


def signed_permutations(d: int) -> Tensor:
    """All 2^d d! of them: an orthogonal design with Haar's second moment."""
    identity = torch.eye(d, dtype=torch.float64)
    return torch.stack(
        [
            torch.tensor(signs, dtype=torch.float64).unsqueeze(1) * identity[list(order)]
            for order in itertools.permutations(range(d))
            for signs in itertools.product((1.0, -1.0), repeat=d)
        ]
    )


def test_v11_haar_translations_lead_to_relative_flatness() -> None:
    matrices = signed_permutations(3)
    assert len(matrices) == 48
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (12,), generator=generator)
    weight = model[0].weight.detach()
    hessian = dense_hessian(model, inputs, targets, parameters=["0.weight"])
    bound = renyi.haar_relative_flatness(weight, hessian, matrices, rho=0.3)
    assert bound.certified
    assert bound.left == pytest.approx(bound.right, rel=1e-12)
    # Relative flatness, written out.
    blocks = hessian.reshape(4, 3, 4, 3)
    flatness = sum(
        float(weight[s] @ weight[r]) * float(blocks[s, :, r].trace())
        for s in range(4)
        for r in range(4)
    )
    assert bound.right == pytest.approx(0.3**2 / (2 * 3) * flatness, rel=1e-12)


def test_v11_few_rotations_are_no_haar_average() -> None:
    hessian, weight = random_matrix(6, 0), torch.randn(2, 3, dtype=torch.float64)
    bound = renyi.haar_relative_flatness(weight, hessian, signed_permutations(3)[:5])
    assert not bound.certified
    assert abs(bound.difference) > 1e-3 * bound.right


def test_v11_drawn_haar_matrices_agree_within_their_error() -> None:
    hessian = random_matrix(6, 0)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    matrices = renyi.haar_matrices(3, 4000)
    identity = torch.eye(3, dtype=torch.float64)
    assert float((matrices @ matrices.mT - identity).abs().max()) < 1e-13
    moves = (weight @ matrices).flatten(1)
    values = 0.5 * (moves @ hessian * moves).sum(1)
    bound = renyi.haar_relative_flatness(weight, hessian, matrices)
    error = float(values.std() / len(values) ** 0.5)
    assert bound.left == pytest.approx(bound.right, abs=4 * error)
    # Haar on all of O(d): the determinant is ±1 equally often, the trace's second moment is 1.
    assert abs(float(torch.linalg.det(matrices).mean())) < 4 / 4000**0.5
    squares = matrices.diagonal(dim1=1, dim2=2).sum(1).square()
    assert float(squares.mean()) == pytest.approx(1, abs=4 * float(squares.std()) / 4000**0.5)
