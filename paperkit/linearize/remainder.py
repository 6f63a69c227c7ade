"""Output Jacobians of the parameters that are not the weight of a linear or convolution layer.

Biases, and the scales and shifts of normalisation layers, follow from the Jacobian B of the outputs
in the output of their own module: they are summed over positions, the scales after multiplication
with the normalised input. Every other parameter (an embedding, the projections of an attention
module, a parameter used by hand) is differentiated one sample at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional

NORMALIZATION_TYPES = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass
class NormalizationCall:
    """A recorded call of a normalisation layer."""

    module: nn.Module
    normalized: Tensor
    edge: GradientEdge


def normalized_input(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the module's scale multiplies: the input, normalised in evaluation mode."""
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


def channel_sum(module: nn.Module, jacobian: Tensor) -> Tensor:
    r"""Sum (n, C, \*output shape) over positions: (n, C, entries of the module's bias)."""
    if isinstance(module, nn.Linear | nn.LayerNorm):
        axes = len(module.normalized_shape) if isinstance(module, nn.LayerNorm) else 1
        positions = jacobian.ndim - 2 - axes
        if positions:
            jacobian = jacobian.flatten(2, 1 + positions).sum(2)
        return jacobian.flatten(2)
    return jacobian.flatten(3).sum(3) if jacobian.ndim > 3 else jacobian


def per_sample_jacobians(
    model: nn.Module, parameters: dict[str, Tensor], names: Sequence[str], inputs: Tensor
) -> dict[str, Tensor]:
    """Differentiate the outputs in some parameters, each sample alone: name → (n, C, d_p).

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    parameters : dict of str to Tensor
        All of its parameters, as yielded by :func:`paperkit.linearize.evaluation.evaluation`.
    names : sequence of str
        Which to differentiate.
    inputs : Tensor
        Shape (n, …).
    """
    chosen = {name: parameters[name].detach() for name in names}
    fixed = {name: value.detach() for name, value in parameters.items() if name not in chosen}

    def outputs(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, {**fixed, **values}, (sample.unsqueeze(0),)).squeeze(0)

    jacobian = jacrev(outputs)
    try:
        result = vmap(jacobian, in_dims=(None, 0))(chosen, inputs)
    except (RuntimeError, NotImplementedError):  # an operation without a batching rule
        samples = [jacobian(chosen, sample) for sample in inputs]
        result = {name: torch.stack([sample[name] for sample in samples]) for name in chosen}
    return {name: value.detach().flatten(2) for name, value in result.items()}
