"""Deflated quadrature against spectra that are known exactly."""

import math

import pytest
import torch

from paperkit.linalg import (
    as_operator,
    deflated_quadrature,
    power,
    stochastic_lanczos_quadrature,
)

ORDERS = (0.25, 0.5, 0.9, 1.5, 2.0, 2.5)


def _matrix(num_rows, dimension, decay, seed=0, dtype=torch.float64):
    """Return a matrix with singular values i^(−decay) and random singular vectors, and these."""
    generator = torch.Generator().manual_seed(seed)

    def orthonormal(size):
        return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q

    count = min(num_rows, dimension)
    sigma = torch.arange(1, count + 1).double() ** -decay
    left, right = orthonormal(num_rows)[:, :count], orthonormal(dimension)[:, :count]
    return ((left * sigma) @ right.T).to(dtype), sigma


@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (150, 150)])
@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_power_sums_lie_within_bracket_and_noise(shape, decay, dtype) -> None:
    matrix, sigma = _matrix(*shape, decay, dtype=dtype)
    kept = matrix.clone()
    found = deflated_quadrature(matrix, rank=15, alpha=ORDERS, probes=16)
    assert torch.equal(matrix, kept)
    # Round-off of single precision moves the smallest singular values.
    noise = {torch.float64: 1e-9, torch.float32: 2e-3}[dtype]
    for alpha in ORDERS:
        exact = float((sigma ** (2 * alpha)).sum())
        estimate = found.power_sum(alpha)
        low, high = estimate.bracket
        # The noise of 16 probes stays below five standard errors.
        room = 5 * estimate.standard_error + noise * exact
        assert low - room <= exact <= high + room, (alpha, low, exact, high)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("iterations", [1, 2])
def test_the_coupling_is_bounded_without_any_probe(seed, rank, iterations) -> None:
    """All probes that there are, the unit vectors' signs aside, would leave the bracket alone."""
    matrix, sigma = _matrix(40, 60, 1.0, seed)
    found = deflated_quadrature(
        matrix, rank=rank, probes=2, iterations=iterations, seed=seed, max_steps=2
    )
    # The blocks again, by dense algebra.
    gram = matrix @ matrix.T
    basis = torch.eye(40).double()[:, gram.diagonal().topk(rank).indices]
    for _ in range(iterations):
        basis = torch.linalg.qr(gram @ basis).Q
    inner = basis.T @ gram @ basis
    # The attributes are those of the matrix over its norm.
    unit = found.trace
    torch.testing.assert_close(
        unit * found.values, torch.linalg.eigvalsh(inner).flip(0), rtol=1e-9, atol=1e-12
    )
    outside = torch.eye(40).double() - basis @ basis.T
    rest = torch.linalg.eigvalsh(outside @ gram @ outside).clamp(min=0)
    coupled = outside @ gram @ basis
    shared = coupled @ torch.linalg.inv(torch.linalg.cholesky(inner)).T
    uncoupled = torch.linalg.eigvalsh(outside @ gram @ outside - shared @ shared.T).clamp(min=0)
    for got, tall in ((unit * found.coupling, coupled), (unit**0.5 * found.shared, shared)):
        torch.testing.assert_close(got, torch.linalg.svdvals(tall), rtol=1e-5, atol=1e-7)
    assert math.isclose(unit * found.rest_trace, float(rest.sum()), rel_tol=1e-8)
    assert math.isclose(unit * found.uncoupled_trace, float(uncoupled.sum()), rel_tol=1e-8)
    for alpha in ORDERS:
        exact = float((sigma ** (2 * alpha)).sum())
        leading = float(((unit * found.values) ** alpha).sum())
        cut = leading + float((rest**alpha).sum())
        below = leading + float((uncoupled**alpha).sum())
        if alpha < 1:
            loss = unit**alpha * float((found.shared ** (2 * alpha)).sum()) if alpha < 0.5 else 0.0
            assert below - loss - 1e-9 <= exact <= cut + 1e-9
        else:
            power = 1 / (2 * alpha)
            triangle = (
                below**power + unit**0.5 * float((found.shared ** (2 * alpha)).sum()) ** power
            )
            assert cut - 1e-9 <= exact <= triangle ** (2 * alpha) + 1e-9
            assert exact <= cut + unit**alpha * found._coupled(alpha) + 1e-9


def test_two_orthogonal_rows_and_a_third_by_hand() -> None:
    """With all directions taken there is no rest, no coupling and no noise."""
    matrix = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]).double()
    found = deflated_quadrature(matrix, rank=3)
    assert found.rest is None and math.isclose(found.trace, 14.0, rel_tol=1e-12)
    estimate = found.power_sum(0.5)
    assert math.isclose(estimate.value, 6.0, rel_tol=1e-12)
    assert estimate.standard_error == 0.0


def test_a_matrix_of_lower_rank_than_the_directions() -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = (
        torch.randn(50, 4, generator=generator).double()
        @ torch.randn(4, 70, generator=generator).double()
    )
    found = deflated_quadrature(matrix, rank=10)
    sigma = torch.linalg.svdvals(matrix)
    assert len(found.values) == 4
    assert math.isclose(float(found.power_sum(0.5)), float(sigma[:4].sum()), rel_tol=1e-6)


@pytest.mark.parametrize("drop", [0.01, 0.1, 0.5])
def test_rows_that_are_left_out_widen_the_bracket(drop) -> None:
    matrix, _ = _matrix(60, 90, 1.0)
    matrix *= torch.linspace(1.0, 0.0, 60).double().unsqueeze(1) ** 2
    matrix = matrix[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    sigma = torch.linalg.svdvals(matrix)
    found = deflated_quadrature(matrix, rank=10, drop=drop)
    norms = matrix.norm(dim=1).sort().values
    count = int((norms.cumsum(0) <= drop * norms.sum()).sum())
    torch.testing.assert_close(found.trace**0.5 * found.dropped, norms[: min(count, 50)])
    assert math.isclose(found.trace, float(sigma.square().sum()), rel_tol=1e-12)
    for alpha in ORDERS:
        exact = float((sigma ** (2 * alpha)).sum())
        estimate = found.power_sum(alpha)
        room = 5 * estimate.standard_error + 1e-9 * exact
        assert estimate.bracket[0] - room <= exact <= estimate.bracket[1] + room


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_or_huge_matrix_loses_nothing(scale, dtype) -> None:
    matrix, _ = _matrix(40, 60, 1.0)
    found = deflated_quadrature((scale * matrix).to(dtype), rank=5, seed=1)
    plain = deflated_quadrature(matrix.to(dtype), rank=5, seed=1)
    ratio = float(found.power_sum(0.5)) / float(plain.power_sum(0.5))
    assert math.isclose(ratio, scale, rel_tol=1e-3)


def test_half_precision_is_widened() -> None:
    matrix, _ = _matrix(40, 60, 1.0)
    half = matrix.to(torch.bfloat16)
    found, plain = (deflated_quadrature(m, rank=5) for m in (half, half.float()))
    assert float(found.power_sum(0.5)) == float(plain.power_sum(0.5))


def test_overwrite_takes_the_memory_of_the_rows() -> None:
    matrix, _ = _matrix(40, 60, 1.0)
    kept = matrix.clone()
    deflated_quadrature(matrix, rank=5, overwrite=True)
    assert not torch.equal(matrix, kept)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": 41}, "rank=41"),
        ({"rank": 5, "probes": 1}, "probes=1"),
        ({"rank": 5, "alpha": (0.0,)}, r"alpha"),
        ({"rank": 5, "iterations": 0}, "iterations=0"),
        ({"rank": 5, "drop": 1.0}, "drop=1.0"),
    ],
)
def test_bad_arguments_get_one_sentence(given, sentence) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        deflated_quadrature(torch.ones(40, 60), **given)


def test_rows_of_zeros_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^rows are all zero"):
        deflated_quadrature(torch.zeros(4, 6), rank=2)


def test_rules_that_run_side_by_side_are_those_of_separate_runs() -> None:
    matrix, _ = _matrix(120, 200, 0.8)
    rank, probes = 10, 6
    found = deflated_quadrature(matrix, rank=rank, probes=probes, max_steps=30, seed=4)
    # The rest of the matrix over its norm, with what is coupled to the directions and without.
    matrix = matrix / matrix.norm()
    largest = matrix.square().sum(dim=1).topk(rank).indices
    basis = torch.linalg.qr(matrix @ matrix[largest].T).Q
    rest = matrix - basis @ (basis.T @ matrix)
    along = torch.linalg.qr((basis.T @ matrix).T).Q
    apart = rest - (rest @ along) @ along.T
    assert found.rest is not None and found.uncoupled is not None
    for part, rules in ((rest, found.rest), (apart, found.uncoupled)):
        alone = stochastic_lanczos_quadrature(
            as_operator(part @ part.T, positive_semidefinite=True),
            probes=probes,
            steps=int(rules.steps[0]),
            seed=4,
        )
        assert torch.equal(rules.steps, alone.steps) and len(set(rules.steps.tolist())) == 1
        for order in (0.5, 1.0, 1.5):
            ours, theirs = rules.trace(power(order)), alone.trace(power(order))
            assert ours.value == pytest.approx(theirs.value, rel=1e-10)
            assert ours.bracket == pytest.approx(theirs.bracket, rel=1e-10)


def test_probes_that_do_not_fit_together_run_one_after_another(monkeypatch) -> None:
    matrix, _ = _matrix(60, 90, 0.8)
    together = deflated_quadrature(matrix, rank=5, probes=7, max_steps=8, seed=1)
    monkeypatch.setattr("paperkit.linalg.deflated.GIBIBYTE", 3 * 2 * 8 * 60 * 8)
    in_parts = deflated_quadrature(matrix, rank=5, probes=7, max_steps=8, seed=1)
    assert len(together.rest.recurrences) == 1 and len(in_parts.rest.recurrences) > 1
    assert in_parts.power_sum(0.5).value == pytest.approx(together.power_sum(0.5).value, rel=1e-12)
    assert in_parts.rest.converged == together.rest.converged
