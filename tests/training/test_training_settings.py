"""The papers' settings in the loop: losses, clipping, schedules, mixed precision, best weights."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from paperkit.data import Split, load
from paperkit.models import build
from paperkit.optim import SAM, SASGD
from paperkit.training import evaluate, learning_rate_factor, train
from tests.optim.problems import EVERY, STEP, batch, network
from tests.training.plain_loop import BATCH, SEED, by_hand

CLASSES = 3
every = pytest.mark.parametrize("name", list(EVERY))


def data(n: int = 24, dtype=torch.float64, device="cpu") -> Split:
    inputs, targets = batch(n)
    return Split(inputs.to(device, dtype), targets.to(device))


def linear(dtype=torch.float64, outputs=CLASSES) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(4, outputs).to(dtype)


def run(model, split, **options):
    defaults = {"epochs": 1, "progress": False, "warmup_epochs": 0, "schedule": "constant"}
    return train(model, split, **(defaults | options))


def one_step(model: nn.Module, gradients, lr=0.1) -> list[torch.Tensor]:
    return [p.detach() - lr * g for p, g in zip(model.parameters(), gradients, strict=True)]


PLAIN = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}


def step_of(objective, split, **options) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Take a step on all data; return its weights, and those by autograd."""
    model, twin = linear(), linear()
    run(model, split, batch_size=len(split), **PLAIN, **options)
    expected = one_step(twin, torch.autograd.grad(objective(twin), list(twin.parameters())))
    return list(model.parameters()), expected


def assert_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-12, atol=1e-14)


# --- losses ------------------------------------------------------------------------------------


def one_hot(targets):
    return functional.one_hot(targets, CLASSES).double()


LOSSES = {
    "mse": (functional.mse_loss, one_hot),
    "half_squared_error": (lambda f, y: 0.5 * (f - y).square().sum(dim=1).mean(), one_hot),
    "bce_with_logits": (functional.binary_cross_entropy_with_logits, one_hot),
    "poisson_nll": (functional.poisson_nll_loss, one_hot),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_by_name_is_minimised_and_evaluated(name) -> None:
    function, of_labels = LOSSES[name]
    split = data()
    split = Split(split.inputs, of_labels(split.targets))
    found, expected = step_of(lambda m: function(m(split.inputs), split.targets), split, loss=name)
    assert_same(found, expected)
    model = linear()
    result = run(model, split, loss=name, validation=split, lr=1e-9)
    final = evaluate(model, split, loss=name)
    assert final.loss == pytest.approx(function(model(split.inputs), split.targets).item())
    assert result.history[0]["loss"] == pytest.approx(final.loss, rel=1e-6)
    hits = model(split.inputs).argmax(dim=1) == split.targets.argmax(dim=1)
    assert final.accuracy == hits.double().mean().item()
    assert result.history[0]["validation_accuracy"] == final.accuracy


def test_targets_that_are_no_classes_have_no_accuracy() -> None:
    split = data()
    split = Split(split.inputs, split.inputs.sum(dim=1, keepdim=True))
    model = linear(outputs=1)
    result = run(model, split, epochs=3, loss=nn.MSELoss(), validation=split, lr=0.05)
    assert set(result.history[0]) == {"epoch", "loss", "lr", "validation_loss"}
    final = evaluate(model, split, loss=nn.MSELoss())
    assert math.isnan(final.accuracy)
    assert str(final) == f"loss {final.loss:.4f} on 24 samples"
    assert result.best.epoch == 3
    assert result.best.evaluation.loss == final.loss


@pytest.mark.parametrize(
    "module",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0]).double()),
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0]).double(), label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=1),
    ],
    ids=str,
)
def test_weighted_losses_are_torch_s_on_all_data_whatever_the_batches(module) -> None:
    split = data()
    if module.ignore_index == -100:
        split.targets[::5] = -100
    found, expected = step_of(lambda m: module(m(split.inputs), split.targets), split, loss=module)
    assert_same(found, expected)
    model = linear()
    counted = split.targets != module.ignore_index
    hits = (model(split.inputs).argmax(1) == split.targets)[counted]
    for size in (1, 5, 1000):
        result = evaluate(model, split, size, loss=module)
        assert result.loss == pytest.approx(module(model(split.inputs), split.targets).item())
        assert result.accuracy == hits.double().mean().item()
    # A batch of ignored labels moves nothing, where torch's own mean is undefined.
    order = split.targets.argsort()
    result = run(linear(), Split(split.inputs[order], split.targets[order]), batch_size=1,
                 loss=module, lr=1e-12)  # fmt: skip
    assert result.history[0]["loss"] == pytest.approx(
        module(model(split.inputs), split.targets).item(), rel=1e-6
    )
    assert result.history[0]["accuracy"] == hits.double().mean().item()


def test_soft_labels_train_as_torch_s() -> None:
    split = data()
    soft = torch.softmax(split.inputs[:, :CLASSES], dim=1)
    split = Split(split.inputs, soft)
    found, expected = step_of(lambda m: functional.cross_entropy(m(split.inputs), soft), split)
    assert_same(found, expected)


def test_label_smoothing_is_torch_s_in_training_and_off_in_validation() -> None:
    split = data()
    found, expected = step_of(
        lambda m: functional.cross_entropy(m(split.inputs), split.targets, label_smoothing=0.2),
        split,
        label_smoothing=0.2,
    )
    assert_same(found, expected)
    model = linear()
    result = run(model, split, label_smoothing=0.2, validation=split, batch_size=7)
    assert result.history[0]["validation_loss"] == evaluate(model, split).loss


@pytest.mark.parametrize(
    ("loss", "targets", "sentence"),
    [
        ("cross_entropy", torch.full((24,), -100), "data.targets has labels from -100"),
        ("cross_entropy", torch.arange(24) - 1, "data.targets has labels from -1"),
        ("cross_entropy", torch.arange(24) % 4, r"labels up to 3 need \(n, C\) outputs"),
        ("cross_entropy", torch.arange(24) > 3, "must be a Tensor with 1 dimension of integers"),
        ("cross_entropy", torch.ones(24, 3), "rows that are no probabilities"),
        (nn.CrossEntropyLoss(), torch.full((24,), -100), "data.targets has ignored labels only"),
        (nn.CrossEntropyLoss(), torch.arange(24) % 3 - 1, "data.targets has labels from -1"),
        (nn.NLLLoss(), torch.full((24,), -100), "data.targets has ignored labels only"),
        ("mse", torch.arange(24) % 3, "targets has shape"),
        (nn.MSELoss(), torch.full((24, 3), math.nan).double(), "targets"),
        ("bce_with_logits", torch.full((24, 3), 2.0).double(), "targets"),
        (nn.L1Loss(reduction="sum"), torch.ones(24, 3).double(), "reduction='mean'"),
    ],
)
def test_targets_that_do_not_fit_a_loss_are_refused(loss, targets, sentence) -> None:
    split, model = Split(data().inputs, targets), linear()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises((ValueError, TypeError), match=sentence):
        run(model, split, loss=loss)
    assert all(map(torch.equal, before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises((ValueError, TypeError), match=sentence.replace("data.", "split.")):
        evaluate(model, split, loss=loss)


def test_integer_labels_of_any_type_are_the_same() -> None:
    found = []
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        model, split = linear(), data()
        run(model, Split(split.inputs, split.targets.to(dtype)))
        found.append(model.weight.detach())
        assert torch.equal(found[0], found[-1])


# --- numbers that are not finite ------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "options",
    [
        {name: value}
        for name in (
            "lr",
            "momentum",
            "weight_decay",
            "warmup_epochs",
            "max_norm",
            "label_smoothing",
            "epochs",
            "batch_size",
            "seed",
        )
        for value in (NAN, INF, -INF)
    ]
    + [{"schedule": lambda t, value=value: value} for value in (NAN, INF, -1.0)]
    + [
        {"optimizer": partial(torch.optim.SGD, lr=NAN)},
        {"optimizer": partial(torch.optim.SGD, lr=INF)},
        {"optimizer": partial(torch.optim.SGD, lr=0.1, momentum=NAN)},
        {"optimizer": partial(torch.optim.SGD, lr=0.1, weight_decay=NAN)},
        {"optimizer": partial(torch.optim.Adam, lr=torch.tensor(NAN))},
        {"optimizer": partial(SAM, lr=NAN)},
        {"optimizer": partial(SAM, lr=0.1, rho=NAN)},
    ],
)
def test_a_setting_that_is_not_finite_is_refused(options) -> None:
    model = linear()
    before = model.weight.detach().clone()
    with pytest.raises((ValueError, TypeError)):
        run(model, data(), **options)
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


def spoil(model: nn.Module):
    """Make an optimizer whose last step writes a number that is not finite."""

    def make(parameters):
        sgd = torch.optim.SGD(parameters, lr=0.1)

        def write(*_):
            with torch.no_grad():
                model.bias[0] = NAN

        sgd.register_step_post_hook(write)
        return sgd

    return make


def test_weights_that_are_not_finite_end_a_run_also_after_its_last_step(tmp_path) -> None:
    model, path = linear(), tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match="the weights bias are not finite after epoch 1"):
        run(model, data(), batch_size=24, optimizer=spoil(model), checkpoint=path)
    assert not path.exists()
    assert model.weight.grad is None


# --- clipping --------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_clipping_is_torch_s(max_norm) -> None:
    split, model, twin = data(), linear(), linear()
    run(model, split, batch_size=24, max_norm=max_norm, **PLAIN)
    functional.cross_entropy(twin(split.inputs), split.targets).backward()
    norm = nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
    assert (norm > max_norm) == (max_norm < 1)
    assert_same(list(model.parameters()), one_step(twin, [p.grad for p in twin.parameters()]))


@every
def test_clipping_is_the_optimizer_s_own_where_it_clips(name) -> None:
    first, second = network(), network()
    options = {"batch_size": 8, "epochs": 2}
    run(
        first,
        data(),
        optimizer=lambda p: EVERY[name](first, **STEP[name]),
        max_norm=0.01,
        **options,
    )
    run(
        second,
        data(),
        optimizer=lambda p: EVERY[name](second, max_norm=0.01, **STEP[name]),
        **options,
    )
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_clipping_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_norm=1\.0 is set in the optimizer too, as 2"):
        run(linear(), data(), optimizer=partial(SAM, lr=0.1, max_norm=2.0), max_norm=1.0)


# --- schedules -------------------------------------------------------------------------------


def test_a_constant_schedule_keeps_the_rate_after_the_warm_up() -> None:
    result = run(linear(), data(), epochs=3, warmup_epochs=2, batch_size=12, lr=0.4)
    assert [record["lr"] for record in result.history] == pytest.approx([0.16, 0.32, 0.4])


def test_a_schedule_of_one_s_own_sees_the_progress_after_the_warm_up() -> None:
    seen = []

    def halves(progress):
        seen.append(progress)
        return 0.1 ** (progress >= 0.5)

    options = {"warmup_steps": 4, "total_steps": 12, "schedule": halves}
    factors = [learning_rate_factor(step, **options) for step in range(12)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1])
    assert seen == pytest.approx([k / 8 for k in range(8)])


def test_smoothness_adaptive_steps_without_a_schedule_are_the_paper_s() -> None:
    split, model, twin, closures = data(), linear(), linear(), 0
    run(model, split, epochs=4, batch_size=24, optimizer=partial(SASGD, eta0=0.1, full_batch=True))
    optimizer = SASGD(twin.parameters(), eta0=0.1, full_batch=True)

    def closure():
        nonlocal closures
        closures += 1
        optimizer.zero_grad()
        loss = functional.cross_entropy(twin(split.inputs), split.targets)
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    assert closures
    # The loop has the samples in another order.
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-9, atol=1e-12)


# --- mixed precision ---------------------------------------------------------------------------


def single(device="cpu") -> Split:
    return data(dtype=torch.float32, device=device)


def test_bfloat16_is_autocast_around_the_forward_pass(device) -> None:
    split, model, twin = single(device), network().float(), network().float().to(device)
    formats = []
    model.head.register_forward_hook(lambda layer, x, outputs: formats.append(outputs.dtype))
    result = run(model, split, autocast=torch.bfloat16, batch_size=24, validation=split, epochs=2)
    assert formats == [torch.bfloat16, torch.float32] * 2
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    run(twin, split, batch_size=24, epochs=2)
    assert not torch.equal(model.head.weight, twin.head.weight)
    torch.testing.assert_close(model.head.weight, twin.head.weight, rtol=0.1, atol=0.05)
    assert result.history[-1]["validation_loss"] == evaluate(model, split).loss


@pytest.mark.parametrize("caller_s", [False, True])
def test_mixed_precision_is_that_of_a_plain_loop_to_the_bit(caller_s) -> None:
    first, second = network().float(), network().float()

    def step(optimizer, model, inputs, targets):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()

    options = {"epochs": 3, "batch_size": BATCH, "seed": SEED, "progress": False}
    with torch.autocast("cpu", torch.bfloat16, enabled=caller_s):
        train(first, single(), autocast=torch.bfloat16, momentum=0, weight_decay=0, **options)
    by_hand(second, torch.optim.SGD(second.parameters(), lr=0.1), step, single(), epochs=3)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_regions_of_the_caller_change_nothing(device) -> None:
    split, first, second = single(device), network().float(), network().float()
    run(first, split, batch_size=8, validation=split)
    with torch.autocast(device.type, torch.bfloat16), torch.no_grad():
        run(second, split, batch_size=8, validation=split)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def plain_mixed_step(model, optimizer, split, scaler, max_norm=None):
    optimizer.zero_grad()
    with torch.autocast(split.inputs.device.type, torch.float16):
        loss = functional.cross_entropy(model(split.inputs), split.targets)
    scaler.scale(loss).backward()
    if max_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_float16_has_a_gradient_scaler_as_in_torch_s_own_loop(max_norm, device) -> None:
    model, twin = linear(torch.float32), linear(torch.float32).to(device)
    split = Split(single(device).inputs / 10, single(device).targets)  # no step overflows
    run(model, split, epochs=5, batch_size=24, autocast=torch.float16, max_norm=max_norm, **PLAIN)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device.type)
    for _ in range(5):
        plain_mixed_step(twin, optimizer, split, scaler, max_norm)
    # The loop has the samples in another order, and sums in half precision differ.
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-2, atol=1e-3)
    assert not torch.equal(model.weight.cpu(), linear(torch.float32).weight)


class Steep(nn.Linear):
    """A model whose scaled gradients overflow in half precision until the scale has come down."""

    def forward(self, inputs):
        return super().forward(inputs) * 8


def steep() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Steep(4, CLASSES)


@pytest.mark.parametrize("make", [torch.optim.SGD, SAM, partial(SAM, max_norm=0.1)])
def test_a_scaler_s_state_is_resumed_to_the_bit(make, tmp_path, device) -> None:
    path, whole, resumed = tmp_path / "run.pt", steep(), steep()
    optimizers = []

    def noted(parameters):
        optimizers.append(make(parameters, lr=0.01))
        return optimizers[-1]

    options = {"epochs": 4, "batch_size": 8, "autocast": torch.float16, "optimizer": noted}
    run(whole, single(device), **options)

    def interrupt(record):
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(steep(), single(device), checkpoint=path, on_epoch=interrupt, **options)
    saved = torch.load(path, weights_only=True)["scaler"]
    assert 0 < saved["scale"] < 2**16  # some steps overflowed
    assert run(resumed, single(device), checkpoint=path, **options).resumed_epochs == 2
    if device.type == "cpu":
        assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    assert not torch.equal(whole.weight.cpu(), steep().weight)


def test_an_optimizer_that_calls_its_closure_by_itself_has_no_scaler() -> None:
    with pytest.raises(ValueError, match="a gradient scaler, which LBFGS cannot use"):
        run(linear(torch.float32), single(), optimizer=torch.optim.LBFGS, autocast=torch.float16)


# --- best and last weights ---------------------------------------------------------------------


def test_best_and_last_weights_are_told_apart() -> None:
    train_data, validation = data(12), data(40)
    model, states, records = network(), [], []

    def note(record):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        records.append(record)

    result = run(model, train_data, epochs=12, batch_size=4, lr=0.5, validation=validation,
                 on_epoch=note)  # fmt: skip
    ranks = [(r["validation_accuracy"], -r["validation_loss"]) for r in records]
    best = ranks.index(max(ranks))
    assert best + 1 < 12, "the example is to have a best epoch before the last"
    assert result.best.epoch == best + 1
    assert all(torch.equal(result.best.weights[name], states[best][name]) for name in states[0])
    assert all(torch.equal(model.state_dict()[name], states[-1][name]) for name in states[0])
    model.load_state_dict(result.best.weights)
    assert evaluate(model, validation) == result.best.evaluation
    assert repr(result.best) == f"BestWeights(epoch={best + 1}, {result.best.evaluation})"


def test_without_validation_there_is_no_best() -> None:
    assert run(linear(), data()).best is None


# --- gradients -----------------------------------------------------------------------------------


def test_parameters_that_the_optimizer_does_not_move_collect_no_gradients() -> None:
    model, norms = network(), []

    def make(parameters):
        sgd = torch.optim.SGD(model.head.parameters(), lr=0.1)
        sgd.register_step_pre_hook(lambda *_: norms.append(model.first.weight.grad.norm().item()))
        return sgd

    run(model, data(), epochs=1, batch_size=8, optimizer=make)
    assert all(p.grad is None for p in model.parameters())
    twin = network()
    twin.zero_grad()
    assert len(norms) == 3
    assert max(norms) < 2 * min(norms) + 1  # they would add up


def test_chapter_s_sizes_still_train() -> None:
    digits = load("digits", train_size=200, test_size=50)
    model = build("mlp", in_channels=1, num_classes=10, input_shape=(1, 8, 8), hidden=(16,))
    result = run(model, digits.train, epochs=2, batch_size=32, optimizer=partial(SAM, lr=0.1))
    assert result.history[-1]["loss"] < result.history[0]["loss"]
