"""Engines: how a study's pending configurations are run.

An engine takes a function and the configurations, calls the function on each, and yields the
records as they finish. It may run them in any order; each run writes its own record, so an
engine that is killed loses only the runs that it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from paperkit import arguments
from paperkit.experiments.records import Configuration, Record

Perform = Callable[[Configuration], Record]
Engine = Callable[[Perform, Sequence[Configuration]], Iterator[Record]]


def in_process(perform: Perform, pending: Sequence[Configuration]) -> Iterator[Record]:
    """Run the configurations one after another in this process."""
    yield from map(perform, pending)


ENGINES: dict[str, Engine] = {"in-process": in_process}


def engine_named(name: str) -> Engine:
    """Return the engine of that name.

    Raises
    ------
    ValueError
        If there is no such engine.
    """
    return ENGINES[arguments.choice("engine", name, ENGINES)]
