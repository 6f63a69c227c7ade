"""Where a record came from: commit, versions, device, time and memory."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paperkit.experiments.paths import PACKAGE

# A record depends on the package and its pins; prose, notebooks and results may change.
CODE = ("paperkit", "pyproject.toml", "requirements.lock")


@dataclass(frozen=True)
class TreeState:
    """The commit of the code, and whether it has uncommitted changes; None where unknown."""

    commit: str | None
    dirty: bool | None


def tree_state(root: Path = PACKAGE.parent) -> TreeState:
    """Return the state of the code's git tree: the package and its pins.

    Parameters
    ----------
    root : path
        The folder that holds the package. If it is not the top of a git tree with a commit,
        the state is unknown, and such a record earns no verdict.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root.resolve():
        return TreeState(None, None)
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return TreeState(commit, None if changes is None else bool(changes))


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    # Variables such as GIT_DIR, which hooks set, would ask another repository.
    environment = {n: value for n, value in os.environ.items() if not n.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


class Stopwatch:
    """Wall time of a run, without the time spent on the runs that it needs."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._elsewhere = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside."""
        left = time.perf_counter()
        try:
            yield
        finally:
            self._elsewhere += time.perf_counter() - left

    @property
    def seconds(self) -> float:
        """Seconds since the start, pauses left out."""
        return time.perf_counter() - self._start - self._elsewhere


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of the peak memory, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak memory in bytes: of the process, and on a GPU of its allocator.

    Where the system cannot reset its high-water mark, the process's peak is the one since it
    began.
    """
    peak = {"process": _process_peak()}
    if device.type == "cuda":
        peak["device"] = int(torch.cuda.max_memory_allocated(device))
    return peak


def _process_peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """Return a readable name of the device: ``cpu (x86_64, 2 cores)`` or the GPU's name."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {os.cpu_count()} cores)"


def versions() -> dict[str, str]:
    """Return the versions of Python, torch and numpy."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def now() -> str:
    """Return the date and time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def describe(tree: TreeState, device: torch.device) -> dict[str, Any]:
    """Return the part of a provenance that every run of a session shares."""
    return {
        "commit": tree.commit,
        "dirty": tree.dirty,
        "versions": versions(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
