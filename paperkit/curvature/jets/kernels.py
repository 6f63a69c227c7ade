"""Linear and convolution layers with several weights or inputs at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Number of output channels below which a convolution leaves most of a processor's vector units
# idle.
_FEW_CHANNELS = 16


class Dense:
    """Product W x of a linear layer and its transposes, also for k weights or inputs at a time."""

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply x (m, …, in) with a weight (out, in)."""
        return functional.linear(x, weight)

    def pull_inputs(self, g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Pull g (m, …, out) back to the inputs."""
        return g @ weight

    def products(self, x: Tensor, weights: Tensor) -> Tensor:
        """Multiply x (m, …, in) with weights (k, out, in): (k, m, …, out)."""
        flat = torch.matmul(x.flatten(0, -2), weights.transpose(1, 2))
        return flat.unflatten(1, x.shape[:-1])

    def pull_inputs_by_each(self, g: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """Pull g (m, …, out) back through weights (k, out, in): (k, m, …, in)."""
        return torch.matmul(g.flatten(0, -2), weights).unflatten(1, g.shape[:-1])

    def pull_weights(self, g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Pull each of g (k, m, …, out) back to the weight at x (m, …, in): (k, out, in)."""
        return torch.matmul(g.flatten(1, -2).transpose(1, 2), x.flatten(0, -2))

    def pull_weights_at_each(self, g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Pull g (m, …, out) back to the weight at each of x (k, m, …, in): (k, out, in)."""
        return torch.matmul(g.flatten(0, -2).T, x.flatten(1, -2))

    def pull_bias(self, g: Tensor) -> Tensor:
        """Sum (k, m, …, C) over everything but k and C."""
        return g.flatten(1, -2).sum(1)

    def shaped_bias(self, bias: Tensor, dimensions: int) -> Tensor:
        """Give biases (k, C) the shape in which they are added to (k, m, …, C)."""
        return bias.reshape(len(bias), *(1,) * (dimensions - 2), -1)

    def prepare(self, x: Tensor) -> Tensor:
        """Give the stack the layout in which products are fastest."""
        return x


@dataclass(frozen=True)
class Convolution:
    """Product W ∗ x of a convolution and its transposes, also for k weights or inputs at a time."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve x (m, in, …) with a weight (out, in, …)."""
        zeros = (0,) * len(self.stride)
        return torch.convolution(
            x, weight, None, self.stride, self.padding, self.dilation, False, zeros, self.groups
        )

    def _pull(self, g: Tensor, weight: Tensor, x: Tensor, needs: list[bool]) -> Sequence[Tensor]:
        zeros = (0,) * len(self.stride)
        geometry = (self.stride, self.padding, self.dilation, False, zeros, self.groups)
        return torch.ops.aten.convolution_backward(g, x, weight, None, *geometry, needs)

    def pull_inputs(self, g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Pull g (m, out, …) back to the inputs."""
        return self._pull(g, weight, x, [True, False, False])[0]

    def pull_weight(self, g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Pull g (m, out, …) back to the weight."""
        return self._pull(g, weight, x, [False, True, False])[1]

    def _is_joined(self, x: Tensor, channels: int) -> bool:
        """Whether a single convolution with k times the channels is faster than k convolutions."""
        return self.groups == 1 and (channels < _FEW_CHANNELS or not _has_channels_last(x))

    def products(self, x: Tensor, weights: Tensor) -> Iterable[Tensor]:
        """Convolve x (m, in, …) with weights (k, out, in, …): (k, m, out, …)."""
        if self._is_joined(x, weights.shape[1]):
            return _split_channels(self(x, weights.flatten(0, 1)), len(weights))
        return (self(x, weight) for weight in weights)

    def pull_inputs_by_each(self, g: Tensor, weights: Tensor, x: Tensor) -> Iterable[Tensor]:
        """Pull g (m, out, …) back through weights (k, out, in, …): (k, m, in, …)."""
        if self._is_joined(x, weights.shape[2]):
            k, inputs = len(weights), weights.shape[2]
            like = x.new_empty(len(x), k * inputs, *x.shape[2:])
            return _split_channels(self.pull_inputs(g, _join_channels(weights), like), k)
        return (self.pull_inputs(g, weight, x) for weight in weights)

    def pull_weights(self, g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Pull each of g (k, m, out, …) back to the weight at x (m, in, …): (k, out, in, …)."""
        if self._is_joined(x, weight.shape[0]):
            weights = weight.repeat(len(g), *(1,) * (weight.ndim - 1))
            return self.pull_weight(_join_channels(g), weights, x).unflatten(0, (len(g), -1))
        return torch.stack([self.pull_weight(part, weight, x) for part in g])

    def pull_weights_at_each(self, g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Pull g (m, out, …) back to the weight at each of x (k, m, in, …): (k, out, in, …)."""
        if self._is_joined(g, weight.shape[1]):
            weights = weight.repeat(1, len(x), *(1,) * (weight.ndim - 2))
            return _split_channels(self.pull_weight(g, weights, _join_channels(x)), len(x))
        return torch.stack([self.pull_weight(g, weight, part) for part in x])

    def pull_bias(self, g: Tensor) -> Tensor:
        """Sum (k, m, C, …) over everything but k and C."""
        return g.flatten(3).sum((1, 3))

    def shaped_bias(self, bias: Tensor, dimensions: int) -> Tensor:
        """Give biases (k, C) the shape in which they are added to (k, m, C, …)."""
        return bias.reshape(len(bias), 1, -1, *(1,) * (dimensions - 3))

    def prepare(self, x: Tensor) -> Tensor:
        """Give the stack the layout in which convolutions are fastest."""
        return x.contiguous(memory_format=torch.channels_last) if _has_channels_last(x) else x


def _has_channels_last(x: Tensor) -> bool:
    """Whether convolutions on x are fastest with the channels of a pixel side by side."""
    return x.ndim == 4 and x.device.type == "cpu" and x.dtype == torch.float32


def _accumulate(parts: Tensor, addends: Iterable[Tensor]) -> None:
    if isinstance(addends, Tensor):
        parts.add_(addends)
    else:
        for part, addend in zip(parts, addends, strict=True):
            part.add_(addend)


def _join_channels(parts: Tensor) -> Tensor:
    """Join the channels of k tensors: (k, m, C, …) → (m, k C, …)."""
    return parts.transpose(0, 1).flatten(1, 2)


def _split_channels(channels: Tensor, count: int) -> Tensor:
    """Split joined channels: (m, k C, …) → (k, m, C, …)."""
    return channels.unflatten(1, (count, -1)).transpose(0, 1)


class Affine(Function):
    """Compute the stack of a layer's output, W ∗ x + b, and pull its cotangents back.

    Weight and bias are parts (1 + k, …), or tensors without that axis if they are constant. The
    inputs are a stack ((1 + k) m, …), or m samples if they are constant.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kind: Dense | Convolution,
        constant: tuple[bool, bool, bool],
        count: int,
    ) -> Tensor:
        """Return the stack of the layer's output."""
        ctx.save_for_backward(x, weight)
        ctx.kind, ctx.constant, ctx.count = kind, constant, count
        # A gradient of the weight's value is needed only if the weight was computed from other
        # tensors. For a leaf, only the gradients of its derivatives are Hessian products.
        ctx.first_row = 0 if weight.grad_fn is not None else 1
        x_constant, weight_constant, bias_constant = constant
        if x_constant and weight_constant:
            values = kind(x, weight)
            stack = torch.cat([values, values.new_zeros(count * len(x), *values.shape[1:])])
        elif x_constant:
            stack = torch.cat(list(kind.products(x, weight)))
        elif weight_constant:
            stack = kind(x, weight)
        else:
            stack = kind(x, weight[0])
        parts = stack.unflatten(0, (1 + count, -1))
        if not x_constant and not weight_constant:
            values = x[: parts.shape[1]]
            _accumulate(parts[1:], kind.products(values, weight[1:]))
        if bias is not None:
            rows = parts[:1] if bias_constant else parts
            rows.add_(kind.shaped_bias(bias.reshape(len(rows), -1), rows.ndim))
        return stack

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Pull the stack of cotangents back to inputs, weight and bias."""
        x, weight = ctx.saved_tensors
        kind = ctx.kind
        x_constant, weight_constant, _ = ctx.constant
        g = kind.prepare(g)
        g_parts = g.unflatten(0, (1 + ctx.count, -1))
        m = g_parts.shape[1]
        values = x[:m]
        value = weight if weight_constant else weight[0]
        pulled_x = pulled_weight = pulled_bias = None
        if ctx.needs_input_grad[0]:
            pulled_x = kind.pull_inputs(g, value, x)
            if not weight_constant:
                pulled_changes = pulled_x.unflatten(0, (-1, m))[1:]
                by_each = kind.pull_inputs_by_each(g_parts[0], weight[1:], values)
                _accumulate(pulled_changes, by_each)
        if ctx.needs_input_grad[1]:
            first = ctx.first_row
            pulled_weight = torch.zeros_like(weight)
            pulled_weight[first:] = kind.pull_weights(g_parts[first:], value, values)
            if not x_constant:
                x_changes = x[m:].unflatten(0, (-1, m))
                pulled_weight[1:] += kind.pull_weights_at_each(g_parts[0], value, x_changes)
        if ctx.needs_input_grad[2]:
            pulled_bias = kind.pull_bias(g_parts)
        return pulled_x, pulled_weight, pulled_bias, None, None, None
