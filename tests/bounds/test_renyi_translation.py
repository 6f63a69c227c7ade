"""Haar translations, and relative flatness."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import random_matrix
from torch import Tensor, nn

from paperkit.bounds import renyi
from paperkit.curvature import dense_hessian


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


def test_haar_translations_lead_to_relative_flatness() -> None:
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


def test_few_rotations_are_no_haar_average() -> None:
    hessian, weight = random_matrix(6, 0), torch.randn(2, 3, dtype=torch.float64)
    bound = renyi.haar_relative_flatness(weight, hessian, signed_permutations(3)[:5])
    assert not bound.certified
    assert abs(bound.difference) > 1e-3 * bound.right


def test_drawn_haar_matrices_agree_within_their_error() -> None:
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
