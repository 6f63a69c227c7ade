"""The linearization creates every tensor on the model's device."""

from __future__ import annotations

import pytest
import torch
from networks import CASES, Case

from paperkit.curvature import (
    dense_empirical_fisher,
    dense_gauss_newton,
    dense_hessian,
    hessian_product,
)
from paperkit.estimators import layer_spectra
from paperkit.linearize import linearize

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_layers_live_on_the_models_device(
    case: Case, device: torch.device, explicit_devices
) -> None:
    model, inputs, targets = case.make(device=device)
    shapes = {name: x.weight_shape for name, x in linearize(model, inputs).layers.items()}
    for k in (1, 40):
        probes = {
            name: torch.ones(k, *shape, dtype=torch.float64, device=device)
            for name, shape in shapes.items()
        }
        with explicit_devices():
            linearization = linearize(model, inputs, targets=targets, verify=True)
            products = linearization.gauss_newton_products(probes)
        assert all(product.device == inputs.device for product in products.values())
    with explicit_devices():
        spectra = layer_spectra(model, (inputs, targets))
    assert all(spectrum.rank > 0 for spectrum in spectra.values())


@every_case
def test_dense_matrices_live_on_the_models_device(
    case: Case, device: torch.device, explicit_devices
) -> None:
    model, inputs, targets = case.make(device=device)
    weight = [next(iter(dict(model.named_parameters())))]
    with explicit_devices():
        hessian = dense_hessian(model, inputs, targets, parameters=weight)
        others = (
            hessian_product(model, inputs, targets, hessian[0], parameters=weight),
            dense_gauss_newton(model, inputs, "mse", weight),
            dense_empirical_fisher(model, inputs, targets, parameters=weight),
        )
    assert all(matrix.device == inputs.device for matrix in (hessian, *others))
