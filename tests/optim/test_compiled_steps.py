"""Steps that are compiled: the weights come back, as in one that is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from problems import EVERY, STEP, Calls, batch, classification, network, quadratic
from torch import Tensor, nn

from paperkit.optim import SAM

NAMES = [name for name in EVERY if name != "GR double"]
BY_HAND = [name for name in NAMES if not name.startswith(("SASAM", "EigenSAM", "IGSAM"))]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def weights_after(name: str, take: Callable[..., None]) -> Tensor:
    torch.manual_seed(0)
    model = network()
    optimizer = EVERY[name](model, **STEP[name])
    closure = Calls(optimizer, classification(model, *batch()))
    for _ in range(3):
        take(optimizer, closure)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_step_is_the_step_to_the_bit(name) -> None:
    plain = weights_after(name, lambda optimizer, closure: optimizer.step(closure))
    compiled = weights_after(
        name,
        lambda optimizer, closure: torch.compile(optimizer.step, backend="eager")(closure),
    )
    assert torch.equal(plain, compiled)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_loops_by_hand_are_the_loops_to_the_bit(name, whole) -> None:
    def by_hand(optimizer, closure) -> None:
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()

    def by_parts(optimizer, closure) -> None:
        closure()
        torch.compile(optimizer.first_step, backend="eager")()
        closure()
        torch.compile(optimizer.second_step, backend="eager")()

    plain = weights_after(name, by_hand)
    compiled = torch.compile(by_hand, backend="eager") if whole else by_parts
    assert torch.equal(plain, weights_after(name, compiled))


def test_a_compiled_step_on_a_quadratic_is_the_one_worked_by_hand() -> None:
    # w - lr (w + rho w / |w|), w = (1, 1, 1)
    w, loss = quadratic(torch.eye(3, dtype=torch.float64), (1.0, 1.0, 1.0))
    optimizer = SAM([w], rho=0.5, lr=0.1)

    @torch.compile(backend="aot_eager")
    def train() -> None:
        optimizer.step(Calls(optimizer, loss))

    train()
    expected = 1 - 0.1 * (1 + 0.5 / 3**0.5)
    assert w.detach().tolist() == pytest.approx([expected] * 3, abs=1e-15)


def test_a_compiled_model_stays_compiled_in_a_step() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    model = nn.Linear(4, 3).double()
    compiled = torch.compile(model, backend=counter)
    optimizer = SAM(compiled, lr=0.1)
    for _ in range(3):
        optimizer.step(Calls(optimizer, classification(compiled, *batch())))
    assert counter.frame_count == 1
