"""Every measure keeps its memory budget at a thousand outputs, in a process's first call."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

BUDGET = 64 * 2**20
# An allocator may hold a quarter more than the tensors ask of it.
SLACK = 1.25

_PEAK = """
import os, sys, threading, time, warnings
import torch
from torch import nn
from paperkit import estimators

warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
width, classes = (128, 1000) if sys.argv[3] == "many outputs" else (16384, 10)
model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))
data = torch.randn(16, 64), torch.randint(0, classes, (16,))
name, _, method = sys.argv[1].partition(":")
options = {"method": method} if method else {}


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


base = peak = resident()
done = False


def poll():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.001)


thread = threading.Thread(target=poll)
thread.start()
refused = ""
try:
    getattr(estimators, name)(model, data, memory_budget=int(sys.argv[2]), **options)
except ValueError as error:
    refused = str(error)
finally:
    done = True
    thread.join()
print(peak - base)
print(refused)
"""

MEASURES = (
    "hessian_trace",
    "hessian_trace:hutchinson",
    "hessian_trace:xtrace",
    "hessian_top_eigenvalues",
    "renyi_sharpness",
    "global_renyi_sharpness",
    "gauss_newton_trace",
    "layer_gauss_newton_traces",
    "information_geometric_sharpness",
    "takeuchi_information_criterion",
    "fisher_rao_norm",
    "adaptive_sharpness",
    "average_adaptive_sharpness",
    "relative_flatness",
    "rangamani_sharpness",
    "sam_sharpness",
    "asam_sharpness",
    "mean_loss",
    "mean_exponential_loss",
    "maximum_local_sensitivity",
    "normalized_maximum_local_sensitivity",
    "input_invariant_local_sensitivity",
    "log_volume",
    "local_dimension",
    "network_maximum_local_sensitivity",
    "network_log_volume",
    "spectral_density",
    "layer_spectra",
    "pac_bayes_flatness",
    "measure",
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("measure", "kind", "budget"),
    [
        *((measure, "many outputs", BUDGET) for measure in MEASURES),
        # Whose vectors, of the parameters' size, decide.
        ("hessian_top_eigenvalues", "many parameters", 2 * BUDGET),
        ("spectral_density", "many parameters", 2 * BUDGET),
    ],
)
def test_a_first_call_stays_within_its_budget(measure: str, kind: str, budget: int) -> None:
    command = [sys.executable, "-c", _PEAK, measure, str(budget), kind]
    # Every tensor gets pages of its own, so that what is freed is given back at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    peak, refused = run.stdout.split("\n")[:2]
    assert int(peak) < SLACK * budget
    assert not refused or "memory_budget" in refused
