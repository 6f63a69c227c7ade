"""What counts as a layer of a known type: everything else takes the general way."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from paperkit.curvature import dense_gauss_newton, dense_hessian, dense_jacobian
from paperkit.estimators import adaptive_sharpness, layer_gauss_newton_traces, relative_flatness
from paperkit.linearize import ekfac, linearize, operator_norm
from paperkit.linearize.backward import OutputRows, backward_for_each_output, rows_out_of_order
from paperkit.linearize.layer_types import WeightLayout, layer_type
from paperkit.linearize.linearization import Linearization
from paperkit.network.problem import CutGraphError


def jacobian_of(linearization: Linearization, model: nn.Module) -> Tensor:
    """∂f/∂θ, (n, C, d), in the order of the parameters."""
    blocks = dict(linearization.jacobian_blocks())
    return torch.cat([blocks[name] for name, _ in model.named_parameters()], dim=2)


def assert_all_jacobians_are_right(model: nn.Module, inputs: Tensor) -> Linearization:
    found = linearize(model, inputs, all_parameters=True)
    expected = dense_jacobian(model, inputs)
    torch.testing.assert_close(jacobian_of(found, model), expected, rtol=1e-10, atol=1e-12)
    for name, layer in found.layers.items():
        brute = dense_jacobian(model, inputs, [layer.weight_name])
        torch.testing.assert_close(layer.jacobian(), brute, rtol=1e-10, atol=1e-12)
        assert name not in found.left_out
    return found


class Standardized(nn.Conv2d):
    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(inputs, weight, self.bias, self.stride, self.padding)


class PaddedInside(nn.Conv2d):
    def _conv_forward(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(functional.pad(inputs, (1, 0, 1, 0)), weight, bias)


class Masked(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight.tril(), self.bias)


class ReadsAnother(nn.Linear):
    """The known forward pass, of another weight than the parameter."""

    def __getattr__(self, name: str) -> Tensor:
        found = super().__getattr__(name)
        return 2.0 * found if name == "weight" else found


class Called(nn.Linear):
    def __call__(self, *args: Tensor) -> Tensor:
        return super().__call__(*args).tanh()


class SummedMix(nn.Linear):
    """A class between that changes what its children inherit."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).cumsum(-1)


class Grandchild(SummedMix):
    pass


def convolution_before(layer: nn.Module, channels: int = 4) -> nn.Module:
    pool = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]
    return nn.Sequential(layer, *pool)


def linear_before(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 3))


def instance_forward() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.forward = lambda inputs: functional.linear(inputs, layer.weight.square())  # type: ignore[method-assign]
    return linear_before(layer)


def pruned(name: str) -> nn.Module:
    layer = nn.Linear(6, 6)
    prune.random_unstructured(layer, name, 0.5)
    return linear_before(layer)


# The first layer is none of the known ones.
OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "weight standardized": (
        lambda: convolution_before(Standardized(2, 4, 3, padding=1)),
        (2, 4, 4),
    ),
    "padded inside": (lambda: convolution_before(PaddedInside(2, 4, 3)), (2, 4, 4)),
    "masked": (lambda: linear_before(Masked(6, 6)), (6,)),
    "another weight": (lambda: linear_before(ReadsAnother(6, 6)), (6,)),
    "called": (lambda: linear_before(Called(6, 6)), (6,)),
    "inherited": (lambda: linear_before(Grandchild(6, 6)), (6,)),
    "instance": (instance_forward, (6,)),
    "weight norm": (lambda: linear_before(parametrizations.weight_norm(nn.Linear(6, 6))), (6,)),
    "weight norm by hook": (lambda: linear_before(weight_norm(nn.Linear(6, 6))), (6,)),
    "spectral norm": (lambda: linear_before(parametrizations.spectral_norm(nn.Linear(6, 6))), (6,)),
    "spectral norm by hook": (lambda: linear_before(spectral_norm(nn.Linear(6, 6))), (6,)),
    "orthogonal": (lambda: linear_before(parametrizations.orthogonal(nn.Linear(6, 6))), (6,)),
    "pruned weight": (lambda: pruned("weight"), (6,)),
    "pruned bias": (lambda: pruned("bias"), (6,)),
}


def made(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().double().eval()
        return model, torch.randn(5, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_a_layer_that_does_anything_else_takes_the_general_way(name: str) -> None:
    model, inputs = made(*OTHERS[name])
    found = assert_all_jacobians_are_right(model, inputs)
    last = [key for key, module in model.named_modules() if type(module) is nn.Linear][-1]
    assert list(found.layers) == [last]
    left = next(iter(found.left_out))
    with pytest.raises(ValueError, match=f"layers: {left} cannot be linearized by itself"):
        linearize(model, inputs, layers=[left])


class Renamed(nn.Linear):
    """Nothing that a forward pass runs is changed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.extra = 1

    def extra_repr(self) -> str:
        return "renamed"

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def helper(self) -> int:
        return 2


def test_a_subclass_that_leaves_the_forward_pass_alone_is_its_base_class() -> None:
    model, inputs = made(lambda: linear_before(Renamed(6, 6)), (6,))
    assert list(assert_all_jacobians_are_right(model, inputs).layers) == ["0", "2"]


def test_hooks_that_change_what_goes_in_or_comes_out_are_part_of_the_network() -> None:
    model, inputs = made(lambda: linear_before(nn.Linear(6, 6)), (6,))
    model[0].register_forward_pre_hook(lambda _, arguments: (arguments[0].square(),))
    model[0].register_forward_hook(lambda _, arguments, output: output.sin() + 1.0)
    found = assert_all_jacobians_are_right(model, inputs)
    assert list(found.layers) == ["0", "2"]
    assert "Sin" in str(found.layers["0"].obstacle)


class ActivatedBatchNorm(nn.BatchNorm2d):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).relu()


class ChannelNorm(nn.LayerNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize(
    "kind", [ActivatedBatchNorm, ChannelNorm, nn.InstanceNorm2d, nn.SyncBatchNorm]
)
def test_a_normalisation_that_does_anything_else_is_differentiated(kind: type) -> None:
    def build() -> nn.Module:
        norm = kind(4, affine=True) if kind is nn.InstanceNorm2d else kind(4)
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), convolution_before(norm))

    # As many positions as channels, so that no shape tells them apart.
    model, inputs = made(build, (2, 4, 4))
    assert_all_jacobians_are_right(model, inputs)


TRANSPOSED = {
    "plain": lambda: nn.ConvTranspose2d(3, 2, 3),
    "strided": lambda: nn.ConvTranspose2d(3, 4, (3, 2), stride=(2, 3), padding=1, output_padding=1),
    "groups": lambda: nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3, bias=False),
    "dilated": lambda: nn.ConvTranspose2d(3, 2, 2, dilation=(2, 1), padding=(1, 0)),
    "cut": lambda: nn.ConvTranspose2d(3, 2, 2, stride=2, padding=2),
    "ends": lambda: nn.ConvTranspose2d(3, 2, 1, stride=3, output_padding=2),
}


def upsampler(layer: nn.Module) -> nn.Module:
    channels = layer.out_channels
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), convolution_before(layer, channels))


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions_have_pairs(name: str) -> None:
    model, inputs = made(lambda: upsampler(TRANSPOSED[name]()), (2, 4, 5))
    found = assert_all_jacobians_are_right(model, inputs)
    assert list(found.layers) == ["0", "2.0", "2.4"]
    layer = found.layers["2.0"]
    assert layer.exact_block
    dense = dense_gauss_newton(model, inputs, "cross_entropy", [layer.weight_name])
    generator = torch.Generator().manual_seed(1)
    for k in (1, 40):
        probes = torch.randn(k, *layer.weight_shape, generator=generator, dtype=torch.float64)
        product = layer.gauss_newton_product(probes).flatten(1)
        torch.testing.assert_close(product, probes.flatten(1) @ dense, rtol=1e-10, atol=1e-12)
    rows = layer.rows()
    torch.testing.assert_close(rows.T @ rows / len(inputs), dense, rtol=1e-10, atol=1e-12)
    assert float(layer.spectrum().eigenvalues.sum()) == pytest.approx(float(dense.trace()))
    factors = ekfac(found)["2.0"]
    names = list(factors.parameter_shapes)
    block = dense_gauss_newton(model, inputs, "cross_entropy", names)
    assert factors.trace() == pytest.approx(float(block.trace()))
    parts = {key: dict(model.named_parameters())[key].detach() for key in names}
    for key, part in factors.split(factors.join(parts)).items():
        torch.testing.assert_close(part, parts[key], rtol=0.0, atol=0.0)


def test_a_transposed_convolution_may_be_told_its_output_size() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 3, 3, stride=3)
            self.head = nn.Linear(3, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.up(inputs, output_size=[inputs.shape[-1] * 3 + 1])
            return self.head(hidden.square().mean(2))

    model, inputs = made(Sized, (2, 4))
    assert list(assert_all_jacobians_are_right(model, inputs).layers) == ["up", "head"]


def test_measures_of_a_transposed_convolution_equal_those_of_the_dense_block() -> None:
    model, inputs = made(lambda: upsampler(TRANSPOSED["groups"]()), (2, 4, 5))
    targets = torch.tensor([0, 1, 2, 0, 1])
    weight = model[2][0].weight.detach()
    hessian = dense_hessian(model, inputs, targets, parameters=["2.0.weight"])
    jacobian = dense_jacobian(model, inputs, ["2.0.weight"])
    (trace,) = layer_gauss_newton_traces(model, (inputs, targets), ["2.0"]).values()
    assert float(trace) == pytest.approx(float(jacobian.square().sum()) / len(inputs))
    # A row of W for each output channel; those of different groups count as orthogonal.
    kernels = weight.reshape(3, 1, 2, -1)
    kappa = 0.0
    blocks = hessian.reshape(3, 1, 2, 9, 3, 1, 2, 9)
    for g in range(3):
        inner = torch.einsum("iok,ipk->op", kernels[g], kernels[g])
        kappa += float(torch.einsum("op,iokipk->", inner, blocks[g, :, :, :, g]))
    (flatness,) = relative_flatness(model, (inputs, targets), layers=["2.0"]).values()
    assert float(flatness) == pytest.approx(kappa)
    adaptive = adaptive_sharpness(model, (inputs, targets), parameters=["2.0.weight"])
    diagonal = float((weight.flatten().square() * hessian.diagonal()).sum())
    assert float(adaptive) == pytest.approx(diagonal)


class Conv1D(nn.Module):
    """Transformers' linear layer, whose weight is stored inputs × outputs."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        product = torch.addmm(self.bias, inputs.view(-1, inputs.shape[-1]), self.weight)
        return product.view(*inputs.shape[:-1], self.nf)


def test_the_linear_layer_of_transformers_has_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        return nn.Sequential(Conv1D(5, 4), nn.GELU(), nn.Flatten(), Conv1D(3, 15))

    model, inputs = made(build, (3, 4))
    assert list(assert_all_jacobians_are_right(model, inputs).layers) == []
    library = types.ModuleType("transformers.pytorch_utils")
    library.Conv1D = Conv1D  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", library)
    found = assert_all_jacobians_are_right(model, inputs)
    assert list(found.layers) == ["0", "3"]
    targets = torch.tensor([0, 1, 2, 0, 1])
    hessian = dense_hessian(model, inputs, targets, parameters=["3.weight"])
    weight = model[3].weight.detach()
    kappa = torch.einsum("io,ip,koKp->kK", weight, weight, hessian.reshape(15, 3, 15, 3)).trace()
    (flatness,) = relative_flatness(model, (inputs, targets)).values()
    assert float(flatness) == pytest.approx(float(kappa))
    norm = operator_norm(model[3], (15,))
    assert float(norm) == pytest.approx(float(torch.linalg.matrix_norm(weight, ord=2)))


@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (2, False), (1, True), (2, True)])
def test_a_layout_puts_the_matrices_back(groups: int, transposed: bool) -> None:
    layout = WeightLayout(torch.Size((4, 6, 3)), groups, transposed)
    weight = torch.arange(2 * 72.0).reshape(2, 4, 6, 3)
    matrices = layout.matrices(weight)
    assert matrices.shape == (2, *layout.matrix_shape)
    torch.testing.assert_close(layout.weight(matrices), weight, rtol=0.0, atol=0.0)


def test_modules_without_a_known_type_have_none() -> None:
    for module in (nn.Embedding(3, 4), nn.LSTM(3, 4), nn.Bilinear(2, 3, 4), nn.ReLU()):
        assert layer_type(module) is None
    with pytest.raises(TypeError, match="module is a Masked with a forward pass"):
        operator_norm(Masked(6, 6), (6,))


# --- layers that see the samples in another way -------------------------------------------------


class TimeFirst(nn.Module):
    """A head that reads (T, n, d), with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.embed(inputs.transpose(0, 1)))
        return self.head(hidden.tanh().mean(0))


class Reshaped(TimeFirst):
    """Positions in the samples' axis."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.embed(inputs.flatten(0, 1)))
        return self.head(hidden.tanh().unflatten(0, inputs.shape[:2]).mean(1))


class Sorted(TimeFirst):
    """Samples in order of some number, and back."""

    def forward(self, inputs: Tensor) -> Tensor:
        order = inputs[:, 0, 0].argsort()
        hidden = self.norm(self.embed(inputs[order]))
        return self.head(hidden.tanh().mean(1)[order.argsort()])


class Reversed(TimeFirst):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(inputs.flip(0))).tanh().mean(1).flip(0))


class Routed(TimeFirst):
    """Some samples only, as an expert sees them."""

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = inputs[:, 0, 0] > 0
        hidden = torch.zeros(*inputs.shape[:2], 4, dtype=inputs.dtype)
        hidden[chosen] = self.norm(self.embed(inputs[chosen]))
        return self.head(hidden.tanh().mean(1))


@pytest.mark.parametrize("kind", [TimeFirst, Reshaped, Sorted, Reversed, Routed])
@pytest.mark.parametrize("positions", [4, 5, 2])
def test_a_layer_that_does_not_see_the_samples_in_order_takes_the_general_way(
    kind: type[nn.Module], positions: int
) -> None:
    # With as many positions as samples, no shape tells one axis from the other.
    model, inputs = made(kind, (positions, 3))
    found = assert_all_jacobians_are_right(model, inputs)
    assert list(found.layers) == ["head"]
    assert "sees" in found.left_out["embed"]
    with pytest.raises(ValueError, match="layers: embed cannot be linearized by itself"):
        linearize(model, inputs, layers=["embed"])


class FixedNumber(nn.Module):
    """Takes five samples, and reverses them inside or not."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.reshape(5, 3)
        hidden = self.embed(inputs.flip(0) if self.turned else inputs).tanh()
        return self.head(hidden.flip(0) if self.turned else hidden)


@pytest.mark.parametrize("turned", [False, True])
def test_the_order_of_samples_is_seen_in_the_gradients_where_none_can_be_left_out(
    turned: bool,
) -> None:
    # The rest of a linearization needs fewer samples for now, so this looks at the check alone.
    model, inputs = made(lambda: FixedNumber(turned), (3,))
    reads: list[Tensor] = []
    model.embed.register_forward_hook(lambda _, arguments, output: reads.append(output))
    outputs = model(inputs)
    jacobian = torch.empty(5, 3, 4, dtype=torch.float64)
    wanted = [OutputRows("embed", reads[0], jacobian)]
    backward_for_each_output(outputs, wanted, retain_graph=True)
    assert rows_out_of_order(outputs, wanted) == [turned]


def test_a_weight_shared_between_layers_of_other_types_takes_the_general_way() -> None:
    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv1d(2, 3, 2, stride=2)
            self.up = nn.ConvTranspose1d(3, 2, 2, stride=2)
            self.up.weight = self.down.weight

        def forward(self, inputs: Tensor) -> Tensor:
            return self.up(self.down(inputs).tanh()).flatten(1)

    model, inputs = made(Coder, (2, 4))
    found = assert_all_jacobians_are_right(model, inputs)
    assert not found.layers
    assert "different types share" in found.left_out["down"]


# --- gradients that do not arrive ---------------------------------------------------------------


class Frozen(nn.Module):
    """A layer under no_grad, one that is not called, and one whose output nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.head = nn.Linear(6, 4), nn.Linear(4, 3)
        self.idle, self.dead = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        self.dead(inputs)
        with torch.no_grad():
            hidden = self.cut(inputs).tanh()
        return self.head(hidden)


def test_a_layer_that_no_gradient_reaches_does_not_give_zeros() -> None:
    model, inputs = made(Frozen, (6,))
    found = linearize(model, inputs)
    assert list(found.layers) == ["head", "dead"] or list(found.layers) == ["dead", "head"]
    assert found.left_out == {
        "cut": "no gradient reaches its weight",
        "idle": "the forward pass does not call it",
    }
    assert float(found.layers["dead"].jacobian().norm()) == 0.0
    for arguments in ({"layers": ["cut"]}, {"all_parameters": True}, {"input_jacobians": True}):
        with pytest.raises(CutGraphError, match="no gradient reaches"):
            linearize(model, inputs, **arguments)
    with pytest.raises(ValueError, match=r"idle cannot .* does not call it"):
        linearize(model, inputs, layers=["idle", "head"])


def test_inputs_that_no_gradient_reaches_are_refused() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(inputs.detach().square())

    model, inputs = made(Detached, (6,))
    assert list(linearize(model, inputs, all_parameters=True).layers) == ["head"]
    with pytest.raises(CutGraphError, match="depend on the inputs, but no gradient"):
        linearize(model, inputs, input_jacobians=True)
