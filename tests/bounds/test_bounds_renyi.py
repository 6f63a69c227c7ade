"""Bounds of the Rényi paper: both sides by hand, their hypotheses, and their misuse.

The statements themselves are tested one by one in the files test_renyi_*.py beside this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from paperkit.bounds import renyi
from paperkit.estimators.entropy import renyi_entropy
from paperkit.linearize import layers_of

ALL_TRUE = dict.fromkeys(
    ("loss_in_unit_interval", "quadratic_loss_on_an_ellipsoid", "prior_independent_of_sample"),
    True,
)
ELLIPSOID_TRUE = dict.fromkeys(
    (
        "loss_in_unit_interval",
        "prior_independent_of_sample",
        "remainder_bounded",
        "perturbation_raises_population_loss",
    ),
    True,
)


def network(
    seed: int = 0, bias: bool = True, device: torch.device | str = "cpu"
) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(4, 5, bias=bias), nn.ReLU(), nn.Linear(5, 3, bias=bias)
        ).double()
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (9,), generator=generator)
    return model.to(device), (inputs.to(device), targets.to(device))


# --- Perturbations of data and of weights --------------------------------------------------------


@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize("loss", ["cross_entropy", "half_squared_error"])
def test_moving_a_layers_inputs_is_moving_its_weights(layer: str, loss: str) -> None:
    model, (inputs, targets) = network()
    if loss != "cross_entropy":
        targets = nn.functional.one_hot(targets, 3).double()
    d = model.get_submodule(layer).in_features
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    bound = renyi.perturbation_translation(model, (inputs, targets), layer, matrix, 0.3, loss)
    assert bound.certified
    assert bound.left == pytest.approx(bound.right, rel=1e-12)
    unmoved = renyi.perturbation_translation(model, (inputs, targets), layer, matrix, 0.0, loss)
    assert abs(unmoved.left - bound.left) > 1e-3


def test_a_weight_of_two_modules_is_reported() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    _, (inputs, targets) = network()
    matrix = torch.eye(4, dtype=torch.float64)
    bound = renyi.perturbation_translation(model, (inputs, targets), "0", matrix, 0.5)
    assert not bound.certified
    assert abs(bound.difference) > 1e-3


def test_translated_losses_of_the_first_layer_are_losses_on_moved_data() -> None:
    model, (inputs, targets) = network()
    matrices = renyi.haar_matrices(4, 3)
    losses = renyi.translated_losses(model, (inputs, targets), "0", matrices, 0.2)
    for loss, a in zip(losses, matrices, strict=True):
        outputs = model(inputs + 0.2 * inputs @ a.T).detach()
        expected = nn.functional.cross_entropy(outputs, targets)
        assert float(loss) == pytest.approx(float(expected), rel=1e-12)


def test_hoeffdings_deviation_by_hand() -> None:
    known = {
        "parameters_independent_of_sample": True,
        "loss_within_range": True,
        "expectation_over_the_haar_measure": True,
    }
    bound = renyi.haar_translation(
        0.3, [0.2, 0.4], 1000, 0.05, loss_range=2.0, perturbed_population_loss=0.31, known=known
    )
    assert bound.right == pytest.approx(0.3 + 2 * math.sqrt(math.log(20) / 2000), rel=1e-13)
    assert bound.certified
    lowered = renyi.haar_translation(
        0.3, [0.3], 1000, 0.05, perturbed_population_loss=0.29, known=known
    )
    assert not lowered.certified


def test_a_memorizing_network_violates_the_translation_bound() -> None:
    # Labels that are coin flips, memorized: no error on S, one half on D; ρ → 0.
    known = {"parameters_independent_of_sample": False, "loss_within_range": True}
    bound = renyi.haar_translation(
        0.5, [0.0], 1000, 0.05, perturbed_population_loss=0.5, known=known
    )
    assert bound.right == pytest.approx(0.0387, abs=1e-4)
    assert not bound.holds and not bound.certified


def test_the_bound_holds_on_a_holdout_sample_as_often_as_it_says() -> None:
    n, epsilon, runs = 50, 0.2, 2000
    generator = torch.Generator().manual_seed(0)
    draws = (torch.rand(runs, n, generator=generator, dtype=torch.float64) < 0.5).double()
    failures = sum(
        not renyi.haar_translation(0.5, [float(mean)], n, epsilon).holds for mean in draws.mean(1)
    )
    assert 0 < failures <= epsilon * runs


# --- PAC-Bayes bounds ----------------------------------------------------------------------------


def test_printed_isolated_minimum_bound_by_hand() -> None:
    eigenvalues, log_volume, n, delta = [1.0, 2.0, 4.0], math.log(0.1), 100, 0.05
    rise = 3 / (4 * math.pi * math.e) * (0.1**2 * math.pi * 8) ** (1 / 3)
    bound = renyi.isolated_minimum(0.2, 0.1, 0.05, eigenvalues, log_volume, n, delta)
    expected = 0.1 + 2 * math.sqrt((0.1 + 2 * rise + math.log(200 / delta)) / 99)
    assert bound.right == pytest.approx(expected, rel=1e-13)
    # A prior around the minimum found on the sample is the paper's own choice.
    assert bound.assumptions["prior_independent_of_sample"] is False
    assert not bound.certified
    certified = renyi.isolated_minimum(
        0.2, 0.1, 0.05, eigenvalues, log_volume, n, delta, known=ALL_TRUE
    )
    assert certified.certified
    singular = renyi.isolated_minimum(
        0.2, 0.1, 0.05, [1.0, 2.0, 0.0], log_volume, n, delta, known=ALL_TRUE
    )
    assert not singular.certified
    without = 0.1 + 2 * math.sqrt((0.1 + math.log(200 / delta)) / 99)
    assert singular.right == pytest.approx(without, rel=1e-13)


spectra = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(1e-3, 1e3))


@given(spectra, st.floats(0.1, 4.0), st.floats(-20.0, 5.0), st.floats(0, 0.5))
def test_isolated_minimum_bounds_are_ordered(values, alpha, log_volume, minimum) -> None:
    arguments = (0.2, 0.1, minimum, values, log_volume, 500, 0.05)
    determinant = renyi.isolated_minimum(*arguments)
    sharper_determinant = renyi.isolated_minimum(*arguments, "sharper")
    entropy = renyi.isolated_minimum_entropy(*arguments, alpha)
    sharper_entropy = renyi.isolated_minimum_entropy(*arguments, alpha, "sharper")
    slack = 1 + 1e-9
    assert sharper_determinant.right <= determinant.right * slack
    assert determinant.right <= entropy.right * slack
    assert sharper_determinant.right <= sharper_entropy.right * slack
    assert sharper_entropy.right <= entropy.right * slack


@given(spectra, st.floats(0.1, 4.0))
def test_the_entropy_moves_the_printed_complexity_by_at_most_log_d_over_d(values, alpha) -> None:
    d = len(values)
    ratio = math.log(values.sum() / d)  # complexity in the entropy-free bound, Tr H / d
    printed = math.log(values.sum()) - renyi_entropy(values, alpha) / d
    assert math.log(values.sum()) - math.log(d) / d - 1e-9 <= printed
    assert printed <= math.log(values.sum()) + 1e-9
    assert ratio <= printed + 1e-9


def test_layer_scaling_keeps_the_product_of_volume_and_trace_but_not_a_frozen_trace() -> None:
    values, c, alpha = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64), 3.0, 1.5
    risks, sample = (0.2, 0.1, 0.05), (100, 0.05)
    log_volume = -2.0
    moved = log_volume + len(values) * math.log(c)  # V takes c^d, H takes c^−2

    def right(eigenvalues: Tensor, log_volume: float, trace: float | None) -> float:
        return renyi.isolated_minimum_entropy(
            *risks, eigenvalues, log_volume, *sample, alpha, trace=trace
        ).right

    assert right(values / c**2, moved, None) == pytest.approx(right(values, log_volume, None))
    frozen = [right(values, log_volume, 4.5), right(values / c**2, moved, 4.5)]
    # Undo equation 24 to get A, which a frozen trace multiplies by c².
    before, after = (99 * ((r - 0.1) / 2) ** 2 - 0.1 - math.log(200 / 0.05) for r in frozen)
    assert after / before == pytest.approx(c**2, rel=1e-9)


def test_a_frozen_trace_below_the_true_one_is_not_certified() -> None:
    arguments = (0.2, 0.1, 0.05, [1.0, 2.0], 0.0, 100, 0.05, 1.5)
    for trace, met in ((2.9, False), (3.0, True), (4.0, True)):
        bound = renyi.isolated_minimum_entropy(*arguments, trace=trace, known=ALL_TRUE)
        assert bound.certified is met
        assert "Cor. C.3" in bound.source


def test_ellipsoid_bound_by_hand() -> None:
    eigenvalues, rho, radius, n, epsilon = [1.0, 4.0], 0.1, 1.0, 200, 0.05
    divergence = 2 * math.log(10) + 0.5 * math.log(4)
    expected = 0.1 + 2 * 0.01 / 8 + 0.02
    expected += math.sqrt((divergence + math.log(400 / epsilon)) / 398)
    bound = renyi.ellipsoid_posterior(
        0.2, 0.1, eigenvalues, rho, radius, n, epsilon, remainder=0.02, known=ELLIPSOID_TRUE
    )
    assert bound.right == pytest.approx(expected, rel=1e-13)
    assert bound.certified and bound.holds


@given(spectra, st.floats(0.1, 4.0))
def test_ellipsoid_bounds_are_ordered(values, alpha) -> None:
    arguments = (0.2, 0.1, values, 0.01, 10.0, 500, 0.05)
    determinant = renyi.ellipsoid_posterior(*arguments).right
    sharper = renyi.ellipsoid_posterior_entropy(*arguments, alpha, "sharper").right
    printed = renyi.ellipsoid_posterior_entropy(*arguments, alpha).right
    assert determinant <= sharper * (1 + 1e-9)
    assert sharper <= printed * (1 + 1e-9)


def test_printed_entropy_bounds_by_hand() -> None:
    # Order 2 of the eigenvalues 1 and 3: −log(10/16).
    entropy, log_trace = math.log(1.6), math.log(4)
    rise = 2 / (4 * math.pi * math.e) * math.sqrt(math.pi) * math.exp(log_trace - entropy / 2)
    expected = 0.1 + 2 * math.sqrt((0.1 + 2 * rise + math.log(200 / 0.05)) / 99)
    isolated = renyi.isolated_minimum_entropy(0.2, 0.1, 0.05, [1.0, 3.0], 0.0, 100, 0.05, 2.0)
    assert isolated.right == pytest.approx(expected, rel=1e-13)
    constant = log_trace + 2 * math.log(10) + math.log(200 / 0.05)
    expected = 0.1 + 2 * 0.01 / 8 + math.sqrt((constant - entropy / 2) / (2 * 99))
    ellipsoid = renyi.ellipsoid_posterior_entropy(0.2, 0.1, [1.0, 3.0], 0.1, 1.0, 100, 0.05, 2.0)
    assert ellipsoid.right == pytest.approx(expected, rel=1e-13)


def test_the_printed_constant_of_theorem_d1_is_of_the_order_of_the_dimension() -> None:
    d = 10_000
    flat = torch.ones(d, dtype=torch.float64)
    peaked = torch.full((d,), 1e-3, dtype=torch.float64)
    peaked[0] = d - (d - 1) * 1e-3  # the same trace
    arguments = (0.01, 100.0, 50_000, 0.05, 1.5)
    rights = [
        renyi.ellipsoid_posterior_entropy(0.0, 0.0, v, *arguments).right for v in (flat, peaked)
    ]
    # Opposite extremes of the entropy, 9.21 and 0.0012, move the printed bound by 0.0001.
    assert rights[0] < rights[1] < rights[0] * (1 + 1e-4)
    assert rights[0] > 1  # and it exceeds the loss's whole range
    determinants = [
        renyi.ellipsoid_posterior(0.0, 0.0, v, *arguments[:-1]).right for v in (flat, peaked)
    ]
    assert determinants[0] > determinants[1]  # the bounded value moves the other way


@pytest.mark.parametrize(
    ("change", "violated"),
    [
        ({"eigenvalues": [1.0, 0.0]}, "positive_definite"),
        ({"eigenvalues": [1.0, -1.0]}, "positive_definite"),
        ({"radius": 0.09}, "prior_contains_ellipsoid"),
        ({"centre_distance": 0.95}, "prior_contains_ellipsoid"),
        ({"known": {"prior_independent_of_sample": False}}, "prior_independent_of_sample"),
    ],
)
def test_ellipsoid_bounds_are_not_certified_where_a_hypothesis_fails(
    change: dict, violated: str
) -> None:
    arguments = {
        "eigenvalues": [1.0, 4.0],
        "rho": 0.1,
        "radius": 1.0,
        "n": 200,
        "epsilon": 0.05,
        "known": ELLIPSOID_TRUE,
        **change,
    }
    for bound in (
        renyi.ellipsoid_posterior(0.2, 0.1, **arguments),
        renyi.ellipsoid_posterior_entropy(0.2, 0.1, **arguments, alpha=0.5),
    ):
        assert bound.assumptions[violated] is False
        assert not bound.certified


def test_unanswered_hypotheses_are_not_certified() -> None:
    bound = renyi.ellipsoid_posterior(0.2, 0.1, [1.0, 4.0], 0.1, 1.0, 200, 0.05)
    assert bound.assumptions["loss_in_unit_interval"] is None
    assert not bound.certified and bound.holds


# --- The gradient in place of the Hessian --------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_the_gradients_entropy_is_the_hessians_only_where_their_spectra_agree(
    alpha: float,
) -> None:
    gradient = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    same = renyi.gradient_entropy(0.7 * gradient.square(), gradient, alpha)
    assert same.certified
    assert same.left == pytest.approx(same.right, rel=1e-12)
    other = renyi.gradient_entropy([1.0, 1.0, 1.0], gradient, alpha)
    assert not other.certified and abs(other.difference) > 0.05


@given(
    hnp.arrays(np.float64, st.integers(2, 20), elements=st.floats(0.01, 100.0)),
    st.floats(0.1, 4.0),
)
def test_the_power_ratio_stays_in_its_range(values, alpha) -> None:
    for bound in renyi.gradient_power_ratio_range(values, alpha):
        assert bound.certified
        assert bound.slack >= -1e-12 * max(1.0, bound.right)


def test_the_radius_of_the_perturbation_diverges_as_the_gradient_vanishes() -> None:
    gradient = torch.tensor([3.0, -4.0], dtype=torch.float64)
    norms = [float(renyi.renyi_perturbation(s * gradient, 0.1, 1.2).norm()) for s in (1, 1e-3)]
    assert norms[1] / norms[0] == pytest.approx(1000, rel=1e-9)


# --- Models and arguments ------------------------------------------------------------------------


def test_homogeneity_is_proven_refuted_or_left_open() -> None:
    def decided(model: nn.Module) -> bool | None:
        _, data = network()
        factors = dict.fromkeys(layers_of(model), 1.0)
        bounds = renyi.layer_scaling_invariance(model.double(), data, factors, 0.5)
        return next(iter(bounds.values())).assumptions["homogeneous"]

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU())
            self.head = nn.Linear(5, 3, bias=False)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.body(inputs))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert decided(network(bias=False)[0]) is True
        assert decided(network(bias=True)[0]) is False
        assert decided(Wrapped()) is None


def test_factors_whose_product_is_not_one_are_not_certified() -> None:
    model, data = network(bias=False)
    for bound in renyi.layer_scaling_invariance(model, data, {"0": 2.0}, 0.5).values():
        assert bound.assumptions["factors_have_product_one"] is False
        assert not bound.certified


def test_models_are_left_as_they_were() -> None:
    model, data = network()
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    renyi.layer_scaling_invariance(model, data, {"0": 2.0, "2": 0.5}, 0.5)
    renyi.regularized_loss(model, data, 0.1, 1.2)
    renyi.translated_losses(model, data, "0", renyi.haar_matrices(4, 2), 0.1)
    renyi.perturbation_translation(model, data, "0", torch.eye(4), 0.1)
    with pytest.raises(ValueError, match="labels must lie in"):
        renyi.translated_losses(model, (data[0], data[1] + 3), "0", renyi.haar_matrices(4, 2), 0.1)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


MODEL, DATA = network()
IDENTITY = torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: renyi.power_sum([1.0], 0.0), "alpha=0.0 must be positive"),
        (lambda: renyi.power_sum([0.0], 2.0), "eigenvalues is entirely zero"),
        (lambda: renyi.power_sum([], 2.0), r"eigenvalues=\[\] must be"),
        (lambda: renyi.trace_form(IDENTITY, 1.0), "alpha=1.* divides by zero"),
        (lambda: renyi.trace_form(-IDENTITY, 2.0), "hessian has trace -4"),
        (lambda: renyi.trace_form(torch.ones(2, 3), 2.0), "hessian=.* must be a square matrix"),
        (lambda: renyi.trace_form(torch.tensor([[1.0, 1], [0, 1]]), 2.0), "is not symmetric"),
        (lambda: renyi.trace_form(math.nan * IDENTITY, 2.0), "NaN or infinite"),
        (lambda: renyi.convexity([0.5, 0.6], [1.0, 0.0], 2.0), "p is no distribution"),
        (lambda: renyi.convexity([1.0], [1.0, 0.0], 2.0), "q has 2 outcomes and p has 1"),
        (lambda: renyi.convexity([1.0], [1.0], 2.0, "x"), "version='x' is unknown"),
        (lambda: renyi.decrease_in_order([1.0], 2.0, 1.0), "low=2.0 exceeds high=1.0"),
        (lambda: renyi.sum_of_logarithms([1.0], 2.0, "x"), "version='x' is unknown"),
        (lambda: renyi.haar_matrices(0, 1), "dimension=0 must be"),
        (lambda: renyi.haar_translation(0, [0.0], 0, 0.1), "n=0 must be at least 1"),
        (lambda: renyi.haar_translation(0, [0.0], 9, 1.0), "epsilon=1.0 must be strictly"),
        (lambda: renyi.haar_translation(0, [0.0], 9, 0.1, known={"x": True}), "known=.*'x'"),
        (
            lambda: renyi.translated_losses(MODEL, DATA, "1", IDENTITY[None], 0.1),
            "layer='1' is unknown",
        ),
        (
            lambda: renyi.translated_losses(MODEL, DATA, "2", IDENTITY[None], 0.1),
            r"perturbations=.* shape \(draws, 5, 5\)",
        ),
        (
            lambda: renyi.layer_scaling_invariance(MODEL, DATA, {"1": 2.0}, 0.5),
            r"factors=\['1'\] not found",
        ),
        (
            lambda: renyi.layer_scaling_invariance(MODEL, DATA, {"0": -2.0}, 0.5),
            "factors.*must be positive",
        ),
        (
            lambda: renyi.haar_relative_flatness(torch.ones(2, 2), IDENTITY, IDENTITY[None]),
            r"shape \(draws, 2, 2\)",
        ),
        (
            lambda: renyi.isolated_minimum(0, 0, 0, [1.0], 0.0, 1, 0.1),
            "n=1 must be at least 2",
        ),
        (
            lambda: renyi.isolated_minimum(0, 0, -1.0, [1.0], 0.0, 9, 0.1),
            "minimum_loss=-1.0 must be at least 0",
        ),
        (
            lambda: renyi.isolated_minimum_entropy(0, 0, 0, [1.0], 0.0, 9, 0.1, 2.0, trace=0.0),
            "trace=0.0 must be positive",
        ),
        (
            lambda: renyi.ellipsoid_posterior(0, 0, [1.0], 0.0, 1.0, 9, 0.1),
            "rho=0.0 must be positive",
        ),
        (
            lambda: renyi.ellipsoid_posterior(0, 0, [1.0], 1, 1, 9, 0.1, remainder=-1),
            "remainder=-1 must be",
        ),
        (
            lambda: renyi.ellipsoid_posterior(0, 0, [1.0], 1, 1, 9, 0.1, centre_distance=-1),
            "centre_distance=-1 must be",
        ),
        (
            lambda: renyi.gradient_power_ratio_derivative(torch.tensor([1.0, 0.0]), 0.4),
            "has a zero entry",
        ),
        (lambda: renyi.renyi_perturbation(torch.ones(2), 0.1, 1.0), "alpha=1.* divides by zero"),
        (lambda: renyi.gradient_entropy([1.0], [1.0, 2.0], 2.0), "2 entries for 1 eigenvalues"),
        (
            lambda: renyi.regularizer_descent(IDENTITY, torch.ones(3), 2.0),
            "gradient has 3 entries",
        ),
        (lambda: renyi.pinching(IDENTITY, [2, 3], 2.0), r"sizes=\[2, 3\] must add up"),
        (
            lambda: renyi.pinching(torch.diag(torch.tensor([1.0, 0.0])), [1, 1], 2.0),
            "a block that is entirely zero",
        ),
        (
            lambda: renyi.coupling_perturbation(torch.diag(torch.tensor([1.0, -2.0])), [1, 1], 2.0),
            "hessian has trace -1",
        ),
    ],
)
def test_bad_arguments_get_one_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_every_new_tensor_names_its_device(device: torch.device, explicit_devices) -> None:
    model, data = network(bias=False, device=device)
    hessian = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64)).to(device)
    values, gradient = hessian.diagonal(), hessian.diagonal().sqrt()
    with explicit_devices():
        matrices = renyi.haar_matrices(4, 2)
        renyi.translated_losses(model, data, "0", matrices, 0.1)
        renyi.perturbation_translation(model, data, "0", matrices[0], 0.1)
        renyi.layer_scaling_invariance(model, data, {"0": 2.0, "2": 0.5}, 0.5)
        renyi.regularized_loss(model, data, 0.1, 1.2)
        renyi.regularizer_descent(hessian, gradient, 1.2)
        renyi.first_order_regularizer(gradient, 0.1, 1.2)
        renyi.gradient_entropy(values, gradient, 1.2)
        renyi.trace_form(hessian, 1.2)
        renyi.determinant_chain(values, 1.2)
        renyi.sum_of_logarithms(values, 1.2)
        renyi.isolated_minimum_entropy(0, 0, 0, values, 0.0, 9, 0.1, 1.2)
        renyi.ellipsoid_posterior_entropy(0, 0, values, 0.1, 1.0, 9, 0.1, 1.2)
        renyi.haar_relative_flatness(torch.ones_like(hessian[:2, :3]), hessian, matrices[:, :3, :3])
        for call in (
            renyi.block_decomposition,
            renyi.layerwise_lower_bounds,
            renyi.layers_are_uniform,
            renyi.pinching,
            renyi.coupling_perturbation,
            renyi.coupling_perturbation_below_one,
        ):
            call(hessian, [2, 4], 1.2)
        renyi.layerwise_consequence(hessian, hessian, [2, 4], 1.2)
