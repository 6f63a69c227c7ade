"""Values at the input of every layer, and the sums of them over the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from paperkit.estimators.passes import Chunk, Problem
from paperkit.estimators.result import Measurement
from paperkit.linearize.weights import warn_left_out

_NO_GRADIENT = "no gradient reaches its input"


@dataclass(frozen=True)
class LayerValues:
    """Each sample's values of a chunk by layer, (n,), and why other layers have none."""

    values: dict[str, Tensor]
    left_out: dict[str, str]


def problem_over_layers(
    layers: Sequence[str] | None, model: nn.Module, data: object, memory_budget: int
) -> Problem:
    """Return the problem of a measure of all layers together; targets may be of any kind."""
    return Problem.of(
        model,
        data,
        layers=layers,
        memory_budget=memory_budget,
        strict=layers is not None,
        with_targets=False,
    )


def at_layer_inputs(chunk: Chunk, function: Callable[[list[Tensor]], Tensor]) -> LayerValues:
    r"""Apply a function to the Jacobians in every layer's inputs.

    Parameters
    ----------
    chunk : Chunk
        A chunk with the Jacobians in the layers' inputs.
    function : callable
        Maps a layer's :math:`\partial f/\partial x_l`, (n, C, …) for each of its calls, to the
        samples' values (n,).
    """
    values: dict[str, Tensor] = {}
    left_out = chunk.problem.chosen(chunk.linearization.left_out)
    for name, layer in chunk.layers.items():
        found = [use.input_jacobian for use in layer.uses if use.input_jacobian is not None]
        if len(found) == len(layer.uses):
            values[name] = function(found)
        else:
            left_out[name] = _NO_GRADIENT
    return LayerValues(values, left_out)


def over_layers(
    total: Callable[[dict[str, Tensor]], Measurement],
    parts: Sequence[LayerValues],
    problem: Problem,
) -> Measurement:
    """Return a measure of all layers together, which says what it lacks.

    Parameters
    ----------
    total : callable
        Maps each layer's and sample's values, (n,) by layer, to the measure.
    parts : sequence of LayerValues
        The chunks' values, in the order of the samples.
    problem : Problem
        The problem; where it is strict, no layer that is named may be left out.

    Raises
    ------
    ValueError
        If one is, or no layer has a value.

    Warns
    -----
    LeftOutWarning
        If a layer is left out.
    """
    left_out = parts[-1].left_out if parts else {}
    by_layer = {
        name: torch.cat([part.values[name] for part in parts])
        for name in (parts[-1].values if parts else ())
    }
    if left_out and (problem.strict or not by_layer):
        name, reason = next(iter(left_out.items()))
        raise ValueError(f"layers: {name} cannot be measured: {reason}.")
    if not by_layer:
        raise ValueError("layers: the model has none of a known type, linear or convolution.")
    result = total(by_layer)
    if not left_out:
        return result
    warn_left_out(result.measure, left_out)
    return replace(result, assumptions={**result.assumptions, "left_out": left_out})
