r"""Sharpness-aware minimisation: the gradient at the worst point of a ball, to first order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from paperkit import arguments
from paperkit.optim.groups import Given
from paperkit.optim.vector import Vector, nonzero
from paperkit.optim.wrapped import BaseOptimizer, WrappedOptimizer


class SAM(WrappedOptimizer):
    r"""Sharpness-aware minimisation (Foret et al. 2021), two gradient evaluations a step.

    .. math::

       \theta \leftarrow \mathrm{base}\bigl(\theta, \nabla L(\theta + \varepsilon)\bigr), \qquad
       \varepsilon = \rho\, \frac{\mathrm{sign}(g)\, |g|^{q - 1}}{\|g\|_q^{q - 1}}, \qquad
       \frac1p + \frac1q = 1,

    the maximiser of :math:`g^\top \varepsilon` over :math:`\|\varepsilon\|_p \le \rho`; for p = 2
    it is :math:`\rho\, g / \|g\|`. The SA-SAM paper (equation 1) states the ball for every p and
    prints one direction, that of p = 2. For p = 1 all of ρ goes to the largest entries of g.

    Parameters
    ----------
    params : nn.Module or iterable
        Model; or parameters, named parameters or parameter groups, where a group may set its own
        options.
    base : callable
        Class or function that makes the base optimizer from the parameters.
    rho : float
        Radius of the ball, in the units of the weights' p-norm.
    p : float
        Norm of the ball, from 1 to infinity.
    **options
        Options ``max_norm``, ``log`` and ``no_sync``, and those of the base optimizer.

    Raises
    ------
    ValueError
        If ``rho`` is negative or ``p`` less than 1.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import SAM
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = SAM([w], torch.optim.SGD, rho=0.5, lr=0.1)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * w.square().sum()
    ...     loss.backward()
    ...     return loss
    >>> optimizer.step(closure).item()
    12.5
    >>> w.detach()  # w − 0.1 (w + 0.5 w/‖w‖)
    tensor([2.6700, 3.5600])
    """

    options = (*WrappedOptimizer.options, "p")

    def __init__(
        self,
        params: Given,
        base: BaseOptimizer = torch.optim.SGD,
        rho: float = 0.05,
        *,
        p: float = 2.0,
        **options: Any,
    ) -> None:
        self.p = arguments.number("p", p, at_least=1, finite=False)
        super().__init__(params, base, rho, **options)

    def perturbation(self, gradient: Vector, weights: Vector, strengths: Sequence[float]) -> Vector:
        """Return ε, see the class."""
        if self.p == 2.0:
            return gradient.scaled(strengths, by=1.0 / nonzero(gradient.norm()))
        return ball_maximizer(gradient, self.p).scaled(strengths)


def ball_maximizer(gradient: Vector, p: float) -> Vector:
    r"""Return the ε that maximises :math:`g^\top \varepsilon` over :math:`\|\varepsilon\|_p \le 1`.

    For p = 1 the largest entries share ε equally. For a zero gradient ε is zero.
    """
    if p == 1.0:
        largest = gradient.norm(math.inf)
        chosen = Vector([t * (t.abs() == largest.to(t.device)) for t in gradient.tensors])
        return chosen / nonzero(chosen.norm(1.0))
    q = 1.0 if p == math.inf else p / (p - 1.0)
    return (gradient / nonzero(gradient.norm(q))).signed_power(q - 1.0)
