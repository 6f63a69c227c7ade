"""Equations 3, 4 and 6: smoothness along a path, and the rate that it gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.bounds.arguments import assumptions_of, check_positive
from paperkit.bounds.statement import Inequality


def local_smoothness(points: Tensor, gradients: Tensor) -> Tensor:
    r"""Return :math:`\beta_t = \|\Delta g_t\| / \|\Delta\theta_t\|` between consecutive iterates.

    Source: SA-SAM paper, equation 6.

    Parameters
    ----------
    points, gradients : Tensor
        Points θ_t and gradients g_t of a path of T steps, shape (T + 1, d).

    Returns
    -------
    Tensor
        Local smoothness of each step, shape (T,), float64, on the CPU.

    Raises
    ------
    ValueError
        If the shapes differ, there are fewer than two points, an entry is not finite, or two
        consecutive points are equal.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.smoothness import local_smoothness
    >>> points = torch.tensor([[0.0], [1.0], [3.0]])
    >>> local_smoothness(points, points**2)  # the gradients of w³/3: steeper as it goes
    tensor([1., 4.], dtype=torch.float64)
    """
    arguments.tensor("points", points, shape=("T + 1", "d"), finite=True)
    arguments.tensor("gradients", gradients, shape=tuple(points.shape), finite=True)
    if len(points) < 2:
        raise ValueError(f"points={arguments.shown(points)} must be two or more.")
    theta, g = (rows.detach().to(device="cpu", dtype=torch.float64) for rows in (points, gradients))
    moves = theta.diff(dim=0).norm(dim=1)
    if not bool((moves > 0).all()):
        raise ValueError("points has equal consecutive rows: drop one of them.")
    return g.diff(dim=0).norm(dim=1) / moves


def smoothness_along_path(
    points: Tensor, gradients: Tensor, beta: float, known: Mapping[str, bool] | None = None
) -> Inequality:
    r"""Compare the largest local smoothness of a path with the global constant.

    Source: SA-SAM paper, equations 3 and 6: :math:`\beta_t \le \beta`.

    Parameters
    ----------
    points, gradients
        As in :func:`local_smoothness`.
    beta : float
        Lipschitz constant β of the gradient.
    known : mapping of str to bool, optional
        Answer to ``loss_is_smooth``, with this constant.

    Raises
    ------
    ValueError
        As :func:`local_smoothness`, or if beta is not positive.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.smoothness import smoothness_along_path
    >>> points = torch.tensor([[0.0], [1.0], [3.0]])
    >>> smoothness_along_path(points, 2.0 * points, beta=2.0)  # w² has one curvature
    Inequality(SA-SAM paper, eqs. 3 and 6: max_t ‖Δg_t‖ / ‖Δθ_t‖ ≤ β: 2 ≤ 2, not certified:
        loss_is_smooth=unchecked)
    >>> smoothness_along_path(points, points**2, beta=2.0).holds  # w³/3 has 2w
    False
    """
    beta = check_positive("beta", beta)
    return Inequality(
        statement="max_t ‖Δg_t‖ / ‖Δθ_t‖ ≤ β",
        source="SA-SAM paper, eqs. 3 and 6",
        left=float(local_smoothness(points, gradients).max()),
        right=beta,
        assumptions=assumptions_of(dict.fromkeys(("loss_is_smooth",)), known),
    )


def gradient_descent_rate(
    excess_loss: float,
    distance: float,
    beta: float,
    steps: int,
    version: str = "sharper",
    known: Mapping[str, bool] | None = None,
) -> Inequality:
    r"""Bound the excess loss after T steps of gradient descent with step size 1/β.

    :math:`L(\theta_T) - L^* \le \beta\|\theta_0 - \theta^*\|^2 / 2(2T+1)`, attained by a Huber-like
    loss (Drori and Teboulle 2014). Source: SA-SAM paper, equation 4, which prints :math:`2t+1` for
    the iterate after t + 1 steps, that is T − 1 for T: true, and weaker by one step.

    Parameters
    ----------
    excess_loss : float
        Excess loss L(θ_T) − L(θ*).
    distance : float
        Distance ‖θ_0 − θ*‖ of the start from a minimum.
    beta : float
        Lipschitz constant β of the gradient.
    steps : int
        Number T of steps, at least 1.
    version : str
        ``"sharper"`` or ``"printed"``.
    known : mapping of str to bool, optional
        Answers to ``loss_is_convex``, ``loss_is_smooth`` and ``step_is_one_over_beta``.

    Raises
    ------
    ValueError
        If an argument is out of range or the version unknown.

    Examples
    --------
    >>> from paperkit.bounds.smoothness import gradient_descent_rate
    >>> bound = gradient_descent_rate(0.1, distance=1.0, beta=1.0, steps=2)
    >>> bound.right, bound.holds
    (0.1, True)
    >>> printed = gradient_descent_rate(0.1, distance=1.0, beta=1.0, steps=2, version="printed")
    >>> round(printed.right, 4)  # what the sharper bound gives after one step
    0.1667
    """
    beta = check_positive("beta", beta)
    excess_loss = arguments.number("excess_loss", excess_loss)
    distance = arguments.number("distance", distance, at_least=0)
    steps = arguments.integer("steps", steps, at_least=1)
    version = arguments.choice("version", version, ("printed", "sharper"))
    count, name = (steps, "2T + 1") if version == "sharper" else (steps - 1, "2(T − 1) + 1")
    return Inequality(
        statement=f"L(θ_T) − L* ≤ β‖θ₀ − θ*‖² / 2({name})",
        source=f"SA-SAM paper, eq. 4, {version}",
        left=excess_loss,
        right=0.5 * beta * distance * distance / (2 * count + 1),
        assumptions=assumptions_of(
            dict.fromkeys(("loss_is_convex", "loss_is_smooth", "step_is_one_over_beta")), known
        ),
    )
