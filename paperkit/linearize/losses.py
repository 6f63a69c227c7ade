r"""Losses as functions of the network's outputs, named with their reduction.

Every curvature quantity of a loss :math:`L(\theta) = \frac1n \sum_i \ell(f_i, y_i)` needs three
things: its value, and the :math:`C \times C` Hessian :math:`\Lambda_i` of :math:`\ell` in the
outputs :math:`f_i`, preferably as a factor :math:`R_i` with :math:`R_i^\top R_i = \Lambda_i` and
as few rows as its rank.
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
    hessian_factor : callable
        ``outputs (n, C) -> (n, r, C)``, rows R_i with R_iᵀ R_i = Λ_i for each sample.
    """

    name: str
    reduction: str
    value: Callable[[Tensor, Tensor], Tensor]
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


def _scaled_identity(outputs: Tensor, scale: float) -> Tensor:
    n, num_outputs = outputs.shape
    identity = torch.eye(num_outputs, dtype=outputs.dtype, device=outputs.device)
    return (scale * identity).expand(n, -1, -1)


def _half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(dim=1).mean()


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            "cross_entropy",
            "mean over samples of −log softmax, natural logarithm",
            functional.cross_entropy,
            softmax_hessian_factor,
        ),
        Loss(
            "half_squared_error",
            "mean over samples of ½‖f − y‖², summed over outputs",
            _half_squared_error,
            lambda outputs: _scaled_identity(outputs, 1.0),
        ),
        Loss(
            "mse",
            "mean over samples and outputs of (f − y)², as torch.nn.MSELoss()",
            functional.mse_loss,
            lambda outputs: _scaled_identity(outputs, (2.0 / outputs.shape[1]) ** 0.5),
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
