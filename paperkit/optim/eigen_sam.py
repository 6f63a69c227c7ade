r"""Eigen-SAM: a perturbation turned towards the Hessian's top eigenvector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.probes import generator_of
from paperkit.optim.closures import Closure, clear_gradients
from paperkit.optim.groups import Given
from paperkit.optim.replay import RandomState
from paperkit.optim.vector import Vector
from paperkit.optim.wrapped import BaseOptimizer, WrappedOptimizer


class EigenSAM(WrappedOptimizer):
    r"""Eigenvalue-regularised sharpness-aware minimisation (Luo et al. 2024).

    .. math::

       \theta \leftarrow \mathrm{base}\bigl(\theta, \nabla L(\theta + \varepsilon)\bigr), \qquad
       \varepsilon = \rho\, \frac{\tilde g}{\|\tilde g\|}, \qquad
       \hat g = \frac{g}{\|g\|}, \\
       \tilde g = \hat g + \kappa\, \mathrm{sign}(g^\top v)\,
       \bigl(v - (v^\top \hat g)\, \hat g\bigr),

    v the Hessian's eigenvector of largest absolute eigenvalue. Every ``period`` steps it is taken
    on from where it was by power iterations on the batch's Hessian, the modules in evaluation
    mode; a product with the Hessian is a central difference of gradients, a distance ``tau`` to
    either side. A step takes two gradient evaluations, and ``2 * iterations`` more every ``period``
    steps.

    Parameters
    ----------
    params : nn.Module or iterable
        Model; or parameters, named parameters or parameter groups, where a group may set its own
        options.
    base : callable
        Class or function that makes the base optimizer from the parameters.
    rho : float
        Radius, in the units of the weights' Euclidean norm.
    alpha : float
        Weight κ of the eigenvector's part; the paper's α.
    period : int
        Number of steps between renewals of v; the first renewal is before the first step.
    iterations : int
        Number of power iterations of a renewal.
    tau : float
        Distance τ of the differences, in the units of the weights.
    seed : int
        Seed of the vector that the first renewal starts from.
    **options
        Options ``max_norm``, ``log`` and ``no_sync``, and those of the base optimizer.

    Raises
    ------
    ValueError
        If an option is out of range.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import EigenSAM
    >>> w = torch.nn.Parameter(torch.tensor([0.1, 1.0]))  # gradient (1, 1), eigenvector (1, 0)
    >>> optimizer = EigenSAM([w], rho=0.05, alpha=0.2, lr=0.01, log=True)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 5.0 * w[0] ** 2 + 0.5 * w[1] ** 2
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)
    >>> round(optimizer.log[0].cosine, 3)  # SAM's perturbation has 1
    0.99
    """

    options = (*WrappedOptimizer.options, "alpha", "period", "iterations", "tau", "seed")

    def __init__(
        self,
        params: Given,
        base: BaseOptimizer = torch.optim.SGD,
        rho: float = 0.05,
        *,
        alpha: float = 0.2,
        period: int = 100,
        iterations: int = 5,
        tau: float = 1e-2,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.alpha = arguments.number("alpha", alpha)
        self.period = arguments.integer("period", period, at_least=1)
        self.iterations = arguments.integer("iterations", iterations, at_least=1)
        self.tau = arguments.number("tau", tau, above=0)
        self.seed = arguments.seed("seed", seed)
        super().__init__(params, base, rho, **options)

    def perturbation(self, gradient: Vector, weights: Vector, strengths: Sequence[float]) -> Vector:
        """Return ε, see the class."""
        v = self._eigenvector()
        direction = gradient.normalized()
        across = v - direction * v.dot(direction)
        tilted = direction + across * (self.alpha * torch.sign(gradient.dot(v)))
        return tilted.normalized().scaled(strengths)

    def _first_pass(self, closure: Closure) -> Any:
        if self._perturbs() and (self.steps % self.period == 0 or not self._has_eigenvector()):
            self._renew(closure)
        return super()._first_pass(closure)

    def _has_eigenvector(self) -> bool:
        return bool(self._kept_by())

    def _eigenvector(self) -> Vector:
        known = [self.state.get(p, {}).get("eigenvector") for p in self._active_parameters()]
        if all(part is None for part in known):
            raise RuntimeError("a loop by hand calls renew_eigenvector(closure) first.")
        return Vector(
            [
                torch.zeros_like(values) if part is None else part
                for values, part in zip(self._values(), known, strict=True)
            ]
        )

    def renew_eigenvector(self, closure: Closure) -> None:
        """Take the eigenvector on by power iterations; ``step`` does it when it is due.

        A loop by hand calls it before the first of its passes, every so many steps. Weights,
        buffers and random generators are left as they are; a renewal that meets a gradient that is
        not finite is given up.

        Parameters
        ----------
        closure : callable
            Function that zeroes the gradients, computes the loss, calls ``backward`` and returns
            the loss.
        """
        arguments.function("closure", closure, "a function without arguments")
        self._refuse_open_step()
        self._renew(closure)

    def _renew(self, closure: Closure) -> None:
        step, parameters = self._open, self._parameters()
        before = [(parameter, parameter.grad) for parameter in parameters]
        step.watch = self._watch(evaluation=True)
        step.active = [p for p in parameters if p.requires_grad and p.numel() > 0]
        step.first_pass = False
        random_state = RandomState({parameter.device for parameter in step.active})
        try:
            with step.watch.listening(), torch.no_grad():
                v = self._start()
                for _ in range(self.iterations):
                    with random_state.replayed():
                        product = self._hessian_product(closure, v)
                    v = product.normalized()
                if bool(torch.isfinite(v.norm())):
                    for parameter, part in zip(step.active, v.tensors, strict=True):
                        self.state[parameter]["eigenvector"] = part
        finally:
            self._restore_weights()
            step.watch.undo()
            self._forget_step()
            for parameter, gradient in before:
                parameter.grad = gradient

    def _start(self) -> Vector:
        generator = generator_of(self.seed)
        parts = []
        for parameter, values in zip(self._active_parameters(), self._values(), strict=True):
            draw = torch.randn(values.shape, generator=generator, device="cpu")
            known = self.state.get(parameter, {}).get("eigenvector")
            parts.append(draw.to(values) if known is None else known)
        return Vector(parts).normalized()

    def _hessian_product(self, closure: Closure, v: Vector) -> Vector:
        """Return Hv up to a positive factor."""
        sides = []
        for distance in (self.tau, -self.tau):
            self._move_by(v * distance)
            clear_gradients(self._parameters())
            self._call(closure)
            self.gradient_evaluations += 1
            sides.append(self._kept_gradient())
            self._restore_weights()
        return sides[0] - sides[1]

    def _descend(self) -> None:
        # A base optimizer makes its state where it finds none, so it must find no eigenvector.
        parts = {p: self.state[p].pop("eigenvector") for p in self._kept_by()}
        for parameter in parts:
            if not self.state[parameter]:
                del self.state[parameter]
        try:
            super()._descend()
        finally:
            for parameter, part in parts.items():
                self.state[parameter]["eigenvector"] = part

    def _kept_by(self) -> list[Tensor]:
        return [p for p in self._parameters() if "eigenvector" in self.state.get(p, ())]
