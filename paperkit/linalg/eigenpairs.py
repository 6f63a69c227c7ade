"""The largest eigenvalues of a symmetric operator with their vectors, by restarted block Lanczos.

A block of k random starting vectors spans a Krylov space that holds, with probability one, as many
copies of every eigenvalue as it has, up to k: a multiple eigenvalue is found k times, which a
single starting vector would miss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.lanczos import BREAKDOWN, Operator, apply
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linalg.traces import Deflation

ORDERS = ("magnitude", "algebraic")
"""Largest absolute value first; largest value first."""

# The basis is cut back to half when it would exceed so many blocks, or so many dimensions.
_BLOCKS = 6
_SMALLEST_BASIS = 40


@dataclass(frozen=True)
class Eigenpairs:
    """The k first eigenpairs in the order that was asked for.

    Attributes
    ----------
    eigenvalues : Tensor
        Shape (k,), float64, on the CPU.
    vectors : Tensor
        Shape (k, d), orthonormal rows in the operator's dtype and on its device.
    residuals : Tensor
        Shape (k,), float64, on the CPU: ‖A v − λ v‖. An eigenvalue of A is at most so far away.
    converged : Tensor
        Shape (k,), bool: whether the residual met the tolerance.
    products : int
        Operator-vector products.
    """

    eigenvalues: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    products: int

    def deflation(self) -> Deflation:
        """Return what :func:`paperkit.linalg.hutchinson` takes out before it samples."""
        return Deflation(self.vectors, float(self.eigenvalues.sum()), self.products)


def top_eigenpairs(
    operator: Operator,
    dimension: int,
    k: int,
    which: str = "magnitude",
    *,
    tolerance: float = 1e-6,
    max_products: int = 1000,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Eigenpairs:
    r"""Compute the k eigenvalues of largest magnitude, or the k largest ones, and their vectors.

    Block Lanczos with full reorthogonalization and thick restarts (Wu and Simon 2000, for blocks):
    when the basis is full, its best Ritz vectors are kept together with the residual block, which
    keeps the projected problem exact. The k-th value is wrong only where a start of k random
    vectors misses a direction, or where the iteration was stopped.

    Parameters
    ----------
    operator : callable
        Symmetric; maps (j, d) to (j, d) for any j up to k, rows are vectors.
    dimension : int
        d.
    k : int
        At least 1, at most d.
    which : str
        One of ``"magnitude"``, ``"algebraic"``.
    tolerance : float
        A pair has converged when its residual is at most this times the largest magnitude seen.
        The error of an eigenvalue is then of the order of the square, divided by its gap.
    max_products : int
        Stops the iteration, at the block that would exceed it; at least k.
    seed : int
        Of the starting block.
    dtype, device
        The operator's. In single precision, take a tolerance above 1e-6.

    Returns
    -------
    Eigenpairs
        Ordered; the basis takes max(6k, 40) · d numbers.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or the operator returns another shape,
        NaN or infinite entries.
    """
    dimension = arguments.integer("dimension", dimension, at_least=1)
    size = "the operator has no more dimensions"
    k = arguments.integer("k", k, at_least=1, at_most=dimension, because=size)
    which = arguments.choice("which", which, ORDERS)
    first = f"the first block takes k={k}"
    max_products = arguments.integer("max_products", max_products, at_least=k, because=first)
    tolerance = arguments.number("tolerance", tolerance, above=0)
    longest = max(_BLOCKS * k, _SMALLEST_BASIS)
    start = draw_probes(
        k, dimension, generator_of(seed), distribution="normal", dtype=dtype, device=device
    )
    block = torch.linalg.qr(start.T).Q.T
    basis = block[:0]
    projected = torch.zeros(0, 0, dtype=torch.float64, device="cpu")
    products = 0
    scale = 0.0
    while True:
        images = apply(operator, block)
        products += len(block)
        basis = torch.cat([basis, block])
        projected = _extended(projected, basis, images)
        residual = _residual(basis, images)
        ritz, rotations = _ordered(projected, which)
        scale = max(scale, float(ritz.abs().max()))
        next_block, coupling = _row_space(residual, scale)
        # A Ritz vector leaves the basis only through its part in the last block.
        leaks = (coupling.T @ rotations[-len(block) :]).norm(dim=0)
        met = leaks[:k] <= tolerance * scale
        finished = bool(met.all())
        invariant = len(next_block) == 0 or len(basis) == dimension
        if finished or invariant or products + len(next_block) > max_products:
            break
        if len(basis) + len(next_block) > longest:
            kept = rotations[:, : (longest + k) // 2]
            basis = kept.T.to(basis) @ basis
            projected = torch.diag(ritz[: len(basis)])
        block = next_block
    vectors = rotations[:, :k].T.to(basis) @ basis
    return Eigenpairs(ritz[:k], vectors, leaks[:k], met, products)


def _extended(projected: Tensor, basis: Tensor, images: Tensor) -> Tensor:
    """Border the projected matrix with the inner products of the basis and its last images."""
    border = (basis @ images.T).to(dtype=torch.float64, device="cpu")
    old = len(projected)
    matrix = torch.zeros(len(basis), len(basis), dtype=torch.float64, device="cpu")
    matrix[:old, :old] = projected
    matrix[:, old:] = border
    matrix[old:, :old] = border[:old].T
    matrix[old:, old:] = (border[old:] + border[old:].T) / 2
    return matrix


def _residual(basis: Tensor, images: Tensor) -> Tensor:
    for _ in range(2):  # twice is enough
        images = images - (images @ basis.T) @ basis
    return images


def _ordered(projected: Tensor, which: str) -> tuple[Tensor, Tensor]:
    ritz, rotations = torch.linalg.eigh(projected)
    order = (ritz.abs() if which == "magnitude" else ritz).argsort(descending=True)
    return ritz[order], rotations[:, order]


def _row_space(residual: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return orthonormal rows V and coefficients C with C V the residual, dropping round-off."""
    left, sizes, right = torch.linalg.svd(residual, full_matrices=False)
    rank = int((sizes > BREAKDOWN * torch.finfo(residual.dtype).eps * scale).sum())
    coupling = left[:, :rank] * sizes[:rank]
    return right[:rank], coupling.to(dtype=torch.float64, device="cpu")
