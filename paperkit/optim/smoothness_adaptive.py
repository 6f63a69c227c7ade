r"""Step sizes that follow the local smoothness of the loss, the common part of SASAM and SASGD."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.optim.core import MultiPassOptimizer
from paperkit.optim.groups import Given
from paperkit.optim.kept import Kept
from paperkit.optim.opened import Passes
from paperkit.optim.vector import Vector


@dataclass(frozen=True)
class Variant:
    """Settings in which the paper's text and the released code differ.

    Attributes
    ----------
    damping : float
        Factor c in the step size.
    theta0 : float
        Value of ϑ before the first ratio of step sizes is known.
    rho_rule : str
        Rule for the radius; :class:`~paperkit.optim.SASAM` describes the rules.
    offset : float
        Number that is added to the step size wherever the smoothness is known.
    grows_at_once : bool
        Whether the first step, which has no predecessor, already grows ``eta0``.
    """

    damping: float
    theta0: float
    rho_rule: str
    offset: float
    grows_at_once: bool


VARIANTS = {
    "paper": Variant(2.0, math.inf, "sqrt_eta", 0.0, False),
    "release": Variant(1.0, 1.0, "sqrt_previous_eta", 1e-8, True),
}


def adaptive_step_size(
    displacement: float,
    change: float,
    eta: float,
    theta: float,
    *,
    delta: float = 0.02,
    damping: float = 2.0,
    offset: float = 0.0,
) -> float:
    r"""Return the step size from the last one.

    .. math::

       \eta_t = \min\Bigl\{ \frac{\|\theta_t - \theta_{t-1}\|}{c\, \|g_t - g_{t-1}\|},\;
       \sqrt{1 + \gamma\, \vartheta_{t-1}}\; \eta_{t-1} \Bigr\}

    with the ratio :math:`\vartheta_t = \eta_t / \eta_{t-1}` of successive step sizes. SA-SAM paper,
    equation 5, which has c = 2 and γ = 1 (its δ; ϑ is its θ); its experiments have γ = 0.02.
    Algorithm 1, line 5, and Section 3 print :math:`\vartheta_t`, which is not known yet; Section 3
    also sets :math:`\eta_t` under the root. From ϑ_0 = ∞, on a quadratic with largest eigenvalue β,
    all step sizes but η_0 are at least 1/(cβ), not 1/β as Section 2 says of c = 2.

    Parameters
    ----------
    displacement, change : float
        Lengths ‖θ_t − θ_{t−1}‖ and ‖g_t − g_{t−1}‖. Where either is 0 or not finite only the growth
        counts.
    eta : float
        Last step size :math:`\eta_{t-1}`.
    theta : float
        Last ratio ϑ_{t−1} of step sizes, which may be infinite; the paper's θ.
    delta : float
        Damping γ of the growth; the paper's δ.
    damping : float
        Factor c.
    offset : float
        Number that is added where the smoothness is known.

    Returns
    -------
    float
        Step size :math:`\eta_t`; :math:`\eta_{t-1}` where neither branch is finite.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number, or out of range.

    Examples
    --------
    >>> from paperkit.optim import adaptive_step_size
    >>> adaptive_step_size(1.0, 4.0, eta=1.0, theta=1.0)  # the smoothness decides: 1/(2 · 4)
    0.125
    >>> round(adaptive_step_size(1.0, 0.1, eta=1.0, theta=1.0), 4)  # the growth decides: √1.02
    1.01
    """
    return _adapt_step_size(
        arguments.number("displacement", displacement, at_least=0, finite=False, nan=True),
        arguments.number("change", change, at_least=0, finite=False, nan=True),
        arguments.number("eta", eta, above=0),
        arguments.number("theta", theta, at_least=0, finite=False),
        delta=arguments.number("delta", delta, at_least=0),
        damping=arguments.number("damping", damping, above=0),
        offset=arguments.number("offset", offset),
    )


def _adapt_step_size(
    displacement: float,
    change: float,
    eta: float,
    theta: float,
    *,
    delta: float,
    damping: float,
    offset: float,
) -> float:
    grown = math.inf if math.isinf(theta) else math.sqrt(1.0 + delta * theta) * eta
    fallback = grown if math.isfinite(grown) else eta
    if displacement == 0.0 or change == 0.0:
        return fallback
    inverse_smoothness = displacement / (damping * change)
    if not math.isfinite(inverse_smoothness):
        return fallback
    return min(inverse_smoothness, grown) + offset


class SmoothnessAdaptiveOptimizer(MultiPassOptimizer):
    r"""Steps of a size taken from the change of the gradient along the last step.

    The same step size serves all parameters, with norms over all of them; the released code has one
    for each parameter group. The numbers are read from the device once before the step's last
    gradient and once at its end.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or parameter groups. A group may set ``weight_decay`` and
        ``lr``, a factor on the step size that learning-rate schedulers set; the paper has none.
    eta0 : float
        First step size η_0 > 0, best small.
    delta : float
        Damping γ ≥ 0 of the growth of the step size; the paper's δ.
    damping : float, optional
        Factor c > 0; 2 in the paper, 1 in the release.
    theta0 : float, optional
        Ratio ϑ_0; infinite in the paper, 1 in the release.
    variant : str
        ``"paper"`` or ``"release"``, which set the defaults above and the rule for the radius.
    weight_decay : float
        Multiple of the weights that is added to the direction of the step, and to nothing else.
    full_batch : bool
        Whether the closure always has the same data. The previous gradient is then kept, which
        saves an evaluation a step.
    max_norm : float, optional
        Largest norm, over all parameters, of the gradient that the step follows; a longer one is
        scaled down. Gradients that only place the perturbation stay as they are.
    log : bool
        Whether each step appends a :class:`~paperkit.optim.StepRecord` to ``log``.

    Attributes
    ----------
    eta : float
        Size η of the last step; ``eta0`` before the first.
    theta : float
        Last ratio ϑ of step sizes.
    beta : float
        Local smoothness ‖Δg‖/‖Δθ‖; NaN before it is known.
    rho : float
        Radius of the last perturbation; 0 for a method without.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import SASGD, SmoothnessAdaptiveOptimizer
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = SASGD([w], eta0=0.125, variant="release")
    >>> isinstance(optimizer, SmoothnessAdaptiveOptimizer)
    True
    >>> optimizer.eta, optimizer.theta, optimizer.damping, optimizer.beta  # β is not known yet
    (0.125, 1.0, 1.0, nan)
    """

    options = (
        *MultiPassOptimizer.options,
        "eta0",
        "delta",
        "damping",
        "theta0",
        "variant",
        "full_batch",
    )

    _family = "SmoothnessAdaptiveOptimizer"

    eta = Kept[float]()
    theta = Kept[float]()
    beta = Kept[float]()
    rho = Kept[float]()

    def __init__(
        self,
        params: Given,
        eta0: float = 1e-3,
        *,
        delta: float = 0.02,
        damping: float | None = None,
        theta0: float | None = None,
        variant: str = "paper",
        weight_decay: float = 0.0,
        full_batch: bool = False,
        max_norm: float | None = None,
        log: bool = False,
    ) -> None:
        self.variant = arguments.choice("variant", variant, VARIANTS)
        self._published = VARIANTS[self.variant]
        damping = self._published.damping if damping is None else damping
        self.damping = arguments.number("damping", damping, above=0)
        theta0 = self._published.theta0 if theta0 is None else theta0
        self.theta0 = arguments.number("theta0", theta0, at_least=0, finite=False)
        self.eta0 = arguments.number("eta0", eta0, above=0)
        weight_decay = arguments.number("weight_decay", weight_decay, at_least=0)
        self.delta = arguments.number("delta", delta, at_least=0)
        self.full_batch = arguments.flag("full_batch", full_batch)
        self._step_size = self.eta0
        defaults = {"lr": 1.0, "weight_decay": weight_decay}
        super().__init__(params, defaults, max_norm=max_norm, log=log)

    def _first_numbers(self) -> dict[str, Any]:
        sizes = {"eta": self.eta0, "theta": self.theta0, "beta": math.nan, "rho": 0.0}
        return {**super()._first_numbers(), **sizes}

    def _passes(self) -> Passes:
        if not self._active_parameters():
            return
        self._open.gradient = self._kept_gradient()
        length = self._open.gradient.norm()
        eta, theta, beta, change = self.eta, self.theta, self.beta, length * 0.0
        known = self._has_previous()
        if known:
            lengths = yield from self._displacement_and_change()
            change = lengths[1]
            read = torch.stack(list(lengths)).tolist()
            eta, beta = self._adapt(*read), _ratio(*reversed(read))
        elif self._published.grows_at_once:
            eta = self._adapt(0.0, 0.0)
        if known or self._published.grows_at_once:
            theta = eta / self.eta
        self._step_size = eta
        rho = yield from self._take_direction(eta, beta)
        weights = self._weights().clone()
        if self._finish([length, change]):
            self.eta, self.theta, self.beta, self.rho = eta, theta, beta, rho
            self._remember(weights)

    def _displacement_and_change(self) -> Generator[None, None, tuple[Tensor, Tensor]]:
        """Return ‖θ_t − θ_{t−1}‖ and ‖g_t − g_{t−1}‖, both gradients on the present batch."""
        previous = self._previous("weight", self._weights())
        displacement = (self._weights() - previous).norm()
        if self.full_batch:
            before = self._previous("gradient", self._first_gradient())
        else:
            self._swap_with(previous)
            del previous
            yield
            self._restore_weights()
            before = self._gradient()
        return displacement, (self._first_gradient() - before).norm()

    def _first_gradient(self) -> Vector:
        assert self._open.gradient is not None
        return self._open.gradient

    def _has_previous(self) -> bool:
        return any("weight" in self.state.get(p, ()) for p in self._parameters())

    @abstractmethod
    def _take_direction(self, eta: float, beta: float) -> Generator[None, None, float]:
        """Leave the gradient that the step follows in ``.grad``; return the radius."""

    def _adapt(self, displacement: float, change: float) -> float:
        return _adapt_step_size(
            displacement,
            change,
            self.eta,
            self.theta,
            delta=self.delta,
            damping=self.damping,
            offset=self._published.offset,
        )

    def _previous(self, name: str, present: Vector) -> Vector:
        """Return θ_{t−1} or, of full batches, g_{t−1}.

        A parameter that is new since the last step counts as unchanged.
        """
        parts = zip(self._active_parameters(), present.tensors, strict=True)
        return Vector([self.state.get(p, {}).get(name, now) for p, now in parts])

    def _remember(self, weights: Vector) -> None:
        for parameter, weight in zip(self._active_parameters(), weights.tensors, strict=True):
            self.state[parameter]["weight"] = weight
        if self.full_batch:
            parts = zip(self._active_parameters(), self._first_gradient().tensors, strict=True)
            for parameter, part in parts:
                self.state[parameter]["gradient"] = part.clone()

    def _descend(self) -> None:
        for group in self.param_groups:
            size = group["lr"] * self._step_size
            stepped = [p for p in group["params"] if p.grad is not None]
            dense = [p for p in stepped if not p.grad.is_sparse]
            if group["weight_decay"] and stepped:
                torch._foreach_mul_(stepped, 1.0 - size * group["weight_decay"])
            if dense:
                torch._foreach_add_(dense, [p.grad for p in dense], alpha=-size)
            for parameter in stepped:
                if parameter.grad.is_sparse:
                    parameter.add_(parameter.grad, alpha=-size)


def _ratio(change: float, displacement: float) -> float:
    return change / displacement if displacement else math.nan
