"""The Hessian near interpolation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vmap

from paperkit import arguments
from paperkit.bounds.compression.terms import PAPER
from paperkit.bounds.statement import Inequality
from paperkit.curvature.dense import dense_hessian, dense_jacobian, select_parameters
from paperkit.network.batches import as_batch
from paperkit.network.evaluation import check_inputs, check_outputs, evaluation
from paperkit.network.losses import get_loss
from paperkit.network.network import Network, network_outputs, own_parameters


@dataclass(frozen=True)
class InterpolationBounds:
    r"""Distance between the trace of the Hessian and the Gauss–Newton trace.

    Attributes
    ----------
    difference : float
        Difference Tr H − Tr G, from the Hessian itself.
    residual_term : float
        Term :math:`\frac1n\sum_i (f_i - y_i)^\top \sum_j w_j\,\partial^2 f_i/\partial\theta_j^2`,
        to which the difference is equal.
    laplacian : Inequality
        Magnitude of the difference against :math:`r\max_i\|\sum_j w_j\,\partial_j^2 f_i\|`.
    parameter_count : Inequality
        That right side against :math:`d\, c\, r`, for d parameters.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import interpolation_bounds
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Softplus())  # log(1 + eʷ) at x = 1
    >>> _ = nn.init.zeros_(model[0].weight)
    >>> found = interpolation_bounds(model, (torch.ones(1, 1), torch.zeros(1, 1)))
    >>> round(found.difference, 4), round(found.residual_term, 4)  # log 2 times the curvature 1/4
    (0.1733, 0.1733)
    """

    difference: float
    residual_term: float
    laplacian: Inequality
    parameter_count: Inequality


def interpolation_bounds(
    model: nn.Module, data: object, *, adaptive: bool = False, max_parameters: int = 2000
) -> InterpolationBounds:
    r"""Compare Hessian and Gauss–Newton trace of ½‖f − y‖² away from interpolation.

    With the distance from interpolation :math:`r = \max_i\|f_i - y_i\|` and
    :math:`c = \max_{ij} w_j\|\partial_j^2 f_i\|` (the paper's ε and M),
    :math:`|\sum_j w_j H_{jj} - \frac1n\sum_{ij} w_j\|\partial_j f_i\|^2| \le r\max_i
    \|\sum_j w_j\partial_j^2 f_i\| \le d\, c\, r`. Source: compression paper, Lemma B.1
    (equations 18 and 19) with w = 1, and Lemma E.2 (equations 41 and 42) with
    :math:`w_j = \theta_j^2`. Equations 18 and 41 print θ* for θ, and the left side of 42 lacks the
    weights.

    Parameters
    ----------
    model : nn.Module
        Small network, all of whose second derivatives are written out.
    data : pair or iterable of pairs
        ``(inputs, targets)`` with targets (n, C).
    adaptive : bool
        Whether parameters are weighed by :math:`\theta_j^2`, as in Lemma E.2.
    max_parameters : int
        Largest number d of parameters that is allowed.

    Returns
    -------
    InterpolationBounds
        Both sides of the identity, and the inequalities.

    Raises
    ------
    ValueError
        If the model is too large, or the data do not fit it.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import interpolation_bounds
    >>> model = nn.Linear(2, 1).double()  # linear in θ: H = G with any residual
    >>> data = torch.eye(2).double(), torch.ones(2, 1).double()
    >>> abs(interpolation_bounds(model, data).residual_term)
    0.0
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Softplus())
    >>> _ = nn.init.zeros_(model[0].weight)
    >>> interpolation_bounds(model, (torch.ones(1, 1), torch.zeros(1, 1))).laplacian
    Inequality(compression paper, Lemma B.1 (equation 19), sharper: |Tr H − Tr G| ≤ r max_i ‖Σ_j
        ∂_j² f_i‖: 0.173287 ≤ 0.173287, certified)
    """
    adaptive = arguments.flag("adaptive", adaptive)
    max_parameters = arguments.integer("max_parameters", max_parameters, at_least=1)
    select_parameters(own_parameters(Network.of(model)), None)
    inputs, targets = as_batch(data)
    check_inputs(inputs)
    with evaluation(model) as leaves:
        theta = torch.cat([leaf.detach().flatten() for leaf in leaves.values()])
        if len(theta) > max_parameters:
            raise ValueError(
                f"model has {len(theta)} parameters: their second derivatives are written out for "
                f"at most max_parameters={max_parameters}."
            )
        with torch.no_grad():
            outputs = network_outputs(model, leaves, inputs)
        check_outputs(outputs, len(inputs))
        get_loss("half_squared_error").check(outputs, targets)
        second = _pure_second_derivatives(model, leaves, theta, inputs)
    weights = theta.square() if adaptive else torch.ones_like(theta)
    hessian = dense_hessian(model, inputs, targets, "half_squared_error").diagonal()
    gauss_newton = dense_jacobian(model, inputs).square().sum(dim=1).mean(dim=0)
    difference = float((weights * (hessian - gauss_newton)).sum())
    residuals = outputs - targets.to(outputs)
    laplacians = second @ weights
    distance = float(residuals.norm(dim=1).max())
    laplacian = distance * float(laplacians.norm(dim=1).max())
    largest = float((second.norm(dim=1) * weights).max())
    lemma = "Lemma E.2 (equation 42)" if adaptive else "Lemma B.1 (equation 19)"
    # The traces nearly cancel in their difference, which keeps their round-off.
    rounding = 100 * torch.finfo(theta.dtype).eps * float((weights * hessian.abs()).sum())
    return InterpolationBounds(
        difference=difference,
        residual_term=float((residuals * laplacians).sum(dim=1).mean()),
        laplacian=Inequality(
            statement="|Tr H − Tr G| ≤ r max_i ‖Σ_j ∂_j² f_i‖",
            source=f"{PAPER}, {lemma}, sharper",
            left=abs(difference),
            right=laplacian,
            absolute_tolerance=rounding,
        ),
        parameter_count=Inequality(
            statement="r max_i ‖Σ_j ∂_j² f_i‖ ≤ d c r",
            source=f"{PAPER}, {lemma}",
            left=laplacian,
            right=len(theta) * largest * distance,
        ),
    )


def _pure_second_derivatives(
    model: nn.Module, leaves: dict[str, Tensor], theta: Tensor, inputs: Tensor
) -> Tensor:
    """Return ∂²f_ic/∂θ_j², shape (n, C, d)."""
    sizes = [leaf.numel() for leaf in leaves.values()]

    def outputs(vector: Tensor) -> Tensor:
        parts = zip(leaves.items(), vector.split(sizes), strict=True)
        parameters = {name: part.reshape(leaf.shape) for (name, leaf), part in parts}
        return network_outputs(model, parameters, inputs)

    def along(direction: Tensor) -> Tensor:
        return jvp(jacrev(outputs), (theta,), (direction,))[1] @ direction

    directions = torch.eye(len(theta), dtype=theta.dtype, device=theta.device)
    return vmap(along, out_dims=-1, chunk_size=32)(directions)


def norm_monotonicity(values: Tensor, p: float, q: float) -> Inequality:
    r"""Compare two norms of a vector, :math:`\|v\|_q \le \|v\|_p` for 1 ≤ p ≤ q ≤ ∞.

    Equality where at most one entry is nonzero; for n equal entries the right side is
    :math:`n^{1/p - 1/q}` times the left, which is what makes the volume bounds loose. Source:
    compression paper, Lemma C.1.

    Raises
    ------
    ValueError
        If ``values`` is empty.

    Examples
    --------
    >>> import math
    >>> import torch
    >>> from paperkit.bounds.compression import norm_monotonicity
    >>> norm_monotonicity(torch.tensor([3.0, 4.0]), p=1.0, q=2.0)
    Inequality(compression paper, Lemma C.1: ‖v‖_q ≤ ‖v‖_p: 5 ≤ 7, certified)
    >>> norm_monotonicity(torch.tensor([3.0, 0.0]), p=1.0, q=math.inf).slack  # one entry: equality
    0.0
    """
    flat = arguments.tensor("values", values, finite=True).flatten().double()
    p = arguments.number("p", p, at_least=0, finite=False)
    q = arguments.number("q", q, at_least=0, finite=False)
    return Inequality(
        statement="‖v‖_q ≤ ‖v‖_p",
        source=f"{PAPER}, Lemma C.1",
        left=float(flat.norm(q)),
        right=float(flat.norm(p)),
        assumptions={"1 ≤ p ≤ q": 1 <= p <= q},
    )
