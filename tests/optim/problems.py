"""Small problems whose steps are known, and every optimizer in a default form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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
from paperkit.optim.core import MultiPassOptimizer


def quadratic(matrix: Tensor, start: Iterable[float]) -> tuple[nn.Parameter, Callable[[], Tensor]]:
    """Return a parameter and the loss ½ wᵀAw."""
    values = torch.tensor(list(start), dtype=torch.float64, device=matrix.device)
    w = nn.Parameter(values)
    return w, lambda: 0.5 * w @ matrix @ w


def diagonal(*eigenvalues: float) -> Tensor:
    return torch.diag(torch.tensor(eigenvalues, dtype=torch.float64, device="cpu"))


def random_quadratic(seed: int) -> tuple[Tensor, list[float]]:
    """Return a matrix with eigenvalues 1, 2, 4, 7, 10 in a random basis, and a start."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    draw = torch.randn(5, 6, generator=generator, dtype=torch.float64, device="cpu")
    basis = torch.linalg.qr(draw[:, 1:]).Q
    return basis @ diagonal(1.0, 2.0, 4.0, 7.0, 10.0) @ basis.T, draw[:, 0].tolist()


class Calls:
    """A closure that counts its calls and notes the weights at which it was called."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], Tensor],
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> None:
        self.optimizer = optimizer
        self.loss = loss
        self.scale = scale
        self.count = 0
        self.weights: list[list[Tensor]] = []

    def __call__(self) -> Tensor:
        self.count += 1
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.weights.append([p.detach().clone() for p in parameters])
        self.optimizer.zero_grad()
        loss = self.loss()
        self.scale(loss).backward()
        return loss.detach()


def run(optimizer: Any, loss: Callable[[], Tensor], steps: int) -> list[float]:
    """Take steps; return the loss before each."""
    closure = Calls(optimizer, loss)
    return [float(optimizer.step(closure)) for _ in range(steps)]


class Seen:
    """What a forward pass notes of itself; no container, so an optimizer leaves it alone."""

    def __init__(self) -> None:
        self.items: list[Tensor] = []


class Network(nn.Module):
    """Batch normalisation with and without parameters, dropout, and a smooth activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.plain_norm = nn.BatchNorm1d(6, affine=False)
        self.head = nn.Linear(6, 3)
        self.seen = Seen()

    @property
    def masks(self) -> list[Tensor]:
        """Dropout masks of all passes, those that an optimizer undoes too."""
        return self.seen.items

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.first(inputs)))
        dropped = self.drop(hidden)
        if not torch.compiler.is_compiling():
            self.masks.append((dropped == 0).detach())
        return self.head(self.plain_norm(dropped))


def network(device: torch.device | str = "cpu", seed: int = 0) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network().double().to(device)


def batch(n: int = 12, device: torch.device | str = "cpu", seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    inputs = torch.randn(n, 4, generator=generator, dtype=torch.float64, device="cpu")
    targets = torch.randint(0, 3, (n,), generator=generator, device="cpu")
    return inputs.to(device), targets.to(device)


def classification(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    return lambda: functional.cross_entropy(model(inputs), targets)


Make = Callable[..., MultiPassOptimizer]

WRAPPED: dict[str, Make] = {
    "SAM": lambda model, **o: SAM(model, **o),
    "SAM of the maximum norm": lambda model, **o: SAM(model, p=float("inf"), **o),
    "ASAM": lambda model, **o: ASAM(model, **o),
    "EigenSAM": lambda model, **o: EigenSAM(model, period=2, iterations=1, **o),
    "RSAM": lambda model, **o: RSAM(model, **{"rho": 0.1, **o}),
    "RSAM exact": lambda model, **o: RSAM(model, mode="exact", **{"rho": 0.1, **o}),
    "GR double": lambda model, **o: GradientRegularization(model, **_mu(o)),
    "GR difference": lambda model, **o: GradientRegularization(
        model, method="finite_difference", **_mu(o)
    ),
    "IGSAM": lambda model, **o: IGSAM(model, damping=0.1, period=2, **{"rho": 0.05, **o}),
    "IGSAM gradient": lambda model, **o: IGSAM(
        model, damping=0.1, mode="gradient", **{"rho": 0.05, **o}
    ),
}
"""Optimizers around a base, by name; each takes the base's options."""

ADAPTIVE: dict[str, Make] = {
    "SASAM": lambda model, **o: SASAM(model, **o),
    "SASAM release": lambda model, **o: SASAM(model, variant="release", **o),
    "SASAM full batch": lambda model, **o: SASAM(model, full_batch=True, **o),
    "SASGD": lambda model, **o: SASGD(model, **o),
}

EVERY = WRAPPED | ADAPTIVE

VARIANTS: dict[str, Make] = {
    "SAM of the 3-norm": lambda model, **o: SAM(model, p=3.0, **o),
    "SAM of the 1-norm": lambda model, **o: SAM(model, p=1.0, **o),
    "ASAM of all tensors": lambda model, **o: ASAM(model, scaled="all", eta=0.0, **o),
    "RSAM of SAM's sign": lambda model, **o: RSAM(
        model, rho=0.1, alpha=0.7, mode="sam_radius", max_radius=1.0, **o
    ),
    "IGSAM scaled": lambda model, **o: IGSAM(
        model, rho=0.05, damping=0.1, mode="scaled_gradient", **o
    ),
    "SASAM gradient": lambda model, **o: SASAM(
        model, ascent="gradient", rho_rule="sqrt_eta_over_beta", **o
    ),
    "SASAM adaptive": lambda model, **o: SASAM(model, ascent="adaptive", **o),
    "SASAM release full batch": lambda model, **o: SASAM(
        model, variant="release", full_batch=True, **o
    ),
    "SASGD release": lambda model, **o: SASGD(model, variant="release", **o),
    "SASGD full batch": lambda model, **o: SASGD(model, full_batch=True, **o),
}
"""Their other options, for what does not need all tests."""

STEP = {
    name: {"eta0": 0.1} if name.startswith("SAS") else {"lr": 0.1, "momentum": 0.9}
    for name in EVERY | VARIANTS
}
"""Options with which each optimizer takes visible steps."""


def _mu(options: dict[str, Any]) -> dict[str, Any]:
    options = {"rho": 0.05, **options}
    return {"mu": options.pop("rho"), **options}
