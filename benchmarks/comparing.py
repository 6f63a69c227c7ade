"""Accuracy and time at equal products: the Hessian of other people's networks, with every tool.

Each tool gets the same number of Hessian products and is compared by two things: the error against
a reference, over several seeds, and the time in gradients. A first process trains the network and
computes the references; then each way runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.nn import functional

from benchmarks.measuring import (
    Settings,
    keep_freed_memory,
    memory,
    over_units,
    return_freed_memory,
    timed,
)
from benchmarks.networks import BY_NAME, Network, estimates, saved, trained
from benchmarks.problems import Problem
from benchmarks.quantities import OURS
from benchmarks.references import Reference, dimension, references
from paperkit.experiments.provenance import reset_peak_memory


@dataclass(frozen=True)
class Estimate:
    """Result of a call of a tool.

    Attributes
    ----------
    values : Tensor
        Product, trace, eigenvalues (the largest first), or nodes of a quadrature.
    products : int
        Number of Hessian products that the call took, as counted; ten backward passes for the rows
        of a Jacobian count as ten.
    weights : Tensor or None
        Weights of the nodes.
    """

    values: Tensor
    products: int
    weights: Tensor | None = None


Estimator = Callable[[int], Estimate]
NetworkWay = Callable[[Problem], Estimator]
"""Function from a problem to a function of the seed, which does all of the work."""


def error_of(quantity: str, estimate: Estimate, reference: Reference, seed: int) -> float:
    """Return the distance of an estimate from the reference, relative to the reference's size.

    For the density this is the Wasserstein-1 distance over the mean absolute eigenvalue.
    """
    values = estimate.values.detach().double().cpu().flatten()
    if quantity == "density":
        assert estimate.weights is not None
        weights = estimate.weights.detach().double().cpu().flatten()
        distance = wasserstein_distance(
            values.numpy(), reference.nodes.numpy(), weights.numpy(), reference.weights.numpy()
        )
        return float(distance) / reference.scale
    true = {
        "product": lambda: reference.products[seed],
        "trace": lambda: torch.tensor([reference.trace], dtype=torch.float64, device="cpu"),
        "top": lambda: reference.top,
    }[quantity]()
    return float((values - true).norm() / true.norm())


@dataclass
class Compared:
    """A row of the record.

    Attributes
    ----------
    network, quantity, tool : str
        Names of the network, of the quantity and of the tool.
    products : int or None
        Number of products as counted, the largest of all calls.
    errors : list of float
        Errors, one a seed; empty where the tool cannot do it.
    gradients, seconds : float or None
        Median time of a call, in gradients and in seconds.
    gradient_seconds : float or None
        Median time of a gradient, timed in turn with the calls.
    peak : int or None
        Bytes above the model and its data, of the first call.
    calls : int
        Number of timed calls; the first call is not timed.
    remark : str
        Message of the tool where it cannot do it.
    """

    network: str
    quantity: str
    tool: str
    products: int | None = None
    errors: list[float] = field(default_factory=list)
    gradients: float | None = None
    seconds: float | None = None
    gradient_seconds: float | None = None
    peak: int | None = None
    calls: int = 0
    remark: str = ""

    def record(self) -> dict[str, Any]:
        """Return the row as it is written down."""
        return asdict(self)


def prepare(name: str, folder: Path, settings: Settings) -> dict[str, Any]:
    """Train a network and save it with its references; return the facts for the page."""
    start = time.perf_counter()
    network = BY_NAME[name]
    problem = trained(network, settings.device)
    state = {"state": problem.model.state_dict()}
    state |= {"inputs": problem.inputs, "targets": problem.targets}
    torch.save(state, folder / "problem.pt")
    with torch.no_grad():
        loss = float(functional.cross_entropy(problem.model(problem.inputs), problem.targets))
    reference = references(network, problem)
    torch.save(reference.products, folder / "products.pt")
    parts = {key: value for key, value in vars(reference).items() if key != "products"}
    torch.save(parts, folder / "reference.pt")
    return {
        "name": name,
        "samples": network.samples,
        "parameters": dimension(problem.model),
        "steps": network.steps,
        "loss": loss,
        "trace": reference.trace,
        "trace_error": reference.trace_error,
        "top": reference.top.tolist(),
        "reference": network.reference,
        "density": list(network.density),
        "density_moved": reference.moved,
        "seconds": time.perf_counter() - start,
    }


def _load_reference(folder: Path, quantity: str) -> Reference:
    """Return the saved references; the products, which are long, only where they are needed."""
    products = torch.load(folder / "products.pt") if quantity == "product" else []
    return Reference(**torch.load(folder / "reference.pt"), products=products)


def _limit_memory() -> None:
    """Let an allocation fail that would exceed four fifths of the memory that is free now."""
    import psutil  # the device check, which does without, imports this module too

    used = psutil.Process().memory_info().vms
    limit = used + int(0.8 * psutil.virtual_memory().available)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def compare(
    module: str, name: str, quantity: str, tool: str, folder: Path, settings: Settings
) -> Compared:
    """Measure a way on a network; meant for a process of its own.

    The first call is not timed. A tool that raises is reported with its message.
    """
    network = BY_NAME[name]
    problem = saved(network, folder, settings.device)
    row = Compared(name, quantity, tool)
    reference = _load_reference(folder, quantity)
    seeds = min(estimates(network, quantity), settings.estimates)
    _limit_memory()
    try:
        estimator = import_module(module).NETWORKS[quantity][tool](problem)
        _fill_row(row, network, problem, estimator, reference, range(seeds), settings.device)
    except Exception as error:  # whatever another library raises is its answer
        problem.model.zero_grad()
        message = str(error).strip().splitlines() or [""]
        return Compared(name, quantity, tool, remark=f"{type(error).__name__}: {message[0][:160]}")
    return row


def _fill_row(
    row: Compared,
    network: Network,
    problem: Problem,
    estimator: Estimator,
    reference: Reference,
    seeds: Sequence[int],
    device: str,
) -> None:
    context = contextlib.nullcontext if row.tool.startswith(OURS) else network.helped

    def call(seed: int) -> tuple[float, Estimate]:
        with context():
            return timed(lambda: estimator(seed), device)

    Problem(problem.model, problem.inputs[:1], problem.targets[:1]).gradient()
    problem.model.zero_grad()
    return_freed_memory()
    reset_peak_memory(torch.device(device))
    before = memory(device)
    results = [call(seeds[0])[1]]
    row.peak = memory(device) - before
    keep_freed_memory()
    timed(problem.gradient, device)
    units, times = [timed(problem.gradient, device)[0]], []
    # Trials may ask for a single seed. Its second call is timed then.
    for seed in seeds[1:] or seeds:
        seconds, estimate = call(seed)
        times.append(seconds)
        results.append(estimate)
        units.append(timed(problem.gradient, device)[0])
    row.errors = [
        error_of(row.quantity, estimate, reference, seed)
        for seed, estimate in zip(seeds, results, strict=False)
    ]
    row.products = max(estimate.products for estimate in results)
    row.gradients = statistics.median(over_units(times, units))
    row.seconds = statistics.median(times)
    row.gradient_seconds = statistics.median(units)
    row.calls = len(times)


def root_mean_square(errors: Sequence[float]) -> tuple[float, float]:
    """Return the root mean square and its standard error over the seeds.

    The standard error of a single seed is infinite.
    """
    squares = np.square(np.asarray(errors, dtype=np.float64))
    value = math.sqrt(squares.mean())
    if len(squares) < 2:
        return value, math.inf
    if value == 0:
        return 0.0, 0.0
    return value, float(squares.std(ddof=1)) / (2 * value * math.sqrt(len(squares)))
