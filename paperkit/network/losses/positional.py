"""A loss of many positions: each token of a text, each pixel of an image."""

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
        Loss of a position with its classes.
    shape : tuple of int
        Shape of the model's output for a sample.
    axis : int
        Axis of the classes, counted with the samples' axis.
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
        return math.prod(self._position_shape)

    @property
    def _position_shape(self) -> tuple[int, ...]:
        return self.shape[: self.axis - 1] + self.shape[self.axis :]

    def _split_positions(self, rows: Tensor) -> Tensor:
        """Split outputs (…, n, K P) into P positions with K classes each, (…, n P, K)."""
        lead = rows.ndim - 1
        classes_last = rows.unflatten(-1, self.shape).movedim(lead + self.axis - 1, -1)
        return classes_last.flatten(lead - 1, -2)

    def _join_positions(self, parts: Tensor) -> Tensor:
        """Undo :meth:`_split_positions`."""
        lead = parts.ndim - 1
        shaped = parts.unflatten(-2, (-1, *self._position_shape)).movedim(-1, lead + self.axis - 1)
        return shaped.flatten(lead)

    def _position_targets(self, targets: Tensor) -> Tensor:
        if targets.is_floating_point():
            return self._split_positions(targets.flatten(1))
        return targets.flatten()

    @override
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self.base.sample_losses(
            self._split_positions(outputs), self._position_targets(targets)
        )
        return losses.unflatten(0, (-1, self.positions)).mean(dim=1)

    @override
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        gradients = self.base.gradient(
            self._split_positions(outputs), self._position_targets(targets)
        )
        return self._join_positions(gradients) / self.positions

    @override
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        labels = None if targets is None else self._position_targets(targets)
        products = self.base.hessian_product(
            self._split_positions(outputs), self._split_positions(changes), labels
        )
        return self._join_positions(products) / self.positions

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        labels = None if targets is None else self._position_targets(targets)
        factors = self.base.hessian_factor(self._split_positions(outputs), labels)
        factors = factors.unflatten(0, (-1, self.positions)) / self.positions**0.5
        n, positions, rows, classes = factors.shape
        # The rows that belong to a position are zero in the outputs of all other positions.
        factor = factors.new_zeros(n, positions, rows, positions, classes)
        index = torch.arange(positions, device=factors.device)
        factor[:, index, :, index] = factors.movedim(1, 0)
        # Bring the factor's columns into the order of the outputs: (rows, n P, K) → (rows, n, K P).
        parts = factor.flatten(1, 2).movedim(1, 0).flatten(1, 2)
        return self._join_positions(parts).movedim(0, 1)

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
        expected = (n, *(self.shape if targets.is_floating_point() else self._position_shape))
        if tuple(targets.shape) != expected:
            raise ValueError(
                f"targets has shape {tuple(targets.shape)}: {self.name} needs {expected} for "
                f"outputs of shape {(n, *self.shape)}."
            )
        self.base.check(self._split_positions(outputs), self._position_targets(targets))

    @override
    def likelihood(self) -> Loss:
        return replace(self, base=self.base.likelihood())
