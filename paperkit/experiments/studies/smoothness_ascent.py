r"""The SA-SAM paper's statements on the ascent and on curvature, each decided by itself.

The worst loss of equation 1, the direction that approximates its point for a norm other than the
Euclidean, the step of equation 2, the edge of stability with and without an ascent, and the two
estimators of Appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product as combinations
from typing import Any

import torch
from scipy.optimize import minimize
from torch import Tensor

from paperkit.bounds.smoothness import stability_edge
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._smoothness import random_hessian, random_numbers
from paperkit.experiments.studies.smoothness_steps import product
from paperkit.linalg import hutchinson, top_eigenpairs
from paperkit.optim import SAM
from paperkit.optim.sam import ball_maximizer
from paperkit.optim.vector import Vector

RHO = 0.3
"""Radius of the ball in which the worst loss is sought."""
TOLD_APART = 1000
"""Random points of the ball that the claimed maximiser is compared with."""

LEFT = 1e6
"""Distance from which on a step counts as having left for infinity."""

NORMS = {"1": 1.0, "3/2": 1.5, "2": 2.0, "3": 3.0, "inf": math.inf}
"""Norms of the ball by the name that a configuration has."""


def dual_norm(vector: Tensor, p: float) -> float:
    """Norm of a linear function on the ball of the p-norm, ‖g‖_q."""
    q = math.inf if p == 1.0 else 1.0 if p == math.inf else p / (p - 1.0)
    return float(torch.linalg.vector_norm(vector, q))


def point_in_ball(seed: int, dimension: int, p: float, count: int) -> Tensor:
    """Draw points of the unit ball of the p-norm, on its surface."""
    points = random_numbers(count, dimension, seed=seed)
    return points / torch.linalg.vector_norm(points, p, dim=1, keepdim=True)


def _quadratic(dimension: int, seed: int) -> tuple[Tensor, Tensor]:
    """Hessian and gradient, at a random point, of half a quadratic form."""
    matrix = random_hessian(dimension, seed)
    return matrix, matrix @ random_numbers(dimension, seed=seed + 700)


# ---------------------------------------------------------------------------------------------
# Equations 1 and 2
# ---------------------------------------------------------------------------------------------


def worst_rise(matrix: Tensor, gradient: Tensor, rho: float, p: float) -> float:
    r"""Rise of a convex quadratic loss to its largest value in a ball, exactly.

    In the ball of the 1-norm and of the largest entry a corner is the worst point. In the
    Euclidean one it solves :math:`(\mu - A)\varepsilon = g` with the μ, above the largest
    eigenvalue, at which the solution has length ρ.
    """
    if p == 2.0:
        values, vectors = torch.linalg.eigh(matrix)
        parts = vectors.T @ gradient
        low, high = float(values[-1]), float(values[-1] + gradient.norm() / rho + 1.0)
        for _ in range(200):
            mu = 0.5 * (low + high)
            length = float((parts / (mu - values)).norm())
            low, high = (mu, high) if length > rho else (low, mu)
        epsilons = [vectors @ (parts / (high - values))]
    elif p == 1.0:
        identity = torch.eye(len(gradient), dtype=matrix.dtype, device=matrix.device)
        epsilons = [sign * rho * row for row in identity for sign in (1.0, -1.0)]
    else:
        corners = combinations((1.0, -1.0), repeat=len(gradient))
        epsilons = [rho * torch.tensor(corner, dtype=matrix.dtype) for corner in corners]
    return max(float(gradient @ e + 0.5 * e @ matrix @ e) for e in epsilons)


def _worst_loss(norm: str, dimension: int, seed: int) -> dict[str, float]:
    """Difference between the exact worst rise and an ascent from many starts, relative.

    From each of many starts the ascent goes, again and again, to the point of the ball that lies
    farthest along the gradient, which never lowers a convex loss. The slack is that of the starts.
    """
    p = NORMS[norm]
    matrix, gradient = _quadratic(dimension, seed)
    exact = worst_rise(matrix, gradient, RHO, p)
    points = RHO * point_in_ball(seed, dimension, p, TOLD_APART)
    rises = points @ gradient + 0.5 * ((points @ matrix) * points).sum(dim=1)
    for _ in range(500):
        points = RHO * _farthest(gradient + points @ matrix, p)
    climbed = points @ gradient + 0.5 * ((points @ matrix) * points).sum(dim=1)
    return {
        "difference": abs(float(climbed.max()) / exact - 1.0),
        "slack": 1.0 - float(rises.max()) / exact,
    }


def _farthest(directions: Tensor, p: float) -> Tensor:
    """Points of the unit ball, (k, d), that lie farthest in each of k directions."""
    if p == 2.0:
        return directions / directions.norm(dim=1, keepdim=True)
    if p == math.inf:
        return directions.sign()
    corners = torch.nn.functional.one_hot(directions.abs().argmax(dim=1), directions.shape[1])
    return corners * directions.sign()


def _direction(norm: str, dimension: int, seed: int) -> dict[str, float]:
    r"""How far the printed direction is from the maximiser of :math:`g^\top\varepsilon`.

    The printed one, g over its length, is stretched to the ball's surface, so that only its
    direction counts. The repaired one is compared with the dual norm, with random points, and with
    a numerical maximiser.
    """
    p = NORMS[norm]
    _, gradient = _quadratic(dimension, seed)
    largest = dual_norm(gradient, p)
    printed = gradient / torch.linalg.vector_norm(gradient, p)
    epsilon = torch.cat(list(ball_maximizer(Vector([gradient]), p).tensors))
    searched = _searched_maximum(gradient, p)
    random = point_in_ball(seed, dimension, p, TOLD_APART) @ gradient
    return {
        "shortfall": 1.0 - float(gradient @ printed) / largest,
        "difference": max(
            abs(float(gradient @ epsilon) / largest - 1.0),
            abs(float(torch.linalg.vector_norm(epsilon, p)) - 1.0),
        ),
        "searched_difference": abs(searched / largest - 1.0),
        "slack": 1.0 - float(random.max()) / largest,
    }


def _searched_maximum(gradient: Tensor, p: float) -> float:
    """Maximise a linear function over the ball's corners, or its surface by a numerical search."""
    if p in (1.0, math.inf):
        return worst_rise(torch.zeros_like(torch.outer(gradient, gradient)), gradient, 1.0, p)
    g = gradient.numpy()

    def negative(x: Any) -> float:
        return -float(g @ x) / float((abs(x) ** p).sum() ** (1.0 / p))

    found = minimize(negative, g, method="BFGS", options={"gtol": 1e-10})
    return -float(found.fun)


def _sam_step(dimension: int, rho: float, seed: int) -> dict[str, float]:
    """Difference between the library's step and equation 2 on a quadratic, written out."""
    matrix, _ = _quadratic(dimension, seed)
    start, eta = random_numbers(dimension, seed=seed), 0.05
    weight = torch.nn.Parameter(start.clone())
    method = SAM([weight], torch.optim.SGD, rho=rho, lr=eta)

    def closure() -> Tensor:
        method.zero_grad()
        loss = 0.5 * weight @ matrix @ weight
        loss.backward()
        return loss

    method.step(closure)
    g = matrix @ start
    expected = start - eta * matrix @ (start + rho * g / g.norm())
    difference = float((weight.detach() - expected).norm() / expected.norm())
    with torch.no_grad():
        weight.zero_()
    method.step(closure)  # at the minimum the direction is undefined, and nothing may move
    return {"difference": max(difference, float(weight.detach().norm()))}


def _order(dimension: int, seed: int) -> dict[str, float]:
    r"""How the error of the gradient at the moved point falls with the radius.

    The gradient of the worst loss is that at the worst point (Danskin's theorem), here on a
    quadratic. The metric is the distance of the error's order in ρ from 2.
    """
    matrix, gradient = _quadratic(dimension, seed)
    errors = []
    for rho in (1e-3, 1e-4):
        values, vectors = torch.linalg.eigh(matrix)
        parts = vectors.T @ gradient
        low, high = float(values[-1]), float(values[-1] + gradient.norm() / rho + 1.0)
        for _ in range(200):
            mu = 0.5 * (low + high)
            low, high = (mu, high) if float((parts / (mu - values)).norm()) > rho else (low, mu)
        worst = vectors @ (parts / (high - values))
        errors.append(float((matrix @ (worst - rho * gradient / gradient.norm())).norm()))
    return {"distance_from_second_order": abs(math.log10(errors[0] / errors[1]) - 2.0)}


# ---------------------------------------------------------------------------------------------
# The edge of stability
# ---------------------------------------------------------------------------------------------


def _edge(eta: float, rho: float, seed: int) -> dict[str, float]:
    """Difference between the library's edge and the curvature at which the step's factor is −1.

    The curvature is found by bisection of the factor of one step, 1 − η(λ + ρλ²). The slack is
    how far the edge lies below that of gradient descent, 2/η.
    """
    low, high = 0.0, 2.0 / eta
    for _ in range(200):
        middle = 0.5 * (low + high)
        factor = abs(1.0 - eta * (middle + rho * middle * middle))
        low, high = (middle, high) if factor < 1.0 else (low, middle)
    edge = stability_edge(largest=1.0, step=eta, rho=rho).right
    descent = stability_edge(largest=1.0, step=eta).right
    return {"difference": abs(edge / low - 1.0), "slack": (descent - low) / descent}


def _normalized_edge(eta: float, rho: float, seed: int) -> dict[str, float]:
    r"""Largest distance, in radii, of normalised SAM on a quadratic between the two edges.

    The curvature lies halfway between the edge of the un-normalised step and 2/η. The un-normalised
    step leaves for infinity there. The normalised one ends on a cycle of the known size
    :math:`\eta\lambda\rho/(2 - \eta\lambda)`: the metric compares.
    """
    edge = stability_edge(largest=1.0, step=eta, rho=rho).right
    curvature = 0.5 * (edge + 2.0 / eta)
    w = float(random_numbers(1, seed=seed))
    plain = w
    for _ in range(20000):
        w -= eta * curvature * (w + math.copysign(rho, w))
    for _ in range(20000):
        plain -= eta * curvature * (plain + rho * curvature * plain)
        if abs(plain) > LEFT:
            break
    cycle = eta * curvature * rho / (2.0 - eta * curvature)
    return {
        "difference": abs(abs(w) / cycle - 1.0),
        "stays_where_the_plain_step_leaves": int(abs(w) < 2.0 * cycle and abs(plain) > LEFT),
        "curvature_above_edge": curvature / edge - 1.0,
    }


# ---------------------------------------------------------------------------------------------
# Appendix A
# ---------------------------------------------------------------------------------------------


def indefinite_matrix(dimension: int, seed: int, lowest: float) -> Tensor:
    """Draw a symmetric matrix with largest eigenvalue 1 and smallest ``lowest``."""
    basis, _ = torch.linalg.qr(random_numbers(dimension, dimension, seed=seed))
    values = torch.linspace(lowest, 1.0, dimension, dtype=torch.float64, device="cpu")
    matrix = (basis * values) @ basis.T
    return 0.5 * (matrix + matrix.T)


def _sign_vectors(dimension: int, seed: int) -> dict[str, float]:
    """Difference between the trace and the mean over all sign vectors, and of single draws.

    The library's estimate from random draws must lie within six of its own standard errors.
    """
    matrix = random_numbers(dimension, dimension, seed=seed)
    matrix = matrix + matrix.T
    signs = torch.tensor(list(combinations((1.0, -1.0), repeat=dimension)), dtype=torch.float64)
    forms = ((signs @ matrix) * signs).sum(dim=1)
    size = float(matrix.norm())
    estimate = hutchinson(matrix, 200, seed=seed)
    off = abs(estimate.value - float(matrix.trace())) / estimate.standard_error
    return {
        "difference": abs(float(forms.mean() - matrix.trace())) / size,
        "spread": float(forms.std()) / size,
        "slack": 6.0 - off,
    }


def _power_iteration(dimension: int, lowest: float, seed: int) -> dict[str, float]:
    """Errors, relative to the largest eigenvalue, of power iteration and of the library's search.

    The eigenvalue that power iteration gives is the Rayleigh quotient after 2,000 products.
    """
    matrix = indefinite_matrix(dimension, seed, lowest)
    vector = random_numbers(dimension, seed=seed + 1)
    for _ in range(2000):
        vector = matrix @ vector
        vector = vector / vector.norm()
    largest = float(torch.linalg.eigvalsh(matrix)[-1])
    found = top_eigenpairs(matrix, k=1, which="algebraic", seed=seed)
    magnitude = float(torch.linalg.eigvalsh(matrix).abs().max())
    quotient = float(vector @ matrix @ vector)
    return {
        "error": abs(quotient - largest) / largest,
        "magnitude_error": abs(abs(quotient) - magnitude) / magnitude,
        "repaired_error": abs(float(found.eigenvalues[0]) - largest) / largest,
    }


FACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "worst loss": _worst_loss,
    "direction": _direction,
    "step": _sam_step,
    "order of the step": _order,
    "edge": _edge,
    "edge of the normalised step": _normalized_edge,
    "sign vectors": _sign_vectors,
    "power iteration": _power_iteration,
}
"""Each statement's computation: from the rest of a configuration to its metrics."""


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by norm, dimension and setting, with its seeds."""
    smoke = profile == "smoke"
    seeds = {"smoke": 1, "laptop": 4, "paper": 10}[profile]
    sizes = (3,) if smoke else (2, 5, 10)
    etas, rhos = (0.01, 0.1, 1.0), (0.05, 0.2, 1.0)
    return [
        *product("worst loss", seeds, norm=("1", "2", "inf"), dimension=sizes),
        *product("direction", seeds, norm=tuple(NORMS), dimension=sizes),
        *product("step", seeds, dimension=sizes, rho=(0.01, 0.5)),
        *product("order of the step", seeds, dimension=sizes),
        *product("edge", 1, eta=etas, rho=rhos),
        *product("edge of the normalised step", seeds, eta=etas, rho=rhos),
        *product("sign vectors", seeds, dimension=sizes),
        *product("power iteration", seeds, dimension=sizes, lowest=(-3.0, -1.5, -0.5, 0.1)),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure by how much one statement holds, or fails, in one setting."""
    settings = {name: value for name, value in configuration.items() if name != "fact"}
    return FACTS[configuration["fact"]](**settings)


STUDY = Study(
    name="smoothness_ascent",
    question="What do the SA-SAM paper's ascent, its edge of stability and its estimators compute?",
    grid=grid,
    run=run,
)
