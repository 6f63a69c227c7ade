"""Convolutions whose weight sharing is undone: the same function, with more parameters.

A convolution applies one kernel at every position. Undone in one way, each position gets a kernel
of its own (a locally connected layer). Undone in the other, every entry of the convolution's matrix
becomes free, those that were zero included (a fully connected layer). Both compute what the
convolution computes; what differs is which changes of the weights there are, and so every gradient
and Hessian in the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit import arguments

SHARINGS = ("tied", "positions", "operator")


class LocallyConnected(nn.Module):
    """A convolution with a kernel of its own at every position.

    Parameters
    ----------
    convolution : Conv2d
        Convolution to start from.
    output_shape : sequence of int
        Height and width of its result.
    """

    def __init__(self, convolution: nn.Conv2d, output_shape: Sequence[int]) -> None:
        super().__init__()
        height, width = arguments.integers("output_shape", output_shape, length=2, at_least=1)
        kernel = arguments.instance("convolution", convolution, nn.Conv2d).weight.detach()
        self.output_shape = (height, width)
        self.window = {
            name: getattr(convolution, name)
            for name in ("kernel_size", "dilation", "padding", "stride")
        }
        self.weight = nn.Parameter(kernel.flatten(1).repeat(height * width, 1, 1))
        self.bias = _copy_of(convolution.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, channels, height, width) as the convolution does."""
        patches = functional.unfold(inputs, **self.window)
        result = torch.einsum("thk,nkt->nht", self.weight, patches)
        if self.bias is not None:
            result = result + self.bias[:, None]
        return result.unflatten(2, self.output_shape)


class FullyConnected(nn.Module):
    """A convolution as a matrix, none of whose entries has to stay zero.

    Parameters
    ----------
    convolution : Conv2d
        Convolution to start from.
    input_shape : sequence of int
        Channels, height and width of its input.
    """

    def __init__(self, convolution: nn.Conv2d, input_shape: Sequence[int]) -> None:
        super().__init__()
        arguments.instance("convolution", convolution, nn.Conv2d)
        self.output_shape = _output_shape(convolution, input_shape)
        self.weight = nn.Parameter(operator_matrix(convolution, input_shape))
        self.bias = _copy_of(convolution.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (n, channels, height, width) as the convolution does."""
        result = (inputs.flatten(1) @ self.weight.T).unflatten(1, self.output_shape)
        return result if self.bias is None else result + self.bias[:, None, None]


def untie(layer: nn.Module, input_shape: Sequence[int], sharing: str) -> nn.Module:
    """Return a layer that computes the same, without some or all of its weight sharing.

    Parameters
    ----------
    layer : Linear or Conv2d
        Layer to start from; a convolution has one group and pads with zeros. A linear layer shares
        nothing and is returned as it is.
    input_shape : sequence of int
        Shape of one sample of the layer's input.
    sharing : {"tied", "positions", "operator"}
        Sharing that is left: all of it, within a position, or none.

    Returns
    -------
    Module
        Its parameters are ``weight``, and ``bias`` if the layer has one.

    Raises
    ------
    TypeError
        If the layer is of another type.
    ValueError
        If the convolution has groups or another padding, or ``sharing`` is not known.
    """
    sharing = arguments.choice("sharing", sharing, SHARINGS)
    arguments.instance("layer", layer, (nn.Linear, nn.Conv2d))
    if sharing == "tied" or isinstance(layer, nn.Linear):
        return layer
    assert isinstance(layer, nn.Conv2d)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ValueError(
            f"layer={arguments.shown(layer)} has groups or a padding that is not given in zeros: "
            "pass a convolution with groups=1 and a number for its padding."
        )
    if sharing == "operator":
        return FullyConnected(layer, input_shape)
    return LocallyConnected(layer, _output_shape(layer, input_shape)[1:])


def operator_matrix(layer: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Return the matrix A of an affine layer, whose result is A x + b for the flattened input x.

    Parameters
    ----------
    layer : Module
        Linear or convolution layer, or another affine map of single samples.
    input_shape : sequence of int
        Shape of one sample of the layer's input.

    Returns
    -------
    Tensor
        Shape (entries of the result, entries of the input), off the graph. Column j is the
        layer applied to the j-th unit vector, less its value at zero.
    """
    arguments.module("layer", layer)
    shape = torch.Size(arguments.integers("input_shape", input_shape, at_least=1))
    like = next(layer.parameters())
    basis = torch.eye(shape.numel(), dtype=like.dtype, device=like.device).view(-1, *shape)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros_like(basis))).flatten(1).T.contiguous()


def _output_shape(convolution: nn.Conv2d, input_shape: Sequence[int]) -> tuple[int, ...]:
    shape = arguments.integers("input_shape", input_shape, length=3, at_least=1)
    with torch.no_grad():
        return tuple(convolution(convolution.weight.new_zeros(1, *shape)).shape[1:])


def _copy_of(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone())
