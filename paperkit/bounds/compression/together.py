"""All statements that follow from one linearization."""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict

from torch import nn

from paperkit import arguments
from paperkit.bounds.compression.adaptive import input_invariant_bounds
from paperkit.bounds.compression.sensitivities import (
    matrix_normalized_bound,
    network_sensitivity_bound,
    sensitivity_bound,
)
from paperkit.bounds.compression.stability import input_smoothness_bounds, linear_stability_bounds
from paperkit.bounds.compression.terms import NORMS, SHARING, compression_terms
from paperkit.bounds.compression.volumes import network_volume_bounds, volume_bounds
from paperkit.bounds.statement import Inequality
from paperkit.memory import GIBIBYTE


def compression_bounds(
    model: nn.Module,
    data: object,
    *,
    sharing: str = "tied",
    norm: str = "operator",
    bias: bool = False,
    memory_budget: int = GIBIBYTE,
) -> dict[str, Inequality]:
    """Return every bound of the paper that ties a representation to the sharpness.

    Parameters
    ----------
    model : nn.Module
        Network that is called as ``model(inputs)`` and returns (n, C); measured in evaluation mode
        and left as it was.
    data : pair or iterable of pairs
        ``(inputs, targets)``, or batches of them; the targets are not used.
    sharing : str
        ``"tied"`` for the gradient in the weight, as in the paper; ``"operator"`` for that in the
        entries of the layer's operator, which holds for convolutions too.
    norm : str
        Norm of the layer: ``"operator"``, ``"matrix"`` or ``"frobenius"``; see
        :func:`~paperkit.bounds.compression.linear_stability_bounds`.
    bias : bool
        Whether the bias counts as another input that is always 1.
    memory_budget : int
        Bytes for the pairs and temporaries.

    Returns
    -------
    dict of str to Inequality
        Statements by the paper's equation number: ``"5"``, ``"6"``, ``"9"``, ``"10"``, ``"11"``,
        ``"12"``, ``"35"`` and ``"44"``, each between the statement's outermost sides.

    Raises
    ------
    ValueError
        If the data do not fit the model or the budget, no gradient reaches a layer's input, or
        ``sharing`` or ``norm`` is unknown.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.bounds.compression import compression_bounds
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.eye_(model[0].weight), nn.init.ones_(model[1].weight)
    >>> bounds = compression_bounds(model, (torch.eye(2), torch.zeros(2, 1)))
    >>> for equation, bound in bounds.items():
    ...     print(f"equation {equation}: {bound.left:.4f} ≤ {bound.right:.4f}")
    equation 5: 1.4142 ≤ 1.4142
    equation 6: 2.0000 ≤ 3.0000
    equation 9: 0.3466 ≤ 0.5493
    equation 10: 1.0397 ≤ 1.0986
    equation 11: 1.4142 ≤ 1.7321
    equation 12: 2.8284 ≤ 3.0000
    equation 35: 2.8284 ≤ 2.8284
    equation 44: 0.5000 ≤ 2.0000
    >>> all(bound.certified for bound in bounds.values())
    True
    """
    sharing = arguments.choice("sharing", sharing, SHARING)
    norm, bias = arguments.choice("norm", norm, NORMS), arguments.flag("bias", bias)
    terms = compression_terms(model, data, memory_budget=memory_budget)
    options = _Options(sharing=sharing, norm=norm, bias=bias)
    chains: dict[str, tuple[Inequality, ...]] = {
        # The links of equation 5 are taken at different samples and cannot be joined. The second
        # alone implies the whole.
        "5": linear_stability_bounds(terms, **options)[1:],
        "6": input_smoothness_bounds(terms, **options),
        "9": volume_bounds(terms, **options),
        "10": network_volume_bounds(terms, **options),
        "11": (sensitivity_bound(terms, **options),),
        "12": (network_sensitivity_bound(terms, **options),),
        "35": (matrix_normalized_bound(terms, **options),),
        "44": input_invariant_bounds(terms),
    }
    return {number: _join_links(chain) for number, chain in chains.items()}


class _Options(TypedDict):
    sharing: str
    norm: str
    bias: bool


def _join_links(chain: tuple[Inequality, ...]) -> Inequality:
    """Join the links a ≤ b, b ≤ c, … into a ≤ c."""
    assumptions: dict[str, bool | None] = {}
    for link in chain:
        assumptions.update(link.assumptions)
    statement = " ≤ ".join([chain[0].statement, *(link.statement for link in chain[1:])])
    return replace(chain[0], statement=statement, right=chain[-1].right, assumptions=assumptions)
