r"""The Rényi sharpness of layers on so many samples that no Gram matrix fits.

A layer's Gauss–Newton block is :math:`G^\top G` with a row of G for each sample and each direction
of its outputs in which the loss is curved: 18,000 rows for 2,000 images of ten classes. All of them
are kept, and no eigenvalue problem of their size is solved: see :mod:`paperkit.linalg.deflated`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.estimators.layer_results import LayerResults, layer_results
from paperkit.estimators.plan import Gradient
from paperkit.estimators.renyi_plan import Settings
from paperkit.estimators.renyi_result import RenyiSharpness, from_spectrum
from paperkit.linalg.deflated import DeflatedQuadrature, deflated_quadrature
from paperkit.linalg.gram import gram_spectrum
from paperkit.linalg.quadrature import Estimate
from paperkit.linalg.symmetric import eigenpairs_of
from paperkit.linearize import linearize_in_chunks
from paperkit.linearize.blocks import Blocks
from paperkit.linearize.weights import chosen_weights
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import as_batch
from paperkit.network.losses import LossLike
from paperkit.network.problem import measure_of

_NAME = "deflated_renyi_sharpness"
_ADVICE = "pass a smaller rank=, fewer samples or fewer layers="

# A layer with a smaller matrix than so many times the rank is measured exactly, which costs less.
_EXACT = 5
# Neighbouring orders whose brackets help, because the entropy falls as the order rises.
_ORDERS = (0.5, 0.75, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0)
# Share of the rows' summed norms that is left out; it moves an entropy by a hundredth at most.
_DROP = 0.001
# So near the order 1 an entropy is no difference of two power sums.
_AT_ONE = 0.01
# Nats that a value may be off by without a word.
_CLAIMED = 0.01
# Units of round-off that a pass through a network leaves in its rows.
_UNITS = 10.0


@measure_of
def deflated_renyi_sharpness(
    model: nn.Module,
    data: object,
    alpha: float | Sequence[float] = (0.5, 1.5),
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    rank: int = 500,
    probes: int = 8,
    max_steps: int = 100,
    seed: int = 0,
    memory_budget: int = 4 * GIBIBYTE,
) -> LayerResults[RenyiSharpness] | LayerResults[dict[float, RenyiSharpness]]:
    r"""Return the Rényi sharpness −H_α of every layer on thousands of samples.

    As :func:`renyi_sharpness` (Rényi paper, Definition 2.1), for layers whose Hessian block is
    their Gauss–Newton block, and for as many samples as the rows of a layer fit the memory. The
    leading ``rank`` directions are exact, the rest is estimated by stochastic Lanczos quadrature,
    and what couples the two is bounded: the error is stated, in two parts.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; all n samples count equally.
    alpha : float or sequence of float
        An order or several, which share all work. Positive; α = 1 is the Shannon limit.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    layers : sequence of str, optional
        Module names; default every linear and convolution layer.
    rank : int
        Directions that are treated exactly. A layer whose smaller matrix has at most five times as
        many columns is measured exactly.
    probes : int
        Random vectors for the rest, at least 2.
    max_steps : int
        Lanczos steps at most; they end when the bracket is narrower than the standard error.
    seed : int
        Seed of the probes.
    memory_budget : int
        Bytes; rows may take half of them, n (C − 1) d_l entries for a layer under cross-entropy.

    Returns
    -------
    LayerResults
        A dict from layer to result for one order, from layer to order to result for several. The
        bracket holds the error of the quadrature and of the coupling, and where it exceeds a
        hundredth of a nat that of round-off in the rows; the standard error has the probes' noise.
        ``method`` is ``"gram"`` for an exact layer, which has no standard error.

    Warns
    -----
    CostWarning
        Before the start, if the planned cost is above 5 seconds or 500 gradients.
    LeftOutWarning
        If a layer is left out: its block is no Gauss–Newton block, or zero, or its rows do not fit.

    Raises
    ------
    ValueError
        If an order is not positive, the data do not fit the model, or a layer that is named cannot
        be measured.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import deflated_renyi_sharpness
    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> flat = torch.eye(2), torch.zeros(2, 1)  # the mean of x xᵀ has equal eigenvalues
    >>> found = deflated_renyi_sharpness(model, flat, 2.0, "half_squared_error")
    >>> round(float(found["0"]), 4)  # −log 2
    -0.6931
    """
    one = isinstance(alpha, int | float) or getattr(alpha, "ndim", 1) == 0
    orders = arguments.orders("alpha", (alpha,) if one else alpha)
    rank = arguments.integer("rank", rank, at_least=1)
    probes = arguments.integer("probes", probes, at_least=2, because="one has no standard error")
    max_steps = arguments.integer("max_steps", max_steps, at_least=1)
    inputs, targets = as_batch(data)
    blocks = Blocks(model, (inputs, targets), loss, layers, memory_budget=memory_budget)
    readable = [name for group in blocks.groups for name in group]
    few = blocks.linearization(readable, samples=2) if readable else None
    left_out = {
        name: f"it has no inputs and output Jacobians to make rows of ({block.obstacle})"
        for name, block in blocks.remaining().items()
    } | dict(blocks.shared())
    if few is None:
        return layer_results(_NAME, model, {}, [], left_out, strict=blocks.named)
    outputs = few.outputs[:1]
    each = blocks.loss.hessian_factor(outputs, blocks.data[1][:1]).shape[1]
    shapes: dict[str, tuple[int, int]] = {}
    for name, layer in few.layers.items():
        shape = len(inputs) * each, layer.num_parameters
        size = shape[0] * shape[1] * layer.hessian_factor.element_size()
        if not layer.exact_block:
            left_out[name] = f"its Hessian block is no Gauss–Newton block ({layer.obstacle})"
        elif size > memory_budget // 2:
            left_out[name] = (
                f"its rows take {size / GIBIBYTE:.1f} GiB, and half of memory_budget holds them: "
                f"raise it to {2 * size} or take fewer samples"
            )
        else:
            shapes[name] = shape
    weight_names = {name: few.layers[name].weight_name for name in shapes}
    groups = list(_groups(shapes, memory_budget // 2 // outputs.element_size()))
    del few
    gradient = Gradient.of(model, (inputs, targets), loss)
    work = sum(_work(shape, rank, probes, max_steps) for shape in shapes.values())
    cost = len(groups) * gradient.pairs() + work / gradient.operations
    gradient.announce(_NAME, cost, _ADVICE)
    results: dict[str, dict[float, RenyiSharpness]] = {}
    for group in groups:
        collected = _rows_of(blocks, group, memory_budget // 4)
        for name in group:
            common = {"n": len(inputs), "loss": loss, "layer": name}
            rows = collected.pop(name)
            if bool(rows.any()):
                results[name] = _of_rows(rows, orders, rank, probes, max_steps, seed, common)
            else:
                left_out[name] = "its Hessian block is zero"
            del rows  # which the next group would not fit beside
    measured = {name: results[name] for name in shapes if name in results}
    unpacked: Mapping = measured
    if one:
        unpacked = {name: by_order[orders[0]] for name, by_order in measured.items()}
    parameters = [weight_names[name] for name in measured]
    return layer_results(_NAME, model, unpacked, parameters, left_out, strict=blocks.named)


def _work(shape: tuple[int, int], rank: int, probes: int, max_steps: int) -> float:
    """Return the most operations that the rows of a layer take, beside those that form them."""
    small, large = sorted(shape)
    if small <= _EXACT * rank:
        return 2.0 * small**2 * large
    return 2.0 * small * large * (4 * rank + 4 * probes * max_steps)


def _groups(shapes: Mapping[str, tuple[int, int]], room: int) -> Iterator[list[str]]:
    """Yield groups of layers whose rows fit, the last layers first: their passes are short."""
    group: list[str] = []
    left = room
    for name in reversed(list(shapes)):
        size = math.prod(shapes[name])
        if group and size > left:
            yield group
            group, left = [], room
        group.append(name)
        left -= size
    if group:
        yield group


def _rows_of(blocks: Blocks, group: Sequence[str], memory_budget: int) -> dict[str, Tensor]:
    """Return the rows G of some layers on all samples."""
    n = len(blocks.data[0])
    names = {blocks.weights[name].parameter: name for name in group}
    # A tied weight is linearized under all its names.
    layers = [
        name
        for name, weight in chosen_weights(blocks.model).items()
        if weight.obstacle is None and weight.parameter in names
    ]
    found: dict[str, Tensor] = {}
    start = 0
    for chunk, _ in linearize_in_chunks(
        blocks.model, blocks.data, blocks.loss, layers, strict=False, memory_budget=memory_budget
    ):
        for layer in chunk.layers.values():
            name = names[layer.weight_name]
            if not layer.exact_block:
                raise ValueError(
                    f"layers: {name} cannot be measured: its Hessian block is no Gauss–Newton "
                    f"block for all samples ({layer.obstacle})."
                )
            rows = _turned(layer.rows(), chunk.num_samples)
            each = len(rows) // chunk.num_samples
            if name not in found:
                found[name] = rows.new_empty(n * each, rows.shape[1])
            into = found[name][start * each : start * each + len(rows)]
            torch.mul(rows, n**-0.5, out=into)
        start += chunk.num_samples
    return found


def _turned(rows: Tensor, num_samples: int) -> Tensor:
    """Turn the rows of each sample among themselves until they are orthogonal.

    That changes no eigenvalue, and makes the small rows as small as they can be.
    """
    by_sample = rows.unflatten(0, (num_samples, -1))
    gram = torch.bmm(by_sample, by_sample.transpose(1, 2))
    turns = eigenpairs_of(gram.double())[1].to(rows.dtype)
    return torch.bmm(turns.transpose(1, 2), by_sample).flatten(0, 1)


def _of_rows(
    rows: Tensor,
    orders: Sequence[float],
    rank: int,
    probes: int,
    max_steps: int,
    seed: int,
    common: dict,
) -> dict[float, RenyiSharpness]:
    num_rows, dimension = rows.shape
    if min(rows.shape) <= _EXACT * rank:
        step = max(1, 2**24 // max(rows.shape))
        pieces = rows.split(step) if dimension <= num_rows else rows.split(step, dim=1)
        spectrum = gram_spectrum(pieces, num_rows, dimension)
        settings = Settings(tuple(orders), "abs", "exact", None, None, 0, seed, 0, 0)
        by_order = from_spectrum(spectrum, settings, common, {"exact_block": True})
        return {order: replace(result, method="gram") for order, result in by_order.items()}
    move = _UNITS * torch.finfo(rows.dtype).eps
    found = deflated_quadrature(
        rows,
        rank=rank,
        alpha=orders,
        probes=probes,
        max_steps=max_steps,
        seed=seed,
        drop=_DROP,
        overwrite=True,
    )
    return {
        order: _estimated(found, order, move, min(num_rows, dimension), common) for order in orders
    }


def _estimated(
    found: DeflatedQuadrature, order: float, move: float, size: int, common: dict
) -> RenyiSharpness:
    entropy = entropy_of(found, order)
    assert entropy.bracket is not None
    low, high = entropy.bracket
    noise = _round_off(found, order, move, size)
    noted = {}
    if noise > _CLAIMED:
        low, high = low - noise, high + noise
        noted = {"bracket_of": "quadrature, coupling, and round-off in the model's passes"}
    rest = found.rest
    return RenyiSharpness(
        value=-entropy.value,
        measure="renyi_sharpness",
        method="deflated",
        standard_error=entropy.standard_error,
        bracket=(-high, -low),
        probes=0 if rest is None else rest.probes,
        converged=high - low <= 2 * max(entropy.standard_error, _CLAIMED),
        assumptions={
            "alpha": order,
            "policy": "abs",
            "exact_block": True,
            "rank": len(found.values),
            "steps": 0 if rest is None else int(rest.steps.max()),
            "left_to_probes": found.rest_trace / found.trace,
            "dropped_rows": len(found.dropped),
            **noted,
        },
        alpha=order,
        policy="abs",
        **common,
    )


def _round_off(found: DeflatedQuadrature, alpha: float, move: float, size: int) -> float:
    """Bound by how many nats round-off in the rows moves an entropy.

    Each singular value moves by ``move`` of the matrix's norm, so that the power sum's norm of
    order 2α moves by that of as many such numbers as there are singular values.
    """
    if abs(alpha - 1.0) < _AT_ONE:
        alpha = 1.0 - _AT_ONE
    total = float(found.power_sum(alpha)) / found.trace**alpha
    power = 2.0 * alpha
    if power < 1.0:
        return math.log1p(size * move**power / total) / (1.0 - alpha)
    norm = total ** (1.0 / power)
    return power * math.log1p(size ** (1.0 / power) * move / norm) / abs(1.0 - alpha)


def entropy_of(found: DeflatedQuadrature, alpha: float) -> Estimate:
    """Return the Rényi entropy of the spectrum of G Gᵀ, in nats.

    The entropy falls as the order rises, so that a bracket of a neighbouring order bounds it too,
    which is all that is known at the order 1.

    Parameters
    ----------
    found : DeflatedQuadrature
        Leading directions, and the rules of the rest.
    alpha : float
        Positive and finite.
    """
    own = [] if abs(alpha - 1.0) < _AT_ONE else [alpha]
    ends = {order: _ends(found, order) for order in {*own, *_ORDERS}}
    low = max(end[0] for order, end in ends.items() if order >= alpha or order == alpha)
    high = min(end[1] for order, end in ends.items() if order <= alpha)
    nearest = min(ends, key=lambda order: abs(order - alpha))
    total = found.power_sum(nearest)
    error = total.standard_error / total.value / abs(1.0 - nearest)
    return Estimate(value=(low + high) / 2, standard_error=error, bracket=(low, high))


def _ends(found: DeflatedQuadrature, alpha: float) -> tuple[float, float]:
    bracket = found.power_sum(alpha).bracket
    assert bracket is not None
    ends = [(math.log(end) - alpha * math.log(found.trace)) / (1.0 - alpha) for end in bracket]
    return min(ends), max(ends)
