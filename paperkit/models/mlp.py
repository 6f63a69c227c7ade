"""Multilayer perceptrons."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from paperkit import arguments
from paperkit.models.activations import ACTIVATIONS, activation_module


class MLP(nn.Sequential):
    """Fully connected network: ``flatten``, ``fc1``, ``activation1``, …, ``fcL``.

    Parameters
    ----------
    widths : sequence of int
        Number of inputs, of units in each hidden layer, and of outputs; at least two
        numbers. With two the model is linear.
    activation : str
        Name from :data:`paperkit.models.ACTIVATIONS`; the activation stands after every layer
        but the last.
    bias : bool
        Whether the layers have biases.

    Raises
    ------
    ValueError
        If there are fewer than two widths, one is not positive, or the activation is
        unknown.

    Examples
    --------
    >>> from paperkit.models import MLP
    >>> model = MLP((64, 32, 10), activation="tanh")
    >>> [name for name, _ in model.named_children()]
    ['flatten', 'fc1', 'activation1', 'fc2']
    >>> sum(parameter.numel() for parameter in model.parameters())  # 64 · 32 + 32 + 32 · 10 + 10
    2410
    """

    def __init__(self, widths: Sequence[int], activation: str = "relu", bias: bool = True) -> None:
        widths = arguments.integers("widths", widths, at_least=1)
        if len(widths) < 2:
            raise ValueError(f"widths={widths} must hold two at least: the inputs and the outputs.")
        activation = arguments.choice("activation", activation, ACTIVATIONS)
        bias = arguments.flag("bias", bias)
        depth = len(widths) - 1
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for k in range(1, depth + 1):
            layers[f"fc{k}"] = nn.Linear(widths[k - 1], widths[k], bias=bias)
            if k < depth:
                layers[f"activation{k}"] = activation_module(activation)
        super().__init__(layers)
