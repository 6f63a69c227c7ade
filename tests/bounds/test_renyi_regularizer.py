"""RSAM's regularizer and perturbation: equations 11 and 12, and where they disagree."""

from __future__ import annotations

import itertools
import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers import gradient_of, small_network
from hypothesis import assume, given
from torch import nn

from paperkit.bounds import renyi
from paperkit.curvature import dense_hessian
from paperkit.estimators import renyi_entropy


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.2, 2.0])
def test_power_ratio_of_an_explicit_gradient(alpha: float) -> None:
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
def test_first_order_term_of_equation_12_is_exact(values, alpha, rho) -> None:
    assume(abs(alpha - 1) > 1e-3 and np.abs(values).max() > 1e-3)
    bound = renyi.first_order_regularizer(torch.tensor(values), rho, alpha)
    assert bound.certified
    assert bound.left == pytest.approx(bound.right, rel=1e-10)


@given(
    hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(0.01, 10.0)),
    st.floats(0.2, 4.0),
    st.data(),
)
def test_derivative_of_the_ratio_matches_autograd_and_is_orthogonal(values, alpha, data) -> None:
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


def test_gradient_of_the_regularizer_in_the_parameters_is_the_hessian_times_u() -> None:
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
def test_equation_12_holds_to_first_order_in_rho(alpha: float) -> None:
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
def test_the_perturbation_is_that_of_sam_with_radius_rho_r_over_the_norm(alpha: float) -> None:
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
def test_descent_on_equation_11_often_ascends_equation_12(alpha: float) -> None:
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
