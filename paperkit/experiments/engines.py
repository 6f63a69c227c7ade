"""Engines: how a study's pending configurations are run.

An engine takes a function and the configurations, calls the function on each, and yields the
records as they finish. It may run them in any order; each run writes its own record, so an
engine that is killed loses only the runs that it was in.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import torch

from paperkit import arguments
from paperkit.experiments import studies
from paperkit.experiments.records import Configuration, Record

Perform = Callable[[Configuration], Record]
Engine = Callable[[Perform, Sequence[Configuration], int | None], Iterator[Record]]

DEATHS = 3
"""Number of workers in a row that may die without a run being finished."""


class LostWorkersError(RuntimeError):
    """Workers that died again and again, as where memory is short."""


def in_process(
    perform: Perform, pending: Sequence[Configuration], jobs: int | None = None
) -> Iterator[Record]:
    """Run the configurations one after another in this process."""
    if jobs not in (None, 1):
        raise ValueError(f"jobs={jobs} needs the engine 'processes': in-process runs are one.")
    yield from map(perform, pending)


def processes(
    perform: Perform, pending: Sequence[Configuration], jobs: int | None = None
) -> Iterator[Record]:
    """Run the configurations in processes of this machine, each with its share of the cores.

    A worker that dies, killed for its memory for example, loses its run, which is begun again by
    another; an exception in a run lets the other runs finish and is raised then. Workers end
    when this process does, in whatever way.

    Parameters
    ----------
    perform : callable
        Function that can be pickled, and so can its values.
    pending : sequence of dict
    jobs : int, optional
        Number of processes; by default the number of cores that this process may use, at most one
        a run.

    Raises
    ------
    LostWorkersError
        If workers die again and again.
    """
    cores = _cores()
    jobs = min(cores if jobs is None else jobs, len(pending))
    waiting, deaths = list(pending), 0
    while waiting:
        before = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            jobs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(max(1, cores // jobs), list(studies.__path__)),
        )
        running: dict[Future[Record], Configuration] = {}
        failure: Exception | None = None
        try:
            while running or (waiting and failure is None):
                # A run that only waits in the pool could not be called back.
                while waiting and failure is None and len(running) < jobs:
                    configuration = waiting.pop(0)
                    running[pool.submit(perform, configuration)] = configuration
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise error
                    del running[future]
                    if error is None:
                        deaths = 0
                        yield future.result()
                    elif not isinstance(error, Exception):
                        raise error  # the interrupt reached the worker first
                    else:
                        failure = failure or error
            if failure is not None:
                raise failure
        except BrokenProcessPool:
            waiting = [*running.values(), *waiting]
            deaths += 1
            if deaths >= DEATHS:
                raise LostWorkersError(
                    f"{deaths} workers in a row died, as where memory is short: what was finished "
                    "is kept; start again with fewer jobs."
                ) from None
        except BaseException:
            # An interrupt of this process alone would wait for runs that may take hours.
            if failure is None:
                for worker in set(multiprocessing.active_children()) - before:
                    worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(threads: int, folders: list[str]) -> None:
    """Prepare a worker: its share of the cores, the studies' folders, its end."""
    torch.set_num_threads(threads)
    studies.__path__[:] = folders
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


ENGINES: dict[str, Engine] = {"in-process": in_process, "processes": processes}


def engine_named(name: str) -> Engine:
    """Return the engine of that name.

    Raises
    ------
    ValueError
        If there is no such engine.
    """
    return ENGINES[arguments.choice("engine", name, ENGINES)]
