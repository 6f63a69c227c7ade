"""The modules behind a list of parameters, since an optimizer is given parameters only."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def modules_around(parameters: Iterable[Tensor]) -> list[nn.Module]:
    """Find every live module of the models that hold some of the parameters.

    An optimizer must protect buffers that it is never told of, such as the running statistics of
    batch normalisation. Hooks would not see a compiled model, so the garbage collector is asked for
    its modules, once for an optimizer: about 0.1 s where it has half a million objects. The
    collector does not know those of a process that called :func:`gc.freeze` after it had built its
    model.

    Parameters
    ----------
    parameters : iterable of Tensor
        Parameters of one or more models.

    Returns
    -------
    list of nn.Module
        Modules that contain one of the parameters, and all modules inside them, each once.
    """
    ids = {id(parameter) for parameter in parameters}
    modules = _live_modules()
    parents: dict[int, list[nn.Module]] = {}
    for module in modules:
        for child in module.children():
            parents.setdefault(id(child), []).append(module)
    containing: dict[int, nn.Module] = {}
    pending = [m for m in modules if any(id(p) in ids for p in m.parameters(recurse=False))]
    while pending:
        module = pending.pop()
        if id(module) not in containing:
            containing[id(module)] = module
            pending += parents.get(id(module), [])
    inside = {id(m): m for outer in containing.values() for m in outer.modules()}
    return list(inside.values())


def _live_modules() -> list[nn.Module]:
    items = gc.get_objects()
    # Types are read by type(), because isinstance() would run the code of lazy proxy objects.
    kinds = {kind for kind in {type(item) for item in items} if issubclass(kind, nn.Module)}
    return [item for item in items if type(item) in kinds]


def parameter_names(parameters: Iterable[Tensor], modules: Sequence[nn.Module]) -> dict[int, str]:
    """Return each parameter's own name in its module, such as ``weight``, by its ``id``."""
    ids = {id(parameter) for parameter in parameters}
    return {
        id(parameter): name
        for module in modules
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in ids
    }


@contextmanager
def evaluation_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put the modules in evaluation mode, and each back in its own mode at the end."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


class BufferSnapshot:
    """A copy of all buffers of some modules, from which they can be restored."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        # The buffers are read from _buffers, because module.buffers() would cost more than the
        # copies.
        buffers = {
            id(buffer): buffer
            for module in modules
            for buffer in module._buffers.values()
            if buffer is not None
        }
        self._buffers = list(buffers.values())
        with torch.no_grad():
            self._values = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def restore(self) -> None:
        """Write the values back, bit for bit."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._values)


def refuse_sharded(parameters: Iterable[Tensor], modules: Iterable[nn.Module]) -> None:
    """Refuse parameters of which this process holds only a part.

    Raises
    ------
    ValueError
        With one sentence.
    """
    kinds = {type(item) for item in (*parameters, *modules)}
    homes = {ancestor.__module__ for kind in kinds for ancestor in kind.__mro__}
    sharding = ("torch.distributed.fsdp", "torch.distributed.tensor")
    if any(home.startswith(sharding) for home in homes):
        raise ValueError(
            "params are sharded over processes (FSDP), so their norms here are not the gradient's: "
            "use DistributedDataParallel with this optimizer."
        )
