r"""Losses as functions of the network's outputs, named with their reduction.

Every curvature quantity of a loss :math:`L(\theta) = \frac1n \sum_i \ell(f_i, y_i)` needs its
value, the gradient of :math:`\ell` in the outputs :math:`f_i`, and the :math:`C \times C` Hessian
:math:`\Lambda_i` there: as a product with changes of the outputs, and as a factor :math:`R_i` with
:math:`R_i^\top R_i = \Lambda_i` and as few rows as its rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Loss:
    """A loss, mean over samples, that depends on the parameters only through the outputs.

    Attributes
    ----------
    name : str
        The name under which :func:`get_loss` knows it.
    reduction : str
        What is averaged and with which factor, in words.
    value : callable
        ``(outputs (n, C), targets) -> scalar``, the mean over the n samples.
    gradient : callable
        ``(outputs (n, C), targets) -> (n, C)``, ∂ℓ_i/∂f_i of each sample's own loss.
    hessian_product : callable
        ``(outputs (n, C), changes (…, n, C)) -> (…, n, C)``, Λ_i times each sample's change.
    hessian_factor : callable
        ``outputs (n, C) -> (n, r, C)``, rows R_i with R_iᵀ R_i = Λ_i for each sample.
    """

    name: str
    reduction: str
    value: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]
    hessian_product: Callable[[Tensor, Tensor], Tensor]
    hessian_factor: Callable[[Tensor], Tensor]


def softmax_hessian_factor(outputs: Tensor) -> Tensor:
    r"""Return a (C−1)-row factor of :math:`\operatorname{diag}(p) - pp^\top`.

    With :math:`q = \sqrt p` (a unit vector), :math:`\Lambda = D(I - qq^\top)D`, :math:`D =
    \operatorname{diag}(q)`. If the rows of :math:`Q` are an orthonormal basis of
    :math:`q^\perp`, then :math:`I - qq^\top = Q^\top Q` and :math:`R = QD` is the factor. The
    Householder reflection that maps :math:`q` to the axis of its largest entry supplies
    :math:`Q` without cancellation, also for a saturated softmax.

    Parameters
    ----------
    outputs : Tensor
        Logits, shape (n, C), C ≥ 2.

    Returns
    -------
    Tensor
        Shape (n, C − 1, C).
    """
    n, num_outputs = outputs.shape
    # A softmax that ends at 1 keeps no digits of 1 − p; the square root through log-softmax does.
    root = torch.exp(0.5 * functional.log_softmax(outputs, dim=1))
    pivot = root.argmax(dim=1, keepdim=True)
    axis = torch.zeros_like(root).scatter_(1, pivot, 1.0)
    normal = root + axis
    scale = (1.0 + root.gather(1, pivot)).unsqueeze(-1)
    identity = torch.eye(num_outputs, dtype=outputs.dtype, device=outputs.device)
    reflection = identity - normal.unsqueeze(2) * normal.unsqueeze(1) / scale
    kept = torch.arange(num_outputs - 1, device=outputs.device).expand(n, -1)
    kept = kept + (kept >= pivot)
    rows = reflection.gather(1, kept.unsqueeze(-1).expand(-1, -1, num_outputs))
    return rows * root.unsqueeze(1)


def softmax_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return p − e_y for each sample, (n, C).

    The label's entry is minus the sum of the other probabilities, which keeps its digits where
    p_y − 1 has none.
    """
    label = targets.unsqueeze(-1)
    others = outputs.softmax(dim=-1).scatter(-1, label, 0.0)
    return others.scatter(-1, label, -others.sum(dim=-1, keepdim=True))


def softmax_hessian_product(outputs: Tensor, changes: Tensor) -> Tensor:
    r"""Multiply :math:`\operatorname{diag}(p) - pp^\top` with changes u, (…, n, C).

    :math:`\Lambda u = p \odot (u - p \cdot u)`. A constant added to all entries of u is first
    removed so that u is zero at the largest p: then nothing cancels where the softmax is saturated.
    """
    probabilities = outputs.softmax(dim=-1)
    likeliest = outputs.argmax(dim=-1, keepdim=True).expand(*changes.shape[:-1], 1)
    centred = changes - changes.gather(-1, likeliest)
    return probabilities * (centred - (probabilities * centred).sum(dim=-1, keepdim=True))


def _half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


def _squared_error(
    name: str,
    reduction: str,
    value: Callable[[Tensor, Tensor], Tensor],
    curvature: Callable[[int], float],
) -> Loss:
    """Return a squared error whose Hessian in the C outputs is ``curvature(C)`` times identity."""

    def factor(outputs: Tensor) -> Tensor:
        n, num_outputs = outputs.shape
        identity = torch.eye(num_outputs, dtype=outputs.dtype, device=outputs.device)
        return (curvature(num_outputs) ** 0.5 * identity).expand(n, -1, -1)

    return Loss(
        name,
        reduction,
        value,
        lambda outputs, targets: (outputs - targets) * curvature(outputs.shape[-1]),
        lambda outputs, changes: changes * curvature(outputs.shape[-1]),
        factor,
    )


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            "cross_entropy",
            "mean over samples of −log softmax, natural logarithm",
            functional.cross_entropy,
            softmax_gradient,
            softmax_hessian_product,
            softmax_hessian_factor,
        ),
        _squared_error(
            "half_squared_error",
            "mean over samples of ½‖f − y‖², summed over outputs",
            _half_squared_error,
            lambda num_outputs: 1.0,
        ),
        _squared_error(
            "mse",
            "mean over samples and outputs of (f − y)², as torch.nn.MSELoss()",
            functional.mse_loss,
            lambda num_outputs: 2.0 / num_outputs,
        ),
    )
}


def get_loss(name: str) -> Loss:
    """Return the loss of that name.

    Raises
    ------
    ValueError
        If ``name`` is not one of :data:`LOSSES`.
    """
    if name not in LOSSES:
        raise ValueError(f"loss={name!r} is unknown: choose one of {', '.join(LOSSES)}.")
    return LOSSES[name]
