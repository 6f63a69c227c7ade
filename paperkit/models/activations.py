"""Activations by name. None works in place, since curvature needs what went into them."""

from __future__ import annotations

from torch import nn

from paperkit import arguments

_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}

ACTIVATIONS: tuple[str, ...] = tuple(_MODULES)
"""The names that :func:`activation_module` knows."""


def activation_module(name: str) -> nn.Module:
    """Return a new module for an activation.

    Parameters
    ----------
    name : str
        The activation's name, in :data:`ACTIVATIONS`; each has PyTorch's default settings (a
        slope of 0.01 for ``leaky_relu``, the exact form of ``gelu``).

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    return _MODULES[arguments.choice("activation", name, ACTIVATIONS)]()
