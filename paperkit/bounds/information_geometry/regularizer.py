"""Equation 13: the regularizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.bounds.information_geometry.geometry import (
    PAPER,
    VERSIONS,
    FisherGeometry,
    agree,
    fisher_geometry,
    flat_parameters,
    outputs_of_vector,
    random_direction,
)
from paperkit.bounds.statement import Approximation
from paperkit.curvature import dense_hessian
from paperkit.network import get_loss
from paperkit.network.batches import as_batch
from paperkit.network.evaluation import evaluation


def _natural_gradient(geometry: FisherGeometry) -> tuple[Tensor, Tensor]:
    """Return the mean gradient g and F⁺g."""
    gradient = geometry.gradients.mean(dim=0)
    eigenvalues, directions = geometry.eigenpairs()
    return gradient, directions @ ((directions.T @ gradient) / eigenvalues)


def perturbed_loss_expansion(model: nn.Module, data: object, rho: float) -> Approximation:
    """Equation 13: L(θ + μF⁺g) ≈ L(θ) + μ gᵀF⁺g, up to O(μ²), g the gradient on the data.

    The argument ``rho`` is μ, the paper's ρ. The right side is a mini-batch's form of the objective
    L + μ IGS, equation 12. F⁺g is long, so the second order takes over at μ of a few thousandths
    already.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import perturbed_loss_expansion
    >>> model = nn.Linear(2, 3, bias=False).double()
    >>> _ = nn.init.zeros_(model.weight)
    >>> data = torch.eye(2).double(), torch.tensor([0, 1])
    >>> gaps = [perturbed_loss_expansion(model, data, rho).difference for rho in (2e-4, 1e-4)]
    >>> round(gaps[0] / gaps[1], 2)  # of second order
    4.0
    """
    rho = arguments.number("rho", rho)
    inputs, targets = as_batch(data)
    geometry = fisher_geometry(model, data)
    gradient, natural = _natural_gradient(geometry)
    value = get_loss(geometry.loss).value
    theta = flat_parameters(model)
    with evaluation(model) as parameters, torch.no_grad():
        outputs = outputs_of_vector(model, parameters, inputs)(theta + rho * natural.to(theta))
    return Approximation(
        statement="L(θ + μF⁺g) ≈ L(θ) + μ gᵀF⁺g, difference O(μ²)",
        source=f"{PAPER}, equation 13",
        left=float(value(outputs.double(), targets)),
        right=float(value(geometry.outputs, targets) + rho * (gradient @ natural)),
        assumptions={"rho small": None},
    )


def stop_gradient_identity(
    model: nn.Module, data: object, rho: float, version: str = "printed", seed: int = 0
) -> Approximation:
    """The paper's training step: the gradient at θ + ε, where ε = μF⁺g is held fixed.

    The argument ``rho`` is μ, the paper's ρ. The paper says that minimizing equation 13 minimizes a
    stochastic version of equation 12, and prints no gradient; these are ours. ``"exact"`` is the
    gradient's first order, g + μHF⁺g. ``"printed"`` puts F for H, which the paper calls close after
    training (Section 3.3.1), and gives (1+μ)g: a larger step and no regularizer at all. This
    happens where H = F, as in softmax regression. The sides are read along a random direction.

    Raises
    ------
    ValueError
        If the version is unknown.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.information_geometry import stop_gradient_identity
    >>> model = nn.Linear(2, 3, bias=False).double()  # linear in θ, so that H = F
    >>> _ = nn.init.zeros_(model.weight)
    >>> data = torch.eye(2).double(), torch.tensor([0, 1])
    >>> step = stop_gradient_identity(model, data, rho=1e-4)
    >>> step.assumptions["Hessian equals Fisher matrix"]
    True
    >>> round(step.left / step.right, 4)  # the gradient times 1 + ρ: a larger step, no regularizer
    1.0
    """
    version = arguments.choice("version", version, VERSIONS)
    rho = arguments.number("rho", rho)
    seed = arguments.seed("seed", seed)
    inputs, targets = as_batch(data)
    geometry = fisher_geometry(model, data)
    gradient, natural = _natural_gradient(geometry)
    theta = flat_parameters(model)
    perturbed = fisher_geometry(model, data, theta=theta + rho * natural.to(theta))
    hessian = dense_hessian(model, inputs, targets).double()
    fisher = geometry.rows.T @ geometry.rows / geometry.num_samples
    curvature = hessian if version == "exact" else fisher
    v = random_direction(gradient, len(gradient), seed)
    assumptions: dict[str, bool | None] = {"rho small": None}
    if version == "printed":
        assumptions["Hessian equals Fisher matrix"] = agree(hessian, fisher)
    return Approximation(
        statement="vᵀ∇L(θ + ε) ≈ vᵀg + μ vᵀHF⁺g, difference O(μ²)"
        if version == "exact"
        else "vᵀ∇L(θ + ε) ≈ (1 + μ) vᵀg, difference O(μ²)",
        source=f"{PAPER}, on equation 13 (ours)" + ("" if version == "exact" else ", with F for H"),
        left=float(v @ perturbed.gradients.mean(dim=0)),
        right=float(v @ (gradient + rho * (curvature @ natural))),
        assumptions=assumptions,
    )
