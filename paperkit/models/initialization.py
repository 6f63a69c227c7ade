"""Initial weights other than PyTorch's, where a paper or its release has them."""

from __future__ import annotations

from torch import nn


def he(model: nn.Module) -> None:
    r"""Draw the weights of convolutions from :math:`N(0, 2 / (k^2 c_{\mathrm{out}}))` in place.

    These are He et al. (2015, equation 14), the variant that keeps the scale of gradients; the
    convolutions' biases become zero, and all else stays as it is.

    Parameters
    ----------
    model : nn.Module
        Network to change.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def xavier(model: nn.Module) -> None:
    r"""Draw weights uniformly within :math:`\pm\sqrt{6 / (n_{\mathrm{in}} + n_{\mathrm{out}})}`.

    These are Glorot and Bengio (2010, equation 16), drawn in place for convolutions and linear
    layers, whose biases become zero.

    Parameters
    ----------
    model : nn.Module
        Network to change.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
