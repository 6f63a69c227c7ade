"""The error of Tr H at equal numbers of Hessian products, by tool and estimator.

The network is small enough that its Hessian can be written out, which gives the true trace. Each
estimator then meets that matrix, from seed after seed, and the products it takes are counted: what
is compared is the estimators, not the products that they are fed.
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

from benchmarks.problems import Problem, digits_network
from benchmarks.quantities import OURS, TRACE_PRODUCTS
from paperkit.estimators.hessian import deflated_hutchinson, hessian_trace
from paperkit.linalg.lanczos import Operator
from paperkit.linalg.traces import hutch_plus_plus, hutchinson, xtrace
from paperkit.linearize import dense_hessian, linearize

_AGREEMENT = 1e-8
"""Relative; between the library's own call and the same estimator fed with the written-out H."""


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
        Of one estimate, fed with the matrix: what the estimator itself costs.
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


def _gauss_newton(problem: Problem) -> Tensor:
    linearization = linearize(
        problem.model, problem.inputs, all_parameters=True, memory_budget=2**32
    )
    blocks = dict(linearization.jacobian_blocks())
    rows = [linearization.hessian_factor @ blocks[name] for name in problem.parameters]
    rows = torch.cat(rows, dim=2).flatten(0, 1)
    return rows.T @ rows / len(problem.inputs)


def _estimators(
    hessian: _Counted, rest: _Counted, known: float, num_outputs: int
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

    # The known part costs a linearization: as many backward passes as there are outputs.
    split = ours(deflated_hutchinson, rest, TRACE_PRODUCTS - num_outputs)
    return {
        (OURS, "split"): lambda seed: known + split(seed),
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
        If the library's own call differs from its estimator on the written-out matrix.
    """
    problem = digits_network(samples, "cpu")
    matrix = dense_hessian(problem.model, problem.inputs, problem.targets)
    gauss_newton = _gauss_newton(problem)
    hessian, rest = _Counted(matrix), _Counted(matrix - gauss_newton)
    true, num_outputs = float(matrix.trace()), problem.model(problem.inputs[:1]).shape[1]
    estimators = _estimators(hessian, rest, float(gauss_newton.trace()), num_outputs)
    called = hessian_trace(
        problem.model,
        (problem.inputs, problem.targets),
        method="split",
        products=TRACE_PRODUCTS - num_outputs,
    )
    if abs(float(called) - estimators[OURS, "split"](0)) > _AGREEMENT * abs(true):
        raise RuntimeError("hessian_trace differs from its estimator on the written-out Hessian")
    rows = []
    for (tool, method), estimate in estimators.items():
        hessian.products = rest.products = 0
        start = time.perf_counter()
        errors = [estimate(seed) / true - 1 for seed in range(seeds)]
        seconds = (time.perf_counter() - start) / seeds
        squares = sum(error**2 for error in errors) / seeds
        products = (hessian.products + rest.products) / seeds
        if method == "split":
            products += num_outputs
        rows.append(TraceError(tool, method, 100 * squares**0.5, seconds, products))
    return rows
