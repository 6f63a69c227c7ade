"""Trials of hyper-parameters, on validation data: as many for each method of the comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from paperkit import data
from paperkit.data import Split
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies._methods import METHODS
from paperkit.experiments.studies.population_training import build_model, load_images
from paperkit.training import TrainingResult, evaluate, train


@dataclass(frozen=True)
class Cell:
    """A data set and an architecture; those of the population's cells of the same names."""

    dataset: str
    model: str
    images: int
    epochs: int
    batch_size: int
    weight_decay: float


CELLS: dict[str, dict[str, Cell]] = {
    "smoke": {"mlp": Cell("mnist5k", "mlp", 120, 1, 48, 0.004)},
    "laptop": {
        "mlp": Cell("mnist5k", "mlp", 4000, 20, 48, 0.004),
        "vgg": Cell("fashion-mnist", "vgg_tiny", 5000, 20, 48, 0.004),
    },
    "paper": {
        "resnet20, CIFAR-10": Cell("cifar10", "resnet20", 50_000, 200, 128, 5e-4),
        "resnet56, CIFAR-10": Cell("cifar10", "resnet56", 50_000, 200, 128, 5e-4),
        "wrn28_10, CIFAR-10": Cell("cifar10", "wrn28_10", 50_000, 200, 128, 5e-4),
        "resnet20, CIFAR-100": Cell("cifar100", "resnet20", 50_000, 200, 128, 5e-4),
        "resnet56, CIFAR-100": Cell("cifar100", "resnet56", 50_000, 200, 128, 5e-4),
        "wrn28_10, CIFAR-100": Cell("cifar100", "wrn28_10", 50_000, 200, 128, 5e-4),
        "resnet50, Tiny ImageNet": Cell(
            "tiny-imagenet", "resnet50_tinyimagenet", 100_000, 100, 128, 1e-4
        ),
    },
}
"""What is trained at each profile. The paper's are those of the Rényi paper's Table 1; the laptop's
weight decay is the paper's, times eight for an eighth of the steps."""

HELD_OUT = 0.2
"""Part of the training images on which trials are judged."""

SMOKE_METHODS = ("SGD", "RSAM")
SEED = 100
"""Seed of every trial; the comparison's own seeds are others."""


def methods_of(profile: str) -> list[str]:
    """Return the names of the methods that a profile compares."""
    return list(SMOKE_METHODS) if profile == "smoke" else list(METHODS)


def setting_of(profile: str, name: str) -> dict[str, Any]:
    """Return the entries of a configuration that describe a cell."""
    cell = CELLS[profile][name]
    return {
        "cell": name,
        "dataset": cell.dataset,
        "model": cell.model,
        "images": cell.images,
        "augmented": profile == "paper",
        "batch_size": cell.batch_size,
        "weight_decay": cell.weight_decay,
    }


def trials(profile: str, cell: str, method: str) -> list[dict[str, Any]]:
    """Return the configurations of a method's trials in a cell."""
    epochs = CELLS[profile][cell].epochs
    return [
        {**setting_of(profile, cell), "epochs": epochs, "method": method, **chosen, "seed": SEED}
        for chosen in METHODS[METHODS[method].tuned_as or method].trials()
    ]


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: every trial of every method that has its own."""
    return [
        trial
        for cell in CELLS[profile]
        for method in methods_of(profile)
        if not METHODS[method].tuned_as
        for trial in trials(profile, cell, method)
    ]


def parts(images: data.ImageData) -> tuple[Split, Split]:
    """Divide the training part into one to train on and one to judge trials on."""
    inputs, targets = images.train.inputs, images.train.targets
    count = len(targets) - round(HELD_OUT * len(targets))
    return Split(inputs[:count], targets[:count]), Split(inputs[count:], targets[count:])


def chosen_of(configuration: dict[str, Any]) -> dict[str, float]:
    """Return the tuned values that a configuration holds, with the cell's weight decay."""
    method = METHODS[configuration["method"]]
    names = METHODS[method.tuned_as or configuration["method"]].tuned
    return {name: configuration[name] for name in (*names, "weight_decay")}


def train_by(
    model: nn.Module,
    part: Split,
    configuration: dict[str, Any],
    context: RunContext,
    chosen: dict[str, float],
) -> TrainingResult | None:
    """Train a network by a method; None if the loss or a weight ceased to be finite."""
    method = METHODS[configuration["method"]]
    epochs = configuration["epochs"]
    try:
        return train(
            model,
            part,
            epochs=epochs,
            batch_size=configuration["batch_size"],
            optimizer=method.make(model, chosen),
            warmup_epochs=epochs / 20 if method.scheduled else 0.0,
            schedule="cosine" if method.scheduled else "constant",
            augment=configuration["augmented"],
            seed=configuration["seed"],
            checkpoint=context.checkpoint,
            checkpoint_every=epochs,
            progress=context.progress,
        )
    except FloatingPointError:
        return None


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Train one network on four fifths of the training images and judge it on the others."""
    images = load_images(configuration, context.device)
    for_training, held_out = parts(images)
    model = build_model(configuration, images, configuration["seed"])
    result = train_by(model, for_training, configuration, context, chosen_of(configuration))
    found = None if result is None else evaluate(model, held_out)
    usable = found is not None and math.isfinite(found.loss)
    return {
        "diverged": not usable,
        "accuracy": found.accuracy if found is not None and usable else 0.0,
        "loss": found.loss if found is not None and usable else None,
    }


STUDY = Study(
    name="optimizer_tuning",
    question="Which hyper-parameters suit each optimizer, judged by validation data with the same "
    "number of trials?",
    grid=grid,
    run=run,
    trained=True,
)
