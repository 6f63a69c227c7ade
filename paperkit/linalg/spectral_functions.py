r"""Functions of eigenvalues whose derivatives tell on which side a quadrature rule is.

Let :math:`f` be continuous on :math:`[0, b]` and smooth on :math:`(0, b)`. The sign of one
derivative on :math:`(0, b)` decides whether a Gauss or a Radau rule is above or below
:math:`\int f\,d\mu`, as :mod:`paperkit.linalg.rules` proves. That holds also for :math:`t^\alpha`
with :math:`0 < \alpha < 1` and for :math:`t \log t`, which are not differentiable at 0. The k-th
derivative of :math:`t^\alpha` has the sign of
:math:`\alpha (\alpha - 1) \cdots (\alpha - k + 1)`. Gauss is above and Radau below for
:math:`0 < \alpha < 1`; the reverse holds for :math:`1 < \alpha < 2` and :math:`t \log t`; and so
on in turn, while :math:`\alpha < 2m`. An integer :math:`\alpha \le 2m - 1` is exact.

**Functions of the magnitude.** An indefinite matrix leaves no sign to :math:`|t|^\alpha`, which has
a kink inside. But :math:`|t|^\alpha = s^{\alpha/2}` of the square :math:`s = t^2`, and :math:`A^2`
is positive semidefinite. The m-step rule of :math:`\mu` has its moments up to degree 2m − 1, hence
those of the spectral measure of :math:`A^2` up to m − 1: Lanczos on the squared nodes gives that
measure's Gauss rule of k = ⌊(m − 1)/2⌋ points and its Radau rule, as k steps with :math:`A^2`
itself would, and no product more. So the same signs bracket the magnitude's powers; and those of
:math:`\lvert t\rvert \log \lvert t\rvert = \tfrac12 \sqrt s \log s`, whose k-th derivative has the
sign of :math:`(-1)^k` as long as :math:`\log s < \sum_{j=2}^{k-1} 1/(j - \tfrac12)`, k ≥ 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from paperkit import arguments


@dataclass(frozen=True)
class SpectralFunction:
    """A function of eigenvalues, with what its derivatives say about quadrature.

    Attributes
    ----------
    name : str
        For messages.
    evaluate : callable
        From a tensor of points to the tensor of values.
    derivative_sign : callable
        From an order k ≥ 2 to the sign (−1, 0 or 1) of the k-th derivative on t > 0, where it must
        not change.
    square_derivative_sign : callable or None
        The same for g, where the function is t ↦ g(t²) on both sides of zero: it brackets the trace
        of an indefinite operator. None where there is no such g, or no sign.

    Examples
    --------
    >>> import math
    >>> import torch
    >>> from paperkit.linalg import SpectralFunction, as_operator, stochastic_lanczos_quadrature
    >>> decay = SpectralFunction("exp(−t)", lambda t: (-t).exp(), lambda k: -1 if k % 2 else 1)
    >>> A = as_operator(torch.diag(torch.arange(30.0).double()), positive_semidefinite=True)
    >>> low, high = stochastic_lanczos_quadrature(A, probes=2, steps=8).trace(decay).bracket
    >>> low < 1 / (1 - math.exp(-1)) < high  # Σ e⁻ⁱ
    True
    """

    name: str
    evaluate: Callable[[Tensor], Tensor]
    derivative_sign: Callable[[int], int]
    square_derivative_sign: Callable[[int], int | None] | None = None


def power(alpha: float) -> SpectralFunction:
    """Return t ↦ t^α, for bracketing.

    Parameters
    ----------
    alpha : float
        Positive.

    Returns
    -------
    SpectralFunction
        Negative points have a value for integer α only.

    Raises
    ------
    TypeError, ValueError
        If alpha is no positive number, or beyond 2⁵³.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import power
    >>> root = power(0.5)
    >>> root.name, root.evaluate(torch.tensor([4.0, 9.0]))
    ('t^0.5', tensor([2., 3.]))
    >>> root.derivative_sign(2), root.derivative_sign(3)  # of √t: Gauss above, Radau below
    (-1, 1)
    """
    alpha = arguments.order("alpha", alpha)

    def derivative_sign(order: int) -> int:
        factors = [alpha - i for i in range(order)]
        if 0.0 in factors:
            return 0
        return -1 if sum(factor < 0 for factor in factors) % 2 else 1

    return SpectralFunction(f"t^{alpha:g}", lambda t: t**alpha, derivative_sign)


def t_log_t() -> SpectralFunction:
    """Return t ↦ t log t, zero at 0, for bracketing: its trace gives Shannon's entropy.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import t_log_t
    >>> function = t_log_t()
    >>> function.evaluate(torch.tensor([0.0, 1.0]))
    tensor([0., 0.])
    >>> shares = torch.tensor([0.5, 0.25, 0.25])
    >>> round(-float(function.evaluate(shares).sum()), 4)  # their entropy, ¾ log 4
    1.0397
    """
    return SpectralFunction(
        "t log t", lambda t: torch.special.xlogy(t, t), lambda order: -1 if order % 2 else 1
    )


def power_of_magnitude(alpha: float) -> SpectralFunction:
    """Return t ↦ |t|^α, for bracketing also where eigenvalues are negative.

    Parameters
    ----------
    alpha : float
        Positive.

    Raises
    ------
    TypeError, ValueError
        As :func:`power`.
    """
    plain = power(alpha)
    return SpectralFunction(
        f"|t|^{alpha:g}",
        lambda t: t.abs() ** alpha,
        plain.derivative_sign,
        power(alpha / 2).derivative_sign,
    )


def magnitude_log_magnitude() -> SpectralFunction:
    """Return t ↦ |t| log |t|, zero at 0: Shannon's entropy of the magnitudes.

    The bracket of an indefinite operator needs its eigenvalues to be scaled so that the largest
    magnitude is about 1.
    """
    return SpectralFunction(
        "|t| log |t|",
        lambda t: torch.special.xlogy(t.abs(), t.abs()),
        t_log_t().derivative_sign,
        # The function of s = t² is √s log(s) / 2; nothing is claimed below its third derivative.
        lambda order: (-1) ** order if order > 2 else None,
    )
