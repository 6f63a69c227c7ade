"""One function that turns the name of an architecture into a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn

from paperkit import arguments
from paperkit.models.lenet import LeNet5
from paperkit.models.mlp import MLP
from paperkit.models.resnet import ResNet

Shape = tuple[int, int, int]


def _resnet(
    depth: int, in_channels: int, num_classes: int, input_shape: Shape | None, **options: Any
) -> nn.Module:
    return ResNet(depth, in_channels, num_classes, **options)


def _mlp(
    in_channels: int,
    num_classes: int,
    input_shape: Shape | None,
    *,
    hidden: Sequence[int] = (128, 64),
    **options: Any,
) -> nn.Module:
    shape = _required_shape("mlp", input_shape)
    between = arguments.integers("hidden", hidden, at_least=1, empty=True)
    return MLP((prod(shape), *between, num_classes), **options)


def _lenet5(in_channels: int, num_classes: int, input_shape: Shape | None) -> nn.Module:
    _, height, width = _required_shape("lenet5", input_shape)
    return LeNet5(in_channels, num_classes, (height, width))


def _required_shape(name: str, input_shape: Shape | None) -> Shape:
    if input_shape is None:
        raise ValueError(
            f"input_shape=None: {name} needs the channels, height and width of inputs."
        )
    return input_shape


_BUILDERS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "resnet8": (partial(_resnet, 8), ("shortcut", "activation")),
    "resnet20": (partial(_resnet, 20), ("shortcut", "activation")),
    "mlp": (_mlp, ("hidden", "activation", "bias")),
    "lenet5": (_lenet5, ()),
}

NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""The names that :func:`build` knows."""


def build(
    name: str,
    *,
    in_channels: int,
    num_classes: int,
    input_shape: Shape | None = None,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """Build a network on the CPU, its initial weights drawn from ``seed``.

    The global random number generators are left as they were found.

    Parameters
    ----------
    name : str
        The architecture's name, in :data:`NAMES`.
    in_channels : int
        Channels of an input.
    num_classes : int
        Number of outputs.
    input_shape : tuple of int, optional
        Channels, height and width of an input; ``mlp`` and ``lenet5`` need it.
    seed : int
        Seed of the initial weights, PyTorch's default initialisation.
    **options
        ``resnet8`` and ``resnet20``: ``shortcut`` (``"padding"`` or ``"projection"``) and
        ``activation``. ``mlp``: ``hidden`` (widths of the hidden layers, by default
        (128, 64)), ``activation`` and ``bias``. ``lenet5`` has none.

    Returns
    -------
    torch.nn.Module
        The network, in training mode.

    Raises
    ------
    TypeError
        If an option is not one of the architecture's.
    ValueError
        If the name is unknown, the shape is missing or has other channels, or the
        architecture refuses an option's value.

    Examples
    --------
    >>> from paperkit.models import build
    >>> one, other, third = (
    ...     build("mlp", in_channels=1, num_classes=10, input_shape=(1, 8, 8), seed=seed)
    ...     for seed in (0, 0, 1)
    ... )
    >>> bool((one.fc1.weight == other.fc1.weight).all())  # the seed gives the weights
    True
    >>> bool((one.fc1.weight == third.fc1.weight).any())
    False
    """
    name = arguments.choice("name", name, NAMES)
    in_channels = arguments.integer("in_channels", in_channels, at_least=1)
    num_classes = arguments.integer("num_classes", num_classes, at_least=1)
    seed = arguments.seed("seed", seed)
    make, known_options = _BUILDERS[name]
    for option in options:
        if option not in known_options:
            raise TypeError(
                f"{name} has no option {option!r}; it has: {', '.join(known_options) or 'none'}"
            )
    shape = None
    if input_shape is not None:
        channels, height, width = arguments.integers(
            "input_shape", input_shape, at_least=1, length=3
        )
        if channels != in_channels:
            raise ValueError(
                f"input_shape={tuple(input_shape)} has {channels} channels and in_channels is "
                f"{in_channels}: make them agree."
            )
        shape = channels, height, width
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        return make(in_channels, num_classes, shape, **options)
