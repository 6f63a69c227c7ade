"""How many samples at a time fit a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.conv import _ConvNd

from paperkit import arguments
from paperkit.memory import equal_pieces, fitting
from paperkit.network.batches import batches
from paperkit.network.evaluation import check_inputs, check_outputs
from paperkit.network.interaction import RandomModelError, refuse_random, seen_apart
from paperkit.network.network import network_outputs, note_formats
from paperkit.network.samples import Inputs

# Peak bytes of a pass above model and data, divided by the bytes that a forward pass saves for
# backward. Each factor is the largest that was measured, in single and double precision, on two
# MLPs, ResNet-20 and two small convolution networks on 64 × 64 inputs. In-place activations are the
# worst case of FORWARD, TANGENT and BACKWARD, because a forward pass then saves little. ResNet-20
# has 0.4, 0.95, 1.6 there and 1.7 for REPEATED, in single precision. An MLP with tanh is the worst
# case of REPEATED.
FORWARD = 1.4
"""A pass without a graph."""
TANGENT = 4.2
"""Forward mode: a pass without a graph beside its derivative along one vector."""
BACKWARD = 2.8
"""A pass with a graph, and a backward pass to the parameters."""
REPEATED = 4.5
"""A pass with a graph, and backward passes to the inputs, one after the other."""
GRADIENT_GRAPH = 10.5
"""A pass with a graph, a backward pass with a graph of its own, and one through that."""

# Float64 numbers that a loss and its gradient hold for each output of a sample. Measured: 5.04.
_LOSS_ENTRIES = 6


class SavedStorages:
    """The storages that operations save for a backward pass, while within :meth:`noted`.

    Parameters
    ----------
    fixed : iterable of Tensor
        Parameters and buffers, whose storages do not count.
    """

    def __init__(self, fixed: Iterable[Tensor]) -> None:
        self._fixed = {tensor.untyped_storage().data_ptr() for tensor in fixed}
        self._saved: dict[int, torch.UntypedStorage] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is saved."""

        # The storages are kept alive: the address of a freed one could be given to another, which
        # would then not be counted. Operations keep a detached tensor: one that keeps its own
        # output with its graph would hold itself, and never be freed.
        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._fixed:
                self._saved[storage.data_ptr()] = storage
            return tensor.detach()

        with saved_tensors_hooks(note, lambda tensor: tensor):
            yield

    def bytes(self) -> int:
        """Return how many bytes they are together, each storage counted once."""
        return sum(storage.nbytes() for storage in self._saved.values())


@dataclass(frozen=True)
class Footprint:
    """The memory that a sample takes in a model.

    Attributes
    ----------
    saved : int
        Bytes that its forward pass saves for backward.
    workspace : int
        Bytes of the largest temporary inside a convolution.
    num_inputs, num_outputs : int
        Number of entries of the sample and of its outputs.
    element_size : int
        Bytes of an output.
    fewest : int
        Smallest number of samples that the model takes: 2 where it fails on one, all where it fails
        on two.
    """

    saved: int
    workspace: int
    num_inputs: int
    num_outputs: int
    element_size: int
    fewest: int

    def bytes_of(self, factor: float) -> float:
        """Return the peak of a pass whose factor on ``saved`` this is, with the loss."""
        return factor * self.saved + self.workspace + 8 * _LOSS_ENTRIES * self.num_outputs


def footprint(model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs) -> Footprint:
    """Run the first sample forward and add up what it leaves behind.

    To be called within :func:`paperkit.network.evaluation.evaluation`.

    Parameters
    ----------
    model : nn.Module
        Network that is called as ``model(inputs)`` and returns (n, C).
    parameters : dict of str to Tensor
        Leaves that record gradients, by name; they are not counted.
    inputs : Tensor
        The n samples. A model that fails on the first alone, as in batch normalisation by batch
        statistics, is run on two; a model that was written for a fixed number is run on all.

    Raises
    ------
    ValueError
        If the model does not return a finite (n, C); a :class:`RandomModelError` if it returns
        something else each time.
    """
    for count in sorted({1, min(2, len(inputs))} - {len(inputs)}):
        try:
            return _footprint(model, parameters, inputs, count)
        except RandomModelError:
            raise
        except Exception:  # too few samples for this model, or a fault that all samples show again
            continue
    return _footprint(model, parameters, inputs, len(inputs))


def _footprint(
    model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs, count: int
) -> Footprint:
    fixed = [*parameters.values(), *model.buffers()]
    saved = SavedStorages(fixed)
    unfolded = [0]

    def note_workspace(module: _ConvNd, arguments: Any, output: Tensor) -> None:
        # oneDNN has no float64, so the CPU then unfolds the inputs of the whole batch into patches.
        if output.dtype == torch.float64 and output.device.type == "cpu":
            fan_in = module.weight[0].numel() * module.groups
            unfolded.append(fan_in * output[:, 0].numel() * output.element_size())

    convolutions = [module for module in model.modules() if isinstance(module, _ConvNd)]
    handles = [module.register_forward_hook(note_workspace) for module in convolutions]
    try:
        # Run a copy of the samples: a view would count the storage of the whole batch.
        with torch.enable_grad(), saved.noted():
            outputs = network_outputs(model, parameters, inputs[:count].clone())
        note_formats(model, outputs)
    finally:
        for handle in handles:
            handle.remove()
    check_outputs(outputs, count)
    refuse_random(model, parameters, inputs, outputs.detach())
    return Footprint(
        saved=max(1, saved.bytes() // count),
        workspace=max(unfolded) // count,
        num_inputs=inputs[:1].numel(),
        num_outputs=outputs.shape[1],
        element_size=outputs.element_size(),
        fewest=count,
    )


class Chunks:
    """Cut batches of data into pieces that fit a memory budget.

    To be used within :func:`paperkit.network.evaluation.evaluation`. The cost of a
    sample is measured once for every shape of sample.

    Parameters
    ----------
    model, parameters
        As in :func:`footprint`.
    cost : callable
        Function from a :class:`Footprint` to the peak bytes that a sample takes.
    memory_budget : int
        Bytes above the model and its data.
    reserved : int
        Bytes of the budget that do not depend on the samples, such as copies of the parameters.

    Raises
    ------
    ValueError
        If ``memory_budget`` is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, Tensor],
        cost: Callable[[Footprint], float],
        memory_budget: int,
        *,
        reserved: int = 0,
    ) -> None:
        memory_budget = arguments.memory_budget("memory_budget", memory_budget)
        self.model, self.parameters, self.cost = model, parameters, cost
        self.available = memory_budget - reserved
        self._costs: dict[tuple, tuple[float, int]] = {}
        # Shapes and dtypes of the batches whose samples the operations have shown to be apart.
        self._apart: set[tuple] = set()

    def __call__(self, data: object) -> Iterator[tuple[Any, Tensor]]:
        """Yield the samples in their order, as many of a batch at a time as fit.

        At least one is yielded, and at least two where the model fails on one. A batch that is not
        cut is taken as it is, also if its samples interact.

        Parameters
        ----------
        data : pair or iterable of pairs
            Inputs and targets in a form that :class:`~paperkit.network.Batches` accepts.

        Raises
        ------
        ValueError
            If the inputs are empty or not finite, or the model does not return a finite (n, C).
        SamplesInteractError
            A ValueError: if a batch has to be cut and the outputs for a sample depend on others.
        RandomModelError
            A ValueError: if the model gives other outputs for the same inputs.
        """
        for inputs, targets in batches(data):
            check_inputs(inputs)
            sizes = self._sizes(inputs)
            if len(sizes) > 1:
                self._refuse_interaction(inputs, max(sizes))
            yield from zip(inputs.split(sizes), targets.split(sizes), strict=True)

    def _sizes(self, inputs: Inputs) -> list[int]:
        """Return the sizes of the pieces of a batch."""
        key = (inputs.shape[1:], inputs.dtype)
        if key not in self._costs:
            sample_cost = footprint(self.model, self.parameters, inputs)
            self._costs[key] = self.cost(sample_cost), sample_cost.fewest
        (cost, fewest), n = self._costs[key], len(inputs)
        return equal_pieces(n, max(fewest, fitting(self.available, cost, n)), fewest)

    def _refuse_interaction(self, inputs: Inputs, size: int) -> None:
        """Check each chunk whose samples are not known to be apart, with two samples at least."""
        for part in inputs.split(max(2, size)):
            key = (part.shape, part.dtype)
            if key not in self._apart and seen_apart(self.model, self.parameters, part):
                self._apart.add(key)
