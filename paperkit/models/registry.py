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
from paperkit.models.resnet import ImageNetResNet, ResNet
from paperkit.models.vgg import STAGES, VGG, scaled
from paperkit.models.vit import SimpleViT, ViT
from paperkit.models.wide_resnet import WideResNet

Shape = tuple[int, int, int]


def _resnet(
    depth: int, in_channels: int, num_classes: int, input_shape: Shape | None, **options: Any
) -> nn.Module:
    return ResNet(depth, in_channels, num_classes, **options)


def _imagenet_resnet(
    depth: int, in_channels: int, num_classes: int, input_shape: Shape | None, **options: Any
) -> nn.Module:
    return ImageNetResNet(depth, in_channels, num_classes, **options)


def _wide_resnet(
    depth: int,
    widening: int,
    in_channels: int,
    num_classes: int,
    input_shape: Shape | None,
    **options: Any,
) -> nn.Module:
    return WideResNet(depth, widening, in_channels, num_classes, **options)


def _vgg(
    name: str,
    in_channels: int,
    num_classes: int,
    input_shape: Shape | None,
    *,
    width: int | None = None,
    **options: Any,
) -> nn.Module:
    _, height, image_width = _required_shape(name, input_shape)
    stages = STAGES[name.removesuffix("_bn")]
    if width is not None:
        stages = scaled(stages, arguments.integer("width", width, at_least=1))
    return VGG(stages, in_channels, num_classes, (height, image_width), **options)


def _vit(
    kind: type[ViT] | type[SimpleViT],
    name: str,
    in_channels: int,
    num_classes: int,
    input_shape: Shape | None,
    **options: Any,
) -> nn.Module:
    _, height, width = _required_shape(name, input_shape)
    return kind(in_channels, num_classes, (height, width), **options)


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


def _mlp_toy(
    in_channels: int, num_classes: int, input_shape: Shape | None, **options: Any
) -> nn.Module:
    shape = (in_channels, 1, 1) if input_shape is None else input_shape
    return MLP((prod(shape), 70, 70, num_classes), **options)


def _mlp_compression(
    in_channels: int,
    num_classes: int,
    input_shape: Shape | None,
    *,
    activation: str = "tanh",
    **options: Any,
) -> nn.Module:
    shape = _required_shape("mlp_compression", input_shape)
    return MLP((prod(shape), 500, 500, 500, num_classes), activation, **options)


def _lenet5(
    in_channels: int, num_classes: int, input_shape: Shape | None, **options: Any
) -> nn.Module:
    _, height, width = _required_shape("lenet5", input_shape)
    return LeNet5(in_channels, num_classes, (height, width), **options)


def _required_shape(name: str, input_shape: Shape | None) -> Shape:
    if input_shape is None:
        raise ValueError(
            f"input_shape=None: {name} needs the channels, height and width of inputs."
        )
    return input_shape


_RESNET = ("shortcut", "activation")
_IMAGENET_RESNET = ("stem", "width", "activation")
_VGG = ("width", "hidden", "bias", "activation", "init")
_TRANSFORMER = ("patch", "dim", "depth", "heads", "mlp_dim")
_VIT = (*_TRANSFORMER, "shifted_patches", "locality")

_AS_IN_THE_RELEASE: dict[str, Any] = {"padding": 2, "hidden": (128,), "init": "he"}
_TINY: dict[str, Any] = {"dim": 64, "depth": 4, "heads": 4, "mlp_dim": 128}

_BUILDERS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "resnet8": (partial(_resnet, 8), _RESNET),
    "resnet20": (partial(_resnet, 20), _RESNET),
    "resnet32": (partial(_resnet, 32), _RESNET),
    "resnet44": (partial(_resnet, 44), _RESNET),
    "resnet56": (partial(_resnet, 56), _RESNET),
    "resnet18": (partial(_imagenet_resnet, 18), _IMAGENET_RESNET),
    "resnet34": (partial(_imagenet_resnet, 34), _IMAGENET_RESNET),
    "resnet18_tinyimagenet": (partial(_imagenet_resnet, 18, stem="7x7"), _IMAGENET_RESNET),
    "resnet50_tinyimagenet": (partial(_imagenet_resnet, 50), _IMAGENET_RESNET),
    "wrn16_8": (partial(_wide_resnet, 16, 8), _RESNET),
    "wrn28_10": (partial(_wide_resnet, 28, 10), _RESNET),
    "vgg11": (partial(_vgg, "vgg11"), _VGG),
    "vgg11_bn": (partial(_vgg, "vgg11_bn", batch_norm=True), _VGG),
    "vgg19_bn": (partial(_vgg, "vgg19_bn", batch_norm=True), _VGG),
    "vgg_compression": (partial(_vgg, "vgg_compression", **_AS_IN_THE_RELEASE), _VGG),
    "vgg_tiny": (partial(_vgg, "vgg_tiny"), (*_VGG, "batch_norm")),
    "vit_small": (partial(_vit, ViT, "vit_small"), _VIT),
    "vit_tiny": (partial(_vit, ViT, "vit_tiny", **_TINY), _VIT),
    "simple_vit": (partial(_vit, SimpleViT, "simple_vit"), _TRANSFORMER),
    "mlp": (_mlp, ("hidden", "activation", "bias")),
    "mlp_compression": (_mlp_compression, ("activation", "bias")),
    "mlp_toy": (_mlp_toy, ("activation", "bias")),
    "lenet5": (_lenet5, ("init",)),
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

    The Rényi sharpness paper takes its ResNet-20 and ResNet-56 from the homura library, which has
    ``shortcut="projection"``, and its WRN-28-10 too, which has ``shortcut="input"``.

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
