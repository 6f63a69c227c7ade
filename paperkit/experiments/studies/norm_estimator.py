r"""A search for the largest difference quotient as an estimate of a Jacobian's norm.

The compression paper's equation 47 estimates ‖∂f/∂x‖₂ by the largest ‖f(x + δ) − f(x)‖/‖δ‖ that
gradient steps on δ find; its public code takes 30 steps of Adam with rate 0.1 from 0.1·N(0, I).
Beside it stand the singular values themselves and Lanczos steps with the same products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperkit import data
from paperkit.estimators import normalized_maximum_local_sensitivity
from paperkit.estimators.input_jacobian import jacobian_of
from paperkit.experiments import RunContext, Study
from paperkit.experiments.studies.convolution_bounds import build
from paperkit.training import train

STEPS = 30
RATE = 0.1
START = 0.1
EPOCHS = {"smoke": 1, "laptop": 15, "paper": 15}
IMAGES = {"smoke": 4, "laptop": 50, "paper": 100}


def largest_quotients(model: nn.Module, inputs: Tensor, seed: int) -> Tensor:
    """Return the difference quotient of each sample after the steps of equation 47, (n,)."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    start = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype, device="cpu")
    change = (START * start).requires_grad_()
    with torch.no_grad():
        centre = model(inputs)

    def quotients() -> Tensor:
        rise = (model(inputs + change) - centre).norm(dim=1)
        return rise / change.flatten(1).norm(dim=1)

    # Samples do not see each other, and Adam moves each entry by itself.
    optimizer = torch.optim.Adam([change], lr=RATE)
    for _ in range(STEPS):
        (gradient,) = torch.autograd.grad(-quotients().sum(), change)
        change.grad = gradient
        optimizer.step()
    return quotients().detach()


def exact_norms(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the largest singular value of each sample's Jacobian, (n,)."""
    x = inputs.clone().requires_grad_()
    jacobian = jacobian_of(x, model(x)).flatten(2)
    return torch.linalg.svdvals(jacobian)[:, 0]


def grid(profile: str) -> list[dict[str, Any]]:
    """List the configurations: both activations by seed."""
    seeds = {"smoke": 1, "laptop": 6, "paper": 20}[profile]
    return [
        {
            "dataset": "digits",
            "activation": activation,
            "epochs": EPOCHS[profile],
            "images": IMAGES[profile],
            "seed": seed,
        }
        for activation in ("relu", "tanh")
        for seed in range(seeds)
    ]


def run(configuration: dict[str, Any], context: RunContext) -> dict[str, Any]:
    """Train a network, put a sigmoid behind it, and estimate its normalized sensitivity.

    Errors are relative to Definition F.1 from exact norms.
    """
    digits = data.load("digits", dtype=torch.float64)
    seed = configuration["seed"]
    body = build(configuration["activation"], seed)
    train(
        body,
        digits.train,
        epochs=configuration["epochs"],
        lr=0.02,
        weight_decay=0.0,
        seed=seed,
        progress=False,
    )
    model = nn.Sequential(body, nn.Sigmoid()).eval().requires_grad_(False)
    images = configuration["images"]
    inputs, targets = digits.test.inputs[:images], digits.test.targets[:images]
    squares = inputs.flatten(1).norm(dim=1).square()
    exact, search = exact_norms(model, inputs), largest_quotients(model, inputs, seed)
    expected = float((squares * exact.square()).mean())
    lanczos = normalized_maximum_local_sensitivity(model, (inputs, targets), method="lanczos")
    ratios = search / exact
    return {
        "search_error": abs(float((squares * search.square()).mean()) / expected - 1.0),
        "lanczos_error": abs(float(lanczos) / expected - 1.0),
        "search_over_exact": float((squares * search.square()).mean()) / expected,
        "least_ratio": float(ratios.min()),
        "largest_ratio": float(ratios.max()),
        "share_within_a_tenth": float((ratios.log().abs() < 0.1).double().mean()),
    }


STUDY = Study(
    name="norm_estimator",
    question="How well does a search for the largest difference quotient find a Jacobian's norm?",
    grid=grid,
    run=run,
    trained=True,
)
