"""Equations 9 to 12: the gradient's entropy, the regularizer, and what the optimizer descends."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.bounds.arguments import (
    Values,
    is_semidefinite,
    loss_at,
    nonzero_vector,
    symmetric_matrix,
)
from paperkit.bounds.renyi.entropy import power_sum
from paperkit.bounds.renyi.layers import power_sum_bounds
from paperkit.bounds.statement import Approximation, Identity, Inequality
from paperkit.curvature.dense import select_parameters
from paperkit.estimators.entropy import renyi_entropy
from paperkit.network.batches import as_batch
from paperkit.network.evaluation import evaluation
from paperkit.network.network import Network, own_parameters


def gradient_power_ratio(gradient: Values, alpha: float) -> float:
    r"""Return :math:`R(g) = \sum_j |g_j|^{2\alpha} / (\sum_j g_j^2)^\alpha`.

    Source: Rényi paper, equation 10, with the absolute value that a real power needs.

    Raises
    ------
    ValueError
        If alpha is not positive, or the gradient is empty, not finite or zero.

    Examples
    --------
    >>> from paperkit.bounds.renyi import gradient_power_ratio
    >>> round(gradient_power_ratio([3.0, 4.0], alpha=2.0), 4)  # (3⁴ + 4⁴) / 5⁴
    0.5392
    >>> round(gradient_power_ratio([0.3, 0.4], alpha=2.0), 4)  # it does not see the length
    0.5392
    """
    return power_sum(nonzero_vector(gradient, "gradient").square(), alpha)


def gradient_power_ratio_derivative(gradient: Tensor, alpha: float) -> Tensor:
    r"""Return :math:`u = \partial R / \partial g`, float64, on the CPU.

    :math:`u = 2\alpha\,\|g\|^{-2\alpha}\,|g|^{2\alpha - 1}\mathrm{sign}(g) - 2\alpha\, R\, g /
    \|g\|^2`, entry by entry. R does not see the length of g, so :math:`g^\top u = 0`. In
    parameters, :math:`\nabla_\theta R = H u`. For α < ½ it is infinite where an entry is zero.

    Raises
    ------
    ValueError
        As :func:`gradient_power_ratio`, or if alpha < ½ and an entry is zero.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import gradient_power_ratio_derivative
    >>> gradient = torch.tensor([3.0, 4.0], dtype=torch.float64)
    >>> u = gradient_power_ratio_derivative(gradient, alpha=2.0)
    >>> u
    tensor([-0.0860,  0.0645], dtype=torch.float64)
    >>> abs(float(gradient @ u)) < 1e-12
    True
    """
    alpha = arguments.order("alpha", alpha)
    g = nonzero_vector(gradient, "gradient")
    if alpha < 0.5 and bool((g == 0).any()):
        raise ValueError("gradient has a zero entry, where R has no derivative for alpha < 1/2.")
    unit = g / g.norm()
    ratio = gradient_power_ratio(g, alpha)
    along = unit.abs() ** (2.0 * alpha - 1.0) * unit.sign() - ratio * unit
    return 2.0 * alpha / g.norm() * along


def renyi_perturbation(
    gradient: Tensor, rho: float, alpha: float, version: str = "equation"
) -> Tensor:
    r"""Return the perturbation of the Rényi paper's optimizer, float64, on the CPU.

    Equation 11: :math:`\varepsilon = -\mu\, \mathrm{sign}(1-\alpha)\, R(g)\, g / \|g\|^2`, in which
    the argument ``rho`` is μ, the paper's ρ. This ε lies along the gradient, so it is the
    perturbation of sharpness-aware minimisation of radius :math:`\mu R(g)/\|g\|`, reversed for
    α < 1; the radius grows without bound as g → 0. The
    ``"algorithm"`` version has the sign that Algorithm 2, step 5, prints: the opposite one, which
    for the paper's α > 1 descends.

    Raises
    ------
    ValueError
        As :func:`gradient_power_ratio`, or if alpha = 1 or the version is unknown.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import renyi_perturbation
    >>> gradient = torch.tensor([3.0, 4.0])
    >>> renyi_perturbation(gradient, rho=1.0, alpha=2.0)  # along the gradient, as SAM's
    tensor([0.0647, 0.0863], dtype=torch.float64)
    >>> renyi_perturbation(gradient, rho=1.0, alpha=0.5)  # against it
    tensor([-0.1680, -0.2240], dtype=torch.float64)
    """
    alpha = arguments.order("alpha", alpha, one_allowed=False)
    version = arguments.choice("version", version, ("equation", "algorithm"))
    rho = arguments.number("rho", rho)
    g = nonzero_vector(gradient, "gradient")
    sign = math.copysign(1.0, 1.0 - alpha) * (-1.0 if version == "equation" else 1.0)
    return sign * rho * gradient_power_ratio(g, alpha) * g / g.square().sum()


def gradient_entropy(eigenvalues: Values, gradient: Values, alpha: float) -> Approximation:
    r"""Compare the Hessian's entropy with that of the squared mean gradient.

    Source: Rényi paper, equations 9 and 10: :math:`H \approx \mathrm{Diag}(g)^2`, g the *mean*
    gradient. This approximation has no bound: at a stationary point g = 0. For a single mini-batch
    the squares are single draws around the per-sample second moment, which is the defensible
    object, and their noise biases the entropy.

    Parameters
    ----------
    eigenvalues : Tensor or sequence of float
        Eigenvalues of the Hessian.
    gradient : Tensor or sequence of float
        Mean gradient, with as many entries.
    alpha : float
        Order α > 0.

    Raises
    ------
    ValueError
        If the lengths differ, alpha is not positive, or an argument is empty, not finite or zero.

    Examples
    --------
    >>> from paperkit.bounds.renyi import gradient_entropy
    >>> gradient_entropy([9.0, 16.0], gradient=[3.0, 4.0], alpha=0.5)
    Approximation(Rényi paper, eqs. 9–10: ℋ_α(H) ≈ ℋ_α(Diag(g)²): 0.672944 ≈ 0.672944, certified)
    >>> gradient_entropy([9.0, 16.0], gradient=[0.001, 0.0], alpha=0.5)  # close to a minimum
    Approximation(Rényi paper, eqs. 9–10: ℋ_α(H) ≈ ℋ_α(Diag(g)²): 0.672944 ≈ 0, not certified:
        spectrum_is_squared_gradient=violated)
    """
    alpha = arguments.order("alpha", alpha)
    values, g = nonzero_vector(eigenvalues, "eigenvalues"), nonzero_vector(gradient, "gradient")
    if len(values) != len(g):
        raise ValueError(
            f"gradient has {len(g)} entries for {len(values)} eigenvalues: make them agree."
        )
    p, q = values.abs() / values.abs().sum(), g.square() / g.square().sum()
    return Approximation(
        statement="ℋ_α(H) ≈ ℋ_α(Diag(g)²)",
        source="Rényi paper, eqs. 9–10",
        left=renyi_entropy(values, alpha),
        right=renyi_entropy(g.square(), alpha),
        assumptions={
            "positive_semidefinite": is_semidefinite(values),
            "spectrum_is_squared_gradient": torch.allclose(
                p.sort().values, q.sort().values, rtol=1e-9, atol=1e-12
            ),
        },
    )


def gradient_power_ratio_range(gradient: Values, alpha: float) -> tuple[Inequality, Inequality]:
    r"""Return the lower and the upper bound of R(g): between 1 and :math:`d^{1-\alpha}`.

    Source: Rényi paper, equation 10 with Lemma F.3.

    Raises
    ------
    ValueError
        As :func:`gradient_power_ratio`.

    Examples
    --------
    >>> from paperkit.bounds.renyi import gradient_power_ratio_range
    >>> low, high = gradient_power_ratio_range([3.0, 4.0], alpha=2.0)
    >>> low.left, round(low.right, 4), high.right
    (0.5, 0.5392, 1.0)
    >>> gradient_power_ratio_range([1.0, 1.0], alpha=2.0)[0].slack  # equal entries attain d^(1−α)
    0.0
    """
    return power_sum_bounds(
        nonzero_vector(gradient, "gradient").square(), alpha, "R(g)", "eq. 10 and Lemma F.3"
    )


def first_order_regularizer(gradient: Tensor, rho: float, alpha: float) -> Identity:
    r"""Compare :math:`g^\top \varepsilon` with :math:`-\mu\, \mathrm{sign}(1-\alpha) R(g)`.

    The argument ``rho`` is μ, the paper's ρ. Source: Rényi paper, equations 11 and 12; an identity.

    Raises
    ------
    ValueError
        As :func:`renyi_perturbation`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import first_order_regularizer
    >>> gradient = torch.tensor([3.0, 4.0])
    >>> first_order_regularizer(gradient, rho=0.1, alpha=2.0)  # 0.1 · (3⁴ + 4⁴) / 5⁴
    Identity(Rényi paper, eqs. 11–12: gᵀε = −μ sign(1 − α) R(g): 0.05392 = 0.05392, certified)
    """
    epsilon = renyi_perturbation(gradient, rho, alpha)
    sign = math.copysign(1.0, 1.0 - alpha)
    return Identity(
        statement="gᵀε = −μ sign(1 − α) R(g)",
        source="Rényi paper, eqs. 11–12",
        left=float(arguments.vector("gradient", gradient) @ epsilon),
        right=-rho * sign * gradient_power_ratio(gradient, alpha),
    )


def regularized_loss(
    model: nn.Module, data: object, rho: float, alpha: float, loss: str = "cross_entropy"
) -> Approximation:
    r"""Compare the perturbed loss with the loss plus regularizer that it stands for.

    :math:`L(\theta + \varepsilon) \approx L(\theta) - \mu\,\mathrm{sign}(1-\alpha) R(g)`. Source:
    Rényi paper, equation 12; true to first order in μ, all parameters perturbed.

    Parameters
    ----------
    model : nn.Module
        Network, measured in evaluation mode and left as it was.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them.
    rho : float
        Weight μ of the regularizer; the paper's ρ.
    alpha : float
        Order α > 0, not 1.
    loss : str
        Name from :data:`paperkit.network.LOSSES`.

    Raises
    ------
    ValueError
        If the gradient is zero or not finite, or alpha or the loss is unusable.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.renyi import regularized_loss
    >>> model = nn.Linear(2, 1, bias=False).double()
    >>> _ = nn.init.ones_(model.weight)
    >>> data = torch.eye(2).double(), torch.tensor([[0.0], [2.0]]).double()
    >>> def gap(rho):
    ...     return regularized_loss(model, data, rho, 2.0, loss="half_squared_error").difference
    >>> round(gap(0.2) / gap(0.1), 6)  # the difference is of second order
    4.0
    """
    rho = arguments.number("rho", rho)
    alpha = arguments.order("alpha", alpha, one_allowed=False)
    select_parameters(own_parameters(Network.of(model)), None)
    inputs, targets = as_batch(data)
    with evaluation(model) as parameters:
        start = loss_at(model, parameters, inputs, targets, loss)
        gradients = torch.autograd.grad(
            start, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        gradient = torch.cat([part.flatten() for part in gradients])
        epsilon = renyi_perturbation(gradient, rho, alpha).to(gradient)
        parts = epsilon.split([parameter.numel() for parameter in parameters.values()])
        with torch.no_grad():
            perturbed = {
                name: parameter + part.view_as(parameter)
                for (name, parameter), part in zip(parameters.items(), parts, strict=True)
            }
            left = float(loss_at(model, perturbed, inputs, targets, loss))
    sign = math.copysign(1.0, 1.0 - alpha)
    return Approximation(
        statement="to first order in μ: L(θ + ε) ≈ L(θ) − μ sign(1 − α) R(g)",
        source="Rényi paper, eq. 12",
        left=left,
        right=float(start.detach()) - rho * sign * gradient_power_ratio(gradient, alpha),
        assumptions={"loss_is_affine_along_the_gradient": None},
    )


def regularizer_descent(hessian: Tensor, gradient: Tensor, alpha: float) -> Inequality:
    r"""Return the rate at which the optimizer's extra term changes the regularizer it stands for.

    A step along :math:`-\nabla L(\theta + \varepsilon) \approx -g - H\varepsilon`, ε held fixed,
    has the extra term :math:`-H\varepsilon`; the regularizer :math:`-\mathrm{sign}(1-\alpha)R` of
    equation 12 has the gradient :math:`-\mathrm{sign}(1-\alpha)Hu`. The claim of the Rényi paper,
    Section 6.1, that descent on equation 11 descends equation 12 says that the rate, per μ, is at
    most 0. This is false: ε lies along g, and :math:`g^\top u = 0`, so the extra term descends
    :math:`\log\|g\|` instead.

    Parameters
    ----------
    hessian : Tensor
        Hessian of the loss, (d, d).
    gradient : Tensor
        Gradient of the loss, (d,).
    alpha : float
        Order α > 0, not 1.

    Returns
    -------
    Inequality
        Statement rate ≤ 0. The assumption asks whether ε is along u, which is so only where both
        vanish.

    Raises
    ------
    ValueError
        If the shapes do not fit, or as :func:`gradient_power_ratio_derivative`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.renyi import regularizer_descent
    >>> gradient = torch.tensor([2.0, 1.0])
    >>> descent = regularizer_descent(torch.diag(torch.tensor([1.0, 3.0])), gradient, alpha=2.0)
    >>> descent.holds, round(descent.left, 4)  # the step raises what it should lower
    (False, 0.4178)
    >>> abs(regularizer_descent(torch.eye(2), gradient, alpha=2.0).left) < 1e-12
    True
    """
    matrix, g = symmetric_matrix(hessian), nonzero_vector(gradient, "gradient")
    if len(matrix) != len(g):
        raise ValueError(
            f"gradient has {len(g)} entries, hessian {tuple(matrix.shape)}: make them agree."
        )
    extra = -matrix @ renyi_perturbation(g, 1.0, alpha)
    derivative = gradient_power_ratio_derivative(g, alpha)
    slope = -math.copysign(1.0, 1.0 - alpha) * matrix @ derivative
    return Inequality(
        statement="⟨∇(−sign(1 − α) R), −Hε⟩ ≤ 0",
        source="Rényi paper, Section 6.1, eqs. 11–12",
        left=float(slope @ extra),
        right=0.0,
        assumptions={"perturbation_follows_the_regularizer": not bool(derivative.any())},
    )
