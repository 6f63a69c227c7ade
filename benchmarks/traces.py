"""The error of Tr H at equal numbers of Hessian products, by tool and estimator.

The network is small enough that its Hessian can be written out, which gives the true trace. Each
estimator then meets that matrix, from seed after seed, and the products it takes are counted: what
is compared is the estimators, not the products that they are fed. Only ours with probes of the
blocks' own needs the network itself, because no one matrix stands behind its products.
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
from paperkit.linalg.lanczos import Operator
from paperkit.linalg.traces import hutch_plus_plus, hutchinson, xtrace
from paperkit.linearize import linearize

_AGREEMENT = 1e-8
"""Relative; between the library's own call and its estimator as it is timed here."""


@dataclass(frozen=True)
class TraceError:
    """One row of the record.

    Attributes
    ----------
    tool, method : str
        Which estimator of which library.
    percent : float
        Relative root-mean-square error over the seeds.
    seconds : float
        Of one estimate. Fed with the matrix it is what the estimator itself costs; ours with probes
        of the blocks' own includes the products.
    products : float
        Products that one estimate took, as counted.
    """

    tool: str
    method: str
    percent: float
    seconds: float
    products: float


class _Counted:
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
    hessian: _Counted, whole: HessianOperator, rest: ResidualOperator, known: float, left: int
) -> dict[tuple[str, str], Callable[[int], float]]:
    """Return every estimator as a function of the seed."""
    d = hessian.shape[0]
    lambda_operator = LambdaOperator(lambda v: hessian @ v, d, dtype=hessian.dtype)

    def ours(method: Callable, operator: Operator, products: int) -> Callable[[int], float]:
        options = {"dtype": hessian.dtype, "device": hessian.device}
        return lambda seed: float(method(operator, d, products, seed=seed, **options))

    def curvlinops(method: Callable) -> Callable[[int], float]:
        def estimate(seed: int) -> float:
            torch.manual_seed(seed)
            return float(method(hessian, TRACE_PRODUCTS))

        return estimate

    def eigenthings(seed: int) -> float:
        return eigenthings_trace(lambda_operator, num_matvecs=TRACE_PRODUCTS, seed=seed).estimate

    return {
        (OURS, "split"): lambda seed: known + float(block_probe_trace(rest, left, seed=seed)),
        (OURS, "block probes"): lambda seed: float(
            block_probe_trace(whole, TRACE_PRODUCTS, seed=seed)
        ),
        (OURS, "XTrace"): ours(xtrace, hessian, TRACE_PRODUCTS),
        (OURS, "Hutch++"): ours(hutch_plus_plus, hessian, TRACE_PRODUCTS),
        (OURS, "Hutchinson"): ours(hutchinson, hessian, TRACE_PRODUCTS),
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
        How many.
    samples : int, optional
        Of the digits; default all that the network was trained on.

    Raises
    ------
    RuntimeError
        If the library's own call differs from its estimator.
    """
    problem = digits_network(samples, "cpu")
    data = (problem.inputs, problem.targets)
    matrix = dense_hessian(problem.model, *data)
    hessian, true = _Counted(matrix), float(matrix.trace())
    # The known part costs a linearization: as many backward passes as there are outputs.
    linearization = linearize(
        problem.model, problem.inputs, all_parameters=True, memory_budget=2**32
    )
    known = float(parameter_gradient_squares(linearization, linearization.loss).sum()) / len(
        problem.inputs
    )
    left = TRACE_PRODUCTS - linearization.num_outputs
    names = [n for n in problem.parameters if n not in linearization.exact_parameters]
    whole = HessianOperator(problem.model, data)
    rest = ResidualOperator(problem.model, data, parameters=names)
    estimators = _estimators(hessian, whole, rest, known, left)
    called = hessian_trace(problem.model, data, method="split", products=left)
    if abs(float(called) - estimators[OURS, "split"](0)) > _AGREEMENT * abs(true):
        raise RuntimeError("hessian_trace differs from its estimator")
    rows = []
    for (tool, method), estimate in estimators.items():
        hessian.products = whole.products = rest.products = 0
        start = time.perf_counter()
        errors = [estimate(seed) / true - 1 for seed in range(seeds)]
        seconds = (time.perf_counter() - start) / seeds
        squares = sum(error**2 for error in errors) / seeds
        products = (hessian.products + whole.products + rest.products) / seeds
        if method == "split":
            products += linearization.num_outputs
        rows.append(TraceError(tool, method, 100 * squares**0.5, seconds, products))
    return rows
