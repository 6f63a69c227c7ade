"""A backward pass for each output, and a check that it keeps the samples in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_GOLDEN = 0.5 * (5.0**0.5 - 1.0)


@dataclass
class OutputRows:
    """Buffer for the gradients that a backward pass for each output brings to a place of the graph.

    Attributes
    ----------
    owner : str or None
        Name of the module; None for the network's input.
    source : Tensor or GradientEdge
        Place of the graph.
    buffer : Tensor
        Gradients, shape (n, C, …).
    reduce : callable or None
        Function from a gradient (n, …) to the part of it that is stored; default all of it.
    """

    owner: str | None
    source: Any
    buffer: Tensor
    reduce: Callable[[Tensor], Tensor] | None = None

    def part_of(self, gradient: Tensor) -> Tensor:
        """Return the part of a gradient that is stored in the buffer."""
        return gradient if self.reduce is None else self.reduce(gradient)


def backward_for_each_output(
    outputs: Tensor, places: Sequence[OutputRows], *, retain_graph: bool
) -> None:
    """Write the gradients of output c into ``buffer[:, c]`` of each place, for every c."""
    num_outputs = outputs.shape[1]
    sources = [rows.source for rows in places]
    seed = torch.zeros_like(outputs)
    for c in range(num_outputs):
        seed.zero_()[:, c] = 1.0
        gradients = torch.autograd.grad(
            outputs,
            sources,
            seed,
            retain_graph=retain_graph or c + 1 < num_outputs,
            allow_unused=True,
        )
        for rows, gradient in zip(places, gradients, strict=True):
            rows.buffer[:, c] = 0.0 if gradient is None else rows.part_of(gradient)


def rows_out_of_order(outputs: Tensor, places: Sequence[OutputRows]) -> list[bool]:
    """Tell of each place whether row i of its gradients is due to another sample than i.

    This serves models whose operations do not show the order. The check takes another backward
    pass, whose seed has the same row for every sample, times a multiple of the sample's own. A
    place that sees the samples in their order then gets its rows times the same multiples.
    """
    n, num_outputs = outputs.shape
    if n == 1:
        return [False] * len(places)
    generator = torch.Generator(device="cpu").manual_seed(0)
    row = torch.randn(num_outputs, generator=generator, dtype=torch.float64, device="cpu")
    # Fractional parts of multiples of the golden section lie far from each other, so any two
    # samples have clearly different multiples.
    multiples = 1.0 + torch.arange(n, dtype=torch.float64, device="cpu") * _GOLDEN % 1.0
    row, multiples = row.to(outputs), multiples.to(outputs)
    gradients = torch.autograd.grad(
        outputs, [rows.source for rows in places], torch.outer(multiples, row), allow_unused=True
    )
    out_of_order = []
    for rows, gradient in zip(places, gradients, strict=True):
        if gradient is None:
            out_of_order.append(False)
            continue
        expected = (row @ rows.buffer.flatten(2)) * multiples.unsqueeze(1)
        differences = (rows.part_of(gradient).flatten(1).to(expected) - expected).norm(dim=1)
        sizes = expected.norm(dim=1)
        eps = torch.finfo(expected.dtype).eps
        # The second term allows for a row far smaller than the others, which may be nothing but
        # their round-off.
        tolerances = 10.0 * eps**0.5 * sizes + 1e3 * eps * sizes.max()
        out_of_order.append(bool((differences > tolerances).any()))
    return out_of_order
