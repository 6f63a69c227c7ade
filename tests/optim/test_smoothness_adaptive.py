"""SASAM and SASGD: steps worked by hand, and the facts on quadratics."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from problems import Calls, diagonal, quadratic, random_quadratic, run
from torch import Tensor, nn

from paperkit.optim import SASAM, SASGD
from paperkit.optim.smoothness_adaptive import adaptive_step_size

# -- the step size -------------------------------------------------------------------------------


def test_the_step_size_is_the_smaller_of_inverse_smoothness_and_growth() -> None:
    # ‖Δθ‖ / (2‖Δg‖) = 0.25; √(1 + 0.02 · 3) · 0.2.
    assert adaptive_step_size(1.0, 2.0, 1.0, 3.0) == 0.25
    assert adaptive_step_size(1.0, 2.0, 0.2, 3.0) == math.sqrt(1 + 0.02 * 3) * 0.2
    assert adaptive_step_size(1.0, 2.0, 0.2, 3.0, delta=1.0) == 0.25
    assert adaptive_step_size(1.0, 2.0, 1.0, 3.0, damping=1.0) == 0.5


def test_an_infinite_ratio_leaves_the_smoothness_alone_to_decide() -> None:
    assert adaptive_step_size(1.0, 2.0, 1e-9, math.inf) == 0.25
    # The root would be of 0 · ∞, which is no number.
    assert adaptive_step_size(1.0, 2.0, 1e-9, math.inf, delta=0.0) == 0.25


@pytest.mark.parametrize("displacement, change", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_without_a_measured_smoothness_the_step_size_grows_or_stays(displacement, change) -> None:
    grown = adaptive_step_size(displacement, change, 0.2, 3.0, offset=1e-8)
    assert grown == math.sqrt(1.06) * 0.2
    assert adaptive_step_size(displacement, change, 0.2, math.inf, offset=1e-8) == 0.2


def test_a_smoothness_that_is_not_finite_leaves_the_growth() -> None:
    assert adaptive_step_size(1.0, 5e-324, 0.2, 3.0) == math.sqrt(1.06) * 0.2


@pytest.mark.parametrize("delta", [0.02, 1.0])
def test_the_growth_tends_to_the_root_of_r_squared_equals_one_plus_delta_r(delta) -> None:
    limit = (delta + math.sqrt(delta**2 + 4)) / 2
    assert limit == pytest.approx({0.02: 1.01005, 1.0: 1.618034}[delta], abs=1e-6)
    eta, theta, ratios = 1.0, 1.0, []
    for _ in range(80):
        grown = adaptive_step_size(0.0, 0.0, eta, theta, delta=delta)
        eta, theta = grown, grown / eta
        ratios.append(theta)
    rounding = 1 + 1e-15
    assert all(a <= b * rounding and b <= limit * rounding for a, b in pairwise(ratios))
    assert ratios[-1] == pytest.approx(limit, rel=1e-12)


def test_growth_from_the_smallest_to_the_largest_grid_point_takes_the_release_691_steps() -> None:
    eta, theta, steps = 1e-4, 1.0, 0
    while eta < 1e-1:
        grown = adaptive_step_size(0.0, 0.0, eta, theta)
        eta, theta, steps = grown, grown / eta, steps + 1
    assert steps == 691


# -- steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_batch", [False, True])
def test_three_steps_of_sasam_on_a_parabola_are_the_ones_worked_by_hand(full_batch) -> None:
    # L = w², so g = 2w and the smoothness is 2.
    w, loss = quadratic(diagonal(2.0), (1.0,))
    optimizer = SASAM([w], eta0=0.1, full_batch=full_batch)
    closure = Calls(optimizer, loss)
    optimizer.step(closure)
    first = 1 - 0.2 * (1 + math.sqrt(0.1))
    assert w.item() == pytest.approx(first, abs=1e-15)
    assert (optimizer.eta, optimizer.theta, optimizer.rho) == (0.1, math.inf, math.sqrt(0.1))
    assert math.isnan(optimizer.beta)
    # η = 1/(2 · 2), ρ = ½: w − ½ (w + ½).
    optimizer.step(closure)
    second = 0.5 * first - 0.25
    assert w.item() == pytest.approx(second, abs=1e-15)
    assert optimizer.eta == pytest.approx(0.25, rel=1e-14)
    assert optimizer.theta == pytest.approx(2.5, rel=1e-14)
    assert optimizer.rho == pytest.approx(0.5, rel=1e-14)
    assert optimizer.beta == pytest.approx(2.0, rel=1e-14)
    optimizer.step(closure)
    assert w.item() == pytest.approx(0.5 * second - 0.25 * math.copysign(1, second), abs=1e-15)
    # A step takes three passes, the first step two, and with full batches every step two.
    assert closure.count == optimizer.gradient_evaluations == (6 if full_batch else 8)


def test_two_steps_of_the_release_are_the_ones_worked_by_hand() -> None:
    w, loss = quadratic(diagonal(2.0), (1.0,))
    optimizer = SASAM([w], eta0=0.1, variant="release")
    closure = Calls(optimizer, loss)
    optimizer.step(closure)
    growth = math.sqrt(1.02)
    first = 1 - 0.1 * growth * 2 * (1 + math.sqrt(0.1))
    assert w.item() == pytest.approx(first, abs=1e-15)
    optimizer.step(closure)
    ratio = math.sqrt(1 + 0.02 * growth)
    eta = ratio * growth * 0.1 + 1e-8  # below the inverse smoothness, 1/2
    second = first - eta * 2 * (first + math.sqrt(0.1 * growth))
    assert w.item() == pytest.approx(second, abs=1e-15)


@pytest.mark.parametrize("full_batch", [False, True])
def test_three_steps_of_sasgd_on_a_parabola_are_the_ones_worked_by_hand(full_batch) -> None:
    w, loss = quadratic(diagonal(2.0), (1.0,))
    optimizer = SASGD([w], eta0=0.1, full_batch=full_batch)
    closure = Calls(optimizer, loss)
    for expected in (0.8, 0.4, 0.2):
        optimizer.step(closure)
        assert w.item() == pytest.approx(expected, abs=1e-15)
    assert closure.count == optimizer.gradient_evaluations == (3 if full_batch else 5)


def by_definition(
    matrix: Tensor, start: list[float], steps: int, ascends: bool, **options: float
) -> list[list[float]]:
    """Run Algorithm 1 as the audit corrects it, with nothing but vectors."""
    delta, damping = options.get("delta", 0.02), options.get("damping", 2.0)
    w, previous = torch.tensor(start, dtype=torch.float64), None
    eta, theta, path = options["eta0"], math.inf, []
    for _ in range(steps):
        g = matrix @ w
        last = eta
        if previous is not None:
            dw, dg = w - previous, g - matrix @ previous
            smooth = float(dw.norm() / (damping * dg.norm()))
            growth = math.inf if theta == math.inf else math.sqrt(1 + delta * theta) * eta
            eta = min(smooth, growth)
            theta = eta / last
        epsilon = math.sqrt(eta) * g / g.norm() if ascends else 0 * g
        previous, w = w, w - eta * (matrix @ (w + epsilon) + options.get("wd", 0.0) * w)
        path.append(w.tolist())
    return path


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [SASAM, SASGD])
def test_the_trajectory_is_that_of_the_corrected_algorithm(kind, seed) -> None:
    matrix, start = random_quadratic(seed)
    w, loss = quadratic(matrix, start)
    optimizer = kind([w], eta0=1e-2, weight_decay=0.01, full_batch=seed == 1)
    closure = Calls(optimizer, loss)
    path = by_definition(matrix, start, 12, kind is SASAM, eta0=1e-2, wd=0.01)
    for expected in path:
        optimizer.step(closure)
        # Only the order of the sums differs; a step multiplies an error by at most about 10.
        assert w.tolist() == pytest.approx(expected, rel=0.0, abs=1e-10)


def test_norms_run_over_all_groups_and_one_step_size_serves_them() -> None:
    matrix, start = random_quadratic(0)
    w, loss = quadratic(matrix, start)
    parts = [nn.Parameter(w.detach()[:2].clone()), nn.Parameter(w.detach()[2:].clone())]
    whole = SASAM([w], eta0=1e-2)
    groups = SASAM([{"params": [part]} for part in parts], eta0=1e-2)

    def split_loss() -> Tensor:
        v = torch.cat(list(parts))
        return 0.5 * v @ matrix @ v

    for _ in range(6):
        whole.step(Calls(whole, loss))
        groups.step(Calls(groups, split_loss))
    assert groups.eta == pytest.approx(whole.eta, rel=1e-12)
    assert torch.cat(list(parts)).tolist() == pytest.approx(w.tolist(), rel=1e-12)


def test_another_batch_at_each_step_is_evaluated_at_both_iterates() -> None:
    batches = [diagonal(2.0), diagonal(3.0), diagonal(5.0)]
    w = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = SASGD([w], eta0=0.1)
    for matrix in batches:
        optimizer.step(Calls(optimizer, lambda matrix=matrix: 0.5 * w @ matrix @ w))
        if matrix is not batches[0]:
            assert optimizer.beta == pytest.approx(float(matrix), rel=1e-13)


def test_a_schedulers_factor_multiplies_the_step_size() -> None:
    w, loss = quadratic(diagonal(2.0), (1.0,))
    optimizer = SASGD([w], eta0=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    closure = Calls(optimizer, loss)
    optimizer.step(closure)
    scheduler.step()
    optimizer.step(closure)
    # η = ¼, halved: 0.8 − ½ · ¼ · 1.6.
    assert w.item() == pytest.approx(0.6, abs=1e-15)


# -- facts on quadratics -------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [1.0, 2.0])
@pytest.mark.parametrize("kind", [SASAM, SASGD])
def test_the_step_size_is_at_least_one_over_c_beta(kind, damping) -> None:
    matrix = diagonal(10.0, 0.1)
    w, loss = quadratic(matrix, (1.0, 1.0))
    optimizer = kind([w], eta0=1e-4, delta=1.0, damping=damping, full_batch=True)
    closure, etas = Calls(optimizer, loss), []
    for _ in range(150):
        optimizer.step(closure)
        etas.append(optimizer.eta)
    bound = 1 / (damping * 10)
    assert min(etas[1:]) >= bound * (1 - 1e-9)
    assert max(etas[1:]) <= 1 / (damping * 0.1) * (1 + 1e-9)


@pytest.mark.parametrize("eta0", [1e-3, 1.0])
def test_with_a_finite_first_ratio_the_step_size_stays_above_the_first_or_the_bound(eta0) -> None:
    w, loss = quadratic(diagonal(10.0, 0.1), (1.0, 1.0))
    optimizer = SASGD([w], eta0=eta0, theta0=1.0, full_batch=True)
    closure, etas = Calls(optimizer, loss), []
    for _ in range(100):
        optimizer.step(closure)
        etas.append(optimizer.eta)
    assert min(etas) >= min(eta0, 1 / (2 * 10)) * (1 - 1e-9)


def test_along_flat_directions_the_step_size_passes_the_edge_and_the_loss_recovers() -> None:
    w, loss = quadratic(diagonal(10.0, 0.1), (1.0, 1.0))
    optimizer = SASGD([w], eta0=1e-4, delta=1.0, full_batch=True)
    closure, etas, losses = Calls(optimizer, loss), [], []
    for _ in range(300):
        losses.append(float(optimizer.step(closure)))
        etas.append(optimizer.eta)
    assert max(etas) > 2 / 10  # where a constant step would diverge
    assert any(after > before for before, after in pairwise(losses))
    assert losses[-1] < 1e-10 * losses[0]


def test_the_bound_that_the_paper_states_is_false() -> None:
    w, loss = quadratic(diagonal(10.0, 0.1), (1.0, 1.0))
    optimizer = SASAM([w], eta0=1e-4, delta=1.0, full_batch=True)
    run(optimizer, loss, 100)
    assert optimizer.eta < 0.51 / 10


CYCLES = [
    *((diagonal(x), [1.0], c) for x in (0.5, 3.0, 50.0) for c in (1.0, 2.0)),
    *((diagonal(3.0, 0.5), [1.0, -0.5], c) for c in (1.0, 2.0)),
    *((*random_quadratic(seed), c) for seed in (0, 1) for c in (1.0, 2.0)),
]


@pytest.mark.parametrize(("matrix", "start", "damping"), CYCLES)
def test_sasam_ends_in_a_two_cycle_whose_loss_is_the_floor(matrix, start, damping) -> None:
    w, loss = quadratic(matrix, start)
    optimizer = SASAM([w], eta0=1e-2, delta=1.0, damping=damping, full_batch=True)
    # Across the cycle, a direction of relative curvature r shrinks by 1 − (r + (2c − 1) r²)/c a
    # step: 0.935 for r = 0.1 and c = 2, which leaves 2e-12 after 400 steps; 0.875 for r = 1/6.
    losses = run(optimizer, loss, {1: 60, 2: 240, 5: 400}[len(start)])
    floor = 1 / (2 * damping * (2 * damping - 1) ** 2)
    assert floor == pytest.approx({1.0: 1 / 2, 2.0: 1 / 36}[damping])
    assert losses[-10:] == pytest.approx([floor] * 10, rel=1e-9)
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    assert optimizer.eta == pytest.approx(1 / (damping * top), rel=1e-9)
    before = w.detach().clone()
    run(optimizer, loss, 1)
    torch.testing.assert_close(w.detach(), -before, rtol=1e-6, atol=1e-8)
    length = optimizer.rho / (2 * damping - 1)
    assert float(before.norm()) == pytest.approx(length, rel=1e-9)


@pytest.mark.parametrize("kappa", [0.01, 100.0])
def test_the_floor_stays_when_the_loss_is_rescaled(kappa) -> None:
    w, loss = quadratic(diagonal(3.0, 0.5), (1.0, -0.5))
    optimizer = SASAM([w], eta0=1e-2, delta=1.0, full_batch=True)
    assert run(optimizer, lambda: kappa * loss(), 200)[-1] == pytest.approx(1 / 36, rel=1e-9)


@pytest.mark.parametrize("damping", [1.0, 2.0, 3.0])
def test_the_ascent_from_the_cycle_raises_the_quadratic_by_what_its_half_width_and_radius_give(
    damping,
) -> None:
    """With √λ a = 1/(√c (2c − 1)) and √λ ρ = 1/√c the rise is λρa + λρ²/2, above ½ρ²λ = 1/(2c)."""
    w, loss = quadratic(diagonal(3.0), (1.0,))
    optimizer = SASAM([w], eta0=1e-2, damping=damping, full_batch=True)
    run(optimizer, loss, 100)
    c = damping
    assert 0.5 * optimizer.rho**2 * 3.0 == pytest.approx(1 / (2 * c), rel=1e-12)
    low = loss().item()
    with torch.no_grad():
        w.add_(optimizer.rho * w.sign())
    assert loss().item() - low == pytest.approx((2 * c + 1) / (2 * c * (2 * c - 1)), rel=1e-9)


@pytest.mark.parametrize("damping", [1.0, 2.0])
def test_the_unnormalised_ascent_of_the_theorem_converges_for_c_2_and_stalls_for_c_1(
    damping,
) -> None:
    w, loss = quadratic(diagonal(3.0), (1.0,))
    options = {"rho_rule": "sqrt_eta_over_beta", "ascent": "gradient", "full_batch": True}
    optimizer = SASAM([w], eta0=1e-2, damping=damping, **options)
    losses = run(optimizer, loss, 40)
    # Multiplier 1 − (1/c + c^(−3/2)): 0.146 and −1.
    multiplier = 1 - (1 / damping + damping**-1.5)
    later = losses[5:12]
    for before, after in pairwise(later):
        assert after / before == pytest.approx(multiplier**2, rel=1e-9)
    assert (losses[-1] < 1e-20) == (damping == 2.0)


def test_the_adaptive_ascent_is_that_of_asam_with_the_weights_magnitude() -> None:
    # w = (2, 1), g = (2, 4), T = (2, 1), Tg = (4, 4): ε = ρ (8, 4) / (4√2), ρ = √0.1.
    w, loss = quadratic(diagonal(1.0, 4.0), (2.0, 1.0))
    optimizer = SASAM([w], eta0=0.1, ascent="adaptive")
    run(optimizer, loss, 1)
    unit = math.sqrt(0.1) / math.sqrt(2)
    expected = [2 - 0.1 * (2 + 2 * unit), 1 - 0.1 * (4 + 4 * unit)]
    assert w.tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("rule, expected", [(0.3, 0.3), ("sqrt_previous_eta", math.sqrt(0.1))])
def test_the_rule_of_the_radius_can_be_chosen(rule, expected) -> None:
    w, loss = quadratic(diagonal(2.0), (1.0,))
    optimizer = SASAM([w], eta0=0.1, rho_rule=rule)
    run(optimizer, loss, 2)
    assert optimizer.rho == expected


# -- edges -----------------------------------------------------------------------------------------


def test_at_a_stationary_point_the_weights_stay_and_the_step_size_stays_finite() -> None:
    w, loss = quadratic(diagonal(2.0, 1.0), (0.0, 0.0))
    for optimizer in (SASAM([w], eta0=0.1), SASGD([w], eta0=0.1)):
        run(optimizer, loss, 5)
        assert w.tolist() == [0.0, 0.0]
        assert math.isfinite(optimizer.eta)


def test_a_constant_gradient_takes_the_growth_branch() -> None:
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = SASGD([w], eta0=0.1, theta0=1.0)
    run(optimizer, w.sum, 2)
    assert optimizer.eta == math.sqrt(1.02) * 0.1
    assert optimizer.beta == 0.0


def test_a_gradient_that_is_not_finite_keeps_the_step_size_and_the_previous_weights() -> None:
    w, loss = quadratic(diagonal(2.0), (1.0,))
    optimizer, twin_w = SASAM([w], eta0=0.1), nn.Parameter(w.detach().clone())
    twin = SASAM([twin_w], eta0=0.1)
    twin_loss: Callable[[], Tensor] = lambda: twin_w.square().sum()  # noqa: E731
    for step in range(4):
        if step == 2:
            before = (w.item(), optimizer.eta, optimizer.theta)
            optimizer.step(Calls(optimizer, lambda: loss() * math.nan))
            assert (w.item(), optimizer.eta, optimizer.theta) == before
            assert optimizer.skipped_steps == 1
        run(optimizer, loss, 1)
        run(twin, twin_loss, 1)
    assert w.item() == pytest.approx(twin_w.item(), rel=1e-15)


def test_sasam_of_mini_batches_says_that_a_loop_by_hand_has_too_few_passes() -> None:
    w, loss = quadratic(diagonal(2.0), (1.0,))
    optimizer = SASAM([w])
    loss().backward()
    with pytest.raises(RuntimeError, match="three passes"):
        optimizer.first_step()


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"eta0": 0.0}, "eta0=0.0"),
        ({"delta": -1.0}, "delta=-1.0"),
        ({"damping": 0.0}, "damping=0.0"),
        ({"theta0": -1.0}, "theta0=-1.0"),
        ({"variant": "other"}, "variant='other'"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"rho_rule": "other"}, "rho_rule='other'"),
        ({"rho_rule": -1.0}, "rho_rule=-1.0"),
        ({"ascent": "other"}, "ascent='other'"),
    ],
)
def test_options_of_sasam_out_of_range_are_refused_by_name(options, argument) -> None:
    with pytest.raises(ValueError, match=argument):
        SASAM([nn.Parameter(torch.zeros(2))], **options)
