"""The loss of a model on one data set: its value on a batch, and the hits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit import arguments
from paperkit.data import Split
from paperkit.network import Loss, Network, get_loss
from paperkit.network.losses import CrossEntropy, LossLike
from paperkit.network.network import called


def chosen_loss(loss: LossLike, label_smoothing: float = 0.0) -> Loss:
    """Return a loss by its name, module or function, with smoothed labels if asked for.

    Raises
    ------
    TypeError, ValueError
        If the loss is unknown, or smoothing is asked of another loss than ``"cross_entropy"``.
    """
    label_smoothing = arguments.number("label_smoothing", label_smoothing, at_least=0, below=1)
    found = get_loss(loss)
    if not label_smoothing:
        return found
    if not isinstance(found, CrossEntropy) or not found.is_plain:
        raise ValueError(
            f"label_smoothing={label_smoothing} belongs to loss='cross_entropy': set it inside "
            "loss= instead, as torch.nn.CrossEntropyLoss(label_smoothing=…)."
        )
    return replace(found, label_smoothing=label_smoothing)


class Objective:
    """A loss on one data set.

    Losses that weight their samples, by class weights or ignored labels, divide by the mean weight
    of *all* data, so that the mean over batches is the loss of the data.

    Parameters
    ----------
    name : str
        Name of the argument that holds the data.
    split : Split
        Data; labels of a cross-entropy may be of any integer type.
    loss : Loss
        Loss as :func:`chosen_loss` returns it.

    Attributes
    ----------
    split : Split
        Data, with labels as int64.

    Raises
    ------
    TypeError, ValueError
        If there are no data, or a target is none.
    """

    def __init__(self, name: str, split: Split, loss: Loss) -> None:
        arguments.instance(name, split, Split, "as paperkit.data.load returns")
        if len(split) == 0:
            raise ValueError(f"{name} is empty; give at least one sample")
        self.loss = loss
        self._targets_name = f"{name}.targets"
        self._fitted = False
        targets = split.targets
        self.takes_labels = isinstance(loss, CrossEntropy) and not (
            targets.is_floating_point() and targets.ndim == 2
        )
        self._largest_label = -1
        if self.takes_labels:
            self._largest_label = self._checked_largest_label(targets)
            split = Split(split.inputs, targets.long())
        self._has_class_rows = not self.takes_labels and _are_class_rows(targets)
        self.split = split

    def outputs(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return the model's outputs, (n, …), one for each class at least."""
        outputs = called(model, inputs)
        if self.takes_labels:
            self._check_classes(outputs)
        elif not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != len(inputs):
            raise ValueError(
                f"model returned {arguments.shown(outputs)} for {len(inputs)} samples: it must "
                "return a Tensor with one row a sample."
            )
        if not self._fitted:
            self._fit(outputs)
        return outputs

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the samples of a batch, a differentiable scalar."""
        if (loss := self._plain_cross_entropy()) is not None:
            return functional.cross_entropy(outputs, targets, label_smoothing=loss.label_smoothing)
        return self.loss.value(_matrix(outputs), targets)

    def sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over the samples of a batch."""
        if (loss := self._plain_cross_entropy()) is not None:
            smoothing = loss.label_smoothing
            return functional.cross_entropy(
                outputs, targets, label_smoothing=smoothing, reduction="sum"
            )
        return self.value(outputs, targets) * len(targets)

    def totals(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss, the hits, and the samples with a class, shape (3,), float64.

        Samples with an ignored label, and targets that are no classes, are neither hit nor missed.
        """
        if self.takes_labels:
            ignored = _ignored_label(self.loss)
            has_class = targets == targets if ignored is None else targets != ignored
            hits = (outputs.argmax(dim=1) == targets) & has_class
        elif self._has_class_rows:
            hits = _matrix(outputs).argmax(dim=1) == targets.argmax(dim=1)
            has_class = torch.ones_like(hits)
        else:
            hits = has_class = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
        return torch.stack([loss.double(), hits.sum().double(), has_class.sum().double()])

    def _plain_cross_entropy(self) -> CrossEntropy | None:
        """Return a cross-entropy of labels that count alike, which torch computes; else None."""
        loss = self.loss
        is_plain = self.takes_labels and type(loss) is CrossEntropy and not loss.weighted
        return loss if is_plain and isinstance(loss, CrossEntropy) else None

    def _check_classes(self, outputs: object) -> None:
        labels = self._largest_label
        is_matrix = isinstance(outputs, Tensor) and outputs.ndim == 2
        if not is_matrix or outputs.shape[1] <= labels:  # type: ignore[attr-defined]
            raise ValueError(
                f"model returned {arguments.shown(outputs)}: labels up to {labels} need "
                f"(n, C) outputs with C of at least {labels + 1}."
            )

    def _fit(self, outputs: Tensor) -> None:
        """Settle the weights of the samples, and check all targets against the first outputs."""
        sample, targets = outputs.detach(), self.split.targets
        if self.loss.needs_data(sample, targets):
            self.loss = self.loss.bound(sample, lambda: [targets])
        self.loss.check(_matrix(sample)[:1].expand(len(targets), -1), targets)
        self._fitted = True

    def _checked_largest_label(self, targets: Tensor) -> int:
        name = self._targets_name
        arguments.tensor(name, targets, ndim=1, floating=False)
        ignored = _ignored_label(self.loss)
        counted = targets if ignored is None else targets[targets != ignored]
        if len(counted) == 0:
            raise ValueError(f"{name} has ignored labels only: give at least one that counts.")
        low, high = (int(end) for end in counted.aminmax())
        if low < 0:
            raise ValueError(f"{name} has labels from {low}: class labels count from 0.")
        return high


def _ignored_label(loss: Loss) -> int | None:
    return loss.ignore_index if isinstance(loss, CrossEntropy) else None


def check_precision(model: nn.Module, split: Split) -> None:
    """Refuse a model without parameters, or whose parameters differ from the inputs in dtype."""
    model = Network.of(model)  # raises if the model holds no values
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(f"model={arguments.shown(model)} has no parameters: pass one that has.")
    for parameter in parameters:
        if parameter.dtype != split.inputs.dtype:
            raise ValueError(
                f"the model's parameters are {parameter.dtype} and the inputs "
                f"{split.inputs.dtype}; convert one of them"
            )


def _matrix(outputs: Tensor) -> Tensor:
    return outputs.unsqueeze(1) if outputs.ndim == 1 else outputs.flatten(1)


def _are_class_rows(targets: Tensor) -> bool:
    """Whether each target is a row of probabilities of classes, such as a one-hot row."""
    if targets.ndim != 2 or targets.shape[1] < 2 or not targets.is_floating_point():
        return False
    totals = targets.to(torch.float64).sum(dim=1)
    return bool((targets >= 0).all()) and bool(((totals - 1).abs() < 1e-2).all())
