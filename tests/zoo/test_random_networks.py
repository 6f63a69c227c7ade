"""Networks that nobody wrote, whose curvature must be that of differences of their gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from random_networks import Drawn, drawn
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from paperkit.estimators import CostWarning, Report, hessian_top_eigenvalues, hessian_trace, measure
from paperkit.estimators.result import Measurement
from paperkit.linearize.weights import LeftOutWarning

SEEDS = 120
# The differences of two steps agree to this part of the largest entry, and those to either side to
# that one, or there is a kink.
STEPS, SMOOTH, BENT = (1e-5, 2e-6), 1e-6, 1e-3
# Layers whose block is smaller than this part of the Hessian are lost in the differences.
VISIBLE = 1e-3

MEASURES = (
    "renyi_sharpness",
    "adaptive_sharpness",
    "layer_gauss_newton_traces",
    "gauss_newton_trace",
)
OF_INPUTS = (
    "maximum_local_sensitivity",
    "normalized_maximum_local_sensitivity",
    "input_invariant_local_sensitivity",
    "log_volume",
    "local_dimension",
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for kind in (CostWarning, LeftOutWarning):
            warnings.simplefilter("ignore", kind)
        yield


def _errors(found: Measurement) -> float:
    """Return six standard errors of an estimate."""
    return 6 * (found.standard_error or 0.0)


def _gradient(case: Drawn) -> Tensor:
    parameters = list(case.model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = case.value(case.model(case.inputs), case.targets)
        parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def _hessian(case: Drawn) -> Tensor | None:
    """Return the Hessian by central differences of gradients; None at a kink or next to it."""
    here = _gradient(case)
    found, bent = [], []
    for step in STEPS:
        rows = []
        for parameter in case.model.parameters():
            entries = parameter.data.view(-1)
            for place in range(len(entries)):
                kept = entries[place].clone()
                entries[place] = kept + step
                above = _gradient(case)
                entries[place] = kept - step
                below = _gradient(case)
                entries[place] = kept
                rows.append((above - below) / (2 * step))
                bent.append((above - 2 * here + below).abs().max() / step)
        found.append(torch.stack(rows))
    scale = found[0].abs().max()
    if (found[0] - found[1]).abs().max() > SMOOTH * scale or max(bent) > BENT * scale:
        return None
    return (found[0] + found[0].T) / 2


def _jacobians(case: Drawn) -> tuple[Tensor, Tensor | None]:
    """Return those in the parameters, (n, C, d), and in the inputs where these are real."""
    parameters = list(case.model.parameters())
    inputs = case.inputs.clone().requires_grad_(case.inputs.is_floating_point())
    with sdpa_kernel(SDPBackend.MATH):
        outputs = case.model(inputs)
    wanted = [*parameters, inputs] if inputs.requires_grad else parameters
    rows, of_inputs = [], []
    for sample, of_sample in enumerate(outputs):
        for output in of_sample:
            parts = torch.autograd.grad(
                output, wanted, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows.append(torch.cat([part.flatten() for part in parts[: len(parameters)]]))
            if inputs.requires_grad:
                of_inputs.append(parts[-1][sample].flatten())
    shape = (len(outputs), outputs.shape[1], -1)
    in_inputs = torch.stack(of_inputs).view(shape) if of_inputs else None
    return torch.stack(rows).view(shape), in_inputs


def _sharpness(block: Tensor, order: float) -> float:
    sizes = torch.linalg.eigvalsh(block).abs()
    shares = sizes[sizes > 1e-8 * sizes.max()] / sizes.sum()
    return -float((shares**order).sum().log()) / (1 - order)


def _places(case: Drawn) -> dict[str, slice]:
    places, start = {}, 0
    for name, parameter in case.model.named_parameters():
        places[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return places


def _of_layers(report: Report, name: str, case: Drawn) -> dict[str, object]:
    """Return what a report says of single layers, by parameter."""
    places = _places(case)
    found = report.results.get(name, {})
    return {key if key in places else f"{key}.weight": one for key, one in found.items()}


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_curvature_and_jacobians_of_random_networks(first: int) -> None:
    compared = 0
    for seed in range(first, first + 20):
        case = drawn(seed)
        before = {name: value.clone() for name, value in case.model.state_dict().items()}
        mode = case.model.training
        wanted = [*MEASURES, *(OF_INPUTS if case.inputs.is_floating_point() else ())]
        report = measure(case.model, case.data, wanted, case.loss, strict=False)
        trace = hessian_trace(case.model, case.data, case.loss)
        top = hessian_top_eigenvalues(case.model, case.data, loss=case.loss)
        assert case.model.training is mode, seed
        for name, value in case.model.state_dict().items():
            assert torch.equal(value, before[name]), (seed, name)
        case.model.eval()
        assert not report.missing, (seed, report.missing)
        _check_jacobians(case, report, seed)
        hessian = _hessian(case)
        if hessian is not None:
            _check_curvature(case, report, trace, top, hessian, seed)
            compared += 1
    assert compared >= 15  # kinks between two steps are rare


def _check_curvature(
    case: Drawn, report: Report, trace: Measurement, top: object, hessian: Tensor, seed: int
) -> None:
    scale = float(torch.linalg.matrix_norm(hessian, 2))
    allowed = 1e-6 * scale * len(hessian)
    assert abs(float(trace) - float(hessian.trace())) < allowed + _errors(trace), seed
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    assert abs(float(top) - largest) < 1e-3 * scale or not top.converged, seed
    weights = torch.cat([p.detach().flatten() for p in case.model.parameters()])
    adaptive = report.results["adaptive_sharpness"]
    terms = weights.square() * hessian.diagonal()
    room = 1e-5 * float(terms.abs().sum()) + _errors(adaptive) + 1e-8
    assert abs(float(adaptive) - float(terms.sum())) < room, seed
    places = _places(case)
    for name, by_order in _of_layers(report, "renyi_sharpness", case).items():
        block = hessian[places[name], places[name]]
        if float(torch.linalg.matrix_norm(block, 2)) < VISIBLE * scale:
            continue
        for order, found in by_order.items():
            room = (1e-2 if order < 1 else 1e-4) + _errors(found)
            assert abs(float(found) - _sharpness(block, order)) < room, (seed, name, order)


def _check_jacobians(case: Drawn, report: Report, seed: int) -> None:
    jacobian, of_inputs = _jacobians(case)
    squares = jacobian.square().sum((0, 1)) / len(jacobian)
    whole = report.results["gauss_newton_trace"]
    assert float(whole) == pytest.approx(float(squares.sum()), rel=1e-7), seed
    places = _places(case)
    for name, found in _of_layers(report, "layer_gauss_newton_traces", case).items():
        assert float(found) == pytest.approx(float(squares[places[name]].sum()), rel=1e-7), seed
    if of_inputs is None:
        return
    values = torch.linalg.svdvals(of_inputs)
    flat = case.inputs.flatten(1)
    largest, lengths = values[:, 0], flat.square().sum(1)
    expected = {
        "maximum_local_sensitivity": largest.mean(),
        "normalized_maximum_local_sensitivity": (lengths * largest.square()).mean(),
        "input_invariant_local_sensitivity": (of_inputs * flat.unsqueeze(1))
        .square()
        .sum((1, 2))
        .mean(),
    }
    if float(largest.min()) > 0:
        sizes = values.square()
        expected["local_dimension"] = (sizes.sum(1).square() / sizes.square().sum(1)).mean()
    if of_inputs.shape[2] >= of_inputs.shape[1] and float((values[:, -1] / largest).min()) > 1e-9:
        expected["log_volume"] = values.log().sum(1).exp().mean().log()
    for name, value in expected.items():
        found = float(report.results[name])
        assert math.isclose(found, float(value), rel_tol=1e-6, abs_tol=1e-9), (seed, name)
