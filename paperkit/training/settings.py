"""What a run is asked to do, apart from its model, data and optimizer; every value checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from paperkit import arguments
from paperkit.data import augment as crop_and_flip
from paperkit.network import Loss
from paperkit.network.losses import LossLike
from paperkit.training.objective import chosen_loss
from paperkit.training.schedule import Schedule, checked_schedule
from paperkit.training.stepping import OptimizerFactory

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Settings:
    """Settings of a run, as :func:`paperkit.training.train` describes them."""

    epochs: int
    batch_size: int
    warmup_epochs: float
    schedule: Schedule
    max_norm: float | None
    loss: LossLike
    label_smoothing: float
    augmentation: Augmentation | None
    autocast: torch.dtype | None
    seed: int

    @classmethod
    def checked(
        cls,
        *,
        epochs: int,
        batch_size: int,
        warmup_epochs: float,
        schedule: Schedule,
        max_norm: float | None,
        loss: LossLike,
        label_smoothing: float,
        augment: bool | Augmentation,
        autocast: torch.dtype | None,
        seed: int,
    ) -> Settings:
        """Return settings of which each has the right kind and range.

        Raises
        ------
        TypeError, ValueError
            If one has not.
        """
        chosen_loss(loss, label_smoothing)
        epochs = arguments.integer("epochs", epochs, at_least=1)
        if max_norm is not None:
            max_norm = arguments.number("max_norm", max_norm, above=0)
        return cls(
            epochs=epochs,
            batch_size=arguments.integer("batch_size", batch_size, at_least=1),
            warmup_epochs=arguments.number(
                "warmup_epochs", warmup_epochs, at_least=0, at_most=epochs
            ),
            schedule=checked_schedule(schedule),
            max_norm=max_norm,
            loss=loss,
            label_smoothing=float(label_smoothing),
            augmentation=_checked_augmentation(augment),
            autocast=_checked_autocast(autocast),
            seed=arguments.integer("seed", seed, at_least=0),
        )

    @property
    def training_loss(self) -> Loss:
        """Loss that is minimised."""
        return chosen_loss(self.loss, self.label_smoothing)

    @property
    def validation_loss(self) -> Loss:
        """Loss of the validation data, without smoothed labels."""
        return chosen_loss(self.loss)


def checked_factory(
    make: object, *, lr: float, momentum: float, weight_decay: float
) -> OptimizerFactory:
    """Return a function that makes the optimizer from the parameters, by default SGD.

    Raises
    ------
    TypeError, ValueError
        If it cannot be called, an option is out of range, or options come beside a function.
    """
    options: dict[str, Any] = {
        name: arguments.number(name, value, at_least=0)
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay))
    }
    if make is None:
        return partial(torch.optim.SGD, **options)
    make = arguments.function("optimizer", make, "a function of the model's parameters")
    if options != _DEFAULT_OPTIONS:
        raise ValueError(
            "lr, momentum and weight_decay belong to the default optimizer; set them inside "
            "optimizer= instead"
        )
    return partial(_made, make)


# Defaults of these options in the signature of train().
_DEFAULT_OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def _made(make: Callable[..., Any], parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Make the caller's optimizer, and refuse options that are no numbers."""
    made = make(parameters)
    optimizer = arguments.instance("optimizer", made, Optimizer, "that is to be returned")
    for index, group in enumerate(optimizer.param_groups):
        for name in optimizer.defaults.keys() & group.keys():
            value = group[name]
            parts = value if isinstance(value, tuple | list) else (value,)
            numbers = [float(x) for x in parts if isinstance(x, float | int | Tensor)]
            is_infinite = name == "lr" and any(map(math.isinf, numbers))
            if is_infinite or any(map(math.isnan, numbers)):
                raise ValueError(
                    f"optimizer={type(optimizer).__name__} has {name}={value} in parameter group "
                    f"{index}: give it a finite number."
                )
    return optimizer


def _checked_augmentation(augment: object) -> Augmentation | None:
    if isinstance(augment, bool):
        return crop_and_flip if augment else None
    expected = "True, False or a function of inputs and a generator"
    return arguments.function("augment", augment, expected)


def _checked_autocast(autocast: object) -> torch.dtype | None:
    if autocast is None:
        return None
    expected = "torch.bfloat16, torch.float16 or None"
    if not isinstance(autocast, torch.dtype):
        raise TypeError(f"autocast={arguments.shown(autocast)} must be {expected}.")
    if autocast not in AUTOCAST_DTYPES:
        raise ValueError(f"autocast={autocast} must be {expected}.")
    return autocast
