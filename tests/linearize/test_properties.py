"""Properties that hold on every network: spectra are exact, and nothing of the model is altered.

The second half finds every public function of ``paperkit.linearize`` and ``paperkit.estimators``
that takes a model first, so a new one is tested from the day it is written.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers import targets_for
from hypothesis import given, settings
from torch import Tensor, nn

import paperkit.curvature
import paperkit.estimators
import paperkit.linearize
import paperkit.network
from paperkit.curvature import dense_gauss_newton, dense_hessian, dense_jacobian
from paperkit.linearize import linearize
from paperkit.network import LOSSES
from paperkit.network.evaluation import evaluation

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "in-place relu": lambda: nn.ReLU(inplace=True),
    "leaky relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}
PIECEWISE_LINEAR = ("relu", "in-place relu", "leaky relu", "identity")


@dataclass(frozen=True)
class Architecture:
    """What is drawn of a network and its data."""

    convolution: bool
    depth: int
    width: int
    activation: str
    bias: bool
    normalization: bool
    skip: bool
    num_outputs: int
    n: int
    seed: int

    def make(self) -> tuple[RandomNetwork, Tensor, Tensor]:
        """Return the float64 network, its inputs and integer labels."""
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = RandomNetwork(self).double()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        shape = (2, 4, 4) if self.convolution else (3,)
        inputs = torch.randn(self.n, *shape, generator=generator, dtype=torch.float64)
        return model, inputs, torch.randint(0, self.num_outputs, (self.n,), generator=generator)


class RandomNetwork(nn.Module):
    """Hidden layers, each with its normalisation and perhaps a skip, dropout, and a linear head.

    ``fail_at = k`` makes the k-th forward pass and all later ones raise, halfway through.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = a = architecture
        self.fail_at = 0
        self.forwards = 0
        self.layers, self.norms = nn.ModuleList(), nn.ModuleList()
        for index in range(a.depth):
            size = (2 if a.convolution else 3) if index == 0 else a.width
            if a.convolution:
                self.layers.append(nn.Conv2d(size, a.width, 3, padding=1, bias=a.bias))
                norm: nn.Module = nn.BatchNorm2d(a.width)
            else:
                self.layers.append(nn.Linear(size, a.width, bias=a.bias))
                norm = nn.BatchNorm1d(a.width)
            self.norms.append(norm if a.normalization else nn.Identity())
        self.activation = ACTIVATIONS[a.activation]()
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(a.width, a.num_outputs, bias=a.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        self.forwards += 1
        hidden = inputs
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            output = self.activation(norm(layer(hidden)))
            hidden = output + hidden if self.architecture.skip and index > 0 else output
        if 0 < self.fail_at <= self.forwards:
            raise RuntimeError("the network fails halfway")
        if self.architecture.convolution:
            hidden = hidden.mean((2, 3))
        return self.head(self.dropout(hidden))


architectures = st.builds(
    Architecture,
    convolution=st.booleans(),
    depth=st.integers(1, 3),
    width=st.integers(1, 4),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    bias=st.booleans(),
    normalization=st.booleans(),
    skip=st.booleans(),
    num_outputs=st.integers(2, 4),
    n=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)


# --- Linearizations are exact ------------------------------------------------------------------


@given(architectures, st.sampled_from(sorted(LOSSES)))
@settings(max_examples=40, deadline=None)
def test_spectra_are_those_of_the_dense_hessian_where_the_block_is_exact(
    architecture: Architecture, loss: str
) -> None:
    model, inputs, labels = architecture.make()
    targets = targets_for(loss, labels, architecture.num_outputs)
    linearization = linearize(model, inputs, loss)
    assert len(linearization.layers) == architecture.depth + 1
    for layer in linearization.layers.values():
        if architecture.activation in PIECEWISE_LINEAR:
            assert layer.exact_block
        if not layer.exact_block:
            continue
        hessian = dense_hessian(model, inputs, targets, loss, [layer.weight_name])
        expected = torch.linalg.eigvalsh(hessian).flip(0)
        spectrum = layer.spectrum()
        ours = torch.zeros_like(expected)
        ours[: spectrum.rank] = spectrum.eigenvalues
        assert spectrum.dimension == len(expected)
        assert float((ours - expected).abs().max()) <= 1e-8 * float(expected.abs().max())


@given(architectures, st.sampled_from(sorted(LOSSES)))
@settings(max_examples=25, deadline=None)
def test_jacobians_and_gauss_newton_products_are_the_dense_ones(
    architecture: Architecture, loss: str
) -> None:
    model, inputs, _ = architecture.make()
    generator = torch.Generator().manual_seed(architecture.seed)
    for layer in linearize(model, inputs, loss).layers.values():
        jacobian = dense_jacobian(model, inputs, [layer.weight_name])
        difference = layer.jacobian() - jacobian
        assert float(difference.norm()) <= 1e-12 * float(jacobian.norm())
        probes = torch.randn(2, *layer.weight_shape, generator=generator, dtype=torch.float64)
        dense = dense_gauss_newton(model, inputs, loss, [layer.weight_name])
        products = layer.gauss_newton_product(probes).flatten(1)
        bound = 1e-12 * float(dense.norm() * probes.norm())
        assert float((products - probes.flatten(1) @ dense).norm()) <= bound


@given(architectures)
@settings(max_examples=25, deadline=None)
def test_jacobian_blocks_cover_every_parameter_once(architecture: Architecture) -> None:
    model, inputs, _ = architecture.make()
    linearization = linearize(model, inputs, all_parameters=True, input_jacobians=True)
    blocks = dict(linearization.jacobian_blocks())
    assert blocks.keys() == dict(model.named_parameters()).keys()
    for name, block in blocks.items():
        dense = dense_jacobian(model, inputs, [name])
        assert float((block - dense).norm()) <= 1e-12 * float(dense.norm())
    with evaluation(model):
        brute = torch.stack([torch.func.jacrev(model)(x[None])[0, :, 0] for x in inputs]).detach()
    assert linearization.input_jacobian is not None
    difference = linearization.input_jacobian - brute
    assert float(difference.norm()) <= 1e-12 * float(brute.norm())


# --- Nothing of the model is altered -----------------------------------------------------------

# Called inside ``evaluation`` with its parameters, or a context manager with its own test.
INNER = {
    # Called within evaluation(), or no measure.
    "network.Network",
    "network.network_outputs",
    "network.raw_outputs",
    "network.note_formats",
    "network.called",
    "weights.layout_of",
    "plan.Gradient",
    "passes.Problem",
    "blocks.Blocks",
    "blocks.last_layer",
    "blocks.num_outputs",
    "interaction.following",
    "interaction.refuse_changed",
    "interaction.refuse_random",
    "interaction.seen_apart",
    "interaction.separate_outputs",
    "sample_axes.SampleAxes",
    "precision.one_format",
    "precision.without_autocast",
    "problem.refuse_cut",
    "problem.cut_parameters",
    "evaluation.evaluation",
    "costs.sample_costs",
    "pairs.allocate",
    "recording.candidate_layers",
    "recording.record",
    "recording.calls_by_layer",
    "sample_order.refuse_unseen",
    "remainder.per_sample_jacobians",
    "perturbed_loss.mean_loss",
    "perturbed_loss.select_parameters",
    "footprint.footprint",
    "footprint.Chunks",
}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "linearize.linearize": [{"input_jacobians": True, "all_parameters": True}],
    "linearize.linearize_in_chunks": [{"input_jacobians": True, "all_parameters": True}],
    "gauss_newton_trace.gauss_newton_trace": [{"method": "hutchinson"}],
    "takeuchi.takeuchi_information_criterion": [{"curvature": "hessian"}],
    "fisher_rao.fisher_rao_norm": [{"labels": "observed"}],
    "sensitivity.maximum_local_sensitivity": [{"method": "lanczos"}],
}
CHEAPER: dict[str, dict[str, Any]] = {
    "pac_bayes.pac_bayes_flatness": {"max_bisections": 2, "draws": 2},
    "worst_case.sam_sharpness": {"steps": 3},
    "worst_case.asam_sharpness": {"steps": 3},
    "adaptive_sharpness.average_adaptive_sharpness": {"probes": 4},
}


def _public_functions() -> dict[str, Callable[..., Any]]:
    """All functions and concrete classes whose first argument is ``model``."""
    found: dict[str, Callable[..., Any]] = {}
    for package in (paperkit.network, paperkit.curvature, paperkit.linearize, paperkit.estimators):
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for name, member in vars(module).items():
                if (
                    name.startswith("_")
                    or not (inspect.isfunction(member) or inspect.isclass(member))
                    or member.__module__ != module.__name__
                    or inspect.isabstract(member)
                    or (inspect.isclass(member) and issubclass(member, (Exception, torch.Tensor)))
                ):
                    continue
                parameters = list(inspect.signature(member).parameters)
                if parameters[:1] == ["model"] and f"{info.name}.{name}" not in INNER:
                    found[f"{info.name}.{name}"] = member
    return found


FUNCTIONS = _public_functions()
CALLS = [
    pytest.param(name, options, id=" ".join([name, *map(str, options.values())]))
    for name in FUNCTIONS
    for options in ({}, *VARIANTS.get(name, []))
]
NO_FORWARD_PASS = {
    "network.own_parameters",
    "precision.formats_of",
    "problem.settled",
    "recording.layers_of",
    "weights.weights_of",
    "weights.chosen_weights",
    "parameter_norm.weight_names",
    "parameter_norm.parameter_norm",
}
CALLS_WITH_DATA = [call for call in CALLS if call.values[0] not in NO_FORWARD_PASS]


def call(name: str, options: dict[str, Any], model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """Call a function found above with the arguments that it names, and use up its result."""
    inputs, targets = data
    count = sum(parameter.numel() for parameter in model.parameters())
    values = {
        "model": model,
        "data": data,
        "train": data,
        "test": data,
        "inputs": inputs,
        "targets": targets,
        "vectors": torch.ones(2, count, dtype=torch.float64),
    }
    signature = inspect.signature(FUNCTIONS[name])
    required = [n for n, p in signature.parameters.items() if p.default is inspect.Parameter.empty]
    unknown = [n for n in required if n not in values]
    assert not unknown, f"say in call() what to pass for {unknown} of {name}"
    arguments = {n: values[n] for n in required}
    result = FUNCTIONS[name](**arguments, **CHEAPER.get(name, {}), **options)
    if isinstance(result, GeneratorType):
        for _ in result:
            pass
    if inspect.isclass(FUNCTIONS[name]):
        result(torch.ones(2, result.dimension, dtype=torch.float64))


def prepare(model: RandomNetwork, inputs: Tensor, targets: Tensor) -> None:
    """Put a model in the state that is easiest to disturb."""
    model.train()
    model.norms.eval()
    nn.functional.cross_entropy(model.eval()(inputs), targets).backward()
    model.train()
    model.norms.eval()
    model.head.weight.requires_grad_(False)
    model.head.weight.grad = None
    model.head.register_forward_hook(lambda module, arguments, output: None)
    model.forwards = 0


def state(model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Everything that a measure might leave changed, in a form that ``==`` compares."""

    def hooks(module: nn.Module) -> list[list[int]]:
        return [
            list(getattr(module, name))
            for name in sorted(vars(module))
            if name.endswith("_hooks") and isinstance(getattr(module, name), dict)
        ]

    def held(tensor: Tensor | None) -> tuple | None:
        if tensor is None:
            return None
        return id(tensor), tensor._version, tensor.requires_grad, tensor.detach().numpy().tobytes()

    return {
        "modes": [module.training for module in model.modules()],
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "hooks": [hooks(module) for module in model.modules()],
        "parameters": [(name, held(p), held(p.grad)) for name, p in model.named_parameters()],
        "buffers": [(name, held(buffer)) for name, buffer in model.named_buffers()],
        "data": [(held(tensor), held(tensor.grad)) for tensor in data],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
        "settings": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
        ),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.items():
        assert after[name] == value, name


FIXED = Architecture(
    convolution=True,
    depth=2,
    width=3,
    activation="leaky relu",
    bias=True,
    normalization=True,
    skip=True,
    num_outputs=3,
    n=5,
    seed=0,
)


@pytest.fixture
def disturbed() -> Iterator[tuple[RandomNetwork, tuple[Tensor, Tensor]]]:
    model, inputs, targets = FIXED.make()
    prepare(model, inputs, targets)
    yield model, (inputs, targets)


@pytest.mark.parametrize(("name", "options"), CALLS)
def test_a_measure_leaves_the_model_the_data_and_the_generators_alone(
    name: str, options: dict[str, Any], disturbed
) -> None:
    model, data = disturbed
    before = state(model, data)
    call(name, options, model, data)
    assert_same(before, state(model, data))
    assert (model.forwards > 0) is (name not in NO_FORWARD_PASS)


@pytest.mark.parametrize(("name", "options"), CALLS_WITH_DATA)
def test_a_network_that_raises_is_left_alone(name: str, options: dict[str, Any], disturbed) -> None:
    model, data = disturbed
    for attempt in (1, 2, 3):
        model.forwards, model.fail_at = 0, attempt
        before = state(model, data)
        try:
            call(name, options, model, data)
        except RuntimeError as error:
            assert "fails halfway" in str(error)
        else:
            # A function may need fewer passes than this, but it must not hide the error.
            assert model.forwards < attempt
        assert_same(before, state(model, data))


@pytest.mark.parametrize(("name", "options"), CALLS_WITH_DATA)
def test_data_that_are_not_finite_are_refused_and_the_model_left_alone(
    name: str, options: dict[str, Any], disturbed
) -> None:
    model, (inputs, targets) = disturbed
    broken = inputs.clone()
    broken[-1] = float("nan")
    data = (broken, targets)
    before = state(model, data)
    with pytest.raises(ValueError, match=r"NaN or infinite|not finite"):
        call(name, options, model, data)
    assert_same(before, state(model, data))


@given(architectures, st.data())
@settings(max_examples=120, deadline=None)
def test_any_measure_leaves_any_network_alone(architecture: Architecture, draw) -> None:
    name = draw.draw(st.sampled_from(sorted(FUNCTIONS)))
    options = draw.draw(st.sampled_from([{}, *VARIANTS.get(name, [])]))
    model, inputs, targets = architecture.make()
    prepare(model, inputs, targets)
    before = state(model, (inputs, targets))
    try:
        call(name, options, model, (inputs, targets))
    except ValueError as error:  # a dead network has no spectrum, and measures say so
        assert str(error).strip()
    assert_same(before, state(model, (inputs, targets)))


def test_evaluation_restores_everything_after_an_exception(disturbed) -> None:
    model, data = disturbed
    before = state(model, data)
    with pytest.raises(KeyError), evaluation(model) as parameters:
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in parameters.values())
        raise KeyError("stop")
    assert_same(before, state(model, data))
