"""Parameter-sized tensors alive while a pass runs, as the page *Training loops* tabulates them."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperkit.optim import (
    ASAM,
    IGSAM,
    RSAM,
    SAM,
    SASAM,
    SASGD,
    EigenSAM,
    GradientRegularization,
)

WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "SAM": lambda m: SAM(m, lr=0.01),
    "ASAM": lambda m: ASAM(m, lr=0.01),
    "EigenSAM": lambda m: EigenSAM(m, lr=0.01, iterations=2),
    "RSAM": lambda m: RSAM(m, rho=0.1, lr=0.01),
    "RSAM, `exact`": lambda m: RSAM(m, rho=0.1, mode="exact", lr=0.01),
    "GradientRegularization, `finite_difference`": lambda m: GradientRegularization(
        m, method="finite_difference", lr=0.01
    ),
    "IGSAM": lambda m: IGSAM(m, rho=0.1, damping=1.0, loss="half_squared_error", lr=0.01),
    "SASAM": lambda m: SASAM(m),
    "SASAM, `full_batch`": lambda m: SASAM(m, full_batch=True),
    "SASGD": lambda m: SASGD(m),
    "SASGD, `full_batch`": lambda m: SASGD(m, full_batch=True),
}

PAGE = Path(__file__).parents[2] / "book" / "api" / "training_loops.md"


def tabulated() -> dict[str, list[int]]:
    rows = re.findall(r"^\| ([^|]+) \| (\d(?:, \d)*) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: [int(count) for count in counts.split(",")] for name, counts in rows}


def alive(size: int) -> int:
    """Count storages of a size, of all tensors and of their gradients."""
    tensors = [t for t in gc.get_objects() if issubclass(type(t), Tensor)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    storages = [t.untyped_storage() for t in tensors if t.layout is torch.strided]
    return len({s.data_ptr() for s in storages if s.nbytes() == size})


def test_the_table_is_of_every_way() -> None:
    assert list(tabulated()) == list(WAYS)


@pytest.mark.parametrize("name", list(WAYS))
def test_as_many_tensors_are_alive_as_the_page_says(name) -> None:
    torch.manual_seed(0)
    model = nn.Linear(311, 53, bias=False)
    size = model.weight.numel() * 4
    optimizer = WAYS[name](model)
    inputs, targets = torch.randn(7, 311), torch.randn(7, 53)
    counts: list[int] = []
    others = alive(size) - 1

    def closure() -> Tensor:
        optimizer.zero_grad()
        counts.append(alive(size) - others)
        loss = 0.5 * (model(inputs) - targets).square().sum(1).mean()
        loss.backward()
        return loss

    for _ in range(3):
        counts.clear()
        optimizer.step(closure)
    assert counts == tabulated()[name]
