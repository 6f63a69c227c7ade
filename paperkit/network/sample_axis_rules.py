r"""Which operations of torch keep samples apart, and where they leave the samples' axis.

A rule gets a call with its arguments by name and returns where the samples are in its results. The
rule raises :class:`Unknown` unless the part of a sample in the results follows from the parts of
the same sample in the operands alone, whatever its place in the batch.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class SampleAxis(NamedTuple):
    """Where the samples of a tensor are: entry k of an axis belongs to sample (k // inner) mod n.

    ``inner`` is 1 where the axis counts samples, and the number of tokens where (n, tokens) was
    flattened.
    """

    axis: int
    inner: int


class Operand(NamedTuple):
    """A tensor that an operation reads; its samples' axis, None where it depends on none."""

    tensor: Tensor | None
    shape: tuple[int, ...]
    axis: SampleAxis | None


class Unknown(Exception):
    """Nothing says that samples stay apart."""


@dataclass
class Call:
    """An operation with its arguments by name; tensors are operands."""

    name: str
    arguments: dict[str, Any]
    n: int
    shapes: list[tuple[int, ...]]  # shapes of the results

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def operands(self) -> list[Operand]:
        """Return all tensors among the arguments."""
        return list(operands_in(self.arguments.values()))

    def only(self, name: str) -> Operand:
        """Return the one operand that depends on samples."""
        operand = self[name]
        require(isinstance(operand, Operand) and operand.axis is not None)
        require(all(other is operand or other.axis is None for other in self.operands()))
        return operand


# Return values of rules: the samples' axis of all results, or a list with that of each.
Places = SampleAxis | None | list[SampleAxis | None]
Rule = Callable[[Call], Places]


def require(condition: bool) -> None:
    """Raise :class:`Unknown` unless a condition holds."""
    if not condition:
        raise Unknown


def operands_in(values: Iterable[Any]) -> Iterator[Operand]:
    """Yield the operands among values and lists of them."""
    for value in values:
        if isinstance(value, Operand):
            yield value
        elif isinstance(value, list):
            yield from operands_in(value)


def same_for_all(constant: Operand, axis: int, place: SampleAxis, n: int) -> bool:
    """Whether a constant is the same for every sample, so that no place in the batch counts."""
    tensor = constant.tensor
    if tensor is None:
        return False
    if tensor.stride(axis) == 0:
        return True
    if tensor.shape[axis] % (n * place.inner):
        return False
    by_sample = tensor.unflatten(axis, (-1, n, place.inner))
    first = by_sample.narrow(axis + 1, 0, 1)
    return bool((by_sample == first).all())


def _aligned(call: Call, operands: Sequence[Operand], ndim: int) -> SampleAxis:
    """Return where the samples are after broadcasting to ``ndim`` axes."""
    places = {
        (operand.axis.axis - len(operand.shape), operand.axis.inner, operand.shape[operand.axis[0]])
        for operand in operands
        if operand.axis is not None
    }
    require(len(places) == 1)
    ((axis, inner, extent),) = places
    place = SampleAxis(ndim + axis, inner)
    for operand in operands:
        if operand.axis is None and len(operand.shape) >= -axis and operand.shape[axis] != 1:
            own_axis = len(operand.shape) + axis
            require(operand.shape[axis] == extent)
            require(same_for_all(operand, own_axis, place, call.n))
    return place


def _pointwise(call: Call) -> SampleAxis:
    return _aligned(call, call.operands(), max(len(operand.shape) for operand in call.operands()))


def _overwritten(call: Call) -> SampleAxis | None:
    """Overwrite a tensor by the values of another, or by a single number."""
    target = call["self"]
    sources = call.operands()[1:]
    read = sources if target.axis is None else [target, *sources]
    return _aligned(call, read, len(target.shape)) if read else None


def _dims(call: Call, ndim: int) -> list[int]:
    """Return the axes that an operation works along."""
    for name in ("dim", "dims", "dimension"):
        if name in call.arguments:
            dims = call[name]
            dims = [dims] if isinstance(dims, int) else dims
            require(bool(dims))
            return [dim % ndim for dim in dims]
    raise Unknown


def _along_dims(call: Call) -> list[SampleAxis | None]:
    """Work along some axes, which the results keep or lose; entries of other axes do not mix."""
    operands = [operand for operand in call.operands() if operand.shape or operand.axis]
    ndim = len(call["self"].shape)
    require(all(len(operand.shape) == ndim for operand in operands))
    dims = _dims(call, ndim)
    place = _aligned(call, operands, ndim)
    # Indices are not broadcast: fewer rows would touch the first samples only.
    require(len({operand.shape[place.axis] for operand in operands}) == 1)
    require(place.axis not in dims)
    lost_before = sum(dim < place.axis for dim in dims)
    return [
        place._replace(axis=place.axis - lost_before) if len(shape) < ndim else place
        for shape in call.shapes
    ]


def _leading(call: Call, trailing: int) -> SampleAxis:
    """Work on the last axes; entries of every other axis do not mix."""
    operand = next(operand for operand in call.operands() if operand.axis is not None)
    place = operand.axis
    assert place is not None
    require(place.axis < len(operand.shape) - trailing)
    require(all(other is operand or other.axis is None for other in call.operands()))
    return place


def _last(trailing: int) -> Rule:
    return lambda call: _leading(call, trailing)


def _padded(call: Call) -> SampleAxis:
    return _leading(call, len(call["pad"]) // 2)


def _layer_norm(call: Call) -> list[SampleAxis | None]:
    place = call.only("input").axis
    assert place is not None
    require(place.axis < len(call["input"].shape) - len(call["normalized_shape"]))
    return [place] * len(call.shapes)


def _first_axis(name: str) -> Rule:
    """Return the rule of operations that treat every entry of the input's first axis alike."""

    def rule(call: Call) -> SampleAxis:
        place = call.only(name).axis
        assert place is not None
        require(place.axis == 0)
        return place

    return rule


def _batch_norm(call: Call) -> list[SampleAxis | None]:
    operand = call.only("input")
    place = operand.axis
    assert place is not None
    if place.axis == 0:  # samples are apart if the statistics are frozen
        require(not call.arguments.get("training", False))
    else:  # samples are channels, which are normalised apart: torch's instance normalisation
        require(place.axis == 1)
        for other in call.operands():
            if other is not operand and other.shape and other.shape[0]:
                require(same_for_all(other, 0, place, call.n))
    statistics = None if place.axis == 0 else SampleAxis(0, place.inner)
    return [place, *(statistics if len(shape) == 1 else None for shape in call.shapes[1:])]


def _matrix_product(a: Operand, b: Operand) -> SampleAxis:
    """Rows of the left or columns of the right factor are samples; the other depends on none."""
    if b.axis is None:
        require(a.axis is not None and a.axis.axis == len(a.shape) - 2)
        assert a.axis is not None
        return a.axis
    require(a.axis is None and b.axis.axis == len(b.shape) - 1)
    return b.axis


def _mm(call: Call) -> SampleAxis:
    return _matrix_product(call["self"], call["mat2"])


def _mv(call: Call) -> SampleAxis:
    place = call.only("self").axis
    assert place is not None
    require(place.axis == 0)
    return place


def _batched_product(call: Call, a: Operand, b: Operand) -> SampleAxis:
    if all(x.axis is None or x.axis.axis == 0 for x in (a, b)):
        return _aligned(call, (a, b), 3)
    return _matrix_product(a, b)


def _bmm(call: Call) -> SampleAxis:
    return _batched_product(call, call["self"], call["mat2"])


def _plus(call: Call, place: SampleAxis) -> SampleAxis:
    """Add the first operand to a product."""
    shape = call.shapes[0]
    return _aligned(call, (call["self"], Operand(None, shape, place)), len(shape))


def _addmm(call: Call) -> SampleAxis:
    require(call["mat1"].axis is not None or call["mat2"].axis is not None)
    return _plus(call, _matrix_product(call["mat1"], call["mat2"]))


def _baddbmm(call: Call) -> SampleAxis:
    a, b = call["batch1"], call["batch2"]
    require(a.axis is not None or b.axis is not None)
    return _plus(call, _batched_product(call, a, b))


def _reshape(call: Call) -> SampleAxis:
    """Find the axis of the new shape along which row-major order runs through the samples."""
    (operand,) = (operand for operand in call.operands() if operand.axis is not None)
    place, shape = operand.axis, call.shapes[0]
    assert place is not None
    stride = place.inner * math.prod(operand.shape[place.axis + 1 :])
    below = 1
    for axis in reversed(range(len(shape))):
        require(below > 0)
        if stride % below == 0 and shape[axis] and shape[axis] % (stride // below * call.n) == 0:
            return SampleAxis(axis, stride // below)
        below *= shape[axis]
    raise Unknown


def _same_memory(call: Call) -> SampleAxis:
    """Accept the same shape; a stride may differ only along an axis of at most one entry."""
    operand, size = call.only("self"), call["size"]
    assert operand.tensor is not None and operand.axis is not None
    require(tuple(size) == operand.shape and call["storage_offset"] is None)
    strides = zip(size, operand.tensor.stride(), call["stride"], strict=True)
    require(all(extent <= 1 or before == after for extent, before, after in strides))
    return operand.axis


def _permuted(call: Call) -> SampleAxis:
    operand = call["self"]
    ndim = len(operand.shape)
    order = list(range(ndim))
    if call.name == "permute":
        order = [dim % ndim for dim in call["dims"]]
    elif call.name == "t":
        order.reverse()
    else:
        a, b = call["dim0"] % ndim, call["dim1"] % ndim
        order[a], order[b] = b, a
    return SampleAxis(order.index(operand.axis.axis), operand.axis.inner)


def _cut(call: Call) -> SampleAxis:
    """Take a part along an axis; along the samples' axis only whole batches."""
    operand = call["self"]
    place, ndim = operand.axis, len(operand.shape)
    dim = call["dim"] % ndim
    if dim != place.axis:
        is_removed = call.name in ("select", "unbind") and dim < place.axis
        return place._replace(axis=place.axis - is_removed)
    period = call.n * place.inner
    require(call.name not in ("select", "unbind"))
    require(all(shape[dim] % period == 0 and shape[dim] > 0 for shape in call.shapes))
    if call.name == "slice":
        require(call["step"] == 1)
        start = call["start"] or 0
        start = start + operand.shape[dim] if start < 0 else start
        require(start % period == 0)
    return place


def _squeezed(call: Call) -> SampleAxis:
    operand = call["self"]
    place, shape = operand.axis, operand.shape
    if "dim" not in call.arguments:
        removed = [axis for axis, extent in enumerate(shape) if extent == 1]
    else:
        removed = [axis for axis in _dims(call, len(shape)) if shape[axis] == 1]
    return place._replace(axis=place.axis - sum(axis < place.axis for axis in removed))


def _unsqueezed(call: Call) -> SampleAxis:
    operand = call["self"]
    dim = call["dim"] % (len(operand.shape) + 1)
    return operand.axis._replace(axis=operand.axis.axis + (dim <= operand.axis.axis))


def _expanded(call: Call) -> SampleAxis:
    operand, shape = call["self"], call.shapes[0]
    axis = operand.axis.axis + len(shape) - len(operand.shape)
    require(shape[axis] % operand.shape[operand.axis.axis] == 0)
    return operand.axis._replace(axis=axis)


def _diagonal(call: Call) -> SampleAxis:
    operand = call["self"]
    place, ndim = operand.axis, len(operand.shape)
    dims = {call["dim1"] % ndim, call["dim2"] % ndim}
    require(place.axis not in dims)
    return place._replace(axis=place.axis - sum(dim < place.axis for dim in dims))


def _joined(call: Call) -> SampleAxis:
    """Join along an axis; along the samples' axis whole batches are joined."""
    operands = call["tensors"]
    ndim = len(call.shapes[0]) - (call.name == "stack")
    require(all(len(operand.shape) == ndim for operand in operands))
    dim = call["dim"] % len(call.shapes[0])
    places = {operand.axis for operand in operands}
    if call.name == "cat" and len(places) == 1:  # only cat joins tensors of different extents
        (place,) = places
        assert place is not None
        return place
    place = _aligned(call, operands, ndim)
    require(call.name == "stack" or dim != place.axis)
    return place._replace(axis=place.axis + (call.name == "stack" and dim <= place.axis))


def _indexed(call: Call) -> SampleAxis:
    """Index other axes than the samples', or one row of each sample, or a table by samples."""
    table, indices = call["self"], call["indices"]
    indexed_axes = [axis for axis, index in enumerate(indices) if index is not None]
    given = [indices[axis] for axis in indexed_axes]
    require(bool(indexed_axes) and all(index.tensor.dtype not in _MASKS for index in given))
    adjacent = indexed_axes == list(range(indexed_axes[0], indexed_axes[-1] + 1))
    ndim = max(len(index.shape) for index in given)
    first = indexed_axes[0] if adjacent else 0
    if table.axis is None:
        place = _aligned(call, given, ndim)
        return place._replace(axis=first + place.axis)
    if table.axis.axis in indexed_axes:
        return _own_rows(call, table, indices, given)
    require(all(index.axis is None for index in given))
    before = sum(axis < table.axis.axis for axis in indexed_axes)
    shifted = table.axis.axis - before
    if not adjacent or indexed_axes[0] < table.axis.axis:
        shifted += ndim
    return table.axis._replace(axis=shifted)


def _own_rows(
    call: Call, table: Operand, indices: list[Operand | None], given: list[Operand]
) -> SampleAxis:
    """Pick a position in each sample's row, as h[arange(n), positions] does."""
    rows = indices[0]
    require(table.axis == SampleAxis(0, 1) and table.shape[0] == call.n)
    require(rows is not None and rows.axis is None and rows.shape == (call.n,))
    assert rows is not None and rows.tensor is not None
    require(torch.equal(rows.tensor, torch.arange(call.n).to(rows.tensor)))
    operands = [rows._replace(axis=SampleAxis(0, 1)) if index is rows else index for index in given]
    require(all(len(index.shape) == 1 for index in operands))
    return _aligned(call, operands, 1)


def _looked_up(call: Call) -> SampleAxis:
    require(call["weight"].axis is None)
    return call["indices"].axis


def _index_select(call: Call) -> SampleAxis:
    operand, index = call["self"], call["index"]
    dim = call["dim"] % max(1, len(operand.shape))
    if operand.axis is None:
        require(len(index.shape) == 1)
        return index.axis._replace(axis=dim)
    require(index.axis is None and dim != operand.axis.axis)
    return operand.axis


def _recurrent(call: Call) -> list[SampleAxis | None]:
    """Run over a sequence (length, n, …) or (n, length, …); states are (…, n, features)."""
    operand = call["input"]
    axis = 0 if call["batch_first"] and call.name == "_cudnn_rnn" else 1
    require(operand.axis is not None and operand.axis.axis == axis and not call["batch_sizes"])
    states = [call[name] for name in ("hx", "cx", "hx_", "cx_") if name in call.arguments]
    states = [state for state in states if state is not None]
    read = [operand, *states]
    require(all(any(x is other for other in read) or x.axis is None for x in call.operands()))
    inner = operand.axis.inner
    for state in states:
        place = SampleAxis(len(state.shape) - 2, inner)
        require(
            state.axis == place
            if state.axis is not None
            else state.shape[place.axis] == 1 or same_for_all(state, place.axis, place, call.n)
        )
    ends = [SampleAxis(len(shape) - 2, inner) for shape in call.shapes[1:3] if len(shape) > 1]
    return [operand.axis, *ends, *[None] * (len(call.shapes) - 1 - len(ends))]


def _attention(call: Call) -> list[SampleAxis | None]:
    """Attend within each sample and head, (n, heads, length, features)."""
    require(call["dropout_p"] == 0)
    place = _aligned(call, call.operands(), 4)
    require(place.axis < 2)
    return [place if len(shape) > 2 else None for shape in call.shapes]


def _distances(call: Call) -> SampleAxis:
    a, b = call["x1"], call["x2"]
    if b.axis is None and a.axis is not None and a.axis.axis == len(a.shape) - 2:
        return a.axis
    require(all(x.axis is None or x.axis.axis < len(x.shape) - 2 for x in (a, b)))
    return _aligned(call, (a, b), len(call.shapes[0]))


def _frozen(argument: str, rule: Rule) -> Rule:
    """Return a rule that holds where an option of training is off."""

    def checked(call: Call) -> Places:
        require(not call[argument])
        return rule(call)

    return checked


_MASKS = (torch.bool, torch.uint8)

OVERWRITING = ("copy", "fill", "zero")

_RULES: dict[str, Rule] = {
    **dict.fromkeys(OVERWRITING, _overwritten),
    # Operations that work entry by entry, besides those that torch itself tags as such;
    # torch 2.6 does not tag leaky_relu.
    **dict.fromkeys(
        """
        _to_copy clone detach alias lift_fresh hardswish leaky_relu _prelu_kernel
        log_sigmoid_forward real imag view_as_real view_as_complex _conj _conj_physical
        resolve_conj polar complex masked_fill to _thnn_fused_gru_cell _thnn_fused_lstm_cell
        """.split(),
        _pointwise,
    ),
    **dict.fromkeys(
        """
        _softmax _log_softmax _safe_softmax cumsum cumprod cummax cummin logcumsumexp flip roll sort
        topk kthvalue median nanmedian mode glu unfold gather scatter scatter_add scatter_reduce
        sum nansum mean amax amin aminmax var std var_mean std_mean any all prod logsumexp norm
        linalg_vector_norm max min argmax argmin count_nonzero _fft_r2c _fft_c2c _fft_c2r
        """.split(),
        _along_dims,
    ),
    **dict.fromkeys("avg_pool1d upsample_nearest1d upsample_linear1d".split(), _last(1)),
    **dict.fromkeys(
        """
        max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
        mkldnn_adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
        _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa tril triu
        """.split(),
        _last(2),
    ),
    **dict.fromkeys(
        """
        max_pool3d_with_indices avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d pixel_shuffle
        pixel_unshuffle upsample_nearest3d upsample_trilinear3d im2col channel_shuffle
        """.split(),
        _last(3),
    ),
    "col2im": _last(2),
    **dict.fromkeys("reflection_pad1d replication_pad1d".split(), _last(1)),
    **dict.fromkeys("reflection_pad2d replication_pad2d".split(), _last(2)),
    **dict.fromkeys("reflection_pad3d replication_pad3d".split(), _last(3)),
    "constant_pad_nd": _padded,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "native_group_norm": _first_axis("input"),
    "convolution": _first_axis("input"),
    "mkldnn_convolution": _first_axis("self"),
    **dict.fromkeys(
        """
        native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        _batch_norm_no_update cudnn_batch_norm miopen_batch_norm
        """.split(),
        _batch_norm,
    ),
    "rrelu_with_noise": _frozen("training", lambda call: call.only("self").axis),
    "mm": _mm,
    "mv": _mv,
    "bmm": _bmm,
    "addmm": _addmm,
    "_addmm_activation": _addmm,
    "baddbmm": _baddbmm,
    **dict.fromkeys("view _unsafe_view reshape _reshape_alias unflatten".split(), _reshape),
    **dict.fromkeys("permute transpose t".split(), _permuted),
    **dict.fromkeys(
        "select slice split split_with_sizes unsafe_split unsafe_split_with_sizes unbind".split(),
        _cut,
    ),
    "as_strided": _same_memory,
    "squeeze": _squeezed,
    "unsqueeze": _unsqueezed,
    "expand": _expanded,
    "repeat": _expanded,
    "diagonal": _diagonal,
    "cat": _joined,
    "stack": _joined,
    "index": _indexed,
    "index_select": _index_select,
    "embedding": _looked_up,
    "mkldnn_rnn_layer": _recurrent,
    "_cudnn_rnn": _recurrent,
    **dict.fromkeys(
        """
        _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
        """.split(),
        _attention,
    ),
    "_cdist_forward": _distances,
    "_euclidean_dist": _distances,
    # Operations whose results take nothing but a shape from the samples.
    **dict.fromkeys(
        "zeros_like ones_like full_like new_zeros new_ones new_full empty_like new_empty".split(),
        lambda call: None,
    ),
}


@functools.cache
def base_name(func: Any) -> str:
    """Return the operation's name without the underscore of its form in place."""
    name = func._schema.name.removeprefix("aten::")
    return name if name.startswith("__") else re.sub(r"(?<=\w)_$", "", name)


@functools.cache
def rule_of(func: Any) -> Rule | None:
    """Return the rule of an operation of torch, None where it has none."""
    name = base_name(func)
    if not func._schema.name.startswith("aten::"):
        return None
    if name in _RULES:
        return _RULES[name]
    packet = getattr(torch.ops.aten, name, None)
    overload = getattr(packet, func._overloadname, func)
    pointwise = torch.Tag.pointwise in func.tags or torch.Tag.pointwise in overload.tags
    return _pointwise if pointwise else None
