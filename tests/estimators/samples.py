"""What the tests of measures draw: numbers, labels, targets, and the networks of all kinds."""

from __future__ import annotations

import pytest
import torch
from networks import CASES
from torch import Tensor, nn

from paperkit.network import LOSSES

BY_NAME = {case.name: case for case in CASES}

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_loss = pytest.mark.parametrize("loss", ["cross_entropy", "half_squared_error", "mse"])
# All networks under cross-entropy, some under the squared errors.
every_case_some_losses = pytest.mark.parametrize(
    ("case", "loss"),
    [
        pytest.param(case, loss, id=f"{case.name}-{loss}")
        for loss in LOSSES
        for case in CASES[:: 1 if loss == "cross_entropy" else 4]
    ],
)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def labels(n: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randint(classes, (n,), generator=generator, device="cpu")


def targets_for(loss: str, targets: Tensor) -> Tensor:
    """Labels of three classes as a loss takes them."""
    if loss == "cross_entropy":
        return targets
    return nn.functional.one_hot(targets, 3).double()


def shallow(inputs: int, hidden: int, outputs: int, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
        ).double()


class Quadratic(nn.Module):
    """½‖f‖² is ½ wᵀ A w for f = A^½ w; the input is not looked at."""

    def __init__(self, root: Tensor, point: Tensor) -> None:
        super().__init__()
        self.root = nn.Buffer(root)
        self.point = nn.Parameter(point)

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.root @ self.point).expand(len(inputs), -1)
