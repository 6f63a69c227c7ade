"""The modules behind a list of parameters, and the changes that a forward pass makes in them."""

from __future__ import annotations

import copy
import functools
import random
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, instancenorm
from torch.nn.modules.module import register_module_forward_pre_hook

# The hook of this file does nothing in a compiled model, and is told of the model itself.
warnings.filterwarnings("ignore", r"Using `torch.compile\(module\)` when there are global hooks")

_MACHINERY = frozenset(vars(nn.Module())) | {"training"}
_CONTAINERS = (list, dict, set, deque)
_GENERATORS = (torch.Generator, np.random.Generator, random.Random)
# Their buffers change in training and are read in evaluation.
_WRITE_ONLY = {batchnorm.__name__, instancenorm.__name__}


def all_modules(roots: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules and everything under them, each once."""
    found = {id(root): root for root in roots}
    pending = list(found.values())
    while pending:
        for child in pending.pop()._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                if child._modules:
                    pending.append(child)
    return list(found.values())


class KnownModules:
    """The modules that an optimizer was given, and what its steps learn about modules.

    Parameters
    ----------
    roots : list of nn.Module
        Modules, each with everything under it.
    """

    def __init__(self, roots: list[nn.Module]) -> None:
        self.roots = roots
        self.moving = MovingParameters()
        self._all: list[nn.Module] = []
        self._ids: frozenset[int] = frozenset()

    def all(self) -> tuple[list[nn.Module], frozenset[int]]:
        """Return the modules as they are now and their ``id``; layers may have been exchanged."""
        found = all_modules(self.roots)
        if found != self._all:
            refuse_sharded((), found)
            self._all, self._ids = found, frozenset(map(id, found))
        return self._all, self._ids

    def __reduce__(self) -> Any:
        # A pickle must not fail at what modules hold; a copy's are found when it calls them.
        return KnownModules, ([],)

    def __deepcopy__(self, memo: dict[int, Any]) -> KnownModules:
        return KnownModules(copy.deepcopy(self.roots, memo))


class PassWatch:
    """A watch over modules, so that the passes of a step change them as a single pass does.

    Known modules are watched with everything under them; others from when a pass calls them. Their
    buffers, the attributes of classes that are not PyTorch's own (numbers, tensors, lists, dicts,
    sets, queues, generators) and the parameters that a forward pass itself changes, such as those
    of a momentum encoder, are put back to what they were before the first pass for each later one,
    and in the end to what the first pass left. Tensors within containers are not copied.

    Parameters
    ----------
    known : KnownModules
        Modules that the optimizer was given.
    optimized : iterable of Tensor
        Its parameters: it takes care of those that require gradients.
    evaluation : bool
        Whether the passes are in evaluation mode, to which the modules are switched meanwhile.
    switch : bool
        Whether modules are switched; False where the passes switch them by themselves.
    """

    def __init__(
        self,
        known: KnownModules,
        optimized: Iterable[Tensor],
        *,
        evaluation: bool = False,
        switch: bool = True,
    ) -> None:
        self.modules: list[nn.Module] = []
        self.called: list[nn.Module] = []
        self._stateful: list[nn.Module] = []
        self._seen: set[int] = set()
        self._moving = known.moving
        self._optimized = {id(parameter) for parameter in optimized if parameter.requires_grad}
        self._marks: list[_Mark] = []
        self._before: list[_Snapshot] = []
        self._after: list[_Snapshot] = []
        self._first_is_over = False
        self._evaluation = evaluation
        self._switches = evaluation and switch
        self._modes: list[tuple[nn.Module, bool]] = []
        self._stop_listening: Any = None
        # A compiled model is called as a whole, and says that hooks inside it do not run.
        self._listens = not any(hasattr(root, "_orig_mod") for root in known.roots)
        if known.roots:
            modules, ids = known.all()
            self._seen.update(ids)
            self._watch(modules)

    def _watch(self, new: list[nn.Module]) -> None:
        self.modules += new
        if self._switches:
            self._modes += [(module, module.training) for module in new]
            for module in new:
                module.training = False
        stateful = [m for m in new if m._buffers or _has_attributes(m)]
        self._stateful += stateful
        if self._first_is_over:
            self._after.append(_Snapshot(stateful, self._moving.among(new)))
            return
        marks = self._moving.marks(new, self._optimized)
        self._marks += marks
        read = [m for m in stateful if self._evaluation or type(m).__module__ not in _WRITE_ONLY]
        moving = self._moving.among(new)
        if self._evaluation:  # no first pass will tell which move
            moving += [mark.parameter for mark in marks if mark.is_new]
        if read or moving:
            self._before.append(_Snapshot(read, moving))

    def _on_call(self, module: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling() or id(module) in self._seen:
            return
        if getattr(module, "_is_replica", False):  # DataParallel made it for this call
            return
        self.called.append(module)
        new = [m for m in all_modules([module]) if id(m) not in self._seen]
        refuse_sharded((), new)
        self._seen.update(map(id, new))
        self._watch(new)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Watch all modules that are called inside."""
        if not self._listens:
            yield
            return
        handle = register_module_forward_pre_hook(self._on_call)
        try:
            yield
        finally:
            handle.remove()

    def listen(self) -> None:
        """Watch all modules that are called from here on, as long as this object lives."""
        if self._listens:
            on_call = weakref.WeakMethod(self._on_call)

            def hook(module: nn.Module, inputs: Any) -> None:
                method = on_call()
                if method is not None:
                    method(module, inputs)

            handle = register_module_forward_pre_hook(hook)
            self._stop_listening = weakref.finalize(self, handle.remove)

    def first_pass_is_over(self) -> None:
        """Copy the state that the first pass left."""
        self._moving.learn(self._marks)
        self._after = [_Snapshot(self._stateful, self._moving.among(self.modules))]
        self._first_is_over = True

    def replay(self) -> None:
        """Put everything back to its state before the first pass."""
        for snapshot in self._before:
            snapshot.restore()

    def undo(self) -> None:
        """Put everything back to its state before, and stop."""
        self._moving.learn(self._marks)
        self.replay()
        self.restore()

    def restore(self) -> None:
        """Put everything back to its state after the first pass, if that ran to its end."""
        if self._stop_listening is not None:
            self._stop_listening()
        for snapshot in self._after:
            snapshot.restore()
        for module, mode in self._modes:
            module.training = mode


class MovingParameters:
    """The parameters that forward passes change by themselves, such as a moving average's.

    They are found when a first pass has changed their version or place. ``.data`` shows neither,
    so the first time that a module is watched its parameters' norms are compared as well.
    """

    def __init__(self) -> None:
        self._moving: dict[int, Tensor] = {}
        self._known: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def marks(self, modules: Iterable[nn.Module], optimized: set[int]) -> list[_Mark]:
        """Mark the parameters as they are now, but for those that an optimizer restores."""
        marks = []
        for module in modules:
            if not module._parameters:
                continue
            held = module._parameters.values()
            others = [p for p in held if p is not None and id(p) not in optimized]
            if others:
                new = module not in self._known
                self._known.add(module)
                marks += [_Mark(p, new) for p in others if not nn.parameter.is_lazy(p)]
        return marks

    def learn(self, marks: Iterable[_Mark]) -> None:
        """Find those that have changed since."""
        for mark in marks:
            if mark.differs():
                self._moving[id(mark.parameter)] = mark.parameter

    def among(self, modules: Iterable[nn.Module]) -> list[Tensor]:
        """Return those that are held by some modules."""
        if not self._moving:
            return []
        held = {id(p): p for m in modules for p in m._parameters.values() if id(p) in self._moving}
        return [p for p in held.values() if p is not None]


class _Mark:
    """A parameter, with its version, place and norm at some moment."""

    __slots__ = ("_norm", "_place", "_version", "is_new", "parameter")

    def __init__(self, parameter: Tensor, is_new: bool) -> None:
        self.parameter = parameter
        self.is_new = is_new
        self._version = parameter._version
        self._place = parameter.data_ptr()
        self._norm = parameter.detach().norm() if is_new and parameter.numel() else None

    def differs(self) -> bool:
        parameter = self.parameter
        if parameter._version != self._version or parameter.data_ptr() != self._place:
            return True
        return self._norm is not None and not torch.equal(parameter.detach().norm(), self._norm)


class _Snapshot:
    """A copy of the state of some modules and tensors, from which it can be restored."""

    def __init__(self, modules: Sequence[nn.Module], tensors: Sequence[Tensor]) -> None:
        self._objects: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._contents: list[tuple[Any, Any]] = []
        held = {id(tensor): tensor for tensor in tensors}
        for module in modules:
            if module._buffers:
                self._objects.append((module._buffers, dict(module._buffers)))
                for buffer in module._buffers.values():
                    if buffer is not None:
                        held[id(buffer)] = buffer
            if _has_attributes(module):
                self._note_attributes(module, held)
        self._tensors = list(held.values())
        with torch.no_grad():
            self._values = [tensor.clone() for tensor in self._tensors]

    def _note_attributes(self, module: nn.Module, held: dict[int, Tensor]) -> None:
        place = vars(module)
        attributes = {name: place[name] for name in place.keys() - _MACHINERY}
        if not attributes:
            return
        self._objects.append((place, attributes))
        for value in attributes.values():
            if isinstance(value, Tensor):
                if not value.requires_grad:
                    held[id(value)] = value
            elif isinstance(value, _CONTAINERS):
                self._contents.append((value, copy.copy(value)))
            elif isinstance(value, _GENERATORS):
                self._contents.append((value, _generator_state(value)))

    @torch.no_grad()
    def restore(self) -> None:
        """Put objects and values back, bit for bit."""
        for place, objects in self._objects:
            for name, value in objects.items():
                if place.get(name) is not value:
                    place[name] = value
        for container, content in self._contents:
            _restore_content(container, content)
        for tensor, value in zip(self._tensors, self._values, strict=True):
            if tensor.shape != value.shape:
                tensor.data = value.clone()
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._values)


def _has_attributes(module: nn.Module) -> bool:
    """Whether a class is none of PyTorch's own, so that its forward pass may change attributes."""
    return not _is_pytorchs_own(module.__class__.__module__)


@functools.cache
def _is_pytorchs_own(name: str) -> bool:
    return name.startswith("torch.")


def _generator_state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state


def _restore_content(held: Any, content: Any) -> None:
    if isinstance(held, torch.Generator):
        held.set_state(content)
    elif isinstance(held, random.Random):
        held.setstate(content)
    elif isinstance(held, np.random.Generator):
        held.bit_generator.state = content
    elif isinstance(held, list):
        held[:] = content
    else:
        held.clear()
        held.extend(content) if isinstance(held, deque) else held.update(content)


def refuse_sharded(parameters: Iterable[Tensor], modules: Iterable[nn.Module]) -> None:
    """Refuse parameters of which this process holds only a part.

    Raises
    ------
    ValueError
        With one sentence.
    """
    kinds: set[Any] = {type(item) for item in (*parameters, *modules)}
    if any(_is_sharding(kind) for kind in kinds):
        raise ValueError(
            "params are sharded over processes (FSDP), so their norms here are not the gradient's: "
            "use DistributedDataParallel with this optimizer."
        )


@functools.cache
def _is_sharding(kind: Any) -> bool:
    sharding = ("torch.distributed.fsdp", "torch.distributed.tensor")
    return any(ancestor.__module__.startswith(sharding) for ancestor in kind.__mro__)


def names_of(parameters: Sequence[Tensor], roots: Iterable[nn.Module]) -> dict[int, str]:
    """Return each parameter's name in the first module that holds them all, by its ``id``.

    Names in different modules do not agree: the path of a weight begins at the module.
    """
    wanted = {id(parameter) for parameter in parameters}
    for root in roots:
        names = {id(p): name for name, p in root.named_parameters(remove_duplicate=False)}
        if wanted <= set(names):
            return names
    return {}
