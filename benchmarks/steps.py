"""The time of an optimizer's step beside the gradients that it asks for.

The closure is wrapped, so that it counts its calls and their time. The other time of the step is
the optimizer's own. Each optimizer gets a process of its own, as all measurements do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from benchmarks.measuring import (
    Settings,
    keep_freed_memory,
    memory,
    return_freed_memory,
    timed,
)
from benchmarks.problems import Problem, residual_network
from benchmarks.quantities import RENEWALS, STEP_KINDS
from paperkit.experiments.provenance import reset_peak_memory

Way = Callable[[nn.Module], Optimizer]
"""Makes an optimizer whose ``step(closure)`` takes all of the step's gradients."""


@dataclass
class MeasuredStep:
    """A row of the record.

    Attributes
    ----------
    quantity, tool : str
        Key of :data:`benchmarks.quantities.STEP_KINDS`, and name of the library.
    closures : int
        Number of calls of the closure in a step, counted.
    evaluations : int or None
        Number of gradients in the same step as the optimizer itself counts them; None where it does
        not.
    percent : float
        Time outside the closure over the time inside, in percent.
    outside, inside : float
        Seconds outside and inside the closure.
    first_outside : float
        Seconds outside the closure in the first step, which is not among the others.
    peak : int
        Bytes above the model and its data, of the first step; on a GPU those of its allocator.
    calls : int
        Number of timed steps; the figures are medians.
    difference : float or None
        Norm of the difference of the weights' first change from ours, relative to ours; None for
        ours and for steps without a counterpart.
    vector : ndarray
        Change of the weights in the first step; compared, then dropped.
    """

    quantity: str
    tool: str
    closures: int
    evaluations: int | None
    percent: float
    outside: float
    inside: float
    first_outside: float
    peak: int
    calls: int
    difference: float | None = None
    vector: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    def record(self) -> dict[str, Any]:
        """Return the row as it is written down, without the vector."""
        return {name: value for name, value in asdict(self).items() if name != "vector"}


class TimedClosure:
    """The closure of a batch, the mean cross-entropy, which counts its calls and their time."""

    def __init__(self, problem: Problem, optimizer: Optimizer) -> None:
        self._problem = problem
        self._optimizer = optimizer
        self.seconds = 0.0
        self.count = 0

    def __call__(self) -> Tensor:
        """Take one gradient; return the loss."""
        seconds, loss = timed(self._gradient, self._problem.inputs.device.type)
        self.seconds += seconds
        self.count += 1
        return loss

    def _gradient(self) -> Tensor:
        self._optimizer.zero_grad()
        loss = functional.cross_entropy(
            self._problem.model(self._problem.inputs), self._problem.targets
        )
        loss.backward()
        return loss.detach()

    def step(self) -> tuple[float, float, int]:
        """Take a step; return the seconds outside and inside, and the number of calls."""
        self.seconds, self.count = 0.0, 0
        device = self._problem.inputs.device.type
        seconds, _ = timed(lambda: self._optimizer.step(self), device)
        return seconds - self.seconds, self.seconds, self.count


def measure_step(module: str, quantity: str, tool: str, settings: Settings) -> MeasuredStep:
    """Measure the steps of an optimizer; meant for a process of its own.

    Parameters
    ----------
    module : str
        Name of the module whose ``STEPS`` holds the way, under ``quantity`` and ``tool``.
    quantity, tool : str
        Names of the kind of step and of the library.
    settings : Settings
        Settings of the measurement.

    Raises
    ------
    RuntimeError
        If a step was skipped, or two steps called the closure differently often.
    """
    setup = residual_network(settings.batch, settings.device)
    setup.model.train()
    way: Way = import_module(module).STEPS[quantity][tool]
    # A gradient of a single sample loads threads and kernels before the memory is counted.
    Problem(setup.model, setup.inputs[:1], setup.targets[:1]).gradient()
    setup.model.zero_grad()
    return_freed_memory()
    reset_peak_memory(torch.device(settings.device))
    before = memory(settings.device)
    optimizer = way(setup.model)
    closure = TimedClosure(setup, optimizer)
    start = _weights(setup.model)
    first_outside, _, _ = closure.step()
    peak = memory(settings.device) - before
    change = _weights(setup.model) - start
    keep_freed_memory()
    closure.step()
    steps = []
    for _ in range(min(settings.steps, RENEWALS) if _kind_renews(quantity) else settings.steps):
        counted = getattr(optimizer, "gradient_evaluations", None)
        steps.append(closure.step())
    if getattr(optimizer, "skipped_steps", 0) or len({count for _, _, count in steps}) > 1:
        raise RuntimeError(f"{quantity} of {tool}: its steps are not alike")
    outside, inside, counts = zip(*steps, strict=True)
    return MeasuredStep(
        quantity=quantity,
        tool=tool,
        closures=counts[0],
        evaluations=None if counted is None else optimizer.gradient_evaluations - counted,
        percent=100 * statistics.median(o / i for o, i, _ in steps),
        outside=statistics.median(outside),
        inside=statistics.median(inside),
        first_outside=first_outside,
        peak=peak,
        calls=len(steps),
        vector=change.double().cpu().numpy(),
    )


def _kind_renews(quantity: str) -> bool:
    return next(kind.renews for kind in STEP_KINDS if kind.key == quantity)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
