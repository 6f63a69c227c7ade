"""Adaptive sharpness against dense Hessians, quadratics and its own limit."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Quadratic, every_case, every_case_some_losses, targets_for
from networks import NAMED, Case
from torch import Tensor, nn

from paperkit.curvature import dense_hessian, dense_jacobian
from paperkit.estimators import measure
from paperkit.estimators.adaptive_sharpness import adaptive_sharpness, average_adaptive_sharpness
from paperkit.linearize import linearize


def _quadratic(
    *, device: torch.device | str = "cpu"
) -> tuple[Quadratic, tuple[Tensor, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    model = Quadratic(root, torch.randn(5, generator=generator, dtype=torch.float64)).to(device)
    data = (torch.zeros(3, 1).double().to(device), torch.zeros(3, 5).double().to(device))
    return model, data, root.T @ root


def _smooth() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, (torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2]))


@every_case_some_losses
def test_value_is_the_weighted_diagonal_of_the_dense_hessian(case: Case, loss: str) -> None:
    model, inputs, labels = case.make()
    targets = targets_for(loss, labels)
    diagonal = dense_hessian(model, inputs, targets, loss).diagonal()
    parameters = dict(model.named_parameters())
    parts = diagonal.split([parameter.numel() for parameter in parameters.values()])
    result = adaptive_sharpness(model, (inputs, targets), loss)
    expected = {
        name: float((parameter.detach().flatten().square() * part).sum())
        for (name, parameter), part in zip(parameters.items(), parts, strict=True)
    }
    scale = sum(abs(value) for value in expected.values())
    assert result.by_parameter == pytest.approx(expected, rel=1e-8, abs=1e-12 * scale)
    assert float(result) == pytest.approx(sum(expected.values()), rel=1e-8)
    assert (result.method, result.standard_error, result.n) == ("exact", None, 6)


def test_a_weight_that_is_also_used_outside_its_layer_is_left_to_products() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(3, 4, bias=False)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.encode(inputs).tanh() @ self.encode.weight

    torch.manual_seed(0)
    model = Tied().double()
    inputs, targets = torch.randn(5, 3).double(), torch.tensor([0, 1, 2, 0, 1])
    assert "used outside" in linearize(model, inputs).left_out["encode"]
    diagonal = dense_hessian(model, inputs, targets).diagonal()
    expected = float((model.encode.weight.detach().flatten().square() * diagonal).sum())
    result = adaptive_sharpness(model, (inputs, targets))
    assert float(result) == pytest.approx(expected, rel=1e-10)
    assert result.n == 5


def test_a_hand_worked_quadratic_gives_its_value() -> None:
    # H = diag(3, 0.75), w = (1, 2): 1·3 + 4·0.75 = 6.
    root = torch.tensor([[3.0, 0.0], [0.0, 0.75]], dtype=torch.float64).sqrt()
    model = Quadratic(root, torch.tensor([1.0, 2.0], dtype=torch.float64))
    data = (torch.zeros(1, 1).double(), torch.zeros(1, 2).double())
    assert float(adaptive_sharpness(model, data, "half_squared_error")) == pytest.approx(
        6.0, rel=1e-14
    )


def test_at_interpolation_it_is_the_mean_of_weighted_squared_gradients() -> None:
    """Compression paper, equation 42: with ½‖f − y‖² and f = y nothing but JᵀJ is left."""
    model, inputs, _ = NAMED["tanh before the second layer"].make()
    targets = model(inputs).detach()
    jacobian = dense_jacobian(model, inputs)
    w = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    expected = float((jacobian * w).square().sum()) / len(inputs)
    value = adaptive_sharpness(model, (inputs, targets), "half_squared_error")
    assert float(value) == pytest.approx(expected, rel=1e-10)


def test_chosen_parameters_add_up_to_the_whole() -> None:
    model, inputs, targets = NAMED["functional gate"].make()
    names = [name for name, _ in model.named_parameters()]
    parts = [adaptive_sharpness(model, (inputs, targets), parameters=[name]) for name in names]
    whole = adaptive_sharpness(model, (inputs, targets))
    assert sum(map(float, parts)) == pytest.approx(float(whole), rel=1e-12)
    assert list(whole.by_parameter) == names


def test_scales_of_single_parameters_do_not_matter_where_the_function_does_not_see_them() -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    before = adaptive_sharpness(model, (inputs, targets))
    scales = torch.tensor([2.0, 0.5, 4.0, 1.0, 0.25, 8.0], dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(scales.unsqueeze(1)), model[0].bias.mul_(scales)
        model[2].weight.div_(scales)
    after = adaptive_sharpness(model, (inputs, targets))
    assert after.by_parameter == pytest.approx(before.by_parameter, rel=1e-11)


def test_random_probes_agree_with_the_exact_value_within_their_error() -> None:
    model, inputs, targets = NAMED["GELU before the second layer"].make()
    exact = adaptive_sharpness(model, (inputs, targets))
    estimate = adaptive_sharpness(model, (inputs, targets), max_products=0, probes=300)
    assert (estimate.method, estimate.probes) == ("hutchinson", 300)
    assert abs(float(estimate) - float(exact)) < 4 * estimate.standard_error
    # Exact layers keep their exact part.
    assert estimate.by_parameter["2.weight"] == exact.by_parameter["2.weight"]


@every_case
def test_the_shared_pass_gives_the_weights_part(case: Case) -> None:
    model, data = case.make()[0], case.make()[1:]
    whole = adaptive_sharpness(model, data).by_parameter
    shared = measure(model, data, ["adaptive_weight_sharpness"], products=1000)
    result = shared["adaptive_weight_sharpness"]
    weights = result.assumptions["parameters"]
    assert set(weights) == {name for name, p in model.named_parameters() if p.ndim > 1}
    assert float(result) == pytest.approx(sum(whole[name] for name in weights), rel=1e-12)
    assert (result.method, result.n) == ("exact", 6)


def test_what_products_are_too_few_for_is_estimated_in_the_shared_pass() -> None:
    model, inputs, targets = NAMED["functional gate"].make()
    exact = measure(model, (inputs, targets), ["adaptive_weight_sharpness"], products=1000)
    shared = measure(model, (inputs, targets), ["adaptive_weight_sharpness"], products=20)
    result = shared["adaptive_weight_sharpness"]
    assert (result.method, result.probes) == ("hutchinson", 20)
    error = abs(float(result) - float(exact["adaptive_weight_sharpness"]))
    assert 0 < error < 5 * result.standard_error


def test_a_network_without_plain_layers_has_no_weights_part() -> None:
    model, data, _ = _quadratic()
    with pytest.raises(ValueError, match="none to measure is a linear or convolution layer"):
        measure(model, data, ["adaptive_weight_sharpness"], "half_squared_error")


@pytest.mark.parametrize("name", ["residual", "siamese", "functional gate"])
def test_uneven_batches_and_small_memory_give_the_same_value(name: str) -> None:
    model, inputs, targets = NAMED[name].make(n=7)
    whole = adaptive_sharpness(model, (inputs, targets))
    batches = list(zip(inputs.split([4, 1, 2]), targets.split([4, 1, 2]), strict=True))
    parts = adaptive_sharpness(model, batches, memory_budget=40_000)
    assert float(parts) == pytest.approx(float(whole), rel=1e-12)
    assert parts.n == 7
    sampled = average_adaptive_sharpness(model, batches, probes=3)
    at_once = average_adaptive_sharpness(model, (inputs, targets), probes=3)
    assert float(sampled) == pytest.approx(float(at_once), rel=1e-9)


def test_average_on_a_quadratic_is_exact_at_every_radius() -> None:
    model, data, hessian = _quadratic()
    w = model.point.detach()
    values = [
        average_adaptive_sharpness(model, data, "half_squared_error", rho=rho, probes=400)
        for rho in (0.01, 0.3, 3.0)
    ]
    exact = float((w * w * hessian.diagonal()).sum())
    for value in values:
        # All radii share their draws, and a quadratic has no higher orders in the radius.
        assert float(value) == pytest.approx(
            float(values[0]), abs=10 * values[0].assumptions["round_off"]
        )
        assert abs(float(value) - exact) < 4 * value.standard_error
    # Gaussian quadratic forms: the variance of one is 2‖WHW‖².
    scaled = w.unsqueeze(1) * hessian * w
    expected = math.sqrt(2 * float(scaled.square().sum()) / 400)
    # The sample deviation of 400 forms of kurtosis at most 15 is within 4 · √(14/1600) = 37 %.
    assert values[1].standard_error == pytest.approx(expected, rel=0.37)


def test_average_approaches_the_limit_with_slope_two() -> None:
    """The error is O(ρ²): with the same draws, halving ρ divides the change by four."""
    model, data = _smooth()
    values = [
        float(average_adaptive_sharpness(model, data, rho=rho, probes=10))
        for rho in (0.02, 0.01, 0.005)
    ]
    # The next order adds O(ρ²) to the ratio 4.
    assert (values[0] - values[1]) / (values[1] - values[2]) == pytest.approx(4.0, rel=0.1)


def test_average_agrees_with_the_limit_within_its_error() -> None:
    model, data = _smooth()
    limit = adaptive_sharpness(model, data)
    sampled = average_adaptive_sharpness(model, data, rho=1e-3, probes=400)
    assert abs(float(sampled) - float(limit)) < 4 * sampled.standard_error


def test_kinks_within_reach_of_the_noise_count_in_the_average_only() -> None:
    """½ (relu(w − 0.9) − 10)² at w = 1 has curvature 1; its kink is half a unit of ρ = 0.2 away."""

    class Kink(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.full((1,), 1.0, dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            return torch.relu(self.w - 0.9).expand(len(inputs), 1)

    model = Kink()
    data = (torch.zeros(1, 1).double(), torch.full((1, 1), 10.0).double())
    limit = adaptive_sharpness(model, data, "half_squared_error")
    assert float(limit) == pytest.approx(1.0, rel=1e-14)
    near = average_adaptive_sharpness(model, data, "half_squared_error", rho=0.01, probes=200)
    far = average_adaptive_sharpness(model, data, "half_squared_error", rho=0.2, probes=200)
    assert abs(float(near) - 1.0) < 4 * near.standard_error
    assert abs(float(far) - 1.0) > 10 * far.standard_error


def test_the_printed_estimator_misses_the_factor_two_over_rho_squared() -> None:
    """Equation 46 is the mean loss difference itself; at ρ = 0.1 it is 200 times smaller."""
    model, data, hessian = _quadratic()
    w = model.point.detach()
    exact = float((w * w * hessian.diagonal()).sum())
    value = average_adaptive_sharpness(model, data, "half_squared_error", rho=0.1, probes=300)
    generator = torch.Generator().manual_seed(5)
    delta = 0.1 * w * torch.randn(200_000, 5, generator=generator, dtype=torch.float64)
    differences = 0.5 * ((delta @ hessian) * delta).sum(1) + delta @ hessian @ w
    printed = float(differences.mean())
    error = 200 * float(differences.std()) / math.sqrt(200_000)
    assert abs(200 * printed - exact) < 4 * error
    assert abs(200 * printed - float(value)) < 4 * math.hypot(error, value.standard_error)


def test_model_is_left_as_found_also_after_an_error() -> None:
    model, inputs, targets = NAMED["residual"].make()
    model.train()
    model.stem.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    adaptive_sharpness(model, (inputs, targets))
    average_adaptive_sharpness(model, (inputs, targets), probes=2)
    for function in (adaptive_sharpness, average_adaptive_sharpness):
        with pytest.raises(ValueError, match="targets"):
            function(model, (inputs, targets + 3))
    assert model.training and model.norm.training
    assert not model.stem.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[k], tensor) for k, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_agree_to_their_round_off(dtype: torch.dtype) -> None:
    model, inputs, targets = NAMED["LeNet"].make()
    exact = adaptive_sharpness(model, (inputs, targets))
    rounded = adaptive_sharpness(model.to(dtype), (inputs.to(dtype), targets))
    # A sum of squares of products of about ten rounded factors.
    tolerance = 20 * torch.finfo(dtype).eps
    assert float(rounded) == pytest.approx(float(exact), rel=tolerance)


@pytest.mark.parametrize("name", ["residual", "functional gate"])
def test_measures_run_on_the_models_device(
    name: str, device: torch.device, explicit_devices
) -> None:
    model, inputs, targets = NAMED[name].make(device=device)
    with explicit_devices():
        values = (
            adaptive_sharpness(model, (inputs, targets)),
            adaptive_sharpness(model, (inputs, targets), max_products=0),
            average_adaptive_sharpness(model, (inputs, targets), probes=2),
        )
    assert all(math.isfinite(float(value)) for value in values)


def test_bad_arguments_are_refused_with_their_names() -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    data = (inputs, targets)
    with pytest.raises(ValueError, match="probes=1"):
        adaptive_sharpness(model, data, probes=1)
    with pytest.raises(ValueError, match=r"parameters=\['nowhere'\]"):
        adaptive_sharpness(model, data, parameters=["nowhere"])
    with pytest.raises(ValueError, match="rho=0"):
        average_adaptive_sharpness(model, data, rho=0)
    with pytest.raises(ValueError, match="probes=1"):
        average_adaptive_sharpness(model, data, probes=1)
