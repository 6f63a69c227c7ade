r"""Adaptive sharpness: the loss under noise in proportion to each parameter.

With :math:`\delta \sim \mathcal N(0, \rho^2 \operatorname{diag}(w^2))` (compression paper,
Definition E.1, equations 38 to 40),

.. math:: S^\rho_{\mathrm{avg}} = \frac{2}{\rho^2}\,\mathbb E\,[L(w + \delta) - L(w)] , \qquad
          S_{\mathrm{adaptive}} = \lim_{\rho \to 0} S^\rho_{\mathrm{avg}}
          = \sum_j w_j^2\, \frac{\partial^2 L}{\partial w_j^2} .

Odd moments of δ vanish, so the two differ by O(ρ²) for a loss with four derivatives (the paper
prints O(ρ)) and not at all for a quadratic. In a network with ReLU, kinks that the noise crosses
count in the average and not in its limit. The estimator printed as equation 46 lacks the factor
2/ρ², which is 200 at the paper's ρ = 0.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature import HessianOperator
from paperkit.estimators.relative_flatness import (
    VECTORS_AT_ONCE,
    unit_vectors,
    weight_by_group,
    weighted_pairs,
)
from paperkit.estimators.result import Measurement
from paperkit.linalg.probes import draw_probes, generator_of
from paperkit.linearize.layer import LayerLinearization
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.linearize import linearize_in_chunks
from paperkit.linearize.weights import chosen_weights
from paperkit.memory import GIBIBYTE
from paperkit.network.evaluation import check_outputs, evaluation
from paperkit.network.footprint import FORWARD, Chunks
from paperkit.network.losses import Loss, LossLike
from paperkit.network.network import network_outputs
from paperkit.network.problem import measure_of

# Tensors of the parameters' size that a pair of losses holds, the last pair's included: 4.00
# measured.
_NOISE_COPIES = 4


@dataclass(frozen=True, kw_only=True, repr=False)
class AdaptiveSharpness(Measurement):
    r"""A :class:`Measurement` that knows what each parameter tensor adds to its value.

    Attributes
    ----------
    by_parameter : dict of str to float
        :math:`\sum_j w_j^2\, \partial^2 L/\partial w_j^2` over the entries of each tensor.
    """

    by_parameter: dict[str, float] = field(default_factory=dict)


@measure_of
def adaptive_sharpness(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
    *,
    max_products: int = 4096,
    probes: int = 100,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> AdaptiveSharpness:
    r"""Return :math:`\sum_j w_j^2\, \partial^2 L/\partial w_j^2` (compression paper, equation 40).

    The diagonal of a layer's Hessian block comes from the layer's inputs and output Jacobians
    where the block is its Gauss–Newton block, :math:`\frac1n \sum_{i,r} (R_i J_i)_{rj}^2`, and
    from Hessian products for all other parameters together.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; all n samples count equally.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    parameters : sequence of str, optional
        Names from ``model.named_parameters()``; default all, biases and normalisation included.
    max_products : int
        Hessian products that an exact value may cost, one for each entry outside such layers.
    probes : int
        Random vectors (Hutchinson's estimator of the trace of the Hessian times diag(w²)) where
        it would cost more; at least 2.
    seed : int
        Of the random vectors.
    memory_budget : int
        Bytes for temporaries.

    Returns
    -------
    AdaptiveSharpness
        In units of the loss. It does not see the scale of single weights, as long as the function
        of the network stays the same.

    Raises
    ------
    ValueError
        If the data do not fit the model, a name is unknown, or an option is out of range.
    """
    chosen = select_parameters(model, parameters)
    try:
        terms, n = _exact_terms(model, data, loss, chosen, memory_budget)
    except ValueError:
        # A loss that is not convex, say, or too little memory for one sample's pairs: all is left
        # to Hessian products, which check the data again.
        terms, n = {}, 0
    rest = [name for name in chosen if name not in terms]
    standard_error = None
    if rest:
        operator = HessianOperator(model, data, loss, rest, memory_budget=memory_budget)
        n = operator.num_samples
        exhaustive = operator.dimension <= max_products
        values = torch.cat([chosen[name].detach().flatten() for name in rest])
        directions = (
            unit_vectors(operator.dimension, operator.dtype, operator.device)
            if exhaustive
            else _sign_vectors(probes, operator, seed)
        )
        forms = []
        entries = torch.zeros(operator.dimension, dtype=torch.float64, device=operator.device)
        for batch in directions:
            vectors = batch * values
            products = (vectors * operator(vectors)).to(torch.float64)
            entries += products.sum(0)
            forms.append(products.sum(1))
        if not exhaustive:
            entries /= probes
            standard_error = float(torch.cat(forms).std()) / probes**0.5
        sizes = [chosen[name].numel() for name in rest]
        for name, part in zip(rest, entries.split(sizes), strict=True):
            terms[name] = float(part.sum())
    by_parameter = {name: terms[name] for name in chosen}
    return AdaptiveSharpness(
        value=sum(by_parameter.values()),
        measure="adaptive_sharpness",
        method="exact" if standard_error is None else "hutchinson",
        n=n,
        loss=loss,
        standard_error=standard_error,
        probes=None if standard_error is None else probes,
        assumptions={"parameters": "all" if parameters is None else tuple(chosen)},
        by_parameter=by_parameter,
    )


def adaptive_sharpness_from(
    linearization: Linearization, targets: Tensor, layers: Sequence[str] | None = None
) -> AdaptiveSharpness:
    """Return the part of the adaptive sharpness that is due to the weights of layers.

    Biases and normalisation have no part in it; the model is not needed.

    Parameters
    ----------
    linearization : Linearization
        Of the network on all samples.
    targets : Tensor
        Only checked: the blocks do not depend on them.
    layers : sequence of str, optional
        Whose weights; default all of the linearization.

    Returns
    -------
    AdaptiveSharpness
        Exact, with the contribution of each weight.

    Raises
    ------
    ValueError
        If the targets do not fit, a layer is missing, or its Gauss–Newton block need not be its
        Hessian block.
    """
    linearization.loss.check(linearization.outputs, targets)
    by_parameter = {}
    names = list(linearization.layers)
    if layers is not None:
        names = arguments.names("layers", layers, names)
    for name in names:
        layer = linearization.layers[name]
        if not layer.exact_block:
            raise ValueError(
                f"layers: {name} needs Hessian products, because {layer.obstacle}: "
                "call adaptive_sharpness with the model."
            )
        by_parameter[layer.weight_name] = _weighted_diagonal_sum(layer)
    return AdaptiveSharpness(
        value=sum(by_parameter.values()),
        measure="adaptive_sharpness",
        method="exact",
        n=len(linearization.outputs),
        loss=linearization.loss,
        assumptions={"parameters": tuple(by_parameter)},
        by_parameter=by_parameter,
    )


@measure_of
def average_adaptive_sharpness(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    parameters: Sequence[str] | None = None,
    *,
    rho: float = 0.1,
    probes: int = 100,
    seed: int = 0,
    memory_budget: int = GIBIBYTE,
) -> Measurement:
    r"""Return :math:`S^\rho_{\mathrm{avg}}` (compression paper, equation 38) by sampling.

    Each probe is a pair ±δ, which removes the odd part of the loss:
    :math:`(L(w + \delta) + L(w - \delta) - 2L(w))/\rho^2`.

    Parameters
    ----------
    model, data, loss, parameters
        As in :func:`adaptive_sharpness`.
    rho : float
        Standard deviation of the noise relative to each parameter.
    probes : int
        Pairs, at least 2.
    seed : int
        Of the noise; the same draws serve every rho.
    memory_budget : int
        Bytes above the model and its data.

    Returns
    -------
    Measurement
        With the standard error over pairs. ``assumptions["round_off"]`` is what cancellation in
        the difference of losses can leave, eps · max(L, 1)/ρ² in the model's precision.

    Raises
    ------
    ValueError
        If an option is out of range, the data do not fit the model, or the noise makes the
        outputs infinite.
    """
    chosen = list(select_parameters(model, parameters))
    values = []
    with evaluation(model) as leaves, torch.no_grad():
        chunks = Chunks(
            model,
            leaves,
            lambda sample: sample.bytes_of(FORWARD),
            memory_budget,
            reserved=_NOISE_COPIES * sum(leaves[name].nbytes for name in chosen),
        )
        rest = (data, loss, chunks)
        centre, n = mean_loss(model, leaves, *rest)
        generator = generator_of(seed)
        for _ in range(probes):
            noise = {
                name: rho * gaussian_like(leaves[name], generator) * leaves[name] for name in chosen
            }
            plus, minus = (
                mean_loss(model, leaves | {k: leaves[k] + s * noise[k] for k in chosen}, *rest)
                for s in (1.0, -1.0)
            )
            values.append((plus[0] + minus[0] - 2.0 * centre) / rho / rho)
        precision = torch.finfo(leaves[chosen[0]].dtype).eps
    spread = torch.tensor(values, dtype=torch.float64, device="cpu")
    return Measurement(
        value=float(spread.mean()),
        measure="average_adaptive_sharpness",
        method="antithetic sampling",
        n=n,
        loss=loss,
        standard_error=float(spread.std()) / probes**0.5,
        probes=probes,
        assumptions={
            "rho": rho,
            "parameters": "all" if parameters is None else tuple(chosen),
            "round_off": precision * max(abs(centre), 1.0) / rho / rho,
        },
    )


def select_parameters(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Return the named parameters, all for None.

    Raises
    ------
    ValueError
        If a name is unknown or there is none.
    """
    parameters = dict(model.named_parameters())
    chosen = list(parameters)
    if names is not None:
        chosen = arguments.names("parameters", names, parameters)
    if not chosen:
        raise ValueError("parameters: the model has none.")
    return {name: parameters[name] for name in chosen}


def gaussian_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal noise of a tensor's shape, dtype and device, drawn on the CPU."""
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu")
    return noise.to(device=tensor.device, dtype=tensor.dtype)


def mean_loss(
    model: nn.Module, parameters: dict[str, Tensor], data: object, loss: Loss, chunks: Chunks
) -> tuple[float, int]:
    """Return the mean loss over all samples at some parameters, and the number of samples.

    To be called within :func:`paperkit.network.evaluation.evaluation`; sums in float64, over as
    many samples at a time as ``chunks`` lets pass.

    Raises
    ------
    ValueError
        If the data do not fit the model or its outputs are not finite.
    """
    total, n = 0.0, 0
    for inputs, targets in chunks(data):
        outputs = network_outputs(model, parameters, inputs)
        check_outputs(outputs, len(inputs))
        loss.check(outputs, targets)
        total += len(inputs) * float(loss_value(loss, outputs, targets))
        n += len(inputs)
    return total / n, n


def loss_value(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss in float64, because differences of losses lose digits."""
    return loss.value(outputs.to(torch.float64), targets)


def _exact_terms(
    model: nn.Module,
    data: object,
    loss: Loss,
    chosen: dict[str, nn.Parameter],
    memory_budget: int,
) -> tuple[dict[str, float], int]:
    """Return Σ_j w_j² H_jj of the weights whose block is the Gauss–Newton block, and n."""
    layers = [
        weight.name
        for weight in chosen_weights(model).values()
        if weight.obstacle is None and weight.parameter in chosen
    ]
    if not layers:
        return {}, 0
    sums: dict[str, float] = {}
    inexact = set()
    n = 0
    chunks = linearize_in_chunks(
        model, data, loss, layers, strict=False, memory_budget=memory_budget
    )
    for linearization, targets in chunks:
        n += len(targets)
        for layer in linearization.layers.values():
            if not layer.exact_block:
                inexact.add(layer.weight_name)
            else:
                term = len(targets) * _weighted_diagonal_sum(layer)
                sums[layer.weight_name] = sums.get(layer.weight_name, 0.0) + term
    return {name: total / n for name, total in sums.items() if name not in inexact}, n


def _sign_vectors(probes: int, operator: HessianOperator, seed: int) -> Iterator[Tensor]:
    """Yield Rademacher vectors, some at a time."""
    generator = generator_of(seed)
    for start in range(0, probes, VECTORS_AT_ONCE):
        yield draw_probes(
            min(VECTORS_AT_ONCE, probes - start),
            operator.dimension,
            generator,
            dtype=operator.dtype,
            device=operator.device,
        )


def _weighted_diagonal_sum(layer: LayerLinearization) -> float:
    """Return Σ_j w_j² (1/n) Σ_ir (R_i J_i)_rj² of an exact layer."""
    squares = weight_by_group(layer).square()
    rows_per_sample = layer.hessian_factor.shape[1]
    total = 0.0
    for columns, cotangents in weighted_pairs(layer, 16 * layer.num_parameters * rows_per_sample):
        squares = squares.to(columns)
        if columns.shape[-1] == 1:
            outputs = cotangents.squeeze(-1).square().sum(1)
            terms = torch.einsum("ngo,goi->ngi", outputs, squares)
            terms = terms * columns.squeeze(-1).square()
        else:
            rows = torch.einsum("nrgop,ngip->nrgoi", cotangents, columns)
            terms = rows.square_() * squares
        total += float(terms.sum(dtype=torch.float64))
    return total / layer.num_samples
