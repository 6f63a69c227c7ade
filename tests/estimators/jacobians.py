"""Jacobians with known singular values, and those of networks by brute force."""

from __future__ import annotations

import torch
from helpers import gaussian
from torch import Tensor, nn


def full_rank_4x6() -> Tensor:
    """sin(1 + i + 2j + 0.7ij): full rank, unlike sin(i + 2j), whose rank is 2."""
    i, j = torch.arange(4.0, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64)
    return torch.sin(1 + i[:, None] + 2 * j + 0.7 * i[:, None] * j)


def with_singular_values(values: list[float], num_inputs: int, seed: int = 0) -> Tensor:
    """A matrix, outputs × inputs, with prescribed singular values."""
    num_outputs = len(values)
    left, _ = torch.linalg.qr(gaussian(num_outputs, num_outputs, seed=seed))
    right, _ = torch.linalg.qr(gaussian(num_inputs, num_outputs, seed=seed + 1))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


def brute_force_jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """∂f/∂x, one sample and one output at a time, (n, C, M)."""
    rows = []
    for sample in inputs:
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], sample)
        rows.append(jacobian.flatten(1))
    return torch.stack(rows)


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


class Squares(nn.Module):
    """f_j = x_j²/2, without any layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 0.5 * inputs.square()
