"""The mean squared gradient of the outputs, against Jacobians and Hessians written out."""

import math

import pytest
import torch
from networks import CASES, NAMED
from torch import Tensor, nn

from paperkit.curvature import dense_gauss_newton, dense_hessian, dense_jacobian
from paperkit.estimators.gauss_newton_trace import gauss_newton_trace, layer_gauss_newton_traces
from paperkit.estimators.gradient_squares import (
    SHARING,
    layer_gradient_squares,
    operator_gradient_squares,
    parameter_gradient_squares,
    position_gradient_squares,
    weight_gradient_squares,
)
from paperkit.linearize import linearize
from paperkit.network import LOSSES


def case_named(name: str):
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize(
    ("case", "loss"),
    [(case, "cross_entropy") for case in CASES]
    + [(NAMED["relu MLP"], loss) for loss in LOSSES if loss != "cross_entropy"],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_the_trace_is_that_of_the_gauss_newton_matrix(case, loss, device) -> None:
    model, inputs, targets = case.make(device=device)
    batches = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    exact = float(dense_gauss_newton(model, inputs, loss).trace())
    result = gauss_newton_trace(model, batches, loss=loss)
    assert float(result) == pytest.approx(exact, rel=1e-11)
    assert (result.n, result.loss, result.method) == (6, loss, "exact")
    shared = linearize(model, inputs, all_parameters=True)
    squares = parameter_gradient_squares(shared, loss)
    assert float(squares.mean()) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_layers_trace_is_that_of_its_block(case, device) -> None:
    model, inputs, targets = case.make(device=device)
    traces = layer_gauss_newton_traces(model, (inputs, targets), loss="cross_entropy")
    linearization = linearize(model, inputs)
    assert list(traces) == list(linearization.layers)
    for name, layer in linearization.layers.items():
        block = dense_gauss_newton(model, inputs, "cross_entropy", [layer.weight_name])
        assert float(traces[name]) == pytest.approx(float(block.trace()), rel=1e-11)
        one = gauss_newton_trace(model, (inputs, targets), [name], "cross_entropy")
        assert float(one) == pytest.approx(float(block.trace()), rel=1e-11)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_weight_gradients_are_right_sample_by_sample(case, device) -> None:
    model, inputs, _ = case.make(device=device)
    linearization = linearize(model, inputs)
    for layer in linearization.layers.values():
        exact = dense_jacobian(model, inputs, [layer.weight_name]).square().sum((1, 2))
        torch.testing.assert_close(weight_gradient_squares(layer), exact, rtol=1e-11, atol=1e-13)
        layer.memory_budget = 1  # room for no more than a sample
        torch.testing.assert_close(weight_gradient_squares(layer), exact, rtol=1e-11, atol=1e-13)


def test_both_contractions_of_the_positions_agree(device) -> None:
    # Few positions with wide channels go through Gram matrices, 100 positions through the rows.
    for size, channels in ((2, 12), (10, 2)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1), nn.Flatten(), nn.LazyLinear(3)
            )
            model(torch.zeros(1, channels, size, size))
        model = model.double().to(device)
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(3, channels, size, size, generator=generator, dtype=torch.float64)
        inputs = inputs.to(device)
        exact = dense_jacobian(model, inputs, ["0.weight"]).square().sum((1, 2))
        ours = weight_gradient_squares(linearize(model, inputs).layers["0"])
        torch.testing.assert_close(ours, exact, rtol=1e-11, atol=0.0)


# --- undoing the sharing ------------------------------------------------------------------------


def test_a_fully_connected_layers_gradient_is_the_product_of_two_norms(device) -> None:
    # Compression paper, equation 4: all ways of sharing agree where nothing is shared.
    model, inputs, _ = case_named("tanh before the second layer").make(device=device)
    for layer in linearize(model, inputs).layers.values():
        tied = weight_gradient_squares(layer)
        torch.testing.assert_close(position_gradient_squares(layer), tied, rtol=1e-12, atol=0.0)
        torch.testing.assert_close(operator_gradient_squares(layer), tied, rtol=1e-12, atol=0.0)


class Unshared(nn.Module):
    """A padded, strided convolution whose kernel has a copy of its own at every position."""

    def __init__(self, convolution: nn.Conv2d, positions: int) -> None:
        super().__init__()
        self.convolution = convolution
        kernel = convolution.weight.detach().flatten(1)
        self.kernels = nn.Parameter(kernel.repeat(positions, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        patches = nn.functional.unfold(
            inputs,
            self.convolution.kernel_size,
            padding=self.convolution.padding,
            stride=self.convolution.stride,
        )
        return torch.einsum("poi,nip->nop", self.kernels, patches).tanh().sum(2)


def test_untied_gradients_are_those_of_networks_with_free_copies(device) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolution = nn.Conv2d(2, 3, 3, padding=1, stride=2, bias=False).double()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, 2, 5, 5, generator=generator, dtype=torch.float64).to(device)
    convolution = convolution.to(device)
    model = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(2), SumPositions())
    layer = linearize(model, inputs).layers["0"]
    copies = Unshared(convolution, 9)
    exact = dense_jacobian(copies, inputs, ["kernels"]).square().sum((1, 2))
    torch.testing.assert_close(position_gradient_squares(layer), exact, rtol=1e-11, atol=0.0)
    # Every entry of the operator free: a fully connected layer with the weight T.
    zero = torch.eye(50, dtype=torch.float64, device=device).reshape(50, 2, 5, 5)
    dense = nn.Linear(50, 27, bias=False, dtype=torch.float64, device=device)
    with torch.no_grad():
        dense.weight.copy_(convolution(zero).flatten(1).T)
    unrolled = nn.Sequential(
        nn.Flatten(), dense, nn.Tanh(), nn.Unflatten(1, (3, 9)), SumPositions()
    )
    exact = dense_jacobian(unrolled, inputs, ["1.weight"]).square().sum((1, 2))
    torch.testing.assert_close(operator_gradient_squares(layer), exact, rtol=1e-11, atol=0.0)


class SumPositions(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.sum(2)


def test_a_tied_gradient_can_vanish_where_the_untied_do_not(device) -> None:
    # f = v·(w x) with v = (10, −10), x = (1, 1): the two positions cancel.
    model = nn.Sequential(nn.Conv1d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1, bias=False))
    model = model.double().to(device)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.copy_(torch.tensor([[10.0, -10.0]], dtype=torch.float64))
    inputs = torch.ones(1, 1, 2, dtype=torch.float64, device=device)
    data = (inputs, torch.zeros(1, 1, device=device))
    values = {s: float(layer_gauss_newton_traces(model, data, sharing=s)["0"]) for s in SHARING}
    # Σ_p B_p²a_p² = 200; ‖B‖²‖x‖² = 200·2.
    assert values["tied"] == 0.0
    assert (values["positions"], values["operator"]) == pytest.approx((200.0, 400.0), rel=1e-14)
    assert float(gauss_newton_trace(model, data)) == pytest.approx(2.0, rel=1e-14)


def test_layer_traces_of_a_linearization_are_those_of_the_model(device) -> None:
    model, inputs, targets = case_named("residual").make(device=device)
    linearization = linearize(model, inputs)
    for sharing in SHARING:
        ours = layer_gradient_squares(linearization, "half_squared_error", sharing)
        alone = layer_gauss_newton_traces(
            model, [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])], sharing=sharing
        )
        for name in ours:
            assert float(alone[name]) == pytest.approx(float(ours[name].mean()), rel=1e-12)
            assert alone[name].assumptions["sharing"] == sharing


# --- conventions --------------------------------------------------------------------------------


def test_the_mean_over_outputs_makes_the_trace_two_over_c_times_as_large(device) -> None:
    model, inputs, targets = case_named("LeNet").make(device=device)
    half = float(gauss_newton_trace(model, (inputs, targets)))
    mean = float(gauss_newton_trace(model, (inputs, targets), loss="mse"))
    assert mean == pytest.approx(2.0 / 3.0 * half, rel=1e-13)


def test_the_trace_is_the_hessians_at_interpolation_and_for_single_piecewise_linear_weights(
    device,
) -> None:
    for name, interpolates in (("GELU before the second layer", True), ("relu MLP", False)):
        model, inputs, _ = case_named(name).make(device=device)
        with torch.no_grad():
            outputs = model.eval()(inputs)
        targets = outputs if interpolates else outputs + 1.0
        hessian = dense_hessian(model, inputs, targets, "half_squared_error").trace()
        ours = gauss_newton_trace(model, (inputs, targets))
        assert float(ours) == pytest.approx(float(hessian), rel=1e-11)
    # A smooth network off the data has another trace.
    model, inputs, _ = case_named("GELU before the second layer").make(device=device)
    targets = torch.ones(6, 3, dtype=torch.float64, device=device)
    hessian = float(dense_hessian(model, inputs, targets, "half_squared_error").trace())
    assert abs(float(gauss_newton_trace(model, (inputs, targets))) / hessian - 1.0) > 1e-3


# --- sign vectors -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_the_estimate_from_signs_lies_within_its_standard_error(loss, device) -> None:
    model, inputs, targets = case_named("LeNet").make(device=device)
    exact = float(gauss_newton_trace(model, (inputs, targets), loss=loss))
    misses = 0
    for seed in range(8):
        estimate = gauss_newton_trace(
            model, (inputs, targets), loss=loss, method="hutchinson", probes=8, seed=seed
        )
        assert (estimate.method, estimate.probes) == ("hutchinson", 8)
        assert 0 < estimate.standard_error < exact
        misses += abs(float(estimate) - exact) > 2.5 * estimate.standard_error
    # With 42 degrees of freedom a seed misses with probability 1.6 %, and more than 2 of 8 seeds do
    # with probability below 3e-4.
    assert misses <= 2


def test_all_sign_vectors_together_give_the_exact_trace(device) -> None:
    # With one output the sign does not matter: each probe is exact.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double().to(device)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64).to(device)
    data = (inputs, torch.zeros(5, 1, device=device))
    exact = float(gauss_newton_trace(model, data))
    estimate = gauss_newton_trace(model, data, method="hutchinson", probes=2)
    assert float(estimate) == pytest.approx(exact, rel=1e-12)
    assert estimate.standard_error == pytest.approx(0.0, abs=1e-12 * exact)


def test_many_outputs_are_estimated_and_some_layers_too(device) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 120)).double().to(device)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64).to(device)
    data = (inputs, torch.zeros(5, dtype=torch.int64, device=device))
    estimate = gauss_newton_trace(model, data, ["0"], probes=40)
    assert estimate.method == "hutchinson"
    exact = float(gauss_newton_trace(model, data, ["0"], method="exact"))
    assert abs(float(estimate) - exact) <= 5 * estimate.standard_error
    small = gauss_newton_trace(model, data, ["0"], probes=40, memory_budget=2**10)
    # Chunks of other sizes draw other signs; both are right.
    assert abs(float(small) - exact) <= 5 * small.standard_error


# --- conduct ------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was(device) -> None:
    model, inputs, targets = case_named("residual").make(device=device)
    model.train()
    model.norm.eval()
    next(model.parameters()).requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    gauss_newton_trace(model, (inputs, targets))
    gauss_newton_trace(model, (inputs, targets), method="hutchinson")
    layer_gauss_newton_traces(model, (inputs, targets))
    with pytest.raises(ValueError, match="NaN"):
        gauss_newton_trace(model, (inputs * math.nan, targets), method="hutchinson")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not next(model.parameters()).requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_precision_agrees_to_its_round_off(dtype, device) -> None:
    model, inputs, targets = case_named("residual").make(device=device)
    exact = float(gauss_newton_trace(model, (inputs, targets)))
    ours = gauss_newton_trace(model.to(dtype), (inputs.to(dtype), targets))
    assert float(ours) == pytest.approx(exact, rel=1000 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, d: gauss_newton_trace(m, d, method="lanczos"), "method='lanczos'"),
        (lambda m, d: gauss_newton_trace(m, d, "weights"), "parameters='weights'"),
        (lambda m, d: gauss_newton_trace(m, d, ["nowhere"]), "nowhere"),
        (lambda m, d: gauss_newton_trace(m, d, loss="hinge"), "loss='hinge'"),
        (lambda m, d: gauss_newton_trace(m, d, method="hutchinson", probes=1), "probes=1"),
        (lambda m, d: layer_gauss_newton_traces(m, d, sharing="none"), "sharing='none'"),
        (lambda m, d: parameter_gradient_squares(linearize(m, d[0])), "all_parameters=True"),
        (lambda m, d: gauss_newton_trace(m, (d[0][:0], d[1][:0])), "empty"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message) -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    with pytest.raises(ValueError, match=message):
        call(model, (inputs, targets))


def test_every_new_tensor_names_its_device(device, explicit_devices) -> None:
    model, inputs, targets = case_named("LeNet").make(device=device)
    with explicit_devices():
        gauss_newton_trace(model, (inputs, targets))
        gauss_newton_trace(model, (inputs, targets), method="hutchinson", loss="cross_entropy")
        for sharing in SHARING:
            layer_gauss_newton_traces(model, (inputs, targets), sharing=sharing)
