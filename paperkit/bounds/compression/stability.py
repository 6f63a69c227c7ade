"""Equations 5 and 6: the linear stability trick."""

from __future__ import annotations

import math

from paperkit import arguments
from paperkit.bounds.compression.shares import check_terms, inequality, share_of, worst_sample
from paperkit.bounds.compression.terms import CompressionTerms
from paperkit.bounds.statement import Inequality


def linear_stability_bounds(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    printed: bool = False,
) -> tuple[Inequality, Inequality]:
    r"""Compare the input Jacobian with the first layer's gradient, each at the tightest sample.

    Corrected: :math:`\|X\|_2 \le \|X\|_F \le \frac{\|W\|_2}{\|x\|} \|\nabla_W f\|_F`. The
    middle term that is printed is :math:`\|\nabla_W f\|_F`. With that term the first inequality is
    sure only where :math:`\|W\|_2 \le \|x\|`, and the second is true only where :math:`\|W\|_2 \ge
    \|x\|` (or the gradient is zero). Source: compression paper, equation 5; its Appendix C,
    equation 20, uses the corrected form.

    Parameters
    ----------
    terms : CompressionTerms
        Terms of the network.
    sharing : str
        ``"tied"`` for the gradient in the weight, as in the paper; ``"operator"`` for that in the
        entries of the layer's operator, which holds for convolutions too.
    norm : str
        Norm of the layer: ``"operator"`` for :math:`\|A\|_2`; ``"matrix"`` for the spectral norm of
        the reshaped weight; ``"frobenius"`` for :math:`\sqrt P\,\|W\|_F`, the public code's choice
        for convolutions.
    bias : bool
        Whether, in layers that have a bias, it is counted in the gradient and :math:`\|x\|^2` is
        replaced by :math:`\|x\|^2 + 1`, which is tighter.
    printed : bool
        Whether the inequalities are those that are printed, certified only where :math:`\|W\|_2`
        and :math:`\|x\|` are in that order.

    Returns
    -------
    tuple of Inequality
        Inequalities between neighbours in the chain.

    Raises
    ------
    ValueError
        If ``sharing`` or ``norm`` is unknown.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, linear_stability_bounds
    >>> model = nn.Linear(2, 1, bias=False)
    >>> model.weight.data = torch.tensor([[3.0, 4.0]])
    >>> terms = compression_terms(model, (torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1)))
    >>> corrected = linear_stability_bounds(terms)[1]
    >>> round(corrected.left, 4), round(corrected.right, 4)  # ‖w‖ and (‖w‖/‖x‖) ‖x‖
    (5.0, 5.0)
    >>> linear_stability_bounds(terms, printed=True)[0].holds  # ‖w‖ ≤ ‖∇_w f‖ = ‖x‖
    False
    """
    check_terms(terms)
    printed = arguments.flag("printed", printed)
    share = share_of(terms.network, sharing, norm, bias)
    right = share.product()
    if not printed:
        middle = terms.network.frobenius
        sides = [(terms.network.sensitivity, middle), (middle, right)]
        texts = ["‖X‖₂ ≤ ‖X‖_F", "‖X‖_F ≤ (‖W‖₂/‖x‖) ‖∇_W f‖_F"]
        needs: list[dict[str, bool | None]] = [{}, share.assumptions]
    else:
        sides = [(terms.network.sensitivity, share.gradient), (share.gradient, right)]
        texts = ["‖X‖₂ ≤ ‖∇_W f‖_F", "‖∇_W f‖_F ≤ (‖W‖₂/‖x‖) ‖∇_W f‖_F"]
        needs = [
            {**share.assumptions, "norm_at_most_input_norm": bool((share.ratio <= 1).all())},
            {"norm_at_least_input_norm": bool((share.ratio >= 1).all())},
        ]
    first, second = (
        inequality(terms, text, "equation 5", *worst_sample(*pair), assumptions)
        for text, pair, assumptions in zip(texts, sides, needs, strict=True)
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
) -> tuple[Inequality, ...]:
    r"""Compare mean k-th powers of the input Jacobian's norm with those of the gradient.

    Corrected, for any k > 0: :math:`\frac1n\sum\|X\|_2^k \le \frac1n\sum\|X\|_F^k \le
    \frac{\|W\|_2^k}{\min_i\|x_i\|^k}\frac1n\sum\|\nabla_W f\|_F^k`, and the same with all
    parameters; the last is S for k = 2. Printed is :math:`\|\nabla_W f\|_F^k` in the middle, as in
    equation 5. Source: compression paper, equation 6.

    Parameters
    ----------
    terms, sharing, norm, bias, printed
        As in :func:`linear_stability_bounds`.
    k : float
        Power k > 0.

    Returns
    -------
    tuple of Inequality
        Inequalities between neighbours in the chain. The last is left out with
        ``sharing="operator"`` and in the printed form.

    Raises
    ------
    ValueError
        If k is not positive, or ``sharing`` or ``norm`` is unknown.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, input_smoothness_bounds
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.eye_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> terms = compression_terms(model, (torch.eye(2), torch.zeros(2, 1)))
    >>> for bound in input_smoothness_bounds(terms, k=2.0):
    ...     print(f"{bound.statement}:  {bound.left:.3f} ≤ {bound.right:.3f}")
    mean ‖X‖₂ᵏ ≤ mean ‖X‖_Fᵏ:  2.000 ≤ 2.000
    mean ‖X‖_Fᵏ ≤ (‖W‖₂/min ‖x‖)ᵏ mean ‖∇f‖_Fᵏ, W:  2.000 ≤ 2.000
    (‖W‖₂/min ‖x‖)ᵏ mean ‖∇f‖_Fᵏ, W ≤ θ:  2.000 ≤ 3.000
    """
    check_terms(terms)
    k, printed = arguments.number("k", k, above=0), arguments.flag("printed", printed)
    share = share_of(terms.network, sharing, norm, bias)
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
            inequality(terms, "mean ‖X‖₂ᵏ ≤ mean ‖∇_W f‖_Fᵏ", source, sensitivity, gradient, small),
            inequality(terms, "mean ‖∇_W f‖_Fᵏ ≤ its multiple", source, gradient, layer, large),
        )
    text = "(‖W‖₂/min ‖x‖)ᵏ mean ‖∇f‖_Fᵏ"
    bounds = (
        inequality(terms, "mean ‖X‖₂ᵏ ≤ mean ‖X‖_Fᵏ", source, sensitivity, frobenius, {}),
        inequality(terms, f"mean ‖X‖_Fᵏ ≤ {text}, W", source, frobenius, layer, share.assumptions),
    )
    if sharing == "operator":
        return bounds
    total = math.inf if math.isinf(factor) else factor * float(terms.gradient.pow(k).mean())
    return (*bounds, inequality(terms, f"{text}, W ≤ θ", source, layer, total, {}))
