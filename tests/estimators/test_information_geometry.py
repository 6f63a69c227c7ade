"""Information-geometric sharpness against dense pseudo-inverses, closed forms and extremes."""

from __future__ import annotations

import copy
import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from helpers import every_case, every_loss, gaussian, random_labels, shallow, targets_for
from hypothesis import given, settings
from networks import NAMED, Case
from round_off import moves_of_model
from torch import Tensor, nn

from paperkit.curvature import dense_empirical_fisher, dense_gauss_newton, dense_jacobian
from paperkit.estimators.baselines import (
    exponential_losses,
    mean_exponential_loss,
    mean_loss,
)
from paperkit.estimators.dual_gradients import dual_gradients
from paperkit.estimators.fisher_rows import compressed_rows, single_block
from paperkit.estimators.information_geometry import (
    information_geometric_sharpness,
    information_geometric_sharpness_from,
    information_geometric_sharpness_from_jacobian,
)
from paperkit.estimators.measure import measure
from paperkit.estimators.plan import CostWarning
from paperkit.experiments.studies import curvature_blocks
from paperkit.linearize import linearize
from paperkit.models.small import build_digit_network
from paperkit.network import get_loss

RELU_MLP = NAMED["relu MLP"]


def by_pseudo_inverse(model: nn.Module, inputs: Tensor, targets: Tensor, loss: str) -> float:
    fisher = dense_gauss_newton(model, inputs, loss)
    moment = dense_empirical_fisher(model, inputs, targets, loss)
    # Singular values of G squared: what G keeps down to 1e-7 this keeps down to 1e-13.
    inverse = torch.linalg.pinv(fisher, rtol=1e-13, hermitian=True)
    return float((inverse * moment).sum())


def of_jacobian(jacobian: Tensor, outputs: Tensor, targets: Tensor, **options: object):
    return information_geometric_sharpness_from_jacobian(jacobian, outputs, targets, **options)


# Equation 6 -----------------------------------------------------------------------------------


@every_case
@every_loss
@pytest.mark.parametrize("n", [5, 40])
def test_sharpness_is_that_of_the_dense_pseudo_inverse(
    case: Case, loss: str, n: int, device: torch.device
) -> None:
    model, inputs, targets = case.make(n=n, device=device)
    targets = targets_for(loss, targets)
    result = information_geometric_sharpness(model, (inputs, targets), loss)
    expected = by_pseudo_inverse(model, inputs, targets, loss)
    assert float(result) == pytest.approx(expected, rel=1e-8)
    assert float(result) <= result.upper_bound * (1 + 1e-12)
    assert float(result.sample_terms.mean()) == pytest.approx(float(result), rel=1e-12)
    assert result.n == n
    assert result.dimension == sum(p.numel() for p in model.parameters())


def test_with_enough_parameters_the_sharpness_is_a_function_of_the_losses() -> None:
    model, inputs, targets = shallow(4, 3, 4), gaussian(8, 4), random_labels(8, 4)
    result = information_geometric_sharpness(model, (inputs, targets))
    losses = nn.functional.cross_entropy(model(inputs).detach(), targets, reduction="none")
    assert (result.dimension, result.rank, result.num_rows) == (31, 24, 24)
    assert result.full_rank
    assert float(result) == pytest.approx(float(torch.expm1(losses).sum()), rel=1e-12)
    assert float(result) == pytest.approx(
        by_pseudo_inverse(model, inputs, targets, "cross_entropy"), rel=1e-8
    )


def test_with_few_parameters_the_sharpness_stays_below_the_losses() -> None:
    model, inputs, targets = shallow(3, 3, 3), gaussian(40, 3), random_labels(40, 3)
    result = information_geometric_sharpness(model, (inputs, targets))
    assert (result.dimension, result.num_rows) == (24, 80)
    assert result.rank <= 24 - 4  # the head's common shift of all logits
    assert float(result) < 0.9 * result.upper_bound
    baseline = mean_exponential_loss(model, (inputs, targets))
    assert result.upper_bound == pytest.approx(40 * float(baseline), rel=1e-12)
    assert result.criterion == float(result) / 40


@every_case
def test_model_linearization_and_jacobian_give_one_value(case: Case, device: torch.device) -> None:
    for n in (4, 50):
        model, inputs, targets = case.make(n=n, device=device)
        model.eval()
        whole = float(information_geometric_sharpness(model, (inputs, targets)))
        linearization = linearize(model, inputs, all_parameters=True)
        from_pairs = information_geometric_sharpness_from(linearization, targets)
        from_jacobian = of_jacobian(dense_jacobian(model, inputs), model(inputs).detach(), targets)
        assert float(from_pairs) == pytest.approx(whole, rel=1e-9)
        assert float(from_jacobian) == pytest.approx(whole, rel=1e-9)


def test_samples_linearized_a_few_at_a_time_give_the_same(device: torch.device) -> None:
    model, inputs, targets = RELU_MLP.make(n=90, device=device)
    whole = information_geometric_sharpness(model, (inputs, targets))
    uneven = [(inputs[:50], targets[:50]), (inputs[50:57], targets[50:57])]
    uneven.append((inputs[57:], targets[57:]))
    # With 180 rows and 107 parameters, G and its copies take 924 kB, the triangular factors 366 kB.
    streamed = information_geometric_sharpness(model, uneven, memory_budget=400_000)
    assert streamed.rank == whole.rank
    torch.testing.assert_close(streamed.sample_terms, whole.sample_terms, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="memory_budget=100000 is too small"):
        information_geometric_sharpness(model, uneven, memory_budget=100_000)


# Extremes -------------------------------------------------------------------------------------


def test_saturated_samples_keep_all_their_digits() -> None:
    outputs = torch.tensor([[27.6310211159, 0.0, 0.0], [0.0, 40.0, -1.0]], dtype=torch.float64)
    targets = torch.tensor([0, 1])
    result = of_jacobian(gaussian(2, 3, 20), outputs, targets)
    expected = [2 * math.exp(-27.6310211159), math.exp(-40) + math.exp(-41)]
    assert result.full_rank
    assert float(result) == pytest.approx(sum(expected), rel=1e-13)
    assert result.sample_terms.tolist() == pytest.approx([2 * x for x in expected], rel=1e-13)
    # Copies span nothing new: the projection has to find what one sample of each gives.
    twice = of_jacobian(gaussian(2, 3, 20).repeat(3, 1, 1), outputs.repeat(3, 1), targets.repeat(3))
    assert twice.rank == 4
    assert float(twice) == pytest.approx(sum(expected), rel=1e-11)


def flipped(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Eight samples, logits of size ``scale``, one mislabelled at a loss of 2.5 times that."""
    jacobian = gaussian(8, 3, 40, seed=1)
    outputs = gaussian(8, 3, seed=2)
    outputs[3] = torch.tensor([1.5, 0.0, -1.0])
    outputs = scale * outputs
    targets = outputs.argmax(dim=1)
    targets[3] = 2
    return jacobian, outputs, targets


@pytest.mark.parametrize("scale", [1.0, 8.0, 16.0, 32.0, 64.0])
def test_a_confident_mistake_is_exact_in_full_rank_and_among_copies(scale: float) -> None:
    jacobian, outputs, targets = flipped(scale)
    expected = float(exponential_losses(outputs, targets).sum())
    single = of_jacobian(jacobian, outputs, targets)
    assert single.full_rank
    assert float(single) == pytest.approx(expected, rel=1e-13)
    copies = of_jacobian(jacobian.repeat(2, 1, 1), outputs.repeat(2, 1), targets.repeat(2))
    assert (copies.rank, copies.num_rows) == (16, 32)
    assert float(copies) == pytest.approx(expected, rel=1e-9)


def test_a_gram_matrix_loses_the_confident_mistake() -> None:
    jacobian, outputs, targets = flipped(16.0)
    dual = dual_gradients(outputs, targets)
    rows = (dual.factor @ jacobian).flatten(0, 1)
    eigenvalues, vectors = torch.linalg.eigh(rows @ rows.T)
    kept = vectors[:, eigenvalues > 1e-12 * eigenvalues[-1]]
    blocks = kept.unflatten(0, (8, 2))
    parts = torch.einsum("nrk,nr->nk", blocks, dual.dual_vectors).square().sum()
    exact = float(of_jacobian(jacobian, outputs, targets))
    assert float(parts) < 1e-3 * exact


def test_a_loss_beyond_the_range_of_exp_is_infinite_not_nan() -> None:
    outputs = torch.tensor([[0.0, 3000.0], [1.0, 0.0]], dtype=torch.float64)
    targets = torch.tensor([0, 0])
    for copies in (1, 2):
        result = of_jacobian(
            gaussian(2, 2, 9).repeat(copies, 1, 1),
            outputs.repeat(copies, 1),
            targets.repeat(copies),
        )
        assert float(result) == math.inf
        assert result.sample_terms[1] == pytest.approx(2 * math.exp(-1), rel=1e-12)


def test_one_sample_has_its_odds_whatever_the_network() -> None:
    model, inputs, targets = RELU_MLP.make(n=1)
    result = information_geometric_sharpness(model, (inputs, targets), batch_size=1)
    loss = nn.functional.cross_entropy(model(inputs).detach(), targets)
    assert float(result) == pytest.approx(float(torch.expm1(loss)), rel=1e-12)


def test_two_classes_have_one_row_a_sample() -> None:
    model, inputs, targets = shallow(3, 4, 2), gaussian(50, 3), random_labels(50, 2)
    result = information_geometric_sharpness(model, (inputs, targets))
    assert result.num_rows == 50
    assert float(result) == pytest.approx(
        by_pseudo_inverse(model, inputs, targets, "cross_entropy"), rel=1e-8
    )


def test_copies_of_the_data_lower_the_rank_share_and_keep_the_sharpness() -> None:
    model, inputs, targets = RELU_MLP.make(n=6)
    once = information_geometric_sharpness(model, (inputs, targets))
    copied = information_geometric_sharpness(model, (inputs.repeat(4, 1), targets.repeat(4)))
    assert once.full_rank
    assert (copied.rank, copied.num_rows) == (once.rank, 4 * once.num_rows)
    assert float(copied) == pytest.approx(float(once), rel=1e-11)
    assert not copied.tolerance_sensitive


def test_zero_gradients_have_sharpness_zero() -> None:
    model = nn.Linear(4, 3, bias=False).double()
    result = information_geometric_sharpness(
        model, (torch.zeros(5, 4).double(), random_labels(5, 3))
    )
    assert (float(result), result.rank) == (0.0, 0)
    assert result.upper_bound > 0
    tall = information_geometric_sharpness(
        model, (torch.zeros(50, 4).double(), random_labels(50, 3))
    )
    assert (float(tall), tall.rank) == (0.0, 0)


def test_softmax_regression_has_rank_inputs_times_classes_less_one() -> None:
    model, inputs, targets = nn.Linear(8, 3).double(), gaussian(60, 8), random_labels(60, 3)
    result = information_geometric_sharpness(model, (inputs, targets))
    assert result.rank == 9 * 2
    assert not result.tolerance_sensitive


def test_a_tolerance_between_the_singular_values_is_reported_as_sensitive() -> None:
    jacobian = gaussian(6, 3, 4, seed=3)
    jacobian[..., 3] *= 1e-5
    outputs, targets = gaussian(6, 3, seed=4), random_labels(6, 3, seed=5)
    coarse = of_jacobian(jacobian, outputs, targets, tolerance=1e-4)
    fine = of_jacobian(jacobian, outputs, targets, tolerance=1e-8)
    assert (coarse.rank, fine.rank) == (3, 4)
    assert coarse.tolerance_sensitive
    assert not fine.tolerance_sensitive
    assert coarse.by_tolerance[1e-4 * 1e-2] == pytest.approx(float(fine), rel=1e-12)


def test_a_value_that_another_tolerance_would_change_shows_both() -> None:
    jacobian = gaussian(6, 3, 4, seed=3)
    jacobian[..., 3] *= 1e-5
    outputs, targets = gaussian(6, 3, seed=4), random_labels(6, 3, seed=5)
    coarse = of_jacobian(jacobian, outputs, targets, tolerance=1e-4)
    assert not coarse.converged
    for value in coarse.by_tolerance.values():
        assert f"{value:.6g}" in repr(coarse)
    assert "converged=False" in repr(coarse)
    fine = of_jacobian(jacobian, outputs, targets, tolerance=1e-8)
    assert fine.converged
    assert "by_tolerance" not in fine.assumptions


def test_a_precision_that_hides_every_direction_is_refused() -> None:
    outputs, targets = gaussian(60, 3).half(), random_labels(60, 3)
    with pytest.raises(ValueError, match=r"model computes in torch.float16"):
        of_jacobian(gaussian(60, 3, 200).half(), outputs, targets)


def test_round_off_of_inputs_and_weights_leaves_rank_and_value() -> None:
    # A wide range of row lengths: long rows know their weakest directions to 1e-12 only.
    model = build_digit_network("residual, frozen batch norm", 0)
    inputs, targets = curvature_blocks.digits_batch(60, 0)
    dual = dual_gradients(model(inputs).detach(), targets)
    rows = (dual.factor @ dense_jacobian(model, inputs)).flatten(0, 1)
    lengths = rows.norm(dim=1, keepdim=True)
    values = torch.linalg.svdvals(rows / lengths)
    rank = int((values > 1e-9 * values[0]).sum())
    assert float(values[rank - 1]) > 1e9 * float(values[rank])  # a gap that leaves no choice
    left = torch.linalg.svd(rows, full_matrices=False).U[:, :rank].unflatten(0, (60, -1))
    expected = float(torch.einsum("nrk,nr->nk", left, dual.dual_vectors).square().sum())
    for model_, inputs_ in moves_of_model(model, inputs, times=10):
        result = information_geometric_sharpness(model_, (inputs_, targets))
        assert result.rank == rank
        assert result.converged
        assert float(result) == pytest.approx(expected, rel=1e-6)


# Equation 7, damping, squared errors --------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 40])
def test_a_batch_of_everything_is_the_norm_of_the_mean_gradient(n: int) -> None:
    model, inputs, targets = RELU_MLP.make(n=n)
    result = information_geometric_sharpness(model, (inputs, targets), batch_size=n)
    fisher = dense_gauss_newton(model, inputs)
    gradient = torch.autograd.grad(
        nn.functional.cross_entropy(model(inputs), targets), list(model.parameters())
    )
    flat = torch.cat([part.flatten() for part in gradient])
    expected = flat @ torch.linalg.pinv(fisher, rtol=1e-13, hermitian=True) @ flat
    assert float(result) == pytest.approx(float(expected), rel=1e-8)
    single = information_geometric_sharpness(model, (inputs, targets))
    assert float(result) == pytest.approx(single.mean_gradient_term, rel=1e-12)


def test_in_full_rank_a_batch_divides_the_sharpness() -> None:
    model, inputs, targets = RELU_MLP.make(n=6)
    whole = float(information_geometric_sharpness(model, (inputs, targets)))
    for b in (1, 2, 5, 6):
        part = information_geometric_sharpness(model, (inputs, targets), batch_size=b)
        assert float(part) == pytest.approx(whole / b, rel=1e-12)


@every_loss
@pytest.mark.parametrize("n", [5, 60])
def test_the_damped_sharpness_is_that_of_the_dense_resolvent(loss: str, n: int) -> None:
    model, inputs, targets = RELU_MLP.make(n=n)
    targets = targets_for(loss, targets)
    result = information_geometric_sharpness(model, (inputs, targets), loss, damping=1e-3)
    fisher = dense_gauss_newton(model, inputs, loss)
    shift = 1e-3 * torch.linalg.eigvalsh(fisher)[-1]
    identity = torch.eye(len(fisher), dtype=torch.float64)
    inverse = torch.linalg.inv(fisher + shift * identity)
    moment = dense_empirical_fisher(model, inputs, targets, loss)
    assert float(result) == pytest.approx(float((inverse * moment).sum()), rel=1e-10)
    assert result.assumptions["shift"] == pytest.approx(float(shift), rel=1e-10)
    assert result.method == "damped"
    assert result.assumptions["invariant"] is False


@pytest.mark.parametrize("loss", ["half_squared_error", "mse"])
def test_squared_errors_collapse_to_twice_the_loss(loss: str) -> None:
    model, inputs, _ = RELU_MLP.make(n=4)
    data = inputs, gaussian(4, 3, seed=7)
    result = information_geometric_sharpness(model, data, loss)
    assert result.full_rank
    assert float(result) == pytest.approx(2 * 4 * float(mean_loss(model, data, loss)), rel=1e-12)


def test_dual_gradients_are_the_gradients_in_the_outputs() -> None:
    outputs = 5 * gaussian(20, 4)
    for loss in ("cross_entropy", "half_squared_error", "mse"):
        targets = random_labels(20, 4) if loss == "cross_entropy" else gaussian(20, 4, seed=1)
        dual = dual_gradients(outputs, targets, loss)
        rebuilt = torch.einsum("nrc,nr->nc", dual.factor, dual.dual_vectors)
        torch.testing.assert_close(rebuilt, get_loss(loss).gradient(outputs, targets))
        norms = dual.dual_vectors.square().sum(dim=1)
        torch.testing.assert_close(dual.squared_norms, norms, rtol=1e-10, atol=0.0)


# Properties -----------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 9), st.integers(2, 4), st.integers(1, 14))


@given(sizes, st.floats(0.1, 6.0), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_sharpness_lies_between_zero_and_its_bound_and_grows_with_the_rank(
    size: tuple[int, int, int], scale: float, seed: int
) -> None:
    n, classes, d = size
    outputs, targets = scale * gaussian(n, classes, seed=seed), random_labels(n, classes, seed)
    jacobian = gaussian(n, classes, d, seed=seed + 1)
    result = of_jacobian(jacobian, outputs, targets)
    assert 0.0 <= float(result) <= result.upper_bound * (1 + 1e-9)
    wider = of_jacobian(
        torch.cat([jacobian, gaussian(n, classes, 2, seed=seed + 2)], dim=2),
        outputs,
        targets,
    )
    assert float(wider) >= float(result) * (1 - 1e-6)


@given(sizes, st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_sharpness_does_not_see_the_coordinates(size: tuple[int, int, int], seed: int) -> None:
    n, classes, d = size
    outputs, targets = gaussian(n, classes, seed=seed), random_labels(n, classes, seed)
    jacobian = gaussian(n, classes, d, seed=seed + 1)
    orthogonal, _ = torch.linalg.qr(gaussian(d, d, seed=seed + 2))
    change = orthogonal * torch.logspace(-1, 1, d, dtype=torch.float64)
    before = float(of_jacobian(jacobian, outputs, targets))
    after = float(of_jacobian(jacobian @ change, outputs, targets))
    # A square random matrix is the worst case: its condition number is above 1e4 once in some
    # thousand draws, a hundred times that under the change.
    assert after == pytest.approx(before, rel=1e-8)


@given(sizes, st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_under_the_models_own_labels_the_mean_sharpness_is_the_rank(
    size: tuple[int, int, int], seed: int
) -> None:
    n, classes, d = size
    outputs, jacobian = (
        gaussian(n, classes, seed=seed),
        gaussian(n, classes, d, seed=seed + 1),
    )
    p = torch.softmax(outputs, dim=1)
    mean, rank = 0.0, 0
    for label in range(classes):
        result = of_jacobian(jacobian, outputs, torch.full((n,), label))
        mean += float((p[:, label] * result.sample_terms).mean())
        rank = result.rank
    assert mean == pytest.approx(rank, rel=1e-9)


# Manners --------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was_found() -> None:
    model, inputs, targets = NAMED["residual"].make(n=9)
    model.train()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    data = inputs, targets
    information_geometric_sharpness(model, data)
    with pytest.raises(ValueError, match="labels"):
        information_geometric_sharpness(model, (inputs, targets + 5))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_single_precision_network_gets_a_tolerance_of_its_own() -> None:
    model, inputs, targets = RELU_MLP.make(n=6)
    exact = information_geometric_sharpness(model, (inputs, targets))
    single = information_geometric_sharpness(model.float(), (inputs.float(), targets))
    expected = 100 * math.sqrt(12) * torch.finfo(torch.float32).eps
    assert single.tolerance == pytest.approx(expected, rel=1e-12)
    assert single.full_rank
    assert float(single) == pytest.approx(float(exact), rel=1e-5)


def test_bad_arguments_are_refused_by_name() -> None:
    model, inputs, targets = RELU_MLP.make(n=6)
    data = inputs, targets
    for options, message in [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 7}, "batch_size=7"),
        ({"tolerance": 0.0}, r"tolerance=0\.0"),
        ({"tolerance": 2.0}, r"tolerance=2\.0"),
        ({"damping": -1.0}, r"damping=-1\.0"),
        ({"loss": "hinge"}, "hinge"),
    ]:
        with pytest.raises(ValueError, match=message):
            information_geometric_sharpness(model, data, **options)
    with pytest.raises(ValueError, match="jacobian has shape"):
        of_jacobian(gaussian(6, 2, 4), gaussian(6, 3), targets)


@pytest.mark.parametrize("n", [4, 60])
def test_the_measure_stays_on_the_models_device(
    n: int, device: torch.device, explicit_devices
) -> None:
    model, inputs, targets = RELU_MLP.make(n=n, device=device)
    data = inputs, targets
    with explicit_devices():
        for options in ({}, {"damping": 0.1}, {"batch_size": 2}):
            information_geometric_sharpness(model, data, **options)


# --- Rows in pairs, and their cost


def _perceptron(dtype: torch.dtype, widths: tuple[int, ...] = (12, 9, 7, 4)) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(dtype)


class _Mixed(nn.Module):
    """A convolution, then a layer that is used twice, then one at a single position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.twice = nn.Linear(12, 12)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x)).flatten(1)
        return self.last(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("kind", ["perceptron", "mixed"])
def test_rows_of_pairs_have_the_inner_products_of_the_rows(kind, repeated, dtype) -> None:
    torch.manual_seed(1)
    model = _perceptron(dtype) if kind == "perceptron" else _Mixed().to(dtype)
    shape = (12,) if kind == "perceptron" else (1, 4, 4)
    inputs = torch.randn(6, *shape, dtype=dtype)
    if repeated:
        inputs[3:] = inputs[:3]
    targets = random_labels(6, 4)
    linearization = linearize(model, inputs, "cross_entropy", targets=targets, all_parameters=True)
    dual = dual_gradients(linearization.outputs, targets, "cross_entropy")
    jacobian = torch.cat([block for _, block in linearization.jacobian_blocks()], dim=2)
    ((expected, lengths),) = single_block(jacobian, dual.factor)()
    # Where squaring costs less than the tolerance the Gram matrix serves, else the rows' factor.
    finest = 10 * torch.finfo(dtype).eps
    ((rows, scales),) = compressed_rows(linearization, dual.factor, finest)()
    close = {"rtol": 0, "atol": {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]}
    torch.testing.assert_close(rows @ rows.T, expected @ expected.T, **close)
    torch.testing.assert_close(scales, lengths, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_repeated_samples_have_the_rank_of_the_different_ones(dtype) -> None:
    model = _perceptron(dtype, (20, 16, 4))
    inputs = torch.randn(8, 20, generator=torch.Generator().manual_seed(2)).to(dtype)
    inputs[4:] = inputs[:4]
    targets = torch.tensor([0, 1, 2, 3, 1, 2, 3, 0])
    found = information_geometric_sharpness(model, (inputs, targets))
    assert found.converged and (found.rank, found.num_rows) == (12, 24)
    exact = information_geometric_sharpness(
        copy.deepcopy(model).double(), (inputs.double(), targets)
    )
    assert float(found) == pytest.approx(float(exact), rel=found.precision)


def _many_rows() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 10))
    return model, (torch.randn(260, 50), torch.randint(10, (260,)))


def test_a_default_report_leaves_out_what_costs_much_and_a_name_has_it_computed() -> None:
    model, data = _many_rows()
    name = "information_geometric_sharpness"
    report = measure(model, data)
    assert set(report.missing) == {name} and "name it in measures" in report.missing[name]
    few = measure(model, (data[0][:40], data[1][:40]))
    assert not few.missing
    alone = information_geometric_sharpness(model, (data[0][:40], data[1][:40]))
    assert float(few[name]) == pytest.approx(float(alone), rel=1e-12)
    named = measure(model, (data[0][:40], data[1][:40]), [name])
    assert float(named[name]) == float(few[name])


@pytest.mark.parametrize("by_report", [False, True])
def test_a_long_factorization_is_announced(by_report, monkeypatch) -> None:
    model, data = _many_rows()
    data = data[0][:60], data[1][:60]
    monkeypatch.setattr("paperkit.estimators.plan._SECONDS", 0.0)
    with pytest.warns(CostWarning, match="information_geometric_sharpness: planned cost about"):
        if by_report:
            measure(model, data, ["information_geometric_sharpness"])
        else:
            information_geometric_sharpness(model, data)
