"""A network and a batch → the inputs and output Jacobians of its layers, and their curvature."""

from paperkit.linearize.batches import batches
from paperkit.linearize.dense import (
    dense_empirical_fisher,
    dense_gauss_newton,
    dense_hessian,
    dense_jacobian,
    hessian_product,
)
from paperkit.linearize.kronecker import KroneckerFactors, ekfac, kfac
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.linearize.layer_operator import OperatorNorm, operator_norm
from paperkit.linearize.linearize import (
    Linearization,
    MemoryBudgetError,
    SamplesInteractError,
    layers_of,
    linearize,
    linearize_in_chunks,
)
from paperkit.linearize.losses import LOSSES, Loss, get_loss
from paperkit.linearize.operators import (
    CurvatureOperator,
    EmpiricalFisherOperator,
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    ResidualOperator,
)

__all__ = [
    "LOSSES",
    "CurvatureOperator",
    "EmpiricalFisherOperator",
    "FisherOperator",
    "GaussNewtonOperator",
    "HessianOperator",
    "KroneckerFactors",
    "LayerLinearization",
    "LayerUse",
    "Linearization",
    "Loss",
    "MemoryBudgetError",
    "OperatorNorm",
    "ResidualOperator",
    "SamplesInteractError",
    "batches",
    "dense_empirical_fisher",
    "dense_gauss_newton",
    "dense_hessian",
    "dense_jacobian",
    "ekfac",
    "get_loss",
    "hessian_product",
    "kfac",
    "layers_of",
    "linearize",
    "linearize_in_chunks",
    "operator_norm",
]
