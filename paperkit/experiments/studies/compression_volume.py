r"""Local volume, local dimension and sensitivity of the compression paper, as geometry.

The definitions (7, 15, 3.1 to 3.9) are compared with what they are said to measure: volumes of
images, by convex hulls and by integrals over directions; the covariance of the image of a small
Gaussian, by quadrature; the largest response to a small step, by differences.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.spatial import ConvexHull
from torch import Tensor
from torch.func import vmap

from paperkit.bounds.compression import volume_lemma
from paperkit.estimators import (
    local_dimension,
    local_dimensions,
    log_volume,
    log_volumes,
    maximum_local_sensitivity,
    network_log_volume,
    network_maximum_local_sensitivity,
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
    share,
    spectral,
    volumes,
    whole_number,
    worst,
)

SEEDS = {"smoke": 1, "laptop": 4, "paper": 10}
DRAWS = {"smoke": 2, "laptop": 8, "paper": 8}
VARIANCE = 1e-3
"""Largest variance α of the small Gaussian; two halvings of it are extrapolated to zero."""
DIRECTIONS = 256
"""Number of directions in the plane, and for either angle in space."""
STEP = 1e-5

Fact = Callable[[int, torch.Generator], dict[str, float]]


def random_map(outputs: int, inputs: int, generator: torch.Generator) -> Tensor:
    """Draw a matrix with singular values between ½ and 2."""
    left, _ = torch.linalg.qr(normal(outputs, outputs, generator=generator))
    right, _ = torch.linalg.qr(normal(inputs, outputs, generator=generator))
    exponents = 2.0 * torch.rand(outputs, generator=generator, dtype=torch.float64) - 1.0
    return (left * 2.0**exponents) @ right.T


def determinant(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare the library's volumes with sums of minors, at the input and over layers.

    Errors are relative to Lemma 3.2's bound, because a volume may be zero. The metric
    ``other_order`` is the share of the volume that is missing from the root of det(JᵀJ), the
    printed order for Jacobians of outputs × inputs as in equations 4 and 14.
    """
    stack = random_stack("tanh", outputs, generator)
    module, data = module_of(stack, "tanh"), (stack.inputs, torch.zeros(len(stack.inputs)))
    jacobians = stack.input_jacobians()
    scale = float(sum(frobenius(j).pow(outputs).mean() for j in jacobians)) * outputs ** (
        -outputs / 2
    )
    local = volumes(jacobians[0])
    network = float(sum(volumes(jacobian).mean() for jacobian in jacobians))
    full = random_map(outputs, outputs + 2, generator)
    missing = 1.0 - float(torch.linalg.det(full.T @ full).clamp(min=0.0).sqrt()) / float(
        volumes(full[None])
    )
    return {
        "error": max(
            share(float((log_volumes(jacobians[0]).exp() - local).abs().max()), scale),
            share(math.exp(float(log_volume(module, data))) - float(local.mean()), scale),
            share(math.exp(float(network_log_volume(module, data))) - network, scale),
        ),
        "other_order": missing,
    }


def cube(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare the image of the unit cube, a convex hull, with equation 7 and with the minors' sum.

    With as many outputs as inputs the cube is right; with fewer its image is a larger zonotope.
    """
    jacobian = random_map(outputs, outputs + whole_number(1, 3, generator), generator)
    square = random_map(outputs, outputs, generator)
    minors = [
        abs(float(torch.linalg.det(jacobian[:, list(columns)])))
        for columns in itertools.combinations(range(jacobian.shape[1]), outputs)
    ]
    image = image_of_cube(jacobian)
    return {
        "excess": image / float(volumes(jacobian[None])) - 1.0,
        "minors_error": relative_error(image, sum(minors)),
        "square_error": relative_error(image_of_cube(square), float(volumes(square[None]))),
    }


def image_of_cube(jacobian: Tensor) -> float:
    """Return the volume of the image of the unit cube, from its corners."""
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=jacobian.shape[1])))
    points = corners @ jacobian.numpy().T
    if points.shape[1] == 1:
        return float(np.ptp(points))
    return float(ConvexHull(points).volume)


def ball(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare the image of the unit ball, integrated over directions, with equation 7."""
    jacobian = random_map(outputs, outputs + whole_number(0, 3, generator), generator)
    return {"error": relative_error(image_of_ball(jacobian), float(volumes(jacobian[None])))}


def image_of_ball(jacobian: Tensor) -> float:
    """Return the image's volume over that of the unit ball of the outputs.

    In direction u the image reaches as far as 1/‖x‖, for the shortest x that is mapped to u.
    """
    directions, weights = directions_of(len(jacobian))
    shortest = np.linalg.lstsq(jacobian.numpy(), directions.T, rcond=None)[0]
    reach = 1.0 / np.linalg.norm(shortest, axis=0)
    return float(weights @ reach ** len(jacobian))


def directions_of(dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors in 1 to 3 dimensions and weights of their mean over the sphere."""
    if dimension == 1:
        return np.array([[1.0], [-1.0]]), np.full(2, 0.5)
    angles = 2.0 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if dimension == 2:
        return circle, np.full(DIRECTIONS, 1.0 / DIRECTIONS)
    heights, weights = np.polynomial.legendre.leggauss(DIRECTIONS // 2)
    radii = np.sqrt(1.0 - heights**2)
    flat = radii[:, None, None] * circle[None]
    tall = np.broadcast_to(heights[:, None, None], (len(heights), DIRECTIONS, 1))
    directions = np.concatenate([flat, tall], axis=2).reshape(-1, 3)
    return directions, np.repeat(weights / (2.0 * DIRECTIONS), DIRECTIONS)


def positive_eigenvalues(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Measure by how much a product of the positive eigenvalues alone exceeds Lemma 3.2's bound.

    The network's last hidden layer is narrower than its outputs, so its Jacobian has a lower rank
    than N; its output weights are small. The metric ``error`` is that of the product of all N.
    """
    rank = outputs - 1
    widths = [outputs + 2, outputs + 1, rank, outputs]
    inputs = normal(3, widths[0], generator=generator)
    stack = dense_stack(widths, "tanh", inputs, generator)
    stack.parameters["w2"] *= 0.1
    jacobian = stack.input_jacobians()[0]
    # The eigenvalues of JJᵀ are squares of these, which have their accuracy.
    values = torch.linalg.svdvals(jacobian)
    product = values[:, :rank].prod(dim=1)
    bound = (frobenius(jacobian) / math.sqrt(outputs)).pow(outputs)
    return {
        "excess": float((product / bound).max()) - 1.0,
        "error": float(((values.prod(dim=1) - volumes(jacobian)) / bound).abs().max()),
    }


def lemma(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of Lemma 3.2, and what is left of it where all singular values are equal."""
    jacobian = random_stack("gelu", outputs, generator).input_jacobians()[0]
    bound = (frobenius(jacobian) / math.sqrt(outputs)).pow(outputs)
    equal, _ = torch.linalg.qr(normal(outputs + 2, outputs, generator=generator))
    scaled = 3.0 * equal.T[None]
    attained = (frobenius(scaled) / math.sqrt(outputs)).pow(outputs)
    library = volume_lemma(jacobian)
    return {
        "slack": relative_slack(volumes(jacobian), bound),
        "library_slack": library.slack if math.isfinite(library.slack) else 0.0,
        "equality_error": relative_error(volumes(scaled), attained),
    }


def covariance(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare the limit of the image's covariance over its variance with JJᵀ (equations 13, 14).

    The Gaussian is integrated by 12 nodes a dimension; two halvings of α extrapolate to 0.
    """
    widths = [3, whole_number(2, 5, generator), outputs]
    inputs = normal(1, 3, generator=generator)
    stack = dense_stack(widths, "tanh", inputs, generator, bias=True)
    jacobian = stack.input_jacobians()[0][0]
    one, two, three = (image_covariance(stack, VARIANCE / 2.0**k) for k in range(3))
    limit = (8.0 * three - 6.0 * two + one) / 3.0
    return {
        "error": relative_error(limit, jacobian @ jacobian.T),
        "without_the_limit": relative_error(one, jacobian @ jacobian.T),
    }


def image_covariance(stack: Stack, variance: float) -> Tensor:
    """Return the covariance of f(x + √α ξ), divided by α, at the stack's only input."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    size = stack.inputs.shape[1]
    grid = torch.tensor(list(itertools.product(nodes, repeat=size)), dtype=torch.float64)
    mass = torch.tensor(list(itertools.product(weights, repeat=size))).prod(dim=1)
    mass = mass / mass.sum()
    points = stack.inputs[0] + math.sqrt(variance) * grid
    outputs = vmap(lambda x: stack.output(x, stack.parameters))(points)
    centred = outputs - mass @ outputs
    return (mass[:, None] * centred).T @ centred / variance


def participation(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare the local dimension with its definition and with what is said of its extremes."""
    stack = random_stack("tanh", outputs, generator, bias=True)
    jacobian = stack.input_jacobians()[0]
    eigenvalues = torch.linalg.eigvalsh(jacobian @ jacobian.mT)
    expected = eigenvalues.sum(dim=1).square() / eigenvalues.square().sum(dim=1)
    data = stack.inputs, torch.zeros(len(stack.inputs))
    found = local_dimensions(jacobian)
    equal, _ = torch.linalg.qr(normal(outputs + 2, outputs, generator=generator))
    single = torch.outer(equal[:outputs, 0], equal[:, 0])
    return {
        "error": max(
            relative_error(found, expected),
            relative_error(
                float(local_dimension(module_of(stack, "tanh"), data)), float(expected.mean())
            ),
            relative_error(local_dimensions(7.0 * jacobian), expected),
            relative_error(float(local_dimensions(equal.T[None])), float(outputs)),
            relative_error(float(local_dimensions(single[None])), 1.0),
        ),
        "slack": min(float(expected.min()) - 1.0, outputs - float(expected.max())),
        "equal_denominator": float((expected - 1.0).abs().max()),
    }


def sensitivity(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare Definition 3.7 with the largest response to a small step, taken by differences.

    No step of length t in any of 50 directions moves the output farther, up to O(t²).
    """
    stack = random_stack("tanh", outputs, generator)
    jacobian = stack.input_jacobians()[0]
    top = torch.linalg.svd(jacobian, full_matrices=False).Vh[:, 0]
    others = normal(50, *top.shape, generator=generator)
    others = others / others.norm(dim=2, keepdim=True)
    data = stack.inputs, torch.zeros(len(stack.inputs))
    library = float(maximum_local_sensitivity(module_of(stack, "tanh"), data))
    attained = response(stack, top)
    largest = torch.stack([response(stack, direction) for direction in others]).max(dim=0).values
    return {
        "error": max(
            relative_error(library, float(spectral(jacobian).mean())),
            relative_error(float(attained.mean()), library),
        ),
        "slack": relative_slack(largest, attained * (1.0 + 1e-6)),
    }


def response(stack: Stack, directions: Tensor) -> Tensor:
    """Return ‖f(x + tu) − f(x − tu)‖/2t, extrapolated from t and 2t, one direction a sample."""

    def change(step: float) -> Tensor:
        moved = [
            vmap(lambda x: stack.output(x, stack.parameters))(stack.inputs + sign * directions)
            for sign in (step, -step)
        ]
        return (moved[0] - moved[1]) / (2.0 * step)

    return ((4.0 * change(STEP) - change(2.0 * STEP)) / 3.0).norm(dim=1)


def network_sensitivity(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare Definition 3.9 with the sum over layers, and that sum with the text's average."""
    stack = random_stack("gelu", outputs, generator)
    data = stack.inputs, torch.zeros(len(stack.inputs))
    library = float(network_maximum_local_sensitivity(module_of(stack, "gelu"), data))
    layers = [float(spectral(jacobian).mean()) for jacobian in stack.input_jacobians()]
    total = sum(layers)
    return {
        "error": relative_error(library, total),
        "average_error": share(total - total / len(layers), total),
    }


FACTS: dict[str, Fact] = {
    "determinant": determinant,
    "cube": cube,
    "ball": ball,
    "lemma": lemma,
    "covariance": covariance,
    "participation ratio": participation,
    "sensitivity": sensitivity,
    "network sensitivity": network_sensitivity,
}
LOW_RANK = {"positive eigenvalues": positive_eigenvalues}


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by number of outputs and seed; a low rank needs two."""
    return [
        *grid_of(tuple(FACTS), profile, SEEDS, DRAWS, outputs=(2, 1, 3)),
        *grid_of(tuple(LOW_RANK), profile, SEEDS, DRAWS, outputs=(2, 3, 5)),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one fact on several maps; the metrics are the worst of them."""
    generator = generator_of(configuration["seed"])
    fact = {**FACTS, **LOW_RANK}[configuration["fact"]]
    draws = range(configuration["draws"])
    return worst([fact(configuration["outputs"], generator) for _ in draws])


STUDY = Study(
    name="compression_volume",
    question="Do local volume, dimension and sensitivity measure what they are said to measure?",
    grid=grid,
    run=run,
    # Differences of outputs and extrapolated covariances keep this much of their round-off.
    round_off=1e-7,
)
