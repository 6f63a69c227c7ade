r"""Rényi entropy of a spectrum: of known eigenvalues, and of a stochastic quadrature.

The estimate needs :math:`\operatorname{Tr} f(H)` and :math:`\operatorname{Tr} |H|`. Both are taken
from the same probes, so that their noise cancels where the order is near 1, and all orders from
the same Lanczos coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paperkit.linalg.quadrature import (
    Estimate,
    SpectralFunction,
    SpectralQuadrature,
    power,
    t_log_t,
)

POLICIES = ("abs", "clamp")

# Within this distance of 1 the general formula divides round-off by 1 − α: use its limit.
_SHANNON_BAND = 1e-6


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
        What to do with negative eigenvalues, for which the paper's definition has no meaning:
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
    """
    if not alpha >= 0:
        raise ValueError(f"alpha={alpha} must be in [0, inf]: the entropy is not defined below 0.")
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r} is unknown: choose one of {', '.join(POLICIES)}.")
    values = torch.as_tensor(eigenvalues, dtype=torch.float64, device="cpu").detach().flatten()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("eigenvalues has NaN or infinite entries.")
    values = values.abs() if policy == "abs" else values.clamp(min=0.0)
    values = values[values > 0]
    if values.numel() == 0:
        raise ValueError("eigenvalues has no nonzero entry: the entropy of nothing is undefined.")
    # Dividing by the largest first keeps tiny and huge spectra away from under- and overflow.
    log_p = torch.log(values / values.max())
    log_p = log_p - torch.logsumexp(log_p, 0)
    if alpha == 0:
        return math.log(values.numel())
    if math.isinf(alpha):
        return -float(log_p.max())
    if abs(alpha - 1.0) < _SHANNON_BAND:
        return -float((log_p.exp() * log_p).sum())
    return float(torch.logsumexp(alpha * log_p, 0)) / (1.0 - alpha)


# Below this order the entropy is all but the logarithm of the rank, which few steps do not see.
_SMALL_ORDER = 0.3


@dataclass(frozen=True, kw_only=True)
class EntropyEstimate(Estimate):
    """An entropy, estimated; ``value``, ``standard_error`` and ``bracket`` as in `Estimate`.

    Attributes
    ----------
    alpha : float
        The order.
    policy : str
        What was done with negative Ritz values.
    """

    alpha: float
    policy: str

    @property
    def reliable(self) -> bool:
        """False for an order below 0.3 unless its bracket is narrower than its standard error.

        As α → 0 the estimate tends to log d whatever the rank, because a rule's weights sum to d.
        """
        return self.alpha >= _SMALL_ORDER or self.bracket_ratio <= 1


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
    too small for 2 < α < 3.

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
    """
    if not 0 < alpha < math.inf:
        raise ValueError(
            f"alpha={alpha} must be positive and finite: 0 counts the rank and infinity asks for "
            "the largest eigenvalue, which quadrature does not give."
        )
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r} is unknown: choose one of {', '.join(POLICIES)}.")
    scale = _largest(quadrature, policy)
    shannon = abs(alpha - 1.0) < _SHANNON_BAND
    function = t_log_t() if shannon else power(alpha)
    rescaled = _rescaled(function, scale, policy)
    numerator = quadrature.gauss.integrate(rescaled.evaluate)
    denominator = quadrature.gauss.integrate(_rescaled(power(1.0), scale, policy).evaluate)
    total = float(denominator.mean())

    def entropy(mean: float) -> float:
        if shannon:
            return math.log(total) - mean / total
        return (math.log(mean) - alpha * math.log(total)) / (1.0 - alpha)

    mean = float(numerator.mean())
    if shannon:
        influence = denominator / total - (numerator - mean * denominator / total) / total
    else:
        influence = (numerator / mean - alpha * denominator / total) / (1.0 - alpha)
    of_numerator = quadrature.trace(rescaled).bracket
    return EntropyEstimate(
        value=entropy(mean),
        standard_error=float(influence.std()) / len(influence) ** 0.5,
        bracket=None if of_numerator is None else _ordered(*map(entropy, of_numerator)),
        alpha=alpha,
        policy=policy,
    )


def _largest(quadrature: SpectralQuadrature, policy: str) -> float:
    """Return the largest eigenvalue seen under the policy: a scale against under- and overflow."""
    nodes = _without_sign(quadrature.gauss.nodes, policy)
    scale = float(torch.where(quadrature.gauss.weights > 0, nodes, 0.0).max())
    if scale == 0.0:
        raise ValueError("quadrature has no nonzero node: the entropy of nothing is undefined.")
    return scale


def _without_sign(nodes: Tensor, policy: str) -> Tensor:
    return nodes.abs() if policy == "abs" else nodes.clamp(min=0.0)


def _rescaled(function: SpectralFunction, scale: float, policy: str) -> SpectralFunction:
    """Return t ↦ f(|t| / scale); on t > 0 its derivatives have the signs of those of f."""
    return replace(
        function, evaluate=lambda nodes: function.evaluate(_without_sign(nodes, policy) / scale)
    )


def _ordered(first: float, second: float) -> tuple[float, float]:
    return min(first, second), max(first, second)
