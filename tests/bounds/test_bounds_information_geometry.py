"""Every statement of the information-geometric paper: where it holds, and where it does not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from networks import CASES, NAMED, Case
from torch import Tensor, nn

from paperkit.bounds.information_geometry import (
    balanced_prediction_expansion,
    class_difference_identity,
    coordinate_invariance,
    cross_entropy_identity,
    expected_sharpness_identity,
    fisher_factor_identity,
    fisher_geometry,
    fisher_identity,
    fisher_rank_bound,
    flat_parameters,
    kullback_leibler_expansion,
    logit_gradient_identity,
    margin_identity,
    margin_length_identity,
    margin_loss_bound,
    minibatch_identity,
    perturbed_loss_expansion,
    sharpness_dual_identity,
    sharpness_loss_bound,
    span_identity,
    stop_gradient_identity,
    takeuchi_prediction,
    transformation_invariance,
)
from paperkit.bounds.statement import Approximation, Identity, Statement
from paperkit.estimators.information_geometry import information_geometric_sharpness
from paperkit.experiments.studies.reparametrization import random_problem
from paperkit.models.symmetries import nodewise, radial_map_at, rescale

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
RELU_MLP = NAMED["relu MLP"]
Data = tuple[Tensor, Tensor]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def problem(n: int, case: Case = RELU_MLP) -> tuple[nn.Module, Data]:
    model, inputs, targets = case.make(n=n)
    return model, (inputs, targets)


def softmax_regression(n: int, classes: int = 3) -> tuple[nn.Module, Data]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Linear(4, classes).double()
    targets = torch.arange(n) % classes
    return model, (gaussian(n, 4), targets)


def equal(bound: Statement, tolerance: float = 1e-9) -> bool:
    return bound.left == pytest.approx(bound.right, rel=tolerance)


def order(bound_at: Callable[[float], Approximation], step: float) -> float:
    """The power of the step with which the sides come together, from a step and a tenth of it."""
    gaps = [abs(bound_at(t).left - bound_at(t).right) for t in (step, 0.1 * step)]
    return math.log10(gaps[0] / gaps[1])


# Equations 1 to 5 -------------------------------------------------------------------------------


@every_case
def test_the_fisher_matrix_has_all_the_forms_of_equations_1_to_5(case: Case) -> None:
    model, data = problem(7, case)
    assert equal(cross_entropy_identity(model, data), 1e-12)
    for seed in (0, 1):
        assert equal(fisher_identity(model, data, seed), 1e-10)
        for reference in range(3):
            assert equal(class_difference_identity(model, data, reference, seed), 1e-10)
    for sample, output in ((0, 0), (3, 2)):
        assert equal(logit_gradient_identity(model, data, sample, output), 1e-9)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_softmax_variance_has_a_square_factor(scale: float) -> None:
    # The difference of two moments cancels by the spread of p: 1e-16 over p(1−p) of a sample sum.
    assert equal(fisher_factor_identity(scale * gaussian(30, 5)), 1e-10)


def test_the_divergence_is_the_fisher_form_up_to_third_order() -> None:
    model, data = problem(12, NAMED["tanh before the second layer"])
    for seed in (0, 1, 2):
        power = order(lambda t, seed=seed: kullback_leibler_expansion(model, data, t, seed), 1e-2)
        assert power == pytest.approx(3.0, abs=0.2)
    assert not kullback_leibler_expansion(model, data, 1e-2).certified


def test_the_rank_is_capped_by_samples_and_by_the_common_shift_of_the_logits() -> None:
    model, data = problem(6)
    few = fisher_rank_bound(model, data, head="4")
    assert few.holds
    assert (few.left, few.right) == (12, 12)
    model, data = softmax_regression(60)
    many = fisher_rank_bound(model, data, head="")
    assert (many.left, many.right) == (10, 10)
    assert fisher_rank_bound(model, data).right == 15
    with pytest.raises(ValueError, match="head='1' is unknown"):
        fisher_rank_bound(RELU_MLP.make()[0], RELU_MLP.make()[1:], head="1")


def test_balanced_predictions_expand_to_second_order_in_epsilon() -> None:
    jacobian = gaussian(4, 9)
    power = order(lambda e: balanced_prediction_expansion(jacobian, 2, e), 1e-3)
    assert power == pytest.approx(2.0, abs=0.01)
    with pytest.raises(ValueError, match=r"epsilon=0\.5"):
        balanced_prediction_expansion(jacobian, 2, 0.5)


# Equations 6 and 7 ------------------------------------------------------------------------------


@every_case
def test_gradients_lie_in_the_range_of_the_fisher_matrix(case: Case) -> None:
    model, data = problem(6, case)
    for sample in range(6):
        assert equal(span_identity(model, data, sample), 1e-9)
    one_hot = nn.functional.one_hot(data[1], 3).double()
    assert equal(span_identity(model, (data[0], one_hot), 2, "mse"), 1e-9)


def outside_range(vectors: Tensor, directions: Tensor) -> float:
    remainder = vectors - (vectors @ directions) @ directions.T
    return float((remainder.norm(dim=-1) / vectors.norm(dim=-1)).max())


def test_a_weight_penalty_and_other_data_leave_the_range() -> None:
    model, data = problem(6)
    geometry = fisher_geometry(model, data)
    _, directions = geometry.eigenpairs()
    assert outside_range(geometry.gradients, directions) < 1e-10
    smoothed = torch.softmax(geometry.outputs, dim=1) - (0.9 * torch.eye(3)[data[1]] + 0.1 / 3)
    label_smoothing = torch.einsum("nc,ncd->nd", smoothed, geometry.jacobian)
    assert outside_range(label_smoothing, directions) < 1e-7  # labels rounded to single precision
    assert outside_range(geometry.gradients + 0.1 * flat_parameters(model), directions) > 0.1
    other = fisher_geometry(model, RELU_MLP.make(n=6, seed=0)[1:])
    shifted = fisher_geometry(model, (data[0] + 1.0, data[1]))
    assert outside_range(other.gradients, directions) < 1e-10
    assert outside_range(shifted.gradients, directions) > 0.1


@pytest.mark.parametrize("loss", ["cross_entropy", "half_squared_error", "mse"])
@pytest.mark.parametrize("n", [4, 40])
def test_the_sharpness_has_a_dual_and_a_bound(loss: str, n: int) -> None:
    for case in (RELU_MLP, NAMED["GELU before the second layer"]):
        model, (inputs, targets) = problem(n, case)
        if loss != "cross_entropy":
            targets = nn.functional.one_hot(targets, 3).double()
        assert equal(sharpness_dual_identity(model, (inputs, targets), loss), 1e-8)
        bound = sharpness_loss_bound(model, (inputs, targets), loss)
        assert bound.holds
        assert bound.certified
        assert isinstance(bound, Identity) == (bound.difference <= 1e-9 * bound.right)
        assert isinstance(bound, Identity) == ("=" in bound.statement) == (n == 4)


@pytest.mark.parametrize("n", [4, 40])
def test_labels_of_the_model_give_the_rank(n: int) -> None:
    model, data = problem(n)
    assert equal(expected_sharpness_identity(model, data), 1e-8)


@pytest.mark.parametrize("n", [5, 9])
@pytest.mark.parametrize("replacement", [False, True])
def test_mini_batches_need_no_sampling(n: int, replacement: bool) -> None:
    model, data = softmax_regression(n)
    for b in (1, 2, 3) if replacement else (1, 2, 3, n):
        assert equal(minibatch_identity(model, data, b, replacement=replacement), 1e-9)


# Invariance --------------------------------------------------------------------------------------

CENTRES = [(0.0, 0.5, 1.0), (1.0, 0.5, 0.0), (1.0, 0.5, 0.7), (-0.4, 2.0, 0.7), (2.0, 0.1, 0.3)]


@pytest.mark.parametrize("network", ["relu", "tanh", "relu_bias"])
@pytest.mark.parametrize("parameters", CENTRES)
def test_radial_maps_leave_the_sharpness_alone(
    network: str, parameters: tuple[float, float, float]
) -> None:
    chosen = random_problem(network, 0)
    theta = flat_parameters(chosen.model)
    radial = radial_map_at(theta, *parameters, seed=0)
    data = chosen.inputs, chosen.targets
    for batch_size in (None, 2):
        bound = coordinate_invariance(
            chosen.model,
            data,
            radial.inverse_near(theta),
            radial.forward(theta),
            batch_size=batch_size,
        )
        assert bound.certified
        assert equal(bound, 1e-8)


def test_sinh_leaves_the_sharpness_alone_but_not_the_damped_one() -> None:
    # Softmax regression on 30 samples: the rank is below the number of rows.
    model, data = softmax_regression(30)
    eta = torch.sinh(flat_parameters(model))
    plain = coordinate_invariance(model, data, torch.asinh, eta)
    assert plain.certified
    assert plain.left < 0.9 * sharpness_loss_bound(model, data).right
    assert equal(plain, 1e-9)
    damped = coordinate_invariance(model, data, lambda e: torch.asinh(e), eta, damping=0.1)
    assert not damped.certified
    assert abs(damped.left / damped.right - 1) > 1e-3


def test_a_pseudo_inverse_does_not_transform_like_a_tensor() -> None:
    model, data = problem(4)
    geometry = fisher_geometry(model, data)
    dimension = geometry.jacobian.shape[2]
    scales = torch.logspace(-0.5, 0.5, dimension, dtype=torch.float64)
    fisher = geometry.rows.T @ geometry.rows / 4
    changed = torch.linalg.pinv(fisher / scales / scales.unsqueeze(1), rtol=1e-13, hermitian=True)
    as_tensor = torch.linalg.pinv(fisher, rtol=1e-13, hermitian=True) * scales
    as_tensor = as_tensor * scales.unsqueeze(1)
    assert float((changed - as_tensor).norm() / changed.norm()) > 0.02


def test_node_wise_scaling_of_a_relu_network_leaves_the_sharpness_alone() -> None:
    chosen = random_problem("relu", 1)
    scales = nodewise(chosen.model, [3.0])
    factors = torch.cat([scale.flatten() for scale in scales.values()])
    data = chosen.inputs, chosen.targets
    for options in ({}, {"batch_size": 3}):
        bound = transformation_invariance(chosen.model, data, lambda t: factors * t, **options)
        assert bound.assumptions["same outputs on the data"]
        assert bound.assumptions["invertible Jacobian"]
        assert equal(bound, 1e-9)
    measured = information_geometric_sharpness(rescale(chosen.model, scales), data)
    assert float(measured) == pytest.approx(bound_left(chosen.model, data), rel=1e-9)
    damped = transformation_invariance(chosen.model, data, lambda t: factors * t, damping=0.1)
    assert abs(damped.left / damped.right - 1) > 1e-3


def bound_left(model: nn.Module, data: Data) -> float:
    return float(information_geometric_sharpness(model, data))


def test_other_functions_and_singular_maps_are_not_certified() -> None:
    chosen = random_problem("tanh", 1)
    data = chosen.inputs, chosen.targets
    doubled = transformation_invariance(chosen.model, data, lambda t: 2.0 * t)
    assert doubled.assumptions["same outputs on the data"] is False
    model, small = softmax_regression(6)
    with torch.no_grad():
        model.bias.zero_()
    cube = coordinate_invariance(
        model,
        small,
        lambda e: e**3,
        flat_parameters(model).sign() * flat_parameters(model).abs() ** (1 / 3),
    )
    assert cube.assumptions["same point"]
    assert cube.assumptions["invertible Jacobian"] is False


# Equations 8 and 9 --------------------------------------------------------------------------------


def test_the_criterion_is_certified_only_at_a_minimum() -> None:
    model, data = softmax_regression(60)
    away = takeuchi_prediction(model, data, data, curvature="fisher")
    assert away.left == 0.0
    assert away.assumptions["stationary point"] is False
    assert away.right > 0
    regression = Binary()
    fit(regression, data[0], (data[1] > 0).long())
    at_optimum = takeuchi_prediction(regression, (data[0], (data[1] > 0).long()), data_of(7))
    assert at_optimum.assumptions["stationary point"]
    assert at_optimum.assumptions["positive definite Hessian"]


class Binary(nn.Module):
    """Logistic regression with logits (0, w·x + b): no direction that the softmax cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        score = self.linear(inputs)
        return torch.cat([torch.zeros_like(score), score], dim=1)


def data_of(seed: int) -> Data:
    inputs = gaussian(40, 4, seed=seed)
    return inputs, (inputs[:, 0] + gaussian(40, seed=seed + 1) > 0).long()


def fit(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    model.zero_grad()


# Equations 10 and 11 ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["printed", "exact"])
def test_margins_add_up_to_a_norm_of_their_slope(version: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    for model, data in ((Binary(), data_of(3)), (network, data_of(4))):
        for sample in range(4):
            assert equal(margin_identity(model, data, sample, version), 1e-8)
            for index in range(3):
                assert equal(margin_length_identity(model, data, sample, index, version), 1e-9)


def test_the_printed_margin_misses_the_boundary_of_a_confident_sample() -> None:
    # A single parameter meets the boundary after a shift of exactly minus the logit over the input.
    class Line(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([weight], dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            score = inputs * self.weight
            return torch.cat([torch.zeros_like(score), score], dim=1)

    data = torch.ones(1, 1, dtype=torch.float64), torch.tensor([1])
    for logit in (0.1, 1.0, 2.0, 4.0, 8.0):
        model = Line(logit)
        exact = margin_length_identity(model, data, 0, 0, "exact")
        printed = margin_length_identity(model, data, 0, 0, "printed")
        fisher = 1 / (2 + 2 * math.cosh(logit))
        assert exact.left == pytest.approx(fisher * logit**2, rel=1e-10)
        # (log 2 − ℓ)/ℓ' against the logit itself
        loss, slope = math.log1p(math.exp(-logit)), 1 / (1 + math.exp(logit))
        ratio = (math.log(2) - loss) / (slope * logit)
        assert math.sqrt(printed.left / exact.left) == pytest.approx(ratio, rel=1e-9)
    assert ratio > 200


def test_several_classes_need_a_competitor_and_reach_the_full_rank_value() -> None:
    model, data = problem(5)
    for sample in range(3):
        label = int(data[1][sample])
        other = (label + 1) % 3
        assert equal(margin_identity(model, data, sample, "exact", other), 1e-8)
        assert equal(margin_loss_bound(model, data, sample, other), 1e-8)
    tall, many = problem(60)
    bound = margin_loss_bound(tall, many, 0, (int(many[1][0]) + 1) % 3)
    assert bound.holds
    assert bound.slack > 0.01 * bound.right
    with pytest.raises(ValueError, match="competitor=-1"):
        margin_identity(model, data, 0, "exact")
    with pytest.raises(ValueError, match="two classes"):
        margin_identity(model, data, 0, "printed")
    with pytest.raises(ValueError, match="version='new'"):
        margin_identity(model, data, 0, "new")


# Equations 12 and 13 -----------------------------------------------------------------------------


def short_step(model: nn.Module, data: Data) -> float:
    """Return the ρ at which ρF⁺g has length 1e-4; F⁺g is as long as F is ill conditioned."""
    geometry = fisher_geometry(model, data)
    eigenvalues, directions = geometry.eigenpairs()
    natural = (geometry.gradients.mean(dim=0) @ directions) / eigenvalues
    return 1e-4 / float(natural.norm())


def test_the_perturbed_loss_is_the_regularized_one_up_to_second_order() -> None:
    model, data = problem(30, NAMED["tanh before the second layer"])
    rho = short_step(model, data)
    power = order(lambda t: perturbed_loss_expansion(model, data, t * rho), 1.0)
    assert power == pytest.approx(2.0, abs=0.1)


def test_the_training_step_follows_the_hessian_to_first_order() -> None:
    model, data = problem(30, NAMED["tanh before the second layer"])
    rho = short_step(model, data)
    power = order(lambda t: stop_gradient_identity(model, data, t * rho, "exact"), 1.0)
    assert power == pytest.approx(2.0, abs=0.1)
    printed = stop_gradient_identity(model, data, rho)
    assert printed.assumptions["Hessian equals Fisher matrix"] is False
    first = order(lambda t: stop_gradient_identity(model, data, t * rho), 1.0)
    assert first == pytest.approx(1.0, abs=0.1)


def test_in_softmax_regression_the_training_step_is_a_larger_learning_rate() -> None:
    model, data = softmax_regression(30)
    assert stop_gradient_identity(model, data, 1e-3).assumptions["Hessian equals Fisher matrix"]
    power = order(lambda rho: stop_gradient_identity(model, data, rho), 1e-3)
    assert power == pytest.approx(2.0, abs=0.1)
    gradient = fisher_geometry(model, data).gradients.mean(dim=0)
    for seed in (0, 1):
        bound = stop_gradient_identity(model, data, 1e-3, seed=seed)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        v = torch.randn(len(gradient), generator=generator, dtype=torch.float64, device="cpu")
        v = v / v.norm()
        assert bound.right == pytest.approx(1.001 * float(v @ gradient), rel=1e-9)


def test_the_true_gradient_of_the_regularizer_weights_hard_samples() -> None:
    # In full rank ḡᵀF⁺ḡ is the mean of e^ℓ − 1, whose gradient is the mean of e^ℓ g.
    model, data = problem(4)
    theta = flat_parameters(model)
    geometry = fisher_geometry(model, data)
    direction = gaussian(len(theta), seed=5)
    step = 1e-5
    sides = []
    for sign in (1, -1):
        moved = fisher_geometry(model, data, theta=theta + sign * step * direction)
        gradient = moved.gradients.mean(dim=0, keepdim=True)
        sides.append(float(moved.inverse_norms(gradient)))
    losses = nn.functional.cross_entropy(geometry.outputs, data[1], reduction="none")
    expected = (losses.exp().unsqueeze(1) * geometry.gradients).mean(dim=0) @ direction
    # Central difference: error O(step²) = 1e-10 and round-off 1e-14/step.
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float(expected), rel=1e-6)


# Manners -----------------------------------------------------------------------------------------


def test_statements_stay_on_the_models_device(device: torch.device, explicit_devices) -> None:
    model, inputs, targets = RELU_MLP.make(n=4, device=device)
    data = inputs, targets
    theta = flat_parameters(model)
    with explicit_devices():
        bounds = [
            fisher_identity(model, data),
            kullback_leibler_expansion(model, data, 1e-3),
            fisher_factor_identity(fisher_geometry(model, data).outputs),
            logit_gradient_identity(model, data, 0, 1),
            fisher_rank_bound(model, data),
            class_difference_identity(model, data, 0),
            span_identity(model, data, 0),
            sharpness_dual_identity(model, data),
            sharpness_loss_bound(model, data),
            expected_sharpness_identity(model, data),
            minibatch_identity(model, data, 2),
            minibatch_identity(model, data, 2, replacement=True),
            coordinate_invariance(model, data, torch.asinh, torch.sinh(theta)),
            transformation_invariance(model, data, lambda t: 1.0 * t),
            takeuchi_prediction(model, data, data),
            margin_loss_bound(model, data, 0, (int(targets[0]) + 1) % 3),
            perturbed_loss_expansion(model, data, 1e-4),
            stop_gradient_identity(model, data, 1e-4),
        ]
    assert all(math.isfinite(bound.left) and math.isfinite(bound.right) for bound in bounds)


def test_the_dual_identity_in_single_precision_takes_the_rank_of_its_entries_format() -> None:
    model, inputs, targets = RELU_MLP.make(n=4)
    expected = sharpness_dual_identity(model, (inputs, targets))
    single = sharpness_dual_identity(copy.deepcopy(model).float(), (inputs.float(), targets))
    # The tolerance is half of the digits of single precision.
    assert single.left == pytest.approx(expected.left, rel=3e-4)
    assert single.right == pytest.approx(expected.right, rel=3e-4)
