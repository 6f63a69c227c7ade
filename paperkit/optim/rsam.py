r"""Rényi sharpness-aware minimisation, as printed and as meant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.optim.groups import Given
from paperkit.optim.kept import Kept
from paperkit.optim.opened import Passes
from paperkit.optim.vector import Vector, nonzero
from paperkit.optim.wrapped import BaseOptimizer, WrappedOptimizer

MODES = ("paper", "exact", "sam_radius")


class RSAM(WrappedOptimizer):
    r"""Rényi sharpness-aware minimisation (Rényi paper, Section 6.1), two gradients a step.

    With :math:`R(g) = \sum_j |g_j|^{2\alpha} / (\sum_j g_j^2)^\alpha` (equation 10),
    :math:`s = \mathrm{sign}(1 - \alpha)` and :math:`u = \partial R / \partial g`, the step follows

    ``mode="paper"``
        :math:`\nabla L(\theta + \varepsilon)`, :math:`\varepsilon = -\mu\, s\, R(g)\, g / \|g\|^2`
        (equation 11; Algorithm 2, step 5, has the opposite sign in our copy, which for α > 1 would
        descend).
        This is sharpness-aware minimisation of radius :math:`\mu R(g) / \|g\|`, reversed for α < 1.
        The step is meant to descend :math:`L - \mu s R` (equation 12) and does not: ε lies along g,
        and :math:`g^\top u = 0`.
    ``mode="exact"``
        the gradient of equation 12, :math:`g - \mu s H u`, the product being a difference of
        gradients a distance ``tau`` along :math:`-s u`. For α < ½, u is infinite where g is 0; such
        entries are left out.
    ``mode="sam_radius"``
        sharpness-aware minimisation of the paper's radius, along +g for every α; for α > 1 the same
        as ``"paper"`` to the last bit.

    The radius grows without bound as g → 0: ``max_radius`` caps it. Before the switch the step is
    the base optimizer's. The switch comes when all conditions hold that were asked for.

    Parameters
    ----------
    params : nn.Module or iterable
        Model; or parameters, named parameters or parameter groups, where a group may set its own
        options.
    base : callable
        Class or function that makes the base optimizer from the parameters.
    rho : float
        Weight μ ≥ 0 of the penalty, in the units of the loss; the paper's ρ.
    alpha : float
        Order α of the entropy, positive and not 1.
    mode : str
        ``"paper"``, ``"exact"`` or ``"sam_radius"``, see above.
    max_radius : float, optional
        Largest ‖ε‖; in ``"exact"`` mode the largest ‖μu‖.
    tau : float
        Distance τ of the difference in ``"exact"`` mode, in the units of the weights.
    plain_steps : int
        Number of steps of the base optimizer before the switch.
    plain_epochs : int
        Number of calls of :meth:`end_epoch` before the switch; 5 in the paper, whose released code
        takes 6.
    validation_threshold : float, optional
        Validation result that :meth:`end_epoch` must exceed once before the switch; the paper's is
        an accuracy of 0.3 on TinyImageNet.
    **options
        Options ``max_norm``, ``log`` and ``no_sync``, and those of the base optimizer.

    Raises
    ------
    ValueError
        If an option is out of range. If ``mode="exact"`` and groups differ in ``rho``, since the
        step then follows no loss's gradient, or ``no_sync`` is given, since the step follows the
        first gradient too.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import RSAM
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = RSAM([w], rho=1.0, alpha=2.0, lr=0.1)
    >>> (0.5 * w.square().sum()).backward()
    >>> optimizer.first_step()
    >>> w.detach()  # moved by R(g) g / ‖g‖², R = (3⁴ + 4⁴) / 5⁴
    tensor([3.0647, 4.0863])
    """

    options = (
        *WrappedOptimizer.options,
        "alpha",
        "mode",
        "max_radius",
        "tau",
        "plain_steps",
        "plain_epochs",
        "validation_threshold",
    )

    epochs = Kept[int]()
    best_validation = Kept[float]()

    def __init__(
        self,
        params: Given,
        base: BaseOptimizer = torch.optim.SGD,
        rho: float = 0.65,
        *,
        alpha: float = 1.2,
        mode: str = "paper",
        max_radius: float | None = None,
        tau: float = 1e-2,
        plain_steps: int = 0,
        plain_epochs: int = 0,
        validation_threshold: float | None = None,
        **options: Any,
    ) -> None:
        self.alpha = arguments.order("alpha", alpha, one_allowed=False)
        self.mode = arguments.choice("mode", mode, MODES)
        if max_radius is not None:
            max_radius = arguments.number("max_radius", max_radius, above=0, finite=False)
        if validation_threshold is not None:
            validation_threshold = arguments.number(
                "validation_threshold", validation_threshold, finite=False
            )
        self.max_radius = max_radius
        self.tau = arguments.number("tau", tau, above=0)
        self.plain_steps = arguments.integer("plain_steps", plain_steps, at_least=0)
        self.plain_epochs = arguments.integer("plain_epochs", plain_epochs, at_least=0)
        if mode == "exact" and options.get("no_sync") is not None:
            raise ValueError('no_sync: mode="exact" follows the first gradient too, so average it.')
        self.validation_threshold = validation_threshold
        super().__init__(params, base, rho, **options)

    @property
    def active(self) -> bool:
        """Whether the switch from plain steps has come."""
        threshold = self.validation_threshold
        return (
            self.steps >= self.plain_steps
            and self.epochs >= self.plain_epochs
            and (threshold is None or self.best_validation > threshold)
        )

    def end_epoch(self, validation: float | None = None) -> None:
        """Count an epoch, and note its validation result, which must not come from test data.

        Parameters
        ----------
        validation : float, optional
            Result of which a larger one is better, such as an accuracy.
        """
        if validation is not None:
            score = arguments.number("validation", validation, finite=False)
            self.best_validation = max(self.best_validation, score)
        self.epochs += 1

    def perturbation(self, gradient: Vector, weights: Vector, strengths: Sequence[float]) -> Vector:
        """Return ε, in ``"exact"`` mode −μsu, cut to ``max_radius``; see the class."""
        length, direction = gradient.norm(), gradient.normalized()
        ratio = power_ratio(direction, self.alpha)
        sign = math.copysign(1.0, 1.0 - self.alpha)
        if self.mode == "exact":
            derivative = direction.signed_power(2.0 * self.alpha - 1.0) - direction * ratio
            factor = -sign * 2.0 * self.alpha / nonzero(length)
            return self._cap(derivative.scaled(strengths, factor))
        radius = ratio / nonzero(length)
        towards = -sign if self.mode == "paper" else 1.0
        return self._cap(direction.scaled(strengths, radius) * towards)

    def _cap(self, perturbation: Vector) -> Vector:
        if self.max_radius is None:
            return perturbation
        length = perturbation.norm()
        return perturbation * torch.clamp(self.max_radius / nonzero(length), max=1.0)

    def _passes(self) -> Passes:
        if self.mode != "exact":
            yield from super()._passes()
            return
        strengths = self._strengths()
        if len(set(strengths)) > 1:
            raise ValueError('rho: mode="exact" needs the same rho in all groups.')
        gradient, objective = self._kept_gradient(), self._objective_gradient()
        displacement = self.perturbation(objective, self._weights(), strengths)
        self._record(objective, displacement, self._regularizer(objective, strengths[0]))
        checks = [gradient.norm()]
        factor = self._look_along(displacement, self.tau)
        del objective, displacement  # the next pass needs the memory
        yield
        self._restore_weights()
        self._set_gradient(gradient + (self._gradient() - gradient) * factor)
        self._finish(checks)

    def _regularizer(self, gradient: Vector, mu: float) -> Tensor:
        sign = math.copysign(1.0, 1.0 - self.alpha)
        return -sign * mu * power_ratio(gradient.normalized(), self.alpha)

    def _perturbs(self) -> bool:
        return self.active and super()._perturbs()

    def _first_numbers(self) -> dict[str, Any]:
        return {**super()._first_numbers(), "epochs": 0, "best_validation": -math.inf}


def power_ratio(direction: Vector, alpha: float) -> Tensor:
    r"""Return :math:`R = \sum_j |g_j|^{2\alpha}` of a gradient of length 1."""
    return direction.norm(2.0 * alpha) ** (2.0 * alpha)
