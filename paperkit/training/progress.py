"""How far a run has come: its history and the best weights so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from paperkit.training.evaluation import Evaluation

EpochRecord = dict[str, float]


@dataclass(frozen=True, eq=False)
class BestWeights:
    """Weights after the epoch that did best on the validation data.

    The best epoch has the highest accuracy, among equals the lowest loss, among equals is the
    first. Where the targets are no classes the loss decides alone.

    Attributes
    ----------
    epoch : int
        Number of the epoch, from 1.
    evaluation : Evaluation
        Result on the validation data.
    weights : dict of str to Tensor
        Copy of the model's ``state_dict()``, for ``model.load_state_dict``.

    Examples
    --------
    >>> import torch
    >>> from paperkit.data import Split
    >>> from paperkit.training import train
    >>> data = Split(torch.eye(2), torch.tensor([0, 1]))
    >>> model = torch.nn.Linear(2, 2)
    >>> result = train(model, data, epochs=3, validation=data, progress=False)
    >>> best = result.best  # the model itself has the last weights
    >>> model.load_state_dict(best.weights)
    <All keys matched successfully>
    >>> best.evaluation.loss == min(epoch["validation_loss"] for epoch in result.history)
    True
    """

    epoch: int
    evaluation: Evaluation
    weights: dict[str, Any]

    def __repr__(self) -> str:
        return f"BestWeights(epoch={self.epoch}, {self.evaluation})"


@dataclass
class Progress:
    """History of a run, its wall time, and the best weights so far."""

    history: list[EpochRecord] = field(default_factory=list)
    seconds: float = 0.0
    best: BestWeights | None = None

    def add(self, record: EpochRecord, validation: Evaluation | None, model: nn.Module) -> None:
        """Add an epoch's record, and keep the weights if the validation says that they are best."""
        self.history.append(record)
        if validation is None:
            return
        if self.best is None or _rank(validation) > _rank(self.best.evaluation):
            self.best = BestWeights(len(self.history), validation, copy_of_state(model))


def copy_of_state(model: nn.Module) -> dict[str, Any]:
    """Return a model's state, its tensors copied."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }


def _rank(evaluation: Evaluation) -> tuple[float, float]:
    """Return what is larger for better weights; an undefined loss is the worst."""
    accuracy = 0.0 if math.isnan(evaluation.accuracy) else evaluation.accuracy
    return accuracy, -math.inf if math.isnan(evaluation.loss) else -evaluation.loss
