import math

import pytest
import torch
from torch import nn

from paperkit.curvature import dense_hessian
from paperkit.experiments.studies import entropy_facts, reparametrization, reparametrization_digits
from paperkit.experiments.studies.reparametrization import (
    CASES,
    SCALINGS,
    BatchStandardization,
    Measures,
    Problem,
    RadialMap,
    build_network,
    changed_model,
    compare,
    flat_parameters,
    grid_of,
    layerwise,
    layerwise_with_biases,
    measure,
    nodewise,
    nodewise_uncompensated,
    parse_factors,
    radial_map_at,
    random_problem,
    reparametrized_by,
    reparametrized_by_sinh,
    rescale,
    run,
    spectrum,
    weight_names,
)
from paperkit.ledger.criteria import matches

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
    model = build_network("relu", seed=0)
    before = flat_parameters(model).clone()
    rescale(model, layerwise(model, FACTORS))
    assert torch.equal(flat_parameters(model), before)


def test_a_homogeneous_network_has_no_negative_layer_spectrum_but_the_brier_score_has():
    change = {}
    for network in ("relu", "relu_brier"):
        problem = random_problem(network, seed=0)
        before = measure(problem)
        change[network] = compare(before, before)["negative_share"]
    assert change["relu"] == 0
    assert change["relu_brier"] > 0.1


def test_standardization_with_epsilon_is_standardization_with_another_epsilon_after_scaling():
    z = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled = BatchStandardization(1e-2)(0.3 * z)
    assert torch.allclose(scaled, BatchStandardization(1e-2 / 0.3**2)(z), rtol=1e-12, atol=0)
    assert torch.allclose(
        BatchStandardization(1e-2)(z),
        nn.functional.batch_norm(z, None, None, training=True, eps=1e-2),
        rtol=1e-12,
        atol=1e-15,
    )


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


def test_the_spectrum_of_a_singular_matrix_has_exact_zeros():
    factor = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert int((spectrum(factor.T @ factor) != 0).sum()) == 3


def _measures(outputs, values):
    values = torch.tensor(values, dtype=torch.float64)
    outputs = torch.tensor(outputs, dtype=torch.float64)
    return Measures(outputs, 1.0, [values], [values], values)


def test_a_change_of_the_function_is_no_counterexample():
    before = _measures([1.0, 2.0], [1.0, 1.0, 2.0])
    same, other = (_measures([1.0, x], [1.0, 2.0, 9.0]) for x in (2.0, 2.1))
    for metric in ("entropy_change", "biased_entropy_change", "joint_entropy_change"):
        assert compare(before, same)[f"{metric}_of_the_same_function"] > 0.1
        assert compare(before, other)[f"{metric}_of_the_same_function"] == 0
        assert compare(before, other)[metric] > 0.1


def test_compared_measures_are_the_known_ratios():
    change = compare(_measures([1.0], [1.0, 1.0]), _measures([1.0], [1.0, 3.0]))
    assert change["trace_change"] == pytest.approx(1.0)
    assert change["lambda_max_change"] == pytest.approx(2.0)
    shannon = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert change["entropy_change_by_order"][1] == pytest.approx(1 - shannon / math.log(2))
    assert change["approximation_slack"] == pytest.approx(0.05 - change["entropy_change"])


@pytest.mark.parametrize("study", [reparametrization.STUDY, reparametrization_digits.STUDY])
def test_a_smoke_run_visits_every_case_once(study):
    smoke, laptop = study.grid("smoke"), study.grid("laptop")
    assert len({c["case"] for c in smoke}) == len(smoke)
    assert {c["case"] for c in smoke} == {c["case"] for c in laptop}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_runs_and_gives_finite_metrics(case):
    (configuration,) = grid_of([case], "smoke")
    metrics = run(configuration, context=None)
    values = [v for v in metrics.values() if not isinstance(v, list)]
    assert all(math.isfinite(value) for value in values)
    assert matches(configuration, {"case": case.name})


@pytest.mark.parametrize("text", ["3 half", "1/0x", "3, 1"])
def test_factors_that_are_no_numbers_are_refused_by_name(text):
    with pytest.raises(ValueError, match="factors="):
        parse_factors(text)


def test_unknown_networks_and_transformations_are_refused():
    with pytest.raises(ValueError, match="network='relu_dropout' is unknown"):
        build_network("relu_dropout", seed=0)
    model = build_network("relu", seed=0)
    with pytest.raises(ValueError, match="transformation='rotation' is unknown"):
        changed_model(model, "rotation", (), seed=0)
    with pytest.raises(ValueError, match="factors has 2 entries"):
        SCALINGS["layerwise"](model, (2.0, 0.5))


def test_layers_are_weights_and_not_biases():
    assert weight_names(build_network("relu_bias", seed=0)) == ["0.weight", "2.weight", "4.weight"]


def test_problems_depend_on_the_seed_alone():
    first, again, other = (random_problem("relu", seed) for seed in (0, 0, 1))
    assert torch.equal(flat_parameters(first.model), flat_parameters(again.model))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(flat_parameters(first.model), flat_parameters(other.model))
    assert isinstance(first, Problem)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 3.0])
def test_two_vertices_refute_convexity_by_log_two(alpha):
    excess = entropy_facts.midpoint_excess(
        entropy_facts.vertex(7), entropy_facts.vertex(7).flip(0), alpha
    )
    assert excess == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize(("alpha", "dimension"), [(1.5, 65), (2.0, 17), (3.0, 9)])
def test_beyond_four_to_the_alpha_over_alpha_minus_one_the_entropy_is_not_concave(alpha, dimension):
    assert dimension > 4 ** (alpha / (alpha - 1))
    ends = entropy_facts.vertex(dimension), entropy_facts.uniform(dimension)
    assert entropy_facts.midpoint_excess(*ends, alpha) < 0
    assert entropy_facts.midpoint_excess(*ends, alpha=1.0) > 0


def test_two_outcomes_are_not_concave_beyond_order_two():
    p = torch.tensor([0.0, 1.0], dtype=torch.float64)
    q = torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert entropy_facts.midpoint_excess(p, q, 5.0) < -1e-3
    assert entropy_facts.midpoint_excess(p, q, 2.0) > 0


def test_the_papers_grid_has_37_increasing_orders():
    orders = entropy_facts.PAPER_ALPHAS
    assert len(orders) == 37
    assert list(orders) == sorted(set(orders))


@pytest.mark.parametrize("fact", ["mixing", "maximum", "order"])
def test_true_facts_have_no_negative_slack(fact):
    configurations = [c for c in entropy_facts.STUDY.grid("smoke") if c["fact"] == fact]
    assert configurations
    for configuration in configurations:
        assert entropy_facts.run(configuration, context=None)["slack"] >= -1e-10


def test_mixing_returns_a_distribution_with_the_same_mean_entry():
    generator = torch.Generator().manual_seed(0)
    p = entropy_facts.random_distribution(10, generator)
    mixed = entropy_facts.random_mixing(p, generator)
    assert float(mixed.sum()) == pytest.approx(1.0)
    assert float(mixed.max()) < float(p.max())
