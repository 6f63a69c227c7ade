r"""The information-geometric paper's margins: equations 10 and 11, and its Appendices E and F."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paperkit.bounds.information_geometry import margin_identity, margin_length_identity
from paperkit.estimators import information_geometric_sharpness
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._fisher import (
    NONZERO,
    Problem,
    flat_gradient,
    logit_gradients,
    product,
    pseudo_inverse,
    random_problem,
    relative,
    written_out,
)
from paperkit.models.symmetries import flat_parameters


def eigenvectors(fisher: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nonzero eigenvalues, largest first, and their vectors as columns."""
    values, vectors = torch.linalg.eigh(fisher)
    kept = values > NONZERO * values[-1]
    return values[kept].flip(0), vectors[:, kept].flip(1)


def shift_to_boundary(problem: Problem, sample: int, direction: Tensor) -> float:
    """Find by bisection how far along a direction a sample comes to lie on the boundary.

    The network is linear in its parameters, so that the difference of the two logits is a straight
    line along the direction; the bisection does not use that.
    """
    theta = flat_parameters(problem.model)
    x = problem.inputs[sample]

    def difference(shift: float) -> float:
        moved = theta + shift * direction
        weights, biases = moved[:-2].view(2, -1), moved[-2:]
        logits = weights @ x + biases
        return float(logits[0] - logits[1])

    start = difference(0.0)
    sign = 1.0 if (difference(1e-3) - start) * start < 0.0 else -1.0
    reach = 1.0
    while difference(sign * reach) * start > 0.0:
        reach *= 2.0
    low, high = 0.0, reach
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if difference(sign * middle) * start > 0.0 else (low, middle)
    return sign * high


def _linearization(logit: float, seed: int) -> dict[str, float]:
    """Relative error of the shift from the linear loss, and from the linear logits.

    The network is a linear classifier, scaled so that the first sample, which is right, has the
    given difference of its logits. The direction is the leading eigenvector of the Fisher matrix.
    """
    problem = random_problem("linear", 20, 2, seed)
    with torch.no_grad():
        outputs = problem.model(problem.inputs)[0]
        gap = float(outputs[0] - outputs[1])
        for parameter in problem.model.parameters():
            parameter.mul_(logit / abs(gap))
    problem.targets[0] = 0 if gap > 0 else 1
    written = written_out(problem)
    values, vectors = eigenvectors(written.fisher)
    exact = shift_to_boundary(problem, 0, vectors[:, 0])
    printed, repaired = (
        math.sqrt(
            margin_length_identity(problem.model, problem.data, 0, 0, version).right
            / float(values[0])
        )
        for version in ("printed", "exact")
    )
    return {
        "error": abs(printed / abs(exact) - 1.0),
        "repaired_error": abs(repaired / abs(exact) - 1.0),
    }


def _equations_10_11(network: str, samples: int, sample: int, seed: int) -> dict[str, float]:
    """Difference between the sum over eigenvectors and the form under the pseudo-inverse.

    The sum is written out here from a dense Fisher matrix, in equation 10's lengths. The form is
    compared with the library's as well.
    """
    problem = random_problem(network, samples, 2, seed)
    written = written_out(problem)
    values, vectors = eigenvectors(written.fisher)
    gradient = written.gradients[sample]
    distance = math.log(2.0) + math.log(float(written.p[sample, problem.targets[sample]]))
    shifts = distance / (vectors.T @ gradient)
    lengths = [
        float((shift * vector) @ written.fisher @ (shift * vector))
        for shift, vector in zip(shifts, vectors.T, strict=True)
    ]
    summed = math.fsum(1.0 / length for length in lengths)
    form = float(gradient @ pseudo_inverse(written.fisher) @ gradient) / distance**2
    library = margin_identity(problem.model, problem.data, sample)
    return {
        "difference": max(relative(summed, form), relative(library.right, form)),
        "length_difference": max(
            relative(length, float(value * shift.square()))
            for length, value, shift in zip(lengths, values, shifts, strict=True)
        ),
    }


def _order(samples: int, seed: int) -> dict[str, float]:
    r"""Largest reversal among pairs of samples that the classifier has right.

    A pair is reversed where the sample of the smaller term of IGS has the smaller margin: the sum
    of equation 11, with the exact shifts of a linear model, is larger. The size of a reversal is
    the smaller of the two logarithmic ratios.
    """
    problem = random_problem("linear", samples, 2, seed)
    with torch.no_grad():
        problem.targets.copy_(problem.model(problem.inputs).argmax(dim=1))
        logits = problem.model(problem.inputs)
    written = written_out(problem)
    inverse, jacobian = written.inverse, logit_gradients(problem)
    terms = ((written.gradients @ inverse) * written.gradients).sum(dim=1).log()
    slopes = jacobian[:, 0] - jacobian[:, 1]
    margins = logits[:, 0] - logits[:, 1]
    sums = (((slopes @ inverse) * slopes).sum(dim=1) / margins.square()).log()
    reversal, reversed_pairs, pairs = 0.0, 0, 0
    for i in range(samples):
        for j in range(samples):
            smaller = float(terms[j] - terms[i])
            if smaller > 0.0:
                pairs += 1
                nearer = float(sums[i] - sums[j])
                reversed_pairs += nearer > 0.0
                reversal = max(reversal, min(smaller, nearer))
    return {"reversal": reversal, "reversed_share": reversed_pairs / pairs}


def _appendix_e(network: str, classes: int, samples: int, seed: int) -> dict[str, float]:
    """Difference, for every sample and other class, between the sum and the form of a margin."""
    problem = random_problem(network, samples, classes, seed)
    written = written_out(problem)
    values, vectors = eigenvectors(written.fisher)
    inverse, outputs = pseudo_inverse(written.fisher), problem.model(problem.inputs)
    differences = []
    for i in range(min(samples, 4)):
        label = int(problem.targets[i])
        for other in range(classes):
            if other == label:
                continue
            margin = outputs[i, label] - outputs[i, other]
            slope = flat_gradient(margin, problem.model)
            shifts = -float(margin.detach()) / (vectors.T @ slope)
            summed = float((1.0 / (shifts.square() * values)).sum())
            form = float(slope @ inverse @ slope / margin.detach() ** 2)
            library = margin_identity(
                problem.model, problem.data, i, version="exact", competitor=other
            )
            differences += [relative(summed, form), relative(library.right, form)]
    return {"difference": max(differences)}


def _appendix_f(outputs: int, samples: int, seed: int) -> dict[str, float]:
    """Difference from the library's sharpness of a squared error, and from twice the losses.

    A unit normal likelihood has the Fisher matrix JᵀJ/n and the gradients Jᵀ(f − y).
    """
    problem = random_problem("tanh_bias", samples, outputs, seed)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    targets = torch.randn(samples, outputs, generator=generator, dtype=torch.float64, device="cpu")
    jacobian = logit_gradients(problem)
    with torch.no_grad():
        residuals = problem.model(problem.inputs) - targets
    rows = jacobian.flatten(0, 1)
    gradients = torch.einsum("nc,ncm->nm", residuals, jacobian)
    inverse = pseudo_inverse(rows.T @ rows / samples)
    own = float(((gradients @ inverse) * gradients).sum(dim=1).mean())
    library = information_geometric_sharpness(
        problem.model, (problem.inputs, targets), "half_squared_error"
    )
    losses = float(residuals.square().sum())
    return {
        "difference": relative(float(library), own),
        "difference_from_losses": relative(own, losses),
        "slack": 1.0 - own / losses,
    }


FACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "linearization": _linearization,
    "equations 10 and 11": _equations_10_11,
    "order": _order,
    "appendix E": _appendix_e,
    "appendix F": _appendix_f,
}
"""Each statement's computation: from the rest of a configuration to its metrics."""


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by network, samples and logits, with its seeds."""
    smoke = profile == "smoke"
    seeds = {"smoke": 1, "laptop": 4, "paper": 10}[profile]
    networks = ("tanh_bias",) if smoke else ("linear", "tanh_bias", "relu_bias")
    samples = (6,) if smoke else (6, 40)
    return [
        *product("linearization", seeds, logit=(0.1, 1.0, 2.0, 4.0, 8.0)),
        *product("equations 10 and 11", seeds, network=networks, samples=samples, sample=(0, 3)),
        *product("order", seeds, samples=(30,) if smoke else (30, 100)),
        *product("appendix E", seeds, network=networks, classes=(3, 4), samples=samples),
        *product("appendix F", seeds, outputs=(2, 3), samples=(4, 40)),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure by how much one statement holds, or fails, in one network."""
    settings = {name: value for name, value in configuration.items() if name != "fact"}
    return FACTS[configuration["fact"]](**settings)


STUDY = Study(
    name="igs_margins",
    question="Which margins does the information-geometric sharpness measure, and how well?",
    grid=grid,
    run=run,
)
