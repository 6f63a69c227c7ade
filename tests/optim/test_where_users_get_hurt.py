"""What existing implementations of sharpness-aware optimizers break, for each of ours."""

from __future__ import annotations

import contextlib
import copy
import doctest
import io
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from problems import (
    EVERY,
    STEP,
    VARIANTS,
    WRAPPED,
    Calls,
    batch,
    classification,
    diagonal,
    network,
    quadratic,
)
from torch import Tensor, nn
from torch.nn import functional

import paperkit.optim
import paperkit.optim.sam
from paperkit.optim import IGSAM, RSAM, SAM, EigenSAM, RandomState
from paperkit.optim.modules import refuse_sharded

every = pytest.mark.parametrize("name", list(EVERY))
wrapped = pytest.mark.parametrize("name", list(WRAPPED))
every_variant = pytest.mark.parametrize("name", list(EVERY | VARIANTS))

PASSES = {  # in the third step, when no renewal is due and a previous step exists
    **dict.fromkeys(WRAPPED, 2),
    "SASAM": 3,
    "SASAM release": 3,
    "SASAM full batch": 2,
    "SASGD": 2,
    "SAM of the 3-norm": 2,
    "SAM of the 1-norm": 2,
    "ASAM of all tensors": 2,
    "RSAM of SAM's sign": 2,
    "IGSAM scaled": 1,
    "SASAM gradient": 3,
    "SASAM adaptive": 3,
    "SASAM release full batch": 2,
    "SASGD release": 2,
    "SASGD full batch": 1,
}
FIRST_PASSES = PASSES | {  # without a previous step; with EigenSAM's first renewal
    "EigenSAM": 4,
    "SASAM": 2,
    "SASAM release": 2,
    "SASAM gradient": 2,
    "SASAM adaptive": 2,
    "SASGD": 1,
    "SASGD release": 1,
}
CLOSURE_CALLS = PASSES | {"GR double": 1}
BY_HAND = [name for name in EVERY if name not in ("GR double", "SASAM", "SASAM release")]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def start(name: str, device: torch.device | str = "cpu", **options: Any) -> tuple[Any, Any, Calls]:
    """Return a network, the optimizer, and its closure; the generators are seeded."""
    torch.manual_seed(0)
    model = network(device)
    optimizer = (EVERY | VARIANTS)[name](model, **STEP[name], **options)
    return model, optimizer, Calls(optimizer, classification(model, *batch(device=device)))


# -- counts --------------------------------------------------------------------------------------


@every_variant
def test_gradient_evaluations_are_as_tabulated_and_counted(name) -> None:
    _, optimizer, closure = start(name)
    hidden = PASSES[name] - CLOSURE_CALLS[name]  # a double backward pass is not in the closure
    optimizer.step(closure)
    assert optimizer.gradient_evaluations == closure.count + hidden == FIRST_PASSES[name]
    for _ in range(2):
        optimizer.step(closure)
    closure.count, counted = 0, optimizer.gradient_evaluations
    optimizer.step(closure)  # no renewal is due: periods are 2
    assert closure.count == CLOSURE_CALLS[name]
    assert optimizer.gradient_evaluations - counted == PASSES[name]


def test_a_renewal_of_eigen_sam_takes_two_evaluations_an_iteration() -> None:
    model = network()
    optimizer = EigenSAM(model.parameters(), period=3, iterations=4)
    closure, counts = Calls(optimizer, classification(model, *batch())), []
    for _ in range(4):
        before = closure.count
        optimizer.step(closure)
        counts.append(closure.count - before)
    assert counts == [10, 2, 2, 10]
    assert optimizer.gradient_evaluations == closure.count


@wrapped
def test_rho_0_takes_one_evaluation_a_step(name) -> None:
    _, optimizer, closure = start(name, rho=0.0)
    for _ in range(3):
        optimizer.step(closure)
    assert optimizer.gradient_evaluations == closure.count == 3


@pytest.mark.parametrize("name", BY_HAND)
def test_a_loop_by_hand_counts_the_two_gradients_that_it_takes(name) -> None:
    _, optimizer, closure = start(name)
    if name == "EigenSAM":
        optimizer.renew_eigenvector(closure)
    if name == "IGSAM":
        optimizer.renew_factors(batch()[0])
    for _ in range(3):
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
    assert optimizer.gradient_evaluations == closure.count == 6 + 2 * (name == "EigenSAM")
    assert optimizer.steps == 3


# -- batch normalisation, dropout, random numbers --------------------------------------------------


@every
def test_running_statistics_are_updated_once_a_step(name, device) -> None:
    model, optimizer, closure = start(name, device)
    optimizer.step(closure)
    twin = network(device)
    torch.manual_seed(0)
    twin(batch(device=device)[0])
    assert same(dict(model.named_buffers()), dict(twin.named_buffers()))
    optimizer.step(closure)
    assert int(model.norm.num_batches_tracked) == int(model.plain_norm.num_batches_tracked) == 2


@every
def test_dropout_masks_are_equal_in_all_passes_of_a_step_and_new_in_the_next(name, device) -> None:
    model, optimizer, closure = start(name, device)
    steps = []
    for _ in range(4):
        model.masks.clear()
        optimizer.step(closure)
        training = [mask for mask in model.masks if mask.any()]
        assert all(torch.equal(mask, training[0]) for mask in training)
        assert len(training) >= CLOSURE_CALLS[name] - (steps == [])
        steps.append(training[0])
    assert not torch.equal(steps[0], steps[1])


@every
def test_the_generators_go_on_as_after_one_pass(name) -> None:
    _, optimizer, closure = start(name)
    optimizer.step(closure)
    after = torch.rand(3)
    torch.manual_seed(0)
    network()(batch()[0])
    assert torch.equal(after, torch.rand(3))


def test_layers_that_draw_from_numpy_or_python_are_replayed_too() -> None:
    w, loss = quadratic(diagonal(1.0, 2.0), (1.0, 1.0))
    draws = []

    def noisy() -> Tensor:
        from_numpy = np.random.rand()  # noqa: NPY002 - the generator that layers draw from
        draws.append((random.random(), from_numpy, torch.rand(()).item()))
        return loss()

    optimizer = SAM([w], lr=0.1)
    for _ in range(2):
        optimizer.step(Calls(optimizer, noisy))
    assert draws[0] == draws[1] != draws[2] == draws[3]


# -- the same step, said in other ways -------------------------------------------------------------


@pytest.mark.parametrize("name", BY_HAND)
def test_the_two_call_form_takes_the_same_steps_to_the_bit(name) -> None:
    model, optimizer, closure = start(name)
    twin = network()
    by_hand = EVERY[name](twin, **STEP[name])
    loss = classification(twin, *batch())
    for step in range(4):
        torch.manual_seed(step)
        optimizer.step(closure)
        torch.manual_seed(step)
        if name == "EigenSAM" and step % 2 == 0:
            by_hand.renew_eigenvector(Calls(by_hand, loss))
        random_state = RandomState([])
        by_hand.zero_grad()
        loss().backward()
        if name == "IGSAM" and step % 2 == 0:
            by_hand.renew_factors(batch()[0])
        by_hand.first_step()
        with random_state.replayed():
            loss().backward()
        by_hand.second_step()
    if name == "SASAM full batch":
        assert optimizer.steps == by_hand.steps == 4
    assert same(state_of(model), state_of(twin))


@every
def test_micro_batches_accumulate_to_the_step_of_the_whole_batch(name) -> None:
    ends = []
    inputs, targets = batch()
    for sizes in ([12], [3, 9]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        optimizer = EVERY[name](model, **STEP[name])

        def closure(model=model, optimizer=optimizer, sizes=sizes) -> float:
            optimizer.zero_grad()
            total = 0.0
            for x, y in zip(inputs.split(sizes), targets.split(sizes), strict=True):
                loss = functional.cross_entropy(model(x), y, reduction="sum") / 12
                loss.backward()
                total += float(loss.detach())
            return total

        for _ in range(3):
            optimizer.step(closure)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    # Differences of gradients divide a rounding error of 1e-16 by τ = 1e-2; three steps.
    torch.testing.assert_close(ends[0], ends[1], rtol=0.0, atol=1e-11)


@wrapped
def test_maximising_the_negative_loss_is_minimising_the_loss_to_the_bit(name) -> None:
    ends = []
    for sign in (1.0, -1.0):
        torch.manual_seed(0)
        model = network()
        optimizer = WRAPPED[name](model, lr=0.1, maximize=sign < 0)
        loss = classification(model, *batch())
        for _ in range(2):
            optimizer.step(Calls(optimizer, lambda sign=sign, loss=loss: sign * loss()))
        ends.append(state_of(model))
    for key, end in ends[0].items():
        torch.testing.assert_close(ends[1][key], end, rtol=1e-12, atol=1e-14)


@wrapped
@pytest.mark.parametrize("foreach", [True, False])
def test_the_base_may_run_its_own_foreach_or_loop(name, foreach) -> None:
    _, reference, closure = start(name)
    model, optimizer, twin_closure = start(name, foreach=foreach)
    torch.manual_seed(0)
    reference.step(closure)
    torch.manual_seed(0)
    optimizer.step(twin_closure)
    expected = [p for group in reference.param_groups for p in group["params"]]
    for ours, theirs in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


COMPILED = [(name, "eager") for name in EVERY if name != "GR double"] + [("SAM", "aot_eager")]


@pytest.mark.parametrize(("name", "backend"), COMPILED)
def test_a_compiled_model_takes_the_steps_of_the_plain_one(name, backend) -> None:
    ends, statistics = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = network()
        model.drop.p = 0.0  # a compiled graph may draw its masks in another order
        called = torch.compile(model, backend=backend) if compiled else model
        optimizer = EVERY[name](called, **STEP[name])
        for _ in range(2):
            optimizer.step(Calls(optimizer, classification(called, *batch())))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        statistics.append(dict(model.named_buffers()))
    assert int(statistics[1]["norm.num_batches_tracked"]) == 2
    torch.testing.assert_close(ends[0], ends[1], rtol=0.0, atol=1e-11)
    torch.testing.assert_close(statistics[0], statistics[1], rtol=0.0, atol=1e-11)


def test_a_compiled_loss_updates_running_statistics_once_a_step() -> None:
    model = network()
    optimizer = SAM(model, lr=0.1)
    compiled = torch.compile(classification(model, *batch()), backend="aot_eager")
    for _ in range(2):
        optimizer.step(Calls(optimizer, compiled))
    assert int(model.norm.num_batches_tracked) == 2


def test_double_backward_says_that_a_compiled_model_has_no_second_derivative() -> None:
    model, optimizer, _ = start("GR double")
    compiled = torch.compile(classification(model, *batch()), backend="aot_eager")
    before = weights_of(model)
    with pytest.raises(RuntimeError, match="finite_difference"):
        optimizer.step(Calls(optimizer, compiled))
    assert same(weights_of(model), before)


# -- rho = 0, negative, base optimizers ------------------------------------------------------------


@wrapped
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_rho_0_is_the_base_optimizer_to_the_bit(name, base) -> None:
    ends = []
    options = {"lr": 0.1, "weight_decay": 0.01}
    for zero in (True, False):
        torch.manual_seed(0)
        model = network()
        if zero:
            optimizer = WRAPPED[name](model, base=base, rho=0.0, **options)
        else:
            optimizer = base(model.parameters(), **options)
        closure = Calls(optimizer, classification(model, *batch()))
        for _ in range(3):
            optimizer.step(closure)
        assert closure.count == 3
        ends.append({**state_of(model), "next draw": torch.rand(2)})
    assert same(*ends)


@wrapped
@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_a_negative_or_infinite_rho_is_refused(name, rho) -> None:
    with pytest.raises(ValueError, match=r"(rho|mu)=.* must be at least 0 and finite"):
        WRAPPED[name](network(), rho=rho)


def test_a_negative_rho_of_a_group_is_refused_at_once_and_later() -> None:
    w = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    with pytest.raises(ValueError, match="rho=-1"):
        SAM([{"params": [w[0]], "rho": -1.0}])
    optimizer = SAM([w[0]])
    with pytest.raises(ValueError, match="rho=-1"):
        optimizer.add_param_group({"params": [w[1]], "rho": -1.0})


def test_bases_that_cannot_work_are_refused_with_the_reason() -> None:
    w = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="LBFGS calls closures itself"):
        SAM([w], torch.optim.LBFGS)
    with pytest.raises(ValueError, match="Adadelta has an option rho of its own"):
        SAM([w], torch.optim.Adadelta)


# -- parameter groups ------------------------------------------------------------------------------


def test_groups_have_their_own_rho_and_share_one_norm() -> None:
    # g = (3, 4): ε = (0.5 · 0.6, 0.1 · 0.8).
    parts = [nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(3)]
    optimizer = SAM([{"params": parts[:1], "rho": 0.5}, {"params": parts[1:2]}], rho=0.1, lr=0.0)
    closure = Calls(optimizer, lambda: 1.5 * parts[0].square() + 2.0 * parts[1].square())
    optimizer.step(closure)
    moved = [after - before for before, after in zip(*closure.weights, strict=True)]
    assert [float(m) for m in moved] == pytest.approx([0.3, 0.08], abs=1e-15)


def test_a_group_added_later_is_perturbed_and_stepped() -> None:
    parts = [nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2)]
    optimizer = SAM(parts[:1], rho=0.1, lr=0.1)
    optimizer.add_param_group({"params": iter(parts[1:]), "rho": 0.5, "lr": 0.2})
    assert optimizer.base.param_groups is optimizer.param_groups
    optimizer.step(Calls(optimizer, lambda: 1.5 * parts[0].square() + 2.0 * parts[1].square()))
    # Gradients at the moved weights: 3 (1 + 0.1 · 0.6) and 4 (1 + 0.5 · 0.8).
    assert parts[0].item() == pytest.approx(1 - 0.1 * 3.18, abs=1e-15)
    assert parts[1].item() == pytest.approx(1 - 0.2 * 5.6, abs=1e-15)


@every
def test_frozen_and_unused_parameters_are_left_alone(name) -> None:
    model, optimizer, closure = start(name)
    model.first.bias.requires_grad_(False)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, dtype=torch.float64))]})
    before = model.first.bias.detach().clone()
    for _ in range(3):
        optimizer.step(closure)
    assert torch.equal(model.first.bias, before)
    assert torch.equal(optimizer.param_groups[1]["params"][0].detach(), torch.ones(3).double())


@every
def test_a_closure_without_any_gradient_changes_nothing(name) -> None:
    model, optimizer, _ = start(name)
    before = weights_of(model)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert same(weights_of(model), before)


@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith("IGSAM")])
def test_a_model_of_one_number_works(name) -> None:
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = EVERY[name](holder, **STEP[name])
    for _ in range(3):
        optimizer.step(Calls(optimizer, lambda: holder.weight.square()))
    assert 0.0 < abs(holder.weight.item()) < 1.0


@every
def test_sparse_gradients_take_the_steps_of_dense_ones(name) -> None:
    ends = []
    for sparse in (False, True):
        torch.manual_seed(0)
        embedding = nn.Embedding(6, 3, sparse=sparse)
        model = nn.Sequential(embedding, nn.Flatten(), nn.Linear(6, 3)).double()
        options = {**STEP[name], "momentum": 0.0} if name in WRAPPED else STEP[name]
        optimizer = EVERY[name](model, max_norm=0.5, **options)
        if name.startswith("IGSAM"):
            optimizer.mode = "gradient"  # the embedding is no layer of the factors
        inputs, targets = torch.tensor([[0, 1], [1, 1], [4, 0]]), torch.tensor([0, 1, 2])
        closure = Calls(optimizer, classification(model, inputs, targets))
        for _ in range(3):
            optimizer.step(closure)
            assert embedding.weight.grad.is_sparse == sparse
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=0.0, atol=1e-11)


def test_sparse_adam_is_a_base_like_any_other() -> None:
    embedding = nn.Embedding(6, 3, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = SAM(embedding.parameters(), torch.optim.SparseAdam, lr=0.1)
    optimizer.step(Calls(optimizer, lambda: embedding(torch.tensor([0, 2])).square().sum()))
    changed = (embedding.weight.detach() != before).any(1)
    assert changed.tolist() == [True, False, True, False, False, False]


# -- gradients that are zero, not finite, or clipped -----------------------------------------------


@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith("IGSAM")])
def test_a_zero_gradient_moves_nothing(name) -> None:
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = EVERY[name](holder, **STEP[name])
    for _ in range(3):
        optimizer.step(Calls(optimizer, lambda: holder.weight.square().sum()))
    assert holder.weight.tolist() == [0.0, 0.0, 0.0]
    assert optimizer.skipped_steps == 0


def one_weight(inputs: float) -> tuple[nn.Linear, Callable[[], Tensor], dict[str, Any]]:
    """Return a linear model of one number, its loss, and IGSAM's options for it."""
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(1.0)
    x = torch.full((2, 1), inputs, dtype=torch.float64)
    options = {"rho": 0.1, "damping": 0.5, "loss": "half_squared_error", "lr": 0.1}
    return model, lambda: 0.5 * model(x).square().mean(), options


def test_igsam_works_on_a_model_of_one_number() -> None:
    # L = ½ (2w)², so g = 4, F = H = 4, δ = 0.1 · 4 / 4.5.
    model, loss, options = one_weight(2.0)
    optimizer = IGSAM(model.parameters(), model, **options)
    optimizer.step(Calls(optimizer, loss))
    assert model.weight.item() == pytest.approx(1 - 0.1 * 4 * (1 + 0.4 / 4.5), abs=1e-15)


def test_igsam_moves_nothing_where_the_gradient_and_the_fisher_matrix_are_zero() -> None:
    model, loss, options = one_weight(0.0)
    optimizer = IGSAM(model.parameters(), model, **options)
    for _ in range(2):
        optimizer.step(Calls(optimizer, loss))
    assert model.weight.item() == 1.0
    assert optimizer.skipped_steps == 0


def spoil(closure: Calls, call: int, value: float) -> Callable[[], Any]:
    """Let one call of a closure leave a gradient that is not finite, in one entry only."""
    first = closure.count

    def spoiled() -> Any:
        loss = closure()
        if closure.count - first == call:
            parameter = closure.optimizer.param_groups[0]["params"][-1]
            parameter.grad[0] = value
        return loss

    return spoiled


FAULTS = [(name, call) for name in EVERY for call in range(1, CLOSURE_CALLS[name] + 1)]


@pytest.mark.parametrize(("name", "call"), FAULTS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_in_any_pass_skips_the_step(name, call, value) -> None:
    model, optimizer, closure = start(name)
    for _ in range(3):
        optimizer.step(closure)
    weights, state = weights_of(model), copy.deepcopy(optimizer.state_dict())
    optimizer.step(spoil(closure, call, value))
    assert same(weights_of(model), weights)
    assert optimizer.skipped_steps == 1
    after = optimizer.state_dict()
    assert str(after["state"]) == str(state["state"])
    optimizer.step(closure)
    assert not same(weights_of(model), weights)
    assert all(bool(torch.isfinite(w).all()) for w in model.parameters())


@every
def test_clipping_bounds_the_gradient_that_the_step_follows(name) -> None:
    _, free, free_closure = start(name)
    _, clipped, clipped_closure = start(name, max_norm=1e-3)
    for optimizer, closure in ((free, free_closure), (clipped, clipped_closure)):
        torch.manual_seed(0)
        optimizer.step(closure)
    gradients = [
        torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]])
        for optimizer in (free, clipped)
    ]
    length = float(gradients[0].norm())
    assert length > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0] * (1e-3 / length), rtol=1e-12, atol=0.0)
    for before, after in zip(free_closure.weights[-1], clipped_closure.weights[-1], strict=True):
        assert torch.equal(before, after)  # the perturbation is not clipped


def test_a_hook_on_the_base_sees_the_final_gradients_once_a_step() -> None:
    model, optimizer, closure = start("SAM")
    seen = []
    optimizer.base.register_step_pre_hook(lambda *_: seen.append(model.head.bias.grad.clone()))
    optimizer.step(closure)
    assert len(seen) == 1
    assert torch.equal(seen[0], model.head.bias.grad)


# -- exceptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "call"), FAULTS)
def test_an_exception_in_any_pass_leaves_weights_and_state_as_they_were(name, call) -> None:
    model, optimizer, closure = start(name)
    for _ in range(3):
        optimizer.step(closure)
    weights, state = weights_of(model), copy.deepcopy(optimizer.state_dict())
    first = closure.count

    def failing() -> Any:
        loss = closure()
        if closure.count - first == call:
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing)
    assert same(weights_of(model), weights)
    assert int(model.norm.num_batches_tracked) == 4  # the first pass did count
    after = optimizer.state_dict()
    for saved in (state, after):  # the gradients that were taken are counted
        saved["param_groups"][0]["sharpness_aware"].pop("gradient_evaluations")
    for key in ("state", "param_groups"):
        assert str(after[key]) == str(state[key])
    optimizer.step(closure)
    assert not same(weights_of(model), weights)


def test_an_exception_in_a_renewal_of_eigen_sam_leaves_everything_as_it_was() -> None:
    model, optimizer, closure = start("EigenSAM")
    before = state_of(model)

    def failing() -> Any:
        closure()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step(failing)
    assert same(state_of(model), before)
    assert all(module.training for module in model.modules())


def test_a_loop_by_hand_may_give_a_step_up() -> None:
    model, optimizer, closure = start("SAM")
    closure()
    before = state_of(model)
    optimizer.first_step()
    model(batch()[0])
    assert not same(state_of(model), before)
    optimizer.restore()
    assert same(state_of(model), before)
    optimizer.step(closure)


def test_calls_out_of_order_are_refused() -> None:
    _, optimizer, closure = start("SAM")
    with pytest.raises(RuntimeError, match="follows first_step"):
        optimizer.second_step()
    closure()
    optimizer.first_step()
    for call in (
        optimizer.first_step,
        optimizer.state_dict,
        lambda: optimizer.step(closure),
        lambda: optimizer.load_state_dict({}),
    ):
        with pytest.raises(RuntimeError, match="finish the step"):
            call()


@every
def test_a_step_without_a_closure_is_refused(name) -> None:
    _, optimizer, _ = start(name)
    with pytest.raises(ValueError, match="step needs a closure"):
        optimizer.step()


def test_a_closure_that_stops_calling_backward_is_refused() -> None:
    model, optimizer, closure = start("SAM")
    calls = iter([closure, lambda: optimizer.zero_grad()])
    before = weights_of(model)
    with pytest.raises(ValueError, match="closure left no gradient"):
        optimizer.step(lambda: next(calls)())
    assert same(weights_of(model), before)


# -- mixed precision -------------------------------------------------------------------------------


@every
def test_scaled_losses_take_the_steps_of_unscaled_ones_to_the_bit(name) -> None:
    ends = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = network()
        optimizer = EVERY[name](model, **STEP[name])
        # A power of two: scaling and unscaling are exact.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, enabled=scaled)
        closure = Calls(optimizer, classification(model, *batch()), scaler.scale)
        for _ in range(3):
            optimizer.step(closure, scaler=scaler)
            scaler.update()
        ends.append(state_of(model))
    assert same(*ends)


@pytest.mark.parametrize(("name", "call"), FAULTS)
def test_an_overflow_in_any_pass_skips_the_step_and_lowers_the_scale(name, call) -> None:
    torch.manual_seed(0)
    model = network()
    optimizer = EVERY[name](model, **STEP[name])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    closure = Calls(optimizer, classification(model, *batch()), scaler.scale)
    for _ in range(3):
        optimizer.step(closure, scaler=scaler)
        scaler.update()
    weights, state = weights_of(model), copy.deepcopy(optimizer.state_dict())
    optimizer.step(spoil(closure, call, math.inf), scaler=scaler)
    scaler.update()
    assert same(weights_of(model), weights)
    assert optimizer.skipped_steps == 1
    assert str(optimizer.state_dict()["state"]) == str(state["state"])
    assert scaler.get_scale() == 2.0**15
    optimizer.step(closure, scaler=scaler)
    scaler.update()
    assert not same(weights_of(model), weights)
    assert scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("name", BY_HAND)
def test_a_loop_by_hand_may_scale_its_losses(name) -> None:
    model, optimizer, _ = start(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    loss = classification(model, *batch())
    twin_model, twin, closure = start(name)
    for step in range(2):
        torch.manual_seed(step)
        if name == "EigenSAM" and step == 0:
            optimizer.renew_eigenvector(Calls(optimizer, loss, scaler.scale))
        random_state = RandomState([])
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
        if name == "IGSAM" and step == 0:
            optimizer.renew_factors(batch()[0])
        optimizer.first_step(scaler=scaler)
        with random_state.replayed():
            scaler.scale(loss()).backward()
        optimizer.second_step(scaler=scaler)
        scaler.update()
        torch.manual_seed(step)
        twin.step(closure)
    assert same(state_of(model), state_of(twin_model))


def test_an_autocast_region_around_the_step_does_not_keep_the_unmoved_weights() -> None:
    inputs, targets = batch()
    ends = []
    for around_step in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = SAM(model.parameters(), rho=1.0, lr=0.1)

        def loss(model=model, around_step=around_step) -> Tensor:
            # A region inside the closure forgets its casts of the weights when it ends.
            with contextlib.nullcontext() if around_step else torch.autocast("cpu"):
                return functional.cross_entropy(model(inputs.float()), targets)

        with torch.autocast("cpu") if around_step else contextlib.nullcontext():
            optimizer.step(Calls(optimizer, loss))
        ends.append(state_of(model))
    assert same(*ends)


# -- schedulers and checkpoints --------------------------------------------------------------------


@wrapped
def test_a_learning_rate_scheduler_drives_the_base_without_a_warning(name) -> None:
    _, optimizer, closure = start(name)
    assert optimizer.param_groups is optimizer.base.param_groups
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(3):
            rates.append(optimizer.base.param_groups[0]["lr"])
            optimizer.step(closure)
            scheduler.step()
    assert rates == pytest.approx([0.1, 0.075, 0.025], rel=1e-12)


def test_a_scheduler_does_not_warn_in_a_loop_by_hand() -> None:
    _, optimizer, closure = start("SAM")
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
        scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == 0.05


@every
def test_a_run_continued_from_a_saved_state_is_the_run_that_was_not_stopped(name) -> None:
    model, optimizer, closure = start(name)
    for _ in range(3):
        optimizer.step(closure)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin = network(seed=5)
    resumed = EVERY[name](twin, **STEP[name])
    twin.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    if name in WRAPPED:
        assert resumed.base.param_groups is resumed.param_groups
    ends = []
    for m, o in ((model, optimizer), (twin, resumed)):
        torch.manual_seed(7)
        for _ in range(3):
            o.step(Calls(o, classification(m, *batch())))
        ends.append(state_of(m))
    assert same(*ends)
    assert resumed.gradient_evaluations == optimizer.gradient_evaluations
    assert resumed.steps == optimizer.steps == 6


@every
def test_a_copy_of_model_and_optimizer_goes_on_alone(name) -> None:
    model, optimizer, closure = start(name)
    for _ in range(3):
        optimizer.step(closure)
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.0)  # replaces optimizer.step
    twins = copy.deepcopy((model, optimizer))
    ends = []
    for m, o in ((model, optimizer), twins):
        torch.manual_seed(7)
        for _ in range(2):
            o.step(Calls(o, classification(m, *batch())))
        ends.append(state_of(m))
    assert same(*ends)


def test_the_switch_of_rsam_is_part_of_its_state() -> None:
    w, _ = quadratic(diagonal(1.0), (1.0,))
    optimizers = [RSAM([w], plain_epochs=1, validation_threshold=0.3) for _ in range(2)]
    optimizers[0].end_epoch(0.4)
    assert not optimizers[1].active
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert optimizers[1].active


def test_the_state_of_another_optimizer_is_refused() -> None:
    w, _ = quadratic(diagonal(1.0), (1.0,))
    with pytest.raises(ValueError, match="not made by SAM"):
        SAM([w]).load_state_dict(torch.optim.SGD([w]).state_dict())


# -- logs ------------------------------------------------------------------------------------------


@every
def test_the_log_says_how_far_and_where_each_step_looked(name) -> None:
    model, optimizer, _ = start(name, log=True)
    model.drop.p = 0.0
    closure = Calls(optimizer, classification(model, *batch()))
    for _ in range(3):
        optimizer.step(closure)
    assert [record.step for record in optimizer.log] == [0, 1, 2]
    record = optimizer.log[-1]
    assert record.gradient_norm > 0.0
    if name == "SASGD":
        assert record.perturbation_norm == 0.0 and math.isnan(record.cosine)
        return
    if name in ("SAM", "ASAM", "IGSAM", "IGSAM gradient", "RSAM", "EigenSAM", "SASAM"):
        moved = [b - a for a, b in zip(closure.weights[-2], closure.weights[-1], strict=True)]
        if name == "SASAM":
            moved = [b - a for a, b in zip(closure.weights[-3], closure.weights[-1], strict=True)]
        length = math.sqrt(sum(float(m.square().sum()) for m in moved))
        # The displacement is read off weights of order 1, which round at 1e-16.
        assert record.perturbation_norm == pytest.approx(length, rel=1e-10, abs=1e-14)
    if name in ("SAM", "IGSAM gradient", "RSAM", "SASAM"):
        assert record.cosine == pytest.approx(1.0, abs=1e-13)
    product = record.gradient_norm * record.perturbation_norm * record.cosine
    if name.startswith("GR"):
        product /= 2  # μ‖g‖², and the direction is 2μg
    if name != "RSAM exact":
        assert record.regularizer == pytest.approx(product, rel=1e-12)


def test_nothing_is_logged_unasked() -> None:
    _, optimizer, closure = start("SAM")
    optimizer.step(closure)
    assert optimizer.log is None


# -- devices ---------------------------------------------------------------------------------------


@every_variant
def test_a_step_runs_where_the_model_is(name, device, explicit_devices) -> None:
    model = network(device)
    before = weights_of(model)
    optimizer = (EVERY | VARIANTS)[name](model, **STEP[name], log=True, max_norm=10.0)
    inputs, targets = batch(device=device)
    closure = Calls(optimizer, classification(model, inputs, targets))
    with explicit_devices():
        for _ in range(3):
            optimizer.step(closure)
    assert not same(weights_of(model), before)
    assert all(parameter.device == inputs.device for parameter in model.parameters())


@pytest.mark.parametrize("name", BY_HAND)
def test_a_loop_by_hand_runs_where_the_model_is(name, device, explicit_devices) -> None:
    model, optimizer, closure = start(name, device)
    before, inputs = weights_of(model), batch(device=device)[0]
    with explicit_devices():
        random_state = RandomState([inputs.device])
        if name == "EigenSAM":
            optimizer.renew_eigenvector(closure)
        if name == "IGSAM":
            optimizer.renew_factors(inputs)
        model.masks.clear()
        random_state.set()
        closure()
        optimizer.first_step()
        with random_state.replayed():
            closure()
        optimizer.second_step()
    assert not same(weights_of(model), before)
    assert len(model.masks) == 2 and torch.equal(*model.masks)
    assert all(parameter.device == inputs.device for parameter in model.parameters())


@every
def test_a_saved_state_is_loaded_where_the_model_is(name, device, explicit_devices) -> None:
    _, optimizer, closure = start(name, device)
    for _ in range(2):
        optimizer.step(closure)
    _, resumed, closure = start(name, device)
    state = copy.deepcopy(optimizer.state_dict())
    with explicit_devices():
        resumed.load_state_dict(state)
        resumed.step(closure)
    assert resumed.steps == 3 and resumed.skipped_steps == 0


PRECISIONS = [(name, torch.float32) for name in EVERY] + [
    (name, torch.bfloat16) for name in EVERY if name != "IGSAM"
]


@pytest.mark.parametrize(("name", "dtype"), PRECISIONS)
def test_weights_keep_their_precision(name, dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    optimizer = EVERY[name](model, **STEP[name])
    inputs, targets = batch()
    closure = Calls(optimizer, classification(model, inputs.to(dtype), targets))
    for _ in range(3):
        optimizer.step(closure)
    assert optimizer.skipped_steps == 0
    assert all(parameter.dtype == dtype for parameter in model.parameters())


# -- sharded parameters ----------------------------------------------------------------------------


def test_a_wrapper_of_fully_sharded_data_parallel_is_refused() -> None:
    kind = type("Wrapper", (nn.Module,), {"__module__": "torch.distributed.fsdp.stand_in"})
    with pytest.raises(ValueError, match="use DistributedDataParallel"):
        refuse_sharded((), [kind()])


# -- examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [paperkit.optim, paperkit.optim.sam])
def test_the_examples_of_the_documentation_run(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
