r"""The Rényi sharpness of a network's layers, and of all of them jointly.

The Rényi sharpness of a layer (Rényi paper, Definition 2.1) is :math:`-H_\alpha(p)` with
:math:`p_i = \lambda_i / \sum_j \lambda_j`, :math:`\lambda` the eigenvalues of the layer's loss
Hessian. It does not see the Hessian's size, only the shape of its spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature import CurvatureOperator, GaussNewtonOperator, HessianOperator
from paperkit.curvature.dense import dense_hessian_and_round_off
from paperkit.estimators.entropy import (
    POLICIES,
    UndefinedEntropyError,
    renyi_entropy_estimate,
)
from paperkit.estimators.layer_results import LayerResults, layer_results
from paperkit.estimators.parameter_norm import weight_names
from paperkit.estimators.passes import PassMeasure, Problem
from paperkit.estimators.plan import ALONE, CEILING, PRODUCT, Gradient
from paperkit.estimators.renyi_plan import (
    FEWEST,
    Effort,
    Settings,
    Spending,
    has_pairs,
    planned_efforts,
)
from paperkit.estimators.renyi_result import RenyiSharpness, from_spectrum, without_value
from paperkit.estimators.result import Result
from paperkit.estimators.spectra import MAX_DENSE, dense_spectrum, layer_spectrum
from paperkit.linalg.operator import FunctionOperator, SymmetricOperator
from paperkit.linalg.quadrature import stochastic_lanczos_quadrature
from paperkit.linearize.blocks import Block, Blocks
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.weights import WeightBlock
from paperkit.memory import GIBIBYTE, MemoryBudgetError
from paperkit.network.batches import as_batch
from paperkit.network.losses import Loss, LossLike
from paperkit.network.problem import measure_of

METHODS = ("auto", "exact", "lanczos")

_ADVICE = "pass products= or time_budget= for less, with a wider error bar, or fewer layers="

# Bases of two probes, with the vectors that a step needs beside them.
_BASIS_COPIES = 4

# Where no bracket tells how many steps are enough.
_STEPS_WITHOUT_BRACKET = 60


@measure_of
def renyi_sharpness(
    model: nn.Module,
    data: object,
    alpha: float | Sequence[float] = (0.5, 1.5),
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    method: str = "auto",
    *,
    policy: str = "abs",
    probes: int | None = None,
    steps: int | None = None,
    max_steps: int = 100,
    products: int | None = None,
    time_budget: float | None = None,
    seed: int = 0,
    max_dense: int = MAX_DENSE,
    strict: bool | None = None,
    memory_budget: int = GIBIBYTE,
) -> LayerResults[RenyiSharpness] | LayerResults[dict[float, RenyiSharpness]]:
    """Return the Rényi sharpness −H_α of every layer (Rényi paper, Definition 2.1).

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; all n samples count equally.
    alpha : float or sequence of float
        An order or several, which share one set of spectra. Positive; α = 1 is the Shannon limit.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    layers : sequence of str, optional
        Module names, or names of parameters with two axes or more that are no module's ``weight``
        (``"rnn.weight_hh_l0"``); default all, without biases and normalisation.
    method : str
        ``"exact"``: the whole spectrum, from the Gram dual or written out. ``"lanczos"``:
        stochastic Lanczos quadrature (Algorithm 1, corrected), with a standard error and a
        bracket. ``"auto"``: exact where it fits the memory budget and the planned cost stays
        within what may be spent, which is about 100 gradients unless ``products`` or
        ``time_budget`` says otherwise, or whatever takes no second.
    policy : str
        Treatment of negative eigenvalues, ``"abs"`` or ``"clamp"`` (see :func:`renyi_entropy`);
        matters only outside the proposition, where a block can have some.
    probes : int, optional
        Random vectors of the quadrature; the paper takes 100. None: as many, at least 8, as what
        may be spent allows with 25 steps each.
    steps : int, optional
        Lanczos steps; the paper takes 15, whose bias at order 0.5 can exceed the standard error.
        None: until every bracket is narrower than its standard error, at most ``max_steps``; for
        a block that may have negative eigenvalues under ``policy="clamp"``, which has no bracket,
        60 (or d if that is less).
    max_steps : int
        Cap for ``steps=None``.
    products : int, optional
        Budget of all layers together, in Hessian products of about two gradients each.
        Layers that cannot be had for it take the least that gives an error bar, 64 products each.
    time_budget : float, optional
        Budget of all layers together, in seconds on this machine.
    seed : int
        Seed of the probes.
    max_dense : int
        The largest block outside the proposition that is written out.
    strict : bool, optional
        Whether a layer that cannot be measured ends the call. Default: only if ``layers`` names it;
        else its value is NaN, with the reason among its assumptions, in ``left_out`` and in a
        warning. So is that of a zero block, whose entropy is not defined, and of a weight that is
        no plain layer's where nobody named it and it costs more than its share.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    LayerResults
        A dict from layer to result for one order, from layer to order to result for several.
        Values at different n are not comparable: the entropy is capped at log min(n(C−1), d_l). An
        estimate has ``converged=False`` where its bracket is wider than its standard error, or
        where there is no bracket to tell.

    Warns
    -----
    CostWarning
        Before the start, if the planned cost is above 5 seconds or 500 gradients.
    LeftOutWarning
        If a layer has no value.

    Raises
    ------
    ValueError
        If an order is not positive, the method unknown, the data do not fit the model, or the
        exact method is asked for where it does not fit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import renyi_sharpness
    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> flat = torch.eye(2), torch.zeros(2, 1)  # the mean of x xᵀ has equal eigenvalues
    >>> round(float(renyi_sharpness(model, flat, 2.0, "half_squared_error")["0"]), 4)  # −log 2
    -0.6931
    >>> steep = torch.diag(torch.tensor([3.0, 1.0])), torch.zeros(2, 1)  # nine to one
    >>> round(float(renyi_sharpness(model, steep, 2.0, "half_squared_error")["0"]), 4)
    -0.1985
    """
    settings = _settings(
        alpha, policy, method, probes, steps, max_steps, seed, max_dense, memory_budget
    )
    inputs, targets = as_batch(data)
    gradient = Gradient.of(model, (inputs, targets), loss)
    blocks = Blocks(model, (inputs, targets), loss, layers, memory_budget=memory_budget)
    allowed = gradient.allowed(ALONE, products, time_budget)
    pairs = len(blocks.groups) * gradient.pairs()
    # At many outputs products cost less than the pairs that would make them cheap.
    with_pairs = method != "auto" or pairs <= allowed
    if with_pairs:
        gradient.announce("renyi_sharpness, its pairs", pairs, _ADVICE)
        allowed -= pairs
    total = len({weight.parameter for weight in blocks.weights.values()})
    if total == 0:
        raise ValueError("layers: the model has none with a weight to measure.")
    spend = Spending(gradient, max(0.0, allowed), total)
    refusing = _Refusing(strict, blocks.named)
    results: dict[str, dict[float, RenyiSharpness]] = {}
    for group in blocks.groups:
        if not with_pairs:
            results |= _streamed(blocks, group, settings, spend, refusing)
            continue
        try:
            found = blocks.linearization(group).layers
        except MemoryBudgetError:
            if method == "exact":
                raise
            results |= _streamed(blocks, group, settings, spend, refusing)
            continue
        results |= _of_blocks(found, model, (inputs, targets), loss, settings, spend, refusing)
    if rest := blocks.remaining():
        results |= _of_blocks(rest, model, (inputs, targets), loss, settings, spend, refusing)
    for name, reason in blocks.shared().items():
        refusing(name, ValueError(reason))
    return _with_left_out(model, blocks, _unpacked(results, alpha))


@dataclass(frozen=True)
class _Refusing:
    """Whether a layer that cannot be measured ends the call."""

    strict: bool | None
    named: bool

    def __call__(self, name: str, error: Exception) -> None:
        """Raise an error that names the layer, unless others are to be measured all the same."""
        undefined = isinstance(error, UndefinedEntropyError)
        if self.strict or (self.strict is None and self.named and not undefined):
            raise ValueError(f"layers: {name} cannot be measured: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UndefinedEntropyError):
        return "the Hessian block is zero"
    return str(error).rstrip(".")


def _with_left_out(model: nn.Module, blocks: Blocks, results: dict) -> LayerResults:
    """Say which layers have no value."""
    reasons = {}
    for name, found in results.items():
        one = found if isinstance(found, RenyiSharpness) else next(iter(found.values()))
        if math.isnan(one.value):
            reasons[name] = str(one.assumptions["reason"])
    measured = [blocks.weights[name].parameter for name in results if name not in reasons]
    return layer_results("renyi_sharpness", model, results, measured, reasons, strict=False)


@measure_of
def global_renyi_sharpness(
    model: nn.Module,
    data: object,
    alpha: float | Sequence[float] = (0.5, 1.5),
    loss: LossLike = "cross_entropy",
    method: str = "auto",
    *,
    policy: str = "abs",
    probes: int | None = None,
    steps: int | None = None,
    products: int | None = None,
    time_budget: float | None = None,
    seed: int = 0,
    max_dense: int = MAX_DENSE,
    memory_budget: int = GIBIBYTE,
) -> RenyiSharpness | dict[float, RenyiSharpness]:
    """Return the Rényi sharpness of all weights jointly.

    Definition 2.1 of the Rényi paper is for one layer. This is its form for all layers together,
    the "global" sharpness of Section 5.1 and Appendix F (equation 57). The matrix is the Hessian
    over every parameter tensor with more than one axis: no biases, no normalisation. It is not the
    Gauss–Newton matrix, also in a ReLU network, and it can have negative eigenvalues. It is not
    invariant under a rescaling of layers; the layers' own values are.

    Parameters
    ----------
    model, data, alpha, loss, method, policy, probes, steps, products, time_budget, seed, \
max_dense, memory_budget
        As in :func:`renyi_sharpness`; the matrix is written out if it has at most ``max_dense``
        columns and that stays within what may be spent.

    Returns
    -------
    RenyiSharpness or dict
        By order if several are asked for.

    Raises
    ------
    ValueError
        As :func:`renyi_sharpness`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import global_renyi_sharpness
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> _ = nn.init.ones_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> data = torch.ones(1, 1), torch.zeros(1, 1)  # ½ (w₁w₂)²: eigenvalues 3 and −1
    >>> round(float(global_renyi_sharpness(model, data, 2.0, "half_squared_error")), 4)
    -0.47
    """
    settings = _settings(alpha, policy, method, probes, steps, 100, seed, max_dense, memory_budget)
    names = weight_names(model)
    parameters = dict(model.named_parameters())
    size = sum(parameters[name].numel() for name in names)
    if method == "exact" and size > max_dense:
        raise ValueError(
            f"method='exact' needs a matrix of {size} columns: raise max_dense={max_dense}, or "
            "use method='lanczos'."
        )
    gradient = Gradient.of(model, data, loss)
    allowed = gradient.allowed(ALONE, products, time_budget)
    written_out = method == "exact" or (
        method == "auto" and size <= max_dense and PRODUCT * size <= allowed
    )
    effort = Effort(True, 0, 0, PRODUCT * size)
    if not written_out:
        effort = Effort.by_quadrature(allowed, PRODUCT, settings)
    gradient.announce("global_renyi_sharpness", effort.gradients, _ADVICE)
    if written_out:
        inputs, targets = as_batch(data)
        spectrum = dense_spectrum(*dense_hessian_and_round_off(model, inputs, targets, loss, names))
        common = {"n": len(inputs), "loss": loss, "layer": None}
        by_order = from_spectrum(spectrum, settings, common, {"parameters": "all weights"})
    else:
        operator = HessianOperator(model, data, loss, names, memory_budget=memory_budget // 2)
        common = {"n": operator.num_samples, "loss": loss, "layer": None}
        by_order = _by_operator(
            operator, settings, effort, gradient, common, {"parameters": "all weights"}
        )
    return _unpacked({"": by_order}, alpha)[""]


def _settings(
    alpha: float | Sequence[float],
    policy: str,
    method: str,
    probes: int | None,
    steps: int | None,
    max_steps: int,
    seed: int,
    max_dense: int,
    memory_budget: int,
) -> Settings:
    orders = _orders(alpha)
    method = arguments.choice("method", method, METHODS)
    policy = arguments.choice("policy", policy, POLICIES)
    return Settings(
        orders, policy, method, probes, steps, max_steps, seed, max_dense, memory_budget
    )


def _orders(alpha: float | Sequence[float]) -> tuple[float, ...]:
    """Return the orders, one or several: positive, and infinity too."""
    several = not isinstance(alpha, int | float) and getattr(alpha, "ndim", 1) != 0
    found = arguments.orders("alpha", alpha if several else (alpha,), infinite=True)
    return found


def _unpacked(results: dict, alpha: float | Sequence[float]) -> dict:
    if isinstance(alpha, int | float):
        return {name: by_order[alpha] for name, by_order in results.items()}
    return results


def _of_blocks(
    blocks: Mapping[str, Block],
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    loss: Loss,
    settings: Settings,
    spend: Spending,
    refusing: _Refusing,
) -> dict[str, dict[float, RenyiSharpness]]:
    """Plan all blocks, say what they cost, and measure them."""
    efforts = planned_efforts(blocks, settings, spend)
    total = sum(effort.gradients for effort in efforts.values() if effort is not None)
    spend.gradient.announce("renyi_sharpness", total, _ADVICE)
    spend.pay(total, len(blocks))
    results = {}
    for name, block in blocks.items():
        effort = efforts[name]
        if effort is None:
            results[name] = without_value(block, _too_costly(block), loss, settings)
            continue
        try:
            results[name] = _of_block(block, model, data, loss, settings, effort, spend.gradient)
        except (ValueError, RuntimeError) as error:
            refusing(name, error)
            results[name] = without_value(block, _reason(error), loss, settings)
    return results


def _too_costly(block: Block) -> str:
    what = f"an estimate takes at least {FEWEST**2} products of its block with vectors"
    if not block.exact_block:
        what = (
            f"its Hessian block is not its Gauss–Newton block ({block.obstacle}) and takes at "
            f"least {FEWEST**2} Hessian products"
        )
    return f"{what}: ask for renyi_sharpness(…, layers=[{block.name!r}])"


def _of_block(
    layer: Block,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    loss: Loss,
    settings: Settings,
    effort: Effort,
    gradient: Gradient,
) -> dict[float, RenyiSharpness]:
    """Return one layer's results by order."""
    common = {"n": layer.num_samples, "loss": loss, "layer": layer.name}
    assumptions = {"exact_block": layer.exact_block, "obstacle": layer.obstacle}
    if effort.exact:
        spectrum = layer_spectrum(layer, model, *data, loss)
        if not len(spectrum.eigenvalues):
            raise UndefinedEntropyError("all eigenvalues are zero")
        return from_spectrum(spectrum, settings, common, assumptions)
    if not has_pairs(layer):
        hessian = HessianOperator(
            model, data, loss, [layer.weight_name], memory_budget=settings.memory_budget // 2
        )
        return _by_operator(hessian, settings, effort, gradient, common, assumptions)

    factor = layer.hessian_factor
    rows = layer.num_samples * factor.shape[1]
    # Formed once, the rows serve all steps.
    fits = 4 * rows * layer.num_parameters * factor.element_size() <= settings.memory_budget
    formed = layer.rows() if fits else None

    def product(vectors: Tensor) -> Tensor:
        if formed is not None:
            return (vectors @ formed.T) @ formed / layer.num_samples
        return layer.gauss_newton_product(vectors.reshape(-1, *layer.weight_shape)).flatten(1)

    operator = FunctionOperator(
        product,
        layer.num_parameters,
        dtype=factor.dtype,
        device=factor.device,
        positive_semidefinite=True,
    )
    return _estimated(operator, effort.of(settings), common, assumptions)


def _streamed(
    blocks: Blocks,
    group: Sequence[str],
    settings: Settings,
    spend: Spending,
    refusing: _Refusing,
) -> dict[str, dict[float, RenyiSharpness]]:
    """Estimate from products that stream over the data, for layers whose pairs do not fit."""
    few = blocks.linearization(group, samples=2)
    n, num_outputs = len(blocks.data[0]), few.num_outputs
    found = {
        name: (
            WeightBlock(
                name, one.weight_name, one.weight_shape, one.obstacle or "", n, num_outputs, False
            ),
            one.obstacle,
        )
        for name, one in few.layers.items()
    }
    outputs = few.outputs[:1]
    del few  # the pairs of one sample are many at a thousand outputs
    blocks.loss.hessian_factor(outputs, blocks.data[1][:1])  # refuses a loss that is not convex
    if not found:
        return {}
    effort = Effort.by_quadrature(spend.share(1), PRODUCT, settings)
    spend.gradient.announce("renyi_sharpness", effort.gradients * len(found), _ADVICE)
    spend.pay(effort.gradients * len(found), len(found))
    results = {}
    for name, (block, obstacle) in found.items():
        kind = GaussNewtonOperator if obstacle is None else HessianOperator
        common = {"n": n, "loss": blocks.loss, "layer": name}
        assumptions = {"exact_block": obstacle is None, "obstacle": obstacle}
        try:
            operator = kind(
                blocks.model,
                blocks.data,
                blocks.loss,
                [block.weight_name],
                memory_budget=settings.memory_budget // 4,
            )
            results[name] = _by_operator(
                operator, settings, effort, spend.gradient, common, assumptions
            )
        except (ValueError, RuntimeError) as error:
            refusing(name, error)
            results[name] = without_value(block, _reason(error), blocks.loss, settings)
    return results


def _by_operator(
    operator: CurvatureOperator,
    settings: Settings,
    effort: Effort,
    gradient: Gradient,
    common: dict,
    assumptions: dict,
) -> dict[float, RenyiSharpness]:
    with gradient.progress(operator, effort.probes * effort.max_steps, "Lanczos") as watched:
        return _estimated(watched, effort.of(settings), common, assumptions)


def _estimated(
    operator: SymmetricOperator, settings: Settings, common: dict, assumptions: dict
) -> dict[float, RenyiSharpness]:
    assert settings.probes is not None  # an effort has settled it
    steps = settings.steps
    if steps is None and not operator.positive_semidefinite and settings.policy != "abs":
        steps = min(_STEPS_WITHOUT_BRACKET, settings.max_steps)
    # The bases of two probes at least are held at once.
    room = settings.memory_budget // (
        2 * _BASIS_COPIES * operator.dimension * operator.dtype.itemsize
    )
    quadrature = stochastic_lanczos_quadrature(
        operator,
        probes=settings.probes,
        steps=steps,
        max_steps=min(settings.max_steps, max(room, FEWEST)),
        targets=[
            partial(renyi_entropy_estimate, alpha=order, policy=settings.policy)
            for order in settings.orders
        ],
        seed=settings.seed,
        memory_budget=settings.memory_budget // 4,
    )
    results = {}
    for order in settings.orders:
        entropy = renyi_entropy_estimate(quadrature, order, settings.policy)
        bracket = entropy.bracket
        results[order] = RenyiSharpness(
            value=-entropy.value,
            measure="renyi_sharpness",
            method="lanczos",
            standard_error=entropy.standard_error,
            bracket=None if bracket is None else (-bracket[1], -bracket[0]),
            probes=quadrature.probes,
            converged=entropy.bracket_ratio <= 1,
            assumptions={
                "alpha": order,
                "policy": settings.policy,
                "steps": int(quadrature.steps.max()),
                "reliable": entropy.reliable,
                **assumptions,
            },
            alpha=order,
            policy=settings.policy,
            quadrature=quadrature,
            **common,
        )
    return results


# --- The measure of the pass


def _of_all_samples(whole: Linearization, problem: Problem) -> Result:
    """Return the sharpness of every layer from the pairs of all samples.

    About 20 gradients are spent, or whatever takes no second. A layer whose error bar would take
    more, or that has no entropy, is not a number, with the reason among its assumptions.
    """
    model, data, loss = problem.model, problem.pair, problem.loss
    settings = _settings(
        problem.orders,
        "abs",
        "auto",
        None,
        None,
        100,
        problem.seed,
        MAX_DENSE,
        problem.memory_budget,
    )
    blocks = Blocks(model, data, loss, problem.layers, memory_budget=problem.memory_budget)
    blocks.note(whole)
    found: dict[str, Block] = {
        **{
            name: replace(layer, name=name)
            for name, layer in problem.chosen_layers(whole.layers).items()
        },
        **blocks.remaining(),
    }
    gradient = Gradient.of(model, data, loss)
    spend = Spending(gradient, gradient.allowed(CEILING), len(found), strict=False)
    return _of_blocks(found, model, data, loss, settings, spend, _Refusing(False, False))


RENYI_SHARPNESS = PassMeasure(
    "renyi_sharpness",
    _of_all_samples,
    otherwise=lambda problem: problem.own(
        renyi_sharpness, alpha=problem.orders, layers=problem.layers
    ),
)
