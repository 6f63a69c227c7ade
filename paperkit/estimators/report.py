"""Any set of measures of one network, from one pass of linearization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from paperkit.estimators import baselines, worst_case
from paperkit.estimators import representation as features
from paperkit.estimators.adaptive_sharpness import adaptive_sharpness, adaptive_sharpness_from
from paperkit.estimators.gauss_newton_trace import (
    gradient_squares_from,
    layer_gradient_squares,
    trace_measurement,
)
from paperkit.estimators.hessian import hessian_top_eigenvalues, hessian_trace
from paperkit.estimators.information_geometry import (
    fisher_rao_norm,
    information_geometric_sharpness,
    information_geometric_sharpness_from,
)
from paperkit.estimators.pac_bayes import pac_bayes_flatness
from paperkit.estimators.parameter_norm import parameter_norm
from paperkit.estimators.rangamani import rangamani_sharpness
from paperkit.estimators.relative_flatness import relative_flatness, relative_flatness_from
from paperkit.estimators.renyi import RenyiSharpness, renyi_sharpness, renyi_sharpness_from
from paperkit.estimators.result import Measurement
from paperkit.linearize.batches import as_batch
from paperkit.linearize.linearize import (
    GIBIBYTE,
    Gathered,
    Linearization,
    held_bytes,
    linearize_in_chunks,
)
from paperkit.linearize.losses import Loss, LossLike
from paperkit.linearize.problem import measure_of

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


@dataclass(frozen=True, repr=False, eq=False)
class Report(Mapping[str, Any]):
    """Measures of one network on one set of samples, by name.

    It prints as a table; ``report["renyi_sharpness"]["conv1"][0.5]`` is a single result.

    Attributes
    ----------
    results : mapping of str to result
        By measure: one :class:`Measurement`, or one for each layer, or one for each layer and
        order.
    """

    results: Mapping[str, Result]

    def __getitem__(self, name: str) -> Any:
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
        n, loss, converged. What does not apply is missing.
        """
        return pd.DataFrame([_row(one) for one in self.measurements()])

    def __repr__(self) -> str:
        shown = self.frame()[["measure", "layer", "alpha", "value", "standard_error", "method"]]
        return shown.to_string(index=False, na_rep="", float_format="{:.6g}".format)

    def _repr_html_(self) -> str:
        return str(self.frame().to_html(index=False, na_rep="", float_format="{:.6g}".format))


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
    }


@measure_of
def measure(
    model: nn.Module,
    data: object,
    measures: Sequence[str] | str = DEFAULT_MEASURES,
    loss: LossLike = "cross_entropy",
    *,
    alpha: Sequence[float] = (0.5, 1.5),
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> Report:
    """Compute any set of measures, those of ``PASS_MEASURES`` from one pass of linearization.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
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
        See :func:`paperkit.linearize.get_loss`.
    alpha : sequence of float
        Orders of the Rényi sharpness.
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
        If a name is unknown, none is given, or as the measures' own functions.
    """
    names = MEASURES if measures == "all" else tuple(measures)
    unknown = [name for name in names if name not in MEASURES]
    if isinstance(measures, str) and measures != "all":
        raise ValueError(f'measures={measures!r}: pass a list of names, or "all".')
    if unknown or not names:
        raise ValueError(f"measures={unknown or names}: choose among {', '.join(MEASURES)}.")
    pair = as_batch(data)
    wanted = set(names)
    results: dict[str, Result] = {}
    if wanted & set(PASS_MEASURES):
        results |= _from_one_pass(model, pair, loss, wanted, tuple(alpha), seed, memory_budget)
    if "parameter_norm" in wanted:
        results["parameter_norm"] = parameter_norm(model)
    for name in wanted & set(_CHEAP):
        results[name] = _CHEAP[name](model, pair, loss=loss, memory_budget=memory_budget)
    for name in wanted & set(_COSTLY):
        results[name] = _COSTLY[name](
            model, pair, loss=loss, seed=seed, memory_budget=memory_budget
        )
    if "pac_bayes_flatness" in wanted:
        results["pac_bayes_flatness"] = pac_bayes_flatness(
            model, pair, seed=seed, memory_budget=memory_budget
        )
    return Report({name: results[name] for name in names})


def _from_one_pass(
    model: nn.Module,
    pair: tuple[Tensor, Tensor],
    loss: Loss,
    wanted: set[str],
    orders: tuple[float, ...],
    seed: int,
    memory_budget: int,
) -> dict[str, Result]:
    inputs, targets = pair
    every_parameter = bool(wanted & {"gauss_newton_trace", "information_geometric_sharpness"})
    held = held_bytes(model, inputs, all_parameters=every_parameter)
    keep = bool(wanted & set(_JOINT)) and held <= memory_budget // 2
    sums = _Sums(wanted, seed, memory_budget)
    gathered: Gathered | None = None
    start = 0
    for chunk, labels in linearize_in_chunks(
        model,
        pair,
        loss,
        input_jacobians=bool(wanted & {*_LAYER_INPUTS, *_NETWORK_INPUT}),
        all_parameters=every_parameter,
        memory_budget=(memory_budget - held) // 2 if keep else memory_budget,
    ):
        samples = slice(start, start + chunk.num_samples)
        sums.add(chunk, inputs[samples], labels)
        start = samples.stop
        if keep:
            gathered = gathered or Gathered(chunk, len(inputs))
            gathered.add(chunk)
        del chunk  # or it would live on while the next is made
    results = sums.results(model, pair, loss)
    # The chunks were made beside what is kept; now the rest of the budget is free.
    whole = gathered.linearization(memory_budget) if gathered is not None else None
    if "renyi_sharpness" in wanted:
        if whole is not None:
            results["renyi_sharpness"] = renyi_sharpness_from(
                whole.layers, model, *pair, loss, orders, seed=seed, memory_budget=memory_budget
            )
        else:
            results["renyi_sharpness"] = renyi_sharpness(
                model, pair, orders, loss, seed=seed, memory_budget=memory_budget
            )
    if "information_geometric_sharpness" in wanted:
        results["information_geometric_sharpness"] = (
            information_geometric_sharpness_from(whole, targets)
            if whole is not None
            else information_geometric_sharpness(model, pair, loss, memory_budget=memory_budget)
        )
    return results


class _Sums:
    """What a pass adds up, chunk of samples by chunk."""

    def __init__(self, wanted: set[str], seed: int, memory_budget: int) -> None:
        self.wanted = wanted
        # Of what has to be estimated with passes of its own after all.
        self.options: dict[str, Any] = {"seed": seed, "memory_budget": memory_budget}
        # Each sample's values by measure, or by measure and layer.
        self.samples: dict[str, list[Tensor]] = {}
        self.layers: dict[str, dict[str, list[Tensor]]] = {}
        # Sums over samples of results that are means over samples.
        self.means: dict[str, dict[str, float]] = {}
        self.weights: list[str] = []
        self.exact = True
        self.last_layer = ""
        self.count = 0

    def add(self, chunk: Linearization, inputs: Tensor, targets: Tensor) -> None:
        self.count += chunk.num_samples
        self._add_network_input(chunk, inputs)
        self._add_layer_inputs(chunk)
        if "layer_gauss_newton_traces" in self.wanted or "gauss_newton_trace" in self.wanted:
            squares = layer_gradient_squares(chunk)
            self._add_layers("layer_gauss_newton_traces", squares)
            if "gauss_newton_trace" in self.wanted:
                rest = gradient_squares_from(replace(chunk, layers={}))
                total = torch.stack([*squares.values(), rest]).sum(dim=0)
                self.samples.setdefault("gauss_newton_trace", []).append(total)
        self._add_exact_blocks(chunk, targets)

    def _add_network_input(self, chunk: Linearization, inputs: Tensor) -> None:
        jacobian = chunk.input_jacobian
        if jacobian is None or not self.wanted & set(_NETWORK_INPUT):
            return
        values: dict[str, Callable[[], Tensor]] = {
            "maximum_local_sensitivity": lambda: features.largest_singular_values(jacobian),
            "normalized_maximum_local_sensitivity": lambda: features.normalized_squares(
                features.largest_singular_values(jacobian), inputs
            ),
            "input_invariant_local_sensitivity": lambda: features.input_invariant_sensitivities(
                jacobian, inputs
            ),
            "log_volume": lambda: features.log_volumes(jacobian),
            "local_dimension": lambda: features.local_dimensions(jacobian),
        }
        for name in self.wanted & set(values):
            self.samples.setdefault(name, []).append(values[name]())

    def _add_layer_inputs(self, chunk: Linearization) -> None:
        if "network_maximum_local_sensitivity" in self.wanted:
            self._add_layers(
                "network_maximum_local_sensitivity", features.layer_sensitivities_from(chunk)
            )
        if "network_log_volume" in self.wanted:
            self._add_layers("network_log_volume", features.layer_log_volumes_from(chunk))

    def _add_layers(self, name: str, values: dict[str, Tensor]) -> None:
        by_layer = self.layers.setdefault(name, {})
        for layer, value in values.items():
            by_layer.setdefault(layer, []).append(value)

    def _add_exact_blocks(self, chunk: Linearization, targets: Tensor) -> None:
        """Add what follows from Gauss–Newton blocks, while these are the Hessian's."""
        if "relative_flatness" in self.wanted:
            self.last_layer = list(chunk.layers)[-1]
            if chunk.layers[self.last_layer].exact_block:
                (one,) = relative_flatness_from(chunk, targets).values()
                self._add_mean("relative_flatness", {self.last_layer: one.value}, chunk)
        if "adaptive_weight_sharpness" in self.wanted:
            self.weights = [layer.weight_name for layer in chunk.layers.values()]
            self.exact = all(layer.exact_block for layer in chunk.layers.values())
            if self.exact:
                by_parameter = adaptive_sharpness_from(chunk, targets).by_parameter
                self._add_mean("adaptive_weight_sharpness", by_parameter, chunk)

    def _add_mean(self, name: str, values: Mapping[str, float], chunk: Linearization) -> None:
        total = self.means.setdefault(name, {})
        for key, value in values.items():
            total[key] = total.get(key, 0.0) + chunk.num_samples * value

    def results(
        self, model: nn.Module, pair: tuple[Tensor, Tensor], loss: Loss
    ) -> dict[str, Result]:
        samples = {name: torch.cat(parts) for name, parts in self.samples.items()}
        layers = {
            name: {layer: torch.cat(parts) for layer, parts in by_layer.items()}
            for name, by_layer in self.layers.items()
        }
        results: dict[str, Result] = {}
        for name, values in samples.items():
            if name == "log_volume":
                results[name] = features.mean_volume(values, None, "volume")
            elif name == "local_dimension":
                results[name] = features.mean_dimension(values)
            elif name == "gauss_newton_trace":
                results[name] = trace_measurement(values, name, "half_squared_error")
            else:
                results[name] = features.mean_measurement(values, name)
        missing = (self.wanted & set(_NETWORK_INPUT)) - set(results)
        if missing:
            raise ValueError(
                f"measures={sorted(missing)} differentiate in the network's input, which is not "
                "a floating-point tensor: leave them out."
            )
        for name, by_layer in layers.items():
            if name == "network_maximum_local_sensitivity":
                results[name] = features.sum_over_layers(by_layer)
            elif name == "network_log_volume":
                results[name] = features.volume_over_layers(by_layer, None)
            else:
                results[name] = {
                    layer: trace_measurement(values, name, "half_squared_error", layer, "tied")
                    for layer, values in by_layer.items()
                }
        return results | self._exact_blocks(model, pair, loss)

    def _exact_blocks(
        self, model: nn.Module, pair: tuple[Tensor, Tensor], loss: Loss
    ) -> dict[str, Result]:
        results: dict[str, Result] = {}
        if "relative_flatness" in self.wanted:
            if "relative_flatness" in self.means:
                results["relative_flatness"] = {
                    layer: Measurement(
                        value=total / self.count,
                        measure="relative_flatness",
                        method="exact",
                        n=self.count,
                        loss=loss,
                        layer=layer,
                        assumptions={"exact_block": True, "weight_decay": 0.0},
                    )
                    for layer, total in self.means["relative_flatness"].items()
                }
            else:
                results["relative_flatness"] = relative_flatness(
                    model, pair, loss, [self.last_layer], **self.options
                )
        if "adaptive_weight_sharpness" in self.wanted:
            results["adaptive_weight_sharpness"] = self._adaptive(model, pair, loss)
        return results

    def _adaptive(self, model: nn.Module, pair: tuple[Tensor, Tensor], loss: Loss) -> Measurement:
        if self.exact:
            by_parameter = self.means["adaptive_weight_sharpness"]
            return Measurement(
                value=sum(by_parameter.values()) / self.count,
                measure="adaptive_weight_sharpness",
                method="exact",
                n=self.count,
                loss=loss,
                assumptions={"parameters": tuple(by_parameter)},
            )
        whole = adaptive_sharpness(model, pair, loss, self.weights, **self.options)
        return replace(whole, measure="adaptive_weight_sharpness")
