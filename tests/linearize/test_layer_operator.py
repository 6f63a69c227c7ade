"""A layer's linear operator: action, adjoint and norm, against the matrix written out."""

import math

import pytest
import torch
from torch import nn

from paperkit.linearize.layer_operator import (
    apply_adjoint,
    apply_operator,
    operator_norm,
    weight_matrix_norm,
)

# Every kind of layer, with the shape of one input.
LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (5,)),
    "linear per token": (lambda: nn.Linear(5, 4, bias=False), (3, 5)),
    "padded": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 5, 6)),
    "strided": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), bias=False), (2, 7, 5)),
    "dilated": (lambda: nn.Conv2d(2, 2, 3, dilation=2, padding="same"), (2, 6, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv1d(3, 3, 3, groups=3), (3, 9)),
    "circular": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 7)),
    "reflected": (lambda: nn.Conv2d(1, 2, 3, padding=2, padding_mode="reflect"), (1, 5, 5)),
    "replicated": (lambda: nn.Conv1d(2, 2, 5, padding=4, padding_mode="replicate"), (2, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1), (3, 4, 3)),
    "transposed, grouped": (
        lambda: nn.ConvTranspose1d(4, 6, 4, stride=3, padding=1, output_padding=2, groups=2),
        (4, 5),
    ),
    "transposed, dilated": (
        lambda: nn.ConvTranspose2d(2, 2, (2, 3), dilation=(3, 2), padding=(2, 1)),
        (2, 5, 4),
    ),
    "three axes": (lambda: nn.Conv3d(1, 2, 2, stride=2, padding=1), (1, 4, 3, 5)),
}


def make(name: str, device: torch.device) -> tuple[nn.Module, tuple[int, ...]]:
    build, shape = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build().double().to(device), shape


def standard_normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def written_out(module: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """T, outputs × inputs, as differences of the module's own answers: nothing of ours in it."""
    device = module.weight.device
    units = torch.eye(math.prod(shape), dtype=torch.float64, device=device)
    with torch.no_grad():
        zero = module(torch.zeros(1, *shape, dtype=torch.float64, device=device))
        return (module(units.reshape(-1, *shape)) - zero).flatten(1).T


@pytest.mark.parametrize("name", LAYERS)
def test_the_operator_is_the_layer_without_its_bias(name, device) -> None:
    module, shape = make(name, device)
    dense = written_out(module, shape)
    inputs = standard_normal(4, *shape).to(device)
    ours = apply_operator(module, inputs).flatten(1)
    torch.testing.assert_close(ours, inputs.flatten(1) @ dense.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_the_adjoint_is_the_transpose(name, device) -> None:
    module, shape = make(name, device)
    dense = written_out(module, shape)
    outputs = apply_operator(module, torch.zeros(1, *shape, dtype=torch.float64, device=device))
    cotangents = standard_normal(4, *outputs.shape[1:]).to(device)
    ours = apply_adjoint(module, cotangents, shape).flatten(1)
    torch.testing.assert_close(ours, cotangents.flatten(1) @ dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_the_norm_of_a_small_operator_is_its_largest_singular_value(name, device) -> None:
    module, shape = make(name, device)
    exact = float(torch.linalg.matrix_norm(written_out(module, shape), ord=2))
    norm = operator_norm(module, shape)
    assert norm.method == "svd"
    assert float(norm) == norm.upper == norm.lower == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in LAYERS if not name.startswith("linear")])
def test_a_large_operators_norm_lies_in_the_bracket(name, device) -> None:
    module, shape = make(name, device)
    exact = float(torch.linalg.matrix_norm(written_out(module, shape), ord=2))
    norm = operator_norm(module, shape, max_dense=0)
    assert norm.method in ("lanczos", "patches")
    # 1e-12: the Ritz value is exact here, up to the round-off of a squared operator.
    assert norm.lower <= exact * (1 + 1e-12)
    assert norm.upper >= exact * (1 - 1e-12)
    # Lanczos with 96 steps promises a relative width of (ln(1.648 √d / 1e-10)/191)²/2, below 1 %.
    assert norm.upper <= 1.01 * exact


def test_the_bracket_contains_the_norm_from_every_start(device) -> None:
    module, shape = make("padded", device)
    exact = float(torch.linalg.matrix_norm(written_out(module, shape), ord=2))
    for seed in range(4):
        norm = operator_norm(module, shape, max_dense=0, seed=seed)
        assert norm.lower * (1 - 1e-12) <= exact <= norm.upper


@pytest.mark.parametrize(("size", "exact"), [(4, 6.85), (8, 8.29), (16, 8.80)])
def test_the_reshaped_kernels_norm_is_far_below_the_operators(size, exact) -> None:
    module = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    nn.init.ones_(module.weight)
    assert weight_matrix_norm(module) == pytest.approx(3.0, rel=1e-12)
    # For the all-ones kernel T is a Kronecker square, with norm (1 + 2 cos(π/(s+1)))².
    closed_form = (1 + 2 * math.cos(math.pi / (size + 1))) ** 2
    assert float(operator_norm(module, (1, size, size))) == pytest.approx(closed_form, rel=1e-12)
    assert closed_form == pytest.approx(exact, abs=0.005)


def test_the_patches_certify_the_norm_of_a_large_nonnegative_kernel() -> None:
    module = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    nn.init.ones_(module.weight)
    norm = operator_norm(module, (1, 64, 64))
    assert norm.method == "patches"
    assert norm.failure_probability == 0.0
    assert norm.upper == pytest.approx(9.0, rel=1e-12)
    # Lanczos promises 1 − (33.9/191)² of the square at d = 4096; the truth is (1 + 2cos(π/65))².
    assert 8.8 <= norm.lower <= (1 + 2 * math.cos(math.pi / 65)) ** 2 * (1 + 1e-12)


# Padding that repeats entries puts them into more patches than the kernel has entries.
# A patch of a transposed convolution holds zeros, so that no bound from below follows.
PADDED_BY_ZEROS = [
    name
    for name in LAYERS
    if name not in ("reflected", "replicated", "circular") and "transposed" not in name
]


@pytest.mark.parametrize("name", PADDED_BY_ZEROS)
def test_the_norm_lies_between_the_reshaped_kernels_and_its_multiple(name, device) -> None:
    module, shape = make(name, device)
    low = weight_matrix_norm(module)
    high = low * math.sqrt(module.weight[0, 0].numel())
    assert low * (1 - 1e-12) <= float(operator_norm(module, shape)) <= high * (1 + 1e-12)


def test_a_zero_weight_has_norm_zero() -> None:
    module = nn.Conv2d(1, 1, 3).double()
    nn.init.zeros_(module.weight)
    assert float(operator_norm(module, (1, 8, 8))) == 0.0
    assert float(operator_norm(module, (1, 8, 8), max_dense=0)) == 0.0


def test_the_norm_does_not_touch_the_model_or_the_global_random_state(device) -> None:
    module, shape = make("padded", device)
    module.weight.requires_grad_(False)
    before = torch.get_rng_state()
    operator_norm(module, shape, max_dense=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert module.bias.grad is None
    assert not module.weight.requires_grad


def test_single_precision_weights_are_measured_in_double(device) -> None:
    module, shape = make("padded", device)
    exact = float(torch.linalg.matrix_norm(written_out(module.float().double(), shape), ord=2))
    assert float(operator_norm(module.float(), shape)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "shape"), [("linear", (4,)), ("padded", (3, 5, 5)), ("padded", (2, 5))]
)
def test_a_shape_that_does_not_fit_is_refused(name, shape, device) -> None:
    with pytest.raises(ValueError, match="input_shape"):
        operator_norm(make(name, device)[0], shape)


@pytest.mark.parametrize("name", ["linear", "padded"])
def test_every_new_tensor_names_its_device(name, device, explicit_devices) -> None:
    module, shape = make(name, device)
    with explicit_devices():
        operator_norm(module, shape)
        operator_norm(module, shape, max_dense=0)
