"""Small networks of each kind, with what the proposition says of their layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """Convolutions with stride, dilation and groups, frozen batch norm, in-place ReLU, a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.strided = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(2, 1), padding=(2, 1))
        self.head = nn.Linear(6, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu(self.norm(self.stem(inputs)))
        hidden = self.relu(self.grouped(hidden)) + hidden
        hidden = functional.max_pool2d(self.relu(self.strided(hidden)), 2)
        return self.head(hidden.mean((2, 3)))


class Siamese(nn.Module):
    """One weight on both halves of the input in parallel: allowed by the proposition."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        left, right = inputs.chunk(2, dim=1)
        return self.head(functional.relu(self.shared(left)) + functional.relu(self.shared(right)))


class Recurrent(nn.Module):
    """One weight used twice along the depth: its second input depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(functional.relu(self.cell(functional.relu(self.cell(inputs)))))


class Gated(nn.Module):
    """x·σ(x) written as a function, which no list of modules shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        return self.head(hidden * torch.sigmoid(hidden))


class SelfProduct(nn.Module):
    """A product of two piecewise linear functions of the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.head = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        left, right = self.first(inputs).chunk(2, dim=1)
        return self.head(left * functional.relu(right))


class Positions(nn.Module):
    """A linear layer over a sequence, samples first, and a one-dimensional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.mix = nn.Conv1d(4, 4, 3, padding=1, padding_mode="replicate")
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.leaky_relu(self.embed(inputs))
        hidden = functional.hardtanh(self.mix(hidden.transpose(1, 2)))
        return self.head(functional.adaptive_avg_pool1d(hidden, 1).flatten(1))


@dataclass(frozen=True)
class Case:
    """A network, its input shape without samples, and the layers that are not exact."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    inexact: frozenset[str] = frozenset()

    def make(
        self, n: int = 6, seed: int = 0, device: torch.device | str = "cpu"
    ) -> tuple[nn.Module, Tensor, Tensor]:
        """Return the float64 network, inputs and labels of three classes."""
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.build().double()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        inputs = torch.randn(n, *self.shape, generator=generator, dtype=torch.float64)
        targets = torch.randint(0, 3, (n,), generator=generator)
        return model.to(device), inputs.to(device), targets.to(device)


def _mlp(activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Linear(8, 6), activation(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    )


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


CASES = (
    Case("relu MLP", _mlp(nn.ReLU), (8,)),
    Case("leaky ReLU MLP", _mlp(nn.LeakyReLU), (8,)),
    Case("one layer", lambda: nn.Linear(8, 3), (8,)),
    Case("LeNet", _lenet, (1, 8, 8)),
    Case("residual", Residual, (2, 6, 6)),
    Case("siamese", Siamese, (8,)),
    Case("positions", Positions, (5, 3)),
    Case("tanh before the second layer", _mlp(nn.Tanh), (8,), frozenset({"0"})),
    Case("GELU before the second layer", _mlp(nn.GELU), (8,), frozenset({"0"})),
    Case("weight used twice along the depth", Recurrent, (8,), frozenset({"cell"})),
    Case("functional gate", Gated, (8,), frozenset({"first"})),
    Case("product of two dependent factors", SelfProduct, (8,), frozenset({"first"})),
)

NAMED = {case.name: case for case in CASES}
