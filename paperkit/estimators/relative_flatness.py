r"""Relative flatness of a layer (Petzka et al., NeurIPS 2021).

With :math:`w_s` the rows of a layer's weight W, one for each output neuron, and
:math:`H_{ss'} = \partial^2 L / \partial w_s \partial w_{s'}`,

.. math:: \kappa = \sum_{s,s'} \langle w_s, w_{s'} \rangle \operatorname{Tr} H_{ss'}
          = \operatorname{Tr}\bigl[H\,(WW^\top \otimes I)\bigr] .

It measures the loss where the layer's input h moves to h + ρAh, A a random orthogonal matrix, which
is the weight's move to W + ρWA (Rényi paper, equation 2, whose Appendix B names Petzka et al. for
the same idea): for A uniform on the orthogonal group of dimension d, :math:`\operatorname{vec}(WA)`
has the second moment :math:`WW^\top \otimes I / d`, so the second-order change of the loss has the
mean :math:`\rho^2 \kappa / 2d`. Rescaling the layers of a positively homogeneous network leaves κ
as it is.

Let :math:`FF^\top = WW^\top`. Where the block is its Gauss–Newton block, with the rows of
:math:`R_i J_i` shaped like W, :math:`G_{ir} = \sum_p b_{irp} a_{ip}^\top`,

.. math:: \kappa = \frac1n \sum_{i,r} \lVert F^\top G_{ir} \rVert_F^2
          = \frac1n \sum_i \sum_{p,p'} \langle a_{ip}, a_{ip'} \rangle
            \sum_r \langle F^\top b_{irp}, F^\top b_{irp'} \rangle .

Elsewhere :math:`\kappa = \sum_{k,t} v_{kt}^\top H v_{kt}` with :math:`v_{kt} = F_{:k} e_t^\top`: as
many Hessian products as F has columns times entries in a row, at most as many as H has columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature import HessianOperator
from paperkit.estimators.layer_results import LayerResults, layer_results
from paperkit.estimators.passes import Chunk, PassMeasure, Problem, run_alone
from paperkit.estimators.result import Measurement
from paperkit.estimators.vectors import unit_vectors
from paperkit.estimators.weighted_pairs import weight_by_group, weighted_pairs
from paperkit.linalg.operator import FunctionOperator
from paperkit.linalg.traces import hutchinson
from paperkit.linearize.blocks import last_layer
from paperkit.linearize.layer import LayerLinearization
from paperkit.linearize.layer_types import WeightLayout
from paperkit.linearize.weights import Weight, chosen_weights, layout_of
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import batches
from paperkit.network.losses import Loss, LossLike
from paperkit.network.problem import measure_of


@measure_of
def relative_flatness(
    model: nn.Module,
    data: object,
    loss: LossLike = "cross_entropy",
    layers: Sequence[str] | None = None,
    *,
    weight_decay: float = 0.0,
    max_products: int = 4096,
    probes: int = 100,
    seed: int = 0,
    strict: bool | None = None,
    memory_budget: int = GIBIBYTE,
) -> LayerResults[Measurement]:
    r"""Return the relative flatness κ of linear and convolution layers.

    Source: Petzka et al. 2021, Definition 3. For a linear last layer with features φ it is
    :math:`\lVert W \rVert_F^2\,\frac1n \sum_i \lVert \varphi_i \rVert^2` under ½‖f − y‖², whatever
    the fit, and :math:`\frac1n \sum_i \lVert \varphi_i \rVert^2 (\sum_s p_{is} \lVert w_s \rVert^2
    - \lVert \sum_s p_{is} w_s \rVert^2)` under cross-entropy.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; all n samples count equally.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`.
    layers : sequence of str, optional
        Module names, or names of the matrices of recurrent and attention layers
        (``"rnn.weight_hh_l0"``); default the last linear or convolution layer of the forward pass.
        The rows of a convolution are its flattened filters. Filters of different groups read
        different inputs, so their rows count as orthogonal.
    weight_decay : float
        λ of a penalty ½λ‖W‖² that counts as part of the loss (``weight_decay`` of
        :class:`torch.optim.SGD`). The penalty adds λI to the Hessian and so λd‖W‖² to κ, d entries
        a row.
    max_products : int
        Hessian products that an exact value may cost where the Hessian block is not the
        Gauss–Newton block; 0 asks for random vectors there.
    probes : int
        Random vectors (Hutchinson's estimator) where it would cost more; at least 2.
    seed : int
        Seed of the random vectors.
    strict : bool, optional
        Whether a layer that cannot be measured ends the call. Default: only if ``layers`` names it;
        else it is left out, with its reason in ``left_out`` and in a warning.
    memory_budget : int
        Bytes for temporaries.

    Returns
    -------
    LayerResults of Measurement
        A dict by layer, in the order of the forward pass; in units of the loss.

    Raises
    ------
    ValueError
        If the data do not fit the model, a layer is unknown or cannot be measured, or an option is
        out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import relative_flatness
    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data = torch.tensor([[3.0, 4.0]])
    >>> data = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
    >>> flatness = relative_flatness(model, data, "half_squared_error")
    >>> {name: round(float(value), 4) for name, value in flatness.items()}  # ‖w‖² ‖x‖²
    {'0': 125.0}
    """
    weight_decay = arguments.number("weight_decay", weight_decay, at_least=0)
    strict = layers is not None if strict is None else strict
    if layers is None:
        layers = [last_layer(model, next(batches(data))[0])]
    problem = Problem.of(
        model, data, loss=loss, layers=layers, seed=seed, memory_budget=memory_budget
    )
    return run_alone(_flatness(weight_decay, max_products, probes, strict), problem)


@dataclass(frozen=True)
class _LayerSums:
    """Sums over a chunk of samples.

    Attributes
    ----------
    num_samples : int
        The chunk's number of samples.
    sums : dict of str to float
        Number of samples times κ, by layer, where the block is exact.
    obstacles : dict of str to str or None
        Why the block of a layer is not exact, or why the layer could not be linearized.
    """

    num_samples: int
    sums: dict[str, float]
    obstacles: dict[str, str | None]


def _flatness(
    weight_decay: float = 0.0,
    max_products: int | None = None,
    probes: int | None = None,
    strict: bool = False,
) -> PassMeasure:
    """Return the measure of the pass; None takes the problem's number of products."""

    def finish(parts: list[_LayerSums], problem: Problem) -> LayerResults[Measurement]:
        products = problem.products if max_products is None else max_products
        count = problem.products if probes is None else probes
        return _finished(parts, problem, weight_decay, products, count, strict)

    return PassMeasure("relative_flatness", finish, _layer_sums)


def _weights(problem: Problem) -> dict[str, Weight]:
    """Return the weights that were asked for, or the last layer's."""
    if problem.layers is not None:
        return problem.weights
    return chosen_weights(problem.model, [problem.last_layer])


def _layer_sums(chunk: Chunk) -> _LayerSums:
    names: dict[str, str] = {}  # by parameter
    for name, weight in _weights(chunk.problem).items():
        names.setdefault(weight.parameter, name)
    layers = {
        names[layer.weight_name]: layer
        for layer in chunk.linearization.layers.values()
        if layer.weight_name in names
    }
    obstacles = {name: layer.obstacle for name, layer in layers.items()}
    left_out = chunk.linearization.left_out
    return _LayerSums(
        chunk.num_samples,
        {
            name: chunk.num_samples * _from_pairs(layer)
            for name, layer in layers.items()
            if layer.obstacle is None
        },
        {**obstacles, **{name: left_out[name] for name in names.values() if name in left_out}},
    )


def _finished(
    parts: Sequence[_LayerSums],
    problem: Problem,
    weight_decay: float,
    max_products: int,
    probes: int,
    strict: bool,
) -> LayerResults[Measurement]:
    """Average over the samples; a layer that is not exact takes Hessian products."""
    obstacles: dict[str, str | None] = {}
    for part in parts:
        for name, obstacle in part.obstacles.items():
            # A function that branches on the data may be piecewise linear for some samples only.
            obstacles[name] = obstacles.get(name) or obstacle
    n = sum(part.num_samples for part in parts)
    weights = _weights(problem)
    names: dict[str, str] = {}  # by parameter, the name under which it is measured
    results: dict[str, Measurement] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys([*obstacles, *weights]):  # in the order of the forward pass
        weight = weights[name]
        other = names.setdefault(weight.parameter, name)
        try:
            if other != name:
                raise ValueError(f"it shares the weight of layer {other}")
            rows = _Rows.named(problem.model, weight, obstacles.get(name, weight.obstacle))
            if name in obstacles and obstacles[name] is None:
                value = sum((part.sums[name] for part in parts), 0.0) / n
                results[name] = _result(rows, problem.loss, n, value, weight_decay)
                continue
            hessian = HessianOperator(
                problem.model,
                problem.data,
                problem.loss,
                [weight.parameter],
                memory_budget=problem.memory_budget,
            )
            value, error, used = _by_products(
                rows, hessian, max_products, probes, problem.seed, problem.memory_budget
            )
            results[name] = _result(
                rows, problem.loss, hessian.num_samples, value, weight_decay, error, used
            )
        except (ValueError, RuntimeError) as refusal:
            left_out[name] = str(refusal).rstrip(".")
    return layer_results(
        "relative_flatness",
        problem.model,
        results,
        [weights[name].parameter for name in results],
        left_out,
        strict=strict,
    )


def _by_products(
    rows: _Rows,
    hessian: HessianOperator,
    max_products: int,
    probes: int,
    seed: int,
    memory_budget: int,
) -> tuple[float, float | None, int | None]:
    """Return κ, its standard error and the number of probes, None for both where it is exact."""
    scaled = _scaled_hessian(rows, hessian)
    if scaled.dimension <= max_products:
        value = sum(
            float((units * scaled(units)).sum(dtype=torch.float64))
            for units in unit_vectors(scaled.dimension, scaled.dtype, scaled.device)
        )
        return value, None, None
    estimate = hutchinson(scaled, probes, seed=seed, memory_budget=memory_budget)
    return estimate.value, estimate.standard_error, probes


@dataclass(frozen=True)
class _Rows:
    """A weight as rows, one for each output channel: by groups, (g, o, i), in float64."""

    name: str
    layout: WeightLayout
    weight: Tensor
    obstacle: str | None

    @classmethod
    def of(cls, layer: LayerLinearization) -> _Rows:
        return cls(layer.name, layer.layout, weight_by_group(layer), layer.obstacle)

    @classmethod
    def named(cls, model: nn.Module, weight: Weight, obstacle: str | None) -> _Rows:
        layout = layout_of(model, weight.parameter)
        if layout is None:
            raise ValueError(
                "relative flatness is of the rows of a layer's weight, and this parameter is not "
                "known to have a row for each output"
            )
        values = model.get_parameter(weight.parameter).detach().to(torch.float64)
        return cls(weight.name, layout, layout.matrices(values), obstacle)

    @property
    def row_length(self) -> int:
        return self.weight.shape[2]

    def factor(self) -> Tensor:
        """Return F with F Fᵀ = W Wᵀ for each group, (g, o, min(o, i)), in float64."""
        if self.weight.shape[2] <= self.weight.shape[1]:
            return self.weight
        return torch.linalg.qr(self.weight.transpose(1, 2), mode="r").R.transpose(1, 2)


def _from_pairs(layer: LayerLinearization) -> float:
    factor = _Rows.of(layer).factor()
    positions = sum(use.positions() for use in layer.uses)
    groups, outputs, row_length = layer.layout.matrix_shape
    temporary = layer.hessian_factor.shape[1] * groups * outputs * min(positions, row_length)
    total = 0.0
    for columns, cotangents in weighted_pairs(layer, 16 * temporary):
        turned = torch.einsum("nrgop,gok->nrgkp", cotangents, factor.to(cotangents.dtype))
        total += _summed_squares(turned, columns)
    return total / layer.num_samples


def _summed_squares(turned: Tensor, columns: Tensor) -> float:
    """Return the sum over samples and rows of ‖Σ_p (Fᵀ b_p) a_pᵀ‖², the cheaper of two ways."""
    _, _, row_length, positions = columns.shape
    if positions <= row_length:
        inputs = torch.einsum("ngip,ngiq->ngpq", columns, columns)
        outputs = torch.einsum("nrgkp,nrgkq->ngpq", turned, turned)
        return float((inputs * outputs).sum(dtype=torch.float64))
    rows = torch.einsum("nrgkp,ngip->nrgki", turned, columns)
    return float(rows.square_().sum(dtype=torch.float64))


def _scaled_hessian(rows: _Rows, hessian: HessianOperator) -> FunctionOperator:
    """Return (F ⊗ I)ᵀ H (F ⊗ I), whose trace is κ."""
    # Only the products themselves are in half precision, where the model is.
    working = torch.promote_types(hessian.dtype, torch.float32)
    factor, layout = rows.factor().to(working), rows.layout
    groups, _, columns = factor.shape

    def product(vectors: Tensor) -> Tensor:
        shaped = vectors.reshape(len(vectors), groups, columns, -1)
        directions = layout.weight(torch.einsum("gok,vgki->vgoi", factor, shaped)).flatten(1)
        images = hessian(directions.to(hessian.dtype)).to(working)
        shaped = layout.matrices(images.reshape(len(vectors), *layout.shape))
        return torch.einsum("gok,vgoi->vgki", factor, shaped).flatten(1)

    dimension = groups * columns * rows.row_length
    return FunctionOperator(product, dimension, dtype=working, device=hessian.device)


def _result(
    rows: _Rows,
    loss: Loss,
    n: int,
    value: float,
    weight_decay: float,
    standard_error: float | None = None,
    probes: int | None = None,
) -> Measurement:
    penalty = weight_decay * rows.row_length * float(rows.weight.square().sum())
    return Measurement(
        value=value + penalty,
        measure="relative_flatness",
        method="exact" if standard_error is None else "hutchinson",
        n=n,
        loss=loss,
        layer=rows.name,
        standard_error=standard_error,
        probes=probes,
        assumptions={
            "exact_block": rows.obstacle is None,
            "obstacle": rows.obstacle,
            "weight_decay": weight_decay,
        },
    )


RELATIVE_FLATNESS = _flatness()
