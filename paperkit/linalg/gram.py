r"""Exact spectra of matrices :math:`G^\top G` through the smaller Gram matrix.

:math:`G^\top G` (d × d) and :math:`G G^\top` (m × m) share their nonzero eigenvalues, so the work
is that of the smaller of the two. Everything is accumulated in float64: squaring the singular
values in single precision would lose all eigenvalues below 1e-7 of the largest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from paperkit import arguments

_EPSILON = torch.finfo(torch.float64).eps

# Units of round-off that a pass through a network leaves in its derivatives.
_UNITS = 10.0


# A sum of squares above this number loses nothing to squares that underflow in float32, because
# each of these is below 1e-38.
_LEAST_SUM = 1e-24


def float32_sums_are_safe(sums: Tensor) -> Tensor:
    """Tell of sums of float32 squares whether none that matters can have under- or overflowed."""
    return (sums > _LEAST_SUM) & (sums < 1.0 / _LEAST_SUM)


def sums_of_squares(rows: Tensor) -> Tensor:
    """Return the sum of the squares of (n, …, d) over all axes but the first, (n,), float64.

    Each row of float32 entries is added in float32, which is as exact as the entries and takes no
    float64 copy; where its squares could be lost, the copy is made.

    Parameters
    ----------
    rows : Tensor
        Any floating format.
    """
    if rows.dtype != torch.float32:
        return rows.flatten(1).norm(dim=1, dtype=torch.float64).square()
    sums = rows.norm(dim=-1).double().square().flatten(1).sum(dim=1)
    lost = ~float32_sums_are_safe(sums)
    if bool(lost.any()):
        sums[lost] = rows[lost].flatten(1).norm(dim=1, dtype=torch.float64).square()
    return sums


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of a positive semidefinite d × d matrix.

    Attributes
    ----------
    eigenvalues : Tensor
        The ``rank`` eigenvalues above ``tolerance``, float64, descending, on the CPU. The other
        ``dimension - rank`` are zero.
    dimension : int
        d, the matrix's size.
    tolerance : float
        Absolute; what lies below is round-off of the largest eigenvalue and counted as zero.
    round_off : float
        Absolute; what round-off in the matrix itself, which comes from a network's passes, may add
        to an eigenvalue that is zero, as far as can be told.
    squared : bool
        Whether the eigenvalues are squares of computed singular values: round-off then moves their
        roots by about the root of ``round_off``; else it moves the eigenvalues by ``round_off``.
    rank_limit : int or None
        How many eigenvalues can differ from zero; None if all can.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import gram_spectrum
    >>> G = torch.tensor([[3.0, 4.0, 0.0]])
    >>> spectrum = gram_spectrum([G], num_rows=1, dimension=3)
    >>> spectrum
    Spectrum(dimension=3, rank=1, largest=25, trace=25)
    >>> spectrum.rank, round(spectrum.trace, 6)  # ‖G‖²
    (1, 25.0)
    """

    eigenvalues: Tensor
    dimension: int
    tolerance: float
    round_off: float = 0.0
    squared: bool = False
    rank_limit: int | None = None

    @property
    def rank(self) -> int:
        """The number of eigenvalues above the tolerance."""
        return self.eigenvalues.numel()

    @property
    def trace(self) -> float:
        """The sum of all eigenvalues."""
        return float(self.eigenvalues.sum())

    def bracket(self) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues as small, and as large, in magnitude as round-off may have it.

        The larger ones hold an entry for each that can differ from zero.
        """
        count = self.dimension if self.rank_limit is None else self.rank_limit
        sizes = torch.zeros(count, dtype=torch.float64, device="cpu")
        sizes[: self.rank] = self.eigenvalues.abs()
        signs = torch.ones_like(sizes)
        signs[: self.rank] = self.eigenvalues.sign()
        if self.squared:
            root, move = sizes.sqrt(), self.round_off**0.5
            low, high = (root - move).clamp(min=0.0).square(), (root + move).square()
        else:
            low, high = (sizes - self.round_off).clamp(min=0.0), sizes + self.round_off
            high = high.clamp(min=self.tolerance)
        return (signs * low)[low > 0], signs * high

    def __repr__(self) -> str:
        top = f"{float(self.eigenvalues[0]):.4g}" if self.rank else "0"
        return (
            f"{type(self).__name__}(dimension={self.dimension}, rank={self.rank}, largest={top}, "
            f"trace={self.trace:.4g})"
        )


def add_gram(total: Tensor, rows: Tensor, block: int = 192) -> None:
    """Add ``rows @ rows.T`` to a symmetric matrix in place, computing its lower half only.

    Parameters
    ----------
    total : Tensor
        Shape (m, m); only the blocks on and below the diagonal are written.
    rows : Tensor
        Shape (m, d), same dtype.
    block : int
        Rows of a block; small blocks skip more of the upper half, large ones multiply faster.
    """
    for start in range(0, rows.shape[0], block):
        stop = min(start + block, rows.shape[0])
        total[start:stop, :stop].addmm_(rows[start:stop], rows[:stop].T)


def gram_spectrum(blocks: Iterable[Tensor], num_rows: int, dimension: int) -> Spectrum:
    r"""Return the spectrum of :math:`G^\top G` for a matrix G that comes in blocks.

    Parameters
    ----------
    blocks : iterable of Tensor
        If ``dimension <= num_rows``, blocks of rows of G, each (m_b, d); otherwise blocks of
        columns of G, each (m, d_b). Any floating dtype.
    num_rows, dimension : int
        m and d.

    Returns
    -------
    Spectrum
        Spectrum of the d × d matrix :math:`G^\top G`. The tolerance is max(m, d) · eps · λ_max in
        float64, or what the round-off of the blocks' own dtype may add to an eigenvalue that is
        zero.

    Raises
    ------
    TypeError, ValueError
        If a size is not positive, or a block is no finite matrix that fits them.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import gram_spectrum
    >>> G = torch.diag(torch.tensor([3.0, 2.0, 0.0]))
    >>> spectrum = gram_spectrum(G.split(1), num_rows=3, dimension=3)  # a row at a time
    >>> [round(value, 6) for value in spectrum.eigenvalues.tolist()]
    [9.0, 4.0]
    """
    num_rows = arguments.integer("num_rows", num_rows, at_least=1)
    dimension = arguments.integer("dimension", dimension, at_least=1)
    size = min(num_rows, dimension)
    shape = ("k", dimension) if dimension <= num_rows else (num_rows, "k")
    total: Tensor | None = None
    coarsest = 0.0
    for index, block in enumerate(arguments.iterable("blocks", blocks, "blocks of a matrix")):
        arguments.tensor(f"blocks[{index}]", block, shape=shape, floating=True, finite=True)
        coarsest = max(coarsest, torch.finfo(block.dtype).eps)
        rows = block.to(torch.float64)
        if total is None:
            total = torch.zeros(size, size, dtype=torch.float64, device=rows.device)
        add_gram(total, rows.T.contiguous() if dimension <= num_rows else rows)
    if total is None:
        return Spectrum(torch.zeros(0, dtype=torch.float64, device="cpu"), dimension, 0.0)
    # eigvalsh reads the lower triangle only.
    eigenvalues = torch.linalg.eigvalsh(total).flip(0).cpu()
    largest = float(eigenvalues[0].clamp(min=0.0))
    # Errors of the rows move singular values by no more than the errors' norm, which is at most the
    # matrix's norm times some units of round-off.
    round_off = (_UNITS * coarsest) ** 2 * float(eigenvalues.clamp(min=0.0).sum())
    tolerance = max(max(num_rows, dimension) * _EPSILON * largest, round_off)
    found = eigenvalues[eigenvalues > tolerance]
    return Spectrum(found, dimension, tolerance, tolerance, squared=True, rank_limit=size)
