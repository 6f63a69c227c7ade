"""The row space of matrices whose rank and projector are known."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from round_off import moves_of
from torch import Tensor

from paperkit.linalg.row_space import (
    RowBlocks,
    default_tolerance,
    row_factors,
    triangular_factor,
)

TOLERANCE = 1e-12


def gaussian(*shape: int, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    matrix = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
    return matrix.to(device)


def in_blocks(matrix: Tensor, size: int = 7, scales: Tensor | None = None) -> RowBlocks:
    lengths = matrix.norm(dim=1) if scales is None else scales
    return lambda: zip(matrix.split(size), lengths.split(size), strict=True)


def projector(matrix: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    basis = row_factors(in_blocks(matrix)).space(tolerance).basis(matrix, matrix.norm(dim=1))
    return basis @ basis.T


@pytest.mark.parametrize("shape", [(20, 5), (5, 20), (12, 12), (1, 4), (4, 1)])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_triangular_factor_of_blocks_is_that_of_the_whole(
    shape: tuple[int, int], size: int, device: torch.device
) -> None:
    matrix = gaussian(*shape, device=device)
    factor = triangular_factor(matrix.split(size))
    assert factor.shape == (min(shape), shape[1])
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor, matrix.T @ matrix, rtol=1e-13, atol=1e-13)


@given(st.integers(1, 25), st.integers(1, 25), st.integers(1, 8), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_the_basis_is_orthonormal_and_spans_the_range(m: int, d: int, k: int, seed: int) -> None:
    left, right = gaussian(m, k, seed=seed), gaussian(k, d, seed=seed + 1)
    rank = min(m, d, k)
    matrix = left @ right
    basis = row_factors(in_blocks(matrix)).space(1e-11).basis(matrix, matrix.norm(dim=1))
    # A random square factor of size 8 has a condition number above 1e4 once in some thousand.
    assert basis.shape == (m, rank)
    identity = torch.eye(rank, dtype=torch.float64)
    assert float((basis.T @ basis - identity).abs().max()) < 1e-8
    residual = matrix - basis @ (basis.T @ matrix)
    assert float(residual.norm()) < 1e-8 * float(matrix.norm())


def test_the_projector_is_that_of_the_pseudo_inverse(device: torch.device) -> None:
    matrix = gaussian(30, 4, device=device) @ gaussian(4, 11, seed=1, device=device)
    expected = matrix @ torch.linalg.pinv(matrix)
    torch.testing.assert_close(projector(matrix), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio", [1e-6, 1e-11, 1e-40])
def test_short_rows_count_towards_the_rank(ratio: float) -> None:
    rows = gaussian(8, 12)
    rows[3:6] *= ratio
    assert row_factors(in_blocks(rows)).space(TOLERANCE).rank == 8
    if ratio <= 1e-11:  # the plain matrix hides them
        assert int((torch.linalg.svdvals(rows @ rows.T) > 1e-16 * 8).sum()) < 8


def test_a_duplicated_row_does_not_raise_the_rank_and_shares_its_leverage() -> None:
    rows = gaussian(6, 10)
    leverage = projector(torch.cat([rows, rows[:1], rows[:1]])).diagonal()
    expected = torch.tensor([1 / 3, 1, 1, 1, 1, 1, 1 / 3, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(leverage, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio", [1e-3, 1e-7, 1e-12, 1e-20, 1e-60, 1e-140])
def test_round_off_of_long_rows_takes_nothing_from_short_ones(ratio: float) -> None:
    # The ten long rows span three directions; the two short ones add a fourth and share it equally.
    long_rows = gaussian(10, 3) @ gaussian(3, 9, seed=1)
    new = gaussian(1, 9, seed=2)
    matrix = torch.cat([long_rows, ratio * new, ratio * new])
    leverage = projector(matrix).diagonal()
    alone = projector(long_rows).diagonal()
    torch.testing.assert_close(leverage[:10], alone, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        leverage[10:], torch.full_like(leverage[10:], 0.5), rtol=1e-7, atol=0
    )


@pytest.mark.parametrize("ratio", [1e-4, 1e-9, 1e-15])
def test_a_short_row_among_directions_of_long_rows_has_a_short_leverage(ratio: float) -> None:
    long_rows = gaussian(10, 3)
    short = gaussian(1, 3, seed=2)
    leverage = projector(torch.cat([long_rows, ratio * short]))[10, 10]
    expected = ratio**2 * (short @ torch.linalg.inv(long_rows.T @ long_rows) @ short.T)
    expected = expected / (1 + expected)
    torch.testing.assert_close(leverage, expected.squeeze(), rtol=1e-10, atol=0.0)


def test_a_tolerance_cuts_the_rank() -> None:
    left, _ = torch.linalg.qr(gaussian(12, 3))
    right, _ = torch.linalg.qr(gaussian(9, 3, seed=1))
    matrix = left * torch.tensor([1.0, 1e-3, 1e-8], dtype=torch.float64) @ right.T
    # All rows get the same scale, so that the singular values are those of the matrix.
    ones = torch.ones(12, dtype=torch.float64)
    factors = row_factors(in_blocks(matrix, scales=ones))
    for tolerance, rank in ((1e-12, 3), (1e-6, 2), (1e-2, 1)):
        space = factors.space(tolerance)
        basis = space.basis(matrix, ones)
        assert space.rank == rank
        expected = left[:, :rank] @ left[:, :rank].T
        # The direction of 1e-8 is known to 1e-16 of the largest.
        torch.testing.assert_close(basis @ basis.T, expected, rtol=1e-6, atol=1e-6)


def test_zero_rows_are_outside_and_a_zero_matrix_has_rank_zero() -> None:
    rows = gaussian(5, 9)
    rows[2] = 0.0
    assert float(projector(rows)[2].abs().max()) == 0.0
    zeros = torch.zeros(4, 3, dtype=torch.float64)
    empty = row_factors(in_blocks(zeros)).space(TOLERANCE)
    assert empty.rank == 0
    assert empty.basis(zeros, zeros[:, 0]).shape == (4, 0)


def test_a_row_that_is_round_off_next_to_its_scale_counts_as_zero() -> None:
    rows = gaussian(3, 9)
    rows[1] *= 1e-16
    with_scales = in_blocks(rows, scales=torch.ones(3, dtype=torch.float64))
    assert row_factors(with_scales).space(1e-13).rank == 2


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_the_resolvent_root_squares_to_the_resolvent(shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape)
    root, shift = row_factors(in_blocks(matrix)).resolvent_root(0.1)
    gram = matrix.T @ matrix
    assert shift == pytest.approx(0.1 * float(torch.linalg.eigvalsh(gram)[-1]), rel=1e-13)
    inverse = torch.linalg.inv(gram + shift * torch.eye(shape[1], dtype=torch.float64))
    expected = matrix @ inverse @ matrix.T
    torch.testing.assert_close(matrix @ root @ root.T @ matrix.T, expected, rtol=1e-12, atol=1e-12)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks is empty"):
        triangular_factor([])
    with pytest.raises(ValueError, match="relative_shift=0"):
        row_factors(in_blocks(gaussian(3, 3))).resolvent_root(0.0)
    with pytest.raises(ValueError, match="G is zero"):
        row_factors(in_blocks(torch.zeros(3, 3, dtype=torch.float64))).resolvent_root(0.1)
    with pytest.raises(ValueError, match="row_blocks is empty"):
        row_factors(lambda: [])


def test_everything_stays_on_the_device(device: torch.device, explicit_devices) -> None:
    matrix = gaussian(9, 5, device=device)
    blocks = in_blocks(matrix)
    with explicit_devices():
        factors = row_factors(blocks)
        space = factors.space(default_tolerance(9, 5, matrix.dtype))
        basis = space.basis(matrix, matrix.norm(dim=1))
        root, _ = factors.resolvent_root(1e-3)
    assert basis.device == root.device == matrix.device


def test_short_rows_among_directions_that_long_ones_barely_have_add_nothing() -> None:
    # The long rows know their weakest direction to round-off over 1e-5 only. Short rows of unit
    # length along it leave 1e-11 of themselves outside of it, and are no new direction.
    weak = torch.tensor([1.0, 1.0, 1.0, 1e-5], dtype=torch.float64)
    directions, _ = torch.linalg.qr(gaussian(12, 4, seed=1))
    long_rows = (gaussian(20, 4) * weak) @ directions.T
    short_rows = 1e-8 * gaussian(20, 4, seed=2) @ directions.T
    matrix = torch.cat([long_rows, short_rows])
    for other in moves_of(matrix):
        factors = row_factors(in_blocks(other))
        assert len(factors.strata) > 1
        assert factors.space(1e-13).rank == 4
    # A direction that only a short row has counts as a fifth.
    more = torch.cat([matrix, 1e-8 * gaussian(1, 12, seed=3)])
    for other in moves_of(more):
        assert row_factors(in_blocks(other)).space(1e-13).rank == 5
