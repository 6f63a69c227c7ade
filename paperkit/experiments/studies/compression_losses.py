r"""What the compression paper says of other losses: cross-entropy, and label smoothing.

Below its equation 1 the paper says that under cross-entropy the Hessian vanishes with the loss, so
that its trace cannot tell minima apart, and that its result extends to a logistic loss with label
smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from paperkit.estimators import hessian_trace
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._stacks import (
    Stack,
    dense_stack,
    frobenius,
    generator_of,
    grid_of,
    module_of,
    normal,
    relative_error,
    relative_slack,
    share,
    spectral,
    worst,
)
from paperkit.experiments.studies.compression_bounds import rescaled
from paperkit.experiments.studies.compression_identities import pure_second_derivatives

SEEDS = {"smoke": 1, "laptop": 6, "paper": 10}
DRAWS = {"smoke": 2, "laptop": 6, "paper": 6}
SAMPLES = 4
SMALL_LOSS = 1e-6
SMOOTHING = (0.05, 0.1, 0.3)

Fact = Callable[[int, torch.Generator], dict[str, float]]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of one sample with a distribution over classes as its target."""
    return torch.logsumexp(outputs, 0) * targets.sum() - outputs @ targets


def logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the logistic loss of one output with a probability as its target."""
    positive = torch.nn.functional.softplus(-outputs)
    negative = torch.nn.functional.softplus(outputs)
    return (targets * positive + (1.0 - targets) * negative).sum()


def interpolating(targets: Tensor, activation: str, generator: torch.Generator) -> Stack:
    """Draw a network with one hidden layer whose last weight solves f(x_i) = y_i.

    Draws whose hidden features do not tell the samples apart are put back.
    """
    n, outputs = targets.shape
    while True:
        inputs = normal(n, 5, generator=generator)
        stack = dense_stack([5, 2 * n, outputs], activation, inputs, generator, bias=False)
        features = stack.stage_inputs()[1]
        solution = torch.linalg.lstsq(features, targets, driver="gelsd").solution
        stack.parameters["w1"] = solution.T.contiguous()
        if relative_error(stack.outputs(), targets) < 1e-9:
            return stack


def margins_of(loss: float, classes: int) -> float:
    """Return the margin of the true class at which every sample has the given cross-entropy."""
    return -math.log(math.expm1(loss) / (classes - 1))


def labelled(classes: int, generator: torch.Generator) -> Tensor:
    """Draw one-hot labels."""
    labels = torch.randint(classes, (SAMPLES,), generator=generator, device="cpu")
    return torch.nn.functional.one_hot(labels, classes).double()


def loss_of(stack: Stack, targets: Tensor) -> float:
    """Return the mean cross-entropy."""
    return float(vmap(cross_entropy)(stack.outputs(), targets).mean())


def growing_derivatives(classes: int, generator: torch.Generator) -> dict[str, float]:
    """Raise the trace of the Hessian at one function, and so at one small cross-entropy.

    One layer is multiplied and the next divided. The factors are such that the trace passes the
    inverse root of the loss, of which it is to be a vanishing function. The metric
    ``trace_at_small_loss`` is 0 unless the loss is small and the function is the same.
    """
    targets = labelled(classes, generator)
    logits = margins_of(SMALL_LOSS, classes) * targets
    stack = interpolating(logits, "relu", generator)
    loss = loss_of(stack, targets)
    before = float(stack.loss_hessian(targets, cross_entropy).trace())
    sharp = rescaled(stack, 1.0 / math.sqrt(SMALL_LOSS * before))
    kept = relative_error(sharp.outputs(), stack.outputs())
    after = float(sharp.loss_hessian(targets, cross_entropy).trace())
    data = stack.inputs, targets.argmax(dim=1)
    library = float(hessian_trace(module_of(stack, "relu"), data))
    small = loss <= 1.01 * SMALL_LOSS and kept < 1e-8
    return {
        "trace_at_small_loss": after if small else 0.0,
        "trace_ratio": after / before if small else 0.0,
        "library_error": relative_error(library, before),
    }


def bounded_derivatives(classes: int, generator: torch.Generator) -> dict[str, float]:
    """Return the slack of |Tr H| ≤ 2 L max ‖∂f/∂θ‖² + √2 L max ‖Σ_j ∂_j² f‖, with the loss L.

    The derivatives are those of a tanh network; the loss falls from 1 to 1e-6.
    """
    targets = labelled(classes, generator)
    slacks = []
    for exponent in range(0, 7, 2):
        logits = margins_of(10.0**-exponent, classes) * targets
        stack = interpolating(logits, "tanh", generator)
        loss = loss_of(stack, targets)
        trace = abs(float(stack.loss_hessian(targets, cross_entropy).trace()))
        laplacian = float(pure_second_derivatives(stack).sum(dim=2).norm(dim=1).max())
        squares = float(stack.gradient_squares().max())
        slacks.append(relative_slack(trace, loss * (2.0 * squares + math.sqrt(2.0) * laplacian)))
    return {"slack": min(slacks)}


def growing_margins(classes: int, generator: torch.Generator) -> dict[str, float]:
    """Return the trace over the loss as a ReLU network grows along a ray: how both vanish.

    All weights are multiplied by powers of 2^(1/4), which multiplies the outputs. The metric
    ``last_trace`` is the trace at the last step, over that at the first.
    """
    targets = labelled(classes, generator)
    stack = interpolating(targets, "relu", generator)
    traces, losses = [], []
    for k in range(17):
        parameters = {name: 2.0 ** (k / 4) * v for name, v in stack.parameters.items()}
        grown = Stack(stack.stages, stack.weights, parameters, stack.inputs)
        losses.append(loss_of(grown, targets))
        traces.append(float(grown.loss_hessian(targets, cross_entropy).trace()))
    return {"last_trace": traces[-1] / traces[0], "last_loss": losses[-1] / losses[0]}


def smoothed_logistic(outputs: int, generator: torch.Generator) -> dict[str, float]:
    """Compare the trace of the logistic loss at smoothed interpolation with q(1−q) mean ‖∇f‖².

    Targets are q or 1 − q; the network's output is their logit, where the loss is least. The metric
    ``slack`` is that of equation 11 with the trace over q(1−q) for S.
    """
    found = []
    for smoothing in SMOOTHING:
        q = 1.0 - smoothing / 2.0
        labels = torch.randint(2, (SAMPLES, 1), generator=generator, device="cpu").double()
        probabilities = q * labels + (1.0 - q) * (1.0 - labels)
        stack = interpolating(torch.logit(probabilities), "tanh", generator)
        matrix = stack.loss_hessian(probabilities, logistic)
        trace, weight = float(matrix.trace()), q * (1.0 - q)
        scale = float(matrix.diagonal().abs().sum())
        jacobian = stack.input_jacobians()[0]
        root = math.sqrt(float(stack.inputs.norm(dim=1).pow(-2).mean()) * trace / weight)
        bound = float(spectral(stack.parameters["w0"])) * root
        found.append(
            {
                "error": share(trace - weight * stack.sharpness(), scale),
                "slack": relative_slack(float(spectral(jacobian).mean()), bound),
            }
        )
    return worst(found)


def smoothed_softmax(classes: int, generator: torch.Generator) -> dict[str, float]:
    """Measure how far equation 11 fails for smoothed cross-entropy with two outputs or more.

    A part of the outputs that all classes share, f + g(x)·1, moves the input Jacobian and not the
    loss. The trace over the least positive eigenvalue of diag(q) − qqᵀ takes the place of S.
    ``slack`` is that of the same bound for the outputs less their mean.
    """
    smoothing = 0.1
    targets = labelled(classes, generator) * (1.0 - smoothing) + smoothing / classes
    shared = 100.0 * normal(SAMPLES, 1, generator=generator)
    stack = interpolating(targets.log() + shared, "tanh", generator)
    matrix = stack.loss_hessian(targets, cross_entropy)
    q = targets[0]
    least = float(torch.linalg.eigvalsh(torch.diag(q) - torch.outer(q, q))[1])
    root = math.sqrt(float(stack.inputs.norm(dim=1).pow(-2).mean()) * float(matrix.trace()) / least)
    bound = float(spectral(stack.parameters["w0"])) * root
    jacobian = stack.input_jacobians()[0]
    centred = jacobian - jacobian.mean(dim=1, keepdim=True)
    gradients = torch.cat(list(stack.gradients().values()), dim=2)
    covariances = torch.diag_embed(targets) - targets[:, :, None] * targets[:, None]
    expected = (gradients * (covariances @ gradients)).sum(dim=(1, 2)).mean()
    return {
        "excess": float(spectral(jacobian).mean()) / bound - 1.0,
        "slack": relative_slack(float(spectral(centred).mean()), bound),
        "error": relative_error(float(matrix.trace()), float(expected)),
        "shared_part": float(frobenius(jacobian).mean() / frobenius(centred).mean()),
    }


FACTS: dict[str, Fact] = {
    "growing derivatives": growing_derivatives,
    "bounded derivatives": bounded_derivatives,
    "growing margins": growing_margins,
    "smoothed softmax": smoothed_softmax,
}


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by number of outputs and seed; the logistic has one."""
    return [
        *grid_of(tuple(FACTS), profile, SEEDS, DRAWS, outputs=(3, 2, 5)),
        *grid_of(("smoothed logistic",), profile, SEEDS, DRAWS, outputs=(1,)),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one fact on several networks; the metrics are the worst of them."""
    fact = {**FACTS, "smoothed logistic": smoothed_logistic}[configuration["fact"]]
    generator = generator_of(configuration["seed"])
    draws = range(configuration["draws"])
    return worst([fact(configuration["outputs"], generator) for _ in draws])


STUDY = Study(
    name="compression_losses",
    question="What does the trace of the Hessian say under cross-entropy, plain and smoothed?",
    grid=grid,
    run=run,
    # At a loss of 1e-6 the probabilities that a trace is made of keep this much of theirs.
    round_off=1e-8,
)
