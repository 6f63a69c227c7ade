"""The training loop: seeded, deterministic on the CPU, and resumable to the bit.

Every random number of a run comes from a generator seeded by (seed, purpose, epoch, step),
never from one that runs on from step to step. The state of a run at the end of an epoch is
therefore its weights, its optimizer and a count, and a run continued from a checkpoint
cannot differ from one that was never stopped.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from paperkit import arguments
from paperkit import checkpoint as checkpoints
from paperkit.data import Split
from paperkit.data import augment as crop_and_flip
from paperkit.network.network import Network, called

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
EpochRecord = dict[str, float]

_DEFAULT_SGD = (0.1, 0.9, 5e-4)  # defaults of lr, momentum and weight_decay in train()
# Number of steps between checks that the loss is finite. Each check reads the loss, which makes the
# CPU wait for an accelerator.
_LOSS_CHECK_INTERVAL = 16


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (natural logarithm), accuracy, and the number of samples.

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
        return f"loss {self.loss:.4f}, accuracy {self.accuracy:.2%} on {self.n} samples"


@dataclass(frozen=True)
class TrainingResult:
    """History and costs of a run; the trained model is the caller's own.

    Attributes
    ----------
    history : tuple of dict
        Records of the epochs: ``epoch`` (from 1), ``loss`` and ``accuracy`` (means over the
        epoch's batches as they were trained on: in training mode, augmented, before each
        step), ``lr`` (of its last step), and with validation data ``validation_loss`` and
        ``validation_accuracy`` after the epoch.
    steps : int
        Number of optimizer steps of the whole run.
    seconds : float
        Wall time of the whole run, the parts before an interruption included.
    resumed_epochs : int
        Number of epochs that were taken from the checkpoint; 0 for a run from the start.

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


def learning_rate_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Return the factor on the learning rate: linear warm-up, then half a cosine.

    Parameters
    ----------
    step : int
        Number of the step, from 0 to ``total_steps`` − 1.
    warmup_steps : int
        Number of steps before the factor reaches 1, which it does at step ``warmup_steps``.
    total_steps : int
        Number of steps of the run; the cosine would reach 0 one step after the last.

    Raises
    ------
    TypeError, ValueError
        If a number is no integer, or out of range.

    Examples
    --------
    >>> from paperkit.training import learning_rate_factor
    >>> factors = [learning_rate_factor(step, warmup_steps=1, total_steps=5) for step in range(5)]
    >>> [round(factor, 3) for factor in factors]
    [0.5, 1.0, 0.854, 0.5, 0.146]
    """
    warmup_steps = arguments.integer("warmup_steps", warmup_steps, at_least=0)
    total_steps = arguments.integer("total_steps", total_steps, at_least=max(1, warmup_steps))
    step = arguments.integer("step", step, at_least=0, at_most=total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def evaluate(model: nn.Module, split: Split, batch_size: int = 1000) -> Evaluation:
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

    Returns
    -------
    Evaluation
        Means over all samples, accumulated in float64.

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
    largest = _largest_label("split", split)
    _check_precision(model, split)
    total = torch.zeros(2, dtype=torch.float64, device=split.inputs.device)
    with _restore_modes(model), torch.no_grad():
        model.eval()
        for start in range(0, len(split), batch_size):
            targets = split.targets[start : start + batch_size]
            outputs = _outputs(model, split.inputs[start : start + batch_size], largest)
            loss = functional.cross_entropy(outputs, targets, reduction="sum")
            total += _totals(loss, outputs, targets)
    loss, accuracy = (total / len(split)).tolist()
    return Evaluation(loss, accuracy, len(split))


def train(
    model: nn.Module,
    data: Split,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup_epochs: float = 0.5,
    seed: int = 0,
    augment: bool | Augmentation = False,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    validation: Split | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    on_epoch: Callable[[EpochRecord], object] | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train a classifier on cross-entropy, in place.

    The same model, data and arguments give the same weights to the bit on one machine's
    CPU with one number of threads. The caller's global random number generators are left
    as they were found, and so is the mode of each module; no gradients are left behind.

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
    warmup_epochs : float
        Length of the linear warm-up; after it the learning rate follows half a cosine to
        zero, by step (see :func:`learning_rate_factor`).
    seed : int
        Seed of the order of samples, of the augmentation, and of the global generators
        that layers such as dropout draw from.
    augment : bool or callable
        Whether batches are augmented by :func:`paperkit.data.augment`; or a function of a
        batch of inputs and a CPU generator that returns the batch to train on.
    optimizer : callable, optional
        Function that makes the optimizer from the parameters, in place of ``lr``, ``momentum``
        and ``weight_decay``. The schedule multiplies the learning rate of each of its groups.
    validation : Split, optional
        Data to evaluate on after every epoch.
    checkpoint : str or Path, optional
        File to continue from if it exists, and to write to. A run that was finished is not
        repeated: its weights are loaded.
    checkpoint_every : int
        Number of epochs between checkpoints; the last epoch always writes one.
    on_epoch : callable, optional
        Function that is called with the epoch's record before its checkpoint is written. After
        an interruption it may see an epoch again, and misses none.
    progress : bool
        Whether to show a progress bar on the standard error stream.

    Returns
    -------
    TrainingResult
        History, steps and time.

    Raises
    ------
    FloatingPointError
        If the training loss becomes infinite or undefined.
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If an argument is out of range, the data are empty, the checkpoint is damaged, or
        it belongs to another configuration.

    Examples
    --------
    >>> import torch
    >>> from paperkit.data import Split
    >>> from paperkit.training import evaluate, train
    >>> data = Split(torch.eye(2), torch.tensor([0, 1]))  # two points that a line separates
    >>> model = torch.nn.Linear(2, 2)
    >>> result = train(model, data, epochs=50, progress=False)
    >>> evaluate(model, data).accuracy
    1.0
    >>> result.history[-1]["loss"] < result.history[0]["loss"]
    True
    """
    arguments.module("model", model)
    largest_label = _largest_label("data", data)
    _check_precision(model, data)
    epochs = arguments.integer("epochs", epochs, at_least=1)
    batch_size = arguments.integer("batch_size", batch_size, at_least=1)
    checkpoint_every = arguments.integer("checkpoint_every", checkpoint_every, at_least=1)
    seed = arguments.integer("seed", seed, at_least=0)
    warmup_epochs = arguments.number("warmup_epochs", warmup_epochs, at_least=0, at_most=epochs)
    progress = arguments.flag("progress", progress)
    if on_epoch is not None:
        arguments.function("on_epoch", on_epoch, "a function of an epoch's record")
    if validation is not None:
        _largest_label("validation", validation)
        _check_precision(model, validation)
    path = None if checkpoint is None else arguments.path("checkpoint", checkpoint)
    augmentation = _resolve_augmentation(augment)
    lr, momentum, weight_decay = (
        arguments.number(name, value, at_least=0)
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay))
    )
    _check_optimizer(optimizer, lr, momentum, weight_decay)
    model.to(data.inputs.device)
    run = _Run(
        model=model,
        data=data,
        optimizer=_make_optimizer(model, optimizer, lr, momentum, weight_decay),
        augmentation=augmentation,
        epochs=epochs,
        batch_size=batch_size,
        warmup_epochs=warmup_epochs,
        seed=seed,
        largest_label=largest_label,
    )
    configuration = _configuration(run, validation)
    if path is not None and path.exists():
        history, seconds = _resume(run, path, configuration)
    else:
        history, seconds = [], 0.0
    resumed_epochs = len(history)

    steps = run.steps_per_epoch
    bar = tqdm(
        total=epochs * steps,
        initial=resumed_epochs * steps,
        desc="training",
        unit="step",
        disable=not progress,
    )
    with bar, _restore_modes(model), _restore_generators(run.device):
        model.train()
        for epoch in range(resumed_epochs, epochs):
            started = time.perf_counter()
            record = _train_epoch(run, epoch, bar)
            if validation is not None:
                result = evaluate(model, validation)
                record |= {
                    "validation_loss": result.loss,
                    "validation_accuracy": result.accuracy,
                }
            history.append(record)
            seconds += time.perf_counter() - started
            if on_epoch is not None:
                on_epoch(dict(record))
            is_due = (epoch + 1) % checkpoint_every == 0 or epoch + 1 == epochs
            if path is not None and is_due:
                _save(run, path, configuration, history, seconds)
    run.optimizer.zero_grad(set_to_none=True)
    return TrainingResult(tuple(history), epochs * steps, seconds, resumed_epochs)


class _Run:
    """Parts of a run that stay the same from step to step."""

    def __init__(
        self,
        *,
        model: nn.Module,
        data: Split,
        optimizer: torch.optim.Optimizer,
        augmentation: Augmentation | None,
        epochs: int,
        batch_size: int,
        warmup_epochs: float,
        seed: int,
        largest_label: int,
    ) -> None:
        self.model = model
        self.largest_label = largest_label
        self.data = data
        self.optimizer = optimizer
        # The rates are read before a checkpoint is loaded, which overwrites them with those of a
        # step.
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.augmentation = augmentation
        self.epochs = epochs
        self.batch_size = batch_size
        self.warmup_epochs = warmup_epochs
        self.seed = seed
        self.device = data.inputs.device
        self.steps_per_epoch = math.ceil(len(data) / batch_size)

    def generator(self, purpose: str, *position: int) -> torch.Generator:
        """Return a CPU generator for a purpose at an epoch or step."""
        return torch.Generator(device="cpu").manual_seed(self._seed(purpose, position))

    def seed_layers(self, step: int) -> None:
        """Seed the global generators that layers such as dropout draw from."""
        seed = self._seed("layers", (step,))
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index].manual_seed(seed)

    def set_learning_rates(self, step: int) -> None:
        """Set the learning rate of each of the optimizer's groups for a step."""
        factor = learning_rate_factor(
            step,
            warmup_steps=round(self.warmup_epochs * self.steps_per_epoch),
            total_steps=self.epochs * self.steps_per_epoch,
        )
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor

    def _seed(self, purpose: str, position: tuple[int, ...]) -> int:
        key = (("order", "augmentation", "layers").index(purpose), *position)
        sequence = np.random.SeedSequence(self.seed, spawn_key=key)
        return int(sequence.generate_state(1, np.uint64)[0])


def _train_epoch(run: _Run, epoch: int, bar: tqdm) -> EpochRecord:
    n = len(run.data)
    order = torch.randperm(n, generator=run.generator("order", epoch), device="cpu")
    totals = torch.zeros(2, dtype=torch.float64, device=run.device)
    for k, batch in enumerate(order.to(run.device).split(run.batch_size)):
        step = epoch * run.steps_per_epoch + k
        totals += _train_step(run, step, batch)
        bar.update()
        is_last = k + 1 == run.steps_per_epoch
        if is_last or k % _LOSS_CHECK_INTERVAL == 0:
            num_samples = min((k + 1) * run.batch_size, n)
            _check_loss(totals[0].item() / num_samples, epoch, step, bar)
    loss, accuracy = (totals / n).tolist()
    rate = run.optimizer.param_groups[0]["lr"]
    return {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy, "lr": rate}


def _train_step(run: _Run, step: int, batch: Tensor) -> Tensor:
    inputs, targets = run.data.inputs[batch], run.data.targets[batch]
    if run.augmentation is not None:
        inputs = run.augmentation(inputs, run.generator("augmentation", step))
    run.seed_layers(step)
    run.set_learning_rates(step)
    run.optimizer.zero_grad(set_to_none=True)
    outputs = _outputs(run.model, inputs, run.largest_label)
    loss = functional.cross_entropy(outputs, targets)
    loss.backward()
    run.optimizer.step()
    return _totals(loss.detach() * len(targets), outputs.detach(), targets)


def _totals(loss: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the summed loss and the number of correct predictions, shape (2,), float64."""
    hits = (outputs.argmax(dim=1) == targets).sum()
    return torch.stack([loss.double(), hits.double()])


def _check_loss(loss: float, epoch: int, step: int, bar: tqdm) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the training loss became {loss} in epoch {epoch + 1}, by step {step + 1}; lower "
            "lr, lengthen warmup_epochs, or look for undefined inputs"
        )
    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)


def _configuration(run: _Run, validation: Split | None) -> dict[str, Any]:
    """Describe all that the outcome depends on, in plain values."""
    return {
        "epochs": run.epochs,
        "batch_size": run.batch_size,
        "warmup_epochs": float(run.warmup_epochs),
        "seed": run.seed,
        "augment": _describe(run.augmentation),
        "optimizer": _describe_optimizer(run.optimizer),
        "data": _data_digest(run.data),
        "validation": None if validation is None else _data_digest(validation),
        "initial weights": _digest(run.model.state_dict()),
    }


def _save(
    run: _Run,
    path: Path,
    configuration: dict[str, Any],
    history: list[EpochRecord],
    seconds: float,
) -> None:
    state = {
        "configuration": configuration,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "history": history,
        "epoch": len(history),
        "step": len(history) * run.steps_per_epoch,
        "seconds": seconds,
    }
    checkpoints.save(state, path)


def _resume(
    run: _Run, path: Path, configuration: dict[str, Any]
) -> tuple[list[EpochRecord], float]:
    state = checkpoints.load(path)
    saved = state.get("configuration", {})
    different = [key for key, value in configuration.items() if saved.get(key) != value]
    if different:
        raise ValueError(
            f"the checkpoint {path} belongs to a run with other {', '.join(different)}; delete "
            "it, name another file, or run with what it was written with"
        )
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    return state["history"], state["seconds"]


def _make_optimizer(
    model: nn.Module,
    make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    if make is None:
        return torch.optim.SGD(
            model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
        )
    optimizer = make(model.parameters())
    return arguments.instance(
        "optimizer", optimizer, torch.optim.Optimizer, "that is to be returned"
    )


def _check_optimizer(make: object, lr: float, momentum: float, weight_decay: float) -> None:
    if make is None:
        return
    arguments.function("optimizer", make, "a function of the model's parameters")
    if (lr, momentum, weight_decay) != _DEFAULT_SGD:
        raise ValueError(
            "lr, momentum and weight_decay belong to the default optimizer; set them inside "
            "optimizer= instead"
        )


def _resolve_augmentation(augment: bool | Augmentation) -> Augmentation | None:
    if isinstance(augment, bool):
        return crop_and_flip if augment else None
    expected = "True, False or a function of inputs and a generator"
    arguments.function("augment", augment, expected)
    return augment


def _check_precision(model: nn.Module, split: Split) -> None:
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


def _largest_label(name: str, split: Split) -> int:
    """Return the largest class label of a split that is not empty."""
    arguments.instance(name, split, Split, "as paperkit.data.load returns")
    if len(split) == 0:
        raise ValueError(f"{name} is empty; give at least one sample")
    targets = f"{name}.targets"
    arguments.tensor(targets, split.targets, ndim=1, floating=False)
    low, high = (int(end) for end in split.targets.aminmax())
    if low < 0:
        raise ValueError(f"{targets} has labels from {low}: class labels count from 0.")
    return high


def _outputs(model: nn.Module, inputs: Tensor, largest_label: int) -> Tensor:
    """Return the model's outputs, one for each class at least."""
    outputs = called(model, inputs)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] <= largest_label:
        raise ValueError(
            f"model returned {arguments.shown(outputs)}: labels up to {largest_label} need "
            f"(n, C) outputs with C of at least {largest_label + 1}."
        )
    return outputs


def _describe(function: Any) -> str:
    if isinstance(function, functools.partial):
        keywords = sorted(function.keywords.items())
        return f"{_describe(function.func)}{function.args}{keywords}"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{name}"


def _describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    groups = [
        {key: len(value) if key == "params" else value for key, value in sorted(group.items())}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__qualname__} {groups}"


def _data_digest(split: Split) -> str:
    """Digest the targets and a few inputs; any other subset or scaling has another digest."""
    few = split.inputs[:: max(1, len(split) // 64)]
    return _digest({"inputs": few, "targets": split.targets})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _restore_modes(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _restore_generators(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
