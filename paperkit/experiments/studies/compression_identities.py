r"""What the compression paper says of gradients in weights and in inputs: equations 2 to 6.

Every configuration draws small fully connected networks with inputs of very different lengths. All
Hessians and Jacobians are written out, sample by sample; beside them stands the library's value.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from paperkit.bounds.compression import (
    compression_terms,
    input_smoothness_bounds,
    interpolation_bounds,
    linear_stability_bounds,
)
from paperkit.curvature import dense_jacobian
from paperkit.estimators import gauss_newton_trace, hessian_trace
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._stacks import (
    ACTIVATIONS,
    Stack,
    frobenius,
    generator_of,
    grid_of,
    half_squared_error,
    module_of,
    normal,
    random_stack,
    relative_error,
    relative_slack,
    share,
    spectral,
    worst,
)

DISTANCES = (1.0, 1e-2, 1e-4)
POWERS = (1.0, 2.0, 3.0)
SEEDS = {"smoke": 1, "laptop": 4, "paper": 10}
DRAWS = {"smoke": 2, "laptop": 8, "paper": 8}

Draw = Callable[[Stack, str, torch.Generator], dict[str, float]]


def trace_definition(stack: Stack, activation: str, generator: torch.Generator) -> dict[str, float]:
    """Compare the trace, the eigenvalues' sum and the library's value of equation 2.

    The metric ``mean_reduction_error`` is that of the factor 2/C to the trace under the usual
    mean over samples and outputs of ‖f − y‖².
    """
    outputs = stack.outputs()
    targets = outputs + normal(*outputs.shape, generator=generator)
    matrix = stack.loss_hessian(targets, half_squared_error)
    mean_loss = stack.loss_hessian(targets, lambda f, y: (f - y).square().mean())
    data = stack.inputs, targets
    library = float(hessian_trace(module_of(stack, activation), data, "half_squared_error"))
    scale = float(matrix.diagonal().abs().sum())
    trace = float(matrix.trace())
    eigenvalues = float(torch.linalg.eigvalsh(matrix).sum())
    reduced = 2.0 / outputs.shape[1] * trace
    return {
        "error": share(max(abs(eigenvalues - trace), abs(library - trace)), scale),
        "mean_reduction_error": share(float(mean_loss.trace()) - reduced, scale),
    }


def interpolation(stack: Stack, activation: str, generator: torch.Generator) -> dict[str, float]:
    """Compare both sides of equation 3 where the targets are the outputs."""
    targets = stack.outputs()
    trace = float(stack.loss_hessian(targets, half_squared_error).trace())
    data = stack.inputs, targets
    library = float(gauss_newton_trace(module_of(stack, activation), data))
    squares = stack.sharpness()
    return {
        "error": relative_error(trace, squares),
        "library_error": relative_error(library, squares),
    }


def near_interpolation(
    stack: Stack, activation: str, generator: torch.Generator
) -> dict[str, float]:
    """Return the least slack of Lemma B.1 over distances ε, and the error of the exact remainder.

    Slack is relative to mMε, which is far from the difference; so the difference is also compared
    with the residuals times the pure second derivatives, to which it is equal.
    """
    outputs = stack.outputs()
    second = pure_second_derivatives(stack)
    largest = float(second.norm(dim=1).max())
    squares = stack.sharpness()
    found = []
    for distance in DISTANCES:
        residuals = normal(*outputs.shape, generator=generator)
        residuals *= distance / residuals.norm(dim=1).max()
        matrix = stack.loss_hessian(outputs - residuals, half_squared_error)
        scale = float(matrix.diagonal().abs().sum())
        difference = float(matrix.trace()) - squares
        remainder = float((residuals * second.sum(dim=2)).sum(dim=1).mean())
        bound = second.shape[2] * largest * distance
        data = stack.inputs, outputs - residuals
        library = interpolation_bounds(module_of(stack, activation), data)
        found.append(
            {
                "slack": lemma_slack(abs(difference), bound, 1e-13 * scale),
                "error": share(difference - remainder, scale),
                "library_error": share(library.residual_term - remainder, scale),
                "difference": share(difference, scale),
            }
        )
    return worst(found)


def lemma_slack(difference: float, bound: float, round_off: float) -> float:
    """Return the slack relative to the bound; a difference of round-off is none."""
    if difference <= round_off:
        return 1.0
    return (bound - difference) / max(bound, round_off)


def pure_second_derivatives(stack: Stack) -> Tensor:
    """Return ∂²f/∂θ_j² of every output, shape (n, C, d)."""
    names = list(stack.parameters)
    shapes = [stack.parameters[name].shape for name in names]
    sizes = [shape.numel() for shape in shapes]

    def output(flat: Tensor, x: Tensor) -> Tensor:
        parts = zip(names, shapes, flat.split(sizes), strict=True)
        return stack.output(x, {name: part.reshape(shape) for name, shape, part in parts})

    second = vmap(jacrev(jacrev(output)), in_dims=(None, 0))
    return second(stack.flat_parameters(), stack.inputs).diagonal(dim1=2, dim2=3)


def cotangents(stack: Stack) -> Tensor:
    """Return J = ∂f/∂(W₁x), shape (n, C, h): the Jacobian where z is added to the first layer."""
    width = len(stack.parameters["w0"])
    zero = stack.inputs.new_zeros(width)

    def output(shift: Tensor, x: Tensor) -> Tensor:
        bias = stack.parameters.get("b0", zero) + shift
        return stack.output(x, {**stack.parameters, "b0": bias})

    return vmap(jacrev(output), in_dims=(None, 0))(zero, stack.inputs)


def weight_gradient(stack: Stack, activation: str, generator: torch.Generator) -> dict[str, float]:
    """Compare both sides of equation 4, of its version with a bias, and of ∂f/∂x = JW."""
    signals, lengths = cotangents(stack), frobenius(stack.inputs)
    products = frobenius(signals) * lengths
    gradients = stack.weight_norms()[0]
    jacobian = stack.input_jacobians()[0]
    module = module_of(stack, activation)
    library = dense_jacobian(module, stack.inputs, ["0.weight"]).flatten(1).norm(dim=1)
    both = torch.hypot(gradients, frobenius(signals))
    return {
        "error": max(
            relative_error(gradients, products),
            relative_error(jacobian, signals @ stack.parameters["w0"]),
            relative_error(library, products),
        ),
        "bias_error": relative_error(both, frobenius(signals) * (lengths**2 + 1).sqrt()),
        "slack": relative_slack(spectral(signals) * lengths, products),
    }


def violation(left: Tensor, right: Tensor) -> float:
    """Return by how much a ≤ b fails at worst, relative to b, where b is not zero."""
    kept = right > 0
    return float((left[kept] / right[kept] - 1.0).max()) if bool(kept.any()) else 0.0


def stability(stack: Stack, activation: str, generator: torch.Generator) -> dict[str, float]:
    """Measure equation 5: how far its printed halves fail, and the slack of the corrected ones."""
    jacobian, gradient = stack.input_jacobians()[0], stack.weight_norms()[0]
    ratio = spectral(stack.parameters["w0"]) / frobenius(stack.inputs)
    first = violation(spectral(jacobian), gradient)
    second = violation(gradient, ratio * gradient)
    terms = compression_terms(
        module_of(stack, activation), (stack.inputs, torch.zeros(len(stack.inputs)))
    )
    library = linear_stability_bounds(terms)
    return {
        "printed_violation": max(first, second),
        "printed_first": first,
        "printed_second": second,
        "slack": min(
            relative_slack(spectral(jacobian), frobenius(jacobian)),
            relative_slack(frobenius(jacobian), ratio * gradient),
        ),
        "library_slack": min(relative_slack(link.left, link.right) for link in library),
    }


def smoothness(stack: Stack, activation: str, generator: torch.Generator) -> dict[str, float]:
    """Measure equation 6 with k-th powers, as :func:`stability` measures equation 5."""
    jacobian, layer = stack.input_jacobians()[0], stack.weight_norms()[0]
    ratio = spectral(stack.parameters["w0"]) / frobenius(stack.inputs).min()
    terms = compression_terms(
        module_of(stack, activation), (stack.inputs, torch.zeros(len(stack.inputs)))
    )
    found = []
    for k in POWERS:
        sides = [
            spectral(jacobian).pow(k).mean(),
            frobenius(jacobian).pow(k).mean(),
            ratio**k * layer.pow(k).mean(),
            ratio**k * stack.gradient_squares().pow(k / 2).mean(),
        ]
        gradient = layer.pow(k).mean()
        first = violation(sides[0][None], gradient[None])
        second = violation(gradient[None], sides[2][None])
        links = [relative_slack(a, b) for a, b in pairwise(sides)]
        library = input_smoothness_bounds(terms, k)
        rights = [link.right for link in library]
        found.append(
            {
                "printed_violation": max(first, second),
                "printed_first": first,
                "printed_second": second,
                "slack": min(links),
                "library_error": max(map(relative_error, rights, sides[1:])),
            }
        )
    return worst(found)


FACTS: dict[str, Draw] = {
    "trace": trace_definition,
    "interpolation": interpolation,
    "near interpolation": near_interpolation,
    "weight gradient": weight_gradient,
    "stability": stability,
    "smoothness": smoothness,
}


def piecewise_linear(stack: Stack, activation: str, generator: torch.Generator) -> dict[str, float]:
    """Compare both sides of equation 3 of a ReLU network far from interpolation."""
    outputs = stack.outputs()
    targets = outputs + normal(*outputs.shape, generator=generator)
    matrix = stack.loss_hessian(targets, half_squared_error)
    scale = float(matrix.diagonal().abs().sum())
    return {"error": share(float(matrix.trace()) - stack.sharpness(), scale)}


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by activation, number of outputs and seed."""
    sizes = {"outputs": (2, 1, 4)}
    common = grid_of(tuple(FACTS), profile, SEEDS, DRAWS, activation=ACTIVATIONS, **sizes)
    relu = grid_of(("any targets",), profile, SEEDS, DRAWS, activation=("relu",), **sizes)
    return common + relu


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one fact on several networks; the metrics are the worst of them."""
    activation, generator = configuration["activation"], generator_of(configuration["seed"])
    fact = {**FACTS, "any targets": piecewise_linear}[configuration["fact"]]
    found = []
    for _ in range(configuration["draws"]):
        stack = random_stack(activation, configuration["outputs"], generator)
        found.append(fact(stack, activation, generator))
    return worst(found)


STUDY = Study(
    name="compression_identities",
    question="How do a network's gradients in its first weights bound those in its inputs?",
    grid=grid,
    run=run,
)
