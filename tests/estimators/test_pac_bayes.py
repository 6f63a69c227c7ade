"""PAC-Bayes flatness where the noise that costs a tenth of the accuracy is known."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from networks import NAMED
from torch import Tensor, nn

from paperkit.estimators.pac_bayes import pac_bayes_flatness
from paperkit.estimators.parameter_norm import parameter_norm


class Threshold(nn.Module):
    """Sample i is classified as 0 where its input lies below w / unit."""

    def __init__(self, w: float, unit: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((1, 1), w * unit, dtype=torch.float64))
        self.unit = unit

    def forward(self, inputs: Tensor) -> Tensor:
        margin = self.w / self.unit - inputs
        return torch.cat([margin, torch.zeros_like(margin)], dim=1)


def _thresholds(n: int) -> tuple[Tensor, Tensor]:
    inputs = torch.linspace(-1.0, 0.9, n, dtype=torch.float64).unsqueeze(1)
    return inputs, torch.zeros(n, dtype=torch.int64)


def test_noise_of_standard_deviation_sigma_costs_a_tenth_of_the_accuracy() -> None:
    # The only sample is classified correctly where 1 + σε > 0, so the drop is Φ(−1/σ), which is 0.1
    # at σ = 1/1.28155.
    data = (torch.zeros(1, 1).double(), torch.tensor([0]))
    draws, tolerance = 500, 0.002
    result = pac_bayes_flatness(Threshold(1.0), data, draws=draws, tolerance=tolerance)
    exact = 1 / 1.2815515655
    density = math.exp(-0.5 / exact**2) / math.sqrt(2 * math.pi)
    slope = density / exact**2
    drop_error = math.sqrt(0.09 / draws)
    assert result.converged
    assert result.accuracy == 1.0
    assert abs(result.sigma - exact) < (4 * drop_error + tolerance) / slope
    # The chord from the origin is less steep than the curve, so the error is on the safe side.
    assert result.sigma_error > drop_error / slope
    sample_deviation = math.sqrt(result.drop * (1 - result.drop) / (draws - 1))
    assert result.sigma_error == pytest.approx(
        result.sigma * sample_deviation / result.drop, rel=1e-9
    )


def test_sigma_is_in_units_of_the_parameters() -> None:
    """It would not scale in proportion if the draws changed with σ, or σ² were the deviation."""
    data = _thresholds(50)
    small = pac_bayes_flatness(Threshold(1.0), data)
    large = pac_bayes_flatness(Threshold(1.0, unit=4.0), data, max_sigma=8.0)
    assert large.sigma == 4.0 * small.sigma
    assert large.drop == small.drop
    assert float(large) == pytest.approx(float(small) / 4.0, rel=1e-14)


def test_drop_lies_within_the_tolerance_or_the_result_says_not_converged() -> None:
    data = _thresholds(400)
    fine = pac_bayes_flatness(Threshold(1.0), data, tolerance=0.005)
    assert fine.converged
    assert abs(fine.drop - 0.1) < 0.005
    coarse = pac_bayes_flatness(Threshold(1.0), data, tolerance=0.005, max_bisections=1)
    assert (coarse.sigma, coarse.converged) == (1.0, abs(coarse.drop - 0.1) < 0.005)


def test_a_network_that_noise_cannot_hurt_has_no_sigma() -> None:
    data = (torch.full((4, 1), -1e9).double(), torch.zeros(4, dtype=torch.int64))
    result = pac_bayes_flatness(Threshold(1.0), data)
    assert not result.converged
    assert result.sigma == pytest.approx(2.0, rel=1e-4)
    assert math.isinf(result.standard_error)


def test_outputs_that_the_noise_makes_infinite_count_as_wrong() -> None:
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    data = (torch.full((5, 3), 1e38), torch.zeros(5, dtype=torch.int64))
    result = pac_bayes_flatness(model, data, max_sigma=64.0, max_bisections=1, draws=50)
    # Outputs are sums of three normal entries of deviation 32 × 1e38, and single precision holds
    # only those below 3.4e38.
    assert result.accuracy == 1.0
    assert result.drop > 0.5


@pytest.mark.parametrize("form", ["flat", "original"])
def test_value_and_error_follow_from_sigma(form: str) -> None:
    model, inputs, _ = NAMED["relu MLP"].make(n=40)
    labels = model(inputs).argmax(1)
    result = pac_bayes_flatness(model, (inputs, labels), form)
    square = parameter_norm(model, squared=True).value

    def value(sigma: float) -> float:
        flat = 1 / sigma**2
        original = square / (4 * sigma**2) + math.log(40 / sigma) + 10
        return math.sqrt((flat if form == "flat" else original) / 40)

    assert float(result) == pytest.approx(value(result.sigma), rel=1e-13)
    assert result.complexity == pytest.approx(40 * float(result) ** 2, rel=1e-13)
    step = 1e-5 * result.sigma
    slope = (value(result.sigma - step) - value(result.sigma + step)) / (2 * step)
    assert result.standard_error == pytest.approx(slope * result.sigma_error, rel=1e-7)


def test_noise_reaches_only_the_named_parameters() -> None:
    model, inputs, _ = NAMED["relu MLP"].make(n=40)
    labels = model(inputs).argmax(1)
    all_of_them = pac_bayes_flatness(model, (inputs, labels))
    one = pac_bayes_flatness(model, (inputs, labels), parameters=["4.bias"])
    assert one.sigma > all_of_them.sigma


def test_uneven_batches_count_samples_not_batches() -> None:
    model, inputs, _ = NAMED["residual"].make(n=9)
    labels = model.eval()(inputs).argmax(1)
    whole = pac_bayes_flatness(model, (inputs, labels), draws=3)
    parts = list(zip(inputs.split([6, 1, 2]), labels.split([6, 1, 2]), strict=True))
    batched = pac_bayes_flatness(model, parts, draws=3)
    assert (batched.sigma, batched.n) == (whole.sigma, 9)


def test_batch_normalisation_that_is_not_folded_is_reported() -> None:
    for name, count in (("residual", 1), ("LeNet", 0)):
        model, inputs, labels = NAMED[name].make()
        result = pac_bayes_flatness(model, (inputs, labels), draws=2, max_bisections=2)
        assert result.assumptions["unfolded_batch_norm"] == count


def test_scale_of_weights_before_batch_normalisation_moves_the_value() -> None:
    model, inputs, _ = NAMED["residual"].make(n=40)
    labels = model.eval()(inputs).argmax(1)
    # PyTorch 2.11 refuses zero; this leaves every sum as it is.
    model.norm.eps = sys.float_info.min
    names = ["stem.weight"]
    small = pac_bayes_flatness(model, (inputs, labels), parameters=names, tolerance=0.05)
    with torch.no_grad():
        model.stem.weight.mul_(4.0)
        model.norm.running_mean.mul_(4.0)
        model.norm.running_var.mul_(16.0)
    assert torch.equal(model(inputs).argmax(1), labels)
    large = pac_bayes_flatness(
        model, (inputs, labels), parameters=names, tolerance=0.05, max_sigma=8.0
    )
    assert large.sigma == 4.0 * small.sigma


def test_model_is_left_as_found_also_after_an_error() -> None:
    model, inputs, labels = NAMED["residual"].make()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    pac_bayes_flatness(model, (inputs, labels), draws=2, max_bisections=2)
    with pytest.raises(ValueError, match="targets"):
        pac_bayes_flatness(model, (inputs, labels + 3))
    assert model.training and model.norm.training
    assert all(torch.equal(before[k], tensor) for k, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_measure_runs_on_the_models_device(device: torch.device, explicit_devices) -> None:
    model, inputs, labels = NAMED["residual"].make(device=device)
    with explicit_devices():
        result = pac_bayes_flatness(model, (inputs, labels), "original", draws=2, max_bisections=3)
    assert math.isfinite(float(result))


def test_bad_arguments_are_refused_with_their_names() -> None:
    model, inputs, labels = NAMED["relu MLP"].make()
    for options, message in (
        ({"form": "sharp"}, "form='sharp'"),
        ({"accuracy_drop": 0.0}, "accuracy_drop=0"),
        ({"tolerance": 0.2}, "tolerance=0.2"),
        ({"max_sigma": 0.0}, "max_sigma=0"),
        ({"max_bisections": 0}, "max_bisections=0"),
        ({"draws": 1}, "draws=1"),
        ({"parameters": ["nowhere"]}, "nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            pac_bayes_flatness(model, (inputs, labels), **options)
