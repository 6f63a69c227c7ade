"""Memory for the pairs of all samples, and the backward passes that fill it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from paperkit.linearize.backward import OutputRows, backward_for_each_output, rows_out_of_order
from paperkit.linearize.exactness import RecordedGraph, block_obstacle
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.linearize.recording import (
    JacobianOptions,
    LayerCall,
    Recording,
    UnfitError,
    calls_by_layer,
)
from paperkit.linearize.remainder import affine_sums, num_affine
from paperkit.linearize.sample_order import OUT_OF_ORDER
from paperkit.memory import GIBIBYTE
from paperkit.network.interaction import SamplesInteractError


@dataclass
class Results:
    """Memory for the results of all samples, and how each parameter's part of it is filled.

    Attributes
    ----------
    layers : dict of str to LayerLinearization
        Layers with their pairs.
    input_jacobian : Tensor or None
        Jacobian in the network's input.
    parameters : dict of str to Tensor
        Jacobians in the other parameters.
    differentiated : list of str
        Parameters whose Jacobian is differentiated sample by sample, because it does not follow
        from the outputs of the modules that hold them.
    leaf_names : dict of int to str
        Names of the model's parameters by their ``id``.
    exact_parameters : frozenset of str
        Parameters in which the outputs are piecewise linear.
    left_out : dict of str to str
        Layers that cannot be linearized by themselves, with the reason.
    normalizations : list of str
        Names of the normalisation layers, in the order of their calls.
    """

    layers: dict[str, LayerLinearization]
    input_jacobian: Tensor | None
    parameters: dict[str, Tensor]
    differentiated: list[str]
    leaf_names: dict[int, str]
    exact_parameters: frozenset[str]
    left_out: dict[str, str]
    normalizations: list[str]


def allocate(
    model: nn.Module,
    recording: Recording,
    parameters: dict[str, Tensor],
    chosen: dict[str, nn.Module],
    n: int,
    options: JacobianOptions,
) -> Results:
    """Reserve memory for all samples, and decide for each layer whether its block is exact."""
    outputs = recording.outputs
    num_outputs = outputs.shape[1]
    graph = RecordedGraph(outputs.grad_fn)
    leaf_names = {id(p): name for name, p in model.named_parameters()}
    layers: dict[str, LayerLinearization] = {}
    groups, left_out = calls_by_layer(model, recording, chosen, graph)
    recording.calls = [call for calls in groups.values() for call in calls]
    for name, uses in groups.items():
        weight_name = leaf_names[id(chosen[name].get_parameter("weight"))]
        weight = parameters[weight_name]
        obstacle = block_obstacle(
            graph, weight, [use.input_node for use in uses], [use.node for use in uses]
        )
        layer = LayerLinearization(
            name, weight_name, weight.shape, outputs.new_zeros(0, 0, 0), obstacle, GIBIBYTE
        )
        for use in uses:
            inputs = use.inputs.new_empty(n, *use.inputs.shape[1:])
            shape = (n, num_outputs, *use.preactivation.shape[1:])
            jacobian = outputs.new_empty(shape)
            if not options.output_jacobians:
                jacobian = outputs.new_full((), math.nan).expand(shape)
            own_input_jacobian = None
            if use.input_edge is not None:
                own_input_jacobian = outputs.new_empty(n, num_outputs, *use.inputs.shape[1:])
            layer.uses.append(LayerUse(use.module, inputs, jacobian, own_input_jacobian))
        layers[name] = layer
    input_jacobian = None
    if recording.inputs.requires_grad:
        input_jacobian = outputs.new_empty(n, num_outputs, *recording.inputs.shape[1:])
    exact = frozenset(
        name
        for name, leaf in parameters.items()
        if graph.obstacle([get_gradient_edge(leaf).node]) is None
    )
    normalizations = [call.name for call in recording.normalizations]
    results = Results(layers, input_jacobian, {}, [], leaf_names, exact, left_out, normalizations)
    if options.all_parameters:
        weights = {layer.weight_name for layer in layers.values()}
        for name, leaf in parameters.items():
            if name not in weights and options.includes(name):
                results.parameters[name] = outputs.new_zeros(n, num_outputs, leaf.numel())
                if used_elsewhere(graph, recording, leaf_names, name, leaf):
                    results.differentiated.append(name)
    return results


def keep_calls(results: Results, recording: Recording) -> None:
    """Keep the recorded calls of the layers that results are for; raise if these calls changed.

    Raises
    ------
    UnfitError
        If a layer or a normalisation is called otherwise than on the first samples.
    """
    by_weight = {layer.weight_name: name for name, layer in results.layers.items()}
    calls: dict[str, list[LayerCall]] = {name: [] for name in results.layers}
    kept = []
    for call in recording.calls:
        name = by_weight.get(results.leaf_names[id(call.module.get_parameter("weight"))])
        if name is not None:
            calls[name].append(call)
            kept.append(call)
    recording.calls = kept
    changed = {
        name
        for name, layer in results.layers.items()
        if [use.module for use in layer.uses] != [call.module for call in calls[name]]
        or any(
            use.inputs.shape[1:] != call.inputs.shape[1:]
            for use, call in zip(layer.uses, calls[name], strict=False)
        )
    }
    names = [call.name for call in recording.normalizations]
    if names != results.normalizations:
        changed |= {
            name
            for name in (*names, *results.normalizations)
            if names.count(name) != results.normalizations.count(name)
        }
    if changed:
        raise UnfitError(dict.fromkeys(changed, "other samples are not passed to it alike"))


def used_elsewhere(
    graph: RecordedGraph,
    recording: Recording,
    leaf_names: dict[int, str],
    name: str,
    leaf: Tensor,
) -> bool:
    """Whether a parameter reaches the outputs other than through the modules that hold it."""
    own_calls = [
        call.node for call in recording.calls if leaf_names.get(id(call.module.bias)) == name
    ]
    own_calls += [
        call.edge.node
        for call in recording.normalizations
        if call.edge is not None
        and name in (leaf_names.get(id(call.module.weight)), leaf_names.get(id(call.module.bias)))
    ]
    source = get_gradient_edge(leaf).node
    return recording.outputs.grad_fn in graph.dependents([source], avoiding=own_calls)


def fill(results: Results, recording: Recording, samples: slice, *, check_order: bool) -> None:
    """Run one backward pass for each output and store the results of this chunk."""
    counters = dict.fromkeys(results.layers, 0)
    by_weight = {layer.weight_name: name for name, layer in results.layers.items()}
    places: list[OutputRows] = []
    uses: list[LayerUse] = []
    for call in recording.calls:
        name = by_weight[results.leaf_names[id(call.module.get_parameter("weight"))]]
        use = results.layers[name].uses[counters[name]]
        counters[name] += 1
        uses.append(use)
        use.inputs[samples] = call.inputs
        if use.output_jacobian.stride(0):  # a tensor without strides is one that was not asked for
            places.append(OutputRows(call.name, call.edge, use.output_jacobian[samples]))
        if call.input_edge is not None:
            assert use.input_jacobian is not None
            places.append(OutputRows(call.name, call.input_edge, use.input_jacobian[samples]))
    if results.input_jacobian is not None:
        places.append(OutputRows(None, recording.inputs, results.input_jacobian[samples]))
    affine = []
    for normalization in recording.normalizations:
        # Only sums over positions are stored. The Jacobians in the outputs of normalisations
        # themselves would take as much memory as all B.
        sums = partial(affine_sums, normalization.module, normalization.normalized)
        buffer = recording.outputs.new_empty(
            *recording.outputs.shape, 2, num_affine(normalization.module)
        )
        affine.append(OutputRows(normalization.name, normalization.edge, buffer, sums))
    places += affine
    if not places:
        return
    backward_for_each_output(recording.outputs, places, retain_graph=check_order)
    if check_order:
        out_of_order = rows_out_of_order(recording.outputs, places)
        owners_out_of_order = {
            rows.owner for rows, bad in zip(places, out_of_order, strict=True) if bad
        }
        if None in owners_out_of_order:
            raise SamplesInteractError(
                "model gives an output for a sample that depends on the input of another: it "
                "mixes samples or changes their order; measure it in a form that does not."
            )
        if owners_out_of_order:
            raise UnfitError(
                {owner: OUT_OF_ORDER for owner in owners_out_of_order if owner is not None}
            )
    _add_affine(results, recording, uses, [rows.buffer for rows in affine], samples)


def _add_affine(
    results: Results,
    recording: Recording,
    uses: list[LayerUse],
    sums: list[Tensor],
    samples: slice,
) -> None:
    """Add the Jacobians in biases, scales and shifts; the modules' output Jacobians give them."""

    def add(parameter: Any, jacobian: Callable[[], Tensor]) -> None:
        name = results.leaf_names.get(id(parameter))
        if name in results.parameters and name not in results.differentiated:
            results.parameters[name][samples] += jacobian()

    for call, use in zip(recording.calls, uses, strict=True):
        bias = call.module.bias
        if bias is not None:
            add(bias, partial(use.layer_type.summed, use.output_jacobian[samples]))
    for normalization, scale_and_shift in zip(recording.normalizations, sums, strict=True):
        add(normalization.module.weight, partial(scale_and_shift.select, 2, 0))
        add(normalization.module.bias, partial(scale_and_shift.select, 2, 1))
