"""A Rényi sharpness, as it follows from an exact spectrum, and where there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paperkit.estimators.entropy import renyi_entropy
from paperkit.estimators.renyi_plan import Settings
from paperkit.estimators.result import Measurement
from paperkit.estimators.spectra import LayerSpectrum
from paperkit.linalg.gram import Spectrum
from paperkit.linalg.quadrature import SpectralQuadrature
from paperkit.linearize.blocks import Block
from paperkit.network.losses import Loss

# Nats that an exact value may be off by without a word.
_CLAIMED = 0.01


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RenyiSharpness(Measurement):
    """A Rényi sharpness −H_α, in nats; ``float(result)`` is its value.

    Attributes
    ----------
    alpha : float
        The order.
    policy : str
        Treatment of negative eigenvalues.
    spectrum : Spectrum or None
        The exact spectrum; None where it was estimated.
    quadrature : SpectralQuadrature or None
        The quadrature that it was estimated from; None where it is exact.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from paperkit.estimators import renyi_sharpness
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> result = renyi_sharpness(model, (torch.eye(2), torch.tensor([0, 1])), alpha=0.5)["0"]
    >>> result.method, result.alpha, result.assumptions["exact_block"]
    ('gram', 0.5, True)
    >>> result.spectrum.dimension  # all orders follow from these eigenvalues
    6
    """

    alpha: float
    policy: str
    spectrum: Spectrum | None = None
    quadrature: SpectralQuadrature | None = None


def without_value(
    block: Block, reason: str, loss: Loss, settings: Settings
) -> dict[float, RenyiSharpness]:
    """Return what is said of a layer that has no value."""
    return {
        order: RenyiSharpness(
            value=math.nan,
            measure="renyi_sharpness",
            method="none",
            n=block.num_samples,
            loss=loss,
            layer=block.name,
            converged=False,
            assumptions={"alpha": order, "reason": reason, "exact_block": block.exact_block},
            alpha=order,
            policy=settings.policy,
        )
        for order in settings.orders
    }


def from_spectrum(
    spectrum: Spectrum, settings: Settings, common: dict, assumptions: dict
) -> dict[float, RenyiSharpness]:
    """Return the results by order from all eigenvalues.

    Parameters
    ----------
    spectrum : Spectrum
        The block's eigenvalues.
    settings : Settings
        Orders and policy.
    common, assumptions : dict
        Attributes that all results share, and assumptions that they do.
    """
    method = spectrum.method if isinstance(spectrum, LayerSpectrum) else "dense"
    results = {}
    for order in settings.orders:
        value = -renyi_entropy(spectrum.eigenvalues, order, settings.policy)
        bracket = _round_off_bracket(spectrum, value, order, settings.policy)
        results[order] = RenyiSharpness(
            value=value,
            measure="renyi_sharpness",
            method=method,
            bracket=bracket,
            converged=bracket is None,
            assumptions={
                "alpha": order,
                "policy": settings.policy,
                **assumptions,
                **({} if bracket is None else {"bracket_of": "round-off in the model's passes"}),
            },
            alpha=order,
            policy=settings.policy,
            spectrum=spectrum,
            **common,
        )
    return results


def _round_off_bracket(
    spectrum: Spectrum, value: float, order: float, policy: str
) -> tuple[float, float] | None:
    """Return between which values round-off leaves the entropy open; None where they are close."""
    found = [value]
    for eigenvalues in spectrum.bracket():
        if bool((eigenvalues if policy == "clamp" else eigenvalues.abs()).gt(0).any()):
            found.append(-renyi_entropy(eigenvalues, order, policy))
    low, high = min(found), max(found)
    return (low, high) if high - low > _CLAIMED else None
