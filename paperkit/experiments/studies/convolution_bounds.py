"""The compression paper's bounds at small convolutional networks that were trained on digits.

They have counterexamples; the question is what happens at weights that training finds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from paperkit import data
from paperkit.bounds.compression import (
    compression_terms,
    linear_stability_bounds,
    network_sensitivity_bound,
    sensitivity_bound,
)
from paperkit.bounds.statement import Inequality
from paperkit.experiments import RunContext, Study
from paperkit.models.activations import activation_module
from paperkit.training import evaluate, train

ACTIVATIONS = ("relu", "tanh")
EPOCHS = {"smoke": 1, "laptop": 15, "paper": 15}
IMAGES = {"smoke": 8, "laptop": 32, "paper": 32}


def build(activation: str, seed: int) -> nn.Sequential:
    """Build two 3 × 3 convolutions and a linear head for 8 × 8 digits, in float64."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            activation_module(activation),
            nn.Conv2d(4, 8, 3, stride=2, padding=1),
            activation_module(activation),
            nn.Flatten(),
            nn.Linear(128, 10),
        ).double()


def excess(bound: Inequality) -> float:
    """Return left side over right side, less one: positive where the inequality fails."""
    return bound.left / bound.right - 1.0


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: both activations, trained or not, by seed."""
    seeds = {"smoke": 1, "laptop": 8, "paper": 20}[profile]
    return [
        {
            "dataset": "digits",
            "activation": activation,
            "epochs": epochs,
            "images": IMAGES[profile],
            "seed": seed,
        }
        for activation in ACTIVATIONS
        for epochs in (EPOCHS[profile], 0)
        for seed in range(seeds)
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Train one network under cross-entropy, and compare both sides of equations 5, 11 and 12.

    As printed, kernels count as matrices; ``operator`` is the norm of the layer's whole matrix, and
    ``untied`` has the gradient in that matrix, too. Equation 5 is the corrected one, at its worst
    sample.
    """
    digits = data.load("digits", dtype=torch.float64)
    model = build(configuration["activation"], configuration["seed"])
    if configuration["epochs"]:
        train(
            model,
            digits.train,
            epochs=configuration["epochs"],
            lr=0.02,
            weight_decay=0.0,
            seed=configuration["seed"],
            progress=False,
        )
    images = configuration["images"]
    terms = compression_terms(model, (digits.train.inputs[:images], digits.train.targets[:images]))
    return {
        "equation_5_excess": excess(linear_stability_bounds(terms, norm="matrix")[1]),
        "equation_5_operator_excess": excess(linear_stability_bounds(terms)[1]),
        "equation_11_excess": excess(sensitivity_bound(terms, norm="matrix")),
        "equation_12_excess": excess(network_sensitivity_bound(terms, norm="matrix")),
        "equation_12_slack": -excess(network_sensitivity_bound(terms, norm="matrix")),
        "untied_slack": -max(
            excess(linear_stability_bounds(terms, sharing="operator")[1]),
            excess(sensitivity_bound(terms, sharing="operator")),
            excess(network_sensitivity_bound(terms, sharing="operator")),
        ),
        "test_accuracy": evaluate(model, digits.test).accuracy,
    }


STUDY = Study(
    name="convolution_bounds",
    question="Do the bounds hold for convolutional networks at weights that training finds?",
    grid=grid,
    run=run,
    trained=True,
)
