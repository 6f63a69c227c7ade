"""The engines of one machine: this process, or several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import torch

from paperkit.experiments import studies
from paperkit.experiments.engines.allotment import Allotment, LostWorkersError
from paperkit.experiments.errand import Errand
from paperkit.experiments.records import Configuration, Record

DEATHS = 3
"""Number of workers in a row that may die without a run being finished."""


def in_process(
    errand: Errand, pending: Sequence[Configuration], allotment: Allotment
) -> Iterator[Record]:
    """Run the configurations one after another in this process."""
    allotment.refuse_all_but("in-process")
    yield from map(errand, pending)


def processes(
    errand: Errand, pending: Sequence[Configuration], allotment: Allotment
) -> Iterator[Record]:
    """Run the configurations in processes of this machine, each with its share of the cores.

    A worker that dies, killed for its memory for example, loses its run, which is begun again by
    another; an exception in a run lets the other runs finish and is raised then. Workers end
    when this process does, in whatever way.

    Parameters
    ----------
    errand : Errand
    pending : sequence of dict
    allotment : Allotment
        Number of processes, by default one for each core that this process may use, and of cores
        for each, by default an equal share.

    Raises
    ------
    LostWorkersError
        If workers die again and again.
    """
    allotment.refuse_all_but("processes", "jobs", "cpus")
    cores = available_cores()
    jobs = min(allotment.jobs or cores, len(pending))
    threads = int(allotment.cpus or max(1, cores // jobs))
    waiting, deaths = list(pending), 0
    while waiting:
        before = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            jobs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(threads, list(studies.__path__)),
        )
        running: dict[Future[Record], Configuration] = {}
        failure: Exception | None = None
        try:
            while running or (waiting and failure is None):
                # A run that only waits in the pool could not be called back.
                while waiting and failure is None and len(running) < jobs:
                    configuration = waiting.pop(0)
                    running[pool.submit(errand, configuration)] = configuration
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
                    "is kept; start again with fewer jobs. A script without the line "
                    '`if __name__ == "__main__":` ends so, too.'
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


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
