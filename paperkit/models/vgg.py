"""Networks of the kind of VGG (Simonyan and Zisserman 2015), for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from paperkit import arguments
from paperkit.models.activations import ACTIVATIONS, activation_module
from paperkit.models.initialization import he

INITS = ("pytorch", "he")
"""Names of the initial weights."""

STAGES: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg19": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
    "vgg_compression": ((16,), (16,), (32,), (64,), (64,)),
    "vgg_tiny": ((16,), (32,), (64, 64)),
}
"""Channels of the convolutions, stage by stage.

They are configurations A and E of table 1 of Simonyan and Zisserman (2015), what the release of the
compression paper calls VGG-11, and a small network of our own.
"""


class VGG(nn.Sequential):
    """Stages of 3 × 3 convolutions, each stage with 2 × 2 pooling, then fully connected layers.

    The layers are ``conv1_1``, ``bn1_1`` with batch normalisation, ``activation1_1``, …, ``pool1``,
    ``conv2_1``, …, ``flatten``, ``fc1``, …; the last of them is linear. There is no dropout.
    Stages, for instance those of VGG-11, are in ``paperkit.models.vgg.STAGES``.

    Parameters
    ----------
    stages : sequence of sequences of int
        Channels of each convolution, in groups, each of which ends with pooling.
    in_channels : int
        Channels of an input.
    num_classes : int
        Number of outputs.
    image_size : tuple of int
        Height and width of an input; sets the inputs of the first fully connected layer.
    hidden : sequence of int
        Widths of fully connected layers before the last one, (4096, 4096) in the original; none
        by default, as is common for CIFAR.
    batch_norm : bool
        Whether batch normalisation follows each convolution.
    bias : bool
        Whether the convolutions have biases.
    padding : int
        Zeros around the inputs of a convolution, 0 to 2; 1 leaves the size as it is.
    activation : str
        Name from :data:`paperkit.models.ACTIVATIONS`.
    init : {"pytorch", "he"}
        Initial weights: PyTorch's, or those of He et al. (2015) for the convolutions, with normal
        numbers, the number of outgoing connections, and biases of zero.

    Raises
    ------
    ValueError
        If there is no stage, a number is not positive, the images are too small for so many
        poolings, or an option is unknown.

    Examples
    --------
    >>> import torch
    >>> from paperkit.models import VGG
    >>> model = VGG([(8,), (16, 16)], in_channels=1, num_classes=10, image_size=(28, 28))
    >>> [name for name, _ in model.named_children() if name.startswith(("conv", "pool", "fc"))]
    ['conv1_1', 'pool1', 'conv2_1', 'conv2_2', 'pool2', 'fc1']
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: tuple[int, int] = (32, 32),
        hidden: Sequence[int] = (),
        batch_norm: bool = False,
        bias: bool = True,
        padding: int = 1,
        activation: str = "relu",
        init: str = "pytorch",
    ) -> None:
        groups = tuple(
            arguments.integers(f"stages[{index}]", stage, at_least=1)
            for index, stage in enumerate(
                arguments.iterable("stages", stages, "sequences of channels")
            )
        )
        if not groups:
            raise ValueError("stages=() has no stage: give the channels of one at least.")
        in_channels = arguments.integer("in_channels", in_channels, at_least=1)
        num_classes = arguments.integer("num_classes", num_classes, at_least=1)
        sides = arguments.integers("image_size", image_size, at_least=1, length=2)
        widths = arguments.integers("hidden", hidden, at_least=1, empty=True)
        batch_norm = arguments.flag("batch_norm", batch_norm)
        bias = arguments.flag("bias", bias)
        padding = arguments.integer("padding", padding, at_least=0, at_most=2)
        activation = arguments.choice("activation", activation, ACTIVATIONS)
        init = arguments.choice("init", init, INITS)
        height, width = (_remaining(side, groups, padding) for side in sides)
        if min(height, width) < 1:
            raise ValueError(
                f"image_size={sides} is too small for {len(groups)} poolings with "
                f"padding={padding}: give images of at least {_smallest(groups, padding)} pixels "
                "on a side, or fewer stages."
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for i, stage in enumerate(groups, 1):
            for j, out_channels in enumerate(stage, 1):
                layers[f"conv{i}_{j}"] = nn.Conv2d(
                    channels, out_channels, 3, padding=padding, bias=bias
                )
                if batch_norm:
                    layers[f"bn{i}_{j}"] = nn.BatchNorm2d(out_channels)
                layers[f"activation{i}_{j}"] = activation_module(activation)
                channels = out_channels
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        features = channels * height * width
        for k, units in enumerate(widths, 1):
            layers[f"fc{k}"] = nn.Linear(features, units)
            layers[f"fc_activation{k}"] = activation_module(activation)
            features = units
        layers[f"fc{len(widths) + 1}"] = nn.Linear(features, num_classes)
        super().__init__(layers)
        if init == "he":
            he(self)


def scaled(stages: Sequence[Sequence[int]], width: int) -> tuple[tuple[int, ...], ...]:
    """Return stages whose first convolution has ``width`` channels and the others in proportion."""
    first = stages[0][0]
    return tuple(tuple(channels * width // first for channels in stage) for stage in stages)


def _remaining(side: int, groups: Sequence[Sequence[int]], padding: int) -> int:
    """Return the side of an image after all stages; below 1 where it does not get through."""
    for stage in groups:
        side = (side + len(stage) * (2 * padding - 2)) // 2
        if side < 1:
            return 0
    return side


def _smallest(groups: Sequence[Sequence[int]], padding: int) -> int:
    side = 1
    while _remaining(side, groups, padding) < 1:
        side += 1
    return side
