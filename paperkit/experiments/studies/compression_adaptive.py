r"""Adaptive sharpness and input-invariant sensitivity: Appendix E.2 and equation 46."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from paperkit.bounds.compression import (
    compression_terms,
    input_invariant_bounds,
    interpolation_bounds,
)
from paperkit.estimators import adaptive_sharpness, average_adaptive_sharpness
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._stacks import (
    Stack,
    dense_stack,
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
    whole_number,
    worst,
)
from paperkit.experiments.studies.compression_identities import (
    DISTANCES,
    lemma_slack,
    pure_second_derivatives,
)
from paperkit.experiments.studies.compression_normalized import random_first_layer

SEEDS = {"smoke": 1, "laptop": 5, "paper": 10}
DRAWS = {"smoke": 2, "laptop": 6, "paper": 6}
NODES = 10
"""Nodes of Gauss–Hermite quadrature in each parameter."""
PAPER_RHO = 0.1

Fact = Callable[[int, torch.Generator], dict[str, float]]


def targets_of(stack: Stack, distance: float, generator: torch.Generator) -> Tensor:
    """Return targets at the given largest distance from the outputs."""
    outputs = stack.outputs()
    residuals = normal(*outputs.shape, generator=generator)
    return outputs - residuals * (distance / residuals.norm(dim=1).max())


def scaled_squares(stack: Stack) -> float:
    """Return the mean over samples of Σ_j θ_j² ‖∂f/∂θ_j‖²."""
    gradients = stack.gradients()
    parts = [frobenius(g * stack.parameters[k].flatten()).square() for k, g in gradients.items()]
    return float(torch.stack(parts).sum(dim=0).mean())


def input_invariant(stack: Stack) -> float:
    """Return Definition E.3, the mean of ‖X diag(x)‖_F²."""
    return float(frobenius(stack.input_jacobians()[0] * stack.inputs[:, None]).square().mean())


def average_sharpness(stack: Stack, targets: Tensor, rho: float, *, factor: bool = True) -> float:
    """Return equation 38 by quadrature over the parameters, without its factor equation 46."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    flat = stack.flat_parameters()
    grid = torch.tensor(list(itertools.product(nodes, repeat=len(flat))), dtype=torch.float64)
    mass = torch.tensor(list(itertools.product(weights, repeat=len(flat)))).prod(dim=1)
    names, shapes = zip(*((k, v.shape) for k, v in stack.parameters.items()), strict=True)

    def loss(noise: Tensor) -> Tensor:
        pieces = (flat * (1.0 + rho * noise)).split([shape.numel() for shape in shapes])
        parameters = {
            k: piece.reshape(shape) for k, piece, shape in zip(names, pieces, shapes, strict=True)
        }
        outputs = vmap(lambda x: stack.output(x, parameters))(stack.inputs)
        return vmap(half_squared_error)(outputs, targets).mean()

    rise = vmap(loss)(grid) - loss(torch.zeros_like(flat))
    mean = float((mass * rise).sum() / mass.sum())
    return 2.0 / rho**2 * mean if factor else mean


def three_parameters(generator: torch.Generator) -> tuple[Stack, Tensor]:
    """Draw f = v tanh(wx + b) on three inputs, with targets at a distance of about 1."""
    inputs = normal(3, 1, generator=generator)
    stack = dense_stack([1, 1, 1], "tanh", inputs, generator, bias=True)
    del stack.parameters["b1"]
    stack.parameters["w0"] += torch.sign(stack.parameters["w0"])
    stack.parameters["w1"] += torch.sign(stack.parameters["w1"])
    return stack, targets_of(stack, 1.0, generator)


def small_noise(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare equation 38, extrapolated to ρ = 0 in powers of ρ², with Σ w² ∂²L."""
    stack, targets = three_parameters(generator)
    flat = stack.flat_parameters()
    limit = float(
        (flat.square() * stack.loss_hessian(targets, half_squared_error).diagonal()).sum()
    )
    one, two, three = (average_sharpness(stack, targets, PAPER_RHO / 2**k) for k in range(3))
    extrapolated = (64.0 * three - 20.0 * two + one) / 45.0
    module = module_of(stack, "tanh")
    data = stack.inputs, targets
    library = float(adaptive_sharpness(module, data, "half_squared_error"))
    scale = max(abs(limit), scaled_squares(stack))
    return {
        "error": max(share(extrapolated - limit, scale), share(library - limit, scale)),
        "difference": share(one - limit, scale),
    }


def printed_estimator(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare equation 46 at the paper's ρ with Σ w² ∂²L, which it is to estimate.

    The mean over draws is taken by quadrature, which removes their error. With the factor 2/ρ² a
    difference of order ρ² remains (``error``). The library's sampling is compared with the
    quadrature in units of its own standard error.
    """
    stack, targets = three_parameters(generator)
    diagonal = stack.loss_hessian(targets, half_squared_error).diagonal()
    limit = float((stack.flat_parameters().square() * diagonal).sum())
    scale = max(abs(limit), scaled_squares(stack))
    average = average_sharpness(stack, targets, PAPER_RHO)
    printed = average_sharpness(stack, targets, PAPER_RHO, factor=False)
    sampled = average_adaptive_sharpness(
        module_of(stack, "tanh"),
        (stack.inputs, targets),
        "half_squared_error",
        rho=PAPER_RHO,
        probes=200,
        seed=whole_number(0, 10**6, generator),
    )
    error = sampled.standard_error
    assert error is not None  # sampling has one
    return {
        "printed_error": share(printed - limit, scale),
        "error": share(average - limit, scale),
        "standard_errors": abs(float(sampled) - average) / error,
    }


def adaptive_lemma(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of Lemma E.2, and by how much equation 42 fails as printed.

    Equation 42 has S and unweighted squares on its left and M, a bound of the weighted second
    derivatives, on its right; small parameters separate them.
    """
    stack = random_first_layer(outputs, generator)
    for value in stack.parameters.values():
        value *= 0.1
    flat = stack.flat_parameters()
    second = pure_second_derivatives(stack)
    weighted = second * flat.square()
    bound = float(weighted.norm(dim=1).max()) * len(flat)
    found = []
    for distance in DISTANCES:
        targets = targets_of(stack, distance, generator)
        diagonal = stack.loss_hessian(targets, half_squared_error).diagonal()
        scale = float((flat.square() * diagonal.abs()).sum())
        difference = float((flat.square() * diagonal).sum()) - scaled_squares(stack)
        plain = abs(float(diagonal.sum()) - stack.sharpness())
        data = stack.inputs, targets
        library = interpolation_bounds(module_of(stack, "tanh"), data, adaptive=True)
        found.append(
            {
                "slack": lemma_slack(abs(difference), bound * distance, 1e-13 * scale),
                "printed_excess": plain / (bound * distance) - 1.0,
                "library_error": share(library.difference - difference, scale),
            }
        )
    return worst(found)


def proposition(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of Proposition E.4 with d the first layer's outputs; its sharpness too.

    ``tight_error`` is that of the equality for equal weights in h units with equal signals.
    """
    stack = random_stack("gelu", outputs, generator)
    hidden = len(stack.parameters["w0"])
    left = input_invariant(stack) / hidden
    layer = float(
        frobenius(stack.gradients()["w0"] * stack.parameters["w0"].flatten()).square().mean()
    )
    right = scaled_squares(stack)
    data = stack.inputs, torch.zeros(len(stack.inputs))
    library = input_invariant_bounds(compression_terms(module_of(stack, "gelu"), data))
    units = whole_number(2, 8, generator)
    ones = {
        "w0": torch.ones(units, 1, dtype=torch.float64),
        "w1": torch.ones(1, units, dtype=torch.float64),
    }
    linear = dense_stack([1, units, 1], "identity", normal(3, 1, generator=generator), generator)
    equal = Stack(linear.stages, linear.weights, ones, linear.inputs)
    first = float(frobenius(equal.gradients()["w0"]).square().mean())
    return {
        "slack": min(relative_slack(left, layer), relative_slack(layer, right)),
        "library_error": max(
            relative_error(library[0].left, left),
            relative_error(library[0].right, layer),
            relative_error(library[1].right, right),
        ),
        "tight_error": relative_error(input_invariant(equal) / units, first),
    }


def split_units(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Change adaptive sharpness and keep the function: each hidden unit becomes several copies.

    The copies share the unit's outgoing weight. Function, input Jacobian and input-invariant
    sensitivity stay; the first layer's adaptive sharpness falls by the number of copies.
    """
    stack = random_first_layer(outputs, generator)
    copies = whole_number(2, 5, generator)
    parameters = {
        "w0": stack.parameters["w0"].repeat_interleave(copies, dim=0),
        "w1": stack.parameters["w1"].repeat_interleave(copies, dim=1) / copies,
    }
    wide = Stack(stack.stages, stack.weights, parameters, stack.inputs)
    kept = max(
        relative_error(wide.outputs(), stack.outputs()),
        relative_error(input_invariant(wide), input_invariant(stack)),
    )
    change = scaled_squares(stack) / scaled_squares(wide) - 1.0
    return {"change": change if kept < 1e-10 else 0.0, "kept_error": kept}


def normalized_sensitivity(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Measure by how much Figure 3's sensitivity exceeds h times its adaptive sharpness.

    f = Wx with one large weight on an entry of x that is small. ``slack`` is that of the bound by
    ‖W‖₂² S.
    """
    inputs = normal(3, outputs + 2, generator=generator)
    inputs[:, 0] *= 1e-2
    stack = dense_stack([outputs + 2, outputs], "identity", inputs, generator, bias=False)
    stack.parameters["w0"][:, 0] += 5.0
    top = spectral(stack.input_jacobians()[0])
    normalized = float((inputs.norm(dim=1) * top).square().mean())
    adaptive = scaled_squares(stack)
    bound = float(spectral(stack.parameters["w0"])) ** 2 * stack.sharpness()
    return {
        "excess": normalized / (outputs * adaptive) - 1.0,
        "slack": relative_slack(normalized, bound),
    }


FACTS: dict[str, Fact] = {
    "small noise": small_noise,
    "printed estimator": printed_estimator,
    "adaptive lemma": adaptive_lemma,
    "proposition": proposition,
    "split units": split_units,
    "normalized sensitivity": normalized_sensitivity,
}
OF_ONE_OUTPUT = ("small noise", "printed estimator")


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by number of outputs, where it has several, and seed."""
    others = tuple(fact for fact in FACTS if fact not in OF_ONE_OUTPUT)
    return [
        *grid_of(others, profile, SEEDS, DRAWS, outputs=(2, 1, 3)),
        *grid_of(OF_ONE_OUTPUT, profile, SEEDS, DRAWS, outputs=(1,)),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one fact on several networks; the metrics are the worst of them."""
    fact = FACTS[configuration["fact"]]
    generator = generator_of(configuration["seed"])
    draws = range(configuration["draws"])
    return worst([fact(configuration["outputs"], generator) for _ in draws])


STUDY = Study(
    name="compression_adaptive",
    question="What does adaptive sharpness bound, and does the printed estimator estimate it?",
    grid=grid,
    run=run,
)
