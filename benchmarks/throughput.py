"""What the loop adds to training, and what processes save of a study's time.

Run on a quiet machine with two cores at least, about ten minutes::

    make throughput

The figures go to ``results/throughput.json``, and chapter 9 shows them. In the make target freed
memory stays with the process, because what it costs to fetch pages anew differs from run to run by
more than what is measured.

The bounds were set before anything was timed. Training through the library's loop takes at most 2 %
more than a bare loop of forward pass, backward pass and step on the same batches; and two processes
with a core each finish a study of 30 runs in at most 0.6 of the time that one process with one core
takes. A single process with two cores is timed too and not judged, because what it saves depends on
the network and not on the engine. The exit status is 1 where a bound is broken, and 2 where the
machine was busy, so that nothing is known.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from paperkit import models
from paperkit.data import Split
from paperkit.experiments import run_study, studies
from paperkit.experiments.engines import Allotment
from paperkit.experiments.provenance import describe, tree_state
from paperkit.training import train

MOST_OF_LOOP, MOST_OF_PROCESSES = 1.02, 0.6
STUDIES = Path(__file__).resolve().parent / "throughput_studies"
STUDY = "throughput_training"
BUSY = 0.3
"""Load of the machine before the benchmark, in cores, from which on its figures do not count."""


def loop_ratio(epochs: int, repeats: int, images: int = 1024, batch: int = 64) -> list[float]:
    """Return ratios of the loop's seconds to those of a bare loop, timed in turn.

    The processor's seconds count, of a single thread. Both train the same network on the same
    tensors, from the same weights.
    """
    torch.set_num_threads(1)
    generator = torch.Generator(device="cpu").manual_seed(0)
    inputs = torch.randn(images, 1, 28, 28, generator=generator, device="cpu")
    targets = torch.randint(10, (images,), generator=generator, device="cpu")
    orders = [torch.randperm(images, generator=generator, device="cpu") for _ in range(epochs)]

    def network() -> nn.Module:
        return models.build("resnet8", in_channels=1, num_classes=10, seed=0)

    def bare() -> None:
        model = network().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        for order in orders:
            for rows in order.split(batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
                optimizer.step()

    def through_the_loop() -> None:
        train(network(), Split(inputs, targets), epochs=epochs, batch_size=batch, progress=False)

    bare(), through_the_loop()  # a first call loads what later ones find loaded
    ratios = []
    for k in range(repeats):
        # The order of the two changes, so that a machine that slows down slows both.
        pair = (bare, through_the_loop) if k % 2 == 0 else (through_the_loop, bare)
        seconds = {one: spent(one, time.process_time) for one in pair}
        ratios.append(seconds[through_the_loop] / seconds[bare])
    return ratios


def spent(action: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    action()
    return clock() - begun


def study_seconds(profile: str) -> dict[str, float]:
    """Return the wall seconds of a study by one process with one core and two, and by two."""
    if str(STUDIES) not in studies.__path__:
        studies.__path__.append(str(STUDIES))
    ways = {
        "one process, one core": (1, "in-process", None),
        "one process, two cores": (2, "in-process", None),
        "two processes, a core each": (1, "processes", Allotment(jobs=2, cpus=1)),
    }
    found = {}
    for name, (threads, engine, allotment) in ways.items():
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as store:
            found[name] = spent(
                lambda store=store, engine=engine, allotment=allotment: run_study(
                    STUDY, profile, store, engine, progress=False, allotment=allotment
                ),
                time.perf_counter,
            )
    return found


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="try that it runs; figures mean less")
    parser.add_argument("--output", type=Path, help="a file for the figures, as JSON")
    given = parser.parse_args(words)
    load = os.getloadavg()[0]
    ratios = loop_ratio(epochs=1, repeats=2, images=64) if given.quick else loop_ratio(3, 31)
    seconds = study_seconds("smoke" if given.quick else "laptop")
    loop = statistics.median(ratios)
    share = seconds["two processes, a core each"] / seconds["one process, one core"]
    is_busy = load > BUSY
    print(f"load of the machine before: {load:.2f} cores")
    print(f"loop against a bare one: {loop:.4f} (at most {MOST_OF_LOOP}), ratios {ratios}")
    for name, took in seconds.items():
        print(f"study, {name}: {took:.1f} s")
    print(f"two processes against one: {share:.3f} (at most {MOST_OF_PROCESSES})")
    if given.output:
        facts = {"load": load, "quick": given.quick, "loop": ratios, "study": seconds}
        facts["provenance"] = describe(tree_state(), torch.device("cpu"))
        given.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if is_busy or given.quick:
        print("These figures do not count: the run was quick, or the machine was not quiet.")
        return 2
    return int(loop > MOST_OF_LOOP or share > MOST_OF_PROCESSES)


if __name__ == "__main__":
    sys.exit(main())
