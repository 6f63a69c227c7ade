"""Digits in parts that were drawn alike: some to train on, the rest to estimate population losses.

The images are the 5,000 digits of ``mnist5k``, averaged to 14 × 14 pixels so that a random
orthogonal matrix on the inputs is cheap to draw. A seed shuffles all of them, so that every part is
a fair sample of the same images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from paperkit import data, models
from paperkit.data import Split
from paperkit.training import train

CLASSES, PIXELS = 10, 14

STANDARD_ERRORS = 4.0
"""Distance from an estimate, in its standard errors, beyond which chance is no explanation."""


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Return all images, shape (5000, 1, 14, 14), and their labels."""
    digits = data.load("mnist5k")
    inputs = torch.cat([digits.train.inputs, digits.test.inputs])
    targets = torch.cat([digits.train.targets, digits.test.targets])
    return nn.functional.avg_pool2d(inputs, 2), targets


def divided(sizes: Sequence[int], seed: int, labels: str = "true") -> list[Split]:
    """Return random parts of these sizes, and all other images as the last part.

    Parameters
    ----------
    sizes : sequence of int
        Number of images of each part but the last.
    seed : int
        Seed of the shuffle and of random labels.
    labels : {"true", "random"}
        Whether an image keeps its label, or gets one that is drawn from all classes alike.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    inputs, targets = _digits()
    order = torch.randperm(len(targets), generator=generator, device="cpu")
    if labels == "random":
        targets = torch.randint(CLASSES, targets.shape, generator=generator, device="cpu")
    parts = order.split([*sizes, len(order) - sum(sizes)])
    return [Split(inputs[part], targets[part]) for part in parts]


def build(network: str, seed: int, **options: str) -> nn.Module:
    """Return an untrained network for these images."""
    shape = (1, PIXELS, PIXELS)
    return models.build(
        network, in_channels=1, num_classes=CLASSES, input_shape=shape, seed=seed, **options
    ).eval()


def fit(model: nn.Module, sample: Split, epochs: int, seed: int) -> None:
    """Train a network on a sample, without weight decay, until hardly any of it is missed."""
    train(
        model,
        sample,
        epochs=epochs,
        batch_size=50,
        lr=0.05,
        weight_decay=0.0,
        seed=seed,
        progress=False,
    )
    model.eval()


def radii(configuration: dict[str, str]) -> list[float]:
    """Return the radii of a configuration, which lists them in one text."""
    return [float(radius) for radius in configuration["radii"].split()]


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of independent values, shape (n,), and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))
