"""The largest eigenpairs of matrices whose spectrum is known."""

from __future__ import annotations

import pytest
import torch
from known_spectra import EVERY, Counted, D, power_law, rotated
from round_off import moves_of

from paperkit.linalg.eigenpairs import ORDERS, top_eigenpairs
from paperkit.linalg.operator import FunctionOperator
from paperkit.memory import MemoryBudgetError

SPECTRA = EVERY | {"four copies": torch.tensor([2.0] * 4 + [-1.9] * 3 + [1.0, 0.5] * 10).double()}


def first(eigenvalues: torch.Tensor, k: int, which: str) -> torch.Tensor:
    key = eigenvalues.abs() if which == "magnitude" else eigenvalues
    return key.sort(descending=True).values[:k]


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("which", ORDERS)
@pytest.mark.parametrize("k", [1, 4])
def test_known_eigenvalues_are_found_with_all_their_copies(name: str, which: str, k: int) -> None:
    eigenvalues = SPECTRA[name]
    k = min(k, len(eigenvalues))
    matrix = rotated(eigenvalues)
    operator = Counted(matrix)
    found = top_eigenpairs(operator, k, which)
    size = float(eigenvalues.abs().max())
    values = found.eigenvalues.abs() if which == "magnitude" else found.eigenvalues
    # An eigenvalue's error is at most the residual, here 1e-6 of the largest, whatever the gap.
    assert bool(found.converged.all())
    assert (values - first(eigenvalues, k, which)).abs().max() <= 2e-6 * size
    residuals = (found.vectors @ matrix - found.eigenvalues[:, None] * found.vectors).norm(dim=1)
    assert (residuals - found.residuals).abs().max() <= 1e-12 * max(size, 1)
    overlap = found.vectors @ found.vectors.T - torch.eye(k, dtype=torch.float64)
    assert overlap.abs().max() < 1e-12
    assert found.products == operator.products


@pytest.mark.parametrize("name", SPECTRA)
def test_round_off_of_the_matrix_changes_neither_convergence_nor_eigenvalues(name: str) -> None:
    eigenvalues = SPECTRA[name]
    k, size = min(4, len(eigenvalues)), float(eigenvalues.abs().max())
    for moved in moves_of(rotated(eigenvalues)):
        symmetric = (moved + moved.T) / 2
        found = top_eigenpairs(Counted(symmetric), k)
        assert bool(found.converged.all())
        difference = found.eigenvalues.abs() - first(eigenvalues, k, "magnitude")
        assert difference.abs().max() <= 2e-6 * size


def test_a_copy_that_no_search_has_met_is_said_to_be_open() -> None:
    eigenvalues = SPECTRA["four copies"]
    first_search = top_eigenpairs(Counted(rotated(eigenvalues)), 2, max_products=6)
    assert not first_search.complete
    whole = top_eigenpairs(Counted(rotated(eigenvalues)), 2)
    assert whole.complete and whole.products > 6
    assert (whole.eigenvalues - 2.0).abs().max() < 2e-6


def test_the_search_of_the_complement_ends_by_its_bound_where_there_is_a_gap() -> None:
    eigenvalues = torch.cat([torch.tensor([9.0, 8.0]), torch.linspace(0, 1, 998)]).double()
    found = top_eigenpairs(Counted(rotated(eigenvalues)), 2, tolerance=1e-8)
    assert found.complete and bool(found.converged.all())
    # Kuczyński and Woźniakowski's bound at ε = 7/8, d = 1000 and 1e-3 takes seven steps.
    single = top_eigenpairs(Counted(rotated(eigenvalues)), 1, tolerance=1e-8)
    assert found.products < single.products + 30


def test_an_operator_that_is_not_symmetric_is_refused() -> None:
    matrix = rotated(power_law()) + torch.diag(torch.ones(D - 1).double(), 1)
    with pytest.raises(ValueError, match="not symmetric"):
        top_eigenpairs(matrix, 2)


def test_a_basis_that_does_not_fit_is_cut_and_one_that_cannot_be_is_refused() -> None:
    eigenvalues = torch.cat([torch.tensor([5.0, 4.0]), torch.linspace(0, 1, 998)]).double()
    operator = Counted(rotated(eigenvalues))
    found = top_eigenpairs(operator, 2, memory_budget=15 * 8000)
    assert bool(found.converged.all()) and found.complete
    assert (found.eigenvalues - eigenvalues[:2]).abs().max() < 1e-5
    with pytest.raises(MemoryBudgetError, match="memory_budget=40000 is too small for k=2"):
        top_eigenpairs(operator, 2, memory_budget=40000)


def test_eigenvalues_whose_squares_are_no_numbers_are_found() -> None:
    matrix = 1e-170 * rotated(power_law())
    found = top_eigenpairs(matrix, 3)
    assert bool(found.converged.all())
    assert (1e170 * found.eigenvalues - power_law()[:3]).abs().max() < 2e-6


def test_a_sharper_tolerance_gives_sharper_eigenvalues() -> None:
    found = top_eigenpairs(Counted(rotated(power_law())), 3, tolerance=1e-12)
    assert (found.eigenvalues - power_law()[:3]).abs().max() < 1e-13


def test_all_eigenvalues_can_be_asked_for() -> None:
    eigenvalues = torch.linspace(-2, 1, 12, dtype=torch.float64)
    found = top_eigenpairs(Counted(rotated(eigenvalues)), 12, "algebraic")
    assert (found.eigenvalues - eigenvalues.flip(0)).abs().max() < 1e-12
    assert found.products == 12


def test_restarts_keep_the_basis_small_and_what_was_found() -> None:
    tight = torch.cat([torch.tensor([1.02, 1.01]), torch.linspace(0, 1, 398)]).double()
    operator = Counted(rotated(tight))
    found = top_eigenpairs(operator, 2, tolerance=1e-8)
    assert bool(found.converged.all())
    assert 40 < found.products < 400, "more than one basis, and far from a dense solution"
    assert (found.eigenvalues - tight[:2]).abs().max() < 1e-8


def test_what_did_not_converge_says_so_and_bounds_its_error() -> None:
    eigenvalues = torch.linspace(0, 1, 200, dtype=torch.float64)
    found = top_eigenpairs(Counted(rotated(eigenvalues)), 2, max_products=10)
    assert found.products == 10
    assert not bool(found.converged.any())
    distance = (found.eigenvalues[:, None] - eigenvalues).abs().min(dim=1).values
    assert bool((distance <= found.residuals).all())


def test_single_precision_converges_to_a_tolerance_it_can_reach() -> None:
    matrix = rotated(power_law()).float()
    found = top_eigenpairs(Counted(matrix), 3, tolerance=1e-5)
    assert bool(found.converged.all())
    assert (found.eigenvalues - power_law()[:3]).abs().max() < 2e-5
    assert found.vectors.dtype == torch.float32


@pytest.mark.parametrize(
    ("k", "arguments", "message"),
    [
        (0, {}, "k=0 must be between 1 and 60: the operator has no more dimensions"),
        (61, {}, "k=61 must be between"),
        (2, {"which": "smallest"}, "'smallest' is unknown"),
        (4, {"max_products": 3}, "max_products=3 must be at least 4"),
        (2, {"tolerance": 0.0}, "tolerance=0.0 must be positive"),
    ],
)
def test_bad_input_is_refused(k: int, arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(Counted(rotated(power_law())), k, **arguments)


def test_an_operator_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        top_eigenpairs(FunctionOperator(lambda v: v * float("nan"), D), 2)


def test_eigenvectors_are_on_the_operators_device(device: torch.device, explicit_devices) -> None:
    matrix = rotated(power_law()).to(device)
    with explicit_devices():
        found = top_eigenpairs(matrix, 3)
    assert found.vectors.device == matrix.device


def test_a_matrix_that_has_changed_a_little_is_searched_from_where_the_last_search_ended() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 200, generator=generator, dtype=torch.float64)
    matrix = rotated(torch.linspace(0, 1, 200, dtype=torch.float64) ** 3)
    first = top_eigenpairs(matrix, 2)
    changed = matrix + 1e-3 * (noise + noise.T) / 20
    cold, warm = (top_eigenpairs(changed, 2, start=s) for s in (None, first.continuation))
    assert warm.products < cold.products
    expected = torch.linalg.eigvalsh(changed).flip(0)[:2]
    for found in (cold, warm):
        assert (found.eigenvalues - expected).abs().max() < 1e-9
    assert float(first.continuation.norm()) == pytest.approx(1.0)


def test_a_pair_that_has_come_to_the_top_is_found_from_a_start_without_it() -> None:
    eigenvalues = torch.cat([torch.linspace(0, 1, 298), torch.tensor([3.0, 2.0])]).double()
    first = top_eigenpairs(torch.diag(eigenvalues), 1)
    for place in (0, 150, 299):
        # A direction that was among the least is first, and the start has next to nothing of it.
        moved = eigenvalues.clone()
        moved[place] = 3.3
        start = first.continuation.clone()
        start[place] = 0.0
        found = top_eigenpairs(torch.diag(moved), 1, start=start)
        assert float(found.eigenvalues) == pytest.approx(3.3, abs=1e-9)


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (torch.zeros(3, dtype=torch.float64), "start is zero"),
        (torch.ones(4, dtype=torch.float64), "start"),
        (torch.tensor([1.0, float("nan"), 0.0]), "start"),
    ],
)
def test_a_start_that_is_none_is_refused(start, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        top_eigenpairs(torch.eye(3, dtype=torch.float64), 1, start=start)
