"""The rows of G, where F = GᵀG/n is the Fisher matrix: compressed if G is wide, else streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from paperkit.linalg.gram import add_gram
from paperkit.linalg.row_space import RowBlocks, triangular_factor
from paperkit.linalg.symmetric import eigenpairs_of
from paperkit.linearize import Linearization
from paperkit.linearize.layer import LayerLinearization
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


def compressed_rows(linearization: Linearization, factor: Tensor, finest: float) -> RowBlocks:
    """Return a wide G as one block, rotated into as many columns as it has rows.

    Parameters
    ----------
    linearization : Linearization
        In all parameters.
    factor : Tensor
        R, (n, r, C), float64.
    finest : float
        The smallest tolerance at which a rank will be read off the rows.
    """
    n, r, num_outputs = factor.shape
    squared_lengths = factor.new_zeros(n, num_outputs)
    gram = factor.new_zeros(n * r, n * r)
    once = {name: layer for name, layer in linearization.layers.items() if at_one_position(layer)}
    for layer in once.values():
        _add_of_pairs(gram, squared_lengths, layer, factor)
    rest = {name: one for name, one in linearization.layers.items() if name not in once}
    for jacobian in _pieces(replace(linearization, layers=rest), n * r):
        squared_lengths.add_(jacobian.square().sum(dim=2))
        add_gram(gram, (factor @ jacobian).flatten(0, 1))
    scales = _row_scales(factor, squared_lengths)
    rows = _gram_root(gram, finest)
    if rows is None:
        # Factor Gᵀ = Q T. Q has orthonormal columns, so that Tᵀ has the range of G = Tᵀ Qᵀ, and
        # rows of the same lengths.
        jacobians = _pieces(linearization, n * r)
        rows = triangular_factor((factor @ jacobian).flatten(0, 1).T for jacobian in jacobians).T
    return lambda: [(rows, scales)]


def _pieces(linearization: Linearization, width: int) -> Iterator[Tensor]:
    """Yield the Jacobian in all parameters a few columns at a time, (n, C, width), in float64."""
    for _, block in linearization.jacobian_blocks():
        for piece in block.split(max(width, 1), dim=2):
            yield piece.to(torch.float64)


def at_one_position(layer: LayerLinearization) -> bool:
    """Return whether each row of G is an outer product for a layer, as for a linear one."""
    return len(layer.uses) == 1 and layer.uses[0].positions() == layer.uses[0].groups == 1


def _add_of_pairs(
    gram: Tensor, squared_lengths: Tensor, layer: LayerLinearization, factor: Tensor
) -> None:
    """Add a layer's part of G Gᵀ and of the Jacobian's squared lengths, in place.

    The rows s aᵀ of two samples have the inner product (sᵀ s′)(aᵀ a′), which takes the layer's
    width where the rows themselves take its weights.
    """
    n, r, _ = factor.shape
    everything = slice(None)
    cotangents = layer.uses[0].cotangents(everything).flatten(2).to(torch.float64)
    inputs = layer.uses[0].columns(everything).flatten(1).to(torch.float64)
    signals = torch.zeros_like(gram)
    add_gram(signals, (factor @ cotangents).flatten(0, 1))
    products = (inputs @ inputs.T).view(n, 1, n, 1)
    gram.view(n, r, n, r).addcmul_(signals.view(n, r, n, r), products)
    squared_lengths.addcmul_(cotangents.square().sum(dim=2), inputs.square().sum(1, keepdim=True))


def precise_after_squaring(num_rows: int, finest: float) -> bool:
    """Return whether round-off in G Gᵀ stays below the smallest tolerance.

    It moves an eigenvalue of the rows at unit length by about ``num_rows`` units at most, and so
    a small singular value by the root of that.
    """
    return (num_rows * torch.finfo(torch.float64).eps) ** 0.5 <= finest


def _gram_root(gram: Tensor, finest: float) -> Tensor | None:
    """Return L with L Lᵀ the Gram matrix of which the lower half is given.

    Squaring a matrix costs digits of its small singular values. None where, with the rows at unit
    length, they would lose more than half of their digits and the ranks need these: then G itself
    must be factorized.
    """
    limits = torch.finfo(gram.dtype)
    # The square of a shorter row would have lost digits, or be zero.
    if bool((gram.diagonal() < limits.tiny / limits.eps).any()):
        return None
    lengths = gram.diagonal().sqrt()
    unit = gram.tril() / (lengths.unsqueeze(1) * lengths)
    smallest = float(torch.linalg.eigvalsh(unit)[0])
    if smallest >= len(gram) * limits.eps**0.5:
        root, failed = torch.linalg.cholesky_ex(unit)
        if not bool(failed):
            return lengths.unsqueeze(1) * root
    if not precise_after_squaring(len(gram), finest):
        return None
    values, vectors = eigenpairs_of(unit)
    return lengths.unsqueeze(1) * vectors * values.clamp(min=0.0).sqrt()


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
