"""Functions of each entry, linear operations, and the table of all rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

from paperkit.curvature.jets.arithmetic import add, divide, multiply, subtract
from paperkit.curvature.jets.jet import RULES, Jet, NoRuleError, Rule, as_samples, is_jet
from paperkit.curvature.jets.layers import batch_norm, convolution, linear


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

        jet = as_samples(input)
        result = Jet(_Pointwise.apply(jet.stack, apply, jet.count), jet.count)
        return jet.set_(result) if inplace else result

    return rule


def _relu(input: Any, inplace: bool = False) -> Jet:
    # The rule multiplies every part by the mask of positive values. This is linear in the stack, so
    # autograd's pass back multiplies by the same mask, which is the rule for the way back.
    jet = as_samples(input)
    parts = jet.parts
    rectified = torch.ops.aten.threshold_backward(parts, parts[:1].detach().expand_as(parts), 0)
    result = Jet(rectified.flatten(0, 1), jet.count)
    return jet.set_(result) if inplace else result


def _linear_in_samples(function: Rule, view: bool = False) -> Rule:
    """Return the rule of an operation that maps each sample linearly, all in the same way.

    With ``view`` the result shares its entries with the operand, and both are marked as shared.
    """

    def rule(*args: Any, **kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs), is_leaf=is_jet)
        jets = [leaf for leaf in leaves if isinstance(leaf, Jet)]
        if not jets or any(isinstance(leaf, Tensor) for leaf in leaves):
            raise NoRuleError("an operation on jets and tensors has no rule.")
        args, kwargs = tree_map_only(Jet, lambda jet: jet.stack, (args, kwargs))
        stacks = function(*args, **kwargs)
        results = tree_map_only(Tensor, lambda tensor: Jet(tensor, jets[0].count), stacks)
        for jet in tree_leaves(results, is_leaf=is_jet):
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
        if any(axis % as_samples(input).dim() == 0 for axis in worked_axes):
            raise NoRuleError("an operation across samples has no rule.")
        return linear(input, *args, **kwargs)

    return rule


def _reduced_axes(dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Iterable[int]:
    if dim is None or dim == ():
        return (0,)
    return (dim,) if isinstance(dim, int) else dim


def _permute(input: Any, *dims: Any) -> Jet:
    order = dims if isinstance(dims[0], int) else tuple(dims[0])
    if order[0] % as_samples(input).dim():
        raise NoRuleError("an operation that moves the samples' axis has no rule.")
    return _linear_in_samples(torch.permute, view=True)(input, order)


def _reshape(input: Any, *shape: Any) -> Jet:
    sizes = shape if isinstance(shape[0], int) else tuple(shape[0])
    jet = as_samples(input)
    if not sizes or sizes[0] not in (-1, len(jet)):
        raise NoRuleError("an operation across samples has no rule.")
    # A length of -1 may turn out another than that of the samples' axis. The check of the result in
    # _linear_in_samples then refuses it.
    first = -1 if sizes[0] == -1 else len(jet.stack)
    return _linear_in_samples(torch.reshape, view=True)(jet, (first, *sizes[1:]))


def _unsqueeze(input: Any, dim: int) -> Jet:
    if dim % (as_samples(input).dim() + 1) == 0:
        raise NoRuleError("an operation that moves the samples' axis has no rule.")
    return _linear_in_samples(torch.unsqueeze, view=True)(input, dim)


def _squeeze(input: Any, *dims: Any) -> Jet:
    if len(as_samples(input)) == 1 and not (dims and _keep_samples(dims[0], input.dim())):
        raise NoRuleError("squeezing a single sample's axis has no rule.")
    return _linear_in_samples(torch.squeeze, view=True)(input, *dims)


def _keep_samples(dims: int | tuple[int, ...], dimensions: int) -> bool:
    return all(dim % dimensions for dim in ((dims,) if isinstance(dims, int) else dims))


def _cat(tensors: Any, dim: int = 0) -> Jet:
    jets = [as_samples(jet) for jet in tensors]
    if dim % jets[0].dim() == 0:
        raise NoRuleError("an operation across samples has no rule.")
    return _linear_in_samples(torch.cat)(jets, dim)


def _index(input: Any, index: Any) -> Jet:
    jet = as_samples(input)
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
    if len(pad) // 2 >= as_samples(input).dim():
        raise NoRuleError("an operation across samples has no rule.")
    return _linear_in_samples(functional.pad)(input, pad, mode)


def _max_pool(pool: Rule, dimensions: int) -> Rule:
    def rule(input: Any, *args: Any, return_indices: bool = False, **kwargs: Any) -> Jet:
        if return_indices or input.dim() != dimensions + 2:
            raise NoRuleError("pooling that returns indices has no rule.")
        parts = as_samples(input).parts
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
    return add(a, b if alpha == 1 else multiply(b, alpha))


def _in_place(rule: Rule) -> Rule:
    return lambda input, *args, **kwargs: as_samples(input).set_(rule(input, *args, **kwargs))


_TABLE: dict[Rule, Rule] = {
    functional.linear: linear,
    functional.conv1d: convolution(1),
    functional.conv2d: convolution(2),
    functional.conv3d: convolution(3),
    functional.batch_norm: batch_norm,
    functional.pad: _pad,
    functional.max_pool1d: _max_pool(functional.max_pool1d, 1),
    functional.max_pool2d: _max_pool(functional.max_pool2d, 2),
    functional.max_pool3d: _max_pool(functional.max_pool3d, 3),
    **{f: _dropout for f in (functional.dropout, functional.dropout2d, functional.alpha_dropout)},
    **{f: _relu for f in (functional.relu, torch.relu, Tensor.relu)},
    **{f: _in_place(_relu) for f in (torch.relu_, Tensor.relu_)},
    **{f: _add_scaled for f in (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)},
    **{f: _in_place(_add_scaled) for f in (Tensor.add_, Tensor.__iadd__)},
    **{f: subtract for f in (torch.sub, Tensor.sub, Tensor.__sub__)},
    Tensor.__rsub__: lambda a, b: subtract(b, a),
    **{f: multiply for f in (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)},
    **{f: divide for f in (torch.div, Tensor.div, Tensor.__truediv__)},
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

RULES.update(_TABLE)
