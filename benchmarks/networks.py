"""The trace, top eigenvalues and density of the Hessian on three networks that nobody here wrote.

Each tool gets the same number of Hessian products and is compared by two things: the error against
a reference, over several seeds, and the time in gradients. A first process trains the network for
a few steps, so that its spectrum is not that of the initial weights, and computes the references
in double precision; then each way runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import copy
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torchvision
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measuring import (
    Settings,
    keep_freed_memory,
    memory,
    over_units,
    return_freed_memory,
    timed,
)
from benchmarks.problems import Problem
from benchmarks.quantities import OURS, TOP_EIGENVALUES
from paperkit.data import load
from paperkit.experiments.provenance import reset_peak_memory
from paperkit.linalg.lanczos import lanczos

# --- the networks ----------------------------------------------------------------------------


class Recurrent(nn.Module):
    """An embedding, two layers of LSTM and a linear layer on the last state.

    Parameters
    ----------
    vocabulary, width, classes : int
        Tokens, dimensions of the embedding and of each state, outputs.
    """

    def __init__(self, vocabulary: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.recurrence = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.output = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (n, length) to outputs (n, classes)."""
        return self.output(self.recurrence(self.embedding(tokens))[0][:, -1])


LEVELS = 17
"""Levels of grey in the digits."""


def _images(digits: Tensor) -> Tensor:
    return functional.interpolate(digits, size=(32, 32), mode="bilinear").repeat(1, 3, 1, 1)


def _tokens(digits: Tensor) -> Tensor:
    """Return sixteen levels of grey, of 2 × 2 pixels each, row by row."""
    low, high = digits.min(), digits.max()
    grey = (functional.avg_pool2d(digits, 2) - low) / (high - low)
    return (grey * (LEVELS - 1)).round().long().flatten(1)


def _transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=4,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=10,
    )


@dataclass(frozen=True)
class Network:
    """One network, what it sees, and how its references are found.

    Attributes
    ----------
    name : str
        For a table.
    build : callable
        Returns it with initial weights.
    inputs : callable
        From digits (n, 1, 8, 8) to its inputs.
    samples : int
        n of the measured batch.
    steps, rate : int, float
        Of stochastic gradient descent on batches of 64, before anything is measured.
    estimates : int
        Seeds for each error, of which the trace takes all and the others at most four.
    reference : str
        How trace and density are found: ``"dense"`` writes the Hessian out; ``"exact trace"``
        takes the Gauss–Newton part for the trace, because the network is piecewise linear in each
        weight; ``"probes"`` adds an estimate of the rest.
    density : tuple of int
        Unless the reference is dense: how many of the largest eigenvalues it takes by themselves,
        at least those that are asked for, and probes and steps for the others.
    helped : callable
        A context in which PyTorch has second derivatives of the network. The other tools are called
        in it; this library and the unit are not.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Tensor], Tensor]
    samples: int
    steps: int
    rate: float
    estimates: int
    reference: str
    density: tuple[int, int, int] = (0, 0, 0)
    helped: Callable[[], AbstractContextManager] = contextlib.nullcontext


NETWORKS = (
    Network(
        name="ResNet-18 (torchvision)",
        build=lambda: torchvision.models.resnet18(num_classes=10),
        inputs=_images,
        samples=8,
        steps=60,
        rate=0.01,
        estimates=3,
        reference="exact trace",
        density=(5, 3, 24),
    ),
    Network(
        name="vision transformer (torchvision)",
        build=_transformer,
        inputs=_images,
        samples=8,
        steps=300,
        rate=0.03,
        estimates=10,
        reference="probes",
        density=(20, 8, 150),
        helped=lambda: sdpa_kernel(SDPBackend.MATH),
    ),
    Network(
        name="LSTM",
        build=lambda: Recurrent(LEVELS, width=16, classes=10),
        inputs=_tokens,
        samples=32,
        steps=1000,
        rate=0.1,
        estimates=10,
        reference="dense",
        helped=lambda: torch.backends.mkldnn.flags(enabled=False),
    ),
)
_BY_NAME = {network.name: network for network in NETWORKS}
FEWER_ESTIMATES = 4
"""Seeds at most for what is not the trace."""

REST_PROBES = 1000
"""Of the reference trace by probes, a product of each sample with each."""

_AT_ONCE = 32
"""Products by double backward that a reference takes together."""


def trained(network: Network, device: str) -> Problem:
    """Return the network after its steps, in evaluation mode, with the batch that is measured."""
    digits = load("digits", device=device).train
    inputs, targets = network.inputs(digits.inputs), digits.targets
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network.build().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=network.rate, momentum=0.9)
    order = torch.Generator(device="cpu").manual_seed(0)
    for _ in range(network.steps):
        batch = torch.randint(0, len(inputs), (64,), generator=order, device="cpu").to(device)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    model.zero_grad()
    n = network.samples
    return Problem(model.eval(), inputs[:n].clone(), targets[:n].clone())


def saved(network: Network, folder: Path, device: str) -> Problem:
    """Return what :func:`trained` returned in another process, as :func:`prepare` saved it."""
    model = network.build().to(device)
    kept = torch.load(folder / "problem.pt", map_location=device)
    model.load_state_dict(kept["state"])
    return Problem(model.eval(), kept["inputs"], kept["targets"])


def in_double_precision(problem: Problem) -> Problem:
    """Return a copy in float64; tokens stay what they are."""
    inputs = problem.inputs.double() if problem.inputs.is_floating_point() else problem.inputs
    return Problem(copy.deepcopy(problem.model).double(), inputs, problem.targets)


# --- the references --------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """What the tools are compared with; in double precision.

    Attributes
    ----------
    trace, trace_error : float
        Tr H, and its standard error; 0 where it is exact.
    top : Tensor
        The largest eigenvalues, to 1e-8 of the first.
    nodes, weights : Tensor
        Points and masses, of total mass 1, for the density of the eigenvalues.
    moved : float
        How far they are from those of half the Lanczos steps, as an error of the density; 0 where
        they are the whole spectrum.
    products : list of Tensor
        H times :func:`direction` of the first seeds.
    """

    trace: float
    trace_error: float
    top: Tensor
    nodes: Tensor
    weights: Tensor
    moved: float
    products: list[Tensor] = field(repr=False, default_factory=list)

    @property
    def scale(self) -> float:
        """The mean absolute eigenvalue, the unit of an error of the density."""
        return float((self.weights * self.nodes.abs()).sum())


def dimension(model: nn.Module) -> int:
    """Return d, the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def direction(model: nn.Module, seed: int) -> Tensor:
    """Return the same standard normal vector (d,) for all tools, of the precision it was drawn."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    vector = torch.randn(dimension(model), generator=generator, dtype=torch.float32, device="cpu")
    return vector.to(next(model.parameters()))


class DoubleBackward:
    """Products with the Hessian of a mean loss by double backward, through one retained graph.

    Parameters
    ----------
    loss : Tensor
        A scalar with its graph.
    model : nn.Module
        Whose parameters it is differentiated in.
    """

    def __init__(self, loss: Tensor, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.gradient = torch.autograd.grad(loss, self.parameters, create_graph=True)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Multiply with a vector (d,), or with k vectors (k, d), one after the other."""
        if vectors.ndim == 2:
            return torch.stack([self(vector) for vector in vectors])
        return self._products(vectors)

    def together(self, vectors: Tensor) -> Tensor:
        """Multiply with k vectors (k, d) in one vectorized pass."""
        return self._products(vectors, is_grads_batched=True)

    def _products(self, vectors: Tensor, **options: bool) -> Tensor:
        pieces = vectors.split(self.sizes, dim=-1)
        # A gradient that is constant in the parameters has no graph of its own.
        pairs = [
            (g, piece.reshape(*vectors.shape[:-1], *g.shape))
            for g, piece in zip(self.gradient, pieces, strict=True)
            if g.requires_grad
        ]
        found = torch.autograd.grad(
            [g for g, _ in pairs],
            self.parameters,
            [v for _, v in pairs],
            retain_graph=True,
            allow_unused=True,
            **options,
        )
        parts = [
            torch.zeros_like(piece) if part is None else part.reshape(piece.shape)
            for part, piece in zip(found, pieces, strict=True)
        ]
        return torch.cat(parts, dim=-1)


def hessian_of(problem: Problem) -> DoubleBackward:
    """Return the Hessian of the mean cross-entropy as a plain program multiplies with it."""
    outputs = problem.model(problem.inputs)
    return DoubleBackward(functional.cross_entropy(outputs, problem.targets), problem.model)


def dense(hessian: DoubleBackward, d: int) -> Tensor:
    """Write the Hessian out, (d, d)."""
    like = hessian.parameters[0]
    unit = torch.eye(d, dtype=like.dtype, device=like.device)
    matrix = torch.cat([hessian.together(rows) for rows in unit.split(_AT_ONCE)])
    return (matrix + matrix.T) / 2


def gauss_newton_trace(problem: Problem) -> float:
    r"""Return the trace of the Gauss–Newton matrix, exactly, by n C backward passes.

    For probabilities p of the classes, the Hessian of the loss in the outputs is
    :math:`\sum_c p_c (e_c - p)(e_c - p)^\top`.
    """
    total = 0.0
    parameters = list(problem.model.parameters())
    for sample in problem.inputs.split(1):
        outputs = problem.model(sample).squeeze(0)
        p = outputs.detach().softmax(dim=0)
        for c in range(len(p)):
            cotangent = functional.one_hot(torch.tensor(c, device=p.device), len(p)) - p
            rows = torch.autograd.grad(outputs, parameters, cotangent, retain_graph=True)
            total += float(p[c]) * sum(float(row.square().sum()) for row in rows)
    return total / len(problem.inputs)


def rests(problem: Problem) -> Iterator[DoubleBackward]:
    """Yield for each sample its Hessian without the Gauss–Newton part."""
    for sample, target in zip(problem.inputs.split(1), problem.targets.split(1), strict=True):
        outputs = problem.model(sample)
        residual = outputs.detach().softmax(dim=1) - functional.one_hot(target, outputs.shape[1])
        yield DoubleBackward((residual * outputs).sum(), problem.model)


def estimated_rest(problem: Problem, probes: int) -> tuple[float, float]:
    """Return the mean over samples of the trace of :func:`rests`, and its standard error.

    Each sample has random signs of its own, so that the errors of the samples average as well.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    like = next(problem.model.parameters())
    values, variances = [], []
    for rest in rests(problem):
        forms = []
        for start in range(0, probes, _AT_ONCE):
            shape = min(_AT_ONCE, probes - start), sum(rest.sizes)
            signs = torch.randint(0, 2, shape, generator=generator, device="cpu").to(like) * 2 - 1
            forms.append((signs * rest.together(signs)).sum(dim=1, dtype=torch.float64))
        found = torch.cat(forms)
        values.append(float(found.mean()))
        variances.append(float(found.var()) / probes)
    return statistics.mean(values), math.sqrt(sum(variances)) / len(values)


def refuse_a_diagonal(problem: Problem) -> None:
    """Raise a RuntimeError if the rest has a diagonal in one of some entries drawn at random."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    rest = next(rests(problem))
    for i in torch.randperm(len(rest.sizes), generator=generator, device="cpu")[:8].tolist():
        start = sum(rest.sizes[:i])
        entry = start + int(torch.randint(rest.sizes[i], (), generator=generator, device="cpu"))
        unit = torch.zeros(sum(rest.sizes), dtype=torch.float64, device=problem.inputs.device)
        unit[entry] = 1.0
        column = rest(unit)
        if float(column[entry].abs()) > 1e-10 * float(column.norm()):
            raise RuntimeError("the rest of the Hessian has a diagonal: its trace is not known.")


def converged_top(hessian: DoubleBackward, problem: Problem, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues and their vectors (count, d), by ARPACK.

    No tool's own iteration is its reference. An eigenvalue lies within the residual ‖H v − λ v‖ of
    λ, and within its square over the distance to the next; the product is taken anew for it. A
    RuntimeError if one that is asked for may be off by 1e-8 of the first.
    """
    like = next(problem.model.parameters())
    d = sum(hessian.sizes)

    def product(vector: np.ndarray) -> np.ndarray:
        return hessian(torch.from_numpy(vector.ravel()).to(like)).cpu().numpy()

    # One more, for the distance of the last.
    found, columns = eigsh(
        LinearOperator((d, d), matvec=product, dtype=np.float64),
        k=count + 1,
        which="LA",
        v0=direction(problem.model, 10**6).cpu().numpy(),
        tol=1e-6,
    )
    order = np.argsort(found)[::-1]
    values, vectors = found[order], columns[:, order].T
    for i in range(TOP_EIGENVALUES):
        residual = float(np.linalg.norm(product(vectors[i]) - values[i] * vectors[i]))
        gap = float(np.delete(np.abs(values - values[i]), i).min())
        if min(residual, residual**2 / max(gap, 1e-300)) > 1e-8 * values[0]:
            raise RuntimeError(f"eigenvalue {i + 1} of the reference has not converged.")
    return torch.from_numpy(values[:count].copy()), torch.from_numpy(vectors[:count].copy())


def references(network: Network, problem: Problem) -> Reference:
    """Return what the tools are compared with, from double backward passes in float64."""
    wide = in_double_precision(problem)
    d = dimension(wide.model)
    with network.helped():
        hessian = hessian_of(wide)
        vectors = [direction(wide.model, seed) for seed in range(_estimates(network, "product"))]
        products = [hessian(vector).cpu() for vector in vectors]
        if network.reference == "dense":
            matrix = dense(hessian, d)
            spectrum = torch.linalg.eigvalsh(matrix).cpu()
            return Reference(
                trace=float(matrix.trace()),
                trace_error=0.0,
                top=spectrum.flip(0)[:TOP_EIGENVALUES].clone(),
                nodes=spectrum,
                weights=torch.full_like(spectrum, 1 / d),
                moved=0.0,
                products=products,
            )
        trace, error = gauss_newton_trace(wide), 0.0
        if network.reference == "exact trace":
            refuse_a_diagonal(wide)
        else:
            # Here and for the density round-off is far below what the probes leave open.
            rest, error = estimated_rest(problem, REST_PROBES)
            trace += rest
        count, probes, steps = network.density
        values, vectors = converged_top(hessian, wide, count)
        del hessian
        nodes, weights, moved = quadrature(problem, values, vectors, probes, steps)
    top = values[:TOP_EIGENVALUES].clone()
    return Reference(trace, error, top, nodes, weights, moved, products)


def quadrature(
    problem: Problem, values: Tensor, vectors: Tensor, probes: int, steps: int
) -> tuple[Tensor, Tensor, float]:
    """Return nodes and weights for the density, and how far those of half the steps are from them.

    The largest eigenvalues, of which probes see little and each something else, are taken by
    themselves; the probes are for what is orthogonal to them.
    """
    hessian = hessian_of(problem)
    known = vectors.to(next(problem.model.parameters()))
    count, d = known.shape

    def others(rows: Tensor) -> Tensor:
        return rows - (rows @ known.T) @ known

    rules: list[list[tuple[Tensor, Tensor]]] = []
    for i in range(probes):
        start = others(direction(problem.model, 10**6 + i).sign().unsqueeze(0))
        (matrix,) = lanczos(lambda rows: others(hessian(rows)), start, steps).matrices().cpu()
        rules.append([torch.linalg.eigh(matrix[:m, :m]) for m in (len(matrix), len(matrix) // 2)])

    def rule(which: int) -> tuple[Tensor, Tensor]:
        nodes = [values, *(rules[i][which][0] for i in range(probes))]
        masses = [rules[i][which][1][0].square() * (1 - count / d) / probes for i in range(probes)]
        return torch.cat(nodes), torch.cat([torch.full_like(values, 1 / d), *masses])

    nodes, weights = rule(0)
    distance = wasserstein_distance(nodes, rule(1)[0], weights, rule(1)[1])
    return nodes, weights, float(distance / (weights * nodes.abs()).sum())


# --- what is compared ------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What one call of a tool found.

    Attributes
    ----------
    values : Tensor
        The product, the trace, the eigenvalues, largest first, or the nodes of a quadrature.
    products : int
        Hessian products that it took, as counted; ten backward passes for the rows of a Jacobian
        count as ten.
    weights : Tensor or None
        Of the nodes.
    """

    values: Tensor
    products: int
    weights: Tensor | None = None


Estimator = Callable[[int], Estimate]
NetworkWay = Callable[[Problem], Estimator]
"""From a problem to a function of the seed, which does all of the work."""


def _estimates(network: Network, quantity: str) -> int:
    return network.estimates if quantity == "trace" else min(network.estimates, FEWER_ESTIMATES)


def error_of(quantity: str, found: Estimate, reference: Reference, seed: int) -> float:
    """Return how far an estimate is from the reference, relative to the reference's size.

    For the density it is the Wasserstein-1 distance over the mean absolute eigenvalue.
    """
    values = found.values.detach().double().cpu().flatten()
    if quantity == "density":
        assert found.weights is not None
        weights = found.weights.detach().double().cpu().flatten()
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
    """One row of the record.

    Attributes
    ----------
    network, quantity, tool : str
        On what, what, and with what.
    products : int or None
        Counted; the most of one call.
    errors : list of float
        One a seed; empty where the tool cannot do it.
    gradients, seconds, gradient_seconds : float or None
        As in :class:`benchmarks.measuring.Measured`.
    peak : int or None
        Bytes above the model and its data, of the first call.
    calls : int
        Timed calls, the first left out.
    remark : str
        What the tool said where it cannot do it.
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
        """Return what is written down."""
        return asdict(self)


def prepare(name: str, folder: Path, settings: Settings) -> dict[str, Any]:
    """Train a network and save it with its references; return what the page says of them."""
    start = time.perf_counter()
    network = _BY_NAME[name]
    problem = trained(network, settings.device)
    kept = {"state": problem.model.state_dict()}
    kept |= {"inputs": problem.inputs, "targets": problem.targets}
    torch.save(kept, folder / "problem.pt")
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


def _reference(folder: Path, quantity: str) -> Reference:
    """Return the saved references; the products, which are long, only where they are needed."""
    products = torch.load(folder / "products.pt") if quantity == "product" else []
    return Reference(**torch.load(folder / "reference.pt"), products=products)


def _leave_memory_to_others() -> None:
    """Let an allocation fail that would exceed four fifths of the memory that is free now."""
    used = psutil.Process().memory_info().vms
    limit = used + int(0.8 * psutil.virtual_memory().available)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def compare(
    module: str, name: str, quantity: str, tool: str, folder: Path, settings: Settings
) -> Compared:
    """Measure one way on one network; meant for a process of its own.

    The first call is not timed; a tool that raises is reported with what it said.
    """
    network = _BY_NAME[name]
    problem = saved(network, folder, settings.device)
    row = Compared(name, quantity, tool)
    reference = _reference(folder, quantity)
    seeds = min(_estimates(network, quantity), settings.estimates)
    _leave_memory_to_others()
    try:
        estimator = import_module(module).NETWORKS[quantity][tool](problem)
        _fill(row, network, problem, estimator, reference, range(seeds), settings.device)
    except Exception as error:  # whatever another library raises is its answer
        problem.model.zero_grad()
        said = str(error).strip().splitlines() or [""]
        return Compared(name, quantity, tool, remark=f"{type(error).__name__}: {said[0][:160]}")
    return row


def _fill(
    row: Compared,
    network: Network,
    problem: Problem,
    estimator: Estimator,
    reference: Reference,
    seeds: Sequence[int],
    device: str,
) -> None:
    helped = contextlib.nullcontext if row.tool.startswith(OURS) else network.helped

    def call(seed: int) -> tuple[float, Estimate]:
        with helped():
            return timed(lambda: estimator(seed), device)

    Problem(problem.model, problem.inputs[:1], problem.targets[:1]).gradient()
    problem.model.zero_grad()
    return_freed_memory()
    reset_peak_memory(torch.device(device))
    before = memory(device)
    found = [call(seeds[0])[1]]
    row.peak = memory(device) - before
    keep_freed_memory()
    timed(problem.gradient, device)
    units, times = [timed(problem.gradient, device)[0]], []
    # A single seed is only for trials; it is then timed at its second call.
    for seed in seeds[1:] or seeds:
        seconds, estimate = call(seed)
        times.append(seconds)
        found.append(estimate)
        units.append(timed(problem.gradient, device)[0])
    row.errors = [
        error_of(row.quantity, estimate, reference, seed)
        for seed, estimate in zip(seeds, found, strict=False)
    ]
    row.products = max(estimate.products for estimate in found)
    row.gradients = statistics.median(over_units(times, units))
    row.seconds = statistics.median(times)
    row.gradient_seconds = statistics.median(units)
    row.calls = len(times)


def root_mean_square(errors: Sequence[float]) -> tuple[float, float]:
    """Return the root mean square and its standard error over the seeds, infinite for one."""
    squares = np.square(np.asarray(errors, dtype=np.float64))
    value = math.sqrt(squares.mean())
    if len(squares) < 2:
        return value, math.inf
    if value == 0:
        return 0.0, 0.0
    return value, float(squares.std(ddof=1)) / (2 * value * math.sqrt(len(squares)))
