"""A small residual network, trained on five thousand handwritten digits (chapter 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from paperkit import checkpoint, data, models
from paperkit.experiments import RunContext, Study
from paperkit.training import evaluate, train

SETTINGS: dict[str, dict[str, Any]] = {
    "smoke": {
        "dataset": "mnist5k",
        "model": "resnet8",
        "images": 128,
        "epochs": 1,
        "batch_size": 64,
        "lr": 0.05,
    },
    "laptop": {
        "dataset": "mnist5k",
        "model": "resnet8",
        "images": 4000,
        "epochs": 8,
        "batch_size": 64,
        "lr": 0.05,
    },
}
"""What is trained at each profile, apart from the seed. The paper's own networks are not here."""

# The chapter trains seed 0 on the reader's machine and compares it with these.
SEEDS = range(1, 6)


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


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: five seeds (smoke: one); nothing at the paper profile."""
    if profile == "paper":
        return []
    seeds = SEEDS[:1] if profile == "smoke" else SEEDS
    return [{**SETTINGS[profile], "seed": seed} for seed in seeds]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Train one network; its weights stay in the run's checkpoint."""
    images = load_images(configuration, context.device)
    seed = configuration["seed"]
    model = build_model(configuration, images, seed)
    train_model(
        model,
        images,
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


STUDY = Study(
    name="mnist5k_training",
    question="How well does a small residual network learn 4,000 digits in a minute?",
    grid=grid,
    run=run,
    trained=True,
)
