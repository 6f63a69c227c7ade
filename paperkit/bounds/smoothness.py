r"""Both sides of the SA-SAM paper's statements on smoothness and step sizes.

The paper's step size (equation 5) is :math:`\eta_t = \min\{\|\Delta w_t\| / (c\|\Delta g_t\|),
\sqrt{1 + \delta\theta_{t-1}}\,\eta_{t-1}\}` with :math:`\theta_t = \eta_t/\eta_{t-1}`, c = 2 and
δ = 1. Trajectories are passed as rows: points :math:`w_t` and gradients of the *plain* loss there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.bounds.statement import Bound

Values = Tensor | Sequence[float]


def _positive(name: str, value: float) -> float:
    return arguments.number(name, value, above=0)


def _known(names: Sequence[str], known: Mapping[str, bool] | None) -> dict[str, bool | None]:
    return {**dict.fromkeys(names), **arguments.known_truths("known", known, names)}


def local_smoothness(points: Tensor, gradients: Tensor) -> Tensor:
    r"""Return :math:`\beta_t = \|\Delta g_t\| / \|\Delta w_t\|` between consecutive iterates.

    Source: SA-SAM paper, equation 6.

    Parameters
    ----------
    points, gradients : Tensor
        Shape (T + 1, d).

    Returns
    -------
    Tensor
        Shape (T,), float64, on the CPU.

    Raises
    ------
    ValueError
        If the shapes differ, there are fewer than two points, an entry is not finite, or two
        consecutive points are equal.
    """
    arguments.tensor("points", points, shape=("T + 1", "d"), finite=True)
    arguments.tensor("gradients", gradients, shape=tuple(points.shape), finite=True)
    if len(points) < 2:
        raise ValueError(f"points={arguments.shown(points)} must be two or more.")
    w, g = (rows.detach().to(device="cpu", dtype=torch.float64) for rows in (points, gradients))
    moves = w.diff(dim=0).norm(dim=1)
    if not bool((moves > 0).all()):
        raise ValueError("points has equal consecutive rows: drop one of them.")
    return g.diff(dim=0).norm(dim=1) / moves


def smoothness_along_path(
    points: Tensor, gradients: Tensor, beta: float, known: Mapping[str, bool] | None = None
) -> Bound:
    r"""Compare the largest local smoothness of a path with the global constant.

    Source: SA-SAM paper, equations 3 and 6: :math:`\beta_t \le \beta`.

    Parameters
    ----------
    points, gradients
        As in :func:`local_smoothness`.
    beta : float
        A Lipschitz constant of the gradient.
    known : mapping of str to bool, optional
        The answer to ``loss_is_smooth``, with this constant.

    Raises
    ------
    ValueError
        As :func:`local_smoothness`, or if beta is not positive.
    """
    beta = _positive("beta", beta)
    return Bound(
        statement="max_t ‖Δg_t‖ / ‖Δw_t‖ ≤ β",
        source="SA-SAM paper, eqs. 3 and 6",
        left=float(local_smoothness(points, gradients).max()),
        right=beta,
        assumptions=_known(("loss_is_smooth",), known),
    )


def gradient_descent_rate(
    excess_loss: float,
    distance: float,
    beta: float,
    steps: int,
    version: str = "sharper",
    known: Mapping[str, bool] | None = None,
) -> Bound:
    r"""Bound the excess loss after N steps of gradient descent with step size 1/β.

    :math:`L(w_N) - L^* \le \beta\|w_0 - w^*\|^2 / 2(2N+1)`, attained by a Huber-like loss (Drori
    and Teboulle 2014). Source: SA-SAM paper, equation 4, which prints :math:`2t+1` for the iterate
    :math:`w_{t+1}`, that is N − 1 for N: true, and weaker by one step.

    Parameters
    ----------
    excess_loss : float
        L(w_N) − L(w*).
    distance : float
        ‖w_0 − w*‖.
    beta : float
        Lipschitz constant of the gradient.
    steps : int
        N, at least 1.
    version : str
        ``"sharper"`` or ``"printed"``.
    known : mapping of str to bool, optional
        Answers to ``loss_is_convex``, ``loss_is_smooth`` and ``step_is_one_over_beta``.

    Raises
    ------
    ValueError
        If an argument is out of range or the version unknown.
    """
    beta = _positive("beta", beta)
    excess_loss = arguments.number("excess_loss", excess_loss)
    distance = arguments.number("distance", distance, at_least=0)
    steps = arguments.integer("steps", steps, at_least=1)
    version = arguments.choice("version", version, ("printed", "sharper"))
    count, name = (steps, "2N + 1") if version == "sharper" else (steps - 1, "2(N − 1) + 1")
    return Bound(
        statement=f"L(w_N) − L* ≤ β‖w₀ − w*‖² / 2({name})",
        source=f"SA-SAM paper, eq. 4, {version}",
        left=excess_loss,
        right=0.5 * beta * distance * distance / (2 * count + 1),
        assumptions=_known(("loss_is_convex", "loss_is_smooth", "step_is_one_over_beta"), known),
    )


def curvature_step_range(
    points: Tensor,
    gradients: Tensor,
    smallest: float,
    largest: float,
    factor: float = 2.0,
    known: Mapping[str, bool] | None = None,
) -> tuple[Bound, Bound]:
    r"""Return both bounds of the first branch, :math:`\|\Delta w\| / (c\|\Delta g\|)`.

    On quadratics it lies between :math:`1/(c\lambda_{\max})` and :math:`1/(c\lambda_{\min})`.
    Source: SA-SAM paper, equation 5. The lower bound needs smoothness alone, with β for
    :math:`\lambda_{\max}`.

    Parameters
    ----------
    points, gradients
        As in :func:`local_smoothness`.
    smallest, largest : float
        Extreme eigenvalues of the Hessian, positive.
    factor : float
        c: 2 in the paper, 1 in its released code.
    known : mapping of str to bool, optional
        The answer to ``loss_is_quadratic``, with these eigenvalues.

    Raises
    ------
    ValueError
        As :func:`local_smoothness`, or if a number is not positive, or smallest > largest.
    """
    smallest, largest = _positive("smallest", smallest), _positive("largest", largest)
    factor = _positive("factor", factor)
    if smallest > largest:
        raise ValueError(f"smallest={smallest} exceeds largest={largest}: exchange them.")
    branch = 1.0 / (factor * local_smoothness(points, gradients))
    assumptions = _known(("loss_is_quadratic",), known)
    source = "SA-SAM paper, eq. 5"
    return (
        Bound(
            statement="1/(c λ_max) ≤ min_t ‖Δw‖ / (c ‖Δg‖)",
            source=source,
            left=1.0 / (factor * largest),
            right=float(branch.min()),
            assumptions=assumptions,
        ),
        Bound(
            statement="max_t ‖Δw‖ / (c ‖Δg‖) ≤ 1/(c λ_min)",
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
) -> Bound:
    r"""Bound the step sizes of equation 5 from below.

    :math:`\eta_t \ge 1/(c\beta)` for t ≥ 1, by induction, because the growth branch never
    decreases: with the paper's c = 2, :math:`1/(2\beta)`. Source: SA-SAM paper, Section 2, which
    prints :math:`1/\beta`; that is false, a quadratic along its top eigenvector has
    :math:`1/(2\beta)`.

    Parameters
    ----------
    step_sizes : Tensor or sequence of float
        η_1, …, η_T.
    beta : float
        Lipschitz constant of the gradient.
    factor : float
        c.
    version : str
        ``"corrected"`` or ``"printed"``.
    initial_step : float, optional
        η_0, for an implementation whose θ_0 is finite, so that η_1 is capped by a multiple of it:
        the bound is then the smaller of η_0 and 1/(cβ). None for the paper's θ_0 = ∞.
    known : mapping of str to bool, optional
        Answers to ``loss_is_smooth`` (with β; the same batch in both gradients) and
        ``steps_follow_equation_5``.

    Raises
    ------
    ValueError
        If a number is not positive, or the version is unknown.
    """
    beta, factor = _positive("beta", beta), _positive("factor", factor)
    version = arguments.choice("version", version, ("printed", "corrected"))
    smallest = float(arguments.vector("step_sizes", step_sizes, above=0).min())
    names = ("loss_is_smooth", "steps_follow_equation_5")
    if version == "printed":
        return Bound(
            statement="1/β ≤ min_t η_t",
            source="SA-SAM paper, Section 2, printed",
            left=1.0 / beta,
            right=smallest,
            assumptions={**_known(names, known), "factor_at_most_one": factor <= 1},
        )
    floor = 1.0 / (factor * beta)
    if initial_step is not None:
        floor = min(_positive("initial_step", initial_step), floor)
    return Bound(
        statement="1/(cβ) ≤ min_t η_t" if initial_step is None else "min(η₀, 1/(cβ)) ≤ min_t η_t",
        source="SA-SAM paper, Section 2, corrected",
        left=floor,
        right=smallest,
        assumptions=_known(names, known),
    )


def growth_limit(delta: float = 1.0) -> float:
    r"""Return the fixed point of :math:`r^2 = 1 + \delta r`: 1.618 at δ = 1, 1.01005 at δ = 0.02.

    Source: SA-SAM paper, equation 5, second branch, with the δ of its experiments.

    Raises
    ------
    ValueError
        If delta is negative or not finite.
    """
    delta = arguments.number("delta", delta, at_least=0)
    return 0.5 * (delta + math.sqrt(delta * delta + 4.0))


def step_growth(
    step_sizes: Values,
    first_ratio: float,
    delta: float = 1.0,
    known: Mapping[str, bool] | None = None,
) -> Bound:
    r"""Bound the ratio of consecutive step sizes of equation 5.

    If one ratio is at most r with :math:`r^2 = 1 + \delta r`, so is the next. Source: SA-SAM paper,
    equation 5. After the paper's θ_0 = ∞ the first ratios may exceed r.

    Parameters
    ----------
    step_sizes : Tensor or sequence of float
        η_t, η_{t+1}, …, at least two.
    first_ratio : float
        θ_t = η_t/η_{t−1}, the ratio before the first of them.
    delta : float
        δ.
    known : mapping of str to bool, optional
        The answer to ``steps_follow_equation_5``.

    Raises
    ------
    ValueError
        If there are fewer than two step sizes, or a number is out of range.
    """
    steps = arguments.vector("step_sizes", step_sizes, above=0, at_least=2)
    first_ratio = _positive("first_ratio", first_ratio)
    limit = growth_limit(delta)
    return Bound(
        statement="max_t η_{t+1}/η_t ≤ r, r² = 1 + δr",
        source="SA-SAM paper, eq. 5",
        left=float((steps[1:] / steps[:-1]).max()),
        right=limit,
        assumptions={
            **_known(("steps_follow_equation_5",), known),
            "first_ratio_at_most_r": first_ratio <= limit,
        },
    )


def stability_edge(
    largest: float, step: float, rho: float = 0.0, known: Mapping[str, bool] | None = None
) -> Bound:
    r"""Compare the largest eigenvalue with the one at which descent on a quadratic diverges.

    Gradient descent is stable for :math:`\lambda < 2/\eta`; with the un-normalised ascent step
    :math:`\rho\nabla L`, for :math:`\lambda < (-1 + \sqrt{1 + 8\rho/\eta})/2\rho`, which is smaller
    (Agarwala and Dauphin 2023). Source: SA-SAM paper, Section 2 (admissible steps below equation
    4, and the modified edge of stability).

    Parameters
    ----------
    largest : float
        λ_max of the quadratic's Hessian, positive.
    step : float
        η.
    rho : float
        ρ of the un-normalised ascent step; 0 for gradient descent.
    known : mapping of str to bool, optional
        The answer to ``loss_is_quadratic``.

    Raises
    ------
    ValueError
        If a number is not positive, or rho is negative.
    """
    largest, step = _positive("largest", largest), _positive("step", step)
    rho = arguments.number("rho", rho, at_least=0)
    # (−1 + √(1 + x)) / 2ρ with x = 8ρ/η, in the form that keeps its digits for small ρ.
    edge = (4.0 / step) / (1.0 + math.sqrt(1.0 + 8.0 * rho / step))
    return Bound(
        statement="λ_max ≤ the edge of stability" + (" under ascent steps ρ∇L" if rho else ", 2/η"),
        source="SA-SAM paper, Section 2",
        left=largest,
        right=edge,
        assumptions=_known(("loss_is_quadratic",), known),
    )
