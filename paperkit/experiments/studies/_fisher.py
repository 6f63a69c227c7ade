"""Fisher matrices and gradients of small networks, by loops over samples, labels and outputs.

Nothing here goes through the library's linearization. Every gradient is a backward pass of its own,
so that an identity with the library compares two computations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.models.small import build_dense_network

NONZERO = 1e-11
"""Part of a matrix's largest eigenvalue above which another counts as not zero."""


@dataclass(frozen=True)
class Problem:
    """A network with inputs (n, d) and labels (n,)."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels, as the library takes them."""
        return self.inputs, self.targets


def random_problem(network: str, samples: int, classes: int, seed: int) -> Problem:
    """Build a network of widths 3, 4 and C at random weights, with Gaussian inputs."""
    generator = torch.Generator(device="cpu").manual_seed(3000 + seed)
    inputs = torch.randn(samples, 3, generator=generator, dtype=torch.float64, device="cpu")
    targets = torch.randint(classes, (samples,), generator=generator, device="cpu")
    if network == "linear":
        layer = nn.Linear(3, classes, dtype=torch.float64, device="cpu")
        weights = torch.randn(classes, 4, generator=generator, dtype=torch.float64, device="cpu")
        with torch.no_grad():
            layer.weight.copy_(weights[:, :3])
            layer.bias.copy_(weights[:, 3])
        return Problem(nn.Sequential(layer), inputs, targets)
    return Problem(build_dense_network(network, seed, (3, 4, classes)), inputs, targets)


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers, first layer first."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def flat_gradient(value: Tensor, model: nn.Module) -> Tensor:
    """Differentiate a number with respect to all parameters, as one vector."""
    parts = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    return torch.cat([part.reshape(-1) for part in parts])


def label_gradients(problem: Problem) -> Tensor:
    """Return the gradient of −log p(y | x) for each sample and each label y, (n, C, m)."""
    log_p = torch.log_softmax(problem.model(problem.inputs), dim=1)
    rows = [[flat_gradient(-entry, problem.model) for entry in sample] for sample in log_p]
    return torch.stack([torch.stack(row) for row in rows])


def logit_gradients(problem: Problem) -> Tensor:
    """Return the Jacobian of the logits, (n, C, m)."""
    outputs = problem.model(problem.inputs)
    rows = [[flat_gradient(entry, problem.model) for entry in sample] for sample in outputs]
    return torch.stack([torch.stack(row) for row in rows])


def probabilities(problem: Problem) -> Tensor:
    """Return the model's probabilities, (n, C)."""
    with torch.no_grad():
        return torch.softmax(problem.model(problem.inputs), dim=1)


@dataclass(frozen=True)
class Written:
    """The Fisher matrix, all samples' gradients and their probabilities, written out."""

    fisher: Tensor
    gradients: Tensor
    p: Tensor

    @property
    def inverse(self) -> Tensor:
        """Pseudo-inverse of the Fisher matrix."""
        return pseudo_inverse(self.fisher)

    @property
    def rank(self) -> int:
        """Rank of the Fisher matrix."""
        values = torch.linalg.eigvalsh(self.fisher)
        return int((values > NONZERO * values[-1]).sum())

    def sharpness(self) -> float:
        """Mean of the squared gradients under the pseudo-inverse, equation 6."""
        return float(((self.gradients @ self.inverse) * self.gradients).sum(dim=1).mean())

    def mean_term(self) -> float:
        """Square of the mean gradient under the pseudo-inverse."""
        mean = self.gradients.mean(dim=0)
        return float(mean @ self.inverse @ mean)


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """Invert a symmetric matrix on the eigenvectors whose eigenvalue is not zero."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > NONZERO * values[-1]
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T


def written_out(problem: Problem) -> Written:
    """Enumerate the labels for the Fisher matrix, and pick the given ones for the gradients."""
    by_label, p = label_gradients(problem), probabilities(problem)
    weighted = (p.unsqueeze(2) * by_label).flatten(0, 1)
    fisher = weighted.T @ by_label.flatten(0, 1) / len(p)
    samples = torch.arange(len(p), device=p.device)
    return Written(0.5 * (fisher + fisher.T), by_label[samples, problem.targets], p)


def relative(left: float, right: float) -> float:
    """Return |left − right| over the larger of the two magnitudes."""
    return abs(left - right) / max(abs(left), abs(right))


def relative_norm(left: Tensor, right: Tensor) -> float:
    """Return the norm of the difference over that of the right side."""
    return float((left - right).norm() / right.norm())


def exact_losses(problem: Problem) -> list[float]:
    """Return each sample's −log p(y | x) in Python's own numbers."""
    with torch.no_grad():
        logits = problem.model(problem.inputs).tolist()
    losses = []
    for row, label in zip(logits, problem.targets.tolist(), strict=True):
        largest = max(row)
        total = math.fsum(math.exp(entry - largest) for entry in row)
        losses.append(math.log(total) + largest - row[label])
    return losses


def product(fact: str, seeds: int, **choices: tuple[Any, ...]) -> list[dict[str, Any]]:
    """List the configurations of one fact: every combination of the choices, with each seed."""
    rows: list[dict[str, Any]] = [{"fact": fact}]
    for name, values in choices.items():
        rows = [{**row, name: value} for row in rows for value in values]
    return [{**row, "seed": seed} for row in rows for seed in range(seeds)]
