"""The Hessian blocks of a network's weights: from layers' pairs where there are some."""

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
        Settled.
    layers : sequence of str, optional
        Names, as in :func:`paperkit.linearize.weights.chosen_weights`; default all.
    memory_budget : int
        Bytes.
    chunk_size : int, optional
        As in :func:`paperkit.linearize.linearize`.

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
        readable = [name for name, one in self.weights.items() if one.obstacle is None]
        self.groups: list[list[str]] = []
        self.reasons: dict[str, str] = {}
        if readable:
            self.groups, self.reasons = grouped_layers(model, data[0], readable, memory_budget)
        # The names under which parameters are measured.
        self.covered: dict[str, str] = {}

    def linearization(self, group: Sequence[str], samples: int | None = None) -> Linearization:
        """Linearize a group of layers, and note what it covers.

        On the first samples alone it tells what the layers are, under a loss whose factor is small.
        """
        inputs, targets = self.data[0][:samples], self.data[1][:samples]
        few = samples is not None
        # All names of a weight, or it would be used outside of the layers.
        own = {self.weights[name].parameter for name in group}
        group = [
            name
            for name, one in chosen_weights(self.model).items()
            if one.obstacle is None and one.parameter in own
        ]
        found = linearize(
            self.model,
            inputs,
            "half_squared_error" if few else self.loss,
            group,
            targets=None if few else targets,
            strict=False,
            chunk_size=self.chunk_size,
            memory_budget=self.memory_budget,
        )
        found = self._under_chosen_names(found)
        self.note(found)
        return found

    def _under_chosen_names(self, linearization: Linearization) -> Linearization:
        """Call a layer as it was asked for, where the forward pass calls it first by another."""
        layers = {}
        for name, layer in linearization.layers.items():
            if name not in self.weights:
                others = (
                    n for n, one in self.weights.items() if one.parameter == layer.weight_name
                )
                layer.name = next(others, name)
            layers[layer.name] = layer
        return replace(linearization, layers=layers)

    def note(self, linearization: Linearization) -> None:
        """Note what a linearization covers, and what it leaves out."""
        self.reasons |= linearization.left_out
        self.covered |= {layer.weight_name: n for n, layer in linearization.layers.items()}

    def __iter__(self) -> Iterator[dict[str, LayerLinearization]]:
        for group in self.groups:
            yield self.linearization(group).layers

    def remaining(self) -> dict[str, WeightBlock]:
        """Return the blocks of the weights that are not covered so far, each weight once."""
        missing: dict[str, Weight] = {}
        seen = set(self.covered)
        for name, one in self.weights.items():
            if one.parameter not in seen:
                seen.add(one.parameter)
                missing[name] = one
        if not missing:
            return {}
        sizes = len(self.data[0]), num_outputs(self.model, self.data[0])
        return {
            name: WeightBlock(
                name, one.parameter, one.shape, self._reason(one), *sizes, not self.named
            )
            for name, one in missing.items()
        }

    def _reason(self, one: Weight) -> str:
        return one.obstacle or self.reasons.get(one.name, "the forward pass does not call it")

    def shared(self) -> Mapping[str, str]:
        """Return the names that were asked for and are another covered layer's too, and why."""
        if not self.named:
            return {}
        return {
            name: f"it shares the weight of layer {self.covered[one.parameter]}"
            for name, one in self.weights.items()
            if self.covered.get(one.parameter, name) != name
        }


def num_outputs(model: nn.Module, inputs: Any) -> int:
    """Return the number C of a network's outputs."""
    network = Network.of(model)
    with evaluation(network) as parameters, torch.no_grad():
        few = smallest_batch(network, parameters, inputs)
        return network_outputs(network, parameters, few).shape[1]


def last_layer(model: nn.Module, inputs: Any) -> str:
    """Return the name of the linear or convolution layer that a forward pass calls last.

    Subclasses of these count, whatever their forward pass does; layers within others that do not
    call them do not.

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
                hook = functools.partial(_note, called, name)
                handles.append(module.register_forward_hook(hook))
        num_outputs(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        raise ValueError("layers=None: the forward pass calls no linear or convolution layer.")
    return called[-1]


def _note(called: list[str], name: str, *_: Any) -> None:
    called.append(name)
