r"""Squared gradients of a network's outputs, estimated from random signs.

For signs v, independent and equally likely, :math:`\|\partial (v^\top R_i f_i)/\partial\theta\|^2`
has the mean :math:`\|R_i\,\partial f_i/\partial\theta\|_F^2`, and takes one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from paperkit.curvature.jacobian_products import reverse_pass
from paperkit.linalg.probes import generator_of
from paperkit.network.batches import batches
from paperkit.network.evaluation import check_outputs, evaluation
from paperkit.network.footprint import BACKWARD, Chunks
from paperkit.network.losses import Loss
from paperkit.network.network import network_outputs
from paperkit.network.problem import refuse_cut
from paperkit.network.samples import Inputs

# Float64 matrices of a sample, C × C, that the factor of the loss's Hessian passes through.
_FACTOR_COPIES = 5


def squares_by_probes(
    names: Sequence[str] | None,
    model: nn.Module,
    data: object,
    loss: Loss,
    probes: int,
    seed: int,
    memory_budget: int,
) -> Tensor:
    """Return an estimate of each sample's squared gradient for each probe, (probes, n).

    Parameters
    ----------
    names : sequence of str or None
        Names of the parameters; None for all.
    model, data, loss
        Network, data and loss, settled.
    probes : int
        Sign vectors of each sample.
    seed : int
        Seed of the signs.
    memory_budget : int
        Bytes above the model and its data.

    Raises
    ------
    ValueError
        If the data do not fit the model, or no gradient reaches a parameter that matters.
    """
    generator = generator_of(seed)
    squares: list[Tensor] = []
    refuse_cut(model, next(iter(batches(data)))[0], names)
    with evaluation(model) as leaves:
        chosen = {name: leaves[name] for name in (names or leaves)}
        # Each probe of each sample has a backward pass and a gradient of its own.
        size = sum(leaf.numel() * leaf.element_size() for leaf in chosen.values())
        at_once = max(1, min(probes, memory_budget // (32 * max(size, 1))))
        chunks = Chunks(
            model,
            leaves,
            lambda sample: (
                at_once * (sample.bytes_of(BACKWARD) + 4 * size)
                + 8 * _FACTOR_COPIES * sample.num_outputs**2
            ),
            memory_budget,
        )
        for inputs, targets in chunks(data):
            with torch.no_grad():
                outputs = network_outputs(model, leaves, inputs)
                check_outputs(outputs, len(inputs))
                needed = targets if loss.curvature_needs_targets else None
                factor = loss.hessian_factor(outputs, needed)
            squares.append(
                _probe_squares(model, chosen, inputs, factor, probes, generator, at_once)
            )
    return torch.cat(squares, dim=1)


def _probe_squares(
    model: nn.Module,
    chosen: dict[str, Tensor],
    inputs: Inputs,
    factor: Tensor,
    probes: int,
    generator: torch.Generator,
    at_once: int,
) -> Tensor:
    """Return ‖∂(vᵀ R f)/∂θ‖² for every probe and sample, (probes, n).

    So many probes at once where torch has a rule for it, which is compared with plain backward
    passes on the first sample; else one after the other.
    """
    bits = torch.randint(0, 2, (probes, *factor.shape[:2]), generator=generator, device="cpu")
    cotangents = torch.einsum("knr,nrc->knc", (2 * bits - 1).to(factor), factor)
    leaves = list(chosen.values())
    first = _backward_squares(model, leaves, inputs[:1], cotangents[:, :1])
    if isinstance(inputs, Tensor):
        # An operation without a batching rule, or code that takes nothing but plain tensors.
        with suppress(Exception):
            found = _vectorized_squares(model, chosen, inputs, cotangents, at_once)
            if torch.allclose(found[:, :1], first, rtol=torch.finfo(factor.dtype).eps ** 0.5):
                return found
    rest = [
        _backward_squares(model, leaves, inputs[i : i + 1], cotangents[:, i : i + 1])
        for i in range(1, len(inputs))
    ]
    return torch.cat([first, *rest], dim=1)


def _backward_squares(
    model: nn.Module, leaves: Sequence[Tensor], sample: Inputs, cotangents: Tensor
) -> Tensor:
    """Return the squares of one sample, (probes, 1), by a backward pass for each probe."""
    outputs = network_outputs(model, {}, sample)
    squares = []
    for cotangent in cotangents.to(outputs.dtype):
        pulled = reverse_pass([outputs], leaves, [cotangent], retain_graph=True)
        squares.append(torch.stack([part.double().square().sum() for part in pulled]).sum())
    return torch.stack(squares).unsqueeze(1)


def _vectorized_squares(
    model: nn.Module,
    chosen: dict[str, Tensor],
    inputs: Tensor,
    cotangents: Tensor,
    at_once: int,
) -> Tensor:
    point = {name: leaf.detach() for name, leaf in chosen.items()}

    def projection(parameters: dict[str, Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
        outputs = network_outputs(model, parameters, x.unsqueeze(0))
        return (outputs[0] * cotangent).sum()

    def square(x: Tensor, cotangent: Tensor) -> Tensor:
        gradients = grad(projection)(point, x, cotangent)
        return torch.stack([g.double().square().sum() for g in gradients.values()]).sum()

    # Only the cotangents differ between probes: the forward pass is shared.
    every_probe = vmap(vmap(square), in_dims=(None, 0), chunk_size=at_once)
    return every_probe(inputs, cotangents).detach()
