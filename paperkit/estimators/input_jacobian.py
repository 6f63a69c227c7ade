"""The Jacobian of a network's outputs in its inputs, as many samples at a time as fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from paperkit.memory import GIBIBYTE
from paperkit.network.batches import batches
from paperkit.network.evaluation import check_outputs, evaluation
from paperkit.network.footprint import REPEATED, Chunks, Footprint
from paperkit.network.interaction import separate_outputs
from paperkit.network.network import Network
from paperkit.network.problem import refuse_cut_inputs

T = TypeVar("T")

# Float64 numbers that a function of Jacobians holds for each entry beside it: 2.54 measured.
_COPIES = 2.6


def input_jacobians(
    model: nn.Module, data: object, memory_budget: int = GIBIBYTE
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield consecutive samples with the Jacobians of their outputs.

    The model stays in evaluation mode until the iterator is exhausted or closed.

    Parameters
    ----------
    model : nn.Module
        Any network whose inputs are one tensor of floating point.
    data : pair or iterable of pairs
        See :class:`paperkit.network.Batches`.
    memory_budget : int
        Bytes for the graph, the Jacobian, and a function of it in double precision.

    Yields
    ------
    tuple of Tensor
        Inputs (n, …), targets, and Jacobians (n, C, …), outputs × inputs.

    Raises
    ------
    ValueError
        If the data do not fit the model, the inputs have no derivative, or the samples interact.
    """

    def of_graph(x: Tensor, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.detach(), targets, jacobian_of(x, outputs)

    yield from over_graphs(of_graph, model, data, jacobian_cost, memory_budget)


def over_graphs(
    function: Callable[[Tensor, Tensor, Tensor], T],
    model: nn.Module,
    data: object,
    cost: Callable[[Footprint], float],
    memory_budget: int,
) -> Iterator[T]:
    """Apply a function of (inputs, outputs with their graph, targets) to chunks of the samples.

    Parameters
    ----------
    function : callable
        Function of inputs that require a gradient, of their outputs and of the targets.
    model, data, memory_budget
        As in :func:`input_jacobians`.
    cost : callable
        Peak bytes that a sample takes, from its :class:`Footprint`.
    """
    refuse_cut_inputs(Network.of(model), next(iter(batches(data)))[0])
    with evaluation(model) as parameters:

        def of_chunk(inputs: Tensor, targets: Tensor) -> T:
            # A frame of its own ends the life of the graph with the chunk.
            x = inputs.detach().requires_grad_()
            outputs = separate_outputs(model, parameters, x)
            check_outputs(outputs, len(x))
            return function(x, outputs, targets)

        chunks = Chunks(model, parameters, cost, memory_budget)
        for batch in batches(data):
            if not batch[0].is_floating_point():
                raise ValueError(
                    f"inputs is {batch[0].dtype}: the outputs have no derivative in integers."
                )
            for inputs, targets in chunks(batch):
                yield of_chunk(inputs, targets)


def jacobian_of(x: Tensor, outputs: Tensor) -> Tensor:
    """Run one backward pass for each output: (n, C, …)."""
    n, num_outputs = outputs.shape
    jacobian = outputs.new_empty(n, num_outputs, *x.shape[1:])
    seed = torch.zeros_like(outputs)
    for c in range(num_outputs):
        seed.zero_()[:, c] = 1.0
        (jacobian[:, c],) = torch.autograd.grad(
            outputs, x, seed, retain_graph=c + 1 < num_outputs, materialize_grads=True
        )
    return jacobian


def jacobian_cost(sample: Footprint) -> float:
    """Return the peak bytes of a sample's graph, its Jacobian and a function of that."""
    entry = sample.element_size + 8 * _COPIES
    return sample.bytes_of(REPEATED) + entry * sample.num_inputs * sample.num_outputs
