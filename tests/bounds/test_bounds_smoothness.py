"""Step sizes and rates of the SA-SAM paper on losses whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from paperkit.bounds import smoothness

EIGENVALUES = torch.tensor([10.0, 3.0, 0.1], dtype=torch.float64)
KNOWN = {"loss_is_smooth": True, "steps_follow_equation_5": True}


def adaptive_descent(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    initial_step: float = 1e-3,
    factor: float = 2.0,
    delta: float = 1.0,
    first_ratio: float = math.inf,
    steps: int = 200,
) -> tuple[Tensor, Tensor, list[float]]:
    """Gradient descent with the step of equation 5: points, gradients and η_0, η_1, …"""
    points, sizes, ratio = [start], [initial_step], first_ratio
    points.append(start - initial_step * gradient(start))
    for _ in range(steps):
        move = float((points[-1] - points[-2]).norm())
        change = float((gradient(points[-1]) - gradient(points[-2])).norm())
        if change < 1e-200:  # converged beyond what float64 can divide
            break
        size = min(move / (factor * change), math.sqrt(1 + delta * ratio) * sizes[-1])
        ratio = size / sizes[-1]
        sizes.append(size)
        points.append(points[-1] - size * gradient(points[-1]))
    stacked = torch.stack(points)
    return stacked, torch.stack([gradient(point) for point in points]), sizes


def quadratic(point: Tensor) -> Tensor:
    return EIGENVALUES * point


def ones() -> Tensor:
    return torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("delta", [0.02, 1.0])
def test_step_sizes_stay_above_one_over_c_beta(factor: float, delta: float) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(3, generator=generator, dtype=torch.float64)
        _, _, sizes = adaptive_descent(quadratic, start, factor=factor, delta=delta)
        bound = smoothness.step_lower_bound(sizes[1:], 10.0, factor, known=KNOWN)
        assert bound.certified and bound.holds


def test_the_printed_bound_of_one_over_beta_fails_along_the_top_eigenvector() -> None:
    start = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    _, _, sizes = adaptive_descent(quadratic, start, steps=5)
    assert sizes[1:] == pytest.approx([0.05] * 5, rel=1e-9)
    printed = smoothness.step_lower_bound(sizes[1:], 10.0, version="printed", known=KNOWN)
    corrected = smoothness.step_lower_bound(sizes[1:], 10.0, known=KNOWN)
    assert not printed.holds and not printed.certified
    assert corrected.left == pytest.approx(0.05)
    assert corrected.slack == pytest.approx(0, abs=1e-10)
    # With the released code's c = 1 the printed value is right.
    _, _, sizes = adaptive_descent(quadratic, start, factor=1.0, steps=1)
    assert smoothness.step_lower_bound(
        sizes[1:], 10.0, factor=1.0, version="printed", known=KNOWN
    ).certified


def test_a_finite_first_ratio_lets_the_initial_step_be_the_floor() -> None:
    _, _, sizes = adaptive_descent(quadratic, ones(), first_ratio=1.0, delta=0.02)
    assert min(sizes[1:]) < 0.05
    assert not smoothness.step_lower_bound(sizes[1:], 10.0, known=KNOWN).holds
    assert smoothness.step_lower_bound(sizes[1:], 10.0, initial_step=1e-3, known=KNOWN).holds


def test_the_curvature_branch_lies_between_the_inverse_eigenvalues() -> None:
    points, gradients, _ = adaptive_descent(quadratic, ones())
    for bound in smoothness.curvature_step_range(
        points, gradients, 0.1, 10.0, known={"loss_is_quadratic": True}
    ):
        assert bound.certified and bound.holds
    lower, upper = smoothness.curvature_step_range(points, gradients, 0.3, 3.0)
    assert not lower.certified and not lower.holds and not upper.holds


def test_local_smoothness_never_exceeds_the_global_constant() -> None:
    def gradient(point: Tensor) -> Tensor:
        return torch.tanh(3 * point)  # gradient of log cosh(3θ)/3, β = 3

    points, gradients, _ = adaptive_descent(gradient, 0.2 * ones(), steps=40)
    bound = smoothness.smoothness_along_path(points, gradients, 3.0, {"loss_is_smooth": True})
    assert bound.certified and bound.holds
    assert not smoothness.smoothness_along_path(points, gradients, 0.5).holds


@given(st.floats(0.01, 2.0), st.integers(0, 10**6))
def test_ratios_of_step_sizes_stay_below_the_fixed_point(delta: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    caps = torch.rand(40, generator=generator, dtype=torch.float64).tolist()
    sizes, ratio = [1e-3], 1.0
    for cap in caps:
        sizes.append(min(cap, math.sqrt(1 + delta * ratio) * sizes[-1]))
        ratio = sizes[-1] / sizes[-2]
    bound = smoothness.step_growth(sizes, 1.0, delta, {"steps_follow_equation_5": True})
    assert bound.certified and bound.holds


def test_fixed_points_of_growth_and_a_first_ratio_above_them() -> None:
    assert smoothness.growth_limit(0.02) == pytest.approx(1.01005, abs=1e-6)
    assert smoothness.growth_limit(1.0) == pytest.approx((1 + 5**0.5) / 2, rel=1e-14)
    # θ_0 = ∞ lets η_1 jump; the next ratio may then be large too.
    bound = smoothness.step_growth([1.0, 5.0], 24.0, 1.0, {"steps_follow_equation_5": True})
    assert not bound.certified and not bound.holds


def huber_excess(width: float, start: float, steps: int) -> float:
    """Gradient descent with step 1 on the loss w²/2, linear beyond the width (β = 1)."""
    w = start
    for _ in range(steps):
        w -= max(-width, min(width, w))
    return 0.5 * w * w if abs(w) <= width else width * abs(w) - 0.5 * width**2


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_the_rate_is_attained_by_a_huber_loss_and_printed_one_step_late(steps: int) -> None:
    known = dict.fromkeys(("loss_is_convex", "loss_is_smooth", "step_is_one_over_beta"), True)
    # The loss whose linear part is left exactly at step N: width = 1 / (2N + 1) of the distance.
    excess = huber_excess(1 / (2 * steps + 1), 1.0, steps)
    tight = smoothness.gradient_descent_rate(excess, 1.0, 1.0, steps, known=known)
    printed = smoothness.gradient_descent_rate(excess, 1.0, 1.0, steps, "printed", known)
    assert tight.certified
    assert tight.left == pytest.approx(tight.right, rel=1e-12)
    assert tight.right == pytest.approx(1 / (2 * (2 * steps + 1)), rel=1e-14)
    assert printed.holds and printed.slack > 0
    for width in (0.01, 0.1, 0.3, 1.0):
        assert smoothness.gradient_descent_rate(
            huber_excess(width, 1.0, steps), 1.0, 1.0, steps
        ).holds


@pytest.mark.parametrize("rho", [0.0, 0.05, 0.2])
def test_descent_on_a_quadratic_diverges_beyond_the_edge(rho: float) -> None:
    step, known = 0.1, {"loss_is_quadratic": True}
    edge = smoothness.stability_edge(1.0, step, rho).right
    assert edge == pytest.approx(
        2 / step if rho == 0 else (-1 + math.sqrt(1 + 8 * rho / step)) / (2 * rho), rel=1e-12
    )
    for eigenvalue in (0.9 * edge, 1.1 * edge):
        multiplier = 1 - step * (eigenvalue + rho * eigenvalue**2)
        bound = smoothness.stability_edge(eigenvalue, step, rho, known)
        assert bound.certified
        assert bound.holds == (abs(multiplier) < 1)


def test_the_known_modified_edge() -> None:
    assert smoothness.stability_edge(1.0, 0.1, 0.2).right == pytest.approx(7.8078, abs=1e-4)
    assert smoothness.stability_edge(1.0, 0.1).right == 20.0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: smoothness.local_smoothness(torch.ones(2, 3), torch.ones(2, 3)), "equal consec"),
        (
            lambda: smoothness.local_smoothness(torch.ones(1, 3), torch.ones(1, 3)),
            "points=.* must be two or more",
        ),
        (
            lambda: smoothness.local_smoothness(torch.eye(2) * math.nan, torch.eye(2)),
            "NaN or infinite",
        ),
        (
            lambda: smoothness.step_lower_bound([], 1.0),
            "step_sizes=.* must be 1 or more finite numbers, positive",
        ),
        (lambda: smoothness.step_lower_bound([1.0], -1.0), "beta=-1.0 must be positive"),
        (lambda: smoothness.step_lower_bound([1.0], 1.0, version="x"), "version='x' is unknown"),
        (lambda: smoothness.step_lower_bound([1.0], 1.0, known={"x": True}), "known=.*'x'"),
        (lambda: smoothness.step_growth([1.0], 1.0), "step_sizes=.* must be 2 or more"),
        (lambda: smoothness.growth_limit(-1.0), "delta=-1.0 must be"),
        (lambda: smoothness.gradient_descent_rate(1.0, 1.0, 1.0, 0), "steps=0 must be at least 1"),
        (lambda: smoothness.gradient_descent_rate(1, 1, 1, 1, "x"), "version='x' is unknown"),
        (lambda: smoothness.stability_edge(1.0, 0.1, -1.0), "rho=-1.0 must be"),
        (
            lambda: smoothness.curvature_step_range(torch.eye(2), torch.eye(2), 2.0, 1.0),
            "smallest=2.0 exceeds",
        ),
    ],
)
def test_bad_arguments_get_one_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_every_new_tensor_names_its_device(device: torch.device, explicit_devices) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(device)
    gradients = points * EIGENVALUES.to(device)
    with explicit_devices():
        smoothness.smoothness_along_path(points, gradients, 10.0)
        smoothness.curvature_step_range(points, gradients, 0.1, 10.0)
        assert smoothness.step_lower_bound([0.1, 0.2], 10.0).holds
