"""Any set of measures of one network in one call.

A network that is asked for everything rarely allows everything: tokens have no derivative, an
attention kernel lacks a rule, a layer is dead. So a report holds what can be computed, and one
sentence for each of the rest.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from paperkit import arguments
from paperkit.estimators.baselines import mean_loss
from paperkit.estimators.passes import PassMeasure, Problem, run_alone, run_pass
from paperkit.estimators.plan import CEILING, Gradient
from paperkit.estimators.registry import BY_NAME, DEFAULT_MEASURES
from paperkit.estimators.report import Report
from paperkit.estimators.result import Measurement, Result, flatten
from paperkit.linearize.weights import LeftOutWarning, chosen_weights
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import Batches
from paperkit.network.losses import LossLike, get_loss
from paperkit.network.network import Network
from paperkit.network.problem import UnusedParameterWarning, measure_of

# Hessian products that an estimate within a report may take.
_PRODUCTS = 16


@measure_of
def measure(
    model: nn.Module,
    data: object,
    measures: Sequence[str | PassMeasure] | str | None = None,
    loss: LossLike = "cross_entropy",
    *,
    layers: Sequence[str] | None = None,
    alpha: float | Sequence[float] = (0.5, 1.5),
    strict: bool | None = None,
    products: int = _PRODUCTS,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> Report:
    """Compute any set of measures, those of ``PASS_MEASURES`` from one pass of linearization.

    Parameters
    ----------
    model : nn.Module
        Any model, measured in evaluation mode and left as found; with several inputs or outputs
        see :class:`paperkit.network.Network`.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them, of any sizes; all samples count equally.
    measures : sequence of str or PassMeasure, or "all"
        Names from ``MEASURES``, or measures of your own; default ``DEFAULT_MEASURES``, which
        leaves out those that take many passes of their own. A name stands for what the function
        of that name returns with its default settings. ``adaptive_weight_sharpness`` is the part
        of ``adaptive_sharpness`` that is due to the layers' weights; ``relative_flatness`` is that
        of the last layer; ``layer_gauss_newton_traces`` and ``gauss_newton_trace`` are those of
        equation 3 of the compression paper, for ½‖f − y‖².
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    layers : sequence of str, optional
        Restricts the measures of single layers, and sums over them, to these; default all.
    alpha : sequence of float
        Orders of the Rényi sharpness.
    strict : bool, optional
        Whether a measure that cannot be had ends the call with its error. Default: only where
        ``measures`` names it; what a default report lacks is in ``missing``, with the reason.
    products : int
        Hessian products that an estimate for a layer outside the block proposition may take.
    seed : int
        Seed of every random choice.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Report
        In the order asked for.

    Raises
    ------
    ValueError
        If a name is unknown, none is given, the data do not fit the model, or nothing can be
        computed; with ``strict``, as the measures' own functions.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import measure
    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data = torch.tensor([[3.0, 4.0]])
    >>> data = torch.eye(2), torch.zeros(2, 1)
    >>> measure(model, data, ("renyi_sharpness", "maximum_local_sensitivity"), "half_squared_error")
                      measure layer alpha     value standard_error method note
              renyi_sharpness     0   0.5 -0.693147                  gram
              renyi_sharpness     0   1.5 -0.693147                  gram
    maximum_local_sensitivity                     5                 exact
    measures of single layers cover 100.0% of the parameters
    """
    wanted, strict = _wanted(measures, strict)
    problem = Problem(
        Network.of(model),
        Batches(Batches.of(data).joined()),
        get_loss(loss),
        layers,
        arguments.orders("alpha", alpha),
        arguments.integer("products", products, at_least=2),
        arguments.seed("seed", seed),
        arguments.memory_budget("memory_budget", memory_budget),
        frugal=not strict,
    )
    if layers is not None:
        chosen_weights(model, layers)  # refuses unknown names
    # An error here is about the model, the data or the loss, not about a measure.
    known = {"mean_loss": problem.own(mean_loss)}
    results, missing = results_of(problem, wanted, known, strict=strict)
    if not results:
        name, reason = next(iter(missing.items()))
        raise ValueError(f"measures: none of them can be computed; {name}: {reason}")
    return Report(results, missing, *_covered(model, results), problem.model.unused)


def results_of(
    problem: Problem,
    measures: Mapping[str, PassMeasure | Callable[..., Any]],
    known: Mapping[str, Result] | None = None,
    *,
    strict: bool = False,
) -> tuple[dict[str, Result], dict[str, str]]:
    """Return the results of measures, and for each of the rest the reason why it is missing.

    Parameters
    ----------
    problem : Problem
        Network, data, loss and settings.
    measures : mapping of str to measure
        Measures of the pass, and functions of measures, by name.
    known : mapping of str to result, optional
        Results that need not be computed again.
    strict : bool
        Whether a measure that cannot be computed ends the call with its error.
    """
    collected = _Collected(strict)
    with warnings.catch_warnings():
        # The report itself says what these warnings say.
        warnings.simplefilter("ignore", UnusedParameterWarning)
        warnings.simplefilter("ignore", LeftOutWarning)
        shared = [one for one in measures.values() if isinstance(one, PassMeasure)]
        _from_one_pass(problem, shared, collected)
        for name, one in measures.items():
            if known and name in known:
                collected.results[name] = known[name]
            elif not isinstance(one, PassMeasure):
                collected.attempt(name, partial(problem.own, one))
    results = {name: collected.results[name] for name in measures if name in collected.results}
    missing = {name: collected.missing[name] for name in measures if name in collected.missing}
    return results, missing


def _wanted(
    measures: Sequence[str | PassMeasure] | str | None, strict: bool | None
) -> tuple[dict[str, PassMeasure | Callable[..., Any]], bool]:
    """Return what is asked for by name, each once, and whether a refusal ends the call."""
    if isinstance(measures, str) and measures != "all":
        raise ValueError(f'measures={measures!r}: pass a list of names, or "all".')
    if measures is None or measures is DEFAULT_MEASURES:
        return {name: BY_NAME[name] for name in DEFAULT_MEASURES}, bool(strict)
    if isinstance(measures, str):
        return dict(BY_NAME), bool(strict)
    return named_measures(measures), strict is None or arguments.flag("strict", strict)


def named_measures(
    measures: Sequence[str | PassMeasure],
) -> dict[str, PassMeasure | Callable[..., Any]]:
    """Return the measures of a list by name, each once.

    Raises
    ------
    TypeError, ValueError
        If it is no list of names and measures, a name is unknown, or none is given.
    """
    entries = list(arguments.iterable("measures", measures, "names of measures"))
    known = dict(BY_NAME)
    for one in dict.fromkeys(entry for entry in entries if isinstance(entry, PassMeasure)):
        if known.get(one.name, one) is not one:
            raise ValueError(f"measures has two measures named {one.name!r}: rename yours.")
        known[one.name] = one
    given = [entry.name if isinstance(entry, PassMeasure) else entry for entry in entries]
    names = arguments.names("measures", given, known)
    return {name: known[name] for name in names}


class _Collected:
    """Results by measure, and the reasons for those that failed."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.results: dict[str, Result] = {}
        self.missing: dict[str, str] = {}

    def attempt(self, name: str, compute: Callable[[], Result]) -> None:
        """Keep what a measure returns, or why it does not."""
        try:
            self.results[name] = compute()
        except Exception as error:
            self.refuse(name, error)

    def refuse(self, name: str, error: Exception) -> None:
        """Keep why a measure is missing; raise the error if that is wanted."""
        if self.strict:
            raise error
        self.results.pop(name, None)
        self.missing[name] = _sentence(error)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    own = isinstance(error, ValueError | TypeError) and text
    return text if own else f"{type(error).__name__}: {text[:300]}"


def _from_one_pass(
    problem: Problem, measures: Sequence[PassMeasure], collected: _Collected
) -> None:
    """Compute measures of the pass: together, or each alone where that fails."""
    inputs = problem.pair[0]
    if not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        reason = ValueError(
            "it differentiates in the network's input, which is not a floating-point tensor: "
            "leave it out."
        )
        for one in measures:
            if "network_input" in one.needs:
                collected.refuse(one.name, reason)
        measures = [one for one in measures if "network_input" not in one.needs]
    if not collected.strict:
        measures = _affordable(problem, measures, collected)
    if not measures:
        return
    refuse = None if collected.strict else collected.refuse
    try:
        collected.results |= run_pass(measures, problem, refuse)
    except Exception:
        if collected.strict:
            raise
        for one in measures:
            collected.missing.pop(one.name, None)
            collected.attempt(one.name, partial(run_alone, one, problem))


def _affordable(
    problem: Problem, measures: Sequence[PassMeasure], collected: _Collected
) -> Sequence[PassMeasure]:
    """Leave out what would take a pass back for each of very many outputs."""
    gradient = Gradient.of(problem.model, problem.data, problem.loss)
    planned = gradient.pairs()
    if planned <= gradient.allowed(2 * CEILING):
        return measures
    reason = ValueError(
        f"it takes a pass back for each of the {gradient.num_outputs} outputs, about "
        f"{planned:.0f} gradients: name it in measures to have it computed."
    )
    for one in measures:
        collected.refuse(one.name, reason)
    return ()


def _covered(
    model: nn.Module, results: Mapping[str, Result]
) -> tuple[tuple[str, ...], float | None]:
    """Return the weights that no measure of single layers covers, and the share that one does."""
    layered = [result for result in results.values() if not isinstance(result, Measurement)]
    if not layered:
        return (), None
    measured = {
        name
        for result in layered
        for name, one in result.items()
        if any(not math.isnan(value.value) for value in flatten(one))
    }
    parameters = dict(model.named_parameters())
    weights = {id(parameters[n]) for m in measured for n in (m, f"{m}.weight") if n in parameters}
    total = sum(parameter.numel() for parameter in parameters.values())
    covered = sum(p.numel() for p in parameters.values() if id(p) in weights)
    left = tuple(n for n, p in parameters.items() if p.ndim > 1 and id(p) not in weights)
    return left, covered / total
