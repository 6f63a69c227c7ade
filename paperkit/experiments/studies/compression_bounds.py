r"""The compression paper's bounds by the sharpness, equations 9 to 12, and what is said of them.

Both sides of every step are computed by brute force on small fully connected networks, and the
library's outer sides beside them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from paperkit.bounds.compression import (
    CompressionTerms,
    compression_terms,
    network_sensitivity_bound,
    network_volume_bounds,
    norm_monotonicity,
    sensitivity_bound,
    volume_bounds,
)
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._stacks import (
    ACTIVATIONS,
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
    spectral,
    volumes,
    whole_number,
    worst,
)

SEEDS = {"smoke": 1, "laptop": 4, "paper": 10}
DRAWS = {"smoke": 2, "laptop": 8, "paper": 8}
FACTORS = tuple(2.0 ** (k / 2) for k in range(-8, 9))
"""Factors of the first layer; the second is divided by them, which keeps the function."""

Fact = Callable[[str, int, torch.Generator], dict[str, float]]


@dataclass(frozen=True)
class Sides:
    """What both sides of the bounds are made of, for one network.

    Attributes
    ----------
    outputs : int
        Number N of outputs.
    sensitivity, frobenius, volume : Tensor
        Norms ‖X_l‖₂ and ‖X_l‖_F and local volume of the Jacobians in the layers' inputs, shape
        (layers, n).
    ratio : Tensor
        Quotients ‖W_l‖₂ / ‖x_l‖, shape (layers, n).
    gradient : Tensor
        Norms ‖∂f/∂W_l‖_F, shape (layers, n).
    sharpness : float
        Mean squared gradient in all parameters.
    """

    outputs: int
    sensitivity: Tensor
    frobenius: Tensor
    volume: Tensor
    ratio: Tensor
    gradient: Tensor
    sharpness: float

    @property
    def samples(self) -> int:
        """The number n of samples."""
        return self.ratio.shape[1]


def sides_of(stack: Stack) -> Sides:
    """Compute both sides' parts by brute force."""
    jacobians = stack.input_jacobians()
    return Sides(
        outputs=jacobians[0].shape[1],
        sensitivity=torch.stack([spectral(jacobian) for jacobian in jacobians]),
        frobenius=torch.stack([frobenius(jacobian) for jacobian in jacobians]),
        volume=torch.stack([volumes(jacobian) for jacobian in jacobians]),
        ratio=stack.spectral_norms()[:, None] / stack.input_norms(),
        gradient=stack.weight_norms(),
        sharpness=stack.sharpness(),
    )


def volume_steps(sides: Sides, layers: int | None, *, maximum: bool = False) -> list[float]:
    """Return the terms of equations 9 and 20 to 23 (one layer), or 10 and 24 to 27 (all).

    The last is the bound by the sharpness; with ``maximum`` the largest ratio stands before the
    sum instead of a power mean.
    """
    n, c = sides.samples, sides.outputs
    ratio, gradient = sides.ratio[:layers], sides.gradient[:layers]
    constant = c ** (-c / 2)
    whole = (n * sides.sharpness / c) ** (c / 2) / n
    mean = float(ratio.pow(2 * c).sum().sqrt())
    prefactor = float(ratio.max()) ** c if maximum else mean
    steps = [
        float(sides.volume[:layers].sum()) / n,
        constant * float(sides.frobenius[:layers].pow(c).sum()) / n,
        constant * float((ratio * gradient).pow(c).sum()) / n,
    ]
    if not maximum:
        # The inequality of Cauchy and Schwarz, before gradients in all parameters come in.
        steps.append(constant * mean * float(gradient.pow(2 * c).sum().sqrt()) / n)
    return [*steps, prefactor * whole]


def sensitivity_steps(sides: Sides, layers: int | None) -> list[float]:
    """Return the terms of equations 11 and 28 to 31 (one layer), or 12, 32 and 33 (all)."""
    n = sides.samples
    ratio, gradient = sides.ratio[:layers], sides.gradient[:layers]
    root = math.sqrt(float(ratio.square().sum()) / n)
    by_layer = ratio.square().mean(dim=1).sqrt() * gradient.square().mean(dim=1).sqrt()
    return [
        float(sides.sensitivity[:layers].sum()) / n,
        float((ratio * gradient).sum()) / n,
        float(by_layer.sum()),
        root * math.sqrt(float(gradient.square().sum()) / n),
        root * math.sqrt(sides.sharpness),
    ]


def least_slack(steps: list[float]) -> float:
    """Return the least relative slack of neighbours in a chain a ≤ b ≤ …."""
    return min(relative_slack(left, right) for left, right in pairwise(steps))


def terms_of(stack: Stack, activation: str) -> CompressionTerms:
    """Return the library's terms of a network."""
    targets = torch.zeros(len(stack.inputs))
    return compression_terms(module_of(stack, activation), (stack.inputs, targets))


def _volumes(activation: str, outputs: int, generator: torch.Generator, network: bool) -> Any:
    stack = random_stack(activation, outputs, generator)
    steps = volume_steps(sides_of(stack), None if network else 1)
    library = (network_volume_bounds if network else volume_bounds)(terms_of(stack, activation))
    found = [math.exp(library[0].left), math.exp(library[0].right), math.exp(library[1].right)]
    expected = [steps[0], steps[1], steps[-1]]
    # The volume may be zero; it is compared on the scale of its own bound.
    errors = [abs(a - b) / expected[1] for a, b in zip(found[:2], expected[:2], strict=True)]
    return {
        "slack": least_slack(steps),
        "library_error": max(*errors, relative_error(found[2], expected[2])),
        "looseness": math.log10(steps[-1] / steps[1]),
    }


def equation_9(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of every step to Proposition 3.4; its looseness in powers of ten."""
    return _volumes(activation, outputs, generator, network=False)


def equation_10(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of every step to Proposition 3.6; its looseness in powers of ten."""
    return _volumes(activation, outputs, generator, network=True)


def _sensitivities(activation: str, outputs: int, generator: torch.Generator, network: bool) -> Any:
    stack = random_stack(activation, outputs, generator)
    steps = sensitivity_steps(sides_of(stack), None if network else 1)
    terms = terms_of(stack, activation)
    library = network_sensitivity_bound(terms) if network else sensitivity_bound(terms)
    return {
        "slack": least_slack(steps),
        "library_error": max(
            relative_error(library.left, steps[0]), relative_error(library.right, steps[-1])
        ),
    }


def equation_11(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of every step to Proposition 3.8."""
    return _sensitivities(activation, outputs, generator, network=False)


def equation_12(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of every step to Proposition 3.10."""
    return _sensitivities(activation, outputs, generator, network=True)


def norms(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of Lemma C.1 in exact arithmetic, at whole orders and at infinity.

    (Σ|v|^q)^p ≤ (Σ|v|^p)^q holds if and only if the norms are in that order.
    """
    size = whole_number(1, 12, generator)
    values = [Fraction(whole_number(-60, 60, generator), 7) for _ in range(size)]
    values[0] = Fraction(5, 3)
    slacks, errors = [], []
    for p, q in itertools.combinations(range(1, 7), 2):
        one, other = (sum(abs(v) ** power for v in values) for power in (p, q))
        slacks.append(1 - other**p / Fraction(one) ** q)
        library = norm_monotonicity(
            torch.tensor([float(v) for v in values], dtype=torch.float64), p, q
        )
        errors.append(relative_error(library.left, float(other) ** (1 / q)))
        slacks.append(1 - max(map(abs, values)) ** p / Fraction(one))
    return {"slack": float(min(slacks)), "library_error": max(errors)}


def geometric_mean(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare equation 9's mean of ‖W‖^N/‖x‖^N with the power of the inputs' geometric mean."""
    sides = sides_of(random_stack("tanh", outputs, generator))
    ratio = sides.ratio[0]
    power_mean = float(ratio.pow(2 * outputs).mean().sqrt())
    geometric = float(ratio.log().mean().exp()) ** outputs
    return {
        "excess": power_mean / geometric - 1.0,
        "excess_of_the_minimum": float(ratio.max()) ** outputs / geometric - 1.0,
    }


def maximum(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of the bounds with the minimum of the input norms, for two outputs or more.

    ``slack`` is that of the bounds; ``sharper_slack`` says by how much they are below equations 9
    and 10 as printed.
    """
    stack = random_stack(activation, outputs, generator)
    sides = sides_of(stack)
    slacks, sharper = [], []
    for layers in (1, None):
        steps = volume_steps(sides, layers, maximum=True)
        slacks.append(least_slack(steps))
        sharper.append(relative_slack(steps[-1], volume_steps(sides, layers)[-1]))
    return {"slack": min(slacks), "sharper_slack": min(sharper)}


def one_output(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Measure by how much the minimum in place of the power mean fails for one output.

    The network is linear, on inputs of equal lengths.
    """
    n = whole_number(3, 6, generator)
    directions = normal(n, 3, generator=generator)
    inputs = directions / directions.norm(dim=1, keepdim=True)
    stack = dense_stack([3, 1], activation, inputs, generator, bias=False)
    steps = volume_steps(sides_of(stack), 1, maximum=True)
    return {"excess": steps[0] / steps[-1] - 1.0}


def rescaled(stack: Stack, factor: float) -> Stack:
    """Multiply the first layer by a factor and divide the second one by it."""
    parameters = dict(stack.parameters)
    parameters["w0"] = factor * parameters["w0"]
    parameters["w1"] = parameters["w1"] / factor
    return Stack(stack.stages, stack.weights, parameters, stack.inputs)


def flatter(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Find two sets of weights of one function, the flatter of which has the larger bound.

    The metric is the least of equations 9 to 12: each is contradicted by at least that, relative
    to the sharper one's bound, in its N-th root for volumes.
    """
    inputs = normal(4, 4, generator=generator)
    widths = [4, whole_number(3, 6, generator), outputs]
    stack = dense_stack(widths, "relu", inputs, generator, bias=False)
    expected = stack.outputs()
    found: list[tuple[float, list[float]]] = []
    change = 0.0
    for factor in FACTORS:
        scaled = rescaled(stack, factor)
        change = max(change, relative_error(scaled.outputs(), expected))
        found.append(_bounds(sides_of(scaled)))
    pairs = [
        (flat, sharp)
        for (one, flat), (two, sharp) in itertools.permutations(found, 2)
        if one < 0.99 * two
    ]
    rises = [max(flat[k] / sharp[k] - 1.0 for flat, sharp in pairs) for k in range(4)]
    return {"excess": min(rises), "function_change": change}


def _bounds(sides: Sides) -> tuple[float, list[float]]:
    """Return S and the right sides of equations 9 to 12, of volumes in their N-th root."""
    power = 1.0 / sides.outputs
    bounds = [
        volume_steps(sides, 1)[-1] ** power,
        volume_steps(sides, None)[-1] ** power,
        sensitivity_steps(sides, 1)[-1],
        sensitivity_steps(sides, None)[-1],
    ]
    return sides.sharpness, bounds


def same_first_layer(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare equations 9 and 11 at two networks with the same first weight and inputs.

    Their bounds are then in the ratio of the roots of their sharpness.
    """
    inputs = normal(4, outputs + 2, generator=generator)
    widths = [outputs + 2, 4, outputs]
    one, two = (dense_stack(widths, activation, inputs, generator) for _ in range(2))
    two.parameters["w0"] = one.parameters["w0"]
    (flat, below), (sharp, above) = (_bounds(sides_of(stack)) for stack in (one, two))
    expected = math.sqrt(flat / sharp)
    return {
        "error": max(relative_error(below[k] / above[k], expected) for k in (0, 2)),
        "sharpness_ratio": max(expected, 1.0 / expected),
    }


def gradient_shares(activation: str, outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare the two sides that equation 26 prints as equal, in a network with biases."""
    stack = random_stack(activation, outputs, generator, bias=True)
    layers, whole = stack.weight_norms().square().sum(dim=0), stack.gradient_squares()
    return {"error": relative_error(layers, whole), "slack": relative_slack(layers, whole)}


FACTS: dict[str, Fact] = {
    "equation 9": equation_9,
    "equation 10": equation_10,
    "equation 11": equation_11,
    "equation 12": equation_12,
    "maximum": maximum,
    "same first layer": same_first_layer,
    "gradient shares": gradient_shares,
}
FACTS_OF_ONE_NETWORK: dict[str, Fact] = {
    "norms": norms,
    "geometric mean": geometric_mean,
    "one output": one_output,
    "flatter": flatter,
}


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by activation, number of outputs and seed."""
    sizes = (2, 1, 4)
    return [
        *grid_of(tuple(FACTS), profile, SEEDS, DRAWS, activation=ACTIVATIONS[:2], outputs=sizes),
        *grid_of(
            tuple(FACTS_OF_ONE_NETWORK),
            profile,
            SEEDS,
            DRAWS,
            activation=("identity",),
            outputs=sizes,
        ),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one fact on several networks; the metrics are the worst of them."""
    fact = {**FACTS, **FACTS_OF_ONE_NETWORK}[configuration["fact"]]
    activation, outputs = configuration["activation"], configuration["outputs"]
    generator = generator_of(configuration["seed"])
    draws = range(configuration["draws"])
    return worst([fact(activation, outputs, generator) for _ in draws])


STUDY = Study(
    name="compression_bounds",
    question="Do the bounds of volume and sensitivity by the sharpness hold, and say what is said?",
    grid=grid,
    run=run,
)
