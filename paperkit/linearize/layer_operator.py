r"""A layer without its bias, as the linear operator A from its input to its pre-activation.

For a fully connected layer on one position, :math:`A = W`. For a convolution A is the large sparse
matrix that contains every kernel entry once per position, with padding, stride and dilation. Its
norm is not that of the kernel reshaped to a matrix: with the unfolding U that copies each input
entry into the patches that see it, :math:`A = (I_P \otimes W)\,U`. A linear layer applied to each
token is a convolution with a kernel of size one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.linalg.lanczos import lanczos
from paperkit.linalg.probes import generator_of
from paperkit.linearize.layer_types import type_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Largest fraction of starting vectors for which the Lanczos bound may be wrong.
_FAILURE_PROBABILITY = 1e-10

# Number of Lanczos steps. With a million inputs the bound is then 1.3 percent above the Ritz value.
_STEPS = 96


@dataclass(frozen=True)
class OperatorNorm:
    r"""Bounds of :math:`\|A\|_2` from both sides; ``float(result)`` is the upper one.

    Attributes
    ----------
    lower, upper : float
        Bounds from below and above, equal where the singular values were computed.
    method : str
        Source of ``upper``: ``"svd"``, ``"lanczos"`` (wrong for a fraction of at most
        ``failure_probability`` of the starting vectors) or ``"patches"``.
    failure_probability : float
        Probability that ``upper`` is wrong; zero unless the method is ``"lanczos"``.

    Examples
    --------
    >>> from torch import nn
    >>> from paperkit.linearize import operator_norm
    >>> layer = nn.Conv1d(1, 1, kernel_size=2, bias=False)
    >>> _ = nn.init.ones_(layer.weight)
    >>> norm = operator_norm(layer, (1, 4000))
    >>> norm.method, round(norm.upper, 4)  # two patches for an entry: √2 √2
    ('patches', 2.0)
    >>> 1.9 < norm.lower < norm.upper == float(norm)
    True
    """

    lower: float
    upper: float
    method: str
    failure_probability: float = 0.0

    def __float__(self) -> float:
        return self.upper


def apply_operator(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return A x for every input: the layer without its bias, in the inputs' dtype.

    Parameters
    ----------
    module : nn.Module
        Linear, convolution or transposed convolution layer, with its weight and geometry.
    inputs : Tensor
        Inputs of the layer, shape (n, …).

    Raises
    ------
    TypeError
        If the module is not exactly such a layer.
    """
    weight = module.get_parameter("weight").detach().to(inputs.dtype)
    return type_of(module).apply(module, weight, inputs)


def apply_adjoint(module: nn.Module, cotangents: Tensor, input_shape: Sequence[int]) -> Tensor:
    r"""Return :math:`A^\top b` for every cotangent b.

    Parameters
    ----------
    module : nn.Module
        As in ``apply_operator``.
    cotangents : Tensor
        Cotangents of the layer's outputs, shape (n, …). Rows of an output Jacobian B give rows of
        B A.
    input_shape : sequence of int
        Shape of an input, without samples.

    Returns
    -------
    Tensor
        Shape (n, \*input_shape).
    """
    inputs = cotangents.new_zeros(len(cotangents), *input_shape, requires_grad=True)
    with torch.enable_grad():
        outputs = apply_operator(module, inputs)
    return torch.autograd.grad(outputs, inputs, cotangents)[0]


def weight_matrices(module: nn.Module) -> Tensor:
    """Return the weight as one matrix a group, shape (g, o, i), in float64."""
    weight = module.get_parameter("weight").detach().to(torch.float64)
    return type_of(module).layout(module).matrices(weight)


def weight_matrix_norm(module: nn.Module) -> float:
    r"""Return :math:`\|W\|_2` of the weight as a matrix, outputs × inputs of one patch.

    For a convolution with groups this is the largest over groups. For a linear layer the norm
    equals the operator's. For a convolution it is a lower bound of the operator's where at least
    one patch lies inside, and for a transposed convolution it is no bound.
    """
    return float(torch.linalg.matrix_norm(weight_matrices(module), ord=2).max())


def operator_norm(
    module: nn.Module, input_shape: Sequence[int], *, max_dense: int = 1024, seed: int = 0
) -> OperatorNorm:
    r"""Bound :math:`\|A\|_2` of a layer on inputs of a given shape from both sides.

    A linear layer needs the singular values of W only. A convolution whose operator has at most
    ``max_dense`` rows or columns is written out. For a larger one, Lanczos on :math:`A^\top A`
    from a random vector gives a Ritz value r ≤ ‖A‖² after m steps, and r ≥ (1 − ε)‖A‖² except
    with probability :math:`1.648\sqrt D\, e^{-\sqrt\epsilon\,(2m-1)}` over that vector of D entries
    (Kuczyński and Woźniakowski 1992, Theorem 4.2, any spectrum); and each input entry lies in at
    most c patches, so that :math:`\|A\|^2 \le c\,\|W\|^2` with certainty. ``upper`` is the smaller
    of the two.

    Parameters
    ----------
    module : nn.Module
        Layer in a form that ``apply_operator`` accepts; its weight is read in float64.
    input_shape : sequence of int
        Shape of an input, without samples.
    max_dense : int
        Largest number of rows or columns, the smaller of the two, at which A is written out.
    seed : int
        Seed of the Lanczos starting vector.

    Returns
    -------
    OperatorNorm
        Bounds from below and above.

    Raises
    ------
    ValueError
        If ``input_shape`` does not fit the module.
    TypeError
        As ``apply_operator``.

    Examples
    --------
    >>> from torch import nn
    >>> from paperkit.linearize import operator_norm
    >>> layer = nn.Conv1d(1, 1, kernel_size=2, bias=False)
    >>> _ = nn.init.ones_(layer.weight)
    >>> norm = operator_norm(layer, (1, 4))  # three patches of four entries
    >>> round(float(norm), 4)  # √(2 + √2)
    1.8478
    >>> round(float(layer.weight.detach().norm()), 4)  # √2, the norm of the kernel
    1.4142
    """
    arguments.module("module", module)
    input_shape = arguments.integers("input_shape", input_shape, at_least=1)
    max_dense = arguments.integer("max_dense", max_dense, at_least=0)
    seed = arguments.seed("seed", seed)
    needs = type_of(module).fits(module, input_shape)
    if needs is not None:
        raise ValueError(f"input_shape={tuple(input_shape)} does not fit the layer: it is {needs}.")
    if type_of(module).acts_pointwise:
        norm = weight_matrix_norm(module)
        return OperatorNorm(norm, norm, "svd")
    device = module.get_parameter("weight").device
    probe = torch.zeros(1, *input_shape, dtype=torch.float64, device=device)
    d_in, d_out = probe.numel(), apply_operator(module, probe).numel()
    if min(d_in, d_out) <= max_dense:
        # Lanczos works on AᵀA, which halves the digits. The singular values of A keep all of them.
        norm = float(torch.linalg.matrix_norm(_write_out(module, probe, d_in, d_out), ord=2))
        return OperatorNorm(norm, norm, "svd")
    return _iterated_norm(module, probe, seed)


def _write_out(module: nn.Module, probe: Tensor, d_in: int, d_out: int) -> Tensor:
    """Write the operator A out, column by column or row by row, whichever are fewer."""
    if d_in <= d_out:
        columns = torch.eye(d_in, dtype=probe.dtype, device=probe.device)
        return apply_operator(module, columns.reshape(d_in, *probe.shape[1:])).flatten(1)
    rows = torch.eye(d_out, dtype=probe.dtype, device=probe.device)
    shape = apply_operator(module, probe).shape[1:]
    return apply_adjoint(module, rows.reshape(d_out, *shape), probe.shape[1:]).flatten(1)


def _iterated_norm(module: nn.Module, probe: Tensor, seed: int) -> OperatorNorm:
    shape = probe.shape[1:]

    def apply_squared(vectors: Tensor) -> Tensor:
        images = apply_operator(module, vectors.reshape(-1, *shape))
        return apply_adjoint(module, images, shape).flatten(1)

    start = torch.randn(
        1, probe.numel(), generator=generator_of(seed), dtype=torch.float64, device="cpu"
    ).to(probe.device)
    ritz = float(torch.linalg.eigvalsh(lanczos(apply_squared, start, _STEPS).matrices()).max())
    deviation = math.log(1.648 * math.sqrt(probe.numel()) / _FAILURE_PROBABILITY)
    likely = math.sqrt(ritz / (1.0 - (deviation / (2 * _STEPS - 1)) ** 2))
    certain = math.sqrt(_patches_per_entry(module, shape)) * weight_matrix_norm(module)
    if certain <= likely:
        return OperatorNorm(math.sqrt(ritz), certain, "patches")
    return OperatorNorm(math.sqrt(ritz), likely, "lanczos", _FAILURE_PROBABILITY)


def _patches_per_entry(module: nn.Module, shape: Sequence[int]) -> int:
    """Return how many patch entries copy the input entry that is copied most often.

    Every row of the unfolding U is zero or a unit vector, so UᵀU is diagonal and holds the counts.
    """
    device = module.get_parameter("weight").device
    inputs = torch.zeros(1, *shape, dtype=torch.float64, device=device, requires_grad=True)
    with torch.enable_grad():
        sizes = apply_operator(module, inputs).shape[1:]
        total = type_of(module).columns(module, inputs, sizes).sum()
    return round(float(torch.autograd.grad(total, inputs)[0].max()))
