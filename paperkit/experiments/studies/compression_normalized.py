r"""Sharpness that is normalized by weights and scales: the compression paper's Appendix E.1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from paperkit.bounds.compression import (
    compression_terms,
    matrix_normalized_bound,
    normalized_sharpness_bounds,
    normalized_sharpness_objective,
)
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._stacks import (
    Stack,
    dense_stack,
    frobenius,
    generator_of,
    grid_of,
    module_of,
    normal,
    random_stack,
    relative_error,
    relative_slack,
    worst,
)
from paperkit.experiments.studies.compression_bounds import rescaled, sides_of
from paperkit.experiments.studies.compression_identities import cotangents

SEEDS = {"smoke": 1, "laptop": 5, "paper": 10}
DRAWS = {"smoke": 2, "laptop": 8, "paper": 8}
SEARCH = {"gtol": 1e-12, "ftol": 1e-16, "maxiter": 1000}
"""Options of the search for the best scales."""

Fact = Callable[[int, torch.Generator], dict[str, float]]


def random_first_layer(outputs: int, generator: torch.Generator) -> Stack:
    """Draw a tanh network with one hidden layer and five inputs."""
    inputs = normal(5, outputs + 2, generator=generator)
    return dense_stack([outputs + 2, 4, outputs], "tanh", inputs, generator, bias=False)


def matrix_normalized(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of equation 35, and the change of both sides under a rescaling of layers."""
    stack = random_stack("relu", outputs, generator, bias=False)
    left, right = sides_of_equation_35(stack)
    changed = sides_of_equation_35(rescaled(stack, 3.0))
    data = stack.inputs, torch.zeros(len(stack.inputs))
    library = matrix_normalized_bound(compression_terms(module_of(stack, "relu"), data))
    return {
        "slack": relative_slack(left, right),
        "invariance_error": max(
            relative_error(left, changed[0]), relative_error(right, changed[1])
        ),
        "library_error": max(
            relative_error(library.left, left), relative_error(library.right, right)
        ),
    }


def sides_of_equation_35(stack: Stack) -> tuple[float, float]:
    """Return Σ x̄_l MLS_l and Σ ‖W_l‖ (mean ‖∇_{W_l} f‖²)^½, from equation 34's x̄."""
    sides = sides_of(stack)
    lengths = stack.input_norms().pow(-2).mean(dim=1).rsqrt()
    left = float((lengths * sides.sensitivity.mean(dim=1)).sum())
    right = float((stack.spectral_norms() * sides.gradient.square().mean(dim=1).sqrt()).sum())
    return left, right


def scales(size: int, generator: torch.Generator) -> Tensor:
    """Draw positive scales between ¼ and 4."""
    return 4.0 ** (2.0 * torch.rand(size, generator=generator, dtype=torch.float64) - 1.0)


def normalized_terms(
    stack: Stack, sigma: Tensor, other: Tensor, lam: float
) -> tuple[float, float, float, float]:
    """Return the terms of equation 37 for n samples, from the objective down.

    The curvature is the samples' mean; the last term is the mean of the single samples' terms,
    which the inequality of Jensen puts below.
    """
    signals, x, weight = cotangents(stack), stack.inputs, stack.parameters["w0"]
    n = len(x)
    curvature = torch.einsum("nch,nk->hk", signals.square(), x.square()) / n
    square = torch.outer(sigma, other).square()
    scaled = weight / torch.outer(sigma, other)
    objective = float((curvature * square + weight.square() / (4 * lam**2 * square)).sum())
    root = math.sqrt(float((curvature * square).sum())) * float(scaled.norm()) / lam
    products = frobenius(signals * sigma) * (other * x).norm(dim=1)
    split = math.sqrt(float(products.square().mean())) * float(scaled.norm()) / lam
    jacobian = signals @ weight
    last = frobenius(jacobian / other) * (other * x).norm(dim=1) / lam
    return objective, root, split, float(last.mean())


def normalized_chain(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of equation 37's steps, and the error of its second, which is an equality.

    A single sample, as printed; ``samples_slack`` is that of five samples.
    """
    several = random_first_layer(outputs, generator)
    one = Stack(several.stages, several.weights, several.parameters, several.inputs[:1])
    hidden, size = several.parameters["w0"].shape
    sigma, other = scales(hidden, generator), scales(size, generator)
    lam = float(scales(1, generator))
    objective, root, split, last = normalized_terms(one, sigma, other, lam)
    signals, weight = cotangents(one)[0], one.parameters["w0"]
    links = normalized_sharpness_bounds(signals, weight, one.inputs[0], sigma, other, lam)
    curvature = torch.outer(signals.square().sum(dim=0), one.inputs[0].square())
    library = normalized_sharpness_objective(curvature, weight, sigma, other, lam)
    many = normalized_terms(several, sigma, other, lam)
    return {
        "slack": min(relative_slack(root, objective), relative_slack(last, split)),
        "equality_error": relative_error(root, split),
        "samples_slack": min(relative_slack(many[1], many[0]), relative_slack(many[3], many[2])),
        "library_error": max(
            relative_error(library, objective),
            relative_error(links[-1].left, split),
            relative_error(links[-1].right, objective),
        ),
    }


def invariance(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Measure how equation 37's last term changes with the input's units, at fixed σ′, and at best.

    Its least value over σ′ is Σ_p ‖∂f/∂x_p‖ |x_p|/λ, which does not change. The metric
    ``misplaced`` is how far the term lies above its least value at the minimizer of equation 36.
    """
    stack = random_first_layer(outputs, generator)
    jacobian, x = stack.input_jacobians()[0][0], stack.inputs[0]
    units = scales(len(x), generator)
    fixed = torch.ones(len(x), dtype=torch.float64)
    before, after = last_term(jacobian, x, fixed), last_term(jacobian / units, units * x, fixed)
    least = float((jacobian.norm(dim=0) * x.abs()).sum())
    found = least_by_search(jacobian, x)
    moved = least_by_search(jacobian / units, units * x)
    sigma_input = minimizer_of_objective(stack)
    return {
        "change": abs(after / before - 1.0),
        "error": max(relative_error(found, least), relative_error(moved, least)),
        "misplaced": last_term(jacobian, x, sigma_input) / least - 1.0,
    }


def last_term(jacobian: Tensor, x: Tensor, sigma_input: Tensor) -> float:
    """Return ‖X diag(σ′)⁻¹‖_F ‖diag(σ′)x‖, the last term of equation 37 with λ = 1."""
    return float((jacobian / sigma_input).norm() * (sigma_input * x).norm())


def least_by_search(jacobian: Tensor, x: Tensor) -> float:
    """Minimize the last term over positive scales, in their logarithms, without its formula."""

    def value(logarithms: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(logarithms, requires_grad=True)
        sigma = free.exp()
        term = (jacobian / sigma).norm().log() + (sigma * x).norm().log()
        (slope,) = torch.autograd.grad(term, free)
        return float(term.detach()), slope.numpy()

    return math.exp(
        minimize(value, np.zeros(len(x)), jac=True, method="L-BFGS-B", options=SEARCH).fun
    )


def minimizer_of_objective(stack: Stack) -> Tensor:
    """Return the σ′ that minimizes equation 36 at one sample with λ = 1, by search."""
    signals, x, weight = cotangents(stack)[0], stack.inputs[0], stack.parameters["w0"]
    curvature = torch.outer(signals.square().sum(dim=0), x.square())
    hidden = len(weight)

    def value(logarithms: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(logarithms, requires_grad=True)
        square = (2.0 * (free[:hidden, None] + free[hidden:])).exp()
        objective = (curvature * square + weight.square() / (4 * square)).sum()
        (slope,) = torch.autograd.grad(objective, free)
        return float(objective.detach()), slope.numpy()

    start = np.zeros(sum(weight.shape))
    found = minimize(value, start, jac=True, method="L-BFGS-B", options=SEARCH)
    return torch.tensor(found.x[hidden:]).exp()


FACTS: dict[str, Fact] = {
    "matrix-normalized": matrix_normalized,
    "normalized chain": normalized_chain,
    "invariance": invariance,
}


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by number of outputs and seed."""
    return grid_of(tuple(FACTS), profile, SEEDS, DRAWS, outputs=(2, 1, 3))


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one fact on several networks; the metrics are the worst of them."""
    fact = FACTS[configuration["fact"]]
    generator = generator_of(configuration["seed"])
    draws = range(configuration["draws"])
    return worst([fact(configuration["outputs"], generator) for _ in draws])


STUDY = Study(
    name="compression_normalized",
    question="Does normalized sharpness bound a sensitivity that does not see the input's units?",
    grid=grid,
    run=run,
)
