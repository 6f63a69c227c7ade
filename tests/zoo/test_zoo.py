"""Public architectures through the default report, and their curvature against double backward."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    NETWORK_INPUT,
    Architecture,
    Case,
    differentiable_twin,
    in_float64,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import paperkit
from paperkit.curvature import HessianOperator
from paperkit.estimators import (
    DEFAULT_MEASURES,
    hessian_top_eigenvalues,
    hessian_trace,
    measure,
    renyi_sharpness,
)

# A default report may take as long as so many gradients of a small network, timed beside it,
# because a slow or shared machine takes longer for both: 20 processor seconds where one takes
# 2.5 milliseconds. A report that took longer is timed once more, because a disturbance only adds.
REPORT_GRADIENTS = 8_000
# Products by double backward that an exact trace may take here.
DENSE = 1200
# Vectors of the estimate where it takes more; its own standard error decides, six of them.
PROBES = 24
# Weights of the largest Hessian block that is written out.
BLOCK = 520
ORDERS = (0.5, 1.5)


@pytest.fixture(params=list(ARCHITECTURES.values()), ids=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    package = request.param.name.split("_")[0]
    if find_spec(package) is None:
        pytest.fail(f"{package} is not installed: run make environment, or install the test extra.")
    return request.param


def _arguments(case: Case) -> dict[str, Any]:
    """Return the arguments that every function of the library takes beside model and data."""
    return {"loss": case.loss} | ({} if case.forward is None else {"forward": case.forward})


@contextmanager
def _differentiable() -> Iterator[None]:
    """Attention in kernels that have a second derivative."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _outputs(case: Case) -> Tensor:
    inputs = case.data[0]
    result = case.model(inputs) if case.forward is None else case.forward(case.model, inputs)
    return case.outputs(result) if case.forward is None else result


class DoubleBackward:
    """The Hessian of a case's mean loss by autograd alone, from one retained graph."""

    def __init__(self, case: Case) -> None:
        names, self.parameters = zip(*case.model.named_parameters(), strict=True)
        self.names = list(names)
        with _differentiable():
            self.outputs = _outputs(case)
            self.loss = case.mean_loss(self.outputs, case.data[1])
            self.gradient = self._grad(self.loss, self.parameters, create_graph=True)
        self.dimension = sum(parameter.numel() for parameter in self.parameters)

    def _grad(self, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            *arguments, **options, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    def product(self, vector: Tensor) -> Tensor:
        """Multiply with a vector (d,)."""
        parts = vector.split([parameter.numel() for parameter in self.parameters])
        shaped = [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]
        pairs = [(g, v) for g, v in zip(self.gradient, shaped, strict=True) if g.requires_grad]
        gradient, vectors = zip(*pairs, strict=True)
        columns = self._grad(gradient, self.parameters, vectors)
        return torch.cat([column.flatten() for column in columns])

    def block(self, name: str) -> Tensor:
        """Return the diagonal block of one parameter, written out."""
        index = self.names.index(name)
        weight, gradient = self.parameters[index], self.gradient[index]
        if not gradient.requires_grad:
            return torch.zeros(weight.numel(), weight.numel(), dtype=weight.dtype)
        rows = [self._grad(entry, [weight])[0].flatten() for entry in gradient.flatten()]
        return torch.stack(rows)


def _vectors(count: int, dimension: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    signs = torch.randint(2, (count, dimension), generator=generator)
    return (2 * signs - 1).double()


def _is_own_sentence(error: Exception) -> bool:
    """Whether the library raised this itself, rather than something below it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    inside = Path(paperkit.__file__).parent in Path(last.filename).parents
    return inside and str(last.line).startswith("raise") and _is_sentence(str(error))


def _is_sentence(text: str) -> bool:
    """Whether it can be read as a sentence: one paragraph, ended, no foreign error in its place."""
    foreign = ("Traceback", "RuntimeError", "NotImplementedError", "aten::", "INTERNAL ASSERT")
    one_paragraph = text == text.strip() and "\n" not in text and 20 <= len(text) <= 500
    return one_paragraph and text.endswith(".") and not any(word in text for word in foreign)


def _or_sentence(architecture: Architecture, call: Callable[[], Any]) -> Any:
    """Return the value, or None where an operation has no second derivative and that is said."""
    if architecture.twice_differentiable:
        return call()
    try:
        return call()
    except (ValueError, TypeError, RuntimeError) as error:
        assert _is_own_sentence(error), f"{type(error).__name__}: {error}"
        return None


def _reasons(report: Any) -> dict[str, str]:
    return dict(report.missing)


# --- the report


@pytest.mark.filterwarnings("ignore")
def test_default_report_holds_what_applies_and_says_why_the_rest_is_missing(
    architecture: Architecture,
) -> None:
    case, exact = architecture.build(), in_float64(architecture.build())
    report, gradients = _timed_report(case)
    present = {name for name in report if name in DEFAULT_MEASURES}
    reasons = _reasons(report)
    assert architecture.present <= present, {
        name: reasons.get(name) for name in sorted(architecture.present - present)
    }
    unexplained = {
        name: reasons.get(name)
        for name in set(DEFAULT_MEASURES) - present
        if not _is_sentence(reasons.get(name, ""))
    }
    assert unexplained == {}
    for name in NETWORK_INPUT - present:
        assert "input" in reasons[name]
    _check_values(exact, report)
    assert gradients <= REPORT_GRADIENTS or _timed_report(case)[1] <= REPORT_GRADIENTS


def _timed_report(case: Case) -> tuple[Any, float]:
    """Return the default report, and how many gradients of a small network it took as long as."""
    before, started = _seconds_of_a_gradient(), time.process_time()
    report = measure(case.model, case.data, **_arguments(case))
    seconds = time.process_time() - started
    return report, seconds / max(before, _seconds_of_a_gradient())


def _seconds_of_a_gradient() -> float:
    """Time the unit of cost, in processor seconds."""
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    inputs = torch.randn(8, 3, 16, 16)
    network(inputs).sum().backward()  # the first loads code
    started = time.process_time()
    for _ in range(200):
        network(inputs).sum().backward()
    return (time.process_time() - started) / 200


def _check_values(exact: Case, report: Any) -> None:
    """Compare what needs first derivatives only with autograd in float64."""
    with _differentiable():
        inputs = exact.data[0]
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            inputs.requires_grad_()
        outputs = _outputs(exact)
    value = float(exact.mean_loss(outputs, exact.data[1]))
    assert float(report["mean_loss"]) == pytest.approx(value, rel=1e-4)
    if outputs.ndim != 2:
        return
    squares = _mean_gradient_squares(exact.model, outputs)
    total = sum(squares.values())
    if "gauss_newton_trace" in report:
        assert float(report["gauss_newton_trace"]) == pytest.approx(total, rel=1e-3)
    for layer, trace in report.get("layer_gauss_newton_traces", {}).items():
        # Float32 leaves of a small layer what the gradients of the large ones leave. A parameter
        # of no plain layer goes by its own name.
        value = squares[layer] if layer in squares else squares[f"{layer}.weight"]
        assert float(trace) == pytest.approx(value, rel=1e-3, abs=1e-7 * total), layer
    if "maximum_local_sensitivity" in report:
        jacobian = torch.stack(
            [
                torch.autograd.grad(column.sum(), inputs, retain_graph=True)[0].flatten(1)
                for column in outputs.T
            ],
            dim=1,
        )
        largest = torch.linalg.matrix_norm(jacobian, 2).mean()
        assert float(report["maximum_local_sensitivity"]) == pytest.approx(float(largest), rel=1e-3)


def _mean_gradient_squares(model: nn.Module, outputs: Tensor) -> dict[str, float]:
    """Return the mean over samples of Σ_c ‖∂f_c/∂w‖² for each parameter w by name."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    squares = dict.fromkeys(names, 0.0)
    for output in outputs.flatten():
        parts = torch.autograd.grad(
            output, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for name, part in zip(names, parts, strict=True):
            squares[name] += float(part.square().sum()) / len(outputs)
    return squares


# --- the curvature, in float64


@pytest.fixture
def exact(architecture: Architecture) -> Case:
    return in_float64(architecture.build())


@pytest.fixture
def reference(architecture: Architecture) -> DoubleBackward:
    case = in_float64(architecture.build())
    if not architecture.twice_differentiable:
        differentiable_twin(case.model)
    return DoubleBackward(case)


@pytest.mark.filterwarnings("ignore")
def test_hessian_products_are_those_of_double_backward(
    architecture: Architecture, exact: Case, reference: DoubleBackward
) -> None:
    operator = _or_sentence(
        architecture, lambda: HessianOperator(exact.model, exact.data, **_arguments(exact))
    )
    if operator is None:
        return
    assert operator.parameter_names == reference.names
    vectors = _vectors(3, reference.dimension)
    expected = torch.stack([reference.product(vector) for vector in vectors])
    products = operator(vectors)
    # Condition of a product of two passes, with room for sums in another order.
    tolerance = architecture.round_off / 10
    assert float((products - expected).norm()) <= tolerance * float(expected.norm())
    alone = operator(vectors[0]) - expected[0]
    assert float(alone.norm()) <= tolerance * float(expected[0].norm())


@pytest.mark.filterwarnings("ignore")
def test_hessian_trace_is_that_of_double_backward(
    architecture: Architecture, exact: Case, reference: DoubleBackward
) -> None:
    trace = _or_sentence(
        architecture, lambda: hessian_trace(exact.model, exact.data, **_arguments(exact))
    )
    if trace is None:
        return
    if reference.dimension <= DENSE:
        units = torch.eye(reference.dimension, dtype=torch.float64)
        diagonal = torch.stack([reference.product(unit) @ unit for unit in units])
        expected, error = float(diagonal.sum()), 0.0
        scale = float(diagonal.abs().sum())
    else:
        vectors = _vectors(PROBES, reference.dimension)
        forms = torch.stack([reference.product(vector) @ vector for vector in vectors])
        expected, error = float(forms.mean()), float(forms.std()) / math.sqrt(PROBES)
        scale = float(forms.abs().max())
    deviation = abs(trace.value - expected)
    stated = 6 * math.hypot(error, trace.standard_error or 0.0)
    assert deviation <= stated + architecture.round_off * scale


@pytest.mark.filterwarnings("ignore")
def test_top_eigenvalue_is_one_of_double_backward_and_none_larger_is_seen(
    architecture: Architecture, exact: Case, reference: DoubleBackward
) -> None:
    top = _or_sentence(
        architecture,
        lambda: hessian_top_eigenvalues(exact.model, exact.data, **_arguments(exact)),
    )
    if top is None:
        return
    assert top.converged
    vector, value, residual = top.vectors[0], float(top.eigenvalues[0]), float(top.residuals[0])
    product = reference.product(vector)
    round_off = architecture.round_off * float(product.norm())
    assert float(vector @ product) == pytest.approx(value, abs=round_off)
    assert float((product - value * vector).norm()) <= residual + round_off
    # A Ritz value is never above the largest eigenvalue.
    assert value >= _largest_ritz_value(reference, steps=25) - residual - round_off


def _largest_ritz_value(reference: DoubleBackward, steps: int) -> float:
    """Lanczos with full reorthogonalization from a vector of its own."""
    generator = torch.Generator().manual_seed(11)
    vector = torch.randn(reference.dimension, generator=generator, dtype=torch.float64)
    basis: list[Tensor] = []
    images: list[Tensor] = []
    for _ in range(min(steps, reference.dimension)):
        for _ in range(2):
            for known in basis:
                vector = vector - (known @ vector) * known
        norm = float(vector.norm())
        if norm < 1e-12:
            break
        basis.append(vector / norm)
        images.append(reference.product(basis[-1]))
        vector = images[-1]
    projected = torch.stack(basis) @ torch.stack(images).T
    return float(torch.linalg.eigvalsh((projected + projected.T) / 2)[-1])


def _small_layers(model: nn.Module) -> list[str]:
    """Names of the last and of the smallest layer whose block can be written out."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
    weights = [id(p) for m in model.modules() for p in m.parameters(recurse=False)]
    sizes = {
        name: part.weight.numel()
        for name, part in model.named_modules()
        if (isinstance(part, kinds) or type(part).__name__ == "Conv1D")
        and isinstance(getattr(part, "weight", None), nn.Parameter)
        and weights.count(id(part.weight)) == 1
    }
    written_out = [name for name, size in sizes.items() if size <= BLOCK]
    return list(dict.fromkeys([written_out[-1], min(written_out, key=sizes.__getitem__)]))


@pytest.mark.filterwarnings("ignore")
def test_renyi_sharpness_of_small_layers_is_that_of_double_backward(
    architecture: Architecture, exact: Case, reference: DoubleBackward
) -> None:
    for name in _small_layers(exact.model):
        result = _or_sentence(
            architecture,
            lambda name=name: renyi_sharpness(
                exact.model, exact.data, ORDERS, layers=[name], **_arguments(exact)
            ),
        )
        if result is None:
            continue
        block = reference.block(f"{name}.weight")
        magnitudes = torch.linalg.eigvalsh((block + block.T) / 2).abs()
        if not magnitudes.any():  # a head that the loss takes nothing of
            assert all(math.isnan(result[name][order].value) for order in ORDERS)
            assert all("zero" in result[name][order].assumptions["reason"] for order in ORDERS)
            continue
        for order in ORDERS:
            one = result[name][order]
            low, high = _sharpness_bounds(magnitudes, order)
            slack = 4 * (one.standard_error or 0.0) + 1e-6
            assert low - slack <= one.value <= high + slack, (name, order)


def _sharpness_bounds(magnitudes: Tensor, order: float) -> tuple[float, float]:
    """Bound −ℋ_α where each eigenvalue is known up to round-off of the largest alone."""
    doubt = 1e-12 * magnitudes.max()
    few, many = (magnitudes - doubt).clamp_min(0.0), magnitudes + doubt

    def sharpness(powers: Tensor, sums: Tensor) -> float:
        return -float(((powers**order).sum() / sums.sum() ** order).log() / (1 - order))

    ends = [sharpness(few, many), sharpness(many, few)]
    return min(ends), max(ends)
