"""SAM, ASAM and Eigen-SAM: steps worked by hand, and what their perturbations maximise."""

from __future__ import annotations

import math

import pytest
import torch
from problems import Calls, diagonal, quadratic
from torch import nn

from paperkit.optim import ASAM, SAM, EigenSAM, Vector
from paperkit.optim.sam import ball_maximizer

# Some ten units of round-off of numbers near one.
EXACT = {"rtol": 0.0, "atol": 2e-15}


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("p", "gradient"),
    [
        # g = (3, 4); ε = ρ (0.6, 0.8), and the gradient there is (3, 4) + (3 · 0.3, 4 · 0.4).
        (2.0, (3.9, 5.6)),
        (math.inf, (4.5, 6.0)),
        (1.0, (3.0, 6.0)),
        # q = 3/2: ε = ρ (√3, 2) / (3^1.5 + 8)^(1/3).
        (
            3.0,
            (
                3 + 1.5 * math.sqrt(3) / (3**1.5 + 8) ** (1 / 3),
                4 + 4 / (3**1.5 + 8) ** (1 / 3),
            ),
        ),
    ],
)
def test_one_step_of_sam_on_a_quadratic_is_the_one_worked_by_hand(p, gradient) -> None:
    w, loss = quadratic(diagonal(3.0, 4.0), (1.0, 1.0))
    optimizer = SAM([w], rho=0.5, p=p, lr=0.1)
    optimizer.step(Calls(optimizer, loss))
    expected = tensor(1 - 0.1 * gradient[0], 1 - 0.1 * gradient[1])
    torch.testing.assert_close(w.detach(), expected, **EXACT)


@pytest.mark.parametrize("p", [1.0, 1.3, 2.0, 3.0, math.inf])
def test_the_direction_of_sam_maximises_the_inner_product_over_the_ball(p) -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(7, generator=generator, dtype=torch.float64)
    epsilon = ball_maximizer(Vector([g[:3], g[3:]]), p)
    direction = torch.cat(epsilon.tensors)
    assert float(torch.linalg.vector_norm(direction, p)) == pytest.approx(1.0, abs=1e-14)
    others = torch.randn(1000, 7, generator=generator, dtype=torch.float64)
    others /= torch.linalg.vector_norm(others, p, dim=1, keepdim=True)
    assert float((others @ g).max()) < float(direction @ g)
    # Hölder: the maximum is the dual norm.
    q = math.inf if p == 1.0 else 1.0 if p == math.inf else p / (p - 1)
    dual = float(torch.linalg.vector_norm(g, q))
    assert float(direction @ g) == pytest.approx(dual, rel=1e-14)


def test_normalised_sam_with_a_constant_step_ends_in_the_two_cycle() -> None:
    # |w| = ηλρ / (2 − ηλ), alternating in sign.
    eta, rho, eigenvalue = 0.3, 0.2, 2.0
    w, loss = quadratic(diagonal(eigenvalue), (1.0,))
    optimizer = SAM([w], rho=rho, lr=eta)
    closure = Calls(optimizer, loss)
    for _ in range(200):
        optimizer.step(closure)
    before = w.item()
    optimizer.step(closure)
    cycle = eta * eigenvalue * rho / (2 - eta * eigenvalue)
    assert abs(before) == pytest.approx(cycle, rel=1e-13)
    assert w.item() == pytest.approx(-before, rel=1e-13)


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_normalised_sam_with_a_constant_step_diverges_beyond_the_edge_of_descent(factor) -> None:
    # w⁺ = (1 − ηλ) w − ηλρ sign(w): |w| grows without bound iff ηλ ≥ 2.
    eigenvalue, rho = 4.0, 0.01
    w, loss = quadratic(diagonal(eigenvalue), (1.0,))
    optimizer = SAM([w], rho=rho, lr=factor * 2 / eigenvalue)
    plain, plain_loss = quadratic(diagonal(eigenvalue), (1.0,))
    descent = torch.optim.SGD([plain], lr=factor * 2 / eigenvalue)
    for _ in range(400):
        optimizer.step(Calls(optimizer, loss))
        descent.step(Calls(descent, plain_loss))
    cycle = 2 * factor * rho / abs(2 - 2 * factor)
    if factor < 1:
        assert abs(w.item()) == pytest.approx(cycle, rel=1e-3)
        assert plain.item() == pytest.approx((1 - 2 * factor) ** 400, rel=1e-9)
        assert abs(plain.item()) < 1e-3
    else:
        growth = (2 * factor - 1) ** 400
        assert abs(w.item()) == pytest.approx((1.0 + cycle) * growth - cycle, rel=1e-9)
        assert abs(plain.item()) == pytest.approx(growth, rel=1e-9)


@pytest.mark.parametrize("kappa", [0.01, 100.0])
def test_sam_does_not_see_the_scale_of_the_loss_when_the_step_size_follows_it(kappa) -> None:
    ends = []
    for scale in (1.0, kappa):
        w, loss = quadratic(diagonal(3.0, 0.5), (1.0, -0.5))
        optimizer = SAM([w], rho=0.2, lr=0.1 / scale)
        for _ in range(20):
            optimizer.step(Calls(optimizer, lambda scale=scale, loss=loss: scale * loss()))
        ends.append(w.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0.0)


def test_one_step_of_asam_on_a_quadratic_is_the_one_worked_by_hand() -> None:
    # w = (2, 1), g = (2, 4), T = (2, 1), Tg = (4, 4): ε = ρ (8, 4) / (4√2).
    w, loss = quadratic(diagonal(1.0, 4.0), (2.0, 1.0))
    optimizer = ASAM([w], rho=0.5, eta=0.0, scaled="all", lr=0.1)
    optimizer.step(Calls(optimizer, loss))
    half = 0.5 / math.sqrt(2)
    expected = tensor(2 - 0.1 * (2 + 2 * half), 1 - 0.1 * (4 + 4 * half))
    torch.testing.assert_close(w.detach(), expected, **EXACT)


@pytest.mark.parametrize("named", [True, False])
def test_asam_scales_weights_and_the_scale_of_normalisation_but_no_bias(named) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    optimizer = ASAM(model.named_parameters() if named else model, rho=0.5, eta=0.01)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    w = {name: p.detach().clone() for name, p in model.named_parameters()}
    g = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.first_step()
    scale = {n: x.abs() + 0.01 if "weight" in n else torch.ones_like(x) for n, x in w.items()}
    length = math.sqrt(sum(float((scale[n] * g[n]).square().sum()) for n in w))
    for name, parameter in model.named_parameters():
        expected = w[name] + 0.5 * scale[name] ** 2 * g[name] / length
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-14, atol=1e-15)


def test_asam_refuses_to_guess_what_a_nameless_tensor_is() -> None:
    w, loss = quadratic(diagonal(1.0, 4.0), (2.0, 1.0))
    optimizer = ASAM([w])
    with pytest.raises(ValueError, match="goes by names"):
        optimizer.step(Calls(optimizer, loss))
    assert torch.equal(w.detach(), tensor(2.0, 1.0))


def test_one_step_of_eigen_sam_is_the_one_worked_by_hand() -> None:
    # A = diag(1, 2), w = (4, 1.5): g = (4, 3), ĝ = (.8, .6), v = ±e₂, gᵀv v = 3 e₂.
    # g̃ = ĝ + ½ (e₂ − .6 ĝ) = (.56, .92).
    w, loss = quadratic(diagonal(1.0, 2.0), (4.0, 1.5))
    optimizer = EigenSAM([w], rho=0.1, alpha=0.5, iterations=60, lr=0.1)
    optimizer.step(Calls(optimizer, loss))
    length = math.hypot(0.56, 0.92)
    gradient = (4 + 0.056 / length, 3 + 2 * 0.092 / length)
    expected = tensor(4 - 0.1 * gradient[0], 1.5 - 0.1 * gradient[1])
    # The difference of gradients carries a rounding error of order ε‖g‖/τ.
    torch.testing.assert_close(w.detach(), expected, rtol=0.0, atol=1e-12)


def test_the_perturbation_of_eigen_sam_has_the_sign_of_the_eigenvector_removed() -> None:
    g, v = tensor(4.0, 3.0), tensor(0.0, 1.0)
    epsilons = []
    for sign in (1.0, -1.0):
        w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        w.grad = g.clone()
        optimizer = EigenSAM([w], rho=1.0)
        optimizer.state[w]["eigenvector"] = sign * v
        optimizer.first_step()
        epsilons.append(w.detach().clone())
    torch.testing.assert_close(*epsilons, **EXACT)
    assert not torch.allclose(epsilons[0], g / g.norm())


def test_power_iterations_find_the_top_eigenvector_of_a_network_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 2)).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    optimizer = EigenSAM(model, iterations=300, tau=1e-4)
    modes = []

    def loss() -> torch.Tensor:
        modes.append(model.training)
        return (model(inputs) - targets).square().mean()

    optimizer.renew_eigenvector(Calls(optimizer, loss))
    assert not any(modes) and all(module.training for module in model.modules())
    shapes = [p.shape for p in model.parameters()]

    def value(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([s.numel() for s in shapes])
        w1, b1, w2, b2 = (p.view(s) for p, s in zip(parts, shapes, strict=True))
        return (torch.tanh(inputs @ w1.T + b1) @ w2.T + b2 - targets).square().mean()

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    eigenvalues, vectors = torch.linalg.eigh(torch.func.hessian(value)(flat))
    order = eigenvalues.abs().argsort(descending=True)
    assert float(eigenvalues[order[1]].abs() / eigenvalues[order[0]].abs()) < 0.95
    top = vectors[:, order[0]]
    found = torch.cat([optimizer.state[p]["eigenvector"].flatten() for p in model.parameters()])
    # 0.95³⁰⁰ = 2e-7; the differences' own error is of order τ².
    assert 1.0 - abs(float(found @ top)) < 1e-6
    assert optimizer.gradient_evaluations == 600


def test_eigen_sam_by_hand_needs_its_eigenvector_first() -> None:
    w, loss = quadratic(diagonal(1.0, 2.0), (4.0, 1.5))
    optimizer = EigenSAM([w])
    loss().backward()
    with pytest.raises(RuntimeError, match="renew_eigenvector"):
        optimizer.first_step()


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda w: SAM([w], p=0.5), "p=0.5"),
        (lambda w: ASAM([w], eta=-1.0), "eta=-1.0"),
        (lambda w: ASAM([w], scaled="some"), "scaled='some'"),
        (lambda w: EigenSAM([w], period=0), "period=0"),
        (lambda w: EigenSAM([w], tau=0.0), "tau=0.0"),
        (lambda w: SAM([w], max_norm=0.0), "max_norm=0.0"),
    ],
)
def test_options_out_of_range_are_refused_by_name(make, argument) -> None:
    with pytest.raises(ValueError, match=argument):
        make(nn.Parameter(torch.zeros(2)))
