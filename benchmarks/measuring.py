"""Time and peak memory of a way to compute a quantity, in a process of its own.

A process that did other work before would hide memory in what it already holds, so each
measurement gets a fresh process. The unit, a gradient, is timed in turn with the quantity, so that
a machine that slows down slows both.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.problems import PROBLEMS, Problem
from benchmarks.quantities import NETWORK_ESTIMATES, REFERENCE_BATCH
from paperkit.experiments.provenance import peak_memory, reset_peak_memory


@dataclass(frozen=True)
class Work:
    """A prepared way to compute a quantity.

    Attributes
    ----------
    action : callable
        Function that is timed.
    to_vector : callable
        Function from the action's result to a vector that must agree with the other tools'.
    count : float
        Number of times that a call of the action computes the quantity. A fraction means that all
        of it would take too long, and the time is extrapolated.
    remark : str
        Remark for the reader: the part that was extrapolated, or the way of a library's that this
        is.
    """

    action: Callable[[], Any]
    to_vector: Callable[[Any], Tensor] = lambda result: result
    count: float = 1.0
    remark: str = ""


Way = Callable[[Problem], Work]


@dataclass(frozen=True)
class Settings:
    """Settings of all measurements.

    Attributes
    ----------
    samples : int
        Number n of samples.
    device : str
        ``"cpu"`` or ``"cuda"``.
    repeats : int
        Smallest number of timed calls; a pair of untimed calls comes first.
    enough : float
        Seconds. Calls are repeated until they took this long together, but at most three times as
        often as ``repeats``.
    longest : float
        Seconds. If the first call took longer, a single further call is timed.
    batch : int
        Number of samples of an optimizer's step.
    steps : int
        Number of timed steps of an optimizer, after an untimed one.
    estimates : int
        Largest number of seeds for an error on other people's networks.
    """

    samples: int = 64
    device: str = "cpu"
    repeats: int = 3
    enough: float = 6.0
    longest: float = 15.0
    batch: int = REFERENCE_BATCH
    steps: int = 9
    estimates: int = NETWORK_ESTIMATES


@dataclass
class Measured:
    """A row of the record.

    Attributes
    ----------
    quantity, tool : str
        Names of the quantity and of the tool.
    gradients : float
        Time of the quantity, in gradients.
    seconds : float
        Time of the quantity, in seconds.
    gradient_seconds : float
        Seconds of a gradient, timed in turn with the quantity.
    peak : int
        Bytes above the model and its data, of the preparation and a call; on a GPU those of its
        allocator.
    calls : int
        Number of timed calls; the figures are medians.
    remark : str
        Remark of :class:`Work`.
    difference : float or None
        Norm of the difference from our result, relative to ours; None for ours.
    vector : ndarray
        Result of the way; compared, then dropped.
    """

    quantity: str
    tool: str
    gradients: float
    seconds: float
    gradient_seconds: float
    peak: int
    calls: int
    remark: str
    difference: float | None = None
    vector: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    def record(self) -> dict[str, Any]:
        """Return the row as it is written down, without the vector."""
        return {name: value for name, value in asdict(self).items() if name != "vector"}


def timed(action: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Run the action until the device has finished; return the seconds and what it returned."""
    start = time.perf_counter()
    result = action()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def over_units(times: Sequence[float], units: Sequence[float]) -> list[float]:
    """Return each time over the mean of the units before and after it."""
    return [2 * t / (u + v) for t, u, v in zip(times, units, units[1:], strict=False)]


def memory(device: str) -> int:
    """Return the peak so far in bytes: of the process, or of a GPU's allocator."""
    peak = peak_memory(torch.device(device))
    return peak["device" if device == "cuda" else "process"]


def return_freed_memory() -> None:
    """Tell the C library to give freed memory back at once, so that the peak is memory in use."""
    _tell_allocator(M_MMAP_THRESHOLD=(-3, 2**16))


def keep_freed_memory() -> None:
    """Tell the C library to keep memory that is freed, which keeps page faults out of timings."""
    _tell_allocator(M_MMAP_MAX=(-4, 0), M_TRIM_THRESHOLD=(-1, -1), M_TOP_PAD=(-2, 2**28))


def _tell_allocator(**settings: tuple[int, int]) -> None:
    """Pass parameters and values to GNU's C library; others stay as they are."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for name, (parameter, value) in settings.items():
            if library.mallopt(parameter, value) != 1:
                raise RuntimeError(f"the C library refuses {name}={value}")


def fresh_processes() -> ProcessPoolExecutor:
    """Return a pool in which each task has a process of its own, one after the other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.warm_up"])
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)


def measure(module: str, quantity: str, problem: str, tool: str, settings: Settings) -> Measured:
    """Measure a way; meant for a process of its own.

    Parameters
    ----------
    module : str
        Name of the module whose ``WAYS`` holds the way, under ``quantity`` and ``tool``.
    quantity, problem, tool : str
        Names of the quantity, of the problem and of the tool.
    settings : Settings
        Settings of the measurement.
    """
    setup = PROBLEMS[problem](settings.samples, settings.device)
    way: Way = import_module(module).WAYS[quantity][tool]
    # A gradient of a single sample loads threads and kernels before the memory is counted.
    Problem(setup.model, setup.inputs[:1], setup.targets[:1]).gradient()
    setup.model.zero_grad()
    return_freed_memory()
    reset_peak_memory(torch.device(settings.device))
    before = memory(settings.device)
    work = way(setup)
    first, result = timed(work.action, settings.device)
    peak = memory(settings.device) - before
    vector = work.to_vector(result).detach().flatten().to(device="cpu", dtype=torch.float64)
    del result
    keep_freed_memory()
    timed(setup.gradient, settings.device)
    least = most = 1
    if first <= settings.longest:
        timed(work.action, settings.device)
        least, most = settings.repeats, 3 * settings.repeats
    units, times = [timed(setup.gradient, settings.device)[0]], []
    while len(times) < least or (sum(times) < settings.enough and len(times) < most):
        times.append(timed(work.action, settings.device)[0])
        units.append(timed(setup.gradient, settings.device)[0])
    return Measured(
        quantity=quantity,
        tool=tool,
        gradients=statistics.median(over_units(times, units)) / work.count,
        seconds=statistics.median(times) / work.count,
        gradient_seconds=statistics.median(units),
        peak=peak,
        calls=len(times),
        remark=work.remark,
        vector=vector.numpy(),
    )
