"""Training, and its resumption to the bit.

Run as a script, ``test_training.py CHECKPOINT STEP THREADS`` trains the network of the
tests and kills itself with SIGKILL in the middle of a step.
"""

import math
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from paperkit.data import Split, augment, load
from paperkit.models import build
from paperkit.training import Evaluation, checkpointing, evaluate, learning_rate_factor, train

SAMPLES, BATCH, EPOCHS = 100, 32, 3
STEPS = 4  # an epoch: three batches of 32 and one of 4


def digits(device="cpu", **options):
    return load("digits", train_size=SAMPLES, test_size=50, device=device, **options)


def network(seed=0):
    """A network with everything that carries state: batch statistics, dropout, several groups."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(4 * 6 * 6, 10),
        )


def run(model, data, **options):
    defaults = {
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "seed": 3,
        "augment": partial(augment, padding=1),
        "progress": False,
    }
    return train(model, data, **(defaults | options))


def weights(model):
    return {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}


def same_weights(first, second):
    return all(torch.equal(first[name], second[name]) for name in first) and len(first) == len(
        second
    )


@contextmanager
def stopped_at(step, stop):
    """Call ``stop`` in the middle of a step, between two layers' forward passes.

    A hook would be a part of the model, and the checkpoint would belong to a model that has it.
    """
    calls, forward = iter(range(step + 1)), nn.ReLU.forward

    def counted(layer, inputs):
        if next(calls) == step:
            stop()
        return forward(layer, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.ReLU, "forward", counted)
        yield


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def data():
    """On the CPU, where equal runs are equal to the bit."""
    return digits()


@pytest.fixture(scope="module")
def device_data(device):
    return digits(device)


@pytest.fixture(scope="module")
def uninterrupted(data):
    model = network()
    result = run(model, data.train)
    return weights(model), result


# --- the loop ---------------------------------------------------------------------------


def test_a_small_network_learns_real_digits(device, device_data):
    model = network()
    result = run(model, load("digits", device=device).train, epochs=4, augment=False)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    # Guessing among ten balanced classes is right on 10 % of 50 samples with standard error 4.2 %.
    assert evaluate(model, device_data.test).accuracy > 0.6


def test_two_runs_with_one_seed_are_identical_and_another_seed_differs(data, uninterrupted):
    again, other = network(), network()
    result = run(again, data.train)
    run(other, data.train, seed=4)
    assert same_weights(weights(again), uninterrupted[0])
    assert result.history == uninterrupted[1].history
    assert not same_weights(weights(other), uninterrupted[0])


def test_the_steps_are_those_of_plain_sgd_with_this_schedule(device, device_data):
    """Two epochs against a loop written out by hand."""
    options = {"epochs": 2, "augment": False, "warmup_epochs": 1}
    model, twin = (build("mlp", in_channels=1, num_classes=10, input_shape=(1, 8, 8), hidden=(16,))
                   for _ in range(2))  # fmt: skip
    seen = []
    model.fc1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    result = run(model, device_data.train, **options)

    flat = device_data.train.inputs.flatten(1)
    twin.to(device)
    velocity = [torch.zeros_like(p) for p in twin.parameters()]
    for step, batch in enumerate(seen):
        rows = [(flat == row).all(dim=1).nonzero()[0, 0].item() for row in batch]
        targets = device_data.train.targets[rows]
        loss = functional.cross_entropy(twin(device_data.train.inputs[rows]), targets)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        warm = (step + 1) / 5 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 4))
        with torch.no_grad():
            for p, v, g in zip(twin.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + 5e-4 * p)
                p.sub_(0.1 * warm * v)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert result.history[-1]["lr"] == pytest.approx(0.1 * warm)
    assert result.steps == len(seen) == 8


def test_every_epoch_sees_every_sample_once_in_a_new_order(data):
    model, seen = network(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    run(model, data.train, augment=False)
    assert [len(batch) for batch in seen] == [32, 32, 32, 4] * EPOCHS
    orders = []
    for epoch in range(EPOCHS):
        inputs = torch.cat(seen[epoch * STEPS : (epoch + 1) * STEPS]).flatten(1)
        rows = (inputs[:, None] == data.train.inputs.flatten(1)[None]).all(dim=2)
        orders.append(rows.float().argmax(dim=1).tolist())
        assert sorted(orders[-1]) == list(range(SAMPLES))
    assert orders[0] != orders[1] != orders[2]


def test_history_is_the_mean_over_the_samples_seen_in_training(device_data):
    model, outputs = network(), []
    model.register_forward_hook(lambda *arguments: outputs.append(arguments[2].detach()))
    order = []
    model.register_forward_pre_hook(lambda _, inputs: order.append(inputs[0].clone()))
    result = run(model, device_data.train, augment=False, epochs=1)
    inputs, logits = torch.cat(order).flatten(1), torch.cat(outputs)
    rows = (inputs[:, None] == device_data.train.inputs.flatten(1)[None]).all(dim=2)
    targets = device_data.train.targets[rows.float().argmax(dim=1)]
    (record,) = result.history
    assert record["epoch"] == 1
    loss = functional.cross_entropy(logits.double(), targets).item()
    assert record["loss"] == pytest.approx(loss, rel=1e-6)
    assert record["accuracy"] == (logits.argmax(dim=1) == targets).double().mean().item()


def test_validation_is_recorded_and_does_not_change_the_weights(data, uninterrupted):
    model = network()
    result = run(model, data.train, validation=data.test)
    assert same_weights(weights(model), uninterrupted[0])
    final = evaluate(model, data.test)
    assert result.history[-1]["validation_loss"] == final.loss
    assert result.history[-1]["validation_accuracy"] == final.accuracy


def test_another_optimizer_keeps_its_rates_times_the_schedule(data):
    model, rates = network(), []

    def make(parameters):
        first, *others = parameters
        groups = [{"params": [first], "lr": 0.01}, {"params": others}]
        adam = torch.optim.Adam(groups, lr=0.002)
        adam.register_step_pre_hook(
            lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
        )
        return adam

    run(model, data.train, optimizer=make, warmup_epochs=1)
    factors = [
        learning_rate_factor(step, warmup_steps=STEPS, total_steps=STEPS * EPOCHS)
        for step in range(STEPS * EPOCHS)
    ]
    np.testing.assert_allclose(rates, [[0.01 * f, 0.002 * f] for f in factors], rtol=1e-12)


def test_on_epoch_is_called_with_each_record(data):
    records = []
    result = run(network(), data.train, on_epoch=records.append)
    assert tuple(records) == result.history


def test_training_leaves_generators_modes_and_gradients_as_a_caller_expects(device_data):
    model = network()
    model[1].eval()
    before = torch.get_rng_state()
    run(model, device_data.train)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_generator_modes_and_gradients_are_as_expected_after_an_exception_as_well(data):
    model = network().eval()
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt), stopped_at(1, interrupt):
        run(model, data.train)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_caller_s_generator_does_not_change_the_outcome(data, uninterrupted):
    model = network()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(987)
        run(model, data.train)
    assert same_weights(weights(model), uninterrupted[0])


def test_the_progress_bar_goes_to_stderr_and_can_be_switched_off(device_data, capsys):
    run(network(), device_data.train, epochs=1, progress=True)
    shown = capsys.readouterr()
    assert "training: 100%" in shown.err
    assert shown.out == ""
    run(network(), device_data.train, epochs=1)
    assert capsys.readouterr().err == ""


def test_the_model_is_moved_to_the_device_of_the_data(device, device_data):
    model = network()
    run(model, device_data.train, epochs=1)
    assert {parameter.device.type for parameter in model.parameters()} == {device.type}


# --- the schedule -----------------------------------------------------------------------


def test_the_rate_rises_in_equal_steps_then_follows_half_a_cosine_to_zero():
    factors = [learning_rate_factor(k, warmup_steps=4, total_steps=12) for k in range(12)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[8] == pytest.approx(0.5)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert learning_rate_factor(12, warmup_steps=4, total_steps=12) == pytest.approx(0)


def test_without_warm_up_the_first_step_has_the_whole_rate():
    assert learning_rate_factor(0, warmup_steps=0, total_steps=5) == 1


# --- resumption -------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(STEPS * EPOCHS))
def test_a_run_interrupted_at_any_step_resumes_to_the_same_weights(
    data, uninterrupted, tmp_path, step
):
    path = tmp_path / "run.pt"
    resumed = network()
    with pytest.raises(KeyboardInterrupt), stopped_at(step, interrupt):
        run(network(), data.train, checkpoint=path)
    result = run(resumed, data.train, checkpoint=path)
    assert result.resumed_epochs == step // STEPS
    assert same_weights(weights(resumed), uninterrupted[0])
    assert result.history == uninterrupted[1].history
    assert result.steps == uninterrupted[1].steps


def test_a_process_killed_in_the_middle_of_an_epoch_resumes_to_the_same_weights(
    data, uninterrupted, tmp_path
):
    path = tmp_path / "run.pt"
    arguments = [path, 2 * STEPS + 1, torch.get_num_threads()]
    killed = subprocess.run([sys.executable, __file__, *map(str, arguments)], check=False)
    assert killed.returncode == -signal.SIGKILL
    model = network()
    result = run(model, data.train, checkpoint=path)
    assert result.resumed_epochs == 2
    assert same_weights(weights(model), uninterrupted[0])


def test_a_run_cut_off_while_writing_its_checkpoint_resumes_to_the_same_weights(
    data, uninterrupted, tmp_path, monkeypatch
):
    path = tmp_path / "run.pt"
    replace, calls = os.replace, []

    def cut_off_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cut_off_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(network(), data.train, checkpoint=path)
    model = network()
    assert run(model, data.train, checkpoint=path).resumed_epochs == 1
    assert same_weights(weights(model), uninterrupted[0])


def test_adam_s_moments_survive_an_interruption(data, tmp_path):
    adam = partial(torch.optim.Adam, lr=0.01)
    path = tmp_path / "run.pt"
    whole, resumed = network(), network()
    run(whole, data.train, optimizer=adam)
    with pytest.raises(KeyboardInterrupt), stopped_at(2 * STEPS, interrupt):
        run(network(), data.train, optimizer=adam, checkpoint=path)
    run(resumed, data.train, optimizer=adam, checkpoint=path)
    assert same_weights(weights(resumed), weights(whole))


def test_a_finished_run_is_loaded_and_not_repeated(data, uninterrupted, tmp_path):
    path = tmp_path / "run.pt"
    first = run(network(), data.train, checkpoint=path)
    model = network()
    with stopped_at(0, interrupt):
        second = run(model, data.train, checkpoint=path)
    assert second.resumed_epochs == EPOCHS
    assert (second.history, second.seconds) == (first.history, first.seconds)
    assert same_weights(weights(model), uninterrupted[0])


def test_checkpoints_are_written_every_so_many_epochs_and_after_the_last(
    data, tmp_path, monkeypatch
):
    epochs = []
    monkeypatch.setattr(
        checkpointing.checkpoints, "save", lambda state, path: epochs.append(state["epoch"])
    )
    run(network(), data.train, epochs=5, checkpoint=tmp_path / "run.pt", checkpoint_every=2)
    assert epochs == [2, 4, 5]


def test_the_checkpoint_holds_what_its_description_says(data, tmp_path):
    path = tmp_path / "run.pt"
    model = network()
    run(model, data.train, checkpoint=path)
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == EPOCHS
    assert state["step"] == EPOCHS * STEPS
    assert same_weights(state["model"], weights(model))
    assert len(state["optimizer"]["state"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epochs": EPOCHS + 1}, "epochs"),
        ({"batch_size": 50}, "batch_size"),
        ({"seed": 4}, "seed"),
        ({"lr": 0.2}, "optimizer"),
        ({"weight_decay": 0.0}, "optimizer"),
        ({"warmup_epochs": 1}, "warmup_epochs"),
        ({"augment": True}, "augment"),
        ({"augment": partial(augment, padding=2)}, "augment"),
        ({"optimizer": torch.optim.Adam}, "optimizer"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_by_name(data, tmp_path, options, named):
    path = tmp_path / "run.pt"
    run(network(), data.train, checkpoint=path)
    with pytest.raises(ValueError, match=f"{path} belongs to a run with other {named}; delete it"):
        run(network(), data.train, checkpoint=path, **options)


def test_a_checkpoint_of_other_data_weights_or_layers_is_refused_by_name(data, tmp_path):
    path = tmp_path / "run.pt"
    run(network(), data.train, checkpoint=path)
    with pytest.raises(ValueError, match="other data; delete it"):
        run(network(), digits(seed=1).train, checkpoint=path)
    with pytest.raises(ValueError, match="other data; delete it"):
        run(network(), digits(normalize=False).train, checkpoint=path)
    with pytest.raises(ValueError, match="other validation; delete it"):
        run(network(), data.train, validation=data.test, checkpoint=path)
    with pytest.raises(ValueError, match="other initial weights; delete it"):
        run(network(seed=1), data.train, checkpoint=path)
    with pytest.raises(ValueError, match="initial weights"):
        other = build("mlp", in_channels=1, num_classes=10, input_shape=(1, 8, 8))
        run(other, data.train, checkpoint=path)


def test_a_damaged_checkpoint_says_which_file_to_delete(data, tmp_path):
    path = tmp_path / "run.pt"
    run(network(), data.train, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"the checkpoint {path} is damaged; delete it"):
        run(network(), data.train, checkpoint=path)


# --- evaluation -------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
def test_evaluation_is_exact_for_any_batch_size(device, device_data, batch_size):
    model = network().to(device).eval()
    result = evaluate(model, device_data.test, batch_size)
    logits = model(device_data.test.inputs).double()
    expected = functional.cross_entropy(logits, device_data.test.targets).item()
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert (
        result.accuracy == (logits.argmax(dim=1) == device_data.test.targets).double().mean().item()
    )
    assert result.n == 50


def test_evaluation_uses_running_statistics_and_no_dropout_and_restores_each_mode(
    device, device_data
):
    model = network().to(device)
    model[3].eval()
    before = weights(model)
    first, second = evaluate(model, device_data.test), evaluate(model, device_data.test)
    assert first == second
    assert same_weights(weights(model), before)
    assert [module.training for module in model] == [True, True, True, False, True, True]


def test_modes_are_restored_when_the_evaluation_fails(device, device_data):
    model = network().to(device)
    with pytest.raises(KeyboardInterrupt), stopped_at(0, interrupt):
        evaluate(model, device_data.test)
    assert all(module.training for module in model.modules())


def test_an_evaluation_prints_itself_readably():
    assert str(Evaluation(0.25, 0.925, 40)) == "loss 0.2500, accuracy 92.50% on 40 samples"


# --- refusals ---------------------------------------------------------------------------


def test_a_diverging_run_stops_with_one_sentence_and_writes_no_checkpoint(device_data, tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match=r"training loss became .* in epoch 1, by step"):
        run(network(), device_data.train, lr=1e30, warmup_epochs=0, checkpoint=path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"epochs": 0}, ValueError, "epochs=0 must be at least 1"),
        ({"epochs": 1.5}, TypeError, "epochs=1.5 must be an integer"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every=0 must be at least 1"),
        ({"seed": -1}, ValueError, "seed=-1 must be at least 0"),
        ({"warmup_epochs": 4}, ValueError, "warmup_epochs=4 must be between 0 and 3"),
        ({"augment": "flip"}, TypeError, "augment='flip' must be True, False or a function"),
        (
            {"optimizer": torch.optim.Adam, "lr": 0.01},
            ValueError,
            "belong to the default optimizer; set them inside optimizer= instead",
        ),
    ],
)
def test_arguments_that_make_no_sense_get_one_sentence(data, options, error, sentence):
    with pytest.raises(error, match=sentence):
        run(network(), data.train, **options)


def test_empty_data_are_refused(device, data):
    empty = Split(data.train.inputs[:0], data.train.targets[:0])
    with pytest.raises(ValueError, match="data is empty"):
        run(network(), empty)
    with pytest.raises(ValueError, match="split is empty"):
        evaluate(network().to(device), empty)


def test_a_model_of_another_precision_is_refused(data):
    with pytest.raises(ValueError, match=r"parameters are torch.float64 and the inputs torch.fl"):
        run(network().double(), data.train)


if __name__ == "__main__":
    checkpoint, step, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    victim = network()
    with stopped_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        run(victim, digits().train, checkpoint=checkpoint)
