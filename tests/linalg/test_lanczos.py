"""Lanczos against dense matrices whose spectrum is known."""

from __future__ import annotations

import pytest
import torch
from known_spectra import EVERY, POSITIVE, Counted, D, power_law, rotated
from round_off import moves_of

from paperkit.linalg.lanczos import Lanczos, Tridiagonal, lanczos
from paperkit.linalg.operator import FunctionOperator
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.memory import chunk_sizes

EPSILON = torch.finfo(torch.float64).eps
every_spectrum = pytest.mark.parametrize("name", EVERY)


def starts(k: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return draw_probes(k, d, generator_of(seed), distribution="normal", dtype=dtype)


@every_spectrum
def test_the_basis_is_orthonormal_and_compresses_the_matrix_to_the_tridiagonal_one(
    name: str,
) -> None:
    matrix = rotated(EVERY[name])
    d = len(matrix)
    found = lanczos(Counted(matrix), starts(3, d), 25, keep_basis=True)
    tolerance = 10 * d * EPSILON
    for basis, small, steps in zip(found.basis, found.matrices(), found.steps, strict=True):
        basis, small = basis[:steps], small[:steps, :steps]
        identity = torch.eye(int(steps), dtype=torch.float64)
        assert (basis @ basis.T - identity).abs().max() < tolerance
        assert (basis @ matrix @ basis.T - small).abs().max() <= tolerance * matrix.norm()


def test_as_many_steps_as_dimensions_give_every_eigenvalue() -> None:
    eigenvalues = torch.linspace(-1, 2, 40, dtype=torch.float64)
    found = lanczos(Counted(rotated(eigenvalues)), starts(2, 40), 100)
    assert found.diagonal.shape == (2, 40)
    ritz = torch.linalg.eigvalsh(found.matrices())
    torch.testing.assert_close(ritz, eigenvalues.expand(2, 40), rtol=0, atol=40 * 10 * EPSILON)


FEW_DISTINCT = EVERY | {"rank two": torch.tensor([3.0, 1.0] + [0.0] * 58, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("name", "distinct"),
    [("clustered", 3), ("rank two", 3), ("identity", 1), ("zero", 1), ("dimension one", 1)],
)
def test_the_krylov_space_ends_with_the_number_of_distinct_eigenvalues(
    name: str, distinct: int
) -> None:
    # With many distinct eigenvalues the last residual is round-off that small β's have enlarged.
    matrix = rotated(FEW_DISTINCT[name])
    for moved in (matrix, *moves_of(matrix)):
        found = lanczos(Counted((moved + moved.T) / 2), starts(4, len(matrix)), 50)
        assert found.steps.tolist() == [distinct] * 4
        assert bool(found.exhausted.all())
        assert found.diagonal.shape == (4, distinct)


def test_one_exhausted_start_does_not_stop_the_others() -> None:
    matrix = rotated(power_law())
    eigenvector = torch.linalg.eigh(matrix).eigenvectors[:, -1]
    mixed = torch.stack([eigenvector, starts(1, D)[0]])
    found = lanczos(Counted(matrix), mixed, 8)
    assert found.steps.tolist() == [1, 8]
    assert found.exhausted.tolist() == [True, False]
    alone = lanczos(Counted(matrix), mixed[1:], 8)
    torch.testing.assert_close(found.diagonal[1:], alone.diagonal, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.off_diagonal[1:], alone.off_diagonal, rtol=1e-10, atol=1e-13)


def test_recurrences_that_are_continued_are_those_of_one_run() -> None:
    matrix = rotated(power_law())
    process = Lanczos(Counted(matrix), starts(3, D))
    for steps in (1, 4, 7):
        process.advance(steps)
    whole = lanczos(Counted(matrix), starts(3, D), 12, keep_basis=True)
    pieces = process.tridiagonal(keep_basis=True)
    assert process.operator.products == 36
    for name in ("diagonal", "off_diagonal", "basis"):
        ours, theirs = getattr(pieces, name), getattr(whole, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_last_off_diagonal_entry_is_the_norm_of_the_residual() -> None:
    matrix = rotated(power_law())
    found = lanczos(Counted(matrix), starts(1, D), 6, keep_basis=True)
    basis = found.basis[0]
    image = basis[-1] @ matrix
    residual = image - basis.T @ (basis @ image)
    torch.testing.assert_close(residual.norm(), found.off_diagonal[0, -1])


def test_starting_vectors_need_no_normalization() -> None:
    matrix = rotated(power_law())
    plain = lanczos(Counted(matrix), starts(2, D), 9)
    scaled = lanczos(Counted(matrix), 1e5 * starts(2, D), 9)
    torch.testing.assert_close(scaled.norm, 1e5 * plain.norm)
    torch.testing.assert_close(scaled.diagonal, plain.diagonal, rtol=1e-10, atol=1e-13)


def test_breakdown_is_judged_relative_to_the_size_of_the_operator() -> None:
    for scale in (1e-20, 1e20):
        found = lanczos(Counted(scale * rotated(POSITIVE["clustered"])), starts(2, D), 20)
        assert found.steps.tolist() == [3, 3]


def test_in_single_precision_orthogonality_is_kept_and_coefficients_are_double() -> None:
    matrix = rotated(power_law()).float()
    found = lanczos(Counted(matrix), starts(2, D, dtype=torch.float32), 40, keep_basis=True)
    assert found.diagonal.dtype == torch.float64
    identity = torch.eye(40)
    overlap = found.basis @ found.basis.transpose(1, 2)
    assert (overlap - identity).abs().max() < 10 * D * torch.finfo(torch.float32).eps


BAD = torch.ones(2, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("operator", "vectors", "steps", "message"),
    [
        (lambda v: v, BAD, 0, "steps=0"),
        (lambda v: v, BAD[0], 3, r"starts=<Tensor \(4,\)"),
        (lambda v: v, BAD[:, :0], 3, "starts=<Tensor"),
        (lambda v: v, BAD.long(), 3, "int64"),
        (lambda v: v, BAD * torch.tensor([[1.0], [0.0]]), 3, "zero or infinite"),
        (lambda v: v, BAD / 0, 3, "zero or infinite"),
        (lambda v: v * float("nan"), BAD, 3, "NaN or infinite entries"),
        (lambda v: v[:, :2], BAD, 3, "must take and return"),
        (lambda v: v.roll(1, dims=1) * torch.arange(1.0, 5.0), BAD, 3, "not symmetric"),
    ],
)
def test_bad_input_is_refused_with_its_name(operator, vectors, steps, message) -> None:
    with pytest.raises(ValueError, match=message):
        lanczos(operator, vectors, steps)


def test_lanczos_stays_on_the_device_of_its_starts(device: torch.device, explicit_devices) -> None:
    matrix = rotated(power_law()).to(device)
    with explicit_devices():
        first = draw_probes(2, D, generator_of(0), device=device)
        found = lanczos(lambda v: v @ matrix, first, 4, keep_basis=True)
    assert isinstance(found, Tridiagonal)
    assert found.diagonal.device == found.basis.device == matrix.device


@pytest.mark.parametrize("distribution", ["rademacher", "sphere", "normal"])
def test_probes_have_identity_covariance_and_do_not_depend_on_the_calls(distribution: str) -> None:
    probes = draw_probes(4000, 5, generator_of(0), distribution=distribution)
    # Products of two entries have variance at most 2, so 4 standard errors are 4 √(2 / 4000).
    covariance = probes.T @ probes / 4000
    assert (covariance - torch.eye(5, dtype=torch.float64)).abs().max() < 4 * (2 / 4000) ** 0.5
    generator = generator_of(0)
    calls = [draw_probes(k, 5, generator, distribution=distribution) for k in (3, 1, 7)]
    assert torch.equal(torch.cat(calls), probes[:11])
    if distribution != "normal":
        torch.testing.assert_close(probes.norm(dim=1), torch.full((4000,), 5**0.5).double())


def test_chunks_fit_the_budget_and_hold_two_vectors_where_they_can() -> None:
    assert chunk_sizes(10, 100, torch.float64, 3 * 800) == [3, 3, 2, 2]
    assert chunk_sizes(10, 100, torch.float64, 10**9) == [10]
    assert chunk_sizes(5, 100, torch.float64, 0) == [3, 2]
    assert chunk_sizes(1, 100, torch.float64, 0) == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 3, "normal"), "count=0"), ((2, 0, "normal"), "dimension=0"), ((2, 3, "x"), "'x'")],
)
def test_bad_probes_are_refused(arguments, message) -> None:
    count, dimension, distribution = arguments
    with pytest.raises(ValueError, match=message):
        draw_probes(count, dimension, generator_of(0), distribution=distribution)


@pytest.mark.parametrize("scale", [1e-25, 1e15])
def test_long_vectors_keep_their_norms_where_squares_leave_single_precision(scale: float) -> None:
    d = 2**18 + 3
    eigenvalues = scale * torch.linspace(1, 2, d)
    probes = draw_probes(2, d, generator_of(0), dtype=torch.float32)
    found = lanczos(lambda v: v * eigenvalues, probes, 3)
    wide = lanczos(lambda v: v * (eigenvalues.double() / scale), probes.double(), 3)
    for name in ("diagonal", "off_diagonal"):
        torch.testing.assert_close(
            getattr(found, name) / scale, getattr(wide, name), rtol=1e-3, atol=1e-6
        )


def test_an_operator_that_computes_in_single_precision_is_symmetric_to_that() -> None:
    matrix = rotated(power_law())
    noise = torch.randn(D, D, generator=generator_of(3), dtype=torch.float64)
    noisy = matrix + 1e-5 * noise / noise.norm()
    probes = starts(2, D)
    with pytest.raises(ValueError, match="not symmetric"):
        Lanczos(lambda v: v @ noisy, probes).advance(20)
    process = Lanczos(FunctionOperator(lambda v: v @ noisy, D, round_off=1.2e-7), probes)
    process.advance(20)
    assert process.steps == 20
    far = matrix + 1e-1 * noise / noise.norm()
    with pytest.raises(ValueError, match="not symmetric"):
        Lanczos(FunctionOperator(lambda v: v @ far, D, round_off=1.2e-7), probes).advance(20)
