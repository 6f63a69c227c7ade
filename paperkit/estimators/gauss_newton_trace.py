r"""The trace of the Gauss–Newton matrix, as the mean squared gradient of the outputs.

.. math:: S = \operatorname{Tr} G = \frac1n \sum_i \bigl\| R_i J_i \bigr\|_F^2,
    \qquad J_i = \frac{\partial f(x_i)}{\partial\theta}, \quad R_i^\top R_i = \Lambda_i

For the loss ½‖f − y‖² averaged over samples, Λ = I and this is the sharpness of the compression
paper's equation 3; it equals the trace of the Hessian where the model interpolates the data, and
for networks that are piecewise linear in each single weight anywhere. A number under another loss
is another number: with the mean over outputs of ``torch.nn.MSELoss()`` it is 2/C times as large.

A weight that acts at several positions has a gradient that is a coherent sum over them, which can
vanish although each term is large. The bounds of the paper's Section 3 need the sum of squares
instead, as if the sharing were undone; ``"tied"``, ``"positions"`` and ``"operator"`` name the
choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from paperkit import arguments
from paperkit.curvature.jacobian_products import reverse_pass
from paperkit.estimators.layer_results import LayerResults, layer_results
from paperkit.estimators.result import Measurement
from paperkit.estimators.spectra import MAX_DENSE
from paperkit.linalg.gram import sums_of_squares
from paperkit.linalg.probes import generator_of
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.linearize import linearize_in_chunks
from paperkit.linearize.weights import Weight, chosen_weights
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import batches
from paperkit.network.evaluation import check_inputs, check_outputs, evaluation
from paperkit.network.footprint import BACKWARD, Chunks
from paperkit.network.losses import LOSSES, Loss, LossLike, get_loss
from paperkit.network.network import network_outputs
from paperkit.network.problem import cut_parameters, measure_of, refuse_cut
from paperkit.network.samples import Inputs

METHODS = ("auto", "exact", "hutchinson")

SHARING = ("tied", "positions", "operator")
"""What counts as one parameter of a layer.

``"tied"``: the weight as it is. ``"positions"``: a copy of the weight for every position and call.
``"operator"``: every entry of the layer's linear operator, as if it were fully connected.
"""

# Float64 matrices of a sample, C × C, that the factor of the loss's Hessian passes through.
_FACTOR_COPIES = 5

# Above this many outputs the exact route's C backward passes cost more than the probes.
_EXACT_OUTPUTS = 100


def weight_gradient_squares(layer: LayerLinearization, factor: Tensor | None = None) -> Tensor:
    r"""Return :math:`\|R_i\,\partial f_i/\partial W\|_F^2` of each sample.

    With the positions p of all calls in one list, it is
    :math:`\sum_{pp'} \langle B_p, B_{p'}\rangle \langle a_p, a_{p'}\rangle`: through two P × P
    Gram matrices, or through the rows :math:`\sum_p B_p a_p^\top` themselves, whichever is cheaper.

    Parameters
    ----------
    layer : LayerLinearization
        A layer on n samples.
    factor : Tensor, optional
        R, shape (n, r, C); default the identity.

    Returns
    -------
    Tensor
        Shape (n,), float64.
    """
    num_rows = layer.uses[0].output_jacobian.shape[1] if factor is None else factor.shape[1]
    groups, outputs, fan_in = layer.layout.matrix_shape
    positions = sum(use.positions() for use in layer.uses)
    through_rows = num_rows * outputs * fan_in <= positions * (num_rows * outputs + fan_in)
    size = num_rows * layer.num_parameters if through_rows else 2 * groups * positions**2
    size += positions * groups * (num_rows * outputs + fan_in)

    def squares(samples: slice) -> Tensor:
        cotangents = _joined([_rows(use, samples, factor) for use in layer.uses])
        columns = _joined([use.columns(samples) for use in layer.uses])
        left = cotangents.transpose(1, 2).flatten(2, 3)  # (n, g, r·o, P)
        if through_rows:
            return sums_of_squares(left @ columns.mT)
        # Here the sum over pairs can cancel, to the square of what the rows can.
        left, right = left.double(), columns.double()
        return ((left.mT @ left) * (right.mT @ right)).sum(dim=(1, 2, 3)).clamp(min=0.0)

    return _by_samples(squares, layer, size)


def position_gradient_squares(layer: LayerLinearization, factor: Tensor | None = None) -> Tensor:
    r"""Return :math:`\sum_p \|R_i B_{ip}\|_F^2 \|a_{ip}\|^2`: every position has its own weight.

    Parameters
    ----------
    layer, factor
        As in :func:`weight_gradient_squares`.

    Returns
    -------
    Tensor
        Shape (n,), float64.
    """

    def squares(samples: slice) -> Tensor:
        parts = []
        for use in layer.uses:
            rows = _rows(use, samples, factor).square().sum(dim=(1, 3), dtype=torch.float64)
            columns = use.columns(samples).square().sum(dim=2, dtype=torch.float64)
            parts.append((rows * columns).sum(dim=(1, 2)))
        return torch.stack(parts).sum(dim=0)

    return _by_samples(squares, layer, _pair_size(layer))


def operator_gradient_squares(layer: LayerLinearization, factor: Tensor | None = None) -> Tensor:
    r"""Return :math:`\|R_i B_i\|_F^2 \|x_i\|^2`, x the layer's whole input, summed over its calls.

    It is the squared gradient in the entries of the layer's operator T, :math:`z = T x`, if each
    were free, and equals :func:`weight_gradient_squares` where a fully connected layer is called
    once on one position (compression paper, equation 4).

    Parameters
    ----------
    layer, factor
        As in :func:`weight_gradient_squares`.

    Returns
    -------
    Tensor
        Shape (n,), float64.
    """

    def squares(samples: slice) -> Tensor:
        parts = [
            _rows(use, samples, factor).flatten(1).norm(dim=1, dtype=torch.float64).square()
            * use.inputs[samples].flatten(1).norm(dim=1, dtype=torch.float64).square()
            for use in layer.uses
        ]
        return torch.stack(parts).sum(dim=0)

    return _by_samples(squares, layer, _pair_size(layer))


_SQUARES: dict[str, Callable[[LayerLinearization, Tensor | None], Tensor]] = {
    "tied": weight_gradient_squares,
    "positions": position_gradient_squares,
    "operator": operator_gradient_squares,
}


def _rows(use: LayerUse, samples: slice, factor: Tensor | None) -> Tensor:
    """Return R B of some samples, (n, r, g, o, P)."""
    cotangents = use.cotangents(samples)
    if factor is None:
        return cotangents
    return torch.einsum("nrc,ncgop->nrgop", factor[samples], cotangents)


def _joined(calls: Sequence[Tensor]) -> Tensor:
    """Put the positions of all calls in one list; the last axis holds them."""
    return calls[0] if len(calls) == 1 else torch.cat(list(calls), dim=-1)


def _pair_size(layer: LayerLinearization) -> int:
    """Count the entries of the largest call's unfolded pair, for one sample."""
    return max(
        use.output_jacobian[0].numel() + use.positions() * use.groups * layer.layout.matrix_shape[2]
        for use in layer.uses
    )


def _by_samples(
    function: Callable[[slice], Tensor], layer: LayerLinearization, entries: int
) -> Tensor:
    n = layer.uses[0].inputs.shape[0]
    step = max(1, layer.memory_budget // (4 * 8 * entries))
    return torch.cat([function(slice(start, start + step)) for start in range(0, n, step)])


def gradient_squares_from(
    linearization: Linearization,
    parameters: str | Sequence[str] = "all",
    loss: LossLike = "half_squared_error",
) -> Tensor:
    r"""Return :math:`\|R_i\,\partial f_i/\partial\theta\|_F^2` of each sample.

    Parameters
    ----------
    linearization : Linearization
        With all parameters, if ``parameters`` is ``"all"``.
    parameters : "all" or sequence of str
        All parameters, biases and normalisation included; or the weights of the layers named.
    loss : str
        A name from :data:`paperkit.network.losses.LOSSES`; it may differ from the
        linearization's own.

    Returns
    -------
    Tensor
        Shape (n,), float64.

    Raises
    ------
    ValueError
        If the linearization lacks what is asked for, or the loss is unknown.
    """
    factor = _factor(linearization, loss)
    if isinstance(parameters, str):
        _check_all(parameters)
        if linearization.parameter_jacobians is None:
            raise ValueError(
                "linearization lacks the other parameters: set all_parameters=True, or name the "
                "layers in parameters."
            )
        names: Sequence[str] = list(linearization.layers)
        others = list(linearization.parameter_jacobians.values())
    else:
        names, others = arguments.names("parameters", parameters, linearization.layers), []
    total = torch.zeros(
        len(linearization.outputs), dtype=torch.float64, device=linearization.outputs.device
    )
    for name in names:
        total += weight_gradient_squares(linearization.layers[name], factor)
    for jacobian in others:
        total += _jacobian_squares(jacobian, factor, linearization.memory_budget)
    return total


def _jacobian_squares(jacobian: Tensor, factor: Tensor | None, memory_budget: int) -> Tensor:
    """Return ‖R_i J_i‖² of each sample, (n,), from J, (n, C, d)."""
    total = torch.zeros(len(jacobian), dtype=torch.float64, device=jacobian.device)
    # At C = 1,000 even one sample's rows are many: a few columns at a time.
    bytes_each = 2 * len(jacobian) * jacobian.shape[1] * jacobian.element_size()
    for columns in jacobian.split(max(1, memory_budget // (4 * bytes_each)), 2):
        rows = columns if factor is None else factor @ columns
        total += sums_of_squares(rows)
    return total


def _factor(linearization: Linearization, loss: LossLike) -> Tensor | None:
    """Return R of the named loss, None where it is the identity."""
    known = get_loss(loss)
    if known is LOSSES["half_squared_error"]:
        return None
    if known is linearization.loss:
        return linearization.hessian_factor
    return known.hessian_factor(linearization.outputs)


def _check_all(parameters: str) -> None:
    if parameters != "all":
        raise ValueError(f'parameters={parameters!r}: pass "all" or a list of layers.')


def gauss_newton_trace_from(
    linearization: Linearization,
    parameters: str | Sequence[str] = "all",
    loss: LossLike = "half_squared_error",
) -> Measurement:
    """Return :func:`gauss_newton_trace` of a linearization.

    Parameters
    ----------
    linearization, parameters, loss
        As in ``gradient_squares_from``.

    Returns
    -------
    Measurement
        Exact on its samples.

    Raises
    ------
    ValueError
        As ``gradient_squares_from``.
    """
    values = gradient_squares_from(linearization, parameters, loss)
    return trace_measurement(values, "gauss_newton_trace", loss)


def layer_gauss_newton_traces_from(
    linearization: Linearization, loss: LossLike = "half_squared_error", *, sharing: str = "tied"
) -> dict[str, Measurement]:
    """Return :func:`layer_gauss_newton_traces` of a linearization."""
    return {
        name: trace_measurement(values, "layer_gauss_newton_traces", loss, name, sharing)
        for name, values in layer_gradient_squares(linearization, loss, sharing).items()
    }


def layer_gradient_squares(
    linearization: Linearization, loss: LossLike = "half_squared_error", sharing: str = "tied"
) -> dict[str, Tensor]:
    """Return each sample's squared gradient norm by layer, (n,), float64."""
    sharing = arguments.choice("sharing", sharing, SHARING)
    factor = _factor(linearization, loss)
    return {name: _SQUARES[sharing](layer, factor) for name, layer in linearization.layers.items()}


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
        As in ``gradient_squares_from``.
    loss : str
        A name from :data:`paperkit.network.losses.LOSSES`.
    method : str
        ``"exact"`` (C backward passes), ``"hutchinson"`` (one backward pass a probe: for signs v,
        independent and equally likely, :math:`\|\partial (v^\top R f)/\partial\theta\|^2` has the
        right mean), or ``"auto"``: exact up to 100 outputs.
    probes : int
        Sign vectors a sample, at least 2.
    seed : int
        Of the signs.
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
    """
    method = arguments.choice("method", method, METHODS)
    if isinstance(parameters, str):
        _check_all(parameters)
    else:
        parameters = arguments.strings("parameters", parameters, '"all" or a list of layers')
        parameters = list(chosen_weights(model, parameters, "parameters"))
    if method == "auto":
        method = "exact" if _num_outputs(model, data) <= _EXACT_OUTPUTS else "hutchinson"
    if method == "hutchinson":
        return _hutchinson(model, data, parameters, loss, probes, seed, memory_budget)
    if isinstance(parameters, str):
        chunks = linearize_samples(
            model, data, loss, all_parameters=True, memory_budget=memory_budget
        )
        # Unlike a loop, map holds no chunk while the next one is made.
        of_chunk = partial(gradient_squares_from, parameters="all", loss=loss)
        values = torch.cat(list(map(of_chunk, chunks)))
    else:
        weights = chosen_weights(model, parameters)
        found, _, left_out = _weight_squares(model, data, weights, loss, "tied", memory_budget)
        for name, reason in left_out.items():
            raise ValueError(f"parameters: {name} cannot be measured: {reason}.")
        values = torch.stack(list(found.values())).sum(dim=0)
    return trace_measurement(values, "gauss_newton_trace", loss)


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
        One of ``"tied"``, ``"positions"``, ``"operator"``; weights of other kinds know the first.
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
    """
    sharing = arguments.choice("sharing", sharing, SHARING)
    weights = chosen_weights(model, layers)
    most = MAX_DENSE if layers is None else None
    found, parameters, left_out = _weight_squares(
        model, data, weights, loss, sharing, memory_budget, most
    )
    return layer_results(
        "layer_gauss_newton_traces",
        model,
        {
            name: trace_measurement(values, "layer_gauss_newton_traces", loss, name, sharing)
            for name, values in found.items()
        },
        parameters,
        left_out,
        strict=layers is not None if strict is None else strict,
    )


def _weight_squares(
    model: nn.Module,
    data: object,
    weights: Mapping[str, Weight],
    loss: Loss,
    sharing: str,
    memory_budget: int,
    most: int | None = None,
) -> tuple[dict[str, Tensor], list[str], dict[str, str]]:
    """Return each sample's squared gradient norm by weight, the parameters, and what is left out.

    From the pairs of layers that have them; other weights are differentiated, up to ``most``
    entries together.
    """
    readable = [name for name, weight in weights.items() if weight.obstacle is None]
    parts: dict[str, list[Tensor]] = {}
    covered: dict[str, str] = {}
    if readable:
        chunks = linearize_samples(
            model, data, loss, layers=readable, strict=False, memory_budget=memory_budget
        )
        for chunk in chunks:
            covered = {layer.weight_name: name for name, layer in chunk.layers.items()}
            for name, squares in layer_gradient_squares(chunk, loss, sharing).items():
                parts.setdefault(name, []).append(squares)
    others: dict[str, str] = {}
    left_out: dict[str, str] = {}
    cut = cut_parameters(model, next(iter(batches(data)))[0]) if len(covered) < len(weights) else ()
    for name, weight in weights.items():
        known = covered.get(weight.parameter) or others.get(weight.parameter)
        if known is not None:
            if known != name and most is None:
                left_out[name] = f"it shares the weight of layer {known}"
        elif weight.parameter in cut:
            left_out[name] = "no gradient reaches its weight"
        elif sharing != "tied":
            left_out[name] = f"sharing={sharing!r} is known of plain layers only"
        elif most is not None and weight.num_parameters > most:
            left_out[name] = f"it is no plain layer, and large with {weight.num_parameters} entries"
        else:
            others[weight.parameter] = name
            most = most - weight.num_parameters if most is not None else None
    if others:
        chunks = linearize_samples(
            model,
            data,
            loss,
            layers=(),
            all_parameters=list(others),
            memory_budget=memory_budget,
        )
        for chunk in chunks:
            factor = _factor(chunk, loss)
            for parameter, jacobian in (chunk.parameter_jacobians or {}).items():
                squares = _jacobian_squares(jacobian, factor, memory_budget)
                parts.setdefault(others[parameter], []).append(squares)
    found = {name: torch.cat(squares) for name, squares in parts.items()}
    return found, [*covered, *others], left_out


def linearize_samples(
    model: nn.Module,
    data: object,
    loss: LossLike = "half_squared_error",
    *,
    layers: Sequence[str] | None = None,
    input_jacobians: bool = False,
    output_jacobians: bool = True,
    all_parameters: bool | Sequence[str] = False,
    strict: bool = True,
    memory_budget: int = GIBIBYTE,
) -> Iterator[Linearization]:
    """Linearize a stream of batches; targets may be of any kind where no curvature needs them.

    Parameters
    ----------
    model, data, loss, layers, input_jacobians, output_jacobians, all_parameters, strict,
    memory_budget
        As in :func:`paperkit.linearize.linearize.linearize_in_chunks`.

    Yields
    ------
    Linearization
        Of consecutive samples; every sample once.

    Raises
    ------
    ValueError
        As :func:`paperkit.linearize.linearize.linearize_in_chunks`.
    """
    known = get_loss(loss)
    for linearization, _ in linearize_in_chunks(
        model,
        data,
        known,
        layers,
        with_targets=known.curvature_needs_targets,
        input_jacobians=input_jacobians,
        output_jacobians=output_jacobians,
        all_parameters=all_parameters,
        strict=strict,
        memory_budget=memory_budget,
    ):
        yield linearization
        del linearization  # or it would live on while the next is made


def _num_outputs(model: nn.Module, data: object) -> int:
    inputs, _ = next(batches(data))
    check_inputs(inputs)
    with evaluation(model) as parameters, torch.no_grad():
        outputs = network_outputs(model, parameters, inputs[:1])
    check_outputs(outputs, 1)
    return outputs.shape[1]


def _hutchinson(
    model: nn.Module,
    data: object,
    parameters: str | Sequence[str],
    loss: Loss,
    probes: int,
    seed: int,
    memory_budget: int,
) -> Measurement:
    names = None
    if not isinstance(parameters, str):
        weights = chosen_weights(model, parameters)
        names = list(dict.fromkeys(weight.parameter for weight in weights.values()))
    generator = generator_of(seed)
    squares: list[Tensor] = []
    refuse_cut(model, next(iter(batches(data)))[0], names)
    with evaluation(model) as leaves:
        chosen = {name: leaves[name] for name in (names or leaves)}
        # Each probe of each sample has a backward pass and a gradient of its own.
        size = sum(leaf.numel() * leaf.element_size() for leaf in chosen.values())
        at_once = max(1, min(probes, memory_budget // (32 * max(size, 1))))
        chunks = Chunks(
            model,
            leaves,
            lambda sample: (
                at_once * (sample.bytes_of(BACKWARD) + 4 * size)
                + 8 * _FACTOR_COPIES * sample.num_outputs**2
            ),
            memory_budget,
        )
        for inputs, targets in chunks(data):
            with torch.no_grad():
                outputs = network_outputs(model, leaves, inputs)
                check_outputs(outputs, len(inputs))
                needed = targets if loss.curvature_needs_targets else None
                factor = loss.hessian_factor(outputs, needed)
            squares.append(
                _probe_squares(model, chosen, inputs, factor, probes, generator, at_once)
            )
    values = torch.cat(squares, dim=1)
    # Probes of different samples are independent: the variances of the samples' means add up.
    variance = values.var(dim=0).mean() / values.numel()
    return Measurement(
        value=float(values.mean()),
        measure="gauss_newton_trace",
        method="hutchinson",
        n=values.shape[1],
        loss=loss,
        standard_error=float(variance.sqrt()),
        probes=probes,
    )


def _probe_squares(
    model: nn.Module,
    chosen: dict[str, Tensor],
    inputs: Inputs,
    factor: Tensor,
    probes: int,
    generator: torch.Generator,
    at_once: int,
) -> Tensor:
    """Return ‖∂(vᵀ R f)/∂θ‖² for every probe and sample, (probes, n).

    So many probes at once where torch has a rule for it, which is compared with plain backward
    passes on the first sample; else one after the other.
    """
    bits = torch.randint(0, 2, (probes, *factor.shape[:2]), generator=generator, device="cpu")
    cotangents = torch.einsum("knr,nrc->knc", (2 * bits - 1).to(factor), factor)
    leaves = list(chosen.values())
    first = _backward_squares(model, leaves, inputs[:1], cotangents[:, :1])
    if isinstance(inputs, Tensor):
        # An operation without a batching rule, or code that takes nothing but plain tensors.
        with suppress(Exception):
            found = _vectorized_squares(model, chosen, inputs, cotangents, at_once)
            if torch.allclose(found[:, :1], first, rtol=torch.finfo(factor.dtype).eps ** 0.5):
                return found
    rest = [
        _backward_squares(model, leaves, inputs[i : i + 1], cotangents[:, i : i + 1])
        for i in range(1, len(inputs))
    ]
    return torch.cat([first, *rest], dim=1)


def _backward_squares(
    model: nn.Module, leaves: Sequence[Tensor], sample: Inputs, cotangents: Tensor
) -> Tensor:
    """Return the squares of one sample, (probes, 1), by a backward pass for each probe."""
    outputs = network_outputs(model, {}, sample)
    squares = []
    for cotangent in cotangents.to(outputs.dtype):
        pulled = reverse_pass([outputs], leaves, [cotangent], retain_graph=True)
        squares.append(torch.stack([part.double().square().sum() for part in pulled]).sum())
    return torch.stack(squares).unsqueeze(1)


def _vectorized_squares(
    model: nn.Module,
    chosen: dict[str, Tensor],
    inputs: Tensor,
    cotangents: Tensor,
    at_once: int,
) -> Tensor:
    point = {name: leaf.detach() for name, leaf in chosen.items()}

    def projection(parameters: dict[str, Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
        outputs = network_outputs(model, parameters, x.unsqueeze(0))
        return (outputs[0] * cotangent).sum()

    def square(x: Tensor, cotangent: Tensor) -> Tensor:
        gradients = grad(projection)(point, x, cotangent)
        return torch.stack([g.double().square().sum() for g in gradients.values()]).sum()

    # Only the cotangents differ between probes: the forward pass is shared.
    every_probe = vmap(vmap(square), in_dims=(None, 0), chunk_size=at_once)
    return every_probe(inputs, cotangents).detach()


def trace_measurement(
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
