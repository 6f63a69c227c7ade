"""Eigenvalues and eigenvectors of symmetric matrices, also where LAPACK's usual method fails."""

from __future__ import annotations

import scipy.linalg
import torch
from torch import Tensor


def eigenpairs_of(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of symmetric matrices, from their lower halves.

    PyTorch divides and conquers, which does not converge on some finite matrices that are nearly
    empty, such as the factors of a layer whose units have died. Relatively robust representations
    (Dhillon and Parlett 2004) serve those.

    Parameters
    ----------
    matrices : Tensor
        Shape (…, m, m), floating.

    Returns
    -------
    tuple of Tensor
        Eigenvalues in ascending order, (…, m), and eigenvectors as columns, (…, m, m).

    Raises
    ------
    torch.linalg.LinAlgError
        If a matrix is not finite, or both methods fail.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg.symmetric import eigenpairs_of
    >>> values, vectors = eigenpairs_of(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> values
    tensor([1., 2.])
    """
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError:
        if not bool(torch.isfinite(matrices).all()):
            raise
        values, vectors = _by_representations(matrices)
    return values, vectors


def _by_representations(matrices: Tensor) -> tuple[Tensor, Tensor]:
    size = matrices.shape[-1]
    pairs = []
    for matrix in matrices.detach().cpu().reshape(-1, size, size).numpy():
        try:
            pairs.append(scipy.linalg.eigh(matrix, driver="evr"))
        except scipy.linalg.LinAlgError as error:
            raise torch.linalg.LinAlgError(str(error)) from error
    values = torch.stack([torch.from_numpy(one) for one, _ in pairs]).to(matrices)
    vectors = torch.stack([torch.from_numpy(one) for _, one in pairs]).to(matrices)
    return values.reshape(matrices.shape[:-1]), vectors.reshape(matrices.shape)
