"""Output Jacobians of the parameters that are not the weight of a linear or convolution layer.

Biases, and the scales and shifts of normalisation layers, follow from the Jacobian B of the outputs
in the output of their own module: they are summed over positions, the scales after multiplication
with the normalised input. Every other parameter (an embedding, the projections of an attention
module, those of a layer with a forward pass of its own) is differentiated one sample at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.func import jacrev, vmap
from torch.nn import functional

from paperkit.linearize.layer_types import is_unmodified
from paperkit.network.network import network_outputs
from paperkit.network.samples import Inputs

_NORMALIZATION_TYPES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
)


def is_normalization(module: nn.Module) -> bool:
    """Whether a module is exactly a normalisation layer that is known here, with a scale."""
    return any(is_unmodified(module, cls) for cls in _NORMALIZATION_TYPES)


@dataclass
class NormalizationCall:
    """A recorded call of a normalisation layer.

    Attributes
    ----------
    name : str
        Name of the module.
    module : nn.Module
        The layer.
    normalized : Tensor
        Normalised input, which the layer's scale multiplies.
    edge : GradientEdge or None
        Edge of the output in the graph; None where no gradient reaches it.
    """

    name: str
    module: nn.Module
    normalized: Tensor
    edge: GradientEdge | None


def normalized_input(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return the input normalised in evaluation mode, which the module's scale multiplies."""
    if isinstance(module, nn.LayerNorm):
        return functional.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
    if isinstance(module, nn.GroupNorm):
        return functional.group_norm(inputs, module.num_groups, None, None, module.eps)
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    return functional.batch_norm(
        inputs,
        module.running_mean,
        module.running_var,
        training=module.running_mean is None,
        eps=module.eps,
    )


def num_affine(module: nn.Module) -> int:
    """Return the number of a normalisation's scales, which is that of its shifts."""
    return max((p.numel() for p in module.parameters(recurse=False)), default=0)


def affine_sums(module: nn.Module, normalized: Tensor, gradient: Tensor) -> Tensor:
    r"""Return the gradients in a normalisation's scales and shifts, sample by sample.

    Parameters
    ----------
    module : nn.Module
        The layer.
    normalized, gradient : Tensor
        Normalised input, and the gradient in the layer's output, (n, …).

    Returns
    -------
    Tensor
        Shape (n, 2, entries).
    """
    if num_affine(module) == 0:
        return gradient.new_empty(len(gradient), 2, 0)
    parts = (gradient * normalized, gradient)
    return torch.stack([_sum_positions(module, part) for part in parts], dim=1)


def _sum_positions(module: nn.Module, gradient: Tensor) -> Tensor:
    """Sum (n, …) over positions: (n, entries)."""
    if isinstance(module, nn.LayerNorm):
        positions = gradient.ndim - 1 - len(module.normalized_shape)
        return (gradient.flatten(1, positions).sum(1) if positions else gradient).flatten(1)
    return gradient.flatten(2).sum(2) if gradient.ndim > 2 else gradient


def per_sample_jacobians(
    model: nn.Module, parameters: dict[str, Tensor], names: Sequence[str], inputs: Inputs
) -> dict[str, Tensor]:
    """Differentiate the outputs in some parameters, each sample alone: name → (n, C, entries).

    All samples are done at once where torch has a batching rule for every operation. This result is
    compared with plain backward passes on the first sample. Where there is no rule, or the results
    differ, the samples are done one after the other.

    Parameters
    ----------
    model : nn.Module
        Network in evaluation mode.
    parameters : dict of str to Tensor
        All of its parameters, as yielded by :func:`paperkit.network.evaluation.evaluation`.
    names : sequence of str
        Names of the parameters to differentiate in.
    inputs : Tensor or Samples
        The n samples.
    """
    first = _backward_jacobian(model, parameters, names, inputs[:1])
    if len(inputs) == 1:
        return first
    if isinstance(inputs, Tensor):
        try:
            result = _vectorized_jacobians(model, parameters, names, inputs)
        # An operation may lack a batching rule, or the model's code may take only plain tensors.
        except Exception:
            result = {}
        if result and all(_agree(result[name][:1], first[name]) for name in names):
            return result
    samples = [first] + [
        _backward_jacobian(model, parameters, names, inputs[i : i + 1])
        for i in range(1, len(inputs))
    ]
    return {name: torch.cat([sample[name] for sample in samples]) for name in names}


def _agree(values: Tensor, expected: Tensor) -> bool:
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * float(expected.norm())
    return float((values - expected).norm()) <= tolerance


def _vectorized_jacobians(
    model: nn.Module, parameters: dict[str, Tensor], names: Sequence[str], inputs: Tensor
) -> dict[str, Tensor]:
    chosen = {name: parameters[name].detach() for name in names}

    def outputs(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return network_outputs(model, values, sample.unsqueeze(0)).squeeze(0)

    with torch.no_grad():  # the transforms record gradients by themselves
        result = vmap(jacrev(outputs), in_dims=(None, 0))(chosen, inputs)
    return {name: value.flatten(2) for name, value in result.items()}


def _backward_jacobian(
    model: nn.Module, parameters: dict[str, Tensor], names: Sequence[str], sample: Inputs
) -> dict[str, Tensor]:
    """Return ∂f/∂θ of a sample, (1, C, entries) each, by a backward pass for each output."""
    outputs = network_outputs(model, parameters, sample)[0]
    leaves = [parameters[name] for name in names]
    rows = [
        torch.autograd.grad(
            output, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for output in outputs
    ]
    # A parameter may have no dimension, or no entry.
    parts = (
        torch.stack(part).reshape(1, len(part), leaf.numel())
        for part, leaf in zip(zip(*rows, strict=True), leaves, strict=True)
    )
    return dict(zip(names, parts, strict=True))
