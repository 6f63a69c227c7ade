"""The Rényi sharpness on many samples against exact spectra of the same networks."""

import warnings

import pytest
import torch
from networks import CASES
from torch import nn

from paperkit import models
from paperkit.estimators import LeftOutWarning, deflated_renyi_sharpness, renyi_sharpness

ORDERS = (0.25, 0.5, 1.0, 1.5, 2.5)


def _data(n=60, shape=(1, 8, 8), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.arange(n) % 10


def _network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_order_of_every_layer_lies_within_what_is_stated(dtype) -> None:
    model, data = _network(dtype), _data(dtype=dtype)
    exact = renyi_sharpness(_network(), _data(), ORDERS, method="exact")
    found = deflated_renyi_sharpness(model, data, ORDERS, rank=11)
    assert list(found) == list(exact)
    methods = {name: by_order[0.5].method for name, by_order in found.items()}
    # The first layer's 54 columns are no more than five times the rank.
    assert methods == {"0": "gram", "2": "deflated", "6": "deflated"}
    for name, by_order in found.items():
        for order, result in by_order.items():
            value = float(exact[name][order])
            if result.method == "gram":
                assert float(result) == pytest.approx(value, abs=2e-3)
                continue
            low, high = result.bracket
            room = 5 * result.standard_error + 1e-3
            assert low - room <= value <= high + room, (name, order)


def test_layers_are_taken_in_groups_that_fit_and_returned_in_their_order() -> None:
    model, data = _network(), _data()
    # The rows of layer 2, 60 · 9 rows of 432 numbers, are 1.87 MB, those of layer 6 are 1.38 MB.
    whole = deflated_renyi_sharpness(model, data, 0.5, rank=11)
    parts = deflated_renyi_sharpness(model, data, 0.5, rank=11, memory_budget=4_000_000)
    assert list(whole) == list(parts) == ["0", "2", "6"]
    for name in whole:
        assert float(whole[name]) == pytest.approx(float(parts[name]), abs=1e-6)


def test_a_layer_whose_rows_do_not_fit_is_left_out_with_the_budget_it_needs() -> None:
    model, data = _network(), _data()
    with pytest.warns(LeftOutWarning, match="raise it to 3732480"):
        found = deflated_renyi_sharpness(model, data, 0.5, rank=11, memory_budget=3_000_000)
    assert list(found) == ["0", "6"]
    with pytest.raises(ValueError, match=r"^layers: 2 cannot be measured: its rows take"):
        deflated_renyi_sharpness(model, data, 0.5, layers=["2"], memory_budget=3_000_000)


def test_a_block_that_is_no_gauss_newton_block_is_left_out() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.GELU(), nn.Linear(7, 10)).double()
    with pytest.warns(LeftOutWarning, match=r"1 \(its Hessian block is no Gauss–Newton block"):
        found = deflated_renyi_sharpness(model, _data(), 0.5, rank=5)
    assert list(found) == ["3"]


def test_the_model_is_left_as_it_was() -> None:
    model = models.build("resnet8", in_channels=1, num_classes=10).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    deflated_renyi_sharpness(model, _data(12, (1, 12, 12), torch.float32), 0.5, rank=4)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_networks_of_each_kind(case) -> None:
    model, inputs, targets = case.make(n=14)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)
        found = deflated_renyi_sharpness(model, (inputs, targets), ORDERS, rank=1, probes=16)
    exact = renyi_sharpness(model, (inputs, targets), ORDERS, method="exact")
    assert set(found.left_out) == case.inexact
    assert set(found) == set(exact) - case.inexact
    for name, by_order in found.items():
        for order, result in by_order.items():
            assert result.method == "deflated"
            low, high = result.bracket
            room = 5 * result.standard_error + 1e-6
            assert low - room <= float(exact[name][order]) <= high + room, (name, order)


def test_a_tied_weight_is_one_block_under_one_name() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 10)).double()
    both = nn.ModuleDict({"net": model, "again": model[2]})
    data = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 10

    def forward(module, inputs):
        return module["net"](inputs)

    found = deflated_renyi_sharpness(both, data, 0.5, rank=1, forward=forward)
    exact = renyi_sharpness(both, data, 0.5, method="exact", forward=forward)
    assert list(found) == list(exact)


def test_a_zero_block_is_left_out_in_words() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 10)).double()
    nn.init.constant_(model[0].bias, -100.0)  # no unit is ever active
    data = torch.rand(20, 3, dtype=torch.float64), torch.arange(20) % 10
    with pytest.raises(
        ValueError, match=r"^layers: [02] cannot be measured: its Hessian block is zero"
    ):
        deflated_renyi_sharpness(model, data, 0.5, rank=1)


def test_a_weight_that_is_no_layers_is_named_with_the_reason() -> None:
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
            self.head = nn.Linear(5, 10).double()

        def forward(self, inputs):
            return self.head(torch.relu(inputs @ self.matrix.T))

    data = torch.rand(20, 4, dtype=torch.float64), torch.arange(20) % 10
    with pytest.warns(LeftOutWarning, match=r"matrix \(it has no inputs and output Jacobians"):
        found = deflated_renyi_sharpness(Bilinear(), data, 0.5, rank=1)
    assert list(found) == ["head"]
    with pytest.raises(ValueError, match=r"^layers: matrix cannot be measured"):
        deflated_renyi_sharpness(Bilinear(), data, 0.5, layers=["matrix"], rank=1)
