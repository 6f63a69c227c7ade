"""Appendix D: the PAC-Bayes bounds with ellipsoidal posteriors."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from paperkit import arguments
from paperkit.bounds.arguments import (
    Values,
    assumptions_of,
    check_nonnegative,
    check_probability,
    nonzero_vector,
)
from paperkit.bounds.renyi.determinant import log_determinant_of, log_trace_of
from paperkit.bounds.renyi.isolated_minima import log_determinant_bound
from paperkit.bounds.renyi.versions import VERSIONS
from paperkit.bounds.statement import Inequality
from paperkit.estimators.entropy import renyi_entropy

_ELLIPSOID = {
    "loss_in_unit_interval": None,
    "prior_independent_of_sample": None,
    "remainder_bounded": None,
    "perturbation_raises_population_loss": None,
}


def ellipsoid_divergence(eigenvalues: Values, rho: float, radius: float) -> float:
    r"""Return the Kullback–Leibler divergence of uniform distributions, ellipsoid from ball.

    :math:`d \log(R/\rho) + \tfrac12 \log\det H` for the ellipsoid :math:`\Delta^\top H \Delta \le
    \rho^2` inside a ball of radius R: the logarithm of the ratio of volumes. Source: Rényi paper,
    Theorem D.1, step 2.

    Raises
    ------
    ValueError
        If rho or the radius is not positive, or the spectrum is empty, not finite or zero.

    Examples
    --------
    >>> import math
    >>> from paperkit.bounds.renyi import ellipsoid_divergence
    >>> divergence = ellipsoid_divergence([1.0, 1.0], rho=1.0, radius=2.0)
    >>> round(math.exp(divergence), 6)  # the disc of radius 2 is four times the unit disc
    4.0
    """
    values = nonzero_vector(eigenvalues, "eigenvalues")
    rho, radius = _check_ellipsoid(rho, radius)
    return len(values) * math.log(radius / rho) + 0.5 * log_determinant_of(values)


def ellipsoid_mean(dimension: int, rho: float) -> float:
    r"""Return the mean of :math:`\Delta^\top H \Delta` over its ellipsoid, :math:`d\rho^2/(d+2)`.

    Source: Rényi paper, Theorem D.1, step 1.

    Raises
    ------
    TypeError, ValueError
        If the dimension is no positive integer, or rho negative or not finite.

    Examples
    --------
    >>> from paperkit.bounds.renyi import ellipsoid_mean
    >>> ellipsoid_mean(2, rho=1.0)  # the mean of r² over the unit disc
    0.5
    >>> round(ellipsoid_mean(10**6, rho=1.0), 5)  # in many dimensions nearly all is surface
    1.0
    """
    dimension = arguments.integer("dimension", dimension, at_least=1)
    rho = arguments.number("rho", rho, at_least=0)
    return dimension / (dimension + 2.0) * rho * rho


def _check_ellipsoid(rho: float, radius: float) -> tuple[float, float]:
    return arguments.number("rho", rho, above=0), arguments.number("radius", radius, above=0)


def ellipsoid_posterior(
    population_risk: float,
    training_risk: float,
    eigenvalues: Values,
    rho: float,
    radius: float,
    n: int,
    epsilon: float,
    *,
    remainder: float = 0.0,
    centre_distance: float = 0.0,
    known: Mapping[str, bool] | None = None,
) -> Inequality:
    r"""Bound the population risk at a minimum by the determinant of its Hessian.

    :math:`L(D, \theta^*) \le L(S, \theta^*) + \frac{d\rho^2}{2(d+2)} + r + \sqrt{(KL +
    \log(2n/\delta)) / 2(n-1)}` with probability 1 − δ. Source: Rényi paper, Theorem D.1 before
    its last step, with the hypotheses that its proof needs and does not state.

    Parameters
    ----------
    population_risk, training_risk : float
        Losses L(D, θ*) on the distribution D and L(S, θ*) on the sample S.
    eigenvalues : Tensor or sequence of float
        Eigenvalues of H at θ*, all d of them, positive.
    rho : float
        Radius ρ of the ellipsoid ΔᵀHΔ ≤ ρ² on which the posterior is uniform.
    radius : float
        Radius R of the ball on which the prior is uniform.
    n : int
        Number n of samples.
    epsilon : float
        Probability δ that the bound may fail; the paper's ε.
    remainder : float
        Bound r on the remainder of the loss's quadratic expansion over the ellipsoid.
    centre_distance : float
        Distance from θ* to the centre of the ball, which must not depend on the sample.
    known : mapping of str to bool, optional
        Answers to ``loss_in_unit_interval``, ``prior_independent_of_sample``,
        ``remainder_bounded`` and ``perturbation_raises_population_loss``.

    Returns
    -------
    Inequality
        Statement that is not certified where the ball does not contain the ellipsoid; a negative
        radicand is set to zero.

    Raises
    ------
    ValueError
        If n < 2, another argument is out of range, or the spectrum is unusable.

    Examples
    --------
    >>> from paperkit.bounds.renyi import ellipsoid_posterior
    >>> risks = {"population_risk": 0.15, "training_risk": 0.10}
    >>> bound = ellipsoid_posterior(
    ...     **risks, eigenvalues=[2.0, 1.0], rho=0.1, radius=1.0, n=1000, epsilon=0.05
    ... )
    >>> bound.holds, round(bound.right, 4)
    (True, 0.1907)
    >>> [name for name, met in bound.assumptions.items() if met is None]  # the caller's to know
    ['loss_in_unit_interval', 'prior_independent_of_sample', 'remainder_bounded',
        'perturbation_raises_population_loss']
    """
    values = nonzero_vector(eigenvalues, "eigenvalues")
    divergence = ellipsoid_divergence(values, rho, radius)
    return Inequality(
        statement="L(D, θ*) ≤ L(S, θ*) + dρ²/2(d + 2) + r + √((KL + log(2n/δ)) / 2(n − 1))",
        source="Rényi paper, Thm. D.1, with the determinant",
        left=arguments.number("population_risk", population_risk),
        right=_ellipsoid_right(training_risk, divergence, len(values), rho, n, epsilon, remainder),
        assumptions=_ellipsoid_assumptions(values, rho, radius, centre_distance, known),
    )


def ellipsoid_posterior_entropy(
    population_risk: float,
    training_risk: float,
    eigenvalues: Values,
    rho: float,
    radius: float,
    n: int,
    epsilon: float,
    alpha: float,
    version: str = "printed",
    *,
    remainder: float = 0.0,
    centre_distance: float = 0.0,
    known: Mapping[str, bool] | None = None,
) -> Inequality:
    r"""Bound the population risk at a minimum by the entropy of its Hessian.

    Source: Rényi paper, Theorem 3.3 (equation 5), Theorem D.1 (equation 46) and Corollary D.2
    (equation 49): the radicand is :math:`(-\tfrac12 \mathcal{H}_\alpha + C) / 2(n-1)`, in which the
    paper does not say what C is. The proof has C = :math:`\tfrac d2 \log \mathrm{Tr}H +
    d\log(R/\rho) + \log(2n/\delta)`: of order d, not a constant, and against it
    :math:`\mathcal{H}_\alpha \le \log d` carries no information. ``"sharper"`` has :math:`-\tfrac
    d2 \mathcal{H}_\alpha`, which :func:`determinant_chain` allows.

    Parameters
    ----------
    population_risk, training_risk, eigenvalues, rho, radius, n, epsilon
        As in :func:`ellipsoid_posterior`.
    alpha : float
        Order α > 0.
    version : str
        ``"printed"`` or ``"sharper"``.
    remainder, centre_distance, known
        As in :func:`ellipsoid_posterior`.

    Raises
    ------
    ValueError
        As :func:`ellipsoid_posterior`, or if alpha is not positive or the version unknown.

    Examples
    --------
    >>> from paperkit.bounds.renyi import ellipsoid_posterior, ellipsoid_posterior_entropy
    >>> setting = {"eigenvalues": [2.0, 1.0], "rho": 0.1, "radius": 1.0, "n": 1000, "epsilon": 0.05}
    >>> for version in ("printed", "sharper"):
    ...     bound = ellipsoid_posterior_entropy(0.15, 0.1, **setting, alpha=2.0, version=version)
    ...     print(version, round(bound.right, 4))
    printed 0.192
    sharper 0.1912
    >>> round(ellipsoid_posterior(0.15, 0.1, **setting).right, 4)  # with the determinant itself
    0.1907
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, VERSIONS)
    rho, radius = _check_ellipsoid(rho, radius)
    values = nonzero_vector(eigenvalues, "eigenvalues")
    d = len(values)
    log_determinant = log_determinant_bound(
        d, log_trace_of(values), renyi_entropy(values, alpha), version
    )
    divergence = d * math.log(radius / rho) + 0.5 * log_determinant
    multiple = "½" if version == "printed" else "½d "
    return Inequality(
        statement=f"L(D, θ*) ≤ L(S, θ*) + dρ²/2(d + 2) + r + √((−{multiple}ℋ_α + C) / 2(n − 1))",
        source=f"Rényi paper, Thm. D.1, {version}",
        left=arguments.number("population_risk", population_risk),
        right=_ellipsoid_right(training_risk, divergence, d, rho, n, epsilon, remainder),
        assumptions=_ellipsoid_assumptions(values, rho, radius, centre_distance, known),
    )


def _ellipsoid_right(
    training_risk: float,
    divergence: float,
    dimension: int,
    rho: float,
    n: int,
    epsilon: float,
    remainder: float,
) -> float:
    training_risk = arguments.number("training_risk", training_risk)
    n, epsilon = arguments.integer("n", n, at_least=2), check_probability("epsilon", epsilon)
    remainder = check_nonnegative("remainder", remainder)
    radicand = (divergence + math.log(2.0 * n / epsilon)) / (2.0 * (n - 1.0))
    rise = 0.5 * ellipsoid_mean(dimension, rho)
    return training_risk + rise + remainder + math.sqrt(max(radicand, 0.0))


def _ellipsoid_assumptions(
    values: Tensor,
    rho: float,
    radius: float,
    centre_distance: float,
    known: Mapping[str, bool] | None,
) -> dict[str, bool | None]:
    centre_distance = check_nonnegative("centre_distance", centre_distance)
    smallest = float(values.min())
    contained = smallest > 0 and centre_distance + rho / math.sqrt(smallest) <= radius
    return assumptions_of(
        _ELLIPSOID, known, positive_definite=smallest > 0, prior_contains_ellipsoid=contained
    )
