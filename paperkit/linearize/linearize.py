"""One forward pass and C backward passes → inputs and output Jacobians of every layer."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from paperkit.linearize.dense import hessian_product
from paperkit.linearize.evaluation import (
    SavedStorages,
    check_inputs,
    check_outputs,
    evaluation,
)
from paperkit.linearize.layer import LAYER_TYPES, LayerLinearization, LayerUse
from paperkit.linearize.losses import Loss, LossLike, get_loss
from paperkit.linearize.network import Network, network_outputs
from paperkit.linearize.operations import RecordedGraph
from paperkit.linearize.problem import settled, unlabelled_loss
from paperkit.linearize.remainder import (
    NORMALIZATION_TYPES,
    NormalizationCall,
    channel_sum,
    normalized_input,
    per_sample_jacobians,
)
from paperkit.linearize.samples import Inputs

GIBIBYTE = 2**30

# Float64 matrices of a sample, C × C, that the factor of the loss's Hessian passes through.
_FACTOR_COPIES = 5


class SamplesInteractError(ValueError):
    """The model's outputs for one sample depend on the others, or on chance."""


class MemoryBudgetError(ValueError):
    """What was asked for does not fit the memory budget."""


@dataclass(frozen=True)
class Linearization:
    """A network linearized on one set of samples.

    Attributes
    ----------
    outputs : Tensor
        f, shape (n, C).
    hessian_factor : Tensor
        R, shape (n, r, C), with R_iᵀ R_i the Hessian of the loss in the outputs of sample i.
    layers : dict of str to LayerLinearization
        By module name, in the order of the forward pass.
    loss : Loss
        The loss whose output Hessian the layers carry.
    input_jacobian : Tensor or None
        ∂f/∂x, the outputs' Jacobian in the network's input, shape (n, C, …), where it was asked for
        and the input is not a tensor of integers.
    parameter_jacobians : dict of str to Tensor or None
        Where all parameters were asked for: by parameter name the Jacobian (n, C, d_p), flattened
        row-major, of every parameter that is not the weight of one of the layers.
    memory_budget : int
        Bytes for the pairs and for temporaries, half of it each.
    exact_parameters : frozenset of str
        Names of the parameters in which the outputs are piecewise linear as far as autograd's
        record shows: their Hessian block is their Gauss–Newton block. The weights of exact layers,
        and biases, scales and shifts like them; the whole model is judged, not ``layers`` alone.
    """

    outputs: Tensor
    hessian_factor: Tensor
    layers: dict[str, LayerLinearization]
    loss: Loss
    input_jacobian: Tensor | None = None
    parameter_jacobians: dict[str, Tensor] | None = None
    memory_budget: int = GIBIBYTE
    exact_parameters: frozenset[str] = frozenset()

    @property
    def num_samples(self) -> int:
        """The number n of samples."""
        return self.outputs.shape[0]

    @property
    def num_outputs(self) -> int:
        """The number C of outputs."""
        return self.outputs.shape[1]

    @property
    def num_parameters(self) -> int:
        """The number of parameters that :meth:`jacobian_blocks` covers."""
        rest = self.parameter_jacobians or {}
        return sum(layer.num_parameters for layer in self.layers.values()) + sum(
            jacobian.shape[2] for jacobian in rest.values()
        )

    def jacobian_blocks(self) -> Iterator[tuple[str, Tensor]]:
        """Yield ∂f/∂θ over all parameters: a parameter's name and its (n, C, d_p), row-major.

        Raises
        ------
        ValueError
            If the linearization was made without ``all_parameters=True``.
        """
        if self.parameter_jacobians is None:
            raise ValueError("linearization lacks the other parameters: set all_parameters=True.")
        for layer in self.layers.values():
            yield layer.weight_name, layer.jacobian()
        yield from self.parameter_jacobians.items()

    def residuals(self, targets: Tensor) -> Tensor:
        """Return ∂ℓ_i/∂f_i, the gradient of each sample's own loss in its outputs, (n, C).

        Raises
        ------
        ValueError
            If the targets do not fit the outputs.
        """
        self.loss.check(self.outputs, targets)
        return self.loss.gradient(self.outputs, targets)

    def gauss_newton_products(self, probes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Multiply each layer's Gauss–Newton block with its probes, ``(k, *weight_shape)`` each.

        Raises
        ------
        KeyError
            If a name is not one of :attr:`layers`.
        """
        return {name: self.layers[name].gauss_newton_product(v) for name, v in probes.items()}


@dataclass
class _Call:
    """A recorded call of a layer."""

    name: str
    module: nn.Module
    inputs: Tensor
    input_node: Any  # torch.autograd.graph.Node, or None where nothing before needs gradients
    input_edge: GradientEdge | None
    preactivation: Tensor


@dataclass
class _Recording:
    """What one forward pass left behind."""

    outputs: Tensor
    inputs: Inputs
    calls: list[_Call] = field(default_factory=list)
    normalizations: list[NormalizationCall] = field(default_factory=list)


def layers_of(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the linear and convolution layers to measure, by module name.

    Parameters
    ----------
    model : nn.Module
        Any network.
    layers : sequence of str, optional
        Module names; default every linear and convolution layer.

    Raises
    ------
    ValueError
        If a name is unknown, of another type, or has no weight of its own; or if there is none.
    """
    found: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, LAYER_TYPES)
    }
    if layers is not None:
        unknown = [name for name in layers if name not in found]
        if unknown:
            raise ValueError(
                f"layers={unknown} are not linear or convolution layers of the model: "
                f"choose among {', '.join(found)}."
            )
        found = {name: module for name, module in found.items() if name in layers}
    if not found:
        raise ValueError(
            "layers is empty: the model has no linear or convolution layer to measure."
        )
    for name, module in found.items():
        if "weight" not in module._parameters:
            raise ValueError(
                f"layers: the weight of {name} is computed from other parameters; remove the "
                f"parametrization (torch.nn.utils.parametrize) or leave the layer out."
            )
    return found


def linearize(
    model: nn.Module,
    inputs: Inputs,
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    input_jacobians: bool = False,
    all_parameters: bool = False,
    targets: Tensor | None = None,
    verify: bool = False,
    chunk_size: int | None = None,
    memory_budget: int = GIBIBYTE,
) -> Linearization:
    """Record the inputs and output Jacobians of linear and convolution layers.

    The model is run in evaluation mode and left as it was. For each layer the result says
    whether its Gauss–Newton block is its Hessian block, decided from the operations that autograd
    recorded between the layer and the outputs.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C), one row a sample.
    inputs : Tensor
        Shape (n, …), on the model's device.
    loss : str, nn.Module or callable
        See :func:`paperkit.linearize.get_loss`.
    layers : sequence of str, optional
        Module names; default every linear and convolution layer that the forward pass calls.
    input_jacobians : bool
        Also record the Jacobian of the outputs in each layer's input and in the network's.
    all_parameters : bool
        Also record the Jacobian in all other parameters: biases, normalisation, embeddings. It
        needs ``layers=None``.
    targets : Tensor, optional
        For ``verify``, and for losses whose output Hessian depends on them; that of cross-entropy
        and of squared errors does not.
    verify : bool
        Compare one random probe of each layer with the Hessian product of autograd, and refuse to
        call a block exact where they differ.
    chunk_size : int, optional
        Samples of one forward pass; default as many as an eighth of the budget lets pass backward.
    memory_budget : int
        Bytes. What the result holds may take half of it, the temporaries of its methods the other
        half.

    Returns
    -------
    Linearization
        It holds (a, B) of all samples: about C times the memory of the layers' outputs.

    Raises
    ------
    ValueError
        If the inputs are empty or not finite; if a layer does not see samples first or its weight
        is used outside the layer; if ``verify`` lacks targets.
    MemoryBudgetError
        A ValueError: if the result would not fit; :func:`linearize_in_chunks` serves measures that
        are sums over samples.
    SamplesInteractError
        A ValueError: if the outputs for some samples change when the others are left out.

    Notes
    -----
    What a model detaches from the graph is invisible here, as it is to autograd's own Hessian.
    """
    model = Network.of(model)
    if targets is not None:
        model, batch, settled_loss = settled(model, (inputs, targets), loss)
        assert settled_loss is not None
        inputs, targets = batch.joined()
        loss = settled_loss
    chosen = layers_of(model, layers)
    check_inputs(inputs)
    loss = get_loss(loss)
    if targets is None:
        loss = unlabelled_loss(model, inputs, loss)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1.")
    if all_parameters and layers is not None:
        raise ValueError("all_parameters=True covers every layer: leave layers=None.")
    options = _Options(input_jacobians, all_parameters)
    with evaluation(model) as parameters:
        costs = _costs(model, chosen, parameters, inputs, options)
        needed = len(inputs) * costs.held
        if needed > memory_budget // 2:
            raise MemoryBudgetError(
                f"inputs: the pairs of {len(inputs)} samples take {needed / GIBIBYTE:.2g} GiB, "
                f"more than half of memory_budget={memory_budget}; raise it to at least "
                f"{2 * needed}, or pass fewer samples or layers."
            )
        step = chunk_size or _chunk(memory_budget // 8, costs.graph, len(inputs))
        result = _linearize(
            model, (inputs, targets), loss, chosen, parameters, options, step, memory_budget
        )
    _refuse_missing(layers, result.layers)
    if verify:
        _verify(model, inputs, targets, result)
    return result


def linearize_in_chunks(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    input_jacobians: bool = False,
    all_parameters: bool = False,
    with_targets: bool = True,
    memory_budget: int = GIBIBYTE,
) -> Iterator[tuple[Linearization, Tensor]]:
    """Linearize a stream of batches, as many samples at a time as fit the memory budget.

    For measures that are sums over samples, on data of any length.

    Parameters
    ----------
    model, loss, layers, input_jacobians, all_parameters, memory_budget
        As in :func:`linearize`.
    data : pair or iterable of pairs
        As in :func:`paperkit.linearize.batches`.
    with_targets : bool
        Whether the targets must fit the loss and its output Hessian may depend on them.

    Yields
    ------
    tuple of Linearization and Tensor
        Consecutive samples and their targets; every sample once.

    Raises
    ------
    ValueError
        As :func:`linearize`; a :class:`MemoryBudgetError` if a single sample does not fit.
    """
    options = _Options(input_jacobians, all_parameters)
    model, stream, settled_loss = settled(model, data, loss if with_targets else None)
    settled_loss = settled_loss or get_loss(loss)
    chosen = layers_of(model, layers)
    for inputs, targets in stream:
        check_inputs(inputs)
        with evaluation(model) as parameters:
            costs = _costs(model, chosen, parameters, inputs, options)
        # A loop may still hold the last chunk while the next is made.
        step = min(
            _chunk(memory_budget // 4, costs.held, len(inputs)),
            _chunk(memory_budget // 8, costs.graph, len(inputs)),
        )
        for start in range(0, len(inputs), step):
            chunk = slice(start, start + step)
            linearization = linearize(
                model,
                inputs[chunk],
                settled_loss,
                layers,
                targets=targets[chunk] if with_targets else None,
                input_jacobians=input_jacobians,
                all_parameters=all_parameters,
                chunk_size=step,
                memory_budget=memory_budget,
            )
            yield linearization, targets[chunk]
            del linearization  # or it would live on while the next is made


class Gathered:
    """Room for the linearizations of consecutive samples, without their input Jacobians.

    It is reserved once and filled piece by piece, so that the pairs are never held twice.

    Parameters
    ----------
    first : Linearization
        The first piece; its layers, uses and options are those of all.
    num_samples : int
        n, of all pieces together.
    """

    def __init__(self, first: Linearization, num_samples: int) -> None:
        def room(piece: Tensor) -> Tensor:
            return piece.new_empty(num_samples, *piece.shape[1:])

        layers = {
            name: replace(
                layer,
                uses=[
                    LayerUse(use.module, room(use.inputs), room(use.output_jacobian))
                    for use in layer.uses
                ],
            )
            for name, layer in first.layers.items()
        }
        rest = first.parameter_jacobians
        if rest is not None:
            rest = {name: room(jacobian) for name, jacobian in rest.items()}
        self._whole = replace(
            first,
            outputs=room(first.outputs),
            hessian_factor=room(first.hessian_factor),
            layers=layers,
            input_jacobian=None,
            parameter_jacobians=rest,
        )
        self._filled = 0

    def add(self, piece: Linearization) -> None:
        """Copy the next samples in."""
        samples = slice(self._filled, self._filled + piece.num_samples)
        whole = self._whole
        whole.outputs[samples] = piece.outputs
        whole.hessian_factor[samples] = piece.hessian_factor
        for name, layer in whole.layers.items():
            layer.obstacle = layer.obstacle or piece.layers[name].obstacle
            for into, use in zip(layer.uses, piece.layers[name].uses, strict=True):
                into.inputs[samples] = use.inputs
                into.output_jacobian[samples] = use.output_jacobian
        for name, jacobian in (whole.parameter_jacobians or {}).items():
            assert piece.parameter_jacobians is not None
            jacobian[samples] = piece.parameter_jacobians[name]
        exact = whole.exact_parameters & piece.exact_parameters
        self._whole = replace(whole, exact_parameters=exact)
        self._filled = samples.stop

    def linearization(self, memory_budget: int) -> Linearization:
        """Return the linearization of all samples, whose methods may use half of the budget."""
        for layer in self._whole.layers.values():
            layer.hessian_factor = self._whole.hessian_factor
            layer.memory_budget = memory_budget // 2
        return replace(self._whole, memory_budget=memory_budget)


def held_bytes(model: nn.Module, inputs: Inputs, *, all_parameters: bool = False) -> int:
    """Return what the pairs of all samples, without input Jacobians, will take.

    Parameters
    ----------
    model, inputs, all_parameters
        As in :func:`linearize`.
    """
    model = Network.of(model)
    check_inputs(inputs)
    with evaluation(model) as parameters:
        options = _Options(all_parameters=all_parameters)
        costs = _costs(model, layers_of(model), parameters, inputs, options)
    return len(inputs) * costs.held


def layer_groups(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str] | None = None,
    memory_budget: int = GIBIBYTE,
) -> list[list[str]]:
    """Split the layers into groups whose pairs of all samples fit the memory budget.

    Each group costs a linearization of its own. A layer that does not fit alone is a group of one,
    which :func:`linearize` will refuse.

    Parameters
    ----------
    model, inputs, layers, memory_budget
        As in :func:`linearize`.

    Returns
    -------
    list of list of str
        In the order of the forward pass; layers that it does not call are left out.

    Raises
    ------
    ValueError
        If one of ``layers`` is not called, or shares the weight of another layer.
    """
    model = Network.of(model)
    chosen = layers_of(model, layers)
    check_inputs(inputs)
    with evaluation(model) as parameters:
        costs = _costs(model, chosen, parameters, inputs, _Options())
    _refuse_missing(layers, costs.layers)
    groups: list[list[str]] = []
    available = memory_budget // 2 - len(inputs) * (costs.held - sum(costs.layers.values()))
    room = 0
    for name, per_sample in costs.layers.items():
        size = per_sample * len(inputs)
        if not groups or size > room:
            groups.append([])
            room = available
        groups[-1].append(name)
        room -= size
    return groups


@dataclass(frozen=True)
class _Options:
    input_jacobians: bool = False
    all_parameters: bool = False


@dataclass(frozen=True)
class _Costs:
    """Bytes a sample: of each layer's pairs, of all that is held, of the graph of a pass."""

    layers: dict[str, int]
    held: int
    graph: int


def _chunk(available: int, per_sample: int, n: int) -> int:
    return max(1, min(n, available // max(per_sample, 1)))


def _costs(
    model: nn.Module,
    chosen: dict[str, nn.Module],
    parameters: dict[str, Tensor],
    inputs: Inputs,
    options: _Options,
) -> _Costs:
    """Run a sample or two forward and add up what each leaves behind."""
    # Two, because a network that normalises by batch statistics refuses one; it is refused later.
    count = min(2, len(inputs))
    # A copy of the samples, since a view would count the storage of the whole batch.
    saved = SavedStorages([*parameters.values(), *model.buffers()])
    with saved.noted():
        recording = _record(model, chosen, parameters, inputs[:count].clone(), options)
    num_outputs = recording.outputs.shape[1]
    graph = 2 * saved.bytes() + count * _FACTOR_COPIES * 8 * num_outputs**2
    first_name = _first_names(recording.calls, chosen)
    layers: dict[str, int] = {}
    held = count * num_outputs**2 * recording.outputs.element_size()
    for call in recording.calls:
        element = call.preactivation.element_size()
        size = element * (call.inputs.numel() + num_outputs * call.preactivation.numel())
        name = first_name[id(chosen[call.name].get_parameter("weight"))]
        layers[name] = layers.get(name, 0) + size
        held += size
        if call.input_edge is not None:
            held += element * num_outputs * call.inputs.numel()
    if options.input_jacobians and recording.inputs.requires_grad:
        held += num_outputs * recording.inputs.numel() * recording.outputs.element_size()
    if options.all_parameters:
        weights = {id(module.get_parameter("weight")) for module in chosen.values()}
        rest = {id(p): p.nbytes for p in model.parameters() if id(p) not in weights}
        held += count * num_outputs * sum(rest.values())
        # Beside the Jacobians in the outputs of normalisations lie their products with the inputs.
        sizes = [call.normalized.nbytes for call in recording.normalizations]
        graph += num_outputs * (sum(sizes) + max(sizes, default=0))
        for module in (*chosen.values(), *(call.module for call in recording.normalizations)):
            for parameter in module.parameters(recurse=False):
                rest.pop(id(parameter), None)
        if rest:  # a sample's Jacobian in them is vectorized over the outputs
            graph += num_outputs * (2 * saved.bytes() + 2 * count * sum(rest.values()))
    # The gradients that a backward pass holds at once are no more than what it was given.
    per_sample = {name: size // count for name, size in layers.items()}
    return _Costs(per_sample, held // count, graph // count)


def _linearize(
    model: nn.Module,
    data: tuple[Inputs, Tensor | None],
    loss: Loss,
    chosen: dict[str, nn.Module],
    parameters: dict[str, Tensor],
    options: _Options,
    step: int,
    memory_budget: int,
) -> Linearization:
    inputs, targets = data
    outputs: list[Tensor] = []
    held: _Held | None = None
    for start in range(0, len(inputs), step):
        samples = slice(start, min(start + step, len(inputs)))
        recording = _record(model, chosen, parameters, inputs[samples], options)
        outputs.append(recording.outputs.detach())
        if held is None:
            refuse_interaction(model, parameters, inputs[samples], outputs[0])
            held = _allocate(model, recording, parameters, chosen, len(inputs), options)
        _fill(held, recording, samples)
        if held.differentiated:
            jacobians = per_sample_jacobians(
                model, parameters, held.differentiated, inputs[samples]
            )
            for name, jacobian in jacobians.items():
                held.parameters[name][samples] = jacobian
    assert held is not None
    everything = torch.cat(outputs)
    if targets is not None:
        loss.check(everything, targets)
    factor = _hessian_factor(loss, everything, targets, step)
    for layer in held.layers.values():
        layer.hessian_factor = factor
        layer.memory_budget = memory_budget // 2
    return Linearization(
        everything,
        factor,
        held.layers,
        loss,
        held.input_jacobian,
        held.parameters if options.all_parameters else None,
        memory_budget,
        held.exact_parameters,
    )


def _hessian_factor(loss: Loss, outputs: Tensor, targets: Tensor | None, step: int) -> Tensor:
    """Return R of all samples, made of ``step`` samples at a time: it passes through float64."""
    whole: Tensor | None = None
    for start in range(0, len(outputs), step):
        samples = slice(start, start + step)
        part = loss.hessian_factor(outputs[samples], None if targets is None else targets[samples])
        if whole is None:
            whole = part.new_empty(len(outputs), *part.shape[1:])
        whole[samples] = part
    assert whole is not None
    return whole


def _record(
    model: nn.Module,
    chosen: dict[str, nn.Module],
    parameters: dict[str, Tensor],
    inputs: Inputs,
    options: _Options,
) -> _Recording:
    recording = _Recording(torch.empty(0, device="cpu"), inputs)
    if options.input_jacobians and isinstance(inputs, Tensor) and inputs.is_floating_point():
        recording.inputs = inputs.detach().clone().requires_grad_()
    handles = []

    def layer_hook(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> Tensor:
            read = arguments[0] if arguments else next(iter(keywords.values()))
            # The edge of now: an in-place operation moves the tensor on to another.
            wanted = options.input_jacobians and read.requires_grad
            edge = get_gradient_edge(read) if wanted else None
            call = _Call(name, module, read.detach(), read.grad_fn, edge, output)
            recording.calls.append(call)
            # A copy goes on, so that an in-place activation leaves the recorded one alone.
            return output.clone()

        return hook

    def normalization_hook(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        read = arguments[0] if arguments else next(iter(keywords.values()))
        with torch.no_grad():
            normalized = normalized_input(module, read)
        call = NormalizationCall(module, normalized, get_gradient_edge(output))
        recording.normalizations.append(call)

    try:
        for name, module in chosen.items():
            handles.append(
                module.register_forward_hook(layer_hook(name), prepend=True, with_kwargs=True)
            )
        if options.all_parameters:
            for module in model.modules():
                if isinstance(module, NORMALIZATION_TYPES) and module.weight is not None:
                    handles.append(
                        module.register_forward_hook(
                            normalization_hook, prepend=True, with_kwargs=True
                        )
                    )
        recording.outputs = network_outputs(model, parameters, recording.inputs)
    finally:
        for handle in handles:
            handle.remove()
    check_outputs(recording.outputs, len(inputs))
    for call in recording.calls:
        if call.inputs.shape[0] != len(inputs) or (
            not isinstance(call.module, nn.Linear)
            and call.inputs.ndim != len(call.module.kernel_size) + 2  # type: ignore[arg-type]
        ):
            raise ValueError(
                f"layer {call.name} sees an input of shape {tuple(call.inputs.shape)} for "
                f"{len(inputs)} samples: reshape in the model so that samples come first."
            )
    return recording


def _refuse_missing(layers: Sequence[str] | None, found: Container[str]) -> None:
    missing = [name for name in layers or () if name not in found]
    if missing:
        raise ValueError(
            f"layers={missing} share the weight of another layer or are not "
            f"called by the forward pass: leave them out."
        )


def refuse_interaction(
    model: nn.Module, parameters: dict[str, Tensor], inputs: Inputs, outputs: Tensor
) -> None:
    """Raise if the outputs of some samples change when the others are left out."""
    if len(inputs) < 2:
        return
    half = (len(inputs) + 1) // 2
    with torch.no_grad():
        alone = network_outputs(model, parameters, inputs[:half])
    tolerance = torch.finfo(outputs.dtype).eps ** 0.5
    if not torch.allclose(alone, outputs[:half], rtol=tolerance, atol=tolerance):
        raise SamplesInteractError(
            "model gives other outputs for the same samples in another batch: it mixes samples "
            "(batch statistics?) or is random in evaluation mode; freeze that part first."
        )


@dataclass
class _Held:
    """Room for the results of all samples, and which parameter is filled how."""

    layers: dict[str, LayerLinearization]
    input_jacobian: Tensor | None
    parameters: dict[str, Tensor]
    differentiated: list[str]
    leaf_names: dict[int, str]
    exact_parameters: frozenset[str]


def _first_names(calls: list[_Call], chosen: dict[str, nn.Module]) -> dict[int, str]:
    """Return by weight the name of the layer that uses it first."""
    first_name: dict[int, str] = {}
    for call in calls:
        first_name.setdefault(id(chosen[call.name].get_parameter("weight")), call.name)
    return first_name


def _group(recording: _Recording, chosen: dict[str, nn.Module]) -> dict[str, list[_Call]]:
    """Collect the calls by weight, under the name of the layer that uses it first."""
    first_name = _first_names(recording.calls, chosen)
    grouped: dict[str, list[_Call]] = {}
    for call in recording.calls:
        weight = chosen[call.name].get_parameter("weight")
        grouped.setdefault(first_name[id(weight)], []).append(call)
    return grouped


def _allocate(
    model: nn.Module,
    recording: _Recording,
    parameters: dict[str, Tensor],
    chosen: dict[str, nn.Module],
    n: int,
    options: _Options,
) -> _Held:
    """Reserve room for all samples and judge each layer."""
    outputs = recording.outputs
    num_outputs = outputs.shape[1]
    graph = RecordedGraph(outputs.grad_fn)
    leaf_names = {id(p): name for name, p in model.named_parameters()}
    layers: dict[str, LayerLinearization] = {}
    for name, uses in _group(recording, chosen).items():
        weight_name = leaf_names[id(chosen[name].get_parameter("weight"))]
        weight = parameters[weight_name]
        obstacle = _judge(graph, outputs, uses, weight, name)
        layer = LayerLinearization(
            name, weight_name, weight.shape, outputs.new_zeros(0, 0, 0), obstacle, GIBIBYTE
        )
        for use in uses:
            inputs = use.inputs.new_empty(n, *use.inputs.shape[1:])
            jacobian = outputs.new_empty(n, num_outputs, *use.preactivation.shape[1:])
            pulled_back = None
            if use.input_edge is not None:
                pulled_back = outputs.new_empty(n, num_outputs, *use.inputs.shape[1:])
            layer.uses.append(LayerUse(use.module, inputs, jacobian, pulled_back))
        layers[name] = layer
    input_jacobian = None
    if recording.inputs.requires_grad:
        input_jacobian = outputs.new_empty(n, num_outputs, *recording.inputs.shape[1:])
    exact = frozenset(
        name
        for name, leaf in parameters.items()
        if graph.obstacle([get_gradient_edge(leaf).node]) is None
    )
    held = _Held(layers, input_jacobian, {}, [], leaf_names, exact)
    if options.all_parameters:
        weights = {layer.weight_name for layer in layers.values()}
        for name, leaf in parameters.items():
            if name not in weights:
                held.parameters[name] = outputs.new_zeros(n, num_outputs, leaf.numel())
                if _used_elsewhere(graph, recording, leaf_names, name, leaf):
                    held.differentiated.append(name)
    return held


def _used_elsewhere(
    graph: RecordedGraph,
    recording: _Recording,
    leaf_names: dict[int, str],
    name: str,
    leaf: Tensor,
) -> bool:
    """Whether a parameter reaches the outputs other than through the modules that hold it."""
    own = [
        call.preactivation.grad_fn
        for call in recording.calls
        if leaf_names.get(id(call.module.bias)) == name
    ]
    own += [
        call.edge.node
        for call in recording.normalizations
        if name in (leaf_names.get(id(call.module.weight)), leaf_names.get(id(call.module.bias)))
    ]
    source = get_gradient_edge(leaf).node
    return recording.outputs.grad_fn in graph.dependents([source], avoiding=own)


def _judge(
    graph: RecordedGraph, outputs: Tensor, uses: list[_Call], weight: Tensor, name: str
) -> str | None:
    """Return why the layer's block may differ from its Hessian block, None if it cannot."""
    leaf = get_gradient_edge(weight).node
    preactivations = [use.preactivation.grad_fn for use in uses]
    if outputs.grad_fn in graph.dependents([leaf], avoiding=preactivations):
        raise ValueError(
            f"the weight of layer {name} is also used outside the layer: "
            f"measure it with the Hessian products of paperkit.linearize instead."
        )
    depends_on_weight = graph.dependents([leaf])
    if any(use.input_node in depends_on_weight for use in uses):
        return "an input of the layer depends on the layer's own weight"
    return graph.obstacle(preactivations)


def _fill(held: _Held, recording: _Recording, samples: slice) -> None:
    """Run one backward pass for each output and store the results of this chunk."""
    counters = dict.fromkeys(held.layers, 0)
    by_weight = {layer.weight_name: name for name, layer in held.layers.items()}
    sources: list[Any] = []
    targets: list[Tensor] = []
    uses: list[LayerUse] = []
    for call in recording.calls:
        name = by_weight[held.leaf_names[id(call.module.get_parameter("weight"))]]
        use = held.layers[name].uses[counters[name]]
        counters[name] += 1
        uses.append(use)
        use.inputs[samples] = call.inputs
        sources.append(call.preactivation)
        targets.append(use.output_jacobian[samples])
        if call.input_edge is not None:
            assert use.input_jacobian is not None
            sources.append(call.input_edge)
            targets.append(use.input_jacobian[samples])
    if held.input_jacobian is not None:
        sources.append(recording.inputs)
        targets.append(held.input_jacobian[samples])
    pulled_back = []
    for normalization in recording.normalizations:
        outputs = recording.outputs
        shape = (*outputs.shape, *normalization.normalized.shape[1:])
        pulled_back.append(outputs.new_empty(shape))
        sources.append(normalization.edge)
        targets.append(pulled_back[-1])
    _backward(recording.outputs, sources, targets)
    _add_affine(held, recording, uses, pulled_back, samples)


def _backward(outputs: Tensor, sources: Sequence[Any], targets: Sequence[Tensor]) -> None:
    """Write the gradient of each output in each source into ``target[:, c]``."""
    if not sources:
        return
    num_outputs = outputs.shape[1]
    seed = torch.zeros_like(outputs)
    for c in range(num_outputs):
        seed.zero_()[:, c] = 1.0
        gradients = torch.autograd.grad(
            outputs, sources, seed, retain_graph=c + 1 < num_outputs, allow_unused=True
        )
        for target, gradient in zip(targets, gradients, strict=True):
            target[:, c] = 0.0 if gradient is None else gradient


def _add_affine(
    held: _Held,
    recording: _Recording,
    uses: list[LayerUse],
    pulled_back: list[Tensor],
    samples: slice,
) -> None:
    """Add what biases, scales and shifts follow from the Jacobians of their modules' outputs."""

    def add(module: nn.Module, parameter: Tensor | None, jacobian: Tensor) -> None:
        name = held.leaf_names.get(id(parameter))
        if name in held.parameters and name not in held.differentiated:
            held.parameters[name][samples] += channel_sum(module, jacobian)

    for call, use in zip(recording.calls, uses, strict=True):
        add(call.module, call.module.bias, use.output_jacobian[samples])  # type: ignore[arg-type]
    for normalization, jacobian in zip(recording.normalizations, pulled_back, strict=True):
        module = normalization.module
        add(module, module.bias, jacobian)  # type: ignore[arg-type]
        add(module, module.weight, jacobian * normalization.normalized.unsqueeze(1))  # type: ignore[arg-type]


def _verify(
    model: nn.Module, inputs: Inputs, targets: Tensor | None, result: Linearization
) -> None:
    """Compare one probe of each exact block with autograd; demote the block where they differ."""
    if targets is None:
        raise ValueError("verify=True needs targets: pass the labels of the inputs.")
    generator = torch.Generator(device="cpu").manual_seed(0)
    for layer in result.layers.values():
        if not layer.exact_block:
            continue
        probe = torch.randn(
            1, *layer.weight_shape, generator=generator, dtype=torch.float64, device="cpu"
        )
        probe = probe.to(result.outputs)
        ours = layer.gauss_newton_product(probe).flatten()
        exact = hessian_product(
            model, inputs, targets, probe.flatten(), result.loss, [layer.weight_name]
        )
        tolerance = 100.0 * torch.finfo(ours.dtype).eps ** 0.5
        if float((ours - exact).norm()) > tolerance * float(exact.norm()):
            layer.obstacle = "a probe of the Hessian block differs from the Gauss–Newton block"
