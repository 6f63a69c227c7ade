"""The optimizer of pytorch-optimizer (kozistr/pytorch_optimizer) that this library has too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_optimizer
from torch.optim import SGD

from benchmarks.quantities import BASE_OPTIONS, SAM_RADIUS
from benchmarks.steps import Way

NAME = "pytorch-optimizer"


class _SAM(pytorch_optimizer.SAM):
    """SAM whose step takes the first gradient too, which the library leaves to the caller."""

    def step(self, closure: Callable[[], Any]) -> None:
        closure()
        super().step(closure)


STEPS: dict[str, dict[str, Way]] = {
    "sam": {NAME: lambda model: _SAM(model.parameters(), SGD, rho=SAM_RADIUS, **BASE_OPTIONS)}
}
