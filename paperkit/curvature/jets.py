r"""Hessian products of a network, several at a time, from one pass forward and one back.

The *jet* of a quantity x(θ) along vectors :math:`v_1, \dots, v_k` is the stack of its value and its
k derivatives :math:`\dot x_j`. A pass forward with jets is forward mode for all vectors. A pass
back with the jets of the cotangents, :math:`(\bar x, \dot{\bar x}_1, \dots, \dot{\bar x}_k)`, gives
the gradient in the parameters and its k derivatives, the Hessian products (forward over reverse,
Pearlmutter 1994). Autograd's own tape serves for the pass back, with a stack in place of each
tensor, where every operation has its rule for jets:

* An operation that is linear and treats samples alike is its own rule, forward and back: the stack
  is a longer batch.
* A product :math:`y = W * x`, also a convolution, has :math:`\dot y = W * \dot x + \dot W * x`, and
  its two products on the way back likewise: six for each vector, where a gradient takes three.
* A function of each entry has :math:`\dot y = φ'(x)\, \dot x` and, on the way back,
  :math:`\dot{\bar x} = φ'(x)\, \dot{\bar y} + φ''(x)\, \dot x\, \bar y`.
* Normalisation by frozen statistics is folded into the weight of the layer before it, where the
  product rule costs nothing.

An operation without a rule raises :class:`NoRuleError`, and the caller takes another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

Rule = Callable[..., Any]

# Number of output channels below which a convolution leaves most of a processor's vector units
# idle.
_FEW_CHANNELS = 16


class NoRuleError(Exception):
    """An operation of the network has no rule here; products must be computed in another way."""


class Jet:
    """Values and their k derivatives, with which a network computes in place of a tensor.

    A jet can be passed to the functions of torch that have a rule, and has those attributes and
    methods of a tensor that a model's own code is likely to use.

    Parameters
    ----------
    source : Tensor or Layer
        Stack ((1 + k) m, …) of m samples' values and then their derivatives along each vector; or a
        layer, which runs when its stack is first asked for.
    count : int
        Number k of derivatives.

    Raises
    ------
    NoRuleError
        If no gradients are recorded, as under no_grad or in the forward pass of a custom Function.
        The jet would follow derivatives there that autograd does not.
    """

    __slots__ = ("_shared", "_source", "count")

    def __init__(self, source: Tensor | Layer, count: int) -> None:
        if not torch.is_grad_enabled():
            raise NoRuleError("what records no gradients has no rule for jets.")
        self._source = source
        self.count = count
        # Whether another jet shares the entries. An operation in place would change that one too,
        # so it is refused.
        self._shared = False

    @property
    def layer(self) -> Layer | None:
        """The layer that has still to run; None if the stack exists."""
        return self._source if isinstance(self._source, Layer) else None

    @property
    def stack(self) -> Tensor:
        """Values and derivatives, ((1 + k) m, …)."""
        if isinstance(self._source, Layer):
            self._source = self._source.run(self.count)
        return self._source

    @property
    def parts(self) -> Tensor:
        """Values and derivatives apart, (1 + k, m, …)."""
        return self.stack.unflatten(0, (1 + self.count, -1))

    def set_(self, other: Jet) -> Jet:
        """Take the values of another jet, as the operand of an operation in place does."""
        if self._shared:
            raise NoRuleError("an operation in place on a view, or on what has one, has no rule.")
        self._source = other._source
        return self

    @property
    def shape(self) -> torch.Size:
        """The shape that the model expects, (m, …)."""
        return self.parts.shape[1:]

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or one of its entries."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Return the number of dimensions; a layer need not run for it."""
        return self.layer.inputs.dim() if self.layer else self.stack.dim()

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        raise NoRuleError("a decision by the values of a jet has no rule.")

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stack such as its dtype, or a tensor's method with a rule."""
        if name in _DESCRIPTIONS:
            return getattr(self.stack, name)
        method = getattr(Tensor, name)
        if not callable(method):
            raise NoRuleError(f"Tensor.{name} has no rule for jets.")
        return partial(_apply_rule, method, self)

    def __getitem__(self, index: Any) -> Any:
        return _apply_rule(Tensor.__getitem__, self, index)

    def __eq__(self, other: object) -> bool:
        raise NoRuleError("a comparison of jets has no rule.")

    __hash__ = object.__hash__

    def __add__(self, other: Any) -> Jet:
        return _add(self, other)

    def __sub__(self, other: Any) -> Jet:
        return _subtract(self, other)

    def __rsub__(self, other: Any) -> Jet:
        return _subtract(other, self)

    def __mul__(self, other: Any) -> Jet:
        return _multiply(self, other)

    def __truediv__(self, other: Any) -> Jet:
        return _divide(self, other)

    def __neg__(self) -> Jet:
        return _multiply(self, -1)

    __radd__, __rmul__ = __add__, __mul__

    # Python would otherwise bind the name to a new jet, and other references to this one would keep
    # the old values.
    def __iadd__(self, other: Any) -> Jet:
        return self.set_(self + other)

    def __isub__(self, other: Any) -> Jet:
        return self.set_(self - other)

    def __imul__(self, other: Any) -> Jet:
        return self.set_(self * other)

    def __itruediv__(self, other: Any) -> Jet:
        return self.set_(self / other)

    @classmethod
    def __torch_function__(
        cls, function: Rule, types: object, args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        """Apply the function's rule."""
        return _apply_rule(function, *args, **(kwargs or {}))


class ParameterJet(Tensor):
    """A parameter with its k derivatives; a model's code sees the parameter.

    Attributes
    ----------
    parts : Tensor
        Parameter and k vectors, shape (1 + k, …), as a leaf that records gradients.
    """

    parts: Tensor

    @property
    def count(self) -> int:
        """The number k of derivatives."""
        return len(self.parts) - 1

    @classmethod
    def of(cls, parameter: Tensor, vectors: Tensor) -> ParameterJet:
        """Join a parameter and vectors of its shape, (k, …)."""
        if not parameter.is_floating_point():
            raise NoRuleError(f"a parameter of {parameter.dtype} has no rule.")
        jet = parameter.detach().as_subclass(cls)
        jet.parts = torch.cat([parameter.detach().unsqueeze(0), vectors]).requires_grad_()
        return jet

    @classmethod
    def __torch_function__(
        cls, function: Rule, types: object, args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        """Describe the parameter, or apply the function's rule."""
        if function in _PARAMETER_DESCRIPTIONS:
            return super().__torch_function__(function, types, args, kwargs or {})
        return _apply_rule(function, *args, **(kwargs or {}))


def _apply_rule(function: Rule, *args: Any, **kwargs: Any) -> Any:
    if function not in _RULES:
        name = getattr(function, "__qualname__", str(function))
        raise NoRuleError(f"{name} has no rule for jets.")
    try:
        return _RULES[function](*args, **kwargs)
    except TypeError as error:  # the rule does not know some argument
        raise NoRuleError(f"arguments without a rule for jets: {error}") from error


def _is_jet(value: object) -> bool:
    return isinstance(value, (Jet, ParameterJet))


def _samples(value: object) -> Jet:
    if not isinstance(value, Jet):
        raise NoRuleError("a function of a parameter alone has no rule for jets.")
    return value


def _count(*values: object) -> int:
    return next(value.count for value in values if isinstance(value, (Jet, ParameterJet)))


def _parts(value: Tensor | ParameterJet, dimensions: int | None = None) -> Tensor:
    """Return a parameter's parts, (1 + k, …), or a constant's, (1, …).

    With ``dimensions`` the shape is filled up with ones in front, as broadcasting does.
    """
    parts = value.parts if isinstance(value, ParameterJet) else value.unsqueeze(0)
    missing = (dimensions or 0) + 1 - parts.ndim
    if missing <= 0:
        return parts  # not a view: _Affine checks whether the weight was computed from others
    return parts.reshape(len(parts), *(1,) * missing, *parts.shape[1:])


# --- Products of parameters, activations and numbers ---------------------------------------------


class _Product(Function):
    """Entrywise product of two jets, given by their parts (1 + k, …), which may broadcast."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _product_rule(a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return _product_rule(g, b).sum_to_size(a.shape), _product_rule(g, a).sum_to_size(b.shape)


def _product_rule(a: Tensor, b: Tensor) -> Tensor:
    product = a * b[:1]
    product[1:] += a[:1] * b[1:]
    return product


def _multiply_parts(a: Tensor, b: Tensor) -> Tensor:
    """Multiply parts; the parts of a constant are a single row, its value."""
    return a * b if 1 in (len(a), len(b)) else _Product.apply(a, b)


def _add_parts(a: Tensor, b: Tensor) -> Tensor:
    """Add parts; a constant, which has a single row, changes the values alone."""
    if len(a) == len(b):
        return a + b
    longer, constant = (a, b) if len(a) > len(b) else (b, a)
    values = longer[:1] + constant
    return torch.cat([values, longer[1:].expand(-1, *values.shape[1:])])


def _entrywise(combine: Rule) -> Rule:
    """Return the rule of an operation on two operands, at least one of them a jet."""

    def rule(a: Any, b: Any) -> Jet:
        jet = _samples(a if isinstance(a, Jet) else b)
        operands = [_as_parts(value, jet) for value in (a, b)]
        if any(parts.ndim != 1 + jet.dim() for parts in operands):
            raise NoRuleError("broadcasting that gives samples another axis has no rule.")
        if any(parts.shape[1] not in (1, len(jet)) for parts in operands):
            raise NoRuleError("broadcasting along the samples has no rule.")
        return Jet(combine(*operands).flatten(0, 1), jet.count)

    return rule


def _as_parts(value: Any, jet: Jet) -> Tensor:
    """Return the parts of the other operand, with as many dimensions as the jet's."""
    if isinstance(value, Jet):
        if len(value) != len(jet):
            raise NoRuleError("jets of different numbers of samples have no rule.")
        return value.parts
    return _parts(_like(value, jet), jet.dim())


def _like(value: Any, jet: Jet) -> Tensor:
    """Return a number as a tensor of the jet's dtype, as torch's type promotion would treat it."""
    if not isinstance(value, Tensor):
        return torch.as_tensor(value, dtype=jet.dtype, device=jet.device)
    if isinstance(value, ParameterJet) or value.ndim or value.is_complex():
        return value
    return value.to(jet.dtype)


_add = _entrywise(_add_parts)


def _subtract(a: Any, b: Any, alpha: float = 1) -> Any:
    return _add(a, _multiply(b, -alpha))


def _multiply(a: Any, b: Any) -> Any:
    if not _is_jet(a) and not _is_jet(b):
        return a * b
    for jet, number in ((a, b), (b, a)):
        if isinstance(jet, Jet) and isinstance(number, (int, float)):
            return Jet(jet.stack * number, jet.count)
    return _entrywise(_multiply_parts)(a, b)


def _divide(a: Any, b: Any) -> Any:
    if _is_jet(b):
        raise NoRuleError("division by a jet has no rule.")
    return _multiply(a, 1 / (_like(b, _samples(a)).to(a.dtype) if isinstance(b, Tensor) else b))


# --- Layers --------------------------------------------------------------------------------------


class _Dense:
    """Product W x of a linear layer and its transposes, also for k weights or inputs at a time."""

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.linear(x, weight)

    def pull_inputs(self, g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
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
class _Convolution:
    """Product W ∗ x of a convolution and its transposes, also for k weights or inputs at a time."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        zeros = (0,) * len(self.stride)
        return torch.convolution(
            x, weight, None, self.stride, self.padding, self.dilation, False, zeros, self.groups
        )

    def _pull(self, g: Tensor, weight: Tensor, x: Tensor, needs: list[bool]) -> Sequence[Tensor]:
        zeros = (0,) * len(self.stride)
        geometry = (self.stride, self.padding, self.dilation, False, zeros, self.groups)
        return torch.ops.aten.convolution_backward(g, x, weight, None, *geometry, needs)

    def pull_inputs(self, g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        return self._pull(g, weight, x, [True, False, False])[0]

    def pull_weight(self, g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
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


class _Affine(Function):
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
        kind: _Dense | _Convolution,
        constant: tuple[bool, bool, bool],
        count: int,
    ) -> Tensor:
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


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, to be run on its arguments.

    Attributes
    ----------
    kind : _Dense or _Convolution
        Product of weight and inputs.
    inputs : Tensor or Jet
        Inputs of the layer; a tensor is constant.
    weight, bias : Tensor or None
        Parts (1 + k, …); those of a constant are (1, …).
    """

    kind: _Dense | _Convolution
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
        return _Affine.apply(self.kind.prepare(x), weight, bias, self.kind, constant, count)

    @property
    def has_channels_second(self) -> bool:
        """Whether channels are the output's second axis, where normalisation expects them."""
        return isinstance(self.kind, _Convolution) or self.inputs.dim() == 2

    def followed_by(self, factor: Tensor, shift: Tensor) -> Layer:
        """Return the layer with its channels multiplied by a factor and shifted.

        Factor and shift are parts, (1, C) or (1 + k, C).
        """
        shape = (len(factor), -1, *(1,) * (self.weight.ndim - 2))
        weight = _multiply_parts(self.weight, factor.reshape(shape))
        bias = shift if self.bias is None else _add_parts(_multiply_parts(self.bias, factor), shift)
        return replace(self, weight=weight, bias=bias)


def _layer(kind: Any, x: Any, weight: Tensor, bias: Tensor | None) -> Jet:
    if isinstance(x, ParameterJet):
        raise NoRuleError("a layer of a parameter has no rule.")
    if x.dim() < 2:
        raise NoRuleError("a layer without a dimension for samples has no rule.")
    layer = Layer(kind, x, _parts(weight), None if bias is None else _parts(bias))
    return Jet(layer, _count(x, weight, bias))


def _linear(input: Any, weight: Tensor, bias: Tensor | None = None) -> Jet:
    return _layer(_Dense(), input, weight, bias)


def _convolution(dimensions: int) -> Rule:
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
        kind = _Convolution(each(stride), each(padding), dilation, groups)
        return _layer(kind, input, weight, bias)

    return rule


def _batch_norm(
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Jet:
    if training or running_mean is None or running_var is None:
        raise NoRuleError("normalisation by the statistics of the batch has no rule.")
    factor = torch.rsqrt(running_var + eps).unsqueeze(0)
    if weight is not None:
        factor = factor * _parts(weight)
    shift = -running_mean * factor
    if bias is not None:
        shift = _add_parts(shift, _parts(bias))
    if isinstance(input, Jet) and input.layer and input.layer.has_channels_second:
        return Jet(input.layer.followed_by(factor, shift), input.count)
    channels = (1, -1, *(1,) * (input.dim() - 2))
    x = input.parts if isinstance(input, Jet) else input.unsqueeze(0)
    scaled = _multiply_parts(x, factor.reshape(len(factor), *channels))
    parts = _add_parts(scaled, shift.reshape(len(shift), *channels))
    return Jet(parts.flatten(0, 1), _count(input, weight, bias))


# --- Functions of each entry ---------------------------------------------------------------------


class _Pointwise(Function):
    """Compute the stack of a function of each entry; autograd gives φ' and φ''."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, function: Rule, count: int) -> Tensor:
        parts = stack.unflatten(0, (1 + count, -1))
        with torch.enable_grad():
            x = parts[0].detach().requires_grad_()
            value = function(x)
            (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            second = None
            if first.requires_grad:
                (second,) = torch.autograd.grad(first.sum(), x, allow_unused=True)
        first = first.detach()
        # A piecewise linear function has a second derivative of zero, or autograd finds none. Then
        # nothing of the second order has to be saved.
        ctx.save_for_backward(first, second, None if second is None else parts[1:])
        out = torch.empty_like(parts)
        out[0] = value.detach()
        torch.mul(parts[1:], first, out=out[1:])
        return out.flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        first, second, changes = ctx.saved_tensors
        g = g.unflatten(0, (-1, len(first)))
        pulled = g * first
        if second is not None:
            pulled[1:].addcmul_(changes, second * g[0])
        return pulled.flatten(0, 1), None, None


def _pointwise(function: Rule) -> Rule:
    def rule(input: Any, *args: Any, inplace: bool = False, **kwargs: Any) -> Jet:
        def apply(x: Tensor) -> Tensor:
            return function(x, *args, **kwargs)

        jet = _samples(input)
        result = Jet(_Pointwise.apply(jet.stack, apply, jet.count), jet.count)
        return jet.set_(result) if inplace else result

    return rule


def _relu(input: Any, inplace: bool = False) -> Jet:
    # The rule multiplies every part by the mask of positive values. This is linear in the stack, so
    # autograd's pass back multiplies by the same mask, which is the rule for the way back.
    jet = _samples(input)
    parts = jet.parts
    rectified = torch.ops.aten.threshold_backward(parts, parts[:1].detach().expand_as(parts), 0)
    result = Jet(rectified.flatten(0, 1), jet.count)
    return jet.set_(result) if inplace else result


# --- Linear operations ---------------------------------------------------------------------------


def _linear_in_samples(function: Rule, view: bool = False) -> Rule:
    """Return the rule of an operation that maps each sample linearly, all in the same way.

    With ``view`` the result shares its entries with the operand, and both are marked as shared.
    """

    def rule(*args: Any, **kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs), is_leaf=_is_jet)
        jets = [leaf for leaf in leaves if isinstance(leaf, Jet)]
        if not jets or any(isinstance(leaf, Tensor) for leaf in leaves):
            raise NoRuleError("an operation on jets and tensors has no rule.")
        args, kwargs = tree_map_only(Jet, lambda jet: jet.stack, (args, kwargs))
        stacks = function(*args, **kwargs)
        results = tree_map_only(Tensor, lambda tensor: Jet(tensor, jets[0].count), stacks)
        for jet in tree_leaves(results, is_leaf=_is_jet):
            if jet.stack.shape[:1] != jets[0].stack.shape[:1]:
                raise NoRuleError("an operation across samples has no rule.")
            jet._shared = view
        for jet in jets:
            jet._shared |= view
        return results

    return rule


def _along_axes(function: Rule, axes: Callable[..., Iterable[int]], view: bool = False) -> Rule:
    """Return the rule of a linear operation along some axes other than the samples'.

    ``axes`` is a function from the operation's arguments after the first to these axes.
    """
    linear = _linear_in_samples(function, view)

    def rule(input: Any, *args: Any, **kwargs: Any) -> Any:
        worked_axes = axes(*args, **kwargs)
        if any(axis % _samples(input).dim() == 0 for axis in worked_axes):
            raise NoRuleError("an operation across samples has no rule.")
        return linear(input, *args, **kwargs)

    return rule


def _reduced_axes(dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Iterable[int]:
    if dim is None or dim == ():
        return (0,)
    return (dim,) if isinstance(dim, int) else dim


def _permute(input: Any, *dims: Any) -> Jet:
    order = dims if isinstance(dims[0], int) else tuple(dims[0])
    if order[0] % _samples(input).dim():
        raise NoRuleError("an operation that moves the samples' axis has no rule.")
    return _linear_in_samples(torch.permute, view=True)(input, order)


def _reshape(input: Any, *shape: Any) -> Jet:
    sizes = shape if isinstance(shape[0], int) else tuple(shape[0])
    jet = _samples(input)
    if not sizes or sizes[0] not in (-1, len(jet)):
        raise NoRuleError("an operation across samples has no rule.")
    # A length of -1 may turn out another than that of the samples' axis. The check of the result in
    # _linear_in_samples then refuses it.
    first = -1 if sizes[0] == -1 else len(jet.stack)
    return _linear_in_samples(torch.reshape, view=True)(jet, (first, *sizes[1:]))


def _unsqueeze(input: Any, dim: int) -> Jet:
    if dim % (_samples(input).dim() + 1) == 0:
        raise NoRuleError("an operation that moves the samples' axis has no rule.")
    return _linear_in_samples(torch.unsqueeze, view=True)(input, dim)


def _squeeze(input: Any, *dims: Any) -> Jet:
    if len(_samples(input)) == 1 and not (dims and _keep_samples(dims[0], input.dim())):
        raise NoRuleError("squeezing a single sample's axis has no rule.")
    return _linear_in_samples(torch.squeeze, view=True)(input, *dims)


def _keep_samples(dims: int | tuple[int, ...], dimensions: int) -> bool:
    return all(dim % dimensions for dim in ((dims,) if isinstance(dims, int) else dims))


def _cat(tensors: Any, dim: int = 0) -> Jet:
    jets = [_samples(jet) for jet in tensors]
    if dim % jets[0].dim() == 0:
        raise NoRuleError("an operation across samples has no rule.")
    return _linear_in_samples(torch.cat)(jets, dim)


def _index(input: Any, index: Any) -> Jet:
    jet = _samples(input)
    items = index if isinstance(index, tuple) else (index,)
    if any(isinstance(item, bool) or not _is_basic(item) for item in items):
        raise NoRuleError("an index other than numbers and slices has no rule.")
    if Ellipsis not in items:
        items = (*items, Ellipsis)
    place = items.index(Ellipsis)
    left_out = jet.dim() - sum(item is not None and item is not Ellipsis for item in items)
    items = (*items[:place], *[slice(None)] * left_out, *items[place + 1 :])
    first = items[0]
    if not isinstance(first, slice) or first.indices(len(jet)) != (0, len(jet), 1):
        raise NoRuleError("an index across samples has no rule.")
    return _linear_in_samples(Tensor.__getitem__, view=True)(jet, (slice(None), *items[1:]))


def _is_basic(item: object) -> bool:
    return item is None or item is Ellipsis or isinstance(item, (int, slice))


def _pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Jet:
    if value:
        raise NoRuleError("padding by a constant has no rule.")
    if len(pad) // 2 >= _samples(input).dim():
        raise NoRuleError("an operation across samples has no rule.")
    return _linear_in_samples(functional.pad)(input, pad, mode)


def _max_pool(pool: Rule, dimensions: int) -> Rule:
    def rule(input: Any, *args: Any, return_indices: bool = False, **kwargs: Any) -> Jet:
        if return_indices or input.dim() != dimensions + 2:
            raise NoRuleError("pooling that returns indices has no rule.")
        parts = _samples(input).parts
        values, indices = pool(parts[0].detach(), *args, return_indices=True, **kwargs)
        indices = indices.flatten(2).expand(len(parts), *indices.shape[:2], -1)
        maxima = parts.flatten(3).gather(3, indices)
        return Jet(maxima.reshape(-1, *values.shape[1:]), input.count)

    return rule


def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training:
        raise NoRuleError("dropout that is active has no rule.")
    return input


def _add_scaled(a: Any, b: Any, alpha: float = 1) -> Any:
    return _add(a, b if alpha == 1 else _multiply(b, alpha))


def _in_place(rule: Rule) -> Rule:
    return lambda input, *args, **kwargs: _samples(input).set_(rule(input, *args, **kwargs))


_RULES: dict[Rule, Rule] = {
    functional.linear: _linear,
    functional.conv1d: _convolution(1),
    functional.conv2d: _convolution(2),
    functional.conv3d: _convolution(3),
    functional.batch_norm: _batch_norm,
    functional.pad: _pad,
    functional.max_pool1d: _max_pool(functional.max_pool1d, 1),
    functional.max_pool2d: _max_pool(functional.max_pool2d, 2),
    functional.max_pool3d: _max_pool(functional.max_pool3d, 3),
    **{f: _dropout for f in (functional.dropout, functional.dropout2d, functional.alpha_dropout)},
    **{f: _relu for f in (functional.relu, torch.relu, Tensor.relu)},
    **{f: _in_place(_relu) for f in (torch.relu_, Tensor.relu_)},
    **{f: _add_scaled for f in (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)},
    **{f: _in_place(_add_scaled) for f in (Tensor.add_, Tensor.__iadd__)},
    **{f: _subtract for f in (torch.sub, Tensor.sub, Tensor.__sub__)},
    Tensor.__rsub__: lambda a, b: _subtract(b, a),
    **{f: _multiply for f in (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)},
    **{f: _divide for f in (torch.div, Tensor.div, Tensor.__truediv__)},
    **{
        f: _pointwise(f)
        for f in (
            torch.tanh,
            Tensor.tanh,
            torch.sigmoid,
            Tensor.sigmoid,
            torch.exp,
            Tensor.exp,
            torch.sin,
            torch.cos,
            torch.square,
            functional.gelu,
            functional.silu,
            functional.mish,
            functional.elu,
            functional.selu,
            functional.celu,
            functional.softplus,
            functional.softsign,
            functional.logsigmoid,
            functional.leaky_relu,
            functional.relu6,
            functional.hardtanh,
            functional.hardswish,
        )
    },
    **{
        f: _linear_in_samples(f)
        for f in (
            functional.avg_pool1d,
            functional.avg_pool2d,
            functional.avg_pool3d,
            functional.adaptive_avg_pool1d,
            functional.adaptive_avg_pool2d,
            functional.adaptive_avg_pool3d,
            functional.interpolate,
            Tensor.clone,
        )
    },
    Tensor.contiguous: _linear_in_samples(Tensor.contiguous, view=True),
    **{
        f: _along_axes(f, lambda start_dim=0, end_dim=-1: (start_dim,), view=True)
        for f in (torch.flatten, Tensor.flatten)
    },
    Tensor.unflatten: _along_axes(Tensor.unflatten, lambda dim, sizes: (dim,), view=True),
    **{
        f: _along_axes(f, lambda dim0, dim1: (dim0, dim1), view=True)
        for f in (torch.transpose, Tensor.transpose)
    },
    **{
        f: _along_axes(f, lambda size, dim=0: (dim,), view=True)
        for f in (torch.chunk, Tensor.chunk, torch.split, Tensor.split)
    },
    **{f: _along_axes(f, _reduced_axes) for f in (torch.mean, Tensor.mean, torch.sum, Tensor.sum)},
    **{f: _permute for f in (torch.permute, Tensor.permute)},
    **{f: _squeeze for f in (torch.squeeze, Tensor.squeeze)},
    **{f: _unsqueeze for f in (torch.unsqueeze, Tensor.unsqueeze)},
    # Tensor.view is done by reshape, because the stack may lie in memory in another order than the
    # model's code expects, and then needs a copy.
    **{f: _reshape for f in (torch.reshape, Tensor.reshape, Tensor.view)},
    torch.cat: _cat,
    Tensor.__getitem__: _index,
}

_DESCRIPTIONS = ("ndim", "dtype", "device", "is_cuda")
_PARAMETER_DESCRIPTIONS = (
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_leaf")),
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
)
