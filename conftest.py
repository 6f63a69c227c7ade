"""Settings of every test: the device under test, and tolerances for the notebooks' numbers."""

import os

import pytest
import torch

from paperkit.publishing import nbval_tolerance


def pytest_configure(config: pytest.Config) -> None:
    nbval_tolerance.install()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test: the environment variable DEVICE, the CPU unless it is set."""
    chosen = torch.device(os.environ.get("DEVICE", "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.fail("DEVICE=cuda, but torch sees no GPU; unset DEVICE to test on the CPU")
    return chosen
