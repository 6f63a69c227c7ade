"""The vectors that a step is written with, read from parameters and written back to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from paperkit.optim.opened import OpenStep
from paperkit.optim.vector import Vector

_HALF = (torch.float16, torch.bfloat16)


class MovingOptimizer(Optimizer):
    """An optimizer that moves its weights and puts them back."""

    _open: OpenStep
    steps: int

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _group_values(self, key: str) -> list[float]:
        """Return a group option for each parameter with a gradient."""
        active = {id(parameter) for parameter in self._active_parameters()}
        return [
            group.get(key, 0.0)
            for group in self.param_groups
            for parameter in group["params"]
            if id(parameter) in active
        ]

    def _active_parameters(self) -> list[Tensor]:
        """Return the parameters to which the first pass gave a gradient, without empty ones."""
        if self._open.active is None:
            self._open.active = [
                p for p in self._parameters() if p.grad is not None and p.numel() > 0
            ]
        return self._open.active

    def _values(self) -> list[Tensor]:
        """Return the same parameters, a complex number as a pair of reals."""
        if self._open.values is None:
            with torch.no_grad():
                self._open.values = as_real(self._active_parameters())
        return self._open.values

    def _weights(self) -> Vector:
        """Return the weights themselves, for use without gradients."""
        return Vector(self._values())

    def _gradient(self) -> Vector:
        """Return the gradient in ``.grad``, densely; a missing part of a later pass is zero."""
        return Vector(as_real([_dense_gradient(p) for p in self._active_parameters()]))

    def _kept_gradient(self) -> Vector:
        """Return a gradient that stays as it is during the next pass.

        The next pass starts from cleared gradients and makes its own. Parts of a common buffer, as
        DistributedDataParallel has them, are written again, and so copied.
        """
        views = [p.grad is not None and p.grad._is_view() for p in self._active_parameters()]
        parts = zip(self._gradient().tensors, views, strict=True)
        return Vector([part.clone() if is_view else part for part, is_view in parts])

    def _set_gradient(self, gradient: Vector) -> None:
        """Make a vector the gradient that the step follows, sparse where it was."""
        for parameter, values in zip(self._active_parameters(), gradient.tensors, strict=True):
            part = torch.view_as_complex(values) if parameter.is_complex() else values
            if parameter.grad is None:
                parameter.grad = part.clone()
            elif parameter.grad.is_sparse:
                parameter.grad = part.sparse_mask(parameter.grad.coalesce())
            else:
                parameter.grad.copy_(part)

    def _move_by(self, displacement: Vector) -> Vector:
        """Add to the weights; return the displacement that their format has room for."""
        self._save_weights()
        values, saved = self._values(), self._open.saved
        assert saved is not None
        torch._foreach_add_(values, displacement.tensors)
        is_half = any(value.dtype in _HALF for value in values)
        if not is_half and self.steps:
            return displacement
        kinds = [torch.promote_types(value.dtype, torch.float32) for value in values]
        parts = zip(values, saved, kinds, strict=True)
        taken = Vector([now.detach().to(kind) - was.to(kind) for now, was, kind in parts])
        self._open.rounding += [(taken - displacement).norm(), displacement.norm()]
        return taken if is_half else displacement

    def _swap_with(self, weights: Vector) -> None:
        """Move to other weights, whose tensors hold the present ones meanwhile."""
        _swap(self._values(), list(weights.tensors))
        self._open.swapped = list(weights.tensors)

    def _save_weights(self) -> None:
        if self._open.saved is None:
            with torch.no_grad():
                self._open.saved = [value.clone() for value in self._values()]

    def _restore_weights(self) -> None:
        step = self._open
        with torch.no_grad():
            if step.saved is not None:
                torch._foreach_copy_(self._values(), step.saved)
                step.saved = None
            if step.swapped:
                _swap(self._values(), step.swapped)
                step.swapped = []

    def _look_along(self, direction: Vector, tau: float) -> Tensor:
        r"""Move a distance τ along d, for the difference of gradients that is Hd.

        :math:`H d \approx (\nabla L(\theta + \tau d / \|d\|) - \nabla L(\theta))\, \|d\| / \tau`,
        of which the last factor is returned.
        """
        self._move_by(direction.normalized() * tau)
        return direction.norm() / tau


def as_real(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return views in which a complex number is a pair of reals, as PyTorch's optimizers do."""
    return [torch.view_as_real(t) if t.is_complex() else t for t in tensors]


def _swap(first: list[Tensor], second: list[Tensor]) -> None:
    kept = [tensor.clone() for tensor in first]
    torch._foreach_copy_(first, second)
    torch._foreach_copy_(second, kept)


def _dense_gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    gradient = gradient.detach() if gradient.requires_grad else gradient
    return gradient.to_dense() if gradient.is_sparse else gradient


def stored_entries(parameter: Tensor) -> Tensor:
    """Return the stored entries of a parameter's gradient, each once; a sparse one is coalesced."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()
    return parameter.grad.values()
