"""Parameters without dimensions, or without entries, count like others."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperkit.estimators import measure


class Tempered(nn.Module):
    """A network whose temperature has the given shape, beside a parameter without entries."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.temperature = nn.Parameter(torch.full(shape, 1.3, device="cpu"))
        self.nothing = nn.Parameter(torch.zeros(0, device="cpu"))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(inputs)) * self.temperature)


def numbers(metrics: dict[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    for part, value in metrics.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{name}.{part}")
        else:
            yield f"{name}.{part}", value


def test_every_measure_is_that_of_a_parameter_with_one_entry() -> None:
    generator = torch.Generator(device="cpu").manual_seed(0)
    inputs = torch.randn(6, 4, generator=generator, dtype=torch.float64, device="cpu")
    data = inputs, torch.arange(6, device="cpu") % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vector = Tempered((1,)).double()
    scalar = Tempered(()).double()
    shapes = {name: value.shape for name, value in scalar.state_dict().items()}
    state = {name: value.reshape(shapes[name]) for name, value in vector.state_dict().items()}
    scalar.load_state_dict(state)
    expected, found = measure(vector, data, "all"), measure(scalar, data, "all")
    assert not found.missing
    for one, other in zip(numbers(expected.metrics()), numbers(found.metrics()), strict=True):
        assert one[0] == other[0]
        is_number = isinstance(one[1], float)
        assert other[1] == (pytest.approx(one[1], rel=1e-9) if is_number else one[1]), one[0]
