"""The rows of G, where F = GᵀG/n is the Fisher matrix: compressed if G is wide, else streamed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from paperkit.linalg.gram import add_gram
from paperkit.linalg.row_space import RowBlocks, triangular_factor
from paperkit.linearize import Linearization
from paperkit.linearize.linearize import linearize_in_chunks
from paperkit.network.losses import Loss
from paperkit.network.samples import Inputs

# Float64 copies of G that the factorizations hold at once.
_COPIES = 4


def require_room(num_rows: int, dimension: int, memory_budget: int) -> None:
    """Raise if neither the rows nor the columns of G are few enough to be factorized."""
    needed = 8 * _COPIES * min(num_rows, dimension) ** 2
    if needed > memory_budget:
        raise ValueError(
            f"memory_budget={memory_budget} is too small for {num_rows} rows and {dimension} "
            f"parameters: raise it to {needed}, or measure fewer samples."
        )


def _row_scales(factor: Tensor, squared_lengths: Tensor) -> Tensor:
    """Return Σ_c |R_jc| ‖∂f_c/∂θ‖ of each row of G, its length but for cancellation: (n r,)."""
    return (factor.abs() @ squared_lengths.sqrt().unsqueeze(2)).flatten()


def compressed_rows(linearization: Linearization, factor: Tensor) -> RowBlocks:
    """Return a wide G as one block, rotated into as many columns as it has rows."""
    n, r, num_outputs = factor.shape
    squared_lengths = factor.new_zeros(n, num_outputs)
    gram = factor.new_zeros(n * r, n * r)

    def pieces() -> Iterator[Tensor]:
        for _, block in linearization.jacobian_blocks():
            for piece in block.split(max(n * r, 1), dim=2):
                yield piece.to(torch.float64)

    for jacobian in pieces():
        squared_lengths.add_(jacobian.square().sum(dim=2))
        add_gram(gram, (factor @ jacobian).flatten(0, 1))
    scales = _row_scales(factor, squared_lengths)
    rows = _gram_root(gram)
    if rows is None:
        # Factor Gᵀ = Q T. Q has orthonormal columns, so that Tᵀ has the range of G = Tᵀ Qᵀ, and
        # rows of the same lengths.
        rows = triangular_factor((factor @ jacobian).flatten(0, 1).T for jacobian in pieces()).T
    return lambda: [(rows, scales)]


def _gram_root(gram: Tensor) -> Tensor | None:
    """Return L with L Lᵀ the Gram matrix of which the lower half is given.

    Squaring a matrix costs digits of its small singular values. None where, with the rows at unit
    length, they would lose more than half of their digits: then G itself must be factorized.
    """
    lengths = gram.diagonal().sqrt()
    if not bool((lengths > 0).all()):
        return None
    unit = gram.tril() / (lengths.unsqueeze(1) * lengths)
    smallest = float(torch.linalg.eigvalsh(unit)[0])
    if smallest < len(gram) * torch.finfo(gram.dtype).eps ** 0.5:
        return None
    root, failed = torch.linalg.cholesky_ex(unit)
    return None if bool(failed) else lengths.unsqueeze(1) * root


def _weighted_rows(jacobian: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of G of some samples, with their scales."""
    jacobian = jacobian.to(torch.float64)
    scales = _row_scales(factor, jacobian.square().sum(dim=2))
    return (factor @ jacobian).flatten(0, 1), scales


def single_block(jacobian: Tensor, factor: Tensor) -> RowBlocks:
    """Return G of a Jacobian (n, C, d) as one block."""
    block = _weighted_rows(jacobian, factor)
    return lambda: [block]


def streamed_rows(
    factor: Tensor,
    dimension: int,
    model: nn.Module,
    samples: tuple[Inputs, Tensor],
    loss: Loss,
    memory_budget: int,
) -> RowBlocks:
    """Return a tall G a few samples at a time, linearized anew at every pass unless it fits."""
    n, _, num_outputs = factor.shape
    size = max(1, memory_budget // (8 * _COPIES * num_outputs * dimension))
    inputs, targets = samples
    data = list(zip(inputs.split(size), targets.split(size), strict=True))

    def one_pass() -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for linearization, _ in linearize_in_chunks(
            model, data, loss, all_parameters=True, memory_budget=memory_budget
        ):
            chunk = slice(start, start + linearization.num_samples)
            start = chunk.stop
            jacobian = torch.cat([block for _, block in linearization.jacobian_blocks()], dim=2)
            yield _weighted_rows(jacobian, factor[chunk])

    if n > size:
        return one_pass
    rows = list(one_pass())
    return lambda: rows
