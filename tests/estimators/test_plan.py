"""What a measure costs is known, and said, before it starts."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from paperkit.estimators import CostWarning, measure, renyi_sharpness
from paperkit.estimators.plan import Gradient
from paperkit.estimators.renyi_plan import FEWEST, Effort, Settings
from paperkit.network import get_loss

LOSS = get_loss("cross_entropy")


def wide(width: int = 48) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3))
    return model, (torch.randn(4, width), torch.tensor([0, 1, 2, 0]))


def test_operations_of_a_gradient_are_three_forward_passes_of_all_samples() -> None:
    model, data = wide()
    gradient = Gradient.of(model, data, LOSS)
    assert gradient.operations == 3 * 4 * 2 * (48 * 48 + 48 * 3)
    assert (gradient.num_samples, gradient.num_outputs) == (4, 3)
    halves = [(data[0][:1], data[1][:1]), (data[0][1:], data[1][1:])]
    assert Gradient.of(model, halves, LOSS).operations == gradient.operations


def test_products_and_a_time_budget_limit_what_is_spent() -> None:
    model, data = wide()
    gradient = Gradient.of(model, data, LOSS)
    assert gradient.allowed(20.0, products=30) == 60.0
    assert gradient.allowed(20.0, time_budget=2.0) == 2.0 / gradient.seconds
    assert gradient.allowed(20.0) > 20.0  # so small a network is measured exactly
    with pytest.raises(ValueError, match="products=0"):
        gradient.allowed(20.0, products=0)
    with pytest.raises(ValueError, match="time_budget=0"):
        gradient.allowed(20.0, time_budget=0)


def test_many_products_are_announced_before_they_start() -> None:
    model, _ = wide()
    data = torch.randn(80, 48), torch.randint(3, (80,))
    with pytest.warns(CostWarning, match=r"planned cost about 4,608 gradients"):
        found = renyi_sharpness(model, data, 0.5, layers=["0"], method="exact", max_dense=4096)
    assert found["0"].method == "dense"


def test_many_gradients_of_next_to_nothing_are_not_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The clock is set, because a busy machine takes milliseconds for what takes none.
    monkeypatch.setattr(Gradient, "_timed", lambda *_: 1e-5)
    model, data = wide()  # the same 4,608 gradients
    with warnings.catch_warnings():
        warnings.simplefilter("error", CostWarning)
        found = renyi_sharpness(model, data, 0.5, layers=["0"], max_dense=4096)
    assert found["0"].method == "dense"


def test_many_gradients_are_announced_where_each_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Gradient, "_timed", lambda *_: 2e-3)
    model, data = wide()
    with pytest.warns(CostWarning, match=r"planned cost about 4,608 gradients.*, 9\.2 s"):
        found = renyi_sharpness(model, data, 0.5, layers=["0"], max_dense=4096)
    assert found["0"].method == "dense"


def test_few_products_are_kept_to_and_not_announced() -> None:
    model, data = wide()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CostWarning)
        found = renyi_sharpness(model, data, 0.5, layers=["0"], products=160)["0"]
    assert found.method == "lanczos" and found.bracket is not None
    assert found.quadrature.products <= 160


@pytest.mark.parametrize("product", [0.1, 0.667, 1.0, 2.0, 5.3])
def test_an_effort_is_within_its_share_wherever_the_fewest_products_are(product: float) -> None:
    settings = Settings((0.5,), "abs", "auto", None, None, 100, 0, 4096, 2**30)
    for count in range(FEWEST**2, 40_000, 79):
        share = count * product
        effort = Effort.by_quadrature(share, product, settings)
        assert effort.gradients <= share * (1 + 1e-12)
        assert effort.probes >= FEWEST and effort.max_steps >= FEWEST


@pytest.mark.filterwarnings("ignore::paperkit.estimators.CostWarning")
@pytest.mark.parametrize("width", [16, 32, 64, 100])
def test_a_default_report_of_a_small_network_lacks_nothing(width: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)).double()
    data = torch.randn(100, 64, dtype=torch.float64), torch.randint(10, (100,))
    report = measure(model, data)
    assert not report.missing
    assert all(one.value == one.value for one in report.measurements())
