"""Measures of Jacobians in inputs, on networks: against brute force, and their conduct."""

import math

import pytest
import torch
from helpers import every_case, gaussian
from jacobians import brute_force_jacobian
from networks import NAMED
from torch import Tensor, nn

from paperkit.estimators import (
    LeftOutWarning,
    input_invariant_local_sensitivity,
    local_dimension,
    log_volume,
    maximum_local_sensitivity,
    measure,
    network_log_volume,
    network_maximum_local_sensitivity,
    normalized_maximum_local_sensitivity,
)


@every_case
def test_measures_of_networks_agree_with_brute_force(case, device) -> None:
    model, inputs, targets = case.make(device=device)
    model.eval()
    jacobian = brute_force_jacobian(model, inputs)
    values = torch.linalg.svdvals(jacobian)
    data = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    squares = values.square()
    expected = {
        maximum_local_sensitivity: values[:, 0].mean(),
        normalized_maximum_local_sensitivity: (inputs.flatten(1).norm(dim=1) * values[:, 0])
        .square()
        .mean(),
        input_invariant_local_sensitivity: (jacobian * inputs.flatten(1)[:, None])
        .square()
        .sum((1, 2))
        .mean(),
        log_volume: values.prod(dim=1).mean().log(),
        local_dimension: (squares.sum(1).square() / squares.square().sum(1)).nanmean(),
    }
    for function, value in expected.items():
        for memory_budget in (1, 2**30):
            result = function(model, data, memory_budget=memory_budget)
            assert float(result) == pytest.approx(float(value), rel=1e-10), function.__name__
            assert result.n == 6
            assert result.standard_error is None


class TwoInputs(nn.Module):
    """Every layer's input is a tensor that a second reader uses too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.second = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def hidden(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.first(inputs))

    def rest(self, hidden: Tensor) -> Tensor:
        return self.head(hidden + torch.tanh(self.second(hidden)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.rest(self.hidden(inputs))


def test_network_measures_sum_over_layers_and_count_every_reader(device) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoInputs().double().to(device)
    inputs = gaussian(4, 5).to(device)
    hidden = model.hidden(inputs).detach()
    second_input = (hidden + torch.tanh(model.second(hidden))).detach()
    values = {
        "first": torch.linalg.svdvals(brute_force_jacobian(model, inputs)),
        "second": torch.linalg.svdvals(
            torch.stack(
                [
                    torch.autograd.functional.jacobian(lambda h: model.rest(h[None])[0], row)
                    for row in hidden
                ]
            )
        ),
        "head": torch.linalg.svdvals(model.head.weight.detach()).expand(4, 3),
    }
    assert second_input.shape == (4, 6)
    data = (inputs, torch.zeros(4, dtype=torch.int64))
    result = network_maximum_local_sensitivity(model, data)
    expected = {name: float(part[:, 0].mean()) for name, part in values.items()}
    assert result.assumptions["layers"] == pytest.approx(expected, rel=1e-11)
    assert float(result) == pytest.approx(sum(expected.values()), rel=1e-11)
    volumes = {name: float(part.prod(dim=1).mean()) for name, part in values.items()}
    volume = network_log_volume(model, data)
    assert float(volume) == pytest.approx(math.log(sum(volumes.values())), rel=1e-11)
    assert volume.assumptions["layers"]["second"] == pytest.approx(
        math.log(volumes["second"]), rel=1e-11
    )


def test_network_measures_stream_in_chunks_of_any_size(device) -> None:
    model, inputs, targets = NAMED["LeNet"].make(device=device)
    whole = network_maximum_local_sensitivity(model, (inputs, targets))
    batches = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    chunked = network_maximum_local_sensitivity(model, batches, memory_budget=2**17)
    assert float(chunked) == pytest.approx(float(whole), rel=1e-12)
    assert chunked.n == whole.n == 6


def test_a_layer_called_twice_counts_each_call(device) -> None:
    model, inputs, targets = NAMED["siamese"].make(device=device)
    whole = brute_force_jacobian(model.eval(), inputs)
    halves = [torch.linalg.svdvals(part) for part in whole.split(4, dim=2)]
    sensitivities = halves[0][:, 0] + halves[1][:, 0]
    volumes = halves[0].prod(dim=1) + halves[1].prod(dim=1)
    for i in range(len(inputs)):
        sample = inputs[i : i + 1], targets[i : i + 1]
        one = network_maximum_local_sensitivity(model, sample, ["shared"])
        assert float(one) == pytest.approx(float(sensitivities[i]), rel=1e-12)
        # A ReLU that is off can make a volume zero; then ours is, and the product is round-off.
        volume = math.exp(float(network_log_volume(model, sample, ["shared"])))
        assert volume == pytest.approx(float(volumes[i]), rel=1e-11, abs=1e-15)


def test_a_layer_without_a_value_is_said_or_refused() -> None:
    class Masked(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.linear(inputs, self.weight.tril(), self.bias)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(Masked(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    data = gaussian(5, 4), torch.zeros(5, dtype=torch.int64)
    with pytest.warns(LeftOutWarning, match="leaves out 0"):
        result = network_maximum_local_sensitivity(model, data)
    assert list(result.assumptions["layers"]) == ["2"]
    assert list(result.assumptions["left_out"]) == ["0"]
    shared = measure(model, data, ["network_maximum_local_sensitivity"])
    assert shared["network_maximum_local_sensitivity"] == result
    with pytest.raises(ValueError, match="0 cannot be linearized by itself"):
        network_maximum_local_sensitivity(model, data, ["0", "2"])
    with pytest.raises(ValueError, match="0 cannot be measured"):
        network_log_volume(model[:2], data)


def test_the_model_is_left_as_it_was(device) -> None:
    model, inputs, targets = NAMED["residual"].make(device=device)
    model.train()
    model.norm.eval()
    next(model.parameters()).requires_grad_(False)
    inputs.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    for function in (maximum_local_sensitivity, log_volume, network_maximum_local_sensitivity):
        function(model, (inputs, targets))
    maximum_local_sensitivity(model, (inputs, targets), method="lanczos")
    with pytest.raises(ValueError, match="k=9"):
        log_volume(model, (inputs, targets), k=9)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not next(model.parameters()).requires_grad
    assert inputs.grad is None and not inputs.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


def test_samples_that_interact_are_refused() -> None:
    class Centred(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs - inputs.mean(dim=0)

    with pytest.raises(ValueError, match="mixes samples"):
        maximum_local_sensitivity(Centred(), (gaussian(4, 3), torch.zeros(4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, d: local_dimension(m, (d[0] * math.nan, d[1])), "NaN"),
        (lambda m, d: local_dimension(m, (d[0].long(), d[1])), "integers"),
    ],
)
def test_bad_data_are_refused_by_name(call, message) -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    with pytest.raises(ValueError, match=message):
        call(model, (inputs, targets))


def test_every_new_tensor_names_its_device(device, explicit_devices) -> None:
    model, inputs, targets = NAMED["relu MLP"].make(device=device)
    with explicit_devices():
        for function in (
            maximum_local_sensitivity,
            normalized_maximum_local_sensitivity,
            input_invariant_local_sensitivity,
            log_volume,
            local_dimension,
            network_maximum_local_sensitivity,
            network_log_volume,
        ):
            assert torch.isfinite(
                torch.tensor(float(function(model, (inputs, targets))), device="cpu")
            )
        maximum_local_sensitivity(model, (inputs, targets), method="lanczos")
