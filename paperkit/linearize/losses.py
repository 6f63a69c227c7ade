r"""Losses as functions of the network's outputs, means over samples.

Every curvature quantity of a loss :math:`L(\theta) = \frac1n \sum_i \ell(f_i, y_i)` needs its
value, the gradient of :math:`\ell` in the outputs :math:`f_i`, and the :math:`C \times C` Hessian
:math:`\Lambda_i` there: as a product with changes of the outputs, and as a factor :math:`R_i` with
:math:`R_i^\top R_i = \Lambda_i` and as few rows as its rank. All of them are computed in float64,
whatever the model's own precision, because 1 − p of a fitted label has no digits in float32.

A weighted mean, as of a cross-entropy with class weights or ignored labels, is a mean too, with
:math:`\ell_i` multiplied by the sample's weight over the mean weight of *all* data; and the outputs
of a sample may be those of many positions. Both are settled by :meth:`Loss.bound`, once the data
are known.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override


def softmax_hessian_factor(outputs: Tensor) -> Tensor:
    r"""Return a (C−1)-row factor of :math:`\operatorname{diag}(p) - pp^\top`.

    With :math:`q = \sqrt p` (a unit vector), :math:`\Lambda = D(I - qq^\top)D`, :math:`D =
    \operatorname{diag}(q)`. If the rows of :math:`Q` are an orthonormal basis of
    :math:`q^\perp`, then :math:`I - qq^\top = Q^\top Q` and :math:`R = QD` is the factor. The
    Householder reflection that maps :math:`q` to the axis of its largest entry supplies
    :math:`Q` without cancellation, also for a saturated softmax.

    Parameters
    ----------
    outputs : Tensor
        Logits, shape (n, C), C ≥ 2.

    Returns
    -------
    Tensor
        Shape (n, C − 1, C).
    """
    n, num_outputs = outputs.shape
    dtype, outputs = outputs.dtype, outputs.to(torch.float64)
    # A softmax that ends at 1 keeps no digits of 1 − p; the square root through log-softmax does.
    root = torch.exp(0.5 * functional.log_softmax(outputs, dim=1))
    pivot = root.argmax(dim=1, keepdim=True)
    axis = torch.zeros_like(root).scatter_(1, pivot, 1.0)
    normal = root + axis
    scale = (1.0 + root.gather(1, pivot)).unsqueeze(-1)
    identity = torch.eye(num_outputs, dtype=outputs.dtype, device=outputs.device)
    reflection = identity - normal.unsqueeze(2) * normal.unsqueeze(1) / scale
    kept = torch.arange(num_outputs - 1, device=outputs.device).expand(n, -1)
    kept = kept + (kept >= pivot)
    rows = reflection.gather(1, kept.unsqueeze(-1).expand(-1, -1, num_outputs))
    return (rows * root.unsqueeze(1)).to(dtype)


def softmax_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return p − e_y for each sample, (n, C).

    The label's entry is minus the sum of the other probabilities, which keeps its digits where
    p_y − 1 has none.
    """
    label = targets.unsqueeze(-1)
    others = outputs.to(torch.float64).softmax(dim=-1).scatter(-1, label, 0.0)
    gradient = others.scatter(-1, label, -others.sum(dim=-1, keepdim=True))
    return gradient.to(outputs.dtype)


def softmax_hessian_product(outputs: Tensor, changes: Tensor) -> Tensor:
    r"""Multiply :math:`\operatorname{diag}(p) - pp^\top` with changes u, (…, n, C).

    :math:`\Lambda u = p \odot (u - p \cdot u)`. A constant added to all entries of u is first
    removed so that u is zero at the largest p: then nothing cancels where the softmax is saturated.
    """
    probabilities = outputs.to(torch.float64).softmax(dim=-1)
    likeliest = outputs.argmax(dim=-1, keepdim=True).expand(*changes.shape[:-1], 1)
    centred = changes.to(torch.float64) - changes.gather(-1, likeliest)
    product = probabilities * (centred - (probabilities * centred).sum(dim=-1, keepdim=True))
    return product.to(changes.dtype)


class Loss(ABC):
    """A loss, mean over samples, that depends on the parameters only through the outputs.

    Outputs are a matrix (n, C), a row a sample: what a model returns for a sample, flattened.

    Attributes
    ----------
    name : str
        What results and error messages call it.
    reduction : str
        What is averaged and with which factor, in words.
    convex : bool
        Whether it is known to be convex in the outputs.
    """

    name: str
    reduction: str
    convex: bool = True

    @property
    def curvature_needs_targets(self) -> bool:
        """Whether Λ_i depends on the target."""
        return True

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the n samples, a differentiable scalar."""
        return self.sample_losses(outputs, targets).mean()

    @abstractmethod
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each sample's loss ℓ_i, (n,), float64."""

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ∂ℓ_i/∂f_i, (n, C), in the outputs' dtype."""

    @abstractmethod
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        """Multiply Λ_i with each sample's change, (…, n, C)."""

    @abstractmethod
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return rows R_i, (n, r, C), with R_iᵀ R_i = Λ_i.

        Raises
        ------
        ValueError
            If some Λ_i has a negative eigenvalue.
        """

    @abstractmethod
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse targets that do not fit the outputs.

        Raises
        ------
        ValueError
            With one sentence that names ``targets`` and what fits.
        """

    def likelihood(self) -> Loss:
        """Return the loss whose output Hessian is the Fisher matrix of the outputs.

        Raises
        ------
        ValueError
            If the loss is no negative log-likelihood that is known here.
        """
        raise ValueError(
            f"loss={self.name} has no known likelihood: the Fisher matrix under the model's own "
            "labels needs cross_entropy without weights or smoothing, a squared error, or "
            "BCEWithLogitsLoss."
        )

    def needs_data(self, sample: Tensor, targets: Tensor) -> bool:
        """Whether :meth:`bound` has anything to settle.

        Parameters
        ----------
        sample : Tensor
            What the model returns for some samples, (n, …).
        targets : Tensor
            Of one batch.
        """
        return sample.ndim != 2

    def bound(self, sample: Tensor, targets: Callable[[], Iterable[Tensor]]) -> Loss:
        """Return the loss on given data: a mean over their samples, outputs flattened.

        Parameters
        ----------
        sample : Tensor
            What the model returns for some samples, (n, …).
        targets : callable
            Starts a pass over the targets of all data.

        Raises
        ------
        ValueError
            If outputs and targets do not fit each other, or all weights are zero.
        """
        return self

    def __str__(self) -> str:
        return self.name


def _mean_weight(total: float, count: int, name: str) -> float:
    if not total > 0:
        raise ValueError(f"targets: loss={name} leaves no sample with a positive weight.")
    return total / count


# Compared by identity: a tensor among its fields has no truth value.
@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """Cross-entropy of a softmax with labels, or with probabilities as targets.

    Attributes
    ----------
    weight : Tensor or None
        Of the classes, (C,).
    ignore_index : int or None
        Labels that do not count; None refuses negative ones.
    label_smoothing : float
        As in :class:`torch.nn.CrossEntropyLoss`.
    mean_weight : float or None
        Mean weight of a sample in the data; None until it is known.
    """

    name: str = "cross_entropy"
    reduction: str = "mean over samples of −log softmax, natural logarithm"
    weight: Tensor | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    mean_weight: float | None = None

    @property
    def plain(self) -> bool:
        """Whether every sample counts alike and its label is hard."""
        return self.weight is None and self.label_smoothing == 0 and self.mean_weight is None

    @property
    @override
    def curvature_needs_targets(self) -> bool:
        return not self.plain

    @override
    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.plain and not targets.is_floating_point():
            return functional.cross_entropy(outputs.to(torch.float64), targets.long())
        return self.sample_losses(outputs, targets).mean()

    @override
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.to(torch.float64)
        if self.plain and not targets.is_floating_point():
            # torch's softplus is the identity above 20, at the price of nine digits there.
            log_odds = log_odds_against(outputs, targets)
            return torch.logaddexp(log_odds, torch.zeros_like(log_odds))
        masses = self._masses(outputs, targets)
        # An excluded class has mass 0 and may have log-probability −∞.
        logs = torch.where(masses > 0, functional.log_softmax(outputs, dim=-1), 0.0)
        return -(masses * logs).sum(dim=-1)

    @override
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.plain and not targets.is_floating_point():
            return softmax_gradient(outputs, targets.long())
        masses = self._masses(outputs, targets)
        weighted = masses.sum(dim=-1, keepdim=True) * outputs.to(torch.float64).softmax(dim=-1)
        return (weighted - masses).to(outputs.dtype)

    @override
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        product = softmax_hessian_product(outputs, changes)
        if self.plain:
            return product
        return product * self._scales(outputs, targets).unsqueeze(-1).to(product.dtype)

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        factor = softmax_hessian_factor(outputs)
        if self.plain:
            return factor
        scales = self._scales(outputs, targets).sqrt()
        return factor * scales.reshape(-1, 1, 1).to(factor.dtype)

    def _scales(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Return the factor of each sample's output Hessian, (n,)."""
        if targets is None:
            raise ValueError(f"targets=None: the output Hessian of loss={self.name} needs them.")
        return self._masses(outputs, targets).sum(dim=-1)

    def _masses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what multiplies −log p of each class, (n, C), float64."""
        num_outputs = outputs.shape[-1]
        if targets.is_floating_point():
            masses = targets.to(torch.float64)
        else:
            known = self._known(targets)
            labels = torch.where(known, targets, 0).long()
            masses = functional.one_hot(labels, num_outputs).to(torch.float64)
        masses = (1 - self.label_smoothing) * masses + self.label_smoothing / num_outputs
        if self.weight is not None:
            masses = masses * self.weight.to(masses)
        if not targets.is_floating_point():
            masses = masses * known.unsqueeze(-1)
        return masses if self.mean_weight is None else masses / self.mean_weight

    def _known(self, targets: Tensor) -> Tensor:
        if self.ignore_index is None:
            return torch.ones_like(targets, dtype=torch.bool)
        return targets != self.ignore_index

    def _weights(self, targets: Tensor) -> Tensor:
        """Return by what each label is weighted in the mean."""
        known = self._known(targets)
        if self.weight is None:
            return known.to(torch.float64)
        labels = torch.where(known, targets, 0).long()
        return self.weight.to(targets.device, torch.float64)[labels] * known

    @override
    def needs_data(self, sample: Tensor, targets: Tensor) -> bool:
        weighted = self.weight is not None or self.ignore_index is not None
        return self.mean_weight is None and (sample.ndim != 2 or weighted)

    @override
    def bound(self, sample: Tensor, targets: Callable[[], Iterable[Tensor]]) -> Loss:
        if self.mean_weight is not None:
            return self
        first = next(iter(targets()))
        labelled = not first.is_floating_point()
        here: Loss = self
        if labelled and (self.weight is not None or self.ignore_index is not None):
            total, count = 0.0, 0
            for part in targets():
                if not part.is_floating_point():
                    self._check_labels(part, sample.shape[_class_axis(self, sample, part)])
                    total += float(self._weights(part).sum())
                    count += part.numel()
            here = replace(self, mean_weight=_mean_weight(total, count, self.name))
            if self.weight is None and self.label_smoothing == 0 and total == count:
                here = LOSSES["cross_entropy"]  # no label is ignored
        if sample.ndim == 2:
            return here
        return Positional(here, tuple(sample.shape[1:]), _class_axis(self, sample, first))

    @override
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        n, num_outputs = outputs.shape
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise ValueError(
                    f"targets must be {n} integer class labels for {self.name}, or "
                    f"probabilities of shape {tuple(outputs.shape)}, not {tuple(targets.shape)} "
                    f"of {targets.dtype}."
                )
            totals = targets.to(torch.float64).sum(dim=1)
            if not bool((targets >= 0).all()) or not bool(((totals - 1).abs() < 1e-3).all()):
                raise ValueError(
                    f"targets has rows that are no probabilities: {self.name} needs class labels, "
                    "or rows of numbers from 0 to 1 that add up to 1."
                )
            return
        if targets.shape != (n,) or targets.dtype == torch.bool:
            raise ValueError(
                f"targets must be {n} integer class labels for {self.name}, "
                f"not {tuple(targets.shape)} of {targets.dtype}."
            )
        self._check_labels(targets, num_outputs)

    def _check_labels(self, targets: Tensor, num_outputs: int) -> None:
        known = targets[self._known(targets)]
        if not known.numel():
            return
        low, high = int(known.min()), int(known.max())
        if low < 0 or high >= num_outputs:
            raise ValueError(
                f"targets has labels from {low} to {high}, but the model has "
                f"{num_outputs} outputs: labels must lie in 0..{num_outputs - 1}."
            )

    @override
    def likelihood(self) -> Loss:
        return self if self.plain else super().likelihood()


def _class_axis(loss: Loss, sample: Tensor, targets: Tensor) -> int:
    """Return which axis of the outputs (n, …) holds the classes, for given targets.

    It is the second, as in torch, or the last, as language models have it.
    """
    labelled = not targets.is_floating_point()
    shape = tuple(sample.shape)
    fits = [
        axis
        for axis in {1, sample.ndim - 1}
        if (shape[1:axis] + shape[axis + 1 :] if labelled else shape[1:])
        == tuple(targets.shape[1:])
    ]
    if not fits:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}, the model's outputs "
            f"{tuple(sample.shape)}: {loss.name} needs one label for each position, with the "
            "classes along the outputs' second or last axis."
        )
    if len(fits) > 1:
        if loss.name != "cross_entropy":
            return 1  # a loss of torch says so itself
        raise ValueError(
            f"outputs of shape {tuple(sample.shape)} may have their classes along the second or "
            "the last axis: pass loss=torch.nn.CrossEntropyLoss(), which takes the second, and "
            "move the axis in the model or by forward= if it is the last."
        )
    return fits[0]


@dataclass(frozen=True, eq=False)
class Positional(Loss):
    """A loss of each position, averaged over a sample's positions.

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
    def convex(self) -> bool:  # type: ignore[override]
        return self.base.convex

    @property
    @override
    def curvature_needs_targets(self) -> bool:
        return self.base.curvature_needs_targets

    @property
    def positions(self) -> int:
        """Positions of a sample."""
        return math.prod(self.shape) // self.shape[self.axis - 1]

    def _apart(self, rows: Tensor) -> Tensor:
        """Take (…, n, K) apart into positions, (…, n · T, C)."""
        lead = rows.ndim - 1
        moved = rows.unflatten(-1, self.shape).movedim(lead + self.axis - 1, -1)
        return moved.flatten(lead - 1, -2)

    def _together(self, parts: Tensor) -> Tensor:
        """Undo :meth:`_apart`."""
        lead = parts.ndim - 1
        others = [size for i, size in enumerate(self.shape) if i != self.axis - 1]
        whole = parts.unflatten(-2, (-1, *others)).movedim(-1, lead + self.axis - 1)
        return whole.flatten(lead)

    def _targets(self, targets: Tensor | None) -> Tensor | None:
        if targets is None or not targets.is_floating_point():
            return None if targets is None else targets.flatten()
        return self._apart(targets.flatten(1))

    @override
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = self.base.sample_losses(self._apart(outputs), self._targets(targets))  # type: ignore[arg-type]
        return each.unflatten(0, (-1, self.positions)).mean(dim=1)

    @override
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = self.base.gradient(self._apart(outputs), self._targets(targets))  # type: ignore[arg-type]
        return self._together(each) / self.positions

    @override
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        each = self.base.hessian_product(
            self._apart(outputs), self._apart(changes), self._targets(targets)
        )
        return self._together(each) / self.positions

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        each = self.base.hessian_factor(self._apart(outputs), self._targets(targets))
        each = each.unflatten(0, (-1, self.positions)) / self.positions**0.5
        n, positions, rows, classes = each.shape
        # A position's rows are zero in the outputs of the others.
        factor = each.new_zeros(n, positions, rows, positions, classes)
        index = torch.arange(positions, device=each.device)
        factor[:, index, :, index] = each.movedim(1, 0)
        return self._together_rows(factor.flatten(1, 2))

    def _together_rows(self, factor: Tensor) -> Tensor:
        """Give rows over (positions, classes), (n, r, T, C), the outputs' order: (n, r, K)."""
        n, rows, positions, classes = factor.shape
        parts = factor.movedim(1, 0).reshape(rows, n * positions, classes)
        return self._together(parts).movedim(0, 1)

    @override
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        n = len(outputs)
        if targets.is_floating_point():
            expected = (n, *self.shape)
        else:
            expected = (n, *(size for i, size in enumerate(self.shape) if i != self.axis - 1))
        if tuple(targets.shape) != expected:
            raise ValueError(
                f"targets has shape {tuple(targets.shape)}: {self.name} needs {expected}."
            )
        self.base.check(self._apart(outputs), self._targets(targets))  # type: ignore[arg-type]

    @override
    def likelihood(self) -> Loss:
        return replace(self, base=self.base.likelihood())


@dataclass(frozen=True, eq=False)
class Elementwise(Loss):
    """A sum over a sample's outputs of a function of each output and its target.

    Attributes
    ----------
    function : callable
        ``(outputs, targets)`` of equal shape → the values of its entries, in float64.
    mean : bool
        Whether the outputs of a sample are averaged, as torch does, or summed.
    gaussian : bool
        Whether it is a squared error, the likelihood of a Gaussian.
    bernoulli : bool
        Whether it is the likelihood of independent binary labels.
    """

    name: str
    reduction: str
    function: Callable[[Tensor, Tensor], Tensor]
    mean: bool = True
    convex: bool = True
    gaussian: bool = False
    bernoulli: bool = False

    @property
    @override
    def curvature_needs_targets(self) -> bool:
        # The Hessian of a likelihood in its natural parameters does not depend on them.
        return not (self.gaussian or self.bernoulli)

    def _factor(self, num_outputs: int) -> float:
        return 1.0 / num_outputs if self.mean else 1.0

    def _operands(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.to(torch.float64), targets.reshape(outputs.shape).to(torch.float64)

    @override
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values = self.function(*self._operands(outputs, targets))
        return values.sum(dim=-1) * self._factor(outputs.shape[-1])

    def _first(self, outputs: Tensor, targets: Tensor) -> Tensor:
        operands = self._operands(outputs, targets)
        gradient = torch.func.grad(lambda f: self.function(f, operands[1]).sum())(operands[0])
        return gradient * self._factor(outputs.shape[-1])

    def _second(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """Return the diagonal of each Λ_i, (n, C), float64."""
        if targets is None:
            if self.curvature_needs_targets:
                raise ValueError(f"targets=None: the Hessian of loss={self.name} needs them.")
            targets = torch.zeros_like(outputs)
        return torch.func.grad(lambda f: self._first(f, targets).sum())(outputs.to(torch.float64))

    @override
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.gaussian:
            return (outputs - targets.reshape(outputs.shape)) * self._curvature(outputs.shape[-1])
        return self._first(outputs, targets).to(outputs.dtype)

    def _curvature(self, num_outputs: int) -> float:
        return (2.0 if self.mean else 1.0) * self._factor(num_outputs)

    @override
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        if self.gaussian:
            return changes * self._curvature(outputs.shape[-1])
        return (self._second(outputs, targets) * changes).to(changes.dtype)

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        n, num_outputs = outputs.shape
        if self.gaussian:
            identity = torch.eye(num_outputs, dtype=outputs.dtype, device=outputs.device)
            return (self._curvature(num_outputs) ** 0.5 * identity).expand(n, -1, -1)
        second = self._second(outputs, targets)
        _refuse_negative(second, self.name)
        return torch.diag_embed(second.clamp(min=0.0).sqrt()).to(outputs.dtype)

    @override
    def needs_data(self, sample: Tensor, targets: Tensor) -> bool:
        return False

    @override
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        n = len(outputs)
        if len(targets) != n or targets.numel() != outputs.numel():
            raise ValueError(
                f"targets has shape {tuple(targets.shape)}, the model's outputs "
                f"{tuple(outputs.shape)}: {self.name} needs equal shapes."
            )
        if not bool(torch.isfinite(targets).all()):
            raise ValueError("targets has NaN or infinite entries: clean the data first.")

    @override
    def likelihood(self) -> Loss:
        if self.gaussian:
            return LOSSES["half_squared_error"]
        return self if self.bernoulli else super().likelihood()


def _refuse_negative(eigenvalues: Tensor, name: str) -> None:
    """Raise where Λ_i has eigenvalues that are negative beyond round-off: (n, C)."""
    scale = eigenvalues.abs().amax(dim=-1, keepdim=True)
    negative = eigenvalues < -1e-9 * scale
    if bool(negative.any()):
        sample = int(negative.any(dim=-1).nonzero()[0])
        raise ValueError(
            f"loss={name} is not convex in the outputs (sample {sample}): measures that rest on "
            "the Gauss–Newton matrix need a convex loss; Hessian measures do not."
        )


@dataclass(frozen=True, eq=False)
class CallableLoss(Loss):
    """Any function of outputs and targets that is a mean over samples, by autograd.

    Attributes
    ----------
    function : callable
        ``(outputs, targets) -> scalar``, outputs as the model returns them.
    shape : tuple of int or None
        What the model returns for a sample; None until it is known.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...] | None = None
    reduction: str = "as the function itself, a mean over samples"
    convex: bool = False

    def _total(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over samples as a function of the float64 outputs (n, C)."""
        shaped = outputs if self.shape is None else outputs.reshape(len(outputs), *self.shape)
        return len(outputs) * self.function(shaped, targets)

    def _operands(self, outputs: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        if targets is None:
            raise ValueError(f"targets=None: the derivatives of loss={self.name} need them.")
        if targets.is_floating_point():
            targets = targets.to(torch.float64)
        return outputs.to(torch.float64), targets

    @override
    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._total(*self._operands(outputs, targets)) / len(outputs)

    @override
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs, targets = self._operands(outputs, targets)
        pairs = zip(outputs.split(1), targets.split(1), strict=True)
        return torch.stack([self._total(one, target).reshape(()) for one, target in pairs])

    @override
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        f, y = self._operands(outputs, targets)
        return torch.func.grad(lambda f: self._total(f, y))(f).to(outputs.dtype)

    @override
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        f, y = self._operands(outputs, targets)
        gradient = torch.func.grad(lambda f: self._total(f, y))
        pull_back = torch.func.vjp(gradient, f)[1]
        # Samples do not interact in the loss, so the Hessian of the sum has one block for each.
        rows = changes.to(torch.float64).reshape(-1, *f.shape)
        product = torch.stack([pull_back(row)[0] for row in rows])
        return product.reshape(changes.shape).to(changes.dtype)

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        f, y = self._operands(outputs, targets)
        units = torch.eye(f.shape[1], dtype=f.dtype, device=f.device)
        columns = units.unsqueeze(1).expand(-1, len(f), -1)
        hessian = self.hessian_product(f, columns, y).movedim(0, 1)
        values, vectors = torch.linalg.eigh(0.5 * (hessian + hessian.transpose(1, 2)))
        _refuse_negative(values, self.name)
        root = values.clamp(min=0.0).sqrt()
        return (root.unsqueeze(-1) * vectors.transpose(1, 2)).to(outputs.dtype)

    @override
    def needs_data(self, sample: Tensor, targets: Tensor) -> bool:
        return self.shape is None

    @override
    def bound(self, sample: Tensor, targets: Callable[[], Iterable[Tensor]]) -> Loss:
        if self.shape is not None:
            return self
        here = replace(self, shape=tuple(sample.shape[1:]))
        first = next(iter(targets()))[: len(sample)]
        here._refuse_other_means(sample.flatten(1), first)
        return here

    def _refuse_other_means(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise if the function is no mean over samples."""
        outputs, targets = self._operands(outputs.detach(), targets)
        try:
            together = self._total(outputs, targets) / len(outputs)
            alone = self.sample_losses(outputs, targets)
        except Exception as error:
            raise ValueError(
                f"loss={self.name} fails on outputs of shape {tuple(outputs.shape)} and targets "
                f"of shape {tuple(targets.shape)} in double precision: {error}"
            ) from error
        if together.numel() != 1:
            raise ValueError(
                f"loss={self.name} returns {tuple(together.shape)}: it must return a scalar, the "
                "mean over samples."
            )
        scale = float(alone.abs().sum()) + 1e-300
        if not abs(float(alone.mean() - together)) <= 1e-6 * scale:
            raise ValueError(
                f"loss={self.name} is no mean over samples: on {len(outputs)} samples it is "
                f"{float(together):.6g}, the mean of its values on each alone "
                f"{float(alone.mean()):.6g}; divide a sum by the number of samples."
            )

    @override
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        if len(targets) != len(outputs):
            raise ValueError(f"targets has {len(targets)} entries for {len(outputs)} samples.")


def log_odds_against(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Return :math:`\log\frac{1-p_y}{p_y} = \log\sum_{j \ne y} e^{f_j - f_y}` of each sample.

    Its exponential is :math:`e^\ell - 1` and its softplus ℓ. Neither loses digits where the
    softmax is saturated, as the logarithm of a softmax does.

    Parameters
    ----------
    outputs : Tensor
        Logits, (n, C).
    targets : Tensor
        Integer labels, (n,).

    Returns
    -------
    Tensor
        (n,), float64; −∞ for a model with one class.
    """
    logits = outputs.to(torch.float64)
    label = targets.long().unsqueeze(1)
    differences = logits - logits.gather(1, label)
    return torch.logsumexp(differences.scatter(1, label, -torch.inf), dim=1)


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square()


def _half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square()


def _binary(weight: Tensor | None = None, pos_weight: Tensor | None = None) -> Loss:
    def function(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            outputs,
            targets,
            None if weight is None else weight.to(outputs),
            reduction="none",
            pos_weight=None if pos_weight is None else pos_weight.to(outputs),
        )

    return Elementwise(
        "bce_with_logits",
        "mean over samples and outputs, as torch.nn.BCEWithLogitsLoss()",
        function,
        bernoulli=weight is None and pos_weight is None,
    )


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        CrossEntropy(),
        Elementwise(
            "half_squared_error",
            "mean over samples of ½‖f − y‖², summed over outputs",
            _half_squares,
            mean=False,
            gaussian=True,
        ),
        Elementwise(
            "mse",
            "mean over samples and outputs of (f − y)², as torch.nn.MSELoss()",
            _squares,
            gaussian=True,
        ),
        _binary(),
    )
}


LossLike = Any
"""What :func:`get_loss` makes a loss of: a name, a loss module of torch, or any callable."""


def get_loss(loss: LossLike) -> Loss:
    """Return a loss by its name, from torch's own loss, or from any function.

    Parameters
    ----------
    loss : str, nn.Module or callable
        A name from :data:`LOSSES`; a loss module of torch (``CrossEntropyLoss`` with class weights,
        label smoothing and ignored labels, ``BCEWithLogitsLoss``, ``MSELoss`` have rules of their
        own) or one of these functions; or any callable ``(outputs, targets) -> scalar`` that is a
        mean over samples. Its derivatives come from autograd, and its convexity is checked where a
        measure needs it.

    Raises
    ------
    ValueError
        If a name is unknown, or a module does not average.
    TypeError
        If it is something else.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r} is unknown: choose one of {', '.join(LOSSES)}.")
        return LOSSES[loss]
    if isinstance(loss, nn.Module):
        return _of_module(loss)
    if loss in _FUNCTIONS:
        return _of_module(_FUNCTIONS[loss]())
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(
            f"loss={loss!r} must be one of {', '.join(LOSSES)}, a loss module such as "
            "torch.nn.MSELoss(), or a callable of outputs and targets."
        )
    return CallableLoss(getattr(loss, "__name__", type(loss).__name__), loss)


_FUNCTIONS: dict[Callable, type[nn.Module]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    functional.mse_loss: nn.MSELoss,
}


def _of_module(module: nn.Module) -> Loss:
    reduction = getattr(module, "reduction", "mean")
    if reduction not in ("mean", "batchmean"):
        raise ValueError(
            f"loss={module} has reduction={reduction!r}: pass one with reduction='mean'."
        )
    kind = type(module)
    if kind is nn.CrossEntropyLoss:
        return _cross_entropy_of(module)
    if kind is nn.MSELoss:
        return LOSSES["mse"]
    if kind is nn.BCEWithLogitsLoss:
        return _binary(module.weight, module.pos_weight)  # type: ignore[arg-type]
    return CallableLoss(kind.__name__, module)


def _cross_entropy_of(module: nn.Module) -> Loss:
    assert isinstance(module, nn.CrossEntropyLoss)
    options = []
    if module.weight is not None:
        options.append("weight=…")
    if module.label_smoothing:
        options.append(f"label_smoothing={module.label_smoothing}")
    name = f"CrossEntropyLoss({', '.join(options)})"
    reduction = "mean over samples of −log softmax, natural logarithm"
    if options or module.ignore_index >= 0:
        reduction = "as torch.nn.CrossEntropyLoss with the same options"
    return CrossEntropy(
        name,
        reduction,
        None if module.weight is None else module.weight.detach(),
        module.ignore_index,
        float(module.label_smoothing),
    )
