"""One backward pass for each output, and whether it keeps the samples in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_GOLDEN = 0.5 * (5.0**0.5 - 1.0)


@dataclass
class OutputRows:
    """Room for what a backward pass for each output brings to one place of the graph.

    Attributes
    ----------
    owner : str or None
        The module's name; None for the network's input.
    source : Tensor or GradientEdge
        The place.
    room : Tensor
        Shape (n, C, …).
    reduced : callable or None
        What to keep of a gradient (n, …); by default all of it.
    """

    owner: str | None
    source: Any
    room: Tensor
    reduced: Callable[[Tensor], Tensor] | None = None

    def kept(self, gradient: Tensor) -> Tensor:
        """Return what belongs into the room of a gradient."""
        return gradient if self.reduced is None else self.reduced(gradient)


def backward_for_each_output(
    outputs: Tensor, wanted: Sequence[OutputRows], *, retain_graph: bool
) -> None:
    """Write what each output's gradient brings into ``room[:, c]``."""
    num_outputs = outputs.shape[1]
    sources = [rows.source for rows in wanted]
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
        for rows, gradient in zip(wanted, gradients, strict=True):
            rows.room[:, c] = 0.0 if gradient is None else rows.kept(gradient)


def rows_out_of_order(outputs: Tensor, wanted: Sequence[OutputRows]) -> list[bool]:
    """Tell of each place whether row i of its gradients is due to another sample than i.

    For models whose operations do not show it. One more backward pass, whose seed is another
    multiple of the same row for each sample: the gradients of a place that sees the samples in
    their order are the same multiples of its rows.
    """
    n, num_outputs = outputs.shape
    if n == 1:
        return [False] * len(wanted)
    generator = torch.Generator(device="cpu").manual_seed(0)
    row = torch.randn(num_outputs, generator=generator, dtype=torch.float64, device="cpu")
    # The fractional parts of multiples of the golden section: neighbours differ, and so do others.
    multiples = 1.0 + torch.arange(n, dtype=torch.float64, device="cpu") * _GOLDEN % 1.0
    row, multiples = row.to(outputs), multiples.to(outputs)
    gradients = torch.autograd.grad(
        outputs, [rows.source for rows in wanted], torch.outer(multiples, row), allow_unused=True
    )
    found = []
    for rows, gradient in zip(wanted, gradients, strict=True):
        if gradient is None:
            found.append(False)
            continue
        expected = (row @ rows.room.flatten(2)) * multiples.unsqueeze(1)
        differences = (rows.kept(gradient).flatten(1).to(expected) - expected).norm(dim=1)
        sizes = expected.norm(dim=1)
        eps = torch.finfo(expected.dtype).eps
        # A row far smaller than the others may be nothing but their round-off.
        tolerances = 10.0 * eps**0.5 * sizes + 1e3 * eps * sizes.max()
        found.append(bool((differences > tolerances).any()))
    return found
