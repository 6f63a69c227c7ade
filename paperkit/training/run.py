"""A run: its parts that stay the same from step to step, and what an epoch does with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from paperkit.data import Split
from paperkit.optim import MultiPassOptimizer
from paperkit.training.evaluation import Evaluation, evaluate, modes_restored
from paperkit.training.objective import Objective
from paperkit.training.progress import EpochRecord
from paperkit.training.randomness import Randomness
from paperkit.training.schedule import learning_rate_factor
from paperkit.training.settings import Settings
from paperkit.training.stepping import OptimizerFactory, Stepper

# Number of steps between checks that the loss is finite. Each check reads the loss, which makes the
# CPU wait for an accelerator.
_LOSS_CHECK_INTERVAL = 16


class Run:
    """A model, its objective and its optimizer, under given settings.

    Parameters
    ----------
    model : nn.Module
        Model, on the data's device.
    objective : Objective
        Loss on the training data.
    make : callable
        Function that makes the optimizer from the parameters.
    settings : Settings
        Settings of the run.
    validation : Split, optional
        Data to evaluate on after each epoch.

    Raises
    ------
    ValueError
        If the optimizer waits for a validation result and there are no validation data, or cannot
        be combined with the settings.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        make: OptimizerFactory,
        settings: Settings,
        validation: Split | None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.data = objective.split
        self.settings = settings
        self.validation = validation
        self.device = self.data.inputs.device
        self.optimizer = make(model.parameters())
        self.stepper = Stepper(
            model,
            self.optimizer,
            self.device,
            max_norm=settings.max_norm,
            autocast=settings.autocast,
        )
        self.randomness = Randomness(settings.seed, self.device)
        self.steps_per_epoch = math.ceil(len(self.data) / settings.batch_size)
        # The rates are read before a checkpoint is loaded, which overwrites them with those of a
        # step.
        self._peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        if validation is None and getattr(self.optimizer, "validation_threshold", None) is not None:
            raise ValueError(
                f"validation=None: {type(self.optimizer).__name__} waits for a validation accuracy "
                "above its validation_threshold: pass validation data."
            )

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Train in training mode and full precision; leave modes and generators as they were."""
        with (
            modes_restored(self.model),
            self.randomness.restored(),
            torch.autocast(self.device.type, enabled=False),
            torch.enable_grad(),
        ):
            self.model.train()
            yield

    def epoch(
        self, epoch: int, bar: tqdm, on_step: Callable[[int], object] | None = None
    ) -> tuple[EpochRecord, Evaluation | None]:
        """Train for an epoch and evaluate; tell the optimizer that the epoch ended.

        Raises
        ------
        FloatingPointError
            If the loss or a weight is not finite.
        """
        record = self._passes(epoch, bar, on_step)
        self._check_weights(epoch)
        validation = None
        if self.validation is not None:
            validation = evaluate(self.model, self.validation, loss=self.settings.validation_loss)
            record["validation_loss"] = validation.loss
            if not math.isnan(validation.accuracy):
                record["validation_accuracy"] = validation.accuracy
        end_epoch = getattr(self.optimizer, "end_epoch", None)
        if isinstance(self.optimizer, MultiPassOptimizer) and end_epoch is not None:
            end_epoch(record.get("validation_accuracy"))
        return record, validation

    def _passes(
        self, epoch: int, bar: tqdm, on_step: Callable[[int], object] | None
    ) -> EpochRecord:
        n = len(self.data)
        order = torch.randperm(n, generator=self.randomness.generator("order", epoch), device="cpu")
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)
        for k, batch in enumerate(order.to(self.device).split(self.settings.batch_size)):
            step = epoch * self.steps_per_epoch + k
            totals += self._step(step, batch)
            if on_step is not None:
                on_step(step + 1)
            bar.update()
            is_last = k + 1 == self.steps_per_epoch
            if is_last or k % _LOSS_CHECK_INTERVAL == 0:
                num_samples = min((k + 1) * self.settings.batch_size, n)
                _check_loss(totals[0].item() / num_samples, epoch, step, bar)
        loss, hits, counted = totals.tolist()
        record = {"epoch": epoch + 1, "loss": loss / n}
        if counted:
            record["accuracy"] = hits / counted
        return record | {"lr": self.optimizer.param_groups[0]["lr"]}

    def _step(self, step: int, batch: Tensor) -> Tensor:
        """Take a step; return the totals of the batch at the weights before it."""
        inputs, targets = self._batch(step, batch)
        self._set_learning_rates(step)
        totals: list[Tensor] = []

        def closure() -> Tensor:
            self.randomness.seed_global("layers", step)  # each call has the same dropout masks
            self.stepper.clear_gradients()
            with self.stepper.autocast():
                outputs = self.objective.outputs(self.model, inputs)
                loss = self.objective.value(outputs, targets)
            self.stepper.backward(loss)
            if not totals:
                total = loss.detach() * len(targets)
                totals.append(self.objective.totals(total, outputs.detach(), targets))
            return loss.detach()

        self.stepper.step(closure)
        return totals[0]

    def _batch(self, step: int, batch: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = self.data.inputs[batch], self.data.targets[batch]
        augmentation = self.settings.augmentation
        if augmentation is not None:
            # An augmentation may draw from the global generators, too.
            self.randomness.seed_global("global augmentation", step)
            inputs = augmentation(inputs, self.randomness.generator("augmentation", step))
        return inputs, targets

    def _set_learning_rates(self, step: int) -> None:
        factor = learning_rate_factor(
            step,
            warmup_steps=round(self.settings.warmup_epochs * self.steps_per_epoch),
            total_steps=self.settings.epochs * self.steps_per_epoch,
            schedule=self.settings.schedule,
        )
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * factor

    def _check_weights(self, epoch: int) -> None:
        weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        finite = torch.stack([weight.detach().isfinite().all() for weight in weights.values()])
        if not bool(finite.all()):
            name = list(weights)[finite.tolist().index(False)]
            raise FloatingPointError(
                f"the weights {name} are not finite after epoch {epoch + 1}; {_ADVICE}"
            )


_ADVICE = "lower lr, lengthen warmup_epochs, or look for undefined inputs"


def _check_loss(loss: float, epoch: int, step: int, bar: tqdm) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the training loss became {loss} in epoch {epoch + 1}, by step {step + 1}; {_ADVICE}"
        )
    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
