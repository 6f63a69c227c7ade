"""Products and sums of parameters, activations and numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from paperkit.curvature.jets.jet import (
    Jet,
    NoRuleError,
    ParameterJet,
    Rule,
    as_samples,
    is_jet,
    parts_of,
)


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


def multiply_parts(a: Tensor, b: Tensor) -> Tensor:
    """Multiply parts; the parts of a constant are a single row, its value."""
    return a * b if 1 in (len(a), len(b)) else _Product.apply(a, b)


def add_parts(a: Tensor, b: Tensor) -> Tensor:
    """Add parts; a constant, which has a single row, changes the values alone."""
    if len(a) == len(b):
        return a + b
    longer, constant = (a, b) if len(a) > len(b) else (b, a)
    values = longer[:1] + constant
    return torch.cat([values, longer[1:].expand(-1, *values.shape[1:])])


def _entrywise(combine: Rule) -> Rule:
    """Return the rule of an operation on two operands, at least one of them a jet."""

    def rule(a: Any, b: Any) -> Jet:
        jet = as_samples(a if isinstance(a, Jet) else b)
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
    return parts_of(_like(value, jet), jet.dim())


def _like(value: Any, jet: Jet) -> Tensor:
    """Return a number as a tensor of the jet's dtype, as torch's type promotion would treat it."""
    if not isinstance(value, Tensor):
        return torch.as_tensor(value, dtype=jet.dtype, device=jet.device)
    if isinstance(value, ParameterJet) or value.ndim or value.is_complex():
        return value
    return value.to(jet.dtype)


add = _entrywise(add_parts)


def subtract(a: Any, b: Any, alpha: float = 1) -> Any:
    """Return a − alpha b."""
    return add(a, multiply(b, -alpha))


def multiply(a: Any, b: Any) -> Any:
    """Return the entrywise product of jets, parameters and numbers."""
    if not is_jet(a) and not is_jet(b):
        return a * b
    for jet, number in ((a, b), (b, a)):
        if isinstance(jet, Jet) and isinstance(number, (int, float)):
            return Jet(jet.stack * number, jet.count)
    return _entrywise(multiply_parts)(a, b)


def divide(a: Any, b: Any) -> Any:
    """Return a jet divided by a constant."""
    if is_jet(b):
        raise NoRuleError("division by a jet has no rule.")
    return multiply(a, 1 / (_like(b, as_samples(a)).to(a.dtype) if isinstance(b, Tensor) else b))
