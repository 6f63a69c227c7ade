"""Networks to correlate: thirty in each cell, which differ in how they were trained.

The grid is that of the Rényi paper's Appendix G.3.1: three pairs of learning rate and batch size,
five weight decays, two optimizers, a warm-up of a twentieth of the epochs, half a cosine after it.
At the laptop profile the networks and the data are smaller:

* the training part has a tenth of the paper's images, and a batch an eighth of its samples, so that
  an epoch has about as many steps;
* training takes a tenth of the epochs, hence an eighth of the steps, and a weight decay is eight
  times the paper's, because learning rate times decay times steps is how far the weights shrink.

Where the paper's smallest learning rates break the proportion that it states (its batches are as
1 : 3 : 10), the proportion is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paperkit import checkpoint, data, models
from paperkit.experiments import RunContext, Study
from paperkit.training import evaluate, train

PAIRS = ((1, 128), (3, 384), (10, 1280))
"""Multiples of an optimizer's smallest learning rate, and the paper's batch sizes."""

SMALLEST_RATE = {"sgd": 0.01, "adam": 1e-4}
WEIGHT_DECAYS = (1e-5, 5e-5, 1e-4, 3e-4, 5e-4)
TINY_IMAGENET_DECAYS = (3e-6, 1e-5, 3e-5, 5e-5, 1e-4, 3e-4)
LAPTOP_SCALE = 8
"""By what the paper's batches are divided, and its weight decays multiplied."""

INTERPOLATES = 0.999
"""A network interpolates that classifies at least this part of its training images correctly."""


@dataclass(frozen=True)
class Cell:
    """A data set and an architecture, of which thirty networks are trained."""

    dataset: str
    model: str
    images: int
    epochs: int
    seeds: int = 1
    options: dict[str, Any] = field(default_factory=dict)


CELLS: dict[str, dict[str, Cell]] = {
    "smoke": {"mlp": Cell("mnist5k", "mlp", 128, 1)},
    "laptop": {
        "mlp": Cell("mnist5k", "mlp", 4000, 20, seeds=3),
        "vgg": Cell("fashion-mnist", "vgg_tiny", 5000, 20),
        "resnet": Cell("fashion-mnist", "resnet8", 5000, 20),
        "vit": Cell(
            "fashion-mnist",
            "vit_tiny",
            5000,
            20,
            options={"patch": 4, "dim": 32, "depth": 3, "heads": 4, "mlp_dim": 64},
        ),
    },
    "paper": {
        "resnet18, CIFAR-10": Cell("cifar10", "resnet18", 50_000, 200),
        "resnet34, CIFAR-10": Cell("cifar10", "resnet34", 50_000, 200),
        "vit, CIFAR-10": Cell("cifar10", "simple_vit", 50_000, 200),
        "resnet18, CIFAR-100": Cell("cifar100", "resnet18", 50_000, 200),
        "resnet34, CIFAR-100": Cell("cifar100", "resnet34", 50_000, 200),
        "resnet18, Tiny ImageNet": Cell("tiny-imagenet", "resnet18_tinyimagenet", 100_000, 200),
    },
}
"""What is trained at each profile."""


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations of all cells; at smoke, one network of each optimizer."""
    return [
        configuration
        for name, cell in CELLS[profile].items()
        for configuration in _grid_of(profile, name, cell)
    ]


def _grid_of(profile: str, name: str, cell: Cell) -> list[dict[str, Any]]:
    scale = 1 if profile == "paper" else LAPTOP_SCALE
    is_tiny = cell.dataset == "tiny-imagenet"
    decays: tuple[float, ...] = TINY_IMAGENET_DECAYS if is_tiny else WEIGHT_DECAYS
    pairs, decays = (PAIRS[-1:], decays[-1:]) if profile == "smoke" else (PAIRS, decays)
    return [
        {
            "cell": name,
            "dataset": cell.dataset,
            "model": cell.model,
            **cell.options,
            "images": cell.images,
            "augmented": profile == "paper",
            "epochs": cell.epochs,
            "optimizer": optimizer,
            "lr": float(f"{multiple * rate:.6g}"),
            "batch_size": batch_size // scale,
            "weight_decay": float(f"{decay * scale:.6g}"),
            "seed": seed,
        }
        for seed in range(cell.seeds)
        for optimizer, rate in SMALLEST_RATE.items()
        for multiple, batch_size in pairs
        for decay in decays
    ]


_OPTIONS = ("patch", "dim", "depth", "heads", "mlp_dim")


def load_images(
    configuration: dict[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> data.ImageData:
    """Load the data set, with at most ``images`` training images, the same ones for all runs."""
    everything = data.load(configuration["dataset"], device=device, dtype=dtype)
    size = configuration["images"]
    if len(everything.train) <= size:
        return everything
    return data.load(configuration["dataset"], train_size=size, device=device, dtype=dtype)


def build_model(configuration: dict[str, Any], images: data.ImageData, seed: int) -> nn.Module:
    """Build the network for the images; its initial weights are drawn from ``seed``."""
    return models.build(
        configuration["model"],
        in_channels=images.shape[0],
        num_classes=images.num_classes,
        input_shape=images.shape,
        seed=seed,
        **{name: configuration[name] for name in _OPTIONS if name in configuration},
    )


def load_trained(
    configuration: dict[str, Any],
    path: Path,
    images: data.ImageData,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """Read a trained network from its run's checkpoint."""
    model = build_model(configuration, images, seed=0)
    model.load_state_dict(checkpoint.load(path)["model"])
    return model.to(device=images.train.inputs.device, dtype=dtype)


def _optimizer(configuration: dict[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    options = {"lr": configuration["lr"], "weight_decay": configuration["weight_decay"]}
    if configuration["optimizer"] == "adam":
        return partial(torch.optim.Adam, **options)
    return partial(torch.optim.SGD, momentum=0.9, **options)


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Train one network to the end of its schedule; its weights stay in the run's checkpoint.

    ``gap`` is the paper's generalization gap, test loss less training loss, in nats.
    """
    images = load_images(configuration, context.device)
    seed = configuration["seed"]
    model = build_model(configuration, images, seed)
    result = train(
        model,
        images.train,
        epochs=configuration["epochs"],
        batch_size=configuration["batch_size"],
        optimizer=_optimizer(configuration),
        warmup_epochs=configuration["epochs"] / 20,
        augment=configuration["augmented"],
        seed=seed,
        checkpoint=context.checkpoint,
        checkpoint_every=configuration["epochs"],
        progress=context.progress,
    )
    on_training, on_test = evaluate(model, images.train), evaluate(model, images.test)
    return {
        "train_loss": on_training.loss,
        "train_accuracy": on_training.accuracy,
        "test_loss": on_test.loss,
        "test_accuracy": on_test.accuracy,
        "test_images": on_test.n,
        "gap": on_test.loss - on_training.loss,
        "accuracy_gap": on_training.accuracy - on_test.accuracy,
        "interpolates": on_training.accuracy >= INTERPOLATES,
        "steps": result.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


STUDY = Study(
    name="population_training",
    question="How do networks generalize that differ in optimizer, learning rate, batch size and "
    "weight decay alone?",
    grid=grid,
    run=run,
    trained=True,
)
