"""The monitor: which measures are read at which step, and what they cost."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from paperkit import arguments
from paperkit.estimators import CostWarning, PassMeasure, Problem, Report
from paperkit.estimators.measure import named_measures
from paperkit.estimators.result import Result, flatten
from paperkit.estimators.tables import plain_table
from paperkit.memory import GIBIBYTE
from paperkit.monitor.budget import Account, deal
from paperkit.monitor.sinks import sinks_of
from paperkit.monitor.tasks import Subject, Task
from paperkit.network import Batches, Network, get_loss
from paperkit.network.losses import LossLike
from paperkit.network.network import Forward
from paperkit.optim import RandomState
from paperkit.optim.modules import KnownModules, PassWatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

DEFAULT_MEASURES = ("mean_loss", "parameter_norm", "hessian_top_eigenvalues", "hessian_trace")
"""Names of the measures that a monitor follows unless told otherwise."""

# Refusals in a row after which a measure is not asked for again.
_REFUSALS = 3


class MonitorWarning(UserWarning):
    """A measure could not be read; training goes on.

    Examples
    --------
    >>> import warnings
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.monitor import MonitorWarning, SharpnessMonitor
    >>> tokens = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
    >>> data = torch.tensor([[0, 1, 2], [2, 3, 4]]), torch.tensor([0, 1])
    >>> monitor = SharpnessMonitor(tokens, data, ["maximum_local_sensitivity"])
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     numbers = monitor.read()  # tokens have no derivative
    >>> [warning.category is MonitorWarning for warning in caught]
    [True]
    """


@dataclass(frozen=True)
class Reading:
    """The measures that were read at a step.

    Attributes
    ----------
    step : int
        Number of steps that training had taken.
    report : Report
        Results by measure; a measure that was refused is in ``report.missing``, and one that was
        postponed in neither.
    seconds : float
        Time that the reading took.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.monitor import SharpnessMonitor
    >>> model, data = nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1]))
    >>> monitor = SharpnessMonitor(model, data, ["mean_loss"])
    >>> numbers = monitor.read()
    >>> reading = monitor.readings[0]
    >>> reading.step, list(reading.report), reading.seconds > 0
    (0, ['mean_loss'], True)
    """

    step: int
    report: Report
    seconds: float


class SharpnessMonitor:
    """Follow measures of a network while it trains, at a bounded share of the time.

    Call :meth:`step` after each step of the optimizer. Every ``every`` steps measures are due, the
    cheap ones first; one is read where the time that training has earned for it suffices, and else
    put off to the next time. Measures that share a pass of linearization are read together. The
    search for the top eigenvalue goes on from where it ended at the last reading.

    Training stays bit for bit as it was: weights, gradients, modes, buffers, attributes of modules
    and random number generators are after a reading as they were before it. While one runs,
    :attr:`is_reading` is True, for hooks and metrics that count forward passes.

    Parameters
    ----------
    model : nn.Module
        Network that is trained; it is measured in evaluation mode.
    data : pair or iterable of pairs
        Samples on which it is measured, as for :func:`paperkit.estimators.measure`. A reading costs
        in proportion to their number.
    measures : sequence of str or PassMeasure, optional
        Names from ``paperkit.estimators.MEASURES``, or measures of your own; default
        :data:`DEFAULT_MEASURES`. Settings are those of :func:`paperkit.estimators.measure`.
    loss : str, nn.Module or callable
        Loss, as :func:`paperkit.network.get_loss` takes it.
    every : int
        Number of steps from one reading to the next.
    budget : float, optional
        Largest share of the whole time, training and readings together, that readings may take. A
        first reading waits until it fits. None sets no bound, and each is taken when it is due.
    log : object or list of objects, optional
        Places to write the numbers to: anything with ``.log(dict)``, a TensorBoard writer, a logger
        of Lightning, or a function of a dict.
    prefix : str
        First part of the names in ``log``, as in ``"sharpness/hessian_trace"``.
    layers : sequence of str, optional
        Restriction of the measures of single layers to these; default all.
    alpha : sequence of float
        Orders of the Rényi sharpness.
    seed : int
        Seed of every random choice, the same at each reading.
    memory_budget : int
        Bytes above the model and its data.
    forward : callable, optional
        Function ``(model, inputs) -> outputs``, for a model that is not called as
        ``model(inputs)``; see :class:`paperkit.network.Network`.

    Attributes
    ----------
    measures : tuple of str
        Names of the measures.
    readings : list of Reading
        All readings so far.
    steps : int
        Number of steps that training has taken.
    is_reading : bool
        Whether a reading is running.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range, a name is unknown, or model, data and
        loss do not fit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.monitor import SharpnessMonitor
    >>> model, data = nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1]))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> seen = []
    >>> monitor = SharpnessMonitor(
    ...     model, data, ["mean_loss", "hessian_trace"], every=2, budget=None, log=seen.append
    ... )
    >>> for _ in range(4):
    ...     optimizer.zero_grad()
    ...     nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    ...     _ = optimizer.step()
    ...     _ = monitor.step()
    >>> [reading.step for reading in monitor.readings], list(seen[0])
    ([2, 4], ['sharpness/mean_loss', 'sharpness/hessian_trace', 'sharpness/step'])
    >>> seen[1]["sharpness/mean_loss"] < seen[0]["sharpness/mean_loss"]
    True
    """

    def __init__(
        self,
        model: nn.Module,
        data: object,
        measures: Sequence[str | PassMeasure] | None = None,
        loss: LossLike = "cross_entropy",
        *,
        every: int = 50,
        budget: float | None = 0.1,
        log: object = None,
        prefix: str = "sharpness",
        layers: Sequence[str] | None = None,
        alpha: float | Sequence[float] = (0.5, 1.5),
        seed: int = 0,
        memory_budget: int = GIBIBYTE,
        forward: Forward | None = None,
    ) -> None:
        arguments.module("model", model)
        self.every = arguments.integer("every", every, at_least=1)
        if budget is not None:
            budget = arguments.number("budget", budget, above=0, below=1)
        self.budget = budget
        self.prefix = arguments.instance("prefix", prefix, str)
        self.readings: list[Reading] = []
        self.steps = 0
        self.is_reading = False
        self._sinks = sinks_of(log)
        self._known = KnownModules([model])
        if isinstance(measures, str):
            raise ValueError(f"measures={measures!r}: pass a list of names.")
        chosen = named_measures(DEFAULT_MEASURES if measures is None else measures)
        self.measures = tuple(chosen)
        self._trained = self._spent = 0.0
        self._left: float | None = None
        self._model = Network.of(model, forward)
        problem = Problem(
            self._model,
            Batches.of(data),
            get_loss(loss),
            layers,
            arguments.orders("alpha", alpha),
            seed=arguments.seed("seed", seed),
            memory_budget=arguments.memory_budget("memory_budget", memory_budget),
        )
        with self._reading():
            self._tasks = Subject(problem).tasks(chosen)

    # -- steps -----------------------------------------------------------------------------------

    def step(self, step: int | None = None) -> dict[str, float] | None:
        """Count a step of training, and read the measures that are due and affordable.

        Parameters
        ----------
        step : int, optional
            Number of steps that training has taken, for a loop that counts its own; default the
            next one. A smaller number than the last one is that of a run which goes on from an
            earlier step; its readings replace those from that step on.

        Returns
        -------
        dict or None
            Numbers by name, as they are logged; None where nothing was read.

        Raises
        ------
        TypeError, ValueError
            If the number is no integer, or negative.
        """
        before = self.steps
        self.steps = before + 1 if step is None else arguments.integer("step", step, at_least=0)
        if self.steps < before:
            before = self.steps - 1
            self.readings = [one for one in self.readings if one.step < self.steps]
        with self._clock_stopped():
            if self.steps // self.every == before // self.every:
                return None
            return self._take(self._affordable())

    def read(self) -> dict[str, float] | None:
        """Read all measures now, whatever they cost; the time counts as spent.

        Returns
        -------
        dict or None
            Numbers by name, as they are logged; None where nothing could be read.
        """
        with self._clock_stopped():
            return self._take(self._open_tasks())

    @property
    def share(self) -> float:
        """Share of the whole time so far that readings took; 0 before the first step."""
        whole = self._trained + self._spent
        return self._spent / whole if self._trained else 0.0

    @contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """Count the time since the last call as training, and none of the time inside."""
        if self._left is not None:
            self._trained += time.perf_counter() - self._left
        try:
            yield
        finally:
            # Training begins with the first step, however long ago the monitor was made.
            self._left = time.perf_counter() if self.steps else None

    def _open_tasks(self) -> list[Task]:
        return [task for task in self._tasks if task.refusals < _REFUSALS]

    def _available(self) -> float:
        """Return how many seconds readings may take now."""
        if self.budget is None:
            return math.inf
        return self.budget / (1 - self.budget) * self._trained - self._spent

    def _affordable(self) -> Iterator[Task]:
        """Yield the tasks whose purse holds their cost, the cheapest first."""
        tasks = sorted(self._open_tasks(), key=lambda task: task.account.cost)
        if self.budget is None:
            yield from tasks
            return
        accounts = [task.account for task in tasks]
        deal(self._available() - sum(max(0.0, account.purse) for account in accounts), accounts)
        for task in tasks:
            cost = task.account.cost
            if cost <= min(task.account.purse, self._available()):
                yield task
            else:
                task.account.postponed += 1

    def _take(self, tasks: Iterable[Task]) -> dict[str, float] | None:
        """Read tasks; keep and log their results."""
        results: dict[str, Result] = {}
        missing: dict[str, str] = {}
        spent = self._spent
        with warnings.catch_warnings():
            # The monitor's table shows the cost.
            warnings.simplefilter("ignore", CostWarning)
            for task in tasks:
                with self._reading(task.account):
                    found, lacking = task.read()
                results |= found
                missing |= lacking
                task.refusals = 0 if found else task.refusals + 1
        for name, reason in missing.items():
            warnings.warn(f"{name} at step {self.steps}: {reason}", MonitorWarning, stacklevel=4)
        if not results and not missing:
            return None
        ordered = {name: results[name] for name in self.measures if name in results}
        reading = Reading(self.steps, Report(ordered, missing), self._spent - spent)
        self.readings.append(reading)
        if not results:
            return None
        numbers = {f"{self.prefix}/{name}": value for name, value in _numbers(ordered)}
        numbers[f"{self.prefix}/step"] = self.steps
        for sink in self._sinks:
            sink(numbers, self.steps)
        return numbers

    @contextmanager
    def _reading(self, account: Account | None = None) -> Iterator[None]:
        """Run the model inside and leave everything as it was; the time counts as spent."""
        parameters = list(self._model.parameters())
        devices = {parameter.device for parameter in parameters}
        for device in devices:
            if device.type == "cuda":  # the kernels of the last step are training's time
                torch.cuda.synchronize(device)
        started = time.perf_counter()
        random_state = RandomState(devices)
        self.is_reading = True
        try:
            # Measures switch the modules to evaluation mode and back.
            watch = PassWatch(self._known, parameters, evaluation=True, switch=False)
            try:
                with watch.listening():
                    yield
            finally:
                watch.undo()
        finally:
            self.is_reading = False
            random_state.set()
            seconds = time.perf_counter() - started
            self._spent += seconds
            if account is not None:
                account.pay(seconds)

    # -- results ---------------------------------------------------------------------------------

    def frame(self) -> DataFrame:
        """Return a table with a row for each single result, and the step in its first column.

        Raises
        ------
        ModuleNotFoundError
            If pandas is not installed.
        """
        frames = [(reading.step, reading.report.frame()) for reading in self.readings]
        if not frames:
            frames = [(0, Report({}).frame())]
        import pandas

        table = pandas.concat([frame for _, frame in frames], ignore_index=True)
        table.insert(0, "step", [step for step, frame in frames for _ in range(len(frame))])
        return table

    def series(self) -> dict[str, tuple[list[int], list[float]]]:
        """Return the steps and values of each number, by its name without the prefix.

        Returns
        -------
        dict
            ``{"mean_loss": ([50, 100], [0.7, 0.4])}``; a measure of layers has an entry for each.
        """
        found: dict[str, tuple[list[int], list[float]]] = {}
        for reading in self.readings:
            for name, value in _numbers(reading.report.results):
                steps, values = found.setdefault(name, ([], []))
                steps.append(reading.step)
                values.append(value)
        return found

    def draw(self, thresholds: Mapping[str, Mapping[str, float]] | None = None) -> Figure:
        """Draw each measure against the step.

        Parameters
        ----------
        thresholds : mapping of str to mapping of str to float, optional
            Horizontal lines by measure, with their labels:
            ``{"hessian_top_eigenvalues": {"2 / step size": 20.0}}``.

        Returns
        -------
        Figure
            Figure of Matplotlib with a panel for each measure.

        Raises
        ------
        ValueError
            If there is no reading yet, or a threshold belongs to a measure that is not followed.
        """
        from paperkit.monitor.figure import draw

        thresholds = arguments.mapping("thresholds", thresholds or {}, "a mapping by measure")
        arguments.names("thresholds", list(thresholds), self.measures, at_least=0)
        if not self.readings:
            raise ValueError("draw: there is no reading yet; call step() in the loop, or read().")
        return draw(self.series(), self.measures, thresholds)

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for task in self._tasks:
            account = task.account
            for position, name in enumerate(task.names):
                shown = account if position == 0 else None  # the others share its time
                rows.append(
                    {
                        "measure": name,
                        "readings": account.readings,
                        "postponed": account.postponed,
                        "seconds": account.last if shown and account.readings else None,
                        "expected": account.cost if shown else None,
                    }
                )
        return rows

    def __repr__(self) -> str:
        bound = "no budget" if self.budget is None else f"budget {self.budget:.0%}"
        first = (
            f"SharpnessMonitor: {len(self.readings)} readings in {self.steps} steps, "
            f"{self.share:.1%} of the time ({bound})"
        )
        return "\n".join([first, plain_table(self._rows(), _COLUMNS), *self._notes()])

    def _notes(self) -> list[str]:
        notes = []
        for task in self._tasks:
            names = ", ".join(task.names)
            if task.refusals >= _REFUSALS:
                notes.append(f"not asked for any more, because it was refused each time: {names}")
            elif not task.account.readings and task.account.postponed:
                needed = task.account.cost * (1 / cast(float, self.budget) - 1)
                notes.append(
                    f"not read yet: {names}; a reading would take about {task.account.cost:.2g} s, "
                    f"which {needed:.2g} s of training pay for: raise budget=, pass fewer samples, "
                    "or call read()"
                )
        return notes

    # -- resuming --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the counts from which a resumed run goes on: steps and times, not the readings."""
        return {"steps": self.steps, "trained": self._trained, "spent": self._spent}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises
        ------
        KeyError
            If it has other entries.
        """
        self.steps = arguments.integer("steps", state_dict["steps"], at_least=0)
        self._trained, self._spent = float(state_dict["trained"]), float(state_dict["spent"])
        self._left = None

    # -- callbacks -------------------------------------------------------------------------------

    def lightning_callback(self) -> Any:
        """Return a callback for ``Trainer(callbacks=[...])`` of Lightning.

        It counts the optimizer's steps, writes to the trainer's loggers besides ``log``, and saves
        its counts with the trainer's checkpoints. With several processes the first one reads.

        Raises
        ------
        ModuleNotFoundError
            If Lightning is not installed.
        """
        from paperkit.monitor.lightning import lightning_callback

        return lightning_callback(self)

    def trainer_callback(self) -> Any:
        """Return a callback for ``Trainer(callbacks=[...])`` of Hugging Face's transformers.

        It counts the optimizer's steps, and adds the numbers to ``trainer.state.log_history``
        besides ``log``. With several processes the first one reads.

        Raises
        ------
        ModuleNotFoundError
            If transformers is not installed.
        """
        from paperkit.monitor.transformers import trainer_callback

        return trainer_callback(self)


_COLUMNS = ("measure", "readings", "postponed", "seconds", "expected")


def _numbers(results: Mapping[str, Result]) -> Iterator[tuple[str, float]]:
    """Yield all single values with their names, such as ``renyi_sharpness/conv1/0.5``."""
    for name, result in results.items():
        for one in flatten(result):
            parts = [name, one.layer, getattr(one, "alpha", None)]
            yield "/".join(str(part) for part in parts if part not in (None, "")), one.value
