"""The CIFAR residual networks of He et al. (2016)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from paperkit import arguments
from paperkit.models.activations import ACTIVATIONS, activation_module

SHORTCUTS = ("padding", "projection")
"""Options A and B of He et al. (2016, section 3.3)."""


class PaddingShortcut(nn.Module):
    """Option A: take every second pixel and append channels of zeros; no parameters.

    Parameters
    ----------
    extra_channels : int
        Channels of zeros to append.
    stride : int
        Distance of the pixels taken.
    """

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, c + extra, ⌈h/stride⌉, ⌈w/stride⌉)."""
        sampled = inputs[:, :, :: self.stride, :: self.stride]
        return functional.pad(sampled, (0, 0, 0, 0, 0, self.extra_channels))


def _shortcut(kind: str, in_channels: int, channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if kind == "padding":
        return PaddingShortcut(channels - in_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(channels),
    )


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with batch normalisation, and a shortcut around them.

    Parameters
    ----------
    in_channels, channels : int
        Channels that come in and go out.
    stride : int
        Stride of the first convolution and of the shortcut.
    shortcut : str
        Name from :data:`SHORTCUTS`; used where the shape changes.
    activation : str
        Name from :data:`paperkit.models.ACTIVATIONS`.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, shortcut: str, activation: str
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.activation1 = activation_module(activation)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(shortcut, in_channels, channels, stride)
        self.activation2 = activation_module(activation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, channels, ⌈h/stride⌉, ⌈w/stride⌉)."""
        hidden = self.activation1(self.bn1(self.conv1(inputs)))
        residual = self.bn2(self.conv2(hidden))
        return self.activation2(residual + self.shortcut(inputs))


class ResNet(nn.Module):
    """Residual network of depth 6k + 2 for small images (He et al. 2016, section 4.2).

    A 3 × 3 convolution of 16 channels, three stages of k basic blocks with 16, 32 and 64
    channels, the second and third halving the image, average pooling over what remains of
    it, and one fully connected layer. Inputs may have any number of channels and any size.
    Initial weights are PyTorch's defaults, not those of the paper.

    Parameters
    ----------
    depth : int
        Number of layers with weights along the main path: 8, 14, 20, ….
    in_channels : int
        Channels of an input.
    num_classes : int
        Number of outputs.
    shortcut : str
        The way of the input around a block that changes its shape: ``"padding"``, the
        paper's choice for CIFAR, has no parameters; ``"projection"`` is a 1 × 1 convolution
        with batch normalisation.
    activation : str
        Name from :data:`paperkit.models.ACTIVATIONS`.

    Raises
    ------
    ValueError
        If the depth is not of the form 6k + 2, or an option is unknown.

    Examples
    --------
    >>> import torch
    >>> from paperkit.models import ResNet
    >>> model = ResNet(depth=20, in_channels=3, num_classes=10)
    >>> sum(parameter.numel() for parameter in model.parameters())  # 0.27 million
    269722
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 20,
        in_channels: int = 3,
        num_classes: int = 10,
        shortcut: str = "padding",
        activation: str = "relu",
    ) -> None:
        depth = arguments.integer("depth", depth, at_least=8)
        if depth % 6 != 2:
            raise ValueError(f"depth={depth} must be 6k + 2 for a positive k: 8, 14, 20, ….")
        in_channels = arguments.integer("in_channels", in_channels, at_least=1)
        num_classes = arguments.integer("num_classes", num_classes, at_least=1)
        shortcut = arguments.choice("shortcut", shortcut, SHORTCUTS)
        activation = arguments.choice("activation", activation, ACTIVATIONS)
        super().__init__()
        blocks = (depth - 2) // 6

        def stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
            first = BasicBlock(in_channels, channels, stride, shortcut, activation)
            others = [
                BasicBlock(channels, channels, 1, shortcut, activation) for _ in range(blocks - 1)
            ]
            return nn.Sequential(first, *others)

        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.activation1 = activation_module(activation)
        self.stage1 = stage(16, 16, 1)
        self.stage2 = stage(16, 32, 2)
        self.stage3 = stage(32, 64, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images of shape (n, channels, height, width) to logits of shape (n, classes)."""
        features = self.activation1(self.bn1(self.conv1(inputs)))
        features = self.stage3(self.stage2(self.stage1(features)))
        return self.fc(self.flatten(self.pool(features)))
