"""Equations 8 to 10: local volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.bounds.compression.shares import (
    check_terms,
    chosen_sharpness,
    logarithmic_inequality,
    share_of_calls,
    worst_sample,
)
from paperkit.bounds.compression.terms import (
    JACOBIAN_SHAPE,
    PAPER,
    ROUND_OFF,
    CallTerms,
    CompressionTerms,
)
from paperkit.bounds.statement import Inequality
from paperkit.estimators.singular_values import frobenius_norms
from paperkit.estimators.volume import log_volumes


def volume_lemma(jacobian: Tensor, k: int | None = None) -> Inequality:
    r"""Compare a Jacobian's log volume with its Frobenius norm, at the tightest sample.

    :math:`\prod_{j\le k}\sigma_j \le k^{-k/2}\,\|X\|_F^k`, by the inequality of arithmetic and
    geometric means; equality where k singular values are equal and the others zero. Source:
    compression paper, Lemma 3.2 (equation 8), k = C.

    Parameters
    ----------
    jacobian : Tensor
        Jacobians X, shape (n, C, …), outputs × inputs.
    k : int, optional
        Number of the largest singular values whose product is taken; default C.

    Returns
    -------
    Inequality
        Statement between logarithms.

    Raises
    ------
    ValueError
        If k is out of range.

    Examples
    --------
    >>> import torch
    >>> from paperkit.bounds.compression import volume_lemma
    >>> volume_lemma(torch.diag(torch.tensor([3.0, 1.0])).unsqueeze(0))  # log 3 ≤ log 5
    Inequality(compression paper, equation 8: log dVol ≤ log(k^(−k/2) ‖X‖_Fᵏ): 1.09861 ≤ 1.60944,
        certified)
    >>> abs(volume_lemma(torch.eye(2).unsqueeze(0)).slack) < 1e-6  # equal singular values attain it
    True
    """
    arguments.tensor("jacobian", jacobian, shape=JACOBIAN_SHAPE, floating=True, finite=True)
    left = log_volumes(jacobian, k)
    power = jacobian.shape[1] if k is None else k
    right = power * (frobenius_norms(jacobian).log() - 0.5 * math.log(power))
    tightest_left, tightest_right = worst_sample(left, right)
    return Inequality(
        statement="log dVol ≤ log(k^(−k/2) ‖X‖_Fᵏ)",
        source=f"{PAPER}, equation 8",
        left=tightest_left,
        right=tightest_right,
        absolute_tolerance=power * max(ROUND_OFF, 100.0 * torch.finfo(jacobian.dtype).eps),
    )


def volume_bounds(
    terms: CompressionTerms,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    sharper: bool = False,
    sharpness: float | None = None,
) -> tuple[Inequality, Inequality]:
    r"""Compare the mean local volume with the sharpness.

    .. math:: dV \le \frac{C^{-C/2}}{n}\sum_i\|X_i\|_F^C \le
        \frac1n\sqrt{\sum_i\frac{\|W\|_2^{2C}}{\|x_i\|^{2C}}}\;\Bigl(\frac{nS}{C}\Bigr)^{C/2}

    Source: compression paper, Proposition 3.4 (equation 9). Section 2 of the paper says that a
    geometric mean takes the place of equation 6's minimum, for a more stable bound. Equation 9 has
    a power mean, and for C ≥ 2 the minimum, that is the maximum of :math:`\|W\|_2/\|x_i\|` outside
    the sum, is never worse: ``sharper=True``.

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
    sharper : bool
        Whether the maximum takes the place of the power mean, which needs C ≥ 2.
    sharpness : float, optional
        Sharpness S, for example the trace of the Hessian; default the Gauss–Newton trace. Only for
        ``sharing="tied"``.

    Returns
    -------
    tuple of Inequality
        Inequalities, between logarithms, of neighbours in the chain.

    Raises
    ------
    ValueError
        If ``sharing`` or ``norm`` is unknown, or another argument is out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, volume_bounds
    >>> model = nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.diag(torch.tensor([3.0, 1.0]))
    >>> terms = compression_terms(model, (torch.eye(2), torch.zeros(2, 2)))
    >>> lemma, sharpness = volume_bounds(terms)
    >>> round(lemma.left, 4), round(lemma.right, 4), round(sharpness.right, 4)  # log 3 ≤ log 5 ≤ …
    (1.0986, 1.6094, 2.5438)
    >>> round(volume_bounds(terms, sharper=True)[1].right, 4)
    2.1972
    """
    check_terms(terms)
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
) -> tuple[Inequality, Inequality]:
    """Compare the sum over layers of the mean local volumes with the sharpness.

    The statement is that of :func:`volume_bounds` with the sums over all layers and samples; no
    parameter may belong to two layers. A layer with fewer inputs than the network has outputs has
    volume zero. Source: compression paper, Proposition 3.6 (equation 10).

    Parameters
    ----------
    terms, sharing, norm, bias, sharper, sharpness
        As in :func:`volume_bounds`.

    Returns
    -------
    tuple of Inequality
        Inequalities, between logarithms, of neighbours in the chain.

    Raises
    ------
    ValueError
        If ``sharing`` or ``norm`` is unknown, or another argument is out of range.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, network_volume_bounds
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> _ = nn.init.eye_(model[0].weight), nn.init.eye_(model[1].weight)
    >>> terms = compression_terms(model, (torch.eye(2), torch.zeros(2, 2)))
    >>> lemma, sharpness = network_volume_bounds(terms)
    >>> round(lemma.left, 4), round(sharpness.right, 4)  # log of two layers' volumes, 1 each
    (0.6931, 1.3863)
    """
    check_terms(terms)
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
) -> tuple[Inequality, Inequality]:
    sharper = arguments.flag("sharper", sharper)
    c, n = terms.num_outputs, len(terms.gradient)
    shares = share_of_calls(calls, sharing, norm, bias)
    value, needed = chosen_sharpness(terms, shares, sharing, sharpness)
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
    # A zero input leaves no bound, whatever S is.
    right = math.inf if prefactor == math.inf else prefactor - log_n + total
    middle_text = "log(C^(−C/2) mean ‖X‖_Fᶜ)"
    return (
        logarithmic_inequality(terms, f"log dV ≤ {middle_text}", source, left, middle, assumptions),
        logarithmic_inequality(
            terms,
            f"{middle_text} ≤ its multiple of (nS/C)^(C/2)",
            source,
            middle,
            right,
            {**assumptions, **shares.assumptions, **needed},
        ),
    )
