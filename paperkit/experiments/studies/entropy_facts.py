r"""What is true of the Rényi entropy of a distribution: convexity, monotonicity, its maximum.

No network appears: every configuration is a family of probability vectors, known in closed form
or drawn from a seed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from paperkit.estimators import renyi_entropy
from paperkit.experiments import RunContext, Study
from paperkit.experiments.grids import grid_of

PAPER_ALPHAS = (
    *(1e-4, 0.01, 0.03, 0.06),
    *(k / 10 for k in range(1, 10)),
    *(0.99, 0.999, 1.001, 1.01),
    *(k / 10 for k in range(11, 31)),
)
"""The 37 orders that the paper's code estimates."""


def vertex(dimension: int) -> Tensor:
    """Return the distribution that puts everything on the first outcome."""
    p = torch.zeros(dimension, dtype=torch.float64, device="cpu")
    p[0] = 1.0
    return p


def uniform(dimension: int) -> Tensor:
    """Return the uniform distribution."""
    return torch.full((dimension,), 1.0 / dimension, dtype=torch.float64, device="cpu")


def random_distribution(dimension: int, generator: torch.Generator) -> Tensor:
    """Draw a distribution between nearly uniform and nearly a vertex.

    Powers of uniform variables, the power itself drawn between 0.1 and 10 on a logarithmic scale,
    so that flat and peaked distributions are equally likely.
    """
    draws = torch.rand(dimension + 1, generator=generator, dtype=torch.float64, device="cpu")
    weights = draws[1:] ** (10.0 ** (2.0 * draws[0] - 1.0))
    return weights / weights.sum()


def random_mixing(p: Tensor, generator: torch.Generator) -> Tensor:
    """Apply a random bistochastic matrix: an average of three random permutations of ``p``."""
    weights = random_distribution(3, generator)
    permutations = [torch.randperm(len(p), generator=generator, device="cpu") for _ in range(3)]
    mixed = torch.stack([p[permutation] for permutation in permutations])
    return weights @ mixed


def midpoint_excess(p: Tensor, q: Tensor, alpha: float) -> float:
    """Return the entropy of the midpoint less the mean entropy of the ends.

    Positive contradicts convexity, negative contradicts concavity.
    """
    ends = 0.5 * (renyi_entropy(p, alpha) + renyi_entropy(q, alpha))
    return renyi_entropy(0.5 * (p + q), alpha) - ends


def _excesses(excesses: list[float]) -> dict[str, float]:
    """Return the metrics of the midpoints' excesses; the slack is that of concavity."""
    return {
        "convexity_violation": max(excesses),
        "concavity_violation": -min(excesses),
        "slack": min(excesses),
    }


def _two_vertices(dimension: int, alpha: float, draws: int, seed: int) -> dict[str, float]:
    excess = midpoint_excess(vertex(dimension), vertex(dimension).flip(0), alpha)
    return _excesses([excess])


def _vertex_and_uniform(dimension: int, alpha: float, draws: int, seed: int) -> dict[str, float]:
    excess = midpoint_excess(vertex(dimension), uniform(dimension), alpha)
    return _excesses([excess])


def _random_pairs(dimension: int, alpha: float, draws: int, seed: int) -> dict[str, float]:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    excesses = [
        midpoint_excess(
            random_distribution(dimension, generator),
            random_distribution(dimension, generator),
            alpha,
        )
        for _ in range(draws)
    ]
    return _excesses(excesses)


def _mixing(dimension: int, alpha: float, draws: int, seed: int) -> dict[str, float]:
    """Slack of Schur-concavity: mixing never lowers the entropy."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    slacks = []
    for _ in range(draws):
        p = random_distribution(dimension, generator)
        mixed = random_mixing(p, generator)
        slacks.append(renyi_entropy(mixed, alpha) - renyi_entropy(p, alpha))
    return {"slack": min(slacks)}


def _maximum(dimension: int, alpha: float, draws: int, seed: int) -> dict[str, float]:
    """Slack of the maximum: no distribution exceeds the uniform one."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    entropies = [
        renyi_entropy(random_distribution(dimension, generator), alpha) for _ in range(draws)
    ]
    return {"slack": renyi_entropy(uniform(dimension), alpha) - max(entropies)}


def _order(dimension: int, draws: int, seed: int) -> dict[str, float]:
    """Slack of monotonicity: the smallest drop between neighbouring orders of the paper's grid."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drops: list[float] = []
    for _ in range(draws):
        p = random_distribution(dimension, generator)
        entropies = [renyi_entropy(p, alpha) for alpha in PAPER_ALPHAS]
        drops.extend(low - high for low, high in pairwise(entropies))
    return {"slack": min(drops)}


FACTS_AT_ONE_ORDER = {
    "two vertices": _two_vertices,
    "vertex and uniform": _vertex_and_uniform,
    "random pairs": _random_pairs,
    "mixing": _mixing,
    "maximum": _maximum,
}


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure by how much one fact holds, or fails, in one family of distributions."""
    dimension, draws, seed = (configuration[name] for name in ("dimension", "draws", "seed"))
    if configuration["fact"] == "order":
        return _order(dimension, draws, seed)
    fact = FACTS_AT_ONE_ORDER[configuration["fact"]]
    return fact(dimension, configuration["alpha"], draws, seed)


STUDY = Study(
    name="entropy_facts",
    question="Which general statements about the Rényi entropy are true, at which orders?",
    grid=grid_of("entropy_facts"),
    run=run,
)
