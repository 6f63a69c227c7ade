"""Worst-case sharpness where the maximizer is known, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Quadratic, every_case
from networks import NAMED, Case
from torch import Tensor, nn

from paperkit.estimators.worst_case import asam_sharpness, sam_sharpness


def _quadratic(eigenvalues: list[float], point: list[float]) -> tuple[Quadratic, tuple]:
    """½ Σ λ_j w_j², rotated by an orthogonal matrix on the outputs' side only."""
    scale = torch.tensor(eigenvalues, dtype=torch.float64).sqrt()
    generator = torch.Generator().manual_seed(0)
    d = len(eigenvalues)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    model = Quadratic(rotation * scale, torch.tensor(point, dtype=torch.float64))
    return model, (torch.zeros(2, 1).double(), torch.zeros(2, d).double())


def _trust_region_maximum(eigenvalues: Tensor, gradient: Tensor, rho: float) -> float:
    """max gᵀδ + ½ δᵀΛδ over ‖δ‖ ≤ ρ: δ = (μ − Λ)⁻¹g with μ > λ_max and ‖δ‖ = ρ, by bisection."""
    low = float(eigenvalues.max())
    high = low + float(gradient.norm()) / rho
    for _ in range(200):
        mu = 0.5 * (low + high)
        delta = gradient / (mu - eigenvalues)
        low, high = (mu, high) if float(delta.norm()) > rho else (low, mu)
    return float(gradient @ delta + 0.5 * (eigenvalues * delta.square()).sum())


class Linear(nn.Module):
    """A loss linear in the parameters: cross-entropy of two logits (−z, 0) is softplus(z) ≈ z."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([[60.0, 50.0]], dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor([-2.0], dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        z = inputs @ self.first.T + 3.0 * self.second
        return torch.cat([-z, torch.zeros_like(z)], dim=1)


LINEAR_DATA = (torch.tensor([[2.0, -1.0]], dtype=torch.float64), torch.tensor([0]))
# Gradient of z in (first, second): (2, −1, 3). At z = 64 softplus(z) − z is below 1e-27.


@pytest.mark.parametrize(("p", "dual"), [(2, math.sqrt(14.0)), (math.inf, 6.0)])
@pytest.mark.parametrize("steps", [1, 20])
def test_linear_loss_rises_by_rho_times_the_dual_norm(p: float, dual: float, steps: int) -> None:
    result = sam_sharpness(Linear(), LINEAR_DATA, rho=0.7, p=p, steps=steps)
    assert float(result) == pytest.approx(0.7 * dual, rel=1e-12)


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("scaled", ["all", "weight"])
def test_adaptive_ball_of_a_linear_loss_has_the_scaled_dual_norm(p: float, scaled: str) -> None:
    # No name contains "weight", so that T = 1 for scaled="weight".
    t = (60.5, 50.5, 2.5) if scaled == "all" else (1.0, 1.0, 1.0)
    gradient = [2.0 * t[0], -1.0 * t[1], 3.0 * t[2]]
    dual = sum(map(abs, gradient)) if p == math.inf else math.hypot(*gradient)
    result = asam_sharpness(Linear(), LINEAR_DATA, rho=0.1, p=p, eta=0.5, scaled=scaled)
    assert float(result) == pytest.approx(0.1 * dual, rel=1e-12)


@pytest.mark.parametrize("rho", [0.05, 1.0, 10.0])
def test_quadratic_reaches_the_trust_region_solution_from_below(rho: float) -> None:
    eigenvalues = [4.0, 2.0, 1.0, 0.5]
    point = [0.3, -0.8, 0.4, 1.0]
    model, data = _quadratic(eigenvalues, point)
    spectrum = torch.tensor(eigenvalues, dtype=torch.float64)
    gradient = spectrum * torch.tensor(point, dtype=torch.float64)
    exact = _trust_region_maximum(spectrum, gradient, rho)
    result = sam_sharpness(model, data, "half_squared_error", rho=rho, steps=200)
    # The tangential error shrinks by at least (1 + 2·2/4)/3 = 2/3 a step, and the value depends
    # on its square: 200 steps leave nothing but round-off.
    assert float(result) == pytest.approx(exact, rel=1e-10)
    assert float(result) <= exact * (1 + 1e-12)
    assert result.converged


def test_at_an_exact_minimum_the_rise_is_half_the_largest_eigenvalue() -> None:
    model, data = _quadratic([4.0, 2.0, 1.0, 0.5], [0.0] * 4)
    result = sam_sharpness(model, data, "half_squared_error", rho=0.3, steps=200)
    assert float(result) == pytest.approx(0.5 * 4.0 * 0.09, rel=1e-10)


def test_box_of_a_diagonal_quadratic_has_its_maximum_in_the_corner_away_from_the_minimum() -> None:
    eigenvalues, point, rho = [4.0, 2.0, 1.0, 0.5], [0.3, -0.8, 0.4, 1.0], 0.6
    model, data = _quadratic(eigenvalues, point)
    exact = sum(
        0.5 * h * ((abs(w) + rho) ** 2 - w**2) for h, w in zip(eigenvalues, point, strict=True)
    )
    result = sam_sharpness(model, data, "half_squared_error", rho=rho, p=math.inf)
    assert float(result) == pytest.approx(exact, rel=1e-12)


def test_adaptive_ball_of_a_quadratic_is_the_ball_of_the_scaled_quadratic() -> None:
    eigenvalues, point, rho = [4.0, 2.0, 1.0, 0.5], [0.3, -0.8, 0.4, 1.0], 0.5
    model, data = _quadratic(eigenvalues, point)
    w = torch.tensor(point, dtype=torch.float64)
    spectrum = torch.tensor(eigenvalues, dtype=torch.float64)
    exact = _trust_region_maximum(w.square() * spectrum, w.abs() * spectrum * w, rho)
    result = asam_sharpness(model, data, "half_squared_error", rho=rho, steps=400)
    # T²H = diag(.36, 1.28, .16, .5): the rate is at most (1 + 2·.5/1.28)/3 < 0.6.
    assert float(result) == pytest.approx(exact, rel=1e-10)


@every_case
def test_one_step_is_the_loss_at_sams_own_perturbation(case: Case) -> None:
    """SAM: ρ g/‖g‖; ASAM: ρ T² g/‖T g‖ (Kwon et al. 2021)."""
    model, inputs, labels = case.make()
    loss = nn.functional.cross_entropy
    parameters = dict(model.named_parameters())
    model.eval()
    base = loss(model(inputs), labels)
    gradients = torch.autograd.grad(base, list(parameters.values()))
    scales = [w.detach().abs() + 0.01 for w in parameters.values()]
    for measure, factors in (
        (sam_sharpness, [torch.ones_like(t) for t in scales]),
        (asam_sharpness, scales),
    ):
        norm = sum((t * g).square().sum() for t, g in zip(factors, gradients, strict=True)).sqrt()
        moved = {
            name: (w + 0.1 * t * t * g / norm).detach()
            for (name, w), t, g in zip(parameters.items(), factors, gradients, strict=True)
        }
        risen = loss(torch.func.functional_call(model, moved, (inputs,)), labels) - base
        options = {} if measure is sam_sharpness else {"eta": 0.01}
        result = measure(model, (inputs, labels), rho=0.1, steps=1, **options)
        assert result.assumptions["first_step"] == pytest.approx(float(risen.detach()), rel=1e-9)
        assert float(result) == max(0.0, result.assumptions["first_step"])


@every_case
@pytest.mark.parametrize("p", [2, math.inf])
def test_more_steps_reach_a_value_that_no_random_point_of_the_ball_beats(
    case: Case, p: float
) -> None:
    model, inputs, labels = case.make()
    rho = 0.3 if p == 2 else 0.02
    result = sam_sharpness(model, (inputs, labels), rho=rho, p=p, steps=50)
    assert float(result) >= result.assumptions["first_step"]
    generator = torch.Generator().manual_seed(1)
    model.eval()
    with torch.no_grad():
        base = nn.functional.cross_entropy(model(inputs), labels)
        for _ in range(20):
            noise = {
                k: torch.randn(w.shape, generator=generator, dtype=w.dtype)
                for k, w in model.named_parameters()
            }
            norm = sum(v.square().sum() for v in noise.values()).sqrt()
            moved = {
                k: w + rho * (noise[k].sign() if p == math.inf else noise[k] / norm)
                for k, w in model.named_parameters()
            }
            outputs = torch.func.functional_call(model, moved, (inputs,))
            assert float(nn.functional.cross_entropy(outputs, labels) - base) < float(result)


@pytest.mark.parametrize("p", [2, math.inf])
def test_adaptive_sharpness_does_not_see_the_scale_of_single_neurons(p: float) -> None:
    model, inputs, labels = NAMED["relu MLP"].make()
    options = {"rho": 0.1, "p": p, "steps": 1}
    before = asam_sharpness(model, (inputs, labels), **options)
    plain = sam_sharpness(model, (inputs, labels), **options)
    scales = torch.tensor([2.0, 0.5, 4.0, 1.0, 0.25, 8.0], dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(scales.unsqueeze(1)), model[0].bias.mul_(scales)
        model[2].weight.div_(scales)
    after = asam_sharpness(model, (inputs, labels), **options)
    # Powers of two: every perturbation scales without round-off.
    assert float(after) == pytest.approx(float(before), rel=1e-11)
    moved = sam_sharpness(model, (inputs, labels), **options)
    assert abs(float(moved) - float(plain)) > 0.01 * float(plain)


def test_an_added_eta_or_an_unscaled_bias_breaks_the_invariance() -> None:
    model, inputs, labels = NAMED["relu MLP"].make()
    variants = ({"eta": 0.5}, {"scaled": "weight"})
    before = [asam_sharpness(model, (inputs, labels), steps=1, **v) for v in variants]
    with torch.no_grad():
        model[0].weight.mul_(8.0), model[0].bias.mul_(8.0)
        model[2].weight.div_(8.0)
    after = [asam_sharpness(model, (inputs, labels), steps=1, **v) for v in variants]
    for one, other in zip(before, after, strict=True):
        assert abs(float(one) - float(other)) > 1e-3 * float(one)


def test_zero_parameters_stay_zero_in_the_adaptive_ball() -> None:
    model = nn.Linear(3, 2).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    data = (torch.ones(2, 3).double(), torch.tensor([0, 1]))
    assert float(asam_sharpness(model, data, rho=0.5)) == 0.0


def test_batches_apart_average_their_own_maxima() -> None:
    model, inputs, labels = NAMED["LeNet"].make(n=7)
    sizes = [4, 1, 2]
    parts = list(zip(inputs.split(sizes), labels.split(sizes), strict=True))
    apart = sam_sharpness(model, parts, rho=0.2, per_batch=True)
    single = [sam_sharpness(model, part, rho=0.2) for part in parts]
    expected = sum(n * float(value) for n, value in zip(sizes, single, strict=True)) / 7
    assert float(apart) == pytest.approx(expected, rel=1e-12)
    assert apart.n == 7
    common = sam_sharpness(model, parts, rho=0.2)
    whole = sam_sharpness(model, (inputs, labels), rho=0.2)
    assert float(common) == pytest.approx(float(whole), rel=1e-9)
    assert float(common) < float(apart)


def test_only_the_named_parameters_move() -> None:
    linear = Linear()
    only = sam_sharpness(linear, LINEAR_DATA, parameters=["second"], rho=0.7)
    assert float(only) == pytest.approx(0.7 * 3.0, rel=1e-12)


def test_extreme_sizes_and_precisions_work() -> None:
    torch.manual_seed(0)
    data = (torch.randn(1, 3), torch.tensor([1]))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = nn.Linear(3, 2).to(dtype)
        result = sam_sharpness(model, (data[0].to(dtype), data[1]), rho=0.5)
        assert 0 < float(result) < math.inf


def test_model_is_left_as_found_also_after_an_error() -> None:
    model, inputs, labels = NAMED["residual"].make()
    model.train()
    model.stem.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    sam_sharpness(model, (inputs, labels), steps=3)
    with pytest.raises(ValueError, match="targets"):
        asam_sharpness(model, (inputs, labels + 3))
    assert model.training and model.norm.training
    assert not model.stem.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[k], tensor) for k, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_measures_run_on_the_models_device(device: torch.device, explicit_devices) -> None:
    model, inputs, labels = NAMED["residual"].make(device=device)
    with explicit_devices():
        sam = sam_sharpness(model, (inputs, labels), steps=3)
        adaptive = asam_sharpness(model, (inputs, labels), p=math.inf, rho=0.01, steps=3)
    assert math.isfinite(float(sam)) and math.isfinite(float(adaptive))


def test_a_ball_in_which_the_loss_overflows_is_refused() -> None:
    model = nn.Linear(3, 2)
    data = (1e6 * torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"rho=1e\+35 is too large"):
        sam_sharpness(model, data, rho=1e35)


def test_bad_arguments_are_refused_with_their_names() -> None:
    model, inputs, labels = NAMED["relu MLP"].make()
    data = (inputs, labels)
    for options, message in (
        ({"rho": 0.0}, "rho=0"),
        ({"p": 1}, "p=1"),
        ({"steps": 0}, "steps=0"),
        ({"parameters": []}, "parameters="),
    ):
        with pytest.raises(ValueError, match=message):
            sam_sharpness(model, data, **options)
    with pytest.raises(ValueError, match="eta=-1"):
        asam_sharpness(model, data, eta=-1)
    with pytest.raises(ValueError, match="scaled='some'"):
        asam_sharpness(model, data, scaled="some")
