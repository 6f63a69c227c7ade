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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from paperkit.curvature import HessianOperator
from paperkit.estimators.passes import Chunk, PassMeasure, Problem, over_linearizations
from paperkit.estimators.perturbed_loss import gaussian_like, mean_loss, select_parameters
from paperkit.estimators.result import Measurement
from paperkit.estimators.vectors import sign_vectors, unit_vectors
from paperkit.estimators.weighted_pairs import weight_by_group, weighted_pairs
from paperkit.linalg.probes import generator_of
from paperkit.linearize.layer import LayerLinearization
from paperkit.linearize.weights import chosen_weights
from paperkit.memory import GIBIBYTE
from paperkit.network.evaluation import evaluation
from paperkit.network.footprint import FORWARD, Chunks
from paperkit.network.losses import Loss, LossLike
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

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import adaptive_sharpness
    >>> model = nn.Linear(1, 1)
    >>> model.weight.data, model.bias.data = torch.tensor([[3.0]]), torch.tensor([1.0])
    >>> data = torch.tensor([[2.0]]), torch.tensor([[7.0]])
    >>> sharpness = adaptive_sharpness(model, data, "half_squared_error")
    >>> {name: round(part, 4) for name, part in sharpness.by_parameter.items()}  # (3 · 2)² and 1²
    {'weight': 36.0, 'bias': 1.0}
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
        Seed of the random vectors.
    memory_budget : int
        Bytes for temporaries.

    Returns
    -------
    AdaptiveSharpness
        In units of the loss. The scale of single weights does not show in the value, as long as
        the function of the network stays the same.

    Raises
    ------
    ValueError
        If the data do not fit the model, a name is unknown, or an option is out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import adaptive_sharpness
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 4.0]])
    >>> data = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> round(float(adaptive_sharpness(model, data, "half_squared_error")), 4)  # 3² 1² + 4² 2²
    73.0
    """
    chosen = select_parameters(model, parameters)
    try:
        parts = _terms_of(model, data, loss, chosen, memory_budget)
    except ValueError:
        # The loss may not be convex, or the pairs of one sample too large: then all is left to
        # Hessian products, which check the data again.
        parts = []
    terms, n = _exact_terms(parts)
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
            else sign_vectors(probes, operator, seed)
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
        Seed of the noise; the same draws serve every rho.
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

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import average_adaptive_sharpness
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 4.0]])
    >>> data = torch.tensor([[1.0, 2.0]]), torch.tensor([[11.0]])  # a minimum
    >>> average = average_adaptive_sharpness(model, data, "half_squared_error", probes=1000)
    >>> abs(float(average) - 73) < 3 * average.standard_error  # its limit is 3² 1² + 4² 2²
    True
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


@dataclass(frozen=True)
class _Terms:
    """Terms of the layers of a chunk of samples.

    Attributes
    ----------
    num_samples : int
        The chunk's number of samples.
    sums : dict of str to float
        Number of samples times Σ_j w_j² H_jj, by the weight's parameter, where it is exact.
    inexact : dict of str to str
        Parameters, by the weight's name, whose block is not the Gauss–Newton block.
    weights : dict of str to str
        All parameters, by the weight's name.
    """

    num_samples: int
    sums: dict[str, float]
    inexact: dict[str, str]
    weights: dict[str, str]

    @classmethod
    def of(cls, layers: Mapping[str, LayerLinearization], num_samples: int) -> _Terms:
        """Compute the terms of layers."""
        return cls(
            num_samples,
            {
                layer.weight_name: num_samples * _weighted_diagonal_sum(layer)
                for layer in layers.values()
                if layer.exact_block
            },
            {name: layer.weight_name for name, layer in layers.items() if not layer.exact_block},
            {name: layer.weight_name for name, layer in layers.items()},
        )


def _exact_terms(parts: Sequence[_Terms]) -> tuple[dict[str, float], int]:
    """Return Σ_j w_j² H_jj of the weights that are exact in every chunk, and n."""
    inexact = {parameter for part in parts for parameter in part.inexact.values()}
    sums: dict[str, float] = {}
    for part in parts:
        for parameter, value in part.sums.items():
            sums[parameter] = sums.get(parameter, 0.0) + value
    n = sum(part.num_samples for part in parts)
    return {name: total / n for name, total in sums.items() if name not in inexact}, n


def _terms_of(
    model: nn.Module,
    data: object,
    loss: Loss,
    chosen: Mapping[str, nn.Parameter],
    memory_budget: int,
) -> list[_Terms]:
    """Return the terms of the chosen weights whose layers can be linearized."""
    layers = [
        weight.name
        for weight in chosen_weights(model).values()
        if weight.obstacle is None and weight.parameter in chosen
    ]
    if not layers:
        return []
    return over_linearizations(
        lambda linearization, targets: _Terms.of(linearization.layers, len(targets)),
        Problem.of(model, data, loss=loss, memory_budget=memory_budget),
        layers=layers,
        strict=False,
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


# --- The measure of the pass


def _layer_terms(chunk: Chunk) -> _Terms:
    """Return the terms of the layers; other weights of known type count as not exact."""
    terms = _Terms.of(chunk.layers, chunk.num_samples)
    covered = {layer.weight_name for layer in chunk.linearization.layers.values()}
    for weight in chunk.problem.weights.values():
        if weight.obstacle is None and weight.parameter not in covered:
            covered.add(weight.parameter)
            terms.weights[weight.name] = weight.parameter
            terms.inexact[weight.name] = weight.parameter
    return terms


def _weights_part(parts: list[_Terms], problem: Problem) -> Measurement:
    """Add up the exact terms, and estimate the others."""
    weights = parts[-1].weights if parts else {}
    if not weights:
        raise ValueError("layers: none to measure is a linear or convolution layer.")
    terms, n = _exact_terms(parts)
    standard_error, probes, method = None, None, "exact"
    if left := [parameter for parameter in weights.values() if parameter not in terms]:
        rest = problem.own(
            adaptive_sharpness,
            parameters=left,
            probes=problem.products,
            max_products=problem.products,
        )
        terms |= rest.by_parameter
        standard_error, probes, method = rest.standard_error, rest.probes, rest.method
    return Measurement(
        value=sum(terms.values()),
        measure="adaptive_weight_sharpness",
        method=method,
        n=n,
        loss=problem.loss,
        standard_error=standard_error,
        probes=probes,
        assumptions={"parameters": tuple(weights.values())},
    )


ADAPTIVE_WEIGHT_SHARPNESS = PassMeasure("adaptive_weight_sharpness", _weights_part, _layer_terms)
