"""Every optimizer through the loop: against a loop by hand, killed, and resumed, all to the bit."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from paperkit.data import Split
from paperkit.optim import RSAM, SAM, GradientRegularization
from paperkit.training import train
from tests.optim.problems import EVERY, STEP, VARIANTS, batch, network
from tests.training.plain_loop import BATCH, EPOCHS, SEED, by_hand, closure_step, plain_step

SAMPLES = 22
STEPS = 3  # an epoch: two batches of 8 and a batch of 6

ROOT = Path(__file__).parents[2]
MAKE = EVERY | VARIANTS
every = pytest.mark.parametrize("name", list(MAKE))


def data() -> Split:
    return Split(*batch(SAMPLES))


def run(name: str, model: nn.Module, **options):
    def make(parameters):
        return MAKE[name](model, **STEP[name])

    defaults = {"epochs": EPOCHS, "batch_size": BATCH, "seed": SEED, "progress": False}
    return train(model, data(), optimizer=make, **(defaults | options))


def state_of(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(map(torch.equal, state_of(first), state_of(second)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sgd_takes_the_steps_of_a_plain_loop_to_the_bit(seed, dtype) -> None:
    inputs, targets = batch(30, seed=seed)
    split = Split(inputs.to(dtype), targets)
    first, second = network(seed=seed).to(dtype), network(seed=seed).to(dtype)
    train(first, split, epochs=4, batch_size=BATCH, seed=seed, progress=False)
    sgd = torch.optim.SGD(second.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    by_hand(second, sgd, plain_step, split, seed=seed, epochs=4)
    assert same(first, second)
    assert not same(first, network(seed=seed).to(dtype))


@every
def test_an_optimizer_takes_the_steps_of_a_loop_by_hand_to_the_bit(name) -> None:
    first, second = network(), network()
    run(name, first)
    by_hand(second, MAKE[name](second, **STEP[name]), closure_step, data())
    assert same(first, second)
    assert not same(first, network())


@every
def test_loss_and_hits_are_those_of_the_first_pass(name) -> None:
    model, calls = network(), []
    losses, hits = [], 0
    loss = torch.nn.functional.cross_entropy

    def counted(outputs, targets, **options):
        calls.append((outputs.detach(), targets))
        return loss(outputs, targets, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "cross_entropy", counted)
        result = run(name, model, epochs=1)
    # The first pass of a step is where the batch changes.
    firsts = [
        call
        for before, call in zip([None, *calls], calls, strict=False)
        if before is None or before[1] is not call[1]
    ]
    assert len(firsts) == STEPS
    for outputs, targets in firsts:
        losses += [loss(outputs, targets).item() * len(targets)]
        hits += int((outputs.argmax(dim=1) == targets).sum())
    assert result.history[0]["loss"] == pytest.approx(sum(losses) / SAMPLES, rel=1e-12)
    assert result.history[0]["accuracy"] == hits / SAMPLES


@contextmanager
def dropout_calls(on_call) -> Iterator[None]:
    """Call ``on_call`` in each forward pass, between two layers; a hook would be the model's."""
    forward = nn.Dropout.forward

    def counted(layer, inputs):
        on_call()
        return forward(layer, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", counted)
        yield


def end_by_kill(name: str, path: Path) -> None:
    """Train, and end by SIGKILL in the last forward pass of a step in the second epoch."""
    passes = itertools.count()
    with dropout_calls(lambda: next(passes)):
        run(name, network())
    last = next(passes) * (STEPS + 2) // (STEPS * EPOCHS)
    again = itertools.count()

    def kill():
        if next(again) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    with dropout_calls(kill):
        run(name, network(), checkpoint=path)


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory) -> Path:
    """A folder of checkpoints, each left behind by a process that was killed while it trained."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.training.test_training_optimizers", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


@every
def test_a_run_that_is_killed_and_resumed_has_the_same_weights_to_the_bit(
    name, killed_runs
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole, resumed = network(), network()
        expected = run(name, whole)
        result = run(name, resumed, checkpoint=killed_runs / f"{name}.pt")
    finally:
        torch.set_num_threads(threads)
    assert result.resumed_epochs == 1
    assert result.history == expected.history
    assert same(resumed, whole)


@every
def test_a_run_interrupted_after_each_epoch_has_the_same_weights_to_the_bit(name, tmp_path) -> None:
    path, whole, resumed = tmp_path / "run.pt", network(), network()
    expected = run(name, whole, validation=data())

    def stop_after(epoch):
        def stop(record):
            if record["epoch"] == epoch:
                raise KeyboardInterrupt

        return stop

    # The interruption comes before the checkpoint of its epoch is written.
    for epoch in range(2, EPOCHS + 1):
        model = network()
        with pytest.raises(KeyboardInterrupt):
            run(name, model, validation=data(), checkpoint=path, on_epoch=stop_after(epoch))
        assert all(p.grad is None for p in model.parameters())
    result = run(name, resumed, validation=data(), checkpoint=path)
    assert result.resumed_epochs == EPOCHS - 1
    assert result.history == expected.history
    assert same(resumed, whole)
    assert result.best.epoch == expected.best.epoch
    best, again = expected.best.weights, result.best.weights
    assert all(torch.equal(best[key], again[key]) for key in best)


def test_lbfgs_which_calls_its_closure_often_is_resumed_too(tmp_path) -> None:
    path, whole, resumed = tmp_path / "run.pt", network(), network()

    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)

    options = {"optimizer": lbfgs, "epochs": EPOCHS, "batch_size": BATCH, "progress": False}
    train(whole, data(), **options)

    def stop(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(), data(), checkpoint=path, on_epoch=stop, **options)
    assert train(resumed, data(), checkpoint=path, **options).resumed_epochs == 1
    assert same(whole, resumed)
    assert not same(whole, network())


# --- switches ---------------------------------------------------------------------------------


def rsam_steps(switch, **options) -> tuple[list[bool], RSAM]:
    """Train with RSAM; say for each step whether it took two gradients."""
    made, counts = [], []

    def make(parameters):
        optimizer = RSAM(parameters, rho=0.1, lr=0.1, **switch)
        optimizer.register_step_post_hook(lambda o, *_: counts.append(o.gradient_evaluations))
        made.append(optimizer)
        return optimizer

    fixed = {"epochs": EPOCHS, "batch_size": BATCH, "progress": False}
    train(network(), data(), optimizer=make, **fixed, **options)
    return [after - before == 2 for before, after in itertools.pairwise([0, *counts])], made[0]


@pytest.mark.parametrize("plain", range(EPOCHS + 1))
def test_rsam_is_told_of_its_plain_epochs(plain) -> None:
    perturbed, optimizer = rsam_steps({"plain_epochs": plain})
    assert perturbed == [False] * STEPS * plain + [True] * STEPS * (EPOCHS - plain)
    assert optimizer.epochs == EPOCHS


def test_rsam_is_told_of_the_validation_accuracy() -> None:
    perturbed, optimizer = rsam_steps({"validation_threshold": -1.0}, validation=data())
    assert perturbed == [False] * STEPS + [True] * STEPS * (EPOCHS - 1)
    perturbed, optimizer = rsam_steps({"validation_threshold": 1.0}, validation=data())
    assert not any(perturbed)
    assert 0 < optimizer.best_validation <= 1


def test_rsam_that_waits_for_an_accuracy_needs_validation_data() -> None:
    with pytest.raises(ValueError, match="RSAM waits for a validation accuracy"):
        rsam_steps({"validation_threshold": 0.3})


def test_plain_epochs_before_the_switch_are_those_of_sgd_to_the_bit() -> None:
    first, second = network(), network()
    options = {"epochs": 2, "batch_size": BATCH, "progress": False}
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    train(first, data(), optimizer=partial(RSAM, rho=0.1, plain_epochs=2, **sgd), **options)
    train(second, data(), **options)
    assert same(first, second)


# --- a checkpoint belongs to one set of options ------------------------------------------------

OPTIONS = {
    "SAM": [{"p": 3.0}, {"p": float("inf")}, {"rho": 0.1}, {"max_norm": 1.0}, {"momentum": 0.5}],
    "ASAM": [{"scaled": "all"}, {"eta": 0.1}],
    "EigenSAM": [{"alpha": 0.4}, {"tau": 0.5}, {"seed": 9}],
    "RSAM": [
        {"alpha": 0.7},
        {"mode": "exact"},
        {"max_radius": 1.0},
        {"tau": 0.5},
        {"plain_steps": 2},
        {"plain_epochs": 1},
    ],
    "GR double": [{"method": "finite_difference"}],
    "GR difference": [{"tau": 0.5}],
    "IGSAM": [{"samples": 4}],
    "SASAM": [
        {"ascent": "gradient"},
        {"rho_rule": 0.1},
        {"delta": 0.1},
        {"damping": 3.0},
        {"theta0": 1.0},
        {"variant": "release"},
        {"full_batch": True},
        {"eta0": 0.2},
    ],
    "SASGD": [{"weight_decay": 0.1}],
}


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in OPTIONS for options in OPTIONS[name]]
)
def test_a_checkpoint_of_an_optimizer_with_other_options_is_refused(
    name, options, tmp_path
) -> None:
    path = tmp_path / "run.pt"

    def run_with(**others):
        model = network()
        make = {
            "SAM": SAM,
            "GR double": GradientRegularization,
            "GR difference": partial(GradientRegularization, method="finite_difference"),
        }.get(name, lambda parameters, **options: EVERY[name](model, **options))
        return train(
            model,
            data(),
            epochs=1,
            progress=False,
            checkpoint=path,
            optimizer=lambda parameters: make(list(parameters), **{**STEP[name], **others}),
        )

    run_with()
    assert run_with().resumed_epochs == 1
    with pytest.raises(ValueError, match="belongs to a run with other optimizer; delete it"):
        run_with(**options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # an optimizer searches the objects that are younger
    for every_name in MAKE:
        child = os.fork()
        if child == 0:
            end_by_kill(every_name, Path(sys.argv[1], f"{every_name}.pt"))
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"{every_name} was not killed")
