"""Measure everything side by side, print the table and, on request, write the record.

Run on a quiet machine, about half an hour::

    make benchmark

``python -m benchmarks --only steps`` runs a part; the page is made from a whole record.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.comparing import Compared, compare, prepare
from benchmarks.measuring import Measured, Settings, fresh_processes, measure
from benchmarks.networks import NETWORKS
from benchmarks.quantities import (
    BEST,
    COMBINED,
    NETWORK_QUANTITIES,
    QUANTITIES,
    STEP_KINDS,
    TRACE_SEEDS,
    Quantity,
)
from benchmarks.render import (
    console_compared,
    console_network,
    console_row,
    console_step,
    console_summary,
)
from benchmarks.steps import MeasuredStep, measure_step
from benchmarks.traces import trace_errors
from paperkit.experiments.provenance import describe, tree_state

# This library comes first, because the results of the others are compared with its own.
TOOLS = (
    "benchmarks.with_paperkit",
    "benchmarks.with_torch",
    "benchmarks.with_curvlinops",
    "benchmarks.with_eigenthings",
    "benchmarks.with_nngeometry",
)
STEP_TOOLS = ("benchmarks.optimizers", "benchmarks.with_pytorch_optimizer")
LIBRARIES = (
    "curvlinops-for-pytorch",
    "hessian-eigenthings",
    "nngeometry",
    "pytorch-optimizer",
)
GROUPS = ("rows", "networks", "traces", "steps")
"""Parts of a record: quantities side by side, the Hessian of other people's networks, errors of
Tr H, steps of optimizers."""
UNIT = Quantity("gradient", "one gradient, the unit")


def measure_quantities(settings: Settings) -> Iterator[Measured]:
    """Yield every quantity with every tool that has it."""
    with fresh_processes() as pool:
        for quantity in (UNIT, *QUANTITIES):
            reference: np.ndarray | None = None
            for module in TOOLS:
                for tool in import_module(module).WAYS.get(quantity.key, ()):
                    row = pool.submit(
                        measure, module, quantity.key, quantity.problem, tool, settings
                    ).result()
                    if reference is None:
                        reference = row.vector
                    else:
                        row = replace(row, difference=difference(row.vector, reference))
                    yield row


def measure_steps(settings: Settings) -> Iterator[MeasuredStep]:
    """Yield every kind of step with every tool that has it."""
    with fresh_processes() as pool:
        for kind in STEP_KINDS:
            reference: np.ndarray | None = None
            for module in STEP_TOOLS:
                for tool in import_module(module).STEPS.get(kind.key, ()):
                    row = pool.submit(measure_step, module, kind.key, tool, settings).result()
                    if reference is None:
                        reference = row.vector
                    else:
                        row = replace(row, difference=difference(row.vector, reference))
                    yield row


def compare_tools(network: str, folder: Path, settings: Settings) -> Iterator[Compared]:
    """Yield every call on one prepared network with every tool that has it."""
    with fresh_processes() as pool:
        for quantity in NETWORK_QUANTITIES:
            for module in TOOLS:
                for tool in getattr(import_module(module), "NETWORKS", {}).get(quantity, ()):
                    yield pool.submit(
                        compare, module, network, quantity, tool, folder, settings
                    ).result()


def difference(values: np.ndarray, reference: np.ndarray) -> float:
    """Return the norm of the difference, relative to the reference's."""
    return float(np.linalg.norm(values - reference) / np.linalg.norm(reference))


def best_others(rows: list[Measured]) -> Measured:
    """Return the combined measures' costs added up, each with the best tool that is not ours."""
    parts = []
    for quantity in (q for q in QUANTITIES if q.combined):
        agreeing = [
            row
            for row in rows
            if row.quantity == quantity.key
            and row.difference is not None
            and row.difference <= quantity.tolerance
        ]
        parts.append(min(agreeing, key=lambda row: row.gradients))
    combined = next(row for row in rows if row.quantity == COMBINED)
    return Measured(
        quantity=COMBINED,
        tool=BEST,
        gradients=sum(row.gradients for row in parts),
        seconds=sum(row.seconds for row in parts),
        gradient_seconds=float(np.median([row.gradient_seconds for row in parts])),
        peak=max(row.peak for row in parts),
        calls=min(row.calls for row in parts),
        remark="sum of the times above: " + ", ".join(row.tool for row in parts),
        difference=difference(np.concatenate([row.vector for row in parts]), combined.vector),
    )


def run_quantities(settings: Settings) -> list[dict[str, Any]]:
    """Measure all quantities; print each row as it comes."""
    rows = []
    for row in measure_quantities(settings):
        print(console_row(row.record()), flush=True)
        rows.append(row)
    rows.append(best_others(rows))
    print(console_row(rows[-1].record()), flush=True)
    return [row.record() for row in rows]


def run_steps(settings: Settings) -> list[dict[str, Any]]:
    """Measure all optimizers; print each row as it comes."""
    rows = []
    for row in measure_steps(settings):
        print(console_step(row.record()), flush=True)
        rows.append(row.record())
    return rows


def run_networks(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Measure all tools on other people's networks; print each row as it comes."""
    prepared, rows = [], []
    for network in NETWORKS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with fresh_processes() as pool:
                facts = pool.submit(prepare, network.name, folder, settings).result()
            print(console_network(facts), flush=True)
            prepared.append(facts)
            for row in compare_tools(network.name, folder, settings):
                rows.append(row.record())
                print(console_compared(rows[-1]), flush=True)
    return {"prepared": prepared, "rows": rows}


def run(settings: Settings, seeds: int, groups: Collection[str] = GROUPS) -> dict[str, Any]:
    """Measure the groups, in their order; return the record."""
    start = time.perf_counter()
    tree = tree_state()
    ways = {
        "rows": lambda: run_quantities(settings),
        "networks": lambda: run_networks(settings),
        "traces": lambda: [asdict(row) for row in trace_errors(seeds)],
        "steps": lambda: run_steps(settings),
    }
    results = {group: ways[group]() for group in GROUPS if group in groups}
    origin = describe(tree, torch.device(settings.device))
    origin["versions"] |= {name: version(name) for name in LIBRARIES}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        **origin,
        "settings": asdict(settings) | {"seeds": seeds},
        **results,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Parse the options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=Settings.samples)
    parser.add_argument("--repeats", type=int, default=Settings.repeats)
    parser.add_argument("--device", default=Settings.device)
    parser.add_argument("--batch", type=int, default=Settings.batch, help="of an optimizer's step")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="timed ones")
    parser.add_argument("--seeds", type=int, default=TRACE_SEEDS, help="of the estimates of Tr H")
    parser.add_argument(
        "--estimates", type=int, default=Settings.estimates, help="on other people's networks"
    )
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=GROUPS, help="parts of the record to measure"
    )
    parser.add_argument("--output", type=Path, help="where to write the record")
    options = parser.parse_args()
    # The libraries' warnings about themselves are switched off, in every process.
    os.environ["PYTHONWARNINGS"] = "ignore"
    settings = Settings(
        samples=options.samples,
        device=options.device,
        repeats=options.repeats,
        batch=options.batch,
        steps=options.steps,
        estimates=options.estimates,
    )
    record = run(settings, options.seeds, options.only)
    print(console_summary(record))
    if options.output:
        text = json.dumps(record, indent=1, ensure_ascii=False)
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
