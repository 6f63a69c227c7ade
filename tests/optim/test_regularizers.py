"""RSAM, gradient regularisation and IGSAM: the directions against the regularisers' own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from problems import Calls, diagonal, quadratic
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from paperkit.bounds.renyi import (
    gradient_power_ratio,
    gradient_power_ratio_derivative,
    renyi_perturbation,
)
from paperkit.linearize import linearize
from paperkit.linearize.kronecker import ekfac
from paperkit.memory import MemoryBudgetError
from paperkit.optim import IGSAM, RSAM, SAM, GradientRegularization, Vector
from paperkit.optim.wrapped import WrappedOptimizer


def smooth_network() -> tuple[nn.Module, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (5,), generator=generator)
    return model, lambda: functional.cross_entropy(model(inputs), targets)


def flat_gradient(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    parts = torch.autograd.grad(loss(), list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


def dense_hessian_of(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss(), parameters, create_graph=True)
    flat = torch.cat([part.flatten() for part in first])
    rows = [torch.autograd.grad(x, parameters, retain_graph=True) for x in flat]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def followed(optimizer: WrappedOptimizer, model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """Return the gradient that one step followed; the weights do not move (lr=0)."""
    optimizer.step(Calls(optimizer, loss))
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def along(model: nn.Module, value: Callable[[], float], direction: Tensor) -> float:
    """Differentiate a function of the weights by central differences."""
    distance = 1e-5
    sides = []
    vector = direction.split([p.numel() for p in model.parameters()])
    for sign in (1.0, -2.0):
        for parameter, part in zip(model.parameters(), vector, strict=True):
            parameter.data.add_(part.view_as(parameter), alpha=sign * distance)
        sides.append(value())
    for parameter, part in zip(model.parameters(), vector, strict=True):
        parameter.data.add_(part.view_as(parameter), alpha=distance)
    return (sides[0] - sides[1]) / (2 * distance)


# -- Rényi ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.2, 2.0])
def test_the_paper_mode_of_rsam_has_the_perturbation_of_the_audited_equation(alpha) -> None:
    g = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = [nn.Parameter(torch.zeros(k, dtype=torch.float64)) for k in (4, 5)]
    optimizer = RSAM(w, rho=0.7, alpha=alpha)
    ours = optimizer.perturbation(Vector([g[:4], g[4:]]), Vector(w), [0.7, 0.7])
    expected = renyi_perturbation(g, 0.7, alpha)
    torch.testing.assert_close(torch.cat(ours.tensors), expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.2, 2.0])
def test_the_exact_mode_of_rsam_moves_along_the_ratios_derivative(alpha) -> None:
    g = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = [nn.Parameter(torch.zeros(k, dtype=torch.float64)) for k in (4, 5)]
    optimizer = RSAM(w, rho=0.7, alpha=alpha, mode="exact")
    ours = torch.cat(optimizer.perturbation(Vector([g[:4], g[4:]]), Vector(w), [0.7] * 2).tensors)
    sign = math.copysign(1.0, 1.0 - alpha)
    expected = -0.7 * sign * gradient_power_ratio_derivative(g, alpha)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    # R does not see the length of g.
    assert abs(float(ours @ g)) < 1e-14 * float(ours.norm() * g.norm()) * 9


@pytest.mark.parametrize("alpha", [1.1, 1.2, 2.0])
def test_paper_mode_is_sam_with_radius_rho_ratio_over_norm(alpha) -> None:
    model, loss = smooth_network()
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    ends = []
    for mode in ("paper", "sam_radius", "SAM"):
        model.load_state_dict(initial)
        if mode == "SAM":
            g = Vector(torch.autograd.grad(loss(), list(model.parameters())))
            ratio = g.normalized().norm(2 * alpha) ** (2 * alpha)
            radius = float(0.3 * (ratio / g.norm()))
            flat = torch.cat([part.flatten() for part in g.tensors])
            by_definition = 0.3 * gradient_power_ratio(flat, alpha) / float(flat.norm())
            assert radius == pytest.approx(by_definition, rel=1e-14)
            optimizer: WrappedOptimizer = SAM(model.parameters(), rho=radius, lr=0.1)
        else:
            optimizer = RSAM(model.parameters(), rho=0.3, alpha=alpha, mode=mode, lr=0.1)
        optimizer.step(Calls(optimizer, loss))
        ends.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name in initial:
        # The factors are multiplied in another order: a few units of round-off.
        for end in ends[1:]:
            torch.testing.assert_close(end[name], ends[0][name], rtol=1e-14, atol=1e-15)


def test_below_one_the_paper_descends_where_its_sam_radius_ascends() -> None:
    g = Vector([torch.tensor([3.0, -4.0], dtype=torch.float64)])
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    ways = [
        RSAM([w], rho=0.5, alpha=0.5, mode=mode).perturbation(g, g, [0.5]).tensors[0]
        for mode in ("paper", "sam_radius")
    ]
    # R = (3 + 4) / 5, ε = ∓ ½ R g / 25.
    expected = 0.5 * (7 / 5) * g.tensors[0] / 25
    torch.testing.assert_close(ways[0], -expected, rtol=1e-15, atol=0.0)
    torch.testing.assert_close(ways[1], expected, rtol=1e-15, atol=0.0)


@pytest.mark.parametrize("alpha", [0.7, 1.2, 2.0])
def test_the_exact_mode_follows_the_gradient_of_equation_12(alpha) -> None:
    model, loss = smooth_network()
    rho, sign = 0.1, math.copysign(1.0, 1.0 - alpha)
    options = {"rho": rho, "alpha": alpha, "mode": "exact", "tau": 1e-6, "lr": 0.0}
    step = followed(RSAM(model.parameters(), **options), model, loss)

    def value() -> float:
        g = flat_gradient(model, loss)
        return float(loss().detach()) - rho * sign * gradient_power_ratio(g, alpha)

    direction = torch.randn(
        len(step), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    # Differences in float64: rounding 1e-16/1e-5 and 1e-16/1e-6, curvature 1e-10 and 1e-6.
    slope = along(model, value, direction)
    assert float(step @ direction) == pytest.approx(slope, rel=1e-4)


def test_the_error_of_the_exact_mode_is_of_first_order_in_tau() -> None:
    model, loss = smooth_network()
    g, hessian = flat_gradient(model, loss), dense_hessian_of(model, loss)
    expected = g + 0.1 * hessian @ gradient_power_ratio_derivative(g, 1.2)
    errors = []
    for tau in (2e-3, 1e-3):
        options = {"rho": 0.1, "alpha": 1.2, "mode": "exact", "tau": tau, "lr": 0.0}
        step = followed(RSAM(model.parameters(), **options), model, loss)
        errors.append(float((step - expected).norm()))
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.05)


def test_the_cap_bounds_the_radius_that_diverges_at_a_stationary_point() -> None:
    w, loss = quadratic(diagonal(1.0, 4.0), (1e-6, 1e-6))
    free, capped = (RSAM([w], rho=0.5, lr=0.0, log=True, max_radius=m) for m in (None, 0.05))
    for optimizer in (free, capped):
        optimizer.step(Calls(optimizer, loss))
    assert free.log[0].perturbation_norm > 1e4
    assert capped.log[0].perturbation_norm == pytest.approx(0.05, rel=1e-14)
    assert capped.log[0].cosine == pytest.approx(1.0, abs=1e-14)


def test_the_logged_regularizer_of_rsam_is_minus_rho_s_ratio_in_every_mode() -> None:
    model, loss = smooth_network()
    ratio = gradient_power_ratio(flat_gradient(model, loss), 1.2)
    for mode in ("paper", "sam_radius", "exact"):
        optimizer = RSAM(model.parameters(), rho=0.1, mode=mode, lr=0.0, log=True)
        optimizer.step(Calls(optimizer, loss))
        assert optimizer.log[0].regularizer == pytest.approx(0.1 * ratio, rel=1e-13)
        expected = 0.0 if mode == "exact" else 1.0
        assert optimizer.log[0].cosine == pytest.approx(expected, abs=1e-13)


def evaluations(optimizer: WrappedOptimizer, loss: Callable[[], Tensor]) -> int:
    closure = Calls(optimizer, loss)
    optimizer.step(closure)
    return closure.count


def test_rsam_switches_after_so_many_steps() -> None:
    w, loss = quadratic(diagonal(1.0, 4.0), (1.0, 1.0))
    optimizer = RSAM([w], plain_steps=2, lr=0.01)
    assert [evaluations(optimizer, loss) for _ in range(4)] == [1, 1, 2, 2]


def test_rsam_switches_after_so_many_epochs() -> None:
    w, loss = quadratic(diagonal(1.0, 4.0), (1.0, 1.0))
    optimizer = RSAM([w], plain_epochs=2, lr=0.01)
    counts = []
    for _ in range(3):
        counts.append(evaluations(optimizer, loss))
        optimizer.end_epoch()
    assert counts == [1, 1, 2]


def test_rsam_switches_above_the_validation_threshold_and_does_not_switch_back() -> None:
    w, loss = quadratic(diagonal(1.0, 4.0), (1.0, 1.0))
    optimizer = RSAM([w], validation_threshold=0.3, lr=0.01)
    counts = []
    for accuracy in (0.2, 0.3, 0.31, 0.1, 0.1):
        counts.append(evaluations(optimizer, loss))
        optimizer.end_epoch(accuracy)
    assert counts == [1, 1, 1, 2, 2]


def test_zero_entries_of_the_gradient_are_left_out_where_the_derivative_is_infinite() -> None:
    g = Vector([torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64)])
    optimizer = RSAM([nn.Parameter(torch.zeros(3))], alpha=0.3, mode="exact")
    (found,) = optimizer.perturbation(g, g, [1.0]).tensors
    kept = gradient_power_ratio_derivative(g.tensors[0][[0, 2]], 0.3)
    torch.testing.assert_close(found[[0, 2]], -kept, rtol=1e-13, atol=0.0)
    assert float(found[1]) == 0.0


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"alpha": 1.0}, "alpha=1.0"),
        ({"alpha": -0.5}, "alpha=-0.5"),
        ({"mode": "other"}, "mode='other'"),
        ({"max_radius": 0.0}, "max_radius=0.0"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"plain_steps": -1}, "plain_steps"),
        ({"mode": "exact", "no_sync": lambda: None}, "no_sync"),
    ],
)
def test_options_of_rsam_out_of_range_are_refused_by_name(options, argument) -> None:
    with pytest.raises(ValueError, match=argument):
        RSAM([nn.Parameter(torch.zeros(2))], **options)


def test_the_exact_mode_refuses_groups_with_their_own_rho() -> None:
    w, loss = quadratic(diagonal(1.0), (1.0,))
    v = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = RSAM([{"params": [w], "rho": 0.1}, {"params": [v], "rho": 0.2}], mode="exact")
    with pytest.raises(ValueError, match="same rho"):
        optimizer.step(Calls(optimizer, lambda: loss() + v.square().sum()))


# -- gradient regularisation ---------------------------------------------------------------------

METHODS = ("double_backward", "finite_difference")


@pytest.mark.parametrize("method", METHODS)
def test_gradient_regularization_on_a_quadratic_follows_a_plus_two_mu_a_squared(method) -> None:
    w, loss = quadratic(diagonal(3.0, 4.0), (1.0, 1.0))
    optimizer = GradientRegularization([w], mu=0.05, method=method, lr=0.1)
    for _ in range(2):
        optimizer.step(Calls(optimizer, loss))
    expected = [(1 - 0.1 * (a + 2 * 0.05 * a**2)) ** 2 for a in (3.0, 4.0)]
    # The difference of gradients carries a rounding error of order ε‖g‖/τ.
    assert w.tolist() == pytest.approx(expected, abs=1e-13)


def test_double_backward_follows_the_gradient_of_the_penalised_loss() -> None:
    model, loss = smooth_network()
    g, hessian = flat_gradient(model, loss), dense_hessian_of(model, loss)
    optimizer = GradientRegularization(model.parameters(), mu=0.05, lr=0.0, log=True)
    step = followed(optimizer, model, loss)
    torch.testing.assert_close(step, g + 0.1 * hessian @ g, rtol=1e-12, atol=1e-14)
    assert optimizer.log[0].regularizer == pytest.approx(0.05 * float(g @ g), rel=1e-13)


def test_groups_with_their_own_mu_penalise_their_own_gradients() -> None:
    model, loss = smooth_network()
    g, hessian = flat_gradient(model, loss), dense_hessian_of(model, loss)
    sizes = [sum(p.numel() for p in model[k].parameters()) for k in (0, 2)]
    mu = torch.cat(
        [torch.full((s,), m, dtype=g.dtype) for s, m in zip(sizes, (0.05, 0.2), strict=True)]
    )
    groups = [
        {"params": model[0].parameters(), "mu": 0.05},
        {"params": model[2].parameters(), "mu": 0.2},
    ]
    step = followed(GradientRegularization(groups, lr=0.0), model, loss)
    torch.testing.assert_close(step, g + 2 * hessian @ (mu * g), rtol=1e-12, atol=1e-14)


def test_the_error_of_the_finite_difference_is_of_first_order_in_tau() -> None:
    model, loss = smooth_network()
    g, hessian = flat_gradient(model, loss), dense_hessian_of(model, loss)
    errors = []
    for tau in (2e-3, 1e-3):
        options = {"mu": 0.05, "method": "finite_difference", "tau": tau, "lr": 0.0}
        step = followed(GradientRegularization(model.parameters(), **options), model, loss)
        errors.append(float((step - g - 0.1 * hessian @ g).norm()))
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.05)


def test_double_backward_sums_the_micro_batches_of_a_closure() -> None:
    model, loss = smooth_network()
    optimizer = GradientRegularization(model.parameters(), mu=0.05, lr=0.0)
    whole = followed(optimizer, model, loss)

    def closure() -> None:
        optimizer.zero_grad()
        for _ in range(4):
            (loss() / 4).backward()

    optimizer.step(closure)
    parts = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-15)


def test_double_backward_says_when_the_closure_hides_its_backward_pass() -> None:
    model, loss = smooth_network()
    optimizer = GradientRegularization(model.parameters(), mu=0.05)

    def closure() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss())

    with pytest.raises(RuntimeError, match="found no call"):
        optimizer.step(closure)
    with pytest.raises(RuntimeError, match="for a loop by hand"):
        optimizer.first_step()


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("way", ["gradient regularisation", "natural gradient's control"])
def test_unnormalised_sam_is_stable_up_to_its_own_edge(way, factor) -> None:
    # w⁺ = w − ηA(I + ρA)w: stable iff η(λ + ρλ²) < 2, an edge of 7.81 in place of 2/η = 20.
    eta, rho = 0.1, 0.2
    edge = (math.sqrt(1 + 8 * rho / eta) - 1) / (2 * rho)
    assert edge == pytest.approx(7.81, abs=5e-3)
    eigenvalue = factor * edge
    w, loss = quadratic(diagonal(eigenvalue), (1.0,))
    if way == "gradient regularisation":
        optimizer: WrappedOptimizer = GradientRegularization([w], mu=rho / 2, lr=eta)
    else:
        holder = nn.Module()
        optimizer = IGSAM([w], holder, rho=rho, damping=1.0, mode="gradient", lr=eta)
    steps = 50
    for _ in range(steps):
        optimizer.step(Calls(optimizer, loss))
    multiplier = 1 - eta * (eigenvalue + rho * eigenvalue**2)
    assert w.item() == pytest.approx(multiplier**steps, rel=1e-12)
    assert (abs(w.item()) < 1) == (factor < 1)


# -- information geometry ------------------------------------------------------------------------


def one_sample() -> tuple[nn.Module, Callable[[], Tensor], Tensor]:
    """Return softmax regression on one sample, where H = F and EKFAC is exact."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 4, bias=False).double()
    model.weight.data.copy_(torch.randn(4, 3, generator=generator))
    inputs = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    targets = torch.tensor([2])
    return model, lambda: functional.cross_entropy(model(inputs), targets), inputs


def test_where_the_hessian_is_the_fisher_matrix_the_step_is_a_larger_learning_rate() -> None:
    # ∇L(θ + δ) = g + ρ F F⁺ g + O(ρ²) = (1 + ρ) g + O(ρ²).
    model, loss, _ = one_sample()
    g = flat_gradient(model, loss)
    errors = []
    for rho in (2e-3, 1e-3):
        optimizer = IGSAM(model.parameters(), model, rho=rho, damping=1e-12, lr=0.0)
        step = followed(optimizer, model, loss)
        errors.append(float((step - (1 + rho) * g).norm()))
    assert errors[1] < 1e-4 * float(g.norm())
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)


def test_the_scaled_gradient_control_is_that_larger_learning_rate() -> None:
    model, loss, _ = one_sample()
    g = flat_gradient(model, loss)
    options = {"rho": 0.1, "damping": 1.0, "mode": "scaled_gradient", "lr": 0.0}
    optimizer = IGSAM(model.parameters(), model, **options)
    torch.testing.assert_close(followed(optimizer, model, loss), 1.1 * g, rtol=1e-14, atol=0.0)
    assert optimizer.gradient_evaluations == 1


def test_the_perturbation_solves_with_the_damped_factors_of_the_linearization() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    inputs = torch.randn(6, 1, 3, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (6,), generator=generator)
    optimizer = IGSAM(model.parameters(), model, rho=0.3, damping=0.05, samples=4, lr=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    places = []

    def loss() -> Tensor:
        places.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return functional.cross_entropy(model(inputs), targets)

    gradient = dict(zip(before, torch.autograd.grad(loss(), list(model.parameters())), strict=True))
    statistics = {name: b.clone() for name, b in model.named_buffers()}
    optimizer.step(Calls(optimizer, loss))
    moved = {name: places[-1][name] - before[name] for name in before}
    # The factors come from the running statistics that the first pass left.
    with torch.no_grad():
        assert not torch.equal(statistics["1.running_mean"], model[1].running_mean)
    for factors in ekfac(linearize(model, inputs[:4])).values():
        names = list(factors.parameter_shapes)
        flat = factors.join({name: gradient[name] for name in names}).flatten()
        matrix = factors.matrix()
        system = matrix + 0.05 * torch.eye(len(matrix), dtype=torch.float64)
        delta = 0.3 * torch.linalg.solve(system, flat)
        ours = factors.join({name: moved[name] for name in names}).flatten()
        torch.testing.assert_close(ours, delta, rtol=1e-10, atol=1e-13)
    assert not moved["1.weight"].any() and not moved["1.bias"].any()


def test_large_damping_turns_the_natural_gradient_into_the_gradient_control() -> None:
    model, loss = smooth_network()
    places = []
    for mode in ("paper", "gradient"):
        optimizer = IGSAM(model.parameters(), model, rho=10.0, damping=1e6, mode=mode, lr=0.0)
        closure = Calls(optimizer, loss)
        optimizer.step(closure)
        start, moved = (torch.cat([w.flatten() for w in place]) for place in closure.weights)
        places.append(moved - start)
    # δ = (ρ/λ)(1 + O(‖F‖/λ)) g; the weights, of order 1, round δ of order 1e-5 at 1e-16.
    torch.testing.assert_close(places[0], places[1], rtol=1e-4, atol=1e-14)


def test_the_factors_are_renewed_only_when_they_are_due() -> None:
    model, loss = smooth_network()
    optimizer = IGSAM(model.parameters(), model, rho=0.1, damping=0.1, period=3, lr=0.1)
    seen = []
    for _ in range(5):
        optimizer.step(Calls(optimizer, loss))
        seen.append(next(iter(optimizer.factors.values())).eigenvalues)
    assert seen[0] is seen[1] is seen[2]
    assert seen[2] is not seen[3] and seen[3] is seen[4]


def test_the_factors_see_all_micro_batches_of_the_closure() -> None:
    model, _ = smooth_network()
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = IGSAM(model.parameters(), model, rho=0.1, damping=0.1, lr=0.0)

    def closure() -> None:
        optimizer.zero_grad()
        for part in (slice(0, 2), slice(2, 6)):
            loss = functional.cross_entropy(model(inputs[part]), targets[part], reduction="sum")
            (loss / 6).backward()

    optimizer.step(closure)
    for name, factors in ekfac(linearize(model, inputs)).items():
        torch.testing.assert_close(optimizer.factors[name].eigenvalues, factors.eigenvalues)


def test_a_batch_beyond_the_memory_budget_is_refused_before_anything_moves() -> None:
    model, loss = smooth_network()
    options = {"rho": 0.1, "damping": 0.1, "lr": 0.1}
    optimizer = IGSAM(model.parameters(), model, memory_budget=1000, **options)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(MemoryBudgetError, match="memory_budget=1000"):
        optimizer.step(Calls(optimizer, loss))
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    optimizer.memory_budget = 2**20
    optimizer.step(Calls(optimizer, loss))
    assert optimizer.steps == 1


def test_igsam_says_when_the_closure_does_not_call_its_model() -> None:
    model, _ = smooth_network()
    parameters = dict(model.named_parameters())
    optimizer = IGSAM(model.parameters(), nn.Linear(3, 3), rho=0.1, damping=0.1)
    inputs = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="model was not called"):
        optimizer.step(Calls(optimizer, lambda: functional_call(model, parameters, inputs).sum()))


def test_igsam_by_hand_needs_its_factors_first() -> None:
    model, loss = smooth_network()
    optimizer = IGSAM(model.parameters(), model, rho=0.1, damping=0.1)
    loss().backward()
    with pytest.raises(RuntimeError, match="renew_factors"):
        optimizer.first_step()


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"damping": 0.0}, "damping=0.0"),
        ({"period": 0}, "period=0"),
        ({"samples": 0}, "samples=0"),
        ({"mode": "other"}, "mode='other'"),
    ],
)
def test_options_of_igsam_out_of_range_are_refused_by_name(options, argument) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=argument):
        IGSAM(model.parameters(), model, rho=0.1, **{"damping": 0.1, **options})


def test_igsam_keeps_its_factors_where_new_ones_have_no_eigenvalues(monkeypatch):
    model, _ = smooth_network()
    optimizer = IGSAM(model.parameters(), model, rho=0.1, damping=0.1, lr=0.1)
    inputs = torch.ones(2, 3, dtype=torch.float64)
    optimizer.renew_factors(inputs)
    before = optimizer.factors

    def gives_up(linearization):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr("paperkit.optim.igsam.ekfac", gives_up)
    with pytest.warns(RuntimeWarning, match="the factors of the time before stay"):
        optimizer.renew_factors(2 * inputs)
    after = optimizer.factors
    assert before.keys() == after.keys()
    assert all(torch.equal(after[n].eigenvalues, before[n].eigenvalues) for n in before)
    fresh = IGSAM(model.parameters(), model, rho=0.1, damping=0.1, lr=0.1)
    with pytest.raises(RuntimeError, match="units of a layer are dead or a value is not finite"):
        fresh.renew_factors(inputs)
