"""Whether a value depends on the tolerance below which a singular value counts as zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paperkit.network.network import Network

# Factors on the tolerance. A rank is claimed only where the singular values leave a gap as wide.
_SENSITIVITY = (1e-2, 1.0, 1e2)

# Units of round-off below which no tolerance is tried, because the Jacobians' own round-off would
# count as rank.
_FLOOR = 10.0


def moves(value: float, by_tolerance: Mapping[float, float], precision: float) -> bool:
    """Whether a value depends on what counts as zero, to the given relative precision."""
    others = (other for other in by_tolerance.values() if other != value)
    return any(abs(other - value) > precision * abs(value) for other in others)


def tolerances_around(tolerance: float, dtype: torch.dtype) -> list[float]:
    """Return a tolerance between its hundredth and its hundredfold, for a look at the gap."""
    floor = min(tolerance, _FLOOR * torch.finfo(dtype).eps)
    return [max(tolerance * factor, floor) for factor in _SENSITIVITY]


def computed_in(result: Tensor, model: nn.Module) -> torch.dtype:
    """Return the format whose round-off a result of the model's passes carries."""
    return model.narrowest if isinstance(model, Network) else result.dtype


def claimed_precision(dtype: torch.dtype) -> float:
    """Return half of a dtype's digits, what a projector on computed rows can claim."""
    return torch.finfo(dtype).eps ** 0.5


def if_sensitive(steady: bool, by_tolerance: Mapping[float, float]) -> dict[str, object]:
    """Return what a result that depends on its tolerance says: its value at the others, rounded."""
    if steady:
        return {}
    rounded = {float(f"{key:.2g}"): float(f"{one:.6g}") for key, one in by_tolerance.items()}
    return {"by_tolerance": rounded}
