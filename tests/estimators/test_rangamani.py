"""Rangamani's sharpness against the dense scaled Hessian, and its invariance."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import every_case, every_case_some_losses, targets_for
from networks import NAMED, Case
from torch import Tensor, nn

from paperkit.curvature import dense_hessian
from paperkit.estimators.parameter_norm import weight_names
from paperkit.estimators.rangamani import rangamani_sharpness


def _brute_force(model: nn.Module, inputs: Tensor, targets: Tensor, loss: str) -> float:
    names = weight_names(model)
    hessian = dense_hessian(model, inputs, targets, loss, names)
    weights = [model.get_parameter(name).detach() for name in names]
    norms = torch.cat([w.norm().expand(w.numel()) for w in weights])
    return float(torch.linalg.eigvalsh(norms.unsqueeze(1) * hessian * norms)[-1])


@every_case_some_losses
def test_value_is_the_largest_eigenvalue_of_the_dense_scaled_hessian(case: Case, loss: str) -> None:
    model, inputs, labels = case.make()
    targets = targets_for(loss, labels)
    result = rangamani_sharpness(model, (inputs, targets), loss, tolerance=1e-6)
    # An eigenvector with a relative residual r gives its eigenvalue to r² λ²/gap: the gap is the
    # only unknown, and 1e-8 stands for a gap of a ten-thousandth.
    assert result.converged
    assert float(result) == pytest.approx(_brute_force(model, inputs, targets, loss), rel=1e-8)


@every_case
def test_bracket_holds_the_largest_eigenvalue(case: Case) -> None:
    model, inputs, targets = case.make()
    result = rangamani_sharpness(model, (inputs, targets), tolerance=1e-3)
    exact = _brute_force(model, inputs, targets, "cross_entropy")
    low, high = result.bracket
    assert low - 1e-12 <= exact <= high + 1e-12
    assert high - low <= 2e-3 * abs(float(result)) + 1e-12


def test_a_hand_worked_layer_has_its_value() -> None:
    # f = w·x, ½f²: H = xxᵀ, so the value is ‖w‖² ‖x‖² = 5 · 25.
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    data = (torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double())
    assert float(rangamani_sharpness(model, data, "half_squared_error")) == pytest.approx(
        125.0, rel=1e-10
    )


def test_rescaling_layers_of_a_homogeneous_network_changes_nothing() -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    before = rangamani_sharpness(model, (inputs, targets), tolerance=1e-8)
    with torch.no_grad():
        model[0].weight.mul_(8.0), model[0].bias.mul_(8.0)
        model[2].weight.mul_(0.5), model[2].bias.mul_(4.0)
        model[4].weight.mul_(0.25)
    after = rangamani_sharpness(model, (inputs, targets), tolerance=1e-8)
    assert float(after) == pytest.approx(float(before), rel=1e-10)


def test_rescaling_single_neurons_changes_the_value() -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    before = rangamani_sharpness(model, (inputs, targets))
    scales = torch.tensor([2.0, 0.5, 4.0, 1.0, 0.25, 8.0], dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(scales.unsqueeze(1)), model[0].bias.mul_(scales)
        model[2].weight.div_(scales)
    after = rangamani_sharpness(model, (inputs, targets))
    assert abs(float(after) - float(before)) > 0.01 * float(before)


def test_uneven_batches_count_samples_not_batches() -> None:
    model, inputs, targets = NAMED["residual"].make(n=7)
    whole = rangamani_sharpness(model, (inputs, targets), tolerance=1e-8)
    parts = list(zip(inputs.split([4, 1, 2]), targets.split([4, 1, 2]), strict=True))
    batched = rangamani_sharpness(model, parts, tolerance=1e-8)
    assert float(batched) == pytest.approx(float(whole), rel=1e-10)
    assert batched.n == 7


def test_only_the_named_parameters_count() -> None:
    model, inputs, targets = NAMED["one layer"].make()
    hessian = dense_hessian(model, inputs, targets, parameters=["weight"])
    square = float(model.weight.detach().square().sum())
    expected = square * float(torch.linalg.eigvalsh(hessian)[-1])
    data = (inputs, targets)
    for names in (None, ["weight"]):
        result = rangamani_sharpness(model, data, parameters=names)
        assert float(result) == pytest.approx(expected, rel=1e-8)
        assert result.assumptions["parameters"] == ("weight",)


def test_network_at_the_top_of_its_loss_has_a_value_below_zero() -> None:
    """The largest eigenvalue is the algebraic one, not the one of largest magnitude."""

    class Hill(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1, 2, dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            scale = torch.tensor([1.0, 3.0], dtype=torch.float64, device=inputs.device)
            return (10.0 - 0.5 * self.w.square() @ scale).expand(len(inputs), 1)

    # f = 10 − ½(w₁² + 3w₂²) = 8, H = f ∇²f + ∇f∇fᵀ = 8·diag(−1, −3) + (1, 3)(1, 3)ᵀ.
    hessian = torch.tensor([[-7.0, 3.0], [3.0, -15.0]], dtype=torch.float64)
    data = (torch.zeros(1, 1).double(), torch.zeros(1, 1).double())
    result = rangamani_sharpness(Hill(), data, "half_squared_error")
    assert float(result) == pytest.approx(2 * float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-8)
    assert float(result) < 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_other_precisions_agree_to_their_round_off(dtype: torch.dtype, tolerance: float) -> None:
    model, inputs, targets = NAMED["LeNet"].make()
    exact = rangamani_sharpness(model, (inputs, targets))
    rounded = rangamani_sharpness(model.to(dtype), (inputs.to(dtype), targets), tolerance=tolerance)
    assert float(rounded) == pytest.approx(float(exact), rel=tolerance)


def test_model_is_left_as_found_also_after_an_error() -> None:
    model, inputs, targets = NAMED["residual"].make()
    model.train()
    model.stem.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    rangamani_sharpness(model, (inputs, targets))
    with pytest.raises(ValueError, match="targets"):
        rangamani_sharpness(model, (inputs, targets + 3))
    assert model.training and model.norm.training
    assert not model.stem.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[k], tensor) for k, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_measure_runs_on_the_models_device(device: torch.device, explicit_devices) -> None:
    model, inputs, targets = NAMED["residual"].make(device=device)
    with explicit_devices():
        result = rangamani_sharpness(model, (inputs, targets))
    assert math.isfinite(float(result))


def test_bad_arguments_are_refused_with_their_names() -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    with pytest.raises(ValueError, match="nowhere"):
        rangamani_sharpness(model, (inputs, targets), parameters=["nowhere"])
    with pytest.raises(ValueError, match="tolerance=0"):
        rangamani_sharpness(model, (inputs, targets), tolerance=0.0)
