"""K-FAC and EKFAC against the dense blocks that they approximate."""

from __future__ import annotations

import pytest
import torch
from helpers import relative
from networks import CASES, NAMED, Case
from torch import Tensor, nn

from paperkit.curvature import dense_empirical_fisher, dense_gauss_newton
from paperkit.linearize import linearize
from paperkit.linearize.kronecker import KroneckerFactors, ekfac, kfac
from paperkit.linearize.weights import LeftOutWarning

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def in_matrix_order(block: Tensor, factors: KroneckerFactors) -> Tensor:
    """Reorder a dense block from weight, bias to the rows and columns of parameter matrices."""
    sizes = [shape.numel() for shape in factors.parameter_shapes.values()]
    identity = torch.eye(sum(sizes), dtype=block.dtype, device=block.device)
    parts = identity.split(sizes, dim=1)
    shaped = {
        name: part.reshape(-1, *shape)
        for (name, shape), part in zip(factors.parameter_shapes.items(), parts, strict=True)
    }
    order = factors.join(shaped).flatten(1)
    return order.T @ block @ order


def eigenvectors(factors: KroneckerFactors) -> Tensor:
    pairs = zip(factors.output_basis, factors.input_basis, strict=True)
    return torch.block_diag(*(torch.kron(left, right) for left, right in pairs))


@every_case
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_ekfac_eigenvalues_are_the_diagonal_of_the_block_in_kfacs_eigenbasis(
    case: Case, loss: str, device: torch.device
) -> None:
    model, inputs, _ = case.make(device=device)
    for factors in ekfac(linearize(model, inputs, loss)).values():
        names = list(factors.parameter_shapes)
        block = in_matrix_order(dense_gauss_newton(model, inputs, loss, names), factors)
        basis = eigenvectors(factors)
        expected = (basis.T @ block @ basis).diagonal()
        assert relative(factors.eigenvalues.flatten() - expected, expected) < 1e-12
        assert factors.trace() == pytest.approx(float(block.trace()), rel=1e-12)


@every_case
def test_ekfac_is_at_least_as_close_to_the_block_as_kfac(case: Case, device: torch.device) -> None:
    model, inputs, _ = case.make(12, device=device)
    linearization = linearize(model, inputs)
    gains = []
    for name, plain in kfac(linearization).items():
        corrected = ekfac(linearization)[name]
        block = dense_gauss_newton(model, inputs, "cross_entropy", list(plain.parameter_shapes))
        block = in_matrix_order(block, plain)
        distance = (block - corrected.matrix()).norm(), (block - plain.matrix()).norm()
        assert distance[0] <= distance[1] * (1 + 1e-12)
        gains.append(float(1 - distance[0] / distance[1]))
    assert max(gains) > 1e-2  # several samples: the two are not the same matrix


@every_case
def test_observed_labels_give_the_empirical_fisher(case: Case, device: torch.device) -> None:
    model, inputs, targets = case.make(device=device)
    for factors in ekfac(linearize(model, inputs), targets).values():
        block = dense_empirical_fisher(
            model, inputs, targets, parameters=list(factors.parameter_shapes)
        )
        basis = eigenvectors(factors)
        expected = (basis.T @ in_matrix_order(block, factors) @ basis).diagonal()
        assert relative(factors.eigenvalues.flatten() - expected, expected) < 1e-12


@pytest.mark.parametrize("method", [kfac, ekfac])
@pytest.mark.parametrize("observed", [False, True])
def test_one_sample_with_one_position_is_exact(method, observed: bool) -> None:
    model, inputs, targets = NAMED["relu MLP"].make(1)
    linearization = linearize(model, inputs)
    for factors in method(linearization, targets if observed else None).values():
        names = list(factors.parameter_shapes)
        block = (
            dense_empirical_fisher(model, inputs, targets, parameters=names)
            if observed
            else dense_gauss_newton(model, inputs, parameters=names)
        )
        block = in_matrix_order(block, factors)
        assert relative(factors.matrix() - block, block) < 1e-12


class _FirstPosition(nn.Module):
    """A linear layer over positions, of which the output reads the first only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs)[:, 0]


def test_positions_are_summed_in_the_signals_and_averaged_in_the_inputs() -> None:
    # Equal inputs at all positions and a signal at one: then the factors are independent, and the
    # product is the block; averaging the signals too would be off by the factor 5.
    model = _FirstPosition().double()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 1, 3, generator=generator, dtype=torch.float64).expand(1, 5, 3)
    factors = kfac(linearize(model, inputs))["linear"]
    block = dense_gauss_newton(model, inputs, parameters=["linear.weight", "linear.bias"])
    block = in_matrix_order(block, factors)
    assert relative(factors.matrix() - block, block) < 1e-12


@every_case
def test_products_and_damped_solves_are_those_of_the_written_out_matrix(
    case: Case, device: torch.device
) -> None:
    model, inputs, _ = case.make(device=device)
    generator = torch.Generator().manual_seed(1)
    linearization = linearize(model, inputs)
    for method in (kfac, ekfac):
        for factors in method(linearization).values():
            basis = eigenvectors(factors)
            matrix = basis @ torch.diag(factors.eigenvalues.flatten()) @ basis.T
            vectors = torch.randn(2, len(matrix), generator=generator, dtype=torch.float64)
            vectors = vectors.to(device)
            outputs = factors.output_basis.shape[0] * factors.output_basis.shape[1]
            shaped = vectors.reshape(2, outputs, -1)
            damping = 0.1 * float(factors.eigenvalues.max())
            identity = torch.eye(len(matrix), dtype=torch.float64, device=device)
            solved = torch.linalg.solve(matrix + damping * identity, vectors.T).T
            product = factors.product(shaped).flatten(1)
            inverse = factors.inverse_product(shaped, damping).flatten(1)
            assert relative(factors.matrix() - matrix, matrix) < 1e-12
            assert relative(product - vectors @ matrix, vectors @ matrix) < 1e-12
            assert relative(inverse - solved, solved) < 1e-12


def test_split_undoes_join_and_results_keep_the_dtype() -> None:
    model, inputs, _ = NAMED["residual"].make()
    factors = ekfac(linearize(model, inputs))["grouped"]
    parameters = dict(model.named_parameters())
    chosen = {name: parameters[name].detach().float() for name in factors.parameter_shapes}
    assert set(chosen) == {"grouped.weight", "grouped.bias"}
    matrix = factors.join(chosen)
    again = factors.split(matrix)
    assert all(torch.equal(again[name], tensor) for name, tensor in chosen.items())
    assert factors.product(matrix).dtype == torch.float32


def test_a_small_memory_budget_changes_nothing() -> None:
    model, inputs, _ = NAMED["residual"].make()
    linearization = linearize(model, inputs)
    expected = ekfac(linearization)
    for layer in linearization.layers.values():
        layer.memory_budget = 1  # room for no more than a sample
    for name, factors in ekfac(linearization).items():
        matrix = expected[name].matrix()
        assert relative(factors.matrix() - matrix, matrix) < 1e-12


def test_bad_arguments_are_refused_in_one_sentence() -> None:
    model, inputs, _ = NAMED["relu MLP"].make()
    factors = kfac(linearize(model, inputs))["0"]
    with pytest.raises(ValueError, match=r"damping=0\.0 must be positive"):
        factors.inverse_product(torch.zeros(6, 9, dtype=torch.float64), 0.0)
    with pytest.raises(ValueError, match="layer 0 needs"):
        factors.product(torch.zeros(6, 8, dtype=torch.float64))
    twins = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).double()
    twins[2].weight = twins[0].weight
    for approximate in (kfac, ekfac):
        with pytest.raises(ValueError, match="different biases"):
            approximate(linearize(twins, inputs), strict=True)


def test_a_layer_whose_calls_have_different_biases_is_left_out() -> None:
    torch.manual_seed(0)
    twins = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    twins[2].weight = twins[0].weight
    inputs = torch.randn(5, 8).double()
    for approximate in (kfac, ekfac):
        with pytest.warns(LeftOutWarning, match=r"leaves out 0 .* different biases"):
            assert list(approximate(linearize(twins.double(), inputs))) == ["4"]


@every_case
def test_factors_live_on_the_models_device(
    case: Case, device: torch.device, explicit_devices
) -> None:
    model, inputs, targets = case.make(device=device)
    with explicit_devices():
        for factors in ekfac(linearize(model, inputs), targets).values():
            assert factors.matrix().device == inputs.device
            solved = factors.inverse_product(factors.eigenvalues.flatten(0, 1), 1.0)
            assert solved.device == inputs.device
