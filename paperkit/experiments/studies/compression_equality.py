r"""When the steps A ≤ B ≤ C ≤ D of the compression paper's equation 48 are equalities.

Networks of two linear layers without activation, f = VWx, show most of it: V is the Jacobian in
the first layer's output, at every sample. Where that Jacobian has to depend on the sample, the
activation between the layers is the reciprocal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.bounds.compression import compression_terms, sensitivity_chain
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._stacks import (
    Parameters,
    Stack,
    dense_stage,
    generator_of,
    grid_of,
    half_squared_error,
    normal,
    random_stack,
    relative_error,
    spectral,
    whole_number,
    worst,
)
from paperkit.experiments.studies.compression_bounds import (
    least_slack,
    sensitivity_steps,
    sides_of,
    terms_of,
)

SEEDS = {"smoke": 1, "laptop": 6, "paper": 10}
DRAWS = {"smoke": 2, "laptop": 10, "paper": 10}

Fact = Callable[[int, torch.Generator], dict[str, float]]


def linear_stack(first: Tensor, second: Tensor | None, inputs: Tensor) -> Stack:
    """Return f = VWx, or f = Wx without a second layer."""
    parameters = {"w0": first} if second is None else {"w0": first, "w1": second}
    stages = tuple(dense_stage(k, None) for k in range(len(parameters)))
    return Stack(stages, tuple(parameters), parameters, inputs)


def letters(stack: Stack) -> tuple[float, float, float, float]:
    """Return A, B, C and D of equation 48 by brute force."""
    a, b, _, c, d = sensitivity_steps(sides_of(stack), 1)
    return a, b, c, d


def chain(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of equation 48 on random tanh networks, and the library's error."""
    stack = random_stack("tanh", outputs, generator)
    found = letters(stack)
    library = sensitivity_chain(terms_of(stack, "tanh"))
    links = (library.to_layer_gradient, library.cauchy_schwarz, library.to_all_parameters)
    expected = [links[0].left, *(link.right for link in links)]
    return {
        "slack": least_slack(list(found)),
        "library_error": max(map(relative_error, expected, found)),
    }


def svd_matrix(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """Return a matrix from its singular vectors, which are columns, and values."""
    return (left * values) @ right.T


def orthonormal(size: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw orthonormal columns."""
    return torch.linalg.qr(normal(size, columns, generator=generator))[0]


def rank_one(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare A/B of a Jacobian of rank one, σ a bᵀ, with ‖Wᵀb‖/‖W‖₂, which is 1 if aligned.

    ``error`` joins the aligned case, where A = B, and an arbitrary b; ``aligned_only`` says how far
    below 1 the arbitrary one stays.
    """
    hidden, size = 4, 5
    weight = normal(hidden, size, generator=generator)
    top = torch.linalg.svd(weight).U[:, 0]
    inputs = normal(3, size, generator=generator)
    other = orthonormal(hidden, 1, generator)[:, 0]
    output = normal(outputs, generator=generator)
    errors, ratios = [], []
    for direction in (top, other):
        a, b, _, _ = letters(linear_stack(weight, torch.outer(output, direction), inputs))
        expected = float((weight.T @ direction).norm() / spectral(weight))
        errors.append(abs(a / b - expected))
        ratios.append(a / b)
    return {"error": max(*errors, abs(ratios[0] - 1.0)), "slack": 1.0 - ratios[1]}


def full_rank(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return how far A/B stays below ‖J‖₂/‖J‖_F, which is below 1 unless the rank is one."""
    jacobian = normal(outputs, 4, generator=generator)
    weight, inputs = normal(4, 5, generator=generator), normal(3, 5, generator=generator)
    a, b, _, _ = letters(linear_stack(weight, jacobian, inputs))
    ratio = float(spectral(jacobian) / jacobian.norm())
    return {"slack": ratio - a / b, "below_one": 1.0 - ratio}


def other_vectors(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Show ‖JW‖ = ‖J‖‖W‖ for matrices that share the top vector alone.

    J has rank 2 and W full rank; beyond the top they differ by a rotation. ``product_error`` is
    that of the equality; ``difference`` the sine of the angle between the second vectors, and 0
    unless the equality holds.
    """
    left, right = orthonormal(4, 4, generator), orthonormal(5, 4, generator)
    angle = float(torch.rand((), generator=generator, dtype=torch.float64)) * 0.5 + 0.5
    cosine, sine = math.cos(angle), math.sin(angle)
    turned = left.clone()
    turned[:, 1] = cosine * left[:, 1] + sine * left[:, 2]
    turned[:, 2] = cosine * left[:, 2] - sine * left[:, 1]
    values = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    weight = svd_matrix(left, values, right)
    jacobian = svd_matrix(orthonormal(outputs + 1, 2, generator), values[:2], turned[:, :2])
    a, _, _, _ = letters(linear_stack(weight, jacobian, normal(3, 5, generator=generator)))
    error = relative_error(a, float(spectral(jacobian) * spectral(weight)))
    return {"product_error": error, "difference": sine if error < 1e-10 else 0.0}


def constant_ratio(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Measure C/B − 1 where ‖∇_W f‖/‖x‖ is the same for all samples: a linear network.

    ``ratio_spread`` is the relative spread of that quotient, at round-off.
    """
    n = whole_number(3, 6, generator)
    lengths = 2.0 ** (2.0 * torch.rand(n, 1, generator=generator, dtype=torch.float64))
    lengths[0], lengths[1] = 1.0, 4.0
    directions = normal(n, 4, generator=generator)
    inputs = lengths * directions / directions.norm(dim=1, keepdim=True)
    weight, second = normal(3, 4, generator=generator), normal(outputs, 3, generator=generator)
    stack = linear_stack(weight, second, inputs)
    _, b, c, _ = letters(stack)
    ratio = stack.weight_norms()[0] / inputs.norm(dim=1)
    spread = float(ratio.max() / ratio.min()) - 1.0
    return {"excess": c / b - 1.0 if spread < 1e-10 else 0.0, "ratio_spread": spread}


class Reciprocal(nn.Module):
    """The function −1/z of each entry, whose derivative falls as the square of the input."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return −1/z."""
        return -1.0 / inputs


def reciprocal_stage(x: Tensor, parameters: Parameters) -> Tensor:
    """Return −1/(Wx), entry by entry."""
    return -1.0 / (parameters["w0"] @ x)


def constant_product(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Measure C/B − 1 where ‖∇_W f‖·‖x‖ is the same for all samples.

    Inputs lie on a ray, and the reciprocal's derivative makes the Jacobian fall as ‖x‖⁻².
    ``ratio_spread`` says how far the paper's quotient varies meanwhile.
    """
    n = whole_number(3, 6, generator)
    ray = 0.5 + torch.rand(4, generator=generator, dtype=torch.float64)
    steps = 0.5 + 3.0 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    weight = 0.5 + torch.rand(3, 4, generator=generator, dtype=torch.float64)
    second = normal(outputs, 3, generator=generator)
    stages = reciprocal_stage, dense_stage(1, None)
    parameters = {"w0": weight, "w1": second}
    stack = Stack(stages, ("w0", "w1"), parameters, steps * ray)
    _, b, c, _ = letters(stack)
    module = nn.Sequential(
        nn.Linear(4, 3, bias=False), Reciprocal(), nn.Linear(3, outputs, bias=False)
    ).double()
    module[0].weight.data, module[2].weight.data = weight.clone(), second.clone()
    link = sensitivity_chain(
        compression_terms(module, (stack.inputs, torch.zeros(n)))
    ).cauchy_schwarz
    gradient = stack.weight_norms()[0]
    ratio = gradient / stack.inputs.norm(dim=1)
    return {
        "error": max(abs(c / b - 1.0), relative_error(link.left, b), relative_error(link.right, c)),
        "ratio_spread": float(ratio.max() / ratio.min()) - 1.0,
    }


def linear_model(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare C and D of a linear model f = Wx, and of one with a second layer.

    D is computed from the trace of the written-out Hessian at interpolation.
    """
    inputs = normal(4, 5, generator=generator)
    weight = normal(outputs, 5, generator=generator)
    stack = linear_stack(weight, None, inputs)
    _, _, c, _ = letters(stack)
    trace = float(stack.loss_hessian(stack.outputs(), half_squared_error).trace())
    d = float(spectral(weight)) * math.sqrt(float(inputs.norm(dim=1).pow(-2).mean()) * trace)
    second = normal(outputs, outputs, generator=generator)
    _, _, below, above = letters(linear_stack(weight, second, inputs))
    return {"error": relative_error(c, d), "with_a_second_layer": above / below - 1.0}


FACTS: dict[str, Fact] = {
    "chain": chain,
    "rank one": rank_one,
    "other vectors": other_vectors,
    "constant ratio": constant_ratio,
    "constant product": constant_product,
    "linear model": linear_model,
}
SEVERAL_OUTPUTS = {"full rank": full_rank}


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by number of outputs and seed; a rank needs two."""
    return [
        *grid_of(tuple(FACTS), profile, SEEDS, DRAWS, outputs=(2, 1, 3)),
        *grid_of(tuple(SEVERAL_OUTPUTS), profile, SEEDS, DRAWS, outputs=(2, 3, 4)),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one fact on several networks; the metrics are the worst of them."""
    fact = {**FACTS, **SEVERAL_OUTPUTS}[configuration["fact"]]
    generator = generator_of(configuration["seed"])
    draws = range(configuration["draws"])
    return worst([fact(configuration["outputs"], generator) for _ in draws])


STUDY = Study(
    name="compression_equality",
    question="When are the steps to the sensitivity's bound by the sharpness equalities?",
    grid=grid,
    run=run,
)
