r"""Convex losses of known smoothness, and the SA-SAM paper's steps written out from its text.

A loss is given twice: as a value, through which automatic differentiation and the library's
optimizers go, and as a gradient by formula, from which the steps are written out here. So an
identity between the two compares two computations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paperkit.optim import SASAM, SASGD


@dataclass(frozen=True)
class ConvexLoss:
    r"""A convex loss whose gradient has a known Lipschitz constant.

    Attributes
    ----------
    value, gradient : callable
        Loss and gradient at a point, (d,).
    beta : float
        Smallest Lipschitz constant β of the gradient.
    minimizer : Tensor
        Point of the smallest value, (d,).
    """

    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    beta: float
    minimizer: Tensor

    def excess(self, point: Tensor) -> float:
        """Loss above its smallest value."""
        return float(self.value(point) - self.value(self.minimizer))


def random_numbers(*shape: int, seed: int) -> Tensor:
    """Draw standard normal numbers in float64."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def random_hessian(dimension: int, seed: int, smallest: float = 0.1) -> Tensor:
    """Draw a matrix in a random basis, its eigenvalues from ``smallest`` to 10 in equal ratios."""
    basis, _ = torch.linalg.qr(random_numbers(dimension, dimension, seed=seed))
    low, high = math.log10(smallest), 1.0
    eigenvalues = torch.logspace(low, high, dimension, dtype=torch.float64, device="cpu")
    matrix = (basis * eigenvalues) @ basis.T
    return 0.5 * (matrix + matrix.T)


def quadratic(dimension: int, seed: int) -> ConvexLoss:
    """Half a quadratic form, with eigenvalues from 0.1 to 10."""
    matrix = random_hessian(dimension, seed)
    return ConvexLoss(
        value=lambda w: 0.5 * w @ matrix @ w,
        gradient=lambda w: matrix @ w,
        beta=float(torch.linalg.eigvalsh(matrix)[-1]),
        minimizer=torch.zeros_like(matrix[0]),
    )


def log_cosh(dimension: int, seed: int) -> ConvexLoss:
    """A sum of log cosh of the coordinates, each in a unit of its own: steep near its minimum."""
    scales = torch.linspace(0.5, 3.0, dimension, dtype=torch.float64, device="cpu")

    def value(w: Tensor) -> Tensor:
        x = (scales * w).abs()
        return (x + torch.log1p(torch.exp(-2.0 * x)) - math.log(2.0)).sum()

    return ConvexLoss(
        value=value,
        gradient=lambda w: scales * torch.tanh(scales * w),
        beta=float(scales.square().max()),
        minimizer=torch.zeros_like(scales),
    )


def pseudo_huber(dimension: int, seed: int) -> ConvexLoss:
    """A sum of smoothed absolute values, each in a unit of its own: nearly linear far out.

    Huber's loss itself has the same gradient at any two points of a line far out. Equation 5 then
    divides by zero, or by round-off.
    """
    scales = torch.linspace(0.5, 3.0, dimension, dtype=torch.float64, device="cpu")
    return ConvexLoss(
        value=lambda w: (torch.sqrt(1.0 + (scales * w).square()) - 1.0).sum(),
        gradient=lambda w: scales.square() * w / torch.sqrt(1.0 + (scales * w).square()),
        beta=float(scales.square().max()),
        minimizer=torch.zeros_like(scales),
    )


def logistic(dimension: int, seed: int) -> ConvexLoss:
    r"""Logistic regression on four samples a dimension, half of the labels left to chance.

    A small quadratic penalty makes sure of a minimum. The Lipschitz constant is that of the
    Hessian where all predictions are ½, :math:`X^\top X/4n` plus the penalty; it is reached at 0.
    """
    n, penalty = 4 * dimension, 0.01
    inputs = random_numbers(n, dimension, seed=seed)
    noise = random_numbers(n, seed=seed + 1000)
    signs = torch.where(inputs.sum(dim=1) + 2.0 * noise > 0, 1.0, -1.0).double()

    def value(w: Tensor) -> Tensor:
        margins = signs * (inputs @ w)
        # PyTorch's softplus is a straight line from 20 on, which its gradient shows in digit nine.
        return torch.logaddexp(-margins, torch.zeros_like(margins)).mean() + 0.5 * penalty * w @ w

    def gradient(w: Tensor) -> Tensor:
        pull = -signs / (1.0 + torch.exp(signs * (inputs @ w)))
        return inputs.T @ pull / n + penalty * w

    identity = torch.eye(dimension, dtype=torch.float64, device="cpu")
    largest = inputs.T @ inputs / (4 * n) + penalty * identity
    minimizer = torch.zeros(dimension, dtype=torch.float64, device="cpu")
    for _ in range(50):  # Newton's steps; the margins are small, so that none overshoots
        p = torch.sigmoid(signs * (inputs @ minimizer))
        hessian = (inputs.T * (p * (1.0 - p))) @ inputs / n + penalty * identity
        minimizer = minimizer - torch.linalg.solve(hessian, gradient(minimizer))
    return ConvexLoss(value, gradient, float(torch.linalg.eigvalsh(largest)[-1]), minimizer)


LOSSES: dict[str, Callable[[int, int], ConvexLoss]] = {
    "quadratic": quadratic,
    "log cosh": log_cosh,
    "smoothed Huber": pseudo_huber,
    "logistic": logistic,
}
"""Convex losses by name, each built from a dimension and a seed."""


@dataclass(frozen=True)
class Path:
    """The iterates of an optimizer, T + 1 points, and the T step sizes between them."""

    points: Tensor
    etas: list[float]


def library_path(
    optimizer: type[SASGD] | type[SASAM],
    value: Callable[[Tensor, int], Tensor],
    start: Tensor,
    steps: int,
    *,
    rest: float = 0.0,
    **options: Any,
) -> Path:
    """Run an optimizer of the library on a loss that may differ from step to step.

    The path ends before ``steps`` where, after the first step, a move is shorter than ``rest``
    times the point itself: from there on a change of the gradient is mostly round-off.
    """
    weight = torch.nn.Parameter(start.clone())
    method = optimizer([weight], **options)
    points, etas = [start.clone()], []
    for step in range(steps):

        def closure(step: int = step) -> Tensor:
            method.zero_grad()
            loss = value(weight, step)
            loss.backward()
            return loss

        method.step(closure)
        points.append(weight.detach().clone())
        etas.append(method.eta)
        moved = float((points[-1] - points[-2]).norm())
        if step > 0 and moved < rest * float(points[-1].norm()):
            break
    return Path(torch.stack(points), etas)


def written_out_steps(
    gradient: Callable[[Tensor, int], Tensor],
    path: Path,
    *,
    eta0: float,
    delta: float,
    damping: float,
    ascent: bool,
) -> Path:
    r"""Take each step of a path anew from the points before it, by the paper's text.

    Line 5 has the ratio :math:`\theta_{t-1}`, and the radius is :math:`\sqrt{\eta_t}` from the
    first step on. With ``ascent`` the steps are Algorithm 1's, without it equation 5's for gradient
    descent. Because every step begins at the path's own point, round-off does not add up.
    """
    points, etas = [path.points[0]], []
    for step in range(len(path.etas)):
        w = path.points[step]
        g = gradient(w, step)
        eta = eta0
        if step > 0:
            before, last = path.points[step - 1], path.etas[step - 1]
            theta = last / path.etas[step - 2] if step > 1 else math.inf
            first = float((w - before).norm() / (damping * (g - gradient(before, step)).norm()))
            eta = min(first, math.sqrt(1.0 + delta * theta) * last)
        move = gradient(w + math.sqrt(eta) * g / g.norm(), step) if ascent else g
        points.append(w - eta * move)
        etas.append(eta)
    return Path(torch.stack(points), etas)


def largest_relative_difference(left: Path, right: Path) -> float:
    """Return the largest difference of points and step sizes, relative to their own sizes."""
    moved = (left.points - right.points).norm(dim=1) / right.points.norm(dim=1)
    pairs = zip(left.etas, right.etas, strict=True)
    return max(float(moved.max()), max(abs(a - b) / b for a, b in pairs))
