"""Trace estimators at equal numbers of products, against traces that are known exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from known_spectra import EVERY, INDEFINITE, Counted, D, power_law, rotated, sign_vectors

from paperkit.linalg.eigenpairs import top_eigenpairs
from paperkit.linalg.lanczos import lanczos
from paperkit.linalg.operator import FunctionOperator
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linalg.traces import (
    Deflation,
    TraceEstimate,
    hutch_plus_plus,
    hutchinson,
    krylov_deflation,
    xtrace,
)

EPSILON = torch.finfo(torch.float64).eps


def deflated(operator, products: int, *, seed: int = 0):
    """Half of the products for a Krylov space, with a seed of its own."""
    deflation = krylov_deflation(operator, products // 2, seed=10**6 + seed)
    return hutchinson(operator, products, seed=seed, distribution="sphere", deflation=deflation)


ESTIMATORS: dict[str, Callable[..., TraceEstimate]] = {
    "hutchinson": hutchinson,
    "deflated": deflated,
    "hutch++": hutch_plus_plus,
    "xtrace": xtrace,
}
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


def runs(name: str, eigenvalues: torch.Tensor, products: int, seeds: int):
    """Return the errors of many runs and the standard errors they state, (seeds,) each."""
    operator = Counted(rotated(eigenvalues))
    found = [ESTIMATORS[name](operator, products, seed=seed) for seed in range(seeds)]
    values = torch.tensor([estimate.value for estimate in found], dtype=torch.float64)
    stated = torch.tensor([estimate.standard_error for estimate in found], dtype=torch.float64)
    return values - eigenvalues.sum(), stated


def root_mean_square(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def test_random_signs_have_mean_and_variance_of_the_closed_form() -> None:
    matrix = rotated(torch.tensor([-2, -1, 0.5, 0, 0.3, 0.3, 1, 4], dtype=torch.float64))
    one_step = lanczos(lambda v: v @ matrix, sign_vectors(8), 1)
    samples = one_step.diagonal[:, 0] * 8
    variance = 2 * (matrix.square().sum() - matrix.diagonal().square().sum())
    torch.testing.assert_close(samples.mean(), matrix.trace(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(samples.var(unbiased=False), variance, rtol=1e-12, atol=0)


def test_normal_probes_have_twice_the_squared_frobenius_norm_as_variance() -> None:
    eigenvalues = power_law()
    operator = Counted(rotated(eigenvalues))
    stated = hutchinson(operator, 40_000, distribution="normal").standard_error
    variance = stated**2 * 40_000
    # The fourth cumulants of a weighted sum of squares: Var of the variance, four of its errors.
    second = 2 * float(eigenvalues.square().sum())
    fourth = 48 * float(eigenvalues.pow(4).sum()) + 3 * second**2
    margin = 4 * ((fourth - second**2) / 40_000) ** 0.5
    assert abs(variance - second) < margin


@every_estimator
@pytest.mark.parametrize("spectrum", ["power law", "symmetric", "mostly positive"])
def test_estimates_are_unbiased_and_state_their_error(name: str, spectrum: str) -> None:
    errors, stated = runs(name, EVERY[spectrum], 18, 200)
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / 200**0.5
    ratio = root_mean_square(stated) / root_mean_square(errors)
    # XTrace's samples are dependent, and its paper promises the order of magnitude.
    assert 0.5 < ratio < 2 if name == "xtrace" else 0.75 < ratio < 1.33


@every_estimator
@pytest.mark.parametrize("spectrum", EVERY)
def test_products_are_counted_and_never_exceeded(name: str, spectrum: str) -> None:
    eigenvalues = EVERY[spectrum]
    operator = Counted(rotated(eigenvalues))
    estimate = ESTIMATORS[name](operator, 30)
    assert estimate.products == operator.products <= 30


def test_at_equal_products_a_sketch_beats_hutchinson_on_a_decaying_spectrum() -> None:
    error = {
        name: root_mean_square(runs(name, power_law(), 30, 100)[0])
        for name in ("hutchinson", "hutch++", "xtrace", "deflated")
    }
    assert error["xtrace"] < error["hutch++"] < 0.5 * error["hutchinson"]
    assert error["deflated"] < 0.5 * error["hutchinson"]


@pytest.mark.parametrize("name", ["hutch++", "xtrace", "deflated"])
def test_an_operator_of_low_rank_needs_no_luck(name: str) -> None:
    eigenvalues = torch.tensor([3.0, -2.0, 1.0] + [0.0] * 57, dtype=torch.float64)
    errors, stated = runs(name, eigenvalues, 24, 20)
    assert float(errors.abs().max()) < 100 * D * EPSILON
    assert float(stated.max()) < 100 * D * EPSILON


@pytest.mark.parametrize("name", ["hutchinson", "xtrace", "deflated"])
def test_a_multiple_of_the_identity_needs_no_luck_where_probes_have_fixed_length(name: str) -> None:
    errors, _ = runs(name, torch.full((D,), 7.0, dtype=torch.float64), 20, 10)
    assert float(errors.abs().max()) < 7 * 100 * D * EPSILON


@every_estimator
@pytest.mark.parametrize("d", [1, 2, 5])
def test_more_products_than_dimensions_are_no_trouble(name: str, d: int) -> None:
    eigenvalues = torch.arange(-1, d - 1, dtype=torch.float64)
    errors, _ = runs(name, eigenvalues, 40, 5)
    if name != "hutchinson":
        assert float(errors.abs().max()) < 1e-12


def test_xtrace_is_its_definition() -> None:
    matrix, d, k = rotated(INDEFINITE["mostly positive"]), D, 5
    probes = draw_probes(k, d, generator_of(3), distribution="sphere")
    samples = []
    for i in range(k):
        others = torch.cat([probes[:i], probes[i + 1 :]])
        basis, _ = torch.linalg.qr((others @ matrix).T)
        residual = probes[i] - basis @ (basis.T @ probes[i])
        residual = residual * ((d - k + 1) ** 0.5 / residual.norm())
        samples.append((basis.T @ matrix @ basis).trace() + residual @ matrix @ residual)
    expected = torch.stack(samples)
    found = xtrace(Counted(matrix), 2 * k, seed=3)
    assert abs(found.value - float(expected.mean())) < 1e-11
    assert abs(found.standard_error - float(expected.std()) / k**0.5) < 1e-11


def test_deflation_by_eigenvectors_removes_their_share_of_the_variance() -> None:
    eigenvalues = power_law()
    operator = Counted(rotated(eigenvalues))
    deflation = top_eigenpairs(operator, 4).deflation()
    assert abs(deflation.trace - float(eigenvalues[:4].sum())) < 1e-9
    products = deflation.products + 2000
    estimate = hutchinson(operator, products, deflation=deflation, distribution="normal")
    expected = (2 * float(eigenvalues[4:].square().sum()) / 2000) ** 0.5
    # As above: the standard error's own relative error is below 1/√(2·2000/15), times four.
    assert abs(estimate.standard_error / expected - 1) < 0.25
    assert abs(estimate.value - float(eigenvalues.sum())) < 4 * estimate.standard_error


def test_deflation_by_any_orthonormal_vectors_is_unbiased() -> None:
    eigenvalues = INDEFINITE["mostly positive"]
    matrix = rotated(eigenvalues)
    basis = torch.linalg.qr(torch.eye(D, dtype=torch.float64)[:, 5:12] + 0.1).Q.T
    deflation = Deflation(basis, float((basis @ matrix @ basis.T).trace()), 0)
    for distribution in ("rademacher", "sphere", "normal"):
        found = hutchinson(Counted(matrix), 4000, deflation=deflation, distribution=distribution)
        assert abs(found.value - float(eigenvalues.sum())) < 4 * found.standard_error


def test_a_memory_budget_does_not_change_the_estimate() -> None:
    operator = Counted(rotated(power_law()))
    whole, pieces = (hutchinson(operator, 30, memory_budget=b) for b in (2**30, 1))
    assert pieces.value == pytest.approx(whole.value, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: hutchinson(a, 1), "products=1 must be at least 2"),
        (
            lambda a: hutchinson(a, 10, deflation=krylov_deflation(a, 9)),
            "products=10 leaves 1 for random probes after a deflation of 9",
        ),
        (
            lambda a: hutchinson(a, 9, deflation=Deflation(torch.eye(3).double(), 0.0, 0)),
            "deflation is of dimension 3",
        ),
        (lambda a: hutch_plus_plus(a, 3), "products=3 must be at least 4"),
        (lambda a: xtrace(a, 3), "products=3 must be at least 4"),
        (lambda a: xtrace(FunctionOperator.like(a, lambda v: a(v) / 0), 8), "NaN or infinite"),
        (lambda a: hutchinson(FunctionOperator(lambda v: v[:, 1:], D), 8), "must take and return"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(Counted(rotated(power_law())))


@every_estimator
def test_estimators_run_on_the_operators_device(
    name: str, device: torch.device, explicit_devices
) -> None:
    matrix = rotated(power_law()).to(device)
    with explicit_devices():
        estimate = ESTIMATORS[name](matrix, 24)
    assert abs(float(estimate) - float(power_law().sum())) < 5 * estimate.standard_error
