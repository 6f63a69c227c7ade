r"""Traces of powers of :math:`G G^\top` where G has too many rows for all eigenvalues.

A few hundred directions carry nearly all of the trace, and the sum of the square roots of the
eigenvalues lives in the rest. So the first are treated exactly and the rest by quadrature, and what
couples them is bounded.

Let :math:`Q` be an orthonormal basis of the directions, with
:math:`T = Q^\top G G^\top Q = \operatorname{diag}(t)`, and
:math:`X = Q^\top G`, :math:`Y = (I - Q Q^\top) G` the two parts of the rows. The rows of X are
orthogonal, and :math:`E = Y X^\top T^{-1/2}` is what Y has in their span; Z is Y without it, so
that :math:`Y Y^\top = Z Z^\top + E E^\top`. Write
:math:`S_\alpha(G) = \operatorname{Tr} (G G^\top)^\alpha`, which is the Schatten norm
:math:`\|G\|_{2\alpha}^{2\alpha}`.

* *Cutting the coupling.* :math:`G G^\top` cut into the blocks of Q and its complement has the
  eigenvalues of :math:`X X^\top` and of :math:`Y Y^\top`, and cutting makes a spectrum more even
  (Bhatia, *Matrix Analysis*, II.5). So :math:`S_\alpha(G) \le S_\alpha(X) + S_\alpha(Y)` for
  :math:`\alpha \le 1`, and ≥ for :math:`\alpha \ge 1`.
* *From below, for* :math:`\tfrac12 \le \alpha \le 1`. In the bases of Q and of the rows of X, G is
  block triangular with the diagonal X, Z. Norms grow when entries off the diagonal blocks are put
  back, so that :math:`S_\alpha(G) \ge S_\alpha(X) + S_\alpha(Z)`. For smaller orders
  :math:`\|\cdot\|_p^p` is subadditive, which leaves :math:`S_\alpha(E)` less.
* *From above, for* :math:`\alpha \ge 1`. The triangle inequality of the norm gives
  :math:`(S_\alpha(X) + S_\alpha(Z))^{1/2\alpha} + S_\alpha(E)^{1/2\alpha}`. For
  :math:`\alpha \le 2` there is a sharper one: with :math:`\Delta` the coupling alone, whose
  singular values are those of :math:`Y X^\top`, each twice, Klein's inequality and
  :math:`\|A^\theta - B^\theta\|_p \le \||A - B|^\theta\|_p` (Birman, Koplienko and Solomyak 1975)
  give :math:`S_\alpha(G) \le S_\alpha(X) + S_\alpha(Y) + \alpha \operatorname{Tr} |\Delta|^\alpha`.
  For :math:`\alpha \ge 2` the power :math:`\alpha - 1` is Lipschitz on the spectra, and the last
  term is :math:`\alpha (\alpha - 1) \lambda^{\alpha - 2} \|\Delta\|_2^2`, with :math:`\lambda`
  a bound of all eigenvalues.
* *Rows that are left out.* Without some rows a power sum is smaller. For :math:`\alpha \le 1` it is
  so by at most the sum of their norms to the power :math:`2\alpha` (Rotfel'd 1969), for larger
  orders by at most the sum of their squares times :math:`\alpha \lambda^{\alpha - 1}` (Klein).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.lanczos import Lanczos, Tridiagonal
from paperkit.linalg.operator import FunctionOperator
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linalg.quadrature import (
    Estimate,
    SpectralQuadrature,
    grow,
    joined,
    quadrature_of,
)
from paperkit.linalg.spectral_functions import power
from paperkit.linalg.symmetric import eigenpairs_of
from paperkit.memory import GIBIBYTE, chunk_sizes

# A block of rows that is widened to float64 at a time has so many entries.
_ENTRIES = 2**22
# Rows that are moved at a time.
_ROWS_AT_ONCE = 512
# Units of round-off, of the whole norm, that a matrix is taken for zero below.
_ROUND_OFF = 10.0
# Directions whose share of the largest is below so many units of the rows' round-off are left to
# the rest.
_UNITS = 100.0


@dataclass(frozen=True)
class DeflatedQuadrature:
    """Exact leading directions of G Gᵀ and quadrature rules of the rest.

    All attributes but the first are those of G over its norm, whose trace is 1.

    Attributes
    ----------
    trace : float
        Tr G Gᵀ.
    values : Tensor
        t, the eigenvalues of Qᵀ G Gᵀ Q, shape (m,), float64.
    rest, uncoupled : SpectralQuadrature or None
        Rules of Y Yᵀ and of Z Zᵀ, from the same probes; None where nothing is left.
    rest_trace, uncoupled_trace : float
        Their traces, exact.
    coupling, shared : Tensor
        Singular values of Y Xᵀ and of E, each (m,).
    dropped : Tensor
        Norms of the rows that were left out.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import deflated_quadrature
    >>> G = torch.diag(torch.arange(1.0, 101.0).double().flip(0))
    >>> found = deflated_quadrature(G, rank=20, probes=8)
    >>> round(float(found.power_sum(0.5)), 4)  # Σ i
    5050.0
    """

    trace: float
    values: Tensor
    rest: SpectralQuadrature | None
    uncoupled: SpectralQuadrature | None
    rest_trace: float
    uncoupled_trace: float
    coupling: Tensor
    shared: Tensor
    dropped: Tensor

    def power_sum(self, alpha: float) -> Estimate:
        r"""Estimate :math:`\operatorname{Tr} (G G^\top)^\alpha`.

        Parameters
        ----------
        alpha : float
            Positive and finite.

        Returns
        -------
        Estimate
            The middle of its bracket, which holds the error of the quadrature and of cutting the
            coupling, but not that of the probes; the standard error has that.
        """
        alpha = arguments.order("alpha", alpha)
        leading = float((self.values**alpha).sum())
        rest, rest_error = _scaled(self.rest, self.rest_trace, alpha)
        uncoupled, _ = _scaled(self.uncoupled, self.uncoupled_trace, alpha)
        shared = float((self.shared ** (2 * alpha)).sum())
        if alpha <= 1.0:
            lost = 0.0 if alpha >= 0.5 else shared
            low = leading + max(0.0, uncoupled[0] - lost)
            high = leading + rest[1] + float((self.dropped ** (2.0 * alpha)).sum())
        else:
            root = 1.0 / (2.0 * alpha)
            low = leading + rest[0]
            triangle = ((leading + uncoupled[1]) ** root + shared**root) ** (2.0 * alpha)
            high = min(triangle, leading + rest[1] + self._coupled(alpha))
            lost = float(self.dropped.square().sum())
            high += alpha * (self._largest() + lost) ** (alpha - 1.0) * lost
        # Noise of the two rules can put ends that nearly meet in the wrong order.
        unit = self.trace**alpha
        low, high = unit * min(low, high), unit * max(low, high)
        error = unit * rest_error
        return Estimate(value=(low + high) / 2, standard_error=error, bracket=(low, high))

    def _coupled(self, alpha: float) -> float:
        """Bound what the coupling adds to the power sum of the two blocks, for α ≥ 1."""
        sizes = self.coupling
        if alpha <= 2.0:
            return alpha * 2.0 * float((sizes**alpha).sum())
        squares = 2.0 * float(sizes.square().sum())
        return alpha * (alpha - 1.0) * self._largest() ** (alpha - 2.0) * squares

    def _largest(self) -> float:
        """Bound the largest eigenvalue from above, without the rows that were left out."""
        return max(float(self.values[0]), self.rest_trace) + float(self.coupling[0])


def _scaled(
    quadrature: SpectralQuadrature | None, trace: float, alpha: float
) -> tuple[tuple[float, float], float]:
    """Return the ends and the standard error of a power sum, scaled to the exact trace.

    A probe that sees much of the trace sees much of the power sum, so that their ratio has less
    noise than either.
    """
    if quadrature is None:
        return (0.0, 0.0), 0.0
    sums = quadrature.gauss.integrate(power(alpha).evaluate)
    traces = quadrature.gauss.integrate(power(1.0).evaluate)
    scale = trace / float(traces.mean())
    ratio = float(sums.mean()) / float(traces.mean())
    error = float((sums - ratio * traces).std()) / len(sums) ** 0.5 * scale
    mean = float(sums.mean())
    low, high = quadrature.trace(power(alpha)).bracket or (mean, mean)
    return (low * scale, high * scale), error


def deflated_quadrature(
    rows: Tensor,
    *,
    rank: int,
    alpha: Sequence[float] = (0.5, 1.5),
    probes: int = 16,
    max_steps: int = 100,
    iterations: int = 1,
    drop: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
) -> DeflatedQuadrature:
    r"""Split G into leading directions and a rest, and run quadrature on the rest.

    The directions come from subspace iteration that starts at the largest rows: their products with
    all rows are :math:`G G^\top` applied to as many unit vectors. All in all that takes
    ``2 · iterations + 2`` products of G with ``rank`` vectors, and four with each probe for each
    Lanczos step. Random vectors to start with (Halko, Martinsson and Tropp 2011, algorithm 4.4)
    take one iteration more for directions as good, where rows differ in size.

    Parameters
    ----------
    rows : Tensor
        G, shape (N, d); narrower formats than float32 are widened to it. If N > d, its transpose is
        taken, which has the same nonzero eigenvalues.
    rank : int
        m, the number of leading directions; min(N, d) at most.
    alpha : sequence of float
        Orders that the Lanczos steps shall resolve: they grow until the bracket of each power sum
        of the rest is narrower than its standard error. All orders can be asked for afterwards.
    probes : int
        Random vectors, at least 2.
    max_steps : int
        Where the steps stop growing.
    iterations : int
        Applications of G Gᵀ; more of them leave less coupling.
    drop : float
        Share of the rows' summed norms that the smallest rows may have, which are left out. They
        can add their norms' sum to :math:`\operatorname{Tr} (G G^\top)^{1/2}`, and the bracket has
        that.
    seed : int
        Seed of the probes.
    overwrite : bool
        Whether the memory of ``rows`` may be used; else a copy is made.

    Returns
    -------
    DeflatedQuadrature

    Raises
    ------
    ValueError
        If a number is out of range, or G is not finite or zero.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import deflated_quadrature
    >>> sigma = 1.0 / torch.arange(1.0, 201.0).double()
    >>> found = deflated_quadrature(torch.diag(sigma), rank=30)
    >>> len(found.values), round(float(found.power_sum(1.5)), 4)  # Σ 1/i³
    (30, 1.202)
    """
    rows = arguments.tensor("rows", rows, shape=("N", "d"), floating=True, finite=True)
    orders = arguments.orders("alpha", alpha)
    rank = arguments.integer("rank", rank, at_least=1, at_most=min(rows.shape))
    probes = arguments.integer("probes", probes, at_least=2, because="one has no standard error")
    iterations = arguments.integer("iterations", iterations, at_least=1)
    drop = arguments.number("drop", drop, at_least=0.0, below=1.0)
    overwrite = arguments.flag("overwrite", overwrite)
    matrix = rows.detach()
    if matrix.dtype not in (torch.float32, torch.float64):
        matrix = matrix.float()
    elif not overwrite:
        matrix = matrix.clone()
    trace = _over_its_norm(matrix)
    matrix, dropped = _without_small_rows(matrix, drop, rank)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    values, coupled = _leading(matrix, rank, iterations)
    shared = coupled / values.sqrt()
    rest_trace = float(_squared_norms(matrix).sum())
    uncoupled_trace = max(0.0, rest_trace - float(shared.square().sum()))
    # A trace of so little is round-off.
    least = (_ROUND_OFF * torch.finfo(matrix.dtype).eps) ** 2
    removed = [
        part
        for part, trace_of_part in ((None, rest_trace), (shared, uncoupled_trace))
        if trace_of_part > least
    ]
    rules: list[SpectralQuadrature | None] = [None, None]
    if removed:
        found = _rules_of(matrix, removed, probes, max_steps, seed, orders)
        rules[: len(found)] = found
    return DeflatedQuadrature(
        trace=trace,
        values=values.cpu(),
        rest=rules[0],
        uncoupled=rules[1],
        rest_trace=rest_trace,
        uncoupled_trace=uncoupled_trace,
        coupling=_singular_values(coupled),
        shared=_singular_values(shared),
        dropped=dropped,
    )


def _blocks(matrix: Tensor) -> list[tuple[slice, Tensor]]:
    """Return a matrix in blocks of rows, with their places."""
    step = max(1, _ENTRIES // matrix.shape[1])
    starts = range(0, matrix.shape[0], step)
    return [(slice(start, start + step), matrix[start : start + step]) for start in starts]


def _squared_norms(matrix: Tensor) -> Tensor:
    """Return the squared norm of each row, in float64."""
    return torch.cat([block.double().square().sum(dim=1) for _, block in _blocks(matrix)])


def _over_its_norm(matrix: Tensor) -> float:
    """Divide a matrix by its norm in place, and return the norm's square.

    The largest entry is taken out first, so that no square under- or overflows.
    """
    largest = float(matrix.abs().max())
    if largest == 0.0:
        raise ValueError("rows are all zero: their Gram matrix has no trace.")
    matrix.div_(largest)
    norm = float(_squared_norms(matrix).sum().sqrt())
    matrix.div_(norm)
    return (largest * norm) ** 2


def _without_small_rows(matrix: Tensor, drop: float, rank: int) -> tuple[Tensor, Tensor]:
    """Move the rows that are kept to the front; return these, and the norms of the others."""
    norms = _squared_norms(matrix).sqrt()
    ordered, places = norms.sort()
    count = int((ordered.cumsum(0) <= drop * norms.sum()).sum())
    count = min(count, len(norms) - rank)
    kept = places[count:].sort().values
    # A kept row lies at its new place or behind it, so that none is overwritten before it moves.
    for start in range(0, len(kept), _ROWS_AT_ONCE):
        part = kept[start : start + _ROWS_AT_ONCE]
        matrix[start : start + len(part)] = matrix[part]
    return matrix[: len(kept)], ordered[:count].cpu()


def _leading(matrix: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Return t and Y Xᵀ in float64, and take the part in Q off the matrix, which becomes Y."""
    largest = _squared_norms(matrix).topk(rank).indices
    basis = torch.linalg.qr((matrix @ matrix[largest].T).double()).Q
    for _ in range(iterations - 1):
        image = matrix @ (matrix.T @ basis.to(matrix.dtype))
        basis = torch.linalg.qr(image.double()).Q
    images = (matrix.T @ basis.to(matrix.dtype)).double()  # (Qᵀ G)ᵀ
    values, turn = eigenpairs_of(images.T @ images)
    # The rest is what remains, and needs directions whose size is known to some digits.
    least = _UNITS * torch.finfo(matrix.dtype).eps * float(values[-1])
    kept = values > least
    values, turn = values[kept].flip(0), turn[:, kept].flip(1)
    basis, images = basis @ turn, images @ turn
    coupled = (matrix @ images.to(matrix.dtype)).double() - basis * values
    coupled -= basis @ (basis.T @ coupled)
    for place, block in _blocks(matrix):
        block.sub_((basis[place] @ images.T).to(matrix.dtype))
    return values, coupled


def _rules_of(
    matrix: Tensor,
    removed: Sequence[Tensor | None],
    probes: int,
    max_steps: int,
    seed: int,
    orders: Sequence[float],
) -> list[SpectralQuadrature]:
    """Return the rules of Y Yᵀ, and of Y Yᵀ − E Eᵀ for each E that is removed, from one run.

    All use the same probes and share the products with Y, each of which reads the whole matrix.
    """
    size, copies = matrix.shape[0], len(removed)

    def product(vectors: Tensor) -> Tensor:
        image = vectors.new_zeros(len(vectors), matrix.shape[1])
        for place, block in _blocks(matrix):
            image.addmm_(vectors[:, place], block.to(vectors.dtype))
        result = torch.cat([image @ block.to(vectors.dtype).T for _, block in _blocks(matrix)], 1)
        for part, before, after in zip(
            removed, vectors.chunk(copies), result.chunk(copies), strict=True
        ):
            if part is not None:
                after.sub_((before @ part) @ part.T)
        return result

    operator = FunctionOperator(
        product, size, dtype=torch.float64, device=matrix.device, positive_semidefinite=True
    )
    generator = generator_of(seed)
    done: list[list[SpectralQuadrature]] = []
    elements = copies * min(max_steps, size) * size

    def so_far() -> list[SpectralQuadrature]:
        return [joined(pieces) for pieces in zip(*done, strict=True)]

    def resolved(starts: Tensor, process: Lanczos) -> bool:
        done.append(_rules(process, starts, copies))
        answer = all(_resolved(one, orders, probes) for one in so_far())
        done.pop()
        return answer

    for count in chunk_sizes(probes, elements, torch.float64, GIBIBYTE):
        starts = draw_probes(count, size, generator, device=matrix.device)
        process = Lanczos(operator, starts.repeat(copies, 1))
        grow(process, max_steps, partial(resolved, starts))
        done.append(_rules(process, starts, copies))
    return [replace(one, converged=_resolved(one, orders, probes)) for one in so_far()]


def _resolved(quadrature: SpectralQuadrature, orders: Sequence[float], probes: int) -> bool:
    """Return whether each power sum's bracket is narrower than its error will be in the end."""
    allowed = (quadrature.probes / probes) ** 0.5
    return all(quadrature.trace(power(order)).bracket_ratio <= allowed for order in orders)


def _rules(process: Lanczos, starts: Tensor, copies: int) -> list[SpectralQuadrature]:
    """Return the rules of several operators whose recurrences run side by side."""
    found = process.tridiagonal()
    tensors = (found.diagonal, found.off_diagonal, found.steps, found.norm)
    parts = zip(*(tensor.chunk(copies) for tensor in tensors), strict=True)
    return [quadrature_of(Tridiagonal(*part), starts, positive_semidefinite=True) for part in parts]


def _singular_values(tall: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(tall.T @ tall).clamp(min=0.0).sqrt().flip(0).cpu()
