r"""Quadrature rules of the spectral measure of a starting vector, from its Lanczos matrix.

**Which rule is on which side.** Let :math:`f` be continuous on :math:`[0, b]` and smooth on
:math:`(0, b)`, let :math:`\mu` be a positive measure on :math:`[0, b]` that is not exhausted, and
:math:`\theta_j` the nodes of a rule inside. Then for some :math:`\xi` in :math:`(0, b)`

.. math::
   \int f\,d\mu - Q_{\text{Gauss}} =
       \frac{f^{(2m)}(\xi)}{(2m)!} \int \prod_j (t - \theta_j)^2\, d\mu, \qquad
   \int f\,d\mu - Q_{\text{Radau}} =
       \frac{f^{(2m+1)}(\xi)}{(2m+1)!} \int t \prod_j (t - \theta_j)^2\, d\mu .

*Proof.* Both rules integrate the polynomial that meets :math:`f` twice at every :math:`\theta_j`
(and, for Radau, once at 0), and the integrals on the right are positive. Its error at :math:`t` is
the integrand times a derivative at some :math:`\xi(t)`, by Rolle's theorem applied again and again
between the nodes and :math:`t`. Rolle's theorem needs a derivative only *between* its zeros, so all
:math:`\xi(t)` are in the open interval: no derivative at 0 is ever used. ∎

Source: Golub and Meurant (2010), chapter 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.lanczos import BREAKDOWN, Tridiagonal, lanczos, tridiagonal_matrices

_EPSILON = torch.finfo(torch.float64).eps
# Nodes below this many units of round-off of the largest are zero.
ROUND_OFF = 10.0


@dataclass(frozen=True)
class Rule:
    """One quadrature rule a probe.

    Attributes
    ----------
    nodes, weights : Tensor
        Shape (k, m), float64, on the CPU. A probe's weights sum to its squared norm; a rule of
        fewer points is padded with weights of zero.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import Rule
    >>> rule = Rule(nodes=torch.tensor([[1.0, 3.0]]), weights=torch.tensor([[0.5, 0.5]]))
    >>> rule.integrate(torch.square)  # (1 + 9) / 2
    tensor([5.])
    """

    nodes: Tensor
    weights: Tensor

    def integrate(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return each probe's sum of weights times values, (k,).

        Parameters
        ----------
        function : callable
            From a tensor of points to the tensor of values; not called for its value where a weight
            is zero.

        Raises
        ------
        TypeError, ValueError
            If it is no function of tensors, or not finite at a node.
        """
        arguments.function("function", function, "a function of a tensor of points")
        found = function(self.nodes)
        if not isinstance(found, Tensor) or found.shape != self.nodes.shape:
            raise ValueError(
                f"function maps shape {tuple(self.nodes.shape)} to {arguments.shown(found)}: it "
                "must return one value a point."
            )
        values = torch.where(self.weights > 0, found, 0.0)
        if not bool(torch.isfinite(values).all()):
            raise ValueError(
                "function is not finite at some Ritz values: the operator's spectrum reaches "
                "beyond its domain."
            )
        return (self.weights * values).sum(dim=1)


def _rule(matrices: Tensor, squared_norm: Tensor) -> Rule:
    nodes, vectors = torch.linalg.eigh(matrices)
    weights = vectors[:, 0, :].square()
    # A component below round-off belongs to a row of padding.
    weights = torch.where(weights > _EPSILON**2, weights, 0.0)
    return Rule(nodes, weights * squared_norm.unsqueeze(1))


def gauss_rule(tridiagonal: Tridiagonal) -> Rule:
    """Return the Gauss rules of the starting vectors' spectral measures.

    Parameters
    ----------
    tridiagonal : Tridiagonal
        From m Lanczos steps.

    Returns
    -------
    Rule
        m points, exact for polynomials of degree 2m − 1, or for everything once the Krylov space
        is exhausted.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import gauss_rule, lanczos
    >>> A = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    >>> rule = gauss_rule(lanczos(A, torch.ones(1, 4, dtype=torch.float64), steps=2))
    >>> round(float(rule.integrate(lambda t: t**3)), 6)  # 1 + 8 + 27 + 64, exactly
    100.0
    >>> float(rule.integrate(lambda t: t**4)) < 1 + 16 + 81 + 256  # from degree 2m on it is below
    True
    """
    arguments.instance("tridiagonal", tridiagonal, Tridiagonal)
    return _rule(tridiagonal.matrices().cpu(), tridiagonal.norm.cpu().square())


def radau_rule(tridiagonal: Tridiagonal) -> Rule:
    r"""Return the Gauss–Radau rules with one node at 0, for a positive semidefinite operator.

    The matrix of one more row whose smallest eigenvalue is 0 has the last diagonal entry
    :math:`\beta_m^2\, e_m^\top T^{-1} e_m = \beta_m^2 / \delta_m`, with :math:`\delta_m` the last
    pivot of :math:`T` (Golub, "Some modified matrix eigenvalue problems", 1973).

    Parameters
    ----------
    tridiagonal : Tridiagonal
        From m Lanczos steps.

    Returns
    -------
    Rule
        m + 1 points, exact for polynomials of degree 2m.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import lanczos, radau_rule
    >>> A = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    >>> rule = radau_rule(lanczos(A, torch.ones(1, 4, dtype=torch.float64), steps=2))
    >>> rule.nodes.shape  # one more, at 0
    torch.Size([1, 3])
    >>> abs(float(rule.nodes.min())) < 1e-9
    True
    >>> round(float(rule.integrate(lambda t: t**4)), 6)  # 1 + 16 + 81 + 256, exactly
    354.0
    """
    arguments.instance("tridiagonal", tridiagonal, Tridiagonal)
    diagonal, off_diagonal = tridiagonal.diagonal.cpu(), tridiagonal.off_diagonal.cpu()
    k, m = diagonal.shape
    tiny = BREAKDOWN * _EPSILON * diagonal.abs().amax(dim=1)
    quotient = torch.zeros(k, dtype=torch.float64, device="cpu")
    coupling = quotient
    for j in range(m):
        pivot = diagonal[:, j] - quotient
        # A pivot of zero means that 0 is a node already, so that there is nothing to couple to.
        coupling = torch.where(pivot > tiny, off_diagonal[:, j], 0.0)
        quotient = coupling.square() / torch.where(pivot > tiny, pivot, 1.0)
    matrices = torch.zeros(k, m + 1, m + 1, dtype=torch.float64, device="cpu")
    matrices[:, :m, :m] = tridiagonal.matrices().cpu()
    matrices[:, m, m] = quotient
    matrices[:, m, m - 1] = matrices[:, m - 1, m] = coupling
    return _rule(matrices, tridiagonal.norm.cpu().square())


def averaged_rule(tridiagonal: Tridiagonal) -> Rule:
    r"""Return the generalized averaged Gauss rules, with almost twice the points.

    The Jacobi matrix of m steps is continued by the residual coefficient :math:`\beta_m` and its
    own first m − 1 rows in reverse. The weights are positive. What the rule gains over Gauss is
    resolution, without a product more; a node may lie outside of the spectrum, so that it suits
    smooth functions and distributions, not brackets (Spalević, "On generalized averaged Gaussian
    formulas", 2007).

    Parameters
    ----------
    tridiagonal : Tridiagonal
        From m Lanczos steps.

    Returns
    -------
    Rule
        2m − 1 points, exact for polynomials of degree 2m where m is at least 2; the Gauss rule for
        m = 1.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import averaged_rule, lanczos
    >>> A = torch.diag(torch.arange(1.0, 31.0).double())
    >>> rule = averaged_rule(lanczos(A, torch.ones(1, 30, dtype=torch.float64), steps=5))
    >>> rule.nodes.shape  # 2m − 1 points from m products
    torch.Size([1, 9])
    >>> round(float(rule.weights.sum()), 6)  # the squared length of the start
    30.0
    """
    arguments.instance("tridiagonal", tridiagonal, Tridiagonal)
    diagonal, off_diagonal = tridiagonal.diagonal.cpu(), tridiagonal.off_diagonal.cpu()
    m = diagonal.shape[1]
    if m == 1:
        return gauss_rule(tridiagonal)
    along = torch.cat([diagonal, diagonal[:, :-1].flip(1)], dim=1)
    beside = torch.cat([off_diagonal, off_diagonal[:, : m - 2].flip(1)], dim=1)
    return _rule(tridiagonal_matrices(along, beside), tridiagonal.norm.cpu().square())


@dataclass(frozen=True)
class SquaredRules:
    """Rules of the spectral measures of A², from those of A.

    Attributes
    ----------
    gauss, radau : Rule
        Their nodes are the roots of those of A²: magnitudes of eigenvalues.
    steps : Tensor
        Shape (k,), int64: the points of each Gauss rule.
    """

    gauss: Rule
    radau: Rule
    steps: Tensor


def squared_rules(rule: Rule, steps: Tensor, exhausted: Tensor) -> SquaredRules | None:
    """Return the rules of A² that Gauss rules of A hold; None if a probe took too few steps."""
    # A rule of an exhausted Krylov space is exact for every function, so that all its points serve
    # the squares too.
    points = torch.where(exhausted, steps, (steps - 1) // 2)
    scale = float(rule.nodes.abs().max())
    if int(points.min()) < 1 or scale == 0:
        return None
    squares = (rule.nodes / scale).square()
    pieces: list[tuple[Tensor, Rule, Rule]] = []
    for count in points[~exhausted].unique().tolist():
        rows = ~exhausted & (points == count)
        found = lanczos(partial(torch.mul, squares[rows]), rule.weights[rows].sqrt(), count)
        pieces.append((rows, gauss_rule(found), radau_rule(found)))
    if bool(exhausted.any()):
        whole = Rule(squares[exhausted], rule.weights[exhausted])
        pieces.append((exhausted, whole, whole))
    gauss = _magnitudes([(rows, found) for rows, found, _ in pieces], len(steps), scale)
    radau = _magnitudes([(rows, found) for rows, _, found in pieces], len(steps), scale)
    return SquaredRules(gauss, radau, points)


def _magnitudes(pieces: Sequence[tuple[Tensor, Rule]], probes: int, scale: float) -> Rule:
    """Put rules of A² over its scale in the probes' order, roots for nodes, round-off zero."""
    longest = max(rule.nodes.shape[1] for _, rule in pieces)
    nodes = torch.zeros(probes, longest, dtype=torch.float64, device="cpu")
    weights = torch.zeros_like(nodes)
    for rows, rule in pieces:
        count = rule.nodes.shape[1]
        squares = torch.where(rule.nodes > ROUND_OFF * _EPSILON, rule.nodes, 0.0)
        nodes[rows, :count] = scale * squares.sqrt()
        weights[rows, :count] = rule.weights
    return Rule(nodes, weights)
