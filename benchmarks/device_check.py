"""The library on a device against the CPU; nothing is installed.

``make device-check DEVICE=cuda PYTHON=python3`` takes a Python that has its own PyTorch. It tries

* every public function's valid call in both formats, against the same call on the CPU;
* a study at the laptop profile, against its published records;
* memory budgets of the measures, in a process's first call;
* a short benchmark: quantities on ResNet-20, ours beside the plain program.

One JSON file says what was found and on which device. What a limit of time left out is listed in
it, and the check fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.device_calls import FORMATS, Place, called_names, compare_call
from benchmarks.device_record import failures, summary
from benchmarks.measuring import (
    Settings,
    fresh_processes,
    measure,
    memory,
    return_freed_memory,
)
from benchmarks.quantities import OURS, QUANTITIES
from paperkit.experiments import Study, provenance
from paperkit.experiments.archive import Archive
from paperkit.experiments.records import Record
from paperkit.experiments.session import Session
from paperkit.experiments.study import study_named
from tests.explicit_devices import ExplicitDevices

MEBIBYTE = 2**20
STUDY = "curvature_blocks"
BUDGET = 64 * MEBIBYTE
SLACK = 1.25
"""Bytes of an allocator over those that were asked of it, as on the CPU."""

MEASURES = (
    "gauss_newton_trace",
    "renyi_sharpness",
    "hessian_trace",
    "hessian_top_eigenvalues",
    "global_renyi_sharpness",
    "spectral_density",
    "information_geometric_sharpness",
    "takeuchi_information_criterion",
    "adaptive_sharpness",
    "sam_sharpness",
    "maximum_local_sensitivity",
    "measure",
)
"""Measures whose budgets are tried: each way to compute stands for the others of its kind."""

QUICK = (
    "hessian_product",
    "preparation",
    "layer_products",
    "exact_sharpness",
    "layer_sensitivities",
)
"""Quantities of the short benchmark."""

WAYS = ("benchmarks.with_paperkit", "benchmarks.with_torch")
SAMPLES = {"cuda": 64, "cpu": 4}


class Clock:
    """The time that the check may take."""

    def __init__(self, minutes: float) -> None:
        self.started = time.perf_counter()
        self.limit = 60 * minutes
        self.left_out: list[str] = []

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def allows(self, what: str) -> bool:
        """Whether there is time for one thing more; note the thing where there is none."""
        if self.seconds < self.limit:
            return True
        self.left_out.append(what)
        return False


def checked_calls(device: torch.device, clock: Clock) -> Iterator[dict[str, Any]]:
    """Yield each public function's comparison in both formats.

    A check of the CPU itself compares it with itself, so that it refuses what a GPU would: tensors
    that are made without a device.
    """
    rule = ExplicitDevices if device.type == "cpu" else nullcontext
    for name, function in called_names().items():
        for dtype in FORMATS.values():
            if clock.allows(f"call of {name} in {dtype}"):
                yield asdict(compare_call(name, function, Place(device, dtype), rule))


# --- study ------------------------------------------------------------------------------------


def checked_study(device: torch.device, clock: Clock) -> Iterator[dict[str, Any]]:
    """Yield each run of a study on the device, compared with its published record."""
    study = study_named(STUDY)
    published = {record.key: record for record in Archive().published.records(STUDY)}
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Archive(folder), "laptop", device, False)
        # The grid is not asked: its file needs a package that a GPU's machine may lack.
        for configuration in (record.configuration for record in published.values()):
            if not clock.allows(f"run of {STUDY} with {configuration}"):
                continue
            record = session.perform(study, configuration)
            yield _compared_run(study, record, published[record.key])


def _compared_run(study: Study, found: Record, published: Record) -> dict[str, Any]:
    here, there = dict(_numbers(published.metrics)), dict(_numbers(found.metrics))
    apart = [name for name in here if not _close(here[name], there.get(name), study)]
    apart += [name for name in there if name not in here]
    return {
        "study": study.name,
        "configuration": found.configuration,
        "seconds": found.provenance["seconds"],
        "agrees": not apart,
        "metrics_apart": {name: [here.get(name), there.get(name)] for name in apart},
    }


def _numbers(metrics: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(metrics, dict):
        for key, value in metrics.items():
            yield from _numbers(value, f"{name}.{key}" if name else key)
    else:
        yield name, metrics


def _close(a: Any, b: Any, study: Study) -> bool:
    """Apply the rule of audits: relative to the record, and round-off is never reproduced."""
    if isinstance(a, bool) or not isinstance(a, int | float) or not isinstance(b, int | float):
        return bool(a == b)
    return max(abs(a), abs(b)) < study.round_off or abs(a - b) <= study.tolerance * abs(a)


# --- memory budgets ---------------------------------------------------------------------------


def checked_budgets(device: torch.device, clock: Clock) -> Iterator[dict[str, Any]]:
    """Yield each measure's peak memory on a network of many outputs, in a fresh process."""
    with fresh_processes() as pool:
        for name in MEASURES:
            if clock.allows(f"memory budget of {name}"):
                yield pool.submit(peak_of_measure, name, str(device)).result()


def peak_of_measure(name: str, device_name: str) -> dict[str, Any]:
    """Measure the first call's peak memory above the model and its data.

    The device's kernels and their workspaces are loaded by one gradient before.
    """
    estimators = importlib.import_module("paperkit.estimators")
    device = torch.device(device_name)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1000)).to(device)
    inputs = torch.randn(16, 64, device=device)
    targets = torch.randint(0, 1000, (16,), device=device)
    functional.cross_entropy(model(inputs), targets).backward()
    model.zero_grad()
    return_freed_memory()
    provenance.reset_peak_memory(device)
    before = memory(device.type)
    refused = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            getattr(estimators, name)(model, (inputs, targets), memory_budget=BUDGET)
        except ValueError as error:
            refused = str(error)
    return budget_row(name, memory(device.type) - before, refused)


def budget_row(name: str, peak: int, refused: str) -> dict[str, Any]:
    """Return a row of the record; a measure may refuse for its budget, and for nothing else."""
    agrees = peak <= SLACK * BUDGET and (not refused or "memory_budget" in refused)
    return {"measure": name, "budget": BUDGET, "peak": peak, "agrees": agrees, "refused": refused}


# --- short benchmark --------------------------------------------------------------------------


def checked_benchmark(
    device: torch.device, clock: Clock, settings: Settings
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the short benchmark; each result is held against ours."""
    with fresh_processes() as pool:
        for quantity in (one for one in QUANTITIES if one.key in QUICK):
            reference: np.ndarray | None = None
            for module in WAYS:
                for tool in importlib.import_module(module).WAYS.get(quantity.key, ()):
                    what = f"benchmark of {quantity.key} with {tool}"
                    if not clock.allows(what):
                        continue
                    print(f"-- {what}", flush=True)
                    arguments = (module, quantity.key, quantity.problem, tool, settings)
                    row = pool.submit(measure, *arguments).result()
                    if tool == OURS:
                        reference = row.vector
                    yield _row(row.record(), row.vector, reference, quantity.tolerance)


def _row(
    row: dict[str, Any], found: np.ndarray, reference: np.ndarray | None, tolerance: float
) -> dict[str, Any]:
    if reference is None:
        return row | {"agrees": False}
    size = float(np.linalg.norm(reference))
    row["difference"] = float(np.linalg.norm(found - reference)) / size
    return row | {"agrees": row["difference"] <= tolerance}


# --- all of it --------------------------------------------------------------------------------


def check(device: torch.device, samples: int, minutes: float) -> dict[str, Any]:
    """Try everything; return the record.

    Parameters
    ----------
    device : torch.device
        Device to hold against the CPU.
    samples : int
        Samples of the short benchmark.
    minutes : float
        Time after which nothing new begins.
    """
    # Convolutions in TF32 have three digits; the comparisons want those of float32.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    clock = Clock(minutes)
    settings = Settings(samples=samples, device=device.type, repeats=3, enough=1.0, longest=5.0)
    parts = {
        "calls": checked_calls(device, clock),
        "study": checked_study(device, clock),
        "budgets": checked_budgets(device, clock),
        "benchmark": checked_benchmark(device, clock, settings),
    }
    record = provenance.describe(provenance.tree_state(), device) | {
        "kind": device.type,
        "date": provenance.now(),
        "samples": samples,
    }
    for name, rows in parts.items():
        began = clock.seconds
        part = _attempted(name, rows)
        record[name] = part | {"seconds": round(clock.seconds - began, 1)}
        print(f"-- {name}: {summary(record[name])}", flush=True)
    record["left_out"] = clock.left_out
    record["seconds"] = round(clock.seconds, 1)
    return record


@dataclass
class _Part:
    rows: list[dict[str, Any]]
    stopped: str = ""


def _attempted(name: str, rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Run a part to its end; an error ends the part and is written down."""
    part = _Part([])
    try:
        part.rows.extend(rows)
    except Exception as error:
        part.stopped = f"{type(error).__name__}: {error}"
        print(f"-- {name} stopped: {part.stopped}", file=sys.stderr)
    return asdict(part)


def main() -> None:
    """Check, write the record, and end with an exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--samples", type=int, help="samples of the short benchmark")
    parser.add_argument("--minutes", type=float, default=7.0, help="nothing new begins later")
    parser.add_argument("--output", type=Path, help="default: results/device.json for a GPU")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("DEVICE=cuda, but torch sees no GPU: DEVICE=cpu tries the check itself.")
    record = check(device, asked.samples or SAMPLES[device.type], asked.minutes)
    output = asked.output or Path("results" if device.type == "cuda" else "_build") / "device.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    said = failures(record)
    print(f"-- {record['device']}, {record['seconds']:.0f} s, written to {output}")
    if said:
        raise SystemExit("\n".join(said))


if __name__ == "__main__":
    main()
