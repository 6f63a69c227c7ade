"""The Rényi sharpness of all layers on as many images as the paper takes, with its error stated.

A residual network of 20 layers is trained, and measured by leading directions and probes: on a few
images, where the exact spectrum is known too, and on the paper's 2,000, where it is out of reach.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from paperkit import data
from paperkit.estimators import deflated_renyi_sharpness, layer_spectra, renyi_entropy
from paperkit.estimators.plan import Gradient
from paperkit.experiments import RunContext, Study
from paperkit.experiments.grids import grid_of
from paperkit.experiments.studies.population_training import build_model, load_images
from paperkit.memory import GIBIBYTE
from paperkit.network import get_loss
from paperkit.training import evaluate, train

ORDERS = (0.5, 1.5)
ALLOWED = 0.02
"""Error of an entropy, in nats, that the claim allows."""

GRADIENTS = 150
"""Gradients of the same images that the claim allows for all layers."""

LIKELY, SURE = 2.0, 5.0
"""Standard uncertainties that are stated, and that a comparison of 80 values may show."""

MEMORY = 7 * GIBIBYTE


@lru_cache(maxsize=1)
def trained(names: tuple[tuple[str, Any], ...]) -> tuple[nn.Module, data.ImageData, float, float]:
    """Train a network; return it, its images, its training loss and its test accuracy.

    The runs of one network come one after another and share it.
    """
    configuration = dict(names)
    images = load_images(configuration)
    network = build_model(configuration, images, configuration["seed"])
    options = {name: configuration[name] for name in ("epochs", "batch_size", "lr", "seed")}
    train(network, images.train, progress=False, **options)
    on_training, on_test = evaluate(network, images.train), evaluate(network, images.test)
    return network, images, on_training.loss, on_test.accuracy


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Measure all layers of a network; where that is asked for, beside their exact spectra.

    ``stated`` is twice the standard uncertainty, in which a bracket counts as an even distribution
    and the probes by their standard error (*Guide to the expression of uncertainty in measurement*,
    4.3.7 and 5.1.2). ``error`` the difference from the exact
    entropy. ``gradients`` counts the operations of all products and convolutions, in those of a
    gradient of the mean loss over the same images.
    """
    names = ("dataset", "model", "images", "epochs", "batch_size", "lr", "seed")
    network, images, loss, accuracy = trained(tuple((name, configuration[name]) for name in names))
    n, rank = configuration["n"], configuration["rank"]
    part = images.train.inputs[:n], images.train.targets[:n]
    gradient = Gradient.of(network.eval(), part, get_loss("cross_entropy"))
    with FlopCounterMode(display=False) as counter:
        found = deflated_renyi_sharpness(
            network,
            part,
            ORDERS,
            rank=rank,
            probes=configuration["probes"],
            max_steps=configuration["steps"],
            seed=configuration["seed"],
            memory_budget=MEMORY,
        )
    by_layer = {name: orders for name, orders in found.items() if isinstance(orders, dict)}
    gradients = counter.get_total_flops() / gradient.operations
    exact = layer_spectra(network, part, memory_budget=MEMORY) if configuration["exact"] else {}
    metrics: dict[str, Any] = {
        "train_loss": loss,
        "test_accuracy": accuracy,
        "gradients": gradients,
        "gradients_slack": GRADIENTS - gradients,
        "layers": list(by_layer),
    }
    for name in ("entropy", "stated", "standard_error", "stated_slack", "error", "within_slack"):
        metrics[name] = {}
    metrics["rest_share"] = {
        layer: by_order[0.5].assumptions.get("left_to_probes", 0.0)
        for layer, by_order in by_layer.items()
    }
    metrics["steps"] = {
        layer: by_order[0.5].assumptions.get("steps", 0) for layer, by_order in by_layer.items()
    }
    for layer, by_order in by_layer.items():
        for order, result in by_order.items():
            key = f"{layer}, {order}"
            half = 0.0 if result.bracket is None else (result.bracket[1] - result.bracket[0]) / 2
            noise = result.standard_error or 0.0
            metrics["entropy"][key] = -result.value
            metrics["standard_error"][key] = noise
            uncertainty = (noise**2 + half**2 / 3.0) ** 0.5
            metrics["stated"][key] = LIKELY * uncertainty
            metrics["stated_slack"][key] = ALLOWED - LIKELY * uncertainty
            if layer in exact:
                error = -result.value - renyi_entropy(exact[layer].eigenvalues, order)
                metrics["error"][key] = error
                # Values that are exact both times differ by round-off in single precision.
                metrics["within_slack"][key] = half + SURE * noise + 1e-3 - abs(error)
    return metrics


STUDY = Study(
    name="renyi_many_samples",
    question="What does the Rényi sharpness of all layers cost on the paper's 2,000 images, and "
    "how far is it off?",
    grid=grid_of("renyi_many_samples"),
    run=run,
    trained=True,
    round_off=1e-3,
)
