"""A layer's pairs with the output Jacobians weighted by the loss, some samples at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from paperkit.linearize.layer import LayerLinearization


def weight_by_group(layer: LayerLinearization) -> Tensor:
    """Return W by groups, (g, o, i), in float64."""
    weight = layer.uses[0].module.get_parameter("weight").detach().to(torch.float64)
    return layer.layout.matrices(weight)


def weighted_pairs(
    layer: LayerLinearization, bytes_per_sample: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a layer's inputs and weighted output Jacobians, some samples at a time.

    The positions of parallel uses add up like those of one use, so they are put side by side.

    Parameters
    ----------
    layer : LayerLinearization
        The layer.
    bytes_per_sample : int
        Bytes that the caller needs besides, so that both fit the layer's memory budget.

    Yields
    ------
    tuple of Tensor
        Inputs a, (n, g, i, P), and R B, (n, r, g, o, P), in single precision at least.
    """
    working = torch.promote_types(layer.hessian_factor.dtype, torch.float32)
    positions = sum(use.positions() for use in layer.uses)
    groups, outputs, row_length = layer.layout.matrix_shape
    per_position = groups * (row_length + 3 * outputs * layer.hessian_factor.shape[2])
    step = max(1, layer.memory_budget // (8 * positions * per_position + bytes_per_sample))
    for start in range(0, layer.num_samples, step):
        samples = slice(start, start + step)
        columns = torch.cat([use.columns(samples) for use in layer.uses], dim=-1)
        cotangents = torch.cat([use.cotangents(samples) for use in layer.uses], dim=-1)
        factor = layer.hessian_factor[samples].to(working)
        yield (
            columns.to(working),
            torch.einsum("nrc,ncgop->nrgop", factor, cotangents.to(working)),
        )
