r"""The information-geometric paper's regulariser: equations 12 and 13, and its EKFAC."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from paperkit.curvature import dense_hessian
from paperkit.estimators import information_geometric_sharpness
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._fisher import (
    Problem,
    Written,
    exact_losses,
    label_gradients,
    probabilities,
    product,
    random_problem,
    relative_norm,
    written_out,
)
from paperkit.experiments.studies.igs_invariance import Curve
from paperkit.linearize import ekfac, kfac, linearize
from paperkit.models.small import build_dense_network
from paperkit.models.symmetries import flat_parameters

STEP = 1e-5
"""Step of the central differences."""


def with_parameters(problem: Problem, vector: Tensor) -> Problem:
    """Return the problem with other parameters, in a network of its own."""
    model = copy.deepcopy(problem.model)
    nn.utils.vector_to_parameters(vector, model.parameters())
    return Problem(model, *problem.data)


def loss_at(problem: Problem, vector: Tensor) -> Tensor:
    """Return the mean loss as a function of a parameter vector, differentiable."""
    names, own = zip(*problem.model.named_parameters(), strict=True)
    pieces = vector.split([parameter.numel() for parameter in own])
    shaped = {n: v.view(p.shape) for n, v, p in zip(names, pieces, own, strict=True)}
    outputs = functional_call(problem.model, shaped, (problem.inputs,))
    return nn.functional.cross_entropy(outputs, problem.targets)


def central_gradient(function: Callable[[Tensor], float], theta: Tensor) -> Tensor:
    """Differentiate a function of the parameters by central differences."""
    slopes = []
    for direction in torch.eye(len(theta), dtype=theta.dtype):
        ahead, behind = function(theta + STEP * direction), function(theta - STEP * direction)
        slopes.append((ahead - behind) / (2.0 * STEP))
    return torch.tensor(slopes, dtype=theta.dtype)


def _apart(left: Tensor, right: Tensor) -> float:
    """Return how far the cosine between two vectors is from 1."""
    return 1.0 - float(left @ right / (left.norm() * right.norm()))


# ---------------------------------------------------------------------------------------------
# Equation 12
# ---------------------------------------------------------------------------------------------


def _equation_12(network: str, samples: int, seed: int) -> dict[str, float]:
    r"""Difference between the measure's gradient, by differences, and :math:`\sum e^{\ell_i} g_i`.

    This is its gradient where F has the full rank n(C − 1): there the measure is a sum of
    :math:`e^{\ell_i} - 1`. The objective is then differentiable, and a reweighted loss.
    """
    problem = random_problem(network, samples, 3, seed)
    written = written_out(problem)
    theta = flat_parameters(problem.model)

    def sharpness(vector: Tensor) -> float:
        moved = with_parameters(problem, vector)
        return float(information_geometric_sharpness(moved.model, moved.data))

    weights = torch.tensor([math.exp(loss) for loss in exact_losses(problem)], dtype=theta.dtype)
    return {
        "difference": relative_norm(
            central_gradient(sharpness, theta), weights @ written.gradients
        ),
        "rows_without_rank": float(2 * samples - written.rank),
    }


def _jump(offset: float, samples: int, seed: int) -> dict[str, float]:
    """Jump of the measure where the rank of F falls, on a model of one parameter.

    The point at which the slope is zero is approached up to 1e-3.
    """
    source = random_problem("linear", samples, 2, seed)
    at = Problem(Curve(0.0, offset), *source.data)
    near = Problem(Curve(1e-3, offset), *source.data)
    inside = 0.0 if float(written_out(at).fisher) == 0.0 else written_out(at).sharpness()
    theta = torch.zeros(1, dtype=torch.float64)
    moved = abs(float(loss_at(at, theta + 1e-3) - loss_at(at, theta)))
    return {"jump": abs(written_out(near).sharpness() - inside), "loss_change": moved}


# ---------------------------------------------------------------------------------------------
# Equation 13
# ---------------------------------------------------------------------------------------------


def _perturbation(written: Written) -> tuple[Tensor, Tensor]:
    gradient = written.gradients.mean(dim=0)
    return gradient, written.inverse @ gradient


def _equation_13(network: str, samples: int, rho: float, seed: int) -> dict[str, float]:
    """Difference between the slope of the perturbed loss at ρ = 0 and the library's gᵀF⁺g.

    ``failure`` is the difference between the loss at the given ρ and the first order, relative to
    the predicted change.
    """
    problem = random_problem(network, samples, 3, seed)
    _, delta = _perturbation(written_out(problem))
    theta = flat_parameters(problem.model)
    gradient = torch.autograd.functional.jacobian(lambda v: loss_at(problem, v), theta)
    slope = gradient @ delta
    term = information_geometric_sharpness(problem.model, problem.data).mean_gradient_term
    with torch.no_grad():
        change = float(loss_at(problem, theta + rho * delta) - loss_at(problem, theta))
    return {
        "difference": abs(float(slope) / term - 1.0),
        "failure": abs(change / (rho * term) - 1.0),
    }


def _held_fixed(network: str, samples: int, seed: int) -> dict[str, float]:
    r"""Directions that training on equation 13 adds to the gradient g, with δ held fixed or not.

    Held fixed it is :math:`H F^+ g` to first order, with the Hessian from automatic
    differentiation. ``scaling_difference`` is its distance from g itself, relative: 0 where H = F.
    ``angle`` compares it with the gradient of gᵀF⁺g, by differences, and ``repaired_difference``
    compares that one with the gradient of the perturbed loss with δ differentiated as well.
    """
    problem = random_problem(network, samples, 3, seed)
    gradient, delta = _perturbation(written_out(problem))
    theta = flat_parameters(problem.model)
    held = torch.autograd.functional.hessian(lambda v: loss_at(problem, v), theta) @ delta

    def term(vector: Tensor) -> float:
        moved = with_parameters(problem, vector)
        return information_geometric_sharpness(moved.model, moved.data).mean_gradient_term

    rate = 1e-6

    def perturbed(vector: Tensor) -> float:
        moved = written_out(with_parameters(problem, vector))
        with torch.no_grad():
            ahead = loss_at(problem, vector + rate * _perturbation(moved)[1])
            behind = loss_at(problem, vector - rate * _perturbation(moved)[1])
        return float(ahead - behind) / (2.0 * rate)

    true = central_gradient(term, theta)
    return {
        "scaling_difference": relative_norm(held, gradient),
        "angle": _apart(held, true),
        "angle_to_gradient": _apart(held, gradient),
        "repaired_difference": relative_norm(central_gradient(perturbed, theta), true),
        "hessian_difference": relative_norm(
            dense_hessian(problem.model, problem.inputs, problem.targets),
            written_out(problem).fisher,
        ),
    }


# ---------------------------------------------------------------------------------------------
# EKFAC
# ---------------------------------------------------------------------------------------------


def kronecker_block(inputs: Tensor, rows: Tensor, weights: Tensor, *, corrected: bool) -> Tensor:
    """Write K-FAC's or EKFAC's block of a layer out, (o i, o i), row-major.

    ``inputs`` are the layer's, (n, i), ``rows`` the gradients of −log p(y | x) with respect to its
    outputs for each label, (n, C, o), and ``weights`` the labels' probabilities, (n, C).
    """
    n = len(inputs)
    second = torch.einsum("nc,nco,ncp->op", weights, rows, rows) / n
    moment = inputs.T @ inputs / n
    s_values, s_vectors = torch.linalg.eigh(second)
    a_values, a_vectors = torch.linalg.eigh(moment)
    basis = torch.kron(s_vectors, a_vectors)
    if not corrected:
        return basis @ torch.diag(torch.kron(s_values, a_values)) @ basis.T
    gradients = torch.einsum("nco,ni->ncoi", rows, inputs).flatten(2)
    squares = (gradients @ basis).square()
    return basis @ torch.diag(torch.einsum("nc,nck->k", weights, squares) / n) @ basis.T


def _ekfac(samples: int, damping: float, seed: int) -> dict[str, float]:
    """Difference between the library's perturbation and that of an explicit EKFAC matrix.

    The network has two linear layers without biases; each one's block is written out. The slack is
    how much nearer to the Fisher block EKFAC is than K-FAC, in its norm. ``angle`` compares the
    damped perturbation with F⁺g of the whole matrix.
    """
    source = random_problem("linear", samples, 3, seed)
    model = build_dense_network("tanh", seed, (3, 4, 3))
    problem = Problem(model, *source.data)
    written = written_out(problem)
    gradient, natural = _perturbation(written)
    p, by_label = probabilities(problem), label_gradients(problem)
    with torch.no_grad():
        hidden = model[:2](problem.inputs)
    layers = {"0": (problem.inputs, 4, slice(0, 12)), "2": (hidden, 3, slice(12, 24))}
    linearization = linearize(model, problem.inputs)
    library = {"ekfac": ekfac(linearization), "kfac": kfac(linearization)}
    differences, slacks, traces, perturbation = [], [], [], torch.zeros_like(gradient)
    for name, (inputs, width, own) in layers.items():
        weights = by_label[:, :, own].unflatten(2, (width, -1))
        # The weight's gradient is an outer product with the input: project it out again.
        rows = (
            torch.einsum("ncoi,ni->nco", weights, inputs)
            / inputs.square().sum(dim=1)[:, None, None]
        )
        block = written.fisher[own, own]
        better, plain = (
            kronecker_block(inputs, rows, p, corrected=corrected) for corrected in (True, False)
        )
        damped = better + damping * torch.eye(len(block), dtype=block.dtype)
        solved = torch.linalg.solve(damped, gradient[own])
        matrix = gradient[own].view(width, -1)
        found = library["ekfac"][name].inverse_product(matrix, damping).flatten()
        perturbation[own] = found
        differences += [
            relative_norm(found, solved),
            relative_norm(library["kfac"][name].matrix(), plain),
        ]
        slacks.append(float((block - plain).norm() - (block - better).norm()) / float(block.norm()))
        traces.append(abs(float(better.trace() / block.trace()) - 1.0))
    return {
        "difference": max(differences),
        "slack": min(slacks),
        "trace_difference": max(traces),
        "angle": _apart(perturbation, natural),
        "angle_to_gradient": _apart(perturbation, gradient),
    }


FACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "equation 12": _equation_12,
    "rank falls": _jump,
    "equation 13": _equation_13,
    "held fixed": _held_fixed,
    "EKFAC": _ekfac,
}
"""Each statement's computation: from the rest of a configuration to its metrics."""


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by network, samples and setting, with its seeds."""
    smoke = profile == "smoke"
    seeds = {"smoke": 1, "laptop": 4, "paper": 10}[profile]
    networks = ("tanh_bias",) if smoke else ("linear", "tanh_bias")
    samples = (6,) if smoke else (6, 40)
    return [
        # At most ten rows, from five samples: fewer than any of these networks has directions.
        *product("equation 12", seeds, network=networks[-1:], samples=(3,) if smoke else (3, 5)),
        *product("rank falls", seeds, offset=(0.5, -1.0, 2.0), samples=samples),
        *product("equation 13", seeds, network=networks, samples=samples, rho=(1e-2, 1e-5)),
        *product("held fixed", seeds, network=networks, samples=samples),
        *product("EKFAC", seeds, samples=(40,), damping=(1e-3, 1e-1, 10.0)),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure by how much one statement holds, or fails, in one network."""
    settings = {name: value for name, value in configuration.items() if name != "fact"}
    return FACTS[configuration["fact"]](**settings)


STUDY = Study(
    name="igs_regularizer",
    question="What does training with the information-geometric regulariser minimise?",
    grid=grid,
    run=run,
)
