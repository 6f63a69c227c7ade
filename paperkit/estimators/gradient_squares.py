r"""Squared gradients of a network's outputs, sample by sample.

For the factor R of the loss's Hessian in the outputs, :math:`R_i^\top R_i = \Lambda_i`, they are
:math:`\|R_i\,\partial f_i/\partial\theta\|_F^2`. A weight that acts at several positions has a
gradient that is a coherent sum over them, which can vanish although each term is large. The bounds
of the compression paper's Section 3 need the sum of squares instead, as if the sharing were undone;
``"tied"``, ``"positions"`` and ``"operator"`` name the choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.linalg.gram import sums_of_squares
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.linearize.linearization import Linearization
from paperkit.network.losses import LOSSES, LossLike, get_loss

SHARING = ("tied", "positions", "operator")
"""What counts as one parameter of a layer.

``"tied"``: the weight as it is. ``"positions"``: a copy of the weight for every position and call.
``"operator"``: every entry of the layer's linear operator, as if it were fully connected.
"""


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
        cotangents = _joined([_weighted_cotangents(use, samples, factor) for use in layer.uses])
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
            rows = (
                _weighted_cotangents(use, samples, factor)
                .square()
                .sum(dim=(1, 3), dtype=torch.float64)
            )
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
            _weighted_cotangents(use, samples, factor)
            .flatten(1)
            .norm(dim=1, dtype=torch.float64)
            .square()
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


def _weighted_cotangents(use: LayerUse, samples: slice, factor: Tensor | None) -> Tensor:
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


def layer_gradient_squares(
    linearization: Linearization, loss: LossLike, sharing: str
) -> dict[str, Tensor]:
    """Return each sample's squared gradient norm by layer, (n,), float64."""
    sharing = arguments.choice("sharing", sharing, SHARING)
    factor = output_factor(linearization, loss)
    return {name: _SQUARES[sharing](layer, factor) for name, layer in linearization.layers.items()}


def parameter_gradient_squares(
    linearization: Linearization,
    loss: LossLike = "half_squared_error",
    layer_squares: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Return :math:`\|R_i\,\partial f_i/\partial\theta\|_F^2` of each sample over all parameters.

    Parameters
    ----------
    linearization : Linearization
        A linearization in all parameters.
    loss : str, nn.Module or callable
        See :func:`paperkit.network.get_loss`; it may differ from the linearization's own.
    layer_squares : mapping of str to Tensor, optional
        The layers' :func:`layer_gradient_squares` under that loss, where they are known.

    Returns
    -------
    Tensor
        Shape (n,), float64.

    Raises
    ------
    ValueError
        If the linearization lacks parameters, or the loss is unknown.
    """
    if linearization.parameter_jacobians is None:
        raise ValueError("linearization lacks the other parameters: set all_parameters=True.")
    factor = output_factor(linearization, loss)
    total = torch.zeros(
        len(linearization.outputs), dtype=torch.float64, device=linearization.outputs.device
    )
    for name, layer in linearization.layers.items():
        if layer_squares is None:
            total += weight_gradient_squares(layer, factor)
        else:
            total += layer_squares[name]
    for jacobian in linearization.parameter_jacobians.values():
        total += jacobian_squares(jacobian, factor, linearization.memory_budget)
    return total


def jacobian_squares(jacobian: Tensor, factor: Tensor | None, memory_budget: int) -> Tensor:
    """Return ‖R_i J_i‖² of each sample, (n,), from J, (n, C, d)."""
    total = torch.zeros(len(jacobian), dtype=torch.float64, device=jacobian.device)
    # At C = 1,000 even one sample's rows are many: a few columns at a time.
    bytes_each = 2 * len(jacobian) * jacobian.shape[1] * jacobian.element_size()
    for columns in jacobian.split(max(1, memory_budget // (4 * bytes_each)), 2):
        rows = columns if factor is None else factor @ columns
        total += sums_of_squares(rows)
    return total


def output_factor(linearization: Linearization, loss: LossLike) -> Tensor | None:
    """Return R of the named loss, None where it is the identity."""
    known = get_loss(loss)
    if known is LOSSES["half_squared_error"]:
        return None
    if known is linearization.loss:
        return linearization.hessian_factor
    return known.hessian_factor(linearization.outputs)
