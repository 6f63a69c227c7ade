"""A monitored run is the unmonitored one; its numbers are those of measure; its time is bounded."""

from __future__ import annotations

import copy
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from paperkit.data import Split
from paperkit.estimators import MEASURES, Measurement, PassMeasure, measure
from paperkit.estimators.result import flatten
from paperkit.monitor import DEFAULT_MEASURES, MonitorWarning, SharpnessMonitor
from paperkit.optim import SAM
from paperkit.training import train


class Stateful(nn.Module):
    """Counts, queues and draws in its forward pass, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
        )
        self.average = nn.Linear(6, 2)
        self.average.requires_grad_(False)
        self.register_buffer("passes", torch.zeros(()))
        self.count = 0
        self.queue: list[int] = []
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.passes = self.passes + 1
        self.queue.append(len(x))
        torch.rand((), generator=self.generator)
        with torch.no_grad():
            self.average.weight.mul_(0.99)
        return self.inner(x)


def batches(n: int = 40) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(n)
    ]


SAMPLES = tuple(torch.cat(parts) for parts in zip(*batches(3), strict=True))


def everything(model: nn.Module) -> list[Any]:
    """Return all that training goes on from, as values that compare to the bit."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    own = [model.count, list(model.queue), model.generator.get_state()]
    return [
        state,
        gradients,
        modes,
        own,
        [torch.get_rng_state(), torch.tensor(np.random.get_state()[1]), random.getstate()],  # noqa: NPY002
    ]


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return all(same(first[name], second[name]) for name in first | second)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def trained(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    **options: Any,
) -> tuple[list[Any], SharpnessMonitor | None]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    model = Stateful()
    model.inner[4].eval()
    monitor = SharpnessMonitor(model, SAMPLES, **options) if options else None
    made = optimizer(model)
    for inputs, targets in batches():

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            made.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        made.step(closure)
        if monitor is not None:
            monitor.step()
    return everything(model), monitor


OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "SAM": lambda model: SAM(model, rho=0.05, lr=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_monitored_run_is_the_unmonitored_one_to_the_bit(optimizer) -> None:
    plain, _ = trained(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MonitorWarning)  # a pass that counts itself has no jets
        monitored, monitor = trained(optimizer, measures=MEASURES, every=10, budget=None)
    assert same(monitored, plain)
    assert monitor is not None and [reading.step for reading in monitor.readings] == [
        10,
        20,
        30,
        40,
    ]


def test_a_single_reading_changes_nothing_whatever_is_read() -> None:
    torch.manual_seed(0)
    model = Stateful()
    cross_entropy(model(SAMPLES[0]), SAMPLES[1]).backward()
    before = everything(model)
    # Making a monitor runs the model, too.
    monitor = SharpnessMonitor(model, SAMPLES, MEASURES)
    assert same(everything(model), before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MonitorWarning)
        monitor.read()
    assert same(everything(model), before)
    assert not monitor.is_reading


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


DATA = (SAMPLES[0].double(), SAMPLES[1])


def test_numbers_are_those_of_measure_at_the_same_weights() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    monitor = SharpnessMonitor(model, DATA, MEASURES, every=2, budget=None)
    for step in range(6):
        optimizer.zero_grad()
        cross_entropy(model(DATA[0]), DATA[1]).backward()
        optimizer.step()
        numbers = monitor.step()
        if step % 2 == 0:
            assert numbers is None
            continue
        reading = monitor.readings[-1].report
        expected = measure(model, DATA, MEASURES)
        assert list(reading) == list(expected) and not reading.missing
        top, cold = reading["hessian_top_eigenvalues"], expected["hessian_top_eigenvalues"]
        # The searches come to the eigenvalue from different vectors.
        assert abs(float(top) - float(cold)) <= float(top.residuals + cold.residuals)
        for name in set(expected) - {"hessian_top_eigenvalues"}:
            found = [one.value for one in flatten(reading[name])]
            assert found == [one.value for one in flatten(expected[name])], name
        assert numbers["sharpness/step"] == step + 1
        assert numbers["sharpness/mean_loss"] == float(expected["mean_loss"])
        layer = expected["renyi_sharpness"]["0"][0.5]
        assert numbers["sharpness/renyi_sharpness/0/0.5"] == layer.value


def test_a_search_for_the_top_eigenvalue_goes_on_from_the_last_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 50), nn.Tanh(), nn.Linear(50, 3)).double()
    monitor = SharpnessMonitor(model, DATA, ["hessian_top_eigenvalues"], every=1, budget=None)
    products = []
    for _ in range(2):
        monitor.step()
        found = monitor.readings[-1].report["hessian_top_eigenvalues"]
        products.append(found.assumptions["products"])
    assert products[1] < products[0]


def test_measures_of_ones_own_are_followed() -> None:
    def finish(parts: Any, problem: Any) -> Measurement:
        return Measurement(value=7.0, measure="seven", method="exact", n=1)

    monitor = SharpnessMonitor(network(), DATA, ["mean_loss", PassMeasure("seven", finish)])
    assert monitor.measures == ("mean_loss", "seven")
    numbers = monitor.read()
    assert numbers is not None and numbers["sharpness/seven"] == 7.0


# -- time ------------------------------------------------------------------------------------------


class Clock:
    """A clock that training and readings set forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def timed(clock: Clock, costs: dict[str, Callable[[], float]], **options: Any) -> SharpnessMonitor:
    """Return a monitor whose readings take the given seconds, and expects the first ones."""
    monitor = SharpnessMonitor(network(), DATA, list(costs), **options)
    for task in monitor._tasks:
        (name,) = task.names
        task.account.cost = costs[name]()
        result = Measurement(value=0.0, measure=name, method="exact", n=1)

        def slow(name: str = name, result: Measurement = result) -> Any:
            clock.now += costs[name]()
            return {name: result}, {}

        task.read = slow
    return monitor


@pytest.mark.parametrize("budget", [0.02, 0.1, 0.5])
def test_the_share_of_the_time_is_at_most_the_budget(clock, budget) -> None:
    costs = {"parameter_norm": lambda: 0.01, "mean_loss": lambda: 0.3, "hessian_trace": lambda: 4.0}
    monitor = timed(clock, costs, every=5, budget=budget)
    for _ in range(4000):
        clock.now += 1.0
        monitor.step()
        assert monitor.share <= budget
    readings = [task.account.readings for task in monitor._tasks]
    # All that a budget can pay for is paid for, to a tenth, unless everything is read when due.
    assert monitor.share > 0.9 * budget or readings == [800, 800, 800]
    assert readings[0] >= readings[1] >= readings[2] >= 1


def test_a_reading_that_takes_longer_than_the_last_ones_is_made_up_for(clock) -> None:
    generator = random.Random(0)
    costs = {"mean_loss": lambda: generator.uniform(0.1, 3.0)}
    monitor = timed(clock, costs, every=1, budget=0.1)
    excess = []
    for _ in range(5000):
        clock.now += 0.1
        monitor.step()
        excess.append(monitor._spent - 0.1 / 0.9 * monitor._trained)
    # A single reading can be longer than expected, by what readings differ.
    assert max(excess) <= 2.9
    assert monitor.share <= 0.1 + 2.9 / clock.now


def test_without_a_budget_everything_is_read_when_it_is_due(clock) -> None:
    costs = {"mean_loss": lambda: 100.0}
    monitor = timed(clock, costs, every=3, budget=None)
    for _ in range(9):
        clock.now += 0.1
        monitor.step()
    assert [reading.step for reading in monitor.readings] == [3, 6, 9]
    assert monitor.share == pytest.approx(300 / 300.8)  # the clock starts after the first step


def test_what_does_not_fit_says_so(clock) -> None:
    monitor = timed(clock, {"mean_loss": lambda: 50.0}, every=1)
    for _ in range(10):
        clock.now += 1.0
        monitor.step()
    assert "not read yet: mean_loss; a reading would take about 50 s" in repr(monitor)
    assert monitor.read() is not None  # whatever it costs
    assert "not read yet" not in repr(monitor)
    assert re.search(r"1 readings in 10 steps, 84.7% of the time \(budget 10%\)", repr(monitor))


def test_a_resumed_run_goes_on_with_steps_and_times(clock) -> None:
    monitor = timed(clock, {"mean_loss": lambda: 0.5}, every=2)
    for _ in range(100):
        clock.now += 1.0
        monitor.step()
    other = SharpnessMonitor(network(), DATA, ["mean_loss"], every=2)
    other.load_state_dict(copy.deepcopy(monitor.state_dict()))
    clock.now += 1000.0  # the time between two runs is no training
    other.step()
    assert (other.steps, other.share) == (101, pytest.approx(monitor.share))


def test_real_time_is_bounded_too() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = SharpnessMonitor(model, DATA, every=5)
    started = time.perf_counter()
    while time.perf_counter() - started < 4.0:
        optimizer.zero_grad()
        cross_entropy(model(DATA[0]), DATA[1]).backward()
        optimizer.step()
        monitor.step()
    longest = max(reading.seconds for reading in monitor.readings)
    assert monitor.readings
    # Another program may make a reading longer than it was expected to be.
    assert monitor.share <= 0.1 + longest / 4.0


# -- places to write to ----------------------------------------------------------------------------


class Run:
    """The part of an experiment tracker that is called."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def log(self, numbers: dict[str, float]) -> None:
        self.seen.append(numbers)


class MetricsLogger:
    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.seen.append((metrics, step))


def test_numbers_go_to_everything_that_logs() -> None:
    run, logger, seen = Run(), MetricsLogger(), []
    monitor = SharpnessMonitor(
        network(),
        DATA,
        ["mean_loss"],
        every=1,
        budget=None,
        log=[run, logger, seen.append],
        prefix="s",
    )
    numbers = monitor.step(5)
    assert list(numbers) == ["s/mean_loss", "s/step"] and numbers["s/step"] == 5
    assert run.seen == seen == [numbers] and logger.seen == [(numbers, 5)]


def test_tensorboard_reads_what_was_written(tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: nothing is written")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    monitor = SharpnessMonitor(network(), DATA, ["mean_loss"], every=2, budget=None, log=writer)
    for _ in range(4):
        monitor.step()
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = events.Scalars("sharpness/mean_loss")
    assert [scalar.step for scalar in scalars] == [2, 4]
    # The file keeps single precision.
    assert scalars[0].value == pytest.approx(monitor.series()["mean_loss"][1][0], rel=1e-6)


def test_the_table_has_a_row_for_each_result() -> None:
    monitor = SharpnessMonitor(
        network(), DATA, ["mean_loss", "layer_gauss_newton_traces"], every=1, budget=None
    )
    assert next(iter(monitor.frame())) == "step" and len(monitor.frame()) == 0
    monitor.step()
    monitor.step()
    table = monitor.frame()
    assert list(table["step"]) == [1, 1, 1, 2, 2, 2]
    assert list(table["measure"][:3]) == [
        "mean_loss",
        "layer_gauss_newton_traces",
        "layer_gauss_newton_traces",
    ]


def test_it_draws_a_panel_for_each_measure_with_its_thresholds() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monitor = SharpnessMonitor(
        network(), DATA, ["mean_loss", "renyi_sharpness"], every=1, budget=None
    )
    with pytest.raises(ValueError, match=r"draw: there is no reading yet; call step\(\)"):
        monitor.draw()
    monitor.step()
    monitor.step()
    with pytest.raises(ValueError, match="thresholds"):
        monitor.draw({"hessian_trace": {"bound": 1.0}})
    figure = monitor.draw({"mean_loss": {"ln 3": float(np.log(3))}})
    loss, renyi = figure.axes
    assert (loss.get_ylabel(), renyi.get_ylabel()) == ("mean loss", "renyi sharpness")
    curve, threshold = loss.get_lines()
    assert curve.get_ydata().tolist() == monitor.series()["mean_loss"][1]
    assert set(threshold.get_ydata()) == {float(np.log(3))} and threshold.get_label() == "ln 3"
    assert [line.get_label() for line in renyi.get_lines()] == [
        f"{layer}, order {alpha}" for layer in (0, 2) for alpha in (0.5, 1.5)
    ]
    matplotlib.pyplot.close(figure)


# -- refusals --------------------------------------------------------------------------------------


def test_a_measure_that_cannot_be_had_does_not_stop_training() -> None:
    tokens = nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2))
    data = torch.tensor([[0, 1, 2], [2, 3, 4]]), torch.tensor([0, 1])
    monitor = SharpnessMonitor(
        tokens, data, ["maximum_local_sensitivity", "mean_loss"], every=1, budget=None
    )
    for step in range(1, 4):
        with pytest.warns(MonitorWarning, match=f"maximum_local_sensitivity at step {step}: it"):
            numbers = monitor.step()
        assert list(numbers) == ["sharpness/mean_loss", "sharpness/step"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.step()  # not asked for any more
    assert "not asked for any more" in repr(monitor)
    assert monitor.readings[0].report.missing.keys() == {"maximum_local_sensitivity"}


def test_a_run_that_diverged_is_told_apart_from_a_reading() -> None:
    model = network()
    monitor = SharpnessMonitor(model, DATA, ["hessian_trace"], every=1, budget=None)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.warns(MonitorWarning, match="hessian_trace at step 1"):
        assert monitor.step() is None


def test_user_code_is_told_of_a_reading() -> None:
    model = network()
    seen = []
    monitor = SharpnessMonitor(model, DATA, ["mean_loss"], every=2, budget=None)
    model.register_forward_hook(lambda *_: seen.append(monitor.is_reading))
    for _ in range(2):
        model(DATA[0])
        monitor.step()
    assert seen[:2] == [False, False] and all(seen[2:]) and len(seen) > 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 0}, "every=0"),
        ({"budget": 1.0}, "budget=1"),
        ({"budget": 0.0}, "budget=0"),
        ({"measures": "all"}, "measures='all': pass a list of names"),
        ({"measures": ["sharpnes"]}, "sharpnes"),
        ({"layers": ["7"]}, "7"),
        ({"log": 3}, "log=3 has no method log"),
        ({"loss": "hinge"}, "hinge"),
        ({"prefix": 1}, "prefix=1"),
        ({"data": (DATA[0], DATA[1] + 7)}, "target"),
    ],
)
def test_bad_arguments_get_a_sentence_when_the_monitor_is_made(options, sentence) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        SharpnessMonitor(network(), **{"data": DATA, **options})


def test_a_run_that_goes_on_from_an_earlier_step_replaces_its_readings() -> None:
    monitor = SharpnessMonitor(network(), DATA, ["mean_loss"], every=2, budget=None)
    for step in (1, 2, 3, 4, 5, 6):
        monitor.step(step)
    first = monitor.readings[0]
    for step in (4, 5, 6, 7, 8):
        monitor.step(step)
    assert [reading.step for reading in monitor.readings] == [2, 4, 6, 8]
    assert monitor.readings[0] is first
    with pytest.raises(ValueError, match="step=-1"):
        monitor.step(-1)
    assert monitor.steps == 8


def test_training_that_is_killed_and_resumed_is_followed_on(tmp_path) -> None:
    split = Split(SAMPLES[0], SAMPLES[1])
    options = {"epochs": 4, "batch_size": 8, "progress": False, "checkpoint": tmp_path / "run.pt"}
    model = network().float()
    monitor = SharpnessMonitor(model, SAMPLES, ["mean_loss"], every=2, budget=None)

    def killed_at_step_8(step: int) -> None:
        monitor.step(step)
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, split, on_step=killed_at_step_8, **options)
    # An epoch has three steps, and the checkpoint was written after six. A run is resumed from the
    # weights with which it began.
    model.load_state_dict(network().float().state_dict())
    train(model, split, on_step=monitor.step, **options)
    uninterrupted = network().float()
    other = SharpnessMonitor(uninterrupted, SAMPLES, ["mean_loss"], every=2, budget=None)
    train(uninterrupted, split, on_step=other.step, **{**options, "checkpoint": None})
    assert monitor.series() == other.series()


# -- loops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [None, lambda parameters: SAM(parameters, lr=0.1)])
def test_the_librarys_loop_is_followed(optimizer) -> None:
    split = Split(SAMPLES[0], SAMPLES[1])
    options = {"epochs": 4, "batch_size": 8, "progress": False, "optimizer": optimizer}
    plain, followed = network().float(), network().float()
    train(plain, split, **options)
    monitor = SharpnessMonitor(followed, SAMPLES, every=5, budget=None)
    train(followed, split, on_step=monitor.step, **options)
    assert same(list(plain.parameters()), list(followed.parameters()))
    assert [reading.step for reading in monitor.readings] == [5, 10]
    assert monitor.measures == DEFAULT_MEASURES


def test_a_compiled_model_is_followed() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    monitor = SharpnessMonitor(compiled, DATA, ["hessian_trace"], every=1, budget=None)
    compiled(DATA[0])
    numbers = monitor.step()
    assert numbers["sharpness/hessian_trace"] == float(
        measure(model, DATA, ["hessian_trace"])["hessian_trace"]
    )
