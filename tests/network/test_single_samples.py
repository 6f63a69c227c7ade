"""Normalisation of a single sample, whose gradient PyTorch gets wrong in some memory orders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit.curvature import dense_gauss_newton, dense_hessian, dense_jacobian
from paperkit.estimators import gauss_newton_trace, hessian_trace, log_volume
from paperkit.linearize import linearize
from paperkit.network.replacements import OperationsByParts


def tokens_last(values: Tensor) -> Tensor:
    """Lay (n, c, h, w) out as a transposition to tokens and back leaves it."""
    n, c, h, w = values.shape
    return values.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).reshape(n, c, h, w)


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels last": lambda values: values.contiguous(memory_format=torch.channels_last),
    "tokens": tokens_last,
    "samples last": lambda values: values.transpose(0, 1).contiguous().transpose(0, 1),
}

KINDS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(6),
    "batch, no scale": lambda: nn.BatchNorm2d(6, affine=False),
    "instance": lambda: nn.InstanceNorm2d(6, affine=True),
    "instance, frozen": lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
}


def normalisation(kind: str) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    module = KINDS[kind]().double().eval()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.data.copy_(values + 0.5 if name == "running_var" else values)
    return module


def by_definition(module: nn.Module, inputs: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    if module.running_mean is None:
        mean = inputs.mean((2, 3), keepdim=True)
        variance = inputs.var((2, 3), correction=0, keepdim=True)
    else:
        mean, variance = module.running_mean.view(shape), module.running_var.view(shape)
    found = (inputs - mean) / (variance + module.eps).sqrt()
    if module.weight is None:
        return found
    return found * module.weight.view(shape) + module.bias.view(shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_input", ORDERS)
@pytest.mark.parametrize("of_gradient", ORDERS)
@pytest.mark.parametrize("n", [1, 2])
def test_the_gradient_does_not_depend_on_the_order_in_memory(
    kind: str, of_input: str, of_gradient: str, n: int
) -> None:
    module = normalisation(kind)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(n, 6, 4, 4, generator=generator, dtype=torch.float64)
    cotangent = torch.randn(n, 6, 4, 4, generator=generator, dtype=torch.float64)
    inputs = ORDERS[of_input](values).detach().requires_grad_()
    expected = by_definition(module, inputs)
    leaves = [inputs, *module.parameters()]
    right = torch.autograd.grad(expected, leaves, cotangent)
    with OperationsByParts():
        outputs = module(inputs)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(outputs, leaves, ORDERS[of_gradient](cotangent))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


class ToTokens(nn.Module):
    """Convolution, normalisation, and a linear layer on the positions as tokens."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), normalisation(kind)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.stem(inputs)).flatten(2).transpose(1, 2)
        return self.head(functional.gelu(self.mix(hidden)).mean(1))


@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_at_a_time_gives_what_all_at_once_do(kind: str) -> None:
    torch.manual_seed(0)
    model = ToTokens(kind).double().eval()
    inputs, targets = torch.randn(3, 2, 4, 4).double(), torch.tensor([0, 1, 2])
    whole = dense_jacobian(model, inputs)
    found = linearize(model, inputs, all_parameters=True, chunk_size=1)
    blocks = dict(found.jacobian_blocks())
    ours = torch.cat([blocks[name] for name, _ in model.named_parameters()], dim=2)
    torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-12)
    for i in range(3):
        alone = dense_jacobian(model, inputs[i : i + 1])
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-9, atol=1e-12)
    data = [(inputs[i : i + 1], targets[i : i + 1]) for i in range(3)]
    trace = float(dense_gauss_newton(model, inputs, "half_squared_error").trace())
    assert float(gauss_newton_trace(model, data)) == pytest.approx(trace)
    hessian = float(dense_hessian(model, inputs, targets).trace())
    assert float(hessian_trace(model, data, method="exact")) == pytest.approx(hessian)
    assert float(log_volume(model, data)) == pytest.approx(
        float(log_volume(model, (inputs, targets)))
    )
