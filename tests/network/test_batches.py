"""What data may be, and that they are the same in every pass."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from paperkit.curvature import HessianOperator
from paperkit.estimators import hessian_trace, mean_loss
from paperkit.network import Batches, DataChangedError

N, FEATURES, CLASSES = 11, 4, 3


def _data(dtype: torch.dtype = torch.float64, n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, CLASSES, (n,), generator=generator)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()


class Changing(Dataset):
    """A data set whose items are another at each reading, by some change."""

    def __init__(self, change, data: tuple[Tensor, Tensor]) -> None:
        self.change, self.data, self.generator = change, data, torch.Generator().manual_seed(1)

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.change(self.data[0][index], self.data[1][index], self.generator)


def _flipped(x, y, generator):
    return (x.flip(0) if float(torch.rand(1, generator=generator)) < 0.5 else x), y


AUGMENTING = {
    "noise": lambda x, y, g: (x + 1e-3 * torch.randn(x.shape, generator=g, dtype=x.dtype), y),
    "flips": _flipped,
    "label noise": lambda x, y, g: (x, torch.randint(0, CLASSES, (), generator=g)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", AUGMENTING)
def test_an_augmenting_loader_is_refused(how: str, dtype: torch.dtype) -> None:
    loader = DataLoader(Changing(AUGMENTING[how], _data(dtype, 64)), batch_size=16)
    data = Batches(loader)
    with pytest.raises(DataChangedError, match="list"):
        for _ in range(2):
            list(data)


class Rearranged:
    """The same numbers in every pass, but another time together."""

    def __init__(self, rearrange) -> None:
        self.rearrange, self.passes = rearrange, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        x, y = _data()
        yield self.rearrange(x, y) if self.passes > 1 else (x, y)


@pytest.mark.parametrize(
    "rearrange",
    [
        lambda x, y: (x, y.roll(1)),
        lambda x, y: (torch.cat([x[:, :2], x[:, 2:].roll(1, 0)], dim=1), y),
        lambda x, y: (x.roll(1, 1), y),
        lambda x, y: (x[:-1], y[:-1]),
    ],
    ids=["labels of other samples", "parts of other samples", "shifted", "one fewer"],
)
def test_samples_put_together_otherwise_are_other_samples(rearrange) -> None:
    data = Batches(Rearranged(rearrange))
    list(data)
    with pytest.raises(DataChangedError):
        list(data)


def test_a_measure_refuses_data_that_change_before_it_has_averaged_them() -> None:
    x, y = _data(n=40)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, drop_last=True)
    with pytest.raises(DataChangedError, match="shuffles"):
        operator = HessianOperator(_model(), loader)
        for _ in range(3):
            operator(torch.ones(operator.dimension, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_a_loader_that_only_shuffles_is_never_refused(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # The entries differ by nine orders of magnitude, so that sums lose as many digits as they can.
    x = torch.randn(500, 3, 5, generator=generator) * torch.logspace(-6, 3, 500)[:, None, None]
    x = (x.abs() * 10).clamp(max=255).to(dtype) if dtype == torch.uint8 else x.to(dtype)
    y = torch.randint(0, CLASSES, (500,), generator=generator)
    loader = DataLoader(TensorDataset(x, y), batch_size=37, shuffle=True, generator=generator)
    data = Batches(loader)
    for _ in range(20):
        assert sum(len(part) for part, _ in data) == 500


class Items(Dataset):
    def __init__(self, key: str = "labels") -> None:
        self.key = key

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = _data()
        return {"left": x[index, :2], "right": x[index, 2:], self.key: y[index]}


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = _model()

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(torch.cat([left, right], dim=1))}


def _expected_loss() -> float:
    x, y = _data()
    return float(functional.cross_entropy(_model()(x), y).detach())


@pytest.mark.parametrize("batch_size", [1, 4, N, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_mean_over_samples(batch_size: int, workers: int) -> None:
    loader = DataLoader(TensorDataset(*_data()), batch_size=batch_size, num_workers=workers)
    assert float(mean_loss(_model(), loader)) == pytest.approx(_expected_loss(), rel=1e-12)


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target"])
def test_a_data_set_of_dicts_fits_a_model_of_several_inputs(key: str) -> None:
    loader = DataLoader(Items(key), batch_size=3)
    assert float(mean_loss(TwoParts(), loader)) == pytest.approx(_expected_loss(), rel=1e-12)
    whole = hessian_trace(_model(), _data())
    assert float(hessian_trace(TwoParts(), loader)) == pytest.approx(float(whole), rel=1e-10)


@pytest.mark.parametrize("kind", [tuple, list])
def test_several_inputs_may_be_a_tuple_or_a_list(kind: type) -> None:
    x, y = _data()
    data = (kind([x[:, :2], x[:, 2:]]), y)
    assert float(mean_loss(TwoParts(), data)) == pytest.approx(_expected_loss(), rel=1e-12)
    assert float(mean_loss(TwoParts(), [data, data])) == pytest.approx(_expected_loss(), rel=1e-12)


_X, _Y = _data()
UNUSABLE = {
    "meta": ((_X.to("meta"), _Y), "inputs is on the meta device"),
    "meta targets": ((_X, _Y.to("meta")), "targets is on the meta device"),
    "sparse": ((_X.to_sparse(), _Y), "inputs is a nested or sparse tensor"),
    "complex": ((_X.to(torch.complex128), _Y), "inputs is complex"),
    "empty": ((_X[:0], _Y[:0]), "empty"),
    "no batch": ([], "data is empty"),
    "unequal": ((_X, _Y[:3]), "3 entries for 11 inputs"),
    "arrays": ((_X.numpy(), _Y.numpy()), "tensors both"),
    "generator": (((_X, _Y) for _ in range(1)), "can be read only once"),
    "a string": ("data", "data is a str"),
    "edges beside nodes": (((_X, torch.zeros(2, 30)), _Y), "goes into forward="),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_data_that_cannot_be_used_get_one_sentence(name: str) -> None:
    data, sentence = UNUSABLE[name]
    with pytest.raises((ValueError, TypeError), match=sentence):
        mean_loss(_model(), data)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_may_be_integers_of_any_width(dtype: torch.dtype) -> None:
    x, y = _data()
    expected = float(hessian_trace(_model(), (x, y)))
    assert float(hessian_trace(_model(), (x, y.to(dtype)))) == pytest.approx(expected, rel=1e-12)
    assert float(mean_loss(_model(), (x, y.to(dtype)))) == pytest.approx(_expected_loss())


def test_the_comparison_of_passes_costs_little() -> None:
    """It reads the data a few times; a network of 20 layers does a thousand operations an entry."""
    x = torch.randn(256, 3, 32, 32)
    y = torch.zeros(256, dtype=torch.int64)
    network = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1) for i in range(3)))
    data = Batches([(x, y)])
    list(data)  # makes the weights of the sums once

    def seconds(function) -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    with torch.no_grad():
        forward = min(seconds(lambda: network(x)) for _ in range(3))
    compare = min(seconds(lambda: list(data)) for _ in range(5))
    assert compare < 0.1 * forward
