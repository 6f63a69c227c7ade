"""A recorded forward pass: the calls of the layers, and which of them stand for a weight."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from paperkit import arguments
from paperkit.linearize.exactness import RecordedGraph
from paperkit.linearize.layer_types import LayerType, WeightLayout, type_of
from paperkit.linearize.remainder import NormalizationCall, is_normalization, normalized_input
from paperkit.linearize.weights import chosen_weights
from paperkit.network.evaluation import check_outputs
from paperkit.network.interaction import following
from paperkit.network.network import Network, network_outputs, note_formats
from paperkit.network.problem import cut_parameters
from paperkit.network.sample_axes import SampleAxes
from paperkit.network.samples import Inputs

_NOT_CALLED = "the forward pass does not call it"


@dataclass
class LayerCall:
    """A recorded call of a layer.

    Attributes
    ----------
    name : str
        Name of the module.
    module : nn.Module
        The layer.
    inputs : Tensor
        Activation that the layer reads, cut off the graph.
    input_node : torch.autograd.graph.Node or None
        Operation that made this activation; None where no operation before needs gradients.
    input_edge : GradientEdge or None
        Edge of this activation in the graph; None unless its Jacobian was asked for.
    preactivation : Tensor
        Pre-activation, cut off the graph. Its shape and format hold, but an operation in place may
        have overwritten its values.
    edge : GradientEdge or None
        Edge of the pre-activation in the graph; None where it records no gradient.
    layer_type : LayerType
        Type of the layer.
    """

    name: str
    module: nn.Module
    inputs: Tensor
    input_node: Any
    input_edge: GradientEdge | None
    preactivation: Tensor
    edge: GradientEdge | None
    layer_type: LayerType

    @property
    def layout(self) -> WeightLayout:
        """How the layer's weight holds its matrices."""
        return self.layer_type.layout(self.module)

    @property
    def node(self) -> Any:
        """The operation that made the pre-activation."""
        return None if self.edge is None else self.edge.node

    def formats(self) -> set[torch.dtype]:
        """Return the floating formats of the layer's input and output."""
        dtypes = (self.inputs.dtype, self.preactivation.dtype)
        return {dtype for dtype in dtypes if dtype.is_floating_point}


@dataclass
class Recording:
    """A recorded forward pass.

    Calls that do not see the samples first are not among ``calls`` and ``normalizations``. For the
    layers among them ``misfits`` has the reason, by name.
    """

    outputs: Tensor
    inputs: Inputs
    calls: list[LayerCall] = field(default_factory=list)
    normalizations: list[NormalizationCall] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)
    axes: SampleAxes | None = None


@dataclass(frozen=True)
class JacobianOptions:
    """Jacobians to record besides those in the layers' weights.

    Attributes
    ----------
    input_jacobians : bool
        Whether the Jacobians in the inputs of layers and network are recorded.
    all_parameters : bool
        Whether the Jacobians in other parameters are recorded.
    only : frozenset of str
        Names of the other parameters to record; empty for all.
    output_jacobians : bool
        Whether the Jacobians B in the layers' outputs are recorded.
    """

    input_jacobians: bool = False
    all_parameters: bool = False
    only: frozenset[str] = frozenset()
    output_jacobians: bool = True

    @classmethod
    def of(
        cls,
        model: nn.Module,
        input_jacobians: bool,
        all_parameters: bool | Sequence[str],
        layers: Sequence[str] | None,
    ) -> JacobianOptions:
        """Make the options from the arguments of :func:`paperkit.linearize.linearize`."""
        input_jacobians = arguments.flag("input_jacobians", input_jacobians)
        if not isinstance(all_parameters, bool):
            parameter_names = [name for name, _ in model.named_parameters()]
            names = arguments.names("all_parameters", all_parameters, parameter_names)
            return cls(input_jacobians, True, frozenset(names))
        if all_parameters and layers is not None:
            raise ValueError("all_parameters=True covers every layer: leave layers=None.")
        return cls(input_jacobians, all_parameters)

    def includes(self, name: str) -> bool:
        """Whether the Jacobian in a parameter that is no layer's weight is recorded."""
        return self.all_parameters and (not self.only or name in self.only)


def layers_of(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the linear and convolution layers to measure, by module name.

    Parameters
    ----------
    model : nn.Module
        Any network.
    layers : sequence of str, optional
        Module names; default every plain linear, convolution and transposed convolution layer.

    Raises
    ------
    ValueError
        If a name is unknown or of a layer of another kind; or if there is none.

    Examples
    --------
    >>> from torch import nn
    >>> from paperkit.linearize import layers_of
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    >>> layers_of(model)
    {'0': Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1)), '3': Linear(in_features=8,
        out_features=2, bias=True)}
    """
    arguments.module("model", model)
    chosen, left_out = candidate_layers(model, layers)
    for name, reason in left_out.items() if layers is not None else ():
        raise refusal(name, reason)
    if not chosen:
        raise ValueError(
            "layers is empty: the model has no linear or convolution layer to measure."
        )
    return chosen


def candidate_layers(
    model: nn.Module, layers: Sequence[str] | None, options: JacobianOptions | None = None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the layers of known types, and the reason for each weight that is not among them."""
    if layers is not None and not isinstance(layers, str) and options and options.only:
        layers = list(layers)
        if not layers:
            return {}, {}
    weights = chosen_weights(model, layers)
    modules = {
        name: model.get_submodule(name)
        for name, weight in weights.items()
        if weight.obstacle is None
    }
    return modules, {name: weight.obstacle for name, weight in weights.items() if weight.obstacle}


def refusal(name: str, reason: str) -> ValueError:
    """Return the error for a layer that was named and cannot be linearized by itself."""
    return ValueError(
        f"layers: {name} cannot be linearized by itself, because {reason}; leave it out, or use a "
        "measure that takes its Hessian products, such as layer_spectra."
    )


class UnfitError(Exception):
    """Some modules cannot be recorded on these samples; ``reasons`` says why, by name."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


def record(
    model: nn.Module,
    chosen: dict[str, nn.Module],
    parameters: dict[str, Tensor],
    inputs: Inputs,
    options: JacobianOptions,
    excluded: Mapping[str, str] = types.MappingProxyType({}),
    *,
    follow: bool = False,
) -> Recording:
    """Run the model forward; modules whose names are in ``excluded`` are not recorded.

    With ``follow`` the samples' axis is followed through the pass, and ``recording.axes`` tells
    which tensors keep the samples in their order.
    """
    recording = Recording(torch.empty(0, device="cpu"), inputs, misfits=dict(excluded))
    if options.input_jacobians and isinstance(inputs, Tensor) and inputs.is_floating_point():
        recording.inputs = inputs.detach().clone().requires_grad_()
    handles = []

    def layer_hook(name: str, kind: LayerType) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> None:
            read = arguments[0] if arguments else next(iter(keywords.values()))
            # The edge is taken now, because a later in-place operation moves the tensor to another.
            records = options.input_jacobians and read.requires_grad
            input_edge = get_gradient_edge(read) if records else None
            edge = get_gradient_edge(output) if output.requires_grad else None
            call = LayerCall(
                name, module, read.detach(), read.grad_fn, input_edge, output.detach(), edge, kind
            )
            recording.calls.append(call)

        return hook

    def normalization_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            read = arguments[0] if arguments else next(iter(keywords.values()))
            with torch.no_grad():
                normalized = normalized_input(module, read)
            # The edge is taken now, because a later in-place operation moves the tensor to another.
            edge = get_gradient_edge(output) if output.requires_grad else None
            call = NormalizationCall(name, module, normalized, edge)
            recording.normalizations.append(call)

        return hook

    def run() -> Tensor:
        recording.calls.clear()
        recording.normalizations.clear()
        return network_outputs(model, parameters, recording.inputs)

    try:
        for name, module in chosen.items():
            if name not in excluded:
                hook = layer_hook(name, type_of(module))
                handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
        for name, module in model.named_modules() if options.all_parameters else ():
            if is_normalization(module) and name not in excluded:
                handles.append(
                    module.register_forward_hook(
                        normalization_hook(name), prepend=True, with_kwargs=True
                    )
                )
        if follow:
            recording.outputs, recording.axes = following(model, recording.inputs, run)
        else:
            recording.outputs = run()
        note_formats(model, recording.outputs)
    finally:
        for handle in handles:
            handle.remove()
    check_outputs(recording.outputs, len(inputs))
    _remove_misfits(recording, len(inputs))
    return recording


def _remove_misfits(recording: Recording, n: int) -> None:
    """Remove the calls that do not see the samples first, and those that no gradient reaches."""
    for call in recording.calls:
        least, most = call.layer_type.input_axes(call.module)
        axes = call.inputs.ndim
        if len(call.inputs) != n or axes < least or (most is not None and axes > most):
            recording.misfits[call.name] = (
                f"it sees an input of shape {tuple(call.inputs.shape)} for {n} samples"
            )
        elif call.formats() - {recording.outputs.dtype}:
            recording.misfits[call.name] = "the model casts around it to another floating format"
        elif call.edge is None:
            recording.misfits[call.name] = "no gradient reaches its weight"
    recording.calls = [call for call in recording.calls if call.name not in recording.misfits]
    recording.normalizations = [
        call
        for call in recording.normalizations
        if len(call.normalized) == n and call.edge is not None
    ]


def calls_by_layer(
    model: nn.Module, recording: Recording, chosen: Mapping[str, nn.Module], graph: RecordedGraph
) -> tuple[dict[str, list[LayerCall]], dict[str, str]]:
    """Collect the calls by weight, under the name of the layer that uses it first.

    Also return the reasons why other layers cannot be linearized by themselves, by name.
    """
    grouped: dict[int, list[LayerCall]] = {}
    for call in recording.calls:
        grouped.setdefault(id(call.module.get_parameter("weight")), []).append(call)
    leaf_names = {id(p): name for name, p in model.named_parameters()}
    groups: dict[str, list[LayerCall]] = {}
    left_out = {name: why for name, why in recording.misfits.items() if name in chosen}
    for weight, calls in grouped.items():
        reason = _unfit_reason(model, recording, graph, calls, leaf_names[weight])
        if reason is None:
            groups[calls[0].name] = calls
        else:
            left_out |= {call.name: reason for call in calls}
    covered = {id(calls[0].module.get_parameter("weight")) for calls in groups.values()}
    for name, module in chosen.items():
        if id(module.get_parameter("weight")) not in covered and name not in left_out:
            left_out[name] = _NOT_CALLED
    return groups, left_out


def _unfit_reason(
    model: nn.Module,
    recording: Recording,
    graph: RecordedGraph,
    calls: Sequence[LayerCall],
    weight_name: str,
) -> str | None:
    """Return why the Jacobian in a weight does not follow from its calls, None if it does."""
    weight = calls[0].module.get_parameter("weight")
    if any(call.layout != calls[0].layout for call in calls):
        return "layers of different types share its weight"
    leaf = get_gradient_edge(weight).node
    if leaf not in graph.consumers:
        if weight_name in cut_parameters(Network.of(model), recording.inputs):
            return "no gradient reaches its weight"
        return None
    preactivations = [call.node for call in calls]
    if recording.outputs.grad_fn in graph.dependents([leaf], avoiding=preactivations):
        return "its weight is also used outside the layer"
    return None
