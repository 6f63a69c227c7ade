r"""Cross-entropy of a softmax, and the derivatives of the softmax that keep their digits.

With masses :math:`m_c \ge 0` of the classes, the loss of a sample is
:math:`-\sum_c m_c \log p_c`: a hard label has the mass 1 at the label, soft targets are the masses
themselves, label smoothing and class weights change them. With :math:`s = \sum_c m_c` the gradient
in the logits is :math:`s p - m` and the Hessian :math:`s (\operatorname{diag}(p) - pp^\top)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from paperkit.network.losses.base import Loss, Targets
from paperkit.network.losses.positional import Positional


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
        Logits, shape (n, C).

    Returns
    -------
    Tensor
        Shape (n, C − 1, C).
    """
    n, num_outputs = outputs.shape
    dtype, outputs = outputs.dtype, outputs.to(torch.float64)
    # A probability that rounds to 1 has no digits of 1 − p left. The square root is therefore taken
    # through log-softmax, which keeps them.
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


def softmax_hessian_product(outputs: Tensor, changes: Tensor) -> Tensor:
    r"""Multiply :math:`\operatorname{diag}(p) - pp^\top` with changes u, (…, n, C).

    :math:`\Lambda u = p \odot (u - p \cdot u)`. A constant added to all entries of u is first
    removed so that u is zero at the largest p: then nothing cancels where the softmax is saturated.
    """
    probabilities = outputs.to(torch.float64).softmax(dim=-1)
    likeliest = outputs.argmax(dim=-1, keepdim=True).expand(*changes.shape[:-1], 1)
    changed = changes.to(torch.float64)
    centred = changed - changed.gather(-1, likeliest)
    product = probabilities * (centred - (probabilities * centred).sum(dim=-1, keepdim=True))
    return product.to(changes.dtype)


def softmax_gradient(outputs: Tensor, masses: Tensor) -> Tensor:
    """Return s p − m for each sample, (n, C), float64.

    Its entries add up to zero. So the entry at the largest p is minus the sum of the others, which
    keeps its digits where p − 1 has none.
    """
    outputs = outputs.to(torch.float64)
    likeliest = outputs.argmax(dim=-1, keepdim=True)
    gradient = masses.sum(dim=-1, keepdim=True) * outputs.softmax(dim=-1) - masses
    others = gradient.scatter(-1, likeliest, 0.0)
    return others.scatter(-1, likeliest, -others.sum(dim=-1, keepdim=True))


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
    if logits.shape[1] == 1:  # no other class, whose sum would have no derivative
        return differences.squeeze(1) - torch.inf
    return torch.logsumexp(differences.scatter(1, label, -torch.inf), dim=1)


# Instances are compared by identity, because equality of the tensor among their fields is not a
# single truth value.
@dataclass(frozen=True, eq=False)
class CrossEntropy(Loss):
    """Cross-entropy of a softmax with labels, or with probabilities as targets.

    Attributes
    ----------
    weight : Tensor or None
        Weights of the classes, (C,).
    ignore_index : int or None
        Label that does not count; None refuses negative labels.
    label_smoothing : float
        Share of the mass that is spread evenly over all classes, from 0 to 1, as in torch.
    soft : bool
        Whether the targets are known to be probabilities.
    mean_weight : float or None
        Mean weight of a label in all data; None takes that of the targets at hand.
    """

    name: str = "cross_entropy"
    reduction: str = "mean over samples of −log softmax, natural logarithm"
    weight: Tensor | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    soft: bool = False
    mean_weight: float | None = None

    @property
    def weighted(self) -> bool:
        """Whether labels can count differently."""
        return self.weight is not None or self.ignore_index is not None

    @property
    def is_plain(self) -> bool:
        """Whether outputs are logits, every sample counts alike and labels are hard."""
        options = self.weighted or self.soft or self.label_smoothing
        return type(self) is CrossEntropy and not options

    @property
    @override
    def curvature_needs_targets(self) -> bool:
        # Smoothing moves mass between the classes and leaves the total mass, which alone enters
        # Λ_i.
        return self.weighted or self.soft

    @override
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.to(torch.float64)
        if not targets.is_floating_point() and self.label_smoothing == 0:
            log_odds = log_odds_against(outputs, self._labels(targets))
            # torch's softplus returns its argument above 20, where e⁻²⁰ costs digits from the
            # ninth.
            losses = torch.logaddexp(log_odds, torch.zeros_like(log_odds))
            if outputs.shape[1] == 1:
                losses = 0.0 * outputs.squeeze(1)
            return losses * self._scales(targets) if self.weighted else losses
        return -(self._masses(outputs, targets) * functional.log_softmax(outputs, -1)).sum(dim=-1)

    @override
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return softmax_gradient(outputs, self._masses(outputs, targets)).to(outputs.dtype)

    @override
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        product = softmax_hessian_product(outputs, changes)
        scales = self._curvature_scales(outputs, targets)
        return product if scales is None else product * scales.unsqueeze(-1).to(product.dtype)

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        factor = softmax_hessian_factor(outputs)
        scales = self._curvature_scales(outputs, targets)
        return factor if scales is None else factor * scales.sqrt().reshape(-1, 1, 1).to(factor)

    def _curvature_scales(self, outputs: Tensor, targets: Tensor | None) -> Tensor | None:
        """Return the total mass s of each sample, (n,); None where all are 1."""
        if not self.curvature_needs_targets:
            return None
        if targets is None:
            self.without_targets(outputs)
            return None
        return self._masses(outputs, targets).sum(dim=-1)

    def _labels(self, targets: Tensor) -> Tensor:
        """Return labels that can be used as indices; a label that does not count becomes 0."""
        labels = targets.long()
        if self.ignore_index is None:
            return labels
        return torch.where(labels != self.ignore_index, labels, 0)

    def _weights(self, targets: Tensor) -> Tensor:
        """Return the weight of each label in the mean, float64; 0 for one that does not count."""
        labels = self._labels(targets)
        if self.weight is None:
            weights = torch.ones_like(labels, dtype=torch.float64)
        else:
            weights = self.weight.to(labels.device, torch.float64)[labels]
        return weights if self.ignore_index is None else weights * self._counted(targets)

    def _counted(self, targets: Tensor) -> Tensor:
        return targets.long().ne(self.ignore_index)  # type: ignore[arg-type]

    def _scales(self, targets: Tensor) -> Tensor:
        """Return the weights of the labels over the mean weight, (n,), float64."""
        weights = self._weights(targets)
        return weights / (weights.mean() if self.mean_weight is None else self.mean_weight)

    def _masses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the masses m, which multiply −log p of each class, (n, C), float64."""
        num_outputs = outputs.shape[-1]
        soft = targets.is_floating_point()
        if soft:
            masses = targets.to(torch.float64)
        else:
            masses = functional.one_hot(self._labels(targets), num_outputs).to(torch.float64)
        if self.label_smoothing:
            masses = (1 - self.label_smoothing) * masses + self.label_smoothing / num_outputs
        if self.weight is not None:
            masses = masses * self.weight.to(masses)
        if soft or not self.weighted:
            return masses
        mean = self._weights(targets).mean() if self.mean_weight is None else self.mean_weight
        if self.ignore_index is not None:
            masses = masses * self._counted(targets).unsqueeze(-1)
        return masses / mean

    @override
    def needs_data(self, sample: Tensor, targets: Tensor) -> bool:
        if sample.ndim != 2 or (targets.is_floating_point() and not self.soft):
            return True
        return self.weighted and self.mean_weight is None and not self.soft

    @override
    def bound(self, sample: Tensor, targets: Targets) -> Loss:
        first = next(iter(targets()))
        axis = class_axis(self, sample, first)
        bound = self
        if first.is_floating_point():
            bound = replace(self, soft=True)
        elif self.weighted and self.mean_weight is None:
            bound = self._with_mean_weight(sample.shape[axis], targets)
        return bound if sample.ndim == 2 else Positional(bound, tuple(sample.shape[1:]), axis)

    def _with_mean_weight(self, num_classes: int, targets: Targets) -> CrossEntropy:
        """Return the loss with the mean weight of all labels, or a plainer one that equals it."""
        self._check_weight(num_classes)
        total, counted, count = 0.0, 0, 0
        for part in targets():
            if part.is_floating_point():
                raise ValueError("targets are labels in one batch and probabilities in another.")
            self._check_labels(part, num_classes)
            total += float(self._weights(part).sum())
            count += part.numel()
            counted += part.numel() if self.ignore_index is None else int(self._counted(part).sum())
        if not total > 0:
            raise ValueError(f"targets: loss={self.name} leaves no label with a positive weight.")
        bound = self if counted < count else replace(self, ignore_index=None)
        if bound.is_plain:
            return CrossEntropy()
        return replace(bound, mean_weight=total / count) if bound.weighted else bound

    @override
    def without_targets(self, sample: Tensor) -> Loss:
        if self.weight is not None or self.mean_weight is not None or self.soft:
            return super().without_targets(sample)
        if sample.ndim > 2:
            raise ValueError(
                f"targets=None: outputs of shape {tuple(sample.shape)} have their classes along "
                "the second or the last axis, which the targets tell: pass them."
            )
        return self

    @override
    def check(self, outputs: Tensor, targets: Tensor) -> None:
        n, num_outputs = outputs.shape
        self._check_weight(num_outputs)
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise ValueError(
                    f"targets must be {n} integer class labels for {self.name}, or "
                    f"probabilities of shape {tuple(outputs.shape)}, not {tuple(targets.shape)} "
                    f"of {targets.dtype}."
                )
            totals = targets.to(torch.float64).sum(dim=1)
            if not bool((targets >= 0).all()) or not bool(((totals - 1).abs() < 1e-2).all()):
                raise ValueError(
                    f"targets has rows that are no probabilities: {self.name} needs class labels, "
                    "or rows of numbers from 0 to 1 that add up to 1."
                )
            return
        if self.soft:
            raise ValueError("targets are probabilities in one batch and labels in another.")
        if targets.shape != (n,) or targets.dtype == torch.bool or targets.is_complex():
            raise ValueError(
                f"targets must be {n} integer class labels for {self.name}, "
                f"not {tuple(targets.shape)} of {targets.dtype}."
            )
        self._check_labels(targets, num_outputs)

    def _check_weight(self, num_classes: int) -> None:
        if self.weight is not None and self.weight.numel() != num_classes:
            raise ValueError(
                f"loss={self.name} has {self.weight.numel()} class weights for {num_classes} "
                "classes: pass one for each."
            )

    def _check_labels(self, targets: Tensor, num_outputs: int) -> None:
        if targets.dtype == torch.bool or targets.is_complex():
            raise ValueError(f"targets has {targets.dtype}: {self.name} needs integer labels.")
        labels = targets.long() if self.ignore_index is None else targets[self._counted(targets)]
        if not labels.numel():
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_outputs:
            advice = ""
            if low < 0 and self.ignore_index is None:
                advice = "; loss=torch.nn.CrossEntropyLoss() leaves out those of its ignore_index"
            raise ValueError(
                f"targets has labels from {low} to {high}, but the model has "
                f"{num_outputs} outputs: labels must lie in 0..{num_outputs - 1}{advice}."
            )

    @override
    def likelihood(self) -> Loss:
        if self.weight is not None or self.label_smoothing:
            return super().likelihood()
        # The model draws labels of its own, so given probabilities do not matter. Which samples
        # count, and how much, still does.
        return CrossEntropy() if self.soft else self


@dataclass(frozen=True, eq=False)
class NegativeLogLikelihood(CrossEntropy):
    """Minus the output at the label, as of a model that ends in a log-softmax.

    This loss is linear in the outputs. The softmax is part of the network then, and the
    Gauss–Newton matrix zero; a model that returns logits, with cross-entropy, has the same Hessian
    and a Gauss–Newton matrix that says more.
    """

    @override
    def sample_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -(self._masses(outputs, targets) * outputs.to(torch.float64)).sum(dim=-1)

    @override
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # Add a zero that depends on the outputs, so that a caller can differentiate the gradient.
        return (0.0 * outputs - self._masses(outputs, targets)).to(outputs.dtype)

    @override
    def hessian_product(
        self, outputs: Tensor, changes: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        return torch.zeros_like(changes)

    @override
    def hessian_factor(self, outputs: Tensor, targets: Tensor | None = None) -> Tensor:
        return torch.zeros_like(outputs).unsqueeze(1)

    @override
    def likelihood(self) -> Loss:
        return Loss.likelihood(self)


def class_axis(loss: Loss, sample: Tensor, targets: Tensor) -> int:
    """Return which axis of the outputs (n, …) holds the classes, for given targets.

    The classes are along the second axis, as in torch, or along the last, as language models have
    them.
    """
    if sample.ndim == 2:
        return 1
    shape = tuple(sample.shape)
    axes = sorted({1, sample.ndim - 1})
    if targets.is_floating_point():
        fits = [
            axis
            for axis in axes
            if shape[1:] == tuple(targets.shape[1:])
            and bool(((targets.to(torch.float64).sum(dim=axis) - 1).abs() < 1e-2).all())
        ]
    else:
        fits = [axis for axis in axes if shape[1:axis] + shape[axis + 1 :] == targets.shape[1:]]
    if not fits:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}, the model's outputs "
            f"{tuple(sample.shape)}: {loss.name} needs one label (or probabilities) for each "
            "position, with the classes along the outputs' second or last axis."
        )
    if len(fits) > 1 and loss.name == "cross_entropy":
        raise ValueError(
            f"outputs of shape {tuple(sample.shape)} may have their classes along the second or "
            "the last axis: pass loss=torch.nn.CrossEntropyLoss(), which takes the second, and "
            "move the axis in the model or by forward= if it is the last."
        )
    return fits[0]
