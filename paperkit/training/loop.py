"""The loop: epochs, validation, checkpoints, and steps from one closure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from paperkit import arguments
from paperkit.data import Split
from paperkit.network.losses import LossLike
from paperkit.training.checkpointing import Checkpoint
from paperkit.training.objective import Objective, check_precision
from paperkit.training.progress import BestWeights, EpochRecord, Progress
from paperkit.training.run import Run
from paperkit.training.schedule import Schedule
from paperkit.training.settings import Augmentation, Settings, checked_factory
from paperkit.training.stepping import OptimizerFactory


@dataclass(frozen=True)
class TrainingResult:
    """History and costs of a run; the trained model, with its last weights, is the caller's own.

    Attributes
    ----------
    history : tuple of dict
        Records of the epochs: ``epoch`` (from 1), ``loss`` and ``accuracy`` (means over the
        epoch's batches as they were trained on: in training mode, augmented, before each
        step), ``lr`` (of its last step), and with validation data ``validation_loss`` and
        ``validation_accuracy`` after the epoch. Accuracies are left out where the targets are no
        classes.
    steps : int
        Number of optimizer steps of the whole run.
    seconds : float
        Wall time of the whole run, the parts before an interruption included.
    resumed_epochs : int
        Number of epochs that were taken from the checkpoint; 0 for a run from the start.
    best : BestWeights or None
        Weights of the best epoch; None without validation data.

    Examples
    --------
    >>> import torch
    >>> from paperkit.data import Split
    >>> from paperkit.training import train
    >>> data = Split(torch.eye(2), torch.tensor([0, 1]))
    >>> result = train(torch.nn.Linear(2, 2), data, epochs=3, batch_size=1, progress=False)
    >>> result.steps, [epoch["epoch"] for epoch in result.history]
    (6, [1, 2, 3])
    >>> sorted(result.history[0])
    ['accuracy', 'epoch', 'loss', 'lr']
    """

    history: tuple[EpochRecord, ...]
    steps: int
    seconds: float
    resumed_epochs: int
    best: BestWeights | None = field(default=None, compare=False)


def train(
    model: nn.Module,
    data: Split,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    optimizer: OptimizerFactory | None = None,
    warmup_epochs: float = 0.5,
    schedule: Schedule = "cosine",
    max_norm: float | None = None,
    loss: LossLike = "cross_entropy",
    label_smoothing: float = 0.0,
    augment: bool | Augmentation = False,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    validation: Split | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    on_step: Callable[[int], object] | None = None,
    on_epoch: Callable[[EpochRecord], object] | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train a model in place, with any optimizer.

    The same model, data and arguments give the same weights to the bit on one machine's
    CPU with one number of threads. The caller's global random number generators are left
    as they were found, and so is the mode of each module; no gradients are left behind, also
    after an exception.

    Each step hands the optimizer one closure, which it calls as often as it needs; the history
    tells the loss and accuracy of the first call. An optimizer whose steps change after some
    epochs, as those of :class:`~paperkit.optim.RSAM`, is told of each epoch's end and of its
    validation accuracy.

    Parameters
    ----------
    model : torch.nn.Module
        Network, which is moved to the data's device and trained there.
    data : Split
        Training data.
    epochs : int
        Number of passes over the data, each in a new random order.
    batch_size : int
        Number of samples in a step; the last batch of an epoch may be smaller.
    lr, momentum, weight_decay : float
        Peak learning rate, momentum and weight decay (on every parameter) of the default
        optimizer, stochastic gradient descent.
    optimizer : callable, optional
        Function that makes the optimizer from the parameters, in place of ``lr``, ``momentum``
        and ``weight_decay``. The schedule multiplies the learning rate of each of its groups.
    warmup_epochs : float
        Length of the linear warm-up, by step.
    schedule : str or callable
        Learning rate after the warm-up: ``"cosine"``, half a cosine to zero by step; or what
        :func:`learning_rate_factor` takes besides, such as ``"constant"``.
    max_norm : float, optional
        Largest norm of the gradient over all parameters, to which a larger one is scaled. For
        optimizers of :mod:`paperkit.optim` it is their own ``max_norm``.
    loss : str, nn.Module or callable
        Mean loss of a batch, as :func:`paperkit.network.get_loss` takes it. Weights of samples
        are divided by their mean over all data.
    label_smoothing : float
        Mass that a label of the cross-entropy gives to all classes alike, in training alone.
    augment : bool or callable
        Whether batches are augmented by :func:`paperkit.data.augment`; or a function of a
        batch of inputs and a CPU generator that returns the batch to train on.
    autocast : torch.dtype, optional
        Format of the forward pass in mixed precision: ``torch.bfloat16``, or ``torch.float16``
        with a gradient scaler. Weights and validation keep the precision of the data.
    seed : int
        Seed of the order of samples, of the augmentation, and of the global generators
        that layers such as dropout draw from (torch, NumPy, Python).
    validation : Split, optional
        Data to evaluate on after every epoch, which decide the best weights.
    checkpoint : str or Path, optional
        File to continue from if it exists, and to write to. A run that was finished is not
        repeated: its weights are loaded. The file belongs to one model, with its hooks, one set of
        options, code of the functions that were passed included, and the whole of the data.
    checkpoint_every : int
        Number of epochs between checkpoints; the last epoch always writes one.
    on_step : callable, optional
        Function that is called after each step with the number of steps so far, such as
        :meth:`paperkit.monitor.SharpnessMonitor.step`. After an interruption it may see a step
        again.
    on_epoch : callable, optional
        Function that is called with the epoch's record before its checkpoint is written. After
        an interruption it may see an epoch again, and misses none.
    progress : bool
        Whether to show a progress bar on the standard error stream.

    Returns
    -------
    TrainingResult
        History, steps, time and best weights.

    Raises
    ------
    FloatingPointError
        If the training loss or a weight becomes infinite or undefined.
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument is out of range, the data are empty, the checkpoint is damaged, or
        it belongs to another configuration.

    Examples
    --------
    >>> import torch
    >>> from functools import partial
    >>> from paperkit.data import Split
    >>> from paperkit.optim import SAM
    >>> from paperkit.training import evaluate, train
    >>> data = Split(torch.eye(2), torch.tensor([0, 1]))  # two points that a line separates
    >>> model = torch.nn.Linear(2, 2)
    >>> result = train(model, data, epochs=50, progress=False)
    >>> evaluate(model, data).accuracy
    1.0
    >>> result.history[-1]["loss"] < result.history[0]["loss"]
    True

    A sharpness-aware optimizer, and a checkpoint to continue from:

    >>> options = {"epochs": 50, "checkpoint": "run.pt", "progress": False}
    >>> start = torch.nn.Linear(2, 2).state_dict()
    >>> model.load_state_dict(start)
    <All keys matched successfully>
    >>> _ = train(model, data, optimizer=partial(SAM, rho=0.1, lr=0.1), **options)
    >>> model.load_state_dict(start)
    <All keys matched successfully>
    >>> try:
    ...     train(model, data, optimizer=partial(SAM, rho=0.2, lr=0.1), **options)
    ... except ValueError as error:
    ...     print(str(error).partition(";")[0])
    the checkpoint run.pt belongs to a run with other optimizer
    """
    arguments.module("model", model)
    settings = Settings.checked(
        epochs=epochs,
        batch_size=batch_size,
        warmup_epochs=warmup_epochs,
        schedule=schedule,
        max_norm=max_norm,
        loss=loss,
        label_smoothing=label_smoothing,
        augment=augment,
        autocast=autocast,
        seed=seed,
    )
    objective = Objective("data", data, settings.training_loss)
    check_precision(model, data)
    if validation is not None:
        validation = Objective("validation", validation, settings.validation_loss).split
        check_precision(model, validation)
    checkpoint_every = arguments.integer("checkpoint_every", checkpoint_every, at_least=1)
    progress = arguments.flag("progress", progress)
    if on_step is not None:
        arguments.function("on_step", on_step, "a function of the number of steps")
    if on_epoch is not None:
        arguments.function("on_epoch", on_epoch, "a function of an epoch's record")
    path = None if checkpoint is None else arguments.path("checkpoint", checkpoint)
    make = checked_factory(optimizer, lr=lr, momentum=momentum, weight_decay=weight_decay)
    model.to(data.inputs.device)
    run = Run(model, objective, make, settings, validation)
    stored = None if path is None else Checkpoint(path, run)
    try:
        return _train(run, stored, checkpoint_every, on_step, on_epoch, progress)
    finally:
        run.stepper.clear_gradients()


def _train(
    run: Run,
    checkpoint: Checkpoint | None,
    checkpoint_every: int,
    on_step: Callable[[int], object] | None,
    on_epoch: Callable[[EpochRecord], object] | None,
    progress: bool,
) -> TrainingResult:
    progressed = Progress() if checkpoint is None else checkpoint.resumed()
    resumed_epochs = len(progressed.history)
    epochs, steps = run.settings.epochs, run.steps_per_epoch
    bar = tqdm(
        total=epochs * steps,
        initial=resumed_epochs * steps,
        desc="training",
        unit="step",
        disable=not progress,
    )
    with bar, run.undisturbed():
        for epoch in range(resumed_epochs, epochs):
            started = time.perf_counter()
            progressed.add(*run.epoch(epoch, bar, on_step), run.model)
            progressed.seconds += time.perf_counter() - started
            if on_epoch is not None:
                on_epoch(dict(progressed.history[-1]))
            is_due = (epoch + 1) % checkpoint_every == 0 or epoch + 1 == epochs
            if checkpoint is not None and is_due:
                checkpoint.save(progressed)
    return TrainingResult(
        tuple(progressed.history),
        epochs * steps,
        progressed.seconds,
        resumed_epochs,
        progressed.best,
    )
