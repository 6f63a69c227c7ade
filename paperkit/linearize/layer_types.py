r"""The types of layers whose weight can be read off their inputs and output Jacobians.

Each applies a weight at P positions, :math:`z_t = W a_t + b`, with g groups of its own matrix
each. A type says where a module's input and output hold these columns, and how its weight tensor
holds the matrices. A module that is not exactly of one of these types, such as a subclass with a
forward pass of its own, has no type here: unknown means the general way.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

# Methods of a module that its forward pass does not call, so that a subclass may replace them.
_HARMLESS = frozenset(
    """
    T_destination _get_name _load_from_state_dict _named_members _save_to_state_dict _version
    dump_patches eval extra_repr get_extra_state load_state_dict reset_parameters
    reset_running_stats set_extra_state share_memory state_dict train
    """.split()
)
_CALLING = frozenset({"__call__", "__getattr__", "__getattribute__"})


def is_unmodified(module: nn.Module, known: type[nn.Module]) -> bool:
    """Whether a module computes what the known class does, from its own weight and bias.

    The module may be of a subclass that leaves everything alone that a forward pass runs. Neither
    that class nor the module itself may replace such a method. Weight and bias must be plain
    parameters and no function of others, as under parametrizations, weight or spectral
    normalisation and pruning.
    """
    parameters = module._parameters
    return (
        isinstance(module, known)
        and _inherits_forward(type(module), known)  # type: ignore[arg-type]
        and not _forward_methods(known) & vars(module).keys()  # type: ignore[arg-type]
        and type(parameters.get("weight")) is nn.Parameter
        and type(parameters.get("bias", "none")) in (nn.Parameter, type(None))
    )


@functools.cache
def _forward_methods(known: type) -> frozenset[str]:
    """Return the names of a class's methods that a forward pass may run."""
    names = {name for name in dir(known) if not name.startswith("__")}
    return frozenset(names - _HARMLESS | _CALLING)


@functools.cache
def _inherits_forward(cls: type, known: type) -> bool:
    """Whether a class inherits all that a forward pass of the known class runs."""
    missing = object()
    return all(
        inspect.getattr_static(cls, name, missing) is inspect.getattr_static(known, name, missing)
        for name in itertools.chain(_forward_methods(known), ("weight", "bias"))
    )


@dataclass(frozen=True)
class WeightLayout:
    """How a weight tensor holds the matrices W of its groups.

    Attributes
    ----------
    shape : torch.Size
        Shape of the tensor.
    groups : int
        Number g of groups.
    transposed : bool
        Order of the channels: False means (g · o, i, …), output channels first; True means
        (g · i, o, …), input channels first.
    """

    shape: torch.Size
    groups: int = 1
    transposed: bool = False

    @property
    def matrix_shape(self) -> tuple[int, int, int]:
        """Groups g, outputs o, and inputs i that an output sees."""
        g = self.groups
        outputs = self.shape[1] if self.transposed else self.shape[0] // g
        return g, outputs, self.shape.numel() // (g * outputs)

    def matrices(self, weight: Tensor) -> Tensor:
        r"""Return (…, \*shape) as matrices (…, g, o, i)."""
        leading = weight.shape[: weight.ndim - len(self.shape)]
        if not self.transposed:
            return weight.reshape(*leading, *self.matrix_shape)
        first = self.shape[0] // self.groups
        parts = weight.reshape(*leading, self.groups, first, self.shape[1], -1)
        return parts.transpose(-3, -2).reshape(*leading, *self.matrix_shape)

    def weight(self, matrices: Tensor) -> Tensor:
        """Undo :meth:`matrices`."""
        leading = matrices.shape[:-3]
        if self.transposed:
            first = self.shape[0] // self.groups
            parts = matrices.reshape(*leading, self.groups, self.shape[1], first, -1)
            matrices = parts.transpose(-3, -2)
        return matrices.reshape(*leading, *self.shape)


class LayerType(ABC):
    """A type of layer.

    Attributes
    ----------
    transposed : bool
        As in :class:`WeightLayout`.
    acts_pointwise : bool
        Whether a position of the output reads a single position of the input.
    """

    transposed = False
    acts_pointwise = False

    def layout(self, module: nn.Module) -> WeightLayout:
        """Return how the module's weight holds its matrices."""
        shape = module.get_parameter("weight").shape
        return WeightLayout(shape, getattr(module, "groups", 1), self.transposed)

    @abstractmethod
    def input_axes(self, module: nn.Module) -> tuple[int, int | None]:
        """Return the least and the largest number of an input's axes, the samples' included."""

    @abstractmethod
    def fits(self, module: nn.Module, input_shape: Sequence[int]) -> str | None:
        """Return the shape that an input without samples must have; None if this shape fits."""

    @abstractmethod
    def apply(self, module: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
        """Return W a of all positions: the layer without its bias, (n, …) as the module's."""

    @abstractmethod
    def columns(self, module: nn.Module, inputs: Tensor, sizes: Sequence[int]) -> Tensor:
        """Arrange inputs as (n, g, i, P); ``sizes`` are those of the output, without samples."""

    @abstractmethod
    def cotangents(self, module: nn.Module, jacobian: Tensor) -> Tensor:
        """Arrange an output Jacobian (n, C, …) as (n, C, g, o, P)."""

    @abstractmethod
    def num_positions(self, sizes: Sequence[int]) -> int:
        """Return P for an output of these sizes, without samples."""

    @abstractmethod
    def summed(self, jacobian: Tensor) -> Tensor:
        """Sum an output Jacobian (n, C, …) over positions: (n, C, channels)."""


class _Pointwise(LayerType):
    """The last axis holds the channels, all others positions."""

    acts_pointwise = True

    @override
    def input_axes(self, module: nn.Module) -> tuple[int, int | None]:
        return 2, None

    @override
    def fits(self, module: nn.Module, input_shape: Sequence[int]) -> str | None:
        _, _, inputs = self.layout(module).matrix_shape
        return None if len(input_shape) and input_shape[-1] == inputs else f"(…, {inputs})"

    @override
    def apply(self, module: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, weight.mT if self.transposed else weight)

    @override
    def columns(self, module: nn.Module, inputs: Tensor, sizes: Sequence[int]) -> Tensor:
        if inputs.ndim == 2:
            return inputs.unsqueeze(1).unsqueeze(3)
        return inputs.flatten(1, -2).transpose(1, 2).unsqueeze(1)

    @override
    def cotangents(self, module: nn.Module, jacobian: Tensor) -> Tensor:
        n, num_outputs = jacobian.shape[:2]
        channels = jacobian.shape[-1]
        return jacobian.reshape(n, num_outputs, -1, channels).transpose(2, 3).unsqueeze(2)

    @override
    def num_positions(self, sizes: Sequence[int]) -> int:
        return math.prod(sizes[:-1])

    @override
    def summed(self, jacobian: Tensor) -> Tensor:
        return jacobian.flatten(2, -2).sum(2) if jacobian.ndim > 3 else jacobian


class _TransposedPointwise(_Pointwise):
    """``Conv1D`` of transformers: a linear layer whose weight is stored inputs × outputs."""

    transposed = True


class _Spatial(LayerType):
    """The channels come second, positions after them."""

    @override
    def input_axes(self, module: nn.Module) -> tuple[int, int | None]:
        axes = len(module.kernel_size) + 2  # type: ignore[arg-type]
        return axes, axes

    @override
    def fits(self, module: nn.Module, input_shape: Sequence[int]) -> str | None:
        axes = len(module.kernel_size)  # type: ignore[arg-type]
        if len(input_shape) == axes + 1 and input_shape[0] == module.in_channels:
            return None
        return f"({module.in_channels}, {axes} sizes)"

    @override
    def cotangents(self, module: nn.Module, jacobian: Tensor) -> Tensor:
        n, num_outputs, channels = jacobian.shape[:3]
        groups: int = module.groups  # type: ignore[assignment]
        return jacobian.reshape(n, num_outputs, groups, channels // groups, -1)

    @override
    def num_positions(self, sizes: Sequence[int]) -> int:
        return math.prod(sizes[1:])

    @override
    def summed(self, jacobian: Tensor) -> Tensor:
        return jacobian.flatten(3).sum(3) if jacobian.ndim > 3 else jacobian


class _Convolution(_Spatial):
    _FUNCTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)

    @override
    def apply(self, module: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        convolve: Any = self._FUNCTIONS[len(module.kernel_size) - 1]
        padded = _pad(module, inputs)
        return convolve(padded, weight, None, module.stride, 0, module.dilation, module.groups)

    @override
    def columns(self, module: nn.Module, inputs: Tensor, sizes: Sequence[int]) -> Tensor:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        windows = _pad(module, inputs)
        axes = len(module.kernel_size)
        for axis, size in enumerate(module.kernel_size):
            span = module.dilation[axis] * (size - 1) + 1
            windows = windows.unfold(2 + axis, span, module.stride[axis])
            windows = windows[..., :: module.dilation[axis]]
        return _patches(windows, axes, module.groups)


class _TransposedConvolution(_Spatial):
    """A convolution with the kernel reversed, of the input with zeros between its entries."""

    transposed = True
    _FUNCTIONS = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )

    @override
    def apply(self, module: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
        assert isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        convolve: Any = self._FUNCTIONS[len(module.kernel_size) - 1]
        return convolve(
            inputs,
            weight,
            None,
            module.stride,
            module.padding,
            module.output_padding,
            module.groups,
            module.dilation,
        )

    @override
    def columns(self, module: nn.Module, inputs: Tensor, sizes: Sequence[int]) -> Tensor:
        assert isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
        axes = len(module.kernel_size)
        spread_sizes = [
            (size - 1) * s + 1 for size, s in zip(inputs.shape[2:], module.stride, strict=True)
        ]
        windows = inputs.new_zeros(*inputs.shape[:2], *spread_sizes)
        entries: tuple[slice, ...] = tuple(slice(None, None, s) for s in module.stride)
        windows[(slice(None), slice(None), *entries)] = inputs
        sides: list[int] = []
        for axis, size in enumerate(module.kernel_size):
            reach = module.dilation[axis] * (size - 1)
            before = reach - int(module.padding[axis])
            # The padding behind follows from the size of the output, which the caller of the module
            # may have chosen by output_size.
            sides = [before, sizes[1 + axis] + reach - before - spread_sizes[axis], *sides]
        windows = functional.pad(windows, sides)  # negative padding cuts entries off
        for axis, size in enumerate(module.kernel_size):
            windows = windows.unfold(2 + axis, module.dilation[axis] * (size - 1) + 1, 1)
            windows = windows[..., :: module.dilation[axis]].flip(-1)
        return _patches(windows, axes, module.groups)


def _pad(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> Tensor:
    """Pad a convolution's input as the module would."""
    sides: list[int] = []
    for axis, size in enumerate(module.kernel_size):
        if module.padding == "same":
            total = module.dilation[axis] * (size - 1)
            before, after = total // 2, total - total // 2
        elif module.padding == "valid":
            before = after = 0
        else:
            before = after = int(module.padding[axis])
        sides = [before, after, *sides]  # functional.pad lists the last axis first
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(inputs, sides, mode=mode) if any(sides) else inputs


def _patches(windows: Tensor, axes: int, groups: int) -> Tensor:
    """Arrange windows (n, channels, positions …, kernel …) as (n, g, i, P)."""
    order = [0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes)]
    rows = windows.shape[1] // groups * math.prod(windows.shape[2 + axes :])
    return windows.permute(order).reshape(len(windows), groups, rows, -1)


_LAYER_TYPES: dict[type[nn.Module], LayerType] = {
    nn.Linear: _Pointwise(),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _Convolution()),
    **dict.fromkeys(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _TransposedConvolution()
    ),
}


def layer_type(module: nn.Module) -> LayerType | None:
    """Return a module's type; None if it is not exactly one of those known here."""
    for known, kind in _LAYER_TYPES.items():
        if isinstance(module, known):
            return kind if is_unmodified(module, known) else None
    # transformers is not imported here: if the module is of its class, somebody has imported it.
    library = sys.modules.get("transformers.pytorch_utils")
    known = getattr(library, "Conv1D", nn.Module)
    if known is not nn.Module and isinstance(module, known) and is_unmodified(module, known):
        return _TransposedPointwise()
    return None


def type_of(module: nn.Module) -> LayerType:
    """Return the type of a module that has one.

    Raises
    ------
    TypeError
        If it has none.
    """
    kind = layer_type(module)
    if kind is None:
        raise TypeError(
            f"module is a {type(module).__name__} with a forward pass or a weight of its own: "
            "pass a plain linear, convolution or transposed convolution layer."
        )
    return kind


def layout_like(module: nn.Module, weight: Tensor) -> WeightLayout | None:
    """Return how a module's parameter holds a matrix of output channels and inputs.

    Subclasses of the known types hold it as these do, whatever their forward pass makes of it;
    recurrent and attention layers have output channels first, embeddings last.

    Parameters
    ----------
    module : nn.Module
        Any module.
    weight : Tensor
        Parameter of the module.

    Returns
    -------
    WeightLayout or None
        Layout of the parameter; None where it is not known to be such a matrix.
    """
    if weight is module._parameters.get("weight"):
        exact = layer_type(module)
        if exact is not None:
            return exact.layout(module)
        for known, kind in _LAYER_TYPES.items():
            if isinstance(module, known):
                return kind.layout(module)
        if type(module) is nn.Embedding:
            return WeightLayout(weight.shape, transposed=True)
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        return WeightLayout(weight.shape) if weight.ndim == 2 else None
    return None
