"""The layer pairs, their blocks and spectra against dense float64 autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import relative, targets_for
from networks import CASES, NAMED, Case, Residual
from round_off import moves_of_model
from torch import nn

from paperkit.curvature import dense_gauss_newton, dense_hessian, dense_jacobian
from paperkit.linearize import layers_of, linearize

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LOSSES = ("cross_entropy", "half_squared_error", "mse")


@every_case
@pytest.mark.parametrize("chunk_size", [128, 4])
def test_pairs_give_the_jacobian_of_every_weight(
    case: Case, chunk_size: int, device: torch.device
) -> None:
    model, inputs, _ = case.make(device=device)
    for layer in linearize(model, inputs, chunk_size=chunk_size).layers.values():
        brute = dense_jacobian(model, inputs, [layer.weight_name])
        assert relative(layer.jacobian() - brute, brute) < 1e-12


@every_case
@pytest.mark.parametrize("loss", LOSSES)
def test_gauss_newton_products_equal_the_dense_block(
    case: Case, loss: str, device: torch.device
) -> None:
    model, inputs, _ = case.make(device=device)
    generator = torch.Generator().manual_seed(1)
    for layer in linearize(model, inputs, loss).layers.values():
        dense = dense_gauss_newton(model, inputs, loss, [layer.weight_name])
        # A single probe contracts positions first, forty probes go through the rows.
        for k in (1, 40):
            probes = torch.randn(k, *layer.weight_shape, generator=generator, dtype=torch.float64)
            probes = probes.to(device)
            expected = probes.flatten(1) @ dense
            assert relative(layer.gauss_newton_product(probes).flatten(1) - expected, expected) < (
                1e-12
            )


@every_case
@pytest.mark.parametrize("n", [1, 6, 40])
@pytest.mark.parametrize("loss", LOSSES)
def test_exact_spectra_are_the_hessian_spectra_to_1e_8(
    case: Case, n: int, loss: str, device: torch.device
) -> None:
    model, inputs, targets = case.make(n, device=device)
    for layer in linearize(model, inputs, loss).layers.values():
        if not layer.exact_block:
            continue
        hessian = dense_hessian(
            model, inputs, targets_for(loss, targets), loss, [layer.weight_name]
        )
        expected = torch.linalg.eigvalsh(hessian).flip(0).cpu()
        spectrum = layer.spectrum()
        ours = torch.zeros_like(expected)
        ours[: spectrum.rank] = spectrum.eigenvalues
        assert spectrum.dimension == len(expected)
        assert float((ours - expected).abs().max() / expected[0]) < 1e-8


@every_case
def test_recorded_operations_decide_which_blocks_are_exact(
    case: Case, device: torch.device
) -> None:
    model, inputs, _ = case.make(device=device)
    layers = linearize(model, inputs).layers
    assert {name for name, layer in layers.items() if not layer.exact_block} == case.inexact
    assert all(layers[name].obstacle for name in case.inexact)


@every_case
def test_the_decision_agrees_with_the_dense_hessian(case: Case) -> None:
    model, inputs, targets = case.make(12)
    for layer in linearize(model, inputs).layers.values():
        hessian = dense_hessian(model, inputs, targets, parameters=[layer.weight_name])
        gauss_newton = dense_gauss_newton(model, inputs, parameters=[layer.weight_name])
        difference = relative(hessian - gauss_newton, hessian)
        assert difference < 1e-12 if layer.exact_block else difference > 1e-3


def test_full_hessian_is_not_the_full_gauss_newton_matrix() -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    hessian = dense_hessian(model, inputs, targets)
    assert relative(hessian - dense_gauss_newton(model, inputs), hessian) > 1e-2


def test_rank_of_a_softmax_block_is_at_most_n_times_c_minus_1() -> None:
    model, inputs, _ = NAMED["relu MLP"].make(n=3)
    for layer in linearize(model, inputs).layers.values():
        assert layer.spectrum().rank <= min(3 * 2, layer.num_parameters)


@every_case
def test_verify_confirms_exact_blocks(case: Case) -> None:
    model, inputs, targets = case.make()
    for moved, moved_inputs in ((model, inputs), *moves_of_model(model, inputs, times=5)):
        layers = linearize(moved, moved_inputs, targets=targets, verify=True).layers
        assert {name for name, layer in layers.items() if not layer.exact_block} == case.inexact


class Cubic(torch.autograd.Function):
    """x³ under a hand-written backward that the operation list cannot know."""

    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs**3

    @staticmethod
    def backward(ctx, gradient):
        (inputs,) = ctx.saved_tensors
        return 3 * inputs**2 * gradient


class Relu(Cubic):
    """A hand-written function under the name of a listed operation."""


@pytest.mark.parametrize("function", [Cubic, Relu])
def test_an_unknown_operation_counts_as_not_exact(function: type[Cubic]) -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, inputs):
            return self.head(function.apply(self.first(inputs)))

    layers = linearize(Custom().double(), torch.ones(2, 8, dtype=torch.float64)).layers
    assert layers["first"].obstacle == f"{function.__name__}Backward is not known to be " + (
        "piecewise linear"
    )
    assert layers["head"].exact_block


def test_temporaries_in_small_pieces_give_the_same_numbers() -> None:
    model, inputs, _ = NAMED["residual"].make()
    whole, pieces = linearize(model, inputs), linearize(model, inputs, chunk_size=2)
    for layer in pieces.layers.values():
        layer.memory_budget = 1
    generator = torch.Generator().manual_seed(1)
    for name, layer in whole.layers.items():
        small = pieces.layers[name]
        a, b = layer.spectrum().eigenvalues, small.spectrum().eigenvalues
        assert relative(a - b, a) < 1e-12
        for k in (1, 40):
            probes = torch.randn(k, *layer.weight_shape, generator=generator, dtype=torch.float64)
            a, b = layer.gauss_newton_product(probes), small.gauss_newton_product(probes)
            assert relative(a - b, a) < 1e-12


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model, inputs, targets = NAMED["residual"].make()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    state = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() if p.grad is not None else None for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    linearize(model, inputs)
    dense_hessian(model, inputs[:2], targets[:2], parameters=["head.bias"])
    with pytest.raises(ValueError, match="NaN"):
        linearize(model, inputs * float("nan"))
    with pytest.raises(RuntimeError):
        linearize(model, inputs[:, :1])
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert [module.training for module in model.modules()] == modes
    assert not model.stem.weight.requires_grad
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def test_frozen_weights_are_measured_like_others() -> None:
    model, inputs, _ = NAMED["relu MLP"].make()
    expected = linearize(model, inputs).layers["2"].spectrum().eigenvalues
    model.requires_grad_(False)
    frozen = linearize(model, inputs).layers["2"].spectrum().eigenvalues
    torch.testing.assert_close(frozen, expected, rtol=1e-12, atol=0.0)


def test_tied_modules_are_one_layer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)
            self.right.weight = self.left.weight

        def forward(self, inputs):
            a, b = inputs.chunk(2, dim=1)
            return self.head(torch.relu(self.left(a)) + torch.relu(self.right(b)))

    torch.manual_seed(0)
    model, inputs = Tied().double(), torch.randn(5, 8, dtype=torch.float64)
    layers = linearize(model, inputs).layers
    assert list(layers) == ["left", "head"]
    brute = dense_jacobian(model, inputs, ["left.weight"])
    assert relative(layers["left"].jacobian() - brute, brute) < 1e-12
    with pytest.raises(ValueError, match=r"right .* shares the weight of another layer"):
        linearize(model, inputs, layers=["left", "right"])


def test_a_weight_used_outside_its_layer_is_refused_by_name() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(8, 3)

        def forward(self, inputs):
            return torch.relu(self.encoder(inputs)) @ self.encoder.weight

    assert not linearize(Autoencoder(), torch.ones(2, 8)).layers
    with pytest.raises(ValueError, match=r"encoder .* its weight is also used outside"):
        linearize(Autoencoder(), torch.ones(2, 8), layers=["encoder"])


def test_samples_that_interact_are_refused() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 3)

        def forward(self, inputs):
            hidden = self.first(inputs)
            return hidden - hidden.mean(0)

    model = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3, track_running_stats=False))
    inputs = torch.randn(6, 8)
    for mixing in (Centred(), model):
        with pytest.raises(ValueError, match="mixes samples"):
            linearize(mixing, inputs)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"inputs": torch.ones(0, 8, dtype=torch.float64)}, "inputs is empty"),
        ({"loss": "hinge"}, "loss='hinge' is unknown"),
        ({"layers": ["9"]}, r"layers=\['9'\] not found"),
        ({"layers": []}, r"layers=\[\] must be a list of names"),
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1"),
        ({"verify": True}, "verify=True needs targets"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments: dict, sentence: str) -> None:
    model, inputs, _ = NAMED["relu MLP"].make()
    with pytest.raises(ValueError, match=sentence):
        linearize(model, **{"inputs": inputs, **arguments})


def test_bad_targets_and_probes_get_one_sentence() -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        dense_hessian(model, inputs, targets + 3)
    with pytest.raises(ValueError, match="integer class labels"):
        dense_hessian(model, inputs, targets.double())
    with pytest.raises(ValueError, match="as the model's outputs"):
        dense_hessian(model, inputs, targets, "mse")
    with pytest.raises(ValueError, match=r"probes of layer 0=.* \(k, 6, 8\)"):
        linearize(model, inputs).layers["0"].gauss_newton_product(torch.ones(6, 8))


def test_parametrized_weights_are_refused_by_name() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)))
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        layers_of(model)
    with pytest.raises(ValueError, match=r"layers: 0.parametrizations.weight.original1 cannot be"):
        linearize(model, torch.ones(2, 8), layers=["0.parametrizations.weight.original1"])


def test_single_precision_models_keep_float64_accumulation() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    inputs = torch.randn(6, 2, 6, 6)
    double = copy.deepcopy(model).double()
    for name, layer in linearize(model, inputs).layers.items():
        reference = linearize(double, inputs.double()).layers[name].spectrum().eigenvalues
        ours = layer.spectrum().eigenvalues[: len(reference)]
        # float32 rows carry relative errors of about 1e-6 of the largest singular value
        assert float((ours - reference[: len(ours)]).abs().max() / reference[0]) < 1e-5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_exact_parameters_have_no_residual_block_and_the_exact_layers_are_among_them(
    case: Case, device: torch.device
) -> None:
    model, inputs, targets = case.make(device=device)
    linearization = linearize(model, inputs, all_parameters=True)
    exact = linearization.exact_parameters
    for layer in linearization.layers.values():
        assert (layer.weight_name in exact) == layer.exact_block
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            # A bias is exact with its weight, unless the weight only fails for being used twice.
            weight = name.replace("bias", "weight")
            assert name in exact or weight not in exact
        block = dense_hessian(model, inputs, targets, parameters=[name])
        rest = block - dense_gauss_newton(model, inputs, parameters=[name])
        if name in exact:
            assert float(rest.norm()) <= 1e-12 * max(float(block.norm()), 1e-3), name
        else:
            assert float(rest.norm()) > 1e-6 * float(block.norm()), (parameter.shape, name)
