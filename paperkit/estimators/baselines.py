r"""What any measure of sharpness has to beat: functions of the losses alone.

The information-geometric sharpness never exceeds n times the mean of :math:`e^{\ell_i} - 1` and
equals it wherever there are enough parameters, so a study of that measure is a study of this
baseline too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.estimators.result import Measurement
from paperkit.memory import GIBIBYTE
from paperkit.network.evaluation import check_outputs, evaluation
from paperkit.network.footprint import FORWARD, Chunks
from paperkit.network.losses import (
    CrossEntropy,
    Loss,
    LossLike,
    fitted,
    get_loss,
    log_odds_against,
)
from paperkit.network.network import network_outputs
from paperkit.network.problem import measure_of, settled


def sample_losses(outputs: Tensor, targets: Tensor, loss: LossLike = "cross_entropy") -> Tensor:
    """Return each sample's loss, (n,), in float64.

    Parameters
    ----------
    outputs : Tensor
        (n, C).
    targets : Tensor
        Labels (n,) for ``"cross_entropy"``, else (n, C).
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    """
    return fitted(loss, outputs, targets).sample_losses(outputs, targets)


def exponential_losses(
    outputs: Tensor, targets: Tensor, loss: LossLike = "cross_entropy"
) -> Tensor:
    r"""Return :math:`e^{\ell_i} - 1` of each sample, (n,), in float64; as :func:`sample_losses`.

    For cross-entropy this is the odds :math:`(1-p_y)/p_y` against the label. For a weighted loss
    :math:`\ell_i` holds the sample's weight, so that the losses' mean is the loss.
    """
    known = fitted(loss, outputs, targets)
    if isinstance(known, CrossEntropy) and known.is_plain:
        return torch.exp(log_odds_against(outputs, targets))
    return torch.expm1(known.sample_losses(outputs, targets))


def _per_sample(
    model: nn.Module,
    data: object,
    loss: Loss,
    function: Callable[[Tensor, Tensor], Tensor],
    memory_budget: int,
) -> Tensor:
    """Apply a function of (outputs, targets) to as many samples at a time as fit: (n, …)."""
    values = []
    with evaluation(model) as parameters, torch.no_grad():
        chunks = Chunks(model, parameters, lambda sample: sample.bytes_of(FORWARD), memory_budget)
        for inputs, targets in chunks(data):
            outputs = network_outputs(model, parameters, inputs)
            check_outputs(outputs, len(inputs))
            loss.check(outputs, targets)
            values.append(function(outputs, targets))
    return torch.cat(values)


@measure_of
def mean_loss(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    *,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    """Return the mean loss over all samples.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them, of any sizes; all samples count equally.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    memory_budget : int
        Bytes above the model and its data.

    Raises
    ------
    ValueError
        If the loss is unknown or the data do not fit the model.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import mean_loss
    >>> model = nn.Linear(3, 4)
    >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    >>> data = torch.rand(5, 3), torch.tensor([0, 1, 2, 3, 0])
    >>> round(float(mean_loss(model, data)), 4)  # log 4
    1.3863
    """

    def of_samples(outputs: Tensor, targets: Tensor) -> Tensor:
        return sample_losses(outputs, targets, loss)

    losses = _per_sample(model, data, loss, of_samples, memory_budget)
    return Measurement(
        value=float(losses.mean()), measure="mean_loss", method="exact", n=len(losses), loss=loss
    )


@measure_of
def mean_exponential_loss(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    *,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return the mean of :math:`e^{\ell_i} - 1`.

    For cross-entropy, n times it bounds the information-geometric sharpness from above. Infinite
    where a loss exceeds 709 nats.

    Parameters
    ----------
    model, data, loss
        As in :func:`mean_loss`.
    memory_budget : int
        Bytes above the model and its data.

    Raises
    ------
    ValueError
        As :func:`mean_loss`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import mean_exponential_loss
    >>> model = nn.Linear(3, 4)
    >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    >>> data = torch.rand(5, 3), torch.tensor([0, 1, 2, 3, 0])
    >>> round(float(mean_exponential_loss(model, data)), 4)  # (1 − p)/p with p = ¼
    3.0
    """

    def of_samples(outputs: Tensor, targets: Tensor) -> Tensor:
        return exponential_losses(outputs, targets, loss)

    values = _per_sample(model, data, loss, of_samples, memory_budget)
    return Measurement(
        value=float(values.mean()),
        measure="mean_exponential_loss",
        method="exact",
        n=len(values),
        loss=loss,
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class GeneralizationGap(Measurement):
    """Test minus training loss; ``float(result)`` is this difference.

    Attributes
    ----------
    train_loss, test_loss : float
        Means over the samples.
    accuracy_gap : float or None
        Training minus test accuracy, so that overfitting is positive in both gaps; None where
        samples do not have one label each: other losses than cross-entropy, soft targets, ignored
        labels, labels of many positions.
    num_test : int
        Test samples; ``n`` counts those of the training set.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import generalization_gap
    >>> model = nn.Linear(1, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0], [-1.0]])
    >>> train, test = (torch.ones(1, 1), torch.tensor([0])), (-torch.ones(1, 1), torch.tensor([0]))
    >>> gap = generalization_gap(model, train, test)
    >>> round(gap.train_loss, 4), round(gap.test_loss, 4), gap.accuracy_gap
    (0.1269, 2.1269, 1.0)
    """

    train_loss: float
    test_loss: float
    accuracy_gap: float | None
    num_test: int


def _has_one_label(loss: Loss | None) -> bool:
    """Whether each sample has one label, which the outputs hit or miss."""
    return isinstance(loss, CrossEntropy) and not loss.soft and loss.ignore_index is None


def generalization_gap(
    model: nn.Module,
    train: object,
    test: object,
    loss: LossLike = "cross_entropy",
    *,
    memory_budget: int = GIBIBYTE,
) -> GeneralizationGap:
    """Return the gap between test and training, in loss and in accuracy.

    Parameters
    ----------
    model, loss
        As in :func:`mean_loss`.
    train, test : pair or iterable of pairs
        Both measured in evaluation mode and without augmentation, unless the data carry it.
    memory_budget : int
        Bytes above the model and its data.

    Raises
    ------
    ValueError
        As :func:`mean_loss`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import generalization_gap
    >>> model = nn.Linear(1, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0], [-1.0]])
    >>> train, test = (torch.ones(1, 1), torch.tensor([0])), (-torch.ones(1, 1), torch.tensor([0]))
    >>> round(float(generalization_gap(model, train, test)), 4)  # log(1 + e²) − log(1 + e⁻²)
    2.0
    """

    def of_samples(outputs: Tensor, targets: Tensor) -> Tensor:
        columns = [sample_losses(outputs, targets, bound)]
        if _has_one_label(bound):
            columns.append((outputs.argmax(dim=1) == targets).double())
        return torch.stack(columns, dim=1)

    memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    losses, accuracies, counts = [], [], []
    for part in (train, test):
        model, data, bound = settled(model, part, get_loss(loss))
        assert bound is not None
        values = _per_sample(model, data, bound, of_samples, memory_budget)
        means = values.mean(dim=0).tolist()
        losses.append(means[0])
        accuracies += means[1:]
        counts.append(len(values))
    return GeneralizationGap(
        value=losses[1] - losses[0],
        measure="generalization_gap",
        method="exact",
        n=counts[0],
        loss=loss,
        train_loss=losses[0],
        test_loss=losses[1],
        accuracy_gap=accuracies[0] - accuracies[1] if accuracies else None,
        num_test=counts[1],
    )
