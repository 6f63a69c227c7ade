"""The Rényi entropy: order, concavity, equation 6, and spectra with negative eigenvalues."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers import random_matrix
from hypothesis import assume, given

from paperkit.bounds import renyi
from paperkit.estimators import renyi_entropy

ORDERS = (0.25, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0)

orders = st.floats(0.1, 5.0)
positive = hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(1e-4, 1e4))


@given(positive, orders, st.data())
def test_mixing_outcomes_never_lowers_the_entropy(values, alpha, data) -> None:
    permutations = st.permutations(range(len(values)))
    mixed = values / 2 + values[data.draw(permutations)] / 3 + values[data.draw(permutations)] / 6
    assert renyi_entropy(torch.tensor(mixed), alpha) >= renyi_entropy(values, alpha) - 1e-9


@given(positive, orders, orders)
def test_the_entropy_decreases_in_the_order(values, a, b) -> None:
    assert renyi.decrease_in_order(values, min(a, b), max(a, b)).slack >= -1e-9


@given(positive, st.floats(0.2, 4.0))
def test_the_slope_in_the_order_is_a_divergence(values, alpha) -> None:
    assume(abs(alpha - 1) > 0.05)
    p = torch.tensor(values / values.sum())
    z = p**alpha / (p**alpha).sum()
    divergence = float((z * (z / p).log()).sum())
    h = 1e-4
    slope = (renyi_entropy(p, alpha + h) - renyi_entropy(p, alpha - h)) / (2 * h)
    # A central difference errs by h²/6 times the third derivative.
    assert slope == pytest.approx(-divergence / (1 - alpha) ** 2, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("alpha", ORDERS)
def test_two_vertices_refute_convexity_by_log_two(alpha: float) -> None:
    bound = renyi.convexity([1.0, 0.0], [0.0, 1.0], alpha)
    assert -bound.slack == pytest.approx(math.log(2), rel=1e-12)
    assert not bound.holds and not bound.certified


@given(st.floats(0.1, 1.0), st.integers(2, 8), st.data())
def test_the_entropy_is_concave_up_to_order_one(alpha, d, data) -> None:
    draw = hnp.arrays(np.float64, d, elements=st.floats(1e-6, 1.0))
    p, q = (x / x.sum() for x in (data.draw(draw), data.draw(draw)))
    bound = renyi.convexity(p, q, alpha, "corrected")
    assert bound.certified
    assert bound.slack >= -1e-10


@given(st.floats(1.0, 2.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_for_two_outcomes_the_entropy_is_concave_up_to_order_two(alpha, a, b) -> None:
    bound = renyi.convexity([a, 1 - a], [b, 1 - b], alpha, "corrected")
    assert bound.certified
    assert bound.slack >= -1e-10


@pytest.mark.parametrize(("alpha", "d", "gap"), [(2.0, 10, -0.0274), (1.1, 10**5, -0.880)])
def test_a_vertex_and_the_uniform_distribution_refute_concavity_above_one(
    alpha: float, d: int, gap: float
) -> None:
    vertex = torch.zeros(d, dtype=torch.float64)
    vertex[0] = 1.0
    bound = renyi.convexity(vertex, torch.full_like(vertex, 1 / d), alpha, "corrected")
    assert bound.slack == pytest.approx(gap, rel=2e-3)
    assert not bound.holds and not bound.certified


@pytest.mark.parametrize("alpha", [a for a in ORDERS if a != 1])
def test_equation_6_is_an_identity_for_semidefinite_matrices(alpha: float) -> None:
    for seed in range(5):
        bound = renyi.trace_form(random_matrix(6, seed), alpha)
        assert bound.certified
        assert bound.left == pytest.approx(bound.right, rel=1e-8)


def test_equation_6_agrees_with_powers_of_the_matrix_at_integer_orders() -> None:
    matrix = random_matrix(6, 0)
    for alpha in (2, 3, 4):
        power = float(torch.linalg.matrix_power(matrix, alpha).trace())
        expected = math.log(power / float(matrix.trace()) ** alpha) / (1 - alpha)
        assert renyi.trace_form(matrix, alpha).left == pytest.approx(expected, rel=1e-8)


def test_a_signed_trace_under_absolute_powers_diverges_at_order_one() -> None:
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
