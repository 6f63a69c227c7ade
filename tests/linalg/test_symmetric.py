"""Eigenpairs of symmetric matrices, also where the usual method gives up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paperkit.linalg.symmetric import eigenpairs_of


def _nearly_empty(size: int = 40) -> Tensor:
    """Return a matrix like a dead layer's factor: few rows, some of them below any scale."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    block = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix[3:6, 3:6] = block @ block.T
    matrix[10, 3] = matrix[3, 10] = 1e-179
    return matrix


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenpairs_make_the_matrix_again(fails, batch, dtype, monkeypatch) -> None:
    matrices = _nearly_empty().to(dtype).expand(*batch, 40, 40)
    if fails:

        def gives_up(*_: object, **__: object) -> None:
            raise torch.linalg.LinAlgError("The algorithm failed to converge")

        monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    values, vectors = eigenpairs_of(matrices)
    assert values.shape == (*batch, 40) and vectors.shape == matrices.shape
    assert values.dtype == vectors.dtype == dtype
    tolerance = 100 * torch.finfo(dtype).eps * float(matrices.abs().max())
    again = (vectors * values.unsqueeze(-2)) @ vectors.mT
    torch.testing.assert_close(again, matrices, rtol=0, atol=tolerance)
    eye = torch.eye(40, dtype=dtype).expand_as(matrices)
    torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=tolerance)
    assert bool((values.diff(dim=-1) >= 0).all())


def test_only_the_lower_half_counts(monkeypatch) -> None:
    matrix = _nearly_empty()
    lower = matrix.tril() + torch.full_like(matrix, 7.0).triu(1)
    expected, _ = eigenpairs_of(matrix)
    assert torch.allclose(eigenpairs_of(lower)[0], expected, rtol=0, atol=1e-13)

    def gives_up(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    assert torch.allclose(eigenpairs_of(lower)[0], expected, rtol=0, atol=1e-13)


def test_a_matrix_that_is_not_finite_has_none() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        eigenpairs_of(torch.full((3, 3), torch.nan, dtype=torch.float64))
