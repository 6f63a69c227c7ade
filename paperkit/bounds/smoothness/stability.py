"""Section 2: the edge of stability."""

from __future__ import annotations

import math
from collections.abc import Mapping

from paperkit import arguments
from paperkit.bounds.arguments import assumptions_of, check_positive
from paperkit.bounds.statement import Inequality


def stability_edge(
    largest: float, step: float, rho: float = 0.0, known: Mapping[str, bool] | None = None
) -> Inequality:
    r"""Compare the largest eigenvalue with the one at which descent on a quadratic diverges.

    Gradient descent is stable for :math:`\lambda < 2/\eta`; with the un-normalised ascent step
    :math:`\rho\nabla L`, for :math:`\lambda < (-1 + \sqrt{1 + 8\rho/\eta})/2\rho`, which is smaller
    (Agarwala and Dauphin 2023). Source: SA-SAM paper, Section 2 (admissible steps below equation
    4, and the modified edge of stability).

    Parameters
    ----------
    largest : float
        Largest eigenvalue λ_max of the quadratic's Hessian, positive.
    step : float
        Step size η.
    rho : float
        Size ρ of the un-normalised ascent step; 0 for gradient descent.
    known : mapping of str to bool, optional
        Answer to ``loss_is_quadratic``.

    Raises
    ------
    ValueError
        If a number is not positive, or rho is negative.

    Examples
    --------
    >>> from paperkit.bounds.smoothness import stability_edge
    >>> stability_edge(largest=15.0, step=0.1)  # gradient descent: 2/0.1
    Inequality(SA-SAM paper, Section 2: λ_max ≤ the edge of stability, 2/η: 15 ≤ 20, not certified:
        loss_is_quadratic=unchecked)
    >>> stability_edge(largest=15.0, step=0.1, rho=0.1)  # an ascent step brings the edge nearer
    Inequality(SA-SAM paper, Section 2: λ_max ≤ the edge of stability under ascent steps ρ∇L: 15 ≰
        10, not certified: loss_is_quadratic=unchecked)
    """
    largest, step = check_positive("largest", largest), check_positive("step", step)
    rho = arguments.number("rho", rho, at_least=0)
    # The edge is (−1 + √(1 + 8ρ/η)) / 2ρ. Multiplied by 1 + √(1 + 8ρ/η) above and below, it keeps
    # its digits for small ρ, where the numerator would cancel.
    edge = (4.0 / step) / (1.0 + math.sqrt(1.0 + 8.0 * rho / step))
    return Inequality(
        statement="λ_max ≤ the edge of stability" + (" under ascent steps ρ∇L" if rho else ", 2/η"),
        source="SA-SAM paper, Section 2",
        left=largest,
        right=edge,
        assumptions=assumptions_of(dict.fromkeys(("loss_is_quadratic",)), known),
    )
