"""Hessians by products, written out, and by differences."""

from __future__ import annotations

import pytest
import torch
from helpers import small_network
from torch import Tensor, nn

from paperkit.curvature import dense_hessian, hessian_product
from paperkit.linearize import layers_of


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU(), nn.GELU()], ids=str)
def test_layer_hessians_by_products_dense_and_by_differences_agree(
    activation: nn.Module,
) -> None:
    model, inputs, targets = small_network(activation)
    for layer in layers_of(model):
        name = f"{layer}.weight"
        dense = dense_hessian(model, inputs, targets, parameters=[name])
        identity = torch.eye(len(dense), dtype=torch.float64)
        products = hessian_product(model, inputs, targets, identity, parameters=[name])
        assert float((products - dense).norm() / dense.norm()) < 1e-12

        weight = model.get_parameter(name)

        def gradient(at: Tensor, name: str = name) -> Tensor:
            leaf = at.detach().requires_grad_()
            outputs = torch.func.functional_call(model, {name: leaf}, (inputs,))
            loss = nn.functional.cross_entropy(outputs, targets)
            return torch.autograd.grad(loss, leaf)[0].flatten()

        h = 1e-5
        columns = [
            (gradient(weight + h * e.view_as(weight)) - gradient(weight - h * e.view_as(weight)))
            / (2 * h)
            for e in identity
        ]
        # Central differences: h² from the remainder and eps/h from round-off, both near 1e-10.
        assert float((torch.stack(columns) - dense).norm() / dense.norm()) < 1e-7
