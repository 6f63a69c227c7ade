r"""Smoothness-adaptive gradient descent."""

from __future__ import annotations

from collections.abc import Generator

from paperkit.optim.opened import Passes
from paperkit.optim.smoothness_adaptive import SmoothnessAdaptiveOptimizer


class SASGD(SmoothnessAdaptiveOptimizer):
    r"""Gradient descent with smoothness-adaptive step sizes (SA-SAM paper, equation 5, Section 3).

    .. math::

       \theta_{t+1} = \theta_t - \eta_t \nabla L(\theta_t; \xi_t)

    with :math:`\eta_t` of :func:`~paperkit.optim.adaptive_step_size`, both its
    gradients on the batch :math:`\xi_t`. A step takes two gradient evaluations, one in the first
    step and with ``full_batch=True``. The method is that of Malitsky and Mishchenko (2020), whose
    theorem is for full batches of a convex loss, c = 2 and γ = 1.

    Parameters and attributes are those of
    :class:`~paperkit.optim.SmoothnessAdaptiveOptimizer`.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import SASGD
    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = SASGD([w], eta0=0.01, full_batch=True)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 2.0 * w.square().sum()  # of curvature 4
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(5):
    ...     loss = optimizer.step(closure)
    >>> round(optimizer.eta, 4), optimizer.gradient_evaluations  # 1/2β, one a step
    (0.125, 5)
    """

    def _take_direction(self, eta: float, beta: float) -> Generator[None, None, float]:
        gradient = self._first_gradient()
        self._record(gradient)
        self._set_gradient(gradient)
        yield from ()
        return 0.0

    def _perturbs(self) -> bool:
        return self._has_previous() and not self.full_batch

    def _single_pass(self) -> Passes:
        return self._passes()
