"""Equation 5: the step sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from paperkit import arguments
from paperkit.bounds.arguments import Values, assumptions_of, check_positive
from paperkit.bounds.smoothness.path import local_smoothness
from paperkit.bounds.statement import Inequality


def curvature_step_range(
    points: Tensor,
    gradients: Tensor,
    smallest: float,
    largest: float,
    factor: float = 2.0,
    known: Mapping[str, bool] | None = None,
) -> tuple[Inequality, Inequality]:
    r"""Return both bounds of the first branch, :math:`\|\Delta\theta\| / (c\|\Delta g\|)`.

    On quadratics this branch lies between :math:`1/(c\lambda_{\max})` and
    :math:`1/(c\lambda_{\min})`. Source: SA-SAM paper, equation 5. The lower bound needs smoothness
    alone, with β for :math:`\lambda_{\max}`.

    Parameters
    ----------
    points, gradients : Tensor
        Points θ_t and gradients g_t of a path of T steps, shape (T + 1, d).
    smallest, largest : float
        Extreme eigenvalues of the Hessian, positive.
    factor : float
        Factor c: 2 in the paper, 1 in its released code.
    known : mapping of str to bool, optional
        Answer to ``loss_is_quadratic``, with these eigenvalues.

    Raises
    ------
    ValueError
        If the path has no step or a step of length zero, a number is not positive, or
        smallest > largest.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.smoothness import curvature_step_range
    >>> hessian = torch.diag(torch.tensor([1.0, 4.0]))
    >>> points = torch.tensor([[1.0, 1.0], [0.5, 1.0], [0.5, 0.5]])  # a step along each eigenvector
    >>> low, high = curvature_step_range(points, points @ hessian, smallest=1.0, largest=4.0)
    >>> low.left, low.right, high.left, high.right
    (0.125, 0.125, 0.5, 0.5)
    """
    smallest, largest = check_positive("smallest", smallest), check_positive("largest", largest)
    factor = check_positive("factor", factor)
    if smallest > largest:
        raise ValueError(f"smallest={smallest} exceeds largest={largest}: exchange them.")
    branch = 1.0 / (factor * local_smoothness(points, gradients))
    assumptions = assumptions_of(dict.fromkeys(("loss_is_quadratic",)), known)
    source = "SA-SAM paper, eq. 5"
    return (
        Inequality(
            statement="1/(c λ_max) ≤ min_t ‖Δθ‖ / (c ‖Δg‖)",
            source=source,
            left=1.0 / (factor * largest),
            right=float(branch.min()),
            assumptions=assumptions,
        ),
        Inequality(
            statement="max_t ‖Δθ‖ / (c ‖Δg‖) ≤ 1/(c λ_min)",
            source=source,
            left=float(branch.max()),
            right=1.0 / (factor * smallest),
            assumptions=assumptions,
        ),
    )


def step_lower_bound(
    step_sizes: Values,
    beta: float,
    factor: float = 2.0,
    version: str = "corrected",
    *,
    initial_step: float | None = None,
    known: Mapping[str, bool] | None = None,
) -> Inequality:
    r"""Bound the step sizes of equation 5 from below.

    :math:`\eta_t \ge 1/(c\beta)` for t ≥ 1, by induction, because the growth branch never
    decreases: with the paper's c = 2, :math:`1/(2\beta)`. Source: SA-SAM paper, Section 2, which
    prints :math:`1/\beta`; that is false, a quadratic along its top eigenvector has
    :math:`1/(2\beta)`.

    Parameters
    ----------
    step_sizes : Tensor or sequence of float
        Step sizes η_1, …, η_T.
    beta : float
        Lipschitz constant β of the gradient.
    factor : float
        Factor c.
    version : str
        ``"corrected"`` or ``"printed"``.
    initial_step : float, optional
        First step size η_0, for an implementation whose ratio ϑ_0 is finite, so that η_1 is capped
        by a multiple of η_0. The bound is then the smaller of η_0 and 1/(cβ). None for the paper's
        ϑ_0 = ∞.
    known : mapping of str to bool, optional
        Answers to ``loss_is_smooth`` (with β; the same batch in both gradients) and
        ``steps_follow_equation_5``.

    Raises
    ------
    ValueError
        If a number is not positive, or the version is unknown.

    Examples
    --------
    >>> from paperkit.bounds.smoothness import step_lower_bound
    >>> sizes = [0.5, 0.5, 0.7]  # on a quadratic of curvature β = 1, along its top eigenvector
    >>> step_lower_bound(sizes, beta=1.0).holds
    True
    >>> step_lower_bound(sizes, beta=1.0, version="printed").holds
    False
    """
    beta, factor = check_positive("beta", beta), check_positive("factor", factor)
    version = arguments.choice("version", version, ("printed", "corrected"))
    smallest = float(arguments.vector("step_sizes", step_sizes, above=0).min())
    names = ("loss_is_smooth", "steps_follow_equation_5")
    if version == "printed":
        return Inequality(
            statement="1/β ≤ min_t η_t",
            source="SA-SAM paper, Section 2, printed",
            left=1.0 / beta,
            right=smallest,
            assumptions={
                **assumptions_of(dict.fromkeys(names), known),
                "factor_at_most_one": factor <= 1,
            },
        )
    floor = 1.0 / (factor * beta)
    if initial_step is not None:
        floor = min(check_positive("initial_step", initial_step), floor)
    return Inequality(
        statement="1/(cβ) ≤ min_t η_t" if initial_step is None else "min(η₀, 1/(cβ)) ≤ min_t η_t",
        source="SA-SAM paper, Section 2, corrected",
        left=floor,
        right=smallest,
        assumptions=assumptions_of(dict.fromkeys(names), known),
    )


def growth_limit(delta: float = 1.0) -> float:
    r"""Return the fixed point of :math:`r^2 = 1 + \gamma r`: 1.618 at γ = 1, 1.01005 at γ = 0.02.

    The argument ``delta`` is γ, the paper's δ. Source: SA-SAM paper, equation 5, second branch,
    with the value of its experiments.

    Raises
    ------
    ValueError
        If delta is negative or not finite.

    Examples
    --------
    >>> from paperkit.bounds.smoothness import growth_limit
    >>> round(growth_limit(), 6)  # the golden ratio
    1.618034
    >>> round(growth_limit(0.02), 6)
    1.01005
    """
    delta = arguments.number("delta", delta, at_least=0)
    return 0.5 * (delta + math.sqrt(delta * delta + 4.0))


def step_growth(
    step_sizes: Values,
    first_ratio: float,
    delta: float = 1.0,
    known: Mapping[str, bool] | None = None,
) -> Inequality:
    r"""Bound the ratio of consecutive step sizes of equation 5.

    If a ratio is at most r with :math:`r^2 = 1 + \gamma r`, so is the next. Source: SA-SAM paper,
    equation 5. After the paper's ϑ_0 = ∞ the first ratios may exceed r.

    Parameters
    ----------
    step_sizes : Tensor or sequence of float
        Step sizes η_t, η_{t+1}, …, at least two.
    first_ratio : float
        Ratio ϑ_t = η_t/η_{t−1} before the first of them.
    delta : float
        Damping γ of the growth; the paper's δ.
    known : mapping of str to bool, optional
        Answer to ``steps_follow_equation_5``.

    Raises
    ------
    ValueError
        If there are fewer than two step sizes, or a number is out of range.

    Examples
    --------
    >>> from paperkit.bounds.smoothness import step_growth
    >>> steps, ratio = [0.1], 1.0
    >>> for _ in range(10):  # the second branch alone
    ...     ratio = (1.0 + ratio) ** 0.5
    ...     steps.append(ratio * steps[-1])
    >>> bound = step_growth(steps, first_ratio=1.0)
    >>> round(bound.left, 4), round(bound.right, 4)
    (1.618, 1.618)
    """
    steps = arguments.vector("step_sizes", step_sizes, above=0, at_least=2)
    first_ratio = check_positive("first_ratio", first_ratio)
    limit = growth_limit(delta)
    return Inequality(
        statement="max_t η_{t+1}/η_t ≤ r, r² = 1 + γr",
        source="SA-SAM paper, eq. 5",
        left=float((steps[1:] / steps[:-1]).max()),
        right=limit,
        assumptions={
            **assumptions_of(dict.fromkeys(("steps_follow_equation_5",)), known),
            "first_ratio_at_most_r": first_ratio <= limit,
        },
    )
