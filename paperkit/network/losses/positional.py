"""A loss of many positions: of each token of a text, of each pixel of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from paperkit.network.losses.base import Loss


@dataclass(frozen=True, eq=False)
class Positional(Loss):
    """A loss of each position, averaged over a sample's positions.

    A Fisher matrix of it is that of a position, averaged like the loss.

    Attributes
    ----------
    base : Loss
        Of one position with its C classes.
    shape : tuple of int
        What the model returns for a sample.
    axis : int
        Where the classes are, counted with the samples' axis.
    """

    base: Loss
    shape: tuple[int, ...]
    axis: int

    @property
    @override
    def name(self) -> str:  # type: ignore[override]
        return self.base.name

    @property
    @override
    def reduction(self) -> str:  # type: ignore[override]
        return f"{self.base.reduction}; mean over positions"

    @property
    @override
    def curvature_needs_targets(self) -> bool:
        return self.base.curvature_needs_targets

    @property
    def positions(self) -> int:
        """Positions of a sample."""
        return math.prod(self._others)

    @property
    def _others(self) -> tuple[int, ...]:
        return self.shape[: self.axis - 1] + self.shape[self.axis :]

    def _apart(self, rows: Tensor) -> Tensor:
        """Take (…, n, K) apart into positions, (…, n · T, C)."""
        lead = rows.ndim - 1
        moved = rows.unflatten(-1, self.shape).movedim(lead + self.axis - 1, -1)
        return moved.flatten(lead - 1, -2)

    def _together(self, parts: Tensor) -> Tensor:
        """Undo :meth:`_apart`."""
        lead = parts.ndim - 1
        whole = parts.unflatten(-2, (-1, *self._others)).movedim(-1, lead + self.axis - 1)
        return whole.flatten(lead)

    def _of_positions(self, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return self._apart(targets.flatten(1))
        return targets.flatten()

    @override
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = self.base.sample_losses(self._apart(outputs), self._of_positions(targets))
        return each.unflatten(0, (-1, self.positions)).mean(dim=1)

    @override
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = self.base.gradient(self._apart(outputs), self._of_positions(targets))
        return self._together(each) / self.positions

    @override
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        labels = None if targets is None else self._of_positions(targets)
        each = self.base.hessian_product(self._apart(outputs), self._apart(changes), labels)
        return self._together(each) / self.positions

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        labels = None if targets is None else self._of_positions(targets)
        each = self.base.hessian_factor(self._apart(outputs), labels)
        each = each.unflatten(0, (-1, self.positions)) / self.positions**0.5
        n, positions, rows, classes = each.shape
        # A position's rows are zero in the outputs of the others.
        factor = each.new_zeros(n, positions, rows, positions, classes)
        index = torch.arange(positions, device=each.device)
        factor[:, index, :, index] = each.movedim(1, 0)
        # To the outputs' order: (rows, n · T, C) → (rows, n, K).
        parts = factor.flatten(1, 2).movedim(1, 0).flatten(1, 2)
        return self._together(parts).movedim(0, 1)

    @override
    def needs_data(self, sample: Tensor, targets: Tensor) -> bool:
        return False

    @override
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        n = len(outputs)
        if outputs.shape[1] != math.prod(self.shape):
            raise ValueError(
                f"model returned {outputs.shape[1]} numbers a sample, and {self.shape} in the "
                "first batch: pad all batches to one length, with labels that the loss ignores."
            )
        expected = (n, *(self.shape if targets.is_floating_point() else self._others))
        if tuple(targets.shape) != expected:
            raise ValueError(
                f"targets has shape {tuple(targets.shape)}: {self.name} needs {expected} for "
                f"outputs of shape {(n, *self.shape)}."
            )
        self.base.check(self._apart(outputs), self._of_positions(targets))

    @override
    def likelihood(self) -> Loss:
        return replace(self, base=self.base.likelihood())
