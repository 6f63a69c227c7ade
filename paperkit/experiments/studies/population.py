"""Every measure of the four papers, and their baselines, on the networks of `population_training`.

All measures of one network are taken on the same training images, the first n of the training part,
in evaluation mode and in float64.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from paperkit.bounds.compression import compression_bounds
from paperkit.estimators import MEASURES as KNOWN
from paperkit.estimators import (
    CostWarning,
    Measurement,
    Report,
    global_renyi_sharpness,
    layer_spectra,
    measure,
    renyi_entropy,
    renyi_sharpness,
)
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies import population_training as training

Batch = tuple[Tensor, Tensor]

ORDERS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.2, 1.5, 2.0, 3.0)
"""Orders of the Rényi sharpness; ½ and 3/2 are the ones on which claims rest."""

SAMPLES = {"smoke": (8,), "laptop": (64,), "paper": (2000,)}
"""Training images that are measured. The Rényi paper takes 2,000."""

MORE_SAMPLES = {"mlp": (128,)}
"""Counts beside these in one cell of the laptop, to see whether ranks move."""

MEASURES = tuple(name for name in KNOWN if name not in ("renyi_sharpness", "adaptive_sharpness"))
"""All that :func:`paperkit.estimators.measure` knows but two: the Rényi sharpness is taken at more
orders here, and the whole adaptive sharpness costs more than all others together in a network with
batch normalisation (the part that the weights have is there)."""

BOUNDED_CELLS = ("mlp", "vgg")
"""Cells whose layers form a chain, so that the compression paper's bounds are about them."""

ESTIMATED_LAYERS = {
    "vit": ("embedding", "blocks.0.attention.qkv", "blocks.2.feed_forward.fc2", "fc"),
}
"""Layers of a cell whose Hessian blocks are no Gauss–Newton blocks: each step costs a product."""

LEARNED = 0.99
"""A network has learned something if its training loss is below this part of log C, the loss of
giving each of C classes the same probability."""

OF_TRAINING = (
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "gap",
    "accuracy_gap",
    "interpolates",
)


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: every trained network, at every n."""
    return [
        {**setting, "n": n}
        for setting in training.grid(profile)
        for n in SAMPLES[profile]
        + (MORE_SAMPLES.get(setting["cell"], ()) if profile != "smoke" else ())
        if n in SAMPLES[profile] or setting["seed"] == 0
    ]


def setting_of(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the training run that a measurement is of."""
    return {name: value for name, value in configuration.items() if name != "n"}


def of_layers(found: Any) -> Any:
    """Return values without what is the same for all, for measures that layers or orders have."""
    if isinstance(found, Measurement):
        if found.standard_error is None:
            return found.value
        return {"value": found.value, "standard_error": found.standard_error}
    return {_key(name): of_layers(item) for name, item in found.items()}


def _key(name: Any) -> str:
    # A criterion leads into dictionaries by dots, so that no name may have one.
    return f"{name:g}".replace(".", "_") if isinstance(name, float) else str(name).replace(".", "/")


def measures_of(report: Report) -> dict[str, Any]:
    """Return the metrics of a report: a measurement whole, those of layers by their values."""
    return {
        name: result.metrics() if isinstance(result, Measurement) else of_layers(result)
        for name, result in report.results.items()
    }


def sharpness(model: nn.Module, batch: Batch, cell: str) -> dict[str, dict[float, float]]:
    """Return the Rényi sharpness by layer and by order.

    It is exact from the layer's spectrum where the block is the Gauss–Newton block; elsewhere it is
    an estimate from two probes and sixteen steps of Lanczos's method.
    """
    if cell not in ESTIMATED_LAYERS:
        spectra = layer_spectra(model, batch)
        return {
            name: {alpha: -renyi_entropy(spectrum.eigenvalues, alpha) for alpha in ORDERS}
            for name, spectrum in spectra.items()
        }
    layers = ESTIMATED_LAYERS[cell]
    found: Any = renyi_sharpness(model, batch, ORDERS, layers=layers, probes=2, steps=16)
    return {name: {alpha: float(found[name][alpha]) for alpha in ORDERS} for name in layers}


def by_order(layers: Mapping[str, Mapping[float, float]]) -> dict[str, Any]:
    """Return the Rényi sharpness by order, written ``0_5``, and by layer, and means over layers."""
    found = {
        _key(alpha): {_key(name): orders[alpha] for name, orders in layers.items()}
        for alpha in ORDERS
    }
    return {
        "renyi": found,
        "renyi_mean": {order: fmean(values.values()) for order, values in found.items()},
        "renyi_first": {order: next(iter(values.values())) for order, values in found.items()},
        "renyi_last": {order: list(values.values())[-1] for order, values in found.items()},
        "layers": list(layers),
    }


def jointly(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Estimate the Rényi sharpness of all weights together, from 30 Hessian products."""
    found = global_renyi_sharpness(model, batch, (0.5, 1.5), method="lanczos", probes=2, steps=15)
    assert isinstance(found, dict)  # several orders were asked for
    return {_key(alpha): result.metrics() for alpha, result in found.items()}


def sides(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Return both sides of the compression paper's bounds, by the number of their equation.

    ``network_gain`` is by how much the bound of the network (equation 12) is tighter than that of
    its first layer (equation 11): the difference of the logarithms of the sides' ratios.
    """
    bounds = compression_bounds(model, batch, memory_budget=2**32)
    looseness = {n: math.log(bounds[n].right / bounds[n].left) for n in ("11", "12")}
    found: dict[str, Any] = {
        f"equation {number}": {"left": bounds[number].left, "right": bounds[number].right}
        for number in ("6", "9", "10", "11", "12", "35")
    }
    return {**found, "network_gain": looseness["11"] - looseness["12"]}


def has_learned(train_loss: float, classes: int) -> bool:
    """Return whether a network does better on its training images than a uniform prediction."""
    return train_loss < LEARNED * math.log(classes)


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure one trained network on its first n training images.

    A network that has learned nothing is told apart and not measured: where units are dead for
    every image a layer's Hessian block is zero, and its spectrum has no entropy.
    """
    setting = setting_of(configuration)
    record = context.record_of(training.STUDY.name, setting)
    path = context.checkpoint_of(training.STUDY.name, setting)
    images = training.load_images(setting, context.device)
    trained = {name: record.metrics[name] for name in OF_TRAINING}
    if not has_learned(trained["train_loss"], images.num_classes):
        return {**trained, "learned": False}
    model = training.load_trained(setting, path, images)
    n = configuration["n"]
    batch = (
        images.train.inputs[:n].to(dtype=next(model.parameters()).dtype),
        images.train.targets[:n],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CostWarning)
        report = measure(model, batch, MEASURES, strict=False)
        layers = sharpness(model, batch, setting["cell"])
        joint = jointly(model, batch)
    return {
        **trained,
        "learned": True,
        **by_order(layers),
        "renyi_joint": joint,
        "measures": measures_of(report),
        "missing": dict(report.missing),
        "bounds": sides(model, batch) if setting["cell"] in BOUNDED_CELLS else {},
    }


STUDY = Study(
    name="population",
    question="How do the measures of the four papers, and their baselines, go with the "
    "generalization gap among networks that differ in how they were trained?",
    grid=grid,
    run=run,
    needs=(training.STUDY.name,),
    trained=True,
    round_off=1e-6,
)
