"""The weights that a measure of layers covers, and how each can be reached.

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

# Largest number of weights that a warning names one by one for a reason.
_MOST_NAMED = 8


class LeftOutWarning(UserWarning):
    """A measure of layers covers a part of them; the message names the others and says why.

    Examples
    --------
    >>> import warnings
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import LeftOutWarning, layer_spectra
    >>> model = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
    >>> data = torch.tensor([[0, 1, 2]]), torch.tensor([0])
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always", LeftOutWarning)
    ...     spectra = layer_spectra(model, data, max_dense=4)  # the embedding has 10 entries
    >>> [warning.category is LeftOutWarning for warning in caught], list(spectra)
    ([True], ['2'])
    """


@dataclass(frozen=True)
class Weight:
    """A weight of a model.

    Attributes
    ----------
    name : str
        Name in measures: the module's name where it is the module's ``weight``, else the
        parameter's.
    parameter : str
        Name of the parameter.
    shape : torch.Size
        Shape of the parameter.
    obstacle : str or None
        Clause that says why it cannot be read off a layer's inputs and output Jacobians; None where
        it can, as far as the module tells.
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

    The attributes are those of :class:`paperkit.linearize.LayerLinearization` that measures use for
    both.

    Attributes
    ----------
    name : str
        Name of the weight in measures.
    weight_name : str
        Name of the weight among the model's parameters.
    weight_shape : torch.Size
        Shape of the weight.
    obstacle : str
        Reason why it is not read off a layer.
    num_samples, num_outputs : int
        Numbers n of samples and C of outputs.
    optional : bool
        Whether nobody asked for this weight by its name, so that a measure may leave it out if it
        costs too much.
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
        Name of the weight among the model's parameters.
    """
    weight = model.get_parameter(parameter)
    for module in model.modules():
        if any(held is weight for held in module._parameters.values()):
            return layout_like(module, weight)
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
        Weights by name, in the order of the modules; then those that are no module's ``weight``.
    """
    parameters = {id(p): name for name, p in model.named_parameters()}
    weights: dict[str, Weight] = {}
    named: set[str] = set()
    for name, module in model.named_modules():
        parameter = module._parameters.get("weight")
        plain = layer_type(module) is not None
        if parameter is not None and (parameter.ndim > 1 or plain):
            parameter_name = parameters[id(parameter)]
            obstacle = None if plain else f"{type(module).__name__} is no plain layer known here"
            weights[name] = Weight(name, parameter_name, parameter.shape, obstacle)
            named.add(parameter_name)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and name not in named:
            obstacle = "it is no layer's own weight"
            weights[name] = Weight(name, name, parameter.shape, obstacle)
    return weights


def chosen_weights(
    model: nn.Module, layers: Sequence[str] | None = None, argument: str = "layers"
) -> dict[str, Weight]:
    """Return the weights to measure, by name.

    Parameters
    ----------
    model : nn.Module
        Any network.
    layers : sequence of str, optional
        Names of weights; default every weight once. Tied modules whose weight can be read off are
        all listed; another module that shares the weight with them is not.
    argument : str
        Name of ``layers`` in messages.

    Raises
    ------
    ValueError
        If a name is unknown, or there is none.
    """
    weights = weights_of(model)
    if layers is not None:
        return _select_weights(weights, layers, argument)
    readable = {weight.parameter for weight in weights.values() if weight.obstacle is None}
    chosen: dict[str, Weight] = {}
    for name, weight in weights.items():
        if weight.obstacle is None or weight.parameter not in readable:
            chosen[name] = weight
            if weight.obstacle is not None:
                readable.add(weight.parameter)  # list it under its first name only
    return chosen


def _select_weights(
    weights: dict[str, Weight], layers: Sequence[str], argument: str
) -> dict[str, Weight]:
    modules_of = {
        weight.parameter: name
        for name, weight in weights.items()
        if weight.parameter not in weights
    }
    chosen = set(arguments.names(argument, layers, [*weights, *modules_of]))
    for name in chosen & modules_of.keys():
        raise ValueError(f"{argument}: {name!r} is the weight of {modules_of[name]!r}: name that.")
    return {name: weight for name, weight in weights.items() if name in chosen}


def warn_left_out(measure: str, left_out: Mapping[str, str], also: str = "") -> None:
    """Say which weights a measure leaves out.

    Warns
    -----
    LeftOutWarning
        In one sentence.
    """
    warnings.warn(f"{measure} leaves out {_listed(left_out)}{also}.", LeftOutWarning, stacklevel=4)


def _listed(left_out: Mapping[str, str]) -> str:
    """Name weights with their reasons; weights that share a reason are named together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(
        f"{', '.join(names[:_MOST_NAMED])}{', …' if len(names) > _MOST_NAMED else ''} ({reason})"
        for reason, names in by_reason.items()
    )
