"""An operator knows its size, and a matrix is one."""

import pytest
import torch
from torch import nn

from paperkit.curvature import FisherOperator, GaussNewtonOperator, HessianOperator
from paperkit.linalg import FunctionOperator, SymmetricOperator, as_operator, lanczos
from paperkit.linalg.operator import apply

MATRIX = torch.tensor([[2.0, -1.0], [-1.0, 3.0]], dtype=torch.float64)


def test_a_matrix_is_an_operator_of_its_own_size_and_format() -> None:
    for dtype in (torch.float64, torch.float32):
        operator = as_operator(MATRIX.to(dtype))
        assert isinstance(operator, SymmetricOperator)
        assert (operator.dimension, operator.dtype) == (2, dtype)
        assert operator.round_off == torch.finfo(dtype).eps
        assert not operator.positive_semidefinite
        rows = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=dtype)
        assert torch.equal(operator(rows), rows @ MATRIX.to(dtype))
    assert as_operator(MATRIX, positive_semidefinite=True).positive_semidefinite


def test_an_operator_is_returned_as_it_is() -> None:
    operator = FunctionOperator(lambda v: v, 3)
    assert as_operator(operator) is operator


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator, FisherOperator])
def test_the_operators_of_networks_know_themselves(kind) -> None:
    model, data = nn.Linear(3, 2).double(), (torch.ones(4, 3).double(), torch.zeros(4).long())
    operator = kind(model, data)
    assert isinstance(operator, SymmetricOperator)
    assert as_operator(operator) is operator
    assert operator.dimension == 8
    assert operator.positive_semidefinite == (kind is not HessianOperator)


def test_a_function_borrows_size_and_definiteness_of_another_operator() -> None:
    known = FunctionOperator(
        lambda v: v, 3, dtype=torch.float32, positive_semidefinite=True, round_off=1e-3
    )
    twice = FunctionOperator.like(known, lambda v: 2 * v)
    negative = FunctionOperator.like(known, lambda v: -v, positive_semidefinite=False)
    for name in ("dimension", "dtype", "device", "round_off"):
        assert getattr(twice, name) == getattr(known, name) == getattr(negative, name)
    assert twice.positive_semidefinite and not negative.positive_semidefinite
    assert torch.equal(twice(torch.ones(1, 3)), torch.full((1, 3), 2.0))


def test_round_off_is_never_below_that_of_the_format() -> None:
    assert FunctionOperator(lambda v: v, 3, round_off=1e-30).round_off == 2**-52


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (lambda v: v, TypeError, "does not know its size: pass FunctionOperator"),
        ("matrix", TypeError, "operator is 'matrix'"),
        (torch.ones(2, 3), ValueError, "square"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), ValueError, "not symmetric"),
        (torch.tensor([[torch.nan]]), ValueError, "NaN or infinite entries"),
        (torch.ones(2, 2).long(), ValueError, "floating-point numbers"),
    ],
)
def test_what_is_no_symmetric_matrix_is_refused(matrix, error, message: str) -> None:
    with pytest.raises(error, match=message):
        as_operator(matrix)


def test_starting_vectors_must_fit_the_operator() -> None:
    with pytest.raises(ValueError, match="vectors of 3 entries, and the operator takes 2"):
        lanczos(MATRIX, torch.ones(1, 3, dtype=torch.float64), 2)


def test_images_are_checked_and_no_vector_needs_none() -> None:
    refusing = FunctionOperator(lambda v: 1 / 0, 2)
    assert apply(refusing, torch.ones(0, 2)).shape == (0, 2)
    with pytest.raises(ValueError, match="must take and return vectors as rows"):
        apply(FunctionOperator(lambda v: v[:, :1], 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        apply(FunctionOperator(lambda v: v / 0, 2), torch.ones(1, 2))
