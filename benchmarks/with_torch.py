"""The shortest plain programs: ``torch.func``, and ``torch.autograd`` where it is faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn import functional

from benchmarks.comparing import Estimate, Estimator, NetworkWay
from benchmarks.measuring import Way, Work
from benchmarks.problems import (
    LANCZOS_PROBES,
    LANCZOS_STEPS,
    PROBES,
    Problem,
    entropies,
    gram_eigenvalues,
    ritz_values,
)
from benchmarks.quantities import (
    DENSITY_PROBES,
    DENSITY_STEPS,
    NETWORK_PRODUCTS,
    TOP_EIGENVALUES,
)
from benchmarks.references import direction, hessian_of

FUNC, AUTOGRAD, CHANNELS_LAST = "torch.func", "torch.autograd", "torch.autograd, channels last"
ONE_BY_ONE = "torch.func, one sample at a time"

# Number of samples whose Jacobians vmap computes together.
SAMPLES_AT_ONCE = 16


def gradient(problem: Problem) -> Work:
    def flat(_: None) -> Tensor:
        return torch.cat([p.grad.flatten() for p in problem.model.parameters()])

    return Work(problem.gradient, flat, remark="the unit")


def gradient_with_channels_last(problem: Problem) -> Work:
    inputs = problem.inputs.contiguous(memory_format=torch.channels_last)
    return gradient(Problem(problem.model, inputs, problem.targets))


# --- the full Hessian ------------------------------------------------------------------------


def _split(problem: Problem, vectors: Tensor) -> dict[str, Tensor]:
    sizes = [value.numel() for value in problem.parameters.values()]
    parts = zip(problem.parameters.items(), vectors.split(sizes, dim=-1), strict=True)
    return {name: part.reshape(*vectors.shape[:-1], *p.shape) for (name, p), part in parts}


def _hessian_product(problem: Problem) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def loss(parameters: dict[str, Tensor]) -> Tensor:
        outputs = functional_call(problem.model, parameters, (problem.inputs,))
        return functional.cross_entropy(outputs, problem.targets)

    return lambda vector: jvp(grad(loss), (problem.parameters,), (vector,))[1]


def hessian_product(problem: Problem) -> Work:
    vector = _split(problem, problem.vectors()[0])
    product = _hessian_product(problem)
    return Work(
        lambda: product(vector), lambda parts: torch.cat([p.flatten() for p in parts.values()])
    )


def hessian_products(problem: Problem) -> Work:
    vectors = _split(problem, problem.vectors())
    products = vmap(_hessian_product(problem))
    return Work(
        lambda: products(vectors),
        lambda parts: torch.cat([p[0].flatten() for p in parts.values()]),
        PROBES,
    )


# --- the layers' blocks ----------------------------------------------------------------------


def _factors(problem: Problem) -> Tensor:
    """Return R, (n, C − 1, C), with RᵀR the Hessian of the loss in the outputs."""
    p = problem.model(problem.inputs).detach().double().softmax(dim=1)
    hessians = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    values, vectors = torch.linalg.eigh(hessians)
    roots = values[:, 1:].clamp(min=0).sqrt().unsqueeze(2) * vectors[:, :, 1:].mT
    return roots.to(problem.inputs)


def _rows(problem: Problem) -> dict[str, Tensor]:
    """Return the rows of Λ^½ J of each layer's weight, (n (C − 1), d_l)."""

    def outputs(weights: dict[str, Tensor], sample: Tensor, factor: Tensor) -> Tensor:
        return factor @ functional_call(problem.model, weights, (sample.unsqueeze(0),)).squeeze(0)

    weights = {f"{name}.weight": w.detach() for name, w in problem.weights.items()}
    jacobians = vmap(jacrev(outputs), in_dims=(None, 0, 0), chunk_size=SAMPLES_AT_ONCE)(
        weights, problem.inputs, _factors(problem)
    )
    return {name: jacobians[f"{name}.weight"].flatten(2).flatten(0, 1) for name in problem.layers}


def _products(rows: dict[str, Tensor], vectors: dict[str, Tensor], n: int) -> list[Tensor]:
    return [(vectors[name].flatten(1) @ g.T) @ g / n for name, g in rows.items()]


def _first(products: list[Tensor]) -> Tensor:
    return torch.cat([product[0].flatten() for product in products])


def preparation(problem: Problem) -> Work:
    vectors = problem.layer_vectors(1)
    return Work(
        lambda: _rows(problem),
        lambda rows: _first(_products(rows, vectors, len(problem.inputs))),
        remark="the rows of Λ^½ J of all weights, by vmap(jacrev)",
    )


def layer_products(problem: Problem) -> Work:
    rows, vectors = _rows(problem), problem.layer_vectors()
    return Work(
        lambda: _products(rows, vectors, len(problem.inputs)),
        _first,
        PROBES,
        remark="given the rows",
    )


def layer_products_from_one_graph(problem: Problem) -> Work:
    weights, vectors = list(problem.weights.values()), problem.layer_vectors(1)

    def products() -> list[Tensor]:
        loss = functional.cross_entropy(problem.model(problem.inputs), problem.targets)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        return [
            torch.autograd.grad(g, w, v, is_grads_batched=True, retain_graph=True)[0]
            for g, w, v in zip(gradients, weights, vectors.values(), strict=True)
        ]

    return Work(
        products, _first, remark="a vector at a time; double backward through one retained graph"
    )


def exact_sharpness(problem: Problem) -> Work:
    return Work(lambda: entropies([gram_eigenvalues(rows) for rows in _rows(problem).values()]))


def _lanczos(rows: Tensor, starts: Tensor, n: int, steps: int) -> tuple[Tensor, Tensor]:
    """Run Lanczos from all starts at once, with full reorthogonalization."""
    basis = starts.new_zeros(len(starts), steps + 1, starts.shape[1])
    basis[:, 0] = starts / starts.norm(dim=1, keepdim=True)
    diagonal, off_diagonal = [], []
    for j in range(steps):
        image = (basis[:, j] @ rows.T) @ rows / n
        diagonal.append((image * basis[:, j]).sum(dim=1))
        previous = basis[:, : j + 1]
        for _ in range(2):
            image -= (previous.mT @ (previous @ image.unsqueeze(2))).squeeze(2)
        off_diagonal.append(image.norm(dim=1))
        basis[:, j + 1] = image / off_diagonal[-1].unsqueeze(1)
    return torch.stack(diagonal, dim=1), torch.stack(off_diagonal, dim=1)


def quadrature_sharpness(problem: Problem) -> Work:
    starts, n = problem.layer_vectors(), len(problem.inputs)

    def coefficients() -> list[tuple[Tensor, Tensor]]:
        return [
            _lanczos(rows, starts[name].flatten(1), n, LANCZOS_STEPS)
            for name, rows in _rows(problem).items()
        ]

    def to_vector(results: list[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.cat([ritz_values(a[0], b[0]) for a, b in results])

    return Work(
        coefficients,
        to_vector,
        PROBES / LANCZOS_PROBES,
        remark=f"Lanczos on the rows; extrapolated from {PROBES} of the {LANCZOS_PROBES} probes",
    )


# --- features --------------------------------------------------------------------------------


def _outputs(problem: Problem) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    def outputs(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(problem.model, parameters, (sample.unsqueeze(0),)).squeeze(0)

    return outputs


def _largest(jacobian: Tensor) -> Tensor:
    """Return the largest singular values of Jacobians (…, C, D), in float64."""
    rows = jacobian.to(torch.float64)
    return torch.linalg.eigvalsh(rows @ rows.mT)[..., -1].clamp(min=0).sqrt()


def _sensitivity(problem: Problem) -> Callable[[Tensor], Tensor]:
    jacobian = jacrev(_outputs(problem), argnums=1)

    def of_sample(sample: Tensor) -> Tensor:
        norm = _largest(jacobian(problem.parameters, sample).flatten(1))
        return (sample.double().norm() * norm).square()

    return of_sample


def normalized_sensitivity(problem: Problem) -> Work:
    values = vmap(_sensitivity(problem), chunk_size=SAMPLES_AT_ONCE)
    return Work(lambda: values(problem.inputs).mean(), remark="vmap over samples")


def normalized_sensitivity_one_by_one(problem: Problem) -> Work:
    value = _sensitivity(problem)
    return Work(lambda: torch.stack([value(sample) for sample in problem.inputs]).mean())


def _sharpness(problem: Problem) -> Callable[[Tensor], Tensor]:
    jacobian = jacrev(_outputs(problem))

    def of_sample(sample: Tensor) -> Tensor:
        blocks = jacobian(problem.parameters, sample).values()
        return torch.stack([block.square().sum(dtype=torch.float64) for block in blocks]).sum()

    return of_sample


def sharpness(problem: Problem) -> Work:
    values = vmap(_sharpness(problem), chunk_size=SAMPLES_AT_ONCE)
    return Work(lambda: values(problem.inputs).mean(), remark="vmap over samples")


def sharpness_one_by_one(problem: Problem) -> Work:
    value = _sharpness(problem)
    return Work(lambda: torch.stack([value(sample) for sample in problem.inputs]).mean())


def _layer_jacobians(problem: Problem) -> Iterator[Tensor]:
    """Yield the outputs' Jacobian in each layer's input, (n, C, entries)."""
    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
        for layer in problem.layers.values()
    ]
    outputs = problem.model(problem.inputs.clone().requires_grad_())
    for hook in hooks:
        hook.remove()
    rows = [
        torch.autograd.grad(outputs[:, c].sum(), inputs, retain_graph=True)
        for c in range(outputs.shape[1])
    ]
    for gradients in zip(*rows, strict=True):
        yield torch.stack(gradients, dim=1).flatten(2)


def layer_sensitivities(problem: Problem) -> Work:
    def value() -> Tensor:
        means = [_largest(jacobian).mean() for jacobian in _layer_jacobians(problem)]
        return torch.stack(means).sum()

    return Work(value, remark="hooks and C backward passes")


def layer_volumes(problem: Problem) -> Work:
    def value() -> Tensor:
        logarithms = [
            torch.linalg.svdvals(jacobian.double()).log().sum(dim=1)
            for jacobian in _layer_jacobians(problem)
        ]
        return torch.cat(logarithms).logsumexp(dim=0) - math.log(len(problem.inputs))

    return Work(value, remark="hooks, C backward passes and a singular value decomposition")


def information_geometry(problem: Problem) -> Work:
    n = len(problem.inputs)

    def losses(parameters: dict[str, Tensor], sample: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(_outputs(problem)(parameters, sample), target)

    def value() -> Tensor:
        per_sample = vmap(jacrev(_outputs(problem)), in_dims=(None, 0))
        jacobian = per_sample(problem.parameters, problem.inputs)
        blocks = torch.cat([block.flatten(2) for block in jacobian.values()], dim=2)
        rows = (_factors(problem) @ blocks).flatten(0, 1)
        gradients = vmap(grad(losses), in_dims=(None, 0, 0))(
            problem.parameters, problem.inputs, problem.targets
        )
        g = torch.cat([block.flatten(1) for block in gradients.values()], dim=1)
        inverse = torch.linalg.pinv(rows.T @ rows / n, hermitian=True)
        return ((g @ inverse) * g).sum() / n

    return Work(value, remark="pseudo-inverse of the dense Fisher matrix")


WAYS: dict[str, dict[str, Way]] = {
    "gradient": {AUTOGRAD: gradient, CHANNELS_LAST: gradient_with_channels_last},
    "hessian_product": {FUNC: hessian_product},
    "hessian_products": {FUNC: hessian_products},
    "preparation": {FUNC: preparation},
    "layer_products": {FUNC: layer_products, AUTOGRAD: layer_products_from_one_graph},
    "exact_sharpness": {FUNC: exact_sharpness},
    "quadrature_sharpness": {FUNC: quadrature_sharpness},
    "normalized_sensitivity": {
        FUNC: normalized_sensitivity,
        ONE_BY_ONE: normalized_sensitivity_one_by_one,
    },
    "sharpness": {FUNC: sharpness, ONE_BY_ONE: sharpness_one_by_one},
    "layer_sensitivities": {AUTOGRAD: layer_sensitivities},
    "layer_volumes": {AUTOGRAD: layer_volumes},
    "information_geometry": {FUNC: information_geometry},
}

# --- other people's networks -----------------------------------------------------------------


def network_product(problem: Problem) -> Estimator:
    return lambda seed: Estimate(hessian_of(problem)(direction(problem.model, seed)), 1)


def network_product_by_func(problem: Problem) -> Estimator:
    product = _hessian_product(problem)

    def estimate(seed: int) -> Estimate:
        parts = product(_split(problem, direction(problem.model, seed)))
        return Estimate(torch.cat([part.flatten() for part in parts.values()]), 1)

    return estimate


def network_trace(problem: Problem) -> Estimator:
    def estimate(seed: int) -> Estimate:
        hessian = hessian_of(problem)
        total = 0.0
        for i in range(NETWORK_PRODUCTS):
            signs = direction(problem.model, NETWORK_PRODUCTS * seed + i).sign()
            total += float(signs @ hessian(signs))
        value = torch.tensor([total / NETWORK_PRODUCTS], dtype=torch.float64, device="cpu")
        return Estimate(value, NETWORK_PRODUCTS)

    return estimate


def _tridiagonal(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Return the matrix of Lanczos with full reorthogonalization, (steps, steps)."""
    basis = (start / start.norm()).unsqueeze(0)
    matrix = torch.zeros(steps, steps, dtype=torch.float64, device="cpu")
    for j in range(steps):
        image = product(basis[j])
        matrix[j, j] = float(image @ basis[j])
        for _ in range(2):
            image -= (basis @ image) @ basis
        if j + 1 < steps:
            matrix[j, j + 1] = matrix[j + 1, j] = float(image.norm())
            basis = torch.cat([basis, (image / image.norm()).unsqueeze(0)])
    return matrix


def network_top(problem: Problem) -> Estimator:
    def estimate(seed: int) -> Estimate:
        start = direction(problem.model, seed)
        matrix = _tridiagonal(hessian_of(problem), start, NETWORK_PRODUCTS)
        eigenvalues = torch.linalg.eigvalsh(matrix).flip(0)[:TOP_EIGENVALUES]
        return Estimate(eigenvalues, NETWORK_PRODUCTS)

    return estimate


def network_density(problem: Problem) -> Estimator:
    def estimate(seed: int) -> Estimate:
        hessian = hessian_of(problem)
        matrices = torch.stack(
            [
                _tridiagonal(
                    hessian,
                    direction(problem.model, DENSITY_PROBES * seed + i).sign(),
                    DENSITY_STEPS,
                )
                for i in range(DENSITY_PROBES)
            ]
        )
        nodes, vectors = torch.linalg.eigh(matrices)
        weights = vectors[:, 0].square() / DENSITY_PROBES
        return Estimate(nodes, DENSITY_PROBES * DENSITY_STEPS, weights)

    return estimate


NETWORKS: dict[str, dict[str, NetworkWay]] = {
    "product": {AUTOGRAD: network_product, FUNC: network_product_by_func},
    "trace": {f"{AUTOGRAD}, Hutchinson": network_trace},
    "top": {f"{AUTOGRAD}, Lanczos": network_top},
    "density": {f"{AUTOGRAD}, Lanczos": network_density},
}
