r"""Information-geometric sharpness.

The measure (information-geometric paper, equation 6) is the mean over samples of
:math:`g_i^\top F^\dagger g_i`, with :math:`g_i` the gradient of sample i's loss and
:math:`F = \frac1n \sum_i J_i^\top \Lambda_i J_i` the Fisher matrix under the model's own labels,
both in all parameters. It is computed in the dual space of the samples. Let
:math:`R_i^\top R_i = \Lambda_i` with as few rows as the rank of :math:`\Lambda_i`, and stack the
:math:`G_i = R_i J_i` into G, so that :math:`F = G^\top G / n`. Each gradient is
:math:`g_i = G_i^\top a_i` with :math:`R_i^\top a_i = \partial\ell_i/\partial f_i`, hence

.. math:: g_i^\top F^\dagger g_i = n\, a_i^\top \Pi_{ii}\, a_i, \qquad
          \mathrm{IGS} = \sum_i a_i^\top \Pi_{ii}\, a_i \le \sum_i \|a_i\|^2 ,

Π the projector onto the range of G. For softmax cross-entropy :math:`a_i = -R_i e_{y}/p_{iy}` and
:math:`\|a_i\|^2 = 1/p_{iy} - 1 = e^{\ell_i} - 1`. So where G has full row rank, n(C−1), the measure
is :math:`\sum_i (e^{\ell_i} - 1)`, a function of the losses that knows nothing of the geometry.
The paper does not say so; in its Table 1 the networks for CIFAR-10 have more parameters than G has
rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature.dense import select_parameters
from paperkit.estimators.dual_gradients import DualGradients, dual_gradients
from paperkit.estimators.fisher_rows import (
    at_one_position,
    compressed_rows,
    precise_after_squaring,
    require_room,
    single_block,
    streamed_rows,
)
from paperkit.estimators.passes import PassMeasure, Problem
from paperkit.estimators.plan import CEILING, Gradient
from paperkit.estimators.result import Measurement
from paperkit.estimators.tolerances import (
    claimed_precision,
    computed_in,
    if_sensitive,
    moves,
    tolerances_around,
)
from paperkit.linalg.row_space import RowBlocks, default_tolerance, row_factors
from paperkit.linearize import Linearization, linearize
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import as_batch
from paperkit.network.evaluation import check_outputs, evaluation
from paperkit.network.footprint import FORWARD, Chunks
from paperkit.network.losses import Loss, LossLike
from paperkit.network.network import network_outputs, own_parameters
from paperkit.network.problem import measure_of

_NAME = "information_geometric_sharpness"
_ADVICE = "take fewer samples"

# Above this many nats exp overflows in float64.
_LARGEST_LOSS = 709.0
# Operations in single precision that one counts as, measured on one core: of forming the rows, of
# their Gram matrix, of factorizing the rows themselves, and of what follows on the small factor.
_FORMED, _GRAM, _ROWS, _FACTORS = 20.0, 2.0, 8.0, 40.0
# So many take about five seconds.
_SOME_SECONDS = 2e11


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class InformationGeometricSharpness(Measurement):
    r"""The sharpness with all that decides whether it says more than the losses do.

    Attributes
    ----------
    sample_terms : Tensor
        :math:`g_i^\top F^\dagger g_i`, (n,), float64, on the CPU; their mean is the measure.
    mean_gradient_term : float
        :math:`\bar g^\top F^\dagger \bar g` of the whole data set's gradient.
    rank, num_rows : int
        Rank and number of rows of G; at most n(C−1) rows.
    dimension : int
        Parameters.
    tolerance : float
        Relative to the largest singular value of G with its rows brought to one scale.
    upper_bound : float
        :math:`\sum_i \|a_i\|^2`: for cross-entropy :math:`\sum_i (e^{\ell_i} - 1)`.
    by_tolerance : mapping of float to float
        The value under a hundredth of the tolerance, the tolerance, and a hundred times it; empty
        for the damped measure, which has no threshold. No tolerance below ten units of round-off
        is tried.
    precision : float
        Relative precision that the value claims: half of the digits of the model's dtype. Where a
        value of ``by_tolerance`` differs by more, the rank is a choice: ``converged`` is False and
        ``assumptions`` holds them all.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import information_geometric_sharpness
    >>> model = nn.Linear(2, 3, bias=False).double()
    >>> _ = nn.init.zeros_(model.weight)
    >>> data = torch.ones(2, 2).double(), torch.tensor([0, 1])  # the same input twice
    >>> sharpness = information_geometric_sharpness(model, data)
    >>> sharpness.rank, sharpness.num_rows, sharpness.full_rank  # so it says more than the losses
    (2, 4, False)
    >>> round(sharpness.upper_bound, 4)
    4.0
    """

    sample_terms: Tensor
    mean_gradient_term: float
    rank: int
    num_rows: int
    dimension: int
    tolerance: float
    upper_bound: float
    by_tolerance: Mapping[float, float]
    precision: float

    @property
    def full_rank(self) -> bool:
        """Whether G has full row rank, so that the value is its upper bound."""
        return self.rank == self.num_rows

    @property
    def tolerance_sensitive(self) -> bool:
        """Whether the value moves by more than it claims within 100 times the tolerance."""
        return moves(self.value, self.by_tolerance, self.precision)

    @property
    def criterion(self) -> float:
        """The value over n, Takeuchi's criterion with the Fisher matrix for the Hessian."""
        return self.value / self.n


@dataclass(frozen=True)
class _Options:
    batch_size: int | None
    replacement: bool
    tolerance: float | None
    damping: float


@measure_of
def information_geometric_sharpness(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    *,
    batch_size: int | None = None,
    replacement: bool = False,
    tolerance: float | None = None,
    damping: float = 0.0,
    memory_budget: int = GIBIBYTE,
) -> InformationGeometricSharpness:
    r"""Return IGS, or its mini-batch form, over all parameters (equations 6 and 7).

    Source: information-geometric paper. The mini-batch form is not sampled: for uniform batches of
    size b it is :math:`c\,\mathrm{IGS} + (1-c)\,\bar g^\top F^\dagger \bar g`, with
    :math:`c = \frac{n-b}{b(n-1)}` without and :math:`c = 1/b` with replacement.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; F and the gradients come from all n samples.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    batch_size : int, optional
        b, from 1 to n; default 1, which is equation 6. The Fisher matrix is that of all data.
    replacement : bool
        Whether the samples of a mini-batch are drawn with replacement.
    tolerance : float, optional
        Size below which a singular value counts as zero in the rank of G, relative to the largest
        one with rows brought to one scale; default 100 √min(n(C−1), d) times the round-off of the
        model's dtype.
    damping : float
        If positive, :math:`(F + \lambda I)^{-1}` takes the place of :math:`F^\dagger`, λ being
        this fraction of the largest eigenvalue of F. Stable, but no longer invariant under
        reparametrization; the result says so in its ``method`` and ``assumptions``.
    memory_budget : int
        Bytes. A G with more rows than columns that does not fit is linearized a few samples at a
        time, and twice over.

    Returns
    -------
    InformationGeometricSharpness
        A value in full rank is the closed form :math:`\sum_i (e^{\ell_i} - 1)`, exact even where
        the losses span many orders of magnitude. Infinite where a loss exceeds 709 nats.
        ``converged=False`` where the singular values leave no gap around the tolerance, so that
        another one gives another value; ``assumptions["by_tolerance"]`` then holds the values.

    Raises
    ------
    ValueError
        If an argument is out of range, the data do not fit the model, or neither n(C−1) nor the
        number of parameters is small enough for the memory budget.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import information_geometric_sharpness
    >>> model = nn.Linear(2, 3, bias=False).double()
    >>> _ = nn.init.zeros_(model.weight)  # every loss is log 3
    >>> labels = torch.tensor([0, 1])
    >>> one, other = torch.eye(2).double(), torch.ones(2, 2).double()
    >>> round(float(information_geometric_sharpness(model, (one, labels))), 4)  # Σ (e^ℓ − 1)
    4.0
    >>> round(float(information_geometric_sharpness(model, (other, labels))), 4)
    2.0
    """
    options = _Options(batch_size, replacement, tolerance, damping)
    select_parameters(own_parameters(model), None)
    inputs, targets = as_batch(data)
    _batch_weight(len(inputs), batch_size, replacement)
    dimension = sum(parameter.numel() for parameter in model.parameters())
    outputs = _outputs(model, (inputs, targets), memory_budget)
    # A single sample tells the number of rows; the factors of all are large at a thousand outputs.
    rows = len(outputs) * dual_gradients(outputs[:1], targets[:1], loss).num_rows
    require_room(rows, dimension, memory_budget)
    dual = dual_gradients(outputs, targets, loss)
    gradient = Gradient.of(model, (inputs, targets), loss)
    if dual.num_rows <= dimension:
        linearization = linearize(
            model,
            inputs,
            loss,
            targets=targets,
            all_parameters=True,
            memory_budget=memory_budget,
        )
        gradient.announce(_NAME, _work(linearization, dual) / gradient.operations, _ADVICE)
        return _from_linearization(linearization, dual, options)
    gradient.announce(_NAME, _work_of_rows(dual.num_rows, dimension) / gradient.operations, _ADVICE)
    row_blocks = streamed_rows(
        dual.factor, dimension, model, (inputs, targets), loss, memory_budget
    )
    return _sharpness(row_blocks, dual, loss, dimension, computed_in(outputs, model), options)


def information_geometric_sharpness_from(
    linearization: Linearization,
    targets: Tensor,
    *,
    batch_size: int | None = None,
    replacement: bool = False,
    tolerance: float | None = None,
    damping: float = 0.0,
) -> InformationGeometricSharpness:
    """Return the same from a linearization in all parameters.

    Parameters
    ----------
    linearization : Linearization
        Made with ``all_parameters=True``.
    targets : Tensor
        Labels (n,), or (n, C) for the squared errors.
    batch_size, replacement, tolerance, damping
        As in :func:`information_geometric_sharpness`.

    Raises
    ------
    ValueError
        As :func:`information_geometric_sharpness`, with the linearization's memory budget.
    """
    dual = dual_gradients(linearization.outputs, targets, linearization.loss)
    require_room(dual.num_rows, linearization.num_parameters, linearization.memory_budget)
    options = _Options(batch_size, replacement, tolerance, damping)
    return _from_linearization(linearization, dual, options)


def _from_linearization(
    linearization: Linearization, dual: DualGradients, options: _Options
) -> InformationGeometricSharpness:
    dimension, dtype = linearization.num_parameters, linearization.computed_in
    if dual.num_rows <= dimension:
        tolerance = _tolerance(options.tolerance, dual.num_rows, dimension, dtype)
        finest = min(tolerances_around(tolerance, dtype))
        row_blocks = compressed_rows(linearization, dual.factor, finest)
    else:
        jacobian = torch.cat([block for _, block in linearization.jacobian_blocks()], dim=2)
        row_blocks = single_block(jacobian, dual.factor)
    return _sharpness(row_blocks, dual, linearization.loss, dimension, dtype, options)


def information_geometric_sharpness_from_jacobian(
    jacobian: Tensor,
    outputs: Tensor,
    targets: Tensor,
    loss: LossLike = "cross_entropy",
    *,
    batch_size: int | None = None,
    replacement: bool = False,
    tolerance: float | None = None,
    damping: float = 0.0,
) -> InformationGeometricSharpness:
    """Return the same from a Jacobian in any coordinates, for small models.

    Parameters
    ----------
    jacobian : Tensor
        ∂f/∂θ, (n, C, d).
    outputs, targets : Tensor
        (n, C), and labels (n,) or (n, C).
    loss, batch_size, replacement, tolerance, damping
        As in :func:`information_geometric_sharpness`.

    Raises
    ------
    ValueError
        If the shapes do not fit, or an argument is out of range.
    """
    if jacobian.ndim != 3 or jacobian.shape[:2] != outputs.shape:
        raise ValueError(
            f"jacobian has shape {tuple(jacobian.shape)}: outputs of shape "
            f"{tuple(outputs.shape)} need (n, C, d)."
        )
    dual = dual_gradients(outputs, targets, loss)
    return _sharpness(
        single_block(jacobian, dual.factor),
        dual,
        loss,
        jacobian.shape[2],
        outputs.dtype,
        _Options(batch_size, replacement, tolerance, damping),
    )


def _outputs(model: nn.Module, data: object, memory_budget: int) -> Tensor:
    parts = []
    with evaluation(model) as parameters, torch.no_grad():
        chunks = Chunks(model, parameters, lambda sample: sample.bytes_of(FORWARD), memory_budget)
        for inputs, _ in chunks(data):
            parts.append(network_outputs(model, parameters, inputs))
            check_outputs(parts[-1], len(inputs))
    return torch.cat(parts)


# --- The projection of the gradients


@dataclass(frozen=True)
class _Projection:
    """a_iᵀ Π_ii a_i of each sample, (n,), and āᵀ Π ā of the sum of all gradients."""

    sample_parts: Tensor
    summed_part: float

    def combined(self, weight: float) -> float:
        """Return the weighted mean of IGS and of the whole gradient's term."""
        parts = (float(self.sample_parts.sum()), self.summed_part / len(self.sample_parts))
        # A part of weight zero may be infinite.
        return sum(
            part * w for part, w in zip(parts, (weight, 1.0 - weight), strict=True) if w != 0
        )


def _projections(
    row_blocks: RowBlocks,
    bases: Sequence[Callable[[Tensor, Tensor], Tensor]],
    dual: DualGradients,
) -> list[_Projection]:
    """Project on several bases in one pass over G."""
    n, r = dual.directions.shape
    shares = dual.directions.new_zeros(len(bases), n)
    summed: list[Tensor | float] = [0.0] * len(bases)
    halves = torch.exp(0.5 * dual.log_scales)
    start = 0
    for rows, scales in row_blocks():
        samples = slice(start, start + len(rows) // r)
        start = samples.stop
        for position, basis in enumerate(bases):
            columns = basis(rows, scales).unflatten(0, (-1, r))
            coordinates = torch.einsum("nrk,nr->nk", columns, dual.directions[samples])
            shares[position, samples] = coordinates.square().sum(dim=1)
            summed[position] = summed[position] + halves[samples] @ coordinates
    overflows = dual.log_scales > _LARGEST_LOSS
    parts = torch.where(overflows, torch.inf, torch.exp(dual.log_scales + torch.log(shares)))
    infinite = bool(overflows.any())
    return [
        _Projection(part, math.inf if infinite else float(torch.as_tensor(total).square().sum()))
        for part, total in zip(parts, summed, strict=True)
    ]


def _by_tolerance(
    row_blocks: RowBlocks, dual: DualGradients, tolerances: Sequence[float]
) -> dict[float, tuple[int, _Projection]]:
    """Return rank and projection at each tolerance; in full row rank, without projecting."""
    factors = row_factors(row_blocks)
    ranks = {tolerance: factors.rank(tolerance) for tolerance in tolerances}
    everything = dual.num_rows
    found = {everything: _Projection(dual.squared_norms, float(dual.squared_norms.sum()))}
    partial = {rank: tolerance for tolerance, rank in ranks.items() if rank < everything}
    if partial:
        bases = [factors.space(tolerance).basis for tolerance in partial.values()]
        found |= dict(zip(partial, _projections(row_blocks, bases, dual), strict=True))
    return {tolerance: (rank, found[rank]) for tolerance, rank in ranks.items()}


def _batch_weight(n: int, batch_size: int | None, replacement: bool) -> float:
    """Return the weight of IGS in the mini-batch measure."""
    b = 1
    if batch_size is not None:
        most, reason = None if replacement else n, f"there are {n} samples"
        b = arguments.integer("batch_size", batch_size, at_least=1, at_most=most, because=reason)
    return 1.0 / b if replacement or b == 1 else (n - b) / (b * (n - 1))


def _tolerance(asked: float | None, num_rows: int, dimension: int, dtype: torch.dtype) -> float:
    """Return the tolerance that was asked for, or the default."""
    if asked is not None:
        return arguments.number("tolerance", asked, above=0, below=1, because="it is relative")
    tolerance = default_tolerance(num_rows, dimension, dtype)
    if tolerance >= 1:
        raise ValueError(
            f"model computes in {dtype}, whose round-off hides all {num_rows} "
            "directions: measure model.double(), or pass a tolerance below 1."
        )
    return tolerance


def _sharpness(
    row_blocks: RowBlocks,
    dual: DualGradients,
    loss: Loss,
    dimension: int,
    dtype: torch.dtype,
    options: _Options,
) -> InformationGeometricSharpness:
    n = len(dual.directions)
    weight = _batch_weight(n, options.batch_size, options.replacement)
    tolerance = _tolerance(options.tolerance, dual.num_rows, dimension, dtype)
    arguments.number("damping", options.damping, at_least=0)
    assumptions: dict[str, object] = {}
    if options.batch_size is not None:
        assumptions = {"batch_size": options.batch_size, "replacement": options.replacement}
    by_tolerance: dict[float, float] = {}
    if options.damping > 0:
        factors = row_factors(row_blocks)
        rank = factors.space(tolerance).rank
        root, shift = factors.resolvent_root(options.damping)
        (projection,) = _projections(row_blocks, [lambda rows, scales: rows @ root], dual)
        assumptions |= {"damping": options.damping, "shift": shift / n, "invariant": False}
        method = "damped"
    else:
        at = _by_tolerance(row_blocks, dual, tolerances_around(tolerance, dtype))
        by_tolerance = {tolerance: found.combined(weight) for tolerance, (_, found) in at.items()}
        rank, projection = at[tolerance]
        method = "closed form" if rank == dual.num_rows else "projection"
    value, precision = projection.combined(weight), claimed_precision(dtype)
    steady = not moves(value, by_tolerance, precision)
    assumptions |= if_sensitive(steady, by_tolerance)
    return InformationGeometricSharpness(
        value=value,
        measure="information_geometric_sharpness",
        method=method,
        n=n,
        loss=loss,
        converged=steady,
        assumptions={"rank": rank, "num_rows": dual.num_rows, **assumptions},
        sample_terms=(n * projection.sample_parts).cpu(),
        mean_gradient_term=projection.summed_part / n,
        rank=rank,
        num_rows=dual.num_rows,
        dimension=dimension,
        tolerance=tolerance,
        upper_bound=float(dual.squared_norms.sum()),
        by_tolerance=by_tolerance,
        precision=precision,
    )


# --- The cost


def _work(linearization: Linearization, dual: DualGradients) -> float:
    """Return about how many operations in single precision the factorization takes."""
    m, dimension = dual.num_rows, linearization.num_parameters
    if m > dimension:
        return _work_of_rows(m, dimension)
    dtype = linearization.computed_in
    finest = min(tolerances_around(default_tolerance(m, dimension, dtype), dtype))
    once = [layer for layer in linearization.layers.values() if at_one_position(layer)]
    widths = sum(layer.weight_shape[0] for layer in once)
    others = dimension - sum(layer.num_parameters for layer in once)
    work = _FORMED * m * linearization.num_outputs * others
    work += _GRAM * m**2 * (widths + others) + _FACTORS * m**3
    return work if precise_after_squaring(m, finest) else work + _ROWS * m**2 * dimension


def _work_of_rows(num_rows: int, dimension: int) -> float:
    """Return the same where the rows themselves are factorized."""
    small, large = sorted((num_rows, dimension))
    return _ROWS * small**2 * large + _FACTORS * small**3


def _in_a_pass(linearization: Linearization, problem: Problem) -> InformationGeometricSharpness:
    targets = problem.pair[1]
    dual = dual_gradients(linearization.outputs, targets, linearization.loss)
    require_room(dual.num_rows, linearization.num_parameters, linearization.memory_budget)
    gradient = Gradient.of(problem.model, problem.data, problem.loss)
    planned = _work(linearization, dual) / gradient.operations
    _leave_out_where_dear(planned, gradient, problem)
    gradient.announce(_NAME, planned, _ADVICE)
    return _from_linearization(linearization, dual, _Options(None, False, None, 0.0))


def _beside_a_pass(problem: Problem) -> InformationGeometricSharpness:
    gradient = Gradient.of(problem.model, problem.data, problem.loss)
    dimension = sum(parameter.numel() for parameter in problem.model.parameters())
    work = _work_of_rows(gradient.num_samples * gradient.num_outputs, dimension)
    passes = 2.0 * gradient.pairs(all_parameters=True)
    _leave_out_where_dear(passes + work / gradient.operations, gradient, problem)
    return problem.own(information_geometric_sharpness)


def _leave_out_where_dear(planned: float, gradient: Gradient, problem: Problem) -> None:
    """Raise if nobody named the measure, and it costs more than one of many may."""
    most = max(gradient.allowed(CEILING), _SOME_SECONDS / gradient.operations)
    if problem.frugal and planned > most:
        raise ValueError(
            f"it factorizes the gradients of {gradient.num_samples} samples and all their labels, "
            f"about {planned:,.0f} gradients of the loss: name it in measures to have it computed, "
            "or take fewer samples."
        )


INFORMATION_GEOMETRIC_SHARPNESS = PassMeasure(
    _NAME, _in_a_pass, otherwise=_beside_a_pass, needs=("all_parameters",)
)
