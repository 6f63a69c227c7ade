r"""The population loss of trained networks under moves of a layer's weights.

Theorems B.1 and D.1 of the Rényi paper assume :math:`L(D, \theta) \le L(D, \theta + \Delta)` "for
the final solution". The moves are those of its equation 2: a layer's weight W becomes W + ρWQ with
an orthogonal matrix Q from the Haar measure. As often as Q this draws −Q, so that both are used:
their mean is free of the first-order change, which would hide the mean rise at a small radius.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.bounds.renyi import haar_matrices
from paperkit.data import Split
from paperkit.experiments import RunContext, Study
from paperkit.experiments.grids import grid_of
from paperkit.experiments.studies._divided_digits import (
    STANDARD_ERRORS,
    build,
    divided,
    fit,
    mean_and_error,
    radii,
)

NETWORKS: dict[str, tuple[str, dict[str, str]]] = {
    "ReLU MLP": ("mlp", {}),
    "tanh MLP": ("mlp", {"activation": "tanh"}),
    "LeNet-5": ("lenet5", {}),
}
"""Architecture and options by the network's name in the grid."""


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weight of each linear or convolutional layer, by the layer's name."""
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _losses(model: nn.Module, part: Split) -> Tensor:
    """Return each sample's cross-entropy and whether its label is missed, shape (2, n)."""
    logits = model(part.inputs).double()
    losses = nn.functional.cross_entropy(logits, part.targets, reduction="none")
    return torch.stack([losses, (logits.argmax(dim=1) != part.targets).double()])


@torch.no_grad()
def rises(model: nn.Module, part: Split, weight: Tensor, matrices: Tensor, rho: float) -> Tensor:
    """Return what W ↦ W ± ρWQ adds to each sample's cross-entropy and misses, (2, pairs, 2, n).

    The first dimension tells the two losses apart, the second the matrices, the third the signs.
    A convolution's weight has a row for each of its output channels. The weight is left as it was.
    """
    before, start = _losses(model, part), weight.detach().clone()
    found = []
    for matrix in matrices.to(start):
        move = rho * (start.flatten(1) @ matrix).reshape(start.shape)
        for sign in (1.0, -1.0):
            weight.copy_(start + sign * move)
            found.append(_losses(model, part) - before)
    weight.copy_(start)
    return torch.stack(found, dim=1).unflatten(1, (len(matrices), 2))


def summarized(changes: Tensor) -> dict[str, float]:
    """Return the mean of one loss's changes, shape (pairs, 2, n), and how sure it is.

    The standard error has a part of the images and one of the matrices. An upper end lies four
    standard errors above its estimate, so that it is negative only where a fall is no chance.
    """
    pairs = changes.mean(dim=1)
    mean, of_images = mean_and_error(pairs.mean(dim=0))
    _, of_matrices = mean_and_error(pairs.mean(dim=1))
    error = math.hypot(of_images, of_matrices)
    single = [mean_and_error(change) for change in changes.flatten(0, 1)]
    return {
        "rise": mean,
        "standard_error": error,
        "upper_end": mean + STANDARD_ERRORS * error,
        "share_that_lower": sum(value < 0 for value, _ in single) / len(single),
        "least_single_upper_end": min(value + STANDARD_ERRORS * one for value, one in single),
        "least_rise_of_a_pair": float(pairs.mean(dim=1).min()),
    }


def measured(
    model: nn.Module, part: Split, configuration: dict[str, Any]
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return the summaries of cross-entropy and error, by layer and radius."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {"loss": {}, "error": {}}
    for name, weight in weights(model).items():
        columns = weight[0].numel()
        matrices = haar_matrices(columns, configuration["pairs"], configuration["seed"])
        for of_loss in found.values():
            of_loss[name] = {}
        for rho in radii(configuration):
            changes = rises(model, part, weight, matrices, rho)
            for of_loss, change in zip(found.values(), changes, strict=True):
                of_loss[name][f"{rho:g}"] = summarized(change)
    return found


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure the rises at one network, before it is trained and after."""
    seed = configuration["seed"]
    sample, population = divided([configuration["images"]], seed)
    network, options = NETWORKS[configuration["network"]]
    model = build(network, seed, **options)
    start = measured(model, population, configuration)["loss"]
    fit(model, sample, configuration["epochs"], seed)
    end = measured(model, population, configuration)
    with torch.no_grad():
        (loss, error), (_, training_error) = (
            _losses(model, part).mean(dim=1).tolist() for part in (population, sample)
        )

    def of(found: dict[str, Any], name: str) -> dict[str, dict[str, float]]:
        return {layer: {rho: one[name] for rho, one in by.items()} for layer, by in found.items()}

    *_, last = start
    return {
        "test_loss": loss,
        "test_error": error,
        "training_error": training_error,
        "mean_rise": of(end["loss"], "rise"),
        "mean_rise_standard_error": of(end["loss"], "standard_error"),
        "share_that_lower": of(end["loss"], "share_that_lower"),
        "least_single_upper_end": of(end["loss"], "least_single_upper_end"),
        "error_rise": of(end["error"], "rise"),
        "error_rise_upper_end": of(end["error"], "upper_end"),
        "start_rise": of(start, "rise"),
        "start_rise_upper_end": of(start, "upper_end"),
        "last_layer_rise_of_a_pair": [
            one["least_rise_of_a_pair"]
            for found in (start, end["loss"])
            for one in found[last].values()
        ],
    }


STUDY = Study(
    name="renyi_perturbed_test_loss",
    question="Does perturbing a trained network's weights raise its test loss, layer by layer?",
    grid=grid_of("renyi_perturbed_test_loss"),
    run=run,
    trained=True,
)
