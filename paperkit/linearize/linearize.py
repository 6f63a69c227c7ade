"""One forward pass and C backward passes → inputs and output Jacobians of every layer."""

from __future__ import annotations

import itertools
import math
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from paperkit import arguments
from paperkit.linalg.probes import MemoryBudgetError
from paperkit.linearize.dense import hessian_product
from paperkit.linearize.evaluation import (
    SavedStorages,
    check_inputs,
    check_outputs,
    evaluation,
)
from paperkit.linearize.interaction import (
    SamplesInteractError,
    agree,
    following,
    parts_alone,
    refuse_chance,
    refuse_changed,
    refuse_other_outputs,
    seen_apart,
)
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.linearize.layer_types import LayerType, WeightLayout, type_of
from paperkit.linearize.losses import Loss, LossLike, get_loss
from paperkit.linearize.network import Network, network_outputs, note_formats
from paperkit.linearize.operations import RecordedGraph
from paperkit.linearize.precision import widened
from paperkit.linearize.problem import (
    cut_parameters,
    refuse_cut,
    refuse_cut_inputs,
    settled,
    unlabelled_loss,
)
from paperkit.linearize.remainder import (
    NormalizationCall,
    affine_sums,
    is_normalization,
    normalized_input,
    num_affine,
    per_sample_jacobians,
)
from paperkit.linearize.sample_axes import SampleAxes
from paperkit.linearize.samples import Inputs, as_inputs
from paperkit.linearize.weights import chosen_weights

GIBIBYTE = 2**30

# Float64 matrices of a sample, C × C, that the factor of the loss's Hessian passes through.
_FACTOR_COPIES = 5

_NOT_CALLED = "the forward pass does not call it"

_ORDER = "it sees the samples mixed, or in another order than the outputs"

_GOLDEN = 0.5 * (5.0**0.5 - 1.0)


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
    left_out : mapping of str to str
        The other weights that were asked for, by name, and why each is not among ``layers``.
    computed_in : torch.dtype
        The narrowest floating format in which the network's pass computes, whose round-off the
        pairs carry.
    """

    outputs: Tensor
    hessian_factor: Tensor
    layers: dict[str, LayerLinearization]
    loss: Loss
    input_jacobian: Tensor | None = None
    parameter_jacobians: dict[str, Tensor] | None = None
    memory_budget: int = GIBIBYTE
    exact_parameters: frozenset[str] = frozenset()
    left_out: Mapping[str, str] = field(default_factory=dict)
    computed_in: torch.dtype = torch.float64

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
        arguments.instance("targets", targets, Tensor)
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
    preactivation: Tensor  # cut off the graph, and its memory may be another's by now
    edge: GradientEdge | None  # of the pre-activation, None where it records no gradient
    layer_type: LayerType

    @property
    def layout(self) -> WeightLayout:
        return self.layer_type.layout(self.module)

    @property
    def node(self) -> Any:
        """The operation that made the pre-activation."""
        return None if self.edge is None else self.edge.node

    def formats(self) -> set[torch.dtype]:
        """Return the floating formats that it reads and writes."""
        found = (self.inputs.dtype, self.preactivation.dtype)
        return {dtype for dtype in found if dtype.is_floating_point}


@dataclass
class _Recording:
    """What one forward pass left behind.

    Calls that do not see the samples first are not among ``calls`` and ``normalizations``; those of
    layers have a reason in ``misfits``, by name.
    """

    outputs: Tensor
    inputs: Inputs
    calls: list[_Call] = field(default_factory=list)
    normalizations: list[NormalizationCall] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)
    axes: SampleAxes | None = None


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
    """
    arguments.module("model", model)
    chosen, left_out = _candidates(model, layers)
    for name, reason in left_out.items() if layers is not None else ():
        raise _refusal(name, reason)
    if not chosen:
        raise ValueError(
            "layers is empty: the model has no linear or convolution layer to measure."
        )
    return chosen


def _candidates(
    model: nn.Module, layers: Sequence[str] | None, options: _Options | None = None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the layers whose modules are of a known type, and why each other weight is not."""
    if layers is not None and not isinstance(layers, str) and options and options.only:
        layers = list(layers)
        if not layers:
            return {}, {}
    weights = chosen_weights(model, layers)
    modules = {
        name: model.get_submodule(name) for name, one in weights.items() if one.obstacle is None
    }
    return modules, {name: one.obstacle for name, one in weights.items() if one.obstacle}


def _refusal(name: str, reason: str) -> ValueError:
    return ValueError(
        f"layers: {name} cannot be linearized by itself, because {reason}; leave it out, or use a "
        "measure that takes its Hessian products, such as layer_spectra."
    )


def linearize(
    model: nn.Module,
    inputs: Inputs,
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    input_jacobians: bool = False,
    all_parameters: bool | Sequence[str] = False,
    targets: Tensor | None = None,
    verify: bool = False,
    strict: bool = True,
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
        Module names; default every linear, convolution and transposed convolution layer that the
        forward pass calls. Only a module that does exactly what its class does is one: not a
        subclass with a forward pass of its own, and not one whose weight is computed from other
        parameters.
    input_jacobians : bool
        Also record the Jacobian of the outputs in each layer's input and in the network's.
    all_parameters : bool or sequence of str
        Also record the Jacobian in all other parameters: biases, normalisation, embeddings, and
        the weights of layers of other kinds. It needs ``layers=None``. Or in some of them, by name;
        then ``layers`` may be empty.
    targets : Tensor, optional
        For ``verify``, and for losses whose output Hessian depends on them; that of cross-entropy
        and of squared errors does not.
    verify : bool
        Compare one random probe of each layer with the Hessian product of autograd, and refuse to
        call a block exact where they differ.
    strict : bool
        Refuse a layer that is named in ``layers`` but cannot be linearized by itself: whose weight
        is used elsewhere too, or that does not see the samples first and in their order. Else it is
        left out, as it is by default, with its reason in ``left_out``.
    chunk_size : int, optional
        Samples of one forward pass; default as many as a quarter of the budget lets pass backward.
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
        If the inputs are empty or not finite; if a layer that is named cannot be linearized by
        itself; if ``verify`` lacks targets.
    CutGraphError
        A ValueError: if no gradient reaches the weight of a layer that is named, a parameter, or
        the inputs, where their Jacobian is asked for and the outputs depend on them.
    MemoryBudgetError
        A ValueError: if the result would not fit; :func:`linearize_in_chunks` serves measures that
        are sums over samples.
    SamplesInteractError
        A ValueError: if the outputs for some sample depend on the others in its batch.
    RandomModelError
        A ValueError: if the model gives other outputs for the same inputs.

    Notes
    -----
    What a model detaches on one of several ways is invisible here, as it is to autograd's own
    Hessian.
    """
    model, inputs, loss = Network.of(model), as_inputs(inputs), get_loss(loss)
    memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    if chunk_size is not None:
        chunk_size = arguments.integer("chunk_size", chunk_size, at_least=1)
    if arguments.flag("verify", verify) and targets is None:
        raise ValueError("verify=True needs targets: pass the labels of the inputs.")
    strict = arguments.flag("strict", strict)
    options = _Options.of(model, input_jacobians, all_parameters, layers)
    chosen, left_out = _candidates(model, layers, options)
    if strict and layers is not None:
        for name, reason in left_out.items():
            raise _refusal(name, reason)
    if targets is not None:
        model, batch, settled_loss = settled(model, (inputs, targets), loss)
        assert settled_loss is not None
        inputs, targets = batch.joined()
        loss = settled_loss
    check_inputs(inputs)
    inputs = widened(inputs, Network.of(model).input_format)
    if targets is None:
        loss = unlabelled_loss(model, inputs, loss)
    _refuse_cut_anywhere(model, inputs, options)
    result = _linearized(
        model, (inputs, targets), loss, chosen, left_out, options, chunk_size, memory_budget
    )
    if strict and layers is not None:
        _refuse_left_out(model, inputs, chosen, result)
    if verify:
        _verify(model, inputs, targets, result)
    return result


def _refuse_cut_anywhere(model: Network, inputs: Inputs, options: _Options) -> None:
    """Raise if a Jacobian would lack what no gradient reaches."""
    if options.input_jacobians or (options.all_parameters and not options.only):
        refuse_cut(model, inputs)
    elif options.only:
        refuse_cut(model, inputs, options.only)
    if options.input_jacobians:
        refuse_cut_inputs(model, inputs)


def _linearized(
    model: Network,
    data: tuple[Inputs, Tensor | None],
    loss: Loss,
    chosen: dict[str, nn.Module],
    left_out: Mapping[str, str],
    options: _Options,
    chunk_size: int | None,
    memory_budget: int,
    costs: _Costs | None = None,
) -> Linearization:
    inputs, _ = data
    with evaluation(model) as parameters:
        costs = costs or _costs(model, chosen, parameters, inputs, options)
        needed = len(inputs) * costs.held
        if needed > memory_budget // 2:
            raise MemoryBudgetError(
                f"inputs: the pairs of {len(inputs)} samples take {needed / GIBIBYTE:.2g} GiB, "
                f"more than half of memory_budget={memory_budget}; raise it to at least "
                f"{2 * needed}, or pass fewer samples or layers."
            )
        step = _chunk(memory_budget // 4, costs.graph, len(inputs))
        step = _possible(chunk_size or step, costs, len(inputs), memory_budget)
        if step == 1:
            _refuse_unseen(model, parameters, inputs, costs, memory_budget)
        excluded: dict[str, str] = {}
        while True:
            try:
                result = _linearize(
                    model, data, loss, chosen, parameters, options, step, memory_budget, excluded
                )
                break
            except _UnfitError as unfit:  # what only all samples together show
                excluded |= unfit.reasons
        first = costs.outputs[: len(inputs)]
        refuse_changed(model, parameters, inputs, first, result.outputs)
    return replace(result, left_out={**left_out, **result.left_out})


def _refuse_left_out(
    model: Network, inputs: Inputs, chosen: Mapping[str, nn.Module], result: Linearization
) -> None:
    """Raise if a layer that was named is not among the result's."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    missing = [name for name in chosen if name not in result.layers]
    cut = [name for name in missing if name in result.left_out]
    refuse_cut(model, inputs, [names[id(chosen[name].get_parameter("weight"))] for name in cut])
    for name in missing:
        raise _refusal(name, result.left_out.get(name, "it shares the weight of another layer"))


def _changed(found: Sequence[str], later: Linearization) -> ValueError:
    lost = [name for name in found if name not in later.layers]
    if not lost:
        return ValueError("model calls its layers in another order for later samples.")
    reason = later.left_out.get(lost[0], "the forward pass does not call it")
    return ValueError(
        f"layers: {lost[0]} cannot be linearized by itself on later samples, because {reason}; "
        "leave it out."
    )


def linearize_in_chunks(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    input_jacobians: bool = False,
    all_parameters: bool | Sequence[str] = False,
    with_targets: bool = True,
    output_jacobians: bool = True,
    strict: bool = True,
    memory_budget: int = GIBIBYTE,
) -> Iterator[tuple[Linearization, Tensor]]:
    """Linearize a stream of batches, as many samples at a time as fit the memory budget.

    For measures that are sums over samples, on data of any length. A loop that deletes each
    linearization before the next one is made has larger chunks.

    Parameters
    ----------
    model, loss, layers, input_jacobians, all_parameters, strict, memory_budget
        As in :func:`linearize`. The first samples decide which layers are left out.
    data : pair or iterable of pairs
        As in :func:`paperkit.linearize.batches`.
    with_targets : bool
        Whether the targets must fit the loss and its output Hessian may depend on them.
    output_jacobians : bool
        Whether the Jacobians B are wanted. Without them, for what is of the inputs alone, more
        samples fit at a time; their entries are NaN then.

    Yields
    ------
    tuple of Linearization and Tensor
        Consecutive samples and their targets; every sample once.

    Raises
    ------
    ValueError
        As :func:`linearize`; a :class:`MemoryBudgetError` if a single sample does not fit; if a
        layer that the first samples do not leave out has to be left out for later ones.
    """
    memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    with_targets = arguments.flag("with_targets", with_targets)
    strict, known = arguments.flag("strict", strict), get_loss(loss)
    model, stream, settled_loss = settled(model, data, known if with_targets else None)
    options = _Options.of(model, input_jacobians, all_parameters, layers)
    output_jacobians = arguments.flag("output_jacobians", output_jacobians)
    options = replace(options, output_jacobians=output_jacobians)
    settled_loss = settled_loss or known
    chosen, left_out = _candidates(model, layers, options)
    if strict and layers is not None:
        for name, reason in left_out.items():
            raise _refusal(name, reason)
    found: list[str] | None = None  # the layers, once the first samples have shown them
    last: weakref.ref[Linearization] | None = None
    for inputs, targets in stream:
        check_inputs(inputs)
        if found is None:
            _refuse_cut_anywhere(model, inputs, options)
        with evaluation(model) as parameters:
            costs = _costs(model, chosen, parameters, inputs, options)
        start, looked = 0, False
        while start < len(inputs):
            # A loop may still hold the last chunk while the next is made: both fit then.
            room = memory_budget // (2 if last is None or last() is None else 4)
            left = len(inputs) - start
            step = min(
                _chunk(room, costs.held, left), _chunk(memory_budget // 4, costs.graph, left)
            )
            step = _possible(step, costs, left, memory_budget)
            if step == 1 and not looked:
                with evaluation(model) as parameters:
                    _refuse_unseen(model, parameters, inputs[start:], costs, memory_budget)
                looked = True
            chunk = slice(start, start + _pieces(left, step)[0].stop)
            start = chunk.stop
            labels = targets[chunk] if with_targets else None
            linearization = _linearized(
                model,
                (inputs[chunk], labels),
                settled_loss,
                chosen,
                left_out,
                options,
                step,
                memory_budget,
                costs if chunk.start == 0 else None,
            )
            if found is None:
                if strict and layers is not None:
                    _refuse_left_out(model, inputs, chosen, linearization)
                found, left_out = list(linearization.layers), dict(linearization.left_out)
                chosen = {name: one for name, one in chosen.items() if name not in left_out}
            elif found != list(linearization.layers):
                raise _changed(found, linearization)
            last = weakref.ref(linearization)
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


def held_bytes(
    model: nn.Module, inputs: Inputs, *, all_parameters: bool | Sequence[str] = False
) -> int:
    """Return what the pairs of all samples, without input Jacobians, will take.

    Parameters
    ----------
    model, inputs, all_parameters
        As in :func:`linearize`.
    """
    model = Network.of(model)
    check_inputs(inputs)
    with evaluation(model) as parameters:
        options = _Options.of(model, False, all_parameters, None)
        chosen, _ = _candidates(model, None)
        costs = _costs(model, chosen, parameters, inputs, options)
    return len(inputs) * costs.held


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
    model, inputs, layers, memory_budget, strict
        As in :func:`linearize`.

    Returns
    -------
    list of list of str
        In the order of the forward pass; layers that it does not call are left out, and those that
        cannot be linearized by themselves, as far as two samples show.

    Raises
    ------
    ValueError
        If ``strict`` and one of ``layers`` is left out.
    """
    groups, left_out = grouped_layers(model, inputs, layers, memory_budget)
    if strict and layers is not None:
        for name, reason in left_out.items():
            raise _refusal(name, reason)
    return groups


def grouped_layers(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str] | None = None,
    memory_budget: int = GIBIBYTE,
) -> tuple[list[list[str]], dict[str, str]]:
    """Return :func:`layer_groups`, and why each other weight is left out."""
    model = Network.of(model)
    chosen, left_out = _candidates(model, layers)
    check_inputs(inputs)
    with evaluation(model) as parameters:
        costs = _costs(model, chosen, parameters, inputs, _Options())
    left_out |= costs.left_out
    if layers is not None:
        shared = "it shares the weight of another layer"
        left_out |= {n: shared for n in chosen if n not in costs.layers and n not in left_out}
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
    return groups, left_out


@dataclass(frozen=True)
class _Options:
    """Which Jacobians are wanted besides: in inputs, in other parameters, in these only."""

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
    ) -> _Options:
        input_jacobians = arguments.flag("input_jacobians", input_jacobians)
        if not isinstance(all_parameters, bool):
            known = [name for name, _ in model.named_parameters()]
            names = arguments.names("all_parameters", all_parameters, known)
            return cls(input_jacobians, True, frozenset(names))
        if all_parameters and layers is not None:
            raise ValueError("all_parameters=True covers every layer: leave layers=None.")
        return cls(input_jacobians, all_parameters)

    def wants(self, name: str) -> bool:
        """Whether the Jacobian in a parameter is wanted that is no layer's weight."""
        return self.all_parameters and (not self.only or name in self.only)


@dataclass(frozen=True)
class _Costs:
    """Bytes a sample: of each layer's pairs, of all that is held, of the graph of a pass."""

    layers: dict[str, int]
    held: int
    graph: int
    left_out: dict[str, str]
    outputs: Tensor  # of the first samples, as many as the model takes at least


def _chunk(available: int, per_sample: int, n: int) -> int:
    return max(1, min(n, available // max(per_sample, 1)))


def _possible(step: int, costs: _Costs, n: int, memory_budget: int) -> int:
    """Return the size of a chunk that the model takes."""
    fewest = len(costs.outputs)
    if fewest <= 2 or step >= n:
        return step
    raise MemoryBudgetError(
        f"model takes no fewer than {fewest} samples at a time, and {step} fit the "
        f"memory_budget={memory_budget}: raise it to at least {memory_budget * n // step}, or let "
        "the model take any number of samples (x.flatten(1) for x.view(8, -1))."
    )


def _pieces(n: int, step: int) -> list[slice]:
    """Cut n samples into chunks of almost equal sizes; of one sample only if none is larger."""
    count = -(-n // step)
    if step > 1:
        count = max(1, min(count, n // 2))
    sizes = [n // count + (index < n % count) for index in range(count)]
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _refuse_unseen(
    model: nn.Module,
    parameters: dict[str, Tensor],
    inputs: Inputs,
    costs: _Costs,
    memory_budget: int,
) -> None:
    """Look for interaction where chunks of one sample would show none."""
    size = max(2, _chunk(memory_budget // 4, costs.graph, len(inputs)))
    apart: set[tuple] = set()
    for part in inputs.split(size):
        key = (part.shape, part.dtype)
        if key not in apart and seen_apart(model, parameters, part):
            apart.add(key)


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
    saved = SavedStorages([*parameters.values(), *model.buffers()])

    def run(count: int) -> _Recording:
        # A copy of the samples, since a view would count the storage of the whole batch.
        with saved.noted():
            return _record(model, chosen, parameters, inputs[:count].clone(), options)

    try:
        recording = run(count)
    except Exception:
        if count == len(inputs):
            raise
        count = len(inputs)  # which may be the number that the model was written for
        recording = run(count)
    num_outputs = recording.outputs.shape[1]
    graph = 2 * saved.bytes() + count * _FACTOR_COPIES * 8 * num_outputs**2
    groups, left_out = _sorted_calls(
        model, recording, chosen, RecordedGraph(recording.outputs.grad_fn)
    )
    layers: dict[str, int] = dict.fromkeys(groups, 0)
    held = count * num_outputs**2 * recording.outputs.element_size()
    for name, calls in groups.items():
        for call in calls:
            element = call.preactivation.element_size()
            size = element * call.inputs.numel()
            if options.output_jacobians:
                size += element * num_outputs * call.preactivation.numel()
            layers[name] += size
            held += size
            if call.input_edge is not None:
                held += element * num_outputs * call.inputs.numel()
    if options.input_jacobians and recording.inputs.requires_grad:
        held += num_outputs * recording.inputs.numel() * recording.outputs.element_size()
    if options.all_parameters:
        modules = [calls[0].module for calls in groups.values()]
        weights = {id(module.get_parameter("weight")) for module in modules}
        rest = {
            id(p): p.nbytes
            for name, p in model.named_parameters()
            if id(p) not in weights and options.wants(name)
        }
        held += count * num_outputs * sum(rest.values())
        # The normalised inputs, and the largest one's product with its gradient.
        sizes = [call.normalized.nbytes for call in recording.normalizations]
        graph += sum(sizes) + 2 * max(sizes, default=0)
        for module in (*modules, *(call.module for call in recording.normalizations)):
            for parameter in module.parameters(recurse=False):
                rest.pop(id(parameter), None)
        if rest:  # a sample's Jacobian in them is vectorized over the outputs
            graph += num_outputs * (2 * saved.bytes() + 2 * count * sum(rest.values()))
    # The gradients that a backward pass holds at once are no more than what it was given.
    per_sample = {name: size // count for name, size in layers.items()}
    outputs = recording.outputs.detach()
    return _Costs(per_sample, held // count, graph // count, left_out, outputs)


def _linearize(
    model: nn.Module,
    data: tuple[Inputs, Tensor | None],
    loss: Loss,
    chosen: dict[str, nn.Module],
    parameters: dict[str, Tensor],
    options: _Options,
    step: int,
    memory_budget: int,
    excluded: Mapping[str, str],
) -> Linearization:
    inputs, targets = data
    outputs: list[Tensor] = []
    held: _Held | None = None
    for samples in _pieces(len(inputs), step):
        recording = _record(
            model, chosen, parameters, inputs[samples], options, excluded, follow=True
        )
        outputs.append(recording.outputs.detach())
        if held is None:
            held = _allocate(model, recording, parameters, chosen, len(inputs), options)
        _keep_calls(held, recording)
        apart = _seen_in_order(recording)
        if not apart:
            _refuse_other_order(
                recording,
                lambda part: _record(model, chosen, parameters, part, options, excluded),
                inputs[samples],
            )
        _fill(held, recording, samples, check_order=not apart)
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
        held.left_out,
        model.narrowest if isinstance(model, Network) else everything.dtype,
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
    excluded: Mapping[str, str] = types.MappingProxyType({}),
    *,
    follow: bool = False,
) -> _Recording:
    """Run the model forward; modules whose names are in ``excluded`` are not recorded.

    ``follow`` asks for the samples' axes.
    """
    recording = _Recording(torch.empty(0, device="cpu"), inputs, misfits=dict(excluded))
    if options.input_jacobians and isinstance(inputs, Tensor) and inputs.is_floating_point():
        recording.inputs = inputs.detach().clone().requires_grad_()
    handles = []

    def layer_hook(name: str, kind: LayerType) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> None:
            read = arguments[0] if arguments else next(iter(keywords.values()))
            # The edge of now: an in-place operation moves the tensor on to another.
            wanted = options.input_jacobians and read.requires_grad
            edge = get_gradient_edge(read) if wanted else None
            own = get_gradient_edge(output) if output.requires_grad else None
            call = _Call(
                name, module, read.detach(), read.grad_fn, edge, output.detach(), own, kind
            )
            recording.calls.append(call)

        return hook

    def normalization_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            read = arguments[0] if arguments else next(iter(keywords.values()))
            with torch.no_grad():
                normalized = normalized_input(module, read)
            # The edge of now: an in-place operation moves the tensor on to another.
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
    _part_misfits(recording, len(inputs))
    return recording


def _part_misfits(recording: _Recording, n: int) -> None:
    """Take out the calls that do not see the samples first, and those that no gradient reaches."""
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


class _UnfitError(Exception):
    """Some modules cannot be recorded on these samples: their names, and why."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


@dataclass
class _Held:
    """Room for the results of all samples, and which parameter is filled how."""

    layers: dict[str, LayerLinearization]
    input_jacobian: Tensor | None
    parameters: dict[str, Tensor]
    differentiated: list[str]
    leaf_names: dict[int, str]
    exact_parameters: frozenset[str]
    left_out: dict[str, str]
    normalizations: list[str]


def _sorted_calls(
    model: nn.Module, recording: _Recording, chosen: Mapping[str, nn.Module], graph: RecordedGraph
) -> tuple[dict[str, list[_Call]], dict[str, str]]:
    """Collect the calls by weight, under the name of the layer that uses it first.

    Also return the layers that cannot be linearized by themselves, and why.
    """
    grouped: dict[int, list[_Call]] = {}
    for call in recording.calls:
        grouped.setdefault(id(call.module.get_parameter("weight")), []).append(call)
    leaf_names = {id(p): name for name, p in model.named_parameters()}
    groups: dict[str, list[_Call]] = {}
    left_out = {name: why for name, why in recording.misfits.items() if name in chosen}
    for weight, calls in grouped.items():
        reason = _unfitness(model, recording, graph, calls, leaf_names[weight])
        if reason is None:
            groups[calls[0].name] = calls
        else:
            left_out |= {call.name: reason for call in calls}
    covered = {id(calls[0].module.get_parameter("weight")) for calls in groups.values()}
    for name, module in chosen.items():
        if id(module.get_parameter("weight")) not in covered and name not in left_out:
            left_out[name] = _NOT_CALLED
    return groups, left_out


def _unfitness(
    model: nn.Module,
    recording: _Recording,
    graph: RecordedGraph,
    calls: Sequence[_Call],
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


def _reads(recording: _Recording) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for call in recording.calls:
        found.setdefault(call.name, []).append(call.inputs)
    for normalization in recording.normalizations:
        found.setdefault(normalization.name, []).append(normalization.normalized)
    return found


def _seen_in_order(recording: _Recording) -> bool:
    """Whether the operations show that no sample sees another.

    Raises
    ------
    _UnfitError
        If so, but a module reads something else than the samples in their order.
    """
    axes = recording.axes
    assert axes is not None
    if not axes.apart(recording.outputs):
        return False
    unfit = {
        name: _ORDER
        for name, read in _reads(recording).items()
        if not all(axes.apart(tensor) for tensor in read)
    }
    if unfit:
        raise _UnfitError(unfit)
    return True


def _refuse_other_order(
    recording: _Recording, record: Callable[[Inputs], _Recording], inputs: Inputs
) -> None:
    """Raise if outputs, or what a module reads of a sample, depend on the others.

    Raises
    ------
    _UnfitError
        With the names of the modules.
    SamplesInteractError
        If outputs depend on other samples.
    """
    axes = recording.axes
    assert axes is not None

    def run(part: Inputs) -> Tensor:
        return record(part).outputs.detach()

    if axes.random:
        refuse_chance(run, inputs, recording.outputs.detach())
    unfit: dict[str, str] = {}
    for samples, alone in parts_alone(record, inputs, axes):
        refuse_other_outputs(
            run, inputs, recording.outputs.detach(), alone.outputs.detach(), samples, axes
        )
        reads = _reads(alone)
        for name, whole in _reads(recording).items():
            some = reads.get(name, [])
            if name in alone.misfits:
                unfit[name] = alone.misfits[name]
            elif len(some) != len(whole) or not all(
                agree(one, every[samples.to(every.device)], every, axes.narrowest)
                for one, every in zip(some, whole, strict=True)
            ):
                unfit[name] = _ORDER
    if unfit:
        raise _UnfitError(unfit)


def _keep_calls(held: _Held, recording: _Recording) -> None:
    """Keep the calls of those layers that are held, which must be called as on other samples."""
    by_weight = {layer.weight_name: name for name, layer in held.layers.items()}
    seen: dict[str, list[_Call]] = {name: [] for name in held.layers}
    kept = []
    for call in recording.calls:
        name = by_weight.get(held.leaf_names[id(call.module.get_parameter("weight"))])
        if name is not None:
            seen[name].append(call)
            kept.append(call)
    recording.calls = kept
    changed = {
        name
        for name, layer in held.layers.items()
        if [use.module for use in layer.uses] != [call.module for call in seen[name]]
        or any(
            use.inputs.shape[1:] != call.inputs.shape[1:]
            for use, call in zip(layer.uses, seen[name], strict=False)
        )
    }
    names = [call.name for call in recording.normalizations]
    if names != held.normalizations:
        changed |= {
            name
            for name in (*names, *held.normalizations)
            if names.count(name) != held.normalizations.count(name)
        }
    if changed:
        raise _UnfitError(dict.fromkeys(changed, "other samples are not passed to it alike"))


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
    groups, left_out = _sorted_calls(model, recording, chosen, graph)
    recording.calls = [call for calls in groups.values() for call in calls]
    for name, uses in groups.items():
        weight_name = leaf_names[id(chosen[name].get_parameter("weight"))]
        weight = parameters[weight_name]
        obstacle = _judge(graph, uses, weight)
        layer = LayerLinearization(
            name, weight_name, weight.shape, outputs.new_zeros(0, 0, 0), obstacle, GIBIBYTE
        )
        for use in uses:
            inputs = use.inputs.new_empty(n, *use.inputs.shape[1:])
            shape = (n, num_outputs, *use.preactivation.shape[1:])
            jacobian = outputs.new_empty(shape)
            if not options.output_jacobians:
                jacobian = outputs.new_full((), math.nan).expand(shape)
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
    normalizations = [call.name for call in recording.normalizations]
    held = _Held(layers, input_jacobian, {}, [], leaf_names, exact, left_out, normalizations)
    if options.all_parameters:
        weights = {layer.weight_name for layer in layers.values()}
        for name, leaf in parameters.items():
            if name not in weights and options.wants(name):
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
    own = [call.node for call in recording.calls if leaf_names.get(id(call.module.bias)) == name]
    own += [
        call.edge.node
        for call in recording.normalizations
        if call.edge is not None
        and name in (leaf_names.get(id(call.module.weight)), leaf_names.get(id(call.module.bias)))
    ]
    source = get_gradient_edge(leaf).node
    return recording.outputs.grad_fn in graph.dependents([source], avoiding=own)


def _judge(graph: RecordedGraph, uses: list[_Call], weight: Tensor) -> str | None:
    """Return why the layer's block may differ from its Hessian block, None if it cannot."""
    depends_on_weight = graph.dependents([get_gradient_edge(weight).node])
    if any(use.input_node in depends_on_weight for use in uses):
        return "an input of the layer depends on the layer's own weight"
    return graph.obstacle([use.node for use in uses])


@dataclass
class _Rows:
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


def _fill(held: _Held, recording: _Recording, samples: slice, *, check_order: bool) -> None:
    """Run one backward pass for each output and store the results of this chunk."""
    counters = dict.fromkeys(held.layers, 0)
    by_weight = {layer.weight_name: name for name, layer in held.layers.items()}
    wanted: list[_Rows] = []
    uses: list[LayerUse] = []
    for call in recording.calls:
        name = by_weight[held.leaf_names[id(call.module.get_parameter("weight"))]]
        use = held.layers[name].uses[counters[name]]
        counters[name] += 1
        uses.append(use)
        use.inputs[samples] = call.inputs
        if use.output_jacobian.stride(0):  # else it is not wanted, and has no memory
            wanted.append(_Rows(call.name, call.edge, use.output_jacobian[samples]))
        if call.input_edge is not None:
            assert use.input_jacobian is not None
            wanted.append(_Rows(call.name, call.input_edge, use.input_jacobian[samples]))
    if held.input_jacobian is not None:
        wanted.append(_Rows(None, recording.inputs, held.input_jacobian[samples]))
    affine = []
    for normalization in recording.normalizations:
        # The sums alone are kept: all Jacobians in outputs of normalisations are as many as B.
        sums = partial(affine_sums, normalization.module, normalization.normalized)
        room = recording.outputs.new_empty(
            *recording.outputs.shape, 2, num_affine(normalization.module)
        )
        affine.append(_Rows(normalization.name, normalization.edge, room, sums))
    wanted += affine
    if not wanted:
        return
    _backward(recording.outputs, wanted, retain_graph=check_order)
    if check_order:
        wrong = _out_of_order(recording.outputs, wanted)
        strangers = {rows.owner for rows, bad in zip(wanted, wrong, strict=True) if bad}
        if None in strangers:
            raise SamplesInteractError(
                "model gives an output for a sample that depends on the input of another: it "
                "mixes samples or changes their order; measure it in a form that does not."
            )
        if strangers:
            raise _UnfitError({owner: _ORDER for owner in strangers if owner is not None})
    _add_affine(held, recording, uses, [rows.room for rows in affine], samples)


def _backward(outputs: Tensor, wanted: Sequence[_Rows], *, retain_graph: bool) -> None:
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


def _out_of_order(outputs: Tensor, wanted: Sequence[_Rows]) -> list[bool]:
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


def _add_affine(
    held: _Held,
    recording: _Recording,
    uses: list[LayerUse],
    sums: list[Tensor],
    samples: slice,
) -> None:
    """Add what biases, scales and shifts follow from the Jacobians of their modules' outputs."""

    def add(parameter: Any, jacobian: Callable[[], Tensor]) -> None:
        name = held.leaf_names.get(id(parameter))
        if name in held.parameters and name not in held.differentiated:
            held.parameters[name][samples] += jacobian()

    for call, use in zip(recording.calls, uses, strict=True):
        bias = call.module.bias
        if bias is not None:
            add(bias, partial(use.layer_type.summed, use.output_jacobian[samples]))
    for normalization, both in zip(recording.normalizations, sums, strict=True):
        add(normalization.module.weight, partial(both.select, 2, 0))
        add(normalization.module.bias, partial(both.select, 2, 1))


def _verify(
    model: nn.Module, inputs: Inputs, targets: Tensor | None, result: Linearization
) -> None:
    """Compare one probe of each exact block with autograd; demote the block where they differ."""
    assert targets is not None
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
