"""The ways of hessian-eigenthings (noahgolmant/pytorch-hessian-eigenthings)."""

from __future__ import annotations

import torch
from hessian_eigenthings.algorithms.lanczos import lanczos, lanczos_tridiagonal
from hessian_eigenthings.algorithms.spectral_density import spectral_density
from hessian_eigenthings.algorithms.trace import trace
from hessian_eigenthings.loss_fns.standard import supervised_loss
from hessian_eigenthings.operators.hessian import HessianOperator
from torch import Tensor, nn

from benchmarks.comparing import Estimate, Estimator, NetworkWay
from benchmarks.measuring import Way, Work
from benchmarks.problems import LANCZOS_PROBES, LANCZOS_STEPS, Problem, ritz_values
from benchmarks.quantities import (
    DENSITY_PROBES,
    DENSITY_STEPS,
    NETWORK_PRODUCTS,
    TOP_EIGENVALUES,
)
from benchmarks.references import direction

NAME = "hessian-eigenthings"


def _hessian(problem: Problem, parameter: str | None = None) -> HessianOperator:
    return HessianOperator(
        problem.model,
        problem.data,
        supervised_loss(nn.CrossEntropyLoss()),
        param_filter=lambda name, _: parameter is None or name == parameter,
    )


def _blocks(problem: Problem) -> dict[str, HessianOperator]:
    return {name: _hessian(problem, f"{name}.weight") for name in problem.layers}


def hessian_product(problem: Problem) -> Work:
    hessian, vector = _hessian(problem), problem.vectors()[0]
    return Work(lambda: hessian.matvec(vector))


def layer_products(problem: Problem) -> Work:
    blocks, vectors = _blocks(problem), problem.layer_vectors(1)
    return Work(
        lambda: [block.matvec(vectors[name].flatten()) for name, block in blocks.items()],
        torch.cat,
        remark="a vector at a time; Hessian operator of each layer",
    )


def quadrature_sharpness(problem: Problem) -> Work:
    blocks, starts, steps = _blocks(problem), problem.layer_vectors(1), 2

    def coefficients() -> list:
        return [
            lanczos_tridiagonal(block, starts[name].flatten(), steps)
            for name, block in blocks.items()
        ]

    def to_vector(results: list) -> Tensor:
        return torch.cat([ritz_values(result.alphas, result.betas) for result in results])

    return Work(
        coefficients,
        to_vector,
        steps / (LANCZOS_PROBES * LANCZOS_STEPS),
        remark=(
            f"extrapolated from {steps} of the {LANCZOS_STEPS} steps of one of the "
            f"{LANCZOS_PROBES} probes"
        ),
    )


WAYS: dict[str, dict[str, Way]] = {
    way.__name__: {NAME: way} for way in (hessian_product, layer_products, quadrature_sharpness)
}

# --- other people's networks -----------------------------------------------------------------


class _CountingOperator(HessianOperator):
    """A Hessian that counts its products."""

    products = 0

    def matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return super().matvec(v)


def _counting_operator(problem: Problem) -> _CountingOperator:
    return _CountingOperator(problem.model, problem.data, supervised_loss(nn.CrossEntropyLoss()))


def network_product(problem: Problem) -> Estimator:
    hessian = _counting_operator(problem)
    return lambda seed: Estimate(hessian.matvec(direction(problem.model, seed)), 1)


def network_trace(problem: Problem) -> Estimator:
    def estimate(seed: int) -> Estimate:
        hessian = _counting_operator(problem)
        value = trace(hessian, num_matvecs=NETWORK_PRODUCTS, seed=seed).estimate
        return Estimate(torch.tensor([value], dtype=torch.float64, device="cpu"), hessian.products)

    return estimate


def network_top(problem: Problem) -> Estimator:
    def estimate(seed: int) -> Estimate:
        hessian = _counting_operator(problem)
        result = lanczos(
            hessian,
            k=TOP_EIGENVALUES,
            max_iter=NETWORK_PRODUCTS,
            which="LA",
            reorthogonalize=True,
            seed=seed,
        )
        return Estimate(result.eigenvalues, hessian.products)

    return estimate


def network_density(problem: Problem) -> Estimator:
    def estimate(seed: int) -> Estimate:
        hessian = _counting_operator(problem)
        result = spectral_density(
            hessian,
            num_runs=DENSITY_PROBES,
            lanczos_steps=DENSITY_STEPS,
            # The runs of a call take successive seeds from this one on.
            seed=DENSITY_PROBES * seed,
        )
        # Runs of fewer steps are padded with NaN as nodes, whose weights are zero.
        nodes = result.raw_eigenvalues.nan_to_num()
        return Estimate(nodes, hessian.products, result.raw_weights / DENSITY_PROBES)

    return estimate


NETWORKS: dict[str, dict[str, NetworkWay]] = {
    "product": {NAME: network_product},
    "trace": {f"{NAME}, Hutch++": network_trace},
    "top": {f"{NAME}, Lanczos": network_top},
    "density": {f"{NAME}, Lanczos": network_density},
}
