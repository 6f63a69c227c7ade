"""Small networks whose Hessian can be written out, for 8 × 8 digits and for random inputs.

Each of the first kind (:data:`DIGIT_NETWORKS`) has one feature that decides whether a layer's
Hessian block is its Gauss–Newton block: a residual branch, a shared weight, a smooth activation, a
normalisation. Those of the second kind (:func:`build_dense_network`) differ in activation, biases,
normalisation and residual branch, which decide what changes of parameters keep their function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit import arguments
from paperkit.models.activations import ACTIVATIONS, activation_module

CLASSES = 10
"""Number of outputs of the networks for digits."""

DENSE_WIDTHS = (6, 7, 6, 4)
"""Input, hidden and output widths of the networks for random inputs, unless told otherwise."""

OPTIONS = ("bias", "norm", "residual", "brier")
"""What may follow the activation in the name of a network for random inputs."""


class SmallResidual(nn.Module):
    """A stem, one residual block with batch normalisation, pooling and a linear head."""

    def __init__(self, batch_statistics: bool = False) -> None:
        super().__init__()
        tracked = not batch_statistics
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4, track_running_stats=tracked)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4, track_running_stats=tracked)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, 1, 8, 8) to (n, 10)."""
        hidden = functional.relu(self.norm1(self.stem(inputs)))
        hidden = functional.relu(self.norm2(self.conv(hidden)) + hidden)
        return self.head(functional.adaptive_avg_pool2d(hidden, 2).flatten(1))


class TwoHalves(nn.Module):
    """One weight applied to both halves of the image, in parallel."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(32, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, 1, 8, 8) to (n, 10)."""
        left, right = inputs.flatten(1).chunk(2, dim=1)
        return self.head(functional.relu(self.shared(left)) + functional.relu(self.shared(right)))


class WeightTwice(nn.Module):
    """One weight used twice along the depth."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.cell = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, 1, 8, 8) to (n, 10)."""
        hidden = functional.relu(self.first(inputs.flatten(1)))
        hidden = functional.relu(self.cell(hidden))
        return self.head(functional.relu(self.cell(hidden)))


def _mlp(first: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), first, nn.Linear(8, 8), second, nn.Linear(8, CLASSES)
    )


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


DIGIT_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ReLU MLP": lambda: _mlp(nn.ReLU(), nn.ReLU()),
    "leaky ReLU LeNet": _lenet,
    "residual, frozen batch norm": SmallResidual,
    "one weight in parallel": TwoHalves,
    "tanh, then ReLU": lambda: _mlp(nn.Tanh(), nn.ReLU()),
    "GELU": lambda: _mlp(nn.GELU(), nn.GELU()),
    "layer normalisation": lambda: _mlp(nn.LayerNorm(8), nn.ReLU()),
    "batch statistics": lambda: SmallResidual(batch_statistics=True),
    "one weight twice in depth": WeightTwice,
}
"""Networks from (n, 1, 8, 8) to (n, 10), by name, each built anew at every call."""


def build_digit_network(name: str, seed: int) -> nn.Module:
    """Build one of :data:`DIGIT_NETWORKS` in float64 and in evaluation mode.

    The statistics and scales of batch normalisation are drawn between 0.5 and 1.5, because at
    their initial 0 and 1 an error in how they enter would not show. The global random number
    generators are left as they were found.

    Parameters
    ----------
    name : str
        The network's name, in :data:`DIGIT_NETWORKS`.
    seed : int
        Seed of the weights (PyTorch's default initialisation), statistics and scales.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    name, seed = arguments.choice("name", name, DIGIT_NETWORKS), arguments.seed("seed", seed)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reseed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        model = DIGIT_NETWORKS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    noise = torch.rand(
                        tensor.shape, generator=generator, dtype=tensor.dtype, device="cpu"
                    )
                    tensor.data.copy_(0.5 + noise)
    return model.eval()


class BatchStandardization(nn.Module):
    """Batch normalisation by the statistics of the batch, without affine parameters.

    Unlike ``nn.BatchNorm1d`` it uses the batch's own statistics in every mode: the measures put a
    model in evaluation mode, and it is the dependence on the batch that this study is about.

    Parameters
    ----------
    epsilon : float
        Added to the variance under the root; 0 is allowed.
    """

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, preactivations: Tensor) -> Tensor:
        """Standardise each unit over the batch, (n, width) to (n, width)."""
        centred = preactivations - preactivations.mean(dim=0)
        variance = centred.square().mean(dim=0)
        return centred / torch.sqrt(variance + self.epsilon)


class Residual(nn.Module):
    """The identity plus a branch."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``hidden + branch(hidden)``."""
        return hidden + self.branch(hidden)


def _linear(inputs: int, outputs: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    """He-initialised weights (He et al. 2015), and biases that are not zero, in float64."""
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        layer.weight.normal_(0.0, math.sqrt(2.0 / inputs), generator=generator)
        if bias:
            layer.bias.normal_(0.0, 0.3, generator=generator)
    return layer


def build_dense_network(
    network: str, seed: int, widths: Sequence[int] = DENSE_WIDTHS, epsilon: float = 0.0
) -> nn.Sequential:
    """Build a small fully connected network at random initialisation, in float64.

    Parameters
    ----------
    network : str
        An activation of :data:`paperkit.models.ACTIVATIONS`, alone or followed by one of ``_bias``,
        ``_norm`` (batch statistics before each activation), ``_residual`` (the second hidden layer
        becomes a residual branch of two layers) and ``_brier`` (softmax outputs, for a squared
        error).
    seed : int
        Seed of the initialisation.
    widths : sequence of int
        Input, hidden and output widths.
    epsilon : float
        The normalisation's ε, used by ``_norm`` alone.

    Returns
    -------
    torch.nn.Sequential

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    activation, _, option = (
        network.rpartition("_") if network not in ACTIVATIONS else (network, "", "")
    )
    if activation not in ACTIVATIONS or option not in ("", *OPTIONS):
        raise ValueError(
            f"network={network!r} is unknown: use one of {', '.join(ACTIVATIONS)}, alone or "
            "followed by _bias, _norm, _residual or _brier."
        )
    seed = arguments.seed("seed", seed)
    widths = arguments.integers("widths", widths, at_least=1)
    epsilon = arguments.number("epsilon", epsilon, at_least=0)
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return _linear(inputs, outputs, option == "bias", generator)

    if option == "residual":
        first, hidden, last = widths[0], widths[1], widths[-1]
        branch = nn.Sequential(
            linear(hidden, hidden), activation_module(activation), linear(hidden, hidden)
        )
        return nn.Sequential(
            linear(first, hidden),
            Residual(branch),
            activation_module(activation),
            linear(hidden, last),
        )
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        modules.append(linear(inputs, outputs))
        if option == "norm":
            modules.append(BatchStandardization(epsilon))
        modules.append(activation_module(activation))
    modules.append(linear(widths[-2], widths[-1]))
    if option == "brier":
        modules.append(nn.Softmax(dim=1))
    return nn.Sequential(*modules)
