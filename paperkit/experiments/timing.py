"""How long a step takes: from a trial that is timed now, from records, or from a kept timing.

A trial is run with few steps and with more of them; the difference tells the seconds of a step, the
rest is what a run takes besides its steps.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from typing_extensions import override

from paperkit import arguments, atomic
from paperkit.experiments import provenance
from paperkit.experiments.cost import Cost
from paperkit.experiments.paths import results_folder
from paperkit.experiments.records import Configuration, Record, read_text
from paperkit.experiments.study import RunContext, Study

ENOUGH = 1.0
"""Seconds that the further steps of a trial must take, so that the clock can tell them."""

MOST_STEPS = 64
"""Number of further steps at which a trial ends in any case."""

REPEATS, PATIENCE = 3, 10.0
"""Number of times that a trial is made, if they take no more seconds than these."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a step of size 1 of one kind, and where they come from.

    Attributes
    ----------
    seconds : float
        Seconds of a step of size 1.
    setup : float
        Seconds of a run besides its steps.
    device : str
        Device that they were measured on, with its name.
    origin : str
        Words that say how they were found.
    records : int
        Number of records that they were read from; 0 for a trial.
    """

    seconds: float
    setup: float
    device: str
    origin: str
    records: int = 0

    def of(self, cost: Cost) -> float:
        """Return the seconds of a run.

        Parameters
        ----------
        cost : Cost
            Cost of the run, of the timing's kind.
        """
        return self.setup + cost.amount * self.seconds


@dataclass(frozen=True)
class _TrialContext(RunContext):
    """The context of a trial, which is given no other run."""

    device: torch.device
    store: Path
    checkpoint: Path
    progress: bool = False

    @override
    def record_of(self, study: str, configuration: Configuration) -> NoReturn:
        raise ValueError(f"a trial is given no run of study {study!r}: let it make its own input.")

    checkpoint_of = record_of


def measured(study: Study, configuration: Configuration, device: torch.device) -> Timing:
    """Time a run's trial.

    Where one thread computes, the processor's seconds count: other programs, which may have the
    processor for a part of the time, make those by the clock longer.

    Parameters
    ----------
    study : Study
        A study that has a trial.
    configuration : dict
        The run that stands for its kind.
    device : torch.device
        Where to compute.
    """
    cost, threads = study.cost_of(configuration), torch.get_num_threads()
    _spent(study, configuration, 1, device)  # a first trial loads what later ones find loaded
    few = _least(_spent(study, configuration, 1, device), study, configuration, 1, device)
    further = 1
    many = _spent(study, configuration, 1 + further, device)
    while many.seconds - few.seconds < ENOUGH and further < MOST_STEPS:
        further *= 4
        many = _spent(study, configuration, 1 + further, device)
    many = _least(many, study, configuration, 1 + further, device)
    step = max(0.0, many.seconds - few.seconds) / further
    clock = "processor time" if _counts_processor(device) else "wall time"
    return Timing(
        seconds=step / (many.part * cost.size),
        setup=max(0.0, few.seconds - step),
        device=provenance.device_name(device),
        origin=f"timed now, {clock} of {1 + further} steps, {_threads(threads)}",
    )


def _counts_processor(device: torch.device) -> bool:
    return device.type == "cpu" and torch.get_num_threads() == 1


class _Trial(NamedTuple):
    """Cost of a trial.

    Attributes
    ----------
    seconds : float
        Seconds of the processor, or by the clock.
    part : float
        Part of a step's work that each of its steps did.
    """

    seconds: float
    part: float = 1.0


def _least(
    best: _Trial, study: Study, configuration: Configuration, steps: int, device: torch.device
) -> _Trial:
    """Return the shortest of a trial and a few more: other work makes a trial only longer."""
    spent = best.seconds
    for _ in range(REPEATS - 1):
        if spent < PATIENCE:
            again = _spent(study, configuration, steps, device)
            spent += again.seconds
            best = min(best, again)
    return best


def _spent(study: Study, configuration: Configuration, steps: int, device: torch.device) -> _Trial:
    """Run a trial and return what it took."""
    if study.trial is None:
        raise ValueError(f"study {study.name!r} has no trial that could be timed.")
    devices = [device] if device.type == "cuda" else []
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=devices):
        torch.manual_seed(configuration["seed"])
        context = _TrialContext(device, Path(folder), Path(folder) / "checkpoint.pt")
        clock = time.process_time if _counts_processor(device) else time.perf_counter
        begun = clock()
        part = study.trial(dict(configuration), steps, context)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = clock() - begun
    done = 1.0 if part is None else arguments.number("part", part, above=0)
    return _Trial(seconds, done)


def from_records(records: Iterable[Record], study: Study, device: str) -> dict[str, Timing]:
    """Return the timing of each kind of which a run was recorded.

    Runs on the device count before those on another one, and serious runs before smoke runs, whose
    few steps tell their set-up. A resumed run does not count, because its record tells the seconds
    of its last part.

    Parameters
    ----------
    records : iterable of Record
        Finished runs of the study.
    study : Study
        Study whose kinds are asked for.
    device : str
        Name of the device.
    """
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        if not record.provenance.get("resumed") and "seconds" in record.provenance:
            kind = study.cost_of(record.configuration).kind
            by_kind.setdefault(kind, []).append(record)
    return {kind: _of_one_kind(own, study, device) for kind, own in by_kind.items()}


def _of_one_kind(records: Sequence[Record], study: Study, device: str) -> Timing:
    devices = Counter(record.provenance.get("device", "") for record in records)
    chosen = device if device in devices else devices.most_common(1)[0][0]
    own = [record for record in records if record.provenance.get("device", "") == chosen]
    own = [record for record in own if record.profile != "smoke"] or own
    seconds = sum(record.provenance["seconds"] for record in own)
    amount = sum(study.cost_of(record.configuration).amount for record in own)
    threads = sorted({record.provenance.get("threads", 0) for record in own})
    return Timing(
        seconds / amount,
        0.0,  # within the seconds of a step
        chosen,
        f"records, {' or '.join(map(_threads, threads))}",
        len(own),
    )


def _threads(n: int) -> str:
    return f"{n} thread{'s' * (n != 1)}"


# --- kept timings ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeptTiming:
    """A timing that a file keeps, ``results/timings.json``, with where it came from.

    ``study`` is the study's name, or ``"training"`` for a trial that several studies share.
    """

    study: str
    kind: str
    unit: str
    seconds: float
    setup: float
    device: str
    origin: str
    date: str
    commit: str | None
    torch: str

    @property
    def timing(self) -> Timing:
        """The timing, whose origin names the day."""
        return Timing(
            self.seconds,
            self.setup,
            self.device,
            f"{self.origin.replace('timed now', 'timed')}, {self.date[:10]}",
        )


def timings_file() -> Path:
    """Return the file of the timings that were kept, which need not exist."""
    return results_folder() / "timings.json"


def kept_timings() -> list[KeptTiming]:
    """Read the timings that were kept, sorted by study and kind.

    Raises
    ------
    ValueError
        If the file is damaged.
    """
    path = timings_file()
    if not path.is_file():
        return []
    names = {field.name for field in fields(KeptTiming)}
    try:
        content = json.loads(read_text(path))
        if not all(set(entry) == names for entry in content):
            raise ValueError("an entry has other fields")
        kept = [KeptTiming(**entry) for entry in content]
        for timing in kept:
            arguments.number("seconds", timing.seconds, at_least=0)
            arguments.number("setup", timing.setup, at_least=0)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore it from git, or delete it and run "
            "`paperkit plan --measure --save`."
        ) from None
    return kept


def keep(timings: Iterable[tuple[str, str, str, Timing]]) -> Path:
    """Write timings to the file, each in the place of an older one of its kind and device.

    Parameters
    ----------
    timings : iterable of tuple
        Study, kind, unit and timing.
    """
    tree, now = provenance.tree_state(), provenance.now()
    found = {(one.study, one.kind, one.device): one for one in kept_timings()}
    for study, kind, unit, timing in timings:
        found[study, kind, timing.device] = KeptTiming(
            study=study,
            kind=kind,
            unit=unit,
            seconds=_rounded(timing.seconds),
            setup=_rounded(timing.setup),
            device=timing.device,
            origin=timing.origin,
            date=now,
            commit=tree.commit,
            torch=provenance.versions()["torch"],
        )
    lines = [asdict(one) for _, one in sorted(found.items(), key=lambda item: item[0])]
    text = json.dumps(lines, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    atomic.write_text(timings_file(), text)
    return timings_file()


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
