"""Stochastic Lanczos quadrature against spectra that are known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from known_spectra import (
    INDEFINITE,
    POSITIVE,
    Counted,
    D,
    function_of,
    power_law,
    rotated,
    sign_vectors,
)

from paperkit.linalg.lanczos import lanczos
from paperkit.linalg.operator import FunctionOperator, as_operator
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linalg.quadrature import SpectralQuadrature, stochastic_lanczos_quadrature
from paperkit.linalg.rules import Rule, averaged_rule, gauss_rule, radau_rule
from paperkit.linalg.spectral_functions import SpectralFunction, power, t_log_t

EPSILON = torch.finfo(torch.float64).eps
FUNCTIONS = [power(0.5), power(0.9), power(1.3), power(1.7), power(2.5), power(3.5), t_log_t()]
by_name = {"argvalues": FUNCTIONS, "ids": lambda function: function.name}


def quadrature_of(eigenvalues: torch.Tensor, **arguments) -> SpectralQuadrature:
    positive = bool((eigenvalues >= 0).all())
    operator = Counted(rotated(eigenvalues), positive_semidefinite=positive)
    return stochastic_lanczos_quadrature(operator, **arguments)


def round_off(eigenvalues: torch.Tensor, function: SpectralFunction) -> float:
    """A shift of d nodes by 100 units of round-off, where the function is steepest: at zero."""
    largest = float(eigenvalues.max())
    shift = torch.tensor(100 * EPSILON * largest, dtype=torch.float64)
    steepest = abs(float(function.evaluate(shift)))
    relative = abs(float(function.evaluate(eigenvalues).sum())) + steepest
    return len(eigenvalues) * (steepest + 100 * EPSILON * relative)


def test_over_all_sign_vectors_the_mean_is_the_trace_of_any_function() -> None:
    eigenvalues = torch.tensor([-2, -1, -0.5, 0.0, 0.3, 0.3, 1, 4], dtype=torch.float64)
    matrix = rotated(eigenvalues)
    rule = gauss_rule(lanczos(lambda v: v @ matrix, sign_vectors(8), 8))
    for function in (torch.exp, torch.sin, lambda t: t**3, lambda t: t.abs().sqrt()):
        # Nodes near 0 are known to round-off, the root of them to its square root.
        mean = float(rule.integrate(function).mean())
        assert abs(mean - float(function(eigenvalues).sum())) < 8 * (100 * EPSILON * 4) ** 0.5
    torch.testing.assert_close(rule.weights.sum(dim=1), torch.full((256,), 8.0).double())


@pytest.mark.parametrize("m", [1, 2, 5])
def test_gauss_is_exact_to_degree_2m_minus_1_and_radau_to_2m_with_the_stated_error_beyond(
    m: int,
) -> None:
    matrix = rotated(power_law(20, 0.5))
    starts = draw_probes(5, 20, generator_of(0))
    found = lanczos(lambda v: v @ matrix, starts, m)
    for rule, first in ((gauss_rule(found), 2 * m), (radau_rule(found), 2 * m + 1)):
        for degree in range(first + 1):
            image = starts @ torch.matrix_power(matrix, degree)
            exact = (image * starts).sum(dim=1)
            missed = exact - rule.integrate(lambda t, power=degree: t**power)
            stated = torch.zeros(5, dtype=torch.float64)
            if degree == first:
                # t^degree has derivative degree!: what is missed is the node polynomial.
                stated = torch.stack(
                    [
                        node_polynomial(matrix, *pair)
                        for pair in zip(starts, rule.nodes, strict=True)
                    ]
                )
            assert bool(((missed - stated).abs() < 1e-13 * exact).all())


@pytest.mark.parametrize("m", [1, 2, 5, 8])
def test_averaged_rules_are_exact_to_degree_2m_and_finer_than_gauss(m: int) -> None:
    matrix = rotated(power_law(20, 0.5))
    starts = draw_probes(5, 20, generator_of(0))
    found = lanczos(lambda v: v @ matrix, starts, m)
    rule = averaged_rule(found)
    assert rule.nodes.shape == (5, 2 * m - 1) and bool((rule.weights >= 0).all())
    for degree in range(2 * m + 1 if m > 1 else 2):
        exact = (starts @ torch.matrix_power(matrix, degree) * starts).sum(dim=1)
        missed = exact - rule.integrate(lambda t, power=degree: t**power)
        assert bool((missed.abs() < 1e-13 * exact).all())


def test_an_averaged_rule_of_an_exhausted_krylov_space_is_the_gauss_rule() -> None:
    matrix = torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0, 0.5, 0.5]).double())
    found = lanczos(lambda v: v @ matrix, sign_vectors(6)[:4], 6)
    assert bool(found.exhausted.all())
    for function in (torch.exp, torch.sqrt):
        gauss, averaged = (rule(found).integrate(function) for rule in (gauss_rule, averaged_rule))
        torch.testing.assert_close(averaged, gauss, rtol=1e-13, atol=0)


def node_polynomial(matrix: torch.Tensor, start: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """vᵀ ∏ (A − θ)² v over the inner nodes, with one factor of A for a node at 0."""
    inner = nodes[nodes > 1e-12]
    image = start
    for node in inner:
        image = image @ matrix - node * image
    return image @ (image if len(inner) == len(nodes) else image @ matrix)


def test_radau_has_a_node_at_zero_and_the_others_inside() -> None:
    found = lanczos(Counted(rotated(power_law())), draw_probes(4, D, generator_of(0)), 7)
    nodes = radau_rule(found).nodes
    assert nodes.shape == (4, 8)
    assert bool((nodes[:, 0].abs() < 100 * EPSILON).all())
    assert bool(((nodes[:, 1:] > 0) & (nodes[:, 1:] <= 1 + 100 * EPSILON)).all())


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("function", **by_name)
def test_each_probes_rules_lie_on_the_sides_that_the_derivatives_say(
    name: str, function: SpectralFunction
) -> None:
    eigenvalues = POSITIVE[name]
    matrix = rotated(eigenvalues)
    starts = draw_probes(10, D, generator_of(0))
    image = function_of(matrix, lambda t: function.evaluate(torch.where(t > 1e-13, t, 0.0)))
    exact = ((starts @ image) * starts).sum(dim=1)
    tolerance = round_off(eigenvalues, function)
    for m in (1, 2, 4, 8):
        quadrature = quadrature_of(eigenvalues, probes=10, steps=m)
        for rule, order in ((quadrature.gauss, 2 * m), (quadrature.radau, 2 * m + 1)):
            sign = function.derivative_sign(order)
            error = exact - rule.integrate(function.evaluate)
            assert bool((sign * error > -tolerance).all()), (m, order)


@pytest.mark.parametrize("function", **by_name)
def test_the_bracket_shrinks_onto_the_value_of_the_same_probes(function: SpectralFunction) -> None:
    eigenvalues = power_law()
    limit = quadrature_of(eigenvalues, probes=20, steps=D).trace(function)
    tolerance = round_off(eigenvalues, function)
    widths = []
    for m in (2, 4, 8, 16):
        low, high = quadrature_of(eigenvalues, probes=20, steps=m).trace(function).bracket
        assert low - tolerance <= limit.value <= high + tolerance
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert limit.bracket_ratio == 0.0


@pytest.mark.parametrize("name", ["power law", "low rank", "one outlier"])
def test_exact_traces_lie_within_bracket_and_three_standard_errors(name: str) -> None:
    eigenvalues = POSITIVE[name]
    exact = {f.name: float(f.evaluate(eigenvalues).sum()) for f in FUNCTIONS}
    inside = dict.fromkeys(exact, 0)
    for seed in range(100):
        quadrature = quadrature_of(eigenvalues, steps=5, probes=50, seed=seed)
        for function in FUNCTIONS:
            estimate = quadrature.trace(function)
            margin = 3 * estimate.standard_error + round_off(eigenvalues, function)
            low, high = estimate.bracket
            inside[function.name] += low - margin <= exact[function.name] <= high + margin
    assert min(inside.values()) >= 97, inside


def test_integer_powers_need_few_steps_and_their_bracket_has_no_width() -> None:
    quadrature = quadrature_of(power_law(), steps=2, probes=10)
    for alpha in (1, 2, 3):
        estimate = quadrature.trace(power(alpha))
        assert estimate.bracket_ratio == 0.0
    fifth = quadrature.trace(power(5))
    assert fifth.bracket is None, "above degree 2m both rules are too small: no upper end"


def test_more_probes_narrow_the_standard_error_and_more_steps_the_bracket() -> None:
    few, many = (quadrature_of(power_law(), probes=k, steps=5) for k in (25, 400))
    ratio = few.trace(power(0.5)).standard_error / many.trace(power(0.5)).standard_error
    # The ratio is 4 within the spread of a standard error from 25 probes, 1/√48.
    assert 2.5 < ratio < 6
    longer = quadrature_of(power_law(), probes=25, steps=10)
    assert longer.trace(power(0.5)).bracket_ratio < few.trace(power(0.5)).bracket_ratio


def test_any_number_of_functions_costs_no_further_product() -> None:
    operator = Counted(rotated(power_law()))
    quadrature = stochastic_lanczos_quadrature(operator, steps=6, probes=10)
    assert operator.products == quadrature.products == 60
    for function in FUNCTIONS:
        quadrature.trace(function)
    assert operator.products == 60


def test_an_indefinite_operator_has_values_but_no_bracket() -> None:
    for eigenvalues in INDEFINITE.values():
        estimate = quadrature_of(eigenvalues, steps=3).trace(torch.exp)
        exact = float(eigenvalues.exp().sum())
        # Gauss with three nodes misses at most e / 6! of the sixth derivative's term.
        assert abs(estimate.value - exact) < 4 * estimate.standard_error + D * math.e / 720
    negative = quadrature_of(INDEFINITE["symmetric"], steps=3).trace(power(2))
    assert negative.bracket is None
    assert negative.bracket_ratio == math.inf


def test_the_zero_operator_and_dimension_one_are_exact() -> None:
    zero = quadrature_of(torch.zeros(4, dtype=torch.float64), probes=3)
    assert float(zero.trace(power(0.5))) == 0.0
    assert float(zero.trace(torch.cos)) == 4.0
    one = quadrature_of(torch.tensor([2.0], dtype=torch.float64), probes=3)
    estimate = one.trace(power(0.5))
    assert math.isclose(estimate.value, 2**0.5, rel_tol=1e-12)
    assert estimate.standard_error < 1e-12
    assert estimate.bracket_ratio == 0.0


def target(quadrature: SpectralQuadrature):
    return quadrature.trace(power(0.5))


def test_adaptive_steps_stop_where_the_bracket_is_narrower_than_the_standard_error() -> None:
    quadrature = quadrature_of(power_law(300), steps=None, targets=[target])
    m = int(quadrature.steps.max())
    assert quadrature.converged
    assert 8 <= m < 100
    assert target(quadrature).bracket_ratio <= 1
    fixed = quadrature_of(power_law(300), steps=m)
    assert math.isclose(float(target(fixed)), float(target(quadrature)), rel_tol=1e-9)
    earlier = quadrature_of(power_law(300), steps=math.floor(m / 1.25) - 1)
    assert target(earlier).bracket_ratio > 1


def test_adaptive_steps_say_when_they_met_their_cap() -> None:
    operator = Counted(rotated(power_law(300)), positive_semidefinite=True)
    quadrature = stochastic_lanczos_quadrature(operator, steps=None, max_steps=9, targets=[target])
    assert not quadrature.converged
    assert quadrature.products == operator.products == 900


def test_adaptive_steps_end_with_the_krylov_space() -> None:
    quadrature = quadrature_of(POSITIVE["clustered"], steps=None, targets=[target])
    assert quadrature.converged
    assert set(quadrature.steps.tolist()) == {3}


def test_a_memory_budget_changes_the_chunks_and_not_the_result() -> None:
    sizes = []

    def product(vectors: torch.Tensor) -> torch.Tensor:
        sizes.append(len(vectors))
        return vectors @ matrix

    matrix = rotated(power_law())
    operator = FunctionOperator(product, D)
    whole = stochastic_lanczos_quadrature(operator, steps=5, probes=21)
    assert set(sizes) == {21}
    sizes.clear()
    budget = 4 * 5 * D * 8
    pieces = stochastic_lanczos_quadrature(operator, steps=5, probes=21, memory_budget=budget)
    assert max(sizes) <= 4
    torch.testing.assert_close(pieces.gauss.nodes, whole.gauss.nodes, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pieces.gauss.weights, whole.gauss.weights, rtol=1e-6, atol=1e-9)
    adaptive = {"steps": None, "targets": [target], "probes": 10}
    small = quadrature_of(power_law(), **adaptive, memory_budget=1)
    assert len(set(small.steps.tolist())) > 1, "chunks of two probes need different steps"
    assert target(small).bracket_ratio < 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 1}, "probes=1 must be at least 2"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"steps": None}, "steps=None watches the brackets"),
        ({"distribution": "uniform"}, "'uniform' is unknown"),
    ],
)
def test_bad_input_is_refused(arguments, message) -> None:
    operator = Counted(rotated(INDEFINITE["symmetric"]))
    with pytest.raises(ValueError, match=message):
        stochastic_lanczos_quadrature(operator, **{"probes": 4, **arguments})


def test_an_operator_that_is_not_what_it_says_is_refused() -> None:
    operator = Counted(rotated(INDEFINITE["symmetric"]), positive_semidefinite=True)
    with pytest.raises(ValueError, match="has an eigenvalue below"):
        stochastic_lanczos_quadrature(operator, probes=4)


def test_a_function_is_refused_outside_its_domain() -> None:
    quadrature = quadrature_of(INDEFINITE["symmetric"], probes=4, steps=5)
    for function in (torch.log, power(0.5)):
        with pytest.raises(ValueError, match="not finite at some Ritz values"):
            quadrature.trace(function)
    for alpha in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"alpha=.* must be positive"):
            power(alpha)


def test_padding_has_no_value() -> None:
    rule = Rule(torch.tensor([[0.0, 2.0]]).double(), torch.tensor([[0.0, 3.0]]).double())
    assert float(rule.integrate(torch.log)) == pytest.approx(3 * math.log(2))


def test_quadrature_runs_on_the_operators_device(device: torch.device, explicit_devices) -> None:
    matrix = rotated(power_law()).to(device)
    with explicit_devices():
        quadrature = stochastic_lanczos_quadrature(
            as_operator(matrix, positive_semidefinite=True), steps=None, targets=[target]
        )
        estimate = quadrature.trace(t_log_t())
    assert estimate.bracket is not None
