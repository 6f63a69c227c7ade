"""A network and a batch → the inputs and output Jacobians of its layers, and their curvature."""

from paperkit.linalg.probes import MemoryBudgetError as MemoryBudgetError
from paperkit.linearize.batches import Batches, DataChangedError, batches
from paperkit.linearize.dense import (
    dense_empirical_fisher,
    dense_gauss_newton,
    dense_hessian,
    dense_jacobian,
    hessian_product,
)
from paperkit.linearize.interaction import RandomModelError, SamplesInteractError
from paperkit.linearize.kronecker import KroneckerFactors, ekfac, kfac
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.linearize.layer_operator import OperatorNorm, operator_norm
from paperkit.linearize.linearize import (
    Linearization,
    layers_of,
    linearize,
    linearize_in_chunks,
)
from paperkit.linearize.losses import LOSSES, Loss, get_loss
from paperkit.linearize.network import Network
from paperkit.linearize.operators import (
    CurvatureOperator,
    EmpiricalFisherOperator,
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    ResidualOperator,
)
from paperkit.linearize.samples import Samples
from paperkit.linearize.second_derivatives import SecondDerivativeError

__all__ = [
    "LOSSES",
    "Batches",
    "CurvatureOperator",
    "DataChangedError",
    "EmpiricalFisherOperator",
    "FisherOperator",
    "GaussNewtonOperator",
    "HessianOperator",
    "KroneckerFactors",
    "LayerLinearization",
    "LayerUse",
    "Linearization",
    "Loss",
    "Network",
    "OperatorNorm",
    "RandomModelError",
    "ResidualOperator",
    "Samples",
    "SamplesInteractError",
    "SecondDerivativeError",
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
