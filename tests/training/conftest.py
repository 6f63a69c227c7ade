"""Hide what is older than a test from the optimizers' search for their modules."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def few_objects_to_search() -> Iterator[None]:
    """Freeze the objects that exist: the search takes as long as there are objects."""
    gc.freeze()
    yield
    gc.unfreeze()
