import math

import pytest
import torch

from paperkit.experiments.studies import entropy_facts, reparametrization, reparametrization_digits
from paperkit.experiments.studies.reparametrization import (
    Measures,
    Problem,
    compare,
    measure,
    parse_factors,
    random_problem,
    run,
    spectrum,
)
from paperkit.ledger.criteria import matches
from paperkit.models.symmetries import flat_parameters

SMOKE = reparametrization.STUDY.grid("smoke")


def test_a_homogeneous_network_has_no_negative_layer_spectrum_but_the_brier_score_has():
    change = {}
    for network in ("relu", "relu_brier"):
        problem = random_problem(network, seed=0)
        before = measure(problem)
        change[network] = compare(before, before)["negative_share"]
    assert change["relu"] == 0
    assert change["relu_brier"] > 0.1


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


@pytest.mark.parametrize("configuration", SMOKE, ids=lambda configuration: configuration["case"])
def test_each_case_runs_and_gives_finite_metrics(configuration):
    metrics = run(configuration, context=None)
    values = [v for v in metrics.values() if not isinstance(v, list)]
    assert all(math.isfinite(value) for value in values)
    assert matches(configuration, {"case": configuration["case"]})


@pytest.mark.parametrize("text", ["3 half", "1/0x", "3, 1"])
def test_factors_that_are_no_numbers_are_refused_by_name(text):
    with pytest.raises(ValueError, match="factors="):
        parse_factors(text)


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
