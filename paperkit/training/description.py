"""Descriptions of Python objects in plain values: equal exactly where the objects act alike.

A checkpoint belongs to the run that wrote it, and functions and models are a part of a run. Names
do not tell them apart, because two lambdas share theirs, and so do two networks that differ in a
dropout rate. A description therefore goes into an object: it has a function's code, defaults,
closure and the globals that its code names; a module's class, settings and hooks; the values of
tensors as a digest. Code of this library and of installed packages is described by its name alone,
since two runs that differ do so in the caller's code; line numbers, comments and docstrings of
functions do not count.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import io
import logging
import sys
import sysconfig
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

Plain = str | list[Any] | dict[str, Any]
"""Strings, and lists and dictionaries of them, as a checkpoint can hold."""


def describe(value: object) -> Plain:
    """Describe any object; functions and classes that it leads to stand beside it, by name."""
    return _Describer().described(value)


def describe_architecture(model: nn.Module) -> Plain:
    """Describe a model by all that it computes with, apart from the values of its state."""
    describer = _Describer()
    return describer.with_definitions({**describer.model(model, values=False)})


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's shape, dtype and values."""
    found = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
    whole = tensor.detach()
    if whole.layout != torch.strided:
        whole = whole.to_dense()
    rows = whole.reshape(1) if whole.ndim == 0 else whole
    size = max(1, rows[:1].numel() * rows.element_size())
    for part in rows.split(max(1, _BLOCK // size)):
        flat = part.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def difference(first: Plain | None, second: Plain | None, place: str = "") -> str | None:
    """Say where two descriptions part first, with both sides where they are short.

    Returns
    -------
    str or None
        A place such as ``3.p (0.2 before, 0.5 now)``; None if they are equal.
    """
    if first == second:
        return None
    if isinstance(first, dict) and isinstance(second, dict):
        for key in [*first, *(key for key in second if key not in first)]:
            inner = f"{place}.{key}" if place else key
            if found := difference(first.get(key), second.get(key), inner):
                return found
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            if found := difference(one, other, f"{place}[{index}]"):
                return found
    short = all(isinstance(x, str) and len(x) < _LONGEST_SHOWN for x in (first, second))
    return f"{place} ({first} before, {second} now)" if short else place


# Bytes that are copied to the CPU at a time.
_BLOCK = 2**26
_LONGEST_SHOWN = 40
# Depth of objects inside each other at which only their classes are named.
_DEPTH = 80

_MODULE_INTERNALS = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_CLASS_INTERNALS = frozenset(
    """__module__ __doc__ __dict__ __weakref__ __annotations__ __qualname__ __firstlineno__
    __static_attributes__ __abstractmethods__ _abc_impl __parameters__ __orig_bases__
    __dataclass_fields__ __dataclass_params__ __match_args__ __slots__""".split()
)
# Objects whose content says nothing of what a run computes, or can be read only once.
_OPAQUE = (
    logging.Logger,
    logging.Handler,
    io.IOBase,
    types.GeneratorType,
    types.CoroutineType,
    types.FrameType,
    types.TracebackType,
    weakref.ReferenceType,
)
_DEFAULT_REDUCTION = (object.__reduce__, object.__reduce_ex__)
_SCALARS = (type(None), bool, int, float, complex, str, bytes)
_REPRESENTED = (
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    np.generic,
    np.dtype,
    range,
    slice,
    type(Ellipsis),
)


class _Describer:
    """A walk through objects, on which an object that is met again is named by its number.

    Functions and classes are described one after the other and not inside each other, because they
    form long chains.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []  # an object that is freed would give its id to another
        self._waiting: deque[tuple[str, Any]] = deque()
        self._depth = 0

    def described(self, value: object) -> Plain:
        found = self(value)
        return self.with_definitions({"value": found}) if self._waiting else found

    def with_definitions(self, found: dict[str, Plain]) -> Plain:
        """Add the functions and classes that were met on the way, and those that they meet."""
        while self._waiting:
            label, value = self._waiting.popleft()
            found[label] = self._class(value) if isinstance(value, type) else self._function(value)
        return found

    def __call__(self, value: Any) -> Plain:
        if type(value) in _SCALARS or isinstance(value, _REPRESENTED):
            return repr(value)
        if isinstance(value, enum.Enum):
            return f"{_name(type(value))}.{value.name}"
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray) and value.dtype != object:
            content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return f"array {value.shape} {value.dtype} {content}"
        if isinstance(value, torch.Generator):
            return f"generator {digest(value.get_state())}"
        if isinstance(value, PurePath):
            return str(value)
        if isinstance(value, _OPAQUE) or self._depth > _DEPTH:
            return _name(type(value))
        self._depth += 1
        try:
            return self._container(value) if type(value) is tuple else self._once(value)
        finally:
            self._depth -= 1

    def _once(self, value: Any) -> Plain:
        number = self._numbers.get(id(value))
        if number is not None:
            return f"as #{number}"
        is_code = isinstance(value, type | types.FunctionType)
        if is_code and _is_installed(value) and not getattr(value, "__closure__", None):
            return _name(value)
        number = self._numbered(value)
        if is_code:
            label = f"{value.__qualname__} #{number}"
            self._waiting.append((label, value))
            return label
        if isinstance(value, list | tuple | set | frozenset | dict):
            return self._container(value)
        if isinstance(value, functools.partial):
            parts = {"partial": value.func, "args": value.args, "keywords": value.keywords}
            return {key: self(part) for key, part in parts.items()}
        if isinstance(value, types.MethodType):
            return {"method": self(value.__func__), "of": self(value.__self__)}
        if isinstance(value, nn.Module):
            return dict(self.model(value, values=True))
        if isinstance(value, types.BuiltinFunctionType) and not _has_owner(value):
            return _name(value)
        return self._object(value)

    def _numbered(self, value: object) -> int:
        self._kept.append(value)
        return self._numbers.setdefault(id(value), len(self._numbers))

    def _container(self, value: Any) -> Plain:
        """Describe a list, tuple, set or dictionary; all but lists and dicts name their class."""
        entries: Plain
        if isinstance(value, dict):
            if all(type(key) is str for key in value):
                entries = {key: self(entry) for key, entry in value.items()}
            else:
                entries = [[self(key), self(entry)] for key, entry in value.items()]
        elif isinstance(value, set | frozenset):
            entries = sorted((self(entry) for entry in value), key=str)
        else:
            entries = [self(entry) for entry in value]
        if type(value) in (list, dict):
            return entries
        found: dict[str, Plain] = {"class": self(type(value)), "entries": entries}
        if own := getattr(value, "__dict__", None):
            found["attributes"] = self(own)
        return found

    # -- code ------------------------------------------------------------------------------------

    def _function(self, function: types.FunctionType) -> Plain:
        code = function.__code__
        found: dict[str, Plain] = {}
        if _is_installed(function):
            found["name"] = _name(function)
        else:
            found["code"] = _digest_of(function)
            defaults = function.__defaults__, function.__kwdefaults__
            if any(defaults):
                found["defaults"] = [self(part) for part in defaults]
            for name in sorted(_names_in(code) & set(function.__globals__)):
                found[f"global {name}"] = self(function.__globals__[name])
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            found[f"closure {name}"] = self._cell(cell)
        # Names with an underscore are notes of decorators and of torch, some made while it runs.
        attributes = {n: v for n, v in vars(function).items() if not n.startswith("_")}
        if attributes:
            found["attributes"] = self(attributes)
        return found

    def _cell(self, cell: types.CellType) -> Plain:
        try:
            return self(cell.cell_contents)
        except ValueError:  # the variable has no value yet
            return "empty"

    def _class(self, cls: type) -> Plain:
        found: dict[str, Plain] = {"bases": [self(base) for base in cls.__bases__]}
        for name, member in vars(cls).items():
            if name not in _CLASS_INTERNALS:
                found[name] = self._member(member)
        return found

    def _member(self, member: Any) -> Plain:
        if isinstance(member, staticmethod | classmethod):
            return {type(member).__name__: self(member.__func__)}
        if isinstance(member, property):
            return {"property": [self(f) for f in (member.fget, member.fset, member.fdel)]}
        if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
            return _name(type(member))
        return self(member)

    # -- objects ---------------------------------------------------------------------------------

    def _object(self, value: Any) -> Plain:
        kind = type(value)
        found: dict[str, Plain] = {"class": self(kind)}
        if isinstance(value, Mapping) and not hasattr(value, "__dict__"):
            return found | {"entries": self(dict(value))}
        attributes = dict(_attributes(value))
        found |= {name: self(part) for name, part in attributes.items()}
        # An object that is written in another language than Python shows its state to pickle alone.
        pickles_itself = (kind.__reduce__, kind.__reduce_ex__) != _DEFAULT_REDUCTION
        pickles_itself |= kind in copyreg.dispatch_table
        if pickles_itself or not attributes:
            found["state"] = [self(part) for part in _reduced(value)]
        return found

    def model(self, model: nn.Module, *, values: bool) -> dict[str, Plain]:
        """Describe a module and all inside it, each by its first name.

        Parameters
        ----------
        model : nn.Module
            Module to describe.
        values : bool
            Whether the values of parameters and persistent buffers are a part of it.
        """
        places = {id(layer): name for name, layer in model.named_modules()}
        for layer in model.modules():
            self._numbered(layer)
        return {
            name or "model": self._layer(layer, places, values)
            for name, layer in model.named_modules()
        }

    def _layer(self, layer: nn.Module, places: Mapping[int, str], values: bool) -> Plain:
        found: dict[str, Plain] = {"class": self(type(layer))}
        if isinstance(layer, torch.jit.ScriptModule):
            return found | {"code": str(getattr(layer, "code", ""))}
        if layer._modules:
            found["children"] = {n: places[id(m)] for n, m in layer._modules.items() if m}
        if type(layer).__name__ != "OptimizedModule":  # the compiler's state changes no result
            for name, value in _attributes(layer):
                if name not in _MODULE_INTERNALS:
                    found[name] = self(value)
        for name, parameter in layer._parameters.items():
            found[name] = "None" if parameter is None else self._parameter(parameter, values)
        for name, buffer in layer._buffers.items():
            is_kept = name not in layer._non_persistent_buffers_set and buffer is not None
            found[name] = "buffer" if is_kept and not values else self(buffer)
        return found | {key: self._hooks(layer, key) for key in _HOOKS if getattr(layer, key)}

    def _parameter(self, parameter: Tensor, values: bool) -> Plain:
        number = self._numbers.get(id(parameter))
        if number is not None:  # several layers share it
            return f"as #{number}"
        self._numbered(parameter)
        kind = f"{type(parameter).__name__} {tuple(parameter.shape)} {parameter.dtype}"
        found: dict[str, Plain] = {"kind": kind, "requires_grad": repr(parameter.requires_grad)}
        if values:
            found["values"] = _tensor(parameter)
        for key in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if hooks := getattr(parameter, key, None):
                found[key] = [self(hook) for hook in hooks.values()]
        return found

    def _hooks(self, layer: nn.Module, key: str) -> Plain:
        """Describe a layer's hooks in their order; their keys count all hooks of the process."""
        options = [
            getattr(layer, f"{key}{suffix}", ()) for suffix in ("_with_kwargs", "_always_called")
        ]
        return [
            [self(hook), *(repr(number in option) for option in options)]
            for number, hook in getattr(layer, key).items()
        ]


def _tensor(tensor: Tensor) -> Plain:
    kind = f"{type(tensor).__name__} {tuple(tensor.shape)} {tensor.dtype}"
    if tensor.is_meta:
        return kind
    return f"{kind} {digest(tensor)}{' with gradient' if tensor.requires_grad else ''}"


def describe_global_hooks() -> Plain:
    """Describe the hooks that torch calls for every module."""
    names = [name for name in vars(torch_module) if name.startswith("_global_")]
    hooks = {name: getattr(torch_module, name) for name in sorted(names)}
    return {
        name: [describe(hook) for hook in found.values()]
        for name, found in hooks.items()
        if isinstance(found, dict) and found and name.endswith("hooks")
    }


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield an object's own attributes, those in slots included."""
    yield from getattr(value, "__dict__", {}).items()
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _reduced(value: Any) -> tuple[Any, ...]:
    """Return what an object without attributes is pickled by; nothing if it is not pickled."""
    # Pickle asks this table first; older NumPy names its functions by it alone.
    registered = copyreg.dispatch_table.get(type(value))
    try:
        reduced = value.__reduce_ex__(2) if registered is None else registered(value)
    except Exception:  # an object may refuse with any error
        return ()
    return reduced[1:] if isinstance(reduced, tuple) else (reduced,)


def _has_owner(function: Any) -> bool:
    """Whether a built-in function is the method of an object."""
    owner = getattr(function, "__self__", None)
    return owner is not None and not isinstance(owner, types.ModuleType)


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None) or ""
    return f"{module}.{getattr(value, '__qualname__', repr(value))}"


_OURS = __name__.partition(".")[0]
_INSTALLED = tuple(
    {Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib", "purelib")}
)


@functools.cache
def _is_installed_module(name: str) -> bool:
    if name.partition(".")[0] == _OURS:
        return True
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None:  # a built-in module, or a notebook
        return module is not None and name != "__main__"
    path = Path(file).resolve()
    return "dist-packages" in path.parts or any(map(path.is_relative_to, _INSTALLED))


def _is_installed(value: Any) -> bool:
    """Whether code comes with Python or a package, rather than with the caller's script."""
    return _is_installed_module(value.__module__ or "builtins")


def _names_in(code: types.CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names_in, inner))


def _digest_of(function: types.FunctionType) -> str:
    content = _content_of(function.__code__, function.__doc__)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _content_of(code: types.CodeType, docstring: str | None) -> tuple[object, ...]:
    """Return what code does, without line numbers, file names and its docstring."""
    constants = list(code.co_consts)
    if docstring is not None and constants and constants[0] == docstring:
        constants[0] = None
    shown = [
        _content_of(constant, None)
        if isinstance(constant, types.CodeType)
        else sorted(map(repr, constant))
        if isinstance(constant, frozenset)
        else repr(constant)
        for constant in constants
    ]
    return (
        code.co_code.hex(),
        tuple(shown),
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags,
        code.co_exceptiontable.hex(),
    )
