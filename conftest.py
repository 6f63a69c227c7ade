"""Settings of every test: the device under test, and the notebooks' tolerance."""

import os
from pathlib import Path

import pytest
import torch

pytest_plugins = ("paperkit.publishing.nbval_tolerance",)

# Processes that a test starts find this package in a copy of the tree that nobody installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test: the environment variable DEVICE, the CPU unless it is set."""
    chosen = torch.device(os.environ.get("DEVICE", "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.fail("DEVICE=cuda, but torch sees no GPU; unset DEVICE to test on the CPU")
    return chosen
