"""Operations done by parts, where PyTorch's own cannot be differentiated twice or is at fault.

:class:`OperationsByParts` replaces them wherever a model calls them, by equal functions made of
operations that have all derivatives. An operation that is not in the table and has no second
derivative is refused by a sentence with its name (``paperkit.curvature.second_derivatives``).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class OperationsByParts(TorchFunctionMode):
    """While it is active, the operations of the table are done by parts."""

    def __torch_function__(
        self,
        function: Callable,
        types: object,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, or its replacement from the table."""
        return _BY_PARTS.get(function, function)(*args, **(kwargs or {}))


class UsedFunctions(TorchFunctionMode):
    """Notes which functions of torch are called while it is active.

    Attributes
    ----------
    functions : set of callable
        Functions that have been called so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.functions: set[Callable] = set()

    def __torch_function__(
        self,
        function: Callable,
        types: object,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function and note it."""
        self.functions.add(function)
        return function(*args, **(kwargs or {}))


def _weight_norm(direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
    """Normalise a weight; the second derivative of PyTorch's kernel is wrong without an error."""
    return direction * (length / torch.norm_except_dim(direction, 2, dim))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    values = functional.relu6(input + 3) / 6
    return input.copy_(values) if inplace else values


# Float32 numbers in a vector of the widest instructions. A kernel with fewer input channels takes
# the faulty path that is described below.
_FEWEST_CHANNELS = 16


def _convolution(
    function: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Convolve; a strided kernel of a single pixel is given only the pixels that it reads.

    oneDNN 3.12 writes beyond its work space in the backward pass to the weight of such a
    convolution, if channels come last and are fewer than 16 (8 without AVX-512): the memory is
    corrupted, or the gradient is wrong (uxlfoundation/oneDNN, issue 6035).
    """
    dimensions = weight.ndim - 2
    at_risk = weight.shape[1] < _FEWEST_CHANNELS and weight.shape[2:].numel() == 1
    if at_risk and padding in (0, (0,) * dimensions, "valid"):
        steps = (stride,) * dimensions if isinstance(stride, int) else tuple(stride)
        if len(steps) == dimensions and max(steps) > 1:
            pixels: Any = (..., *(slice(None, None, step) for step in steps))
            input, stride = input[pixels], 1
    return function(input, weight, bias, stride, padding, *args, **kwargs)


_TWICE: ContextVar[bool] = ContextVar("whether a second derivative will be taken", default=False)


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Tell the operations meanwhile that a second derivative will be taken through them."""
    before = _TWICE.set(True)
    try:
        yield
    finally:
        _TWICE.reset(before)


def _recurrence(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Run a recurrent layer without the kernels that have no second derivative, or a slow one.

    The kernels of cuDNN have no second derivative. The second derivative of oneDNN's LSTM takes
    half as many operations again as that of the plain LSTM, whose first derivative is the slower
    one. So the plain kernels run only where a second derivative will be taken.
    """
    plain = _TWICE.get() and torch._C._get_mkldnn_enabled()
    with torch.backends.cudnn.flags(enabled=False):
        if not plain:
            return function(*args, **kwargs)
        # The public switch, torch.backends.mkldnn.flags, does the same with warnings of formats
        # that this machine lacks.
        torch._C._set_mkldnn_enabled(False)
        try:
            return function(*args, **kwargs)
        finally:
            torch._C._set_mkldnn_enabled(True)


def _dense_gradient(function: Callable, *args: Any, **kwargs: Any) -> Tensor:
    """Look up rows of a table whose gradient is dense, because a sparse one lacks products."""
    bound = inspect.signature(functional.embedding).bind(*args, **kwargs)
    bound.arguments["sparse"] = False
    return function(*bound.args, **bound.kwargs)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Look up rows of a table and reduce them bag by bag: the gradient is dense."""
    if input.ndim == 2:
        entries, count = input, len(input)
        bags = torch.arange(count, device=input.device).unsqueeze(1).expand_as(input).flatten()
    else:
        assert offsets is not None  # demanded by nn.functional.embedding_bag for these inputs
        starts = offsets[:-1] if include_last_offset else offsets
        entries, count = input, len(starts)
        places = torch.arange(len(input), device=input.device).to(starts.dtype)
        bags = torch.searchsorted(starts, places, right=True) - 1
    entries = entries.flatten()
    rows = functional.embedding(
        entries, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq
    )
    counted = torch.ones_like(entries, dtype=weight.dtype)
    if padding_idx is not None:
        counted = (entries != padding_idx % len(weight)).to(weight.dtype)
    if mode == "max":
        kept = rows.masked_fill(counted.unsqueeze(1) == 0, -math.inf)
        lowest = rows.new_full((count, rows.shape[1]), -math.inf)
        highest = lowest.scatter_reduce(
            0, bags.unsqueeze(1).expand_as(kept), kept, "amax", include_self=True
        )
        return highest.masked_fill(highest == -math.inf, 0.0)
    factors = counted
    if per_sample_weights is not None:
        factors = counted * per_sample_weights.flatten()
    sums = rows.new_zeros(count, rows.shape[1]).index_add(0, bags, rows * factors.unsqueeze(1))
    if mode == "sum":
        return sums
    sizes = rows.new_zeros(count).index_add(0, bags, counted)
    return sums / sizes.clamp(min=1).unsqueeze(1)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise; a batch of a single sample by the operations of the definition.

    PyTorch's gradient for a single sample is wrong without an error, in each format and mode, if
    input and gradient lie in memory in different orders, as before a transposition to tokens. With
    a single sample two orders have the same strides, and the kernel of version 2.14 takes one for
    the other.
    """
    if input.shape[0] != 1 or running_mean is None or running_var is None or training:
        if input.shape[0] == 1 and running_mean is None and input.ndim > 2:
            return functional.group_norm(input, input.shape[1], weight, bias, eps)
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    shape = (1, -1, *(1 for _ in input.shape[2:]))
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    normalised = (input - running_mean.reshape(shape)) * scale.reshape(shape)
    return normalised if bias is None else normalised + bias.reshape(shape)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel of each sample; for why, see :func:`_batch_norm`."""
    if input.shape[0] != 1:
        return functional.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    if use_input_stats:
        return functional.group_norm(input, input.shape[1], weight, bias, eps)
    return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _torch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return _instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


_BY_PARTS: dict[Callable, Callable] = {
    functional.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
    functional.instance_norm: _instance_norm,
    torch.instance_norm: _torch_instance_norm,
    torch._weight_norm: _weight_norm,
    functional.hardsigmoid: _hardsigmoid,
    functional.embedding: partial(_dense_gradient, functional.embedding),
    functional.embedding_bag: _embedding_bag,
    **{f: partial(_convolution, f) for f in (torch.conv1d, torch.conv2d, torch.conv3d)},
    **{f: partial(_recurrence, f) for f in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)},
}
