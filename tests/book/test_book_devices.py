"""Chapters compute on the device that they are given.

A chapter's cells run at the smoke profile on a processor that plays two devices, where no tensor is
made without a device, and none of the accelerator's meets one of the processor's; on a machine with
CUDA the same cells run there. The verdicts at a chapter's head make no tensors of the chapter's and
are left out.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paperkit.publishing.notebooks import chapters, read_source

ROOT = Path(__file__).parents[2]
# A chapter that does not import PyTorch hands the device to its studies, and makes no tensors.
TORCH = re.compile(r"^import torch$", re.M)
CHAPTERS = chapters(ROOT / "notebooks")
SOURCES = [one for one in CHAPTERS if TORCH.search(one.read_text("utf-8"))]
SCRIPT = """
import contextlib
import matplotlib
matplotlib.use("agg")
import torch
from tests.two_devices import TwoDevices
namespace = {{"__name__": "__main__"}}
with {rule}():
    for cell in {cells!r}:
        exec(compile(cell, cell.partition(chr(10))[0], "exec"), namespace)
assert namespace["p"].device == torch.device({device!r})
"""


def cells_of(source: Path, store: Path, device: str) -> list[str]:
    found = []
    for cell in read_source(source).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and not cell.source.startswith(
            "from paperkit.ledger import sh"
        ):
            found.append(cell.source)
        if "parameters" in tags:
            found.append(f"profile, device, store = 'smoke', {device!r}, {str(store)!r}")
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_chapter_computes_on_the_device_that_it_is_given(source, tmp_path, device):
    name, rule = (
        ("cuda", "contextlib.nullcontext") if device.type == "cuda" else ("cpu:0", "TwoDevices")
    )
    script = SCRIPT.format(cells=cells_of(source, tmp_path / "store", name), device=name, rule=rule)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("source", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapters_studies_run_on_the_device_that_it_is_given(source):
    cells = [c.source for c in read_source(source).cells if c.cell_type == "code"]
    calls = [node for cell in cells for node in ast.walk(ast.parse(cell)) if is_a_study(node)]
    named = [ast.unparse(k.value) for call in calls for k in call.keywords if k.arg == "device"]
    assert named == ["p.device"] * len(calls)


def is_a_study(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "run_study"
