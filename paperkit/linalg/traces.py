r"""Stochastic estimators of a trace from a given number of operator-vector products.

All of them split :math:`\operatorname{Tr} A = \operatorname{Tr} Q^\top A Q +
\operatorname{Tr}\,(I - QQ^\top) A\, (I - QQ^\top)` for an orthonormal :math:`Q`, take the first
part exactly and the second from random probes, whose variance is about
:math:`2\,\lVert (I - QQ^\top) A\, (I - QQ^\top) \rVert_F^2`. They differ in where :math:`Q` comes
from: nowhere (Hutchinson), eigenvectors or a Krylov space (deflation), images of probes (Hutch++),
images of all probes but one, in turn (XTrace).

A part of A whose trace is known need not be estimated: pass the difference of the two operators
and add the known trace. For the Hessian of a network that part is its Gauss–Newton matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.lanczos import lanczos
from paperkit.linalg.operator import SymmetricOperator, apply, as_operator
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.memory import GIBIBYTE, chunk_sizes

# Directions of a sketch below this many units of round-off of its largest are noise.
_RANK_TOLERANCE = 100.0


@dataclass(frozen=True)
class TraceEstimate:
    """A trace, estimated; ``float(estimate)`` is its value.

    Attributes
    ----------
    value : float
        The estimate.
    standard_error : float
        Estimated from the spread of the samples. Those of XTrace are exchangeable, not independent,
        and theirs is the paper's error estimate.
    products : int
        Operator-vector products, those of a deflation included.
    method : str
        The estimator's name.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import hutchinson
    >>> estimate = hutchinson(torch.ones(4, 4), 100, seed=0)
    >>> estimate
    TraceEstimate(value=3.84, standard_error=0.5269926110688955, products=100, method='hutchinson')
    >>> abs(float(estimate) - 4) < 3 * estimate.standard_error
    True
    """

    value: float
    standard_error: float
    products: int
    method: str

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Deflation:
    r"""An orthonormal basis on which the operator's trace is known.

    Attributes
    ----------
    basis : Tensor
        Shape (r, d), orthonormal rows.
    trace : float
        :math:`\operatorname{Tr} Q^\top A Q` over them; for Ritz vectors, the sum of Ritz values.
    products : int
        Number of operator-vector products that it took.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import hutchinson, top_eigenpairs
    >>> A = torch.ones(4, 4, dtype=torch.float64)  # of rank one, with eigenvalue 4
    >>> deflation = top_eigenpairs(A, 1).deflation()
    >>> round(deflation.trace, 6)
    4.0
    >>> rest = hutchinson(A, deflation.products + 2, deflation=deflation)
    >>> round(float(rest), 6), rest.standard_error < 1e-9  # nothing was left to estimate
    (4.0, True)
    """

    basis: Tensor
    trace: float
    products: int


def krylov_deflation(
    operator: SymmetricOperator | Tensor,
    products: int,
    *,
    seed: int = 0,
) -> Deflation:
    """Return the Krylov space of one random vector, on which Lanczos knows the operator.

    Every product adds a dimension and pays for its own part of the trace, where Hutch++ pays twice
    (Chen and Hallman, "Krylov-aware stochastic trace estimation", 2023).

    Parameters
    ----------
    operator : SymmetricOperator or Tensor
        A symmetric matrix; see :func:`paperkit.linalg.as_operator`.
    products : int
        Number of Lanczos steps.
    seed : int
        Seed of the starting vector; take another for the probes that follow.

    Returns
    -------
    Deflation
        A subspace of at most ``products`` dimensions.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or as :func:`paperkit.linalg.lanczos`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import hutchinson, krylov_deflation
    >>> A = torch.eye(50).double() + 1.0  # eigenvalues 51, and 49 times 1
    >>> deflation = krylov_deflation(A, 2, seed=1)
    >>> round(deflation.trace, 6)  # one vector meets each eigenvalue once
    52.0
    >>> round(float(hutchinson(A, 4, deflation=deflation, distribution="sphere")), 6)
    100.0
    """
    operator = as_operator(operator)
    products = arguments.integer("products", products, at_least=1)
    start = _draw(operator, 1, generator_of(seed), "normal")
    found = lanczos(operator, start, products, keep_basis=True)
    assert found.basis is not None
    steps = int(found.steps)
    return Deflation(found.basis[0, :steps], float(found.diagonal.sum()), steps)


def hutchinson(
    operator: SymmetricOperator | Tensor,
    products: int,
    *,
    distribution: str = "rademacher",
    deflation: Deflation | None = None,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> TraceEstimate:
    r"""Estimate a trace by the mean of :math:`v^\top A v` (Hutchinson 1989).

    The variance of one sample is :math:`2\,(\lVert A \rVert_F^2 - \sum_i A_{ii}^2)` with random
    signs and :math:`2\,\lVert A \rVert_F^2` with normal entries.

    Parameters
    ----------
    operator : SymmetricOperator or Tensor
        A symmetric matrix; see :func:`paperkit.linalg.as_operator`.
    products : int
        Number of products in all. Random probes get the rest, at least 2, after the deflation.
    distribution : str
        Distribution of the probes: ``"rademacher"``, ``"sphere"`` or ``"normal"``. Probes from the
        sphere are scaled back to a sphere after the deflation, which removes the noise of their
        length.
    deflation : Deflation, optional
        Subspace to take out first, which must not depend on these probes.
    seed : int
        Seed of the probes.
    memory_budget : int
        Bytes for the probes that run at once.

    Returns
    -------
    TraceEstimate
        Unbiased, also where the deflation's vectors are no eigenvectors.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, fewer than 2 products are left, the
        sizes do not fit, or the operator returns NaN.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import hutchinson
    >>> hutchinson(torch.diag(torch.arange(1.0, 5.0)), 2)  # signs are exact on a diagonal
    TraceEstimate(value=10.0, standard_error=0.0, products=2, method='hutchinson')
    >>> estimate = hutchinson(torch.ones(4, 4), 100, seed=0)
    >>> round(float(estimate), 2), round(estimate.standard_error, 2)
    (3.84, 0.53)
    """
    operator = as_operator(operator)
    dimension = operator.dimension
    products = arguments.integer("products", products, at_least=2, because="one has no spread")
    memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    if deflation is not None:
        arguments.instance("deflation", deflation, Deflation)
    spent = deflation.products if deflation else 0
    count = products - spent
    if count < 2:
        raise ValueError(
            f"products={products} leaves {count} for random probes after a deflation of {spent}: "
            "at least 2 are needed for a standard error."
        )
    if deflation and deflation.basis.shape[1] != dimension:
        raise ValueError(
            f"deflation is of dimension {deflation.basis.shape[1]}, the operator of {dimension}."
        )
    generator = generator_of(seed)
    samples = []
    for size in chunk_sizes(count, 4 * dimension, operator.dtype, memory_budget):
        probes = _draw(operator, size, generator, distribution)
        if deflation:
            probes = _project(probes, deflation.basis)
            if distribution == "sphere":
                probes = _on_sphere(probes, dimension - len(deflation.basis))
        samples.append(_quadratic_forms(operator, probes))
    deflated = deflation.trace if deflation else 0.0
    return _estimate(deflated + torch.cat(samples), products, "hutchinson")


def hutch_plus_plus(
    operator: SymmetricOperator | Tensor,
    products: int,
    *,
    seed: int = 0,
) -> TraceEstimate:
    """Estimate a trace with a third of the products for a sketch of the range.

    Source: Meyer, Musco, Musco and Woodruff, "Hutch++: optimal stochastic trace estimation" (2021),
    Algorithm 1: a third for the sketch, a third for its part of the trace, a third for probes.

    Parameters
    ----------
    operator : SymmetricOperator or Tensor
        A symmetric matrix; it is applied to a third of ``products`` at a time.
    products : int
        Number of products, at least 4.
    seed : int
        Seed of the probes.

    Returns
    -------
    TraceEstimate
        Unbiased; the standard error is that of the probes, given the sketch.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or the operator returns NaN.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import hutch_plus_plus, hutchinson
    >>> A = torch.ones(50, 50).double()  # of rank one
    >>> round(hutchinson(A, 6).standard_error)
    24
    >>> exact = hutch_plus_plus(A, 6)  # the sketch spans the range
    >>> round(float(exact), 6), exact.standard_error < 1e-9
    (50.0, True)
    """
    operator = as_operator(operator)
    reason = "one, one, and two probes"
    products = arguments.integer("products", products, at_least=4, because=reason)
    rank = min(products // 3, operator.dimension)
    generator = generator_of(seed)
    # Normal vectors are used because a few random sign vectors can be dependent.
    sketch = _draw(operator, rank, generator, "normal")
    basis, _ = _row_basis(apply(operator, sketch))
    sketched = float(_quadratic_forms(operator, basis).sum())
    count = products - rank - len(basis)
    probes = _draw(operator, count, generator, "rademacher")
    samples = _quadratic_forms(operator, _project(probes, basis))
    return _estimate(sketched + samples, products, "hutch++")


def xtrace(
    operator: SymmetricOperator | Tensor,
    products: int,
    *,
    seed: int = 0,
) -> TraceEstimate:
    r"""Estimate a trace with every probe but one for the sketch, in turn.

    Source: Epperly, Tropp and Webber, "XTrace: making the most of every sample in stochastic trace
    estimation" (2024), with the normalization of the residual probes proposed there. For a
    symmetric A, each of the k = products / 2 probes gives a sample from three small matrices. With
    the columns of :math:`Y = A\Omega = QR`, the space of all images but the i-th is :math:`Q`
    without the direction :math:`s_i \propto R^{-\top} e_i`. Write
    :math:`w_i = Q^\top \omega_i`, :math:`\bar w_i = (I - s_i s_i^\top)\, w_i` and
    :math:`M = Q^\top A Q`; then sample i is

    .. math::
       \operatorname{Tr} M - s_i^\top M s_i + \frac{d - k + 1}{\lVert\omega_i\rVert^2 -
       \lVert\bar w_i\rVert^2} \left( w_i^\top r_i - 2 \bar w_i^\top r_i
       + \bar w_i^\top M \bar w_i \right), \qquad r_i = R e_i .

    Parameters
    ----------
    operator : SymmetricOperator or Tensor
        A symmetric matrix; it is applied to half of ``products`` at a time.
    products : int
        Number of products, at least 4; an odd one is not used. Beyond 2d the trace is exact, and
        fewer are used.
    seed : int
        Seed of the probes.

    Returns
    -------
    TraceEstimate
        Unbiased; the standard error is the paper's estimate of the error.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, or the operator returns NaN.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import hutchinson, xtrace
    >>> A = torch.eye(50).double() + 1.0  # eigenvalues 51, and 49 times 1
    >>> estimate = xtrace(A, 20)
    >>> round(float(estimate), 3), round(estimate.standard_error, 3)
    (99.998, 0.017)
    >>> round(hutchinson(A, 20).standard_error)
    21
    """
    operator = as_operator(operator)
    dimension = operator.dimension
    reason = "two probes and their images"
    products = arguments.integer("products", products, at_least=4, because=reason)
    count = min(products // 2, dimension)
    generator = generator_of(seed)
    probes = _draw(operator, count, generator, "sphere")
    images = apply(operator, probes)
    # The rows of w, r, s and w_bar are the vectors w_i, r_i, s_i and w̄_i of the probes.
    Q, s = _row_basis(images)
    M = (apply(operator, Q) @ Q.T).to(torch.float64)
    w = (probes @ Q.T).to(torch.float64)
    r = (images @ Q.T).to(torch.float64)
    w_bar = w - s * (s * w).sum(dim=1, keepdim=True)
    form = ((w - 2 * w_bar) * r).sum(dim=1) + (w_bar @ M * w_bar).sum(dim=1)
    dimensions = dimension - len(Q) + s.square().sum(dim=1)
    length = probes.square().sum(dim=1, dtype=torch.float64) - w_bar.square().sum(dim=1)
    samples = M.diagonal().sum() - (s @ M * s).sum(dim=1) + dimensions / length * form
    return _estimate(samples, count + len(Q), "xtrace")


def _row_basis(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis (r, d) of the rows of (k, d), and what leaving one out removes.

    The second tensor, (k, r), holds for each i the unit vector, in the basis' coordinates, that is
    orthogonal to all rows but the i-th. Rows that are dependent to round-off get zeros, because
    without one of them the others still span the same space.
    """
    orthonormal, triangle = torch.linalg.qr(images.T)
    left, sizes, right = torch.linalg.svd(triangle.T)
    right = right @ orthonormal.T
    tolerance = _RANK_TOLERANCE * torch.finfo(images.dtype).eps * sizes[:1]
    rank = int((sizes > tolerance).sum())
    if rank < len(images):
        return right[:rank], torch.zeros_like(left[:, :rank], dtype=torch.float64)
    # The rows are U S Vᵀ, so that the columns of their pseudo-inverse are U S⁻¹ in the basis Vᵀ.
    dual = left.to(torch.float64) / sizes.to(torch.float64)
    return right, dual / dual.norm(dim=1, keepdim=True)


def _draw(
    operator: SymmetricOperator, count: int, generator: torch.Generator, distribution: str
) -> Tensor:
    """Draw probes (k, d) that the operator can be applied to."""
    return draw_probes(
        count,
        operator.dimension,
        generator,
        distribution=distribution,
        dtype=operator.dtype,
        device=operator.device,
    )


def _project(probes: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        probes = probes - (probes @ basis.T) @ basis
    return probes


def _on_sphere(probes: Tensor, dimensions: int) -> Tensor:
    if dimensions <= 0:  # nothing is left but round-off
        return torch.zeros_like(probes)
    return probes * (dimensions**0.5 / probes.norm(dim=1, keepdim=True))


def _quadratic_forms(operator: SymmetricOperator, vectors: Tensor) -> Tensor:
    return (vectors * apply(operator, vectors)).sum(dim=1, dtype=torch.float64)


def _estimate(samples: Tensor, products: int, method: str) -> TraceEstimate:
    # In dimension one a single sample is left, and XTrace is exact.
    error = float(samples.std()) / len(samples) ** 0.5 if len(samples) > 1 else 0.0
    return TraceEstimate(float(samples.mean()), error, products, method)
