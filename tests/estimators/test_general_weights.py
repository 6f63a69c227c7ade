"""Measures of layers on weights that are no plain layer's, and on networks with an obstacle."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from paperkit.curvature import dense_hessian, dense_jacobian
from paperkit.estimators import (
    LeftOutWarning,
    adaptive_sharpness,
    layer_gauss_newton_traces,
    layer_spectra,
    measure,
    network_maximum_local_sensitivity,
    relative_flatness,
    renyi_sharpness,
)
from paperkit.estimators.gauss_newton_trace import gauss_newton_trace
from paperkit.network.problem import CutGraphError


class Tokens(nn.Module):
    """An embedding, a recurrent layer, attention, a table of positions and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.positions = nn.Parameter(torch.randn(1, 3, 4))
        self.cell = nn.LSTM(4, 4, batch_first=True)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.cell(self.embed(tokens) + self.positions)
        hidden = self.attend(hidden, hidden, hidden, need_weights=False)[0]
        return self.head(hidden.mean(1))


class TiedAutoencoder(nn.Module):
    """A weight used in its layer and outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.encoder = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.encoder(self.first(inputs).tanh()).tanh()
        return functional.linear(hidden, self.encoder.weight.T)[:, :3]


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.embed(inputs.transpose(0, 1)).tanh().mean(0))


class Masked(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.weight.tril(), self.bias)


def masked() -> nn.Module:
    return nn.Sequential(Masked(5, 5), nn.Tanh(), Masked(5, 3))


def tokens() -> Tensor:
    return torch.randint(0, 7, (5, 3))


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(5, *shape, dtype=torch.float64)


# Each with its weights: name → parameter, those of plain layers first.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, str]]] = {
    "tokens": (
        Tokens,
        tokens,
        {
            "head": "head.weight",
            "embed": "embed.weight",
            "attend.out_proj": "attend.out_proj.weight",
            "positions": "positions",
            "cell.weight_ih_l0": "cell.weight_ih_l0",
            "cell.weight_hh_l0": "cell.weight_hh_l0",
            "attend.in_proj_weight": "attend.in_proj_weight",
        },
    ),
    "tied": (
        TiedAutoencoder,
        numbers(5),
        {"first": "first.weight", "encoder": "encoder.weight"},
    ),
    "time first": (
        TimeFirst,
        numbers(5, 3),
        {"head": "head.weight", "embed": "embed.weight"},
    ),
    "masked": (masked, numbers(5), {"0": "0.weight", "2": "2.weight"}),
}


def made(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor], dict[str, str]]:
    build, draw, weights = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double(), (draw(), torch.tensor([0, 1, 2, 0, 1])), weights


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_the_spectrum_of_its_dense_block(name: str) -> None:
    model, data, weights = made(name)
    found = layer_spectra(model, data)
    assert set(found) == set(weights) and not found.left_out
    total = sum(parameter.numel() for parameter in model.parameters())
    sizes = {n: parameter.numel() for n, parameter in model.named_parameters()}
    assert found.coverage == pytest.approx(sum(sizes[p] for p in weights.values()) / total)
    for layer, parameter in weights.items():
        expected = torch.linalg.eigvalsh(dense_hessian(model, *data, parameters=[parameter]))
        eigenvalues = torch.zeros_like(expected)
        own = found[layer].eigenvalues
        eigenvalues[: len(own)] = own
        torch.testing.assert_close(
            eigenvalues.sort().values, expected.sort().values, rtol=1e-8, atol=1e-12
        )
        (alone,) = layer_spectra(model, data, layers=[layer]).values()
        torch.testing.assert_close(alone.eigenvalues, own, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_the_trace_of_its_jacobian(name: str) -> None:
    model, data, weights = made(name)
    found = layer_gauss_newton_traces(model, data)
    assert set(found) == set(weights)
    for layer, parameter in weights.items():
        expected = float(dense_jacobian(model, data[0], [parameter]).square().sum()) / 5
        assert float(found[layer]) == pytest.approx(expected, rel=1e-10)
        assert float(gauss_newton_trace(model, data, [layer])) == pytest.approx(expected)
    both = gauss_newton_trace(model, data, list(weights))
    assert float(both) == pytest.approx(sum(float(one) for one in found.values()))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_with_rows_has_its_relative_flatness(name: str) -> None:
    model, data, weights = made(name)
    for layer, parameter in weights.items():
        if layer == "positions":
            with pytest.raises(ValueError, match=r"positions cannot be measured: .* row for each"):
                relative_flatness(model, data, layers=[layer])
            continue
        weight = dict(model.named_parameters())[parameter].detach()
        hessian = dense_hessian(model, *data, parameters=[parameter])
        hessian = hessian.reshape(*weight.shape, *weight.shape)
        # An embedding has a column for each output.
        pattern = "ji,jk,xixk->" if name == "tokens" and layer == "embed" else "ij,kj,ixkx->"
        expected = float(torch.einsum(pattern, weight, weight, hessian))
        (found,) = relative_flatness(model, data, layers=[layer]).values()
        assert float(found) == pytest.approx(expected, rel=1e-8)


def test_the_last_layer_is_the_one_that_is_called_last_also_if_it_is_no_plain_one() -> None:
    model, data, _ = made("masked")
    assert list(relative_flatness(model, data)) == ["2"]
    model, data, _ = made("tied")
    assert list(relative_flatness(model, data)) == ["encoder"]


def test_what_is_left_out_is_said_with_its_reason() -> None:
    model, data, _ = made("tokens")
    with pytest.warns(LeftOutWarning, match=r"layer_spectra leaves out embed .* too large .*%"):
        found = layer_spectra(model, data, max_dense=20)
    assert "embed" in found.left_out and "embed" not in found
    assert 0 < found.coverage < 0.5
    assert "embed" in repr(found)
    with pytest.raises(ValueError, match=r"embed cannot be measured: .* max_dense=20"):
        layer_spectra(model, data, layers=["embed", "head"], max_dense=20)
    with pytest.raises(ValueError, match=r"cannot be measured: .* max_dense=20"):
        layer_spectra(model, data, max_dense=20, strict=True)
    with pytest.warns(LeftOutWarning, match="embed"):
        partly = layer_spectra(model, data, layers=["embed", "head"], max_dense=20, strict=False)
    assert list(partly) == ["head"]


def test_names_are_those_of_modules_and_other_parameters() -> None:
    model, data, _ = made("tokens")
    with pytest.raises(ValueError, match=r"'embed\.weight' is the weight of 'embed'"):
        layer_spectra(model, data, layers=["embed.weight"])
    for unknown in ("cell", "head.bias", "nowhere"):
        with pytest.raises(ValueError, match=r"layers=\[.*\] not found"):
            layer_spectra(model, data, layers=[unknown])


def test_a_weight_under_two_names_is_measured_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 3)
            self.right.weight = self.left.weight

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head((self.left(inputs) + self.right(inputs.flip(1))).relu())

    torch.manual_seed(0)
    model, data = Twice().double(), (torch.randn(5, 5).double(), torch.tensor([0, 1, 2, 0, 1]))
    measures: list[Callable] = [layer_spectra, layer_gauss_newton_traces, relative_flatness]
    for function in measures[:2]:
        assert list(function(model, data)) == ["left", "head"]
    for function in measures:
        with pytest.raises(ValueError, match=r"right cannot .* shares the weight of layer left"):
            function(model, data, layers=["left", "right"])
    # Alone, the other name stands for all calls of the weight.
    block = dense_hessian(model, *data, parameters=["left.weight"])
    (alone,) = layer_spectra(model, data, layers=["right"]).values()
    assert float(alone.eigenvalues.sum()) == pytest.approx(float(block.trace()))


class FrozenBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            inputs = self.body(inputs).tanh()
        return self.head(inputs)


def test_a_weight_that_no_gradient_reaches_is_left_out_or_refused() -> None:
    torch.manual_seed(0)
    model = FrozenBackbone().double()
    data = (torch.randn(5, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]))
    for function in (layer_spectra, layer_gauss_newton_traces):
        with pytest.warns(LeftOutWarning, match=r"body .*no gradient reaches"):
            found = function(model, data)
        assert list(found) == ["head"]
        with pytest.raises(ValueError, match="no gradient reaches"):
            function(model, data, layers=["body"])
    with pytest.raises(CutGraphError):
        network_maximum_local_sensitivity(model, data)


class Gated(nn.Module):
    """A branch behind a gain of zero, as many start: the Hessian block of its weight is zero."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.gain = nn.Parameter(torch.zeros(1))
        self.activation = activation

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.activation(self.stem(inputs))
        return self.head(hidden + self.gain * self.activation(self.branch(hidden)))


def entropy(model: nn.Module, data: tuple[Tensor, Tensor], parameter: str) -> float:
    """H of order ½ of the normalised magnitudes."""
    values = torch.linalg.eigvalsh(dense_hessian(model, *data, parameters=[parameter])).abs()
    values = values[values > 1e-12 * values.max()]
    return 2.0 * float((values / values.sum()).sqrt().sum().log())


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
@pytest.mark.parametrize("method", ["auto", "lanczos"])
def test_a_zero_block_has_no_entropy_and_ends_nothing(
    activation: Callable[[Tensor], Tensor], method: str
) -> None:
    torch.manual_seed(0)
    model = Gated(activation).double()
    data = (torch.randn(5, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]))
    with pytest.warns(LeftOutWarning, match=r"leaves out branch \(the Hessian block is zero\)"):
        found = renyi_sharpness(model, data, 0.5, method=method)
    assert list(found) == ["stem", "branch", "head"]
    assert math.isnan(found["branch"].value)
    assert found["branch"].assumptions["reason"] == "the Hessian block is zero"
    assert found.left_out == {"branch": "the Hessian block is zero"}
    for layer in ("stem", "head"):
        one = found[layer]
        low, high = one.bracket or (one.value, one.value)
        room = 4.0 * (one.standard_error or 0.0) + 1e-8
        assert low - room <= -entropy(model, data, f"{layer}.weight") <= high + room
    with pytest.raises(ValueError, match=r"branch cannot be measured: the Hessian block is zero"):
        renyi_sharpness(model, data, strict=True)
    report = measure(model, data)
    assert math.isnan(report["renyi_sharpness"]["branch"][0.5].value)
    assert not math.isnan(report["renyi_sharpness"]["head"][0.5].value)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_its_entropy(name: str) -> None:
    model, data, weights = made(name)
    found = renyi_sharpness(model, data, 0.5)
    assert set(found) == set(weights) and not found.left_out
    for layer, parameter in weights.items():
        expected = entropy(model, data, parameter)
        assert float(found[layer]) == pytest.approx(-expected, abs=1e-6)
    # Where nothing may be spent, weights that nobody named are left out, the others estimated.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        least = renyi_sharpness(model, data, 0.5, products=2)
    assert set(least) == set(weights)
    others = set(least.left_out)
    named = next(iter(weights))
    assert named not in others or name == "masked"
    (one,) = renyi_sharpness(model, data, 0.5, layers=[named], products=2).values()
    assert not math.isnan(one.value)


def test_a_report_measures_and_names_every_weight() -> None:
    model, data, weights = made("tokens")
    report = measure(model, data)
    assert set(report["renyi_sharpness"]) == set(weights)
    assert set(report["layer_gauss_newton_traces"]) == set(weights)
    assert report.coverage is not None and report.coverage > 0.7 and not report.uncovered
    chosen = measure(model, data, ["layer_gauss_newton_traces"], layers=["embed", "head"])
    assert set(chosen["layer_gauss_newton_traces"]) <= {"embed", "head"}
    model, data, weights = made("tied")
    report = measure(model, data)
    assert list(report["relative_flatness"]) == ["encoder"]
    expected = float(adaptive_sharpness(model, data, parameters=list(weights.values())))
    one = report["adaptive_weight_sharpness"]
    assert abs(one.value - expected) <= 4.0 * one.standard_error
