"""The whole Hessian and its layers: Appendix F."""

from __future__ import annotations

import itertools
import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers import random_matrix
from hypothesis import given, settings
from torch import Tensor

from paperkit.bounds import renyi
from paperkit.estimators import renyi_entropy

ORDERS = (0.25, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0)

orders = st.floats(0.1, 5.0)
positive = hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(1e-4, 1e4))


def block_diagonal(*blocks: Tensor) -> tuple[Tensor, list[int]]:
    return torch.block_diag(*blocks), [len(block) for block in blocks]


@pytest.mark.parametrize("alpha", ORDERS)
def test_decomposition_over_blocks_is_exact(alpha: float) -> None:
    hessian, sizes = block_diagonal(*(random_matrix(d, d) for d in (2, 3, 4)))
    bound = renyi.block_decomposition(hessian, sizes, alpha)
    assert bound.certified
    assert bound.left == pytest.approx(bound.right, rel=1e-9)
    coupled = random_matrix(9, 0)
    assert not renyi.block_decomposition(coupled, sizes, alpha).certified


@given(positive, orders)
def test_power_sums_lie_between_one_and_the_uniform_value(values, alpha) -> None:
    for bound in renyi.power_sum_range(values, alpha):
        assert bound.certified
        assert bound.slack >= -1e-12 * max(bound.right, 1)


@pytest.mark.parametrize("alpha", [a for a in ORDERS if a != 1])
def test_uniform_spectra_attain_the_bound_of_lemma_f3(alpha: float) -> None:
    d = 7
    lower, upper = renyi.power_sum_range([0.3] * d, alpha)
    attained = lower if alpha > 1 else upper
    assert attained.left == pytest.approx(attained.right, rel=1e-12)


@pytest.mark.parametrize("alpha", [1.1, 1.5, 3.0])
def test_lower_bounds_of_theorem_f4_hold_also_with_couplings(alpha: float) -> None:
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
def test_multiples_of_the_identity_make_every_layer_uniform(beta: float) -> None:
    for bound in renyi.layers_are_uniform(0.3 * torch.eye(6), [2, 4], beta):
        assert bound.certified
        assert bound.left == pytest.approx(bound.right, rel=1e-12)
    for bound in renyi.layers_are_uniform(torch.diag(torch.arange(1.0, 7.0)), [2, 4], beta):
        assert not bound.holds and not bound.certified


def test_lowering_the_global_sharpness_can_raise_a_layers() -> None:
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
def test_pinching_never_lowers_the_entropy(seed: int, alpha: float) -> None:
    matrix = random_matrix(6, seed)
    for sizes in ([2, 4], [1] * 6):
        bound = renyi.pinching(matrix, sizes, alpha)
        assert bound.certified
        assert bound.slack >= -1e-10


@pytest.mark.parametrize("alpha", [1.1, 1.5, 2.0, 3.0])
def test_perturbation_bound_holds_and_the_sharper_one_is_smaller(alpha: float) -> None:
    for seed in range(30):
        matrix = random_matrix(6, seed)
        printed = renyi.coupling_perturbation(matrix, [2, 4], alpha)
        sharper = renyi.coupling_perturbation(matrix, [2, 4], alpha, "sharper")
        assert printed.certified and printed.holds
        assert sharper.certified and sharper.holds
        assert sharper.right <= printed.right * (1 + 1e-12)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75, 0.9])
def test_below_order_one_no_constant_bounds_the_change_by_the_norm(alpha: float) -> None:
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


def test_the_two_by_two_counterexample_of_order_a_quarter() -> None:
    t = 1e-4
    h = torch.tensor([[1, t], [t, t * t]], dtype=torch.float64)
    bound = renyi.coupling_perturbation_below_one(h, [1, 1], 0.25)
    assert bound.left == pytest.approx(1.0e-2, rel=1e-3)
    assert bound.right == pytest.approx(1.414e-4, rel=1e-3)
    assert not bound.holds
