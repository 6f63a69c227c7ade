"""LeNet-5 as it is commonly used today."""

from __future__ import annotations

from torch import Tensor, nn

from paperkit import arguments
from paperkit.models.initialization import xavier

INITS = ("pytorch", "xavier")
"""Names of the initial weights."""

_KERNEL = 5


class LeNet5(nn.Module):
    """LeNet-5 of LeCun et al. (1998), with ReLU, max pooling and a linear output.

    Convolutions of 6 and 16 channels with 5 × 5 kernels, each followed by 2 × 2 pooling,
    then fully connected layers of 120, 84 and ``num_classes`` units. The original has
    tanh, trainable subsampling, sparse connections in the second convolution and
    radial-basis outputs.

    Parameters
    ----------
    in_channels : int
        Channels of an input.
    num_classes : int
        Number of outputs.
    image_size : tuple of int
        Height and width of an input; sets the inputs of the first fully connected layer.
        Images smaller than 32 pixels on a side are padded by two before the first
        convolution, which makes 28 × 28 the 32 × 32 of the original.
    init : {"pytorch", "xavier"}
        Initial weights: PyTorch's, or those of Glorot and Bengio (2010) in the uniform variant
        with biases of zero, after the release of the compression paper; which variant that
        release has is not known.

    Raises
    ------
    ValueError
        If the images are too small for two convolutions and poolings, or ``init`` is unknown.

    Examples
    --------
    >>> import torch
    >>> from paperkit.models import LeNet5
    >>> model = LeNet5(in_channels=1, num_classes=10, image_size=(28, 28))
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    >>> sum(parameter.numel() for parameter in model.parameters())
    61706
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: tuple[int, int] = (28, 28),
        init: str = "pytorch",
    ) -> None:
        in_channels = arguments.integer("in_channels", in_channels, at_least=1)
        num_classes = arguments.integer("num_classes", num_classes, at_least=1)
        sides = arguments.integers("image_size", image_size, at_least=1, length=2)
        init = arguments.choice("init", init, INITS)
        super().__init__()
        padding = 2 if min(sides) < 32 else 0
        height, width = (_after_convolutions(side, padding) for side in sides)
        if min(height, width) < 1:
            raise ValueError(
                f"image_size={sides} is too small for LeNet-5; give images of at "
                "least 12 × 12 pixels"
            )
        self.conv1 = nn.Conv2d(in_channels, 6, _KERNEL, padding=padding)
        self.activation1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, _KERNEL)
        self.activation2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.activation3 = nn.ReLU()
        self.fc2 = nn.Linear(120, 84)
        self.activation4 = nn.ReLU()
        self.fc3 = nn.Linear(84, num_classes)
        if init == "xavier":
            xavier(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images of shape (n, channels, height, width) to logits of shape (n, classes)."""
        features = self.pool1(self.activation1(self.conv1(inputs)))
        features = self.pool2(self.activation2(self.conv2(features)))
        hidden = self.activation3(self.fc1(self.flatten(features)))
        return self.fc3(self.activation4(self.fc2(hidden)))


def _after_convolutions(side: int, padding: int) -> int:
    first = (side + 2 * padding - _KERNEL + 1) // 2
    return (first - _KERNEL + 1) // 2
