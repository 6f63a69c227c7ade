"""How the trace of the Hessian goes with the loss as a network fits digits ever more closely.

A small network is trained in full batches, under cross-entropy or the squared error, until its loss
is below each of several levels; the trace is measured at each.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import nn

from paperkit import data
from paperkit.curvature import dense_hessian
from paperkit.experiments import RunContext, Study
from paperkit.models.small import build_dense_network
from paperkit.network import get_loss

LOSSES = ("cross_entropy", "half_squared_error")
LEVELS = (-1, -2, -3, -4)
"""Decimal logarithms of the losses at which the trace is measured."""
IMAGES = {"smoke": 20, "laptop": 60, "paper": 60}
LAST_LEVEL = {"smoke": -2, "laptop": -4, "paper": -4}
LEARNING_RATE = 0.01
MOST_STEPS = 20_000


@cache
def traces(loss: str, images: int, last: int, seed: int) -> dict[int, dict[str, float]]:
    """Train one network down to each level, and measure it there.

    Digits are averaged to 4 × 4 pixels; each network is trained once in a process.
    """
    digits = data.load("digits", dtype=torch.float64).train
    inputs, labels = digits.inputs[:images], digits.targets[:images]
    targets = nn.functional.one_hot(labels, 10).double() if loss == LOSSES[1] else labels
    network = build_dense_network("tanh", seed, (16, 16, 10))
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), *network)
    value = get_loss(loss).value
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    found: dict[int, dict[str, float]] = {}
    steps = 0
    for level in [k for k in LEVELS if k >= last]:
        while float((current := value(model(inputs), targets)).detach()) > 10.0**level:
            if steps == MOST_STEPS:
                raise ValueError(f"seed {seed} is not below 1e{level} after {steps} steps.")
            optimizer.zero_grad()
            current.backward()
            optimizer.step()
            steps += 1
        trace = float(dense_hessian(model, inputs, targets, loss).trace())
        first = found[LEVELS[0]]["trace"] if found else trace
        found[level] = {
            "trace": trace,
            "log10_trace": math.log10(abs(trace)),
            "share_of_first": trace / first,
            "loss": float(current.detach()),
            "steps": steps,
        }
    return found


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: each loss and level by seed."""
    seeds = {"smoke": 1, "laptop": 6, "paper": 20}[profile]
    last = LAST_LEVEL[profile]
    return [
        {"loss": loss, "log10_loss": level, "images": IMAGES[profile], "last": last, "seed": seed}
        for loss in LOSSES
        for level in LEVELS
        if level >= last
        for seed in range(seeds)
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Return the trace at one level of the loss."""
    trained = traces(*(configuration[name] for name in ("loss", "images", "last", "seed")))
    return trained[configuration["log10_loss"]]


STUDY = Study(
    name="cross_entropy_limit",
    question="Does the trace of the Hessian vanish with the loss as a network is trained?",
    grid=grid,
    run=run,
    trained=True,
)
