"""The spectral density of a symmetric matrix, broadened by a Gaussian, from quadrature rules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.quadrature import SpectralQuadrature


@dataclass(frozen=True)
class SpectralDensity:
    """A density of eigenvalues on a grid.

    Attributes
    ----------
    grid : Tensor
        Shape (g,), float64: where it was evaluated, in units of an eigenvalue.
    value : Tensor
        Shape (g,), float64: eigenvalues per unit, as a fraction of all d of them.
    standard_error : Tensor
        Shape (g,), float64: of each value, over the probes.
    width : float
        The Gaussian's standard deviation.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import spectral_density, stochastic_lanczos_quadrature
    >>> A = torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    >>> quadrature = stochastic_lanczos_quadrature(A, probes=2, steps=2)
    >>> density = spectral_density(quadrature, torch.linspace(-1.0, 2.0, 301), width=0.1)
    >>> round(float(torch.trapezoid(density.value, density.grid)), 4)
    1.0
    """

    grid: Tensor
    value: Tensor
    standard_error: Tensor
    width: float


def spectral_density(quadrature: SpectralQuadrature, grid: Tensor, width: float) -> SpectralDensity:
    r"""Estimate :math:`\frac1d \sum_i \mathcal N(t;\, \lambda_i,\, \sigma^2)` on a grid.

    Each probe's averaged rule stands for the spectrum: between the nodes of the Gauss rule it has
    others, without a product more. Source: Lin, Saad and Yang, "Approximating spectral densities of
    large matrices" (2016).

    Parameters
    ----------
    quadrature : SpectralQuadrature
        From :func:`paperkit.linalg.stochastic_lanczos_quadrature`. The width should
        not be smaller than the distance of its nodes, or single nodes become visible as peaks.
    grid : Tensor
        Shape (g,): the points t.
    width : float
        σ, positive.

    Returns
    -------
    SpectralDensity
        On the CPU. The density integrates to 1 over the whole line.

    Raises
    ------
    TypeError, ValueError
        If the width is not positive and finite, or the grid no finite vector.

    Examples
    --------
    >>> import torch
    >>> from paperkit.linalg import spectral_density, stochastic_lanczos_quadrature
    >>> A = torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    >>> quadrature = stochastic_lanczos_quadrature(A, probes=2, steps=2)
    >>> density = spectral_density(quadrature, torch.tensor([0.0, 0.5, 1.0]), width=0.1)
    >>> round(float(density.value[0] / density.value[2]), 4)  # three eigenvalues here, one there
    3.0
    """
    arguments.instance("quadrature", quadrature, SpectralQuadrature)
    width = arguments.number("width", width, above=0)
    arguments.tensor("grid", grid, ndim=1, floating=True, finite=True)
    points = grid.to(dtype=torch.float64, device="cpu")
    rule = quadrature.averaged
    weights = rule.weights / (quadrature.dimension * width * math.sqrt(2 * math.pi))
    samples = torch.stack(
        [
            (weights * (-0.5 * ((point - rule.nodes) / width).square()).exp()).sum(1)
            for point in points
        ],
        dim=1,
    )
    error = samples.std(dim=0) / len(samples) ** 0.5
    return SpectralDensity(points, samples.mean(dim=0), error, width)
