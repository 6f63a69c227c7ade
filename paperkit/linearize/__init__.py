"""A network and a batch → the inputs and output Jacobians of its layers, and their curvature."""

import importlib
import warnings

from paperkit.linearize.kronecker import KroneckerFactors, ekfac, kfac
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.linearize.layer_operator import OperatorNorm, operator_norm
from paperkit.linearize.linearization import Linearization
from paperkit.linearize.linearize import linearize, linearize_in_chunks
from paperkit.linearize.recording import layers_of

__all__ = [
    "KroneckerFactors",
    "LayerLinearization",
    "LayerUse",
    "Linearization",
    "OperatorNorm",
    "ekfac",
    "kfac",
    "layers_of",
    "linearize",
    "linearize_in_chunks",
    "operator_norm",
]

_MOVED = {
    **dict.fromkeys(
        (
            *("LOSSES", "Batches", "DataChangedError", "Loss", "Network", "RandomModelError"),
            *("Samples", "SamplesInteractError", "batches", "get_loss"),
        ),
        "paperkit.network",
    ),
    **dict.fromkeys(
        (
            *("CurvatureOperator", "EmpiricalFisherOperator", "FisherOperator"),
            *("GaussNewtonOperator", "HessianOperator", "ResidualOperator"),
            *("SecondDerivativeError", "dense_empirical_fisher", "dense_gauss_newton"),
            *("dense_hessian", "dense_jacobian", "hessian_product"),
        ),
        "paperkit.curvature",
    ),
}


def __getattr__(name: str) -> object:
    """Find the names that this package had before they got rooms of their own."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"paperkit.linearize.{name} is now {_MOVED[name]}.{name}: import it from there.",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(_MOVED[name]), name)
