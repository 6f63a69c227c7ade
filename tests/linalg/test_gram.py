"""Spectra through the Gram dual, on matrices whose spectrum is known."""

from __future__ import annotations

import pytest
import torch

from paperkit.linalg.gram import add_gram, gram_spectrum, sums_of_squares


def known_matrix(rows: int, columns: int, singular_values: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    k = len(singular_values)
    left, _ = torch.linalg.qr(torch.randn(rows, k, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, k, generator=generator, dtype=torch.float64))
    return left * singular_values @ right.T


@pytest.mark.parametrize(("rows", "columns"), [(30, 50), (50, 30), (40, 40)])
def test_known_spectrum_comes_back_from_either_side(rows: int, columns: int) -> None:
    singular_values = torch.logspace(0, -4, 20, dtype=torch.float64)
    matrix = known_matrix(rows, columns, singular_values)
    pieces = matrix.split(7, dim=0 if columns <= rows else 1)
    spectrum = gram_spectrum(pieces, rows, columns)
    assert spectrum.dimension == columns
    assert spectrum.rank == 20
    torch.testing.assert_close(
        spectrum.eigenvalues, singular_values.square(), rtol=1e-6, atol=1e-15
    )


def test_zero_matrix_has_rank_zero() -> None:
    spectrum = gram_spectrum([torch.zeros(3, 5)], 3, 5)
    assert spectrum.rank == 0
    assert spectrum.trace == 0.0


def test_lower_half_of_the_gram_matrix_is_complete() -> None:
    rows = torch.randn(23, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.zeros(23, 23, dtype=torch.float64)
    add_gram(total, rows, block=5)
    torch.testing.assert_close(total.tril(), (rows @ rows.T).tril())


@pytest.mark.parametrize("size", [1.0, 1e-25, 1e-12, 1e25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_squares_lose_nothing_to_the_range_of_float32(
    dtype: torch.dtype, size: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(4, 3, 2, 500, generator=generator) * size).to(dtype)
    rows[1] = 0.0
    rows[2, 1:] *= 1e-6
    expected = rows.double().square().sum(dim=(1, 2, 3))
    # A row's norm in float32 is off by no more than some units of its own round-off.
    torch.testing.assert_close(sums_of_squares(rows), expected, rtol=1e-6, atol=0.0)
    rows[3, 0, 0, 0] = float("nan")
    assert sums_of_squares(rows).isnan().tolist() == [False, False, False, True]
