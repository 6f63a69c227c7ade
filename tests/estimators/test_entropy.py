"""Rényi entropies from quadrature, against the entropies of known spectra."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import partial

import pytest
import torch
from torch import Tensor

from paperkit.estimators.entropy import renyi_entropy, renyi_entropy_estimate
from paperkit.linalg.operator import as_operator
from paperkit.linalg.quadrature import SpectralQuadrature, stochastic_lanczos_quadrature

D = 80
POWER_LAW = torch.arange(1, D + 1, dtype=torch.float64) ** -1.5
LOW_RANK = torch.cat([torch.rand(20, generator=torch.Generator().manual_seed(0)), torch.zeros(60)])
LOW_RANK = LOW_RANK.to(torch.float64)
INDEFINITE = torch.cat([POWER_LAW[:60], -0.3 * POWER_LAW[:20]])
ORDERS = (0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 2.5)


def _rotation(d: int) -> Tensor:
    normal = torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.linalg.qr(normal).Q


ROTATION = _rotation(D)


def quadrature_of(eigenvalues: Tensor, **arguments) -> SpectralQuadrature:
    matrix = (ROTATION * eigenvalues) @ ROTATION.T
    matrix = (matrix + matrix.T) / 2
    positive = bool((eigenvalues >= 0).all())
    return stochastic_lanczos_quadrature(
        as_operator(matrix, positive_semidefinite=positive), **arguments
    )


def test_equal_eigenvalues_give_the_logarithm_of_their_number() -> None:
    quadrature = quadrature_of(torch.full((D,), 3.0, dtype=torch.float64), probes=4)
    for alpha in ORDERS:
        assert abs(renyi_entropy_estimate(quadrature, alpha).value - math.log(D)) < 1e-12


@pytest.mark.parametrize("eigenvalues", [POWER_LAW, LOW_RANK], ids=["power law", "low rank"])
def test_exact_entropies_lie_within_bracket_and_three_standard_errors(eigenvalues: Tensor) -> None:
    inside = dict.fromkeys(ORDERS, 0)
    for seed in range(100):
        quadrature = quadrature_of(eigenvalues, steps=6, probes=100, seed=seed)
        for alpha in ORDERS:
            estimate = renyi_entropy_estimate(quadrature, alpha)
            low, high = estimate.bracket
            margin = 3 * estimate.standard_error
            inside[alpha] += low - margin <= renyi_entropy(eigenvalues, alpha) <= high + margin
    assert min(inside.values()) >= 97, inside


@pytest.mark.parametrize("policy", ["abs", "clamp"])
def test_with_all_steps_an_indefinite_spectrum_is_met_under_either_policy(policy: str) -> None:
    inside = dict.fromkeys(ORDERS, 0)
    for seed in range(40):
        quadrature = quadrature_of(INDEFINITE, steps=30, probes=50, seed=seed)
        for alpha in ORDERS:
            estimate = renyi_entropy_estimate(quadrature, alpha, policy)
            exact = renyi_entropy(INDEFINITE, alpha, policy)
            inside[alpha] += abs(estimate.value - exact) < 3.5 * estimate.standard_error
            assert (estimate.bracket is None) == (policy == "clamp")
            assert policy == "abs" or not estimate.reliable
    # Normal errors would leave 0.02 of 40 outside; three allow for their skewness.
    assert min(inside.values()) >= 37, inside


def _random(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


INDEFINITES = {
    "power law": INDEFINITE,
    # A few outliers, the rest spread over six orders of magnitude on both sides of zero.
    "trained layer": torch.cat(
        [10 * _random(5) + 1, 10 ** (-6 * _random(40)), -(10 ** (-2 - 5 * _random(35)))]
    ),
    "tiny bulk": torch.cat([torch.ones(3), 1e-5 * (_random(77) - 0.5)]),
    "low rank": torch.cat([_random(12) + 0.1, -_random(8), torch.zeros(60)]),
    "symmetric": torch.cat([POWER_LAW[:40], -POWER_LAW[:40]]),
    "flat": _random(80) - 0.5,
}


@pytest.mark.parametrize("name", INDEFINITES)
@pytest.mark.parametrize("steps", [3, 8, 15, 30])
def test_the_bracket_of_magnitudes_holds_what_all_steps_give(name: str, steps: int) -> None:
    eigenvalues = INDEFINITES[name]
    few, all_steps = (quadrature_of(eigenvalues, steps=m, probes=12) for m in (steps, D))
    for alpha in ORDERS:
        bracket = renyi_entropy_estimate(few, alpha).bracket
        # The rule for squares has a single node then, so the bracket would need a constant sign of
        # the second derivative, which |t| log |t| has not as a function of t².
        if alpha == 1 and steps == 3:
            assert bracket is None
            continue
        low, high = bracket
        limit = renyi_entropy_estimate(all_steps, alpha).value
        # Squared eigenvalues are known to 1e-16 of the largest: at order ½ that is 1e-4 of each.
        assert low - 1e-3 <= limit <= high + 1e-3, alpha


@pytest.mark.parametrize("name", INDEFINITES)
@pytest.mark.parametrize("steps", [15, None])
def test_a_reliable_entropy_of_magnitudes_is_within_four_standard_errors(
    name: str, steps: int | None
) -> None:
    eigenvalues = INDEFINITES[name]
    missed = dict.fromkeys(ORDERS, 0)
    for seed in range(20):
        targets = [partial(renyi_entropy_estimate, alpha=alpha) for alpha in (0.5, 1.5)]
        quadrature = quadrature_of(
            eigenvalues, steps=steps, probes=30, seed=seed, targets=targets, max_steps=D
        )
        for alpha in ORDERS:
            estimate = renyi_entropy_estimate(quadrature, alpha)
            error = abs(estimate.value - renyi_entropy(eigenvalues, alpha))
            missed[alpha] += estimate.reliable and error > 4 * estimate.standard_error
    # Among 20 seeds a single miss is allowed because a mean of few probes is skewed.
    assert max(missed.values()) <= 1, missed


def test_gauss_overestimates_the_entropy_below_order_two_and_underestimates_it_above() -> None:
    limit = quadrature_of(POWER_LAW, steps=D, probes=10)
    for alpha in (0.5, 0.9, 1.0, 1.1, 1.9, 2.1, 2.5, 2.9):
        exact = renyi_entropy_estimate(limit, alpha).value
        for steps in (2, 5, 9):
            estimate = renyi_entropy_estimate(
                quadrature_of(POWER_LAW, steps=steps, probes=10), alpha
            )
            error = estimate.value - exact
            assert error > 0 if alpha < 2 else error < 0, (alpha, steps)
            assert estimate.value in estimate.bracket
            assert estimate.bracket[0] <= exact <= estimate.bracket[1]


def test_order_two_is_exact_from_two_steps_on() -> None:
    two, many = (quadrature_of(POWER_LAW, steps=steps, probes=10) for steps in (2, 40))
    difference = float(renyi_entropy_estimate(two, 2)) - float(renyi_entropy_estimate(many, 2))
    assert abs(difference) < 1e-12


def test_order_one_is_the_limit_of_its_neighbours() -> None:
    quadrature = quadrature_of(POWER_LAW, steps=10)
    shannon = renyi_entropy_estimate(quadrature, 1.0)
    below, above = (renyi_entropy_estimate(quadrature, 1 + h) for h in (-1e-3, 1e-3))
    assert above.value < shannon.value < below.value
    for end in (below, above):  # the derivative in the order is at most a few nats
        assert abs(end.value - shannon.value) < 1e-2
        assert abs(end.standard_error / shannon.standard_error - 1) < 1e-2
        assert abs(end.bracket[0] - shannon.bracket[0]) < 1e-2


def test_entropies_decrease_with_their_order() -> None:
    quadrature = quadrature_of(INDEFINITE, steps=10)
    values = [renyi_entropy_estimate(quadrature, alpha).value for alpha in ORDERS]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("scale", [1e-120, 1e120])
def test_the_size_of_the_operator_does_not_matter(scale: float) -> None:
    plain, scaled = (quadrature_of(s * POWER_LAW, steps=8, probes=20) for s in (1.0, scale))
    for alpha in (0.5, 1.0, 3.0, 40.0):
        ours, theirs = (renyi_entropy_estimate(q, alpha) for q in (scaled, plain))
        assert math.isclose(ours.value, theirs.value, rel_tol=1e-9)
        assert math.isclose(ours.standard_error, theirs.standard_error, rel_tol=1e-6)


@pytest.mark.parametrize(("alpha", "factor"), [(0.5, 1.2), (0.99, 10.0), (1.1, 3.0)])
def test_probes_of_its_own_for_the_denominator_add_noise(alpha: float, factor: float) -> None:
    common, independent = [], []
    for seed in range(50):
        one, other = (
            quadrature_of(POWER_LAW, steps=10, probes=10, seed=s) for s in (seed, 1000 + seed)
        )
        joint = renyi_entropy_estimate(one, alpha)
        trace = [float(q.trace(lambda t: t)) for q in (one, other)]
        common.append(joint.value)
        shift = alpha / (1 - alpha) * math.log(trace[0] / trace[1])
        independent.append(joint.value + shift)
    spread = [float(torch.tensor(values).std()) for values in (common, independent)]
    assert spread[1] > factor * spread[0]


def test_the_standard_error_is_the_spread_over_seeds() -> None:
    for alpha in (0.5, 1.0, 2.5):
        found = [
            renyi_entropy_estimate(quadrature_of(POWER_LAW, steps=8, probes=60, seed=seed), alpha)
            for seed in range(80)
        ]
        values = torch.tensor([estimate.value for estimate in found], dtype=torch.float64)
        stated = torch.tensor([estimate.standard_error for estimate in found])
        # The spread of 80 values is known to 8 %; four of those.
        assert abs(float(stated.mean()) / float(values.std()) - 1) < 0.32


def test_adaptive_steps_resolve_every_entropy_that_is_asked_for() -> None:
    targets = [partial(renyi_entropy_estimate, alpha=alpha) for alpha in (0.3, 1.5)]
    quadrature = quadrature_of(POWER_LAW, steps=None, targets=targets)
    assert quadrature.converged
    assert all(target(quadrature).bracket_ratio <= 1 for target in targets)


def test_small_orders_are_called_unreliable_where_the_rank_is_not_resolved() -> None:
    for alpha in (1e-4, 0.1):
        estimate = renyi_entropy_estimate(quadrature_of(LOW_RANK, steps=5), alpha)
        exact = renyi_entropy(LOW_RANK, alpha)
        assert not estimate.reliable
        assert estimate.value - exact > 10 * estimate.standard_error
        assert estimate.bracket[0] - 3 * estimate.standard_error <= exact <= estimate.bracket[1]
    assert not renyi_entropy_estimate(quadrature_of(LOW_RANK, steps=5), 0.5).reliable
    assert not renyi_entropy_estimate(quadrature_of(INDEFINITE, steps=5), 0.2).reliable
    flat = torch.cat([torch.ones(20), torch.zeros(60)]).to(torch.float64)
    resolved = renyi_entropy_estimate(quadrature_of(flat), 1e-4)
    assert resolved.reliable
    assert abs(resolved.value - math.log(20)) < 4 * resolved.standard_error


@pytest.mark.parametrize(
    ("alpha", "policy", "message"),
    [
        (0.0, "abs", "alpha=0.0 must be positive"),
        (-1.0, "abs", "alpha=-1.0"),
        (math.inf, "abs", "alpha=inf must be"),
        (math.nan, "abs", "alpha=nan"),
        (0.5, "mixed", "'mixed' is unknown"),
    ],
)
def test_bad_input_is_refused(alpha: float, policy: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        renyi_entropy_estimate(quadrature_of(POWER_LAW, steps=2, probes=2), alpha, policy)


@pytest.mark.parametrize("policy", ["abs", "clamp"])
def test_a_spectrum_without_mass_is_refused(policy: str) -> None:
    empty = torch.zeros(D, dtype=torch.float64) if policy == "abs" else -POWER_LAW
    with pytest.raises(ValueError, match="no nonzero node"):
        renyi_entropy_estimate(quadrature_of(empty, probes=3, steps=3), 0.5, policy)


def test_entropies_need_no_tensor_of_their_own_device(
    device: torch.device, explicit_devices
) -> None:
    matrix = torch.diag(POWER_LAW).to(device)
    with explicit_devices():
        quadrature = stochastic_lanczos_quadrature(as_operator(matrix, positive_semidefinite=True))
        estimates = [renyi_entropy_estimate(quadrature, alpha) for alpha in (0.5, 1.0)]
    assert estimates[0].value > estimates[1].value


@pytest.mark.parametrize("distance", [0.3, 1e-2, 1e-4, 1e-6, 1e-9, 1e-13])
@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("eigenvalues", [POWER_LAW, LOW_RANK, INDEFINITE])
def test_next_to_order_one_no_digit_is_lost(
    distance: float, side: float, eigenvalues: Tensor
) -> None:
    alpha = 1.0 + side * distance
    with localcontext() as context:
        context.prec = 60
        values = [Decimal(abs(float(one))) for one in eigenvalues if float(one) != 0.0]
        p = [one / sum(values) for one in values]
        order = Decimal(alpha)  # what the float is, which differs from 1 + distance
        exact = sum((order * one.ln()).exp() for one in p).ln() / (1 - order)
    assert abs(renyi_entropy(eigenvalues, alpha) - float(exact)) < 1e-14 * len(values)


@pytest.mark.parametrize("d", [2, 10, 1000])
def test_equal_eigenvalues_give_their_logarithm_next_to_order_one(d: int) -> None:
    for alpha in (0.5, 0.99999, 1.0 - 1e-12, 1.0 + 1e-12, 1.00001, 3.0):
        assert renyi_entropy(torch.full((d,), 0.3), alpha) == pytest.approx(math.log(d), rel=1e-14)
