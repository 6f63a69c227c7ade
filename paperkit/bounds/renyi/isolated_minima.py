"""Appendix C: the PAC-Bayes bounds at an isolated minimum."""

from __future__ import annotations

import math
from collections.abc import Mapping

from paperkit import arguments
from paperkit.bounds.arguments import (
    Values,
    assumptions_of,
    check_nonnegative,
    check_probability,
    exponential,
    nonzero_vector,
)
from paperkit.bounds.renyi.determinant import log_determinant_of, log_trace_of
from paperkit.bounds.renyi.versions import VERSIONS
from paperkit.bounds.statement import Inequality
from paperkit.estimators.entropy import renyi_entropy

_ISOLATED_STATEMENTS = {
    "printed": "E_Q L(D) ≤ E_Q L(S) + 2 √((2L₀ + 2A + log(2n/δ)) / (n − 1))",
    "sharper": "E_Q L(D) ≤ E_Q L(S) + √((E_P[L − L₀] + log(2n/δ)) / 2(n − 1))",
}

_ISOLATED = {
    "loss_in_unit_interval": None,
    "quadratic_loss_on_an_ellipsoid": None,
    "prior_independent_of_sample": False,
}


def _mean_rise(log_determinant: float, dimension: int, log_volume: float, exact: bool) -> float:
    """Return the mean of the quadratic loss over its level ellipsoid, from log V and log|H|."""
    d, log_volume = dimension, arguments.number("log_volume", log_volume)
    curvature = (2.0 * log_volume + log_determinant) / d
    if exact:
        ball = 2.0 * math.lgamma(0.5 * d + 1.0) / d - math.log(math.pi)
        return 0.5 * d / (d + 2.0) * exponential(ball + curvature)
    return d / (4.0 * math.pi * math.e) * exponential(math.log(math.pi) / d + curvature)


def neighbourhood_rise(eigenvalues: Values, log_volume: float) -> Inequality:
    r"""Compare the mean rise of the loss over an ellipsoidal neighbourhood with the printed A.

    The mean of :math:`\tfrac12 \Delta^\top H \Delta` over its level ellipsoid of volume V is
    :math:`\frac{d}{2(d+2)} \Gamma(\tfrac d2 + 1)^{2/d} \pi^{-1} V^{2/d} |H|^{1/d}`. Source: Rényi
    paper, Theorem C.2 (after Jia and Su 2020), whose
    :math:`A = \frac{d}{4\pi e} \pi^{1/d} V^{2/d} |H|^{1/d}` is Stirling's formula for it and no
    upper bound: 2.2 times as large at d = 1, but smaller from d = 6 on, by 5.6 % at most.

    Parameters
    ----------
    eigenvalues : Tensor or sequence of float
        Eigenvalues of H, all d of them.
    log_volume : float
        Logarithm of the volume V, because V itself leaves the range of float64 at a network's
        dimension.

    Raises
    ------
    ValueError
        If the spectrum is empty, not finite or zero.

    Examples
    --------
    >>> import math
    >>> from paperkit.bounds.renyi import neighbourhood_rise
    >>> rise = neighbourhood_rise([1.0], log_volume=math.log(2.0))  # Δ²/2 over the interval [−1, 1]
    >>> round(rise.left, 6), round(rise.right, 6)  # its mean is 1/6
    (0.166667, 0.367879)
    >>> neighbourhood_rise([1.0] * 6, log_volume=0.0).holds  # the printed A is no upper bound
    False
    """
    values = nonzero_vector(eigenvalues, "eigenvalues")
    d, log_determinant = len(values), log_determinant_of(values)
    return Inequality(
        statement="E_P[½ΔᵀHΔ] ≤ A, the printed A being asymptotic",
        source="Rényi paper, Thm. C.2",
        left=_mean_rise(log_determinant, d, log_volume, exact=True),
        right=_mean_rise(log_determinant, d, log_volume, exact=False),
        assumptions={
            "positive_definite": bool(values.min() > 0),
            "dimension_at_most_5": d <= 5,
        },
    )


def _isolated_right(
    training_risk: float, minimum_loss: float, rise: float, n: int, delta: float, version: str
) -> float:
    training_risk = arguments.number("training_risk", training_risk)
    minimum_loss = check_nonnegative("minimum_loss", minimum_loss)
    n, delta = arguments.integer("n", n, at_least=2), check_probability("delta", delta)
    confidence = math.log(2.0 * n / delta)
    if version == "printed":
        return training_risk + 2.0 * math.sqrt(
            (2.0 * minimum_loss + 2.0 * rise + confidence) / (n - 1.0)
        )
    return training_risk + math.sqrt((rise + confidence) / (2.0 * (n - 1.0)))


def isolated_minimum(
    population_risk: float,
    training_risk: float,
    minimum_loss: float,
    eigenvalues: Values,
    log_volume: float,
    n: int,
    delta: float,
    version: str = "printed",
    known: Mapping[str, bool] | None = None,
) -> Inequality:
    r"""Bound the posterior's population risk at an isolated minimum by the determinant.

    Source: Rényi paper, Theorem C.2 (equation 25): :math:`E_Q L(D) \le E_Q L(S) +
    2\sqrt{(2L_0 + 2A + \log(2n/\delta))/(n-1)}`, with probability 1 − δ. The proof needs a prior
    that did not see S, but P is uniform around the minimum found *on* S. ``"sharper"`` is
    McAllester's bound with :math:`KL(Q, P) \le E_P[L - L_0]`, the exact rise, in which
    :math:`L_0` does not enter. The printed bound follows from it at every dimension.

    Parameters
    ----------
    population_risk, training_risk : float
        Posterior means E_Q L(D) on the distribution D and E_Q L(S) on the sample S.
    minimum_loss : float
        Loss L_0 = L(S, θ*) at the minimum.
    eigenvalues : Tensor or sequence of float
        Eigenvalues of the layer's Hessian at θ*, all d of them. If any is zero the rise is 0, and
        the minimum is not isolated.
    log_volume : float
        Logarithm of the neighbourhood's volume.
    n : int
        Number n of samples.
    delta : float
        Probability δ that the bound may fail.
    version : str
        ``"printed"`` or ``"sharper"``.
    known : mapping of str to bool, optional
        Answers to ``loss_in_unit_interval``, ``quadratic_loss_on_an_ellipsoid`` and
        ``prior_independent_of_sample`` (False unless the minimum was found on other data).

    Raises
    ------
    ValueError
        If n < 2, delta is no probability, the version is unknown, or the spectrum is unusable.

    Examples
    --------
    >>> import math
    >>> from paperkit.bounds.renyi import isolated_minimum
    >>> known = {"loss_in_unit_interval": True, "quadratic_loss_on_an_ellipsoid": True}
    >>> minimum = (0.15, 0.1, 0.0, [1.0], math.log(2.0))  # risks, L₀, spectrum, volume of [−1, 1]
    >>> isolated_minimum(*minimum, n=1000, delta=0.05, version="sharper", known=known)
    Inequality(Rényi paper, Thm. C.2, sharper: E_Q L(D) ≤ E_Q L(S) + √((E_P[L − L₀] + log(2n/δ)) /
        2(n − 1)): 0.15 ≤ 0.173396, not certified: prior_independent_of_sample=violated)
    >>> round(isolated_minimum(*minimum, n=1000, delta=0.05).right, 4)  # as the paper prints it
    0.313
    """
    version = arguments.choice("version", version, VERSIONS)
    values = nonzero_vector(eigenvalues, "eigenvalues")
    rise = _mean_rise(
        log_determinant_of(values), len(values), log_volume, exact=version == "sharper"
    )
    return Inequality(
        statement=_ISOLATED_STATEMENTS[version],
        source=f"Rényi paper, Thm. C.2, {version}",
        left=arguments.number("population_risk", population_risk),
        right=_isolated_right(training_risk, minimum_loss, rise, n, delta, version),
        assumptions=assumptions_of(_ISOLATED, known, positive_definite=bool(values.min() > 0)),
    )


def isolated_minimum_entropy(
    population_risk: float,
    training_risk: float,
    minimum_loss: float,
    eigenvalues: Values,
    log_volume: float,
    n: int,
    delta: float,
    alpha: float,
    version: str = "printed",
    *,
    trace: float | None = None,
    known: Mapping[str, bool] | None = None,
) -> Inequality:
    r"""Bound the posterior's population risk at an isolated minimum by the entropy.

    Source: Rényi paper, Proposition C.1 (equations 24 and 41), Corollary C.3 and, with its
    constants, Theorem 3.2 (equation 4). In Theorem C.2 :math:`\log|H|` is replaced by :math:`d \log
    \mathrm{Tr}H - \mathcal{H}_\alpha`; the entropy enters A as :math:`e^{-\mathcal{H}_\alpha/d}`,
    which varies by :math:`\log(d)/d` at most. ``"sharper"`` uses :math:`d \log\mathrm{Tr}H -
    d\mathcal{H}_\alpha` with the exact rise, and still exceeds the entropy-free
    :math:`d\log(\mathrm{Tr}H/d)`.

    Parameters
    ----------
    population_risk, training_risk, minimum_loss, eigenvalues, log_volume, n, delta, version, known
        As in :func:`isolated_minimum`.
    alpha : float
        Order α > 0.
    trace : float, optional
        Constant that Corollary C.3 and Theorem 3.2 put in place of Tr H. This cannot be frozen
        while V is a free variable, because scaling a layer changes both, and keeps only their
        product.

    Raises
    ------
    ValueError
        As :func:`isolated_minimum`, or if alpha or the trace is not positive.

    Examples
    --------
    >>> from paperkit.bounds.renyi import isolated_minimum_entropy
    >>> minimum = (0.15, 0.1, 0.0, [3.0, 1.0], 0.0)  # risks, L₀, spectrum, log V
    >>> bound = isolated_minimum_entropy(*minimum, n=1000, delta=0.05, alpha=2.0)
    >>> round(bound.right, 4)
    0.3123
    >>> frozen = isolated_minimum_entropy(*minimum, n=1000, delta=0.05, alpha=2.0, trace=2.0)
    >>> frozen.assumptions["constant_is_at_least_the_trace"]  # Tr H is 4
    False
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, VERSIONS)
    values = nonzero_vector(eigenvalues, "eigenvalues")
    d, log_trace = len(values), log_trace_of(values)
    checked: dict[str, bool | None] = {"positive_definite": bool(values.min() > 0)}
    if trace is not None:
        trace = arguments.number("trace", trace, above=0)
        checked["constant_is_at_least_the_trace"] = math.log(trace) >= log_trace
        log_trace = math.log(trace)
    log_determinant = log_determinant_bound(d, log_trace, renyi_entropy(values, alpha), version)
    rise = _mean_rise(log_determinant, d, log_volume, exact=version == "sharper")
    return Inequality(
        statement=_ISOLATED_STATEMENTS[version],
        source=f"Rényi paper, {'Prop. C.1' if trace is None else 'Cor. C.3'}, {version}",
        left=arguments.number("population_risk", population_risk),
        right=_isolated_right(training_risk, minimum_loss, rise, n, delta, version),
        assumptions=assumptions_of(_ISOLATED, known, **checked),
    )


def log_determinant_bound(dimension: int, log_trace: float, entropy: float, version: str) -> float:
    """Return a bound on log|H| that subtracts the entropy once, as printed, or d times, sharper."""
    return dimension * log_trace - (1 if version == "printed" else dimension) * entropy
