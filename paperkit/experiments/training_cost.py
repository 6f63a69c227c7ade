"""What a training run costs, and its trial: a few steps on noise of the images' shape.

They serve grids whose configurations name ``model``, ``dataset``, ``batch_size``, ``optimizer``,
the number of training images (``images`` or ``train_images``), and ``epochs`` or ``steps``. No data
are read, so a network for images that are not here is timed all the same.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from math import ceil
from typing import Any

import torch

from paperkit import models
from paperkit.data import Split
from paperkit.experiments.cost import Cost
from paperkit.experiments.records import Configuration
from paperkit.experiments.sentences import suggestion
from paperkit.experiments.study import RunContext, Study
from paperkit.training import train

SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "digits": ((1, 8, 8), 10),
    "mnist5k": ((1, 28, 28), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tiny-imagenet": ((3, 64, 64), 200),
    "gaussian-mixtures": ((2,), 3),
}
"""Shape of a sample and number of classes by data set."""

GRADIENTS = {
    "sgd": 1.0,
    "adam": 1.0,
    "sam": 2.0,
    "asam": 2.0,
    # Every hundred steps there are five power iterations, of two gradients each.
    "eigen_sam": 2.1,
    "rsam": 2.0,
    # By double backward, which costs about what a second gradient does, and a half.
    "gradient_regularization": 2.5,
    # Without the factors, which are renewed every few steps.
    "igsam": 2.0,
    "sasgd": 2.0,
    "sasam": 3.0,
}
"""Gradients of a batch that a step takes, by optimizer."""

TRIAL_IMAGES = 16
"""Images in a step of a trial, at most: the time of a step grows with them on a CPU."""


def training_cost(configuration: Configuration) -> Cost:
    """Return the cost of a training run: its steps, and gradients times images for each.

    Kinds are networks with their input. The evaluations between and after the epochs are left out.

    Parameters
    ----------
    configuration : dict
        Configuration of the run.
    """
    given = configuration
    batch = int(given["batch_size"])
    an_epoch = ceil(_images(given) / batch)
    steps = given["steps"] if given.get("steps") is not None else given["epochs"] * an_epoch
    gradients = _gradients(given)
    shape, _ = _shape(given["dataset"])
    options = "".join(f", {name} {value}" for name, value in _options(given).items())
    name = f"{given['model']}{options}, {' × '.join(map(str, shape))}"
    return Cost(name, int(steps), "optimizer steps", size=gradients * batch)


def training_trial(configuration: Configuration, steps: int, context: RunContext) -> float:
    """Take plain steps on noise, of fewer images than the run's; return the part that they are.

    Parameters
    ----------
    configuration : dict
        Configuration of the run.
    steps : int
        Number of steps.
    context : RunContext
        Its device is computed on.
    """
    shape, classes = _shape(configuration["dataset"])
    batch = int(configuration["batch_size"])
    images = min(batch, TRIAL_IMAGES if len(shape) == 3 else batch)
    generator = torch.Generator(device="cpu").manual_seed(0)
    inputs = torch.randn(steps * images, *shape, generator=generator, device="cpu")
    targets = torch.randint(classes, (steps * images,), generator=generator, device="cpu")
    data = Split(inputs.to(context.device), targets.to(context.device))
    model = models.build(
        configuration["model"],
        in_channels=shape[0],
        num_classes=classes,
        input_shape=shape if len(shape) == 3 else None,
        **_options(configuration),
    ).to(context.device)
    train(model, data, epochs=1, batch_size=images, lr=1e-3, warmup_epochs=0.0, progress=False)
    return images / (batch * _gradients(configuration))


def method_cost(configuration: Configuration, part: float = 1.0) -> Cost:
    """Return the cost of training by a method of the optimizers' studies.

    Parameters
    ----------
    configuration : dict
        Configuration of the run, which names its method.
    part : float
        Part of the images that it trains on.
    """
    images = round(part * _images(configuration))
    cost = training_cost({**configuration, "optimizer": "sgd", "images": images})
    return replace(cost, size=cost.size * _evaluations(configuration))


def method_trial(configuration: Configuration, steps: int, context: RunContext) -> float:
    """Take the steps of `training_trial`; return the part of a method's step that they are.

    Parameters
    ----------
    configuration : dict
        Configuration of the run, which names its method.
    steps : int
        Number of steps.
    context : RunContext
        Its device is computed on.
    """
    plain = {**configuration, "optimizer": "sgd"}
    return training_trial(plain, steps, context) / _evaluations(configuration)


SHARED = (training_trial, method_trial)
"""Trials of which a kind takes the same time in every study."""


def timed_as(study: Study) -> str:
    """Return the name under which timings of a study's kinds are kept.

    Parameters
    ----------
    study : Study
        A study.
    """
    return "training" if study.trial in SHARED else study.name


def _evaluations(configuration: Configuration) -> int:
    methods = importlib.import_module("paperkit.experiments.studies._methods").METHODS
    return int(methods[configuration["method"]].evaluations)


def _gradients(configuration: Configuration) -> float:
    """Return the gradients of a step, as a mean over the epochs."""
    name = configuration["optimizer"]
    if name not in GRADIENTS:
        raise ValueError(f"optimizer={name!r} is unknown{suggestion(name, GRADIENTS)}")
    plain, epochs = configuration.get("plain_epochs") or 0, configuration.get("epochs")
    share = plain / epochs if epochs else 0.0
    return share + (1.0 - share) * GRADIENTS[name]


def _images(configuration: Configuration) -> int:
    names = [name for name in ("train_images", "images") if name in configuration]
    return int(configuration[names[0]])


def _options(configuration: Configuration) -> dict[str, Any]:
    return {name: configuration[name] for name in _MODEL_OPTIONS if name in configuration}


_MODEL_OPTIONS = ("patch", "dim", "depth", "heads", "mlp_dim")


def _shape(dataset: str) -> tuple[tuple[int, ...], int]:
    if dataset not in SHAPES:
        raise ValueError(f"dataset={dataset!r} is unknown{suggestion(dataset, SHAPES)}")
    return SHAPES[dataset]


def is_training(configuration: dict[str, Any]) -> bool:
    """Return whether a configuration has what the cost of a training run needs.

    Parameters
    ----------
    configuration : dict
        A configuration.
    """
    needed = {"model", "dataset", "batch_size", "optimizer"}
    either = ({"images", "train_images"}, {"epochs", "steps"})
    names = configuration.keys()
    return needed <= names and all(one & names for one in either)
