"""Networks in half precision, in several formats, under autocast, and fitted ones in single."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from paperkit.curvature import (
    EmpiricalFisherOperator,
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    ResidualOperator,
    dense_empirical_fisher,
    dense_gauss_newton,
    dense_hessian,
)
from paperkit.curvature.routes import DOUBLE_BACKWARD, Chunk
from paperkit.estimators import (
    adaptive_sharpness,
    asam_sharpness,
    fisher_rao_norm,
    gauss_newton_trace,
    hessian_top_eigenvalues,
    hessian_trace,
    information_geometric_sharpness,
    layer_spectra,
    log_volume,
    maximum_local_sensitivity,
    mean_loss,
    measure,
    pac_bayes_flatness,
    rangamani_sharpness,
    relative_flatness,
    renyi_sharpness,
    sam_sharpness,
    takeuchi_information_criterion,
)
from paperkit.linearize import kfac, linearize
from paperkit.network import Network, get_loss
from paperkit.network.evaluation import evaluation
from paperkit.network.network import network_outputs

HALVES = [torch.float16, torch.bfloat16]
N, C = 6, 3


def network(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.LayerNorm(6)
    )
    model.append(nn.Linear(6, C))
    with torch.no_grad():
        model[-1].weight.mul_(scale)
    return model.eval()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(N, 5, generator=generator, dtype=torch.float64).float()
    return inputs, torch.randint(0, C, (N,), generator=generator)


def in_double(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple:
    return copy.deepcopy(model).double(), (inputs.double(), labels)


MEASURES: list[Callable] = [
    mean_loss,
    hessian_trace,
    hessian_top_eigenvalues,
    information_geometric_sharpness,
    takeuchi_information_criterion,
    fisher_rao_norm,
    adaptive_sharpness,
    sam_sharpness,
    asam_sharpness,
    rangamani_sharpness,
    gauss_newton_trace,
    maximum_local_sensitivity,
    log_volume,
]
every_measure = pytest.mark.parametrize("measured", MEASURES, ids=lambda f: f.__name__)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@every_measure
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_weights_are_measured_in_single(
    measured: Callable, dtype: torch.dtype
) -> None:
    inputs, labels = data()
    low = network().to(dtype)
    before = {name: (tensor, tensor.data_ptr()) for name, tensor in low.state_dict().items()}
    result = measured(low, (inputs.to(dtype), labels))
    reference, pair = in_double(low, inputs.to(dtype), labels)
    expected = float(measured(reference, pair))
    # Some hundred roundings, and what two of the measures find by iterations of their own.
    assert float(result) == pytest.approx(expected, rel=1e-4)
    name = str(dtype).removeprefix("torch.")
    assert result.assumptions["precision"] == f"weights in {name}, computed in float32"
    for key, tensor in low.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == dtype and tensor.data_ptr() == before[key][1]
            assert torch.equal(tensor, before[key][0])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_result_of_a_report_says_its_precision(dtype: torch.dtype) -> None:
    inputs, labels = data()
    report = measure(network().to(dtype), (inputs.to(dtype), labels), "all")
    assert not report.missing
    of_data = [one for one in report.measurements() if one.measure != "parameter_norm"]
    assert of_data and all("computed in float32" in one.assumptions["precision"] for one in of_data)
    layers = relative_flatness(network().to(dtype), (inputs, labels))
    assert all("precision" in one.assumptions for one in layers.values())
    assert pac_bayes_flatness(network().to(dtype), (inputs, labels)).assumptions["precision"]


def test_an_optimizer_finds_its_gradients_and_hooks_after_a_measure() -> None:
    model, (inputs, labels) = network().bfloat16(), data()
    seen = []
    weight = model[0].weight
    weight.register_post_accumulate_grad_hook(lambda parameter: seen.append("after"))
    weight.register_hook(lambda gradient: seen.append(gradient.dtype))
    before = nn.functional.cross_entropy(model(inputs.bfloat16()).float(), labels)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    hessian_trace(model, (inputs, labels))
    with pytest.raises(ValueError, match="targets"):
        hessian_trace(model, (inputs, labels + C))
    assert not seen and weight.grad is None
    assert bool((model[3].weight.grad == 1).all())
    # A graph of before is still good, and so is one of after.
    before.backward()
    nn.functional.cross_entropy(model(inputs.bfloat16()).float(), labels).backward()
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    assert seen == [torch.bfloat16, "after"] * 2


def test_an_operator_sees_half_precision_weights_that_have_changed() -> None:
    model, (inputs, labels) = network().half(), data()
    operator = HessianOperator(model, (inputs, labels))
    probe = torch.ones(operator.dimension)
    first = operator(probe)
    with torch.no_grad():
        model[-1].weight.mul_(2)
    fresh = HessianOperator(model, (inputs, labels))(probe)
    assert torch.equal(operator(probe), fresh) and not torch.equal(first, fresh)


class TwoFormats(nn.Module):
    """A body in one format, a head in another."""

    def __init__(self, body: torch.dtype, head: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(5, 6).to(body), nn.Linear(6, C).to(head)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(inputs.to(self.body.weight.dtype)))
        return self.head(hidden.to(self.head.weight.dtype))


@pytest.mark.parametrize(
    ("body", "head", "working"),
    [
        (torch.float32, torch.float64, torch.float64),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float64, torch.float16, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "measured", [hessian_trace, information_geometric_sharpness, sam_sharpness, adaptive_sharpness]
)
def test_a_network_of_several_formats_runs_in_the_widest(
    body: torch.dtype, head: torch.dtype, working: torch.dtype, measured: Callable
) -> None:
    model, (inputs, labels) = TwoFormats(body, head), data()
    reference, pair = in_double(model, inputs, labels)
    result = measured(model, (inputs, labels))
    tolerance = 1e-4 if working == torch.float32 else 1e-9
    assert float(result) == pytest.approx(float(measured(reference, pair)), rel=tolerance)
    assert str(working).removeprefix("torch.") in result.assumptions["precision"]
    assert (model.body.weight.dtype, model.head.weight.dtype) == (body, head)


class Cast(nn.Module):
    """Its forward pass casts to its own liking."""

    def __init__(self, dtype: torch.dtype, into: torch.dtype, out: torch.dtype) -> None:
        super().__init__()
        self.inner, self.into, self.out = network().to(dtype), into, out

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.to(self.into)).to(self.out)


def test_casts_that_do_not_fit_get_one_sentence() -> None:
    model = Cast(torch.bfloat16, torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match=r"model has weights in bfloat16.*own casts"):
        hessian_trace(model, data())


@pytest.mark.parametrize("out", [torch.float64, torch.bfloat16], ids=str)
def test_outputs_come_in_the_format_of_the_weights(out: torch.dtype) -> None:
    model = Cast(torch.float32, torch.float32, out)
    result = hessian_trace(model, data())
    if out == torch.float64:
        expected = float(hessian_trace(network(), data()))
        assert float(result) == pytest.approx(expected, rel=1e-5)
        sharpness = information_geometric_sharpness(model, data())
        expected = float(information_geometric_sharpness(network(), data()))
        assert float(sharpness) == pytest.approx(expected, rel=1e-5)
    else:
        assert result.assumptions["precision"] == "the model itself computes parts in bfloat16"
        with pytest.raises(ValueError, match="bfloat16, whose round-off hides"):
            information_geometric_sharpness(model, data())


class Autocast(nn.Module):
    """Switches autocast on in its own forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(inputs).float()


@every_measure
def test_autocast_is_off_in_and_around_the_model(measured: Callable) -> None:
    pair = data()
    expected = float(measured(network(), pair))
    enter = torch.autocast.__enter__
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = measured(network(), pair)
        assert torch.is_autocast_enabled("cpu")
    inside = measured(Autocast(), pair)
    assert float(around) == expected and "precision" not in around.assumptions
    assert float(inside) == pytest.approx(expected, rel=1e-6)
    assert inside.assumptions["precision"] == "without the model's own autocast"
    assert torch.autocast.__enter__ is enter and not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network()(pair[0]).dtype == torch.bfloat16


@every_measure
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_the_default_dtype_changes_nothing(measured: Callable, dtype: torch.dtype) -> None:
    model, pair = network(), data()
    expected = measured(model, pair)
    with default_dtype(dtype):
        result = measured(model, pair)
    assert float(result) == float(expected)
    assert result.standard_error == expected.standard_error


def test_a_half_precision_part_of_a_distributed_training_is_refused() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        trained = nn.parallel.DistributedDataParallel(network().bfloat16())
        with pytest.raises(ValueError, match="distributed training"):
            hessian_trace(trained, data())
        single = nn.parallel.DistributedDataParallel(network())
        expected = float(hessian_trace(network(), data()))
        assert float(hessian_trace(single, data())) == expected
    finally:
        torch.distributed.destroy_process_group()


# --- Fitted networks -----------------------------------------------------------------------------


def fitted(scale: float = 40.0) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a float32 network that fits its labels so well that 1 − p has no digits there."""
    model, (inputs, _) = network(scale), data()
    labels = model.double()(inputs.double()).argmax(1)
    model.float()
    losses = nn.functional.cross_entropy(model(inputs), labels, reduction="none")
    assert (losses == 0).sum() >= 2
    return model, (inputs, labels)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


# Outputs of size 40 carry forty units of round-off of their own, and with them each 1 − p.
ROUND_OFF = 3e-4


@pytest.mark.parametrize(
    ("operator", "dense"),
    [
        (HessianOperator, dense_hessian),
        (GaussNewtonOperator, lambda m, x, y: dense_gauss_newton(m, x)),
        (FisherOperator, lambda m, x, y: dense_gauss_newton(m, x)),
        (EmpiricalFisherOperator, dense_empirical_fisher),
        (ResidualOperator, lambda m, x, y: dense_hessian(m, x, y) - dense_gauss_newton(m, x)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_route_to_a_product_differentiates_the_loss_in_double(
    operator: type, dense: Callable
) -> None:
    model, (inputs, labels) = fitted()
    reference, (wide, _) = in_double(model, inputs, labels)
    expected = dense(reference, wide, labels)
    product = operator(model, (inputs, labels))
    unit = torch.eye(product.dimension)
    assert relative(dense(model, inputs, labels), expected) < ROUND_OFF
    assert relative(product(unit), expected) < ROUND_OFF
    assert relative(product(unit[3]), expected[3]) < 100 * ROUND_OFF
    routes = [*product.candidate_routes(), DOUBLE_BACKWARD]
    routes = [route for route in routes if route.name in product.routes]
    with evaluation(product.model) as parameters:
        chunk = Chunk(
            lambda chosen: network_outputs(product.model, chosen, inputs), parameters, labels
        )
        for route in routes:
            found = route.products(chunk, unit, product.curvature) / len(inputs)
            assert relative(found, expected) < ROUND_OFF, route.name
    assert len(routes) > 1


@every_measure
def test_a_fitted_network_has_its_values_in_single_precision(measured: Callable) -> None:
    model, pair = fitted()
    reference, wide = in_double(model, *pair)
    found, expected = measured(model, pair), measured(reference, wide)
    sure = abs(float(found) - float(expected)) <= 1e-2 * abs(float(expected))
    # Or it says that it is not sure.
    assert sure or not found.converged


def test_spectra_and_factors_of_a_fitted_network() -> None:
    model, (inputs, labels) = fitted()
    reference, (wide, _) = in_double(model, inputs, labels)
    expected = layer_spectra(reference, (wide, labels))
    for name, spectrum in layer_spectra(model, (inputs, labels)).items():
        top = expected[name].eigenvalues[0]
        assert abs(spectrum.eigenvalues[0] - top) < ROUND_OFF * top
    low, high = linearize(model, inputs), linearize(reference, wide)
    for targets in (None, labels):
        factors = kfac(high, targets)
        for name, one in kfac(low, targets).items():
            assert relative(one.matrix(), factors[name].matrix()) < 10 * ROUND_OFF


def saturated() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a network and a sample whose 1 − p is far below single precision."""
    model, (inputs, labels) = fitted(800.0)
    reference, (wide, _) = in_double(model, inputs, labels)
    losses = get_loss("cross_entropy").sample_losses(reference(wide).detach(), labels)
    chosen = int(torch.where((losses > 1e-250) & (losses < 1e-90), losses, 1.0).argmin())
    assert losses[chosen] < 1e-90
    return model, (inputs[chosen : chosen + 1], labels[chosen : chosen + 1])


@pytest.mark.parametrize(
    "measured", [hessian_trace, hessian_top_eigenvalues, adaptive_sharpness, rangamani_sharpness]
)
def test_what_single_precision_does_not_hold_is_refused(measured: Callable) -> None:
    model, pair = saturated()
    assert 0 < abs(float(measured(*in_double(model, *pair)))) < 1e-60
    with pytest.raises(ValueError, match=r"which torch.float32 does not hold: measure"):
        measured(model, pair)


def test_a_gradient_below_single_precision_still_has_its_direction() -> None:
    model, pair = saturated()
    found = sam_sharpness(model, pair, rho=1e-4)
    expected = sam_sharpness(*in_double(model, *pair), rho=1e-4)
    # Exponents of some hundreds carry as many units of round-off.
    assert 0 < float(expected) < 1e-38
    assert math.log(float(found)) == pytest.approx(math.log(float(expected)), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2, 0.5, 1.5])
def test_an_entropy_is_right_or_bracketed_or_said_to_be_open(alpha: float) -> None:
    for model, pair in ((network(), data()), fitted()):
        reference, wide = in_double(model, *pair)
        expected = renyi_sharpness(reference, wide, alpha)
        for name, found in renyi_sharpness(model, pair, alpha).items():
            value = float(expected[name])
            low, high = found.bracket or (float(found) - 0.02, float(found) + 0.02)
            assert low <= value <= high
            assert found.converged == (found.bracket is None)


def test_a_tail_below_round_off_gives_a_bracket() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 15), nn.Tanh())
    model.append(nn.Linear(15, C))
    pair = data()
    small = renyi_sharpness(model, pair, 0.05, layers=["2"])["2"]
    expected = renyi_sharpness(*in_double(model, *pair), 0.05, layers=["2"])["2"]
    assert not small.converged and small.bracket is not None
    assert small.bracket[0] <= float(expected) <= small.bracket[1]
    usual = renyi_sharpness(*in_double(model, *pair), 0.5, layers=["2"])["2"]
    assert usual.converged and usual.bracket is None


def test_a_network_keeps_its_formats() -> None:
    assert Network(network().half()).working_format == torch.float32
    assert Network(network().double()).precision_note() is None
    assert Network(TwoFormats(torch.float32, torch.float64)).working_format == torch.float64
    assert math.isfinite(float(hessian_trace(nn.Linear(5, C).half(), data())))
