r"""The largest eigenvalues of a symmetric operator with their vectors, by thick-restarted Lanczos.

One starting vector gives the longest Krylov space for a number of products, but it meets a multiple
eigenvalue only once. So when k pairs have converged, a second search from another random vector
looks for what is missing in their complement. What it finds is added, and the search repeated. It
ends when a larger eigenvalue there would have been seen: after m steps with a random vector, the
largest Ritz value is below the largest eigenvalue by more than the share ε of the spectrum's range
with probability at most :math:`1.648 \sqrt d\, e^{-\sqrt\varepsilon (2m - 1)}`.

A matrix that changes slowly is searched from where its predecessor was: the start is then half the
sum of the predecessor's first Ritz vectors, so that pairs which have changed places are all met,
and half random, so that a new direction is found as from a random start, whose components are only
smaller by a factor of the square root of two.

Sources: Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems"
(2000); Kuczyński and Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos
algorithms with a random start" (1992), theorem 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.lanczos import BREAKDOWN, CANCELLED, COLUMNS, inner, norms, project_out
from paperkit.linalg.operator import SymmetricOperator, apply, as_operator
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linalg.traces import Deflation
from paperkit.memory import GIBIBYTE, MemoryBudgetError

ORDERS = ("magnitude", "algebraic")
"""Largest absolute value first; largest value first."""

# The basis is cut back when it would exceed so many vectors for each pair, or so many in all.
_VECTORS_EACH, _SMALLEST_BASIS = 6, 40
# Vectors beside the basis: the newest, its image, the product's own temporaries, the result, the
# start of the next search.
_BESIDE = 7
# Ritz vectors whose sum is the start of the next search.
_CONTINUED = 4
# The probability that a search of the complement may end too early.
_DOUBT = 1e-3


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
    complete : bool
        Whether a search for further copies and for missed eigenvalues came to its end; a
        single pair needs no such search.
    products : int
        Operator-vector products.
    continuation : Tensor
        Shape (d,): unit vector, the start with which :func:`top_eigenpairs` goes on when the
        operator has changed a little.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import top_eigenpairs
    >>> A = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    >>> pairs = top_eigenpairs(A, 1)
    >>> round(float(pairs.eigenvalues), 6)
    3.0
    >>> pairs.vectors.abs()  # (1, 1) / √2, up to its sign
    tensor([[0.7071, 0.7071]], dtype=torch.float64)
    >>> bool(pairs.converged), float(pairs.residuals) < 1e-9
    (True, True)
    """

    eigenvalues: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    complete: bool
    products: int
    continuation: Tensor

    def deflation(self) -> Deflation:
        """Return what :func:`paperkit.linalg.hutchinson` takes out before it samples."""
        return Deflation(self.vectors, float(self.eigenvalues.sum()), self.products)


def top_eigenpairs(
    operator: SymmetricOperator | Tensor,
    k: int,
    which: str = "magnitude",
    *,
    tolerance: float = 1e-6,
    max_products: int = 1000,
    seed: int = 0,
    start: Tensor | None = None,
    memory_budget: int = GIBIBYTE,
) -> Eigenpairs:
    r"""Compute the k eigenvalues of largest magnitude, or the k largest ones, and their vectors.

    Parameters
    ----------
    operator : SymmetricOperator or Tensor
        A symmetric matrix; see :func:`paperkit.linalg.as_operator`.
    k : int
        At least 1, at most d.
    which : str
        Order: ``"magnitude"`` or ``"algebraic"``.
    tolerance : float
        A pair has converged when its residual is at most this times the largest magnitude seen.
        The error of an eigenvalue is then of the order of the square, divided by its gap. In
        single precision, take a tolerance above 1e-6.
    max_products : int
        Stops the iteration; at least k.
    seed : int
        Seed of the starting vectors.
    start : Tensor, optional
        Shape (d,): :attr:`Eigenpairs.continuation` of an operator that differs little. The
        first starting vector is then half this one and half random.
    memory_budget : int
        Bytes for the basis, of max(6k, 40) vectors where they fit, fewer else, and for the result.

    Returns
    -------
    Eigenpairs
        Ordered.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or the operator returns another shape,
        NaN or infinite entries.
    MemoryBudgetError
        A ValueError: if the budget does not hold the smallest basis.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import top_eigenpairs
    >>> A = torch.diag(torch.tensor([1.0, 5.0, -7.0], dtype=torch.float64))
    >>> top_eigenpairs(A, 2).eigenvalues.round(decimals=6)
    tensor([-7.,  5.], dtype=torch.float64)
    >>> top_eigenpairs(A, 2, which="algebraic").eigenvalues.round(decimals=6)
    tensor([5., 1.], dtype=torch.float64)

    A matrix that has changed a little is searched with fewer products:

    >>> B = torch.diag(torch.linspace(0, 1, 500, dtype=torch.float64) ** 2)
    >>> first = top_eigenpairs(B, 1)
    >>> again = top_eigenpairs(1.01 * B, 1, start=first.continuation)
    >>> again.products < first.products
    True
    """
    operator = as_operator(operator)
    dimension, dtype, device = operator.dimension, operator.dtype, operator.device
    size = "the operator has no more dimensions"
    k = arguments.integer("k", k, at_least=1, at_most=dimension, because=size)
    which = arguments.choice("which", which, ORDERS)
    ritz = f"the first k={k} Ritz values take as many"
    max_products = arguments.integer("max_products", max_products, at_least=k, because=ritz)
    tolerance = arguments.number("tolerance", tolerance, above=0)
    room = _room(dimension, k, dtype, memory_budget)
    generator = generator_of(seed)
    known_start = _check_start(start, dimension, dtype, device)
    found = _Pairs(torch.empty(0, dimension, dtype=dtype, device=device))
    continuation = torch.zeros(dimension, dtype=dtype, device=device)
    scale, least, products = 0.0, math.inf, 0
    while True:
        first = draw_probes(
            1, dimension, generator, distribution="normal", dtype=dtype, device=device
        ).squeeze(0)
        if known_start is not None and len(found) == 0:
            first.div_(first.norm()).add_(known_start, alpha=1 / float(known_start.norm()))
        search = _Search(operator, first, found.vectors, which, room - len(found), k)
        ended = False
        while not (ended or search.exhausted or products == max_products):
            search.step()
            products += 1
            scale = max(scale, float(search.values.abs().max()))
            least = min(least, float(search.values.min()))
            close = tolerance * scale
            new = search.belonging(found.values, k, close)
            if new or len(found) < k:
                met = bool((search.residuals[:new] <= close).all())
                ended = met and len(found) + new >= k
            else:
                seen = float(search.residuals[0]) <= close
                ended = seen or search.would_have_seen(found.values[-1], least)
        new = search.belonging(found.values, k, tolerance * scale)
        nothing_left = len(found) + len(search) == dimension
        continuation += search.sum_of_vectors(new if len(found) else max(k, _CONTINUED))
        found = found.joined(search, new).first(k, which)
        searched = ended or search.exhausted
        complete = nothing_left or (searched and (new == 0 or k == 1))
        if complete or products == max_products:
            break
    converged = found.residuals <= tolerance * scale
    return Eigenpairs(
        found.values,
        found.vectors,
        found.residuals,
        converged,
        complete,
        products,
        continuation / continuation.norm(),
    )


def _check_start(
    start: Tensor | None, dimension: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """Return the start in the operator's format; None without a start."""
    if start is None:
        return None
    start = arguments.tensor("start", start, shape=(dimension,), floating=True, finite=True)
    start = start.detach().to(device, dtype)
    if not bool(start.any()):
        raise ValueError("start is zero: pass the continuation of earlier eigenpairs, or None.")
    return start


def _room(dimension: int, k: int, dtype: torch.dtype, memory_budget: int) -> int:
    """Return how many vectors fit beside the result."""
    memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    least, most = k + 3, max(_VECTORS_EACH * k, _SMALLEST_BASIS) + k
    each = dimension * dtype.itemsize
    fitting = memory_budget // each - _BESIDE - k
    if fitting < least and dimension > least:
        raise MemoryBudgetError(
            f"memory_budget={memory_budget} is too small for k={k} eigenpairs, whose basis holds "
            f"vectors of {dimension} entries: pass at least {(least + _BESIDE + k) * each}."
        )
    return max(least, min(fitting, most))


def _key(values: Tensor, which: str) -> Tensor:
    return values.abs() if which == "magnitude" else values


@dataclass(frozen=True)
class _Pairs:
    """Ritz pairs, largest first.

    Attributes
    ----------
    vectors : Tensor
        Shape (m, d).
    values, residuals : Tensor
        Shape (m,), float64, on the CPU.
    """

    vectors: Tensor
    values: Tensor = field(default_factory=lambda: _float64(0))
    residuals: Tensor = field(default_factory=lambda: _float64(0))

    def __len__(self) -> int:
        return len(self.vectors)

    def joined(self, search: _Search, count: int) -> _Pairs:
        """Add the first pairs of a search, which is over then."""
        if count == 0:
            return self
        values, residuals = search.values[:count], search.residuals[:count]
        return _Pairs(
            torch.cat([self.vectors, search.vectors(count)]),
            torch.cat([self.values, values]),
            torch.cat([self.residuals, residuals]),
        )

    def first(self, k: int, which: str) -> _Pairs:
        order = _key(self.values, which).argsort(descending=True, stable=True)[:k]
        if torch.equal(order, torch.arange(len(self), device="cpu")):
            return self
        return _Pairs(
            self.vectors[order.to(self.vectors.device)], self.values[order], self.residuals[order]
        )


def _float64(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device="cpu")


class _Search:
    """Lanczos from one vector, in the complement of known vectors, with a bounded basis.

    Attributes
    ----------
    values, residuals : Tensor
        Shape (m,), float64: the Ritz values, in the order that was asked for.
    exhausted : bool
        Whether the Krylov space is invariant.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        start: Tensor,
        known: Tensor,
        which: str,
        longest: int,
        k: int,
    ) -> None:
        dimension = len(start)
        longest = min(longest, dimension - len(known))
        self.operator, self.known, self.which = operator, known, which
        self._kept = min((longest + k) // 2, longest - 1)
        self._basis = start.new_empty(longest, dimension)
        self._projected = _float64(longest, longest)
        # Components of the images along the known vectors.
        self._outside = _float64(len(known), longest)
        self._size = self._steps = 0
        self._scale = self._coupling = 0.0
        # Whether the last vectors follow from each other by the three-term recurrence.
        self._recurring = False
        self._epsilon = operator.round_off
        self.values = self.residuals = _float64(0)
        self._rotations = _float64(0, 0)
        project_out(known, start)
        project_out(known, start)
        self.exhausted = longest == 0
        self._next = start.div_(float(start.norm()))

    def __len__(self) -> int:
        return self._size

    def step(self) -> None:
        """Take one product."""
        if self._size == len(self._basis):
            self._restart()
        j = self._size
        self._basis[j] = self._next
        self._size, self._steps = j + 1, self._steps + 1
        image = apply(self.operator, self._next.unsqueeze(0)).squeeze(0)
        if image.data_ptr() == self._next.data_ptr():
            image = image.clone()
        self._scale = max(self._scale, float(norms(image.unsqueeze(0))))
        left = self._take_off(image, j)
        self.exhausted = self._full or left <= BREAKDOWN * self._epsilon * self._scale
        self._coupling = left
        self._next = image if self.exhausted else image.div_(left)
        self._solve(0.0 if self.exhausted else left)

    def _take_off(self, image: Tensor, j: int) -> float:
        """Orthogonalize the image of vector j, note what is taken off it; return the norm left.

        The three-term recurrence takes off what there is in exact arithmetic, and one pass over the
        basis what round-off adds. After a restart the first image has a part along all vectors,
        which is taken off by a pass of its own.
        """
        basis, column = self._basis[: j + 1], self._projected[: j + 1, j]
        if self._recurring:
            column[j] = float(inner(image.unsqueeze(0), basis[j:]))
            column[j - 1] = self._coupling
            image.sub_(basis[j], alpha=float(column[j]))
            image.sub_(basis[j - 1], alpha=self._coupling)
        else:
            column += project_out(basis, image).cpu()
        self._recurring = True
        before = float(norms(image.unsqueeze(0)))
        leaked = project_out(basis, image).cpu()
        column[j] += leaked[j]
        self._outside[:, j] = project_out(self.known, image).cpu()
        left = float(norms(image.unsqueeze(0)))
        if float(leaked.abs().max()) > self._epsilon**0.5 * self._scale:
            raise ValueError(
                "operator is not symmetric, or gives different results at each call: pass a "
                "symmetric, deterministic one."
            )
        if left < CANCELLED * before:
            project_out(basis, image)
            project_out(self.known, image)
            left = float(norms(image.unsqueeze(0)))
        self._projected[j, :j] = column[:j]
        return left

    @property
    def _full(self) -> bool:
        return self._size == len(self._next) - len(self.known)

    def _solve(self, left: float) -> None:
        """Diagonalize the projected matrix; ``left`` is the last image's part outside the basis."""
        projected = self._projected[: self._size, : self._size]
        values, rotations = torch.linalg.eigh(projected)
        order = _key(values, self.which).argsort(descending=True)
        self.values, self._rotations = values[order], rotations[:, order]
        # A Ritz vector leaves the basis only through its part in the last vector.
        leaks = left * self._rotations[-1].abs()
        outside = (self._outside[:, : self._size] @ self._rotations).norm(dim=0)
        self.residuals = torch.hypot(leaks, outside)

    def _restart(self) -> None:
        """Cut the basis back to the first Ritz vectors."""
        kept = self._kept
        self._rotate(kept)
        self._projected.zero_()
        self._projected[:kept, :kept] = torch.diag(self.values[:kept])
        self._outside[:, :kept] = self._outside @ self._rotations[:, :kept]
        self._size, self._recurring = kept, False

    def _rotate(self, count: int) -> None:
        rotation = self._rotations[:, :count].T.to(self._basis)
        for columns in self._basis[: self._size].split(COLUMNS, dim=1):
            columns[:count] = rotation @ columns

    def sum_of_vectors(self, count: int) -> Tensor:
        """Return the sum of the first Ritz vectors, (d,)."""
        weights = self._rotations[:, :count].sum(dim=1).to(self._basis)
        return weights @ self._basis[: self._size]

    def vectors(self, count: int) -> Tensor:
        """Return the first Ritz vectors, (count, d), and end the search."""
        self._rotate(count)
        return self._basis[:count].clone()

    def belonging(self, others: Tensor, k: int, close: float) -> int:
        """Return how many of the Ritz values are among the first k of these and the others.

        Where the others are k already, one that is as close to the last of them as both are known
        does not replace it.
        """
        keys, other_keys = _key(self.values, self.which), _key(others, self.which)
        if len(others) == k:
            keys = keys - close
        before = (other_keys.unsqueeze(1) >= keys).sum(dim=0)
        return int((before + torch.arange(len(keys), device="cpu") < k).sum())

    def would_have_seen(self, last: Tensor, least: float) -> bool:
        """Whether an eigenvalue before the last known one would have shown itself by now.

        Parameters
        ----------
        last : Tensor
            The value.
        least : float
            The smallest Ritz value of the operator so far.
        """
        bar = float(_key(last, self.which))
        gap = bar - float(_key(self.values, self.which)[0])
        span = 2 * bar if self.which == "magnitude" else bar - least
        if gap <= 0 or span <= 0:
            return False
        exponent = math.sqrt(min(1.0, gap / span)) * (2 * self._steps - 1)
        return math.log(1.648 * math.sqrt(len(self._next)) / _DOUBT) <= exponent
