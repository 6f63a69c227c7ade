r"""Information-geometric sharpness, Takeuchi's criterion and the Fisher–Rao norm.

The information-geometric sharpness (information-geometric paper, equation 6) is the mean over
samples of :math:`g_i^\top F^\dagger g_i`, with :math:`g_i` the gradient of sample i's loss and
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature import dense_empirical_fisher, dense_hessian
from paperkit.curvature.dense import select_parameters
from paperkit.curvature.jacobian_products import JacobianProduct
from paperkit.estimators.baselines import exponential_losses, sample_losses
from paperkit.estimators.result import Measurement
from paperkit.linalg.gram import add_gram
from paperkit.linalg.row_space import (
    RowBlocks,
    default_tolerance,
    row_factors,
    triangular_factor,
)
from paperkit.linearize import Linearization, linearize
from paperkit.linearize.linearize import linearize_in_chunks
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import as_batch, batches
from paperkit.network.evaluation import check_outputs, evaluation
from paperkit.network.footprint import FORWARD, GRADIENT_GRAPH, TANGENT, Chunks, Footprint
from paperkit.network.losses import CrossEntropy, Loss, LossLike, fitted
from paperkit.network.network import Network, network_outputs, own_parameters
from paperkit.network.problem import measure_of, refuse_cut

CURVATURES = ("fisher", "hessian")
LABELS = ("model", "observed")

# Factors on the tolerance. A rank is claimed only where the singular values leave a gap as wide.
_SENSITIVITY = (1e-2, 1.0, 1e2)

# No tolerance below this is tried: it would count the round-off of the Jacobians themselves.
_FLOOR = 10.0

# Above this many nats exp overflows in float64.
_LARGEST_LOSS = 709.0

# Float64 copies of G that the factorizations hold at once.
_COPIES = 4


@dataclass(frozen=True)
class DualGradients:
    r"""Each sample's loss gradient in the rows of :math:`G_i = R_i J_i`.

    Attributes
    ----------
    factor : Tensor
        R, (n, r, C), float64.
    directions : Tensor
        b, (n, r), float64, with :math:`g_i = e^{s_i/2}\, G_i^\top b_i`.
    log_scales : Tensor
        s, (n,): the loss for cross-entropy, whose gradients would overflow without it; else zero.
    squared_norms : Tensor
        :math:`e^{s_i} \|b_i\|^2`, (n,): :math:`e^{\ell_i} - 1` for cross-entropy, 2ℓ for a squared
        error.
    """

    factor: Tensor
    directions: Tensor
    log_scales: Tensor
    squared_norms: Tensor

    @property
    def dual_vectors(self) -> Tensor:
        """a, (n, r), with g_i = G_iᵀ a_i."""
        return torch.exp(0.5 * self.log_scales).unsqueeze(1) * self.directions

    @property
    def num_rows(self) -> int:
        """The number of rows of G, n times r."""
        return self.directions.numel()


def dual_gradients(
    outputs: Tensor, targets: Tensor, loss: LossLike = "cross_entropy"
) -> DualGradients:
    """Write every sample's loss gradient in the rows of the Fisher factor.

    Parameters
    ----------
    outputs : Tensor
        (n, C); taken to float64 first.
    targets : Tensor
        Labels (n,), or (n, C) for the squared errors.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`. The squared errors count as Gaussian
        likelihoods: of unit variance for ``"half_squared_error"`` (derived here; the
        information-geometric paper's Appendix F was not at hand), of variance C/2 for ``"mse"``.

    Raises
    ------
    ValueError
        If the targets do not fit.
    """
    loss = fitted(loss, outputs, targets)
    logits = outputs.detach().to(torch.float64)
    if isinstance(loss, CrossEntropy) and loss.is_plain:
        targets = targets.long()
        factor = loss.hessian_factor(logits)
        losses = sample_losses(logits, targets)
        index = targets.view(-1, 1, 1).expand(-1, factor.shape[1], 1)
        column = factor.gather(2, index).squeeze(2)
        directions = -torch.exp(0.5 * losses).unsqueeze(1) * column
        return DualGradients(factor, directions, losses, exponential_losses(logits, targets))
    loss.likelihood()  # refuses a loss without one
    factor = loss.hessian_factor(logits, targets)
    right = loss.gradient(logits, targets).unsqueeze(2)
    directions = _solved(factor.transpose(1, 2), right).squeeze(2)
    return DualGradients(
        factor, directions, torch.zeros_like(directions[:, 0]), directions.square().sum(dim=1)
    )


def _solved(matrices: Tensor, right: Tensor) -> Tensor:
    """Solve for what lies in the range of each matrix.

    Raises
    ------
    ValueError
        If it does not, as far as round-off tells.
    """
    if matrices.shape[1] == matrices.shape[2]:
        return torch.linalg.solve(matrices, right)
    solution = torch.linalg.pinv(matrices) @ right
    missing = (matrices @ solution - right).flatten(1).norm(dim=1)
    if bool((missing > 1e-8 * right.flatten(1).norm(dim=1)).any()):
        raise ValueError(
            "outputs are so saturated that a loss gradient is not in the range of the Fisher "
            "matrix in double precision: use hard labels, one for each sample."
        )
    return solution


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
        Of G; at most n(C−1) rows.
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
        What the value claims, relative: half of the digits of the model's dtype. Where a value of
        ``by_tolerance`` differs by more, the rank is a choice: ``converged`` is False and
        ``assumptions`` holds them all.
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
        return _moves(self.value, self.by_tolerance, self.precision)

    @property
    def criterion(self) -> float:
        """The value over n, Takeuchi's criterion with the Fisher matrix for the Hessian."""
        return self.value / self.n


def _moves(value: float, by_tolerance: Mapping[float, float], precision: float) -> bool:
    """Whether a value depends on what counts as zero, to the given relative precision."""
    others = (other for other in by_tolerance.values() if other != value)
    return any(abs(other - value) > precision * abs(value) for other in others)


def _tolerances(tolerance: float, dtype: torch.dtype) -> list[float]:
    """Return a tolerance between its hundredth and its hundredfold, for a look at the gap."""
    floor = min(tolerance, _FLOOR * torch.finfo(dtype).eps)
    return [max(tolerance * factor, floor) for factor in _SENSITIVITY]


def _computed_in(model: nn.Module, result: Tensor) -> torch.dtype:
    """Return the format whose round-off a result of the model's passes carries."""
    return model.narrowest if isinstance(model, Network) else result.dtype


def _precision(dtype: torch.dtype) -> float:
    """Return half of a dtype's digits, what a projector on computed rows can claim."""
    return torch.finfo(dtype).eps ** 0.5


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
        What counts as zero in the rank of G, relative to its largest singular value with rows
        brought to one scale; default 100 √min(n(C−1), d) times the round-off of the model's dtype.
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
    """
    options = _Options(batch_size, replacement, tolerance, damping)
    select_parameters(own_parameters(model), None)
    inputs, targets = as_batch(data)
    _batch_weight(len(inputs), batch_size, replacement)
    dimension = sum(parameter.numel() for parameter in model.parameters())
    outputs = _outputs(model, (inputs, targets), memory_budget)
    # Of one sample, because the factors of all are many at a thousand outputs.
    rows = len(outputs) * dual_gradients(outputs[:1], targets[:1], loss).num_rows
    _require_room(rows, dimension, memory_budget)
    dual = dual_gradients(outputs, targets, loss)
    if dual.num_rows <= dimension:
        linearization = linearize(
            model,
            inputs,
            loss,
            targets=targets,
            all_parameters=True,
            memory_budget=memory_budget,
        )
        row_blocks = _compressed_rows(linearization, dual.factor)
    else:
        row_blocks = _streamed_rows(
            model, inputs, targets, loss, dual.factor, dimension, memory_budget
        )
    return _sharpness(row_blocks, dual, loss, dimension, _computed_in(model, outputs), options)


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
    dimension = linearization.num_parameters
    _require_room(dual.num_rows, dimension, linearization.memory_budget)
    if dual.num_rows <= dimension:
        row_blocks = _compressed_rows(linearization, dual.factor)
    else:
        jacobian = torch.cat([block for _, block in linearization.jacobian_blocks()], dim=2)
        row_blocks = _single_block(jacobian, dual.factor)
    return _sharpness(
        row_blocks,
        dual,
        linearization.loss,
        dimension,
        linearization.computed_in,
        _Options(batch_size, replacement, tolerance, damping),
    )


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
        _single_block(jacobian, dual.factor),
        dual,
        loss,
        jacobian.shape[2],
        outputs.dtype,
        _Options(batch_size, replacement, tolerance, damping),
    )


# ---------------------------------------------------------------------------------------------
# The rows of G, compressed or streamed
# ---------------------------------------------------------------------------------------------


def _require_room(num_rows: int, dimension: int, memory_budget: int) -> None:
    needed = 8 * _COPIES * min(num_rows, dimension) ** 2
    if needed > memory_budget:
        raise ValueError(
            f"memory_budget={memory_budget} is too small for {num_rows} rows and {dimension} "
            f"parameters: raise it to {needed}, or measure fewer samples."
        )


def _outputs(model: nn.Module, data: object, memory_budget: int) -> Tensor:
    parts = []
    with evaluation(model) as parameters, torch.no_grad():
        chunks = Chunks(model, parameters, lambda sample: sample.bytes_of(FORWARD), memory_budget)
        for inputs, _ in chunks(data):
            parts.append(network_outputs(model, parameters, inputs))
            check_outputs(parts[-1], len(inputs))
    return torch.cat(parts)


def _row_scales(factor: Tensor, squared_lengths: Tensor) -> Tensor:
    """Return Σ_c |R_jc| ‖∂f_c/∂θ‖ of each row of G, its length but for cancellation: (n r,)."""
    return (factor.abs() @ squared_lengths.sqrt().unsqueeze(2)).flatten()


def _compressed_rows(linearization: Linearization, factor: Tensor) -> RowBlocks:
    """Return a wide G as one block, rotated into as many columns as it has rows."""
    n, r, num_outputs = factor.shape
    squared_lengths = factor.new_zeros(n, num_outputs)
    gram = factor.new_zeros(n * r, n * r)

    def pieces() -> Iterator[Tensor]:
        for _, block in linearization.jacobian_blocks():
            for piece in block.split(max(n * r, 1), dim=2):
                yield piece.to(torch.float64)

    for jacobian in pieces():
        squared_lengths.add_(jacobian.square().sum(dim=2))
        add_gram(gram, (factor @ jacobian).flatten(0, 1))
    scales = _row_scales(factor, squared_lengths)
    rows = _gram_root(gram)
    if rows is None:
        # Gᵀ = Q T leaves the range of G to Tᵀ, and the lengths of its rows.
        rows = triangular_factor((factor @ jacobian).flatten(0, 1).T for jacobian in pieces()).T
    return lambda: [(rows, scales)]


def _gram_root(gram: Tensor) -> Tensor | None:
    """Return L with L Lᵀ the Gram matrix of which the lower half is given.

    Squaring a matrix costs digits of its small singular values. None where, with the rows at unit
    length, they would lose more than half of their digits: then G itself must be factorized.
    """
    lengths = gram.diagonal().sqrt()
    if not bool((lengths > 0).all()):
        return None
    unit = gram.tril() / (lengths.unsqueeze(1) * lengths)
    smallest = float(torch.linalg.eigvalsh(unit)[0])
    if smallest < len(gram) * torch.finfo(gram.dtype).eps ** 0.5:
        return None
    root, failed = torch.linalg.cholesky_ex(unit)
    return None if bool(failed) else lengths.unsqueeze(1) * root


def _rows(jacobian: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of G of some samples, with their scales."""
    jacobian = jacobian.to(torch.float64)
    scales = _row_scales(factor, jacobian.square().sum(dim=2))
    return (factor @ jacobian).flatten(0, 1), scales


def _single_block(jacobian: Tensor, factor: Tensor) -> RowBlocks:
    block = _rows(jacobian, factor)
    return lambda: [block]


def _streamed_rows(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    factor: Tensor,
    dimension: int,
    memory_budget: int,
) -> RowBlocks:
    """Return a tall G a few samples at a time, linearized anew at every pass unless it fits."""
    n, _, num_outputs = factor.shape
    size = max(1, memory_budget // (8 * _COPIES * num_outputs * dimension))
    data = list(zip(inputs.split(size), targets.split(size), strict=True))

    def one_pass() -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for linearization, _ in linearize_in_chunks(
            model, data, loss, all_parameters=True, memory_budget=memory_budget
        ):
            samples = slice(start, start + linearization.num_samples)
            start = samples.stop
            jacobian = torch.cat([block for _, block in linearization.jacobian_blocks()], dim=2)
            yield _rows(jacobian, factor[samples])

    if n > size:
        return one_pass
    rows = list(one_pass())
    return lambda: rows


# ---------------------------------------------------------------------------------------------
# The projection of the gradients
# ---------------------------------------------------------------------------------------------


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
    spaces = {tolerance: factors.space(tolerance) for tolerance in tolerances}
    everything = dual.num_rows
    found = {everything: _Projection(dual.squared_norms, float(dual.squared_norms.sum()))}
    partial = {space.rank: space for space in spaces.values() if space.rank < everything}
    if partial:
        projections = _projections(row_blocks, [space.basis for space in partial.values()], dual)
        found |= dict(zip(partial, projections, strict=True))
    return {tolerance: (space.rank, found[space.rank]) for tolerance, space in spaces.items()}


def _batch_weight(n: int, batch_size: int | None, replacement: bool) -> float:
    """Return the weight of IGS in the mini-batch measure."""
    b = 1
    if batch_size is not None:
        most, reason = None if replacement else n, f"there are {n} samples"
        b = arguments.integer("batch_size", batch_size, at_least=1, at_most=most, because=reason)
    return 1.0 / b if replacement or b == 1 else (n - b) / (b * (n - 1))


def _if_sensitive(steady: bool, by_tolerance: Mapping[float, float]) -> dict[str, object]:
    """Return what a result that depends on its tolerance says: its value at the others, rounded."""
    if steady:
        return {}
    rounded = {float(f"{key:.2g}"): float(f"{one:.6g}") for key, one in by_tolerance.items()}
    return {"by_tolerance": rounded}


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
    tolerance = options.tolerance
    if tolerance is None:
        tolerance = default_tolerance(dual.num_rows, dimension, dtype)
        if tolerance >= 1:
            raise ValueError(
                f"model computes in {dtype}, whose round-off hides all {dual.num_rows} "
                "directions: measure model.double(), or pass a tolerance below 1."
            )
    reason = "it is relative"
    tolerance = arguments.number("tolerance", tolerance, above=0, below=1, because=reason)
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
        at = _by_tolerance(row_blocks, dual, _tolerances(tolerance, dtype))
        by_tolerance = {tolerance: found.combined(weight) for tolerance, (_, found) in at.items()}
        rank, projection = at[tolerance]
        method = "closed form" if rank == dual.num_rows else "projection"
    value, precision = projection.combined(weight), _precision(dtype)
    steady = not _moves(value, by_tolerance, precision)
    assumptions |= _if_sensitive(steady, by_tolerance)
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


# ---------------------------------------------------------------------------------------------
# Takeuchi's criterion and the Fisher–Rao norm
# ---------------------------------------------------------------------------------------------


@measure_of
def takeuchi_information_criterion(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    *,
    curvature: str = "fisher",
    tolerance: float | None = None,
    max_dense: int = 2048,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return :math:`\frac1n \operatorname{Tr}(H^{-1} C)`, an estimate of the generalization gap.

    C is the uncentred second moment of the samples' gradients. Source: equation 9 of the
    information-geometric paper (Takeuchi 1976), on the empirical distribution; its limit should
    read n times the gap. It presumes n well above the number of parameters and an interior
    optimum.

    Parameters
    ----------
    model, data, loss, memory_budget
        As in :func:`information_geometric_sharpness`.
    curvature : str
        ``"fisher"`` puts the Fisher matrix for H, which makes the criterion IGS/n;
        ``"hessian"`` takes the loss Hessian itself, written out.
    tolerance : float, optional
        Relative; eigenvalues of H (singular values of G for ``"fisher"``) up to it are left out.
        Default d times the round-off of the dtype for ``"hessian"``.
    max_dense : int
        The largest number of parameters whose Hessian is written out.

    Returns
    -------
    Measurement
        ``assumptions`` holds the ``rank`` of the curvature; for ``"hessian"`` also how many of its
        eigenvalues are negative, where the criterion has no justification, and which share of
        Tr C lies outside its range and is left out.

    Raises
    ------
    ValueError
        If the curvature is unknown, the model too large, or the data do not fit.
    """
    curvature = arguments.choice("curvature", curvature, CURVATURES)
    if curvature == "fisher":
        sharpness = information_geometric_sharpness(
            model, data, loss, tolerance=tolerance, memory_budget=memory_budget
        )
        return Measurement(
            value=sharpness.criterion,
            measure="takeuchi_information_criterion",
            method=sharpness.method,
            n=sharpness.n,
            loss=loss,
            converged=sharpness.converged,
            assumptions={
                "curvature": curvature,
                "rank": sharpness.rank,
                **_if_sensitive(
                    sharpness.converged,
                    {key: one / sharpness.n for key, one in sharpness.by_tolerance.items()},
                ),
            },
        )
    dimension = sum(parameter.numel() for parameter in model.parameters())
    if dimension > max_dense:
        raise ValueError(
            f"model has {dimension} parameters, too many to write out their Hessian: use "
            f"curvature='fisher', or raise max_dense={max_dense}."
        )
    inputs, targets = as_batch(data)
    hessian = dense_hessian(model, inputs, targets, loss)
    moment = dense_empirical_fisher(model, inputs, targets, loss).to(torch.float64)
    dtype = _computed_in(model, hessian)
    if tolerance is None:
        tolerance = dimension * torch.finfo(dtype).eps
    eigenvalues, vectors = torch.linalg.eigh(hessian.to(torch.float64))
    sizes = eigenvalues.abs() / eigenvalues.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    spread = torch.einsum("ij,ik,kj->j", vectors, moment, vectors)
    trace = float(spread.sum())
    by_tolerance = {
        at: float((spread / eigenvalues)[sizes > at].sum()) / len(inputs)
        for at in _tolerances(tolerance, dtype)
    }
    kept, value = sizes > tolerance, by_tolerance[tolerance]
    steady = not _moves(value, by_tolerance, _precision(dtype))
    return Measurement(
        value=value,
        measure="takeuchi_information_criterion",
        method="dense",
        n=len(inputs),
        loss=loss,
        converged=steady,
        assumptions={
            "curvature": curvature,
            "rank": int(kept.sum()),
            "negative_eigenvalues": int((eigenvalues[kept] < 0).sum()),
            "outside_range": float(spread[~kept].sum()) / trace if trace > 0 else 0.0,
            **_if_sensitive(steady, by_tolerance),
        },
    )


@measure_of
def fisher_rao_norm(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    *,
    labels: str = "model",
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return the Fisher–Rao norm of the parameters, without a root.

    Under the model's own labels it is :math:`\theta^\top F \theta` (information-geometric paper,
    Section 3.2), under the observed ones the mean of :math:`\langle\theta, g_i\rangle^2` (Liang et
    al. 2019). Both need one product :math:`J_i\theta` a sample. For a bias-free network of L
    weight layers that is positively homogeneous in each, :math:`J_i\theta = L f_i`.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them, of any sizes; all samples count equally.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    labels : str
        ``"model"`` or ``"observed"``.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Measurement
        In the units of the loss squared for observed labels; every parameter counts, biases and
        normalisation included.

    Raises
    ------
    ValueError
        If ``labels`` is unknown or the data do not fit the model.
    """
    labels = arguments.choice("labels", labels, LABELS)
    if labels == "model":
        loss.likelihood()  # refuses a loss without one

    select_parameters(own_parameters(model), None)
    first, _ = next(iter(batches(data)))
    refuse_cut(model, first)
    terms = []
    with evaluation(model) as parameters, torch.no_grad():
        product = JacobianProduct(
            lambda values, inputs: network_outputs(model, values, inputs), parameters, parameters
        )

        def cost(sample: Footprint) -> float:
            fast = product.compare(first[: sample.fewest])
            return sample.bytes_of(TANGENT if fast else GRADIENT_GRAPH)

        for inputs, targets in Chunks(model, parameters, cost, memory_budget)(data):
            outputs, change = product(inputs)
            response = change.to(torch.float64)
            check_outputs(outputs, len(inputs))
            loss.check(outputs, targets)
            if labels == "model":
                curved = loss.hessian_product(outputs.to(torch.float64), response, targets)
                terms.append((response * curved).sum(dim=1))
            else:
                residuals = loss.gradient(outputs.to(torch.float64), targets)
                terms.append((residuals * response).sum(dim=1).square())
    values = torch.cat(terms)
    return Measurement(
        value=float(values.mean()),
        measure="fisher_rao_norm",
        method="exact",
        n=len(values),
        loss=loss,
        assumptions={"labels": labels},
    )
