r"""How far a network's outputs move with its input, and with the inputs of its layers.

The measures here are functions of the largest singular value of :math:`J_x = \partial f/\partial
x`, C outputs × M inputs, or of its columns. Source: compression paper, Section 3 and Appendices E
and F. Values are exact on the given samples, so they carry no standard error; how much they differ
between samples is the assumption ``deviation``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature.jacobian_products import pull_back_is_linear
from paperkit.curvature.second_derivatives import custom_functions
from paperkit.estimators.input_jacobian import jacobian_of, over_graphs
from paperkit.estimators.layer_inputs import at_layer_inputs, over_layers, problem_over_layers
from paperkit.estimators.passes import Chunk, PassMeasure, Problem, run_alone
from paperkit.estimators.result import Measurement
from paperkit.estimators.singular_values import in_chunks, largest_singular_values
from paperkit.linalg.lanczos import Lanczos
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linearize.blocks import num_outputs
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import batches
from paperkit.network.footprint import Footprint
from paperkit.network.problem import measure_of

METHODS = ("auto", "exact", "lanczos")

# Above this many outputs, C backward passes cost more than some thirty Lanczos steps.
_EXACT_OUTPUTS = 100

_STEPS_BETWEEN_CHECKS = 5

# Peak bytes of the Lanczos steps in units of what a forward pass saves: a backward pass's graph is
# kept beside the forward pass's. The most that was measured, as in paperkit.network.footprint.
_LANCZOS = 6.5


@measure_of
def maximum_local_sensitivity(
    model: nn.Module,
    data: object,
    *,
    method: str = "auto",
    max_iterations: int = 40,
    tolerance: float = 1e-3,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return the maximum local sensitivity, :math:`\frac1n \sum_i \|J_x(x_i)\|_2`.

    Source: compression paper, Definition 3.7.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; the targets are not used.
    method : str
        ``"exact"`` (C backward passes), ``"lanczos"`` (steps with a vector–Jacobian and a
        Jacobian–vector product each, whose number does not grow with C), or ``"auto"``: exact up
        to 100 outputs.
    max_iterations : int
        Cap of the Lanczos steps.
    tolerance : float
        A sample's steps stop once its largest Ritz pair has a residual
        :math:`\|J J^\top u - \theta u\| \le` tolerance · θ. The values :math:`\sqrt\theta` are
        lower bounds of :math:`\|J_x\|_2` at any step.
    seed : int
        Seed of the starting vectors.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Measurement
        ``converged`` is False if the steps met their cap.

    Raises
    ------
    ValueError
        If the method is unknown or the data do not fit the model.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import maximum_local_sensitivity
    >>> model = nn.Linear(2, 1)
    >>> model.weight.data = torch.tensor([[3.0, 4.0]])
    >>> data = torch.rand(5, 2), torch.zeros(5, 1)
    >>> round(float(maximum_local_sensitivity(model, data)), 4)  # ‖w‖, wherever it is measured
    5.0
    """
    options = _options(method, max_iterations, tolerance, seed, memory_budget)
    return _measured(MAXIMUM_LOCAL_SENSITIVITY, lambda values, _: values, model, data, options)


@measure_of
def normalized_maximum_local_sensitivity(
    model: nn.Module,
    data: object,
    *,
    method: str = "auto",
    max_iterations: int = 40,
    tolerance: float = 1e-3,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return the normalized sensitivity, :math:`\frac1n \sum_i \|x_i\|^2 \|J_x(x_i)\|_2^2`.

    A mean of squares, so not a multiple of :func:`maximum_local_sensitivity`. Source: compression
    paper, Definition F.1; its Figure 3 plots this one, while the bound of its Proposition E.4 is
    about :func:`input_invariant_local_sensitivity`.

    Parameters
    ----------
    model, data, method, max_iterations, tolerance, seed, memory_budget
        As in :func:`maximum_local_sensitivity`.

    Returns
    -------
    Measurement
        As :func:`maximum_local_sensitivity`.

    Raises
    ------
    ValueError
        As :func:`maximum_local_sensitivity`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import normalized_maximum_local_sensitivity
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 4.0]])
    >>> data = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> round(float(normalized_maximum_local_sensitivity(model, data)), 4)  # ‖x‖² ‖w‖²
    125.0
    """
    options = _options(method, max_iterations, tolerance, seed, memory_budget)
    return _measured(NORMALIZED_MAXIMUM_LOCAL_SENSITIVITY, normalized_squares, model, data, options)


@measure_of
def input_invariant_local_sensitivity(
    model: nn.Module, data: object, *, memory_budget: int = GIBIBYTE
) -> Measurement:
    r"""Return :math:`\frac1n \sum_i \|J_x(x_i) \operatorname{diag}(x_i)\|_F^2`.

    Source: compression paper, equation 43, whose sum runs over the input's coordinates. It does
    not change when a coordinate of the input is scaled and the first layer scaled back.

    Parameters
    ----------
    model, data, memory_budget
        As in :func:`maximum_local_sensitivity`.

    Returns
    -------
    Measurement
        Exact on the samples.

    Raises
    ------
    ValueError
        If the data do not fit the model.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import input_invariant_local_sensitivity
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 4.0]])
    >>> data = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> round(float(input_invariant_local_sensitivity(model, data)), 4)  # (3 · 1)² + (4 · 2)²
    73.0
    """
    problem = Problem.of(model, data, memory_budget=memory_budget)
    return run_alone(INPUT_INVARIANT_LOCAL_SENSITIVITY, problem)


@measure_of
def network_maximum_local_sensitivity(
    model: nn.Module,
    data: object,
    layers: Sequence[str] | None = None,
    *,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return :math:`\sum_l \frac1n \sum_i \|\partial f/\partial x_l(x_i)\|_2` over the layers.

    Source: compression paper, Definition 3.9, a sum, not the average that the sentence before it
    says. :math:`x_l` is the input of linear or convolution layer l; all that reads the tensor
    counts.

    Parameters
    ----------
    model, data
        As in :func:`maximum_local_sensitivity`.
    layers : sequence of str, optional
        Module names; default every linear and convolution layer that can be linearized by itself.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Measurement
        The assumption ``layers`` holds each layer's share, ``left_out`` those that are not in the
        sum, with the reason of each.

    Raises
    ------
    ValueError
        If the data do not fit the model, or no gradient reaches the input of a layer.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import network_maximum_local_sensitivity
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.eye_(model[0].weight)
    >>> model[1].weight.data = torch.tensor([[3.0, 4.0]])
    >>> data = torch.eye(2), torch.zeros(2, 1)
    >>> round(float(network_maximum_local_sensitivity(model, data)), 4)  # 5 at either layer's input
    10.0
    """
    problem = problem_over_layers(layers, model, data, memory_budget)
    return run_alone(NETWORK_MAXIMUM_LOCAL_SENSITIVITY, problem)


@dataclass(frozen=True)
class _Options:
    method: str
    max_iterations: int
    tolerance: float
    seed: int
    memory_budget: int


def _options(
    method: str, max_iterations: int, tolerance: float, seed: int, memory_budget: int
) -> _Options:
    return _Options(
        arguments.choice("method", method, METHODS),
        arguments.integer("max_iterations", max_iterations, at_least=1),
        arguments.number("tolerance", tolerance, above=0),
        seed,
        memory_budget,
    )


def _measured(
    measure: PassMeasure,
    function: Callable[[Tensor, Tensor], Tensor],
    model: nn.Module,
    data: object,
    options: _Options,
) -> Measurement:
    """Return the mean of a function of largest singular values and inputs by the chosen method."""
    method = options.method
    if method == "auto":
        many = num_outputs(model, next(batches(data))[0]) > _EXACT_OUTPUTS
        method = "lanczos" if many else "exact"
    if method == "exact":
        return run_alone(measure, Problem.of(model, data, memory_budget=options.memory_budget))
    values, used, converged = _by_lanczos(function, model, data, options)
    return mean_measurement(values, measure.name, used, converged)


def _by_lanczos(
    function: Callable[[Tensor, Tensor], Tensor], model: nn.Module, data: object, options: _Options
) -> tuple[Tensor, str, bool]:
    """Return a function of the largest singular values and inputs, the method, and convergence."""

    def cost(sample: Footprint) -> float:
        basis = sample.element_size * sample.num_outputs * options.max_iterations
        return sample.bytes_of(_LANCZOS) + basis

    generator = generator_of(options.seed)

    def of_graph(x: Tensor, outputs: Tensor, _: Tensor) -> tuple[Tensor, str, bool]:
        if custom_functions(outputs) and not pull_back_is_linear(outputs, [x]):
            # The exact way differentiates only once.
            return function(largest_singular_values(jacobian_of(x, outputs)), x), "exact", True
        found, converged = _lanczos_values(x, outputs, options, generator)
        return function(found, x), "lanczos", converged

    values, used, converged = zip(
        *over_graphs(of_graph, model, data, cost, options.memory_budget), strict=True
    )
    return torch.cat(values), used[0], all(converged)


def _lanczos_values(
    x: Tensor, outputs: Tensor, options: _Options, generator: torch.Generator
) -> tuple[Tensor, bool]:
    r"""Iterate with :math:`J_x J_x^\top` on all samples at once, each a row with its own matrix.

    A vector–Jacobian product is linear in its cotangent, so that the derivative of one with
    respect to the cotangent is a Jacobian–vector product: no forward mode is needed.
    """
    cotangent = torch.zeros_like(outputs, requires_grad=True)
    (pulled,) = torch.autograd.grad(
        outputs, x, cotangent, create_graph=True, materialize_grads=True
    )

    def squared(vectors: Tensor) -> Tensor:
        (back,) = torch.autograd.grad(
            outputs, x, vectors, retain_graph=True, materialize_grads=True
        )
        if pulled.grad_fn is None:  # the outputs do not depend on the inputs
            return torch.zeros_like(vectors)
        return torch.autograd.grad(
            pulled, cotangent, back, retain_graph=True, materialize_grads=True
        )[0]

    starts = draw_probes(len(x), outputs.shape[1], generator, distribution="normal")
    process = Lanczos(squared, starts.to(outputs))
    values = torch.zeros_like(process.norm)
    finished = torch.zeros_like(values, dtype=torch.bool)
    while True:
        process.advance(min(_STEPS_BETWEEN_CHECKS, options.max_iterations - process.steps))
        found = process.tridiagonal()
        ritz_values, ritz_vectors = torch.linalg.eigh(found.matrices())
        squares = ritz_values[:, -1].clamp(min=0.0)
        last = (found.steps - 1).unsqueeze(1)
        residuals = found.off_diagonal.gather(1, last) * ritz_vectors[:, :, -1].gather(1, last)
        # A sample's value must not depend on the others that are measured with it.
        values = torch.where(finished, values, squares)
        finished = finished | (residuals.squeeze(1).abs() <= options.tolerance * squares)
        converged = bool(finished.all()) or process.exhausted
        if converged or process.steps >= options.max_iterations:
            return values.sqrt(), converged


def input_invariant_sensitivities(jacobian: Tensor, inputs: Tensor) -> Tensor:
    r"""Return :math:`\|J_x \operatorname{diag}(x)\|_F^2` of each sample, shape (n,), float64.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …).
    inputs : Tensor
        x, shape (n, …).
    """
    return in_chunks(
        lambda rows, x: (rows.square().sum(dim=1) * x.square()).sum(dim=1), jacobian, inputs
    )


def normalized_squares(sensitivities: Tensor, inputs: Tensor) -> Tensor:
    """Return (‖x_i‖ ‖J_i‖)², (n,), float64, from the samples' sensitivities (n,)."""
    norms = inputs.detach().flatten(1).double().norm(dim=1)
    return (norms * sensitivities).square()


def mean_measurement(
    values: Tensor, measure: str, method: str = "exact", converged: bool = True
) -> Measurement:
    """Return the mean of the samples' values (n,) as the named measure."""
    return Measurement(
        value=float(values.mean()),
        measure=measure,
        method=method,
        n=len(values),
        converged=converged,
        assumptions={"deviation": float(values.std(correction=0))},
    )


def _sum_over_layers(by_layer: dict[str, Tensor]) -> Measurement:
    """Return the network's sensitivity from each layer's and sample's (n,)."""
    total = torch.stack(list(by_layer.values())).sum(dim=0)
    return Measurement(
        value=float(total.mean()),
        measure="network_maximum_local_sensitivity",
        method="exact",
        n=len(total),
        assumptions={
            "deviation": float(total.std(correction=0)),
            "layers": {name: float(values.mean()) for name, values in by_layer.items()},
        },
    )


# --- The measures of the pass


def _sensitivities(chunk: Chunk) -> Tensor:
    return largest_singular_values(chunk.input_jacobian)


def _layer_sensitivities(jacobians: list[Tensor]) -> Tensor:
    """Add up the calls of a layer: Σ ‖∂f/∂x_l‖₂ of each sample, (n,)."""
    return torch.stack([largest_singular_values(jacobian) for jacobian in jacobians]).sum(dim=0)


def _mean_over_samples(name: str, of_chunk: Callable[[Chunk], Tensor]) -> PassMeasure:
    def finish(parts: list[Tensor], _: Problem) -> Measurement:
        return mean_measurement(torch.cat(parts), name)

    return PassMeasure(name, finish, of_chunk, needs=("network_input",))


MAXIMUM_LOCAL_SENSITIVITY = _mean_over_samples(
    "maximum_local_sensitivity", lambda chunk: chunk.once(_sensitivities)
)

NORMALIZED_MAXIMUM_LOCAL_SENSITIVITY = _mean_over_samples(
    "normalized_maximum_local_sensitivity",
    lambda chunk: normalized_squares(chunk.once(_sensitivities), chunk.inputs),
)

INPUT_INVARIANT_LOCAL_SENSITIVITY = _mean_over_samples(
    "input_invariant_local_sensitivity",
    lambda chunk: input_invariant_sensitivities(chunk.input_jacobian, chunk.inputs),
)

NETWORK_MAXIMUM_LOCAL_SENSITIVITY = PassMeasure(
    "network_maximum_local_sensitivity",
    partial(over_layers, _sum_over_layers),
    lambda chunk: at_layer_inputs(chunk, _layer_sensitivities),
    needs=("layer_inputs",),
)
