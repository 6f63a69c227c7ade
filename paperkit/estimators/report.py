"""Any set of measures of one network, from one pass of linearization.

A network that is asked for everything rarely allows everything: tokens have no derivative, an
attention kernel lacks a rule, a layer is dead. So a report holds what can be computed, and one
sentence for each of the rest.
"""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.estimators import baselines, worst_case
from paperkit.estimators import representation as features
from paperkit.estimators.adaptive_sharpness import adaptive_sharpness, adaptive_sharpness_from
from paperkit.estimators.fisher_rao import fisher_rao_norm
from paperkit.estimators.gauss_newton_trace import (
    gradient_squares_from,
    layer_gradient_squares,
    trace_measurement,
)
from paperkit.estimators.hessian import hessian_top_eigenvalues, hessian_trace
from paperkit.estimators.information_geometry import (
    information_geometric_sharpness,
    information_geometric_sharpness_from,
)
from paperkit.estimators.pac_bayes import pac_bayes_flatness
from paperkit.estimators.parameter_norm import parameter_norm
from paperkit.estimators.plan import CEILING, Gradient
from paperkit.estimators.rangamani import rangamani_sharpness
from paperkit.estimators.relative_flatness import relative_flatness, relative_flatness_from
from paperkit.estimators.renyi import RenyiSharpness, renyi_sharpness, renyi_sharpness_from
from paperkit.estimators.result import Measurement
from paperkit.estimators.spectra import MAX_DENSE
from paperkit.linearize.blocks import Blocks, last_layer
from paperkit.linearize.costs import held_bytes
from paperkit.linearize.linearization import Linearization, LinearizationBuffer
from paperkit.linearize.linearize import linearize_in_chunks
from paperkit.linearize.weights import LeftOutWarning, Weight, chosen_weights
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import Batches
from paperkit.network.losses import Loss, LossLike, get_loss
from paperkit.network.network import Network
from paperkit.network.problem import (
    UnusedParameterWarning,
    cut_parameters,
    measure_of,
)

# Of the representation: they need the Jacobians in the layers' inputs.
_NETWORK_INPUT = (
    "maximum_local_sensitivity",
    "normalized_maximum_local_sensitivity",
    "input_invariant_local_sensitivity",
    "log_volume",
    "local_dimension",
)
_LAYER_INPUTS = ("network_maximum_local_sensitivity", "network_log_volume")
# Means over samples of something in the pairs.
_ADDITIVE = ("layer_gauss_newton_traces", "gauss_newton_trace", "relative_flatness")
# Of all samples jointly.
_JOINT = ("renyi_sharpness", "information_geometric_sharpness")
# With passes of their own, about the cost of one gradient or less.
_CHEAP: dict[str, Callable[..., Measurement]] = {
    "fisher_rao_norm": fisher_rao_norm,
    "mean_loss": baselines.mean_loss,
    "mean_exponential_loss": baselines.mean_exponential_loss,
}
# With many passes of their own.
_COSTLY: dict[str, Callable[..., Measurement]] = {
    "adaptive_sharpness": adaptive_sharpness,
    "hessian_trace": hessian_trace,
    "hessian_top_eigenvalues": hessian_top_eigenvalues,
    "rangamani_sharpness": rangamani_sharpness,
    "sam_sharpness": worst_case.sam_sharpness,
    "asam_sharpness": worst_case.asam_sharpness,
}

PASS_MEASURES = (*_JOINT, *_ADDITIVE, "adaptive_weight_sharpness", *_LAYER_INPUTS, *_NETWORK_INPUT)
"""Measures that share one pass of linearization."""

DEFAULT_MEASURES = (*PASS_MEASURES, *_CHEAP, "parameter_norm")
"""What :func:`measure` computes unless told otherwise."""

MEASURES = (*DEFAULT_MEASURES, *_COSTLY, "pac_bayes_flatness")
"""Everything that :func:`measure` knows."""

Result = Measurement | Mapping[str, Measurement] | Mapping[str, Mapping[float, Measurement]]

# Hessian products that an estimate within a report may take.
_PRODUCTS = 16


@dataclass(frozen=True, repr=False, eq=False)
class Report(Mapping[str, Any]):
    """Measures of one network on one set of samples, by name.

    It prints as a table, with what could not be computed below it;
    ``report["renyi_sharpness"]["conv1"][0.5]`` is a single result.

    Attributes
    ----------
    results : mapping of str to result
        By measure: one :class:`Measurement`, or one for each layer, or one for each layer and
        order.
    missing : mapping of str to str
        By measure that was asked for and is not in the results: one sentence why.
    uncovered : tuple of str
        Weights with two axes or more that no measure of single layers covers.
    coverage : float or None
        The share of all parameters that belongs to layers measured one by one; None where no
        measure of single layers was asked for.
    unused : tuple of str
        Parameters without influence on the outputs, as far as a measure had to know.
    """

    results: Mapping[str, Result]
    missing: Mapping[str, str] = field(default_factory=dict)
    uncovered: tuple[str, ...] = ()
    coverage: float | None = None
    unused: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        if name in self.missing:
            raise KeyError(f"{name} was not computed: {self.missing[name]}")
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def measurements(self) -> list[Measurement]:
        """Return every single result in order."""
        return [one for result in self.results.values() for one in _flatten(result)]

    def frame(self) -> pd.DataFrame:
        """Return a table with one row for each result.

        Columns: measure, layer, alpha, value, standard_error, lower, upper (the bracket), method,
        n, loss, converged, note. What does not apply is missing.
        """
        columns = list(_COLUMNS)
        return pd.DataFrame([_row(one) for one in self.measurements()], columns=columns)

    def notes(self) -> list[str]:
        """Return what the table does not show: what is missing and why, and what is not covered."""
        notes = [f"not computed: {name}: {reason}" for name, reason in self.missing.items()]
        if self.coverage is not None:
            line = f"measures of single layers cover {self.coverage:.1%} of the parameters"
            if self.uncovered:
                line += f"; not the weights {_listed(self.uncovered)}"
            notes.append(line)
        if self.unused:
            notes.append(f"without influence on the outputs: {_listed(self.unused)}")
        return notes

    def __repr__(self) -> str:
        shown = self.frame()[list(_SHOWN)]
        table = shown.to_string(index=False, na_rep="", float_format="{:.6g}".format)
        return "\n".join([table, *self.notes()])

    def _repr_html_(self) -> str:
        table = self.frame().to_html(index=False, na_rep="", float_format="{:.6g}".format)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes())
        return f"{table}{notes}"


_SHOWN = ("measure", "layer", "alpha", "value", "standard_error", "method", "note")
_COLUMNS = (*_SHOWN[:5], "lower", "upper", "method", "n", "loss", "converged", "note")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


def _flatten(result: Any) -> Iterator[Measurement]:
    if isinstance(result, Measurement):
        yield result
    else:
        for one in result.values():
            yield from _flatten(one)


def _row(one: Measurement) -> dict[str, Any]:
    lower, upper = one.bracket or (None, None)
    return {
        "measure": one.measure,
        "layer": one.layer,
        "alpha": one.alpha if isinstance(one, RenyiSharpness) else None,
        "value": one.value,
        "standard_error": one.standard_error,
        "lower": lower,
        "upper": upper,
        "method": one.method,
        "n": one.n,
        "loss": one.loss,
        "converged": one.converged,
        "note": _note(one),
    }


def _note(one: Measurement) -> str | None:
    """Return why the value is not to be taken at face value."""
    notes = [str(one.assumptions["reason"])] if one.assumptions.get("reason") else []
    if not one.converged:
        notes.append("not converged")
    if one.assumptions.get("reliable") is False:
        notes.append("unreliable")
    if getattr(one, "tolerance_sensitive", False):
        notes.append("depends on the tolerance")
    return "; ".join(notes) or None


class _Collected:
    """Results by measure, and the reasons for those that failed."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.results: dict[str, Result] = {}
        self.missing: dict[str, str] = {}

    def attempt(self, name: str, compute: Callable[[], Result | None]) -> None:
        """Keep what a measure returns, or why it does not."""
        try:
            found = compute()
        except Exception as error:
            self.refuse(name, error)
        else:
            if found is not None:
                self.results[name] = found

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


@measure_of
def measure(
    model: nn.Module,
    data: object,
    measures: Sequence[str] | str | None = None,
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
    measures : sequence of str, or "all"
        Names from ``MEASURES``; default ``DEFAULT_MEASURES``, which leaves out those that
        take many passes of their own. Each is what the function of that name returns with its
        default settings. ``adaptive_weight_sharpness`` is the part of ``adaptive_sharpness`` that
        is due to the layers' weights; ``relative_flatness`` is that of the last layer;
        ``layer_gauss_newton_traces`` and ``gauss_newton_trace`` are those of equation 3 of the
        compression paper, for ½‖f − y‖².
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
        Of every random choice.
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
    """
    names, strict = _wanted(measures, strict)
    call = _Call(
        model, Batches.of(data).joined(), get_loss(loss), layers, arguments.orders("alpha", alpha)
    )
    call.products = arguments.integer("products", products, at_least=2)
    call.seed = arguments.seed("seed", seed)
    call.memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    if layers is not None:
        chosen_weights(model, layers)  # refuses unknown names
    # What this raises is wrong with the model, the data or the loss, not with a measure.
    mean_loss = call.own(baselines.mean_loss)
    collected = _Collected(strict)
    with warnings.catch_warnings():
        # The report says it itself.
        warnings.simplefilter("ignore", UnusedParameterWarning)
        warnings.simplefilter("ignore", LeftOutWarning)
        _from_one_pass(call, [n for n in names if n in PASS_MEASURES], collected)
        for name in (n for n in names if n not in PASS_MEASURES):
            collected.attempt(name, lambda name=name: _alone(call, name, mean_loss))  # type: ignore[misc]
    if not collected.results:
        name, reason = next(iter(collected.missing.items()))
        raise ValueError(f"measures: none of them can be computed; {name}: {reason}")
    results = {name: collected.results[name] for name in names if name in collected.results}
    missing = {name: collected.missing[name] for name in names if name in collected.missing}
    return Report(results, missing, *_covered(model, results), Network.of(model).unused)


def _wanted(measures: Sequence[str] | str | None, strict: bool | None) -> tuple[list[str], bool]:
    """Return the names asked for, each once, and whether a refusal ends the call."""
    if isinstance(measures, str) and measures != "all":
        raise ValueError(f'measures={measures!r}: pass a list of names, or "all".')
    if measures is None or measures is DEFAULT_MEASURES:
        return list(DEFAULT_MEASURES), bool(strict)
    if measures == "all":
        return list(MEASURES), bool(strict)
    names = arguments.names("measures", measures, MEASURES)
    return names, strict is None or arguments.flag("strict", strict)


@dataclass
class _Call:
    """What a measure is computed from."""

    model: nn.Module
    pair: tuple[Any, Tensor]
    loss: Loss
    layers: Sequence[str] | None
    orders: tuple[float, ...]
    products: int = _PRODUCTS
    seed: int = 0
    memory_budget: int = GIBIBYTE

    @cached_property
    def readable(self) -> list[str] | None:
        """The layers that were asked for, as far as a linearization knows their type."""
        if self.layers is None:
            return None
        weights = self.weights.values()
        return [weight.name for weight in weights if weight.obstacle is None] or None

    @cached_property
    def others(self) -> dict[str, str]:
        """The parameters that are to be differentiated for themselves, by the weight's name.

        Those of no plain layer, or of one that cannot be linearized by itself; where nobody named
        them, as long as they are small, and not if no gradient reaches them.
        """
        blocks = Blocks(
            self.model, self.pair, self.loss, self.layers, memory_budget=self.memory_budget
        )
        grouped = {name for group in blocks.groups for name in group}
        covered = {self.weights[name].parameter for name in grouped}
        missing = [one for one in self.weights.values() if one.parameter not in covered]
        cut = cut_parameters(self.model, self.pair[0]) if missing else ()
        room = MAX_DENSE
        found: dict[str, str] = {}
        for one in missing:
            wanted = self.layers is not None or one.num_parameters <= room
            if wanted and one.parameter not in cut and one.parameter not in found.values():
                found[one.name] = one.parameter
                room -= one.num_parameters
        return found

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """All weights that are to be measured one by one."""
        return chosen_weights(self.model, self.layers)

    @cached_property
    def last_layer(self) -> str:
        """The layer that the forward pass calls last."""
        return last_layer(self.model, self.pair[0])

    def own(self, function: Callable[..., Any], **options: Any) -> Any:
        """Call a measure's own function."""
        return function(
            self.model, self.pair, loss=self.loss, memory_budget=self.memory_budget, **options
        )

    @property
    def estimates(self) -> dict[str, int]:
        """How many products an estimate may take."""
        return {"probes": self.products, "max_products": self.products, "seed": self.seed}


def _alone(call: _Call, name: str, mean_loss: Measurement) -> Measurement:
    """Compute a measure that has passes of its own."""
    if name == "mean_loss":
        return mean_loss
    if name == "parameter_norm":
        return parameter_norm(call.model)
    if name in _CHEAP:
        return call.own(_CHEAP[name])
    if name == "pac_bayes_flatness":
        return pac_bayes_flatness(
            call.model, call.pair, seed=call.seed, memory_budget=call.memory_budget
        )
    return call.own(_COSTLY[name], seed=call.seed)


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
        if any(not math.isnan(value.value) for value in _flatten(one))
    }
    parameters = dict(model.named_parameters())
    weights = {id(parameters[n]) for m in measured for n in (m, f"{m}.weight") if n in parameters}
    total = sum(parameter.numel() for parameter in parameters.values())
    covered = sum(p.numel() for p in parameters.values() if id(p) in weights)
    left = tuple(n for n, p in parameters.items() if p.ndim > 1 and id(p) not in weights)
    return left, covered / total


# ---------------------------------------------------------------------------------------------
# One pass of linearization
# ---------------------------------------------------------------------------------------------


def _from_one_pass(call: _Call, names: Sequence[str], collected: _Collected) -> None:
    """Compute measures of the pass: together, or each alone where that fails."""
    inputs = call.pair[0]
    if not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        reason = ValueError(
            "it differentiates in the network's input, which is not a floating-point tensor: "
            "leave it out."
        )
        for name in set(names) & set(_NETWORK_INPUT):
            collected.refuse(name, reason)
        names = [name for name in names if name not in _NETWORK_INPUT]
    if not collected.strict:
        names = _affordable(call, names, collected)
    if not names:
        return
    try:
        _together(call, set(names), collected)
    except Exception:
        if collected.strict:
            raise
        for name in names:
            collected.results.pop(name, None)
            collected.missing.pop(name, None)
            try:
                _together(call, {name}, collected)
            except Exception as error:
                collected.refuse(name, error)


def _affordable(call: _Call, names: Sequence[str], collected: _Collected) -> list[str]:
    """Leave out what would take a pass back for each of very many outputs."""
    gradient = Gradient.of(call.model, call.pair, call.loss)
    planned = gradient.pairs()
    if planned <= gradient.allowed(2 * CEILING):
        return list(names)
    reason = ValueError(
        f"it takes a pass back for each of the {gradient.num_outputs} outputs, about "
        f"{planned:.0f} gradients: name it in measures to have it computed."
    )
    for name in names:
        collected.refuse(name, reason)
    return []


def _together(call: _Call, wanted: set[str], collected: _Collected) -> None:
    model, (inputs, targets) = call.model, call.pair
    budget = call.memory_budget
    every_parameter = bool(wanted & {"gauss_newton_trace", "information_geometric_sharpness"})
    others: bool | list[str] = every_parameter
    if "layer_gauss_newton_traces" in wanted and not every_parameter:
        others = list(call.others.values()) or False
    held = held_bytes(model, inputs, all_parameters=others)
    keep = bool(wanted & set(_JOINT)) and held <= budget // 2
    sums = _Sums(call, wanted, collected)
    gathered: LinearizationBuffer | None = None
    start = 0
    for chunk, labels in linearize_in_chunks(
        model,
        call.pair,
        call.loss,
        None if every_parameter else call.readable,
        input_jacobians=bool(wanted & {*_LAYER_INPUTS, *_NETWORK_INPUT}),
        all_parameters=others,
        strict=False,
        memory_budget=(budget - held) // 2 if keep else budget,
    ):
        samples = slice(start, start + chunk.num_samples)
        sums.add(_Chunk(chunk, inputs[samples], labels, call))
        start = samples.stop
        if keep:
            gathered = gathered or LinearizationBuffer(chunk, len(inputs))
            gathered.add(chunk)
        del chunk  # or it would live on while the next is made
    sums.collect()
    # The chunks were made beside what is kept; now the rest of the budget is free.
    whole = gathered.linearization(budget) if gathered is not None else None
    joint = {
        "renyi_sharpness": lambda: _renyi(call, whole),
        "information_geometric_sharpness": lambda: (
            information_geometric_sharpness_from(whole, targets)
            if whole is not None
            else call.own(information_geometric_sharpness)
        ),
    }
    for name in wanted & set(_JOINT):
        collected.attempt(name, joint[name])


def _renyi(call: _Call, whole: Linearization | None) -> Result:
    options: dict[str, Any] = {"seed": call.seed, "memory_budget": call.memory_budget}
    if whole is None:
        return renyi_sharpness(
            call.model, call.pair, call.orders, call.loss, call.layers, **options
        )
    blocks = Blocks(call.model, call.pair, call.loss, call.layers, memory_budget=call.memory_budget)
    blocks.note(whole)
    found = {**_chosen(whole.layers, call.layers), **blocks.remaining()}
    return renyi_sharpness_from(found, call.model, *call.pair, call.loss, call.orders, **options)


def _chosen(by_layer: Mapping[str, Any], layers: Sequence[str] | None) -> dict[str, Any]:
    return {name: v for name, v in by_layer.items() if layers is None or name in layers}


@dataclass
class _Chunk:
    """Some samples with their linearization, and what several measures share of it."""

    linearization: Linearization
    inputs: Tensor
    targets: Tensor
    call: _Call

    @property
    def layers(self) -> Sequence[str] | None:
        """Those that were asked for."""
        return self.call.layers

    @cached_property
    def jacobian(self) -> Tensor:
        """∂f/∂x of the network."""
        assert self.linearization.input_jacobian is not None
        return self.linearization.input_jacobian

    @cached_property
    def sensitivities(self) -> Tensor:
        """‖∂f/∂x‖₂ of each sample."""
        return features.largest_singular_values(self.jacobian)

    @cached_property
    def gradient_squares(self) -> dict[str, Tensor]:
        """‖∂f/∂W‖² of each sample, by layer."""
        return layer_gradient_squares(self.linearization)

    def weight_gradient_squares(self) -> dict[str, Tensor]:
        """The same, with the weights that are differentiated for themselves."""
        found = dict(self.gradient_squares)
        differentiated = self.linearization.parameter_jacobians or {}
        for name, parameter in self.call.others.items():
            if parameter in differentiated:
                only = {parameter: differentiated[parameter]}
                part = replace(self.linearization, layers={}, parameter_jacobians=only)
                found[name] = gradient_squares_from(part)
        return found

    def total_gradient_squares(self) -> Tensor:
        """‖∂f/∂θ‖² of each sample, over all parameters."""
        rest = gradient_squares_from(replace(self.linearization, layers={}))
        return torch.stack([*self.gradient_squares.values(), rest]).sum(dim=0)


# Each sample's value, (n,).
_OF_SAMPLES: dict[str, Callable[[_Chunk], Tensor]] = {
    "maximum_local_sensitivity": lambda chunk: chunk.sensitivities,
    "normalized_maximum_local_sensitivity": lambda chunk: features.normalized_squares(
        chunk.sensitivities, chunk.inputs
    ),
    "input_invariant_local_sensitivity": lambda chunk: features.input_invariant_sensitivities(
        chunk.jacobian, chunk.inputs
    ),
    "log_volume": lambda chunk: features.log_volumes(chunk.jacobian),
    "local_dimension": lambda chunk: features.local_dimensions(chunk.jacobian),
    "gauss_newton_trace": _Chunk.total_gradient_squares,
}

# The same by layer.
_OF_LAYERS: dict[str, Callable[[_Chunk], dict[str, Tensor]]] = {
    "layer_gauss_newton_traces": _Chunk.weight_gradient_squares,
    "network_maximum_local_sensitivity": lambda chunk: features.layer_sensitivities_from(
        chunk.linearization
    ),
    "network_log_volume": lambda chunk: features.layer_log_volumes_from(chunk.linearization),
}


class _Sums:
    """What a pass adds up, chunk of samples by chunk."""

    def __init__(self, call: _Call, wanted: set[str], collected: _Collected) -> None:
        self.call, self.collected = call, collected
        self.wanted = wanted - set(_JOINT)
        # Each sample's values by measure, or by measure and layer.
        self.samples: dict[str, list[Tensor]] = {}
        self.layers: dict[str, dict[str, list[Tensor]]] = {}
        # Sums over samples of results that are means over samples.
        self.means: dict[str, dict[str, float]] = {}
        # Weights whose block is not the Gauss–Newton block for some sample.
        self.inexact: set[str] = set()
        self.weights: dict[str, str] = {}
        self.count = 0

    def add(self, chunk: _Chunk) -> None:
        self.count += chunk.linearization.num_samples
        self.weights = {
            name: layer.weight_name
            for name, layer in _chosen(chunk.linearization.layers, self.call.layers).items()
        }
        covered = {layer.weight_name for layer in chunk.linearization.layers.values()}
        for one in self.call.weights.values():
            if one.obstacle is None and one.parameter not in covered:
                covered.add(one.parameter)
                self.weights[one.name] = one.parameter
                self.inexact.add(one.name)
        for name in sorted(self.wanted):
            try:
                self._add(name, chunk)
            except Exception as error:
                self.wanted.discard(name)
                self.collected.refuse(name, error)

    def _add(self, name: str, chunk: _Chunk) -> None:
        if name in _OF_SAMPLES:
            self.samples.setdefault(name, []).append(_OF_SAMPLES[name](chunk))
        elif name in _OF_LAYERS:
            by_layer = self.layers.setdefault(name, {})
            for layer, value in _chosen(_OF_LAYERS[name](chunk), chunk.layers).items():
                by_layer.setdefault(layer, []).append(value)
        else:
            self._add_blocks(name, chunk)

    def _add_blocks(self, name: str, chunk: _Chunk) -> None:
        """Add what follows from Gauss–Newton blocks, where these are the Hessian's."""
        layers = _chosen(chunk.linearization.layers, chunk.layers)
        if name == "relative_flatness":
            self.flat = list(self.call.layers or [self.call.last_layer])
            layers = _chosen(layers, self.flat)
        self.inexact |= {n for n, layer in layers.items() if not layer.exact_block}
        exact = [n for n in layers if n not in self.inexact]
        total = self.means.setdefault(name, {})
        if not exact:
            return
        if name == "relative_flatness":
            found = relative_flatness_from(chunk.linearization, chunk.targets, layers=exact)
            values = {n: one.value for n, one in found.items()}
        else:
            values = adaptive_sharpness_from(chunk.linearization, chunk.targets, exact).by_parameter
        for key, value in values.items():
            total[key] = total.get(key, 0.0) + chunk.linearization.num_samples * value

    def collect(self) -> None:
        """Hand over the results."""
        for name in sorted(self.wanted):
            self.collected.attempt(name, lambda name=name: self._result(name))  # type: ignore[misc]

    def _result(self, name: str) -> Result:
        if name in _OF_SAMPLES:
            values = torch.cat(self.samples[name])
            if name == "log_volume":
                return features.mean_volume(values, None, "volume")
            if name == "local_dimension":
                return features.mean_dimension(values)
            if name == "gauss_newton_trace":
                return trace_measurement(values, name, "half_squared_error")
            return features.mean_measurement(values, name)
        if name in _OF_LAYERS:
            by_layer = {layer: torch.cat(parts) for layer, parts in self.layers[name].items()}
            if name == "network_maximum_local_sensitivity":
                return features.sum_over_layers(by_layer)
            if name == "network_log_volume":
                return features.volume_over_layers(by_layer, None)
            return {
                layer: trace_measurement(values, name, "half_squared_error", layer, "tied")
                for layer, values in by_layer.items()
            }
        return self._flatness() if name == "relative_flatness" else self._adaptive()

    def _flatness(self) -> dict[str, Measurement]:
        call = self.call
        results = {
            layer: Measurement(
                value=self.means["relative_flatness"][layer] / self.count,
                measure="relative_flatness",
                method="exact",
                n=self.count,
                loss=call.loss,
                layer=layer,
                assumptions={"exact_block": True, "weight_decay": 0.0},
            )
            for layer in self.flat
            if layer not in self.inexact and layer in self.means["relative_flatness"]
        }
        left = [layer for layer in self.flat if layer not in results]
        if left:
            results |= call.own(relative_flatness, layers=left, strict=False, **call.estimates)
        return results

    def _adaptive(self) -> Measurement:
        call = self.call
        terms = {
            key: total / self.count
            for key, total in self.means["adaptive_weight_sharpness"].items()
        }
        left = [self.weights[layer] for layer in self.weights if layer in self.inexact]
        if left:
            rest = call.own(adaptive_sharpness, parameters=left, **call.estimates)
            terms = {k: v for k, v in terms.items() if k not in left} | rest.by_parameter
            standard_error, probes, method = rest.standard_error, rest.probes, rest.method
        else:
            standard_error, probes, method = None, None, "exact"
        return Measurement(
            value=sum(terms.values()),
            measure="adaptive_weight_sharpness",
            method=method,
            n=self.count,
            loss=call.loss,
            standard_error=standard_error,
            probes=probes,
            assumptions={"parameters": tuple(self.weights.values())},
        )
