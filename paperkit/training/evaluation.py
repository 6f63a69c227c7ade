"""Loss and accuracy of a model on data, in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from paperkit import arguments
from paperkit.data import Split
from paperkit.network.losses import LossLike
from paperkit.training.objective import Objective, check_precision, chosen_loss


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, accuracy, and the number of samples.

    The loss is the cross-entropy (natural logarithm) unless another was asked for. The accuracy is
    NaN where the targets are no classes.

    Examples
    --------
    >>> from paperkit.training import Evaluation
    >>> print(Evaluation(loss=0.25, accuracy=0.975, n=200))
    loss 0.2500, accuracy 97.50% on 200 samples
    """

    loss: float
    accuracy: float
    n: int

    def __str__(self) -> str:
        hits = "" if math.isnan(self.accuracy) else f", accuracy {self.accuracy:.2%}"
        return f"loss {self.loss:.4f}{hits} on {self.n} samples"


def evaluate(
    model: nn.Module, split: Split, batch_size: int = 1000, *, loss: LossLike = "cross_entropy"
) -> Evaluation:
    """Measure loss and accuracy in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        Network, on the data's device. Each of its modules is left in its mode, also if the
        evaluation fails.
    split : Split
        Data to evaluate on.
    batch_size : int
        Number of samples in a forward pass.
    loss : str, nn.Module or callable
        Loss, as :func:`paperkit.network.get_loss` takes it. The plain cross-entropy refuses labels
        below 0; ``torch.nn.CrossEntropyLoss()`` leaves out those of its ``ignore_index``.

    Returns
    -------
    Evaluation
        Means over all samples, accumulated in float64. Samples with an ignored label enter neither
        the loss nor the accuracy.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, ``split`` is empty, or the model does not fit it.

    Examples
    --------
    >>> import torch
    >>> from paperkit.data import Split
    >>> from paperkit.training import evaluate
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> print(evaluate(model, Split(torch.eye(2), torch.tensor([0, 1]))))  # equal logits: log 2
    loss 0.6931, accuracy 50.00% on 2 samples
    """
    batch_size = arguments.integer("batch_size", batch_size, at_least=1)
    arguments.module("model", model)
    objective = Objective("split", split, chosen_loss(loss))
    split = objective.split
    check_precision(model, split)
    total = torch.zeros(3, dtype=torch.float64, device=split.inputs.device)
    with modes_restored(model), torch.no_grad():
        model.eval()
        for start in range(0, len(split), batch_size):
            targets = split.targets[start : start + batch_size]
            outputs = objective.outputs(model, split.inputs[start : start + batch_size])
            total += objective.totals(objective.sum(outputs, targets), outputs, targets)
    loss_sum, hits, counted = total.tolist()
    accuracy = hits / counted if counted else math.nan
    return Evaluation(loss_sum / len(split), accuracy, len(split))


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Put each module back into its mode at the end, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
