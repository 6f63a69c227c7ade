"""The processor's part in a result, tried on one machine: inputs moved by a unit of round-off.

Another processor adds in another order, and a decision by a threshold may fall the other way. What
its instructions would do cannot be run here, but what they do is move a number by round-off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def moved(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Multiply each entry by 1 − eps, 1 or 1 + eps, at random."""
    signs = torch.randint(-1, 2, tensor.shape, generator=generator, device="cpu")
    return tensor * (1.0 + torch.finfo(tensor.dtype).eps * signs.to(tensor))


def moves_of(tensor: Tensor, times: int = 100) -> Iterator[Tensor]:
    """Yield a tensor with its entries moved by a unit of round-off, ``times`` times."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    for _ in range(times):
        yield moved(tensor, generator)


def moves_of_model(
    model: nn.Module, inputs: Tensor, times: int = 100
) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield a model with its weights, and its inputs, moved by a unit of round-off."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    for _ in range(times):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(moved(parameter, generator))
        yield other, moved(inputs, generator)
