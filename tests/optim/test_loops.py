"""The loops of the page *Training loops*, run as they stand there, against one written out."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from paperkit.optim import SAM, RandomState

PAGE = (Path(__file__).parents[2] / "book" / "api" / "training_loops.md").read_text()
RHO, RATE, MOMENTUM = 0.05, 0.1, 0.9


def loops(heading: str) -> list[str]:
    """Return the code of a section of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def model_and_batches(device: str = "cpu") -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device)
    batches = [(torch.randn(12, 6), torch.randint(0, 3, (12,))) for _ in range(4)]
    return model, [(x.to(device), y.to(device)) for x, y in batches]


def written_out() -> Tensor:
    """Return the weights after the four steps, by SAM's equation and SGD with momentum."""
    model, batches = model_and_batches()
    parameters = list(model.parameters())
    momenta = [torch.zeros_like(p) for p in parameters]
    for inputs, targets in batches:
        first = torch.autograd.grad(cross_entropy(model(inputs), targets), parameters)
        length = torch.cat([g.flatten() for g in first]).norm()
        start = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, first, strict=True):
                p += RHO * g / length
        second = torch.autograd.grad(cross_entropy(model(inputs), targets), parameters)
        with torch.no_grad():
            for p, w, m, g in zip(parameters, start, momenta, second, strict=True):
                m.mul_(MOMENTUM).add_(g)
                p.copy_(w - RATE * m)
    return flat(model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def ran(code: str, **more: Any) -> tuple[dict[str, Any], nn.Module]:
    model, batches = model_and_batches()
    space = {
        "torch": torch,
        "SAM": SAM,
        "RandomState": RandomState,
        "cross_entropy": cross_entropy,
        "DistributedDataParallel": DistributedDataParallel,
        "model": model,
        "batches": batches,
        "device": "cpu",
        **more,
    }
    exec(code, space)
    return space, model


# Single precision; sums of micro-batches round otherwise than the whole batch.
CLOSE = {"rtol": 0.0, "atol": 1e-6}


@pytest.mark.parametrize(
    ("heading", "number"),
    [("A plain loop", 0), ("A plain loop", 1), ("Accumulated gradients", 0)],
)
def test_the_loops_take_the_steps_of_the_equation(heading, number) -> None:
    space, model = ran(loops(heading)[number])
    torch.testing.assert_close(flat(model), written_out(), **CLOSE)
    assert space["optimizer"].steps == 4


def test_the_loop_of_mixed_precision_stays_near_the_steps_in_single_precision() -> None:
    space, model = ran(loops("Mixed precision")[0])
    start = flat(model_and_batches()[0])
    error = (flat(model) - written_out()).norm() / (written_out() - start).norm()
    assert space["optimizer"].skipped_steps == 0
    # bfloat16 has 8 bits; four steps with momentum.
    assert float(error) < 8 * 2.0**-8


def test_the_loop_of_several_workers_runs_in_a_group_of_one(tmp_path) -> None:
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        _, model = ran(loops("Several workers")[0])
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(flat(model), written_out(), **CLOSE)


# -- Lightning -------------------------------------------------------------------------------------


def fitted(code: str, **options: Any) -> tuple[Any, nn.Module]:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed: no loop of it")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    space, model = ran(code, lightning=lightning)
    _, batches = model_and_batches()
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    size = 12 // options.get("accumulate_grad_batches", 1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet, **options
        )
        network = space["Network"]()
        trainer.fit(network, DataLoader(TensorDataset(inputs, targets), batch_size=size))
    return trainer, model


@pytest.mark.parametrize("number", [0, 1])
def test_the_loops_of_lightning_take_the_steps_of_the_equation(number) -> None:
    trainer, model = fitted(loops("Lightning")[number])
    torch.testing.assert_close(flat(model), written_out(), **CLOSE)
    kept = trainer.optimizers[0].state_dict()["param_groups"][0]["sharpness_aware"]
    assert (kept["steps"], kept["gradient_evaluations"]) == (4, 8)


@pytest.mark.parametrize("number", [0, 1])
def test_the_loss_that_lightning_logs_is_of_the_present_weights(number) -> None:
    code = loops("Lightning")[number].replace("lr=0.1", "lr=0.0").replace("rho=0.05", "rho=1.0")
    trainer, model = fitted(code)
    _, batches = model_and_batches()
    losses = [float(cross_entropy(model(x), y).detach()) for x, y in batches]
    assert float(trainer.callback_metrics["loss"]) == pytest.approx(sum(losses) / 4, abs=1e-6)


def test_what_lightning_keeps_outside_the_closure_is_refused() -> None:
    automatic = loops("Lightning")[0]
    with pytest.raises(ValueError, match="inside the closure"):
        fitted(automatic, accumulate_grad_batches=2)
    # The plugin of half precision runs the closure itself, and then the scaler's step.
    network, _ = model_and_batches()
    optimizer = SAM(network, lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(network(torch.ones(2, 6)).sum()).backward()
    with pytest.raises(RuntimeError, match="scaler=scaler"):
        scaler.step(optimizer)


def test_methods_that_are_called_on_wrappers_reach_the_optimizer() -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed: no wrapper")
    from lightning.pytorch.core.optimizer import LightningOptimizer

    ends = []
    for wrap in (None, "fabric", "trainer"):
        model, batches = model_and_batches()
        optimizer: Any = SAM(model, rho=RHO, lr=RATE, momentum=MOMENTUM)
        inside = optimizer
        if wrap == "fabric":
            fabric = lightning.Fabric(accelerator="cpu", devices=1)
            model, optimizer = fabric.setup(model, optimizer)
        elif wrap == "trainer":
            optimizer = LightningOptimizer(optimizer)
        for inputs, targets in batches:
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.first_step()
            assert not optimizer.first_pass and not inside.first_pass
            with pytest.raises(RuntimeError, match="finish the step"):
                inside.state_dict()
            cross_entropy(model(inputs), targets).backward()
            optimizer.second_step()
        assert (inside.steps, inside.gradient_evaluations) == (4, 8)
        assert optimizer.param_groups is inside.param_groups and optimizer.state is inside.state
        ends.append(flat(model))
    torch.testing.assert_close(ends[0], written_out(), **CLOSE)
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


# -- accelerate ------------------------------------------------------------------------------------


@pytest.fixture
def accelerate() -> Any:
    found = pytest.importorskip("accelerate", reason="accelerate is not installed: no loop of it")
    yield found
    found.state.AcceleratorState._reset_state(reset_partial_state=True)
    found.state.GradientState._reset_state()


def test_the_loop_of_accelerate_takes_the_steps_of_the_equation(accelerate) -> None:
    space, model = ran(loops("accelerate")[0], accelerate=accelerate)
    torch.testing.assert_close(flat(model), written_out(), **CLOSE)
    assert space["optimizer"].optimizer.steps == 4


def test_an_accelerator_that_accumulates_outside_is_refused(accelerate) -> None:
    code = loops("accelerate")[0].replace(
        "Accelerator(cpu", "Accelerator(gradient_accumulation_steps=2, cpu"
    )
    with pytest.raises(RuntimeError, match="inside the closure"):
        ran(code, accelerate=accelerate)
