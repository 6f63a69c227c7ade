r"""Section 6.1 and Algorithm 2 of the Rényi paper: the gradient's entropy, and what RSAM descends.

:math:`R(g) = \sum_j |g_j|^{2\alpha} / (\sum_j g_j^2)^\alpha`, and :math:`s = \mathrm{sign}(1 -
\alpha)`. Derivatives of the regularizer :math:`-s R` in the parameters come from automatic
differentiation of the gradient; the optimizer is compared with Algorithm 2 written out.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from paperkit.bounds.renyi import gradient_power_ratio, gradient_power_ratio_derivative
from paperkit.curvature import dense_hessian
from paperkit.estimators import renyi_entropy
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._renyi_facts import (
    Configuration,
    Fact,
    Metrics,
    Vector,
    facts_grid,
    generator_of,
    relative,
)
from paperkit.experiments.studies.renyi_definitions import descend, network_and_batch
from paperkit.optim import RSAM, SAM

ORDERS = (0.5, 0.75, 1.1, 1.2, 1.5, 2.0)


def sign_of(alpha: float) -> float:
    """Return s = sign(1 − α)."""
    return math.copysign(1.0, 1.0 - alpha)


def ratio_by_hand(gradient: Vector, alpha: float) -> float:
    """Return R(g), with magnitudes."""
    return float((np.abs(gradient) ** (2 * alpha)).sum() / (gradient**2).sum() ** alpha)


def literal_fault(gradient: Vector, alpha: float) -> float:
    """Return how wrong R(g) is when g_j^(2α) is the power of a signed number, as printed.

    For an odd 2α that is the relative error of R, for an even one zero. At other orders the power
    of a negative number is not real; the fault is then the share of such entries.
    """
    exponent = round(2 * alpha, 9)
    if exponent != int(exponent):
        return float((gradient < 0).mean())
    powers = gradient ** int(exponent)
    return float(abs(powers.sum() / np.abs(powers).sum() - 1.0))


def _entropy_of_squares(configuration: Configuration) -> Metrics:
    """Compare log R(g) / (1 − α) with the entropy of the matrix Diag(g)², eigenvalues and all."""
    alpha, generator = configuration["alpha"], generator_of(configuration)
    shape = (20, configuration["dimension"])
    vectors: list[Vector] = list(generator.standard_normal(shape) ** 3)
    errors, entropies, surrogates = [], [], []
    for g in vectors:
        eigenvalues = torch.linalg.eigvalsh(torch.diag(torch.from_numpy(g**2)))
        entropies.append(renyi_entropy(eigenvalues, alpha))
        ratio = ratio_by_hand(g, alpha)
        errors.append(abs(math.log(ratio) / (1.0 - alpha) - entropies[-1]))
        errors.append(relative(ratio / gradient_power_ratio(torch.from_numpy(g), alpha), 1.0))
        surrogates.append(-sign_of(alpha) * ratio)
    # The sharpness is minus the entropy; the surrogate must order any two gradients alike.
    wrong = [
        (entropies[j] - entropies[i]) * (surrogates[i] - surrogates[j]) < 0
        for i, j in itertools.combinations(range(len(vectors)), 2)
        if abs(entropies[i] - entropies[j]) > 1e-9
    ]
    return {
        "entropy_error": max(errors),
        "literal_fault": max(literal_fault(g, alpha) for g in vectors),
        "disagreements": sum(wrong),
        "pairs": len(wrong),
    }


# ---------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------


class Problem:
    """A small network, its loss as a function of one vector of parameters, and the gradient."""

    def __init__(self, network: str, seed: int) -> None:
        self.model, self.inputs, self.targets, _ = network_and_batch(network, 3, seed)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.shapes = [p.shape for p in self.model.parameters()]
        self.theta = parameters_of(self.model)
        self.gradient = torch.func.grad(self.loss)(self.theta)

    def loss(self, theta: Tensor) -> Tensor:
        """Return the mean cross-entropy at flat parameters."""
        parts = theta.split([shape.numel() for shape in self.shapes])
        parameters = {
            name: part.view(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }
        outputs = functional_call(self.model, parameters, (self.inputs,))
        return nn.functional.cross_entropy(outputs, self.targets)

    def regularizer(self, theta: Tensor, alpha: float) -> Tensor:
        """Return −s R of the gradient at flat parameters."""
        squares = torch.func.grad(self.loss)(theta).square()
        return -sign_of(alpha) * ((squares / squares.sum()) ** alpha).sum()


@cache
def descended(network: str, seed: int, steps: int) -> Problem:
    """Return a problem after steps of gradient descent."""
    problem = Problem(network, seed)
    descend(problem.model, problem.inputs, problem.targets, steps, lr=0.1)
    problem.theta = parameters_of(problem.model)
    problem.gradient = torch.func.grad(problem.loss)(problem.theta)
    return problem


def perturbation_by_hand(gradient: Tensor, alpha: float) -> Tensor:
    """Return equation 11's ε for ρ = 1."""
    above = (gradient.abs() ** (2 * alpha)).sum()
    below = gradient.square().sum() ** (alpha + 1)
    return -sign_of(alpha) * above / below * gradient


def _first_order(configuration: Configuration) -> Metrics:
    """Compare the slope of L(θ + ε) in ρ with the regularizer, and look at what is left."""
    alpha = configuration["alpha"]
    problem = Problem(configuration["network"], configuration["seed"])
    epsilon = perturbation_by_hand(problem.gradient, alpha)
    start, slope = jvp(problem.loss, (problem.theta,), (epsilon,))[:2]
    regularizer = -sign_of(alpha) * gradient_power_ratio(problem.gradient, alpha)
    left = [
        abs(float(problem.loss(problem.theta + rho * epsilon) - start) - rho * regularizer)
        for rho in (1e-3, 5e-4)
    ]
    return {
        "slope_error": abs(float(slope) - regularizer),
        "fall_of_the_remainder": left[0] / left[1],
    }


def extra_step(problem: Problem, alpha: float, mode: str) -> Tensor:
    """Return what a step of RSAM, at learning rate 1, adds to one of gradient descent."""
    model = copy.deepcopy(problem.model)
    optimizer = RSAM(model, rho=1e-4, alpha=alpha, mode=mode, tau=1e-4, lr=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(problem.inputs), problem.targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return parameters_of(model) - problem.theta + problem.gradient


def parameters_of(model: nn.Module) -> Tensor:
    """Return all parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of the angle between two vectors."""
    return float(a @ b / (a.norm() * b.norm()))


def _descent(configuration: Configuration) -> Metrics:
    """Return the cosines of RSAM's extra step, in both modes, with the regularizer's gradient.

    A positive one raises the regularizer.
    """
    alpha = configuration["alpha"]
    problem = descended(configuration["network"], configuration["seed"], configuration["steps"])
    hessian = dense_hessian(problem.model, problem.inputs, problem.targets)
    slope = torch.func.grad(lambda theta: problem.regularizer(theta, alpha))(problem.theta)
    derivative = gradient_power_ratio_derivative(problem.gradient, alpha)
    by_product = -sign_of(alpha) * hessian @ derivative
    return {
        "ascent_cosine": cosine(slope, extra_step(problem, alpha, "paper")),
        "exact_descent_slack": -cosine(slope, extra_step(problem, alpha, "exact")) - 0.9,
        "gradient_error": float((slope - by_product).norm() / slope.norm()),
        "gradient_along_itself": cosine(problem.gradient, derivative),
    }


def _same_as_sam(configuration: Configuration) -> Metrics:
    """Compare RSAM's displacement with SAM's of the radius ρ R / ‖g‖."""
    alpha, rho = configuration["alpha"], 0.65
    problem = Problem(configuration["network"], configuration["seed"])
    length = float(problem.gradient.norm())
    radius = rho * ratio_by_hand(problem.gradient.numpy(), alpha) / length

    def moved(make: Callable[[nn.Module], Any]) -> Tensor:
        model = copy.deepcopy(problem.model)
        optimizer = make(model)
        nn.functional.cross_entropy(model(problem.inputs), problem.targets).backward()
        optimizer.first_step()
        return parameters_of(model) - problem.theta

    by_rsam = moved(lambda model: RSAM(model, rho=rho, alpha=alpha, lr=0.1))
    by_sam = moved(lambda model: SAM(model, rho=radius, lr=0.1))
    return {"displacement_error": float((by_rsam - by_sam).norm() / by_sam.norm())}


# ---------------------------------------------------------------------------------------------
# Algorithm 2, and what it costs
# ---------------------------------------------------------------------------------------------


def algorithm_2(
    problem: Problem, alpha: float, rho: float, plain: int, steps: int, lr: float, decay: float
) -> Tensor:
    """Return the weights after Algorithm 2, written out, with the sign of equation 11."""
    w = problem.theta.clone()
    for step in range(plain + steps):
        gradient = torch.func.grad(problem.loss)(w)
        if step >= plain:
            epsilon = rho * perturbation_by_hand(gradient, alpha)
            gradient = torch.func.grad(problem.loss)(w + epsilon)
        w = w - lr * (gradient + decay * w)
    return w


def _algorithm(configuration: Configuration) -> Metrics:
    """Compare the optimizer with Algorithm 2, and the printed step 5 with equation 12."""
    alpha, plain = configuration["alpha"], configuration["plain"]
    problem = Problem("gelu", configuration["seed"])
    rho, lr, decay, steps = 0.05, 0.1, 1e-2, 5
    expected = algorithm_2(problem, alpha, rho, plain, steps, lr, decay)
    model = copy.deepcopy(problem.model)
    options = {"rho": rho, "alpha": alpha, "plain_steps": plain, "lr": lr, "weight_decay": decay}
    optimizer = RSAM(model, **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(problem.inputs), problem.targets)
        loss.backward()
        return loss

    for _ in range(plain + steps):
        optimizer.step(closure)
    found = parameters_of(model)
    regularizer = -sign_of(alpha) * gradient_power_ratio(problem.gradient, alpha)
    printed = -perturbation_by_hand(problem.gradient, alpha)
    return {
        "weights_error": float((found - expected).norm() / expected.norm()),
        "gap_of_printed_step": abs(float(problem.gradient @ printed) - regularizer),
    }


def _cost(configuration: Configuration) -> Metrics:
    """Count the gradients of one step."""
    problem = Problem("relu", configuration["seed"])
    model = copy.deepcopy(problem.model)
    optimizer = RSAM(model, rho=0.05, alpha=1.2, mode=configuration["mode"], lr=0.1)
    gradients = 0

    def closure() -> Tensor:
        nonlocal gradients
        gradients += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(problem.inputs), problem.targets)
        loss.backward()
        return loss

    steps = 3
    for _ in range(steps):
        optimizer.step(closure)
    return {"gradients_a_step": gradients / steps, "excess_over_two": gradients / steps - 2}


_NETWORKS = ("relu", "gelu")
FACTS = {
    "entropy of squares": Fact(_entropy_of_squares, {"dimension": (2, 10, 200), "alpha": ORDERS}),
    "first order": Fact(_first_order, {"network": _NETWORKS, "alpha": ORDERS}),
    # Without dead units, because R has no derivative below the order 1 where an entry is zero.
    "descent": Fact(
        _descent,
        {"network": ("leaky_relu", "gelu"), "alpha": ORDERS, "steps": (0, 30, 300)},
    ),
    "same as SAM": Fact(_same_as_sam, {"network": _NETWORKS, "alpha": (1.1, 1.2, 1.5, 2.0)}),
    "algorithm": Fact(_algorithm, {"alpha": (0.5, 1.1, 1.2, 2.0), "plain": (0, 3)}),
    "cost": Fact(_cost, {"mode": ("paper", "exact")}),
}


def grid(profile: str) -> list[Configuration]:
    """List the configurations: every fact by its options and seeds."""
    return facts_grid(FACTS, profile)


def run(configuration: Configuration, context: RunContext) -> Metrics:
    """Compute both sides of one fact."""
    return FACTS[configuration["fact"]].run(configuration)


STUDY = Study(
    name="renyi_regularizer",
    question="Is the Rényi regularizer what equations 10 to 12 say, and does RSAM descend it?",
    grid=grid,
    run=run,
)
