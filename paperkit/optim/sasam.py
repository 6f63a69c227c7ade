r"""Smoothness-adaptive sharpness-aware minimisation."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

from torch.amp.grad_scaler import GradScaler

from paperkit import arguments
from paperkit.optim.groups import Given
from paperkit.optim.smoothness_adaptive import SmoothnessAdaptiveOptimizer
from paperkit.optim.vector import Vector

RHO_RULES = ("sqrt_eta", "sqrt_previous_eta", "sqrt_eta_over_beta")
ASCENTS = ("normalized", "gradient", "adaptive")


class SASAM(SmoothnessAdaptiveOptimizer):
    r"""Smoothness-adaptive sharpness-aware minimisation (SA-SAM paper, Algorithm 1).

    .. math::

       \theta_{t+1} = \theta_t
       - \eta_t \nabla L\Bigl(\theta_t + \rho_t \frac{g_t}{\|g_t\|}; \xi_t\Bigr), \qquad
       g_t = \nabla L(\theta_t; \xi_t), \qquad \rho_t = \sqrt{\eta_t},

    with :math:`\eta_t` of :func:`~paperkit.optim.adaptive_step_size`, all
    gradients on the batch :math:`\xi_t`. A step takes three gradient evaluations, two in the first
    step and with ``full_batch=True``.

    The algorithm's line 2 uses :math:`\rho_0`, which it does not define: :math:`\sqrt{\eta_0}`. The
    theorem that the radius is taken from (Andriushchenko and Flammarion 2022, Theorem 2, as usually
    quoted) is about the ascent :math:`\rho_t g_t`; for the normalised one ρ has the units of θ and
    √η does not, so the method depends on the scale of the loss, and on a quadratic it has a stable
    two-cycle whose loss is 1/36 whatever the curvature (with damping c, 1/(2c (2c − 1)²)).

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups. A group may set its own options.
    eta0 : float
        First step size η_0 > 0, best small.
    rho_rule : str or float, optional
        Rule for ρ_t, or a fixed number; default the variant's rule. ``"sqrt_eta"`` is √η_t (the
        paper), ``"sqrt_previous_eta"`` is √η_{t−1} (the release). ``"sqrt_eta_over_beta"`` is
        √(η_t/β_t), with 1/(cη_t) for a β_t that is unknown or 0; with ``ascent="gradient"`` this
        has the units of the cited theorem.
    ascent : str
        Direction of the perturbation: ``"normalized"`` as above; ``"gradient"`` for ρ_t g_t; or
        ``"adaptive"`` for ASAM's :math:`\rho_t T^2 g_t / \|T g_t\|` with :math:`T = |\theta_t|`
        entry by entry, which one of the two released scripts has.
    **options
        Options ``delta``, ``damping``, ``theta0``, ``variant``, ``weight_decay``, ``full_batch``,
        ``max_norm`` and ``log`` of :class:`~paperkit.optim.SmoothnessAdaptiveOptimizer`.

    Raises
    ------
    ValueError
        If an option is unknown or out of range.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import SASAM
    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = SASAM([w], eta0=0.01)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 2.0 * w.square().sum()  # of curvature 4
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(2):
    ...     loss = optimizer.step(closure)
    >>> round(optimizer.beta, 4), round(optimizer.eta, 4), round(optimizer.rho, 4)  # β, 1/2β, √η
    (4.0, 0.125, 0.3536)
    """

    options = (*SmoothnessAdaptiveOptimizer.options, "rho_rule", "ascent")

    def __init__(
        self,
        params: Given,
        eta0: float = 1e-3,
        *,
        rho_rule: str | float | None = None,
        ascent: str = "normalized",
        **options: Any,
    ) -> None:
        ascent = arguments.choice("ascent", ascent, ASCENTS)
        if isinstance(rho_rule, str):
            rho_rule = arguments.choice("rho_rule", rho_rule, RHO_RULES)
        elif rho_rule is not None:
            names = f"or one of {', '.join(RHO_RULES)}"
            rho_rule = arguments.number("rho_rule", rho_rule, at_least=0, because=names)
        super().__init__(params, eta0, **options)
        self.rho_rule = self._published.rho_rule if rho_rule is None else rho_rule
        self.ascent = ascent

    def first_step(
        self, zero_grad: bool | None = None, *, scaler: GradScaler | None = None
    ) -> None:
        """Begin a step of full batches; mini-batches take a third gradient.

        Raises
        ------
        RuntimeError
            Without ``full_batch=True``, or if a step is open.
        """
        if not self.full_batch:
            raise RuntimeError("a step of mini-batches has three passes: call step(closure).")
        super().first_step(zero_grad, scaler=scaler)

    def _take_direction(self, eta: float, beta: float) -> Generator[None, None, float]:
        rho, gradient = self._radius(eta, beta), self._first_gradient()
        self._record(gradient, self._move_by(self._ascent_direction(gradient) * rho))
        del gradient  # the next pass needs the memory
        if not self.full_batch:
            self._open.gradient = None
        yield
        self._restore_weights()
        return rho

    def _ascent_direction(self, gradient: Vector) -> Vector:
        if self.ascent == "gradient":
            return gradient
        if self.ascent == "normalized":
            return gradient.normalized()
        scale = Vector([weight.abs() for weight in self._weights().tensors])
        return scale * (scale * gradient).normalized()

    def _radius(self, eta: float, beta: float) -> float:
        if not isinstance(self.rho_rule, str):
            return float(self.rho_rule)
        if self.rho_rule == "sqrt_previous_eta":
            return math.sqrt(self.eta)
        if self.rho_rule == "sqrt_eta_over_beta":
            smoothness = beta if beta > 0.0 else 1.0 / (self.damping * eta)
            return math.sqrt(eta / smoothness)
        return math.sqrt(eta)
