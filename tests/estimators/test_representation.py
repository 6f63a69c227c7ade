"""Measures of the input Jacobian, against singular values and determinants written out."""

import itertools
import math

import pytest
import torch
from networks import CASES, NAMED
from round_off import moves_of_model
from torch import Tensor, nn

from paperkit.estimators.representation import (
    frobenius_norms,
    input_invariant_local_sensitivity,
    input_invariant_local_sensitivity_from,
    input_invariant_sensitivities,
    largest_singular_values,
    layer_log_volumes_from,
    layer_sensitivities_from,
    local_dimension,
    local_dimension_from,
    local_dimensions,
    log_volume,
    log_volume_from,
    log_volumes,
    maximum_local_sensitivity,
    maximum_local_sensitivity_from,
    network_log_volume,
    network_log_volume_from,
    network_maximum_local_sensitivity,
    network_maximum_local_sensitivity_from,
    normalized_maximum_local_sensitivity,
    normalized_maximum_local_sensitivity_from,
    singular_values,
)
from paperkit.linearize import linearize


def standard_normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def full_rank_4x6() -> Tensor:
    """sin(1 + i + 2j + 0.7ij): full rank, unlike sin(i + 2j), whose rank is 2."""
    i, j = torch.arange(4.0, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64)
    return torch.sin(1 + i[:, None] + 2 * j + 0.7 * i[:, None] * j)


def with_singular_values(values: list[float], num_inputs: int, seed: int = 0) -> Tensor:
    """A matrix, outputs × inputs, with prescribed singular values."""
    num_outputs = len(values)
    left, _ = torch.linalg.qr(standard_normal(num_outputs, num_outputs, seed=seed))
    right, _ = torch.linalg.qr(standard_normal(num_inputs, num_outputs, seed=seed + 1))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


def brute_force_jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """∂f/∂x, one sample and one output at a time, (n, C, M)."""
    rows = []
    for sample in inputs:
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], sample)
        rows.append(jacobian.flatten(1))
    return torch.stack(rows)


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


# --- singular values ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 9), (3, 9, 4), (2, 1, 5), (2, 5, 1), (1, 4, 2, 3)])
def test_norms_agree_with_the_singular_values(shape) -> None:
    jacobian = standard_normal(*shape)
    values = singular_values(jacobian)
    expected = torch.linalg.svdvals(jacobian.flatten(2))
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(
        largest_singular_values(jacobian), values[:, 0], rtol=1e-13, atol=0.0
    )
    torch.testing.assert_close(
        frobenius_norms(jacobian), values.square().sum(1).sqrt(), rtol=1e-13, atol=0.0
    )


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e-12, 1e25])
@pytest.mark.parametrize("shape", [(3, 5, 3000), (2, 3000, 4)])
def test_largest_singular_values_of_large_float32_jacobians_are_those_of_their_entries(
    shape, size
) -> None:
    jacobian = (standard_normal(*shape) * size).float()
    jacobian[0] = 0.0  # a sample whose outputs do not move
    expected = torch.linalg.svdvals(jacobian.double())[:, 0]
    found = largest_singular_values(jacobian)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=0.0)
    alone = largest_singular_values(jacobian[1:2])
    torch.testing.assert_close(alone, found[1:2], rtol=1e-13, atol=0.0)


def test_an_entry_that_is_not_finite_is_refused_in_a_large_float32_jacobian() -> None:
    jacobian = standard_normal(2, 3, 3000).float()
    jacobian[1, 2, 7] = math.nan
    with pytest.raises(ValueError, match=r"jacobian.*NaN or infinite"):
        largest_singular_values(jacobian)


def test_singular_values_eleven_orders_below_the_largest_keep_four_digits() -> None:
    spectrum = [1.0, 1e-5, 1e-11]
    values = singular_values(with_singular_values(spectrum, 40)[None])[0]
    # Backward stability: absolute error of a few units of round-off of the largest, 1e-15.
    assert values[2] == pytest.approx(1e-11, rel=1e-3)
    squared = torch.linalg.eigvalsh((m := with_singular_values(spectrum, 40)) @ m.T)
    assert abs(float(squared[0]) - 1e-22) > 1e-19  # what the Gram matrix would have said


# --- volume -------------------------------------------------------------------------------------


def test_the_volume_is_the_root_of_the_sum_of_squared_minors() -> None:
    matrix = full_rank_4x6()
    minors = [
        float(torch.linalg.det(matrix[:, list(columns)]))
        for columns in itertools.combinations(range(6), 4)
    ]
    cauchy_binet = math.sqrt(sum(minor**2 for minor in minors))
    assert float(log_volumes(matrix[None]).exp()) == pytest.approx(cauchy_binet, rel=1e-12)
    assert cauchy_binet == pytest.approx(3.2045, abs=5e-5)


def test_the_printed_determinant_is_zero_for_fewer_outputs_than_inputs() -> None:
    matrix = full_rank_4x6()
    assert abs(float(torch.linalg.det(matrix.T @ matrix))) < 1e-12
    assert float(torch.linalg.det(matrix @ matrix.T)) > 10.0


@pytest.mark.parametrize(
    ("matrix", "cube", "ball"),
    [
        (torch.ones(1, 2, dtype=torch.float64), 2.0, math.sqrt(2.0)),
        (full_rank_4x6(), 10.862, 3.2045),
    ],
)
def test_the_volume_compares_balls_not_cubes(matrix, cube, ball) -> None:
    # A linear image of the unit cube is a zonotope: its volume is the sum of absolute minors.
    rows, columns = matrix.shape
    zonotope = sum(
        abs(float(torch.linalg.det(matrix[:, list(chosen)])))
        for chosen in itertools.combinations(range(columns), rows)
    )
    assert zonotope == pytest.approx(cube, abs=5e-4)
    assert float(log_volumes(matrix[None]).exp()) == pytest.approx(ball, abs=5e-5)


def test_a_rank_deficient_jacobian_has_no_volume_but_its_top_k() -> None:
    jacobian = with_singular_values([2.0, 0.5, 0.0], 7)[None]
    assert float(log_volumes(jacobian)) == -math.inf
    # −inf although the computed third singular value is some 1e-17, not zero.
    assert float(log_volumes(jacobian, k=2)) == pytest.approx(0.0, abs=1e-13)
    assert float(log_volumes(jacobian, k=1)) == pytest.approx(math.log(2.0), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_a_deep_bottleneck_leaves_of_a_zero_is_no_volume(dtype: torch.dtype) -> None:
    # Two numbers in the middle: rank 2, up to the round-off of sixteen layers on either side.
    def half(inputs: int, outputs: int) -> list[nn.Module]:
        widths = itertools.pairwise([inputs, *[32] * 16])
        hidden = [layer for pair in widths for layer in (nn.Linear(*pair), nn.Tanh())]
        return [*hidden, nn.Linear(32, outputs)]

    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(*half(4, 2), *half(2, 4)).to(dtype)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    for moved, inputs in moves_of_model(model, standard_normal(200, 4).to(dtype), times=5):
        result = log_volume(moved, (inputs, torch.zeros(200)), k=3)
        assert float(result) == -math.inf
        assert result.assumptions["rank_deficient"] == 200


def test_fewer_inputs_than_outputs_have_no_volume() -> None:
    jacobian = standard_normal(2, 4, 3)
    assert torch.equal(log_volumes(jacobian), torch.full((2,), -math.inf, dtype=torch.float64))
    assert torch.isfinite(log_volumes(jacobian, k=3)).all()


def test_the_volume_scales_with_the_power_of_the_outputs() -> None:
    jacobian = standard_normal(3, 4, 9)
    shift = log_volumes(1e-40 * jacobian) - log_volumes(jacobian)
    torch.testing.assert_close(
        shift, torch.full_like(shift, 4 * math.log(1e-40)), rtol=1e-13, atol=0.0
    )


def test_the_two_averages_are_the_log_of_the_mean_and_the_mean_of_the_logs() -> None:
    # f = (x₁², x₂²)/2 has the Jacobian diag(x): volumes 6 and 1/2.
    model = Squares()
    inputs = torch.tensor([[2.0, 3.0], [1.0, 0.5]], dtype=torch.float64)
    data = (inputs, torch.zeros(2, dtype=torch.int64))
    assert float(log_volume(model, data)) == pytest.approx(math.log(3.25), rel=1e-13)
    assert float(log_volume(model, data, average="log")) == pytest.approx(
        math.log(3.0) / 2, rel=1e-13
    )


class Squares(nn.Module):
    """f_j = x_j²/2, without any layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 0.5 * inputs.square()


# --- local dimension ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spectrum", "dimension"),
    [([1.0, 1.0, 1.0], 3.0), ([5.0, 0.0, 0.0], 1.0), ([2.0, 1.0], 25.0 / 17.0)],
)
def test_the_local_dimension_is_the_participation_ratio(spectrum, dimension) -> None:
    jacobian = with_singular_values(spectrum, 6)[None]
    assert float(local_dimensions(jacobian)) == pytest.approx(dimension, rel=1e-13)
    assert float(local_dimensions(1e-30 * jacobian)) == pytest.approx(dimension, rel=1e-13)


def test_samples_with_a_zero_jacobian_have_no_dimension_and_are_counted() -> None:
    inputs = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    result = local_dimension(Squares(), (inputs, torch.zeros(3, dtype=torch.int64)))
    assert float(result) == pytest.approx(1.5, rel=1e-13)  # of 2 and 1
    assert result.assumptions["undefined"] == 1
    alone = local_dimension(Squares(), (inputs[:1], torch.zeros(1, dtype=torch.int64)))
    assert math.isnan(float(alone))


def test_the_covariance_of_a_small_ball_tends_to_the_squared_jacobian() -> None:
    # Equation 14 by antithetic sampling: for f(x + √α ξ), Cov/α → J Jᵀ with error O(α) + noise.
    model = nn.Sequential(linear(standard_normal(4, 5)), nn.Tanh(), linear(standard_normal(3, 4)))
    x = 0.3 * standard_normal(1, 5, seed=4)
    alpha, draws = 1e-8, 40000
    noise = standard_normal(draws, 5, seed=5)
    with torch.no_grad():
        moved = (model(x + alpha**0.5 * noise) - model(x - alpha**0.5 * noise)) / 2
    covariance = moved.T @ moved / (alpha * draws)
    jacobian = brute_force_jacobian(model, x)[0]
    exact = jacobian @ jacobian.T
    # Each entry's standard error is at most √(2/draws) of the trace; five of them.
    error = float((covariance - exact).abs().max())
    assert error <= 5 * math.sqrt(2 / draws) * float(exact.trace())


# --- input-invariant and normalized sensitivity -------------------------------------------------


def test_input_invariant_sensitivity_weighs_columns_by_the_input() -> None:
    jacobian, inputs = standard_normal(3, 2, 5), standard_normal(3, 5, seed=1)
    expected = sum(
        (jacobian[:, :, p].square().sum(1) * inputs[:, p].square() for p in range(5)),
        start=torch.zeros(3, dtype=torch.float64),
    )
    ours = input_invariant_sensitivities(jacobian, inputs)
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0.0)
    # The later public code's ‖J x‖² is another quantity.
    other = torch.einsum("nop,np->no", jacobian, inputs).square().sum(1)
    assert float((other - ours).abs().min()) > 0.01


def test_input_invariant_sensitivity_survives_rescaling_the_input() -> None:
    weight, inputs = standard_normal(3, 5), standard_normal(4, 5, seed=1)
    scales = torch.tensor([1e-3, 2.0, 5.0, 100.0, 0.1], dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64)
    before = input_invariant_local_sensitivity(linear(weight), (inputs, labels))
    after = input_invariant_local_sensitivity(linear(weight / scales), (inputs * scales, labels))
    assert float(after) == pytest.approx(float(before), rel=1e-12)
    assert float(maximum_local_sensitivity(linear(weight / scales), (inputs, labels))) > 100.0


def test_normalized_sensitivity_is_a_mean_of_squares() -> None:
    inputs = torch.tensor([[3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)
    data = (inputs, torch.zeros(2, dtype=torch.int64))
    # ‖J‖₂ = 4 and 1, ‖x‖ = 5 and 1: (400 + 1)/2, not the square of a mean.
    assert float(normalized_maximum_local_sensitivity(Squares(), data)) == pytest.approx(
        200.5, rel=1e-13
    )


# --- networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
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
    for measure, value in expected.items():
        for memory_budget in (1, 2**30):
            result = measure(model, data, memory_budget=memory_budget)
            assert float(result) == pytest.approx(float(value), rel=1e-10), measure.__name__
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
    inputs = standard_normal(4, 5).to(device)
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


def test_measures_of_a_linearization_are_those_of_the_model(device) -> None:
    model, inputs, targets = next(case for case in CASES if case.name == "LeNet").make(
        device=device
    )
    linearization = linearize(model, inputs, input_jacobians=True)
    data = (inputs, targets)
    pairs = [
        (maximum_local_sensitivity, maximum_local_sensitivity_from(linearization)),
        (local_dimension, local_dimension_from(linearization)),
        (log_volume, log_volume_from(linearization)),
        (network_log_volume, network_log_volume_from(linearization)),
        (
            network_maximum_local_sensitivity,
            network_maximum_local_sensitivity_from(linearization),
        ),
        (
            normalized_maximum_local_sensitivity,
            normalized_maximum_local_sensitivity_from(linearization, inputs),
        ),
        (
            input_invariant_local_sensitivity,
            input_invariant_local_sensitivity_from(linearization, inputs),
        ),
    ]
    for measure, shared in pairs:
        alone = measure(model, data)
        assert float(shared) == pytest.approx(float(alone), rel=1e-12), measure.__name__
        assert shared.measure == alone.measure == measure.__name__


def test_network_measures_stream_in_chunks_of_any_size(device) -> None:
    model, inputs, targets = next(case for case in CASES if case.name == "LeNet").make(
        device=device
    )
    whole = network_maximum_local_sensitivity(model, (inputs, targets))
    batches = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    chunked = network_maximum_local_sensitivity(model, batches, memory_budget=2**17)
    assert float(chunked) == pytest.approx(float(whole), rel=1e-12)
    assert chunked.n == whole.n == 6


def test_a_layer_called_twice_counts_each_call(device) -> None:
    case = next(case for case in CASES if case.name == "siamese")
    model, inputs, _ = case.make(device=device)
    linearization = linearize(model, inputs, input_jacobians=True)
    whole = brute_force_jacobian(model.eval(), inputs)
    halves = [torch.linalg.svdvals(part) for part in whole.split(4, dim=2)]
    expected = halves[0][:, 0] + halves[1][:, 0]
    ours = layer_sensitivities_from(linearization)["shared"]
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0.0)
    volumes = halves[0].prod(dim=1) + halves[1].prod(dim=1)
    # A ReLU that is off can make a volume zero; then ours is, and the product is round-off.
    ours = layer_log_volumes_from(linearization)["shared"].exp()
    torch.testing.assert_close(ours, volumes, rtol=1e-11, atol=1e-15)


# --- many outputs -------------------------------------------------------------------------------


def many_outputs() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 150)).double()
    return model, standard_normal(5, 12)


def test_lanczos_finds_the_largest_singular_value_of_many_outputs(device) -> None:
    model, inputs = many_outputs()
    model, inputs = model.to(device), inputs.to(device)
    data = (inputs, torch.zeros(5, dtype=torch.int64))
    result = maximum_local_sensitivity(model, data, tolerance=1e-5)
    exact = maximum_local_sensitivity(model, data, method="exact")
    assert (result.method, exact.method) == ("lanczos", "exact")
    assert result.converged
    # With residual r·θ the error of θ is at most (r θ)²/gap: 1e-8 for relative gaps above 1 %.
    assert float(result) == pytest.approx(float(exact), rel=1e-8)
    normalized = normalized_maximum_local_sensitivity(model, data, tolerance=1e-5)
    reference = normalized_maximum_local_sensitivity(model, data, method="exact")
    assert float(normalized) == pytest.approx(float(reference), rel=1e-8)


def test_lanczos_is_a_lower_bound_that_never_falls(device) -> None:
    model, inputs = many_outputs()
    model, inputs = model.to(device), inputs.to(device)
    data = (inputs, torch.zeros(5, dtype=torch.int64))
    exact = float(maximum_local_sensitivity(model, data, method="exact"))
    values = [
        float(maximum_local_sensitivity(model, data, max_iterations=m, tolerance=1e-12))
        for m in (1, 2, 4, 8, 16)
    ]
    assert all(one <= two * (1 + 1e-13) for one, two in itertools.pairwise([*values, exact]))
    unfinished = maximum_local_sensitivity(model, data, max_iterations=1, tolerance=1e-12)
    assert not unfinished.converged


def test_lanczos_of_a_constant_network_is_zero() -> None:
    model = linear(torch.zeros(120, 3, dtype=torch.float64))
    result = maximum_local_sensitivity(model, (standard_normal(2, 3), torch.zeros(2)))
    assert float(result) == 0.0
    assert result.converged


# --- conduct ------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was(device) -> None:
    model, inputs, targets = next(case for case in CASES if case.name == "residual").make(
        device=device
    )
    model.train()
    model.norm.eval()
    next(model.parameters()).requires_grad_(False)
    inputs.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    for measure in (maximum_local_sensitivity, log_volume, network_maximum_local_sensitivity):
        measure(model, (inputs, targets))
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
        maximum_local_sensitivity(Centred(), (standard_normal(4, 3), torch.zeros(4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, d: maximum_local_sensitivity(m, d, method="qr"), "method='qr'"),
        (lambda m, d: maximum_local_sensitivity(m, d, max_iterations=0), "max_iterations=0"),
        (lambda m, d: maximum_local_sensitivity(m, d, memory_budget=0), "memory_budget=0"),
        (lambda m, d: log_volume(m, d, average="sum"), "average='sum'"),
        (lambda m, d: log_volume(m, d, k=0), "k=0"),
        (lambda m, d: local_dimension(m, (d[0] * math.nan, d[1])), "NaN"),
        (lambda m, d: local_dimension(m, (d[0].long(), d[1])), "integers"),
        (lambda m, d: maximum_local_sensitivity_from(linearize(m, d[0])), "input_jacobians=True"),
        (lambda m, d: layer_sensitivities_from(linearize(m, d[0])), "input_jacobians=True"),
        (
            lambda m, d: input_invariant_local_sensitivity_from(
                linearize(m, d[0], input_jacobians=True), d[0][:2]
            ),
            "inputs has shape",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message) -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    with pytest.raises(ValueError, match=message):
        call(model, (inputs, targets))


def test_every_new_tensor_names_its_device(device, explicit_devices) -> None:
    model, inputs, targets = NAMED["relu MLP"].make(device=device)
    with explicit_devices():
        for measure in (
            maximum_local_sensitivity,
            normalized_maximum_local_sensitivity,
            input_invariant_local_sensitivity,
            log_volume,
            local_dimension,
            network_maximum_local_sensitivity,
            network_log_volume,
        ):
            assert torch.isfinite(
                torch.tensor(float(measure(model, (inputs, targets))), device="cpu")
            )
        maximum_local_sensitivity(model, (inputs, targets), method="lanczos")
