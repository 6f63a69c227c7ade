"""One forward pass and C backward passes → inputs and output Jacobians of every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from paperkit.linearize.dense import hessian_product
from paperkit.linearize.evaluation import check_inputs, check_outputs, check_targets, evaluation
from paperkit.linearize.layer import LAYER_TYPES, LayerLinearization, LayerUse
from paperkit.linearize.losses import get_loss
from paperkit.linearize.operations import RecordedGraph

GIBIBYTE = 2**30


class SamplesInteractError(ValueError):
    """The model's outputs for one sample depend on the others, or on chance."""


@dataclass(frozen=True)
class Linearization:
    """A network linearized on one set of samples.

    Attributes
    ----------
    outputs : Tensor
        f, shape (n, C).
    layers : dict of str to LayerLinearization
        By module name, in the order of the forward pass.
    loss : str
        The name of the loss whose output Hessian the layers carry.
    """

    outputs: Tensor
    layers: dict[str, LayerLinearization]
    loss: str

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
    preactivation: Tensor


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
    inputs: Tensor,
    loss: str = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    targets: Tensor | None = None,
    verify: bool = False,
    chunk_size: int = 128,
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
    loss : str
        A name from :data:`paperkit.linearize.losses.LOSSES`.
    layers : sequence of str, optional
        Module names; default every linear and convolution layer that the forward pass calls.
    targets : Tensor, optional
        Only for ``verify``; the blocks themselves do not depend on them.
    verify : bool
        Compare one random probe of each layer with the Hessian product of autograd, and refuse to
        call a block exact where they differ.
    chunk_size : int
        Samples of one forward pass.
    memory_budget : int
        Bytes that the layers' methods may use for temporaries.

    Returns
    -------
    Linearization
        It holds (a, B) of all samples: about C times the memory of the layers' outputs.

    Raises
    ------
    ValueError
        If the inputs are empty or not finite; if a layer does not see samples first or its weight
        is used outside the layer; if ``verify`` lacks targets.
    SamplesInteractError
        A ValueError: if the outputs for some samples change when the others are left out.

    Notes
    -----
    What a model detaches from the graph is invisible here, as it is to autograd's own Hessian.
    """
    chosen = layers_of(model, layers)
    check_inputs(inputs)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1.")
    hessian_factor = get_loss(loss).hessian_factor
    outputs: list[Tensor] = []
    recorded: dict[str, LayerLinearization] = {}
    with evaluation(model) as parameters:
        for start in range(0, len(inputs), chunk_size):
            stop = min(start + chunk_size, len(inputs))
            calls, chunk_outputs = _record(model, chosen, parameters, inputs[start:stop])
            outputs.append(chunk_outputs.detach())
            if start == 0:
                _refuse_interaction(model, parameters, inputs[start:stop], outputs[0])
                recorded = _allocate(calls, chunk_outputs, parameters, chosen, len(inputs))
            _fill(recorded, calls, chunk_outputs, slice(start, stop))
    everything = torch.cat(outputs)
    factor = hessian_factor(everything)
    for layer in recorded.values():
        layer.hessian_factor = factor
        layer.memory_budget = memory_budget
    result = Linearization(everything, recorded, loss)
    if layers is not None:
        missing = [name for name in layers if name not in recorded]
        if missing:
            raise ValueError(
                f"layers={missing} share the weight of another layer or are not "
                f"called by the forward pass: leave them out."
            )
    if verify:
        _verify(model, inputs, targets, result)
    return result


def _record(
    model: nn.Module, chosen: dict[str, nn.Module], parameters: dict[str, Tensor], inputs: Tensor
) -> tuple[list[_Call], Tensor]:
    calls: list[_Call] = []
    handles = []

    def hook_for(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            calls.append(_Call(name, module, arguments[0], output))
            # A copy goes on, so that an in-place activation leaves the recorded one alone.
            return output.clone()

        return hook

    try:
        for name, module in chosen.items():
            handles.append(module.register_forward_hook(hook_for(name), prepend=True))
        outputs = functional_call(model, parameters, (inputs,))
    finally:
        for handle in handles:
            handle.remove()
    check_outputs(outputs, len(inputs))
    for call in calls:
        if call.inputs.shape[0] != len(inputs) or (
            not isinstance(call.module, nn.Linear)
            and call.inputs.ndim != len(call.module.kernel_size) + 2  # type: ignore[arg-type]
        ):
            raise ValueError(
                f"layer {call.name} sees an input of shape {tuple(call.inputs.shape)} for "
                f"{len(inputs)} samples: reshape in the model so that samples come first."
            )
    return calls, outputs


def _refuse_interaction(
    model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor, outputs: Tensor
) -> None:
    """Raise if the outputs of some samples change when the others are left out."""
    if len(inputs) < 2:
        return
    half = (len(inputs) + 1) // 2
    with torch.no_grad():
        alone = functional_call(model, parameters, (inputs[:half],))
    tolerance = torch.finfo(outputs.dtype).eps ** 0.5
    if not torch.allclose(alone, outputs[:half], rtol=tolerance, atol=tolerance):
        raise SamplesInteractError(
            "model gives other outputs for the same samples in another batch: it mixes samples "
            "(batch statistics?) or is random in evaluation mode; freeze that part first."
        )


def _allocate(
    calls: list[_Call],
    outputs: Tensor,
    parameters: dict[str, Tensor],
    chosen: dict[str, nn.Module],
    n: int,
) -> dict[str, LayerLinearization]:
    """Group the calls by weight, reserve room for all samples and judge each layer."""
    graph = RecordedGraph(outputs.grad_fn)
    weights = {id(module): module.get_parameter("weight") for module in chosen.values()}
    first_name: dict[int, str] = {}
    layers: dict[str, LayerLinearization] = {}
    grouped: dict[str, list[_Call]] = {}
    for call in calls:
        weight = weights[id(call.module)]
        name = first_name.setdefault(id(weight), call.name)
        call.name = name
        grouped.setdefault(name, []).append(call)
    leaf_of = _leaves_by_module(chosen, parameters)
    for name, uses in grouped.items():
        obstacle = _judge(graph, outputs, uses, leaf_of[name], name)
        layer = LayerLinearization(
            name, leaf_of[name].shape, outputs.new_zeros(0, 0, 0), obstacle, GIBIBYTE
        )
        for use in uses:
            inputs = use.inputs.new_empty(n, *use.inputs.shape[1:])
            jacobian = outputs.new_empty(n, outputs.shape[1], *use.preactivation.shape[1:])
            layer.uses.append(LayerUse(use.module, inputs.detach(), jacobian))
        layers[name] = layer
    return layers


def _leaves_by_module(
    chosen: dict[str, nn.Module], parameters: dict[str, Tensor]
) -> dict[str, Tensor]:
    by_storage = {parameter.data_ptr(): parameter for parameter in parameters.values()}
    return {
        name: by_storage[module.get_parameter("weight").data_ptr()]
        for name, module in chosen.items()
    }


def _judge(
    graph: RecordedGraph, outputs: Tensor, uses: list[_Call], weight: Tensor, name: str
) -> str | None:
    """Return why the layer's block may differ from its Hessian block, None if it cannot."""
    leaf = torch.autograd.graph.get_gradient_edge(weight).node
    preactivations = [use.preactivation.grad_fn for use in uses]
    if outputs.grad_fn in graph.dependents([leaf], avoiding=preactivations):
        raise ValueError(
            f"the weight of layer {name} is also used outside the layer: "
            f"measure it with the Hessian products of paperkit.linearize instead."
        )
    depends_on_weight = graph.dependents([leaf])
    if any(use.inputs.grad_fn in depends_on_weight for use in uses):
        return "an input of the layer depends on the layer's own weight"
    return graph.obstacle(preactivations)


def _fill(
    layers: dict[str, LayerLinearization], calls: list[_Call], outputs: Tensor, samples: slice
) -> None:
    """Run one backward pass for each output and store the results of this chunk."""
    targets = []
    counters = dict.fromkeys(layers, 0)
    for call in calls:
        use = layers[call.name].uses[counters[call.name]]
        counters[call.name] += 1
        use.inputs[samples] = call.inputs.detach()
        targets.append(use.output_jacobian[samples])
    sources = [call.preactivation for call in calls]
    num_outputs = outputs.shape[1]
    seed = torch.zeros_like(outputs)
    for c in range(num_outputs):
        seed.zero_()[:, c] = 1.0
        gradients = torch.autograd.grad(
            outputs,
            sources,
            seed,
            retain_graph=c + 1 < num_outputs,
            allow_unused=True,
            materialize_grads=True,
        )
        for target, gradient in zip(targets, gradients, strict=True):
            target[:, c] = gradient


def _verify(
    model: nn.Module, inputs: Tensor, targets: Tensor | None, result: Linearization
) -> None:
    """Compare one probe of each exact block with autograd; demote the block where they differ."""
    if targets is None:
        raise ValueError("verify=True needs targets: pass the labels of the inputs.")
    check_targets(targets, result.outputs, result.loss)
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
