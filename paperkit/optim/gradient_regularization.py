r"""Gradient regularisation: the squared norm of the gradient as a penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.overrides import TorchFunctionMode

from paperkit import arguments
from paperkit.optim.closures import Closure
from paperkit.optim.groups import Given
from paperkit.optim.opened import Passes
from paperkit.optim.vector import Vector
from paperkit.optim.wrapped import BaseOptimizer, WrappedOptimizer

METHODS = ("double_backward", "finite_difference")


class GradientRegularization(WrappedOptimizer):
    r"""Descent on :math:`L + \mu \|\nabla L\|^2` (Barrett and Dherin 2021; Smith et al. 2021).

    .. math::

       \theta \leftarrow \mathrm{base}\bigl(\theta,\ g + 2 \mu H g\bigr),

    with the gradient of the batch. Plain gradient descent with step size η has this penalty
    implicitly, with :math:`\mu = \eta / 4`. A step takes two gradient evaluations. Where groups
    have a μ of their own, the penalty is :math:`\sum_k \mu_k \|g_k\|^2`.

    Parameters
    ----------
    params : nn.Module or iterable
        Model; or parameters, named parameters or parameter groups, where a group may set its own
        options.
    base : callable
        Class or function that makes the base optimizer from the parameters.
    mu : float
        Weight μ ≥ 0 of the penalty, in units of a step size.
    method : str
        Way to Hg. ``"double_backward"`` differentiates the gradient, which is exact and counts as
        the second evaluation. The closure must then call ``loss.backward()``, all operations need a
        second derivative, and neither compiled models, nor DistributedDataParallel, nor the
        two-call form are served. ``"finite_difference"`` serves all:
        :math:`Hg \approx \|g\| (\nabla L(\theta + \tau g / \|g\|) - g) / \tau`.
    tau : float
        Distance τ of the difference, in the units of the weights.
    **options
        Options ``max_norm`` and ``log``, and those of the base optimizer.

    Raises
    ------
    ValueError
        If ``mu`` is negative, ``tau`` not positive or the method unknown.

    Examples
    --------
    >>> import torch
    >>> from paperkit.optim import GradientRegularization
    >>> w = torch.nn.Parameter(torch.tensor(1.0))
    >>> optimizer = GradientRegularization([w], mu=0.5, lr=0.1)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * w.square()
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)
    >>> w.detach()  # 1 − 0.1 (g + 2μHg) = 1 − 0.1 · 2
    tensor(0.8000)
    """

    options = (*WrappedOptimizer.options, "method", "tau")

    strength_name = "mu"

    # State of the step that is being taken: the graph of its gradients, and the vector 2μg.
    _recorded: _RecordedBackward | None
    _direction: Vector | None

    def __init__(
        self,
        params: Given,
        base: BaseOptimizer = torch.optim.SGD,
        mu: float = 0.01,
        *,
        method: str = "double_backward",
        tau: float = 1e-2,
        **options: Any,
    ) -> None:
        self.method = arguments.choice("method", method, METHODS)
        self.tau = arguments.number("tau", tau, above=0)
        if "no_sync" in options:
            raise ValueError("no_sync: the step follows the first gradient too, so average it.")
        super().__init__(params, base, mu, **options)

    def perturbation(self, gradient: Vector, weights: Vector, strengths: Sequence[float]) -> Vector:
        """Return 2μg; the gradient there is to first order the one that the step follows."""
        return gradient.scaled([2.0 * strength for strength in strengths])

    def _passes(self) -> Passes:
        gradient = self._kept_gradient()
        objective = self._objective_gradient()
        direction = self.perturbation(objective, self._weights(), self._strengths())
        self._record(objective, direction, 0.5 * objective.dot(direction))
        checks = [gradient.norm()]
        if self.method == "finite_difference":
            factor = self._look_along(direction, self.tau)
            del objective, direction  # the next pass needs the memory
            yield
            self._restore_weights()
            curvature = (self._gradient() - gradient) * factor
        else:
            self._direction = direction
            yield
            curvature = self._gradient()
        self._set_gradient(gradient + curvature)
        self._finish(checks)

    def first_step(
        self, zero_grad: bool | None = None, *, scaler: GradScaler | None = None
    ) -> None:
        """Begin a step; see :meth:`~paperkit.optim.MultiPassOptimizer.first_step`.

        Raises
        ------
        RuntimeError
            If the method is ``"double_backward"``, or a step is open.
        """
        if self.method == "double_backward":
            raise RuntimeError(
                'method="double_backward" needs step(closure): choose method="finite_difference" '
                "for a loop by hand."
            )
        super().first_step(zero_grad, scaler=scaler)

    def _first_pass(self, closure: Closure) -> Any:
        if self.method == "finite_difference" or not self._perturbs():
            return super()._first_pass(closure)
        with _RecordedBackward(self._parameters()) as recorded:
            loss = super()._first_pass(closure)
        watch = self._open.watch
        seen = [] if watch is None else watch.modules
        if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in seen):
            raise ValueError(
                'method="double_backward" does not average gradients over workers: choose '
                'method="finite_difference" with DistributedDataParallel.'
            )
        self._recorded = recorded
        return loss

    def _later_pass(self, closure: Closure) -> None:
        if self.method == "finite_difference":
            super()._later_pass(closure)
            return
        assert self._recorded is not None and self._direction is not None
        products = self._recorded.products(self._active_parameters(), self._direction)
        for parameter, product in zip(self._active_parameters(), products, strict=True):
            parameter.grad = product

    def _forget_step(self) -> None:
        super()._forget_step()
        self._recorded = None
        self._direction = None


class _RecordedBackward(TorchFunctionMode):
    """Let ``loss.backward()`` keep the graph of the gradients that it accumulates."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self._parameters = [p for p in parameters if p.requires_grad]
        self._gradients: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.backward:
            return self._backward(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _backward(self, loss: Tensor, gradient: Tensor | None = None, **options: Any) -> None:
        if options.get("inputs") is not None:
            raise ValueError("closure: call loss.backward() without inputs.")
        parts = torch.autograd.grad(
            loss, self._parameters, gradient, create_graph=True, allow_unused=True
        )
        for parameter, part in zip(self._parameters, parts, strict=True):
            if part is None:
                continue
            recorded = self._gradients.get(id(parameter))
            self._gradients[id(parameter)] = part if recorded is None else recorded + part
            detached = part.detach().clone()
            parameter.grad = detached if parameter.grad is None else parameter.grad + detached

    def products(self, parameters: Sequence[Tensor], direction: Vector) -> list[Tensor | None]:
        """Differentiate the inner product of the recorded gradients and the direction."""
        pairs = [
            (self._gradients[id(parameter)], _like(parameter, along))
            for parameter, along in zip(parameters, direction.tensors, strict=True)
            if id(parameter) in self._gradients
        ]
        if not pairs:
            raise RuntimeError(
                'method="double_backward" found no call of loss.backward() in the closure: '
                'choose method="finite_difference".'
            )
        # A gradient that depends on no parameter has no graph, and its derivative is zero.
        dependent = [(part, along) for part, along in pairs if part.requires_grad]
        if not dependent:
            return [torch.zeros_like(parameter) for parameter in parameters]
        outputs, cotangents = zip(*dependent, strict=True)
        try:
            products = torch.autograd.grad(
                outputs, list(parameters), cotangents, allow_unused=True, materialize_grads=True
            )
        except RuntimeError as error:
            raise RuntimeError(
                "an operation of the model has no second derivative, as none of a compiled one "
                'has: choose method="finite_difference".'
            ) from error
        return list(products)


def _like(parameter: Tensor, values: Tensor) -> Tensor:
    """Return pairs of reals as the complex numbers that a parameter holds."""
    return torch.view_as_complex(values) if parameter.is_complex() else values
