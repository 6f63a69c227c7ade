"""Section 2: the entropy of a matrix, its concavity, and its decrease in the order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.bounds.arguments import (
    Values,
    eigenvalues_of,
    is_semidefinite,
    nonzero_vector,
    symmetric_matrix,
)
from paperkit.bounds.statement import Identity, Inequality
from paperkit.estimators.entropy import renyi_entropy


def power_sum(eigenvalues: Values, alpha: float) -> float:
    r"""Return :math:`R_\alpha = \sum_j q_j^\alpha`, :math:`q_j = |\lambda_j| / \sum_k |\lambda_k|`.

    Source: Rényi paper, equation 57. Minimising the sharpness :math:`-\mathcal{H}_\alpha` minimises
    :math:`R_\alpha` for α > 1 only; for α < 1, where the paper says the same, it maximises it.

    Raises
    ------
    ValueError
        If alpha is not positive, or the spectrum is empty, not finite or zero.

    Examples
    --------
    >>> from paperkit.bounds.renyi import power_sum
    >>> power_sum([3.0, 1.0], alpha=2.0)  # (3/4)² + (1/4)²
    0.625
    >>> power_sum([1.0, 1.0, 1.0, 1.0], alpha=2.0)  # 1/d, the least that four eigenvalues can have
    0.25
    """
    alpha = arguments.order("alpha", alpha)
    magnitudes = nonzero_vector(eigenvalues, "eigenvalues").abs()
    return float(((magnitudes / magnitudes.sum()) ** alpha).sum())


def trace_form(hessian: Tensor, alpha: float) -> Identity:
    r"""Compare the entropy with :math:`\frac{1}{1-\alpha}\log\frac{\mathrm{Tr}H^\alpha}{(\mathrm{Tr}H)^\alpha}`.

    Source: Rényi paper, equation 6; an identity for positive semidefinite H. For an indefinite H
    the right side is the value that the paper's code computes, :math:`\mathrm{Tr}|H|^\alpha` over
    the power of the signed trace. This diverges as α → 1 and is no entropy.

    Parameters
    ----------
    hessian : Tensor
        Symmetric matrix H, (d, d), of positive trace.
    alpha : float
        Order α > 0, not 1.

    Raises
    ------
    ValueError
        If the trace is not positive, alpha = 1, or the matrix is not symmetric and finite.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import trace_form
    >>> trace_form(torch.diag(torch.tensor([3.0, 1.0])), alpha=2.0)
    Identity(Rényi paper, eq. 6: ℋ_α(H) = log(Tr H^α / (Tr H)^α) / (1 − α): 0.470004 = 0.470004,
        certified)
    >>> trace_form(torch.diag(torch.tensor([3.0, -1.0])), alpha=2.0)
    Identity(Rényi paper, eq. 6: ℋ_α(H) = log(Tr H^α / (Tr H)^α) / (1 − α): 0.470004 ≠ -0.916291,
        not certified: positive_semidefinite=violated)
    """  # noqa: E501
    alpha = arguments.order("alpha", alpha, one_allowed=False)
    matrix = symmetric_matrix(hessian)
    trace = float(matrix.trace())
    if trace <= 0:
        raise ValueError(f"hessian has trace {trace:.3g}: the formula needs a positive one.")
    values = eigenvalues_of(matrix)
    log_power = float(torch.logsumexp(alpha * values.abs().log(), 0))
    return Identity(
        statement="ℋ_α(H) = log(Tr H^α / (Tr H)^α) / (1 − α)",
        source="Rényi paper, eq. 6",
        left=renyi_entropy(values, alpha),
        right=(log_power - alpha * math.log(trace)) / (1.0 - alpha),
        assumptions={"positive_semidefinite": is_semidefinite(values)},
    )


def convexity(p: Values, q: Values, alpha: float, version: str = "printed") -> Inequality:
    r"""Compare the entropy of the midpoint of two distributions with the mean entropy of the ends.

    Source: Rényi paper, Section 2, "Convexity". The printed claim is false at every order: two
    different vertices exceed it by log 2. The ``"corrected"`` claim is concavity; it is a theorem
    for α ≤ 1, and for two outcomes up to α = 2, and fails in d dimensions once
    :math:`d > 4^{\alpha/(\alpha-1)}`. The uniform distribution is the maximum at every order for
    another reason, Schur-concavity.

    Parameters
    ----------
    p, q : Tensor or sequence of float
        Distributions over the same outcomes.
    alpha : float
        Order α > 0.
    version : str
        ``"printed"`` or ``"corrected"``.

    Raises
    ------
    ValueError
        If p or q is no distribution, their lengths differ, or the version is unknown.

    Examples
    --------
    >>> from paperkit.bounds.renyi import convexity
    >>> convexity([1.0, 0.0], [0.0, 1.0], alpha=0.5)
    Inequality(Rényi paper, Section 2: ℋ_α((p + q)/2) ≤ (ℋ_α(p) + ℋ_α(q))/2: 0.693147 ≰ 0, not
        certified: entropy_is_convex=violated)
    >>> convexity([1.0, 0.0], [0.0, 1.0], alpha=0.5, version="corrected")
    Inequality(Rényi paper, Section 2, corrected: (ℋ_α(p) + ℋ_α(q))/2 ≤ ℋ_α((p + q)/2): 0 ≤
        0.693147, certified)
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, ("printed", "corrected"))
    first, second = _distribution(p, "p"), _distribution(q, "q")
    if len(first) != len(second):
        raise ValueError(f"q has {len(second)} outcomes and p has {len(first)}: make them agree.")
    midpoint = renyi_entropy(0.5 * (first + second), alpha)
    ends = 0.5 * (renyi_entropy(first, alpha) + renyi_entropy(second, alpha))
    concave = alpha <= 1 or (len(first) == 2 and alpha <= 2)
    if version == "printed":
        return Inequality(
            statement="ℋ_α((p + q)/2) ≤ (ℋ_α(p) + ℋ_α(q))/2",
            source="Rényi paper, Section 2",
            left=midpoint,
            right=ends,
            assumptions={"entropy_is_convex": False},
        )
    return Inequality(
        statement="(ℋ_α(p) + ℋ_α(q))/2 ≤ ℋ_α((p + q)/2)",
        source="Rényi paper, Section 2, corrected",
        left=ends,
        right=midpoint,
        assumptions={"entropy_is_concave_at_this_order": concave},
    )


def _distribution(values: Values, name: str) -> Tensor:
    vector = nonzero_vector(values, name)
    if bool((vector < 0).any()) or abs(float(vector.sum()) - 1.0) > 1e-9:
        raise ValueError(f"{name} is no distribution: divide nonnegative entries by their sum.")
    return vector


def decrease_in_order(eigenvalues: Values, low: float, high: float) -> Inequality:
    """Compare the entropies of two orders: the larger order has the smaller entropy.

    Source: Rényi paper, Section 2, "Monotonic decrease".

    Raises
    ------
    ValueError
        If ``low > high`` or an order is not positive.

    Examples
    --------
    >>> from paperkit.bounds.renyi import decrease_in_order
    >>> decrease_in_order([3.0, 1.0], low=0.5, high=2.0)
    Inequality(Rényi paper, Section 2: ℋ_high ≤ ℋ_low: 0.470004 ≤ 0.623811, certified)
    >>> decrease_in_order([1.0, 1.0], low=0.5, high=2.0).slack  # a uniform spectrum has one entropy
    0.0
    """
    eigenvalues = nonzero_vector(eigenvalues, "eigenvalues")
    low = arguments.order("low", low)
    high = arguments.order("high", high)
    if low > high:
        raise ValueError(f"low={low} exceeds high={high}: exchange them.")
    return Inequality(
        statement="ℋ_high ≤ ℋ_low",
        source="Rényi paper, Section 2",
        left=renyi_entropy(eigenvalues, high),
        right=renyi_entropy(eigenvalues, low),
    )
