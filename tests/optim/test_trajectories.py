"""Every optimizer against its definition on least squares, and its direction by differences.

A mini-batch of least squares is a quadratic whose gradient and Hessian can be written down, so that
each step follows from the printed equation with nothing but matrices. The batch changes from step
to step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from problems import EVERY, STEP, VARIANTS, Calls, batch, classification
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

RATE, MOMENTUM, STEPS = 0.05, 0.9, 8
Gradient = Callable[[Tensor], Tensor]
Followed = Callable[[Tensor, Gradient, Tensor], Tensor]


def least_squares() -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return mini-batches (X, y) of eight rows with four columns of unequal scale, and a start."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    scales = torch.tensor([3.0, 1.5, 1.0, 0.5], dtype=torch.float64)
    x = torch.randn(STEPS, 8, 4, generator=generator, dtype=torch.float64) * scales
    y = torch.randn(STEPS, 8, generator=generator, dtype=torch.float64)
    start = torch.randn(4, generator=generator, dtype=torch.float64)
    return list(zip(x, y, strict=True)), start


def parts(inputs: Tensor, targets: Tensor) -> tuple[Gradient, Tensor]:
    """Return the gradient of ½ mean (Xw − y)² as a function of w, and its Hessian."""
    n = len(inputs)
    return lambda w: inputs.T @ (inputs @ w - targets) / n, inputs.T @ inputs / n


def unit(vector: Tensor, p: float = 2.0) -> Tensor:
    return vector / torch.linalg.vector_norm(vector, p)


def power_ratio(g: Tensor, alpha: float) -> Tensor:
    """Rényi paper, equation 10."""
    return (g.abs() ** (2 * alpha)).sum() / (g.square().sum() ** alpha)


def sam(w: Tensor, gradient: Gradient, hessian: Tensor) -> Tensor:
    return gradient(w + 0.3 * unit(gradient(w)))


def sam_of_the_3_norm(w: Tensor, gradient: Gradient, hessian: Tensor) -> Tensor:
    g = gradient(w)
    q = 1.5
    epsilon = 0.3 * g.sign() * g.abs() ** (q - 1) / torch.linalg.vector_norm(g, q) ** (q - 1)
    return gradient(w + epsilon)


def asam(w: Tensor, gradient: Gradient, hessian: Tensor) -> Tensor:
    scale, g = w.abs() + 0.01, gradient(w)
    return gradient(w + 0.3 * scale**2 * g / (scale * g).norm())


def eigen_sam(w: Tensor, gradient: Gradient, hessian: Tensor) -> Tensor:
    g = gradient(w)
    v, along = torch.linalg.eigh(hessian).eigenvectors[:, -1], unit(g)
    tilted = along + 0.2 * torch.sign(g @ v) * (v - (v @ along) * along)
    return gradient(w + 0.3 * unit(tilted))


def gradient_regularization(w: Tensor, gradient: Gradient, hessian: Tensor) -> Tensor:
    return gradient(w) + 2 * 0.02 * hessian @ gradient(w)


def rsam(alpha: float, sign: float) -> Followed:
    """Follow the gradient at ε = sign · ρRg/‖g‖²; Rényi paper, equation 11."""

    def followed(w: Tensor, gradient: Gradient, hessian: Tensor) -> Tensor:
        g = gradient(w)
        return gradient(w + sign * 0.1 * power_ratio(g, alpha) * g / g.square().sum())

    return followed


def rsam_exact(w: Tensor, gradient: Gradient, hessian: Tensor) -> Tensor:
    g = gradient(w).requires_grad_()
    (u,) = torch.autograd.grad(power_ratio(g, 1.2), g)
    return g.detach() + 0.1 * hessian @ u  # sign(1 − α) = −1


def igsam(w: Tensor, gradient: Gradient, hessian: Tensor) -> Tensor:
    # For a linear layer with a single output the Fisher matrix is the Hessian, and EKFAC is exact.
    system = hessian + 0.5 * torch.eye(4, dtype=torch.float64)
    return gradient(w + 0.1 * torch.linalg.solve(system, gradient(w)))


def igsam_gradient(w: Tensor, gradient: Gradient, hessian: Tensor) -> Tensor:
    return gradient(w + 0.1 / 0.5 * gradient(w))


def igsam_scaled(w: Tensor, gradient: Gradient, hessian: Tensor) -> Tensor:
    return 1.1 * gradient(w)


def _igsam(mode: str) -> Callable[..., IGSAM]:
    return lambda model, **o: IGSAM(
        model.parameters(),
        model,
        rho=0.1,
        damping=0.5,
        period=1,
        loss="half_squared_error",
        mode=mode,
        **o,
    )


# A difference of gradients divides their rounding errors of 1e-15 by τ = 1e-2; eight steps.
EXACT, DIFFERENCE = 1e-13, 1e-11
TRAJECTORIES = {
    "SAM": (sam, lambda model, **o: SAM(model.parameters(), rho=0.3, **o), EXACT),
    "SAM of the 3-norm": (
        sam_of_the_3_norm,
        lambda model, **o: SAM(model.parameters(), rho=0.3, p=3.0, **o),
        EXACT,
    ),
    "ASAM": (asam, lambda model, **o: ASAM(model, rho=0.3, **o), EXACT),
    "EigenSAM": (
        eigen_sam,
        # The second eigenvalue is at most 0.7 of the first: 0.7¹⁰⁰ = 3e-16.
        lambda model, **o: EigenSAM(model.parameters(), rho=0.3, period=1, iterations=100, **o),
        DIFFERENCE,
    ),
    "GR double": (
        gradient_regularization,
        lambda model, **o: GradientRegularization(model.parameters(), mu=0.02, **o),
        EXACT,
    ),
    "GR difference": (
        gradient_regularization,
        lambda model, **o: GradientRegularization(
            model.parameters(), mu=0.02, method="finite_difference", **o
        ),
        DIFFERENCE,
    ),
    "RSAM": (rsam(1.2, 1.0), lambda model, **o: RSAM(model.parameters(), rho=0.1, **o), EXACT),
    "RSAM below one": (
        rsam(0.7, -1.0),
        lambda model, **o: RSAM(model.parameters(), rho=0.1, alpha=0.7, **o),
        EXACT,
    ),
    "RSAM of SAM's sign": (
        rsam(0.7, 1.0),
        lambda model, **o: RSAM(model.parameters(), rho=0.1, alpha=0.7, mode="sam_radius", **o),
        EXACT,
    ),
    "RSAM exact": (
        rsam_exact,
        lambda model, **o: RSAM(model.parameters(), rho=0.1, mode="exact", **o),
        DIFFERENCE,
    ),
    "IGSAM": (igsam, _igsam("paper"), EXACT),
    "IGSAM gradient": (igsam_gradient, _igsam("gradient"), EXACT),
    "IGSAM scaled": (igsam_scaled, _igsam("scaled_gradient"), EXACT),
}


def linear_model(start: Tensor) -> nn.Linear:
    model = nn.Linear(4, 1, bias=False).double()
    model.weight.data.copy_(start)
    return model


def half_squared_error(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    return lambda: 0.5 * (model(inputs).squeeze(1) - targets).square().mean()


@pytest.mark.parametrize("name", list(TRAJECTORIES))
def test_the_trajectory_on_least_squares_is_that_of_the_equation(name) -> None:
    followed, make, tolerance = TRAJECTORIES[name]
    batches, w = least_squares()
    model = linear_model(w)
    optimizer = make(model, lr=RATE, momentum=MOMENTUM)
    velocity = torch.zeros_like(w)
    for inputs, targets in batches:
        gradient, hessian = parts(inputs, targets)
        top = torch.linalg.eigvalsh(hessian)
        assert top[-2] < 0.7 * top[-1]
        velocity = MOMENTUM * velocity + followed(w, gradient, hessian)
        w = w - RATE * velocity
        optimizer.step(Calls(optimizer, half_squared_error(model, inputs, targets)))
        torch.testing.assert_close(model.weight.detach()[0], w, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("kind", [SASAM, SASGD])
def test_the_smoothness_adaptive_trajectory_on_mini_batches_is_that_of_the_equation(kind) -> None:
    batches, w = least_squares()
    model = linear_model(w)
    optimizer = kind(model.parameters(), eta0=0.01)
    eta, theta, previous = 0.01, math.inf, None
    for inputs, targets in batches:
        gradient, _ = parts(inputs, targets)
        g, last = gradient(w), eta
        if previous is not None:
            smooth = float((w - previous).norm() / (2 * (g - gradient(previous)).norm()))
            eta = min(smooth, math.inf if math.isinf(theta) else math.sqrt(1 + 0.02 * theta) * eta)
            theta = eta / last
        epsilon = math.sqrt(eta) * unit(g) if kind is SASAM else 0.0
        previous, w = w, w - eta * gradient(w + epsilon)
        optimizer.step(Calls(optimizer, half_squared_error(model, inputs, targets)))
        torch.testing.assert_close(model.weight.detach()[0], w, rtol=0.0, atol=EXACT)
        assert optimizer.eta == pytest.approx(eta, rel=1e-12)


# -- directions by differences of the loss ---------------------------------------------------------

ALL = EVERY | VARIANTS
HAS_ITS_OWN_LOSS = ("GR double", "GR difference", "RSAM exact", "IGSAM scaled")


class Smooth:
    """A small network, its optimizer after two steps on the spot, and its loss anywhere."""

    def __init__(self, name: str) -> None:
        generator = torch.Generator(device="cpu").manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        for parameter in self.model.parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(draw)
        self.start = self.weights()
        self.loss = classification(self.model, *batch())
        self.optimizer = ALL[name](self.model, **STEP[name], log=True)
        self.optimizer.param_groups[0]["lr"] = 0.0
        self.closure = Calls(self.optimizer, self.loss)
        for _ in range(2):
            self.optimizer.step(self.closure)
        assert torch.equal(self.weights(), self.start)
        self.followed = torch.cat([p.grad.flatten() for p in self.model.parameters()])
        self.direction = unit(torch.randn(len(self.start), generator=generator).double())

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def at(self, weights: Tensor) -> float:
        nn.utils.vector_to_parameters(weights, self.model.parameters())
        return float(self.loss().detach())

    def gradient_at(self, weights: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(weights, self.model.parameters())
        found = torch.autograd.grad(self.loss(), list(self.model.parameters()))
        return torch.cat([part.flatten() for part in found])


def slope(value: Callable[[Tensor], float], at: Tensor, along: Tensor) -> float:
    """Difference a function of the weights a distance 1e-5 to either side."""
    return (value(at + 1e-5 * along) - value(at - 1e-5 * along)) / 2e-5


@pytest.mark.parametrize("name", [name for name in ALL if name not in HAS_ITS_OWN_LOSS])
def test_the_step_follows_the_slope_of_the_loss_at_the_perturbed_weights(name) -> None:
    setup = Smooth(name)
    place = torch.cat([w.flatten() for w in setup.closure.weights[-1]])
    if name.startswith("SASGD"):
        place = setup.start
    # Differences: rounding 1e-16 / 1e-5, and 1e-10 of the third derivative, of order 1.
    expected = slope(setup.at, place, setup.direction)
    assert float(setup.followed @ setup.direction) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", [n for n in ALL if n not in HAS_ITS_OWN_LOSS and "SGD" not in n])
def test_the_logged_regularizer_is_the_slope_of_the_loss_along_the_perturbation(name) -> None:
    setup = Smooth(name)
    place = torch.cat([w.flatten() for w in setup.closure.weights[-1]])
    epsilon = place - setup.start
    record = setup.optimizer.log[-1]
    assert record.perturbation_norm == pytest.approx(float(epsilon.norm()), rel=1e-10)
    expected = slope(setup.at, setup.start, unit(epsilon)) * float(epsilon.norm())
    assert record.regularizer == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("name", "tolerance"), [("GR double", 1e-7), ("GR difference", 1e-2)])
def test_gradient_regularization_follows_the_slope_of_the_penalised_loss(name, tolerance) -> None:
    setup = Smooth(name)
    mu = 0.05

    def penalised(weights: Tensor) -> float:
        return setup.at(weights) + mu * float(setup.gradient_at(weights).square().sum())

    # The difference of gradients has an error of order 2μτ‖g‖ times a third derivative.
    expected = slope(penalised, setup.start, setup.direction)
    assert float(setup.followed @ setup.direction) == pytest.approx(expected, abs=tolerance)
