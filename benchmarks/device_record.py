"""What a record of the device check says."""

from __future__ import annotations

import json
from typing import Any

PARTS = ("calls", "study", "budgets", "benchmark")


def summary(part: dict[str, Any]) -> str:
    """Return a part's outcome in words."""
    rows = part["rows"]
    text = f"{sum(row['agrees'] for row in rows)} of {len(rows)} agree, {part['seconds']:.0f} s"
    return text + (f"; stopped: {part['stopped']}" if part["stopped"] else "")


def failures(record: dict[str, Any]) -> list[str]:
    """Return a sentence for everything that does not agree, stopped or was left out."""
    said = [f"left out for want of time: {what}" for what in record["left_out"]]
    for name in PARTS:
        part = record[name]
        said += [f"{name} stopped: {part['stopped']}"] if part["stopped"] else []
        said += [f"{name}: {json.dumps(row)}" for row in part["rows"] if not row["agrees"]]
    return said
