"""Weights in half precision, complex weights, and parameters without entries."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from problems import EVERY, STEP, Calls, batch, classification
from torch import Tensor, nn

from paperkit.optim import ASAM, RSAM, SAM, SASAM, SASGD, EigenSAM, GradientRegularization

# -- half precision --------------------------------------------------------------------------------


def taken(dtype: torch.dtype, rho: float, value: float = 1.0) -> tuple[Tensor, float, list[str]]:
    """Return the perturbation of weights of one size, its logged length, and the warnings."""
    w = nn.Parameter(torch.full((64,), value, dtype=dtype))
    optimizer = SAM([w], rho=rho, lr=0.0, log=True)
    closure = Calls(optimizer, lambda: w.float().sum())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        optimizer.step(closure)
    before, after = (weights[0].double() for weights in closure.weights)
    assert optimizer.log is not None
    said = [str(w.message) for w in warned if "format rounds" in str(w.message)]
    return after - before, optimizer.log[0].perturbation_norm, said


def test_a_perturbation_below_the_weights_format_is_logged_as_taken_and_warned_of() -> None:
    # Each entry is asked for 0.01 / 8 = 0.00125; numbers above 1 are 2⁻⁷ apart in bfloat16.
    moved, logged, said = taken(torch.bfloat16, 0.01)
    assert float(moved.norm()) == logged == 0.0
    assert len(said) == 1 and "100%" in said[0] and "float32" in said[0]


def test_a_perturbation_that_half_precision_rounds_is_logged_as_taken() -> None:
    # The format rounds 0.08 / 8 = 0.01 to 2⁻⁷ = 0.0078125, which is off by 22 %.
    moved, logged, said = taken(torch.bfloat16, 0.08)
    assert logged == float(moved.norm()) == 8 * 2.0**-7
    assert len(said) == 1 and "22%" in said[0]


@pytest.mark.parametrize(("dtype", "rho"), [(torch.bfloat16, 1.0), (torch.float32, 0.01)])
def test_a_perturbation_that_the_format_holds_is_not_warned_of(dtype, rho) -> None:
    _, logged, said = taken(dtype, rho)
    assert not said
    assert logged == pytest.approx(rho, rel=1e-6)


def test_single_precision_that_loses_a_tiny_perturbation_is_warned_of() -> None:
    # 1e-9 beside 1, in steps of 1e-7
    assert len(taken(torch.float32, 1e-9)[2]) == 1


# -- complex numbers -------------------------------------------------------------------------------

START = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128)
KINDS: dict[str, Any] = {
    "SAM": SAM,
    "SAM of the maximum norm": lambda w, **o: SAM(w, p=math.inf, **o),
    "ASAM": ASAM,
    "EigenSAM": EigenSAM,
    "RSAM": RSAM,
    "RSAM exact": lambda w, **o: RSAM(w, mode="exact", **o),
    "GR double": GradientRegularization,
    "GR difference": lambda w, **o: GradientRegularization(w, method="finite_difference", **o),
    "SASAM": SASAM,
    "SASAM full batch": lambda w, **o: SASAM(w, full_batch=True, **o),
    "SASGD": SASGD,
}


@pytest.mark.parametrize("name", list(KINDS))
def test_a_complex_parameter_steps_as_a_pair_of_reals(name) -> None:
    # A loss that is no function of |w| alone, so that the parts do not move alike.
    scales = torch.tensor([[1.0, 2.0], [3.0, 0.5]], dtype=torch.float64)

    def loss(pairs: Tensor) -> Tensor:
        return 0.5 * (scales * pairs.square()).sum() + 0.1 * pairs.pow(3).sum()

    ends = []
    for is_complex in (False, True):
        w = nn.Parameter(START.clone() if is_complex else torch.view_as_real(START).clone())
        options = {} if name.startswith("SAS") else {"lr": 0.1, "momentum": 0.9}
        optimizer = KINDS[name]([("weight", w)], **options)
        for _ in range(3):
            optimizer.step(
                Calls(optimizer, lambda w=w: loss(torch.view_as_real(w) if w.is_complex() else w))
            )
        found = w.detach()
        ends.append(torch.view_as_real(found) if is_complex else found)
    torch.testing.assert_close(ends[1], ends[0], rtol=0.0, atol=1e-14)
    assert not torch.allclose(ends[0], torch.view_as_real(START))


def test_the_step_of_complex_weights_is_the_one_worked_by_hand() -> None:
    # L = ½|w|², so g = w and w⁺ = w (1 - lr (1 + rho / |w|)), |w|² = 15.
    w = nn.Parameter(START.clone())
    optimizer = SAM([w], rho=0.5, lr=0.1, max_norm=100.0, log=True)
    optimizer.step(Calls(optimizer, lambda: 0.5 * w.abs().square().sum()))
    expected = START * (1 - 0.1 * (1 + 0.5 / math.sqrt(15)))
    torch.testing.assert_close(w.detach(), expected, rtol=0.0, atol=1e-15)
    assert optimizer.log is not None
    assert optimizer.log[0].gradient_norm == pytest.approx(math.sqrt(15), rel=1e-15)


# -- no entries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(EVERY))
def test_a_parameter_without_entries_changes_nothing(name) -> None:
    ends = []
    for with_empty in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        optimizer = EVERY[name](model, **STEP[name])
        empty = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))
        if with_empty:
            optimizer.add_param_group({"params": [empty]})
        plain = classification(model, *batch())
        for _ in range(3):
            loss = plain if not with_empty else (lambda: plain() + empty.sum())  # noqa: B023
            optimizer.step(Calls(optimizer, loss))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)
