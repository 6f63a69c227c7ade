"""Singular values and norms of given Jacobians."""

import math

import pytest
import torch
from helpers import gaussian
from jacobians import with_singular_values

from paperkit.estimators.singular_values import (
    frobenius_norms,
    largest_singular_values,
    singular_values,
)


@pytest.mark.parametrize("shape", [(3, 4, 9), (3, 9, 4), (2, 1, 5), (2, 5, 1), (1, 4, 2, 3)])
def test_norms_agree_with_the_singular_values(shape) -> None:
    jacobian = gaussian(*shape)
    values = singular_values(jacobian)
    expected = torch.linalg.svdvals(jacobian.flatten(2))
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(
        largest_singular_values(jacobian), values[:, 0], rtol=1e-13, atol=0.0
    )
    torch.testing.assert_close(
        frobenius_norms(jacobian), values.square().sum(1).sqrt(), rtol=1e-13, atol=0.0
    )


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e-12, 1e25])
@pytest.mark.parametrize("shape", [(3, 5, 3000), (2, 3000, 4)])
def test_largest_singular_values_of_large_float32_jacobians_are_those_of_their_entries(
    shape, size
) -> None:
    jacobian = (gaussian(*shape) * size).float()
    jacobian[0] = 0.0  # a sample whose outputs do not move
    expected = torch.linalg.svdvals(jacobian.double())[:, 0]
    found = largest_singular_values(jacobian)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=0.0)
    alone = largest_singular_values(jacobian[1:2])
    torch.testing.assert_close(alone, found[1:2], rtol=1e-13, atol=0.0)


def test_an_entry_that_is_not_finite_is_refused_in_a_large_float32_jacobian() -> None:
    jacobian = gaussian(2, 3, 3000).float()
    jacobian[1, 2, 7] = math.nan
    with pytest.raises(ValueError, match=r"jacobian.*NaN or infinite"):
        largest_singular_values(jacobian)


def test_singular_values_eleven_orders_below_the_largest_keep_four_digits() -> None:
    spectrum = [1.0, 1e-5, 1e-11]
    values = singular_values(with_singular_values(spectrum, 40)[None])[0]
    # Backward stability: absolute error of a few units of round-off of the largest, 1e-15.
    assert values[2] == pytest.approx(1e-11, rel=1e-3)
    squared = torch.linalg.eigvalsh((m := with_singular_values(spectrum, 40)) @ m.T)
    assert abs(float(squared[0]) - 1e-22) > 1e-19  # the Gram matrix loses it
