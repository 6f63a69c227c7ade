"""Chapters that take a GPU name the device of every tensor that they make.

A chapter's cells run at the smoke profile under the rule that no tensor is made without a device;
on a machine with CUDA the same cells run there. The verdicts at a chapter's head make no tensors of
the chapter's and are left out.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from paperkit.publishing.notebooks import chapters, read_source

ROOT = Path(__file__).parents[2]
GPU = re.compile(r"^\s*gpu=True,$", re.M)
# A chapter that does not import PyTorch hands the device to its studies, and makes no tensors.
TORCH = re.compile(r"^import torch$", re.M)
SOURCES = [
    one
    for one in chapters(ROOT / "notebooks")
    if GPU.search(one.read_text("utf-8")) and TORCH.search(one.read_text("utf-8"))
]
SCRIPT = """
import matplotlib
matplotlib.use("agg")
import torch
from tests.explicit_devices import ExplicitDevices
namespace = {{"__name__": "__main__"}}
with ExplicitDevices():
    for cell in {cells!r}:
        exec(compile(cell, cell.partition(chr(10))[0], "exec"), namespace)
assert namespace["p"].device.type == {device!r}
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
def test_a_chapter_on_a_gpu_names_the_device_of_every_tensor(source, tmp_path, device):
    cells = cells_of(source, tmp_path / "store", device.type)
    script = SCRIPT.format(cells=cells, device=device.type)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_some_chapter_takes_a_gpu_and_some_does_not():
    assert 2 <= len(SOURCES) < len(chapters(ROOT / "notebooks"))
