r"""Singular values of given Jacobians :math:`J_x`, C outputs × M inputs, sample by sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.gram import float32_sums_are_safe

# Entries of one float64 temporary, 32 MiB.
_ENTRIES = 2**22

# Columns of a Gram matrix that float32 multiplies at once; fewer are cheap in float64.
_COLUMNS = 1024


def singular_values(jacobian: Tensor) -> Tensor:
    r"""Return all singular values of each sample's Jacobian.

    They come from :math:`J_x` itself, never from :math:`J_x J_x^\top`, which would lose those
    below 1e-8 of the largest.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …), outputs × inputs.

    Returns
    -------
    Tensor
        Shape (n, min(C, M)), float64, descending.

    Examples
    --------
    >>> import torch
    >>> from paperkit.estimators import singular_values
    >>> singular_values(torch.diag(torch.tensor([3.0, 0.5])).unsqueeze(0)).round(decimals=4)
    tensor([[3.0000, 0.5000]], dtype=torch.float64)
    """
    return in_chunks(torch.linalg.svdvals, jacobian)


def largest_singular_values(jacobian: Tensor) -> Tensor:
    r"""Return :math:`\|J_x\|_2` of each sample, shape (n,), float64.

    Through the smaller Gram matrix, which keeps all digits of the largest singular value.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …).
    """
    check_jacobian(jacobian, finite=False)
    rows = jacobian.flatten(2)
    if jacobian.dtype != torch.float32 or max(rows.shape[1:]) <= _COLUMNS:
        return in_chunks(_largest_of, jacobian)
    step = max(1, _ENTRIES // min(rows.shape[1:]) ** 2)
    return torch.cat([_largest_in_blocks(some) for some in rows.split(step)])


def frobenius_norms(jacobian: Tensor) -> Tensor:
    r"""Return :math:`\|J_x\|_F` of each sample, shape (n,), float64."""
    return in_chunks(lambda rows: torch.linalg.matrix_norm(rows), jacobian)


def check_jacobian(jacobian: Tensor, *, finite: bool = True) -> None:
    """Raise unless it is a (n, C, …) of floating point, and finite."""
    shape = ("n", "C", "d", "…")
    arguments.tensor("jacobian", jacobian, shape=shape, floating=True, finite=finite)


def gram_matrix(rows: Tensor) -> Tensor:
    """Return the smaller of J Jᵀ and Jᵀ J for each J of (n, C, M)."""
    return rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows


def _largest_of(rows: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(gram_matrix(rows))[:, -1].clamp(min=0.0).sqrt()


def _largest_in_blocks(rows: Tensor) -> Tensor:
    """Return the largest singular values of (n, C, M) in float32, without a float64 copy of it.

    The Gram matrices of some columns at a time are added in float64, so that their round-off does
    not grow with the number of columns: it moves a value by less than the entries' own does.
    """
    wide = rows if rows.shape[1] <= rows.shape[2] else rows.mT
    gram = torch.zeros(*wide.shape[:2], wide.shape[1], dtype=torch.float64, device=wide.device)
    for columns in wide.split(_COLUMNS, dim=2):
        gram += columns @ columns.mT
    # Entries that are not finite show here too.
    lost = ~float32_sums_are_safe(gram.diagonal(dim1=1, dim2=2).sum(dim=1))
    if bool(lost.any()):
        check_jacobian(rows)
        gram[lost] = gram_matrix(wide[lost].to(torch.float64))
    return torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0.0).sqrt()


def in_chunks(function: Callable[..., Tensor], jacobian: Tensor, *others: Tensor) -> Tensor:
    """Apply a function of (n_c, C, M) and other flat tensors to a few samples at a time."""
    check_jacobian(jacobian)
    step = max(1, _ENTRIES // jacobian[0].numel())
    parts = [
        function(
            jacobian[start : start + step].flatten(2).to(torch.float64),
            *(other[start : start + step].flatten(1).to(torch.float64) for other in others),
        )
        for start in range(0, len(jacobian), step)
    ]
    return torch.cat(parts)
