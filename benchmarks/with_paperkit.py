"""The ways of this library."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.comparing import Estimate, Estimator, NetworkWay
from benchmarks.measuring import Way, Work
from benchmarks.problems import (
    LANCZOS_PROBES,
    LANCZOS_STEPS,
    ORDERS,
    PROBES,
    Problem,
    ritz_values,
)
from benchmarks.quantities import (
    DENSITY_PROBES,
    DENSITY_STEPS,
    NETWORK_PRODUCTS,
    OURS,
    TOP_EIGENVALUES,
)
from benchmarks.references import dimension, direction
from paperkit.curvature import HessianOperator
from paperkit.estimators.gauss_newton_trace import gauss_newton_trace
from paperkit.estimators.hessian import (
    hessian_top_eigenvalues,
    hessian_trace,
    spectral_density,
)
from paperkit.estimators.information_geometry import information_geometric_sharpness
from paperkit.estimators.measure import measure
from paperkit.estimators.renyi import renyi_sharpness
from paperkit.estimators.report import Report
from paperkit.estimators.sensitivity import (
    network_maximum_local_sensitivity,
    normalized_maximum_local_sensitivity,
)
from paperkit.estimators.volume import network_log_volume
from paperkit.linalg.lanczos import lanczos
from paperkit.linearize import LayerLinearization, Linearization, linearize


def _value(result: object) -> Tensor:
    return torch.tensor([float(result)], dtype=torch.float64, device="cpu")  # type: ignore[arg-type]


def _data(problem: Problem) -> tuple[Tensor, Tensor]:
    return problem.inputs, problem.targets


def hessian_product(problem: Problem) -> Work:
    hessian = HessianOperator(problem.model, problem.data)
    vector = problem.vectors()[0]
    return Work(lambda: hessian(vector))


def hessian_products(problem: Problem) -> Work:
    hessian = HessianOperator(problem.model, problem.data)
    vectors = problem.vectors()
    return Work(lambda: hessian(vectors), lambda products: products[0], PROBES)


def _first_products(problem: Problem, linearization: Linearization) -> Tensor:
    vectors = {name: vectors[:1] for name, vectors in problem.layer_vectors().items()}
    products = linearization.gauss_newton_products(vectors)
    return torch.cat([product.flatten() for product in products.values()])


def preparation(problem: Problem) -> Work:
    return Work(
        lambda: linearize(problem.model, problem.inputs),
        lambda linearization: _first_products(problem, linearization),
        remark="the pairs (a, B)",
    )


def layer_products(problem: Problem) -> Work:
    linearization = linearize(problem.model, problem.inputs)
    vectors = problem.layer_vectors()
    return Work(
        lambda: linearization.gauss_newton_products(vectors),
        lambda products: torch.cat([product[0].flatten() for product in products.values()]),
        PROBES,
    )


def _entropies(result: dict) -> Tensor:
    values = [-float(orders[order]) for orders in result.values() for order in ORDERS]
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def exact_sharpness(problem: Problem) -> Work:
    return Work(
        lambda: renyi_sharpness(problem.model, _data(problem), ORDERS, method="exact"),
        _entropies,
        remark="pairs included",
    )


def _ritz_values(layer: LayerLinearization, start: Tensor) -> Tensor:
    def product(vectors: Tensor) -> Tensor:
        return layer.gauss_newton_product(vectors.reshape(-1, *layer.weight_shape)).flatten(1)

    recurrence = lanczos(product, start.reshape(1, -1), 2)
    return ritz_values(recurrence.diagonal[0], recurrence.off_diagonal[0])


def quadrature_sharpness(problem: Problem) -> Work:
    def ritz(_: object) -> Tensor:
        starts = problem.layer_vectors()
        layers = linearize(problem.model, problem.inputs).layers
        return torch.cat([_ritz_values(layer, starts[name][0]) for name, layer in layers.items()])

    return Work(
        lambda: renyi_sharpness(
            problem.model,
            _data(problem),
            ORDERS,
            method="lanczos",
            probes=PROBES,
            steps=LANCZOS_STEPS,
        ),
        ritz,
        PROBES / LANCZOS_PROBES,
        remark=f"extrapolated from {PROBES} of the {LANCZOS_PROBES} probes",
    )


def normalized_sensitivity(problem: Problem) -> Work:
    return Work(lambda: normalized_maximum_local_sensitivity(problem.model, _data(problem)), _value)


def sharpness(problem: Problem) -> Work:
    return Work(lambda: gauss_newton_trace(problem.model, _data(problem)), _value)


def layer_sensitivities(problem: Problem) -> Work:
    return Work(lambda: network_maximum_local_sensitivity(problem.model, _data(problem)), _value)


def layer_volumes(problem: Problem) -> Work:
    return Work(lambda: network_log_volume(problem.model, _data(problem)), _value)


def all_measures(problem: Problem) -> Work:
    names = [
        "renyi_sharpness",
        "normalized_maximum_local_sensitivity",
        "gauss_newton_trace",
        "network_maximum_local_sensitivity",
        "network_log_volume",
    ]

    def to_vector(report: Report) -> Tensor:
        return torch.cat(
            [_entropies(report[names[0]]), *(_value(report[name]) for name in names[1:])]
        )

    return Work(lambda: measure(problem.model, _data(problem), names, alpha=ORDERS), to_vector)


def information_geometry(problem: Problem) -> Work:
    return Work(
        lambda: information_geometric_sharpness(problem.model, _data(problem)),
        _value,
        remark="QR in the samples' space; where the rank is full, as here, a closed form follows",
    )


WAYS: dict[str, dict[str, Way]] = {
    way.__name__: {OURS: way}
    for way in (
        hessian_product,
        hessian_products,
        preparation,
        layer_products,
        exact_sharpness,
        quadrature_sharpness,
        normalized_sensitivity,
        sharpness,
        layer_sensitivities,
        layer_volumes,
        all_measures,
        information_geometry,
    )
}

# --- other people's networks -----------------------------------------------------------------


def network_product(problem: Problem) -> Estimator:
    hessian = HessianOperator(problem.model, problem.data)
    return lambda seed: Estimate(hessian(direction(problem.model, seed)), 1)


def network_trace(problem: Problem) -> Estimator:
    classes = problem.model(problem.inputs[:1]).shape[1]

    def call(products: int, seed: int) -> Estimate:
        result = hessian_trace(problem.model, _data(problem), products=products, seed=seed)
        # A result with a Gauss–Newton part took a backward pass for each output. An exact result
        # without that part took a product with every unit vector.
        split = "gauss_newton_part" in result.assumptions
        exact_products = 0 if split else dimension(problem.model)
        probes = exact_products if result.probes is None else result.probes
        return Estimate(_value(result), probes + classes * split)

    # Passes beyond the products that were asked for are subtracted from these, so that all tools
    # spend the same number.
    over = max(0, call(NETWORK_PRODUCTS, 0).products - NETWORK_PRODUCTS)
    return lambda seed: call(NETWORK_PRODUCTS - over, seed)


def network_top(problem: Problem) -> Estimator:
    def estimate(seed: int) -> Estimate:
        # Single precision does not reach this tolerance, so all products are spent.
        result = hessian_top_eigenvalues(
            problem.model,
            _data(problem),
            TOP_EIGENVALUES,
            tolerance=1e-12,
            max_products=NETWORK_PRODUCTS,
            seed=seed,
        )
        return Estimate(result.eigenvalues, result.assumptions["products"])

    return estimate


def network_density(problem: Problem) -> Estimator:
    def estimate(seed: int) -> Estimate:
        result = spectral_density(
            problem.model, _data(problem), probes=DENSITY_PROBES, steps=DENSITY_STEPS, seed=seed
        ).quadrature
        rule = result.averaged  # the density is made from this rule
        return Estimate(rule.nodes, result.products, rule.weights / rule.weights.sum())

    return estimate


NETWORKS: dict[str, dict[str, NetworkWay]] = {
    "product": {OURS: network_product},
    "trace": {OURS: network_trace},
    "top": {OURS: network_top},
    "density": {OURS: network_density},
}
