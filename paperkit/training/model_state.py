"""State of a model that its ``state_dict`` leaves out and a run depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

_SCALARS = (bool, int, float, str, type(None))


def state_outside(model: nn.Module) -> dict[str, Any]:
    """Return what a forward pass may change in a model besides its ``state_dict``.

    Parameters
    ----------
    model : nn.Module
        Model to read.

    Returns
    -------
    dict
        By the name of a module and an attribute: copies of buffers that are not persistent, the
        states of random generators, and plain values such as counts.
    """
    return {
        name: value.clone()
        if isinstance(value, torch.Tensor)
        else value.get_state()
        if isinstance(value, torch.Generator)
        else value
        for name, _, _, value in _places(model)
    }


def restore_outside(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Put a model into the state that :func:`state_outside` returned."""
    for name, layer, attribute, value in list(_places(model)):
        if name not in saved:
            continue
        if isinstance(value, torch.Tensor):
            value.copy_(saved[name])
        elif isinstance(value, torch.Generator):
            value.set_state(saved[name])
        elif value != saved[name]:
            setattr(layer, attribute, saved[name])


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    for place, layer in model.named_modules():
        if isinstance(layer, torch.jit.ScriptModule) or type(layer).__name__ == "OptimizedModule":
            continue  # Their attributes are the compiler's.
        for attribute in layer._non_persistent_buffers_set:
            buffer = layer._buffers.get(attribute)
            if buffer is not None:
                yield f"{place}.{attribute}", layer, attribute, buffer
        for attribute, value in vars(layer).items():
            is_kept = type(value) in _SCALARS or isinstance(value, torch.Generator)
            if is_kept and attribute not in _INTERNALS:
                yield f"{place}.{attribute}", layer, attribute, value


# The mode belongs to the loop, and the rest to torch.
_INTERNALS = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
