"""The residual networks of He et al. (2016): those for CIFAR, and those for ImageNet."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from paperkit import arguments
from paperkit.models.activations import ACTIVATIONS, activation_module

SHORTCUTS = ("padding", "projection")
"""Options A and B of He et al. (2016, section 3.3)."""

STEMS = ("3x3", "7x7")
"""What stands before the first block of an :class:`ImageNetResNet`."""


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


class Bottleneck(nn.Module):
    """A 3 × 3 convolution between two of 1 × 1, each normalised, and a projection around them.

    The stride is that of the 3 × 3 convolution, as in torchvision; He et al. (2016) have it in the
    first of the 1 × 1. Parameters and shapes are the same.

    Parameters
    ----------
    in_channels, channels : int
        Channels that come in and go out; a quarter of those that go out stand in between.
    stride : int
        Stride of the 3 × 3 convolution and of the shortcut.
    activation : str
        Name from :data:`paperkit.models.ACTIVATIONS`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, activation: str) -> None:
        super().__init__()
        inner = channels // 4
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.activation1 = activation_module(activation)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.activation2 = activation_module(activation)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut("projection", in_channels, channels, stride)
        self.activation3 = activation_module(activation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, channels, ⌈h/stride⌉, ⌈w/stride⌉)."""
        hidden = self.activation1(self.bn1(self.conv1(inputs)))
        hidden = self.activation2(self.bn2(self.conv2(hidden)))
        residual = self.bn3(self.conv3(hidden))
        return self.activation3(residual + self.shortcut(inputs))


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


_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks in each stage, by depth (He et al. 2016, table 1)."""


class ImageNetResNet(nn.Module):
    """Residual network of four stages, of depth 18, 34 or 50 (He et al. 2016, table 1).

    A stem of ``width`` channels, four stages of basic blocks (depth 50: of bottlenecks, with four
    times the channels) whose channels double and whose images halve from the second on, average
    pooling over what remains, and one fully connected layer. Shortcuts that change a shape are
    1 × 1 convolutions with batch normalisation. Inputs may have any number of channels and any
    size. Initial weights are PyTorch's, as in the Rényi sharpness paper (appendix G.2).

    Parameters
    ----------
    depth : {18, 34, 50}
        Number of layers with weights along the main path.
    in_channels : int
        Channels of an input.
    num_classes : int
        Number of outputs.
    stem : {"3x3", "7x7"}
        A 3 × 3 convolution of stride 1, which leaves small images their size; or that of ImageNet,
        a 7 × 7 convolution and a 3 × 3 pooling of stride 2 each, which makes 16 × 16 of 64 × 64
        pixels. The Rényi sharpness paper has the first for CIFAR (table 2) and for ResNet-50 on
        Tiny ImageNet (table 3), the second for ResNet-18 on Tiny ImageNet (table 2).
    width : int
        Channels of the stem and of the first stage; smaller networks for trials have fewer than 64.
    activation : str
        Name from :data:`paperkit.models.ACTIVATIONS`.

    Raises
    ------
    ValueError
        If the depth is another, or an option is unknown.

    Examples
    --------
    >>> import torch
    >>> from paperkit.models import ImageNetResNet
    >>> model = ImageNetResNet(depth=18, in_channels=3, num_classes=10, width=8)
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    >>> wide = ImageNetResNet(depth=18, in_channels=3, num_classes=10)
    >>> sum(parameter.numel() for parameter in wide.parameters())  # 11.2 million
    11173962
    """

    def __init__(
        self,
        depth: int = 18,
        in_channels: int = 3,
        num_classes: int = 10,
        stem: str = "3x3",
        width: int = 64,
        activation: str = "relu",
    ) -> None:
        depth = arguments.integer("depth", depth, at_least=18)
        if depth not in _BLOCKS:
            raise ValueError(f"depth={depth} is unknown: choose one of 18, 34, 50.")
        in_channels = arguments.integer("in_channels", in_channels, at_least=1)
        num_classes = arguments.integer("num_classes", num_classes, at_least=1)
        stem = arguments.choice("stem", stem, STEMS)
        width = arguments.integer("width", width, at_least=1)
        activation = arguments.choice("activation", activation, ACTIVATIONS)
        super().__init__()

        def block(in_channels: int, channels: int, stride: int) -> nn.Module:
            if depth == 50:
                return Bottleneck(in_channels, channels, stride, activation)
            return BasicBlock(in_channels, channels, stride, "projection", activation)

        def stage(in_channels: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
            others = [block(channels, channels, 1) for _ in range(blocks - 1)]
            return nn.Sequential(block(in_channels, channels, stride), *others)

        first = (4 if depth == 50 else 1) * width
        if stem == "3x3":
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.activation1 = activation_module(activation)
        self.stem_pool = nn.Identity() if stem == "3x3" else nn.MaxPool2d(3, stride=2, padding=1)
        self.stage1 = stage(width, first, 1, _BLOCKS[depth][0])
        self.stage2 = stage(first, 2 * first, 2, _BLOCKS[depth][1])
        self.stage3 = stage(2 * first, 4 * first, 2, _BLOCKS[depth][2])
        self.stage4 = stage(4 * first, 8 * first, 2, _BLOCKS[depth][3])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(8 * first, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images of shape (n, channels, height, width) to logits of shape (n, classes)."""
        features = self.stem_pool(self.activation1(self.bn1(self.conv1(inputs))))
        features = self.stage4(self.stage3(self.stage2(self.stage1(features))))
        return self.fc(self.flatten(self.pool(features)))
