"""The optimizers that are compared: how each is made, what is tuned, and what a step costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

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

Parameters = Iterable[Tensor]
Make = Callable[[nn.Module, Mapping[str, float]], Callable[[Parameters], torch.optim.Optimizer]]

MOMENTUM = 0.9
RATES = (0.02, 0.05, 0.1)
"""Learning rates that a method is tried with which has an option of its own besides."""


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes
    ----------
    make : callable
        From a model and the chosen values of ``tuned`` to a function that makes the optimizer from
        the model's parameters.
    tuned : mapping of str to tuple of float
        Options that are tuned, with the values that are tried; a trial is one choice of each, and
        every method has as many trials.
    evaluations : int
        Gradients of a batch that a step takes.
    scheduled : bool
        Whether half a cosine scales its step size; the papers' adaptive step sizes have none.
    tuned_as : str
        Name of the method whose choice it takes over; empty for one with trials of its own.
    """

    make: Make
    tuned: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    evaluations: int = 2
    scheduled: bool = True
    tuned_as: str = ""

    def trials(self) -> list[dict[str, float]]:
        """Return every choice that is tried, in a fixed order."""
        names = list(self.tuned)
        return [dict(zip(names, values, strict=True)) for values in product(*self.tuned.values())]


def _given(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[..., Any]:
    return partial(kind, **options)


def _base(weight_decay: float) -> dict[str, float]:
    return {"momentum": MOMENTUM, "weight_decay": weight_decay}


def _sgd(model: nn.Module, chosen: Mapping[str, float]) -> Callable[..., torch.optim.Optimizer]:
    return _given(torch.optim.SGD, lr=chosen["lr"], **_base(chosen["weight_decay"]))


def _faster_sgd(model: nn.Module, chosen: Mapping[str, float]) -> Callable[..., Any]:
    """Return SGD at (1 + ρ) times the learning rate: what IGSAM comes to where H = F."""
    rate = chosen["lr"] * (1 + chosen["rho"])
    return _given(torch.optim.SGD, lr=rate, **_base(chosen["weight_decay"]))


def _adam(model: nn.Module, chosen: Mapping[str, float]) -> Callable[..., torch.optim.Optimizer]:
    return _given(torch.optim.Adam, lr=chosen["lr"], weight_decay=chosen["weight_decay"])


def _on_sgd(kind: Callable[..., torch.optim.Optimizer], **fixed: Any) -> Make:
    """Return a method on top of SGD with momentum, whose options are the chosen values."""

    def make(model: nn.Module, chosen: Mapping[str, float]) -> Callable[..., Any]:
        own = {name: value for name, value in chosen.items() if name != "weight_decay"}
        return _given(kind, **own, **fixed, **_base(chosen["weight_decay"]))

    return make


def _root_radius(model: nn.Module, chosen: Mapping[str, float]) -> Callable[..., Any]:
    """Return SAM with the root of the learning rate for its radius, as the SA-SAM paper has it."""
    return _given(SAM, rho=chosen["lr"] ** 0.5, lr=chosen["lr"], **_base(chosen["weight_decay"]))


def _one_layer(model: nn.Module, chosen: Mapping[str, float]) -> Callable[..., Any]:
    """Return RSAM that perturbs the last layer's weight alone."""

    def make(parameters: Parameters) -> torch.optim.Optimizer:
        found = list(parameters)
        last = [parameter for parameter in found if parameter.ndim > 1][-1]
        others = [parameter for parameter in found if parameter is not last]
        groups: Any = [{"params": [last]}, {"params": others, "rho": 0.0}]
        return _on_sgd(RSAM, alpha=ALPHA, plain_epochs=1)(model, chosen)(groups)

    return make


def _adaptive(kind: Callable[..., torch.optim.Optimizer], **fixed: Any) -> Make:
    def make(model: nn.Module, chosen: Mapping[str, float]) -> Callable[..., Any]:
        return _given(kind, **chosen, **fixed)

    return make


def _igsam(model: nn.Module, chosen: Mapping[str, float]) -> Callable[..., Any]:
    own = {name: value for name, value in chosen.items() if name != "weight_decay"}
    return _given(IGSAM, model=model, damping=0.1, **own, **_base(chosen["weight_decay"]))


ALPHA = 1.2
"""Order of RSAM; the paper has 1.1 and 1.2."""

_RADII = {"lr": RATES, "rho": (0.05, 0.2)}
_RSAM = {"lr": RATES, "rho": (0.65, 1.25)}
_FIRST_STEPS = {"eta0": (1e-4, 1e-3, 1e-2), "delta": (0.02, 1.0)}
_INFORMATION = {"lr": RATES, "rho": (0.05, 0.5)}

METHODS: dict[str, Method] = {
    "SGD": Method(_sgd, {"lr": (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)}, evaluations=1),
    "Adam": Method(_adam, {"lr": (1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2)}, evaluations=1),
    "SAM": Method(_on_sgd(SAM), _RADII),
    "ASAM": Method(_on_sgd(ASAM), {"lr": RATES, "rho": (0.5, 2.0)}),
    "Eigen-SAM": Method(_on_sgd(EigenSAM), _RADII),
    "gradient regularization": Method(
        _on_sgd(GradientRegularization, method="finite_difference"),
        {"lr": RATES, "mu": (0.01, 0.1)},
    ),
    "RSAM": Method(_on_sgd(RSAM, alpha=ALPHA, plain_epochs=1), _RSAM),
    "RSAM, exact": Method(_on_sgd(RSAM, alpha=ALPHA, plain_epochs=1, mode="exact"), _RSAM),
    "RSAM, as SAM": Method(
        _on_sgd(RSAM, alpha=ALPHA, plain_epochs=1, mode="sam_radius"), tuned_as="RSAM"
    ),
    "SA-SGD": Method(_adaptive(SASGD), _FIRST_STEPS, scheduled=False),
    "SA-SAM": Method(_adaptive(SASAM), _FIRST_STEPS, evaluations=3, scheduled=False),
    "SA-SAM, as released": Method(
        _adaptive(SASAM, variant="release"), _FIRST_STEPS, evaluations=3, scheduled=False
    ),
    "IGSAM": Method(_igsam, _INFORMATION),
    "SAM, root radius": Method(_root_radius, {"lr": (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)}),
    "SGD, faster": Method(_faster_sgd, evaluations=1, tuned_as="IGSAM"),
    "RSAM, one layer": Method(_one_layer, tuned_as="RSAM"),
    "RSAM, from the start": Method(_on_sgd(RSAM, alpha=ALPHA, plain_epochs=0), tuned_as="RSAM"),
}
"""By name. What the papers fix stays fixed: RSAM's order, ASAM's η, Eigen-SAM's α."""
