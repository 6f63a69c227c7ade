"""The engine of a cluster, by Ray: GPUs and memory for each run, on one machine or several.

The process that calls it is the only one that writes to the store. A run happens in a store of its
own, wherever Ray puts it, and is delivered whole; what it needs of other studies is offered to it,
and is run first, once, where it is missing. A run whose worker or machine is lost is begun again by
Ray elsewhere.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock, Timeout

from paperkit.experiments import studies
from paperkit.experiments.engines.allotment import Allotment, LostWorkersError
from paperkit.experiments.errand import Delivery, Errand, NeedError, receive
from paperkit.experiments.records import Configuration, Record, key_of
from paperkit.experiments.study import study_named

RETRIES = 3
"""Number of times that Ray begins a run again whose worker or machine was lost."""

PATIENCE = 1.0
"""Seconds after which a run that another process is at is asked for again."""


def on_ray(
    errand: Errand, pending: Sequence[Configuration], allotment: Allotment
) -> Iterator[Record]:
    """Run the configurations as tasks of Ray.

    ``RAY_ADDRESS`` names a cluster; without it a local one is begun, and ended afterwards. Every
    machine has this package and the same code of the study, which is checked.

    Parameters
    ----------
    errand : Errand
    pending : sequence of dict
    allotment : Allotment
        By default one core for each run, a GPU where the device is one, and as many runs at a time
        as that allows.

    Raises
    ------
    ModuleNotFoundError
        If Ray is not installed.
    LostWorkersError
        If a run's workers are lost again and again.
    """
    ray = _ray()
    begun_here = not ray.is_initialized()
    if begun_here:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield from _Dispatch(ray, errand, allotment).run(pending)
    finally:
        if begun_here:
            ray.shutdown()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the engine 'ray' needs Ray: run `pip install 'paperkit[ray]'`."
        ) from None


def _run(
    errand: Errand,
    folders: list[str],
    threads: int,
    study: str,
    configuration: Configuration,
    offered: Sequence[Delivery],
) -> Delivery | NeedError:
    import torch

    torch.set_num_threads(threads)
    studies.__path__[:] = folders
    try:
        return errand.elsewhere(study, configuration, offered)
    except NeedError as need:
        return need


@dataclass(eq=False)
class _Task:
    """A run that is to be delivered, what is offered to it, and who waits for it."""

    study: str
    configuration: Configuration
    lock: FileLock
    is_asked_for: bool
    with_checkpoint: bool
    offered: list[Delivery] = field(default_factory=list)
    waiting: list[_Task] = field(default_factory=list)


class _Dispatch:
    """Gives runs to Ray, receives what they deliver, and runs first what they need."""

    def __init__(self, ray: Any, errand: Errand, allotment: Allotment) -> None:
        self.ray, self.errand = ray, errand
        self.session, self.study = errand.session()
        self.jobs, self.cpus = allotment.jobs, allotment.cpus or 1
        default = 1 if errand.device.type == "cuda" else 0
        self.gpus = default if allotment.gpus is None else allotment.gpus
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if allotment.memory is not None:
            options["memory"] = allotment.memory
        self.function = ray.remote(_run).options(max_retries=RETRIES, **options)
        self.tasks: dict[str, _Task] = {}
        self.ready: deque[_Task] = deque()
        self.running: dict[Any, _Task] = {}

    def run(self, pending: Sequence[Configuration]) -> Iterator[Record]:
        """Yield the records of the configurations as they are delivered.

        An exception in a run lets those that have begun finish, and is raised then.
        """
        for configuration in pending:
            self._task(self.study.name, configuration, is_asked_for=True)
        failure: Exception | None = None
        try:
            while self.running or (self.ready and failure is None):
                if failure is None:
                    yield from self._begin()
                done, _ = (
                    self.ray.wait(list(self.running), timeout=PATIENCE)
                    if self.running
                    else ([], [])
                )
                if not self.running and self.ready:
                    time.sleep(PATIENCE)
                for reference in done:
                    task = self.running.pop(reference)
                    try:
                        delivered = self._delivered(task, reference)
                    except Exception as error:
                        failure = failure or error
                    else:
                        yield from self._finish(task, delivered)
        finally:
            for reference in self.running:
                self.ray.cancel(reference, force=True)
            for task in self.tasks.values():
                task.lock.release(force=True)
        if failure is not None:
            raise failure

    def _task(
        self, study: str, configuration: Configuration, *, is_asked_for: bool = False
    ) -> _Task:
        """Return the task of a run; a new one is ready to begin."""
        key = key_of(study, configuration)
        if key not in self.tasks:
            lock = self.session.archive.working.lock(study, key)
            self.tasks[key] = _Task(study, configuration, lock, is_asked_for, False)
            self.ready.append(self.tasks[key])
        return self.tasks[key]

    def _begin(self) -> Iterator[Record]:
        """Give ready tasks to Ray, as many as there is room for; yield what others finished."""
        busy = []
        while self.ready and len(self.running) < self._room():
            task = self.ready.popleft()
            if not task.lock.is_locked:
                try:
                    task.lock.acquire(timeout=0)
                except Timeout:
                    busy.append(task)  # another process is at it
                    continue
            found = self._finished(task.study, task.configuration, task.with_checkpoint)
            if found is not None:
                yield from self._finish(task, found)
                continue
            reference = self.function.remote(
                self.errand,
                list(studies.__path__),
                self.cpus,
                task.study,
                task.configuration,
                task.offered,
            )
            self.running[reference] = task
        self.ready.extend(busy)

    def _room(self) -> int:
        """Return the number of runs that may be under way; a cluster grows and shrinks."""
        if self.jobs is not None:
            return self.jobs
        there = self.ray.cluster_resources()
        room = there.get("CPU", 0) // self.cpus
        if self.gpus:
            room = min(room, there.get("GPU", 0) // self.gpus)
        return max(1, int(room))

    def _delivered(self, task: _Task, reference: Any) -> Delivery | None:
        """Return what a task delivered and write it; None if it needs something first."""
        exceptions = self.ray.exceptions
        try:
            outcome = self.ray.get(reference)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.RayError as error:
            raise LostWorkersError(
                f"the run {task.configuration} of study {task.study!r} lost its worker "
                f"{RETRIES + 1} times ({type(error).__name__}), as where memory is short: what was "
                "finished is kept; start again, with more memory for a run."
            ) from None
        if isinstance(outcome, Delivery):
            receive(self.session, outcome)
            return outcome
        offer = self._finished(outcome.study, outcome.configuration, outcome.with_checkpoint)
        if offer is not None:
            task.offered.append(offer)
            self.ready.appendleft(task)
            return None
        needed = self._task(outcome.study, outcome.configuration)
        needed.with_checkpoint |= outcome.with_checkpoint
        needed.waiting.append(task)
        return None

    def _finish(self, task: _Task, delivered: Delivery | None) -> Iterator[Record]:
        """Let go of a delivered run, let begin who waits for it, and yield its record."""
        if delivered is None:
            return
        task.lock.release(force=True)
        for other in task.waiting:
            other.offered.append(delivered)
            self.ready.append(other)
        task.waiting.clear()
        if task.is_asked_for:
            yield delivered.record

    def _finished(
        self, study: str, configuration: Configuration, with_checkpoint: bool
    ) -> Delivery | None:
        """Return a run that the store or the published results have, or None."""
        named = study_named(study)
        if not with_checkpoint:
            record = self.session.finished(named, configuration)
            return None if record is None else Delivery(record, None)
        found = self.session.finished_checkpoint(named, configuration)
        return None if found is None else Delivery(found[0], found[1].read_bytes())
