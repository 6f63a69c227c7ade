"""The Hessian blocks of a network's weights, read off layers' pairs where these exist."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from paperkit.linearize.costs import grouped_layers
from paperkit.linearize.layer import LayerLinearization
from paperkit.linearize.layer_types import layer_type, layout_like
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.linearize import linearize
from paperkit.linearize.weights import Weight, WeightBlock, chosen_weights
from paperkit.memory import GIBIBYTE
from paperkit.network.evaluation import evaluation
from paperkit.network.losses import LossLike
from paperkit.network.network import Network, network_outputs
from paperkit.network.problem import smallest_batch

Block = LayerLinearization | WeightBlock


class Blocks:
    """The blocks of some weights on a batch, a group of layers at a time.

    Iterating yields those that have pairs, as many as fit the memory budget together; after that
    :meth:`remaining` returns all others.

    Parameters
    ----------
    model : nn.Module
        Any network.
    data : tuple of Tensor
        Inputs and targets.
    loss : Loss
        Loss that is already bound to the data.
    layers : sequence of str, optional
        Names of layers or of weights that are no layer's own; default all.
    memory_budget : int
        Bytes for the pairs of a group and for temporaries, half of it each.
    chunk_size : int, optional
        Number of samples of a forward pass; default as many as the budget allows.

    Raises
    ------
    ValueError
        If a name is unknown, or there is none.
    """

    def __init__(
        self,
        model: nn.Module,
        data: tuple[Any, Tensor],
        loss: LossLike,
        layers: Sequence[str] | None = None,
        *,
        memory_budget: int = GIBIBYTE,
        chunk_size: int | None = None,
    ) -> None:
        self.model, self.data, self.loss = model, data, loss
        self.named = layers is not None
        self.weights: dict[str, Weight] = chosen_weights(model, layers)
        self.memory_budget, self.chunk_size = memory_budget, chunk_size
        readable = [name for name, weight in self.weights.items() if weight.obstacle is None]
        self.groups: list[list[str]] = []
        self.reasons: dict[str, str] = {}
        if readable:
            self.groups, self.reasons = grouped_layers(model, data[0], readable, memory_budget)
        # Names under which the weights that are linearized so far are measured, by parameter.
        self.covered: dict[str, str] = {}

    def linearization(self, group: Sequence[str], samples: int | None = None) -> Linearization:
        """Linearize a group of layers, and note which weights it covers.

        With ``samples`` only the first ones are run. The result then tells what the layers are. Its
        loss is a squared error, whose Hessian factor is the same for all samples and takes no
        memory.
        """
        inputs, targets = self.data[0][:samples], self.data[1][:samples]
        only_some = samples is not None
        # A tied weight is named under all its names. Otherwise its other uses would lie outside of
        # the chosen layers, and it would be left out.
        chosen = {self.weights[name].parameter for name in group}
        group = [
            name
            for name, weight in chosen_weights(self.model).items()
            if weight.obstacle is None and weight.parameter in chosen
        ]
        linearization = linearize(
            self.model,
            inputs,
            "half_squared_error" if only_some else self.loss,
            group,
            targets=None if only_some else targets,
            strict=False,
            chunk_size=self.chunk_size,
            memory_budget=self.memory_budget,
        )
        linearization = self._rename_layers(linearization)
        self.note(linearization)
        return linearization

    def _rename_layers(self, linearization: Linearization) -> Linearization:
        """Give each layer the name that was asked for; a tied one may have another of its names."""
        layers = {}
        for name, layer in linearization.layers.items():
            if name not in self.weights:
                chosen_names = (
                    n for n, weight in self.weights.items() if weight.parameter == layer.weight_name
                )
                layer.name = next(chosen_names, name)
            layers[layer.name] = layer
        return replace(linearization, layers=layers)

    def note(self, linearization: Linearization) -> None:
        """Note which weights a linearization covers, and why it leaves others out."""
        self.reasons |= linearization.left_out
        self.covered |= {layer.weight_name: n for n, layer in linearization.layers.items()}

    def __iter__(self) -> Iterator[dict[str, LayerLinearization]]:
        for group in self.groups:
            yield self.linearization(group).layers

    def remaining(self) -> dict[str, WeightBlock]:
        """Return the blocks of the weights that are not covered so far, each weight once."""
        missing: dict[str, Weight] = {}
        covered = set(self.covered)
        for name, weight in self.weights.items():
            if weight.parameter not in covered:
                covered.add(weight.parameter)
                missing[name] = weight
        if not missing:
            return {}
        sizes = len(self.data[0]), num_outputs(self.model, self.data[0])
        return {
            name: WeightBlock(
                name, weight.parameter, weight.shape, self._reason(weight), *sizes, not self.named
            )
            for name, weight in missing.items()
        }

    def _reason(self, weight: Weight) -> str:
        return weight.obstacle or self.reasons.get(weight.name, "the forward pass does not call it")

    def shared(self) -> Mapping[str, str]:
        """Return the names whose weight a layer of another name covers, with the reason."""
        if not self.named:
            return {}
        return {
            name: f"it shares the weight of layer {self.covered[weight.parameter]}"
            for name, weight in self.weights.items()
            if self.covered.get(weight.parameter, name) != name
        }


def num_outputs(model: nn.Module, inputs: Any) -> int:
    """Return the number C of a network's outputs."""
    network = Network.of(model)
    with evaluation(network) as parameters, torch.no_grad():
        few = smallest_batch(network, parameters, inputs)
        return network_outputs(network, parameters, few).shape[1]


def last_layer(model: nn.Module, inputs: Any) -> str:
    """Return the name of the linear or convolution layer that a forward pass calls last.

    Subclasses of these count, whatever their forward pass does. A layer that is part of another
    module counts only if that module calls it.

    Raises
    ------
    ValueError
        If it calls none.
    """
    network = Network.of(model)
    called: list[str] = []
    handles = []
    try:
        for name, module in network.named_modules():
            weight = module._parameters.get("weight")
            if weight is None or type(module) is nn.Embedding:
                continue
            if layer_type(module) is not None or layout_like(module, weight) is not None:
                hook = functools.partial(_append_name, called, name)
                handles.append(module.register_forward_hook(hook))
        num_outputs(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise ValueError("layers=None: the forward pass calls no linear or convolution layer.")
    return called[-1]


def _append_name(called: list[str], name: str, *_: Any) -> None:
    called.append(name)
