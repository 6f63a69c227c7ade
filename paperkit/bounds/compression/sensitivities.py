"""Equations 11, 12, 35 and 48, and Definition F.1: local sensitivities."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paperkit.bounds.compression.shares import (
    check_terms,
    chosen_sharpness,
    inequality,
    root_mean_square,
    share_of,
    share_of_calls,
)
from paperkit.bounds.compression.terms import CompressionTerms
from paperkit.bounds.statement import Inequality


def sensitivity_bound(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    sharpness: float | None = None,
) -> Inequality:
    r"""Compare the maximum local sensitivity with the sharpness.

    .. math:: \mathrm{MLS} \le \|W\|_2 \sqrt{\frac1n\sum_i\frac1{\|x_i\|^2}}\; S^{1/2}

    With ``sharing="operator"``, S is that of the first layer's operator alone. Source: compression
    paper, Proposition 3.8 (equation 11).

    Parameters
    ----------
    terms : CompressionTerms
        Terms of the network.
    sharing : str
        ``"tied"`` for the gradient in the weight, as in the paper; ``"operator"`` for that in the
        entries of the layer's operator, which holds for convolutions too.
    norm : str
        Norm of the layer: ``"operator"``, ``"matrix"`` or ``"frobenius"``; see
        :func:`~paperkit.bounds.compression.linear_stability_bounds`.
    bias : bool
        Whether the bias counts as another input that is always 1.
    sharpness : float, optional
        Sharpness S, for example the trace of the Hessian; default the Gauss–Newton trace. Only for
        ``sharing="tied"``.

    Returns
    -------
    Inequality
        Statement that is certified where the first layer is fully connected, unshared and the
        input's only reader; or with ``sharing="operator"`` where it is the only reader.

    Raises
    ------
    ValueError
        If ``sharing`` or ``norm`` is unknown, or another argument is out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, sensitivity_bound
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.eye_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> terms = compression_terms(model, (torch.eye(2), torch.zeros(2, 1)))
    >>> sensitivity_bound(terms)  # S = 3: squared gradients of 2 and 1 in the two weights
    Inequality(compression paper, Proposition 3.8 (equation 11): mean ‖X‖₂ ≤ ‖W‖₂ (mean ‖x‖⁻² ·
        S)^½: 1.41421 ≤ 1.73205, certified)
    """
    return sensitivity_chain(
        terms, sharing=sharing, norm=norm, bias=bias, sharpness=sharpness
    ).whole


@dataclass(frozen=True)
class SensitivityChain:
    """The chain a ≤ b ≤ c ≤ d of equation 48.

    Attributes
    ----------
    to_layer_gradient, cauchy_schwarz, to_all_parameters : Inequality
        Links a ≤ b, b ≤ c and c ≤ d.
    whole : Inequality
        Statement a ≤ d.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, sensitivity_chain
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 4.0]])
    >>> inputs = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # two inputs of different length
    >>> chain = sensitivity_chain(compression_terms(model, (inputs, torch.zeros(2, 1))))
    >>> round(chain.to_layer_gradient.left, 4), round(chain.to_layer_gradient.right, 4)  # a = b
    (5.0, 5.0)
    >>> round(chain.cauchy_schwarz.right, 4)  # c exceeds b, because the lengths differ
    6.25
    """

    to_layer_gradient: Inequality
    cauchy_schwarz: Inequality
    to_all_parameters: Inequality
    whole: Inequality


def sensitivity_chain(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    sharpness: float | None = None,
) -> SensitivityChain:
    r"""Return the links a ≤ b ≤ c ≤ d of :func:`sensitivity_bound`.

    The sensitivity is a, :math:`b = \frac1n\sum_i \frac{\|W\|_2}{\|x_i\|}\|\nabla_W f_i\|_F`, c its
    bound by the inequality of Cauchy and Schwarz, and d has all parameters' gradients. Source:
    compression paper, equation 48, with capital letters. b = c where the *product* of
    :math:`\|\nabla_W f_i\|_F` and :math:`\|x_i\|` is the same for all samples, not the ratio, as
    the paper says.

    Parameters
    ----------
    terms, sharing, norm, bias, sharpness
        As in :func:`sensitivity_bound`.

    Returns
    -------
    SensitivityChain
        The links, and a ≤ d.

    Raises
    ------
    ValueError
        If ``sharing`` or ``norm`` is unknown, or another argument is out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, sensitivity_chain
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.eye_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> chain = sensitivity_chain(compression_terms(model, (torch.eye(2), torch.zeros(2, 1))))
    >>> for link in (chain.to_layer_gradient, chain.cauchy_schwarz, chain.to_all_parameters):
    ...     print(f"{link.statement}:  {link.left:.4f} ≤ {link.right:.4f}")
    a ≤ b:  1.4142 ≤ 1.4142
    b ≤ c:  1.4142 ≤ 1.4142
    c ≤ d:  1.4142 ≤ 1.7321
    """
    check_terms(terms)
    share = share_of(terms.network, sharing, norm, bias)
    value, needed = chosen_sharpness(terms, share, sharing, sharpness)
    a = float(terms.network.sensitivity.mean())
    b = float(share.product().mean())
    ratio = root_mean_square(share.ratio)
    c, d = (
        math.inf if math.isinf(ratio) else ratio * gradient
        for gradient in (root_mean_square(share.gradient), math.sqrt(value))
    )
    source, proposition = "equation 48", "Proposition 3.8 (equation 11)"
    text = "mean ‖X‖₂ ≤ ‖W‖₂ (mean ‖x‖⁻² · S)^½"
    return SensitivityChain(
        inequality(terms, "a ≤ b", source, a, b, share.assumptions),
        inequality(terms, "b ≤ c", source, b, c, {}),
        inequality(terms, "c ≤ d", source, c, d, needed),
        inequality(terms, text, proposition, a, d, {**share.assumptions, **needed}),
    )


def network_sensitivity_bound(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    sharpness: float | None = None,
) -> Inequality:
    r"""Compare the network maximum local sensitivity with the sharpness.

    .. math:: \mathrm{NMLS} \le
        \sqrt{\frac1n\sum_{i,l}\frac{\|W_l\|_2^2}{\|x_i^l\|^2}}\; S^{1/2}

    Source: compression paper, Proposition 3.10 (equation 12). The claim is false where two layers
    read the same tensor, and for shared weights.

    Parameters
    ----------
    terms, sharing, norm, bias, sharpness
        As in :func:`sensitivity_bound`.

    Returns
    -------
    Inequality
        Statement that is certified where every layer is fully connected, unshared and the only
        reader of its input; or with ``sharing="operator"`` where every layer is the only reader.

    Raises
    ------
    ValueError
        If ``sharing`` or ``norm`` is unknown, or another argument is out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, network_sensitivity_bound
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.eye_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> terms = compression_terms(model, (torch.eye(2), torch.zeros(2, 1)))
    >>> bound = network_sensitivity_bound(terms)  # two layers with ‖∂f/∂x_l‖ = √2
    >>> round(bound.left, 4), round(bound.right, 4), bound.certified
    (2.8284, 3.0, True)
    """
    check_terms(terms)
    shares = share_of_calls(terms.calls, sharing, norm, bias)
    value, needed = chosen_sharpness(terms, shares, sharing, sharpness)
    ratio = math.sqrt(float(shares.ratio.square().sum()) / len(terms.gradient))
    return inequality(
        terms,
        "Σ_l mean ‖∂f/∂x_l‖₂ ≤ (Σ_l ‖W_l‖₂² mean ‖x_l‖⁻² · S)^½",
        "Proposition 3.10 (equation 12)",
        sum(float(call.sensitivity.mean()) for call in terms.calls),
        math.inf if math.isinf(ratio) else ratio * math.sqrt(value),
        {**shares.assumptions, **needed},
    )


def matrix_normalized_bound(
    terms: CompressionTerms, *, sharing: str = "tied", norm: str = "operator", bias: bool = False
) -> Inequality:
    r"""Compare the layers' sensitivities with the matrix-normalized sharpness.

    .. math:: \sum_l \bar x^l\,\mathrm{MLS}^l \le
        \sum_l \|W_l\|_2 \sqrt{\tfrac1n\sum_i\|\nabla_{W_l} f_i\|_F^2}, \qquad
        \bar x = \bigl(\tfrac1n\sum_i \|x_i\|^{-2}\bigr)^{-1/2}

    Scaling one layer up and the next one down changes neither side. Source: compression paper,
    equations 34 and 35.

    Parameters
    ----------
    terms, sharing, norm, bias
        As in :func:`sensitivity_bound`.

    Returns
    -------
    Inequality
        Statement that is certified where :func:`network_sensitivity_bound` is.

    Raises
    ------
    ValueError
        If ``sharing`` or ``norm`` is unknown, or another argument is out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, matrix_normalized_bound
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> for scale in (1.0, 4.0):  # one layer up and the next one down changes neither side
    ...     model[0].weight.data = scale * torch.eye(2)
    ...     model[1].weight.data = torch.ones(1, 2) / scale
    ...     bound = matrix_normalized_bound(
    ...         compression_terms(model, (torch.eye(2), torch.zeros(2, 1)))
    ...     )
    ...     print(round(bound.left, 4), round(bound.right, 4))
    2.8284 2.8284
    2.8284 2.8284
    """
    check_terms(terms)
    left = right = 0.0
    for call in terms.calls:
        share = share_of(call, sharing, norm, bias)
        left += float(call.sensitivity.mean()) / root_mean_square(1.0 / share.scale)
        right += float(share.norm[0]) * root_mean_square(share.gradient)
    return inequality(
        terms,
        "Σ_l x̄_l MLS_l ≤ Σ_l ‖W_l‖₂ (mean ‖∇_{W_l} f‖²)^½",
        "equation 35",
        left,
        right,
        share_of_calls(terms.calls, sharing, norm, bias).assumptions,
    )


def normalized_sensitivity_bounds(
    terms: CompressionTerms, *, sharing: str = "tied", norm: str = "operator"
) -> tuple[Inequality, Inequality]:
    r"""Compare the normalized sensitivity, Definition F.1, with the sharpness.

    :math:`\frac1n\sum\|x_i\|^2\|X_i\|_2^2 \le \|W\|_2^2\,\frac1n\sum\|\nabla_W f_i\|_F^2 \le
    \|W\|_2^2\,S`. This is not in the compression paper, whose Figure 3 sets this sensitivity
    against adaptive sharpness. That does not bound it: :math:`f(x) = x_2` at (1, 0) has normalized
    sensitivity 1 and adaptive sharpness 0.

    Parameters
    ----------
    terms, sharing, norm
        As in :func:`sensitivity_bound`. With ``sharing="operator"`` both right sides agree.

    Returns
    -------
    tuple of Inequality
        Inequalities between neighbours in the chain.

    Raises
    ------
    ValueError
        If ``sharing`` or ``norm`` is unknown, or another argument is out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, normalized_sensitivity_bounds
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[0.0, 1.0]])  # f(x) = x₂
    >>> terms = compression_terms(model, (torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1)))
    >>> normalized_sensitivity_bounds(terms)[0]
    Inequality(compression paper, on Definition F.1 (ours): mean ‖x‖² ‖X‖₂² ≤ ‖W‖₂² mean ‖∇_W f‖_F²:
        1 ≤ 1, certified)
    >>> float(terms.scaled_gradient)  # adaptive sharpness, which is no bound
    0.0
    """
    check_terms(terms)
    share = share_of(terms.network, sharing, norm, bias=False)
    # A zero input makes the left side zero too, so that no input has to be excluded.
    assumptions = {k: v for k, v in share.assumptions.items() if k != "nonzero_inputs"}
    left = float((terms.network.input_norm * terms.network.sensitivity).square().mean())
    squared_norm = float(share.norm[0]) ** 2
    middle = squared_norm * float(share.gradient.square().mean())
    value, needed = chosen_sharpness(terms, share, sharing, None)
    source = "on Definition F.1 (ours)"
    text = "mean ‖x‖² ‖X‖₂² ≤ ‖W‖₂² mean ‖∇_W f‖_F²"
    return (
        inequality(terms, text, source, left, middle, assumptions),
        inequality(terms, "… ≤ ‖W‖₂² S", source, middle, squared_norm * value, needed),
    )
