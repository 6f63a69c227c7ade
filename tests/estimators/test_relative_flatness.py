"""Relative flatness against dense Hessians, closed forms and the rotations it averages."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers import every_case, every_case_some_losses, targets_for
from networks import NAMED, Case
from torch import Tensor, nn

from paperkit.curvature import dense_hessian
from paperkit.estimators import measure
from paperkit.estimators.relative_flatness import relative_flatness
from paperkit.linearize import linearize
from paperkit.network import LOSSES


def _brute_force(model: nn.Module, inputs: Tensor, targets: Tensor, loss: str, name: str) -> float:
    """Σ ⟨w_s, w_s'⟩ Tr H_ss' from the dense block, rows of different groups orthogonal."""
    module = model.get_submodule(name)
    weight_name = f"{name}.weight" if name else "weight"
    hessian = dense_hessian(model, inputs, targets, loss, [weight_name])
    rows = module.weight.detach().flatten(1)
    neurons, length = rows.shape
    blocks = hessian.reshape(neurons, length, neurons, length)
    traces = blocks.diagonal(dim1=1, dim2=3).sum(-1)
    group = torch.arange(neurons) // (neurons // getattr(module, "groups", 1))
    same = group.unsqueeze(0) == group.unsqueeze(1)
    return float((traces * (rows @ rows.T) * same).sum())


@every_case_some_losses
def test_every_layers_value_is_that_of_the_dense_hessian(case: Case, loss: str) -> None:
    model, inputs, labels = case.make()
    targets = targets_for(loss, labels)
    layers = list(linearize(model, inputs, loss).layers)
    results = relative_flatness(model, (inputs, targets), loss, layers)
    assert list(results) == layers
    for name, result in results.items():
        expected = _brute_force(model, inputs, targets, loss, name)
        assert float(result) == pytest.approx(expected, rel=1e-8)
        assert result.assumptions["exact_block"] == (name not in case.inexact)
        assert result.standard_error is None


@pytest.mark.parametrize("loss", LOSSES)
def test_last_linear_layer_has_its_closed_form(loss: str) -> None:
    model, inputs, labels = NAMED["relu MLP"].make()
    targets = targets_for(loss, labels)
    features = model[:4](inputs).detach()
    squares = features.square().sum(1)
    weight = model[4].weight.detach()
    if loss == "cross_entropy":
        p = model(inputs).detach().softmax(1)
        spread = p @ weight.square().sum(1) - (p @ weight).square().sum(1)
        expected = float((squares * spread).mean())
    elif loss == "bce_with_logits":
        sigma = model(inputs).detach().sigmoid()
        spread = (sigma * (1 - sigma)) @ weight.square().sum(1) / 3  # C outputs are averaged
        expected = float((squares * spread).mean())
    elif loss == "poisson_nll":
        spread = model(inputs).detach().exp() @ weight.square().sum(1) / 3
        expected = float((squares * spread).mean())
    else:
        reduction = {"half_squared_error": 1.0, "mse": 2 / 3}[loss]
        expected = reduction * float(weight.square().sum() * squares.mean())
    (name, result) = next(iter(relative_flatness(model, (inputs, targets), loss).items()))
    assert name == "4"
    assert float(result) == pytest.approx(expected, rel=1e-12)


def test_default_is_the_last_layer_of_the_forward_pass_not_of_the_definition() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.body = nn.Linear(3, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.body(inputs).relu())

    data = (torch.ones(2, 3), torch.tensor([0, 1]))
    assert list(relative_flatness(Backwards(), data)) == ["head"]


def test_average_over_signed_permutations_of_the_input_is_the_value_over_d() -> None:
    """They share the second moment of the orthogonal group (Rényi paper, Proposition 3.1)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    inputs, targets = torch.randn(6, 3).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    hessian = dense_hessian(model, inputs, targets, parameters=["0.weight"])
    weight = model[0].weight.detach()
    forms = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((-1.0, 1.0), repeat=3):
            rotation = torch.eye(3).double()[list(order)] * torch.tensor(signs).double()
            direction = (weight @ rotation).flatten()
            forms.append(float(direction @ hessian @ direction))
    assert len(forms) == 48
    kappa = relative_flatness(model, (inputs, targets), layers=["0"])["0"]
    assert float(kappa) / 3 == pytest.approx(sum(forms) / 48, rel=1e-12)


def test_rescaling_layers_of_a_homogeneous_network_changes_nothing() -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    layers = ["0", "2", "4"]
    before = relative_flatness(model, (inputs, targets), layers=layers)
    with torch.no_grad():
        model[0].weight.mul_(8.0), model[0].bias.mul_(8.0)
        model[2].weight.mul_(0.5), model[2].bias.mul_(4.0)
        model[4].weight.mul_(0.25)
    after = relative_flatness(model, (inputs, targets), layers=layers)
    for name in layers:
        assert float(after[name]) == pytest.approx(float(before[name]), rel=1e-12)


def test_weight_decay_adds_its_hessian() -> None:
    model, inputs, targets = NAMED["LeNet"].make()
    layers, decay = ["3", "6"], 0.3
    plain = relative_flatness(model, (inputs, targets), layers=layers)
    decayed = relative_flatness(model, (inputs, targets), layers=layers, weight_decay=decay)
    for name in layers:
        weight = model.get_submodule(name).weight.detach()
        # κ of the Hessian ωI is Σ_s ‖w_s‖² ωd, with d entries in a row.
        added = decay * weight[0].numel() * float(weight.square().sum())
        assert float(decayed[name]) - float(plain[name]) == pytest.approx(added, rel=1e-12)


@pytest.mark.parametrize("name", ["tanh before the second layer", "functional gate"])
def test_random_probes_agree_with_the_exact_value_within_their_error(name: str) -> None:
    case = NAMED[name]
    model, inputs, targets = case.make()
    (layer,) = case.inexact
    exact = relative_flatness(model, (inputs, targets), layers=[layer])[layer]
    estimate = relative_flatness(
        model, (inputs, targets), layers=[layer], max_products=0, probes=300
    )[layer]
    assert (estimate.method, estimate.probes) == ("hutchinson", 300)
    assert abs(float(estimate) - float(exact)) < 4 * estimate.standard_error


def test_standard_error_is_the_variance_of_rademacher_forms() -> None:
    case = NAMED["tanh before the second layer"]
    model, inputs, targets = case.make()
    hessian = dense_hessian(model, inputs, targets, parameters=["0.weight"])
    weight = model[0].weight.detach()
    # Any square factor of W Wᵀ gives the same trace; this is the one of the QR factorization.
    factor = torch.linalg.qr(weight.T, mode="r").R.T
    tall = torch.kron(factor, torch.eye(8).double())
    matrix = tall.T @ hessian @ tall
    variance = 2 * (matrix.square().sum() - matrix.diagonal().square().sum())
    probes = 1000
    estimate = relative_flatness(
        model, (inputs, targets), layers=["0"], max_products=0, probes=probes
    )["0"]
    expected = math.sqrt(float(variance) / probes)
    # The sample deviation of 1000 forms of kurtosis below 15 is within 4 · √(14/4000) = 24 %.
    assert estimate.standard_error == pytest.approx(expected, rel=0.24)


@every_case
def test_the_shared_pass_gives_the_same_results(case: Case) -> None:
    model, inputs, targets = case.make()
    data, layers = (inputs, targets), list(linearize(model, inputs).layers)
    # With the trace beside it, the pass records all parameters.
    names = ["relative_flatness", "gauss_newton_trace"]
    shared = measure(model, data, names, layers=layers, products=1000)["relative_flatness"]
    alone = relative_flatness(model, data, layers=layers)
    assert list(shared) == list(alone) == layers
    for name, result in shared.items():
        assert float(result) == pytest.approx(float(alone[name]), rel=1e-12)
        assert result.assumptions == alone[name].assumptions
        assert result.assumptions["exact_block"] is (name not in case.inexact)
    last = measure(model, data, names, products=1000)["relative_flatness"]
    assert list(last) == layers[-1:]


@pytest.mark.parametrize("name", ["residual", "siamese", "functional gate"])
def test_uneven_batches_and_small_memory_give_the_same_value(name: str) -> None:
    model, inputs, targets = NAMED[name].make(n=7)
    layers = list(linearize(model, inputs).layers)
    whole = relative_flatness(model, (inputs, targets), layers=layers)
    batches = list(zip(inputs.split([4, 1, 2]), targets.split([4, 1, 2]), strict=True))
    parts = relative_flatness(model, batches, layers=layers, memory_budget=40_000)
    for layer in layers:
        assert float(parts[layer]) == pytest.approx(float(whole[layer]), rel=1e-12)
        assert parts[layer].n == 7


def test_one_sample_of_two_classes_has_its_value() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    inputs = torch.randn(1, 3).double()
    p = float(model(inputs).detach().softmax(1)[0, 0])
    difference = (model.weight[0] - model.weight[1]).detach()
    # Var of w over two classes: p(1 − p) ‖w_0 − w_1‖².
    expected = float(inputs.square().sum() * p * (1 - p) * difference.square().sum())
    result = relative_flatness(model, (inputs, torch.tensor([1])))[""]
    assert float(result) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)]
)
def test_other_precisions_agree_to_their_round_off(dtype: torch.dtype, tolerance: float) -> None:
    model, inputs, targets = NAMED["LeNet"].make()
    layers = ["0", "3", "6"]
    exact = relative_flatness(model, (inputs, targets), layers=layers)
    rounded = relative_flatness(model.to(dtype), (inputs.to(dtype), targets), layers=layers)
    for name in layers:
        assert float(rounded[name]) == pytest.approx(float(exact[name]), rel=tolerance)


def test_model_is_left_as_found_and_frozen_weights_are_measured() -> None:
    model, inputs, targets = NAMED["residual"].make()
    expected = relative_flatness(model, (inputs, targets))["head"]
    model.train()
    model.norm.eval()
    model.head.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    frozen = relative_flatness(model, (inputs, targets))["head"]
    assert float(frozen) == pytest.approx(float(expected), rel=1e-12)
    assert model.training and model.head.training and not model.norm.training
    assert not model.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[k], tensor) for k, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["residual", "functional gate"])
def test_measure_runs_on_the_models_device(
    name: str, device: torch.device, explicit_devices
) -> None:
    model, inputs, targets = NAMED[name].make(device=device)
    layers = list(linearize(model, inputs).layers)
    for products in (4096, 0):
        with explicit_devices():
            results = relative_flatness(
                model, (inputs, targets), layers=layers, max_products=products
            )
        assert all(math.isfinite(float(result)) for result in results.values())


def test_bad_arguments_are_refused_with_their_names() -> None:
    model, inputs, targets = NAMED["relu MLP"].make()
    data = (inputs, targets)
    with pytest.raises(ValueError, match="probes=1"):
        relative_flatness(model, data, probes=1)
    with pytest.raises(ValueError, match="weight_decay=-1"):
        relative_flatness(model, data, weight_decay=-1)
    with pytest.raises(ValueError, match="layers="):
        relative_flatness(model, data, layers=["nowhere"])
    with pytest.raises(ValueError, match="targets"):
        relative_flatness(model, (inputs, targets + 3))
