"""What two processes check of each other; run by test_distributed.py."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from problems import EVERY, STEP, Calls, batch, classification
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from paperkit.optim import IGSAM, SAM, GradientRegularization

STEPS = 3


def check(rank: int, rendezvous: str) -> None:
    """Run every check as one of two workers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        for name in EVERY:
            if name not in ("GR double", "IGSAM"):
                shared_perturbation_takes_the_steps_of_one_process(name, rank)
        own_perturbation_follows_the_average_of_both(rank)
        factors_of_each_worker_leave_equal_weights(rank)
        an_overflow_of_one_worker_skips_the_step_of_both(rank)
        double_backward_is_refused()
        sharded_parameters_are_refused()
    finally:
        dist.destroy_process_group()


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def half(rank: int) -> tuple[Tensor, Tensor]:
    inputs, targets = batch()
    return inputs[rank::2], targets[rank::2]


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def assert_equal_on_both(model: nn.Module) -> None:
    weights = flat(model)
    gathered = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(gathered, weights)
    assert torch.equal(*gathered)


def shared_perturbation_takes_the_steps_of_one_process(name: str, rank: int) -> None:
    alone, model = plain_network(), plain_network()
    reference = EVERY[name](alone, **STEP[name])
    workers = DistributedDataParallel(model)
    optimizer = EVERY[name](workers, **STEP[name])
    closure = Calls(optimizer, classification(workers, *half(rank)))
    for _ in range(STEPS):
        reference.step(Calls(reference, classification(alone, *batch())))
        optimizer.step(closure)
    assert_equal_on_both(model)
    # Differences of gradients divide a rounding error of 1e-16 by τ = 1e-2; three steps.
    torch.testing.assert_close(flat(model), flat(alone), rtol=0.0, atol=1e-11)


def own_perturbation_follows_the_average_of_both(rank: int) -> None:
    model, rho, rate = plain_network(), 0.5, 0.1
    gradients, places = [], []
    for worker in range(2):
        twin = plain_network()
        parameters = list(twin.parameters())
        loss = classification(twin, *half(worker))
        first = torch.autograd.grad(loss(), parameters)
        length = torch.cat([g.flatten() for g in first]).norm()
        with torch.no_grad():
            for parameter, part in zip(parameters, first, strict=True):
                parameter += rho * part / length
        places.append(flat(twin))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss(), parameters)]))
    expected = flat(model) - rate * (gradients[0] + gradients[1]) / 2
    workers = DistributedDataParallel(model)
    optimizer = SAM(workers.parameters(), rho=rho, lr=rate, no_sync=workers.no_sync)
    closure = Calls(optimizer, classification(workers, *half(rank)))
    optimizer.step(closure)
    moved = torch.cat([w.flatten() for w in closure.weights[1]])
    torch.testing.assert_close(moved, places[rank], rtol=0.0, atol=1e-14)
    assert not torch.allclose(places[0], places[1])
    assert_equal_on_both(model)
    torch.testing.assert_close(flat(model), expected, rtol=0.0, atol=1e-14)


def factors_of_each_worker_leave_equal_weights(rank: int) -> None:
    model = plain_network()
    workers = DistributedDataParallel(model)
    optimizer = IGSAM(workers.parameters(), workers, rho=0.1, damping=0.1, period=2, lr=0.1)
    closure = Calls(optimizer, classification(workers, *half(rank)))
    for _ in range(STEPS):
        optimizer.step(closure)
    assert_equal_on_both(model)


def an_overflow_of_one_worker_skips_the_step_of_both(rank: int) -> None:
    model = plain_network()
    workers = DistributedDataParallel(model)
    optimizer = SAM(workers.parameters(), lr=0.1, no_sync=workers.no_sync)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    closure = Calls(optimizer, classification(workers, *half(rank)), scaler.scale)
    before, calls = flat(model), iter(range(4))

    def spoiled() -> Any:
        loss = closure()
        if rank == 0 and next(calls) == 0:
            next(model.parameters()).grad[0, 0] = float("inf")
        return loss

    optimizer.step(spoiled, scaler=scaler)
    scaler.update()
    assert optimizer.skipped_steps == 1
    assert torch.equal(flat(model), before)
    assert scaler.get_scale() == 2.0**15
    optimizer.step(spoiled, scaler=scaler)
    assert_equal_on_both(model)
    assert not torch.equal(flat(model), before)


def double_backward_is_refused() -> None:
    workers = DistributedDataParallel(plain_network())
    optimizer = GradientRegularization(workers.parameters())
    refuse(
        lambda: optimizer.step(Calls(optimizer, classification(workers, *batch()))),
        "does not average gradients over workers",
    )


def sharded_parameters_are_refused() -> None:
    mesh = init_device_mesh("cpu", (2,))
    sharded = fully_shard(copy.deepcopy(plain_network()), mesh=mesh)
    refuse(lambda: SAM(sharded.parameters()), "sharded over processes")
    for use_orig_params in (False, True):
        wrapper = FullyShardedDataParallel(
            plain_network(), device_id=torch.device("cpu"), use_orig_params=use_orig_params
        )
        optimizer = SAM(wrapper.parameters())
        refuse(
            lambda optimizer=optimizer, wrapper=wrapper: optimizer.step(
                Calls(optimizer, classification(wrapper, *batch()))
            ),
            "sharded over processes",
        )


def refuse(call: Any, sentence: str) -> None:
    try:
        call()
    except ValueError as error:
        assert sentence in str(error), error
    else:
        raise AssertionError(f"nothing said: {sentence}")
