r"""Changes of parameters, and the networks in the new parameters.

Linear changes multiply every parameter by a positive factor of its own, and are given as such
(:data:`SCALINGS`); those that leave the function of the right network alone are its symmetries.
Nonlinear changes :math:`\eta = \varphi(\theta)` are given by their inverse :math:`\psi`, composed
with the network (:class:`Reparametrized`).
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call


def weight_names(model: nn.Module) -> list[str]:
    """Return the names of the layers' weight matrices, first layer first (no biases)."""
    return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]


def bias_name(weight: str) -> str:
    """Return the name of the bias beside a weight: ``"0.bias"`` for ``"0.weight"``."""
    return weight.removesuffix("weight") + "bias"


# ---------------------------------------------------------------------------------------------
# Linear changes of parameters: one positive factor for every parameter
# ---------------------------------------------------------------------------------------------


def layerwise(model: nn.Module, factors: Sequence[float]) -> dict[str, Tensor]:
    r"""Multiply the weights of layer l by :math:`c_l`, and no bias (Rényi, Proposition 2.2).

    Parameters
    ----------
    model : nn.Module
        The network; it is read, not changed.
    factors : sequence of float
        A factor for each weight matrix, first layer first.

    Returns
    -------
    dict of Tensor
        For each parameter, by name, its factors in its own shape.

    Raises
    ------
    ValueError
        If the number of factors is not that of the weight matrices.
    """
    names = weight_names(model)
    if len(factors) != len(names):
        raise ValueError(f"factors has {len(factors)} entries: give one for each of {names}.")
    scales = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for name, factor in zip(names, factors, strict=True):
        scales[name] *= factor
    return scales


def layerwise_with_biases(model: nn.Module, factors: Sequence[float]) -> dict[str, Tensor]:
    r"""Multiply :math:`W_l` by :math:`c_l` and :math:`b_l` by :math:`c_1 \cdots c_l`.

    Arguments and result are those of :func:`layerwise`; every layer must have a bias.
    """
    scales = layerwise(model, factors)
    names = weight_names(model)
    for name, running in zip(names, accumulate(factors, operator.mul), strict=True):
        scales[bias_name(name)] *= running
    return scales


def nodewise(model: nn.Module, factors: Sequence[float]) -> dict[str, Tensor]:
    r"""Multiply what enters a hidden unit by its factor, and divide what leaves it.

    The units of every hidden layer take the factors c, 1/c, c, … in turn.

    Parameters
    ----------
    model : nn.Module
        A fully connected network; it is read, not changed.
    factors : sequence of float
        The factor c alone.

    Returns
    -------
    dict of Tensor
        For each parameter, by name, its factors in its own shape.
    """
    scales = nodewise_uncompensated(model, factors)
    names = weight_names(model)
    units = {name: scales[name][:, 0].clone() for name in names}
    for name, following in pairwise(names):
        scales[following] /= units[name]
    return scales


def nodewise_uncompensated(model: nn.Module, factors: Sequence[float]) -> dict[str, Tensor]:
    """Multiply what enters a hidden unit; a normalisation after it takes the factor out again.

    Arguments and result are those of :func:`nodewise`.
    """
    (c,) = factors
    scales = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for name in weight_names(model)[:-1]:
        scales[name][0::2].mul_(c)
        scales[name][1::2].div_(c)
    return scales


SCALINGS: dict[str, Callable[[nn.Module, Sequence[float]], dict[str, Tensor]]] = {
    "layerwise": layerwise,
    "layerwise_with_biases": layerwise_with_biases,
    "nodewise": nodewise,
    "nodewise_uncompensated": nodewise_uncompensated,
}
"""The linear changes by name: from a network and factors to the factor of every parameter."""


def rescale(model: nn.Module, scales: dict[str, Tensor]) -> nn.Module:
    """Return a copy of the model whose parameters are multiplied by the given factors."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            parameter.mul_(scales[name])
    return scaled


# ---------------------------------------------------------------------------------------------
# Nonlinear changes of parameters
# ---------------------------------------------------------------------------------------------


class Reparametrized(nn.Module):
    r"""The same model in other parameters: :math:`\tilde f(x; \eta) = f(x; \psi(\eta))`.

    Parameters
    ----------
    model : nn.Module
        The network in its own parameters θ; it is not changed.
    eta : Tensor
        The new parameters, one flat vector; the module's only parameter.
    inverse : callable
        ψ, from η to θ, twice differentiable.
    """

    def __init__(self, model: nn.Module, eta: Tensor, inverse: Callable[[Tensor], Tensor]):
        super().__init__()
        self.eta = nn.Parameter(eta.detach().clone())
        # In a tuple, so that θ does not appear among this module's parameters.
        self._model = (model,)
        self._inverse = inverse

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the model's outputs, (n, C)."""
        (model,) = self._model
        names, shapes = zip(*((k, p.shape) for k, p in model.named_parameters()), strict=True)
        pieces = self._inverse(self.eta).split([shape.numel() for shape in shapes])
        theta = {
            k: piece.view(shape) for k, piece, shape in zip(names, pieces, shapes, strict=True)
        }
        return functional_call(model, theta, (inputs,))


def flat_parameters(model: nn.Module) -> Tensor:
    """Return all parameters as one detached vector, in the order of ``named_parameters``."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@dataclass(frozen=True)
class RadialMap:
    r"""The radial map of Dinh et al. (2017), :math:`\varphi(\theta) = r^a (\theta - \hat\theta)`.

    :math:`r = |\theta - \hat\theta|^2 + b`. For b > 0 and a > −½ it is a diffeomorphism of the
    whole space that leaves :math:`\hat\theta` (mapped to 0) alone but for a factor.

    Attributes
    ----------
    centre : Tensor
        :math:`\hat\theta`, shape (d,).
    a, b : float
        Exponent and offset of the radius.
    """

    centre: Tensor
    a: float
    b: float

    def forward(self, theta: Tensor) -> Tensor:
        """Return η = φ(θ)."""
        difference = theta - self.centre
        return (difference.square().sum() + self.b) ** self.a * difference

    def inverse_near(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        r"""Return ψ = φ⁻¹ with exact first and second derivatives at φ(θ).

        :math:`\psi(\eta) = \hat\theta + q\,\eta`, where q solves
        :math:`q\,(q^2 |\eta|^2 + b)^a = 1`. At φ(θ) its value is known, and a Newton step from
        there adds one correct order to the derivatives that automatic differentiation sees, the
        next two more: two steps carry the Hessian.
        """
        root = ((theta - self.centre).square().sum() + self.b) ** -self.a

        def inverse(eta: Tensor) -> Tensor:
            squared = eta.square().sum()
            q = root
            for _ in range(2):
                r = q.square() * squared + self.b
                value = q * r**self.a - 1.0
                slope = r**self.a + 2.0 * self.a * q.square() * squared * r ** (self.a - 1.0)
                q = q - value / slope
            return self.centre + q * eta

        return inverse


def reparametrized_by_sinh(model: nn.Module) -> Reparametrized:
    """Write the model in η = sinh θ, coordinate by coordinate."""
    return Reparametrized(model, torch.sinh(flat_parameters(model)), torch.asinh)


def radial_map_at(theta: Tensor, a: float, b: float, distance: float, seed: int) -> RadialMap:
    """Centre a radial map ``distance`` times the norm of ``theta`` away from it.

    Parameters
    ----------
    theta : Tensor
        Shape (d,).
    a, b : float
        Exponent and offset of the map.
    distance : float
        Distance of the centre in norms of ``theta``; 0 centres the map at ``theta``.
    seed : int
        Seed of the direction in which the centre lies.

    Returns
    -------
    RadialMap
    """
    generator = torch.Generator(device="cpu").manual_seed(2000 + seed)
    direction = torch.empty_like(theta).normal_(generator=generator)
    return RadialMap(theta + distance * theta.norm() * direction / direction.norm(), a, b)


def reparametrized_by(model: nn.Module, radial: RadialMap) -> Reparametrized:
    """Write the model in a radial map's parameters."""
    theta = flat_parameters(model)
    return Reparametrized(model, radial.forward(theta), radial.inverse_near(theta))


def changed_model(
    model: nn.Module, transformation: str, factors: Sequence[float], seed: int
) -> nn.Module:
    """Apply a transformation by its name: one of :data:`SCALINGS`, ``sinh`` or ``radial``.

    The factors of ``sinh`` are none, those of ``radial`` are a, b and the centre's distance; the
    seed chooses the direction of the centre.

    Raises
    ------
    ValueError
        If the name is unknown or the factors do not fit.
    """
    if transformation == "sinh":
        return reparametrized_by_sinh(model)
    if transformation == "radial":
        a, b, distance = factors
        return reparametrized_by(model, radial_map_at(flat_parameters(model), a, b, distance, seed))
    if transformation not in SCALINGS:
        names = ", ".join([*SCALINGS, "sinh", "radial"])
        raise ValueError(f"transformation={transformation!r} is unknown: use one of {names}.")
    return rescale(model, SCALINGS[transformation](model, factors))
