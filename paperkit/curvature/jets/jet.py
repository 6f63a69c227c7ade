"""Jets of samples and of parameters, and the table of rules that they follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

Rule = Callable[..., Any]

RULES: dict[Rule, Rule] = {}
"""The rule of each function of torch; :mod:`paperkit.curvature.jets.rules` fills the table."""


_DESCRIPTIONS = ("ndim", "dtype", "device", "is_cuda")


_PARAMETER_DESCRIPTIONS = (
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_leaf")),
    Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
)


class NoRuleError(Exception):
    """An operation of the network has no rule here; products must be computed in another way."""


class PendingLayer(Protocol):
    """A layer that runs when its stack is first asked for."""

    @property
    def inputs(self) -> Any:
        """What comes into the layer."""

    def run(self, count: int) -> Tensor:
        """Return the stack of values and ``count`` derivatives."""
        ...


class Jet:
    """Values and their k derivatives, with which a network computes in place of a tensor.

    A jet can be passed to the functions of torch that have a rule, and has those attributes and
    methods of a tensor that a model's own code is likely to use.

    Parameters
    ----------
    source : Tensor or PendingLayer
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

    def __init__(self, source: Tensor | PendingLayer, count: int) -> None:
        if not torch.is_grad_enabled():
            raise NoRuleError("what records no gradients has no rule for jets.")
        self._source = source
        self.count = count
        # Whether another jet shares the entries. An operation in place would change that one too,
        # so it is refused.
        self._shared = False

    @property
    def layer(self) -> PendingLayer | None:
        """The layer that has still to run; None if the stack exists."""
        return None if isinstance(self._source, Tensor) else self._source

    @property
    def stack(self) -> Tensor:
        """Values and derivatives, ((1 + k) m, …)."""
        if not isinstance(self._source, Tensor):
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
        return partial(apply_rule, method, self)

    def __getitem__(self, index: Any) -> Any:
        return apply_rule(Tensor.__getitem__, self, index)

    def __eq__(self, other: object) -> bool:
        raise NoRuleError("a comparison of jets has no rule.")

    __hash__ = object.__hash__

    def __add__(self, other: Any) -> Jet:
        return apply_rule(torch.add, self, other)

    def __sub__(self, other: Any) -> Jet:
        return apply_rule(torch.sub, self, other)

    def __rsub__(self, other: Any) -> Jet:
        return apply_rule(torch.sub, other, self)

    def __mul__(self, other: Any) -> Jet:
        return apply_rule(torch.mul, self, other)

    def __truediv__(self, other: Any) -> Jet:
        return apply_rule(torch.div, self, other)

    def __neg__(self) -> Jet:
        return apply_rule(torch.mul, self, -1)

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
        return apply_rule(function, *args, **(kwargs or {}))


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
        return apply_rule(function, *args, **(kwargs or {}))


def apply_rule(function: Rule, *args: Any, **kwargs: Any) -> Any:
    """Apply the rule of a function of torch.

    Raises
    ------
    NoRuleError
        If the table has no rule for the function or for its arguments.
    """
    if function not in RULES:
        name = getattr(function, "__qualname__", str(function))
        raise NoRuleError(f"{name} has no rule for jets.")
    try:
        return RULES[function](*args, **kwargs)
    except TypeError as error:  # the rule does not know some argument
        raise NoRuleError(f"arguments without a rule for jets: {error}") from error


def is_jet(value: object) -> bool:
    """Whether a value carries derivatives."""
    return isinstance(value, (Jet, ParameterJet))


def as_samples(value: object) -> Jet:
    """Return the value if it is a jet of samples.

    Raises
    ------
    NoRuleError
        If it is not.
    """
    if not isinstance(value, Jet):
        raise NoRuleError("a function of a parameter alone has no rule for jets.")
    return value


def count_of(*values: object) -> int:
    """Return the number k of derivatives that the first jet among the values carries."""
    return next(value.count for value in values if isinstance(value, (Jet, ParameterJet)))


def parts_of(value: Tensor | ParameterJet, dimensions: int | None = None) -> Tensor:
    """Return a parameter's parts, (1 + k, …), or a constant's, (1, …).

    With ``dimensions`` the shape is filled up with ones in front, as broadcasting does.
    """
    parts = value.parts if isinstance(value, ParameterJet) else value.unsqueeze(0)
    missing = (dimensions or 0) + 1 - parts.ndim
    if missing <= 0:
        return parts  # not a view: Affine checks whether the weight was computed from others
    return parts.reshape(len(parts), *(1,) * missing, *parts.shape[1:])
