r"""The trace of the Gauss–Newton matrix, as the mean squared gradient of the outputs.

.. math:: S = \operatorname{Tr} G = \frac1n \sum_i \bigl\| R_i J_i \bigr\|_F^2,
    \qquad J_i = \frac{\partial f(x_i)}{\partial\theta}, \quad R_i^\top R_i = \Lambda_i

For the loss ½‖f − y‖² averaged over samples, Λ = I and this is the sharpness of the compression
paper's equation 3; it equals the trace of the Hessian where the model interpolates the data, and
for networks that are piecewise linear in each single weight anywhere. A number under another loss
is another number: with the mean over outputs of ``torch.nn.MSELoss()`` it is 2/C times as large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.estimators.gradient_probes import squares_by_probes
from paperkit.estimators.gradient_squares import (
    SHARING,
    jacobian_squares,
    layer_gradient_squares,
    output_factor,
    parameter_gradient_squares,
)
from paperkit.estimators.layer_results import LayerResults, layer_results
from paperkit.estimators.passes import Chunk, PassMeasure, Problem, over_linearizations, run_alone
from paperkit.estimators.result import Measurement
from paperkit.estimators.spectra import MAX_DENSE
from paperkit.linearize.blocks import num_outputs
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.weights import chosen_weights
from paperkit.memory import GIBIBYTE
from paperkit.network.losses import Loss, LossLike
from paperkit.network.problem import measure_of

METHODS = ("auto", "exact", "hutchinson")

# Above this many outputs the exact route's C backward passes cost more than the probes.
_EXACT_OUTPUTS = 100


@measure_of
def gauss_newton_trace(
    model: nn.Module,
    data: object,
    parameters: str | Sequence[str] = "all",
    loss: LossLike = "half_squared_error",
    *,
    method: str = "auto",
    probes: int = 10,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return the trace of the Gauss–Newton matrix over all parameters or some layers' weights.

    Source: compression paper, equation 3.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them, of any sizes; the targets are not used.
    parameters : "all" or sequence of str
        All parameters, biases and normalisation included; or the weights of the layers named.
    loss : str
        A name from :data:`paperkit.network.losses.LOSSES`.
    method : str
        ``"exact"`` (C backward passes), ``"hutchinson"`` (one backward pass a probe: for signs v,
        independent and equally likely, :math:`\|\partial (v^\top R f)/\partial\theta\|^2` has the
        right mean), or ``"auto"``: exact up to 100 outputs.
    probes : int
        Sign vectors a sample, at least 2.
    seed : int
        Seed of the signs.
    memory_budget : int
        Bytes for the pairs and temporaries.

    Returns
    -------
    Measurement
        With a standard error over the probes under ``"hutchinson"``.

    Raises
    ------
    ValueError
        If an argument is unknown or out of range, or the data do not fit the model.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import gauss_newton_trace
    >>> model = nn.Linear(2, 1, bias=False)
    >>> data = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.zeros(2, 1)
    >>> round(float(gauss_newton_trace(model, data)), 4)  # the mean of ‖x‖²
    13.0
    """
    method = arguments.choice("method", method, METHODS)
    layers = None
    if isinstance(parameters, str):
        if parameters != "all":
            raise ValueError(f'parameters={parameters!r}: pass "all" or a list of layers.')
    else:
        parameters = arguments.strings("parameters", parameters, '"all" or a list of layers')
        layers = list(chosen_weights(model, parameters, "parameters"))
    problem = _problem(model, data, layers, loss, memory_budget)
    if method == "auto":
        many = num_outputs(model, problem.first_inputs) > _EXACT_OUTPUTS
        method = "hutchinson" if many else "exact"
    if method == "hutchinson":
        return _by_probes(problem, probes, seed)
    return run_alone(_trace(loss) if layers is None else _trace_of_layers(loss), problem)


@measure_of
def layer_gauss_newton_traces(
    model: nn.Module,
    data: object,
    layers: Sequence[str] | None = None,
    loss: LossLike = "half_squared_error",
    *,
    sharing: str = "tied",
    strict: bool | None = None,
    memory_budget: int = GIBIBYTE,
) -> LayerResults[Measurement]:
    """Return the Gauss–Newton trace of each layer's weight, exactly.

    Parameters
    ----------
    model, data, loss, memory_budget
        As in :func:`gauss_newton_trace`.
    layers : sequence of str, optional
        Module names, or names of parameters with two axes or more that are no module's ``weight``
        (``"rnn.weight_hh_l0"``); default all, those of other kinds than linear and convolution
        layers as long as they are small.
    sharing : str
        ``"tied"``, ``"positions"`` or ``"operator"``; weights of other kinds know the first only.
    strict : bool, optional
        Whether a layer that cannot be measured ends the call. Default: only if ``layers`` names it;
        else it is left out, with its reason in ``left_out`` and in a warning.

    Returns
    -------
    LayerResults of Measurement
        A dict by layer, in the order of the forward pass.

    Raises
    ------
    ValueError
        If an argument is unknown, the data do not fit the model, or none of the layers can be
        measured; with ``strict`` if one cannot.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import layer_gauss_newton_traces
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.eye_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> traces = layer_gauss_newton_traces(model, (torch.eye(2), torch.zeros(2, 1)))
    >>> {name: round(float(trace), 4) for name, trace in traces.items()}  # ‖B‖² ‖x‖²
    {'0': 2.0, '1': 1.0}
    """
    sharing = arguments.choice("sharing", sharing, SHARING)
    strict = layers is not None if strict is None else strict
    measure = _layer_traces(loss, sharing, strict)
    return run_alone(measure, _problem(model, data, layers, loss, memory_budget))


def _problem(
    model: nn.Module,
    data: object,
    layers: Sequence[str] | None,
    loss: Loss,
    memory_budget: int,
) -> Problem:
    """Return the problem of the pass; targets may be of any kind where no curvature needs them."""
    return Problem.of(
        model,
        data,
        loss=loss,
        layers=layers,
        memory_budget=memory_budget,
        with_targets=loss.curvature_needs_targets,
    )


def _by_probes(problem: Problem, probes: int, seed: int) -> Measurement:
    """Estimate the trace from random signs."""
    names = None
    if problem.layers is not None:
        names = list(dict.fromkeys(weight.parameter for weight in problem.weights.values()))
    values = squares_by_probes(
        names, problem.model, problem.data, problem.loss, probes, seed, problem.memory_budget
    )
    # Probes of different samples are independent: the variances of the samples' means add up.
    variance = values.var(dim=0).mean() / values.numel()
    return Measurement(
        value=float(values.mean()),
        measure="gauss_newton_trace",
        method="hutchinson",
        n=values.shape[1],
        loss=problem.loss,
        standard_error=float(variance.sqrt()),
        probes=probes,
    )


def _measurement(
    values: Tensor,
    measure: str,
    loss: LossLike,
    layer: str | None = None,
    sharing: str | None = None,
) -> Measurement:
    """Return the mean of the samples' values (n,) as the named trace."""
    assumptions: dict[str, object] = {"deviation": float(values.std(correction=0))}
    if sharing is not None:
        assumptions["sharing"] = sharing
    return Measurement(
        value=float(values.mean()),
        measure=measure,
        method="exact",
        n=len(values),
        loss=loss,
        layer=layer,
        assumptions=assumptions,
    )


# --- Squared gradients by weight, in a pass


@dataclass(frozen=True)
class _WeightSquares:
    """Each sample's squared gradients by weight, (n,).

    Attributes
    ----------
    values : dict of str to Tensor
        By name.
    covered : dict of str to str
        Names of the measured parameters, with the name under which each is measured.
    left_out : dict of str to str
        Why other weights have no value.
    """

    values: dict[str, Tensor]
    covered: dict[str, str]
    left_out: Mapping[str, str]


def _layer_squares(chunk: Chunk, loss: LossLike, sharing: str) -> dict[str, Tensor]:
    return layer_gradient_squares(chunk.linearization, loss, sharing)


def _weight_squares(chunk: Chunk, loss: LossLike, sharing: str) -> _WeightSquares:
    """Return the squares of the layers, and of other weights that the pass has differentiated."""
    squares = chunk.once(_layer_squares, loss, sharing)
    values = {name: squares[layer.name] for name, layer in chunk.layers.items()}
    covered = {layer.weight_name: name for name, layer in chunk.layers.items()}
    others, left_out = _other_weights(chunk.problem, covered, sharing)
    values |= _differentiated(chunk.linearization, others, loss)
    return _WeightSquares(values, covered, left_out)


def _differentiated(
    linearization: Linearization, others: Mapping[str, str], loss: LossLike
) -> dict[str, Tensor]:
    """Return the squares, by weight, of those parameters that were differentiated."""
    factor = output_factor(linearization, loss)
    return {
        others[parameter]: jacobian_squares(jacobian, factor, linearization.memory_budget)
        for parameter, jacobian in (linearization.parameter_jacobians or {}).items()
        if parameter in others
    }


def _other_weights(
    problem: Problem, covered: Mapping[str, str], sharing: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the weights to differentiate, from parameter to name, and why others are left out.

    They are those that no layer's pair covers; where nobody named them, as long as they are small.
    """
    room = MAX_DENSE if problem.layers is None else None
    cut = problem.cut if len(covered) < len(problem.weights) else ()
    others: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name, weight in problem.weights.items():
        known = covered.get(weight.parameter, others.get(weight.parameter))
        if known is not None:
            if known != name and room is None:
                left_out[name] = f"it shares the weight of layer {known}"
        elif weight.parameter in cut:
            left_out[name] = "no gradient reaches its weight"
        elif sharing != "tied":
            left_out[name] = f"sharing={sharing!r} is known of plain layers only"
        elif room is not None and weight.num_parameters > room:
            left_out[name] = f"it is no plain layer, and large with {weight.num_parameters} entries"
        else:
            others[weight.parameter] = name
            room = room - weight.num_parameters if room is not None else None
    return others, left_out


def _joined(
    parts: Sequence[_WeightSquares], problem: Problem, loss: LossLike, sharing: str
) -> _WeightSquares:
    """Join the chunks, and differentiate in a pass of its own what this one has not."""
    covered = parts[-1].covered if parts else {}
    others, left_out = _other_weights(problem, covered, sharing)
    values = _concatenated([part.values for part in parts])
    missing = {parameter: name for parameter, name in others.items() if name not in values}
    if missing:
        values |= _concatenated(
            over_linearizations(
                lambda linearization, _: _differentiated(linearization, missing, loss),
                problem,
                layers=(),
                all_parameters=list(missing),
            )
        )
    return _WeightSquares(values, {**covered, **others}, left_out)


def _concatenated(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = parts[0] if parts else ()
    return {name: torch.cat([part[name] for part in parts]) for name in names}


# --- The measures of the pass


def _layer_traces(
    loss: LossLike = "half_squared_error", sharing: str = "tied", strict: bool = False
) -> PassMeasure:
    name = "layer_gauss_newton_traces"

    def finish(parts: list[_WeightSquares], problem: Problem) -> LayerResults[Measurement]:
        squares = _joined(parts, problem, loss, sharing)
        results = {
            layer: _measurement(values, name, loss, layer, sharing)
            for layer, values in squares.values.items()
        }
        return layer_results(
            name, problem.model, results, squares.covered, squares.left_out, strict=strict
        )

    return PassMeasure(name, finish, partial(_weight_squares, loss=loss, sharing=sharing))


def _trace_of_layers(loss: LossLike) -> PassMeasure:
    name = "gauss_newton_trace"

    def finish(parts: list[_WeightSquares], problem: Problem) -> Measurement:
        squares = _joined(parts, problem, loss, "tied")
        for layer, reason in squares.left_out.items():
            raise ValueError(f"parameters: {layer} cannot be measured: {reason}.")
        return _measurement(torch.stack(list(squares.values.values())).sum(dim=0), name, loss)

    return PassMeasure(name, finish, partial(_weight_squares, loss=loss, sharing="tied"))


def _trace(loss: LossLike = "half_squared_error") -> PassMeasure:
    name = "gauss_newton_trace"

    def of_chunk(chunk: Chunk) -> Tensor:
        squares = chunk.once(_layer_squares, loss, "tied")
        return parameter_gradient_squares(chunk.linearization, loss, squares)

    def finish(parts: list[Tensor], _: Problem) -> Measurement:
        return _measurement(torch.cat(parts), name, loss)

    return PassMeasure(name, finish, of_chunk, needs=("all_parameters",))


GAUSS_NEWTON_TRACE = _trace()
LAYER_GAUSS_NEWTON_TRACES = _layer_traces()
