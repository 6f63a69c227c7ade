"""Layers, which run when their result is first needed, with the normalisation that follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from paperkit.curvature.jets.arithmetic import add_parts, multiply_parts
from paperkit.curvature.jets.jet import Jet, NoRuleError, ParameterJet, Rule, count_of, parts_of
from paperkit.curvature.jets.kernels import Affine, Convolution, Dense


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, to be run on its arguments.

    Attributes
    ----------
    kind : Dense or Convolution
        Product of weight and inputs.
    inputs : Tensor or Jet
        Inputs of the layer; a tensor is constant.
    weight, bias : Tensor or None
        Parts (1 + k, …); those of a constant are (1, …).
    """

    kind: Dense | Convolution
    inputs: Tensor | Jet
    weight: Tensor
    bias: Tensor | None

    def run(self, count: int) -> Tensor:
        """Return the stack of the output."""
        x = self.inputs.stack if isinstance(self.inputs, Jet) else self.inputs
        constant = (
            x is self.inputs,
            len(self.weight) == 1,
            self.bias is None or len(self.bias) == 1,
        )
        weight = self.weight[0] if constant[1] else self.weight
        bias = self.bias[0] if constant[2] and self.bias is not None else self.bias
        return Affine.apply(self.kind.prepare(x), weight, bias, self.kind, constant, count)

    @property
    def has_channels_second(self) -> bool:
        """Whether channels are the output's second axis, where normalisation expects them."""
        return isinstance(self.kind, Convolution) or self.inputs.dim() == 2

    def followed_by(self, factor: Tensor, shift: Tensor) -> Layer:
        """Return the layer with its channels multiplied by a factor and shifted.

        Factor and shift are parts, (1, C) or (1 + k, C).
        """
        shape = (len(factor), -1, *(1,) * (self.weight.ndim - 2))
        weight = multiply_parts(self.weight, factor.reshape(shape))
        bias = shift if self.bias is None else add_parts(multiply_parts(self.bias, factor), shift)
        return replace(self, weight=weight, bias=bias)


def _layer(kind: Any, x: Any, weight: Tensor, bias: Tensor | None) -> Jet:
    if isinstance(x, ParameterJet):
        raise NoRuleError("a layer of a parameter has no rule.")
    if x.dim() < 2:
        raise NoRuleError("a layer without a dimension for samples has no rule.")
    layer = Layer(kind, x, parts_of(weight), None if bias is None else parts_of(bias))
    return Jet(layer, count_of(x, weight, bias))


def linear(input: Any, weight: Tensor, bias: Tensor | None = None) -> Jet:
    """Apply a linear layer."""
    return _layer(Dense(), input, weight, bias)


def convolution(dimensions: int) -> Rule:
    """Return the rule of the convolution over so many dimensions."""

    def rule(
        input: Any,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Jet:
        def each(value: Any) -> tuple[int, ...]:
            return (value,) * dimensions if isinstance(value, int) else tuple(value)

        if input.dim() != dimensions + 2:
            raise NoRuleError("a convolution without a dimension for samples has no rule.")
        dilation = each(dilation)
        if padding == "valid":
            padding = 0
        elif padding == "same":
            totals = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
            if any(total % 2 for total in totals):
                raise NoRuleError("padding that differs between the ends has no rule.")
            padding = [total // 2 for total in totals]
        kind = Convolution(each(stride), each(padding), dilation, groups)
        return _layer(kind, input, weight, bias)

    return rule


def batch_norm(
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Jet:
    """Fold normalisation by frozen statistics into the layer before it, or scale and shift."""
    if training or running_mean is None or running_var is None:
        raise NoRuleError("normalisation by the statistics of the batch has no rule.")
    factor = torch.rsqrt(running_var + eps).unsqueeze(0)
    if weight is not None:
        factor = factor * parts_of(weight)
    shift = -running_mean * factor
    if bias is not None:
        shift = add_parts(shift, parts_of(bias))
    pending = input.layer if isinstance(input, Jet) else None
    if isinstance(pending, Layer) and pending.has_channels_second:
        return Jet(pending.followed_by(factor, shift), input.count)
    channels = (1, -1, *(1,) * (input.dim() - 2))
    x = input.parts if isinstance(input, Jet) else input.unsqueeze(0)
    scaled = multiply_parts(x, factor.reshape(len(factor), *channels))
    parts = add_parts(scaled, shift.reshape(len(shift), *channels))
    return Jet(parts.flatten(0, 1), count_of(input, weight, bias))
