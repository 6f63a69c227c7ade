"""What tests of several rooms share: small targets, random numbers, relative errors."""

from __future__ import annotations

import pytest
import torch
from networks import CASES
from torch import Tensor, nn
from torch.nn import functional

from paperkit.network import LOSSES

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


def relative(difference: Tensor, reference: Tensor) -> float:
    """Return ‖difference‖ / ‖reference‖."""
    return float(difference.norm() / reference.norm())


def targets_for(loss: str, labels: Tensor, num_outputs: int = 3) -> Tensor:
    """Return labels as the loss takes them: as they are, or one column for each class."""
    if loss == "cross_entropy":
        return labels
    return functional.one_hot(labels, num_outputs).double()


def random_labels(n: int, classes: int, seed: int = 0) -> Tensor:
    """Draw n labels."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randint(classes, (n,), generator=generator, device="cpu")


def random_matrix(d: int, seed: int) -> Tensor:
    """Draw a positive definite matrix with eigenvalues over several decades."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, d, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-2, 1, d, dtype=torch.float64)
    return factor * scales @ factor.T


def small_network(activation: nn.Module, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3)).double()
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    return model, inputs, torch.randint(0, 3, (10,), generator=generator)


def gradient_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(model(inputs), targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


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
