r"""Both sides of the compression paper's statements, as printed and as they can be proved.

All of them rest on one observation. Where a layer :math:`z = Wx` is the only reader of x and its
weight acts once, with :math:`B = \partial f/\partial z`,

.. math:: \frac{\partial f}{\partial x} = B W, \qquad
    \Bigl\|\frac{\partial f}{\partial W}\Bigr\|_F = \|B\|_F \|x\|
    \quad\Rightarrow\quad
    \Bigl\|\frac{\partial f}{\partial x}\Bigr\|_2 \le
    \frac{\|W\|_2}{\|x\|}\,\Bigl\|\frac{\partial f}{\partial W}\Bigr\|_F .

A convolution breaks the second identity: its gradient is a sum over positions that can cancel. The
paper claims its bounds for convolutions too; they are false there. What does hold replaces W by
the layer's operator T and the gradient by :math:`\|B\|_F\|x\|`, the gradient in T's entries
(``sharing="operator"``), or divides by the patches' smallest singular value
(:func:`conditioned_patches_bound`). Whether a hypothesis holds is decided from the recorded
tensors; every :class:`~paperkit.bounds.statement.Bound` carries the answer.

The sharpness S is the Gauss–Newton trace of ½‖f − y‖² averaged over samples, with which the
inequalities hold at any parameters. The trace of the Hessian may take its place where it is no
smaller, which the bound checks; at interpolation they are equal. Volumes are compared by their
logarithms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vmap

from paperkit import arguments
from paperkit.bounds.statement import Bound
from paperkit.estimators.gauss_newton_trace import (
    gradient_squares_from,
    weight_gradient_squares,
)
from paperkit.estimators.representation import (
    frobenius_norms,
    input_invariant_sensitivities,
    largest_singular_values,
    log_volumes,
)
from paperkit.linalg.row_space import default_tolerance
from paperkit.linearize.batches import as_batch
from paperkit.linearize.dense import dense_hessian, dense_jacobian, select_parameters
from paperkit.linearize.evaluation import check_inputs, check_outputs, evaluation
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.linearize.layer_operator import (
    OperatorNorm,
    apply_adjoint,
    operator_norm,
    weight_matrices,
    weight_matrix_norm,
)
from paperkit.linearize.linearize import GIBIBYTE, Linearization, linearize
from paperkit.linearize.losses import get_loss
from paperkit.linearize.network import Network, network_outputs, own_parameters

SHARING = ("tied", "operator")
NORMS = ("operator", "matrix", "frobenius")

# Round-off that a float64 bound may lose; less precise models are allowed 100 units of theirs.
_TOLERANCE = 1e-9

_PAPER = "compression paper"
_JACOBIAN = ("n", "C", "d", "…")


# --- what the two sides are made of -------------------------------------------------------------


@dataclass(frozen=True)
class CallTerms:
    r"""One call of one layer: x its input, z = T x its pre-activation, :math:`J_x`, B.

    Attributes
    ----------
    name : str
        The layer; or ``"input"`` for :math:`J_x` in the network's input.
    sensitivity, frobenius, log_volume : Tensor
        :math:`\|J_x\|_2`, :math:`\|J_x\|_F`, :math:`\log d\mathrm{Vol}`, shape (n,), float64.
    input_norm, cotangent_norm : Tensor
        :math:`\|x\|`, :math:`\|B\|_F`, shape (n,).
    weight_gradient, bias_gradient : Tensor
        Of the layer's parameters with all their uses, :math:`\|\partial f/\partial W\|_F` and
        :math:`\|\partial f/\partial b\|_F`, shape (n,); the second zero without a bias.
    operator : OperatorNorm
        :math:`\|T\|_2`.
    matrix_norm, frobenius_norm : float
        :math:`\|W\|_2` of the reshaped weight, and :math:`\sqrt P\,\|W\|_F \ge \|T\|_F`.
    num_cotangents : int
        h, the number of entries of z.
    has_bias : bool
        Whether the layer adds a bias.
    unshared : bool
        Whether W acts once: one call, one position that sees the whole input, one group.
    single_reader : bool
        Whether :math:`J_x = B T`: nothing else reads x.
    """

    name: str
    sensitivity: Tensor
    frobenius: Tensor
    log_volume: Tensor
    input_norm: Tensor
    cotangent_norm: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor
    operator: OperatorNorm
    matrix_norm: float
    frobenius_norm: float
    num_cotangents: int
    has_bias: bool
    unshared: bool
    single_reader: bool


@dataclass(frozen=True)
class CompressionTerms:
    r"""What the paper's inequalities say of a network on n samples is made of.

    Attributes
    ----------
    network : CallTerms
        At the network's input; its layer is the first one called, and ``single_reader`` says
        whether that layer alone reads the input, unchanged.
    calls : tuple of CallTerms
        Every call of every layer.
    gradient : Tensor
        :math:`\|\partial f/\partial\theta\|_F`, all parameters, shape (n,), float64.
    scaled_gradient, scaled_first_gradient : Tensor
        :math:`\sum_j \theta_j^2 \|\partial f/\partial\theta_j\|^2` over all parameters, and over
        the first layer's weight, shape (n,).
    input_invariant : Tensor
        :math:`\|J_x \operatorname{diag}(x)\|_F^2` at the network's input, shape (n,).
    linearization : Linearization
        Where they come from.
    """

    network: CallTerms
    calls: tuple[CallTerms, ...]
    gradient: Tensor
    scaled_gradient: Tensor
    scaled_first_gradient: Tensor
    input_invariant: Tensor
    linearization: Linearization

    @property
    def num_outputs(self) -> int:
        """C, the exponent of the volume bounds."""
        return self.linearization.outputs.shape[1]

    @property
    def sharpness(self) -> float:
        """S, the Gauss–Newton trace over all parameters."""
        return float(self.gradient.square().mean())

    @property
    def tolerance(self) -> float:
        """The relative round-off that the model's dtype explains."""
        return max(_TOLERANCE, 100.0 * torch.finfo(self.linearization.outputs.dtype).eps)


def compression_terms(
    model: nn.Module, data: object, *, memory_budget: int = GIBIBYTE
) -> CompressionTerms:
    """Linearize a network once and collect what all bounds of this module need.

    Parameters
    ----------
    model : nn.Module
        Called as ``model(inputs)``, returning (n, C); measured in evaluation mode, left as found.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; the targets are not used.
    memory_budget : int
        Bytes for the pairs and temporaries.

    Returns
    -------
    CompressionTerms
        Of all layers and all samples.

    Raises
    ------
    ValueError
        If the data do not fit the model or the budget, or no gradient reaches a layer's input.
    """
    memory_budget = arguments.memory_budget("memory_budget", memory_budget)
    inputs, _ = as_batch(data)
    linearization = linearize(
        model,
        inputs,
        "half_squared_error",
        input_jacobians=True,
        all_parameters=True,
        memory_budget=memory_budget,
    )
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    return compression_terms_from(linearization, inputs, parameters)


def compression_terms_from(
    linearization: Linearization, inputs: Tensor, parameters: dict[str, Tensor]
) -> CompressionTerms:
    """Return :func:`compression_terms` of a linearization.

    Parameters
    ----------
    linearization : Linearization
        With input Jacobians and all parameters.
    inputs : Tensor
        The network's inputs, shape (n, …).
    parameters : dict of str to Tensor
        The network's parameters by name.

    Raises
    ------
    ValueError
        If the linearization lacks a Jacobian.
    """
    arguments.instance("linearization", linearization, Linearization, "linearize returns one")
    arguments.tensor(
        "inputs", inputs, shape=(linearization.num_samples, "…"), floating=True, finite=True
    )
    parameters = arguments.mapping("parameters", parameters, "a mapping from names to Tensors")
    if linearization.input_jacobian is None:
        raise ValueError("linearization has no input Jacobian: set input_jacobians=True.")
    if not linearization.layers:
        raise ValueError(
            "model: none of its linear or convolution layers could be linearized, and the bounds "
            "are about their weights: pass a network with one."
        )
    calls = [
        _call_terms(linearization, name, layer, use)
        for name, layer in linearization.layers.items()
        for use in layer.uses
    ]
    if not calls:
        raise ValueError("model has no linear or convolution layer, which the bounds are about.")
    first = next(iter(linearization.layers.values()))
    jacobian = linearization.input_jacobian.flatten(2)
    network = replace(
        calls[0],
        name="input",
        sensitivity=largest_singular_values(jacobian),
        frobenius=frobenius_norms(jacobian),
        log_volume=log_volumes(jacobian),
        single_reader=_same(jacobian, _through_layer(first.uses[0]))
        and _same(inputs.flatten(1), first.uses[0].inputs.flatten(1)),
    )
    missing = [name for name, _ in linearization.jacobian_blocks() if name not in parameters]
    if missing:
        raise ValueError(f"parameters lacks {', '.join(missing)}: pass all of the network's.")
    scaled = {
        name: (block.double() * parameters[name].flatten().double()).square().sum(dim=(1, 2))
        for name, block in linearization.jacobian_blocks()
    }
    return CompressionTerms(
        network=network,
        calls=tuple(calls),
        gradient=gradient_squares_from(linearization).sqrt(),
        scaled_gradient=torch.stack(list(scaled.values())).sum(dim=0),
        scaled_first_gradient=scaled[first.weight_name],
        input_invariant=input_invariant_sensitivities(jacobian, inputs),
        linearization=linearization,
    )


def _call_terms(
    linearization: Linearization, name: str, layer: LayerLinearization, use: LayerUse
) -> CallTerms:
    if use.input_jacobian is None:
        raise ValueError(f"linearization has no Jacobian in the input of layer {name}.")
    jacobian = use.input_jacobian.flatten(2)
    weights = weight_matrices(use.module)
    bias = _bias_jacobian(linearization, use.module)
    return CallTerms(
        name=name,
        sensitivity=largest_singular_values(jacobian),
        frobenius=frobenius_norms(jacobian),
        log_volume=log_volumes(jacobian),
        input_norm=_norms(use.inputs),
        cotangent_norm=_norms(use.output_jacobian),
        weight_gradient=weight_gradient_squares(layer).sqrt(),
        bias_gradient=torch.zeros_like(_norms(use.inputs)) if bias is None else _norms(bias),
        operator=operator_norm(use.module, use.inputs.shape[1:]),
        matrix_norm=weight_matrix_norm(use.module),
        frobenius_norm=math.sqrt(use.positions()) * float(weights.norm()),
        num_cotangents=use.output_jacobian[0, 0].numel(),
        has_bias=bias is not None,
        unshared=len(layer.uses) == 1 and _acts_once(use),
        single_reader=_same(jacobian, _through_layer(use)),
    )


def _bias_jacobian(linearization: Linearization, module: nn.Module) -> Tensor | None:
    """Return ∂f/∂b, None where the layer has no bias of its own."""
    if module.bias is None:
        return None
    owners = [
        layer
        for layer in linearization.layers.values()
        if any(use.module.bias is module.bias for use in layer.uses)
    ]
    if len(owners) > 1:
        return None
    name = owners[0].weight_name.removesuffix("weight") + "bias"
    return (linearization.parameter_jacobians or {}).get(name)


def _acts_once(use: LayerUse) -> bool:
    """Whether one patch holds every input entry once: then ∂f/∂W = B xᵀ."""
    if use.positions() > 1 or use.groups > 1:
        return False
    columns = use.columns(slice(None)).flatten(1)
    return _same(_norms(columns), _norms(use.inputs))


def _through_layer(use: LayerUse) -> Tensor:
    """Return B T, (n, C, M)."""
    shape = use.inputs.shape[1:]
    rows = apply_adjoint(use.module, use.output_jacobian.flatten(0, 1), shape)
    return rows.reshape(*use.output_jacobian.shape[:2], -1)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree up to round-off of their largest entry."""
    if one.shape != other.shape:
        return False
    scale = float(torch.maximum(one.abs().max(), other.abs().max()))
    eps = torch.finfo(torch.promote_types(one.dtype, other.dtype)).eps
    return float((one - other).abs().max()) <= eps**0.5 * scale


def _norms(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).norm(dim=1, dtype=torch.float64)


# --- one layer's share of both sides ------------------------------------------------------------


@dataclass(frozen=True)
class _Share:
    """‖T‖, the input's norm (with the bias's 1) and the gradient, (n,) each, and what they need.

    Their quotient and product bound ‖J_x‖ ≤ (‖T‖/‖x‖) · gradient.
    """

    norm: Tensor
    scale: Tensor
    gradient: Tensor
    assumptions: dict[str, bool | None]

    @property
    def ratio(self) -> Tensor:
        """‖T‖/‖x‖; infinite at a zero input, where there is no bound."""
        return torch.where(self.scale > 0, self.norm / self.scale, math.inf)

    def product(self) -> Tensor:
        """Return the bound of ‖J_x‖; infinite at a zero input, also where the gradient is 0."""
        return torch.where(self.scale > 0, self.ratio * self.gradient, math.inf)


def _check_terms(terms: CompressionTerms) -> None:
    arguments.instance("terms", terms, CompressionTerms, "compression_terms returns them")


def _share(call: CallTerms, sharing: str, norm: str, bias: bool) -> _Share:
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
        "norm_bounds_operator": value >= call.operator.upper * (1.0 - _TOLERANCE),
    }
    if sharing == "tied":
        assumptions["unshared_weights"] = call.unshared
    return _Share(torch.full_like(scale, value), scale, gradient, assumptions)


def _shares(calls: Sequence[CallTerms], sharing: str, norm: str, bias: bool) -> _Share:
    """Stack the shares of several calls: (calls · n,) each."""
    shares = [_share(call, sharing, norm, bias) for call in calls]
    names = shares[0].assumptions
    return _Share(
        torch.cat([share.norm for share in shares]),
        torch.cat([share.scale for share in shares]),
        torch.cat([share.gradient for share in shares]),
        {name: all(share.assumptions[name] for share in shares) for name in names},
    )


def _sharpness(
    terms: CompressionTerms, shares: _Share, sharing: str, sharpness: float | None
) -> tuple[float, dict[str, bool | None]]:
    """Return S and what its use assumes: over all parameters, or over the operators' entries."""
    if sharing == "operator":
        if sharpness is not None:
            raise ValueError('sharpness belongs to the parameters: leave it out of "operator".')
        return float(shares.gradient.square().sum()) / len(terms.gradient), {}
    if sharpness is None:
        return terms.sharpness, {}
    sharpness = arguments.number("sharpness", sharpness)
    enough = sharpness >= terms.sharpness * (1.0 - terms.tolerance)
    return max(sharpness, 0.0), {"sharpness_at_least_gauss_newton_trace": enough}


def _bound(
    terms: CompressionTerms,
    statement: str,
    source: str,
    left: float,
    right: float,
    assumptions: Mapping[str, bool | None],
) -> Bound:
    return Bound(
        statement=statement,
        source=f"{_PAPER}, {source}",
        left=left,
        right=right,
        assumptions=assumptions,
        tolerance=terms.tolerance,
    )


def _log_bound(
    terms: CompressionTerms,
    statement: str,
    source: str,
    left: float,
    right: float,
    assumptions: Mapping[str, bool | None],
) -> Bound:
    # A C-th power turns a relative round-off into an absolute one of its logarithm, C times.
    absolute = terms.num_outputs * terms.tolerance
    bound = _bound(terms, statement, source, left, right, assumptions)
    return replace(bound, absolute_tolerance=absolute)


def _worst(left: Tensor, right: Tensor) -> tuple[float, float]:
    """Return both sides at the sample with the least slack."""
    # −∞ ≤ anything and anything ≤ ∞ are the slackest; (−∞) − (−∞) would be NaN.
    slack = torch.where(left.isneginf() | right.isposinf(), math.inf, right - left)
    index = int(slack.argmin())
    return float(left[index]), float(right[index])


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


# --- the linear stability trick -----------------------------------------------------------------


def linear_stability_bounds(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    printed: bool = False,
) -> tuple[Bound, Bound]:
    r"""Compare the input Jacobian with the first layer's gradient, each at the tightest sample.

    Corrected: :math:`\|J_x\|_2 \le \|J_x\|_F \le \frac{\|W\|_2}{\|x\|} \|\nabla_W f\|_F`. The
    middle term that is printed is :math:`\|\nabla_W f\|_F`. With it the first inequality is sure
    only where :math:`\|W\|_2 \le \|x\|`, and the second is true only where :math:`\|W\|_2 \ge
    \|x\|` (or the gradient is zero). Source: compression paper, equation 5; its Appendix C,
    equation 20, uses the corrected form.

    Parameters
    ----------
    terms : CompressionTerms
        Of the network.
    sharing : str
        Which gradient: ``"tied"``, in the weight as the paper has it; ``"operator"``, in the
        entries of the layer's operator, which holds for convolutions too.
    norm : str
        Which norm of the layer: ``"operator"``, :math:`\|T\|_2`; ``"matrix"``, the spectral norm
        of the reshaped weight; ``"frobenius"``, :math:`\sqrt P\,\|W\|_F`, the public code's choice
        for convolutions.
    bias : bool
        Count the bias in the gradient and replace :math:`\|x\|^2` by :math:`\|x\|^2 + 1`, which is
        tighter, in layers that have one.
    printed : bool
        Return the two inequalities as printed, certified only where :math:`\|W\|_2` and
        :math:`\|x\|` are in that order.

    Returns
    -------
    tuple of Bound
        The two inequalities.

    Raises
    ------
    ValueError
        If ``sharing`` or ``norm`` is unknown.
    """
    _check_terms(terms)
    printed = arguments.flag("printed", printed)
    share = _share(terms.network, sharing, norm, bias)
    right = share.product()
    if not printed:
        middle = terms.network.frobenius
        sides = [(terms.network.sensitivity, middle), (middle, right)]
        texts = ["‖Jx‖₂ ≤ ‖Jx‖_F", "‖Jx‖_F ≤ (‖W‖₂/‖x‖) ‖∇_W f‖_F"]
        needs: list[dict[str, bool | None]] = [{}, share.assumptions]
    else:
        sides = [(terms.network.sensitivity, share.gradient), (share.gradient, right)]
        texts = ["‖Jx‖₂ ≤ ‖∇_W f‖_F", "‖∇_W f‖_F ≤ (‖W‖₂/‖x‖) ‖∇_W f‖_F"]
        needs = [
            {**share.assumptions, "norm_at_most_input_norm": bool((share.ratio <= 1).all())},
            {"norm_at_least_input_norm": bool((share.ratio >= 1).all())},
        ]
    first, second = (
        _bound(terms, text, "equation 5", *_worst(*both), assumptions)
        for text, both, assumptions in zip(texts, sides, needs, strict=True)
    )
    return first, second


def input_smoothness_bounds(
    terms: CompressionTerms,
    k: float = 2.0,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    printed: bool = False,
) -> tuple[Bound, ...]:
    r"""Compare mean k-th powers of the input Jacobian's norm with those of the gradient.

    Corrected, for any k > 0: :math:`\frac1n\sum\|J_x\|_2^k \le \frac1n\sum\|J_x\|_F^k \le
    \frac{\|W\|_2^k}{\min_i\|x_i\|^k}\frac1n\sum\|\nabla_W f\|_F^k`, and the same with all
    parameters; the last is S for k = 2. Printed is :math:`\|\nabla_W f\|_F^k` in the middle, as in
    equation 5. Source: compression paper, equation 6.

    Parameters
    ----------
    terms, sharing, norm, bias, printed
        As in :func:`linear_stability_bounds`.
    k : float
        The power, positive.

    Returns
    -------
    tuple of Bound
        Three inequalities, with ``sharing="operator"`` or as printed two: there the last is left
        out.

    Raises
    ------
    ValueError
        If k is not positive, or as :func:`linear_stability_bounds`.
    """
    _check_terms(terms)
    k, printed = arguments.number("k", k, above=0), arguments.flag("printed", printed)
    share = _share(terms.network, sharing, norm, bias)
    factor = float(share.ratio.max().pow(k))
    gradient = float(share.gradient.pow(k).mean())
    sensitivity = float(terms.network.sensitivity.pow(k).mean())
    frobenius = float(terms.network.frobenius.pow(k).mean())
    layer = math.inf if math.isinf(factor) else factor * gradient
    if math.isnan(layer):
        raise ValueError(f"k={k} is too large: the powers leave the range of float64.")
    source = "equation 6"
    if printed:
        small = {**share.assumptions, "norm_at_most_input_norm": factor <= 1}
        large: dict[str, bool | None] = {"norm_at_least_input_norm": factor >= 1}
        return (
            _bound(terms, "mean ‖Jx‖₂ᵏ ≤ mean ‖∇_W f‖_Fᵏ", source, sensitivity, gradient, small),
            _bound(terms, "mean ‖∇_W f‖_Fᵏ ≤ its multiple", source, gradient, layer, large),
        )
    text = "(‖W‖₂/min ‖x‖)ᵏ mean ‖∇f‖_Fᵏ"
    bounds = (
        _bound(terms, "mean ‖Jx‖₂ᵏ ≤ mean ‖Jx‖_Fᵏ", source, sensitivity, frobenius, {}),
        _bound(terms, f"mean ‖Jx‖_Fᵏ ≤ {text}, W", source, frobenius, layer, share.assumptions),
    )
    if sharing == "operator":
        return bounds
    total = math.inf if math.isinf(factor) else factor * float(terms.gradient.pow(k).mean())
    return (*bounds, _bound(terms, f"{text}, W ≤ θ", source, layer, total, {}))


# --- volumes ------------------------------------------------------------------------------------


def volume_lemma(jacobian: Tensor, k: int | None = None) -> Bound:
    r"""Compare a Jacobian's log volume with its Frobenius norm, at the tightest sample.

    :math:`\prod_{j\le k}\sigma_j \le k^{-k/2}\,\|J_x\|_F^k`, by the inequality of arithmetic and
    geometric means; equality where k singular values are equal and the others zero. Source:
    compression paper, Lemma 3.2 (equation 8), k = C.

    Parameters
    ----------
    jacobian : Tensor
        Shape (n, C, …), outputs × inputs.
    k : int, optional
        As in :func:`paperkit.estimators.log_volumes`.

    Returns
    -------
    Bound
        Between logarithms.

    Raises
    ------
    ValueError
        If k is out of range.
    """
    arguments.tensor("jacobian", jacobian, shape=_JACOBIAN, floating=True, finite=True)
    left = log_volumes(jacobian, k)
    power = jacobian.shape[1] if k is None else k
    right = power * (frobenius_norms(jacobian).log() - 0.5 * math.log(power))
    tightest_left, tightest_right = _worst(left, right)
    return Bound(
        statement="log dVol ≤ log(k^(−k/2) ‖Jx‖_Fᵏ)",
        source=f"{_PAPER}, equation 8",
        left=tightest_left,
        right=tightest_right,
        absolute_tolerance=power * max(_TOLERANCE, 100.0 * torch.finfo(jacobian.dtype).eps),
    )


def volume_bounds(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    sharper: bool = False,
    sharpness: float | None = None,
) -> tuple[Bound, Bound]:
    r"""Compare the mean local volume with the sharpness.

    .. math:: dV \le \frac{C^{-C/2}}{n}\sum_i\|J_x\|_F^C \le
        \frac1n\sqrt{\sum_i\frac{\|W\|_2^{2C}}{\|x_i\|^{2C}}}\;\Bigl(\frac{nS}{C}\Bigr)^{C/2}

    Source: compression paper, Proposition 3.4 (equation 9). Section 2 of the paper says that a
    geometric mean takes the place of equation 6's minimum, for a more stable bound. It is a power
    mean, and for C ≥ 2 the minimum, that is the maximum of :math:`\|W\|_2/\|x_i\|` outside the sum,
    is never worse: ``sharper=True``.

    Parameters
    ----------
    terms, sharing, norm, bias
        As in :func:`linear_stability_bounds`.
    sharper : bool
        Take the maximum in place of the power mean; needs C ≥ 2.
    sharpness : float, optional
        S, for example the trace of the Hessian; default the Gauss–Newton trace. Only for
        ``sharing="tied"``.

    Returns
    -------
    tuple of Bound
        The two inequalities between logarithms.

    Raises
    ------
    ValueError
        As :func:`linear_stability_bounds`.
    """
    _check_terms(terms)
    jacobian = terms.linearization.input_jacobian
    assert jacobian is not None
    wide = {"outputs_at_most_inputs": terms.num_outputs <= jacobian[0, 0].numel()}
    calls, source = (terms.network,), "Proposition 3.4 (equation 9)"
    return _volume_chain(terms, calls, source, wide, sharing, norm, bias, sharper, sharpness)


def network_volume_bounds(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    sharper: bool = False,
    sharpness: float | None = None,
) -> tuple[Bound, Bound]:
    """Compare the sum over layers of the mean local volumes with the sharpness.

    As :func:`volume_bounds` with the sums over all layers and samples; no parameter may belong to
    two layers. A layer with fewer inputs than the network has outputs has volume zero. Source:
    compression paper, Proposition 3.6 (equation 10).

    Parameters
    ----------
    terms, sharing, norm, bias, sharper, sharpness
        As in :func:`volume_bounds`.

    Returns
    -------
    tuple of Bound
        The two inequalities between logarithms.

    Raises
    ------
    ValueError
        As :func:`linear_stability_bounds`.
    """
    _check_terms(terms)
    source = "Proposition 3.6 (equation 10)"
    return _volume_chain(terms, terms.calls, source, {}, sharing, norm, bias, sharper, sharpness)


def _volume_chain(
    terms: CompressionTerms,
    calls: Sequence[CallTerms],
    source: str,
    assumptions: dict[str, bool],
    sharing: str,
    norm: str,
    bias: bool,
    sharper: bool,
    sharpness: float | None,
) -> tuple[Bound, Bound]:
    sharper = arguments.flag("sharper", sharper)
    c, n = terms.num_outputs, len(terms.gradient)
    shares = _shares(calls, sharing, norm, bias)
    value, needed = _sharpness(terms, shares, sharing, sharpness)
    log_ratio = shares.ratio.log()
    if sharper:
        prefactor = c * float(log_ratio.max())
        needed["at_least_two_outputs"] = c >= 2
    else:
        prefactor = 0.5 * float(torch.logsumexp(2 * c * log_ratio, 0))
    log_n = math.log(n)
    left = float(torch.logsumexp(torch.cat([call.log_volume for call in calls]), 0)) - log_n
    frobenius = torch.cat([call.frobenius for call in calls]).log()
    middle = float(torch.logsumexp(c * frobenius, 0)) - log_n - 0.5 * c * math.log(c)
    total = 0.5 * c * math.log(n * value / c) if value > 0 else -math.inf
    # Where an input is zero there is no bound, whatever S is.
    right = math.inf if prefactor == math.inf else prefactor - log_n + total
    middle_text = "log(C^(−C/2) mean ‖Jx‖_Fᶜ)"
    return (
        _log_bound(terms, f"log dV ≤ {middle_text}", source, left, middle, assumptions),
        _log_bound(
            terms,
            f"{middle_text} ≤ its multiple of (nS/C)^(C/2)",
            source,
            middle,
            right,
            {**assumptions, **shares.assumptions, **needed},
        ),
    )


# --- sensitivities ------------------------------------------------------------------------------


def sensitivity_bound(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    sharpness: float | None = None,
) -> Bound:
    r"""Compare the maximum local sensitivity with the sharpness.

    .. math:: \mathrm{MLS} \le \|W\|_2 \sqrt{\frac1n\sum_i\frac1{\|x_i\|^2}}\; S^{1/2}

    With ``sharing="operator"``, S is that of the first layer's operator alone. Source: compression
    paper, Proposition 3.8 (equation 11).

    Parameters
    ----------
    terms, sharing, norm, bias
        As in :func:`linear_stability_bounds`.
    sharpness : float, optional
        As in :func:`volume_bounds`.

    Returns
    -------
    Bound
        Certified where the first layer is fully connected, unshared and the input's one reader; or
        with ``sharing="operator"`` where it is the one reader.

    Raises
    ------
    ValueError
        As :func:`linear_stability_bounds`.
    """
    return sensitivity_chain(
        terms, sharing=sharing, norm=norm, bias=bias, sharpness=sharpness
    ).whole


@dataclass(frozen=True)
class SensitivityChain:
    """Equation 48, A ≤ B ≤ C ≤ D, link by link, and A ≤ D."""

    to_layer_gradient: Bound
    cauchy_schwarz: Bound
    to_all_parameters: Bound
    whole: Bound


def sensitivity_chain(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    sharpness: float | None = None,
) -> SensitivityChain:
    r"""Return the links A ≤ B ≤ C ≤ D of :func:`sensitivity_bound`.

    A is the sensitivity, :math:`B = \frac1n\sum_i \frac{\|W\|_2}{\|x_i\|}\|\nabla_W f_i\|_F`, C its
    bound by the inequality of Cauchy and Schwarz, D has all parameters' gradients. Source:
    compression paper, equation 48. B = C where the *product* of :math:`\|\nabla_W f_i\|_F` and
    :math:`\|x_i\|` is the same for all samples, not the ratio, as the paper says.

    Parameters
    ----------
    terms, sharing, norm, bias, sharpness
        As in :func:`sensitivity_bound`.

    Returns
    -------
    SensitivityChain
        The three links, and A ≤ D.

    Raises
    ------
    ValueError
        As :func:`linear_stability_bounds`.
    """
    _check_terms(terms)
    share = _share(terms.network, sharing, norm, bias)
    value, needed = _sharpness(terms, share, sharing, sharpness)
    a = float(terms.network.sensitivity.mean())
    b = float(share.product().mean())
    ratio = _root_mean_square(share.ratio)
    c, d = (
        math.inf if math.isinf(ratio) else ratio * gradient
        for gradient in (_root_mean_square(share.gradient), math.sqrt(value))
    )
    source, whole = "equation 48", "Proposition 3.8 (equation 11)"
    everything = {**share.assumptions, **needed}
    text = "mean ‖Jx‖₂ ≤ ‖W‖₂ (mean ‖x‖⁻² · S)^½"
    return SensitivityChain(
        _bound(terms, "A ≤ B", source, a, b, share.assumptions),
        _bound(terms, "B ≤ C", source, b, c, {}),
        _bound(terms, "C ≤ D", source, c, d, needed),
        _bound(terms, text, whole, a, d, everything),
    )


def network_sensitivity_bound(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    sharpness: float | None = None,
) -> Bound:
    r"""Compare the network maximum local sensitivity with the sharpness.

    .. math:: \mathrm{NMLS} \le
        \sqrt{\frac1n\sum_{i,l}\frac{\|W_l\|_2^2}{\|x_i^l\|^2}}\; S^{1/2}

    Source: compression paper, Proposition 3.10 (equation 12). False where two layers read one
    tensor, as well as for shared weights.

    Parameters
    ----------
    terms, sharing, norm, bias, sharpness
        As in :func:`sensitivity_bound`.

    Returns
    -------
    Bound
        Certified where every layer is fully connected, unshared and the one reader of its input;
        or with ``sharing="operator"`` where every layer is the one reader.

    Raises
    ------
    ValueError
        As :func:`linear_stability_bounds`.
    """
    _check_terms(terms)
    shares = _shares(terms.calls, sharing, norm, bias)
    value, needed = _sharpness(terms, shares, sharing, sharpness)
    ratio = math.sqrt(float(shares.ratio.square().sum()) / len(terms.gradient))
    return _bound(
        terms,
        "Σ_l mean ‖∂f/∂x_l‖₂ ≤ (Σ_l ‖W_l‖₂² mean ‖x_l‖⁻² · S)^½",
        "Proposition 3.10 (equation 12)",
        sum(float(call.sensitivity.mean()) for call in terms.calls),
        math.inf if math.isinf(ratio) else ratio * math.sqrt(value),
        {**shares.assumptions, **needed},
    )


def matrix_normalized_bound(
    terms: CompressionTerms, *, sharing: str = "tied", norm: str = "operator", bias: bool = False
) -> Bound:
    r"""Compare the layers' sensitivities with the matrix-normalized sharpness.

    .. math:: \sum_l \bar x^l\,\mathrm{MLS}^l \le
        \sum_l \|W_l\|_2 \sqrt{\tfrac1n\sum_i\|\nabla_{W_l} f_i\|_F^2}, \qquad
        \bar x = \bigl(\tfrac1n\sum_i \|x_i\|^{-2}\bigr)^{-1/2}

    Scaling one layer up and the next one down changes neither side. Source: compression paper,
    equations 34 and 35.

    Parameters
    ----------
    terms, sharing, norm, bias
        As in :func:`linear_stability_bounds`.

    Returns
    -------
    Bound
        Certified as :func:`network_sensitivity_bound`.

    Raises
    ------
    ValueError
        As :func:`linear_stability_bounds`.
    """
    _check_terms(terms)
    left = right = 0.0
    for call in terms.calls:
        share = _share(call, sharing, norm, bias)
        left += float(call.sensitivity.mean()) / _root_mean_square(1.0 / share.scale)
        right += float(share.norm[0]) * _root_mean_square(share.gradient)
    return _bound(
        terms,
        "Σ_l x̄_l MLS_l ≤ Σ_l ‖W_l‖₂ (mean ‖∇_{W_l} f‖²)^½",
        "equation 35",
        left,
        right,
        _shares(terms.calls, sharing, norm, bias).assumptions,
    )


def normalized_sensitivity_bounds(
    terms: CompressionTerms, *, sharing: str = "tied", norm: str = "operator"
) -> tuple[Bound, Bound]:
    r"""Compare the normalized sensitivity, Definition F.1, with the sharpness.

    :math:`\frac1n\sum\|x_i\|^2\|J_x\|_2^2 \le \|W\|_2^2\,\frac1n\sum\|\nabla_W f_i\|_F^2 \le
    \|W\|_2^2\,S`. It is not in the compression paper, whose Figure 3 sets this sensitivity against
    adaptive sharpness, which does not bound it: :math:`f(x) = x_2` at (1, 0) has normalized
    sensitivity 1 and adaptive sharpness 0.

    Parameters
    ----------
    terms, sharing, norm
        As in :func:`linear_stability_bounds`. With ``sharing="operator"`` both right sides agree.

    Returns
    -------
    tuple of Bound
        The two inequalities.

    Raises
    ------
    ValueError
        As :func:`linear_stability_bounds`.
    """
    _check_terms(terms)
    share = _share(terms.network, sharing, norm, bias=False)
    # At a zero input the left side is zero too: no input has to be excluded.
    assumptions = {k: v for k, v in share.assumptions.items() if k != "nonzero_inputs"}
    left = float((terms.network.input_norm * terms.network.sensitivity).square().mean())
    squared_norm = float(share.norm[0]) ** 2
    middle = squared_norm * float(share.gradient.square().mean())
    value, needed = _sharpness(terms, share, sharing, None)
    source = "on Definition F.1 (ours)"
    text = "mean ‖x‖² ‖Jx‖₂² ≤ ‖W‖₂² mean ‖∇_W f‖_F²"
    return (
        _bound(terms, text, source, left, middle, assumptions),
        _bound(terms, "… ≤ ‖W‖₂² S", source, middle, squared_norm * value, needed),
    )


# --- residual layers and convolutions -----------------------------------------------------------


def residual_bounds(terms: CompressionTerms, stream: Sequence[str]) -> tuple[Bound, Bound]:
    r"""Compare the sensitivity of a residual network, less its head's norm, with the sharpness.

    Every block adds :math:`\phi_l(W_l x_l)` to the stream :math:`x_l`, so that
    :math:`J_l = J_{l+1} + B_l W_l`, and a linear head :math:`W_L` reads the stream last. Then

    .. math:: \frac1n\sum_i \|J_1\|_2 - \|W_L\|_2 \le
        \frac1n\sum_i\sum_{l<L} \frac{\|W_l\|_2}{\|x_l\|}\|\nabla_{W_l} f\|_F \le
        \sqrt{\frac1n\sum_{i,l<L}\frac{\|W_l\|_2^2}{\|x_l\|^2}}\; S^{1/2} .

    The left side may be negative. Source: compression paper, equations 16 and 17, whose conditions
    are left unsaid: each :math:`W_l` reads the stream itself, not a normalisation of it, and is not
    shared.

    Parameters
    ----------
    terms : CompressionTerms
        Of the network.
    stream : sequence of str
        The layers that read the stream, in order, the head last. Other layers may lie inside the
        blocks.

    Returns
    -------
    tuple of Bound
        The two inequalities, certified where the recorded Jacobians show such a network.

    Raises
    ------
    ValueError
        If ``stream`` has fewer than two layers, or names an unknown one.
    """
    _check_terms(terms)
    layers = terms.linearization.layers
    stream = arguments.names("stream", stream, layers, at_least=2)
    calls = [next(call for call in terms.calls if call.name == name) for name in stream]
    shares = _shares(calls[:-1], "tied", "operator", bias=False)
    assumptions = dict(shares.assumptions)
    # Here the skip is a second reader; that it is the only one is what the next entry says.
    del assumptions["single_reader"]
    uses = [layers[name].uses[0] for name in stream]
    assumptions["identity_skips"] = all(
        _adds_to_stream(one, following) for one, following in itertools.pairwise(uses)
    )
    weight = weight_matrices(uses[-1].module)[0].to(uses[-1].output_jacobian)
    assumptions["linear_head"] = _same(
        _flat_input_jacobian(uses[-1]), weight.expand(len(terms.gradient), -1, -1)
    )
    left = float(calls[0].sensitivity.mean()) - calls[-1].operator.upper
    n = len(terms.gradient)
    middle = float(shares.product().sum()) / n
    ratio = math.sqrt(float(shares.ratio.square().sum()) / n)
    right = math.inf if math.isinf(ratio) else ratio * math.sqrt(terms.sharpness)
    text = "Σ_l mean (‖W_l‖₂/‖x_l‖) ‖∇_{W_l} f‖_F"
    source = "equation 17"
    # The left side is a difference: its round-off is that of its larger term.
    rounding = terms.tolerance * float(calls[0].sensitivity.mean())
    first = _bound(terms, f"MLS − ‖W_L‖₂ ≤ {text}", source, left, middle, assumptions)
    return (
        replace(first, absolute_tolerance=rounding),
        _bound(terms, f"{text} ≤ its multiple of S^½", source, middle, right, {}),
    )


def _flat_input_jacobian(use: LayerUse) -> Tensor:
    assert use.input_jacobian is not None
    return use.input_jacobian.flatten(2)


def _adds_to_stream(use: LayerUse, following: LayerUse) -> bool:
    """Whether J_l = J_{l+1} + B_l T_l."""
    here, there = _flat_input_jacobian(use), _flat_input_jacobian(following)
    return here.shape == there.shape and _same(here, there + _through_layer(use))


def conditioned_patches_bound(terms: CompressionTerms, layer: str) -> Bound:
    r"""Compare a layer's sensitivity with its own, tied gradient, where the patches allow it.

    With the patches of a sample as the columns of U, :math:`\nabla_W f_o = B_o U^\top`, hence
    :math:`\|\nabla_W f\|_F \ge \sigma_P(U)\|B\|_F` and

    .. math:: \frac1n\sum_i\|J_x\|_2 \le
        \frac1n\sum_i\frac{\|T\|_2}{\sigma_P(U_i)}\|\nabla_W f_i\|_F .

    No bound (∞) where there are more positions P than entries in a patch. It replaces the
    compression paper's equation 5 for convolutions.

    Parameters
    ----------
    terms : CompressionTerms
        Of the network.
    layer : str
        A layer's name.

    Returns
    -------
    Bound
        Certified where the layer is called once, is its input's one reader, and has independent
        patches at every sample.

    Raises
    ------
    ValueError
        If the layer is unknown.
    """
    _check_terms(terms)
    layer = arguments.choice("layer", layer, terms.linearization.layers)
    uses = terms.linearization.layers[layer].uses
    call = next(call for call in terms.calls if call.name == layer)
    columns = uses[0].columns(slice(None)).double()
    smallest = torch.zeros(len(columns), dtype=torch.float64, device=columns.device)
    if columns.shape[3] <= columns.shape[2]:
        values = torch.linalg.svdvals(columns)
        # A smallest value at round-off of the largest is zero.
        _, _, rows, positions = columns.shape
        round_off = default_tolerance(rows, positions, uses[0].inputs.dtype)
        values = torch.where(values[..., -1] > round_off * values[..., 0], values[..., -1], 0.0)
        smallest = values.min(dim=1).values
    share = _Share(
        torch.full_like(smallest, call.operator.upper), smallest, call.weight_gradient, {}
    )
    return _bound(
        terms,
        "mean ‖∂f/∂x‖₂ ≤ mean (‖T‖₂/σ_P(U)) ‖∇_W f‖_F",
        "in place of equation 5 for convolutions (ours)",
        float(call.sensitivity.mean()),
        float(share.product().mean()),
        {
            "single_reader": call.single_reader,
            "called_once": len(uses) == 1,
            "independent_patches": bool((smallest > 0).all()),
        },
    )


# --- the Hessian near interpolation -------------------------------------------------------------


@dataclass(frozen=True)
class InterpolationBounds:
    r"""How far the trace of the Hessian is from the Gauss–Newton trace.

    Attributes
    ----------
    difference : float
        Tr H − Tr G, from the Hessian itself.
    residual_term : float
        :math:`\frac1n\sum_i (f_i - y_i)^\top \sum_j w_j\,\partial^2 f_i/\partial\theta_j^2`,
        to which the difference is equal.
    laplacian : Bound
        The magnitude of the difference against
        :math:`\varepsilon\max_i\|\sum_j w_j\,\partial_j^2 f_i\|`.
    parameter_count : Bound
        That against :math:`m M \varepsilon`, m parameters.
    """

    difference: float
    residual_term: float
    laplacian: Bound
    parameter_count: Bound


def interpolation_bounds(
    model: nn.Module, data: object, *, adaptive: bool = False, max_parameters: int = 2000
) -> InterpolationBounds:
    r"""Compare Hessian and Gauss–Newton trace of ½‖f − y‖² away from interpolation.

    With :math:`\varepsilon = \max_i\|f_i - y_i\|` and
    :math:`M = \max_{ij} w_j\|\partial_j^2 f_i\|`,
    :math:`|\sum_j w_j H_{jj} - \frac1n\sum_{ij} w_j\|\partial_j f_i\|^2| \le \varepsilon\max_i
    \|\sum_j w_j\partial_j^2 f_i\| \le m M\varepsilon`. Source: compression paper, Lemma B.1
    (equations 18 and 19) with w = 1, and Lemma E.2 (equations 41 and 42) with
    :math:`w_j = \theta_j^2`. Equations 18 and 41 print θ* for θ, and the left side of 42 lacks the
    weights.

    Parameters
    ----------
    model : nn.Module
        Small: all second derivatives are written out.
    data : pair or iterable of pairs
        ``(inputs, targets)`` with targets (n, C).
    adaptive : bool
        Weigh by :math:`\theta_j^2`, Lemma E.2.
    max_parameters : int
        The largest m allowed.

    Returns
    -------
    InterpolationBounds
        The identity's two sides and the two inequalities.

    Raises
    ------
    ValueError
        If the model is too large, or the data do not fit it.
    """
    adaptive = arguments.flag("adaptive", adaptive)
    max_parameters = arguments.integer("max_parameters", max_parameters, at_least=1)
    select_parameters(own_parameters(Network.of(model)), None)
    inputs, targets = as_batch(data)
    check_inputs(inputs)
    with evaluation(model) as leaves:
        theta = torch.cat([leaf.detach().flatten() for leaf in leaves.values()])
        if len(theta) > max_parameters:
            raise ValueError(
                f"model has {len(theta)} parameters: their second derivatives are written out for "
                f"at most max_parameters={max_parameters}."
            )
        with torch.no_grad():
            outputs = network_outputs(model, leaves, inputs)
        check_outputs(outputs, len(inputs))
        get_loss("half_squared_error").check(outputs, targets)
        second = _pure_second_derivatives(model, leaves, theta, inputs)
    weights = theta.square() if adaptive else torch.ones_like(theta)
    hessian = dense_hessian(model, inputs, targets, "half_squared_error").diagonal()
    gauss_newton = dense_jacobian(model, inputs).square().sum(dim=1).mean(dim=0)
    difference = float((weights * (hessian - gauss_newton)).sum())
    residuals = outputs - targets.to(outputs)
    laplacians = second @ weights
    epsilon = float(residuals.norm(dim=1).max())
    laplacian = epsilon * float(laplacians.norm(dim=1).max())
    largest = float((second.norm(dim=1) * weights).max())
    lemma = "Lemma E.2 (equation 42)" if adaptive else "Lemma B.1 (equation 19)"
    # The difference cancels: its round-off is that of the traces.
    rounding = 100 * torch.finfo(theta.dtype).eps * float((weights * hessian.abs()).sum())
    return InterpolationBounds(
        difference=difference,
        residual_term=float((residuals * laplacians).sum(dim=1).mean()),
        laplacian=Bound(
            statement="|Tr H − Tr G| ≤ ε max_i ‖Σ_j ∂_j² f_i‖",
            source=f"{_PAPER}, {lemma}, sharper",
            left=abs(difference),
            right=laplacian,
            absolute_tolerance=rounding,
        ),
        parameter_count=Bound(
            statement="ε max_i ‖Σ_j ∂_j² f_i‖ ≤ m M ε",
            source=f"{_PAPER}, {lemma}",
            left=laplacian,
            right=len(theta) * largest * epsilon,
        ),
    )


def _pure_second_derivatives(
    model: nn.Module, leaves: dict[str, Tensor], theta: Tensor, inputs: Tensor
) -> Tensor:
    """Return ∂²f_ic/∂θ_j², shape (n, C, m)."""
    sizes = [leaf.numel() for leaf in leaves.values()]

    def outputs(vector: Tensor) -> Tensor:
        parts = zip(leaves.items(), vector.split(sizes), strict=True)
        parameters = {name: part.reshape(leaf.shape) for (name, leaf), part in parts}
        return network_outputs(model, parameters, inputs)

    def along(direction: Tensor) -> Tensor:
        return jvp(jacrev(outputs), (theta,), (direction,))[1] @ direction

    directions = torch.eye(len(theta), dtype=theta.dtype, device=theta.device)
    return vmap(along, out_dims=-1, chunk_size=32)(directions)


def norm_monotonicity(values: Tensor, p: float, q: float) -> Bound:
    r"""Compare two norms of a vector, :math:`\|v\|_q \le \|v\|_p` for 1 ≤ p ≤ q ≤ ∞.

    Equality where at most one entry is nonzero; for n equal entries the right side is
    :math:`n^{1/p - 1/q}` times the left, which is what makes the volume bounds loose. Source:
    compression paper, Lemma C.1.

    Raises
    ------
    ValueError
        If ``values`` is empty.
    """
    flat = arguments.tensor("values", values, finite=True).flatten().double()
    p = arguments.number("p", p, at_least=0, finite=False)
    q = arguments.number("q", q, at_least=0, finite=False)
    return Bound(
        statement="‖v‖_q ≤ ‖v‖_p",
        source=f"{_PAPER}, Lemma C.1",
        left=float(flat.norm(q)),
        right=float(flat.norm(p)),
        assumptions={"1 ≤ p ≤ q": 1 <= p <= q},
    )


# --- normalized and adaptive sharpness ----------------------------------------------------------


def normalized_sharpness_objective(
    curvature: Tensor, weight: Tensor, sigma: Tensor, sigma_input: Tensor, lam: float
) -> float:
    r"""Return the objective whose infimum over positive scales is the normalized sharpness.

    .. math:: \sum_{kp} H_{kp,kp}(\sigma_k\sigma'_p)^2
        + \frac{W_{kp}^2}{4\lambda^2(\sigma_k\sigma'_p)^2}

    Source: compression paper, equation 36, after Tsuzuku et al. (2019).

    Parameters
    ----------
    curvature, weight : Tensor
        H's diagonal and W, shape (h, M).
    sigma, sigma_input : Tensor
        Positive, shapes (h,) and (M,).
    lam : float
        λ > 0.

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit, or a scale is not positive.
    """
    arguments.tensor("curvature", curvature, shape=("h", "M"), finite=True)
    arguments.tensor("weight", weight, shape=tuple(curvature.shape), finite=True)
    lam = _check_scales(sigma, sigma_input, lam, weight)
    square = torch.outer(sigma, sigma_input).square()
    return float((curvature * square + weight.square() / (4 * lam**2 * square)).sum())


def _check_scales(sigma: Tensor, sigma_input: Tensor, lam: float, weight: Tensor) -> float:
    for name, scale, size in zip(
        ("sigma", "sigma_input"), (sigma, sigma_input), weight.shape, strict=True
    ):
        arguments.tensor(name, scale, shape=(size,), finite=True)
        if not bool((scale > 0).all()):
            raise ValueError(f"{name}={arguments.shown(scale)} has entries that are not positive.")
    return arguments.number("lam", lam, above=0)


def normalized_sharpness_bounds(
    cotangent: Tensor,
    weight: Tensor,
    inputs: Tensor,
    sigma: Tensor,
    sigma_input: Tensor,
    lam: float,
) -> tuple[Bound, ...]:
    r"""Return the chain from normalized sharpness down to an input-invariant sensitivity.

    For one sample, :math:`f = g(Wx)`, :math:`B = \partial f/\partial(Wx)`, D = diag(σ), D' =
    diag(σ'):

    .. math:: \text{(36)} \ge \frac1\lambda\|BD\|_F\,\|D'x\|\,\|D^{-1}WD'^{-1}\|_F
        \ge \frac1\lambda\|J_xD'^{-1}\|_F\,\|D'x\| \ge \frac1\lambda\|J_x x\| .

    Source: compression paper, equation 37, where the second relation is an equality, printed as an
    inequality. The paper calls (36) the minimization of an upper bound of a scale-invariant
    quantity, the third expression. At a fixed σ' that one is not invariant, only its minimum over
    σ' is, and the minimizer of a bound need not minimize what it bounds. The last expression, ours,
    does not change when the input is rescaled and the layer scaled back, for any σ.

    Parameters
    ----------
    cotangent : Tensor
        B, shape (C, h).
    weight : Tensor
        W, shape (h, M).
    inputs : Tensor
        x, shape (M,).
    sigma, sigma_input, lam
        As in :func:`normalized_sharpness_objective`.

    Returns
    -------
    tuple of Bound
        The three inequalities, from the last to the first: the leftmost value is the smallest.

    Raises
    ------
    ValueError
        If a scale is not positive.
    """
    weight = arguments.tensor("weight", weight, shape=("h", "M"), finite=True).double()
    h, m = weight.shape
    cotangent = arguments.tensor("cotangent", cotangent, shape=("C", h), finite=True).double()
    inputs = arguments.tensor("inputs", inputs, shape=(m,), finite=True).double()
    lam = _check_scales(sigma, sigma_input, lam, weight)
    jacobian = cotangent @ weight
    curvature = torch.outer(cotangent.square().sum(dim=0), inputs.square())
    scaled_input = float((sigma_input * inputs).norm()) / lam
    scaled_weight = weight / torch.outer(sigma, sigma_input)
    values = [
        float((jacobian @ inputs).norm()) / lam,
        float((jacobian / sigma_input).norm()) * scaled_input,
        float((cotangent * sigma).norm()) * scaled_input * float(scaled_weight.norm()),
        normalized_sharpness_objective(curvature, weight, sigma, sigma_input, lam),
    ]
    texts = [
        "‖Jx x‖/λ ≤ ‖Jx D'⁻¹‖_F ‖D'x‖/λ",
        "‖Jx D'⁻¹‖_F ‖D'x‖/λ ≤ ‖BD‖_F ‖D'x‖ ‖D⁻¹WD'⁻¹‖_F/λ",
        "‖BD‖_F ‖D'x‖ ‖D⁻¹WD'⁻¹‖_F/λ ≤ Σ H (σσ')² + W²/(4λ²(σσ')²)",
    ]
    return tuple(
        Bound(statement=text, source=f"{_PAPER}, equation 37", left=left, right=right)
        for text, (left, right) in zip(texts, itertools.pairwise(values), strict=True)
    )


def input_invariant_bounds(terms: CompressionTerms) -> tuple[Bound, Bound]:
    r"""Compare the input-invariant sensitivity with the adaptive sharpness.

    .. math:: \frac1h\,\frac1n\sum_i\|J_x\operatorname{diag}(x_i)\|_F^2 \le
        \frac1n\sum_i\sum_{j\in W}\theta_j^2\|\partial_j f_i\|^2 \le
        \frac1n\sum_i\sum_j\theta_j^2\|\partial_j f_i\|^2

    h is the number of outputs of the first layer, the d that the paper does not define; the factor
    is sharp. No interpolation is needed, but W must be unshared. Source: compression paper,
    Proposition E.4 (equations 44 and 45).

    Parameters
    ----------
    terms : CompressionTerms
        Of the network.

    Returns
    -------
    tuple of Bound
        The two inequalities.
    """
    _check_terms(terms)
    source = "Proposition E.4 (equation 44)"
    layer = float(terms.scaled_first_gradient.mean())
    return (
        _bound(
            terms,
            "mean ‖Jx diag(x)‖_F²/h ≤ mean Σ_W θ² ‖∂f/∂θ‖²",
            source,
            float(terms.input_invariant.mean()) / terms.network.num_cotangents,
            layer,
            {
                "single_reader": terms.network.single_reader,
                "unshared_weights": terms.network.unshared,
            },
        ),
        _bound(
            terms,
            "mean Σ_W θ² ‖∂f/∂θ‖² ≤ mean Σ θ² ‖∂f/∂θ‖²",
            source,
            layer,
            float(terms.scaled_gradient.mean()),
            {},
        ),
    )


def average_sharpness_bound(
    average: float, limit: float, parameters: Tensor, rho: float, fourth_derivative: float
) -> Bound:
    r"""Compare average-case adaptive sharpness with its limit at small perturbations.

    Gaussian perturbations have no odd moments, so with a fourth derivative of norm at most K

    .. math:: \bigl|S^\rho_{avg} - S_{adaptive}\bigr| \le
        \frac{\rho^2 K}{12}\,\mathbb E\|\xi\|^4 =
        \frac{\rho^2 K}{12}\Bigl(\bigl(\textstyle\sum_j\theta_j^2\bigr)^2 +
        2\sum_j\theta_j^4\Bigr),

    with ξ ~ N(0, diag θ²): O(ρ²), where the compression paper's equation 39 says O(ρ).

    Parameters
    ----------
    average, limit : float
        :math:`S^\rho_{avg}` (equation 38) and :math:`S_{adaptive}` (equation 40).
    parameters : Tensor
        θ, any shape.
    rho : float
        ρ > 0.
    fourth_derivative : float
        K, a bound of the loss's fourth derivative as a form on unit vectors, wherever the
        perturbed parameters can be.

    Returns
    -------
    Bound
        Uncertified unless the caller's K is right, which cannot be checked: ``None``.

    Raises
    ------
    ValueError
        If ρ is not positive.
    """
    average, limit = arguments.number("average", average), arguments.number("limit", limit)
    arguments.tensor("parameters", parameters, finite=True)
    rho = arguments.number("rho", rho, above=0)
    fourth_derivative = arguments.number("fourth_derivative", fourth_derivative, at_least=0)
    squares = parameters.double().square()
    moment = float(squares.sum() ** 2 + 2 * squares.square().sum())
    return Bound(
        statement="|S_avg − S_adaptive| ≤ ρ² K E‖ξ‖⁴ / 12",
        source=f"{_PAPER}, equation 39, sharper",
        left=abs(average - limit),
        right=rho * rho * fourth_derivative / 12 * moment,
        assumptions={"fourth_derivative_bounded": None},
        absolute_tolerance=_TOLERANCE * abs(limit),
    )


# --- all of them --------------------------------------------------------------------------------


def compression_bounds(
    model: nn.Module,
    data: object,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    memory_budget: int = GIBIBYTE,
) -> dict[str, Bound]:
    """Return every bound of the paper that ties a representation to the sharpness.

    Parameters
    ----------
    model, data, memory_budget
        As in :func:`compression_terms`.
    sharing, norm, bias
        As in :func:`linear_stability_bounds`.

    Returns
    -------
    dict of str to Bound
        By the paper's equation number: ``"5"``, ``"6"``, ``"9"``, ``"10"``, ``"11"``, ``"12"``,
        ``"35"`` and ``"44"``, each between the statement's outermost sides.

    Raises
    ------
    ValueError
        As :func:`compression_terms` and :func:`linear_stability_bounds`.
    """
    sharing = arguments.choice("sharing", sharing, SHARING)
    norm, bias = arguments.choice("norm", norm, NORMS), arguments.flag("bias", bias)
    terms = compression_terms(model, data, memory_budget=memory_budget)
    options = _Options(sharing=sharing, norm=norm, bias=bias)
    chains: dict[str, tuple[Bound, ...]] = {
        # Its links are at different samples; the second implies the whole.
        "5": linear_stability_bounds(terms, **options)[1:],
        "6": input_smoothness_bounds(terms, **options),
        "9": volume_bounds(terms, **options),
        "10": network_volume_bounds(terms, **options),
        "11": (sensitivity_bound(terms, **options),),
        "12": (network_sensitivity_bound(terms, **options),),
        "35": (matrix_normalized_bound(terms, **options),),
        "44": input_invariant_bounds(terms),
    }
    return {number: _whole(chain) for number, chain in chains.items()}


class _Options(TypedDict):
    sharing: str
    norm: str
    bias: bool


def _whole(chain: tuple[Bound, ...]) -> Bound:
    """Join the links a ≤ b, b ≤ c, … into a ≤ c."""
    assumptions: dict[str, bool | None] = {}
    for link in chain:
        assumptions.update(link.assumptions)
    statement = " ≤ ".join([chain[0].statement, *(link.statement for link in chain[1:])])
    return replace(chain[0], statement=statement, right=chain[-1].right, assumptions=assumptions)
