"""Equations 26 to 40: determinant, trace and entropy of a Hessian."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from paperkit import arguments
from paperkit.bounds.arguments import Values, is_semidefinite, nonzero_vector
from paperkit.bounds.renyi.versions import VERSIONS
from paperkit.bounds.statement import Inequality
from paperkit.estimators.entropy import renyi_entropy


def log_determinant_of(values: Tensor) -> float:
    """Return the logarithm of the product of the eigenvalues' magnitudes."""
    return float(values.abs().log().sum())


def log_trace_of(values: Tensor) -> float:
    """Return the logarithm of the sum of the eigenvalues' magnitudes."""
    return math.log(float(values.abs().sum()))


def determinant_chain(
    eigenvalues: Values, alpha: float
) -> tuple[Inequality, Inequality, Inequality]:
    r"""Return the three steps from the log-determinant to the paper's bound on it.

    :math:`\log|H| \le d \log(\mathrm{Tr}H/d) \le d\log\mathrm{Tr}H - d \mathcal{H}_\alpha \le
    d\log\mathrm{Tr}H - \mathcal{H}_\alpha`. Source: Rényi paper, equations 26 to 40 (the whole
    chain); the two middle terms are ours. At a fixed trace the first quantity is *largest* for a
    uniform spectrum, where the last one is smallest: only the slack falls with the entropy.

    Raises
    ------
    ValueError
        If alpha is not positive, or the spectrum is empty, not finite or zero.

    Examples
    --------
    >>> from paperkit.bounds.renyi import determinant_chain
    >>> for step in determinant_chain([3.0, 1.0], alpha=2.0):
    ...     print(f"{step.statement}:  {step.left:.3f} ≤ {step.right:.3f}")
    log|H| ≤ d log(Tr H / d):  1.099 ≤ 1.386
    d log(Tr H / d) ≤ d log Tr H − d ℋ_α:  1.386 ≤ 1.833
    d log Tr H − d ℋ_α ≤ d log Tr H − ℋ_α:  1.833 ≤ 2.303
    """
    alpha = arguments.order("alpha", alpha)
    values = nonzero_vector(eigenvalues, "eigenvalues")
    d, log_trace = len(values), log_trace_of(values)
    entropy = renyi_entropy(values, alpha)
    terms = {
        "log|H|": log_determinant_of(values),
        "d log(Tr H / d)": d * (log_trace - math.log(d)),
        "d log Tr H − d ℋ_α": d * (log_trace - entropy),
        "d log Tr H − ℋ_α": d * log_trace - entropy,
    }
    names = list(terms)
    first, second, third = (
        Inequality(
            statement=f"{left} ≤ {right}",
            source="Rényi paper, eqs. 26–40, with two terms of ours between",
            left=terms[left],
            right=terms[right],
            assumptions={"positive_semidefinite": is_semidefinite(values)},
        )
        for left, right in pairwise(names)
    )
    return first, second, third


def sum_of_logarithms(eigenvalues: Values, alpha: float, version: str = "printed") -> Inequality:
    r"""Bound :math:`\sum_j \log q_j` by the entropy.

    Source: Rényi paper, equations 32 and 38 to 40: at most :math:`-\mathcal{H}_\alpha`. The
    inequality of the means gives d times as much, :math:`-d \log d \le -d \mathcal{H}_\alpha`
    (``"sharper"``).

    Raises
    ------
    ValueError
        If alpha is not positive, the version unknown, or the spectrum empty, not finite or zero.

    Examples
    --------
    >>> from paperkit.bounds.renyi import sum_of_logarithms
    >>> sum_of_logarithms([1.0, 1.0, 1.0, 1.0], alpha=2.0)
    Inequality(Rényi paper, eqs. 38–40: Σ log q_j ≤ −ℋ_α: -5.54518 ≤ -1.38629, certified)
    >>> sum_of_logarithms([1.0, 1.0, 1.0, 1.0], alpha=2.0, version="sharper")
    Inequality(Rényi paper, eqs. 38–40, sharpened: Σ log q_j ≤ −d ℋ_α: -5.54518 ≤ -5.54518,
        certified)
    """
    alpha = arguments.order("alpha", alpha)
    version = arguments.choice("version", version, VERSIONS)
    values = nonzero_vector(eigenvalues, "eigenvalues")
    multiple = 1 if version == "printed" else len(values)
    return Inequality(
        statement="Σ log q_j ≤ −ℋ_α" if version == "printed" else "Σ log q_j ≤ −d ℋ_α",
        source="Rényi paper, eqs. 38–40" + ("" if version == "printed" else ", sharpened"),
        left=log_determinant_of(values) - len(values) * log_trace_of(values),
        right=-multiple * renyi_entropy(values, alpha),
        assumptions={"positive_semidefinite": is_semidefinite(values)},
    )
