"""One function that turns the name of an architecture into a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn

from paperkit import arguments
from paperkit.models.lenet import LeNet5
from paperkit.models.mlp import MLP
from paperkit.models.resnet import ImageNetResNet, ResNet
from paperkit.models.vgg import STAGES, VGG, scaled
from paperkit.models.vit import SimpleViT, ViT
from paperkit.models.wide_resnet import WideResNet

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class _Architecture:
    """How a network is built.

    Attributes
    ----------
    make : callable
        Function of channels, classes, shape of an input (or None) and options.
    options : tuple of str
        Names of the options that a caller may give.
    needs_shape : bool
        Whether parameters depend on the size of inputs.
    """

    make: Callable[..., nn.Module]
    options: tuple[str, ...]
    needs_shape: bool = True


def _for_any_size(
    kind: Callable[..., nn.Module], *sizes: int, options: tuple[str, ...], **preset: Any
) -> _Architecture:
    """Return a network that takes images of any size, by its own sizes, such as its depth."""

    def make(in_channels: int, num_classes: int, shape: Shape | None, **chosen: Any) -> nn.Module:
        return kind(*sizes, in_channels, num_classes, **preset | chosen)

    return _Architecture(make, options, needs_shape=False)


def _for_one_size(
    kind: Callable[..., nn.Module], options: tuple[str, ...], **preset: Any
) -> _Architecture:
    """Return a network whose parameters depend on the size of images."""

    def make(in_channels: int, num_classes: int, shape: Shape, **chosen: Any) -> nn.Module:
        return kind(in_channels, num_classes, shape[1:], **preset | chosen)

    return _Architecture(make, options)


def _vgg(name: str, *more_options: str, **preset: Any) -> _Architecture:
    def make(
        in_channels: int, num_classes: int, shape: Shape, *, width: int | None = None, **chosen: Any
    ) -> nn.Module:
        stages = STAGES[name]
        if width is not None:
            stages = scaled(stages, arguments.integer("width", width, at_least=1))
        return VGG(stages, in_channels, num_classes, shape[1:], **preset | chosen)

    options = ("width", "hidden", "bias", "activation", "init", *more_options)
    return _Architecture(make, options)


def _mlp(
    *more_options: str, hidden: Sequence[int], needs_shape: bool = True, **preset: Any
) -> _Architecture:
    default = hidden

    def make(
        in_channels: int,
        num_classes: int,
        shape: Shape | None,
        *,
        hidden: Sequence[int] = default,
        **chosen: Any,
    ) -> nn.Module:
        inputs = in_channels if shape is None else prod(shape)
        between = arguments.integers("hidden", hidden, at_least=1, empty=True)
        return MLP((inputs, *between, num_classes), **preset | chosen)

    return _Architecture(make, (*more_options, "activation", "bias"), needs_shape)


_resnet = partial(_for_any_size, ResNet, options=("shortcut", "activation"))
_imagenet_resnet = partial(_for_any_size, ImageNetResNet, options=("stem", "width", "activation"))
_wide_resnet = partial(_for_any_size, WideResNet, options=("shortcut", "activation"))
_TRANSFORMER = ("patch", "dim", "depth", "heads", "mlp_dim")
_VIT = (*_TRANSFORMER, "shifted_patches", "locality")

_ARCHITECTURES = {
    "resnet8": _resnet(8),
    "resnet20": _resnet(20),
    "resnet32": _resnet(32),
    "resnet44": _resnet(44),
    "resnet56": _resnet(56),
    "resnet18": _imagenet_resnet(18),
    "resnet34": _imagenet_resnet(34),
    "resnet18_tinyimagenet": _imagenet_resnet(18, stem="7x7"),
    "resnet50_tinyimagenet": _imagenet_resnet(50),
    "wrn16_8": _wide_resnet(16, 8),
    "wrn28_10": _wide_resnet(28, 10),
    "vgg11": _vgg("vgg11"),
    "vgg11_bn": _vgg("vgg11", batch_norm=True),
    "vgg19_bn": _vgg("vgg19", batch_norm=True),
    "vgg_compression": _vgg("vgg_compression", padding=2, hidden=(128,), init="he"),
    "vgg_tiny": _vgg("vgg_tiny", "batch_norm"),
    "vit_small": _for_one_size(ViT, _VIT),
    "vit_tiny": _for_one_size(ViT, _VIT, dim=64, depth=4, heads=4, mlp_dim=128),
    "simple_vit": _for_one_size(SimpleViT, _TRANSFORMER),
    "mlp": _mlp("hidden", hidden=(128, 64)),
    "mlp_compression": _mlp(hidden=(500, 500, 500), activation="tanh"),
    "mlp_toy": _mlp(hidden=(70, 70), needs_shape=False),
    "lenet5": _for_one_size(LeNet5, ("init",)),
}

NAMES: tuple[str, ...] = tuple(_ARCHITECTURES)
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

    ======================================= ========================================================
    name                                    network and options
    ======================================= ========================================================
    ``resnet8``, ``resnet20``, …            :class:`ResNet`: ``shortcut``, ``activation``
    ``resnet18``, ``resnet34``              :class:`ImageNetResNet`: ``stem``, ``width``,
                                            ``activation``
    ``resnet18_tinyimagenet``               the same with the stem ``"7x7"``
    ``resnet50_tinyimagenet``               the same of depth 50, with the stem ``"3x3"``
    ``wrn16_8``, ``wrn28_10``               :class:`WideResNet`: ``shortcut``, ``activation``
    ``vgg11``, ``vgg11_bn``, ``vgg19_bn``   :class:`VGG` with one linear layer: ``width`` (channels
                                            of the first stage, the others in proportion),
                                            ``hidden``, ``bias``, ``activation``, ``init``
    ``vgg_compression``                     the same, as the VGG-11 of the compression release
    ``vgg_tiny``                            the same, of three stages; also ``batch_norm``
    ``vit_small``, ``vit_tiny``             :class:`ViT`: ``patch``, ``dim``, ``depth``, ``heads``,
                                            ``mlp_dim``, ``shifted_patches``, ``locality``
    ``simple_vit``                          :class:`SimpleViT`: ``patch``, ``dim``, ``depth``,
                                            ``heads``, ``mlp_dim``
    ``mlp``                                 :class:`MLP`: ``hidden`` (by default (128, 64)),
                                            ``activation``, ``bias``
    ``mlp_compression``, ``mlp_toy``        the same with three hidden layers of 500 units and tanh,
                                            and with two of 70: ``activation``, ``bias``
    ``lenet5``                              :class:`LeNet5`: ``init``
    ======================================= ========================================================

    The release of the compression paper calls VGG-11 a network of five convolutions with 16, 16,
    32, 64 and 64 channels and padding 2, each followed by ReLU and pooling, and of fully connected
    layers of 128 and 10 units on 256 features, with the initial weights of He et al. (2015) in the
    convolutions. Which variant of those, and whether all 256 are features of 32 × 32 images or the
    units of one more layer, is not known; ``vgg_compression`` has the variant that keeps the scale
    of gradients, and reads 256 as the 64 · 2 · 2 features. Its perceptron of 784, 500, 500, 500 and
    10 units is ``mlp_compression``. The 2–70–70–3 network of the information-geometric sharpness
    paper (section 2.2) is ``mlp_toy`` with two channels and three classes; the paper does not tell
    its activation.

    The Rényi sharpness paper takes its WRN-28-10 from the homura library (appendix G.2), where it
    has ``shortcut="input"``. Where its ResNet-20 and ResNet-56 come from it does not tell; homura's
    have ``shortcut="projection"``.

    Parameters
    ----------
    name : str
        The architecture's name, in :data:`NAMES`.
    in_channels : int
        Channels of an input.
    num_classes : int
        Number of outputs.
    input_shape : tuple of int, optional
        Channels, height and width of an input; all but the residual networks and ``mlp_toy``
        need it.
    seed : int
        Seed of the initial weights, which are PyTorch's unless ``init`` says otherwise.
    **options
        Options of the architecture, as they are listed below.

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
    architecture = _ARCHITECTURES[name]
    for option in options:
        if option not in architecture.options:
            raise TypeError(
                f"{name} has no option {option!r}; it has: {', '.join(architecture.options)}"
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
    elif architecture.needs_shape:
        raise ValueError(
            f"input_shape=None: {name} needs the channels, height and width of inputs."
        )
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        return architecture.make(in_channels, num_classes, shape, **options)
