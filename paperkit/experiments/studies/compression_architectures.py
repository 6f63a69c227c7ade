r"""Where the compression paper's bounds reach: convolutions, tokens, attention, residual layers.

The paper says that its bounds hold for convolutions, residual layers and vision transformers. Each
fact draws networks of one kind, written as plain functions, and computes both sides by brute force.
A violation is the quotient of left and right side, less one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from torch.nn import functional

from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._stacks import (
    Parameters,
    Stack,
    Stage,
    frobenius,
    generator_of,
    grid_of,
    normal,
    relative_error,
    relative_slack,
    spectral,
    whole_number,
    worst,
)
from paperkit.experiments.studies.compression_bounds import (
    least_slack,
    sensitivity_steps,
    sides_of,
    volume_steps,
)

SEEDS = {"smoke": 1, "laptop": 6, "paper": 10}
DRAWS = {"smoke": 2, "laptop": 8, "paper": 8}

Fact = Callable[[torch.Generator], dict[str, float]]


def violations(stack: Stack) -> dict[str, float]:
    """Return left side over right side, less one, of equations 5 and 9 to 12 as printed.

    Weights count as matrices: a kernel with its outputs as rows. ``violation`` is the least.
    """
    sides = sides_of(stack)
    chains = {
        "equation_5": None,
        "equation_9": volume_steps(sides, 1),
        "equation_10": volume_steps(sides, None),
        "equation_11": sensitivity_steps(sides, 1),
        "equation_12": sensitivity_steps(sides, None),
    }
    found = {name: steps[0] / steps[-1] - 1.0 for name, steps in chains.items() if steps}
    # Equation 5 in its corrected form, which is what the bounds rest on.
    right = sides.ratio[0] * sides.gradient[0]
    found["equation_5"] = float((sides.frobenius[0] / right).max()) - 1.0
    return {**found, "violation": min(found.values())}


def position_stage(name: str, activation: Callable[[Tensor], Tensor] | None = None) -> Stage:
    """Return x ↦ φ(W x), one weight at every column of x: tokens, or a 1 × 1 convolution."""

    def stage(x: Tensor, parameters: Parameters) -> Tensor:
        z = parameters[name] @ x
        return z if activation is None else activation(z)

    return stage


def read_out_stage(name: str) -> Stage:
    """Return x ↦ V x, with x as a single vector."""
    return lambda x, parameters: parameters[name] @ x.flatten()


def scalar_convolution(generator: torch.Generator) -> dict[str, float]:
    """Return the violations of a 1 × 1 convolution with one weight, at an input of equal entries.

    The head has opposite signs at pairs of positions, so that its products with the input cancel
    in the weight's gradient, and nowhere else.
    """
    pairs = whole_number(1, 4, generator)
    head = 5.0 + 5.0 * torch.rand(pairs, generator=generator, dtype=torch.float64)
    value = 0.5 + torch.rand((), generator=generator, dtype=torch.float64)
    parameters = {
        "w": 0.5 + torch.rand(1, 1, generator=generator, dtype=torch.float64),
        "v": torch.cat([head, -head])[None],
    }
    inputs = value.expand(1, 1, 2 * pairs).clone()
    # A weight gradient of exactly zero leaves no quotient, so that one entry is moved a little.
    inputs[0, 0, 0] *= 1.001
    stages = position_stage("w"), read_out_stage("v")
    return violations(Stack(stages, ("w", "v"), parameters, inputs))


def tokens(generator: torch.Generator) -> dict[str, float]:
    """Return the violations of a linear layer that is applied to every token, then read out.

    Read-out vectors and tokens come in pairs of opposite sign and nearly equal size.
    """
    size, hidden, pairs = 3, 4, whole_number(1, 3, generator)
    token = normal(size, pairs, generator=generator)
    head = 10.0 * normal(2, hidden, pairs, generator=generator)
    parameters = {
        "w": normal(hidden, size, generator=generator) / math.sqrt(size),
        "v": torch.cat([head, -head], dim=2).flatten(1),
    }
    inputs = torch.cat([token, 1.001 * token], dim=1)[None]
    stages = position_stage("w", torch.tanh), read_out_stage("v")
    return violations(Stack(stages, ("w", "v"), parameters, inputs))


def attention(generator: torch.Generator) -> dict[str, float]:
    """Return equation 12's violation of an attention layer with a linear head.

    Query, key and value layers read the same tensor, so that its sensitivity counts three times on
    the left, while queries and keys that are small add little on the right.
    """
    size, count = 3, whole_number(1, 3, generator)
    parameters = {
        name: scale * normal(size, size, generator=generator) / math.sqrt(size)
        for name, scale in (("q", 0.03), ("k", 0.03), ("v", 1.0))
    }
    parameters["o"] = normal(1, size, generator=generator)
    # Tokens are nearly equal, so that the head's average loses nothing.
    inputs = normal(2, 1, size, generator=generator) + 0.1 * normal(
        2, count, size, generator=generator
    )

    def attended(x: Tensor, p: Parameters) -> Tensor:
        scores = (x @ p["q"].T) @ (x @ p["k"].T).T / math.sqrt(size)
        return (torch.softmax(scores, dim=1) @ (x @ p["v"].T)).mean(dim=0)

    def output(x: Tensor, p: Parameters) -> Tensor:
        return p["o"] @ attended(x, p)

    jacobian = vmap(jacrev(lambda x: output(x, parameters)))(inputs).flatten(2)
    gradients = vmap(jacrev(lambda p, x: output(x, p)), in_dims=(None, 0))(parameters, inputs)
    squared = torch.stack([frobenius(gradient).square() for gradient in gradients.values()])
    sharpness = float(squared.sum(dim=0).mean())
    hidden = vmap(lambda x: attended(x, parameters))(inputs)
    lengths = {name: frobenius(inputs) for name in "qkv"} | {"o": frobenius(hidden)}
    head = parameters["o"].expand(len(inputs), -1, -1)
    left = float(3.0 * spectral(jacobian).mean() + spectral(head).mean())
    squares = [(spectral(parameters[k]) / lengths[k]).square().mean() for k in lengths]
    right = math.sqrt(float(sum(squares)) * sharpness)
    return {"violation": left / right - 1.0}


def two_readers(generator: torch.Generator) -> dict[str, float]:
    """Return equations 11's and 12's violations where two layers read the input, f = W₁x + W₂x.

    Every layer counts with the Jacobian in its input, which is W₁ + W₂ at both.
    """
    weight = normal(2, 4, generator=generator)
    other = weight + 0.1 * normal(2, 4, generator=generator)
    inputs = normal(3, 4, generator=generator)
    inputs = inputs / inputs.norm(dim=1, keepdim=True)
    sensitivity = float(spectral(weight + other))
    # Each weight's gradient has the squared norm C ‖x‖², C = 2 outputs; so S = 4.
    sharpness = 4.0
    squares = float(spectral(weight)) ** 2 + float(spectral(other)) ** 2
    eleven = sensitivity / (float(spectral(weight)) * math.sqrt(sharpness))
    twelve = 2.0 * sensitivity / math.sqrt(squares * sharpness)
    stacked = torch.cat([weight, other])
    repaired = float(spectral(stacked)) * math.sqrt(sharpness)
    return {
        "equation_11": eleven - 1.0,
        "violation": twelve - 1.0,
        "slack": relative_slack(sensitivity, repaired),
    }


def tied_in_depth(generator: torch.Generator) -> dict[str, float]:
    """Return equation 12's violation of f = w(wx + b), whose weight acts twice.

    At b = −2wx the two parts of the weight's gradient cancel (nearly, here).
    """
    weight = 0.5 + 2.0 * float(torch.rand((), generator=generator, dtype=torch.float64))
    x = 0.5 + 2.0 * float(torch.rand((), generator=generator, dtype=torch.float64))
    bias = -1.999 * weight * x
    sharpness = (2 * weight * x + bias) ** 2 + weight**2
    hidden = weight * x + bias
    ratios = (weight / x) ** 2 + (weight / hidden) ** 2
    return {"violation": (weight**2 + weight) / math.sqrt(ratios * sharpness) - 1.0}


def convolution_stage(name: str, activation: bool) -> Stage:
    """Return a 3 × 3 convolution with padding, then tanh where wanted."""

    def stage(x: Tensor, parameters: Parameters) -> Tensor:
        z = functional.conv2d(x[None], parameters[name], padding=1)[0]
        return torch.tanh(z) if activation else z

    return stage


def convolutional_stack(generator: torch.Generator) -> Stack:
    """Draw two convolutions and a linear head on images of 4 × 4."""
    side, channels, outputs = 4, (1, 2, 2), whole_number(1, 3, generator)
    parameters = {
        f"w{k}": normal(two, one, 3, 3, generator=generator) / math.sqrt(9 * one)
        for k, (one, two) in enumerate(pairwise(channels))
    }
    parameters["v"] = normal(outputs, 2 * side * side, generator=generator) / side
    stages = convolution_stage("w0", True), convolution_stage("w1", True), read_out_stage("v")
    inputs = normal(3, 1, side, side, generator=generator)
    return Stack(stages, ("w0", "w1", "v"), parameters, inputs)


def operators(stack: Stack, linear: tuple[Stage, ...]) -> list[Tensor]:
    """Return the matrix of each stage's linear part, from its derivative."""
    return [
        jacrev(lambda x, s=stage: s(x, stack.parameters).flatten())(inputs[0]).flatten(1)
        for stage, inputs in zip(linear, stack.stage_inputs(), strict=True)
    ]


def cotangent_norms(stack: Stack, linear: tuple[Stage, ...]) -> Tensor:
    """Return ‖∂f/∂z_l‖_F of each stage's linear part, shape (layers, n), by a shift of z_l."""
    found = []
    for k, (stage, inputs) in enumerate(zip(linear, stack.stage_inputs(), strict=True)):
        shape = stage(inputs[0], stack.parameters).shape

        def output(shift: Tensor, x: Tensor, k: int = k, stage: Stage = stage) -> Tensor:
            z = stage(x, stack.parameters) + shift
            # The last layer has no activation.
            z = z if k == len(linear) - 1 else torch.tanh(z)
            return stack.output(z, stack.parameters, k + 1)

        zero = inputs.new_zeros(shape)
        found.append(frobenius(vmap(jacrev(output), in_dims=(None, 0))(zero, inputs)))
    return torch.stack(found)


def untied_convolutions(generator: torch.Generator) -> dict[str, float]:
    """Return the slack of equations 5 and 9 to 12 with the layers' matrices, and their gradients.

    The norm of a layer's matrix takes the place of ‖W‖₂, and ‖B‖_F‖x‖ that of the weight's
    gradient, in the sharpness too.
    """
    stack = convolutional_stack(generator)
    linear = convolution_stage("w0", False), convolution_stage("w1", False), read_out_stage("v")
    sides = sides_of(stack)
    norms = torch.stack([spectral(matrix) for matrix in operators(stack, linear)])
    lengths = stack.input_norms()
    gradient = cotangent_norms(stack, linear) * lengths
    free = type(sides)(
        outputs=sides.outputs,
        sensitivity=sides.sensitivity,
        frobenius=sides.frobenius,
        volume=sides.volume,
        ratio=norms[:, None] / lengths,
        gradient=gradient,
        sharpness=float(gradient.square().sum(dim=0).mean()),
    )
    slacks = [
        *(least_slack(volume_steps(free, layers)) for layers in (1, None)),
        *(least_slack(sensitivity_steps(free, layers)) for layers in (1, None)),
        relative_slack(free.frobenius, free.ratio * free.gradient),
    ]
    # At the head, which is not shared, the gradient is that of the weight.
    return {"slack": min(slacks), "error": relative_error(gradient[-1], sides.gradient[-1])}


def random_convolutions(generator: torch.Generator) -> dict[str, float]:
    """Return by how much equation 5 fails for a random convolution and read-out, as printed."""
    parameters = {
        "w0": normal(2, 1, 3, 3, generator=generator) / 3.0,
        "v": normal(1, 32, generator=generator),
    }
    stages = convolution_stage("w0", True), read_out_stage("v")
    stack = Stack(stages, ("w0", "v"), parameters, normal(3, 1, 4, 4, generator=generator))
    return {"equation_5": violations(stack)["equation_5"]}


def residual(generator: torch.Generator) -> dict[str, float]:
    """Return errors of equation 16 and slacks of equation 17, one block and telescoped.

    Blocks add A φ(W x) to the stream x that W reads; a linear head reads the stream last.
    """
    size, blocks = whole_number(2, 5, generator), whole_number(1, 3, generator)
    outputs = whole_number(1, 3, generator)
    gain = 2.0 ** whole_number(-2, 1, generator)
    parameters: Parameters = {}
    for k in range(blocks):
        parameters[f"w{k}"] = gain * normal(size, size, generator=generator) / math.sqrt(size)
        parameters[f"a{k}"] = normal(size, size, generator=generator) / math.sqrt(size)
    parameters["head"] = normal(outputs, size, generator=generator)
    inputs = normal(4, size, generator=generator) * 3.0 ** whole_number(-1, 1, generator)

    def block(k: int) -> Stage:
        return lambda x, p: x + p[f"a{k}"] @ torch.tanh(p[f"w{k}"] @ x)

    stages = (*(block(k) for k in range(blocks)), read_out_stage("head"))
    names = (*(f"w{k}" for k in range(blocks)), "head")
    stack = Stack(stages, names, parameters, inputs)
    sides = sides_of(stack)
    jacobians = stack.input_jacobians()
    errors, slacks = [], []
    for k in range(blocks):
        x = stack.stage_inputs()[k]
        weight, after = parameters[f"w{k}"], parameters[f"a{k}"]
        slope = 1.0 - torch.tanh(x @ weight.T).square()
        through = jacobians[k + 1] @ (after * slope[:, None, :])
        errors.append(relative_error(jacobians[k], jacobians[k + 1] + through @ weight))
        errors.append(relative_error(sides.gradient[k], frobenius(through) * frobenius(x)))
        growth = sides.sensitivity[k] - sides.sensitivity[k + 1]
        slacks.append(relative_slack(growth, sides.ratio[k] * sides.gradient[k]))
    total = (sides.ratio * sides.gradient)[:-1].sum() / sides.samples
    left = float(sides.sensitivity[0].mean() - spectral(parameters["head"]))
    root = math.sqrt(float(sides.ratio[:-1].square().sum()) / sides.samples)
    chain = [left, float(total), root * math.sqrt(sides.sharpness)]
    return {"error": max(errors), "slack": min(*slacks, least_slack(chain))}


def layer_norm(generator: torch.Generator) -> dict[str, float]:
    """Return equation 17's violation where W reads the normalised stream, x + W LN(x).

    The stream has a large mean, which the normalisation takes away and ‖x‖ keeps.
    """
    size = 5
    weight, head = normal(size, size, generator=generator), normal(1, size, generator=generator)
    mean = 10.0 + 10.0 * float(torch.rand((), generator=generator, dtype=torch.float64))
    x = mean + 0.05 * normal(size, generator=generator)

    def output(x: Tensor, weight: Tensor) -> Tensor:
        return head @ (x + weight @ functional.layer_norm(x, (size,), eps=0.0))

    jacobian, gradient = jacrev(output, argnums=(0, 1))(x, weight)
    left = float(spectral(jacobian) - spectral(head))
    right = float(spectral(weight) / x.norm() * gradient.norm())
    return {"violation": left / right - 1.0}


FACTS: dict[str, Fact] = {
    "scalar convolution": scalar_convolution,
    "random convolutions": random_convolutions,
    "untied convolutions": untied_convolutions,
    "tokens": tokens,
    "attention": attention,
    "layer normalisation": layer_norm,
    "two readers": two_readers,
    "tied in depth": tied_in_depth,
    "residual": residual,
}


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by seed."""
    return grid_of(tuple(FACTS), profile, SEEDS, DRAWS)


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one fact on several networks; the metrics are the worst of them."""
    generator = generator_of(configuration["seed"])
    fact = FACTS[configuration["fact"]]
    return worst([fact(generator) for _ in range(configuration["draws"])])


STUDY = Study(
    name="compression_architectures",
    question="For which layers do the bounds by the sharpness hold?",
    grid=grid,
    run=run,
)
