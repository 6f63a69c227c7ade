"""Settings of hypothesis, and the rule that every new tensor names its device."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.explicit_devices import ExplicitDevices

# How long an example takes says more of the machine than of the code.
settings.register_profile("paperkit", deadline=None)
settings.load_profile("paperkit")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults", type=int, help="how often studies are killed in the fault test (a few times)"
    )
    parser.addoption(
        "--faults-record", type=Path, help="a JSON file that takes the counts of the fault test"
    )
    parser.addoption(
        "--cluster", action="store_true", help="lose one of two machines in the fault test, too"
    )


@pytest.fixture
def explicit_devices() -> type[ExplicitDevices]:
    """The rule that every new tensor names its device: ``with explicit_devices(): …``."""
    return ExplicitDevices
