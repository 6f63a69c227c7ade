"""Which weights a measure of layers is of, and how each can be reached.

A weight is a parameter with more than one axis. Those of linear and convolution layers are read off
the layers' inputs and output Jacobians; every other one, an embedding's or a recurrent network's,
is reached by products with its Hessian block.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from paperkit import arguments
from paperkit.linearize.layer_types import WeightLayout, layer_type, layout_like

# So many weights are named one by one in a warning.
_NAMED = 8


class LeftOutWarning(UserWarning):
    """A measure of layers covers a part of them; the message names the others and says why."""


@dataclass(frozen=True)
class Weight:
    """One weight of a model.

    Attributes
    ----------
    name : str
        What measures call it: the module's name where it is the module's ``weight``, else the
        parameter's.
    parameter : str
        The parameter's name.
    shape : torch.Size
        Of the parameter.
    obstacle : str or None
        Why it cannot be read off a layer's inputs and output Jacobians, a clause; None where it
        can, as far as the module tells.
    """

    name: str
    parameter: str
    shape: torch.Size
    obstacle: str | None

    @property
    def num_parameters(self) -> int:
        """The number of entries."""
        return self.shape.numel()


@dataclass(frozen=True)
class WeightBlock:
    """The Hessian block of a weight that is not read off a layer, to be had by products.

    It stands beside :class:`paperkit.linearize.LayerLinearization` where measures take both.

    Attributes
    ----------
    name, weight_name, weight_shape
        As there.
    obstacle : str
        Why it is not read off a layer.
    num_samples, num_outputs : int
        n and C.
    optional : bool
        Whether nobody asked for this weight by its name, so that it may cost too much.
    """

    name: str
    weight_name: str
    weight_shape: torch.Size
    obstacle: str
    num_samples: int
    num_outputs: int
    optional: bool

    exact_block = False

    @property
    def num_parameters(self) -> int:
        """The number d of entries of the weight."""
        return self.weight_shape.numel()


def layout_of(model: nn.Module, parameter: str) -> WeightLayout | None:
    """Return how a weight holds its matrix, output channels and inputs; None where it has none.

    Parameters
    ----------
    model : nn.Module
        Any network.
    parameter : str
        The weight's name.
    """
    wanted = model.get_parameter(parameter)
    for module in model.modules():
        if any(own is wanted for own in module._parameters.values()):
            return layout_like(module, wanted)
    return None


def weights_of(model: nn.Module) -> dict[str, Weight]:
    """Return every weight under each of its names; tied modules have one each.

    Parameters
    ----------
    model : nn.Module
        Any network.

    Returns
    -------
    dict of str to Weight
        In the order of the modules; then those that are no module's ``weight``.
    """
    parameters = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, Weight] = {}
    named: set[str] = set()
    for name, module in model.named_modules():
        parameter = module._parameters.get("weight")
        plain = layer_type(module) is not None
        if parameter is not None and (parameter.ndim > 1 or plain):
            parameter_name = parameters[id(parameter)]
            obstacle = None if plain else f"{type(module).__name__} is no plain layer known here"
            found[name] = Weight(name, parameter_name, parameter.shape, obstacle)
            named.add(parameter_name)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and name not in named:
            obstacle = "it is no layer's own weight"
            found[name] = Weight(name, name, parameter.shape, obstacle)
    return found


def chosen_weights(
    model: nn.Module, layers: Sequence[str] | None = None, argument: str = "layers"
) -> dict[str, Weight]:
    """Return the weights to measure, by name.

    Parameters
    ----------
    model : nn.Module
        Any network.
    layers : sequence of str, optional
        Names; default every weight once: tied modules whose weight can be read off all count, a
        weight that a module of another kind shares with them does not.
    argument : str
        What messages call ``layers``.

    Raises
    ------
    ValueError
        If a name is unknown, or there is none.
    """
    found = weights_of(model)
    if layers is not None:
        return _named(found, layers, argument)
    readable = {weight.parameter for weight in found.values() if weight.obstacle is None}
    chosen: dict[str, Weight] = {}
    for name, weight in found.items():
        if weight.obstacle is None or weight.parameter not in readable:
            chosen[name] = weight
            if weight.obstacle is not None:
                readable.add(weight.parameter)  # once is enough
    return chosen


def _named(found: dict[str, Weight], layers: Sequence[str], argument: str) -> dict[str, Weight]:
    others = {one.parameter: name for name, one in found.items() if one.parameter not in found}
    wanted = set(arguments.names(argument, layers, [*found, *others]))
    for name in wanted & others.keys():
        raise ValueError(f"{argument}: {name!r} is the weight of {others[name]!r}: name that.")
    return {name: weight for name, weight in found.items() if name in wanted}


def warn_left_out(measure: str, left_out: Mapping[str, str], also: str = "") -> None:
    """Say which weights a measure leaves out.

    Warns
    -----
    LeftOutWarning
        In one sentence.
    """
    warnings.warn(f"{measure} leaves out {_listed(left_out)}{also}.", LeftOutWarning, stacklevel=4)


def _listed(left_out: Mapping[str, str]) -> str:
    """Name weights with their reasons, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(
        f"{', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''} ({reason})"
        for reason, names in by_reason.items()
    )
