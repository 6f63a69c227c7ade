"""Convolutions without weight sharing: the same function, other gradients."""

import pytest
import torch
from torch import nn

from paperkit.models.untied import SHARINGS, operator_matrix, untie


def convolution(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(2, 3, 3, **options).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize(
    "options", [{}, {"padding": 1, "stride": 2}, {"padding": (0, 2), "dilation": (2, 1)}]
)
def test_a_layer_computes_the_same_without_sharing(options, sharing, bias):
    layer = convolution(bias=bias, **options)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, 2, 6, 5, generator=generator, dtype=torch.float64)
    freed = untie(layer, inputs.shape[1:], sharing)
    torch.testing.assert_close(freed(inputs), layer(inputs), rtol=1e-12, atol=1e-12)
    assert [name for name, _ in freed.named_parameters()] == ["weight"] + bias * ["bias"]


def test_the_operator_is_the_layer_as_a_matrix():
    layer = convolution(padding=1, stride=2)
    matrix = operator_matrix(layer, (2, 6, 5))
    inputs = torch.arange(60, dtype=torch.float64).view(1, 2, 6, 5)
    result = layer(inputs) - layer.bias[:, None, None]
    torch.testing.assert_close(matrix @ inputs.flatten(), result.flatten(), rtol=1e-12, atol=1e-12)
    linear = nn.Linear(4, 3).double()
    torch.testing.assert_close(operator_matrix(linear, (4,)), linear.weight.detach())


@pytest.mark.parametrize(
    ("sharing", "square"), [("tied", 0.0), ("positions", 200.0), ("operator", 400.0)]
)
def test_two_pixels_that_cancel_have_a_gradient_where_they_share_no_weight(sharing, square):
    # f = 10 w x₁ − 10 w x₂ at x = (1, 1): with the shared w, ∂f/∂w = 0.
    layer = nn.Conv2d(1, 1, 1, bias=False).double()
    nn.init.ones_(layer.weight)
    freed = untie(layer, (1, 1, 2), sharing)
    inputs = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    (freed(inputs) * torch.tensor([10.0, -10.0])).sum().backward()
    assert float(freed.weight.grad.square().sum()) == pytest.approx(square, rel=1e-14)


@pytest.mark.parametrize(
    ("layer", "sharing", "error"),
    [
        (nn.Conv2d(2, 2, 3, groups=2), "positions", "groups"),
        (nn.Conv2d(2, 2, 3, padding="same"), "operator", "padding"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "operator", "padding"),
        (nn.Conv2d(2, 2, 3), "nonsense", "sharing"),
        (nn.Conv1d(2, 2, 3), "positions", "layer"),
    ],
)
def test_what_cannot_be_freed_is_refused_with_one_sentence(layer, sharing, error):
    with pytest.raises((TypeError, ValueError), match=error):
        untie(layer, (2, 5, 5), sharing)
