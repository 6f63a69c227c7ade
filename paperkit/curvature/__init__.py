"""Curvature matrices of a network as products with vectors, and written out in full."""

from paperkit.curvature.dense import (
    dense_empirical_fisher,
    dense_gauss_newton,
    dense_hessian,
    dense_jacobian,
    hessian_product,
)
from paperkit.curvature.hessian import HessianOperator, ResidualOperator
from paperkit.curvature.operators import (
    CurvatureOperator,
    EmpiricalFisherOperator,
    FisherOperator,
    GaussNewtonOperator,
)
from paperkit.curvature.second_derivatives import SecondDerivativeError

__all__ = [
    "CurvatureOperator",
    "EmpiricalFisherOperator",
    "FisherOperator",
    "GaussNewtonOperator",
    "HessianOperator",
    "ResidualOperator",
    "SecondDerivativeError",
    "dense_empirical_fisher",
    "dense_gauss_newton",
    "dense_hessian",
    "dense_jacobian",
    "hessian_product",
]
