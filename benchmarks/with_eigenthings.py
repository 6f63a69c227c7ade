"""The ways of hessian-eigenthings (noahgolmant/pytorch-hessian-eigenthings)."""

from __future__ import annotations

import torch
from hessian_eigenthings.algorithms.lanczos import lanczos_tridiagonal
from hessian_eigenthings.loss_fns.standard import supervised_loss
from hessian_eigenthings.operators.hessian import HessianOperator
from torch import Tensor, nn

from benchmarks.measuring import Way, Work
from benchmarks.problems import LANCZOS_PROBES, LANCZOS_STEPS, Problem, ritz_values

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

    def found(results: list) -> Tensor:
        return torch.cat([ritz_values(result.alphas, result.betas) for result in results])

    return Work(
        coefficients,
        found,
        steps / (LANCZOS_PROBES * LANCZOS_STEPS),
        remark=(
            f"extrapolated from {steps} of the {LANCZOS_STEPS} steps of one of the "
            f"{LANCZOS_PROBES} probes"
        ),
    )


WAYS: dict[str, dict[str, Way]] = {
    way.__name__: {NAME: way} for way in (hessian_product, layer_products, quadrature_sharpness)
}
