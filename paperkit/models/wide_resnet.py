"""The wide residual networks of Zagoruyko and Komodakis (2016)."""

from __future__ import annotations

from torch import Tensor, nn

from paperkit import arguments
from paperkit.models.activations import ACTIVATIONS, activation_module

SHORTCUTS = ("activated", "input")
"""What a projection is applied to: the block's input after normalisation, or as it comes in."""


class PreActivationBlock(nn.Module):
    """Two 3 × 3 convolutions, each after batch normalisation and activation, and a shortcut.

    Parameters
    ----------
    in_channels, channels : int
        Channels that come in and go out.
    stride : int
        Stride of the first convolution and of the shortcut.
    shortcut : str
        Name from :data:`SHORTCUTS`; used where the channels change, by a 1 × 1 convolution.
    activation : str
        Name from :data:`paperkit.models.ACTIVATIONS`.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, shortcut: str, activation: str
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.activation1 = activation_module(activation)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.activation2 = activation_module(activation)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = stride != 1 or in_channels != channels
        self.projects_activated = changes and shortcut == "activated"
        self.shortcut: nn.Module = (
            nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            if changes
            else nn.Identity()
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, channels, ⌈h/stride⌉, ⌈w/stride⌉)."""
        activated = self.activation1(self.bn1(inputs))
        residual = self.conv2(self.activation2(self.bn2(self.conv1(activated))))
        return residual + self.shortcut(activated if self.projects_activated else inputs)


class WideResNet(nn.Module):
    """Wide residual network WRN-depth-widening for small images (Zagoruyko and Komodakis 2016).

    A 3 × 3 convolution of 16 channels, three stages of (depth − 4)/6 pre-activation blocks with 16,
    32 and 64 channels times ``widening``, the second and third halving the image, batch
    normalisation, activation, average pooling over what remains, and one fully connected layer
    (table 1 of the paper). There is no dropout. Inputs may have any number of channels and any
    size. Initial weights are PyTorch's, as in the Rényi sharpness paper (appendix G.2).

    Parameters
    ----------
    depth : int
        Number of convolutions along the main path and in the shortcuts that change the channels:
        10, 16, 22, 28, ….
    widening : int
        Factor of the channels.
    in_channels : int
        Channels of an input.
    num_classes : int
        Number of outputs.
    shortcut : {"activated", "input"}
        Input of a shortcut's convolution: the block's input after its first normalisation and
        activation, as in the authors' release; or the block's input itself, as in the homura
        library, which the Rényi sharpness paper uses. Parameters are the same.
    activation : str
        Name from :data:`paperkit.models.ACTIVATIONS`.

    Raises
    ------
    ValueError
        If the depth is not of the form 6k + 4, or an option is unknown.

    Examples
    --------
    >>> import torch
    >>> from paperkit.models import WideResNet
    >>> model = WideResNet(depth=10, widening=1, in_channels=1, num_classes=10)
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    >>> wide = WideResNet(depth=16, widening=8, in_channels=3, num_classes=10)
    >>> sum(parameter.numel() for parameter in wide.parameters())  # 11.0 million
    10961370
    """

    def __init__(
        self,
        depth: int = 28,
        widening: int = 10,
        in_channels: int = 3,
        num_classes: int = 10,
        shortcut: str = "activated",
        activation: str = "relu",
    ) -> None:
        depth = arguments.integer("depth", depth, at_least=10)
        if depth % 6 != 4:
            raise ValueError(f"depth={depth} must be 6k + 4 for a positive k: 10, 16, 22, ….")
        widening = arguments.integer("widening", widening, at_least=1)
        in_channels = arguments.integer("in_channels", in_channels, at_least=1)
        num_classes = arguments.integer("num_classes", num_classes, at_least=1)
        shortcut = arguments.choice("shortcut", shortcut, SHORTCUTS)
        activation = arguments.choice("activation", activation, ACTIVATIONS)
        super().__init__()
        blocks = (depth - 4) // 6

        def stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
            first = PreActivationBlock(in_channels, channels, stride, shortcut, activation)
            others = [
                PreActivationBlock(channels, channels, 1, shortcut, activation)
                for _ in range(blocks - 1)
            ]
            return nn.Sequential(first, *others)

        width = 16 * widening
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.stage1 = stage(16, width, 1)
        self.stage2 = stage(width, 2 * width, 2)
        self.stage3 = stage(2 * width, 4 * width, 2)
        self.bn = nn.BatchNorm2d(4 * width)
        self.activation = activation_module(activation)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images of shape (n, channels, height, width) to logits of shape (n, classes)."""
        features = self.stage3(self.stage2(self.stage1(self.conv1(inputs))))
        features = self.activation(self.bn(features))
        return self.fc(self.flatten(self.pool(features)))
