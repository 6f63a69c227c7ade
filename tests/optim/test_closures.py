"""The contract of a closure: what breaks it takes the right step, or is refused by name."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import EVERY, STEP, Calls, batch, classification, diagonal, network, quadratic
from torch import Tensor, nn

from paperkit.optim import SAM, SASGD

every = pytest.mark.parametrize("name", list(EVERY))

# w = (3, 4), L = |w|²/2, so g = w and the step is lr (|w| + rho) long.
START, RIGHT = (3.0, 4.0), 0.1 * (5.0 + 0.5)


def problem() -> tuple[nn.Parameter, SAM, Callable[[], Tensor]]:
    w, loss = quadratic(diagonal(1.0, 1.0), START)
    return w, SAM([w], rho=0.5, lr=0.1), loss


def moved(w: Tensor) -> float:
    return float((torch.tensor(START, dtype=w.dtype) - w.detach()).norm())


def test_a_closure_need_not_clear_what_was_cleared_before_the_step() -> None:
    w, optimizer, loss = problem()

    def closure() -> Tensor:
        value = loss()
        value.backward()
        return value

    optimizer.zero_grad()
    optimizer.step(closure)
    assert moved(w) == pytest.approx(RIGHT, abs=1e-15)
    before = w.detach().clone()
    optimizer.step(closure)  # nor what the last step has left
    second = 0.1 * (float(before.norm()) + 0.5)
    assert float((before - w.detach()).norm()) == pytest.approx(second, abs=1e-15)


@every
def test_closures_with_and_without_clearing_take_the_same_steps_to_the_bit(name) -> None:
    ends = []
    for clears in (True, False):
        torch.manual_seed(0)
        model = network()
        optimizer = EVERY[name](model, **STEP[name])
        loss = classification(model, *batch())

        def closure(clears=clears, optimizer=optimizer, loss=loss) -> Tensor:
            if clears:
                optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        for _ in range(3):
            optimizer.step(closure)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_gradient_from_outside_is_no_fault_where_the_closure_clears_it(set_to_none) -> None:
    w, optimizer, loss = problem()
    loss().backward()

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=set_to_none)
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    assert moved(w) == pytest.approx(RIGHT, abs=1e-15)


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("kind", ["SAM", "SASGD"])
def test_a_closure_that_leaves_gradients_from_outside_in_place_is_refused(backward, kind) -> None:
    w, _, loss = problem()
    optimizer: Any = SAM([w], lr=0.1) if kind == "SAM" else SASGD([w])
    loss().backward()

    def closure() -> Tensor:
        value = loss()
        if backward:
            value.backward()
        return value

    with pytest.raises(ValueError, match=r"closure left gradients in place .* inside the closure"):
        optimizer.step(closure)
    assert moved(w) == 0.0 and optimizer.steps == 0


def test_micro_batches_that_are_accumulated_outside_are_refused() -> None:
    model = network()
    optimizer = SAM(model, lr=0.1)
    inputs, targets = batch()
    classification(model, inputs[:6], targets[:6])().backward()

    def closure() -> Tensor:
        loss = classification(model, inputs[6:], targets[6:])()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="all micro-batches"):
        optimizer.step(closure)


def test_a_pass_that_adds_no_gradient_is_refused_wherever_it_comes() -> None:
    for call in (2, 3):
        w, loss = quadratic(diagonal(1.0, 2.0), START)
        optimizer = EVERY["SASAM"](nn.ParameterList([w]))
        good = Calls(optimizer, loss)
        optimizer.step(good)
        before, start = w.detach().clone(), good.count

        def closure(good=good, start=start, call=call, loss=loss) -> Tensor:
            if good.count - start == call - 1:
                good.count += 1
                return loss()
            return good()

        with pytest.raises(ValueError, match="closure left no gradient in its last call"):
            optimizer.step(closure)
        assert torch.equal(w.detach(), before)


def test_a_loop_by_hand_that_forgets_to_clear_is_refused() -> None:
    w, optimizer, loss = problem()
    loss().backward()
    optimizer.first_step()
    loss().backward()
    optimizer.second_step()
    assert moved(w) == pytest.approx(RIGHT, abs=1e-15)
    with pytest.raises(RuntimeError, match="gradients of the step before"):
        optimizer.first_step()  # no backward pass at all
    loss().backward()
    with pytest.raises(RuntimeError, match="clear them with zero_grad"):
        optimizer.first_step()
    optimizer.zero_grad(set_to_none=False)
    loss().backward()
    optimizer.first_step()
    with pytest.raises(ValueError, match="left no gradient"):
        optimizer.second_step()


# -- scaled losses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("with_closure", [True, False])
def test_the_step_of_a_scaler_is_refused_and_leaves_no_trace(with_closure) -> None:
    w, optimizer, loss = problem()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    closure = Calls(optimizer, loss, scaler.scale)
    closure()
    with pytest.raises(RuntimeError, match=r"optimizer.step\(closure, scaler=scaler\)"):
        scaler.step(optimizer, *([closure] if with_closure else []))
    assert moved(w) == 0.0
    optimizer.step(closure, scaler=scaler)
    scaler.update()
    assert moved(w) == pytest.approx(RIGHT, rel=1e-6)  # the scale's reciprocal is in float32


class Holder:
    """A training object whose method is the closure."""

    def __init__(self, scaler: Any, loss: Callable[[], Tensor]) -> None:
        self.scaler, self.loss = scaler, loss

    def closure(self) -> Tensor:
        loss = self.loss()
        self.scaler.scale(loss).backward()
        return loss

    __call__ = closure


@pytest.mark.parametrize("way", ["cell", "method", "object", "bound method"])
def test_a_forgotten_scaler_is_found_in_what_the_closure_holds(way) -> None:
    w, optimizer, loss = problem()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def closure() -> Tensor:
        scaler.scale(loss()).backward()
        return loss()

    holder = Holder(scaler, loss)
    ways: dict[str, Callable[[], Tensor]] = {
        "cell": closure,
        "method": holder.closure,
        "object": holder,
        "bound method": Calls(optimizer, loss, scaler.scale),
    }
    with pytest.raises(ValueError, match=r"step\(closure, scaler=scaler\)"):
        optimizer.step(ways[way])
    assert moved(w) == 0.0


def test_a_scaler_that_is_off_or_unused_is_none() -> None:
    w, optimizer, loss = problem()
    unused, off = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu", enabled=False)

    def closure() -> Tensor:
        assert unused is not None
        value = loss()
        off.scale(value).backward()
        return value

    optimizer.step(closure)
    assert moved(w) == pytest.approx(RIGHT, abs=1e-15)


# -- accelerate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_an_accelerator_that_accumulates_is_refused_with_the_recipe(steps, monkeypatch) -> None:
    stand_in: Any = types.ModuleType("accelerate.state")
    stand_in.GradientState = lambda: types.SimpleNamespace(num_steps=steps)
    monkeypatch.setitem(sys.modules, "accelerate.state", stand_in)
    w, optimizer, loss = problem()
    if steps == 1:
        optimizer.step(Calls(optimizer, loss))
        assert moved(w) == pytest.approx(RIGHT, abs=1e-15)
        return
    with pytest.raises(RuntimeError, match=r"gradient_accumulation_steps=2.*inside the closure"):
        optimizer.step(Calls(optimizer, loss))
    assert moved(w) == 0.0


# -- what users of other libraries write -----------------------------------------------------------

W = nn.Parameter(torch.ones(2))
OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "base_optimizer": (
        lambda: SAM([W], base_optimizer=torch.optim.SGD, lr=0.1),
        r"base_optimizer is called base: write base=torch.optim.SGD",
    ),
    "adaptive": (lambda: SAM([W], torch.optim.SGD, adaptive=True, lr=0.1), "adaptive=True.* ASAM"),
    "an instance": (
        lambda: SAM([W], torch.optim.Adam([W], lr=0.1)),
        r"pass the class, base=torch.optim.Adam",
    ),
    "first_step": (lambda: SAM([W], lr=0.1).first_step(zero_grad=True), "clears the gradients"),
    "by place": (lambda: SAM([W], lr=0.1).first_step(True), "clears the gradients"),
    "second_step": (lambda: SAM([W], lr=0.1).second_step(zero_grad=True), r"with zero_grad\(\)"),
}


@pytest.mark.parametrize("call", list(OTHERS))
def test_what_other_libraries_write_is_answered_with_what_to_write_here(call) -> None:
    run, sentence = OTHERS[call]
    with pytest.raises(TypeError, match=sentence):
        run()
