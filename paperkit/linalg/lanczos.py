r"""Lanczos tridiagonalization of symmetric operators, several starting vectors at once.

After m steps from a unit vector :math:`v`, the operator is known on the Krylov space of :math:`v`
through an m × m tridiagonal matrix :math:`T`. Its eigenvalues are the Ritz values; the squared
first components of its eigenvectors are the weights of a Gauss quadrature for
:math:`v^\top f(A)\, v`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.operator import SymmetricOperator, apply, as_operator

Matrix = SymmetricOperator | Tensor | Callable[[Tensor], Tensor]
"""A symmetric matrix, in any form that starting vectors complete."""

# A residual below this many units of round-off of the operator's norm is no new direction.
BREAKDOWN = 100.0
# A vector that loses more than this share in an orthogonalization is orthogonalized again.
CANCELLED = 0.5
# Long vectors are summed by so many entries at a time in their own precision, because that is
# faster than a sum in float64 and errs less than one over all entries.
COLUMNS = 2**18


@dataclass(frozen=True)
class Tridiagonal:
    """What Lanczos found from each of k starting vectors; m is the most steps any of them took.

    Attributes
    ----------
    diagonal : Tensor
        Shape (k, m), float64; entries beyond ``steps`` are zero.
    off_diagonal : Tensor
        Shape (k, m), float64; entry j couples steps j and j + 1, and entry ``steps - 1`` is the
        residual that the next step would start from (zero after a breakdown).
    steps : Tensor
        Shape (k,), int64: how many steps were taken before the Krylov space was exhausted.
    norm : Tensor
        Shape (k,), float64: Euclidean norms of the starting vectors.
    basis : Tensor or None
        Shape (k, m, d): the orthonormal Lanczos vectors, where they were asked for; zero beyond
        ``steps``.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import lanczos
    >>> A = torch.diag(torch.tensor([1.0, 1.0, 3.0, 3.0], dtype=torch.float64))
    >>> found = lanczos(A, torch.ones(1, 4, dtype=torch.float64), steps=4)
    >>> found.steps, found.exhausted  # two different eigenvalues, two steps
    (tensor([2]), tensor([True]))
    >>> float(found.norm)
    2.0
    """

    diagonal: Tensor
    off_diagonal: Tensor
    steps: Tensor
    norm: Tensor
    basis: Tensor | None = None

    @property
    def exhausted(self) -> Tensor:
        """Whether a starting vector's Krylov space is invariant."""
        last = self.off_diagonal.gather(1, self.steps.unsqueeze(1) - 1)
        return last.squeeze(1) == 0

    def matrices(self) -> Tensor:
        """Return the tridiagonal matrices, (k, m, m), zero beyond each one's ``steps``."""
        return tridiagonal_matrices(self.diagonal, self.off_diagonal[:, :-1])


def tridiagonal_matrices(diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    """Return k symmetric matrices (k, m, m) from their diagonals (k, m) and (k, m − 1)."""
    return (
        torch.diag_embed(diagonal)
        + torch.diag_embed(off_diagonal, offset=1)
        + torch.diag_embed(off_diagonal, offset=-1)
    )


class Lanczos:
    """A batch of Lanczos recurrences that can be continued: take steps, look, take more.

    The new vector is orthogonalized against all earlier ones, so that the recurrences stay those of
    exact arithmetic. Storing the k · m · d numbers of the basis is what this costs.

    Parameters
    ----------
    operator : SymmetricOperator, Tensor or callable
        A symmetric matrix; see :func:`paperkit.linalg.as_operator`. A function of vectors will do,
        since ``starts`` says what these are.
    starts : Tensor
        Shape (k, d), in the operator's dtype and on its device; need not be normalized.

    Raises
    ------
    TypeError, ValueError
        If ``starts`` is not a stack of floating-point vectors, or one is zero or not finite; if the
        operator is of another dimension, dtype or device.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import Lanczos
    >>> A = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> process = Lanczos(A, torch.ones(1, 3, dtype=torch.float64))
    >>> process.advance(1)
    >>> process.tridiagonal().diagonal.round(decimals=6)  # the Rayleigh quotient of the start
    tensor([[2.3333]], dtype=torch.float64)
    >>> process.advance(5)
    >>> process.steps, process.exhausted  # three dimensions
    (3, True)
    """

    def __init__(self, operator: Matrix, starts: Tensor) -> None:
        arguments.tensor("starts", starts, shape=("k", "d"), floating=True, dense=True)
        self.operator = as_operator(operator, like=starts)
        if starts.shape[1] != self.operator.dimension:
            raise ValueError(
                f"starts has vectors of {starts.shape[1]} entries, and the operator takes "
                f"{self.operator.dimension}."
            )
        wanted = self.operator.dtype, self.operator.device
        if (starts.dtype, starts.device) != wanted:
            raise ValueError(
                f"starts is {starts.dtype} on {starts.device}: convert it to {wanted[0]} on "
                f"{wanted[1]}, as the operator's vectors."
            )
        self.norm = norms(starts)
        if not bool((torch.isfinite(self.norm) & (self.norm > 0)).all()):
            raise ValueError("starts has a zero or infinite vector: draw the probes again.")
        self._epsilon = self.operator.round_off
        self._diagonal: list[Tensor] = []
        self._off_diagonal: list[Tensor] = []
        self._blocks: list[Tensor] = []  # parts of the basis, each (k, steps of one advance, d)
        self._previous = torch.zeros_like(starts)
        self._vector = starts / self.norm.to(starts.dtype).unsqueeze(1)
        self._scale = torch.zeros_like(self.norm)
        self._alive = torch.ones_like(self.norm, dtype=torch.bool)
        self._taken = torch.zeros_like(self.norm, dtype=torch.int64)

    @property
    def steps(self) -> int:
        """The most steps that any starting vector has taken."""
        return len(self._diagonal)

    @property
    def exhausted(self) -> bool:
        """Whether every Krylov space is invariant, so that there is no further step."""
        return self.steps == self._vector.shape[1] or not bool(self._alive.any())

    def advance(self, steps: int) -> None:
        """Take up to ``steps`` more steps; fewer where all Krylov spaces are exhausted.

        Parameters
        ----------
        steps : int
            At least 1.

        Raises
        ------
        TypeError, ValueError
            If ``steps`` is not a positive integer, or the operator returns another shape, NaN or
            infinite entries, or is not symmetric.
        """
        steps = arguments.integer("steps", steps, at_least=1)
        k, d = self._vector.shape
        steps = min(steps, d - self.steps)
        block = self._vector.new_zeros(k, steps, d)
        seen = [*self._blocks, block]
        for j in range(steps):
            if self.exhausted:
                block = block[:, :j]
                break
            block[:, j] = self._vector
            seen[-1] = block[:, : j + 1]
            self._step(seen)
        if block.shape[1]:
            self._blocks.append(block)

    def _step(self, seen: list[Tensor]) -> None:
        """Take a step of the three-term recurrence and orthogonalize against ``seen``."""
        image = apply(self.operator, self._vector)
        alpha = inner(image, self._vector)
        self._scale = torch.maximum(self._scale, norms(image))
        image = torch.addcmul(image, alpha.to(image).unsqueeze(1), self._vector, value=-1)
        if self._off_diagonal:
            coupling = self._off_diagonal[-1].to(image).unsqueeze(1)
            image.addcmul_(coupling, self._previous, value=-1)
        before = norms(image)
        leaked = _orthogonalize(image, seen)
        # The recurrence of a symmetric A leaves nothing but round-off along earlier vectors.
        if bool((leaked > self._epsilon**0.5 * self._scale).any()):
            raise ValueError(
                "operator is not symmetric, or gives different results at each call: pass a "
                "symmetric, deterministic one."
            )
        beta = norms(image)
        # A second pass over the basis is needed where little of the image is left, because its
        # round-off was relative to the longer vector. A third pass would find nothing.
        if bool((beta < CANCELLED * before).any()):
            _orthogonalize(image, seen)
            beta = norms(image)
        self._taken += self._alive
        self._diagonal.append(torch.where(self._alive, alpha, 0.0))
        self._alive = self._alive & (beta > BREAKDOWN * self._epsilon * self._scale)
        if self.steps == image.shape[1]:
            self._alive = torch.zeros_like(self._alive)
        self._off_diagonal.append(torch.where(self._alive, beta, 0.0))
        self._previous = self._vector
        self._vector = image.div_(torch.where(self._alive, beta, 1.0).to(image).unsqueeze(1))
        if not bool(self._alive.all()):
            self._vector[~self._alive] = 0.0

    def tridiagonal(self, *, keep_basis: bool = False) -> Tridiagonal:
        """Return what the steps so far have found, with the Lanczos vectors on request."""
        return Tridiagonal(
            torch.stack(self._diagonal, dim=1),
            torch.stack(self._off_diagonal, dim=1),
            self._taken.clone(),
            self.norm,
            torch.cat(self._blocks, dim=1) if keep_basis else None,
        )


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of k pairs of vectors, (k, d) and (k, d) → (k,), float64."""
    if a.shape[1] <= COLUMNS:
        return (a * b).sum(dim=1, dtype=torch.float64)
    pairs = zip(a.split(COLUMNS, dim=1), b.split(COLUMNS, dim=1), strict=True)
    return torch.stack([torch.linalg.vecdot(x, y) for x, y in pairs]).sum(0, dtype=torch.float64)


def norms(vectors: Tensor) -> Tensor:
    """Return Euclidean norms, (k, d) → (k,), float64, whatever the size of the entries."""
    limits = torch.finfo(vectors.dtype)
    squares = inner(vectors, vectors)
    # Squares below the format's smallest number are lost; all of them add up to at most this.
    lost = vectors.shape[1] * limits.tiny / limits.eps
    if bool((torch.isfinite(squares) & (squares >= lost)).all()):
        return squares.sqrt()
    largest = vectors.abs().amax(dim=1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1.0)
    return largest.squeeze(1).double() * inner(scaled, scaled).sqrt()


def project_out(rows: Tensor, vector: Tensor) -> Tensor:
    """Take the part along m orthonormal rows (m, d) off a vector (d,), in place.

    Returns
    -------
    Tensor
        Shape (m,), float64: its inner products with them.
    """
    overlaps = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    if len(rows):
        pieces = zip(rows.split(COLUMNS, dim=1), vector.split(COLUMNS), strict=True)
        for some, part in pieces:
            overlaps += some @ part
        vector.addmv_(rows.T, overlaps.to(rows), alpha=-1)
    return overlaps


def _orthogonalize(image: Tensor, seen: list[Tensor]) -> Tensor:
    """Project (k, d) off the k bases, in place; return the largest component removed, (k,)."""
    largest = torch.zeros(len(image), dtype=torch.float64, device=image.device)
    for basis in seen:
        if image.shape[1] > COLUMNS:
            # A product with one matrix is several times faster than one with a stack of them.
            overlap = torch.stack(
                [project_out(*pair) for pair in zip(basis, image, strict=True)]
            ).unsqueeze(2)
        else:
            overlap = torch.bmm(basis, image.unsqueeze(2))
            image -= torch.bmm(basis.transpose(1, 2), overlap).squeeze(2)
        largest = torch.maximum(largest, overlap.abs().amax(dim=(1, 2)).to(largest))
    return largest


def lanczos(
    operator: Matrix, starts: Tensor, steps: int, *, keep_basis: bool = False
) -> Tridiagonal:
    """Run Lanczos with full reorthogonalization from each starting vector.

    Source: Golub and Meurant, "Matrices, Moments and Quadrature with Applications" (2010), chapter
    4; the Rényi paper's Algorithm 1, where the off-diagonal entry of rows i and i + 1 must be
    β_{i+1}, not β_i as printed.

    Parameters
    ----------
    operator : SymmetricOperator, Tensor or callable
        A symmetric matrix, as in :class:`Lanczos`.
    starts : Tensor
        Shape (k, d), in the operator's dtype and on its device; need not be normalized.
    steps : int
        m, at least 1; more than d steps are not taken.
    keep_basis : bool
        Whether to return the Lanczos vectors.

    Returns
    -------
    Tridiagonal
        Coefficients in float64. A starting vector whose Krylov space is exhausted early stops
        there, judged relative to the operator's norm as seen so far; the others go on.

    Raises
    ------
    TypeError, ValueError
        If ``steps`` is not a positive integer, a starting vector is zero or not finite, or the
        operator returns another shape, NaN or infinite entries, or is not symmetric.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import lanczos
    >>> A = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    >>> found = lanczos(A, torch.ones(1, 2, dtype=torch.float64), steps=2)
    >>> found.matrices().round(decimals=6)
    tensor([[[2., 1.],
             [1., 2.]]], dtype=torch.float64)
    >>> torch.linalg.eigvalsh(found.matrices()).round(decimals=6)  # the Ritz values
    tensor([[1., 3.]], dtype=torch.float64)
    """
    keep_basis = arguments.flag("keep_basis", keep_basis)
    process = Lanczos(operator, starts)
    process.advance(steps)
    return process.tridiagonal(keep_basis=keep_basis)
