"""A rule that finds tensors born on the wrong device, also on a machine without a GPU."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import settings
from torch.overrides import TorchFunctionMode

# How long an example takes says more of the machine than of the code.
settings.register_profile("paperkit", deadline=None)
settings.load_profile("paperkit")

_FACTORIES = {
    torch.zeros,
    torch.ones,
    torch.empty,
    torch.full,
    torch.eye,
    torch.arange,
    torch.linspace,
    torch.logspace,
    torch.rand,
    torch.randn,
    torch.randint,
    torch.randperm,
    torch.tensor,
    torch.as_tensor,
    torch.from_numpy,
}


class ExplicitDevices(TorchFunctionMode):
    """Refuse every factory call that does not name its device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        unnamed = function in _FACTORIES and "device" not in kwargs and not _follows_a_tensor(args)
        if unnamed and not _for_a_transform():
            raise AssertionError(f"torch.{function.__name__} is called without a device")
        return function(*args, **kwargs)


def _follows_a_tensor(args: tuple) -> bool:
    """as_tensor of a tensor stays on that tensor's device."""
    return bool(args) and isinstance(args[0], torch.Tensor)


def _for_a_transform() -> bool:
    """torch.func of torch 2.6 keeps counts of its own in a tensor on the CPU."""
    frame = sys._getframe(2)
    while frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return frame.f_globals["__name__"].startswith("torch._functorch.")


@pytest.fixture
def explicit_devices() -> type[ExplicitDevices]:
    """The rule that every new tensor names its device: ``with explicit_devices(): …``."""
    return ExplicitDevices
