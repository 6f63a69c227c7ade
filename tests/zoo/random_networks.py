"""Small networks drawn at random from many kinds of layers, with data and a loss.

The kinds are those that strangers combine: shared and tied weights, parametrizations, in-place
operations, gates, attention, recurrence, embeddings, layers of one's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

ACTIVATIONS = (
    *(nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.LeakyReLU, nn.Identity),
    *(nn.PReLU, nn.Sigmoid, nn.Hardtanh, nn.Mish, nn.CELU, nn.SELU),
)


class Applied(nn.Module):
    """A layer within a function of the layer and its input."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.how = how
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        return self.how(self.layer, inputs)


def residual(layer: nn.Module, inputs: Tensor) -> Tensor:
    return inputs + layer(inputs)


def twice(layer: nn.Module, inputs: Tensor) -> Tensor:
    return layer(torch.tanh(layer(inputs)))


def in_parallel(layer: nn.Module, inputs: Tensor) -> Tensor:
    return 0.5 * layer(inputs) + layer(inputs.flip(-1))


def tied(layer: nn.Module, inputs: Tensor) -> Tensor:
    return functional.linear(torch.tanh(layer(inputs)), layer.weight.T)


def in_place(layer: nn.Module, inputs: Tensor) -> Tensor:
    outputs = layer(inputs)
    outputs.add_(inputs)
    outputs[:, 0] *= 2
    return functional.relu_(outputs)


def with_itself(layer: nn.Module, inputs: Tensor) -> Tensor:
    return layer(inputs, torch.tanh(inputs))


def sequence_of(layer: nn.Module, inputs: Tensor) -> Tensor:
    return layer(inputs)[0]


def self_attention(layer: nn.Module, inputs: Tensor) -> Tensor:
    return layer(inputs, inputs, inputs, need_weights=False)[0]


class Masked(nn.Linear):
    """A linear layer with a forward pass of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight.tril(), self.bias)


class Parts(nn.Module):
    """Several linear layers, joined by a function."""

    def __init__(self, how: Callable[..., Tensor], inputs: int, *outputs: int) -> None:
        super().__init__()
        self.how = how
        self.parts = nn.ModuleList(nn.Linear(inputs, size) for size in outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.how(*(part(inputs) for part in self.parts))


def gated(value: Tensor, gate: Tensor) -> Tensor:
    return value * torch.sigmoid(gate)


def joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts, -1)


class Functional(nn.Module):
    """Parameters in a list, which no known layer holds."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(outputs, inputs), torch.randn(outputs)])

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, *self.weights)


class Scales(nn.Module):
    """A factor for each entry, and one without dimensions for all."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.each = nn.Parameter(torch.rand(size) + 0.5)
        self.all = nn.Parameter(torch.tensor(0.7))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.each * self.all


class Einsum(nn.Module):
    """A matrix product in other words."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.einsum("bi,ij->bj", inputs, self.matrix)


class Last(nn.Module):
    """The last position of a sequence."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, -1]


class Mean(nn.Module):
    """The mean of a sequence."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(1)


def _moved(norm: nn.Module) -> nn.Module:
    """Give a batch normalisation statistics of its own."""
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2.0)
    return norm


def _of_vectors(draw: random.Random, size: int) -> nn.Module:
    wide = draw.randint(2, 5)
    linear = nn.Linear(size, wide, bias=draw.random() < 0.7)
    square = nn.Linear(size, size)
    kinds = (
        lambda: linear,
        lambda: Applied(residual, nn.Sequential(square, nn.Tanh())),
        lambda: Applied(twice, square),
        lambda: Applied(in_parallel, linear),
        lambda: Applied(tied, nn.Linear(size, wide, bias=False)),
        lambda: Applied(in_place, square),
        lambda: Applied(with_itself, nn.Bilinear(size, size, wide)),
        lambda: Functional(size, wide),
        lambda: Parts(gated, size, wide, wide),
        lambda: Parts(joined, size, wide, 2),
        lambda: Scales(size),
        lambda: Masked(size, wide),
        lambda: Einsum(size, wide),
        lambda: nn.LayerNorm(size),
        lambda: _moved(nn.BatchNorm1d(size, affine=draw.random() < 0.7)),
        lambda: parametrizations.weight_norm(linear),
        lambda: parametrizations.spectral_norm(linear),
        lambda: parametrizations.orthogonal(square),
        lambda: nn.Sequential(nn.Dropout(0.3), linear),
        lambda: nn.Sequential(nn.Unflatten(1, (1, size)), nn.Conv1d(1, 2, 2), nn.Flatten()),
    )
    return draw.choice(kinds)()


def _of_images(draw: random.Random, channels: int) -> nn.Module:
    wide = 2 * draw.randint(1, 3)
    same = nn.Conv2d(channels, channels, 3, padding=1)
    mode = draw.choice(["reflect", "circular", "replicate"])
    kinds = (
        lambda: nn.Conv2d(channels, wide, 3, padding=1, stride=draw.choice([1, 2])),
        lambda: nn.Conv2d(channels, wide, 1, stride=2, bias=False),
        lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        lambda: nn.Conv2d(channels, wide, 3, padding=1, padding_mode=mode),
        lambda: nn.Conv2d(channels, wide, 3, padding="same", dilation=2),
        lambda: nn.ConvTranspose2d(channels, wide, 2),
        lambda: Applied(residual, same),
        lambda: Applied(twice, same),
        lambda: _moved(nn.BatchNorm2d(channels)),
        lambda: nn.GroupNorm(1, channels),
        lambda: nn.InstanceNorm2d(channels, affine=True),
        lambda: nn.AvgPool2d(2, 1),
        lambda: nn.MaxPool2d(2, 1),
        lambda: nn.Upsample(scale_factor=1.5),
    )
    return draw.choice(kinds)()


def _of_sequences(draw: random.Random, size: int) -> nn.Module:
    recurrent = draw.choice([nn.LSTM, nn.GRU, nn.RNN])
    mlp = nn.Sequential(nn.Linear(size, 4), nn.GELU(), nn.Linear(4, size))
    kinds = (
        lambda: nn.Linear(size, size),
        lambda: nn.LayerNorm(size),
        lambda: Applied(residual, mlp),
        lambda: Applied(sequence_of, recurrent(size, 3, batch_first=True)),
        lambda: Applied(self_attention, nn.MultiheadAttention(size, 1, batch_first=True)),
        lambda: Parts(functional.scaled_dot_product_attention, size, size, size, size),
        lambda: nn.TransformerEncoderLayer(size, 1, 4, dropout=0.1, batch_first=True),
    )
    return draw.choice(kinds)()


@dataclass
class Drawn:
    """A network with data.

    Attributes
    ----------
    model : nn.Module
    inputs, targets : Tensor
        Samples and what the loss compares their outputs with.
    loss : object
        As the library takes it.
    value : callable
        The same loss of outputs and targets.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Any
    value: Callable[[Tensor, Tensor], Tensor]

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.inputs, self.targets


def drawn(seed: int) -> Drawn:
    """Draw a network, its data and a loss, in float64 and in one of the two modes."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        inputs, body = _body(draw)
        with torch.no_grad():
            size = body(inputs[:2]).shape[1]
            outputs = draw.randint(1, 4)
            head = nn.Linear(size, outputs) if draw.random() < 0.9 else Functional(size, outputs)
        model = nn.Sequential(*body, head).train(draw.random() < 0.5)
        loss, value, targets = _loss(draw, len(inputs), outputs)
    finally:
        torch.set_default_dtype(before)
    return Drawn(model, inputs, targets, loss, value)


def _body(draw: random.Random) -> tuple[Tensor, nn.Sequential]:
    n = draw.randint(3, 6)
    kind = draw.choice(["vectors", "vectors", "images", "sequences", "tokens"])
    if kind == "tokens":
        first: list[nn.Module] = [nn.Embedding(5, 3)]
        inputs, layer_of, last = torch.randint(5, (n, 3)), _of_sequences, [Mean()]
    elif kind == "sequences":
        inputs, layer_of = torch.randn(n, 3, draw.randint(2, 3)), _of_sequences
        first, last = [], [draw.choice([Last, Mean])()]
    elif kind == "images":
        inputs, layer_of = torch.randn(n, draw.randint(1, 3), 5, 5), _of_images
        pooled = draw.random() < 0.6
        first, last = [], [*[nn.AdaptiveAvgPool2d(1)][:pooled], nn.Flatten()]
    else:
        inputs, layer_of = torch.randn(n, draw.randint(2, 4)), _of_vectors
        first, last = [], []
    layers = first
    for _ in range(draw.randint(1, 3)):
        with torch.no_grad():
            shape = nn.Sequential(*layers)(inputs[:2]).shape
        size = shape[1] if layer_of is not _of_sequences else shape[-1]
        layers += [layer_of(draw, size), draw.choice(ACTIVATIONS)()]
    return inputs, nn.Sequential(*layers, *last).train()


def _loss(draw: random.Random, n: int, outputs: int) -> tuple[Any, Any, Tensor]:
    """Return a loss as the library takes it, the same as a function, and targets."""
    labels, real = torch.randint(outputs, (n,)), torch.randn(n, outputs)
    weight = torch.rand(outputs) + 0.3

    def of_ones_own(found: Tensor, wanted: Tensor) -> Tensor:
        entropy = torch.logsumexp(found, 1) - found.gather(1, wanted.unsqueeze(1)).squeeze(1)
        return (entropy + 0.1 * found.square().sum(1)).mean()

    def half_squared(found: Tensor, wanted: Tensor) -> Tensor:
        return 0.5 * (found - wanted).square().sum() / len(found)

    regression = [
        (nn.MSELoss(), nn.MSELoss(), real),
        (nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(), (real > 0).to(real.dtype)),
        ("half_squared_error", half_squared, real),
    ]
    classification = [
        (loss, loss, labels)
        for loss in (
            nn.CrossEntropyLoss(weight=weight),
            nn.CrossEntropyLoss(label_smoothing=0.1),
            of_ones_own,
        )
    ]
    classification += [
        ("cross_entropy", functional.cross_entropy, labels),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(), real.softmax(1)),
    ]
    return draw.choice(regression if outputs == 1 else regression + classification)
