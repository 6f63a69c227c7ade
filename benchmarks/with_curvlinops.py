"""The ways of curvlinops (f-dangel/curvlinops).

Its products of one layer are Gauss–Newton products, which are the Hessian's here and cheaper.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from curvlinops.trace.epperly2024xtrace import xtrace
from curvlinops.trace.meyer2020hutch import hutchpp_trace
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from benchmarks.comparing import Estimate, Estimator, NetworkWay
from benchmarks.measuring import Way, Work
from benchmarks.problems import LANCZOS_PROBES, LANCZOS_STEPS, PROBES, Problem
from benchmarks.quantities import (
    DENSITY_PROBES,
    DENSITY_STEPS,
    NETWORK_PRODUCTS,
    TOP_EIGENVALUES,
)
from benchmarks.references import direction

NAME = "curvlinops"


def _hessian(problem: Problem) -> HessianLinearOperator:
    return HessianLinearOperator(
        problem.model,
        nn.CrossEntropyLoss(),
        list(problem.model.parameters()),
        problem.data,
        check_deterministic=False,
    )


def _blocks(problem: Problem) -> dict[str, GGNLinearOperator]:
    return {
        name: GGNLinearOperator(
            problem.model,
            nn.CrossEntropyLoss(),
            [weight],
            problem.data,
            check_deterministic=False,
        )
        for name, weight in problem.weights.items()
    }


def hessian_product(problem: Problem) -> Work:
    hessian, vector = _hessian(problem), problem.vectors()[0]
    return Work(lambda: hessian @ vector)


def hessian_products(problem: Problem) -> Work:
    hessian, columns = _hessian(problem), problem.vectors().T.contiguous()
    return Work(lambda: hessian @ columns, lambda products: products[:, 0], PROBES)


def layer_products(problem: Problem) -> Work:
    blocks = _blocks(problem)
    columns = {
        name: vectors.flatten(1).T.contiguous() for name, vectors in problem.layer_vectors().items()
    }
    return Work(
        lambda: [block @ columns[name] for name, block in blocks.items()],
        lambda products: torch.cat([product[:, 0] for product in products]),
        PROBES,
        remark="Gauss–Newton operator of each layer",
    )


def quadrature_sharpness(problem: Problem) -> Work:
    blocks, steps = _blocks(problem), 2

    def ritz_values() -> Tensor:
        return torch.cat([fast_lanczos(block, steps)[0] for block in blocks.values()])

    def step_by_step(_: Tensor) -> Tensor:
        # fast_lanczos draws its own starting vectors. The comparison takes the same operators'
        # steps from ours.
        starts = problem.layer_vectors()
        values = []
        for name, block in blocks.items():
            first = starts[name][0].flatten() / starts[name][0].norm()
            image = block @ first
            diagonal = image @ first
            remainder = image - diagonal * first
            coupling = remainder.norm()
            second = remainder / coupling
            last = (block @ second) @ second
            matrix = torch.stack([diagonal, coupling, coupling, last]).reshape(2, 2)
            values.append(torch.linalg.eigvalsh(matrix.double().cpu()))
        return torch.cat(values)

    return Work(
        ritz_values,
        step_by_step,
        steps / (LANCZOS_PROBES * LANCZOS_STEPS),
        remark=(
            f"extrapolated from {steps} of the {LANCZOS_STEPS} steps of one of the "
            f"{LANCZOS_PROBES} probes; no reorthogonalization"
        ),
    )


WAYS: dict[str, dict[str, Way]] = {
    way.__name__: {NAME: way}
    for way in (hessian_product, hessian_products, layer_products, quadrature_sharpness)
}

# --- other people's networks -----------------------------------------------------------------


class _CountingOperator(HessianLinearOperator):
    """A Hessian that counts its products with single vectors."""

    products = 0

    def _matmat(self, M: list[Tensor]) -> list[Tensor]:
        self.products += M[0].shape[-1]
        return super()._matmat(M)


def _counting_operator(problem: Problem) -> _CountingOperator:
    return _CountingOperator(
        problem.model,
        nn.CrossEntropyLoss(),
        list(problem.model.parameters()),
        problem.data,
        check_deterministic=False,
    )


def network_product(problem: Problem) -> Estimator:
    hessian = _counting_operator(problem)
    return lambda seed: Estimate(hessian @ direction(problem.model, seed), 1)


def network_trace(estimator: Callable[..., Tensor]) -> NetworkWay:
    def way(problem: Problem) -> Estimator:
        def estimate(seed: int) -> Estimate:
            torch.manual_seed(seed)
            hessian = _counting_operator(problem)
            value = estimator(hessian, NETWORK_PRODUCTS)
            return Estimate(value, hessian.products)

        return estimate

    return way


def network_top(problem: Problem) -> Estimator:
    def estimate(seed: int) -> Estimate:
        hessian = _counting_operator(problem)
        start = direction(problem.model, seed).cpu().numpy()
        # All products go into a single Krylov space without a restart. The loose tolerance accepts
        # the eigenvalues whether or not they have converged by then.
        values = eigsh(
            hessian.to_scipy(),
            k=TOP_EIGENVALUES,
            which="LA",
            v0=start,
            ncv=NETWORK_PRODUCTS,
            maxiter=1,
            tol=1e6,
            return_eigenvectors=False,
        )
        eigenvalues = torch.from_numpy(values).sort(descending=True).values
        return Estimate(eigenvalues, hessian.products)

    return estimate


def network_density(problem: Problem) -> Estimator:
    def estimate(seed: int) -> Estimate:
        torch.manual_seed(seed)
        hessian = _counting_operator(problem)
        runs = [fast_lanczos(hessian, DENSITY_STEPS) for _ in range(DENSITY_PROBES)]
        nodes = torch.stack([values for values, _ in runs])
        weights = torch.stack([vectors[0].square() for _, vectors in runs])
        return Estimate(nodes, hessian.products, weights / DENSITY_PROBES)

    return estimate


NETWORKS: dict[str, dict[str, NetworkWay]] = {
    "product": {NAME: network_product},
    "trace": {
        f"{NAME}, XTrace": network_trace(xtrace),
        f"{NAME}, Hutch++": network_trace(hutchpp_trace),
    },
    "top": {f"{NAME}, eigsh of SciPy": network_top},
    "density": {f"{NAME}, fast_lanczos": network_density},
}
