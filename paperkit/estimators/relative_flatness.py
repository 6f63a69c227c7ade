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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperkit import arguments
from paperkit.curvature import HessianOperator
from paperkit.estimators.layer_results import LayerResults, layer_results
from paperkit.estimators.result import Measurement
from paperkit.linalg.operator import FunctionOperator
from paperkit.linalg.traces import hutchinson
from paperkit.linearize.blocks import last_layer
from paperkit.linearize.layer import LayerLinearization
from paperkit.linearize.layer_types import WeightLayout
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.linearize import linearize_in_chunks
from paperkit.linearize.weights import Weight, chosen_weights, layout_of
from paperkit.memory import GIBIBYTE
from paperkit.network.batches import batches
from paperkit.network.losses import Loss, LossLike
from paperkit.network.problem import measure_of

VECTORS_AT_ONCE = 64
"""Hessian products asked for together; more only cost memory."""


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
        :class:`torch.optim.SGD`). It adds λI to the Hessian and so λd‖W‖² to κ, d entries a row.
    max_products : int
        Hessian products that an exact value may cost where the Hessian block is not the
        Gauss–Newton block; 0 asks for random vectors there.
    probes : int
        Random vectors (Hutchinson's estimator) where it would cost more; at least 2.
    seed : int
        Of the random vectors.
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
    """
    _check_weight_decay(weight_decay)
    inputs, _ = next(iter(batches(data)))
    weights = chosen_weights(model, [last_layer(model, inputs)] if layers is None else layers)
    sums, n, obstacles = _over_chunks(model, data, loss, weights, memory_budget)
    names: dict[str, str] = {}  # by parameter, the name under which it is measured
    results: dict[str, Measurement] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys([*obstacles, *weights]):  # in the order of the forward pass
        weight = weights[name]
        other = names.setdefault(weight.parameter, name)
        try:
            if other != name:
                raise ValueError(f"it shares the weight of layer {other}")
            rows = _Rows.named(model, weight, obstacles.get(name, weight.obstacle))
            if name in sums:
                results[name] = _result(rows, loss, n, sums[name] / n, weight_decay)
                continue
            hessian = HessianOperator(
                model, data, loss, [weight.parameter], memory_budget=memory_budget
            )
            value, error, used = _by_products(
                rows, hessian, max_products, probes, seed, memory_budget
            )
            results[name] = _result(
                rows, loss, hessian.num_samples, value, weight_decay, error, used
            )
        except (ValueError, RuntimeError) as refusal:
            left_out[name] = str(refusal).rstrip(".")
    return layer_results(
        "relative_flatness",
        model,
        results,
        [weights[name].parameter for name in results],
        left_out,
        strict=layers is not None if strict is None else strict,
    )


def _over_chunks(
    model: nn.Module,
    data: object,
    loss: Loss,
    weights: Mapping[str, Weight],
    memory_budget: int,
) -> tuple[dict[str, float], int, dict[str, str | None]]:
    """Return nκ of layers whose blocks are exact, n, and the obstacles of the others."""
    readable = [name for name, weight in weights.items() if weight.obstacle is None]
    sums: dict[str, float] = {}
    obstacles: dict[str, str | None] = {}
    n = 0
    if not readable:
        return sums, n, obstacles
    chunks = linearize_in_chunks(
        model, data, loss, readable, strict=False, memory_budget=memory_budget
    )
    for linearization, targets in chunks:
        n += len(targets)
        for name, layer in linearization.layers.items():
            # What branches on the data may be piecewise linear for some samples only.
            obstacles[name] = obstacles.get(name) or layer.obstacle
            if obstacles[name] is None:
                sums[name] = sums.get(name, 0.0) + len(targets) * _from_pairs(layer)
        obstacles |= linearization.left_out
    return {name: one for name, one in sums.items() if obstacles[name] is None}, n, obstacles


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


def relative_flatness_from(
    linearization: Linearization,
    targets: Tensor,
    layers: Sequence[str] | None = None,
    *,
    weight_decay: float = 0.0,
) -> dict[str, Measurement]:
    """Return κ of layers whose Hessian block is their Gauss–Newton block, without the model.

    Parameters
    ----------
    linearization : Linearization
        Holds every layer to measure.
    targets : Tensor
        Only checked: the blocks do not depend on them.
    layers, weight_decay
        As in :func:`relative_flatness`.

    Returns
    -------
    dict of str to Measurement
        By layer; exact.

    Raises
    ------
    ValueError
        If the targets do not fit, a layer is missing, or its Gauss–Newton block need not be its
        Hessian block.
    """
    linearization.loss.check(linearization.outputs, targets)
    _check_weight_decay(weight_decay)
    results = {}
    names = list(linearization.layers)[-1:]
    if layers is not None:
        names = arguments.names("layers", layers, linearization.layers)
    for name in names:
        layer = linearization.layers[name]
        if not layer.exact_block:
            raise ValueError(
                f"layers: {name} needs Hessian products, because {layer.obstacle}: "
                "call relative_flatness with the model."
            )
        value = _from_pairs(layer)
        results[name] = _result(
            _Rows.of(layer), linearization.loss, layer.num_samples, value, weight_decay
        )
    return results


def _check_weight_decay(weight_decay: float) -> None:
    arguments.number("weight_decay", weight_decay, at_least=0)


def weight_by_group(layer: LayerLinearization) -> Tensor:
    """Return W by groups, (g, o, i), in float64."""
    weight = layer.uses[0].module.get_parameter("weight").detach().to(torch.float64)
    return layer.layout.matrices(weight)


def weighted_pairs(
    layer: LayerLinearization, bytes_per_sample: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a layer's inputs and weighted output Jacobians, some samples at a time.

    The positions of parallel uses add up like those of one use, so they are put side by side.

    Parameters
    ----------
    layer : LayerLinearization
        Any.
    bytes_per_sample : int
        What the caller needs besides, so that both fit the layer's memory budget.

    Yields
    ------
    tuple of Tensor
        Inputs a, (n, g, i, P), and R B, (n, r, g, o, P), in single precision at least.
    """
    working = torch.promote_types(layer.hessian_factor.dtype, torch.float32)
    positions = sum(use.positions() for use in layer.uses)
    groups, outputs, row_length = layer.layout.matrix_shape
    per_position = groups * (row_length + 3 * outputs * layer.hessian_factor.shape[2])
    step = max(1, layer.memory_budget // (8 * positions * per_position + bytes_per_sample))
    for start in range(0, layer.num_samples, step):
        samples = slice(start, start + step)
        columns = torch.cat([use.columns(samples) for use in layer.uses], dim=-1)
        cotangents = torch.cat([use.cotangents(samples) for use in layer.uses], dim=-1)
        factor = layer.hessian_factor[samples].to(working)
        yield (
            columns.to(working),
            torch.einsum("nrc,ncgop->nrgop", factor, cotangents.to(working)),
        )


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


def unit_vectors(dimension: int, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """Yield the rows of the identity, some at a time."""
    for start in range(0, dimension, VECTORS_AT_ONCE):
        stop = min(start + VECTORS_AT_ONCE, dimension)
        rows = torch.zeros(stop - start, dimension, dtype=dtype, device=device)
        rows[:, start:stop].fill_diagonal_(1.0)
        yield rows


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
