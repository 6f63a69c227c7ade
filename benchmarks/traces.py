"""The error of Tr H at equal numbers of Hessian products, by tool and estimator.

The network is small enough that its Hessian can be written out, which gives the true trace. Each
estimator then meets that matrix, from seed after seed, and its products are counted, so that the
estimators are compared and not the products that they are fed. Only ours with probes of the blocks'
own needs the network itself, because its products do not come from a single matrix.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from curvlinops.trace.epperly2024xtrace import xtrace as curvlinops_xtrace
from curvlinops.trace.hutchinson import hutchinson_trace
from curvlinops.trace.meyer2020hutch import hutchpp_trace
from hessian_eigenthings.algorithms.trace import trace as eigenthings_trace
from hessian_eigenthings.operators.base import LambdaOperator
from torch import Tensor

from benchmarks.problems import digits_network
from benchmarks.quantities import OURS, TRACE_PRODUCTS
from paperkit.curvature import HessianOperator, ResidualOperator, dense_hessian
from paperkit.estimators.gradient_squares import parameter_gradient_squares
from paperkit.estimators.hessian import block_probe_trace, hessian_trace
from paperkit.linalg import FunctionOperator
from paperkit.linalg.traces import hutch_plus_plus, hutchinson, xtrace
from paperkit.linearize import linearize

_AGREEMENT = 1e-8
"""Largest relative difference between the library's call and its estimator as it is timed here."""


@dataclass(frozen=True)
class TraceError:
    """A row of the record.

    Attributes
    ----------
    tool, method : str
        Names of the library and of its estimator.
    percent : float
        Relative root-mean-square error over the seeds.
    seconds : float
        Seconds of an estimate. Fed with the matrix this is the estimator's own time; ours with
        probes of the blocks' own includes the products.
    products : float
        Number of products that an estimate took, as counted.
    """

    tool: str
    method: str
    percent: float
    seconds: float
    products: float


class _CountingMatrix:
    """A symmetric matrix that counts its products with single vectors."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device
        self.products = 0

    def __call__(self, rows: Tensor) -> Tensor:
        self.products += len(rows)
        return rows @ self.matrix

    def __matmul__(self, columns: Tensor) -> Tensor:
        self.products += columns.shape[1] if columns.ndim == 2 else 1
        return self.matrix @ columns


def _estimators(
    hessian: _CountingMatrix,
    full: HessianOperator,
    residual: ResidualOperator,
    exact_part: float,
    products_left: int,
) -> dict[tuple[str, str], Callable[[int], float]]:
    """Return every estimator as a function of the seed."""
    d = hessian.shape[0]
    lambda_operator = LambdaOperator(lambda v: hessian @ v, d, dtype=hessian.dtype)

    operator = FunctionOperator(hessian, d, dtype=hessian.dtype, device=hessian.device)

    def ours(method: Callable) -> Callable[[int], float]:
        return lambda seed: float(method(operator, TRACE_PRODUCTS, seed=seed))

    def curvlinops(method: Callable) -> Callable[[int], float]:
        def estimate(seed: int) -> float:
            torch.manual_seed(seed)
            return float(method(hessian, TRACE_PRODUCTS))

        return estimate

    def eigenthings(seed: int) -> float:
        return eigenthings_trace(lambda_operator, num_matvecs=TRACE_PRODUCTS, seed=seed).estimate

    return {
        (OURS, "split"): lambda seed: (
            exact_part + float(block_probe_trace(residual, products_left, seed=seed))
        ),
        (OURS, "block probes"): lambda seed: float(
            block_probe_trace(full, TRACE_PRODUCTS, seed=seed)
        ),
        (OURS, "XTrace"): ours(xtrace),
        (OURS, "Hutch++"): ours(hutch_plus_plus),
        (OURS, "Hutchinson"): ours(hutchinson),
        ("curvlinops", "XTrace"): curvlinops(curvlinops_xtrace),
        ("curvlinops", "Hutch++"): curvlinops(hutchpp_trace),
        ("curvlinops", "Hutchinson"): curvlinops(hutchinson_trace),
        ("hessian-eigenthings", "Hutch++"): eigenthings,
    }


def trace_errors(seeds: int, samples: int | None = None) -> list[TraceError]:
    """Return the error of every estimator over the seeds 0, 1, …; on the CPU.

    Parameters
    ----------
    seeds : int
        Number of seeds.
    samples : int, optional
        Number of digits; default all that the network was trained on.

    Raises
    ------
    RuntimeError
        If the library's own call differs from its estimator.
    """
    problem = digits_network(samples, "cpu")
    data = (problem.inputs, problem.targets)
    matrix = dense_hessian(problem.model, *data)
    hessian, true = _CountingMatrix(matrix), float(matrix.trace())
    # The exact part takes a linearization, which costs as many backward passes as there are
    # outputs.
    linearization = linearize(
        problem.model, problem.inputs, all_parameters=True, memory_budget=2**32
    )
    exact_part = float(parameter_gradient_squares(linearization, linearization.loss).sum()) / len(
        problem.inputs
    )
    products_left = TRACE_PRODUCTS - linearization.num_outputs
    names = [n for n in problem.parameters if n not in linearization.exact_parameters]
    full = HessianOperator(problem.model, data)
    residual = ResidualOperator(problem.model, data, parameters=names)
    estimators = _estimators(hessian, full, residual, exact_part, products_left)
    result = hessian_trace(problem.model, data, method="split", products=products_left)
    if abs(float(result) - estimators[OURS, "split"](0)) > _AGREEMENT * abs(true):
        raise RuntimeError("hessian_trace differs from its estimator")
    rows = []
    for (tool, method), estimate in estimators.items():
        hessian.products = full.products = residual.products = 0
        start = time.perf_counter()
        errors = [estimate(seed) / true - 1 for seed in range(seeds)]
        seconds = (time.perf_counter() - start) / seeds
        squares = sum(error**2 for error in errors) / seeds
        products = (hessian.products + full.products + residual.products) / seeds
        if method == "split":
            products += linearization.num_outputs
        rows.append(TraceError(tool, method, 100 * squares**0.5, seconds, products))
    return rows
