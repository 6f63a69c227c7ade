r"""What any measure of sharpness has to beat: functions of the losses alone.

The information-geometric sharpness never exceeds n times the mean of :math:`e^{\ell_i} - 1` and
equals it wherever there are enough parameters, so a study of that measure is a study of this
baseline too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from paperkit.estimators.result import Measurement
from paperkit.linearize.batches import batches
from paperkit.linearize.evaluation import check_inputs, check_outputs, check_targets, evaluation
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


def _predictions(model: nn.Module, data: object, loss: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield outputs and targets batch by batch."""
    get_loss(loss)
    for inputs, targets in batches(data):
        check_inputs(inputs)
        with evaluation(model) as parameters, torch.no_grad():
            outputs = functional_call(model, parameters, (inputs,))
        check_outputs(outputs, len(inputs))
        check_targets(targets, outputs, loss)
        yield outputs, targets


def mean_loss(model: nn.Module, data: object, loss: str = "cross_entropy") -> Measurement:
    """Return the mean loss over all samples.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them, of any sizes; all samples count equally.
    loss : str
        A name from :data:`paperkit.linearize.LOSSES`.

    Raises
    ------
    ValueError
        If the loss is unknown or the data do not fit the model.
    """
    losses = torch.cat([sample_losses(*pair, loss) for pair in _predictions(model, data, loss)])
    return Measurement(
        value=float(losses.mean()), measure="mean_loss", method="exact", n=len(losses), loss=loss
    )


def mean_exponential_loss(
    model: nn.Module, data: object, loss: str = "cross_entropy"
) -> Measurement:
    r"""Return the mean of :math:`e^{\ell_i} - 1`; arguments and errors as :func:`mean_loss`.

    For cross-entropy, n times it bounds the information-geometric sharpness from above. Infinite
    where a loss exceeds 709 nats.
    """
    values = torch.cat(
        [exponential_losses(*pair, loss) for pair in _predictions(model, data, loss)]
    )
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
    model: nn.Module, train: object, test: object, loss: str = "cross_entropy"
) -> GeneralizationGap:
    """Return the gap between test and training, in loss and in accuracy.

    Parameters
    ----------
    model, loss
        As in :func:`mean_loss`.
    train, test : pair or iterable of pairs
        Both measured in evaluation mode and without augmentation, unless the data carry it.

    Raises
    ------
    ValueError
        As :func:`mean_loss`.
    """
    losses, accuracies, counts = [], [], []
    for data in (train, test):
        pairs = list(_predictions(model, data, loss))
        of_samples = torch.cat([sample_losses(*pair, loss) for pair in pairs])
        losses.append(float(of_samples.mean()))
        counts.append(len(of_samples))
        if loss == "cross_entropy":
            hits = torch.cat([outputs.argmax(dim=1) == targets for outputs, targets in pairs])
            accuracies.append(float(hits.double().mean()))
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
