"""Engines: how a study's pending configurations are run.

An engine takes an errand, the configurations and what each run is given, and yields the records as
they finish. It may run them in any order; each run is written when it is finished, so that an
engine that is killed loses only the runs that it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from paperkit import arguments
from paperkit.experiments.engines.allotment import Allotment, LostWorkersError
from paperkit.experiments.engines.cluster import on_ray
from paperkit.experiments.engines.local import in_process, processes
from paperkit.experiments.errand import Errand
from paperkit.experiments.records import Configuration, Record

Engine = Callable[[Errand, Sequence[Configuration], Allotment], Iterator[Record]]

ENGINES: dict[str, Engine] = {"in-process": in_process, "processes": processes, "ray": on_ray}


def engine_named(name: str) -> Engine:
    """Return the engine of that name.

    Raises
    ------
    ValueError
        If there is no such engine.
    """
    return ENGINES[arguments.choice("engine", name, ENGINES)]


__all__ = ["ENGINES", "Allotment", "Engine", "LostWorkersError", "engine_named"]
