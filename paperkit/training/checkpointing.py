"""The checkpoint of a run: all that it continues from, and all that it belongs to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from paperkit import checkpoint as checkpoints
from paperkit.training import configuration as configurations
from paperkit.training.configuration import Configuration
from paperkit.training.description import describe
from paperkit.training.evaluation import Evaluation
from paperkit.training.model_state import restore_outside, state_outside
from paperkit.training.progress import BestWeights, Progress
from paperkit.training.run import Run

# Layout of the file, which another version of the loop may read otherwise.
_FORMAT = 2
_FIELDS = {
    "configuration": Mapping,
    "model": Mapping,
    "model outside": Mapping,
    "optimizer": Mapping,
    "scaler": Mapping | None,
    "history": list,
    "best": Mapping | None,
    "seconds": float,
}
_ABSENT = object()


class Checkpoint:
    """The file of a run.

    Parameters
    ----------
    path : Path
        File.
    run : Run
        Run, before its first step.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.run = run
        self.configuration = _configuration(run)

    def save(self, progress: Progress) -> None:
        """Write the run's state at the end of an epoch."""
        run, best = self.run, progress.best
        scaler = run.stepper.scaler
        state = {
            "format": _FORMAT,
            "configuration": self.configuration,
            "model": run.model.state_dict(),
            "model outside": state_outside(run.model),
            "optimizer": run.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "history": progress.history,
            "best": None
            if best is None
            else {
                "epoch": best.epoch,
                "evaluation": asdict(best.evaluation),
                "model": best.weights,
            },
            "epoch": len(progress.history),
            "step": len(progress.history) * run.steps_per_epoch,
            "seconds": progress.seconds,
        }
        checkpoints.save(state, self.path)

    def resumed(self) -> Progress:
        """Put the run into the state of the file, if there is one, and say how far it has come.

        Raises
        ------
        ValueError
            If the file is damaged, no checkpoint of a run, or belongs to another run.
        """
        if not self.path.exists():
            return Progress()
        state = checkpoints.load(self.path)
        if state.get("format") != _FORMAT:
            raise ValueError(
                f"the checkpoint {self.path} was not written by this version of the training loop; "
                "delete it to train from the start, or name another file"
            )
        for name, kind in _FIELDS.items():
            if not isinstance(state.get(name, _ABSENT), kind):
                raise ValueError(self._is_odd(f"its {name!r} is missing or of another kind"))
        self._check_configuration(state["configuration"])
        return self._restored(state)

    def _restored(self, state: dict[str, Any]) -> Progress:
        """Put the run into a state; leave it as it was if that cannot be done."""
        run = self.run
        before = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
        try:
            run.model.load_state_dict(state["model"])
            restore_outside(run.model, state["model outside"])
            run.optimizer.load_state_dict(state["optimizer"])
            if run.stepper.scaler is not None:
                run.stepper.scaler.load_state_dict(state["scaler"])
            return Progress(state["history"], state["seconds"], self._best(state["best"]))
        except Exception as error:  # a file may be wrong in any way
            run.model.load_state_dict(before[0])
            run.optimizer.load_state_dict(before[1])
            detail = " ".join(str(error).split())
            raise ValueError(self._is_odd(f"{type(error).__name__}: {detail}")) from error

    def _is_odd(self, reason: str) -> str:
        return (
            f"the checkpoint {self.path} is not whole ({reason}); delete it to train from the "
            "start, or name another file"
        )

    def _best(self, saved: dict[str, Any] | None) -> BestWeights | None:
        if saved is None:
            return None
        weights = {
            name: value.to(self.run.device) if isinstance(value, Tensor) else value
            for name, value in saved["model"].items()
        }
        return BestWeights(saved["epoch"], Evaluation(**saved["evaluation"]), weights)

    def _check_configuration(self, saved: Configuration) -> None:
        names = configurations.changed(saved, self.configuration)
        if names:
            raise ValueError(
                f"the checkpoint {self.path} belongs to a run with other {', '.join(names)}; "
                "delete it, name another file, or run with what it was written with: "
                f"{configurations.first_change(saved, self.configuration)}"
            )


def _configuration(run: Run) -> Configuration:
    """Describe all that the outcome depends on, in plain values."""
    settings, validation = run.settings, run.validation
    return {
        "epochs": describe(settings.epochs),
        "batch_size": describe(settings.batch_size),
        "warmup_epochs": describe(settings.warmup_epochs),
        "schedule": describe(settings.schedule),
        "max_norm": describe(settings.max_norm),
        "loss": describe(settings.loss),
        "label_smoothing": describe(settings.label_smoothing),
        "augment": describe(settings.augmentation),
        "autocast": describe(settings.autocast),
        "seed": describe(settings.seed),
        "data": configurations.describe_split(run.data),
        "validation": describe(None)
        if validation is None
        else configurations.describe_split(validation),
        "model": configurations.describe_model(run.model),
        "optimizer": configurations.describe_optimizer(run.optimizer, run.model),
        "initial weights": configurations.describe_weights(run.model),
    }
