"""The mean loss of a network at parameters that were moved, and the noise that moves them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.network.evaluation import check_outputs
from paperkit.network.footprint import Chunks
from paperkit.network.losses import Loss
from paperkit.network.network import network_outputs


def select_parameters(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Return the named parameters, all for None.

    Raises
    ------
    ValueError
        If a name is unknown or there is none.
    """
    parameters = dict(model.named_parameters())
    chosen = list(parameters)
    if names is not None:
        chosen = arguments.names("parameters", names, parameters)
    if not chosen:
        raise ValueError("parameters: the model has none.")
    return {name: parameters[name] for name in chosen}


def gaussian_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal noise of a tensor's shape, dtype and device, drawn on the CPU."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu")
    return noise.to(device=tensor.device, dtype=tensor.dtype)


def mean_loss(
    model: nn.Module, parameters: dict[str, Tensor], data: object, loss: Loss, chunks: Chunks
) -> tuple[float, int]:
    """Return the mean loss over all samples at some parameters, and the number of samples.

    To be called within :func:`paperkit.network.evaluation.evaluation`; sums in float64, over as
    many samples at a time as ``chunks`` lets pass.

    Raises
    ------
    ValueError
        If the data do not fit the model or its outputs are not finite.
    """
    total, n = 0.0, 0
    for inputs, targets in chunks(data):
        outputs = network_outputs(model, parameters, inputs)
        check_outputs(outputs, len(inputs))
        loss.check(outputs, targets)
        total += len(inputs) * float(loss_value(loss, outputs, targets))
        n += len(inputs)
    return total / n, n


def loss_value(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss in float64, because differences of losses lose digits."""
    return loss.value(outputs.to(torch.float64), targets)
