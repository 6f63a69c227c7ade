"""Hessian products of convolutions of many geometries, each kernel of the processor's library.

They run in processes of their own, since a fault of that library ends the process.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from paperkit.curvature import HessianOperator, hessian

_SIZE = 8

# Instruction sets have convolutions of their own; a processor that lacks one takes its best.
_INSTRUCTION_SETS = ("SSE41", "AVX2", "AVX512_CORE")

_GEOMETRIES = [
    (channels, outputs, kernel, stride, groups)
    for (channels, outputs), kernel, stride in itertools.product(
        [(1, 4), (3, 8), (4, 8), (9, 16), (20, 8)], (1, 2, 3), (1, 2, 3)
    )
    for groups in {1, 2 if channels % 2 == outputs % 2 == 0 else 1}
]

_CASES = [
    (geometry, dtype, layout)
    for geometry in _GEOMETRIES
    for dtype, layout in [
        (torch.float32, torch.contiguous_format),
        (torch.float32, torch.channels_last),
        (torch.float64, torch.contiguous_format),
    ]
]


class Convolutions(nn.Module):
    """A convolution of the geometry, and the shortcut of a residual network beside it."""

    def __init__(self, channels: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, groups=groups)
        self.head = nn.Linear(outputs, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.second(torch.relu(self.first(inputs))))
        return self.head(hidden.mean(dim=(2, 3)))


def double_backward(model: nn.Module, data: tuple[Tensor, Tensor], vectors: Tensor) -> Tensor:
    """Return the Hessian products of the mean cross-entropy, in float64."""
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(model(data[0]), data[1])
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([part.flatten() for part in gradient])
    products = [torch.autograd.grad(flat, parameters, v, retain_graph=True) for v in vectors]
    return torch.stack([torch.cat([part.flatten() for part in parts]) for parts in products])


def worst_error(
    geometry: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> float:
    """Return how far products lie from double backward in float64, relative to the largest."""
    torch.manual_seed(0)
    model = Convolutions(*geometry).double()
    inputs, targets = torch.randn(5, 2, _SIZE, _SIZE).double(), torch.tensor([0, 1, 2, 0, 1])
    vectors = torch.randn(3, sum(p.numel() for p in model.parameters())).double()
    expected = double_backward(model, (inputs, targets), vectors)
    model.to(dtype, memory_format=layout)
    data = inputs.to(dtype, memory_format=layout), targets
    operator = HessianOperator(model, data)
    assert operator.routes[0] == "jets"
    found = [operator(vectors.to(dtype)), operator(vectors[0].to(dtype)).unsqueeze(0)]
    with operator.cached():  # double backward, by PyTorch's own passes
        found.append(operator(vectors[0].to(dtype)).unsqueeze(0))
    found, expected = torch.cat(found), torch.cat([expected, expected[:1], expected[:1]])
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("instructions", _INSTRUCTION_SETS)
def test_no_geometry_crashes_or_is_wrong(instructions: str) -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert ran.stdout.splitlines()[-1] == f"{len(_CASES)} cases"


def _check_all() -> None:
    hessian._WORK_IN_SAMPLES = 0  # jets come first also for few samples
    for geometry, dtype, layout in _CASES:
        error = worst_error(geometry, dtype, layout)
        # Products of a network of three layers lose little more than a digit of what they add.
        tolerance = torch.finfo(dtype).eps ** 0.75
        assert error < tolerance, f"{geometry} in {dtype}, {layout}: {error:.2g}"
    print(f"{len(_CASES)} cases")


if __name__ == "__main__":
    _check_all()
