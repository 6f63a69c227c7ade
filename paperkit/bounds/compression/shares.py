"""The share of a layer in both sides of a statement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.bounds.compression.terms import (
    NORMS,
    PAPER,
    ROUND_OFF,
    SHARING,
    CallTerms,
    CompressionTerms,
)
from paperkit.bounds.statement import Inequality


@dataclass(frozen=True)
class LayerShare:
    """The numbers of a layer that bound the input Jacobian, ‖X‖ ≤ (‖A‖/‖x‖) · gradient.

    Attributes
    ----------
    norm : Tensor
        Norm ‖A‖ of the layer, the same for all samples, (n,).
    scale : Tensor
        Norm ‖x‖ of the input, with the bias's 1 where it counts, (n,).
    gradient : Tensor
        Norm of the gradient, (n,).
    assumptions : dict of str to bool or None
        Hypotheses of this bound.
    """

    norm: Tensor
    scale: Tensor
    gradient: Tensor
    assumptions: dict[str, bool | None]

    @property
    def ratio(self) -> Tensor:
        """The ratio ‖A‖/‖x‖; infinite at a zero input, where there is no bound."""
        return torch.where(self.scale > 0, self.norm / self.scale, math.inf)

    def product(self) -> Tensor:
        """Return the bound of ‖X‖; infinite at a zero input, also where the gradient is 0."""
        return torch.where(self.scale > 0, self.ratio * self.gradient, math.inf)


def check_terms(terms: CompressionTerms) -> None:
    """Refuse an argument that is no result of :func:`compression_terms`."""
    arguments.instance("terms", terms, CompressionTerms, "compression_terms returns them")


def share_of(call: CallTerms, sharing: str, norm: str, bias: bool) -> LayerShare:
    """Return the share of a call of a layer.

    Parameters
    ----------
    call : CallTerms
        Terms of the call.
    sharing : str
        ``"tied"`` for the gradient in the weight, ``"operator"`` for that in the operator.
    norm : str
        Norm of the layer: ``"operator"``, ``"matrix"`` or ``"frobenius"``.
    bias : bool
        Whether the bias counts as another input that is always 1.
    """
    sharing = arguments.choice("sharing", sharing, SHARING)
    norm, bias = arguments.choice("norm", norm, NORMS), arguments.flag("bias", bias)
    augmented = bias and call.has_bias
    scale = (call.input_norm.square() + float(augmented)).sqrt()
    if sharing == "operator":
        gradient = call.cotangent_norm * scale
    elif augmented:
        gradient = torch.hypot(call.weight_gradient, call.bias_gradient)
    else:
        gradient = call.weight_gradient
    value = {
        "operator": call.operator.upper,
        "matrix": call.matrix_norm,
        "frobenius": call.frobenius_norm,
    }[norm]
    assumptions: dict[str, bool | None] = {
        "single_reader": call.single_reader,
        "nonzero_inputs": bool((scale > 0).all()),
        "norm_bounds_operator": value >= call.operator.upper * (1.0 - ROUND_OFF),
    }
    if sharing == "tied":
        assumptions["unshared_weights"] = call.unshared
    return LayerShare(torch.full_like(scale, value), scale, gradient, assumptions)


def share_of_calls(calls: Sequence[CallTerms], sharing: str, norm: str, bias: bool) -> LayerShare:
    """Stack the shares of several calls: (calls · n,) each."""
    shares = [share_of(call, sharing, norm, bias) for call in calls]
    names = shares[0].assumptions
    return LayerShare(
        torch.cat([share.norm for share in shares]),
        torch.cat([share.scale for share in shares]),
        torch.cat([share.gradient for share in shares]),
        {name: all(share.assumptions[name] for share in shares) for name in names},
    )


def chosen_sharpness(
    terms: CompressionTerms, shares: LayerShare, sharing: str, sharpness: float | None
) -> tuple[float, dict[str, bool | None]]:
    """Return the sharpness S and the hypotheses of its use.

    S runs over all parameters, or with ``sharing="operator"`` over the entries of the operators.
    """
    if sharing == "operator":
        if sharpness is not None:
            raise ValueError('sharpness belongs to the parameters: leave it out of "operator".')
        return float(shares.gradient.square().sum()) / len(terms.gradient), {}
    if sharpness is None:
        return terms.sharpness, {}
    sharpness = arguments.number("sharpness", sharpness)
    enough = sharpness >= terms.sharpness * (1.0 - terms.tolerance)
    return max(sharpness, 0.0), {"sharpness_at_least_gauss_newton_trace": enough}


def inequality(
    terms: CompressionTerms,
    statement: str,
    source: str,
    left: float,
    right: float,
    assumptions: Mapping[str, bool | None],
) -> Inequality:
    """Return an inequality of the paper, with the round-off of the terms' own format."""
    return Inequality(
        statement=statement,
        source=f"{PAPER}, {source}",
        left=left,
        right=right,
        assumptions=assumptions,
        tolerance=terms.tolerance,
    )


def logarithmic_inequality(
    terms: CompressionTerms,
    statement: str,
    source: str,
    left: float,
    right: float,
    assumptions: Mapping[str, bool | None],
) -> Inequality:
    """Return an inequality between logarithms of C-th powers."""
    # The C-th power multiplies the relative round-off by C, and the logarithm makes it absolute.
    absolute = terms.num_outputs * terms.tolerance
    bound = inequality(terms, statement, source, left, right, assumptions)
    return replace(bound, absolute_tolerance=absolute)


def worst_sample(left: Tensor, right: Tensor) -> tuple[float, float]:
    """Return both sides at the sample with the least slack."""
    # A left side of −∞ or a right side of ∞ is the slackest of all. Their difference is not taken,
    # because (−∞) − (−∞) would be NaN.
    slack = torch.where(left.isneginf() | right.isposinf(), math.inf, right - left)
    index = int(slack.argmin())
    return float(left[index]), float(right[index])


def root_mean_square(values: Tensor) -> float:
    """Return the root of the mean of the squares."""
    return float(values.square().mean().sqrt())
