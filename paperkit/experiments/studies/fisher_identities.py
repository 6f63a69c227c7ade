"""The information-geometric paper's equations 1 to 5 and its Appendix A, each by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from paperkit.bounds.information_geometry import fisher_rank_bound
from paperkit.curvature import dense_gauss_newton
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._fisher import (
    Problem,
    exact_losses,
    flat_gradient,
    logit_gradients,
    probabilities,
    product,
    random_problem,
    relative,
    relative_norm,
    written_out,
)
from paperkit.network import get_loss


def _equation_1(network: str, samples: int, classes: int, seed: int) -> dict[str, float]:
    """Difference between the library's loss and the mean of −log p, in Python's own numbers."""
    problem = random_problem(network, samples, classes, seed)
    with torch.no_grad():
        outputs = problem.model(problem.inputs)
    loss = float(get_loss("cross_entropy").value(outputs, problem.targets))
    losses = exact_losses(problem)
    return {"difference": relative(loss, math.fsum(losses) / len(losses))}


def _equation_2(network: str, samples: int, classes: int, seed: int) -> dict[str, float]:
    """Difference between the library's JᵀΛJ and the mean over labels that are enumerated."""
    problem = random_problem(network, samples, classes, seed)
    fisher = dense_gauss_newton(problem.model, problem.inputs)
    return {"difference": relative_norm(fisher, written_out(problem).fisher)}


def divergence(problem: Problem, vector: Tensor) -> Tensor:
    """Mean over inputs of KL(p at the vector's parameters ‖ p at the model's own)."""
    names, own = zip(*problem.model.named_parameters(), strict=True)
    pieces = vector.split([parameter.numel() for parameter in own])
    shaped = {n: v.view(p.shape) for n, v, p in zip(names, pieces, own, strict=True)}
    log_new = torch.log_softmax(functional_call(problem.model, shaped, (problem.inputs,)), dim=1)
    with torch.no_grad():
        log_old = torch.log_softmax(problem.model(problem.inputs), dim=1)
    return (log_new.exp() * (log_new - log_old)).sum(dim=1).mean()


def _equation_3(network: str, samples: int, classes: int, seed: int) -> dict[str, float]:
    """Difference between F and the Hessian of the divergence, and the order of the remainder.

    The remainder along a random direction is measured at two small steps.
    """
    problem = random_problem(network, samples, classes, seed)
    fisher = written_out(problem).fisher
    theta = torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])
    hessian = torch.autograd.functional.hessian(lambda v: divergence(problem, v), theta)
    direction = torch.randn(
        len(theta), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    direction = direction / direction.norm()
    form = 0.5 * float(direction @ fisher @ direction)
    remainders = [
        abs(float(divergence(problem, theta + t * direction).detach()) - t * t * form)
        for t in (1e-2, 1e-3)
    ]
    return {
        "difference": relative_norm(hessian, fisher),
        "order": math.log10(remainders[0] / remainders[1]),
    }


def softmax_factor(p: Tensor) -> Tensor:
    """Return M = diag(√p)(I − 1pᵀ) of one sample."""
    identity = torch.eye(len(p), dtype=p.dtype, device=p.device)
    return torch.diag(p.sqrt()) @ (identity - torch.outer(torch.ones_like(p), p))


def _equations_4_5(network: str, samples: int, classes: int, seed: int) -> dict[str, float]:
    """Largest difference in MᵀM = diag p − ppᵀ, in F = mean of JᵀMᵀMJ, and in the rows of MJ.

    The row j is differentiated anew, as √p_j times the logit less its mean, p held fixed.
    """
    problem = random_problem(network, samples, classes, seed)
    p, jacobian = probabilities(problem), logit_gradients(problem)
    outputs = problem.model(problem.inputs)
    differences, fisher = [], torch.zeros_like(jacobian[0].T @ jacobian[0])
    for i in range(samples):
        factor = softmax_factor(p[i])
        covariance = torch.diag(p[i]) - torch.outer(p[i], p[i])
        differences.append(relative_norm(factor.T @ factor, covariance))
        rows = factor @ jacobian[i]
        fisher += rows.T @ rows / samples
        for j in range(classes):
            centred = p[i, j].sqrt() * (outputs[i, j] - p[i] @ outputs[i])
            gradient = flat_gradient(centred, problem.model)
            differences.append(float((rows[j] - gradient).norm() / rows.norm()))
    differences.append(relative_norm(fisher, written_out(problem).fisher))
    return {"difference": max(differences)}


def _rank(network: str, samples: int, classes: int, seed: int) -> dict[str, int]:
    """Slack of the bound n(C − 1) on the rank of F, and of the library's with a common shift."""
    problem = random_problem(network, samples, classes, seed)
    rank = written_out(problem).rank
    head = list(dict(problem.model.named_modules()))[-1]
    bound = fisher_rank_bound(problem.model, problem.data, head=head)
    return {"slack": samples * (classes - 1) - rank, "shifted_slack": int(bound.right) - rank}


def _appendix_a(network: str, classes: int, epsilon: float, seed: int) -> dict[str, float]:
    r"""Difference in :math:`F_i = \epsilon \sum \Delta_j^\top \Delta_j` up to its second order.

    All classes but one have probability ε. The remainder is
    :math:`-\epsilon^2 (\sum \Delta_j)^\top (\sum \Delta_j)`, exactly; ``leading`` is its size
    relative to F, in units of ε.
    """
    problem = random_problem(network, 1, classes, seed)
    jacobian = logit_gradients(problem)[0]
    p = torch.full((classes,), epsilon, dtype=torch.float64, device="cpu")
    p[0] = 1.0 - (classes - 1) * epsilon
    fisher = jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    deltas = jacobian[1:] - jacobian[0]
    leading = epsilon * deltas.T @ deltas
    total = deltas.sum(dim=0)
    return {
        "difference": relative_norm(leading - epsilon**2 * torch.outer(total, total), fisher),
        "leading": relative_norm(leading, fisher) / epsilon,
        "leading_difference": relative_norm(leading, fisher),
    }


FACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "equation 1": _equation_1,
    "equation 2": _equation_2,
    "equation 3": _equation_3,
    "equations 4 and 5": _equations_4_5,
    "rank": _rank,
    "appendix A": _appendix_a,
}
"""Each statement's computation: from the rest of a configuration to its metrics."""

NETWORKS = ("linear", "tanh_bias", "relu_bias")


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by network, samples and classes, with its seeds."""
    smoke = profile == "smoke"
    seeds = {"smoke": 1, "laptop": 4, "paper": 10}[profile]
    networks = NETWORKS[1:2] if smoke else NETWORKS
    samples, classes = ((6,), (3,)) if smoke else ((5, 20), (2, 4))
    usual: dict[str, tuple[Any, ...]] = {
        "network": networks,
        "samples": samples,
        "classes": classes,
    }
    smooth = {**usual, "network": networks if smoke else NETWORKS[:2]}
    epsilons = (1e-2,) if smoke else (1e-1, 1e-2, 1e-3)
    return [
        *product("equation 1", seeds, **usual),
        *product("equation 2", seeds, **usual),
        *product("equation 3", seeds, **smooth),
        *product("equations 4 and 5", seeds, **usual),
        *product("rank", seeds, **usual),
        *product("appendix A", seeds, network=networks, classes=(3, 5), epsilon=epsilons),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure by how much one statement holds in one network."""
    settings = {name: value for name, value in configuration.items() if name != "fact"}
    return FACTS[configuration["fact"]](**settings)


STUDY = Study(
    name="fisher_identities",
    question="Are the information-geometric paper's equations on the Fisher matrix identities?",
    grid=grid,
    run=run,
)
