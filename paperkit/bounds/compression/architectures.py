"""Equations 16 and 17: residual layers; and convolutions with their patches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from paperkit import arguments
from paperkit.bounds.compression.shares import LayerShare, check_terms, inequality, share_of_calls
from paperkit.bounds.compression.terms import CompressionTerms, same_tensor, through_layer
from paperkit.bounds.statement import Inequality
from paperkit.linalg.row_space import default_tolerance
from paperkit.linearize.layer import LayerUse
from paperkit.linearize.layer_operator import weight_matrices


def residual_bounds(
    terms: CompressionTerms, stream: Sequence[str]
) -> tuple[Inequality, Inequality]:
    r"""Compare the sensitivity of a residual network, less its head's norm, with the sharpness.

    Every block adds a function of :math:`W_l x_l` to the stream :math:`x_l`, so that
    :math:`X_l = X_{l+1} + B_l W_l`, and a linear head :math:`W_L` reads the stream last. Then

    .. math:: \frac1n\sum_i \|X_1\|_2 - \|W_L\|_2 \le
        \frac1n\sum_i\sum_{l<L} \frac{\|W_l\|_2}{\|x_l\|}\|\nabla_{W_l} f\|_F \le
        \sqrt{\frac1n\sum_{i,l<L}\frac{\|W_l\|_2^2}{\|x_l\|^2}}\; S^{1/2} .

    The left side may be negative. Source: compression paper, equations 16 and 17, whose conditions
    are left unsaid: each :math:`W_l` reads the stream itself, not a normalisation of it, and is not
    shared.

    Parameters
    ----------
    terms : CompressionTerms
        Terms of the network.
    stream : sequence of str
        Names of the layers that read the stream, in order, the head last. Other layers may lie
        inside the blocks.

    Returns
    -------
    tuple of Inequality
        Inequalities between neighbours in the chain, certified where the recorded Jacobians show
        such a network.

    Raises
    ------
    ValueError
        If ``stream`` has fewer than two layers, or names an unknown one.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, residual_bounds
    >>> class Residual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.block, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    ...         _ = nn.init.eye_(self.block.weight), nn.init.ones_(self.head.weight)
    ...     def forward(self, x):
    ...         return self.head(x + self.block(x))
    >>> terms = compression_terms(Residual(), (torch.eye(2), torch.zeros(2, 1)))
    >>> first, second = residual_bounds(terms, stream=["block", "head"])
    >>> round(first.left, 4), round(first.right, 4), round(second.right, 4), first.certified
    (1.4142, 1.4142, 2.4495, True)
    """
    check_terms(terms)
    layers = terms.linearization.layers
    stream = arguments.names("stream", stream, layers, at_least=2)
    calls = [next(call for call in terms.calls if call.name == name) for name in stream]
    shares = share_of_calls(calls[:-1], "tied", "operator", bias=False)
    assumptions = dict(shares.assumptions)
    # The skip is a second reader here, so no layer is a single reader. "identity_skips" checks that
    # there is no third.
    del assumptions["single_reader"]
    uses = [layers[name].uses[0] for name in stream]
    assumptions["identity_skips"] = all(
        _adds_to_stream(use, following) for use, following in itertools.pairwise(uses)
    )
    weight = weight_matrices(uses[-1].module)[0].to(uses[-1].output_jacobian)
    assumptions["linear_head"] = same_tensor(
        _flat_input_jacobian(uses[-1]), weight.expand(len(terms.gradient), -1, -1)
    )
    left = float(calls[0].sensitivity.mean()) - calls[-1].operator.upper
    n = len(terms.gradient)
    middle = float(shares.product().sum()) / n
    ratio = math.sqrt(float(shares.ratio.square().sum()) / n)
    right = math.inf if math.isinf(ratio) else ratio * math.sqrt(terms.sharpness)
    text = "Σ_l mean (‖W_l‖₂/‖x_l‖) ‖∇_{W_l} f‖_F"
    source = "equation 17"
    # The left side is a difference, and its round-off is that of its larger term.
    rounding = terms.tolerance * float(calls[0].sensitivity.mean())
    first = inequality(terms, f"MLS − ‖W_L‖₂ ≤ {text}", source, left, middle, assumptions)
    return (
        replace(first, absolute_tolerance=rounding),
        inequality(terms, f"{text} ≤ its multiple of S^½", source, middle, right, {}),
    )


def _flat_input_jacobian(use: LayerUse) -> Tensor:
    assert use.input_jacobian is not None
    return use.input_jacobian.flatten(2)


def _adds_to_stream(use: LayerUse, following: LayerUse) -> bool:
    """Whether X_l = X_{l+1} + B_l A_l."""
    before, after = _flat_input_jacobian(use), _flat_input_jacobian(following)
    return before.shape == after.shape and same_tensor(before, after + through_layer(use))


def conditioned_patches_bound(terms: CompressionTerms, layer: str) -> Inequality:
    r"""Compare a layer's sensitivity with its own, tied gradient, where the patches allow it.

    With the patches of a sample as the columns of U, :math:`\nabla_W f_o = B_o U^\top`, hence
    :math:`\|\nabla_W f\|_F \ge \sigma_P(U)\|B\|_F` and

    .. math:: \frac1n\sum_i\|X_i\|_2 \le
        \frac1n\sum_i\frac{\|A\|_2}{\sigma_P(U_i)}\|\nabla_W f_i\|_F .

    There is no bound (∞) where there are more positions P than entries in a patch. This replaces
    the compression paper's equation 5 for convolutions.

    Parameters
    ----------
    terms : CompressionTerms
        Terms of the network.
    layer : str
        Name of the layer.

    Returns
    -------
    Inequality
        Statement that is certified where the layer is called once, is its input's only reader, and
        has independent patches at every sample.

    Raises
    ------
    ValueError
        If the layer is unknown.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_terms, conditioned_patches_bound
    >>> model = nn.Sequential(nn.Conv1d(1, 1, 2, stride=2, bias=False), nn.Flatten())
    >>> _ = nn.init.ones_(model[0].weight)
    >>> signal = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]])  # two patches, (1, 0) and (0, 2)
    >>> terms = compression_terms(model, (signal, torch.zeros(1, 2)))
    >>> bound = conditioned_patches_bound(terms, "0")
    >>> round(bound.left, 4), round(bound.right, 4), bound.certified
    (1.4142, 3.1623, True)
    """
    check_terms(terms)
    layer = arguments.choice("layer", layer, terms.linearization.layers)
    uses = terms.linearization.layers[layer].uses
    call = next(call for call in terms.calls if call.name == layer)
    columns = uses[0].columns(slice(None)).double()
    smallest = torch.zeros(len(columns), dtype=torch.float64, device=columns.device)
    if columns.shape[3] <= columns.shape[2]:
        values = torch.linalg.svdvals(columns)
        # A smallest value that is no more than round-off of the largest counts as zero.
        _, _, rows, positions = columns.shape
        round_off = default_tolerance(rows, positions, uses[0].inputs.dtype)
        values = torch.where(values[..., -1] > round_off * values[..., 0], values[..., -1], 0.0)
        smallest = values.min(dim=1).values
    share = LayerShare(
        torch.full_like(smallest, call.operator.upper), smallest, call.weight_gradient, {}
    )
    return inequality(
        terms,
        "mean ‖∂f/∂x‖₂ ≤ mean (‖A‖₂/σ_P(U)) ‖∇_W f‖_F",
        "in place of equation 5 for convolutions (ours)",
        float(call.sensitivity.mean()),
        float(share.product().mean()),
        {
            "single_reader": call.single_reader,
            "called_once": len(uses) == 1,
            "independent_patches": bool((smallest > 0).all()),
        },
    )
