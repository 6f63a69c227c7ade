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
from torch.func import functional_call

from paperkit.estimators.result import Measurement
from paperkit.linearize.budget import FORWARD, Chunks
from paperkit.linearize.evaluation import check_outputs, check_targets, evaluation
from paperkit.linearize.linearize import GIBIBYTE
from paperkit.linearize.losses import get_loss


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
    label = targets.unsqueeze(1)
    differences = logits - logits.gather(1, label)
    return torch.logsumexp(differences.scatter(1, label, -torch.inf), dim=1)


def sample_losses(outputs: Tensor, targets: Tensor, loss: str = "cross_entropy") -> Tensor:
    """Return each sample's loss, (n,), in float64.

    Parameters
    ----------
    outputs : Tensor
        (n, C).
    targets : Tensor
        Labels (n,) for ``"cross_entropy"``, else (n, C).
    loss : str
        A name from :data:`paperkit.linearize.LOSSES`.
    """
    if loss == "cross_entropy":
        # torch's softplus is the identity above 20, at the price of nine digits there.
        log_odds = log_odds_against(outputs, targets)
        return torch.logaddexp(log_odds, torch.zeros_like(log_odds))
    value = get_loss(loss).value

    def one(output: Tensor, target: Tensor) -> Tensor:
        return value(output.unsqueeze(0), target.unsqueeze(0))

    return torch.vmap(one)(outputs.to(torch.float64), targets.to(torch.float64))


def exponential_losses(outputs: Tensor, targets: Tensor, loss: str = "cross_entropy") -> Tensor:
    r"""Return :math:`e^{\ell_i} - 1` of each sample, (n,), in float64; as :func:`sample_losses`.

    For cross-entropy this is the odds :math:`(1-p_y)/p_y` against the label.
    """
    if loss == "cross_entropy":
        return torch.exp(log_odds_against(outputs, targets))
    return torch.expm1(sample_losses(outputs, targets, loss))


def _per_sample(
    model: nn.Module,
    data: object,
    loss: str,
    function: Callable[[Tensor, Tensor], Tensor],
    memory_budget: int,
) -> Tensor:
    """Apply a function of (outputs, targets) to as many samples at a time as fit: (n, …)."""
    get_loss(loss)
    values = []
    with evaluation(model) as parameters, torch.no_grad():
        chunks = Chunks(model, parameters, lambda sample: sample.bytes_of(FORWARD), memory_budget)
        for inputs, targets in chunks(data):
            outputs = functional_call(model, parameters, (inputs,))
            check_outputs(outputs, len(inputs))
            check_targets(targets, outputs, loss)
            values.append(function(outputs, targets))
    return torch.cat(values)


def mean_loss(
    model: nn.Module,
    data: object,
    loss: str = "cross_entropy",
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
    loss : str
        A name from :data:`paperkit.linearize.LOSSES`.
    memory_budget : int
        Bytes above the model and its data.

    Raises
    ------
    ValueError
        If the loss is unknown or the data do not fit the model.
    """

    def of_samples(outputs: Tensor, targets: Tensor) -> Tensor:
        return sample_losses(outputs, targets, loss)

    losses = _per_sample(model, data, loss, of_samples, memory_budget)
    return Measurement(
        value=float(losses.mean()), measure="mean_loss", method="exact", n=len(losses), loss=loss
    )


def mean_exponential_loss(
    model: nn.Module,
    data: object,
    loss: str = "cross_entropy",
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
        Training minus test accuracy, so that overfitting is positive in both gaps; None for a
        loss without classes.
    num_test : int
        Test samples; ``n`` counts those of the training set.
    """

    train_loss: float
    test_loss: float
    accuracy_gap: float | None
    num_test: int


def generalization_gap(
    model: nn.Module,
    train: object,
    test: object,
    loss: str = "cross_entropy",
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
    """

    def of_samples(outputs: Tensor, targets: Tensor) -> Tensor:
        columns = [sample_losses(outputs, targets, loss)]
        if loss == "cross_entropy":
            columns.append((outputs.argmax(dim=1) == targets).double())
        return torch.stack(columns, dim=1)

    losses, accuracies, counts = [], [], []
    for data in (train, test):
        values = _per_sample(model, data, loss, of_samples, memory_budget)
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
