"""What tests of several rooms share: small targets, random numbers, relative errors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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
