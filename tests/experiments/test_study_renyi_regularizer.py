"""What the facts of Section 6.1 compute, on cases that are known by hand."""

import math

import numpy as np
import pytest
import torch

from paperkit.experiments.studies import renyi_regularizer
from paperkit.experiments.studies.renyi_regularizer import (
    Problem,
    algorithm_2,
    cosine,
    extra_step,
    literal_fault,
    perturbation_by_hand,
    ratio_by_hand,
    sign_of,
)


@pytest.mark.parametrize(
    "configuration",
    renyi_regularizer.grid("smoke"),
    ids=lambda c: " ".join(str(v) for v in c.values()),
)
def test_each_fact_gives_finite_numbers(configuration):
    for value in renyi_regularizer.run(configuration, context=None).values():
        assert math.isfinite(value)


def test_the_ratio_is_known_and_the_printed_powers_lose_signs():
    g = np.array([3.0, -4.0])
    assert ratio_by_hand(g, 2.0) == pytest.approx((81 + 256) / 625)
    assert literal_fault(g, 2.0) == 0
    assert literal_fault(g, 0.5) == pytest.approx(abs((3 - 4) / 7 - 1))
    assert literal_fault(g, 1.1) == 0.5
    assert literal_fault(np.abs(g), 1.5) == pytest.approx(0)


def test_the_perturbation_lies_along_the_gradient_above_the_order_one_and_against_it_below():
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    for alpha in (0.5, 2.0):
        epsilon = perturbation_by_hand(g, alpha)
        assert cosine(epsilon, g) == pytest.approx(-sign_of(alpha))
        expected = -sign_of(alpha) * ratio_by_hand(g.numpy(), alpha)
        assert float(g @ epsilon) == pytest.approx(expected)


def test_the_problems_gradient_and_regularizer_are_those_of_the_network():
    problem = Problem("gelu", 0)
    loss = torch.nn.functional.cross_entropy(problem.model(problem.inputs), problem.targets)
    slopes = torch.autograd.grad(loss, list(problem.model.parameters()))
    assert torch.allclose(torch.cat([s.flatten() for s in slopes]), problem.gradient)
    regularizer = float(problem.regularizer(problem.theta, 2.0))
    assert regularizer == pytest.approx(ratio_by_hand(problem.gradient.numpy(), 2.0))


def test_plain_steps_of_algorithm_2_are_gradient_descent():
    problem = Problem("gelu", 0)
    found = algorithm_2(problem, 1.2, 0.05, plain=1, steps=0, lr=0.1, decay=0.5)
    expected = problem.theta - 0.1 * (problem.gradient + 0.5 * problem.theta)
    assert torch.allclose(found, expected)
    perturbed = algorithm_2(problem, 1.2, 0.05, plain=0, steps=1, lr=0.1, decay=0.5)
    assert not torch.allclose(perturbed, expected)


def test_the_two_modes_add_different_steps():
    problem = Problem("gelu", 0)
    paper, exact = (extra_step(problem, 1.2, mode) for mode in ("paper", "exact"))
    assert abs(cosine(paper, exact)) < 0.9
