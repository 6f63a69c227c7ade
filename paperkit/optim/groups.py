"""The parameters that an optimizer is given: a module, its parameters, or groups of either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from paperkit import arguments

Given = nn.Module | ParamsT
"""A module, parameters, named parameters, or groups of any of these."""

EXPECTED = "a module, parameters, named parameters or groups of them"


def checked_parameters(given: Any) -> tuple[list[Any], list[nn.Module]]:
    """Return parameters, named ones or groups as a list, and the modules that stood for some.

    Raises
    ------
    TypeError, ValueError
        With one sentence.
    """
    if isinstance(given, nn.Module):
        parameters = list(given.parameters())
        if not parameters:
            kind = type(given).__name__
            raise ValueError(f"params={kind}(...) has no parameters: pass the model that has.")
        return parameters, [given]
    entries = list(arguments.iterable("params", given, EXPECTED))
    if not entries:
        raise ValueError("params=[] is empty: pass the model, or model.parameters().")
    modules = []
    for entry in entries:
        if isinstance(entry, dict):
            check_group(entry)
            modules += opened(entry)
        elif not _is_parameter(entry):
            shown = arguments.shown(entry)
            raise TypeError(f"params has {shown}: pass {EXPECTED}, as model.parameters().")
    return entries, modules


def opened(group: dict[str, Any]) -> list[nn.Module]:
    """Put a module's parameters in its place, in the group itself; return the module."""
    module = group["params"]
    if not isinstance(module, nn.Module):
        return []
    group["params"] = list(module.parameters())
    return [module]


def check_group(group: Any) -> None:
    """Refuse a group without parameters, with one sentence.

    Raises
    ------
    TypeError
        If it is no mapping, or an entry under ``params`` is no parameter.
    """
    options = arguments.mapping("param_group", group, 'a dict with parameters under "params"')
    parameters = options.get("params")
    if isinstance(parameters, Tensor | nn.Module):
        return
    shown = arguments.shown(parameters)
    if not isinstance(parameters, Sequence | Iterator) or isinstance(parameters, str):
        raise TypeError(f"params={shown} of a group must be a list of parameters.")
    if isinstance(parameters, Sequence) and not all(map(_is_parameter, parameters)):
        raise TypeError(f"params={shown} of a group holds an entry that is no parameter.")


def _is_parameter(entry: object) -> bool:
    named = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
    return isinstance(entry[1] if named else entry, Tensor)  # type: ignore[index]
