"""The same changes of parameters on networks that were trained on real data (chapter 3).

The digits of 8 × 8 pixels are averaged to 4 × 4, so that the Hessian in all the weights of a
network of three layers is small enough to be written out.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from paperkit import data
from paperkit.experiments import RunContext, Study
from paperkit.experiments.grids import grid_of
from paperkit.experiments.studies.reparametrization import Measures, Problem, changes, measure
from paperkit.models.small import build_dense_network
from paperkit.training import evaluate, train

SAMPLES = 100


@cache
def trained_problem(
    network: str, seed: int, width: int, epochs: int
) -> tuple[Problem, Measures, float]:
    """Train a network on the digits; return it with training images, measured, and its accuracy.

    Each network is trained once in a process, whatever the number of its transformations.
    """
    widths = (16, width, width, 10)
    digits = data.load("digits", dtype=torch.float64)
    model = nn.Sequential(
        nn.AvgPool2d(2), nn.Flatten(), *build_dense_network(network, seed, widths)
    )
    train(model, digits.train, epochs=epochs, lr=0.05, weight_decay=0.0, seed=seed, progress=False)
    accuracy = evaluate(model, digits.test).accuracy
    problem = Problem(model, digits.train.inputs[:SAMPLES], digits.train.targets[:SAMPLES])
    return problem, measure(problem), accuracy


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one trained network before and after one change of its parameters."""
    problem, before, accuracy = trained_problem(
        *(configuration[name] for name in ("network", "seed", "width", "epochs"))
    )
    return {**changes(problem, before, configuration), "test_accuracy": accuracy}


STUDY = Study(
    name="reparametrization_digits",
    question="Does training on real data change which measures change with the parameters?",
    grid=grid_of("reparametrization_digits"),
    run=run,
    trained=True,
)
