"""The rules for jets, each against the dense Hessian in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import relative
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, weight_norm

from paperkit.curvature import HessianOperator, dense_hessian, hessian
from paperkit.curvature.jets import Jet, NoRuleError, ParameterJet


@pytest.fixture(autouse=True)
def preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jets come first also for the few samples of a test."""
    monkeypatch.setattr(hessian, "_WORK_IN_SAMPLES", 0)


class Function(nn.Module):
    """A layer written as a function of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class BothUses(nn.Module):
    """A convolution whose output is normalised and also taken as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.convolution(inputs)
        return (self.norm(found) * torch.sigmoid(found)).mean((2, 3))


class Parameters(nn.Module):
    """Parameters that meet activations outside of layers, by products and sums of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 3, 4, 4))
        self.scale = nn.Parameter(torch.randn(3, 1, 1))
        self.number = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("fixed", torch.randn(3, 4, 4))
        self.layer = nn.Conv2d(2, 3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.layer(inputs) + self.position
        hidden = self.scale * torch.tanh(hidden - self.fixed) * self.number
        hidden = (1.5 * hidden + 0.3) / 2 + self.fixed - hidden * self.fixed
        hidden += self.scale
        return -hidden.flatten(1)[:, ::16]


class Excited(nn.Module):
    """Channels multiplied by a function of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 6, 3, padding="same", bias=False)
        self.gate = nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.convolution(inputs)
        gate = torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(hidden, 1).flatten(1)))
        hidden = hidden * gate.unsqueeze(-1).unsqueeze(-1)
        first, second = hidden.view(hidden.size(0), 2, -1).split(1, dim=1)
        return torch.cat([first, second], dim=2).squeeze(1).unflatten(1, (3, -1)).mean(dim=2)


class InPlace(nn.Module):
    """Operations in place on what is used afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        torch.relu_(hidden)
        other = self.second(hidden)
        other.add_(self.second(torch.tanh(hidden)), alpha=2)
        return functional.leaky_relu(other, 0.1, inplace=True)


def convolution(dimensions: int, **options: object) -> nn.Sequential:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    return nn.Sequential(
        kind(2, 4, 3, padding=1), nn.Tanh(), kind(4, 6, 3, **options), nn.Flatten(2), Mean()
    )


class Mean(nn.Module):
    """The mean over the last of three dimensions."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(dim=2)


def normalised(*layers: nn.Module) -> nn.Sequential:
    """Give the normalisations among the layers statistics and weights of their own."""
    model = nn.Sequential(*layers)
    for layer in model:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
            if layer.affine:
                layer.weight.data.normal_()
                layer.bias.data.normal_()
    return model


def pointwise(function: Callable[[Tensor], Tensor]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), Function(function), nn.Linear(4, 3))


IMAGES, VECTORS = (2, 4, 4), (5,)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution of sequences": (lambda: convolution(1, stride=2, bias=False), (2, 9)),
    "convolution of images": (lambda: convolution(2, padding=(2, 0), dilation=(2, 1)), (2, 5, 4)),
    "convolution of volumes": (lambda: convolution(3, groups=2, padding=1), (2, 3, 3, 2)),
    "padding by name": (lambda: convolution(2, padding="same", dilation=2), IMAGES),
    "padding by name, none": (lambda: convolution(2, padding="valid"), IMAGES),
    "grouped first": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)),
        IMAGES,
    ),
    "padding with reflection": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 1),
            nn.Tanh(),
            nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
            nn.Flatten(2),
            Mean(),
        ),
        IMAGES,
    ),
    "normalisation after a convolution": (
        lambda: normalised(
            nn.Conv2d(2, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 3, 2),
            nn.BatchNorm2d(3),
            nn.Flatten(),
        ),
        IMAGES,
    ),
    "normalisation without weights": (
        lambda: normalised(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False), nn.Sigmoid(), nn.Flatten(2), Mean()
        ),
        IMAGES,
    ),
    "normalisation after a linear layer": (
        lambda: normalised(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)),
        VECTORS,
    ),
    "normalisation first and after an activation": (
        lambda: normalised(
            nn.BatchNorm2d(2),
            nn.Tanh(),
            nn.BatchNorm2d(2),
            nn.Conv2d(2, 3, 4),
            nn.ReLU(),
            nn.BatchNorm2d(3),
            nn.Flatten(),
        ),
        IMAGES,
    ),
    "both uses of a convolution": (BothUses, IMAGES),
    "pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 1),
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(2),
            nn.MaxPool1d(4),
            nn.Flatten(),
        ),
        IMAGES,
    ),
    "upsampling and dropout": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.Dropout(),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Tanh(),
            nn.Flatten(2),
            Mean(),
        ),
        IMAGES,
    ),
    "parameters outside of layers": (Parameters, IMAGES),
    "a gate for each channel": (Excited, IMAGES),
    "operations in place": (InPlace, VECTORS),
    "a linear layer at each position": (
        lambda: nn.Sequential(
            nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), Function(lambda x: x.sum(dim=(1, 2)))
        ),
        IMAGES,
    ),
    **{
        f.__name__: (lambda f=f: pointwise(f), VECTORS)
        for f in (
            torch.tanh,
            torch.sigmoid,
            torch.exp,
            torch.sin,
            torch.square,
            functional.gelu,
            functional.silu,
            functional.mish,
            functional.elu,
            functional.softplus,
            functional.relu6,
            functional.hardtanh,
        )
    },
}

REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer normalisation": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
        VECTORS,
    ),
    "a weight computed from parameters": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 3)),
        VECTORS,
    ),
    "division by an activation": (lambda: pointwise(lambda x: 1 / (x.square() + 1)), VECTORS),
    "a loop over samples": (
        lambda: pointwise(lambda x: torch.stack([row * row for row in x])),
        VECTORS,
    ),
    "an attribute without a rule": (lambda: pointwise(lambda x: x.T.T.tanh()), VECTORS),
    "a test for tensors": (
        lambda: pointwise(lambda x: x.tanh() if isinstance(x, Tensor) else x),
        VECTORS,
    ),
}


def make(name: str, networks: dict = NETWORKS) -> tuple[nn.Module, Tensor, Tensor]:
    build, shape = networks[name]
    torch.manual_seed(0)
    model = build().double().eval()
    inputs = torch.randn(4, *shape, dtype=torch.float64)
    return model, inputs, torch.tensor([0, 2, 1, 1])


def vectors_for(operator: HessianOperator, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, operator.dimension, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_rule_gives_the_dense_hessian(name: str) -> None:
    model, inputs, targets = make(name)
    operator = HessianOperator(model, (inputs, targets))
    assert operator.routes[0] == "jets"
    vectors = vectors_for(operator)
    expected = vectors @ dense_hessian(model, inputs, targets)
    assert relative(operator(vectors) - expected, expected) < 1e-12
    assert relative(operator(vectors[0]) - expected[0], expected[0]) < 1e-12


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_of_one_parameter_is_right(name: str) -> None:
    # With one parameter chosen, the layers' other arguments are constant in every combination.
    model, inputs, targets = make(name)
    for parameter, _ in model.named_parameters():
        operator = HessianOperator(model, (inputs, targets), parameters=[parameter])
        # A constant that meets a parameter might be one of the samples, or not.
        by_jets = name != "parameters outside of layers" or parameter.startswith("layer")
        assert (operator.routes[0] == "jets") == by_jets
        vectors = vectors_for(operator)
        matrix = dense_hessian(model, inputs, targets, parameters=[parameter])
        found = operator(vectors)
        assert float((found - vectors @ matrix).norm()) <= 1e-12 * (1 + float(matrix.norm()))


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_takes_another_way(name: str) -> None:
    model, inputs, targets = make(name, REFUSED)
    operator = HessianOperator(model, (inputs, targets))
    assert "jets" not in operator.routes
    vectors = vectors_for(operator)
    expected = vectors @ dense_hessian(model, inputs, targets)
    assert relative(operator(vectors) - expected, expected) < 1e-12


def test_a_path_that_only_a_larger_batch_takes_is_computed_another_way() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)
            self.taken: list[bool] = []

        def forward(self, inputs: Tensor) -> Tensor:
            self.taken.append(len(inputs) > 2)
            hidden = self.first(inputs)
            return self.last(torch.tanh(self.norm(hidden) if self.taken[-1] else hidden))

    torch.manual_seed(0)
    model = Branching().double()
    inputs, targets = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    operator = HessianOperator(model, (inputs, targets))
    assert operator.routes[0] == "jets"
    # The ways are compared on two samples, which take the other path.
    model.taken.clear()
    vectors = vectors_for(operator)
    expected = vectors @ dense_hessian(model, inputs, targets)
    assert relative(operator(vectors) - expected, expected) < 1e-12
    assert relative(operator(vectors[0]) - expected[0], expected[0]) < 1e-12
    assert any(model.taken)


@pytest.mark.parametrize("channels", [2, 16])
@pytest.mark.parametrize("count", [1, 3])
def test_single_precision_images_have_their_own_layout(channels: int, count: int) -> None:
    # Few channels are joined in one convolution, many take one for each vector.
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        Function(lambda x: x.view(len(x), -1)),
        nn.Linear(9 * channels, 3),
    ).eval()
    inputs, targets = torch.randn(4, 2, 7, 7), torch.tensor([0, 2, 1, 1])
    operator = HessianOperator(model, (inputs, targets))
    assert operator.routes[0] == "jets"
    vectors = vectors_for(operator, count)
    found = operator(vectors.float()).double()
    exact = HessianOperator(model.double(), (inputs.double(), targets))
    assert relative(found - exact(vectors), exact(vectors)) < 1e-5


@pytest.mark.parametrize("normalise", [parametrizations.weight_norm, weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_weight_normalisation_is_differentiated_twice_rightly(normalise: Callable) -> None:
    # The double backward pass of PyTorch's fused kernel is wrong without an error.
    torch.manual_seed(0)
    model = nn.Sequential(normalise(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
    inputs = torch.randn(4, 5, dtype=torch.float64)
    targets = torch.tensor([0, 2, 1, 1])
    values = {name: value.detach() for name, value in model.named_parameters()}
    flat = torch.cat([value.flatten() for value in values.values()])

    def gradient(point: Tensor) -> Tensor:
        point = point.clone().requires_grad_()
        parts = point.split([value.numel() for value in values.values()])
        named = {
            name: part.reshape(values[name].shape) for name, part in zip(values, parts, strict=True)
        }
        outputs = torch.func.functional_call(model, named, (inputs,))
        return torch.autograd.grad(functional.cross_entropy(outputs, targets), point)[0]

    step = 1e-6
    differences = torch.stack(
        [
            (gradient(flat + step * axis) - gradient(flat - step * axis)) / (2 * step)
            for axis in torch.eye(len(flat), dtype=torch.float64)
        ]
    )
    assert relative(dense_hessian(model, inputs, targets) - differences, differences) < 1e-8
    operator = HessianOperator(model, (inputs, targets))
    products = operator(torch.eye(len(flat), dtype=torch.float64))
    assert relative(products - differences, differences) < 1e-8


def test_the_jet_of_a_square_worked_by_hand() -> None:
    # y = w x with w = 3 along v = 2 and v = −1; (y²)˙ = 2 y ẏ.
    weight = ParameterJet.of(torch.tensor([[3.0]]), torch.tensor([[[2.0]], [[-1.0]]]))
    y = functional.linear(torch.tensor([[5.0], [1.0]]), weight)
    assert y.stack.flatten().tolist() == [15.0, 3.0, 10.0, 2.0, -5.0, -1.0]
    square = y * y
    assert square.stack.flatten().tolist() == [225.0, 9.0, 300.0, 12.0, -150.0, -6.0]
    # L = Σ y² = 26 w²: its gradient 52 w and the Hessian's products 52 v.
    ones = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]).reshape(6, 1)
    (pulled,) = torch.autograd.grad(square.stack, weight.parts, ones)
    assert pulled.flatten()[1:].tolist() == [104.0, -52.0]


def test_the_gradient_itself_is_spared_where_nothing_asks_for_it() -> None:
    # Row 0 is the gradient. Only a weight that was folded from others passes it on.
    weight = ParameterJet.of(torch.ones(3, 2), torch.ones(1, 3, 2))
    plain = functional.linear(torch.ones(4, 2), weight)
    (pulled,) = torch.autograd.grad(plain.stack, weight.parts, torch.ones(8, 3))
    assert pulled[0].tolist() == torch.zeros(3, 2).tolist()
    assert pulled[1].tolist() == torch.full((3, 2), 4.0).tolist()
    normalised = functional.batch_norm(
        functional.linear(torch.ones(4, 2), weight), torch.zeros(3), torch.ones(3), eps=0.0
    )
    (pulled,) = torch.autograd.grad(normalised.stack, weight.parts, torch.ones(8, 3))
    assert pulled.tolist() == torch.full((2, 3, 2), 4.0).tolist()


def test_a_layer_runs_once_and_not_for_its_dimensions() -> None:
    weight = ParameterJet.of(torch.ones(3, 2), torch.ones(1, 3, 2))
    jet = functional.linear(torch.ones(4, 2), weight)
    assert jet.dim() == 2
    assert jet.layer is not None
    assert jet.stack is jet.stack
    assert jet.layer is None


def test_a_parameter_is_described_but_not_computed_with() -> None:
    jet = ParameterJet.of(torch.ones(3, 2), torch.ones(1, 3, 2))
    assert jet.shape == (3, 2)
    assert jet.size(0) == 3
    assert jet.dtype == torch.float32
    with pytest.raises(NoRuleError, match="no rule"):
        jet.norm()
    with pytest.raises(NoRuleError, match="no rule"):
        torch.exp(jet)


def test_an_operation_across_samples_is_refused() -> None:
    jet = Jet(torch.ones(6, 2), 1)
    for function in (
        lambda: jet.mean(),
        lambda: jet.sum(dim=0),
        lambda: jet[:2],
        lambda: torch.cat([jet, jet]),
        lambda: jet.reshape(-1),
    ):
        with pytest.raises(NoRuleError, match="across samples"):
            function()
