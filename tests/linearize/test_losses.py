"""The loss Hessian in the outputs, as a factor, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch.func import hessian

from paperkit.linearize import LOSSES, get_loss


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("num_outputs", [2, 5])
def test_factor_is_a_root_of_the_output_hessian(name: str, num_outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = 3 * torch.randn(7, num_outputs, generator=generator, dtype=torch.float64)
    loss = get_loss(name)
    targets = (
        torch.randint(0, num_outputs, (7,), generator=generator)
        if name == "cross_entropy"
        else torch.randn(7, num_outputs, generator=generator, dtype=torch.float64)
    )
    factor = loss.hessian_factor(outputs)
    for i in range(7):
        expected = hessian(lambda f, i=i: loss.value(f[None], targets[i : i + 1]))(outputs[i])
        torch.testing.assert_close(factor[i].T @ factor[i], expected, rtol=1e-12, atol=1e-14)


def test_softmax_factor_has_one_row_less_than_outputs() -> None:
    assert get_loss("cross_entropy").hessian_factor(torch.zeros(4, 6)).shape == (4, 5, 6)


def test_softmax_factor_keeps_its_digits_when_the_softmax_saturates() -> None:
    gap = 40.0  # p = 1 − 4e-18: p(1 − p) computed from p would be exactly zero
    outputs = torch.tensor([[gap, 0.0]], dtype=torch.float64)
    factor = get_loss("cross_entropy").hessian_factor(outputs)[0]
    small = torch.exp(torch.tensor(-gap, dtype=torch.float64))
    expected = small / (1 + small) ** 2
    torch.testing.assert_close((factor.T @ factor)[0, 0], expected, rtol=1e-12, atol=0.0)
