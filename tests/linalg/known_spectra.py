"""Symmetric matrices of every awkward kind whose eigenvalues are known."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

D = 60


def _tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def power_law(d: int = D, exponent: float = 1.5) -> Tensor:
    """λ_k = k^{−exponent}."""
    return torch.arange(1, d + 1, dtype=torch.float64, device="cpu") ** -exponent


POSITIVE: dict[str, Tensor] = {
    "power law": power_law(),
    "clustered": _tensor([5.0] * 5 + [1.0] * 25 + [0.1] * 30),
    "low rank": _tensor([k / 20 for k in range(1, 21)] + [0.0] * 40),
    "identity": _tensor([1.0] * D),
    "one outlier": _tensor([100.0] + [0.01 * k for k in range(1, D)]),
}
INDEFINITE: dict[str, Tensor] = {
    "symmetric": torch.linspace(-1, 1, D, dtype=torch.float64, device="cpu"),
    "mostly positive": torch.cat([power_law(50), -0.2 * power_law(10)]),
    "negative": -power_law(),
}
DEGENERATE: dict[str, Tensor] = {
    "zero": _tensor([0.0] * D),
    "dimension one": _tensor([-2.0]),
}
EVERY = POSITIVE | INDEFINITE | DEGENERATE


@cache
def _rotation(d: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    normal = torch.randn(d, d, generator=generator, dtype=torch.float64, device="cpu")
    return torch.linalg.qr(normal).Q


def rotated(eigenvalues: Tensor) -> Tensor:
    """Return a matrix with these eigenvalues and random orthonormal eigenvectors."""
    vectors = _rotation(len(eigenvalues))
    matrix = (vectors * eigenvalues) @ vectors.T
    return (matrix + matrix.T) / 2


class Counted:
    """A matrix as an operator that counts its products."""

    def __init__(self, matrix: Tensor, *, positive_semidefinite: bool = False) -> None:
        self.matrix = matrix
        self.products = 0
        self.dimension, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device
        self.positive_semidefinite = positive_semidefinite
        self.round_off = torch.finfo(matrix.dtype).eps

    def __call__(self, vectors: Tensor) -> Tensor:
        self.products += len(vectors)
        return vectors @ self.matrix


def sign_vectors(d: int) -> Tensor:
    """Return all 2^d vectors of signs, as rows."""
    bits = torch.arange(2**d, device="cpu").unsqueeze(1) >> torch.arange(d, device="cpu") & 1
    return (2 * bits - 1).to(torch.float64)


def function_of(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return f(A) by its eigendecomposition."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * function(eigenvalues)) @ vectors.T
