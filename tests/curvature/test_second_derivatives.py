"""What has no second derivative, or a wrong one, is done by parts, done otherwise or refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from paperkit.curvature import (
    GaussNewtonOperator,
    HessianOperator,
    dense_gauss_newton,
    dense_hessian,
    dense_jacobian,
    hessian_product,
)
from paperkit.curvature.second_derivatives import SecondDerivativeError
from paperkit.estimators import fisher_rao_norm, gauss_newton_trace, maximum_local_sensitivity
from paperkit.network.evaluation import evaluation
from paperkit.network.replacements import _BY_PARTS, OperationsByParts

# --- Custom Functions ----------------------------------------------------------------------------


class Cube(Function):
    """x³ with a backward pass that can be differentiated."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g


class DetachedCube(Cube):
    """Its backward pass takes x for a constant."""

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0].detach() ** 2 * g


class NumpyCube(Cube):
    """Its backward pass leaves autograd."""

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        x, g = ctx.saved_tensors[0].detach().numpy(), g.detach().numpy()
        return torch.from_numpy(np.asarray(3 * x**2 * g))


class MarkedCube(Cube):
    """Its backward pass says that it has no derivative."""

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g


class StraightThrough(Function):
    """The sign, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g


class Reversal(Function):
    """The identity, with the opposite gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return -g


class Network(nn.Module):
    """A function of entries between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 3)
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.function(self.first(inputs)))


def problem(function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64, width=6):
    torch.manual_seed(0)
    model = Network(function, width).to(dtype)
    return model, (torch.randn(5, 4).to(dtype), torch.tensor([0, 2, 1, 1, 0]))


WRONG = {
    "DetachedCube": DetachedCube.apply,
    "NumpyCube": NumpyCube.apply,
    "StraightThrough": StraightThrough.apply,
    "Reversal": Reversal.apply,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_second_derivative_is_refused_by_name(name: str, dtype: torch.dtype) -> None:
    model, data = problem(WRONG[name], dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    vectors = torch.ones(1, sum(p.numel() for p in model.parameters()), dtype=dtype)
    for compute in (
        lambda: HessianOperator(model, data),
        lambda: dense_hessian(model, *data),
        lambda: hessian_product(model, *data, vectors),
    ):
        with pytest.raises(SecondDerivativeError, match=f"{name} is not that of the first"):
            compute()
    for key, value in model.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, before[key])


def test_a_backward_pass_marked_once_differentiable_is_refused_by_name() -> None:
    model, data = problem(MarkedCube.apply)
    with pytest.raises(SecondDerivativeError, match="MarkedCube is marked once_differentiable"):
        HessianOperator(model, data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function",
    [
        Cube.apply,
        lambda x: torch.relu(Cube.apply(x)),
        lambda x: Cube.apply(torch.relu(x)),
        lambda x: functional.max_pool1d(Cube.apply(x).unsqueeze(1), 2, 1, 1)[:, 0, : x.shape[1]],
        lambda x: functional.elu(Cube.apply(x)),
        lambda x: functional.hardswish(Cube.apply(torch.relu(x))),
        lambda x: functional.hardtanh(Cube.apply(x), -1e-3, 1e-3),
    ],
)
def test_kinks_beside_a_custom_function_raise_no_alarm(
    function: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    model, data = problem(function, dtype, width=300)
    HessianOperator(model, data)


@pytest.mark.parametrize("function", [functional.elu, functional.hardswish, torch.relu])
def test_a_kink_at_the_very_point_raises_no_alarm(function: Callable[[Tensor], Tensor]) -> None:
    # Inputs and biases of zero put every entry on the kink.
    model, (inputs, targets) = problem(lambda x: function(Cube.apply(x) + x))
    nn.init.zeros_(model.first.bias)
    HessianOperator(model, (torch.zeros_like(inputs), targets))


def test_a_right_custom_function_gives_its_hessian() -> None:
    model, data = problem(Cube.apply)
    plain, _ = problem(lambda x: x**3)
    operator = HessianOperator(model, data)
    vectors = torch.randn(2, operator.dimension, dtype=torch.float64)
    expected = vectors @ dense_hessian(plain, *data)
    assert torch.allclose(operator(vectors), expected, rtol=1e-10, atol=1e-12)


# --- Backward passes that cannot be differentiated, where only the first derivative is needed ----


@pytest.mark.parametrize("function", [NumpyCube, MarkedCube, DetachedCube, Cube])
def test_first_derivatives_need_no_second(function: type[Cube]) -> None:
    model, data = problem(function.apply)
    plain, _ = problem(lambda x: x**3)
    matrix = dense_gauss_newton(plain, data[0])
    assert torch.allclose(dense_gauss_newton(model, data[0]), matrix, rtol=1e-10, atol=1e-12)
    operator = GaussNewtonOperator(model, data)
    vectors = torch.randn(2, operator.dimension, dtype=torch.float64)
    assert torch.allclose(operator(vectors), vectors @ matrix, rtol=1e-10, atol=1e-12)
    for measure in (
        fisher_rao_norm,
        lambda model, data: gauss_newton_trace(model, data, method="hutchinson", probes=3),
    ):
        assert float(measure(model, data)) == pytest.approx(float(measure(plain, data)), rel=1e-10)


class Attention(nn.Module):
    """Attention over a sequence, by one of torch's own layers."""

    def __init__(self, layer: nn.Module, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.use, self.head = layer, use, nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.use(self.layer, inputs).mean(1))


SEQUENCES = {
    "MultiheadAttention": lambda: Attention(
        nn.MultiheadAttention(6, 2, batch_first=True), lambda layer, x: layer(x, x, x)[0]
    ),
    "TransformerEncoder": lambda: Attention(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2),
        lambda layer, x: layer(x),
    ),
    "LSTM": lambda: Attention(nn.LSTM(6, 6, batch_first=True), lambda layer, x: layer(x)[0]),
    "GRU": lambda: Attention(nn.GRU(6, 6, batch_first=True), lambda layer, x: layer(x)[0]),
    "cdist": lambda: Attention(
        nn.Linear(6, 6), lambda layer, x: torch.cdist(layer(x), torch.eye(6, dtype=x.dtype))
    ),
    "grid_sample": lambda: Attention(
        nn.Linear(6, 6),
        lambda layer, x: (
            functional.grid_sample(
                layer(x).reshape(len(x), 1, 4, 6),
                torch.tanh(x[:, :, :4]).reshape(len(x), 4, 2, 2),
                align_corners=False,
            )
            .flatten(1)
            .unsqueeze(1)[..., :6]
        ),
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("labels", ["model", "observed"])
def test_the_fisher_rao_norm_needs_no_forward_mode(name: str, labels: str) -> None:
    torch.manual_seed(0)
    model = SEQUENCES[name]().double()
    data = torch.randn(5, 4, 6).double(), torch.tensor([0, 1, 2, 0, 1])
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    change = dense_jacobian(model, data[0]) @ theta
    with evaluation(model), torch.no_grad():
        p = model(data[0]).softmax(1)
    if labels == "model":
        expected = ((p * change**2).sum(1) - (p * change).sum(1) ** 2).mean()
    else:
        residuals = p - functional.one_hot(data[1], 3)
        expected = (residuals * change).sum(1).square().mean()
    found = fisher_rao_norm(model, data, labels=labels)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


# --- Operations by parts -------------------------------------------------------------------------


def bags(**options: object) -> list[tuple[tuple, dict]]:
    table = torch.randn(7, 4).double()
    flat, starts = torch.tensor([1, 2, 2, 2, 6, 0]), torch.tensor([0, 2, 2, 5])
    ended = torch.tensor([0, 2, 2, 5, 6])
    return [
        ((flat, table, starts), options),
        ((flat, table, ended), {**options, "include_last_offset": True}),
        ((torch.tensor([[1, 2], [2, 2], [0, 6]]), table), options),
    ]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_bags_of_embeddings_by_parts_are_what_they_were(mode: str, padding_idx: int) -> None:
    for args, options in bags(mode=mode, padding_idx=padding_idx):
        expected = functional.embedding_bag(*args, **options)
        with OperationsByParts():
            assert torch.allclose(functional.embedding_bag(*args, **options), expected)


def test_weighted_bags_by_parts_are_what_they_were() -> None:
    args, weights = bags()[0][0], torch.randn(6).double()
    options = {"mode": "sum", "per_sample_weights": weights}
    expected = functional.embedding_bag(*args, **options)
    with OperationsByParts():
        assert torch.allclose(functional.embedding_bag(*args, **options), expected)


def test_other_operations_by_parts_are_what_they_were() -> None:
    torch.manual_seed(0)
    x = 4 * torch.randn(2, 3, 5, 6).double()
    weight, bias = torch.randn(4, 3, 1, 1).double(), torch.randn(4).double()
    v = torch.randn(4, 3).double()
    calls = [
        lambda: functional.hardsigmoid(x),
        lambda: functional.hardsigmoid(x.clone(), inplace=True),
        lambda: torch._weight_norm(v, v[:, :1], 0),
        lambda: functional.conv2d(x, weight, bias, 2),
        lambda: functional.conv2d(x, weight, stride=(1, 3)),
        lambda: functional.conv2d(x, weight, stride=2, padding="valid"),
        lambda: functional.conv2d(x, weight, stride=2, padding=1),
        lambda: functional.conv2d(x[:, :2], weight[:, :1], stride=3, groups=2),
        lambda: functional.conv2d(x[0], weight, stride=2),
        lambda: functional.conv1d(x[:, :, 0], weight[..., 0], stride=2),
        lambda: functional.conv3d(x.unsqueeze(2), weight.unsqueeze(2), stride=2),
    ]
    for call in calls:
        expected = call()
        with OperationsByParts():
            assert torch.allclose(call(), expected, rtol=1e-12, atol=1e-12)
    assert len(_BY_PARTS) >= 6


@pytest.mark.parametrize(
    "function",
    [
        functional.hardsigmoid,
        lambda x: x * functional.hardsigmoid(x, inplace=False),
        nn.Hardsigmoid(inplace=True),
        lambda x: (
            functional.embedding_bag(
                torch.arange(6).repeat(len(x), 1), torch.eye(6).double(), mode="mean"
            )
            * x
        ),
    ],
)
def test_operations_by_parts_have_a_hessian(function: Callable[[Tensor], Tensor]) -> None:
    model, data = problem(function)
    operator = HessianOperator(model, data)
    vectors = torch.randn(2, operator.dimension, dtype=torch.float64)
    step = 1e-5

    def gradient(sign: int, vector: Tensor) -> Tensor:
        parameters = list(model.parameters())
        parts = vector.split([p.numel() for p in parameters])
        moved = {
            name: p.detach() + sign * step * part.view_as(p)
            for (name, p), part in zip(model.named_parameters(), parts, strict=True)
        }
        leaves = {name: value.requires_grad_() for name, value in moved.items()}
        loss = functional.cross_entropy(torch.func.functional_call(model, leaves, data[0]), data[1])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))])

    # The differences of gradients by PyTorch's own kernels, whose first derivative is right.
    expected = torch.stack([(gradient(1, v) - gradient(-1, v)) / (2 * step) for v in vectors])
    assert torch.allclose(operator(vectors), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda x: torch.segment_reduce(
                x.flatten(), "sum", lengths=torch.ones(x.numel(), dtype=torch.long)
            ).reshape(x.shape),
            "segment_reduce has no second derivative .*index_add",
        ),
        (
            lambda x: (
                x
                + functional.ctc_loss(
                    x[:, None, :3].log_softmax(-1).expand(-1, 2, -1).transpose(0, 0),
                    torch.ones(2, 1, dtype=torch.long),
                    torch.tensor([len(x)] * 2),
                    torch.tensor([1, 1]),
                )
                * 0
            ),
            "ctc_loss has no second derivative",
        ),
    ],
)
def test_a_missing_second_derivative_is_named_with_what_can_stand_for_it(
    function: Callable[[Tensor], Tensor], said: str
) -> None:
    model, data = problem(function)
    for compute in (lambda: HessianOperator(model, data), lambda: dense_hessian(model, *data)):
        with pytest.raises(SecondDerivativeError, match=said):
            compute()


# --- Paths that the comparison of the ways has not seen ------------------------------------------


class Hidden(nn.Module):
    """Takes the path of a function whose forward derivative is wrong for some samples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.softmax(self.first(inputs), dim=1)
        if bool((inputs > 2).any()):
            hidden = hidden + (inputs > 2).any(1, keepdim=True) * self.norm(hidden)
        return self.last(hidden)


@pytest.mark.parametrize("operator_type", [HessianOperator, GaussNewtonOperator])
def test_a_path_that_only_some_samples_take_is_not_computed_by_what_was_not_compared(
    operator_type: type,
) -> None:
    torch.manual_seed(0)
    model = Hidden().double()
    inputs, targets = torch.rand(6, 5).double(), torch.tensor([0, 2, 1, 1, 0, 2])
    inputs[4] = 3.0
    operator = operator_type(model, (inputs, targets))
    assert operator.routes[0] != "double_backward"
    vectors = torch.randn(2, operator.dimension, dtype=torch.float64)
    if operator_type is HessianOperator:
        matrix = dense_hessian(model, inputs, targets)
    else:
        matrix = dense_gauss_newton(model, inputs)
    assert torch.allclose(operator(vectors), vectors @ matrix, rtol=1e-10, atol=1e-12)
    assert torch.allclose(operator(vectors[0]), vectors[0] @ matrix, rtol=1e-10, atol=1e-12)


def test_what_is_compiled_inside_a_model_runs_without_it() -> None:
    plain, data = problem(torch.tanh)
    model, _ = problem(torch.compile(torch.tanh, backend="aot_eager"))
    found, expected = HessianOperator(model, data), HessianOperator(plain, data)
    vectors = torch.randn(2, found.dimension, dtype=torch.float64)
    assert torch.allclose(found(vectors), expected(vectors), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("function", [NumpyCube, MarkedCube, DetachedCube, Cube])
def test_sensitivities_by_lanczos_need_no_second_derivative(function: type[Cube]) -> None:
    model, data = problem(function.apply)
    plain, _ = problem(lambda x: x**3)
    found = maximum_local_sensitivity(model, data, method="lanczos", tolerance=1e-8)
    assert float(found) == pytest.approx(
        float(maximum_local_sensitivity(plain, data, method="exact")), rel=1e-6
    )


# --- PyTorch's own second derivatives ------------------------------------------------------------


def _images(x: Tensor) -> Tensor:
    return x.reshape(1, 1, 4, 4)


def _entries(count: int) -> Tensor:
    return torch.tensor([0, 2, 1, 0] * (count // 4))


# Functions of sixteen numbers in (0.1, 0.9), at none of whose kinks these lie.
OWN: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(functional, name)
        for name in (
            *("hardswish", "hardtanh", "softshrink", "gelu", "silu", "mish", "elu", "selu"),
            *("softplus", "softsign", "logsigmoid", "tanhshrink", "relu6", "glu"),
        )
    },
    **{
        name: getattr(torch, name)
        for name in ("erf", "erfinv", "lgamma", "digamma", "sinc", "logit", "atan", "log1p")
    },
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "softmax": lambda x: functional.softmax(x.reshape(4, 4), 1),
    "log-softmax": lambda x: functional.log_softmax(x.reshape(4, 4), 1),
    "logsumexp": lambda x: x.reshape(4, 4).logsumexp(1),
    "layer norm": lambda x: functional.layer_norm(x.reshape(4, 4), (4,), x[:4], x[4:8]),
    "group norm": lambda x: functional.group_norm(x.reshape(2, 4, 2), 2, x[:4], x[4:8]),
    "rms norm": lambda x: functional.rms_norm(x.reshape(4, 4), (4,), x[:4]),
    "instance norm": lambda x: functional.instance_norm(x.reshape(2, 2, 4)),
    "local response norm": lambda x: functional.local_response_norm(x.reshape(1, 4, 2, 2), 2),
    "batch norm": lambda x: functional.batch_norm(
        x.reshape(4, 4), torch.zeros(4).double(), torch.ones(4).double(), x[:4], x[4:8]
    ),
    "normalize": lambda x: functional.normalize(x.reshape(4, 4)),
    "cosine similarity": lambda x: functional.cosine_similarity(x[:8], x[8:], dim=0),
    "cdist": lambda x: torch.cdist(x.reshape(4, 4), 2 * x[:8].reshape(2, 4)),
    "cdist, 1": lambda x: torch.cdist(x.reshape(4, 4), 2 * x[:8].reshape(2, 4), p=1),
    "cdist, products": lambda x: torch.cdist(
        x.reshape(4, 4), 2 * x[:8].reshape(2, 4), compute_mode="use_mm_for_euclid_dist"
    ),
    "grid sample": lambda x: functional.grid_sample(
        _images(x), x.reshape(1, 4, 2, 2), align_corners=False
    ),
    "resize": lambda x: functional.interpolate(_images(x), scale_factor=2, mode="bilinear"),
    "resize, smoothed": lambda x: functional.interpolate(
        _images(x), size=(2, 3), mode="bicubic", antialias=True
    ),
    "convolution": lambda x: functional.conv2d(_images(x), x[:4].reshape(1, 1, 2, 2)),
    "transposed convolution": lambda x: functional.conv_transpose2d(
        _images(x), x[:4].reshape(1, 1, 2, 2), stride=2
    ),
    "bilinear": lambda x: functional.bilinear(x.reshape(4, 4), x.reshape(4, 4), x.reshape(1, 4, 4)),
    "pooling": lambda x: functional.max_pool2d(_images(x), 2),
    "pooling by powers": lambda x: functional.lp_pool2d(_images(x), 3, 2),
    "padding": lambda x: functional.pad(_images(x), (1, 1, 1, 1), mode="reflect"),
    "unfold": lambda x: functional.unfold(_images(x), 2),
    "products along an axis": lambda x: x.reshape(4, 4).cumprod(1),
    "deviation": lambda x: x.reshape(4, 4).std(1),
    "median": lambda x: x.reshape(4, 4).median(1)[0],
    "scatter": lambda x: x.new_zeros(3).scatter_add(0, _entries(16), x),
    "scatter of means": lambda x: x.new_zeros(3).scatter_reduce(0, _entries(16), x, "mean"),
    "scatter of products": lambda x: x.new_ones(3).scatter_reduce(0, _entries(16), x, "prod"),
    "embedding": lambda x: functional.embedding(_entries(4), x.reshape(4, 4)),
    "spectrum": lambda x: torch.fft.rfft(x).abs(),
    "inverse": lambda x: torch.linalg.inv(x.reshape(4, 4) + 3 * torch.eye(4, dtype=x.dtype)),
    "attention": lambda x: functional.scaled_dot_product_attention(
        *[part.reshape(1, 2, 2) for part in x[:12].split(4)]
    ),
    "weight norm": lambda x: torch._weight_norm(x.reshape(4, 4), x[:4].unsqueeze(1), 0),
}


# Operations that have a second derivative in torch 2.14 and none in 2.11.
LATER = ("cdist", "cdist, 1", "grid sample")


def _has_a_second_derivative(function: Callable[[Tensor], Tensor]) -> bool:
    """Whether torch by itself differentiates a function twice."""
    x = torch.linspace(0.1, 0.9, 16, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    try:
        torch.autograd.grad(gradient.sum(), x)
    except RuntimeError as error:
        assert "not implemented" in str(error)
        return False
    return True


@pytest.mark.parametrize("name", OWN)
def test_second_derivatives_within_an_evaluation_are_those_of_the_first(name: str) -> None:
    if name in LATER and not _has_a_second_derivative(OWN[name]):
        pytest.skip(f"torch {torch.__version__} has no second derivative of it")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, generator=generator).double() * 0.8 + 0.1
    direction = torch.randn(16, generator=generator).double()
    step = 1e-5

    def gradient(at: Tensor, **options: bool) -> Tensor:
        values = OWN[name](at)
        weights = torch.linspace(0.3, 1.7, values.numel()).double().reshape(values.shape)
        loss = (weights * values + 0.5 * values * values).sum()
        return torch.autograd.grad(loss, at, **options)[0]

    with evaluation(nn.Identity()):
        here = x.clone().requires_grad_()
        (product,) = torch.autograd.grad(gradient(here, create_graph=True), here, direction)
        after, before = (
            gradient((x + sign * step * direction).requires_grad_()) for sign in (1, -1)
        )
    # Truncation and round-off are both near 1e-10 of what is differenced.
    expected = (after - before) / (2 * step)
    assert float((product - expected).norm()) < 1e-6 * float(1 + expected.norm())
