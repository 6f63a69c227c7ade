"""What a forward pass changes in modules: as after one pass, wherever the modules are."""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from problems import EVERY, STEP, Calls
from torch import Tensor, nn
from torch.nn import functional

from paperkit.optim import ASAM, SAM, EigenSAM

STEPS = 3


class Everything(nn.Module):
    """Each kind of state that a forward pass may change."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.encoder = nn.Linear(6, 3).requires_grad_(False)
        self.encoder_by_data = nn.Linear(6, 3).requires_grad_(False)
        self.register_buffer("in_place", torch.zeros(()))
        self.register_buffer("assigned", torch.zeros(()))
        self.register_buffer("by_data", torch.zeros(2))
        self.register_buffer("queue", torch.zeros(0))
        self.count = 0
        self.plain_tensor = torch.zeros(())
        self.history: list[float] = []
        self.table: dict[str, int] = {"calls": 0}
        self.recent: deque[int] = deque(maxlen=2)
        self.kinds: set[int] = set()
        self.generator = torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)
        self.python = random.Random(0)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.encoder.weight.lerp_(self.layer.weight, 0.1)
            self.encoder_by_data.weight.data.mul_(0.9)
        self.in_place += 1
        self.assigned = self.assigned + 1
        self.by_data.data.add_(1.0)
        self.queue = torch.cat([self.queue, x.mean().detach().reshape(1)])
        self.count += 1
        self.plain_tensor += 1
        self.history.append(self.count)
        self.table["calls"] += 1
        self.recent.append(self.count)
        self.kinds.add(self.count)
        noise = (
            torch.rand((), generator=self.generator) + self.numpy.random() + self.python.random()
        )
        # Draws, counts and queues change the loss, so a later pass must find them as before.
        keys = self.encoder(x) + self.encoder_by_data(x)
        weight = noise + self.count + self.in_place + self.assigned + len(self.queue)
        self.last = self.layer(x)
        return weight * (self.last - keys)

    def state(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder.weight.tolist(),
            "encoder by .data": self.encoder_by_data.weight.tolist(),
            "buffers": {name: b.tolist() for name, b in self.named_buffers()},
            "attributes": [self.count, float(self.plain_tensor)],
            "containers": [[*self.history], {**self.table}, [*self.recent], {*self.kinds}],
            "draws": [
                self.generator.get_state().tolist(),
                self.numpy.bit_generator.state,
                self.python.getstate(),
            ],
        }


def squares(model: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    return lambda: model(x).square().mean()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name", [n for n in EVERY if not n.startswith("IGSAM") and n != "GR double"]
)
def test_everything_in_the_model_is_as_after_one_pass_a_step(name, x) -> None:
    torch.manual_seed(0)
    model = Everything()
    optimizer = EVERY[name](model, **({"eta0": 1e-6} if name.startswith("SAS") else {"lr": 0.0}))
    found = []
    for _ in range(STEPS):
        optimizer.step(Calls(optimizer, squares(model, x)))
        found.append(model.state())
    torch.manual_seed(0)
    twin = Everything()
    for step in range(STEPS):
        twin(x)
        if name.startswith("SAS"):  # its weights move, and the average of weights with them
            for state in (found[step], expected := twin.state()):
                state.pop("encoder")
            assert found[step] == expected
        else:
            assert found[step] == twin.state()


def test_a_later_pass_sees_the_function_of_the_first(x) -> None:
    # L = c |w|², with c drawn, counted and queued: the second gradient must have the first's c.
    model = Everything()
    seen: list[Tensor] = []

    def loss() -> Tensor:
        output = model(x)
        weight = output.detach() / (
            model.last.detach() - model.encoder(x) - model.encoder_by_data(x)
        )
        seen.append(weight.mean())
        return output.square().mean()

    optimizer = SAM(model, lr=0.1)
    for _ in range(2):
        optimizer.step(Calls(optimizer, loss))
    # The first step learns of the moving encoder; round-off of float32 in a quotient.
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=0.0)
    torch.testing.assert_close(seen[3], seen[2], rtol=1e-3, atol=0.0)
    assert abs(float(seen[2] - seen[0])) > 1.0


def count(
    forward: Callable[[Tensor], Tensor],
    given: nn.Module | Iterable[Tensor],
    x: Tensor,
    norm: nn.Module,
) -> int:
    optimizer = SAM(given, lr=0.1)
    for _ in range(STEPS):
        optimizer.step(Calls(optimizer, squares(forward, x)))
    return int(norm.num_batches_tracked)


def test_modules_that_hold_no_parameter_of_the_optimizer_are_protected_when_called(x) -> None:
    generator = nn.Linear(6, 6)
    discriminator = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    assert count(lambda z: discriminator(generator(z)), generator, x, discriminator[1]) == STEPS
    backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).requires_grad_(False)
    head = nn.Linear(8, 3)
    assert count(lambda z: head(backbone(z)), head, x, backbone[1]) == STEPS
    first, norm, last = nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3)
    apart = [*first.parameters(), *last.parameters()]
    assert count(lambda z: last(norm(first(z))), apart, x, norm) == STEPS


def test_a_momentum_encoder_that_is_held_elsewhere_moves_once_a_step(x) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3).requires_grad_(False)

        def forward(self, z: Tensor) -> Tensor:
            self.layer.weight.data.mul_(0.5)
            return self.layer(z)

    student, teacher = nn.Linear(6, 3), Encoder()
    start = teacher.layer.weight.clone()
    optimizer = SAM(student, lr=0.1)
    for _ in range(STEPS):
        optimizer.step(Calls(optimizer, lambda: (student(x) - teacher(x)).square().mean()))
    assert torch.equal(teacher.layer.weight, start * 0.5**STEPS)


def test_a_frozen_backbone_is_not_copied(x) -> None:
    backbone = nn.Linear(6, 1013).requires_grad_(False)
    head = nn.Linear(1013, 3)
    model = nn.Sequential(backbone, head)
    optimizer = SAM(model, lr=0.1)
    alive = []

    def loss() -> Tensor:
        tensors = [t for t in gc.get_objects() if issubclass(type(t), Tensor)]
        alive.append(len({t.data_ptr() for t in tensors if t.shape == backbone.weight.shape}))
        value = model(x).square().mean()
        value.backward()
        return value

    for _ in range(2):
        optimizer.step(loss)
    assert alive == [1, 1, 1, 1]


def test_a_layer_that_is_put_in_later_is_protected(x) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 3))
    optimizer = SAM(model, lr=0.1)
    closure = Calls(optimizer, squares(model, x))
    optimizer.step(closure)
    model[1] = nn.BatchNorm1d(8, affine=False)
    optimizer.step(closure)
    assert int(model[1].num_batches_tracked) == 1


@pytest.mark.parametrize("given", ["module", "parameters", "group of a module"])
@pytest.mark.parametrize("by_hand", [True, False])
def test_running_statistics_count_once_however_the_model_is_given(given, by_hand, x) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    ways: dict[str, Any] = {
        "module": model,
        "parameters": model.parameters(),
        "group of a module": [{"params": model, "rho": 0.2}],
    }
    optimizer = SAM(ways[given], lr=0.1)
    assert optimizer.param_groups[0]["rho"] == (0.2 if "group" in given else 0.05)
    closure = Calls(optimizer, squares(model, x))
    for _ in range(STEPS):
        if by_hand:
            closure()
            optimizer.first_step()
            closure()
            optimizer.second_step()
        else:
            optimizer.step(closure)
    assert int(model[1].num_batches_tracked) == STEPS
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_step_that_is_begun_and_dropped_leaves_no_hook(x) -> None:
    model = nn.Linear(6, 3)
    optimizer = SAM(model.parameters(), lr=0.1)
    squares(model, x)().backward()
    optimizer.first_step()
    assert len(nn.modules.module._global_forward_pre_hooks) == 1
    del optimizer
    gc.collect()
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_group_added_later_may_be_a_module(x) -> None:
    first, second = nn.Linear(6, 8), nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = SAM(first, lr=0.1)
    optimizer.add_param_group({"params": second, "rho": 0.1})
    closure = Calls(optimizer, squares(lambda z: second(first(z)), x))
    closure()
    optimizer.first_step()
    closure()
    optimizer.second_step()
    assert int(second[0].num_batches_tracked) == 1
    assert len(optimizer.param_groups[1]["params"]) == 4


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"params=ReLU\(...\) has no parameters"):
        SAM(nn.ReLU())


def test_the_flag_says_which_passes_count(x) -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    for make, expected in (
        (lambda: SAM(model, lr=0.1), [True, False]),
        (lambda: SAM(model, lr=0.1, rho=0.0), [True]),
        (lambda: EigenSAM(model, lr=0.1, iterations=1), [False, False, True, False]),
    ):
        optimizer: Any = make()
        flags: list[bool] = []

        def loss(optimizer: Any = optimizer, flags: list[bool] = flags) -> Tensor:
            flags.append(optimizer.first_pass)
            return model(x).square().mean()

        assert optimizer.first_pass
        optimizer.step(Calls(optimizer, loss))
        assert flags == expected and optimizer.first_pass
    optimizer = SAM(model, lr=0.1)
    closure = Calls(optimizer, squares(model, x))
    closure()
    optimizer.first_step()
    assert not optimizer.first_pass
    closure()
    optimizer.second_step()
    assert optimizer.first_pass


def test_modules_in_evaluation_mode_come_back_in_their_own(x) -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
    model[1].eval()
    optimizer = EigenSAM(model.parameters(), lr=0.1, iterations=1)
    modes = []
    model.register_forward_hook(lambda *_: modes.append(model.training))
    optimizer.step(Calls(optimizer, squares(model, x)))
    assert modes == [False, False, True, True]
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(6, 8), torch.randn(8, 3)])

    def forward(self, z: Tensor) -> Tensor:
        return functional.softplus(z @ self.weights[0]) @ self.weights[1]


def normed() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("make", [Listed, normed])
def test_asam_has_the_same_names_however_the_model_is_given(make, x) -> None:
    ends = []
    for way in ("named", "module", "parameters"):
        torch.manual_seed(0)
        model = make()
        given = {
            "named": model.named_parameters(),
            "module": model,
            "parameters": model.parameters(),
        }[way]
        optimizer = ASAM(given, rho=0.5, lr=0.1)
        optimizer.step(Calls(optimizer, squares(model, x)))
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_asam_of_parameters_whose_model_is_not_seen_is_refused(x) -> None:
    model = Listed()
    optimizer = ASAM(model.parameters(), lr=0.1)
    squares(model, x)().backward()
    with pytest.raises(ValueError, match="pass the model"):
        optimizer.first_step()


def test_every_optimizer_takes_the_module_or_its_parameters_alike(x) -> None:
    for name in EVERY:
        if name.startswith(("IGSAM", "ASAM")):
            continue
        ends = []
        for with_module in (True, False):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
            given: Any = model if with_module else model.parameters()
            optimizer = EVERY[name](given, **STEP[name])
            for _ in range(2):
                optimizer.step(Calls(optimizer, squares(model, x)))
            ends.append(torch.cat([t.flatten() for t in model.state_dict().values()]))
        assert torch.equal(*ends), name
