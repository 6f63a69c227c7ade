r"""How a network's outputs move with its input, and with the inputs of its layers.

All measures here are functions of the singular values of :math:`J_x = \partial f/\partial x`,
C outputs × M inputs, at each sample: the largest (maximum local sensitivity), the product of all C
(local volume), and their spread (local dimension). Each comes in three forms: of given Jacobians,
sample by sample; of a :class:`~paperkit.linearize.Linearization` that other measures share
(``…_from``); and of a model and data, a few samples at a time.

Source: compression paper, Section 3 and Appendices E and F. Values are exact on the given samples,
so they carry no standard error; how much they differ between samples is the assumption
``deviation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature.jacobian_products import pull_back_is_linear
from paperkit.curvature.second_derivatives import custom_functions
from paperkit.estimators.gauss_newton_trace import linearize_samples
from paperkit.estimators.result import Measurement
from paperkit.linalg.gram import float32_sums_are_safe
from paperkit.linalg.lanczos import Lanczos
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linalg.row_space import default_tolerance
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.weights import warn_left_out
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import batches
from paperkit.network.evaluation import check_outputs, evaluation
from paperkit.network.footprint import REPEATED, Chunks, Footprint
from paperkit.network.interaction import separate_outputs
from paperkit.network.network import Network
from paperkit.network.problem import measure_of, refuse_cut_inputs

T = TypeVar("T")

_NO_GRADIENT = "no gradient reaches its input"

METHODS = ("auto", "exact", "lanczos")
AVERAGES = ("volume", "log")

# Above this many outputs, C backward passes cost more than some thirty Lanczos steps.
_EXACT_OUTPUTS = 100

_STEPS_BETWEEN_CHECKS = 5

# Peak bytes of the Lanczos steps in units of what a forward pass saves: a backward pass's graph is
# kept beside the forward pass's. The most that was measured, as in paperkit.network.footprint.
_LANCZOS = 6.5

# Float64 numbers that a function of Jacobians holds for each entry beside it: 2.54 measured.
_JACOBIAN_COPIES = 2.6

# Entries of one float64 temporary, 32 MiB.
_ENTRIES = 2**22

# Columns of a Gram matrix that float32 multiplies at once; fewer are cheap in float64.
_COLUMNS = 1024


# --- of given Jacobians -------------------------------------------------------------------------


def singular_values(jacobian: Tensor) -> Tensor:
    r"""Return all singular values of each sample's Jacobian.

    They come from :math:`J_x` itself, never from :math:`J_x J_x^\top`, which would lose those
    below 1e-8 of the largest.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …), outputs × inputs.

    Returns
    -------
    Tensor
        Shape (n, min(C, M)), float64, descending.
    """
    return _in_chunks(torch.linalg.svdvals, jacobian)


def largest_singular_values(jacobian: Tensor) -> Tensor:
    r"""Return :math:`\|J_x\|_2` of each sample, shape (n,), float64.

    Through the smaller Gram matrix, which keeps all digits of the largest singular value.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …).
    """
    _check_jacobian(jacobian, finite=False)
    rows = jacobian.flatten(2)
    if jacobian.dtype != torch.float32 or max(rows.shape[1:]) <= _COLUMNS:
        return _in_chunks(_largest_of, jacobian)
    step = max(1, _ENTRIES // min(rows.shape[1:]) ** 2)
    return torch.cat([_largest_in_blocks(some) for some in rows.split(step)])


def frobenius_norms(jacobian: Tensor) -> Tensor:
    r"""Return :math:`\|J_x\|_F` of each sample, shape (n,), float64."""
    return _in_chunks(lambda rows: torch.linalg.matrix_norm(rows), jacobian)


def log_volumes(jacobian: Tensor, k: int | None = None) -> Tensor:
    r"""Return the logarithm of the local volume of each sample.

    .. math:: \log d\mathrm{Vol}(x) = \tfrac12 \log\det J_x J_x^\top
        = \sum_{j=1}^{C} \log \sigma_j(J_x)

    It is the ratio of the volumes of the image of the unit M-ball and of the unit C-ball, not of
    cubes. Equation 7 of the compression paper prints :math:`\nabla f^\top \nabla f`, which is this
    C × C matrix if its Jacobian is inputs × outputs, as in equation 13; equations 4 and 14 have
    outputs × inputs, as we do. All C singular values enter: the product of the nonzero ones alone,
    which the paper names, violates its Lemma 3.2.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …).
    k : int, optional
        Take only the k largest singular values; default all C.

    Returns
    -------
    Tensor
        Shape (n,), float64, natural logarithm; −inf where fewer than k singular values exceed
        100 √min(C, M) units of round-off (of the Jacobian's own dtype) of the largest, which is
        what the backward pass of a deep network can leave of a singular value of zero.

    Raises
    ------
    ValueError
        If k is not in 1..C.
    """
    _check_jacobian(jacobian)
    num_outputs, num_inputs = jacobian.shape[1], jacobian[0, 0].numel()
    kept = num_outputs
    if k is not None:
        reason = f"there are {num_outputs} outputs"
        kept = arguments.integer("k", k, at_least=1, at_most=num_outputs, because=reason)
    values = _values_in_volume(jacobian)
    if kept > num_inputs:
        return torch.full_like(values[:, 0], -math.inf)
    round_off = default_tolerance(num_outputs, num_inputs, jacobian.dtype)
    positive = values[:, :kept] > round_off * values[:, :1]
    return torch.where(positive, values[:, :kept].log(), -math.inf).sum(dim=1)


def _values_in_volume(jacobian: Tensor) -> Tensor:
    r"""Return all singular values, descending, to the accuracy of the Jacobian's own format.

    Round-off in single precision moves each by up to :math:`\varepsilon_{32} \sigma_1`. The Gram
    matrix in double precision moves it by :math:`C \varepsilon_{64} \sigma_1^2 / 2\sigma_j`, which
    is less for all that exceed :math:`10^{-8} \sigma_1`, and those that do not count as zero.
    """
    if jacobian.dtype == torch.float64:
        return singular_values(jacobian)
    return _in_chunks(
        lambda rows: torch.linalg.eigvalsh(_gram(rows)).flip(1).clamp(min=0.0).sqrt(), jacobian
    )


def local_dimensions(jacobian: Tensor) -> Tensor:
    r"""Return the participation ratio of each sample.

    .. math:: D_{PR} = \frac{(\operatorname{Tr} K)^2}{\operatorname{Tr}(K^2)}
        = \frac{(\sum_j \sigma_j^2)^2}{\sum_j \sigma_j^4}, \qquad K = J_x J_x^\top

    Between 1 and the rank; it does not change when f is scaled. Source: compression paper,
    equations 14 and 15.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …).

    Returns
    -------
    Tensor
        Shape (n,), float64; NaN where the Jacobian is zero.
    """

    def ratio(rows: Tensor) -> Tensor:
        gram = _gram(rows)
        trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
        return (trace / torch.linalg.matrix_norm(gram)).square()

    return _in_chunks(ratio, jacobian)


def input_invariant_sensitivities(jacobian: Tensor, inputs: Tensor) -> Tensor:
    r"""Return :math:`\|J_x \operatorname{diag}(x)\|_F^2` of each sample, shape (n,), float64.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …).
    inputs : Tensor
        x, shape (n, …).
    """
    return _in_chunks(
        lambda rows, x: (rows.square().sum(dim=1) * x.square()).sum(dim=1), jacobian, inputs
    )


def _check_jacobian(jacobian: Tensor, *, finite: bool = True) -> None:
    shape = ("n", "C", "d", "…")
    arguments.tensor("jacobian", jacobian, shape=shape, floating=True, finite=finite)


def _gram(rows: Tensor) -> Tensor:
    return rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows


def _largest_of(rows: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(_gram(rows))[:, -1].clamp(min=0.0).sqrt()


def _largest_in_blocks(rows: Tensor) -> Tensor:
    """Return the largest singular values of (n, C, M) in float32, without a float64 copy of it.

    The Gram matrices of some columns at a time are added in float64, so that their round-off does
    not grow with the number of columns: it moves a value by less than the entries' own does.
    """
    wide = rows if rows.shape[1] <= rows.shape[2] else rows.mT
    gram = torch.zeros(*wide.shape[:2], wide.shape[1], dtype=torch.float64, device=wide.device)
    for columns in wide.split(_COLUMNS, dim=2):
        gram += columns @ columns.mT
    # Entries that are not finite show here too.
    lost = ~float32_sums_are_safe(gram.diagonal(dim1=1, dim2=2).sum(dim=1))
    if bool(lost.any()):
        _check_jacobian(rows)
        gram[lost] = _gram(wide[lost].to(torch.float64))
    return torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0.0).sqrt()


def _in_chunks(function: Callable[..., Tensor], jacobian: Tensor, *others: Tensor) -> Tensor:
    """Apply a function of (n_c, C, M) and other flat tensors to a few samples at a time."""
    _check_jacobian(jacobian)
    step = max(1, _ENTRIES // jacobian[0].numel())
    parts = [
        function(
            jacobian[start : start + step].flatten(2).to(torch.float64),
            *(other[start : start + step].flatten(1).to(torch.float64) for other in others),
        )
        for start in range(0, len(jacobian), step)
    ]
    return torch.cat(parts)


# --- of a linearization -------------------------------------------------------------------------


def maximum_local_sensitivity_from(linearization: Linearization) -> Measurement:
    """Return :func:`maximum_local_sensitivity` of a linearization with input Jacobians."""
    values = largest_singular_values(_network_jacobian(linearization))
    return mean_measurement(values, "maximum_local_sensitivity")


def normalized_maximum_local_sensitivity_from(
    linearization: Linearization, inputs: Tensor
) -> Measurement:
    """Return :func:`normalized_maximum_local_sensitivity` of a linearization at these inputs."""
    values = largest_singular_values(_network_jacobian(linearization, inputs))
    return mean_measurement(
        normalized_squares(values, inputs), "normalized_maximum_local_sensitivity"
    )


def input_invariant_local_sensitivity_from(
    linearization: Linearization, inputs: Tensor
) -> Measurement:
    """Return :func:`input_invariant_local_sensitivity` of a linearization at these inputs."""
    values = input_invariant_sensitivities(_network_jacobian(linearization, inputs), inputs)
    return mean_measurement(values, "input_invariant_local_sensitivity")


def log_volume_from(
    linearization: Linearization, *, k: int | None = None, average: str = "volume"
) -> Measurement:
    """Return :func:`log_volume` of a linearization with input Jacobians."""
    return mean_volume(log_volumes(_network_jacobian(linearization), k), k, average)


def local_dimension_from(linearization: Linearization) -> Measurement:
    """Return :func:`local_dimension` of a linearization with input Jacobians."""
    return mean_dimension(local_dimensions(_network_jacobian(linearization)))


def layer_sensitivities_from(linearization: Linearization) -> dict[str, Tensor]:
    r"""Return :math:`\|\partial f/\partial x_l\|_2` of every layer and sample.

    Parameters
    ----------
    linearization : Linearization
        With input Jacobians.

    Returns
    -------
    dict of str to Tensor
        By layer, shape (n,), float64; summed over the calls of a layer that is called repeatedly.

    Raises
    ------
    ValueError
        If the linearization has no input Jacobians.
    """
    return {
        name: torch.stack([largest_singular_values(jacobian) for jacobian in jacobians]).sum(dim=0)
        for name, jacobians in _layer_jacobians(linearization).items()
    }


def layer_log_volumes_from(
    linearization: Linearization, *, k: int | None = None
) -> dict[str, Tensor]:
    """Return the logarithm of the local volume at the input of every layer, sample by sample.

    Parameters
    ----------
    linearization : Linearization
        With input Jacobians.
    k : int, optional
        As in :func:`log_volumes`.

    Returns
    -------
    dict of str to Tensor
        By layer, shape (n,), float64; the volumes of the calls of a layer that is called
        repeatedly are added.

    Raises
    ------
    ValueError
        If the linearization has no input Jacobians, or k is out of range.
    """
    return {
        name: torch.stack([log_volumes(jacobian, k) for jacobian in jacobians]).logsumexp(dim=0)
        for name, jacobians in _layer_jacobians(linearization).items()
    }


def network_maximum_local_sensitivity_from(linearization: Linearization) -> Measurement:
    """Return :func:`network_maximum_local_sensitivity` of a linearization."""
    return sum_over_layers(layer_sensitivities_from(linearization))


def network_log_volume_from(linearization: Linearization, *, k: int | None = None) -> Measurement:
    """Return :func:`network_log_volume` of a linearization."""
    return volume_over_layers(layer_log_volumes_from(linearization, k=k), k)


def _network_jacobian(linearization: Linearization, inputs: Tensor | None = None) -> Tensor:
    jacobian = linearization.input_jacobian
    if jacobian is None:
        raise ValueError(
            "linearization has no input Jacobian: call linearize with input_jacobians=True."
        )
    if inputs is not None and inputs.shape != (len(jacobian), *jacobian.shape[2:]):
        raise ValueError(
            f"inputs has shape {tuple(inputs.shape)}: pass the "
            f"{(len(jacobian), *jacobian.shape[2:])} that were linearized."
        )
    return jacobian


def _layer_jacobians(linearization: Linearization) -> dict[str, list[Tensor]]:
    jacobians: dict[str, list[Tensor]] = {}
    for name, layer in linearization.layers.items():
        found = [use.input_jacobian for use in layer.uses if use.input_jacobian is not None]
        if len(found) == len(layer.uses):
            jacobians[name] = found
    if not jacobians:
        raise ValueError(
            "linearization has no Jacobian in the input of any layer: call linearize with "
            "input_jacobians=True."
        )
    return jacobians


# --- of a model and data ------------------------------------------------------------------------


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
        Of the starting vectors.
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
    """
    values, used, converged = _sensitivities(
        model, data, method, max_iterations, tolerance, seed, memory_budget
    )
    return mean_measurement(values, "maximum_local_sensitivity", used, converged)


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
    """
    values, used, converged = _sensitivities(
        model, data, method, max_iterations, tolerance, seed, memory_budget, normalized_squares
    )
    return mean_measurement(values, "normalized_maximum_local_sensitivity", used, converged)


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
    """
    values = _per_sample(model, data, memory_budget, input_invariant_sensitivities)
    return mean_measurement(values, "input_invariant_local_sensitivity")


@measure_of
def log_volume(
    model: nn.Module,
    data: object,
    *,
    k: int | None = None,
    average: str = "volume",
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return the logarithm of the mean local volume; see :func:`log_volumes`.

    Source: compression paper, Definitions 3.1 and 3.3, corrected. Its public code plots the three
    largest singular values only, ``k=3, average="log"``.

    Parameters
    ----------
    model, data, memory_budget
        As in :func:`maximum_local_sensitivity`.
    k : int, optional
        Take only the k largest singular values; default all C.
    average : str
        ``"volume"``, the logarithm of the samples' mean volume, or ``"log"``, the mean of their
        logarithms.

    Returns
    -------
    Measurement
        −inf where no sample (``"volume"``) or not every sample (``"log"``) has a volume; the
        assumption ``rank_deficient`` counts the samples without.

    Raises
    ------
    ValueError
        If k or the average is out of range, or the data do not fit the model.
    """
    values = _per_sample(model, data, memory_budget, lambda rows, _: log_volumes(rows, k))
    return mean_volume(values, k, average)


@measure_of
def local_dimension(
    model: nn.Module, data: object, *, memory_budget: int = GIBIBYTE
) -> Measurement:
    """Return the mean participation ratio; see :func:`local_dimensions`.

    Source: compression paper, equation 15. Its public code plots the logarithm of this mean.

    Parameters
    ----------
    model, data, memory_budget
        As in :func:`maximum_local_sensitivity`.

    Returns
    -------
    Measurement
        The mean over the samples whose Jacobian is not zero; the assumption ``undefined`` counts
        the others. NaN where there is no sample left.

    Raises
    ------
    ValueError
        If the data do not fit the model.
    """
    values = _per_sample(model, data, memory_budget, lambda rows, _: local_dimensions(rows))
    return mean_dimension(values)


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
    """
    by_layer, left_out = _over_chunks(layer_sensitivities_from, model, data, layers, memory_budget)
    return _with_left_out(sum_over_layers(by_layer), left_out)


@measure_of
def network_log_volume(
    model: nn.Module,
    data: object,
    layers: Sequence[str] | None = None,
    *,
    k: int | None = None,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    """Return the logarithm of the sum over layers of the mean local volume.

    Source: compression paper, Definition 3.5. A layer with fewer inputs than outputs of the
    network adds nothing.

    Parameters
    ----------
    model, data, layers, memory_budget
        As in :func:`network_maximum_local_sensitivity`.
    k : int, optional
        As in :func:`log_volumes`.

    Returns
    -------
    Measurement
        The assumption ``layers`` holds the logarithm of each layer's mean volume.

    Raises
    ------
    ValueError
        If k is out of range, or as :func:`network_maximum_local_sensitivity`.
    """
    by_layer, left_out = _over_chunks(
        lambda chunk: layer_log_volumes_from(chunk, k=k), model, data, layers, memory_budget
    )
    return _with_left_out(volume_over_layers(by_layer, k), left_out)


def _over_chunks(
    function: Callable[[Linearization], dict[str, Tensor]],
    model: nn.Module,
    data: object,
    layers: Sequence[str] | None,
    memory_budget: int,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Collect a function's values by layer over all samples, and what is left out."""
    collected: dict[str, list[Tensor]] = {}
    left_out: dict[str, str] = {}
    for chunk in linearize_samples(
        model,
        data,
        layers=layers,
        input_jacobians=True,
        output_jacobians=False,
        memory_budget=memory_budget,
    ):
        for name, values in function(chunk).items():
            collected.setdefault(name, []).append(values)
        left_out = dict(chunk.left_out)
        left_out |= {n: _NO_GRADIENT for n in chunk.layers if n not in collected}
        del chunk  # so that the next one may be larger
    if layers is not None:
        for name, reason in left_out.items():
            raise ValueError(f"layers: {name} cannot be measured: {reason}.")
    return {name: torch.cat(parts) for name, parts in collected.items()}, left_out


def _with_left_out(result: Measurement, left_out: dict[str, str]) -> Measurement:
    """Say which layers a sum over layers lacks."""
    if not left_out:
        return result
    warn_left_out(result.measure, left_out)
    return replace(result, assumptions={**result.assumptions, "left_out": left_out})


def _sensitivities(
    model: nn.Module,
    data: object,
    method: str,
    max_iterations: int,
    tolerance: float,
    seed: int,
    memory_budget: int,
    function: Callable[[Tensor, Tensor], Tensor] = lambda values, _: values,
) -> tuple[Tensor, str, bool]:
    """Return a function of the largest singular values and inputs, the method, and convergence."""
    method = arguments.choice("method", method, METHODS)
    max_iterations = arguments.integer("max_iterations", max_iterations, at_least=1)
    tolerance = arguments.number("tolerance", tolerance, above=0)

    def chosen(num_outputs: int) -> str:
        if method != "auto":
            return method
        return "exact" if num_outputs <= _EXACT_OUTPUTS else "lanczos"

    def cost(sample: Footprint) -> float:
        if chosen(sample.num_outputs) == "exact":
            return _jacobian_cost(sample)
        basis = sample.element_size * sample.num_outputs * max_iterations
        return sample.bytes_of(_LANCZOS) + basis

    generator = generator_of(seed)

    def of_graph(x: Tensor, outputs: Tensor) -> tuple[Tensor, str, bool]:
        used = chosen(outputs.shape[1])
        if custom_functions(outputs) and not pull_back_is_linear(outputs, [x]):
            used = "exact"  # which differentiates but once
        if used == "exact":
            found, converged = largest_singular_values(_jacobian(x, outputs)), True
        else:
            found, converged = _lanczos_values(x, outputs, max_iterations, tolerance, generator)
        return function(found, x), used, converged

    values, used, converged = zip(
        *_over_graphs(model, data, cost, memory_budget, of_graph), strict=True
    )
    return torch.cat(values), used[0], all(converged)


def _lanczos_values(
    x: Tensor, outputs: Tensor, max_iterations: int, tolerance: float, generator: torch.Generator
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
        process.advance(min(_STEPS_BETWEEN_CHECKS, max_iterations - process.steps))
        found = process.tridiagonal()
        ritz_values, ritz_vectors = torch.linalg.eigh(found.matrices())
        squares = ritz_values[:, -1].clamp(min=0.0)
        last = (found.steps - 1).unsqueeze(1)
        residuals = found.off_diagonal.gather(1, last) * ritz_vectors[:, :, -1].gather(1, last)
        # A sample's value must not depend on the others that are measured with it.
        values = torch.where(finished, values, squares)
        finished = finished | (residuals.squeeze(1).abs() <= tolerance * squares)
        converged = bool(finished.all()) or process.exhausted
        if converged or process.steps >= max_iterations:
            return values.sqrt(), converged


def _per_sample(
    model: nn.Module,
    data: object,
    memory_budget: int,
    function: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Apply a function of (Jacobian, inputs) to as many samples at a time as fit."""
    return torch.cat(
        _over_graphs(
            model,
            data,
            _jacobian_cost,
            memory_budget,
            lambda x, outputs: function(_jacobian(x, outputs), x.detach()),
        )
    )


def _over_graphs(
    model: nn.Module,
    data: object,
    cost: Callable[[Footprint], float],
    memory_budget: int,
    function: Callable[[Tensor, Tensor], T],
) -> list[T]:
    """Apply a function of (inputs, outputs with their graph) to chunks of the samples."""
    refuse_cut_inputs(Network.of(model), next(iter(batches(data)))[0])
    with evaluation(model) as parameters:

        def of_chunk(inputs: Tensor) -> T:
            # In a frame of its own, so that no graph outlives the chunk.
            x = inputs.detach().requires_grad_()
            outputs = separate_outputs(model, parameters, x)
            check_outputs(outputs, len(x))
            return function(x, outputs)

        results: list[T] = []
        chunks = Chunks(model, parameters, cost, memory_budget)
        for batch in batches(data):
            if not batch[0].is_floating_point():
                raise ValueError(
                    f"inputs is {batch[0].dtype}: the outputs have no derivative in integers."
                )
            for inputs, _ in chunks(batch):
                results.append(of_chunk(inputs))
    return results


def _jacobian_cost(sample: Footprint) -> float:
    """Return the peak bytes of a sample's graph, its Jacobian and a function of that."""
    entry = sample.element_size + 8 * _JACOBIAN_COPIES
    return sample.bytes_of(REPEATED) + entry * sample.num_inputs * sample.num_outputs


def _jacobian(x: Tensor, outputs: Tensor) -> Tensor:
    """Run one backward pass for each output: (n, C, …)."""
    n, num_outputs = outputs.shape
    jacobian = outputs.new_empty(n, num_outputs, *x.shape[1:])
    seed = torch.zeros_like(outputs)
    for c in range(num_outputs):
        seed.zero_()[:, c] = 1.0
        (jacobian[:, c],) = torch.autograd.grad(
            outputs, x, seed, retain_graph=c + 1 < num_outputs, materialize_grads=True
        )
    return jacobian


# --- results ------------------------------------------------------------------------------------


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


def sum_over_layers(by_layer: dict[str, Tensor]) -> Measurement:
    """Return the network's sensitivity from each layer's and sample's (n,)."""
    total = torch.stack(_some(by_layer)).sum(dim=0)
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


def _some(by_layer: dict[str, Tensor]) -> list[Tensor]:
    if not by_layer:
        raise ValueError("layers: the model has none of a known type, linear or convolution.")
    return list(by_layer.values())


def volume_over_layers(by_layer: dict[str, Tensor], k: int | None) -> Measurement:
    """Return the network's log volume from each layer's and sample's (n,)."""
    layers = {name: _log_mean(values) for name, values in by_layer.items()}
    values = torch.stack(_some(by_layer))
    return Measurement(
        value=_log_mean(values.logsumexp(dim=0)),
        measure="network_log_volume",
        method="exact",
        n=values.shape[1],
        assumptions={"k": k, "layers": layers},
    )


def _log_mean(logarithms: Tensor) -> float:
    return float(torch.logsumexp(logarithms, 0)) - math.log(len(logarithms))


def mean_volume(values: Tensor, k: int | None, average: str) -> Measurement:
    """Return the log volume from each sample's (n,)."""
    average = arguments.choice("average", average, AVERAGES)
    return Measurement(
        value=_log_mean(values) if average == "volume" else float(values.mean()),
        measure="log_volume",
        method="exact",
        n=len(values),
        assumptions={
            "k": k,
            "average": average,
            "rank_deficient": int(torch.isneginf(values).sum()),
        },
    )


def mean_dimension(values: Tensor) -> Measurement:
    """Return the local dimension from each sample's (n,), which may be NaN."""
    defined = values[~values.isnan()]
    return Measurement(
        value=float(defined.mean()),
        measure="local_dimension",
        method="exact",
        n=len(values),
        assumptions={"undefined": len(values) - len(defined)},
    )
