r"""Rényi entropy of a spectrum: of known eigenvalues, and of a stochastic quadrature.

The estimate needs :math:`\operatorname{Tr} f(H)` and :math:`\operatorname{Tr} |H|`. Both are taken
from the same probes, so that their noise cancels where the order is near 1, and all orders from
the same Lanczos coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.quadrature import Estimate, SpectralQuadrature
from paperkit.linalg.spectral_functions import (
    SpectralFunction,
    magnitude_log_magnitude,
    power_of_magnitude,
)

POLICIES = ("abs", "clamp")

# Sums of powers that are nearer to 1 than this are known by their difference from it.
_NEAR_ONE = 0.5
# Within this distance of 1 the estimate's formula divides round-off by 1 − α: its limit is taken.
_SHANNON_BAND = 1e-6


class UndefinedEntropyError(ValueError):
    """A matrix is zero, so that its eigenvalues have no distribution."""


def renyi_entropy(
    eigenvalues: Tensor | Sequence[float], alpha: float, policy: str = "abs"
) -> float:
    r"""Return :math:`H_\alpha(p) = \frac{1}{1-\alpha}\log\sum_i p_i^\alpha` of a spectrum.

    The limits are taken exactly: the logarithm of the number of nonzero eigenvalues at α = 0, the
    Shannon entropy at α = 1, :math:`-\log\max_i p_i` at α = ∞. Source: Rényi paper, Section 2 and
    equation 6; natural logarithm.

    Parameters
    ----------
    eigenvalues : Tensor or sequence of float
        Any number of them, zeros allowed; treated in float64.
    alpha : float
        The order, in [0, ∞].
    policy : str
        Treatment of negative eigenvalues, for which the paper's definition has no meaning:
        ``"abs"`` takes :math:`p_i \propto |\lambda_i|`, ``"clamp"`` sets them to zero.

    Returns
    -------
    float
        Between 0 and the logarithm of the number of nonzero eigenvalues.

    Raises
    ------
    ValueError
        If alpha is negative or NaN, the policy unknown, or the spectrum is empty, not finite or
        entirely zero.

    Examples
    --------
    >>> from paperkit.estimators import renyi_entropy
    >>> round(renyi_entropy([3.0, 1.0], alpha=2.0), 4)  # −log((3/4)² + (1/4)²)
    0.47
    >>> round(renyi_entropy([1.0, 1.0, 1.0, 1.0], alpha=0.5), 4)  # log 4, at every order
    1.3863
    >>> round(renyi_entropy([3.0, 1.0], alpha=1.0), 4)  # Shannon's
    0.5623
    """
    alpha = arguments.order("alpha", alpha, ends_allowed=True)
    policy = arguments.choice("policy", policy, POLICIES)
    values = arguments.vector("eigenvalues", eigenvalues)
    values = values.abs() if policy == "abs" else values.clamp(min=0.0)
    values = values[values > 0]
    if values.numel() == 0:
        raise UndefinedEntropyError(
            f"eigenvalues={arguments.shown(eigenvalues)} must have an entry that is not zero: the "
            "entropy of nothing is undefined."
        )
    # Dividing by the largest first keeps tiny and huge spectra away from under- and overflow.
    log_p = torch.log(values / values.max())
    log_p = log_p - torch.logsumexp(log_p, 0)
    if alpha == 0:
        return math.log(values.numel())
    if math.isinf(alpha):
        return -float(log_p.max())
    p = log_p.exp()
    if alpha == 1:
        return -float((p * log_p).sum())
    # Next to the order 1 the sum of pᵅ is next to 1, and only its difference from 1 has digits.
    excess = float((p * torch.expm1((alpha - 1.0) * log_p)).sum())
    if abs(excess) < _NEAR_ONE:
        return math.log1p(excess) / (1.0 - alpha)
    return float(torch.logsumexp(alpha * log_p, 0)) / (1.0 - alpha)


@dataclass(frozen=True, kw_only=True)
class EntropyEstimate(Estimate):
    """An entropy, estimated; ``value``, ``standard_error`` and ``bracket`` as in `Estimate`.

    Attributes
    ----------
    alpha : float
        The order.
    policy : str
        Treatment of negative Ritz values.

    Examples
    --------
    >>> import torch
    >>> from paperkit.estimators import renyi_entropy, renyi_entropy_estimate
    >>> from paperkit.linalg import as_operator, stochastic_lanczos_quadrature
    >>> eigenvalues = torch.arange(1.0, 101.0).double()
    >>> A = as_operator(torch.diag(eigenvalues), positive_semidefinite=True)
    >>> estimate = renyi_entropy_estimate(stochastic_lanczos_quadrature(A, probes=10, steps=5), 0.5)
    >>> low, high = estimate.bracket  # what more steps from these probes could still change
    >>> low < renyi_entropy(eigenvalues, 0.5) < high
    True
    """

    alpha: float
    policy: str

    @property
    def reliable(self) -> bool:
        """Whether the bracket is narrower than the standard error, so that the latter says all.

        Elsewhere too few steps may have been taken: at small orders the estimate tends to log d
        whatever the rank, because a rule's weights sum to d.
        """
        return self.bracket_ratio <= 1


def renyi_entropy_estimate(
    quadrature: SpectralQuadrature, alpha: float, policy: str = "abs"
) -> EntropyEstimate:
    r"""Estimate :math:`H_\alpha = \frac{1}{1-\alpha} \log \sum_i p_i^\alpha` of a spectrum.

    Rényi paper, equation 6 and Algorithm 1, with three corrections: numerator and denominator
    share their probes; negative Ritz values have a policy, the same in both; and a probe's weights
    sum to d. (With unit probes and the printed sums over l probes, the algorithm returns
    :math:`H_\alpha + \log(l/d)`.) The order 1 is the Shannon limit.

    For a positive semidefinite operator the denominator is exact for the given probes, and the
    entropy inherits the bracket of the numerator: the Gauss value is too large for 0 < α < 2 and
    too small for 2 < α < 3. For an indefinite one numerator and denominator have brackets of their
    own under ``"abs"``, through the square of the operator, and none under ``"clamp"``.

    Parameters
    ----------
    quadrature : SpectralQuadrature
        From :func:`paperkit.linalg.stochastic_lanczos_quadrature`; serves all orders.
    alpha : float
        Positive and finite.
    policy : str
        ``"abs"`` takes the absolute value of negative Ritz values, ``"clamp"`` sets them to zero.

    Returns
    -------
    EntropyEstimate
        In nats. The standard error is that of the linearized (delta-method) ratio.

    Raises
    ------
    ValueError
        If alpha is not positive and finite, the policy unknown, or the operator is zero.

    Examples
    --------
    >>> import torch
    >>> from paperkit.estimators import renyi_entropy, renyi_entropy_estimate
    >>> from paperkit.linalg import as_operator, stochastic_lanczos_quadrature
    >>> eigenvalues = torch.arange(1.0, 101.0).double()
    >>> A = as_operator(torch.diag(eigenvalues), positive_semidefinite=True)
    >>> quadrature = stochastic_lanczos_quadrature(A, probes=10, steps=20)
    >>> estimate = renyi_entropy_estimate(quadrature, alpha=0.5)
    >>> round(float(estimate), 3), round(renyi_entropy(eigenvalues, alpha=0.5), 3)
    (4.492, 4.492)
    """
    arguments.instance("quadrature", quadrature, SpectralQuadrature)
    alpha = arguments.order("alpha", alpha)
    policy = arguments.choice("policy", policy, POLICIES)
    scale = _largest(quadrature, policy)
    shannon = abs(alpha - 1.0) < _SHANNON_BAND
    above, below = _functions(alpha, shannon, scale, policy)
    numerator = quadrature.gauss.integrate(above.evaluate)
    denominator = quadrature.gauss.integrate(below.evaluate)
    total = float(denominator.mean())

    def entropy(mean: float, total: float) -> float:
        if shannon:
            return math.log(total) - mean / total
        return (math.log(mean) - alpha * math.log(total)) / (1.0 - alpha)

    mean = float(numerator.mean())
    if shannon:
        influence = denominator / total - (numerator - mean * denominator / total) / total
    else:
        influence = (numerator / mean - alpha * denominator / total) / (1.0 - alpha)
    value = entropy(mean, total)
    means = quadrature.trace(above).bracket
    totals = (total, total) if quadrature.radau is not None else quadrature.trace(below).bracket
    return EntropyEstimate(
        value=value,
        standard_error=float(influence.std()) / len(influence) ** 0.5,
        bracket=_extremes(entropy, means, totals, shannon),
        alpha=alpha,
        policy=policy,
    )


def _extremes(
    entropy: Callable[[float, float], float],
    means: tuple[float, float] | None,
    totals: tuple[float, float] | None,
    shannon: bool,
) -> tuple[float, float] | None:
    """Return the smallest and the largest entropy over the brackets of its two traces."""
    if means is None or totals is None or totals[0] <= 0 or (means[0] <= 0 and not shannon):
        return None
    points = [(mean, total) for mean in means for total in totals]
    if shannon:  # log t − m / t has its minimum at t = −m
        points += [(mean, -mean) for mean in means if totals[0] < -mean < totals[1]]
    found = [entropy(*point) for point in points]
    return min(found), max(found)


def _largest(quadrature: SpectralQuadrature, policy: str) -> float:
    """Return the largest eigenvalue seen under the policy: a scale against under- and overflow."""
    nodes = _without_sign(quadrature.gauss.nodes, policy)
    scale = float(torch.where(quadrature.gauss.weights > 0, nodes, 0.0).max())
    if scale == 0.0:
        raise UndefinedEntropyError(
            "quadrature has no nonzero node: the entropy of nothing is undefined."
        )
    return scale


def _without_sign(nodes: Tensor, policy: str) -> Tensor:
    return nodes.abs() if policy == "abs" else nodes.clamp(min=0.0)


def _functions(
    alpha: float, shannon: bool, scale: float, policy: str
) -> tuple[SpectralFunction, SpectralFunction]:
    """Return numerator and denominator as functions of t, of magnitudes in units of the scale."""
    above = magnitude_log_magnitude() if shannon else power_of_magnitude(alpha)
    return _rescaled(above, scale, policy), _rescaled(power_of_magnitude(1.0), scale, policy)


def _rescaled(function: SpectralFunction, scale: float, policy: str) -> SpectralFunction:
    """Return t ↦ f(|t| / scale); on t > 0 its derivatives have the signs of those of f."""
    changed = replace(
        function, evaluate=lambda nodes: function.evaluate(_without_sign(nodes, policy) / scale)
    )
    # A function that cuts at zero is no function of the square.
    return changed if policy == "abs" else replace(changed, square_derivative_sign=None)
