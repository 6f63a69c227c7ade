"""Memory that the pairs of a sample take, and groups of layers whose pairs fit a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from paperkit.linearize.exactness import RecordedGraph
from paperkit.linearize.recording import (
    JacobianOptions,
    Recording,
    calls_by_layer,
    candidate_layers,
    record,
    refusal,
)
from paperkit.memory import GIBIBYTE, MemoryBudgetError
from paperkit.network.evaluation import check_inputs, evaluation
from paperkit.network.footprint import SavedStorages
from paperkit.network.network import Network
from paperkit.network.samples import Inputs

# Number of float64 C × C matrices per sample that exist while the factor of the loss's Hessian is
# computed.
_FACTOR_COPIES = 5


@dataclass(frozen=True)
class SampleCosts:
    """Bytes that a sample takes.

    Attributes
    ----------
    layers : dict of str to int
        Bytes of each layer's pairs.
    stored : int
        Bytes of all that the result stores, the layers' pairs among it.
    graph : int
        Bytes of the graph of a forward pass and of its backward passes.
    left_out : dict of str to str
        Layers that cannot be linearized by themselves, with the reason.
    outputs : Tensor
        Outputs of the first samples, which are as few as the model takes.
    """

    layers: dict[str, int]
    stored: int
    graph: int
    left_out: dict[str, str]
    outputs: Tensor


def sample_costs(
    model: nn.Module,
    chosen: dict[str, nn.Module],
    parameters: dict[str, Tensor],
    inputs: Inputs,
    options: JacobianOptions,
) -> SampleCosts:
    """Run a few samples forward and add up the bytes that each leaves behind."""
    # Run two samples: a network in batch-statistics mode raises its own error on a single one,
    # before ours can explain what is wrong.
    count = min(2, len(inputs))
    saved = SavedStorages([*parameters.values(), *model.buffers()])

    def run(count: int) -> Recording:
        # Run a copy of the samples: a view would count the storage of the whole batch.
        with saved.noted():
            return record(model, chosen, parameters, inputs[:count].clone(), options)

    try:
        recording = run(count)
    except Exception:
        if count == len(inputs):
            raise
        count = len(inputs)  # the model may have been written for this number of samples
        recording = run(count)
    num_outputs = recording.outputs.shape[1]
    # The gradients that a backward pass holds at once take no more than the tensors that were saved
    # for it, so twice these bytes are enough for both.
    graph = 2 * saved.bytes() + count * _FACTOR_COPIES * 8 * num_outputs**2
    groups, left_out = calls_by_layer(
        model, recording, chosen, RecordedGraph(recording.outputs.grad_fn)
    )
    layers: dict[str, int] = dict.fromkeys(groups, 0)
    stored = count * num_outputs**2 * recording.outputs.element_size()
    for name, calls in groups.items():
        for call in calls:
            element = call.preactivation.element_size()
            size = element * call.inputs.numel()
            if options.output_jacobians:
                size += element * num_outputs * call.preactivation.numel()
            layers[name] += size
            stored += size
            if call.input_edge is not None:
                stored += element * num_outputs * call.inputs.numel()
    if options.input_jacobians and recording.inputs.requires_grad:
        stored += num_outputs * recording.inputs.numel() * recording.outputs.element_size()
    if options.all_parameters:
        modules = [calls[0].module for calls in groups.values()]
        weights = {id(module.get_parameter("weight")) for module in modules}
        other_bytes = {
            id(p): p.nbytes
            for name, p in model.named_parameters()
            if id(p) not in weights and options.includes(name)
        }
        stored += count * num_outputs * sum(other_bytes.values())
        # A pass keeps every normalised input. The product of one of them with its gradient takes
        # more, and twice the largest is allowed for it.
        sizes = [call.normalized.nbytes for call in recording.normalizations]
        graph += sum(sizes) + 2 * max(sizes, default=0)
        for module in (*modules, *(call.module for call in recording.normalizations)):
            for parameter in module.parameters(recurse=False):
                other_bytes.pop(id(parameter), None)
        if other_bytes:  # the Jacobian of a sample in these parameters is vectorized over outputs
            graph += num_outputs * (2 * saved.bytes() + 2 * count * sum(other_bytes.values()))
    per_sample = {name: size // count for name, size in layers.items()}
    outputs = recording.outputs.detach()
    return SampleCosts(per_sample, stored // count, graph // count, left_out, outputs)


def possible_step(step: int, costs: SampleCosts, n: int, memory_budget: int) -> int:
    """Return the size of a chunk, or raise if the model does not take so few samples."""
    fewest = len(costs.outputs)
    if fewest <= 2 or step >= n:
        return step
    raise MemoryBudgetError(
        f"model takes no fewer than {fewest} samples at a time, and {step} fit the "
        f"memory_budget={memory_budget}: raise it to at least {memory_budget * n // step}, or let "
        "the model take any number of samples (x.flatten(1) for x.view(8, -1))."
    )


def held_bytes(
    model: nn.Module, inputs: Inputs, *, all_parameters: bool | Sequence[str] = False
) -> int:
    """Return the bytes that the pairs of all samples, without input Jacobians, will take.

    Parameters
    ----------
    model : nn.Module
        Any network.
    inputs : Tensor
        Inputs of all samples, (n, …).
    all_parameters : bool or sequence of str
        Whether the Jacobians in all other parameters are counted too, or names of some of them.
    """
    model = Network.of(model)
    check_inputs(inputs)
    with evaluation(model) as parameters:
        options = JacobianOptions.of(model, False, all_parameters, None)
        chosen, _ = candidate_layers(model, None)
        costs = sample_costs(model, chosen, parameters, inputs, options)
    return len(inputs) * costs.stored


def layer_groups(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str] | None = None,
    memory_budget: int = GIBIBYTE,
    *,
    strict: bool = True,
) -> list[list[str]]:
    """Split the layers into groups whose pairs of all samples fit the memory budget.

    Each group costs a linearization of its own. A layer that does not fit alone is a group of one,
    which :func:`linearize` will refuse.

    Parameters
    ----------
    model : nn.Module
        Any network.
    inputs : Tensor
        Inputs of all samples, (n, …).
    layers : sequence of str, optional
        Module names; default every layer that the forward pass calls.
    memory_budget : int
        Bytes, half of which the pairs of a group may take.
    strict : bool
        Whether a layer in ``layers`` that would be left out is refused.

    Returns
    -------
    list of list of str
        Names of the layers of each group, in the order of the forward pass. Layers that it does not
        call are left out, and those that cannot be linearized by themselves, as far as two samples
        show.

    Raises
    ------
    ValueError
        If ``strict`` and one of ``layers`` is left out.
    """
    groups, left_out = grouped_layers(model, inputs, layers, memory_budget)
    if strict and layers is not None:
        for name, reason in left_out.items():
            raise refusal(name, reason)
    return groups


def grouped_layers(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str] | None = None,
    memory_budget: int = GIBIBYTE,
) -> tuple[list[list[str]], dict[str, str]]:
    """Return :func:`layer_groups`, and why each other weight is left out."""
    model = Network.of(model)
    chosen, left_out = candidate_layers(model, layers)
    check_inputs(inputs)
    with evaluation(model) as parameters:
        costs = sample_costs(model, chosen, parameters, inputs, JacobianOptions())
    left_out |= costs.left_out
    if layers is not None:
        shared = "it shares the weight of another layer"
        left_out |= {n: shared for n in chosen if n not in costs.layers and n not in left_out}
    groups: list[list[str]] = []
    available = memory_budget // 2 - len(inputs) * (costs.stored - sum(costs.layers.values()))
    room = 0
    for name, per_sample in costs.layers.items():
        size = per_sample * len(inputs)
        if not groups or size > room:
            groups.append([])
            room = available
        groups[-1].append(name)
        room -= size
    return groups, left_out
