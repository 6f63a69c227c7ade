"""The optimizers of this library, and the plain one that they wrap, as they are timed.

Radii and dampings do not change the time of a step. They are small enough for steps from random
weights to stay finite.
"""

from __future__ import annotations

from torch import nn
from torch.optim import SGD

from benchmarks.quantities import BASE_OPTIONS, FISHER_SAMPLES, OURS, SAM_RADIUS
from benchmarks.steps import Way
from paperkit.optim import (
    ASAM,
    IGSAM,
    RSAM,
    SAM,
    SASAM,
    SASGD,
    EigenSAM,
    GradientRegularization,
)

_NEVER = 10**9
"""A period that no run reaches; the first renewal is before the first step."""


def _igsam(model: nn.Module, period: int) -> IGSAM:
    return IGSAM(
        model.parameters(),
        model,
        rho=1e-3,
        damping=1.0,
        period=period,
        samples=FISHER_SAMPLES,
        **BASE_OPTIONS,
    )


_OURS: dict[str, Way] = {
    "sam": lambda model: SAM(model.parameters(), rho=SAM_RADIUS, **BASE_OPTIONS),
    "asam": lambda model: ASAM(model.parameters(), **BASE_OPTIONS),
    "eigen_sam": lambda model: EigenSAM(
        model.parameters(), period=_NEVER, iterations=1, **BASE_OPTIONS
    ),
    "eigen_sam_renewal": lambda model: EigenSAM(model.parameters(), period=1, **BASE_OPTIONS),
    "gradient_regularization": lambda model: GradientRegularization(
        model.parameters(), method="double_backward", **BASE_OPTIONS
    ),
    "gradient_regularization_difference": lambda model: GradientRegularization(
        model.parameters(), method="finite_difference", **BASE_OPTIONS
    ),
    "rsam": lambda model: RSAM(model.parameters(), **BASE_OPTIONS),
    "rsam_exact": lambda model: RSAM(model.parameters(), mode="exact", **BASE_OPTIONS),
    "sasam": lambda model: SASAM(model.parameters()),
    "sasam_full_batch": lambda model: SASAM(model.parameters(), full_batch=True),
    "sasgd": lambda model: SASGD(model.parameters()),
    "sasgd_full_batch": lambda model: SASGD(model.parameters(), full_batch=True),
    "igsam": lambda model: _igsam(model, _NEVER),
    "igsam_renewal": lambda model: _igsam(model, 1),
}

STEPS: dict[str, dict[str, Way]] = {
    "sgd": {"torch": lambda model: SGD(model.parameters(), **BASE_OPTIONS)},
    **{key: {OURS: way} for key, way in _OURS.items()},
}
