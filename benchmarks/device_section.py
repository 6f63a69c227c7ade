"""The benchmark page's section on the device check: a GPU's figures beside the CPU's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.device_record import failures
from benchmarks.quantities import QUANTITIES

RECORD = Path(__file__).resolve().parents[1] / "results" / "device.json"
ABSENT = """\
The library has **not yet been run on a GPU**: there is no record of `make device-check`.
"""


def section(cpu: dict[str, Any], device: dict[str, Any] | None) -> str:
    """Return the section's text.

    Parameters
    ----------
    cpu : dict
        Record of the benchmark.
    device : dict or None
        Record of the device check on a GPU; None where there is none.
    """
    return ABSENT if device is None else _found(cpu, device)


def read(path: Path = RECORD) -> dict[str, Any] | None:
    """Return the record of a GPU's check, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _found(cpu: dict[str, Any], device: dict[str, Any]) -> str:
    wrong = failures(device)
    software, date = device["versions"]["torch"], device["date"][:10]
    minutes = device["seconds"] / 60
    lines = [
        f"On {device['device']}, with torch {software}, on {date}, in {minutes:.1f} minutes:",
        "",
        f"* calls of public functions on the GPU and on the CPU: {_count(device['calls'])} agree;",
        f"* runs of a study against their published records: {_count(device['study'])} agree;",
        f"* measures that keep their memory budget: {_count(device['budgets'])}.",
        "",
        "| what | with | gradients, CPU | gradients, GPU | milliseconds, GPU |",
        "|---|---|---:|---:|---:|",
        *(_row(cpu, row) for row in device["benchmark"]["rows"]),
        "",
    ]
    if wrong:
        lines += ["Findings:", "", *(f"* {sentence}" for sentence in wrong), ""]
    return "\n".join(lines)


def _count(part: dict[str, Any]) -> str:
    return f"{sum(row['agrees'] for row in part['rows'])} of {len(part['rows'])}"


def _row(cpu: dict[str, Any], row: dict[str, Any]) -> str:
    title = next(quantity.title for quantity in QUANTITIES if quantity.key == row["quantity"])
    here = next(
        (
            f"{one['gradients']:.2f}"
            for one in cpu["rows"]
            if (one["quantity"], one["tool"]) == (row["quantity"], row["tool"])
        ),
        "–",
    )
    there = (
        f"{row['gradients']:.2f} | {1e3 * row['seconds']:.2f}" if row["agrees"] else "void | void"
    )
    return f"| {title} | {row['tool']} | {here} | {there} |"
