"""What an optimizer was made with, and the state that is saved, moved, shared and loaded."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import pickle
from collections import defaultdict
from typing import Any

import pytest
import torch
from problems import EVERY, STEP, WRAPPED, Calls, batch, classification, network
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from paperkit.optim import ASAM, RSAM, SAM, SASAM, SASGD, EigenSAM

every = pytest.mark.parametrize("name", list(EVERY))

NOT_OPTIONS = {"self", "params", "model", "base", "rho", "mu", "weight_decay", "log", "no_sync"}
"""Arguments that a group holds, that are no plain values, or that change no step."""


@every
def test_every_argument_of_an_optimizer_is_described(name) -> None:
    optimizer = EVERY[name](network(), **STEP[name])
    described = optimizer.described()
    assert described["optimizer"] == type(optimizer).__name__
    own = {
        argument.name
        for kind in type(optimizer).__mro__
        if kind.__module__.startswith("paperkit.optim") and "__init__" in vars(kind)
        for argument in inspect.signature(kind.__init__).parameters.values()
        if argument.kind is not argument.VAR_KEYWORD
    }
    expected = own - NOT_OPTIONS - {"defaults", "strength", "memory_budget"}
    assert set(described["options"]) == expected == set(optimizer.options)
    json.dumps(described)  # plain values only


def test_a_description_tells_norms_and_groups_options_apart() -> None:
    w = [nn.Parameter(torch.zeros(2))]
    described = SAM(w, rho=0.3, p=3.0, lr=0.2, momentum=0.9).described()
    assert described["options"] == {"max_norm": None, "p": 3.0}
    assert described["base"] == "SGD"
    defaults = described["defaults"]
    assert (defaults["rho"], defaults["lr"], defaults["momentum"]) == (0.3, 0.2, 0.9)


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (lambda m: SAM(m.parameters(), p=3.0), lambda m: SAM(m.parameters()), "p=3.0"),
        (
            lambda m: RSAM(m.parameters(), alpha=0.7, rho=0.1),
            lambda m: RSAM(m.parameters(), rho=0.1),
            "alpha=0.7",
        ),
        (
            lambda m: EigenSAM(m.parameters(), tau=0.1, iterations=1),
            lambda m: EigenSAM(m.parameters(), iterations=1),
            "tau=0.1",
        ),
        (
            lambda m: SASAM(m.parameters(), ascent="gradient"),
            lambda m: SASAM(m.parameters()),
            "ascent='gradient'",
        ),
        (
            lambda m: SASAM(m.parameters(), theta0=1.0),
            lambda m: SASAM(m.parameters()),
            "theta0=1.0",
        ),
    ],
)
def test_a_state_of_other_options_is_refused(first, second, sentence) -> None:
    model = network()
    made, other = first(model), second(model)
    made.step(Calls(made, classification(model, *batch())))
    with pytest.raises(ValueError, match=f"state_dict was made with {sentence}"):
        other.load_state_dict(made.state_dict())
    assert other.steps == 0


# -- moved, cleared, shared ------------------------------------------------------------------------


def bowl(base: Any = torch.optim.SGD, **options: Any) -> tuple[nn.Parameter, SAM, Calls]:
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = SAM([w], base, rho=0.5, lr=0.1, **options)
    return w, optimizer, Calls(optimizer, lambda: 0.5 * w.square().sum())


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@every
def test_all_that_lasts_is_in_state_and_groups(name) -> None:
    model = network()
    optimizer = EVERY[name](model, **STEP[name])
    closure = Calls(optimizer, classification(model, *batch()))
    for _ in range(3):
        optimizer.step(closure)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert saved["param_groups"][0]["sharpness_aware"]["steps"] == 3
    twin_model = copy.deepcopy(model)
    twin = EVERY[name](twin_model, **STEP[name])
    parameters = list(twin_model.parameters())
    # As a wrapper does that knows nothing but these two: it takes them out and puts them in.
    twin.state = defaultdict(
        dict, {parameters[k]: copy.deepcopy(v) for k, v in saved["state"].items()}
    )
    twin.param_groups = [
        {**copy.deepcopy(g), "params": [parameters[i] for i in g["params"]]}
        for g in saved["param_groups"]
    ]
    for m, o in ((model, optimizer), (twin_model, twin)):
        torch.manual_seed(7)
        for _ in range(2):
            o.step(Calls(o, classification(m, *batch())))
    assert torch.equal(flat(model), flat(twin_model))
    assert twin.steps == 5


@every
def test_a_saved_state_does_not_change_with_later_steps(name) -> None:
    model = network()
    optimizer = EVERY[name](model, **STEP[name])
    closure = Calls(optimizer, classification(model, *batch()))
    optimizer.step(closure)
    saved = optimizer.state_dict()
    numbers = copy.deepcopy(saved["param_groups"][0]["sharpness_aware"])
    optimizer.step(closure)
    assert str(saved["param_groups"][0]["sharpness_aware"]) == str(numbers)
    saved["param_groups"][0]["sharpness_aware"].clear()
    assert optimizer.steps == 2


@every
def test_a_state_that_is_cleared_begins_anew(name) -> None:
    model = network()
    optimizer = EVERY[name](model, **STEP[name])
    loss = classification(model, *batch())
    for _ in range(3):
        optimizer.step(Calls(optimizer, loss))
    optimizer.state.clear()
    before = flat(model)
    for _ in range(2):
        optimizer.step(Calls(optimizer, loss))
    assert bool(torch.isfinite(flat(model)).all()) and not torch.equal(flat(model), before)
    assert optimizer.skipped_steps == 0 and optimizer.steps == 5


def test_the_momentum_after_clearing_is_that_of_a_first_step() -> None:
    ends = []
    for cleared in (True, False):
        w, optimizer, closure = bowl(momentum=0.9)
        if cleared:
            optimizer.step(closure)
            optimizer.state.clear()
            with torch.no_grad():
                w.copy_(torch.tensor([3.0, 4.0]))
        optimizer.step(closure)
        ends.append(w.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", [n for n in EVERY if not n.startswith("IGSAM")])
def test_a_state_moves_with_its_parameter_to_another(name) -> None:
    ends = []
    for moved in (True, False):
        torch.manual_seed(0)
        holder = nn.Module()
        holder.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        optimizer = EVERY[name](holder, **STEP[name])
        scales = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        closure = Calls(
            optimizer, lambda holder=holder, scales=scales: (scales * holder.weight.square()).sum()
        )
        for _ in range(3):
            optimizer.step(closure)
        if moved:
            old, new = holder.weight, nn.Parameter(holder.weight.detach().clone())
            optimizer.param_groups[0]["params"] = [new]
            if old in optimizer.state:
                optimizer.state[new] = optimizer.state.pop(old)
            holder.weight = new
        for _ in range(3):
            optimizer.step(closure)
        ends.append(holder.weight.detach())
    assert torch.equal(*ends)


def test_hooks_of_saving_and_loading_see_and_change_what_is_saved() -> None:
    w, optimizer, closure = bowl(torch.optim.Adam)
    for _ in range(2):
        optimizer.step(closure)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "note": 1})
    saved = optimizer.state_dict()
    assert saved["note"] == 1 and len(saved["state"][0]) == 3
    _, other, other_closure = bowl(torch.optim.Adam)

    def halve(o: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = copy.deepcopy(state_dict)
        state_dict["param_groups"][0]["lr"] = 0.05
        return state_dict

    other.register_load_state_dict_pre_hook(halve)
    other.register_load_state_dict_post_hook(lambda o: calls.append("after loading"))
    other.load_state_dict(saved)
    assert calls == ["before saving", "after loading"]
    assert other.base.param_groups[0]["lr"] == other.param_groups[0]["lr"] == 0.05
    assert int(other.base.state[other.param_groups[0]["params"][0]]["step"]) == 2
    other.step(other_closure)
    assert other.steps == 3 and w.requires_grad


# -- a base optimizer's own state ------------------------------------------------------------------


def test_a_run_goes_on_with_the_state_of_its_base_optimizer() -> None:
    # AdamW for two steps; then SAM without a radius must take AdamW's third step to the bit.
    ends = []
    for sharp in (True, False):
        w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        loss = lambda w=w: (torch.tensor([1.0, 2.0]) * w.square()).sum()  # noqa: E731
        adamw = torch.optim.AdamW([w], lr=0.1)
        for _ in range(2):
            adamw.step(Calls(adamw, loss))
        optimizer: Any = adamw
        if sharp:
            optimizer = SAM([w], torch.optim.AdamW, rho=0.0, lr=0.5)
            optimizer.base.load_state_dict(adamw.state_dict())
        optimizer.step(Calls(optimizer, loss))
        ends.append(w.detach())
    assert torch.equal(*ends)


def test_a_base_that_is_loaded_keeps_radii_and_one_list_of_groups() -> None:
    w = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": w[:1], "rho": 0.3}, {"params": w[1:]}]
    optimizer = SAM(groups, torch.optim.AdamW, rho=0.05, lr=0.1)
    adamw = torch.optim.AdamW([{"params": w[:1]}, {"params": w[1:]}], lr=0.7)
    optimizer.base.load_state_dict(adamw.state_dict())
    assert optimizer.param_groups is optimizer.base.param_groups
    assert [group["rho"] for group in optimizer.param_groups] == [0.3, 0.05]
    assert [group["lr"] for group in optimizer.param_groups] == [0.7, 0.7]
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    before = w[0].detach().clone()
    optimizer.step(Calls(optimizer, lambda: w[0].square().sum() + w[1].square().sum()))
    assert torch.equal(w[0].detach(), before)
    twin = copy.deepcopy(optimizer)
    twin.base.load_state_dict(adamw.state_dict())
    assert [group["rho"] for group in twin.param_groups] == [0.3, 0.05]


def test_the_state_of_a_plain_optimizer_or_of_another_kind_is_refused_with_the_way() -> None:
    w, optimizer, closure = bowl()
    optimizer.step(closure)
    with pytest.raises(ValueError, match=r"optimizer.base.load_state_dict\(state_dict\)"):
        optimizer.load_state_dict(torch.optim.SGD([w], lr=0.1).state_dict())
    with pytest.raises(ValueError, match="state_dict was not made by ASAM"):
        ASAM([("weight", w)], rho=0.5, lr=0.1).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="state_dict was not made by SAM"):
        optimizer.load_state_dict({})
    with pytest.raises(ValueError, match="belongs to other parameters"):
        other = SAM([w, nn.Parameter(torch.ones(1))], rho=0.5, lr=0.1)
        other.load_state_dict(optimizer.state_dict())


def test_smoothness_adaptive_methods_go_on_from_each_other() -> None:
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    first, second = SASGD([w], eta0=0.05), SASAM([w], eta0=0.05)
    closure = Calls(first, lambda: 0.5 * w.square().sum())
    for _ in range(2):
        first.step(closure)
    second.load_state_dict(first.state_dict())
    assert (second.eta, second.theta, second.beta) == (first.eta, first.theta, first.beta)
    second.step(closure)
    assert second.steps == 3 and second.gradient_evaluations == 3 + 3


@pytest.mark.parametrize("side", ["optimizer", "base"])
def test_groups_that_are_assigned_are_those_of_both(side) -> None:
    w, optimizer, closure = bowl()
    holder: Any = optimizer if side == "optimizer" else optimizer.base
    holder.param_groups = [{"params": [w], "lr": 0.0}]  # rho is completed
    optimizer.step(closure)
    assert w.tolist() == [3.0, 4.0] and optimizer.gradient_evaluations == 2
    assert optimizer.param_groups[0]["rho"] == 0.5
    holder.param_groups = [{**group, "lr": 0.1} for group in holder.param_groups]
    optimizer.step(closure)
    # lr (|w| + rho) along w
    assert w.tolist() == pytest.approx([3.0 * (1 - 0.11), 4.0 * (1 - 0.11)], abs=1e-15)
    assert optimizer.steps == 2
    holder.param_groups[0]["rho"] = -1.0
    with pytest.raises(ValueError, match=r"rho=-1\.0"):
        optimizer.step(closure)


def test_a_base_with_a_way_of_its_own_to_load_is_asked() -> None:
    class Own(torch.optim.SGD):
        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            for group in self.param_groups:
                group["lr"] = 0.25

    _, optimizer, closure = bowl(Own, momentum=0.9)
    optimizer.step(closure)
    w, other, _ = bowl(Own, momentum=0.9)
    called = []
    other.register_load_state_dict_post_hook(lambda o: called.append(o))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.25 and called == [other]
    assert other.steps == 1 and "momentum_buffer" in other.state[w]


def test_an_option_that_either_optimizer_could_mean_is_refused() -> None:
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    for kind in (EigenSAM, RSAM):
        with pytest.raises(ValueError, match=r"alpha is an option of .* base=functools.partial"):
            kind([w], torch.optim.RMSprop, lr=0.1, alpha=0.9)
        base = functools.partial(torch.optim.RMSprop, alpha=0.9)
        optimizer = kind([w], base, lr=0.1, alpha=0.3)
        assert optimizer.alpha == 0.3 and optimizer.param_groups[0]["alpha"] == 0.9
        optimizer.step(Calls(optimizer, lambda: w.square().sum()))
        other = kind([w], base, lr=0.1, alpha=0.3)
        other.load_state_dict(optimizer.state_dict())
        assert other.param_groups[0]["alpha"] == 0.9


# -- torch.distributed.checkpoint ------------------------------------------------------------------


@pytest.mark.parametrize("cleared", [True, False])
@every
def test_distributed_checkpoints_save_and_load_the_run(name, cleared) -> None:
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def made(seed: int) -> tuple[Any, Any]:
        model = network(seed=seed)
        base = {"base": torch.optim.Adam} if name in WRAPPED else {}
        options = {"lr": 0.01} if name in WRAPPED else {"eta0": 0.1}
        return model, EVERY[name](model, **base, **options)

    model, optimizer = made(0)
    for _ in range(3):
        optimizer.step(Calls(optimizer, classification(model, *batch())))
    if cleared:
        optimizer.zero_grad()
    weights, saved = copy.deepcopy(get_state_dict(model, optimizer))
    other, resumed = made(3)
    if not cleared:
        classification(other, *batch())().backward()
    set_state_dict(other, resumed, model_state_dict=weights, optim_state_dict=saved)
    for m, o in ((model, optimizer), (other, resumed)):
        torch.manual_seed(7)
        for _ in range(2):
            o.step(Calls(o, classification(m, *batch())))
    assert torch.equal(flat(model), flat(other))
    assert resumed.steps == 5 and resumed.gradient_evaluations == optimizer.gradient_evaluations


def test_a_step_without_a_closure_is_refused_where_it_would_move_something() -> None:
    w, optimizer, closure = bowl()
    closure()
    with pytest.raises(ValueError, match="step needs a closure"):
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    with pytest.raises(ValueError, match="step needs a closure"):
        optimizer.step()  # the learning rate is not 0
    assert w.tolist() == [3.0, 4.0]


# -- hooks and pickles -----------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [True, False])
def test_step_hooks_run_once_a_step(by_hand) -> None:
    w, optimizer, closure = bowl()
    seen: list[tuple[str, float]] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: seen.append(("before", w[0].item()))),
        optimizer.register_step_post_hook(lambda *_: seen.append(("after", w[0].item()))),
        register_optimizer_step_post_hook(
            lambda o, *_: seen.append(("global", w[0].item())) if o is optimizer else None
        ),
    ]
    for _ in range(2):
        if by_hand:
            optimizer.zero_grad()
            closure()
            optimizer.first_step()
            closure()
            optimizer.second_step()
        else:
            optimizer.step(closure)
    handles[2].remove()
    kinds = [kind for kind, _ in seen]
    assert kinds == ["before", "after", "global"] * 2
    assert seen[0][1] == 3.0
    assert seen[1][1] == seen[2][1] == seen[3][1] == pytest.approx(3.0 * (1 - 0.11), abs=1e-15)


@every
def test_hooks_and_modules_that_cannot_be_pickled_do_not_stop_the_pickle(name) -> None:
    model = network()
    optimizer = EVERY[name](model, **STEP[name])
    if not name.startswith("IGSAM"):  # which needs its model, and so a picklable one
        model.register_forward_hook(lambda *_: None)
    optimizer.register_step_pre_hook(lambda *_: None)
    if name in WRAPPED:
        optimizer.base.register_step_post_hook(lambda *_: None)
    for _ in range(2):
        optimizer.step(Calls(optimizer, classification(model, *batch())))
    twin = pickle.loads(pickle.dumps(optimizer))
    assert twin.steps == 2
    parameters = [p for group in twin.param_groups for p in group["params"]]
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), parameters, strict=True):
            assert torch.equal(ours, theirs)
    if name in WRAPPED:
        assert twin.base.state is twin.state and twin.base.param_groups is twin.param_groups


@every
def test_a_pickle_with_its_model_goes_on_to_the_bit(name) -> None:
    model = network()
    optimizer = EVERY[name](model, **STEP[name])
    for _ in range(2):
        optimizer.step(Calls(optimizer, classification(model, *batch())))
    twins = pickle.loads(pickle.dumps((model, optimizer)))
    ends = []
    for m, o in ((model, optimizer), twins):
        torch.manual_seed(7)
        for _ in range(2):
            o.step(Calls(o, classification(m, *batch())))
        ends.append({k: v.tolist() for k, v in m.state_dict().items()})
    assert ends[0] == ends[1]
