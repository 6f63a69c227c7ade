r"""Proposition 3.1 of the Rényi paper at networks that were trained until they recall their sample.

The bound says :math:`L(D, \theta) \le E_Q L(S(Q, \rho), \theta) + \sqrt{\log(1/\delta) / 2n}` for
losses in [0, 1]. Its proof needs a sample S that the parameters do not depend on. Here they do:
networks are trained on S, with its own labels or with random ones. The loss is the error, the share
of missed labels. For random labels the population error is 9/10 at every network, moved or not,
because no function of the image foresees the label.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperkit.bounds.renyi import haar_matrices, haar_translation
from paperkit.data import Split
from paperkit.experiments import RunContext, Study
from paperkit.experiments.grids import grid_of
from paperkit.experiments.studies._divided_digits import (
    PIXELS,
    STANDARD_ERRORS,
    build,
    divided,
    fit,
    mean_and_error,
    radii,
)

DELTA = 0.05
"""Probability that the bound may fail."""

RECALLED = 0.01
"""Largest training error at which a network counts as one that recalls its sample."""


@torch.no_grad()
def moved_misses(model: nn.Module, part: Split, matrices: Tensor, rho: float) -> Tensor:
    """Return in what share of the moves x ↦ x + ρQx each sample's label is missed, shape (n,)."""
    flat, shape = part.inputs.flatten(1), part.inputs.shape
    misses = torch.zeros(len(part), dtype=torch.float64, device=flat.device)
    for matrix in matrices.to(flat):
        moved = (flat + rho * flat @ matrix.T).reshape(shape)
        misses += model(moved).argmax(dim=1) != part.targets
    return misses / len(matrices)


def compare(
    model: nn.Module,
    sample: Split,
    held_out: Split,
    population: Split,
    matrices: Tensor,
    rho: float,
) -> dict[str, float]:
    """Return both sides of the bound at one radius, from the training sample and from another.

    The left side of ``slack`` is the smaller one of the errors with and without moves: were moving
    to lower the error, which the proposition excludes, the other one would still be bounded. And it
    is lower than its estimate by four standard errors, in favour of the bound.
    """
    plain, error = mean_and_error(moved_misses(model, population, matrices[:1], 0.0))
    moved, moved_error = mean_and_error(moved_misses(model, population, matrices, rho))
    left = min(plain - STANDARD_ERRORS * error, moved - STANDARD_ERRORS * moved_error)
    on_sample, on_held_out = (
        haar_translation(left, moved_misses(model, part, matrices, rho), len(part), DELTA)
        for part in (sample, held_out)
    )
    return {
        "moved_population_error": moved,
        "moved_population_standard_error": moved_error,
        "bound": on_sample.right,
        "held_out_bound": on_held_out.right,
        "bound_slack": on_sample.slack,
        "held_out_slack": on_held_out.right - plain,
    }


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Train one network, and put the bound to it at each radius."""
    labels, n, seed = (configuration[name] for name in ("labels", "images", "seed"))
    sample, held_out, population = divided([n, n], seed, labels)
    model = build("mlp", seed)
    fit(model, sample, configuration["epochs"], seed)
    matrices = haar_matrices(PIXELS**2, configuration["moves"], seed)
    still = matrices[:1]
    training_error = float(moved_misses(model, sample, still, 0.0).mean())
    error, standard_error = mean_and_error(moved_misses(model, population, still, 0.0))
    found = {
        radius: compare(model, sample, held_out, population, matrices, radius)
        for radius in radii(configuration)
    }
    names = next(iter(found.values()))
    return {
        "training_error": training_error,
        "recalls": training_error <= RECALLED,
        "population_error": error,
        "population_standard_error": standard_error,
        "population_images": len(population),
        **{name: {f"{radius:g}": one[name] for radius, one in found.items()} for name in names},
    }


STUDY = Study(
    name="renyi_memorising",
    question="Does Proposition 3.1 hold at networks that were trained until they recall labels?",
    grid=grid_of("renyi_memorising"),
    run=run,
    trained=True,
)
