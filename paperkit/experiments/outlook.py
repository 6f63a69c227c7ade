"""What is left of a study while it runs: the seconds of the missing runs, each by its kind."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from paperkit.experiments.plan_text import duration
from paperkit.experiments.planned import any_study, with_hooks
from paperkit.experiments.planning import timings_of
from paperkit.experiments.records import Configuration, Record, key_of
from paperkit.experiments.session import Session
from paperkit.experiments.study import Study, configurations
from paperkit.experiments.timing import Timing

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} runs, {elapsed} gone{postfix}"
"""Format of the progress bar; the time that is left is not that of a count."""

_Run = tuple[Study, Configuration]


class Outlook:
    """The time that is left of a study's missing runs, and of those that they need.

    A run takes what the runs of its kind have taken, in this call of `run_study` if any, else by
    the records. What the clock says of the finished ones, over what they took, tells how much is
    done at a time, and what other work costs.

    Parameters
    ----------
    session : Session
        The call of `run_study`.
    study : Study
        The study.
    pending : sequence of dict
        Configurations that are missing.
    jobs : int, optional
        Number of runs at a time, where it is known before any is finished.
    """

    def __init__(
        self,
        session: Session,
        study: Study,
        pending: Sequence[Configuration],
        jobs: int | None = None,
    ) -> None:
        self._session, self._jobs = session, jobs or 1
        self._begun = time.monotonic()
        study = with_hooks(study)
        self._left: dict[str, _Run] = {}
        self._needed: dict[str, _Run] = {}
        for configuration in pending:
            self._left[key_of(study.name, configuration)] = (study, configuration)
        if pending:
            self._add_needs(study)
        self._known: dict[tuple[str, str], Timing] = {}
        for one in {s.name: s for s, _ in [*self._left.values(), *self._needed.values()]}.values():
            timings = timings_of(one, session.archive, session.device)
            self._known |= {(one.name, kind): timing for kind, timing in timings.items()}
        self._taken: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        self._work = 0.0

    def _add_needs(self, study: Study) -> None:
        for name in study.needs:
            other = any_study(name)
            for configuration in configurations(other, self._session.profile):
                key = key_of(name, configuration)
                if key not in self._needed and self._session.finished(other, configuration) is None:
                    self._needed[key] = (other, configuration)
            self._add_needs(other)

    def finished(self, record: Record) -> None:
        """Note that a run is finished.

        Parameters
        ----------
        record : Record
            Record of the run.
        """
        run = self._left.pop(record.key, None)
        if run is not None:
            self._note(run[0], record)
        for key, (study, configuration) in list(self._needed.items()):
            found = self._session.finished(study, configuration)
            if found is not None:
                del self._needed[key]
                self._note(study, found)

    def _note(self, study: Study, record: Record) -> None:
        seconds = float(record.provenance["seconds"])
        self._work += seconds
        if not record.provenance.get("resumed"):
            cost = study.cost_of(record.configuration)
            self._taken[study.name, cost.kind].append((seconds, cost.amount))

    def seconds(self) -> tuple[float, int]:
        """Return the seconds by the clock that are left, and how many runs are not in them."""
        left, unknown = 0.0, 0
        for study, configuration in [*self._left.values(), *self._needed.values()]:
            cost = study.cost_of(configuration)
            taken = self._taken.get((study.name, cost.kind))
            timing = self._known.get((study.name, cost.kind))
            if taken:
                left += cost.amount * sum(s for s, _ in taken) / sum(a for _, a in taken)
            elif timing is not None:
                left += timing.of(cost)
            else:
                unknown += 1
        elapsed = time.monotonic() - self._begun
        pace = elapsed / self._work if self._work > 0 else 1.0 / self._jobs
        return left * pace, unknown

    def __str__(self) -> str:
        """Return what is left, as the progress bar shows it."""
        seconds, unknown = self.seconds()
        runs = len(self._left) + len(self._needed)
        if not runs:
            return "done"
        if unknown == runs:
            return "no run of its kind was timed yet"
        until = (datetime.now().astimezone() + timedelta(seconds=seconds)).strftime("%H:%M")
        if unknown:
            some = "1 run" if unknown == 1 else f"{unknown} runs"
            return f"{duration(seconds)} left, and {some} of unknown length"
        return f"{duration(seconds)} left, until {until}"
