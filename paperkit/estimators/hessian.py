r"""Trace, top eigenvalues and spectral density of the Hessian of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature import CurvatureOperator, HessianOperator, ResidualOperator
from paperkit.estimators.gradient_squares import parameter_gradient_squares
from paperkit.estimators.plan import PRODUCT, Gradient
from paperkit.estimators.result import Measurement
from paperkit.estimators.spectra import MAX_DENSE
from paperkit.linalg import density
from paperkit.linalg.eigenpairs import top_eigenpairs
from paperkit.linalg.probes import generator_of
from paperkit.linalg.quadrature import SpectralQuadrature, stochastic_lanczos_quadrature
from paperkit.linalg.traces import (
    TraceEstimate,
    hutch_plus_plus,
    hutchinson,
    xtrace,
)
from paperkit.linearize.linearize import linearize_in_chunks
from paperkit.memory import GIBIBYTE, MemoryBudgetError, chunk_sizes
from paperkit.network.losses import LossLike
from paperkit.network.network import own_parameters
from paperkit.network.problem import measure_of

TRACE_METHODS = ("auto", "exact", "split", "block_probes", "xtrace", "hutch++", "hutchinson")


def block_probe_trace(operator: CurvatureOperator, products: int, *, seed: int) -> TraceEstimate:
    r"""Estimate the trace of a mean over samples, each block of samples with probes of its own.

    Hutchinson's probes average over random vectors only; here the samples average as well. For the
    variance see :meth:`paperkit.curvature.CurvatureOperator.block_quadratic_forms`.

    Parameters
    ----------
    operator : CurvatureOperator
        A matrix on data and parameters.
    products : int
        k, at least 2: quadratic forms of every sample.
    seed : int
        Seed of the blocks and of the probes.

    Returns
    -------
    TraceEstimate
        The standard error comes from the spread within each block, k − 1 degrees of freedom each.

    Raises
    ------
    ValueError
        If fewer than two products are allowed.
    """
    products = arguments.integer("products", products, at_least=2, because="one has no spread")
    generator, blocks = generator_of(seed), _blocks(operator)
    forms = operator.block_quadratic_forms(products, generator, blocks=blocks)
    forms = forms / operator.num_samples
    error = (forms.var(dim=1).sum() / products).sqrt()
    return TraceEstimate(float(forms.sum(dim=0).mean()), float(error), products, "block_probes")


def _blocks(operator: CurvatureOperator) -> int:
    """Return how many blocks of samples have probes of their own, where one stream holds them."""
    return min(_MOST_BLOCKS, max(1, operator.num_samples // _BLOCK))


_ESTIMATORS: dict[str, Callable[..., TraceEstimate]] = {
    "xtrace": xtrace,
    "hutch++": hutch_plus_plus,
}
# Lanczos steps of a density, and the fewest where their vectors do not fit.
_STEPS, _FEWEST_STEPS = 50, 10
# Blocks of samples with probes of their own: passes over fewer samples leave the processor idle. So
# few blocks average less than what the eigenvalues of a few vectors' images explain.
_BLOCK, _MOST_BLOCKS, _FEWEST_BLOCKS = 32, 32, 8
# Vectors beside a Lanczos basis.
_BESIDE_BASIS = 5
_ADVICE = "pass fewer products=, with a wider error bar, or fewer samples"

# Vectors that XTrace and Hutch++ hold for each probe of their sketch: 7.5 measured.
_SKETCH_COPIES = 8


@measure_of
def hessian_trace(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
    *,
    method: str = "auto",
    products: int = 60,
    max_dense: int = MAX_DENSE,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return the trace of the Hessian (compression paper, equation 2; SA-SAM paper, equation 7).

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them, of any sizes; all samples count equally.
    loss : str
        A name from :data:`paperkit.network.LOSSES`; the value scales with it.
    parameters : sequence of str, optional
        Names from ``model.named_parameters()``; default all, biases included.
    method : str
        ``"exact"`` multiplies with every unit vector. ``"split"`` adds the trace of the
        Gauss–Newton part, which is exact from one linearization, to an estimate of the rest (all
        parameters only). The rest has no diagonal on parameters in which the outputs are piecewise
        linear; where these are all, as in a ReLU network, nothing is estimated and the result is
        exact. Else each block of samples gets probes of its own. ``"block_probes"`` estimates the
        whole in that way; ``"xtrace"``, ``"hutch++"`` and ``"hutchinson"`` estimate it from probes
        that all samples share.
        ``"auto"`` is exact up to ``max_dense`` parameters if that costs no more than ``products``
        or takes no second; else split where a linearization costs at most half as much as
        ``products`` and is deducted from them; else by block probes where several vectors share
        their passes, or XTrace, whose standard error is right in its order of magnitude only, where
        each vector has a pass of its own and half of ``products`` vectors fit the memory.
    products : int
        Products with the Hessian, or with its residual part, that an estimate may take.
    max_dense : int
        Where ``"auto"`` stops being exact, whatever the cost.
    seed : int
        Seed of the probes.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Measurement
        In units of the loss per squared parameter. PyHessian's ``trace`` is ``"hutchinson"``.

    Warns
    -----
    CostWarning
        Before the start, if the planned cost is above 5 seconds or 500 gradients.

    Raises
    ------
    ValueError
        If the method is unknown, too few products are allowed, or the data, or the vectors of
        ``"xtrace"`` and ``"hutch++"``, do not fit the memory.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import hessian_trace
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> _ = nn.init.ones_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> data = torch.ones(1, 1), torch.zeros(1, 1)  # the Hessian is [[1, 2], [2, 1]]
    >>> trace = hessian_trace(model, data, "half_squared_error")
    >>> round(float(trace), 4), trace.standard_error  # None: nothing was estimated
    (2.0, None)
    """
    method = arguments.choice("method", method, TRACE_METHODS)
    if method == "split" and parameters is not None:
        raise ValueError("method='split' is for all parameters: leave parameters=None.")
    half = max(1, memory_budget // 2)
    operator = HessianOperator(model, data, loss, parameters, memory_budget=half)
    gradient = Gradient.of(operator.model, operator.data, operator.loss)
    if method == "auto":
        method = _chosen_method(operator, gradient, products, max_dense, memory_budget)
        if method == "split" and parameters is None:
            try:
                part = _gauss_newton_part(operator, memory_budget)
            except ValueError:  # the network cannot be linearized, or a sample does not fit
                method = _without_parts(operator, products, memory_budget)
            else:
                spent = round(gradient.pairs(all_parameters=True) / PRODUCT)
                return _split_trace(operator, part, max(2, products - spent), seed)
    count = operator.dimension if method == "exact" else products
    pairs = gradient.pairs(all_parameters=True) if method == "split" else 0.0
    gradient.announce(f"hessian_trace, {method}", PRODUCT * count + pairs, _ADVICE)
    if method == "split":
        part = _gauss_newton_part(operator, memory_budget)
        return _split_trace(operator, part, products, seed)
    if method == "exact":
        value = float(_diagonal(operator, memory_budget // 2).sum())
        return _trace_measurement(operator, value, "exact")
    if method == "block_probes":
        estimate = block_probe_trace(operator, products, seed=seed)
    elif method == "hutchinson":
        estimate = hutchinson(operator, products, seed=seed, memory_budget=memory_budget // 2)
    else:
        if not _vectors_fit(operator, products, memory_budget):
            raise MemoryBudgetError(
                f"memory_budget={memory_budget} is too small for method={method!r}, which holds "
                f"{products // 2} vectors of {operator.dimension} entries and their images: take "
                "method='block_probes'."
            )
        kept = operator.graph_serves(products // 2)
        with (
            operator.cached() if kept else nullcontext(),
            gradient.progress(operator, products, method) as watched,
        ):
            estimate = _ESTIMATORS[method](watched, products, seed=seed)
    return _trace_measurement(operator, estimate.value, method, estimate)


def _chosen_method(
    operator: CurvatureOperator,
    gradient: Gradient,
    products: int,
    max_dense: int,
    memory_budget: int,
) -> str:
    """Choose a method of the trace by what it will cost."""
    dimension = operator.dimension
    if dimension <= max_dense and PRODUCT * dimension <= gradient.allowed(PRODUCT * products):
        return "exact"
    everything = dimension == sum(p.numel() for p in own_parameters(operator.model).values())
    # Products of the rest come from block probes, which take a pass for each block and probe.
    if everything and operator.shares_passes:
        pairs = gradient.pairs(all_parameters=True)
        if pairs <= 0.5 * PRODUCT * products:
            return "split"
    return _without_parts(operator, products, memory_budget)


def _without_parts(operator: CurvatureOperator, products: int, memory_budget: int) -> str:
    """Choose an estimator of the whole: of those that need only products."""
    averages = operator.shares_passes and _blocks(operator) >= _FEWEST_BLOCKS
    if averages or not _vectors_fit(operator, products, memory_budget):
        return "block_probes"
    return "xtrace"


def _vectors_fit(operator: CurvatureOperator, products: int, memory_budget: int) -> bool:
    vectors = _SKETCH_COPIES * (products // 2)
    return vectors * operator.dimension * operator.dtype.itemsize <= memory_budget // 2


def _trace_measurement(
    operator: CurvatureOperator,
    value: float,
    method: str,
    estimate: TraceEstimate | None = None,
    **assumptions: Any,
) -> Measurement:
    return Measurement(
        value=value,
        measure="hessian_trace",
        method=method,
        n=operator.num_samples,
        loss=operator.loss,
        standard_error=None if estimate is None else estimate.standard_error,
        probes=None if estimate is None else estimate.products,
        assumptions=assumptions,
    )


def _gauss_newton_part(
    operator: CurvatureOperator, memory_budget: int
) -> tuple[float, frozenset[str]]:
    """Return the trace of the Gauss–Newton matrix, and the parameters whose blocks are exact."""
    trace, exact_parameters = 0.0, frozenset(operator.parameter_names)
    stream = linearize_in_chunks(
        operator.model,
        operator.data,
        operator.loss,
        all_parameters=True,
        memory_budget=memory_budget,
    )
    for linearization, _ in stream:
        squares = parameter_gradient_squares(linearization, linearization.loss)
        trace += float(squares.sum()) / operator.num_samples
        exact_parameters &= linearization.exact_parameters
    return trace, exact_parameters


def _split_trace(
    operator: CurvatureOperator, part: tuple[float, frozenset[str]], products: int, seed: int
) -> Measurement:
    """Add the trace of the Gauss–Newton part to an estimate of what else has a diagonal."""
    known, exact_parameters = part
    left = [name for name in operator.parameter_names if name not in exact_parameters]
    if not left:
        return _trace_measurement(operator, known, "exact", gauss_newton_part=known)
    rest = ResidualOperator(
        operator.model, operator.data, operator.loss, left, memory_budget=operator.memory_budget
    )
    estimate = block_probe_trace(rest, products, seed=seed)
    value = known + estimate.value
    return _trace_measurement(operator, value, "split", estimate, gauss_newton_part=known)


def _diagonal(operator: CurvatureOperator, memory_budget: int) -> Tensor:
    """Return the diagonal (d,), float64, by products with unit vectors."""
    entries = []
    start = 0
    d = operator.dimension
    for count in chunk_sizes(d, 4 * d, operator.dtype, memory_budget):
        index = torch.arange(start, start + count, device=operator.device)
        unit = torch.zeros(count, d, dtype=operator.dtype, device=operator.device)
        unit.scatter_(1, index.unsqueeze(1), 1.0)
        entries.append(operator(unit).gather(1, index.unsqueeze(1)).squeeze(1).double())
        start += count
    return torch.cat(entries)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TopEigenvalues(Measurement):
    """The Hessian's top eigenvalues; ``float(result)`` is the first.

    Attributes
    ----------
    eigenvalues, residuals : Tensor
        Shape (k,), float64: an eigenvalue lies within the residual of each.
    vectors : Tensor
        Shape (k, d): unit vectors, in the order of ``parameter_names``.
    pair_converged : Tensor
        Shape (k,), bool.
    parameter_names : tuple of str
        The block's parameters.
    continuation : Tensor
        Shape (d,): start of a search at weights that differ little.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import hessian_top_eigenvalues
    >>> model = nn.Linear(2, 1, bias=False).double()
    >>> data = torch.diag(torch.tensor([3.0, 1.0])).double(), torch.zeros(2, 1).double()
    >>> top = hessian_top_eigenvalues(model, data, loss="half_squared_error")
    >>> round(float(top), 4), top.converged, float(top.residuals) < 1e-3  # 3²/2
    (4.5, True, True)
    >>> top.vectors.abs().round(decimals=3), top.parameter_names
    (tensor([[1., 0.]], dtype=torch.float64), ('weight',))
    """

    eigenvalues: Tensor
    residuals: Tensor
    vectors: Tensor
    pair_converged: Tensor
    parameter_names: tuple[str, ...]
    continuation: Tensor


@measure_of
def hessian_top_eigenvalues(
    model: nn.Module,
    data: object,
    k: int = 1,
    which: str = "algebraic",
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
    *,
    tolerance: float = 1e-4,
    max_products: int = 1000,
    seed: int = 0,
    start: TopEigenvalues | None = None,
    memory_budget: int = GIBIBYTE,
) -> TopEigenvalues:
    """Return the k top eigenvalues of the Hessian, with residuals (SA-SAM paper, Appendix A).

    Power iteration, which the paper uses, finds the eigenvalue of largest *magnitude*; away from a
    minimum that can be a negative one.

    Parameters
    ----------
    model, data, loss, parameters, seed, memory_budget
        As in :func:`hessian_trace`.
    k : int
        How many.
    which : str
        ``"algebraic"``: the largest ones; ``"magnitude"``: those of largest absolute value.
    tolerance : float
        Tolerance of the residual, relative to the largest magnitude seen.
    max_products : int
        Cap; ``converged=False`` where a pair has not met the tolerance by then, or, of several
        pairs, the search for further copies of them has not ended (``complete``).
    start : TopEigenvalues, optional
        Result for the same parameters at weights that differ little, such as a few steps earlier
        in training, from which the search goes on; see :func:`paperkit.linalg.top_eigenpairs`.

    Returns
    -------
    TopEigenvalues
        In units of the loss per squared parameter.

    Raises
    ------
    ValueError
        If a number is out of range or the data do not fit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import hessian_top_eigenvalues
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    >>> _ = nn.init.ones_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> data = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    >>> top = hessian_top_eigenvalues(model, data, k=2, loss="half_squared_error")
    >>> [round(value, 4) for value in top.eigenvalues.tolist()]  # of [[1, 2], [2, 1]]
    [3.0, -1.0]
    """
    operator = HessianOperator(
        model, data, loss, parameters, memory_budget=max(1, memory_budget // 2)
    )
    with operator.cached() as held:
        pairs = top_eigenpairs(
            operator,
            k,
            which,
            tolerance=tolerance,
            max_products=max_products,
            seed=seed,
            start=_continuation(start, operator.parameter_names),
            memory_budget=memory_budget - held,
        )
    first, distance = float(pairs.eigenvalues[0]), float(pairs.residuals[0])
    return TopEigenvalues(
        value=first,
        measure="hessian_top_eigenvalues",
        method="Lanczos",
        n=operator.num_samples,
        loss=loss,
        bracket=(first - distance, first + distance),
        converged=bool(pairs.converged.all()) and pairs.complete,
        assumptions={"which": which, "products": pairs.products, "complete": pairs.complete},
        eigenvalues=pairs.eigenvalues,
        residuals=pairs.residuals,
        vectors=pairs.vectors,
        pair_converged=pairs.converged,
        parameter_names=tuple(operator.parameter_names),
        continuation=pairs.continuation,
    )


def _continuation(start: TopEigenvalues | None, names: Sequence[str]) -> Tensor | None:
    if start is None:
        return None
    arguments.instance("start", start, TopEigenvalues, "an earlier result of this function")
    if start.parameter_names != tuple(names):
        raise ValueError(
            "start belongs to other parameters: pass a result for the same ones, or None."
        )
    return start.continuation


def _fitting_steps(operator: CurvatureOperator, steps: int | None, room: int) -> int:
    """Return how many Lanczos steps a probe takes, for whose basis there is room."""
    each = operator.dimension * operator.dtype.itemsize
    fitting = room // each - _BESIDE_BASIS
    wanted = min(_STEPS, operator.dimension) if steps is None else min(steps, operator.dimension)
    if wanted <= fitting:
        return wanted
    if steps is None and fitting >= _FEWEST_STEPS:
        return fitting
    least = _FEWEST_STEPS if steps is None else wanted
    raise MemoryBudgetError(
        f"memory_budget is too small for {least} Lanczos steps, whose basis takes "
        f"{least * each} bytes: {(least - fitting) * each} more hold it, or pass fewer steps."
    )


@dataclass(frozen=True)
class HessianDensity:
    """The density of the Hessian's eigenvalues, and what it was made from.

    Attributes
    ----------
    density : SpectralDensity
        Grid, values and standard errors.
    quadrature : SpectralQuadrature
        Nodes and weights; it gives the trace of any other function as well.
    n : int
        Samples.
    loss : str
        With its reduction.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import spectral_density
    >>> model = nn.Linear(2, 1, bias=False)
    >>> data = torch.diag(torch.tensor([2.0, 1.0])), torch.zeros(2, 1)
    >>> found = spectral_density(model, data, "half_squared_error", steps=2)
    >>> round(float(torch.trapezoid(found.density.value, found.density.grid)), 3)
    1.0
    >>> round(float(found.quadrature.trace(torch.square)), 3)  # the same products: 2² + ½²
    4.25
    """

    density: density.SpectralDensity
    quadrature: SpectralQuadrature
    n: int
    loss: str


@measure_of
def spectral_density(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
    *,
    grid: Tensor | None = None,
    width: float | None = None,
    probes: int = 10,
    steps: int | None = None,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> HessianDensity:
    r"""Estimate the density of the Hessian's eigenvalues, smoothed with a Gaussian.

    Parameters
    ----------
    model, data, loss, parameters, seed, memory_budget
        As in :func:`hessian_trace`.
    grid : Tensor, optional
        Points, (g,); default 500 from four widths below the smallest Ritz value to four above the
        largest.
    width : float, optional
        Standard deviation of the Gaussian; default a hundredth of the range of Ritz values.
    probes : int
        Probes of the stochastic Lanczos quadrature (Rényi paper, Algorithm 1).
    steps : int, optional
        Steps of each probe; default 50, or as many as a basis of so many vectors has room for, if
        that is ten at least. ``quadrature.steps`` tells.

    Returns
    -------
    HessianDensity
        As a fraction of all eigenvalues, per unit.

    Warns
    -----
    CostWarning
        Before the start, if the planned cost is above 5 seconds or 500 gradients.

    Raises
    ------
    ValueError
        If a number is out of range or the data do not fit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import spectral_density
    >>> model = nn.Linear(2, 1, bias=False)
    >>> data = torch.diag(torch.tensor([2.0, 0.0])), torch.zeros(2, 1)  # eigenvalues 2 and 0
    >>> grid = torch.tensor([0.0, 1.0, 2.0])
    >>> found = spectral_density(model, data, "half_squared_error", grid=grid, width=0.1, steps=2)
    >>> [round(value, 3) for value in found.density.value.tolist()]  # half of them at either end
    [1.995, 0.0, 1.995]
    """
    operator = HessianOperator(
        model, data, loss, parameters, memory_budget=max(1, memory_budget // 2)
    )
    gradient = Gradient.of(operator.model, operator.data, operator.loss)
    asked = _STEPS if steps is None else steps
    advice = "pass fewer probes= or steps="
    gradient.announce("spectral_density", PRODUCT * probes * asked, advice)
    alone = operator.suits_single_vectors
    kept = operator.graph_serves(1 if alone else probes)
    with operator.cached() if kept else nullcontext(memory_budget // 2) as held:
        room = memory_budget - held
        steps = _fitting_steps(operator, steps, room)
        with gradient.progress(operator, probes * steps, "spectral_density") as watched:
            quadrature = stochastic_lanczos_quadrature(
                watched,
                probes=probes,
                steps=steps,
                probes_at_once=1 if alone else None,
                seed=seed,
                memory_budget=max(1, room),
            )
    nodes = quadrature.gauss.nodes[quadrature.gauss.weights > 0]
    low, high = float(nodes.min()), float(nodes.max())
    if width is None:
        # A spectrum of a single point still needs a width.
        width = (high - low) / 100 or 0.01 * max(abs(high), 1.0)
    if grid is None:
        grid = torch.linspace(
            low - 4 * width, high + 4 * width, 500, dtype=torch.float64, device="cpu"
        )
    return HessianDensity(
        density.spectral_density(quadrature, grid, width),
        quadrature,
        operator.num_samples,
        str(loss),
    )
