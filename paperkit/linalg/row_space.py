r"""The row space of a tall or wide stacked matrix G, without ever forming :math:`GG^\top`.

A vector :math:`G^\top a` of the row space has the squared norm

.. math:: (G^\top a)^\top (G^\top G)^\dagger\, G^\top a = a^\top \Pi\, a ,

Π the orthogonal projector onto the range of G. It jumps with the rank, so everything here runs
through orthogonal factorizations in float64: eigenvalues of :math:`GG^\top` or :math:`G^\top G`
would lose every singular value below 1e-8 of the largest.

Rows of very different lengths need more care, because round-off of the long ones hides the short
ones. The rank does not depend on the lengths of the rows, so it is read off rows divided by their
scales. And the rows are sorted into strata of like scale: the first stratum's row space is spanned
by :math:`V_1`, what the second adds to it by :math:`V_2`, and so on. In exact arithmetic the rows
of a stratum are orthogonal to the directions that only later strata have, so

.. math:: G\,(V_1, V_2, \dots) = \begin{pmatrix} G_1 V_1 & 0 & \\ G_2 V_1 & G_2 V_2 & \\
          \vdots & & \ddots \end{pmatrix}

has the range of G. Its zeros are put there, not computed; else the round-off of long rows would
outweigh the short rows in the directions that only these see. With its columns brought to one scale
it is well conditioned, and its QR factorization gives the orthonormal basis. One pass over G yields
the triangular factors of the strata, which settle all the rest; a second one applies it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Scales within one stratum: round-off of its longest rows stays below 1e-9 of its shortest.
_WIDTH = math.log(1e6)

# A row may err by so many units of round-off.
_ROW_ERROR = 100.0

RowBlocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""One pass over G: blocks of rows (m_b, d) in float64 with their scales (m_b,).

The scale of a row is what its length would be without cancellation, zero for a row that is zero; a
row that is round-off next to its scale then counts as zero.
"""


def default_tolerance(num_rows: int, dimension: int, dtype: torch.dtype) -> float:
    """Return what round-off can look like, relative to the largest singular value.

    With rows at unit scale that singular value is about one, and rows that are each off by a
    hundred units of round-off, as after the backward pass of a deep network, move the others by at
    most a hundred √min(m, d) units. The usual max(m, d) units would be 3 % in single precision for
    the 270 000 parameters of a ResNet-20, where G has true singular values.
    """
    return _ROW_ERROR * math.sqrt(min(num_rows, dimension)) * torch.finfo(dtype).eps


def triangular_factor(blocks: Iterable[Tensor]) -> Tensor:
    r"""Return R of the QR factorization of a matrix that comes in blocks of rows.

    Householder reflections of the factor so far stacked on the next block (TSQR; Demmel et al.
    2012): backward stable column by column, and the singular values are never squared.

    Parameters
    ----------
    blocks : iterable of Tensor
        Each (m_b, d), float64.

    Returns
    -------
    Tensor
        Upper triangular, (min(m, d), d), with :math:`R^\top R = G^\top G`.

    Raises
    ------
    ValueError
        If there is no block.
    """
    pending: list[Tensor] = []
    for block in blocks:
        pending.append(block)
        # A step costs as much as the d rows of the factor even for one new row, so that at least
        # as many rows are gathered.
        if sum(map(len, pending)) >= 2 * block.shape[1]:
            pending = [torch.linalg.qr(torch.cat(pending), mode="r").R]
    if not pending:
        raise ValueError("blocks is empty: pass at least one block of rows.")
    return torch.linalg.qr(torch.cat(pending), mode="r").R


def _strata(scales: Tensor) -> Tensor:
    """Number the stratum of each scale, long rows first; a zero row belongs to the longest."""
    logarithms = torch.where(scales > 0, scales.log(), torch.inf)
    return torch.where(scales > 0, torch.floor(-logarithms / _WIDTH), -torch.inf)


@dataclass(frozen=True)
class _Stratum:
    """Triangular factors of the rows of like scale: at unit scale, and by ``unit``."""

    index: float
    equilibrated: Tensor
    plain: Tensor

    @property
    def unit(self) -> float:
        """The stratum's common scale."""
        return math.exp(-self.index * _WIDTH)


@dataclass(frozen=True)
class RowSpace:
    r"""An orthonormal basis of the range of G, as a map from rows of G to rows of the basis.

    Attributes
    ----------
    directions : Tensor
        V with its columns scaled, shape (d, k).
    strata : Tensor
        The stratum that each direction appears in first, (k,).
    factor : Tensor
        Triangular, (k, k), of the block triangular product of G with V.
    """

    directions: Tensor
    strata: Tensor
    factor: Tensor

    @property
    def rank(self) -> int:
        """The number k of independent directions."""
        return self.directions.shape[1]

    def basis(self, rows: Tensor, scales: Tensor) -> Tensor:
        """Return the rows of the basis that belong to some rows of G: (m_b, d) → (m_b, k)."""
        images = _masked(rows @ self.directions, _strata(scales), self.strata)
        return torch.linalg.solve_triangular(self.factor, images, upper=True, left=False)


def _masked(images: Tensor, of_rows: Tensor, of_directions: Tensor) -> Tensor:
    """Put zeros where a direction appears only after the row's stratum."""
    return torch.where(of_rows.unsqueeze(1) >= of_directions, images, 0.0)


@dataclass(frozen=True)
class RowFactors:
    """What one pass over G keeps: two triangular factors, (≤ d, d) each, for every stratum."""

    strata: tuple[_Stratum, ...]
    dimension: int

    def rank(self, tolerance: float) -> int:
        """Return the rank of G at the tolerance of :meth:`space`."""
        return self._ranks(tolerance)[-1]

    def space(self, tolerance: float) -> RowSpace:
        """Return a basis of the range of G.

        Parameters
        ----------
        tolerance : float
            Singular values of the rows at unit scale up to this fraction of the largest are zero.
        """
        like = self.strata[0].plain
        found = like.new_zeros(self.dimension, 0)
        scaled, indices = [found], [like.new_zeros(0)]
        for stratum, rank in zip(self.strata, self._ranks(tolerance), strict=True):
            remainder = stratum.equilibrated
            for _ in range(2):  # once leaves round-off in the directions found before
                remainder = remainder - (remainder @ found) @ found.T
            _, values, right = torch.linalg.svd(remainder, full_matrices=False)
            new = slice(max(rank - found.shape[1], 0))
            values, right = values[new], right[new].T
            found = torch.cat([found, right], dim=1)
            scaled.append(right / (values * stratum.unit))
            indices.append(torch.full_like(values, stratum.index))
        directions, of_directions = torch.cat(scaled, dim=1), torch.cat(indices)
        if found.shape[1] == 0:
            return RowSpace(directions, of_directions, like.new_zeros(0, 0))
        products = (
            _masked(
                stratum.plain @ (stratum.unit * directions),
                torch.full_like(stratum.plain[:, 0], stratum.index),
                of_directions,
            )
            for stratum in self.strata
        )
        return RowSpace(directions, of_directions, triangular_factor(products))

    def _ranks(self, tolerance: float) -> list[int]:
        """Return the rank of the strata up to each one.

        The rank is read off all rows together, never off the remainder that an earlier stratum
        leaves of a later one. Directions are known only to round-off over their smallest singular
        value, so that the remainder of a row in their span exceeds round-off by as much. The
        smallest singular value of all rows together does not.
        """
        values = self._singular_values
        threshold = tolerance * float(values[-1][0])
        return [int((part > threshold).sum()) for part in values]

    @cached_property
    def _singular_values(self) -> list[Tensor]:
        """Singular values of the rows at unit scale, of the strata up to each one."""
        together: list[Tensor] = []
        for stratum in self.strata:
            together.append(triangular_factor([*together[-1:], stratum.equilibrated]))
        return [torch.linalg.svdvals(factor) for factor in together]

    def resolvent_root(self, relative_shift: float) -> tuple[Tensor, float]:
        r"""Return X with :math:`X X^\top = (G^\top G + s I)^{-1}` on the row space of G, and s.

        Parameters
        ----------
        relative_shift : float
            s as a fraction of the largest eigenvalue of :math:`G^\top G`; positive.

        Returns
        -------
        tuple of Tensor and float
            X, shape (d, min(m, d)), and the shift s.

        Raises
        ------
        ValueError
            If the shift is not positive, or G is zero.
        """
        if not relative_shift > 0:
            raise ValueError(f"relative_shift={relative_shift} must be positive.")
        factor = triangular_factor(stratum.unit * stratum.plain for stratum in self.strata)
        _, values, right = torch.linalg.svd(factor, full_matrices=False)
        shift = relative_shift * float(values[0]) ** 2
        if shift == 0:
            raise ValueError("G is zero: it has no eigenvalue to take the shift relative to.")
        return right.T / torch.sqrt(values.square() + shift), shift


def row_factors(row_blocks: RowBlocks) -> RowFactors:
    """Reduce G to the triangular factors of its strata, in one pass over its rows.

    Parameters
    ----------
    row_blocks : callable
        Starts a pass over G; see :data:`RowBlocks`.

    Raises
    ------
    ValueError
        If there is no row.
    """
    equilibrated: dict[float, Tensor] = {}
    plain: dict[float, Tensor] = {}
    zero: Tensor | None = None
    for rows, scales in row_blocks():
        zero = rows.new_zeros(1, rows.shape[1])
        of_rows = _strata(scales)
        for index in of_rows[of_rows > -torch.inf].unique().tolist():
            chosen, lengths = rows[of_rows == index], scales[of_rows == index].unsqueeze(1)
            unit = math.exp(-index * _WIDTH)
            for factors, part in ((equilibrated, chosen / lengths), (plain, chosen / unit)):
                before = [factors[index]] if index in factors else []
                factors[index] = triangular_factor([*before, part])
    if zero is None:
        raise ValueError("row_blocks is empty: pass at least one block of rows.")
    if not plain:
        return RowFactors((_Stratum(0.0, zero, zero),), zero.shape[1])
    strata = tuple(_Stratum(i, equilibrated[i], plain[i]) for i in sorted(plain))
    return RowFactors(strata, zero.shape[1])
