"""A processor and an accelerator that are both this processor, to find code that mixes them up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_flatten

from tests.explicit_devices import _FACTORIES, ExplicitDevices

ACCELERATOR = torch.device("cpu", 0)
"""A name of the processor that differs from ``torch.device("cpu")`` and makes the same tensors."""

_TRANSFERS = {Tensor.to, Tensor.cpu}
_HOST_ONLY = {Tensor.numpy, Tensor.__array__}
_JOINS = {torch.stack, torch.cat, torch.hstack, torch.vstack}
# A copy into a tensor may come from another device.
_COPIES = {Tensor.copy_, Tensor.__deepcopy__}
# An accelerator's tensor takes indices and masks of the processor.
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}


class TwoDevices(ExplicitDevices):
    """Treat tensors made on `ACCELERATOR` as those of a GPU.

    They don't meet tensors of the processor in one operation, unless these have no dimensions, and
    NumPy does not read them. A tensor that no Python code has made, as one inside a transform of
    ``torch.func``, has an unknown place and is let pass.
    """

    def __enter__(self):
        self._plain = Parameter.__new__
        Parameter.__new__ = _made_at_its_place(self._plain)
        return super().__enter__()

    def __exit__(self, *error):
        Parameter.__new__ = self._plain
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function == Tensor.device.__get__ and _place(args[0]) is True:
            return ACCELERATOR
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        on_accelerator = [x for x in tensors if _place(x) is True]
        if function in _HOST_ONLY and on_accelerator:
            raise TypeError("NumPy can't read a tensor of an accelerator: call .cpu() first")
        if function in _FACTORIES and kwargs.get("generator") is not None:
            kwargs = {"device": kwargs["generator"].device} | kwargs
        target = _target(function, args, kwargs)
        if target is None and on_accelerator and not _may_meet(function, tensors):
            raise RuntimeError(f"{function} is given tensors of two devices")
        result = super().__torch_function__(function, types, args, kwargs)
        if target is not None:
            if function in _TRANSFERS and result is args[0] and _place(result) is not target:
                result = result.view_as(result)
            place = target
        elif function in _COPIES:
            place = _place(args[0])
        elif on_accelerator:
            place = True
        else:
            place = False if any(_place(x) is False for x in tensors) else None
        if function == Tensor.data.__set__:
            args[0]._on_accelerator = _place(args[1])
        elif place is not None:
            for one in tree_flatten(result)[0]:
                if isinstance(one, Tensor):
                    one._on_accelerator = place
        return result


def _made_at_its_place(make):
    """Give a parameter the place of its data: a rule of functions does not see how it is made."""

    def made(cls, data=None, requires_grad=True):
        parameter = make(cls, data, requires_grad)
        if data is not None:
            parameter._on_accelerator = _place(data)
        return parameter

    return made


def _place(tensor: Tensor) -> bool | None:
    """Return whether a tensor is on the accelerator; None where that is not known."""
    return getattr(tensor, "_on_accelerator", None)


def _target(function, args: tuple, kwargs: dict) -> bool | None:
    """Return whether a call names the accelerator, or the processor; None if it names none."""
    if function is Tensor.cpu:
        return False
    named = kwargs.get("device")
    if function is Tensor.to and named is None and len(args) > 1:
        if isinstance(args[1], Tensor):
            return _place(args[1])
        named = args[1] if isinstance(args[1], str | torch.device) else None
    if named is None:
        # Modules of PyTorch pass device=None, which is the processor.
        return False if function in _FACTORIES and "device" in kwargs else None
    return torch.device(named) == ACCELERATOR


def _may_meet(function, tensors: list[Tensor]) -> bool:
    """Return whether an operation takes tensors of both devices."""
    if function in _COPIES or function in (
        Tensor.data.__set__,
        torch._has_compatible_shallow_copy_type,
    ):
        return True
    if function in _INDEXING and _place(tensors[0]) is True:
        return True
    small = () if function in _JOINS else (0,)
    return not any(_place(x) is False and x.dim() not in small for x in tensors)
