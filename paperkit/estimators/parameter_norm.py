"""The Euclidean norm of a network's parameters, the simplest measure of all."""

from __future__ import annotations

import torch
from torch import nn

from paperkit import arguments
from paperkit.estimators.result import Measurement
from paperkit.network.network import Network

CHOICES = ("weights", "all")


def weight_names(model: nn.Module) -> list[str]:
    """Return the names of the weight tensors: the parameters with more than one axis.

    These are the weights of linear, convolution, attention and embedding layers. Biases and the
    affine parameters of normalisation layers have one axis and are not among them. A tensor that
    several modules share is named once, as in ``model.named_parameters()``.

    Raises
    ------
    ValueError
        If there is none.

    Examples
    --------
    >>> from torch import nn
    >>> from paperkit.estimators import weight_names
    >>> weight_names(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2)))
    ['0.weight', '2.weight']
    """
    arguments.module("model", model)
    names = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    if not names:
        raise ValueError("model has no weight tensor (a parameter with more than one axis).")
    return names


def parameter_norm(
    model: nn.Module, parameters: str = "weights", *, squared: bool = False
) -> Measurement:
    r"""Return :math:`\lVert w \rVert_2` of a network.

    Parameters
    ----------
    model : nn.Module
        Any network with at least one parameter.
    parameters : str
        ``"weights"`` (:func:`weight_names`) or ``"all"``, which adds biases and the affine
        parameters of normalisation layers.
    squared : bool
        Return :math:`\lVert w \rVert_2^2`.

    Returns
    -------
    Measurement
        In units of the parameters (squared); exact, summed in float64, without data: ``n`` is 0.

    Raises
    ------
    ValueError
        If ``parameters`` is unknown, or the model has none of that kind, or one is not finite.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import parameter_norm
    >>> model = nn.Linear(2, 1)
    >>> model.weight.data, model.bias.data = torch.tensor([[3.0, 4.0]]), torch.tensor([12.0])
    >>> round(float(parameter_norm(model)), 4), round(float(parameter_norm(model, "all")), 4)
    (5.0, 13.0)
    """
    parameters = arguments.choice("parameters", parameters, CHOICES)
    squared = arguments.flag("squared", squared)
    model = Network.of(model)
    tensors = dict(model.named_parameters())
    names = weight_names(model) if parameters == "weights" else list(tensors)
    if not names:
        raise ValueError("model has no parameters to measure.")
    with torch.no_grad():
        # The norm in float64 scales nothing: half precision squares would overflow at 256.
        value = sum(float(tensors[name].double().square().sum()) for name in names)
    if not value < float("inf"):
        raise ValueError("model has NaN or infinite parameters: check its weights.")
    return Measurement(
        value=value if squared else value**0.5,
        measure="parameter_norm",
        method="exact",
        n=0,
        assumptions={"parameters": parameters, "squared": squared},
    )
