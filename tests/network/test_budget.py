"""A memory budget cuts the samples, never changes a value, and is kept."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from networks import NAMED
from torch import Tensor, nn

from paperkit.curvature import HessianOperator
from paperkit.estimators.adaptive_sharpness import average_adaptive_sharpness
from paperkit.estimators.baselines import generalization_gap, mean_exponential_loss, mean_loss
from paperkit.estimators.fisher_rao import fisher_rao_norm
from paperkit.estimators.local_dimension import local_dimension
from paperkit.estimators.pac_bayes import pac_bayes_flatness
from paperkit.estimators.sensitivity import (
    input_invariant_local_sensitivity,
    maximum_local_sensitivity,
    normalized_maximum_local_sensitivity,
)
from paperkit.estimators.volume import log_volume
from paperkit.estimators.worst_case import asam_sharpness, sam_sharpness
from paperkit.linearize.linearize import linearize, linearize_in_chunks
from paperkit.network.evaluation import evaluation
from paperkit.network.footprint import FORWARD, Chunks, SavedStorages, footprint
from paperkit.network.interaction import SamplesInteractError

MEASURES: dict[str, Callable] = {
    "mean_loss": mean_loss,
    "mean_exponential_loss": mean_exponential_loss,
    "generalization_gap": lambda m, d, **o: generalization_gap(m, d, (d[0][:3], d[1][:3]), **o),
    "fisher_rao_norm": fisher_rao_norm,
    "fisher_rao_norm, observed": lambda m, d, **o: fisher_rao_norm(m, d, labels="observed", **o),
    "average_adaptive_sharpness": lambda m, d, **o: average_adaptive_sharpness(
        m, d, rho=0.5, probes=3, **o
    ),
    "pac_bayes_flatness": lambda m, d, **o: pac_bayes_flatness(m, d, draws=2, **o),
    "sam_sharpness": lambda m, d, **o: sam_sharpness(m, d, steps=4, **o),
    "sam_sharpness, per batch": lambda m, d, **o: sam_sharpness(
        m, [(d[0][:4], d[1][:4]), (d[0][4:], d[1][4:])], steps=4, per_batch=True, **o
    ),
    "asam_sharpness": lambda m, d, **o: asam_sharpness(m, d, steps=4, **o),
    "maximum_local_sensitivity": maximum_local_sensitivity,
    "maximum_local_sensitivity, lanczos": lambda m, d, **o: maximum_local_sensitivity(
        m, d, method="lanczos", **o
    ),
    "normalized_maximum_local_sensitivity": normalized_maximum_local_sensitivity,
    "input_invariant_local_sensitivity": input_invariant_local_sensitivity,
    "log_volume": log_volume,
    "local_dimension": local_dimension,
}
every_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))


class Pairs(nn.Module):
    """Fails on one sample, whose outputs it squeezes away; samples do not interact."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(inputs))).squeeze()


def pairs(device: torch.device) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Pairs().double()
    inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (8,), generator=generator)
    return model.to(device), (inputs.to(device), targets.to(device))


@contextmanager
def sizes_seen(model: nn.Module) -> Iterator[list[int]]:
    """Record how many samples each call of the model sees."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    try:
        yield seen
    finally:
        handle.remove()


@every_measure
def test_a_budget_of_one_byte_takes_one_sample_at_a_time_and_changes_nothing(
    measure: Callable, device: torch.device, explicit_devices
) -> None:
    model, inputs, targets = NAMED["residual"].make(n=7, device=device)
    with sizes_seen(model) as seen:
        whole = measure(model, (inputs, targets))
    assert max(seen) >= 4  # all of the data or, per batch, all of the larger batch
    with sizes_seen(model) as seen, explicit_devices():
        cut = measure(model, (inputs, targets), memory_budget=1)
    # Whether samples interact is looked for in two, without a graph.
    assert set(seen) <= {1, 2}
    assert seen[-1] == 1
    assert cut.n == whole.n
    assert float(cut) == pytest.approx(float(whole), rel=1e-10)


@every_measure
def test_a_model_that_fails_on_one_sample_gets_two(measure: Callable, device: torch.device) -> None:
    model, data = pairs(device)
    if measure is MEASURES["generalization_gap"]:
        data = (data[0][:6], data[1][:6])

        def measure(m, d, **o):
            return generalization_gap(m, d, (d[0][:4], d[1][:4]), **o)

    whole = measure(model, data)
    with sizes_seen(model) as seen:
        cut = measure(model, data, memory_budget=1)
    assert set(seen) <= {1, 2}
    assert float(cut) == pytest.approx(float(whole), rel=1e-10)


@every_measure
def test_small_data_pass_at_once_by_default(measure: Callable, device: torch.device) -> None:
    model, inputs, targets = NAMED["residual"].make(n=6, device=device)
    with sizes_seen(model) as seen:
        measure(model, (inputs, targets))
    # The footprint, and what is looked for first, take one sample or two.
    assert next(n for n in seen if n > 2) in (4, 6)


@every_measure
def test_a_budget_must_be_positive(measure: Callable) -> None:
    model, inputs, targets = NAMED["residual"].make(n=6)
    with pytest.raises(ValueError, match="memory_budget=0 must be at least 1"):
        measure(model, (inputs, targets), memory_budget=0)


def test_the_footprint_counts_what_one_sample_saves(device: torch.device) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double().to(device)
    inputs = torch.zeros(100, 5, dtype=torch.float64, device=device)
    with evaluation(model) as parameters:
        found = footprint(model, parameters, inputs)
    # The inputs of the first layer, and tanh's outputs, which the second layer shares.
    assert found.saved == 8 * (5 + 7)
    assert (found.num_inputs, found.num_outputs, found.element_size) == (5, 3, 8)
    assert (found.workspace, found.fewest) == (0, 1)


def test_the_footprint_counts_the_unfolded_inputs_of_a_float64_convolution() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    inputs = torch.zeros(2, 4, 6, 5, dtype=torch.float64)
    with evaluation(model) as parameters:
        double = footprint(model, parameters, inputs)
    # A sample is unfolded into 4 channels × 9 taps = 36 entries at each of 4 × 3 positions.
    assert double.workspace == 8 * 36 * 12
    model.float()
    with evaluation(model) as parameters:
        assert footprint(model, parameters, inputs.float()).workspace == 0


def test_chunks_are_of_nearly_equal_sizes_and_keep_the_order(device: torch.device) -> None:
    model = nn.Linear(5, 3).double().to(device)
    inputs = torch.arange(50, dtype=torch.float64, device=device).reshape(10, 5)
    data = [(inputs, torch.arange(10)), (inputs[:3], torch.arange(3))]
    with evaluation(model) as parameters:
        each = footprint(model, parameters, inputs).bytes_of(FORWARD)
        chunks = Chunks(model, parameters, lambda s: s.bytes_of(FORWARD), int(4 * each) + 1)
        found = list(chunks(data))
        fewer = Chunks(
            model, parameters, lambda s: s.bytes_of(FORWARD), int(4 * each) + 1, reserved=int(each)
        )
        assert [len(x) for x, _ in fewer(data)] == [3, 3, 2, 2, 3]
    assert [len(x) for x, _ in found] == [4, 3, 3, 3]
    assert torch.equal(torch.cat([x for x, _ in found[:3]]), inputs)
    assert torch.cat([y for _, y in found]).tolist() == [*range(10), *range(3)]


def test_samples_that_interact_are_not_torn_apart() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(inputs - inputs.mean(dim=0))

    model = Centred().double()
    data = (torch.eye(3, dtype=torch.float64).repeat(4, 1), torch.zeros(12, dtype=torch.int64))
    whole = float(mean_loss(model, data))
    assert whole > 0.0
    with evaluation(model) as parameters:
        each = footprint(model, parameters, data[0]).bytes_of(FORWARD)
    with pytest.raises(SamplesInteractError):
        mean_loss(model, data, memory_budget=int(3 * each))


_PEAK = """
import os, sys, threading, time, torch
from paperkit.estimators.sensitivity import maximum_local_sensitivity
from paperkit.estimators.worst_case import sam_sharpness
from paperkit.models import build

torch.set_num_threads(1)
model = build("resnet20", in_channels=3, num_classes=10, seed=0)
data = torch.randn(64, 3, 32, 32), torch.zeros(64, dtype=torch.int64)
call = {
    "maximum_local_sensitivity": maximum_local_sensitivity,
    "sam_sharpness": lambda m, d, **o: sam_sharpness(m, d, steps=1, **o),
}[sys.argv[1]]


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


call(model, (data[0][:1], data[1][:1]))  # what the libraries load once
base = peak = resident()
done = False


def poll():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.001)


thread = threading.Thread(target=poll)
thread.start()
call(model, data, memory_budget=int(sys.argv[2]))
done = True
thread.join()
print(peak - base)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("measure", ["maximum_local_sensitivity", "sam_sharpness"])
def test_the_peak_of_memory_stays_below_the_budget(measure: str) -> None:
    budget = 64 * 2**20  # all samples at once take 150 MiB or more
    command = [sys.executable, "-c", _PEAK, measure, str(budget)]
    # Every tensor gets pages of its own, so that what is freed is given back at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    peak = int(run.stdout)
    assert peak < 1.15 * budget
    # A budget that is hardly used would be kept as well, but cost speed.
    assert peak > 0.2 * budget


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_counting_what_a_pass_saves_leaves_no_tensor_behind(activation: type[nn.Module]) -> None:
    """An operation that holds its own output through a hook would never be freed."""

    def alive() -> int:
        gc.collect()
        return sum(type(found) is Tensor for found in gc.get_objects())

    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), activation(), nn.Flatten(), nn.Linear(72, 3), activation()
    )
    inputs, targets = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    linearize(model, inputs)  # torch loads modules at first use
    HessianOperator(model, (inputs, targets))
    maximum_local_sensitivity(model, (inputs, targets))
    before = alive()
    linearize(model, inputs)
    HessianOperator(model, (inputs, targets))
    maximum_local_sensitivity(model, (inputs, targets))
    assert alive() == before


def test_every_storage_that_a_pass_saves_counts_also_where_another_was_freed_before_it() -> None:
    model = nn.Sequential(*(nn.Tanh() for _ in range(10)))
    inputs = torch.randn(1, 1000, requires_grad=True)
    saved = SavedStorages([inputs])
    with saved.noted():
        model(inputs)
    assert saved.bytes() == 10 * inputs.nbytes  # a tanh saves what it returns


def test_a_loop_that_deletes_its_chunks_gets_larger_ones() -> None:
    hidden = [part for _ in range(4) for part in (nn.Linear(32, 32), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(32, 8)).double()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 32, generator=generator, dtype=torch.float64)
    data, budget = (inputs, torch.arange(200) % 8), 10**6
    outputs = model(inputs).detach()
    kept, deleted = [], []
    for chunk, _ in linearize_in_chunks(model, data, memory_budget=budget):
        kept.append(chunk.outputs)
    for chunk, _ in linearize_in_chunks(model, data, memory_budget=budget):
        deleted.append(chunk.outputs)
        del chunk
    torch.testing.assert_close(torch.cat(kept), outputs, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(torch.cat(deleted), outputs, rtol=1e-13, atol=1e-14)
    # The first chunk gets half of the budget. So does the second where the first is deleted; where
    # the first is kept, the second gets a quarter.
    assert len(kept[0]) == len(deleted[0])
    assert len(kept[1]) <= 0.6 * len(kept[0]) < len(deleted[1])
