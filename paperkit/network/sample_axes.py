r"""Where the samples are in every tensor of a forward pass, decided from the operations it runs.

Every operation of torch is seen below autograd, whatever calls it, also on tensors that are
detached or of integers. For each tensor that depends on the inputs we keep the axis along which its
samples lie. An operation with a rule (:mod:`paperkit.network.sample_axis_rules`) computes the part
of a sample from the parts of the same sample alone; if every operation between the inputs and the
outputs has one, no sample sees another, none changes its place, and no numerical check is needed.
Unknown means not known to be apart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from paperkit.network.sample_axis_rules import (
    OVERWRITING,
    Call,
    Operand,
    Places,
    SampleAxis,
    Unknown,
    base_name,
    operands_in,
    require,
    rule_of,
    same_for_all,
)
from paperkit.network.samples import Inputs, Samples

# Operations whose results have no values yet. Entries that are read later were written in between,
# or their values are undefined anyway.
_EMPTY = frozenset(
    "empty empty_like new_empty empty_strided new_empty_strided empty_permuted".split()
)

# Methods through which a tensor's values leave torch, so that no later operation is seen.
_EXITS = frozenset(
    {
        torch.Tensor.numpy,
        torch.Tensor.tolist,
        torch.Tensor.__array__,
        torch.Tensor.__dlpack__,
        torch.Tensor.data_ptr,
        torch.Tensor.untyped_storage,
        torch.Tensor.storage,
        torch.Tensor.__deepcopy__,
        torch.Tensor.__reduce_ex__,
    }
)


@functools.cache
def _written_arguments(func: Any) -> tuple[str, ...]:
    """Return the arguments that an operation writes into."""
    return tuple(
        argument.name
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )


@functools.cache
def _is_view(func: Any) -> bool:
    """Whether the results are the argument's memory under another shape."""
    return all(r.alias_info is not None for r in func._schema.returns) and not _written_arguments(
        func
    )


@functools.cache
def _draws_numbers(func: Any) -> bool:
    """Whether an operation may draw random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags and rule_of(func) is None


@functools.cache
def _signature(func: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    arguments = func._schema.arguments
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return tuple(argument.name for argument in arguments), defaults


_Geometry = tuple[int, tuple[int, ...], tuple[int, ...]]


def _geometry(tensor: Tensor) -> _Geometry:
    return int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


# Stands for the samples' axis of a tensor that has no values yet.
_NO_VALUES = SampleAxis(-1, 0)


class _Memory:
    """Samples' axes of the tensors that share a storage, by the tensors' geometry."""

    def __init__(self, storage: torch.UntypedStorage, constant: bool) -> None:
        # While this reference is held, no other storage gets the same address.
        self.reference = StorageWeakRef(storage)
        self.constant = constant
        # Copy of the values before an operation first writes samples into them.
        self.before: torch.UntypedStorage | None = None
        self.places: dict[_Geometry, SampleAxis | None] = {}


class SampleAxes(TorchDispatchMode):
    """Follow the samples' axis through a forward pass that runs within :meth:`followed`.

    Parameters
    ----------
    model : nn.Module
        Model whose parameters, buffers and tensors among its modules' attributes depend on no
        sample.
    inputs : Tensor or Samples
        The n samples, the very tensors that the pass is called with.

    Attributes
    ----------
    obstacle : str or None
        The first operation that is not known to keep the samples apart.
    random : bool
        Whether an operation that draws random numbers was seen.
    narrowest : torch.dtype or None
        Narrowest format in which the model has been seen to compute; None where it is unknown.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.obstacle: str | None = None
        self.random = False
        self.narrowest: torch.dtype | None = getattr(model, "narrowest", None)
        self._n = len(inputs)
        self._memories: dict[int, _Memory] = {}
        for tensor in _constants(model):
            self._memory(tensor, constant=True)
        for part in inputs.tensors() if isinstance(inputs, Samples) else [inputs]:
            memory = self._memory(part)
            if memory is None or memory.constant:
                self._stop("inputs")
            else:
                memory.places[_geometry(part)] = SampleAxis(0, 1)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow what runs within."""
        with _Exits(self), self:
            yield

    def give_up(self) -> None:
        """Know nothing from now on: the pass could not be followed."""
        self._stop("forward pass")

    def apart(self, tensor: Tensor) -> bool:
        """Whether entry k of the first axis belongs to sample k alone, for sure."""
        if self._n == 1:
            return not self.random
        if self.obstacle is not None or len(tensor) != self._n:
            return False
        try:
            return self._place(tensor) == SampleAxis(0, 1)
        except Unknown:
            return False

    def leaves_torch(self, tensor: Tensor) -> None:
        """Note that a tensor's values go where nobody sees what becomes of them."""
        if self.obstacle is not None:
            return
        with torch._C.DisableTorchFunction():
            try:
                if self._place(tensor) is not None:
                    self._stop("NumPy or Python")
            except Unknown:
                self._stop("NumPy or Python")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            if _draws_numbers(func):
                self.random = True
                self._stop(base_name(func))
            if self.obstacle is not None or self._n == 1:
                return func(*args, **kwargs)
            try:
                call = self._call(func, args, kwargs)
                results = func(*args, **kwargs)
                self._note(func, call, args, results)
            except Unknown:
                self._stop(base_name(func))
                if "results" not in locals():
                    results = func(*args, **kwargs)
            return results

    def _stop(self, obstacle: str) -> None:
        self.obstacle = self.obstacle or obstacle
        self._memories.clear()

    def _memory(self, tensor: Tensor, *, constant: bool = False) -> _Memory | None:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse and other layouts have none
            return None
        memory = self._memories.get(storage._cdata)
        if memory is None:
            memory = self._memories[storage._cdata] = _Memory(storage, constant)
        return memory

    def _place(self, tensor: Tensor) -> SampleAxis | None:
        memory = self._memory(tensor)
        if memory is None:
            raise Unknown
        if memory.constant:
            return None
        geometry = _geometry(tensor)
        if geometry not in memory.places:
            raise Unknown
        return memory.places[geometry]

    def _call(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Call:
        names, defaults = _signature(func)
        given = defaults | dict(zip(names, args, strict=False)) | kwargs
        name = base_name(func)
        # torch.tensor(…) makes such a tensor from values outside of torch. If they depend on the
        # inputs, _Exits has noted it when they left.
        fresh = name == "lift_fresh"

        def operand(value: Any) -> Any:
            if isinstance(value, Tensor):
                place = None if fresh else self._place(value)
                require(place != _NO_VALUES or _is_view(func))
                place = None if place == _NO_VALUES else place
                return Operand(value, tuple(value.shape), place)
            if isinstance(value, list | tuple):
                return [operand(part) for part in value]
            return value

        written = _written_arguments(func)
        arguments = {key: operand(value) for key, value in given.items() if key not in written}
        reads_samples = any(read.axis is not None for read in operands_in(arguments.values()))
        for key in written:
            arguments[key] = self._target(given[key], name, reads_samples)
        return Call(name, {key: arguments[key] for key in names}, self._n, [])

    def _target(self, tensor: Any, name: str, reads_samples: bool) -> Any:
        """Return the operand that an operation writes into, with its values before the write."""
        if not isinstance(tensor, Tensor):
            return tensor
        place, shape = self._place(tensor), tuple(tensor.shape)
        if place == _NO_VALUES:
            require(name in OVERWRITING)
            return Operand(None, shape, None)
        if place is None and reads_samples:
            # The operation runs before its rule is asked, so the entries before it are copied.
            memory = self._memory(tensor)
            require(memory is not None and not memory.constant)
            assert memory is not None
            memory.before = tensor.untyped_storage().clone()
            return Operand(_view(memory.before, tensor, _geometry(tensor)), shape, None)
        return Operand(tensor, shape, place)

    def _note(self, func: Any, call: Call, args: tuple, results: Any) -> None:
        """Work out where the samples are in the results."""
        outputs = list(results) if isinstance(results, list | tuple) else [results]
        tensors = [result for result in outputs if isinstance(result, Tensor)]
        call.shapes = [tuple(tensor.shape) for tensor in tensors]
        places: Places = None
        operands = call.operands()
        if any(operand.axis is not None for operand in operands):
            rule = rule_of(func)
            require(rule is not None and len(tensors) == len([f for f in outputs if f is not None]))
            assert rule is not None
            places = rule(call)
        result_places = places if isinstance(places, list) else [places] * len(tensors)
        if call.name in _EMPTY:
            result_places = [_NO_VALUES] * len(tensors)
        written = _written_arguments(func)
        if written and torch.Tag.inplace_view not in func.tags:
            require(written == ("self",) and len(tensors) == 1 and tensors[0] is args[0])
            self._write(tensors[0], result_places[0])
            return
        for tensor, place in zip(tensors, result_places, strict=True):
            self._set(tensor, place)

    def _set(self, tensor: Tensor, place: SampleAxis | None) -> None:
        memory = self._memory(tensor)
        require(memory is not None)
        assert memory is not None
        if memory.constant:
            require(place is None)
            return
        if place is None and _NO_VALUES in memory.places.values():
            place = _NO_VALUES  # the tensor is a view of memory without values
        memory.places[_geometry(tensor)] = place

    def _write(self, tensor: Tensor, place: SampleAxis | None) -> None:
        """Note where the samples are, after a write, in all tensors that share the memory."""
        memory = self._memory(tensor)
        require(memory is not None)
        assert memory is not None
        if memory.constant:
            require(place is None)
            return
        before = memory.places[_geometry(tensor)]
        if before not in (None, _NO_VALUES):
            require(place in (before, None))
            return
        if place is None:
            # The write gives values to a part of the memory alone. Other parts count as written
            # too, since entries that are read were written before, or are undefined anyway.
            memory.places = {
                geometry: None if old == _NO_VALUES else old
                for geometry, old in memory.places.items()
            }
            return
        # The first tensor is the one for which the memory was made; the others are views of it.
        base = next(iter(memory.places))
        require(_dense(base))
        _samples_in(base, base, _geometry(tensor), place)
        for geometry, old in memory.places.items():
            own_place = _samples_in(geometry, base, _geometry(tensor), place)
            if old is None:  # entries that are not written must have been the same for all samples
                assert memory.before is not None
                remainder = Operand(_view(memory.before, tensor, geometry), geometry[1], None)
                require(same_for_all(remainder, own_place.axis, own_place, self._n))
            memory.places[geometry] = own_place
        memory.before = None


def _view(storage: torch.UntypedStorage, like: Tensor, geometry: _Geometry) -> Tensor:
    """Return a tensor of the same dtype in other memory."""
    offset, shape, strides = geometry
    return like.new_empty(0).set_(storage, offset, shape, strides)


def _dense(geometry: _Geometry) -> bool:
    """Whether a tensor has each entry of its stretch of memory exactly once."""
    _, shape, strides = geometry
    span = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    return math.prod(shape) == span


def _samples_in(
    geometry: _Geometry, base: _Geometry, written: _Geometry, place: SampleAxis
) -> SampleAxis:
    """Find the samples' axis of a tensor after samples were written into its memory.

    ``written`` is the tensor that they were written into, with its samples at ``place``, and
    ``base`` the one for which the memory was made.
    """
    extent, stride = written[1][place.axis], written[2][place.axis]
    require(stride > 0)
    # Both tensors must start at the first sample.
    for start in (geometry[0], written[0]):
        require(((start - base[0]) // stride) % extent == 0)
    for axis, (size, step) in enumerate(zip(geometry[1], geometry[2], strict=True)):
        if (size, step) == (extent, stride):
            return SampleAxis(axis, place.inner)
    raise Unknown


class _Exits(TorchFunctionMode):
    """Note the tensors whose values leave torch."""

    def __init__(self, axes: SampleAxes) -> None:
        super().__init__()
        self.axes = axes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _EXITS and args and isinstance(args[0], Tensor):
            self.axes.leaves_torch(args[0])
        return func(*args, **(kwargs or {}))


def _constants(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a model holds before a pass, which depend on no sample."""
    for module in model.modules():
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        for value in vars(module).values():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, list | tuple):
                yield from (part for part in value if isinstance(part, Tensor))
            elif isinstance(value, dict):
                yield from (part for part in value.values() if isinstance(part, Tensor))
