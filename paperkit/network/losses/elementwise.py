r"""Losses that are a sum over a sample's outputs of a function of each output and its target.

Their output Hessian is diagonal. The likelihoods among them are in their natural parameter, so
that the second derivative is the variance of the model's own target and does not depend on the
given one (McCullagh and Nelder 1989): the Gauss–Newton matrix is the Fisher matrix.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from paperkit.network.losses.base import Loss, Targets, refuse_not_finite


@dataclass(frozen=True, eq=False)
class Elementwise(Loss):
    """A mean or sum over a sample's outputs.

    Attributes
    ----------
    mean : bool
        Whether the outputs of a sample are averaged, as torch does, or summed.
    shape : tuple of int or None
        Shape of the model's output for a sample; None where it is a row of numbers.
    """

    name: str
    reduction: str
    mean: bool = True
    shape: tuple[int, ...] | None = None

    @property
    @override
    def curvature_needs_targets(self) -> bool:
        return False

    @abstractmethod
    def _values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the function's values; all tensors are float64 and have the same shape."""

    @abstractmethod
    def _first(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return its first derivative in the output."""

    @abstractmethod
    def _second(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return its second derivative, which is not negative; targets are zero if not given."""

    def _factor(self, outputs: Tensor) -> float:
        return 1.0 / outputs.shape[-1] if self.mean else 1.0

    def _shaped(self, outputs: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return outputs and targets in float64, in the shape of the model's output."""
        shape = outputs.shape if self.shape is None else (-1, *self.shape)
        shaped = outputs.to(torch.float64).reshape(shape)
        if targets is None:
            return shaped, torch.zeros_like(shaped)
        return shaped, targets.to(torch.float64).reshape(shaped.shape)

    @override
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values = self._values(*self._shaped(outputs, targets)).reshape(outputs.shape)
        return values.sum(dim=-1) * self._factor(outputs)

    @override
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        first = self._first(*self._shaped(outputs, targets)).reshape(outputs.shape)
        return (first * self._factor(outputs)).to(outputs.dtype)

    def _diagonal(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Return the diagonal of each Λ_i, (n, C), float64."""
        if targets is None:
            self.without_targets(outputs)
        second = self._second(*self._shaped(outputs, targets)).reshape(outputs.shape)
        return second * self._factor(outputs)

    @override
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        return (self._diagonal(outputs, targets) * changes).to(changes.dtype)

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        return torch.diag_embed(self._diagonal(outputs, targets).sqrt()).to(outputs.dtype)

    @override
    def bound(self, sample: Tensor, targets: Targets) -> Loss:
        return self if self.shape is not None else replace(self, shape=tuple(sample.shape[1:]))

    @override
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        n = len(outputs)
        shape = tuple(outputs.shape[1:]) if self.shape is None else self.shape
        if outputs.shape[1] != math.prod(shape):
            raise ValueError(
                f"model returned {outputs.shape[1]} numbers a sample, and {shape} in the first "
                "batch: pad all batches to one length."
            )
        # Axes of a single entry do not matter: (n,) fits (n, 1). Another shape of the same size may
        # hold its entries in another order, so it is refused.
        if len(targets) != n or _without_ones(targets.shape[1:]) not in (
            _without_ones(shape),
            _without_ones(outputs.shape[1:]),
        ):
            raise ValueError(
                f"targets has shape {tuple(targets.shape)}: {self.name} needs "
                f"{(n, *shape)}, as the model's outputs."
            )
        if targets.is_complex():
            raise ValueError(f"targets has {targets.dtype}: {self.name} needs real numbers.")
        refuse_not_finite(targets)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


@dataclass(frozen=True, eq=False)
class SquaredError(Elementwise):
    """A squared error times a factor: a Gaussian likelihood.

    Attributes
    ----------
    curvature : float
        Second derivative in an output, before averaging.
    """

    curvature: float = 2.0

    @override
    def _values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * self.curvature * (outputs - targets).square()

    @override
    def _first(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.curvature * (outputs - targets)

    @override
    def _second(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.full_like(outputs, self.curvature)

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        n, num_outputs = outputs.shape
        identity = torch.eye(num_outputs, dtype=torch.float64, device=outputs.device)
        root = (self.curvature * self._factor(outputs)) ** 0.5
        # All samples share the same factor, so that they take no memory of their own.
        return (root * identity).to(outputs.dtype).expand(n, -1, -1)

    @override
    def likelihood(self) -> Loss:
        return HALF_SQUARED_ERROR


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy(Elementwise):
    r"""Cross-entropy of independent binary labels y with :math:`p = \sigma(f)`, or of fractions.

    :math:`w\,[(1-y)\log(1+e^f) + v\,y\log(1+e^{-f})]`.

    Attributes
    ----------
    weight, pos_weight : Tensor or None
        Weights w and v, of a shape that broadcasts against the model's output for a sample.
    """

    weight: Tensor | None = None
    pos_weight: Tensor | None = None

    @property
    @override
    def curvature_needs_targets(self) -> bool:
        return self.pos_weight is not None

    def _masses(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the masses that multiply −log(1 − p) and −log p."""
        negative, positive = 1.0 - targets, targets
        if self.pos_weight is not None:
            positive = positive * self.pos_weight.to(outputs)
        if self.weight is not None:
            weight = self.weight.to(outputs)
            negative, positive = weight * negative, weight * positive
        return negative, positive

    @override
    def _values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        negative, positive = self._masses(outputs, targets)
        zero = torch.zeros_like(outputs)
        # torch's softplus returns its argument above 20, where e⁻²⁰ costs digits from the ninth.
        return negative * torch.logaddexp(outputs, zero) + positive * torch.logaddexp(
            -outputs, zero
        )

    @override
    def _first(self, outputs: Tensor, targets: Tensor) -> Tensor:
        negative, positive = self._masses(outputs, targets)
        return negative * torch.sigmoid(outputs) - positive * torch.sigmoid(-outputs)

    @override
    def _second(self, outputs: Tensor, targets: Tensor) -> Tensor:
        negative, positive = self._masses(outputs, targets)
        return (negative + positive) * torch.sigmoid(outputs) * torch.sigmoid(-outputs)

    @override
    def needs_data(self, sample: Tensor, targets: Tensor) -> bool:
        return self.shape is None and (
            sample.ndim != 2 or self.weight is not None or self.pos_weight is not None
        )

    @override
    def bound(self, sample: Tensor, targets: Targets) -> Loss:
        shape = tuple(sample.shape[1:])
        for name in ("weight", "pos_weight"):
            given = getattr(self, name)
            if given is not None and not _broadcasts(tuple(given.shape), shape):
                raise ValueError(
                    f"loss={self.name} has a {name} of shape {tuple(given.shape)} for outputs of "
                    f"shape {shape} a sample: it must broadcast against a sample's."
                )
        return super().bound(sample, targets)

    @override
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        super().check(outputs, targets)
        if targets.dtype != torch.bool and not bool(((targets >= 0) & (targets <= 1)).all()):
            raise ValueError(f"targets must lie between 0 and 1 for {self.name}.")

    @override
    def likelihood(self) -> Loss:
        weighted = self.weight is not None or self.pos_weight is not None
        return super().likelihood() if weighted else self


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    while shape and shape[0] == 1 and len(shape) > len(to):
        shape = shape[1:]
    tail = to[len(to) - len(shape) :]
    return len(shape) <= len(to) and all(s in (1, t) for s, t in zip(shape, tail, strict=True))


@dataclass(frozen=True, eq=False)
class Poisson(Elementwise):
    r"""A Poisson likelihood with :math:`\log` rates as outputs, :math:`e^f - y f`.

    Attributes
    ----------
    full : bool
        Whether Stirling's approximation of log y! is added, as torch does.
    """

    full: bool = False

    @override
    def _values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values = torch.exp(outputs) - targets * outputs
        if self.full:
            count = targets.clamp(min=2.0)
            stirling = count * count.log() - count + 0.5 * torch.log(2 * math.pi * count)
            values = values + torch.where(targets > 1, stirling, 0.0)
        return values

    @override
    def _first(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.exp(outputs) - targets

    @override
    def _second(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.exp(outputs)

    @override
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        super().check(outputs, targets)
        if targets.dtype != torch.bool and not bool((targets >= 0).all()):
            raise ValueError(f"targets has negative entries: {self.name} needs counts.")

    @override
    def likelihood(self) -> Loss:
        return self


HALF_SQUARED_ERROR = SquaredError(
    "half_squared_error",
    "mean over samples of ½‖f − y‖², summed over outputs",
    mean=False,
    curvature=1.0,
)
MEAN_SQUARED_ERROR = SquaredError(
    "mse", "mean over samples and outputs of (f − y)², as torch.nn.MSELoss()"
)
BINARY_CROSS_ENTROPY = BinaryCrossEntropy(
    "bce_with_logits", "mean over samples and outputs, as torch.nn.BCEWithLogitsLoss()"
)
POISSON = Poisson("poisson_nll", "mean over samples and outputs, as torch.nn.PoissonNLLLoss()")
