"""A small residual network, trained on five thousand handwritten digits (chapter 1)."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paperkit import checkpoint, data, models
from paperkit.experiments import Cost, RunContext, Study
from paperkit.experiments.grids import grid_of, profiles_of
from paperkit.training import evaluate, train


def _setting(profile: str) -> dict[str, Any]:
    (first, *_) = grid_of("mnist5k_training")(profile)
    return {name: value for name, value in first.items() if name != "seed"}


SETTINGS = {profile: _setting(profile) for profile in profiles_of("mnist5k_training")}
"""What is trained at each profile, apart from the seed. The paper's own networks are not here."""


def load_images(
    setting: dict[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> data.ImageData:
    """Load a setting's data set, with at most ``images`` training images, always the same ones."""
    everything = data.load(setting["dataset"], device=device, dtype=dtype)
    if len(everything.train) <= setting["images"]:
        return everything
    return data.load(setting["dataset"], train_size=setting["images"], device=device, dtype=dtype)


def build_model(setting: dict[str, Any], images: data.ImageData, seed: int) -> nn.Module:
    """Build a setting's network for the images; its initial weights are drawn from ``seed``."""
    return models.build(
        setting["model"],
        in_channels=images.shape[0],
        num_classes=images.num_classes,
        input_shape=images.shape,
        seed=seed,
    )


def train_model(
    model: nn.Module, images: data.ImageData, setting: dict[str, Any], seed: int, **options: Any
) -> None:
    """Train a network as a setting says; ``options`` go to :func:`paperkit.training.train`."""
    train(
        model,
        images.train,
        epochs=setting["epochs"],
        batch_size=setting["batch_size"],
        lr=setting["lr"],
        seed=seed,
        **options,
    )


def load_trained(
    setting: dict[str, Any], path: Path, images: data.ImageData, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """Read a trained network from a run's checkpoint, in float64 unless said."""
    model = build_model(setting, images, seed=0)
    model.load_state_dict(checkpoint.load(path)["model"])
    return model.to(device=images.train.inputs.device, dtype=dtype)


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Train one network; its weights stay in the run's checkpoint."""
    images = load_images(configuration, context.device)
    return _trained(configuration, images, images.train, context)


def _trained(
    configuration: dict[str, Any], images: data.ImageData, part: data.Split, context: RunContext
) -> dict[str, Any]:
    """Train a network on a part of the images, and evaluate it on all."""
    seed = configuration["seed"]
    model = build_model(configuration, images, seed)
    train_model(
        model,
        replace(images, train=part),
        configuration,
        seed,
        checkpoint=context.checkpoint,
        progress=context.progress,
    )
    on_training, on_test = evaluate(model, images.train), evaluate(model, images.test)
    return {
        "train_loss": on_training.loss,
        "train_accuracy": on_training.accuracy,
        "test_loss": on_test.loss,
        "test_accuracy": on_test.accuracy,
        "test_images": on_test.n,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def cost(configuration: dict[str, Any]) -> Cost:
    """Return the steps of a training run; they grow with the batch."""
    batch, epochs = configuration["batch_size"], configuration["epochs"]
    steps = epochs * ceil(configuration["images"] / batch)
    name = f"{configuration['model']} on {configuration['dataset']}"
    return Cost(name, steps, "optimizer steps", size=batch)


def trial(configuration: dict[str, Any], steps: int, context: RunContext) -> None:
    """Train for so few steps, and evaluate as a run does."""
    images = load_images(configuration, context.device)
    index = torch.arange(steps * configuration["batch_size"], device=context.device)
    index %= len(images.train)
    part = data.Split(images.train.inputs[index], images.train.targets[index])
    _trained({**configuration, "epochs": 1}, images, part, context)


STUDY = Study(
    name="mnist5k_training",
    question="How well does a small residual network learn 4,000 digits in a minute?",
    grid=grid_of("mnist5k_training"),
    run=run,
    trained=True,
    cost=cost,
    trial=trial,
)
