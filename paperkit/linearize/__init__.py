"""A network and a batch → the inputs and output Jacobians of its layers, and their curvature."""

from paperkit.linearize.dense import (
    dense_empirical_fisher,
    dense_gauss_newton,
    dense_hessian,
    dense_jacobian,
    hessian_product,
)
from paperkit.linearize.layer import LayerLinearization, LayerUse
from paperkit.linearize.linearize import Linearization, SamplesInteractError, layers_of, linearize
from paperkit.linearize.losses import LOSSES, Loss, get_loss

__all__ = [
    "LOSSES",
    "LayerLinearization",
    "LayerUse",
    "Linearization",
    "Loss",
    "SamplesInteractError",
    "dense_empirical_fisher",
    "dense_gauss_newton",
    "dense_hessian",
    "dense_jacobian",
    "get_loss",
    "hessian_product",
    "layers_of",
    "linearize",
]
