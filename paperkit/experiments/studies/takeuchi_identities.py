r"""The information-geometric paper's equations 8 and 9 and the criterion of Takeuchi.

Equation 8 is decided by enumerating every training set from a small population, equation 9 by
models of one parameter, where the expected gap is an integral over a known density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product as cartesian
from typing import Any

import torch
from scipy.integrate import quad
from scipy.stats import gamma, norm
from torch import nn

from paperkit.estimators import generalization_gap, takeuchi_information_criterion
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._fisher import product, random_problem, relative, written_out


def _equation_8(points: int, samples: int, seed: int) -> dict[str, float]:
    """Difference between the bias of the joint log-density and the expected gap in loss.

    The population is a few points (x, y), each as likely as it is often drawn, and the model
    y = θx with a unit normal error, fitted by least squares to every training set that there is.
    The log-density of x is in the bias and not in the loss; it averages out.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    x = torch.randn(points, generator=generator, dtype=torch.float64, device="cpu") + 2.0
    y = torch.randn(points, generator=generator, dtype=torch.float64, device="cpu")
    # The densities of the inputs differ, so that they could not cancel by being equal.
    weights = torch.arange(1, points + 1, dtype=torch.float64) / (points * (points + 1) / 2)
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64, device="cpu")
    copies = torch.repeat_interleave(torch.arange(points), torch.arange(1, points + 1))
    population = x[copies].unsqueeze(1), y[copies].unsqueeze(1)
    bias, gap, sizes = 0.0, 0.0, []
    for chosen in cartesian(range(points), repeat=samples):
        drawn = list(chosen)
        chance = float(weights[drawn].prod())
        theta = float((x[drawn] @ y[drawn]) / x[drawn].square().sum())
        log_density = weights.log() - 0.5 * (y - theta * x).square() - 0.5 * math.log(2 * math.pi)
        bias += chance * float(log_density[drawn].mean() - weights @ log_density)
        with torch.no_grad():
            model.weight.fill_(theta)
        train = x[drawn].unsqueeze(1), y[drawn].unsqueeze(1)
        found = float(generalization_gap(model, train, population, "half_squared_error"))
        gap += chance * found
        sizes.append(found)
    return {"difference": relative(bias, gap), "gap": gap, "largest_single_gap": max(sizes)}


def bias_and_trace(family: str, shape: float, samples: int) -> tuple[float, float]:
    r"""Return the expected gap of the estimate from n samples, and Tr(H⁻¹C).

    ``exponential`` fits :math:`\lambda e^{-\lambda x}` to data from a gamma density of mean 1 and
    the given shape, ``normal`` a unit normal's mean to normal data of that variance. For shapes
    other than 1 the model is misspecified. The gap depends on the mean of the sample alone, whose
    density is known.
    """
    if family == "exponential":
        mean = gamma(a=shape * samples, scale=1.0 / (shape * samples))
        data = gamma(a=shape, scale=1.0 / shape)

        # The loss is −log λ + λx at λ = 1/m, so that test less training loss is 1/m − 1.
        def gap(m: float) -> float:
            return 1.0 / m - 1.0

        hessian = 1.0
        score_square = quad(lambda x: (x - 1.0) ** 2 * data.pdf(x), 0.0, 60.0, limit=200)[0]
    else:
        mean = norm(scale=math.sqrt(shape / samples))
        data = norm(scale=math.sqrt(shape))

        # The loss is (x − m)²/2, so that test less training loss is m², on average.
        def gap(m: float) -> float:
            return m * m

        hessian = 1.0
        reach = 12.0 * math.sqrt(shape)
        score_square = quad(lambda x: x * x * data.pdf(x), -reach, reach)[0]
    center, spread = float(mean.mean()), float(mean.std())
    low, high = center - 12.0 * spread, center + 12.0 * spread
    low = max(low, 1e-12) if family == "exponential" else low
    bias = quad(lambda m: gap(m) * mean.pdf(m), low, high, points=[center], limit=200)[0]
    return bias, score_square / hessian


FIRST_SAMPLES, MANY_SAMPLES = 10, 100_000
"""Sample size at which the printed right side is read, and that at which its limit is."""


def _equation_9(family: str, shape: float, seed: int) -> dict[str, float]:
    """By how much the printed limit fails, and how near n times the bias comes to the trace.

    As printed, the limit of the bias is Tr(H⁻¹C)/n with an n on the right. The failure is the
    difference between the bias of many samples and that number for ten, relative to it.
    """
    bias, trace = bias_and_trace(family, shape, MANY_SAMPLES)
    early, _ = bias_and_trace(family, shape, FIRST_SAMPLES)
    return {
        "failure": abs(bias / (trace / FIRST_SAMPLES) - 1.0),
        "difference": abs(MANY_SAMPLES * bias / trace - 1.0),
        "early_ratio": FIRST_SAMPLES * early / trace,
        "trace": trace,
    }


def _criterion(network: str, samples: int, classes: int, seed: int) -> dict[str, float]:
    """Difference between n times the library's criterion, with F for H, and the sharpness."""
    problem = random_problem(network, samples, classes, seed)
    criterion = takeuchi_information_criterion(problem.model, problem.data, curvature="fisher")
    return {"difference": relative(samples * float(criterion), written_out(problem).sharpness())}


FACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "equation 8": _equation_8,
    "equation 9": _equation_9,
    "criterion": _criterion,
}
"""Each statement's computation: from the rest of a configuration to its metrics."""


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each fact by its sizes and families, with its seeds."""
    smoke = profile == "smoke"
    seeds = {"smoke": 1, "laptop": 4, "paper": 10}[profile]
    networks = ("tanh_bias",) if smoke else ("linear", "tanh_bias", "relu_bias")
    return [
        *product("equation 8", seeds, points=(3,) if smoke else (3, 5), samples=(2, 3)),
        *product("equation 9", 1, family=("exponential", "normal"), shape=(0.5, 1.0, 2.0, 5.0)),
        *product("criterion", seeds, network=networks, samples=(5, 40), classes=(2, 3)),
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure by how much one statement holds, or fails, in one setting."""
    settings = {name: value for name, value in configuration.items() if name != "fact"}
    return FACTS[configuration["fact"]](**settings)


STUDY = Study(
    name="takeuchi_identities",
    question="What do the bias of the likelihood and its limit say, and what has IGS of them?",
    grid=grid,
    run=run,
)
