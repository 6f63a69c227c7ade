"""A study's runs in TensorBoard: ``paperkit study tensorboard NAME``.

Runs are told nothing of it. Their epochs are read from the checkpoints that `train` writes into the
working store, and their ends from records, so that a study is followed by another process, whatever
engine is at it, and no code that a record rests on is touched.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from paperkit import arguments, checkpoint
from paperkit.experiments.archive import Archive
from paperkit.experiments.paths import repository_root, store_folder
from paperkit.experiments.records import Configuration, Record, key_of
from paperkit.experiments.study import Study, require_runs, study_named

LONGEST = 120
"""Characters of a run's name, at most, because file systems take no more than 255."""


@dataclass
class _Shown:
    """A run as TensorBoard was told of it, and the state of its checkpoint by then.

    Attributes
    ----------
    writer : SummaryWriter
    epochs : list of dict
        Epochs that were written.
    state : tuple
        Path, time and size of the checkpoint that was read last.
    is_finished : bool
        Whether the record was written, too.
    """

    writer: Any
    epochs: list[Mapping[str, Any]] = field(default_factory=list)
    state: tuple[Path, int, int] | None = None
    is_finished: bool = False


class Follower:
    """Copies what is new of a study's runs to TensorBoard's files, as often as it is asked.

    Each run is one of TensorBoard's, named by the values that tell it from the others of the grid.
    Where the folder has an earlier copy, TensorBoard shows the new one in its place.

    Parameters
    ----------
    study : Study or str
    profile : {"smoke", "laptop", "paper"}
    store : path, optional
        The working store; by default ``_build/store`` in the repository.
    folder : path, optional
        Where TensorBoard's files go, in a folder of the study's name; by default
        ``_build/tensorboard`` in the repository.

    Raises
    ------
    ValueError
        If there is no such study or profile, or TensorBoard is not installed.
    """

    def __init__(
        self,
        study: Study | str,
        profile: str,
        store: str | Path | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.study = study if isinstance(study, Study) else study_named(study)
        self.profile = profile
        self.archive = Archive(store)
        where = repository_root() / "_build" / "tensorboard" if folder is None else folder
        self.folder = store_folder(where, "logdir") / self.study.name
        grid = require_runs(self.study, profile)
        self.configurations = {key_of(self.study.name, one): one for one in grid}
        self._writer = _summary_writer()
        self._shown: dict[str, _Shown] = {}

    @property
    def finished(self) -> int:
        """Number of runs whose records were copied."""
        return sum(shown.is_finished for shown in self._shown.values())

    @property
    def begun(self) -> int:
        """Number of runs of which anything was copied."""
        return len(self._shown)

    def update(self) -> None:
        """Copy what runs have done since the last time."""
        for key in self.configurations:
            self._update_epochs(key)
            self._update_record(key)
        for shown in self._shown.values():
            shown.writer.flush()

    def close(self) -> None:
        """Close TensorBoard's files."""
        for shown in self._shown.values():
            shown.writer.close()

    def _update_epochs(self, key: str) -> None:
        before = self._shown[key].state if key in self._shown else None
        state = self._state(key)
        if state is None or state == before:
            return
        try:
            history = checkpoint.load(state[0]).get("history")
        except FileNotFoundError:  # the run has just ended, and its checkpoint was put away
            return
        if not _is_history(history):
            return
        shown = self._run(key)
        if history[: len(shown.epochs)] != shown.epochs:  # begun anew, by other code
            shown = self._run(key, anew=True)
        for epoch in history[len(shown.epochs) :]:
            for name, value in _numbers(epoch):
                if name != "epoch":
                    shown.writer.add_scalar(f"epochs/{name}", value, epoch["epoch"])
        shown.epochs, shown.state = list(history), state

    def _update_record(self, key: str) -> None:
        found = self.archive.candidates(self.study.name, key, self.profile)
        if not found or (key in self._shown and self._shown[key].is_finished):
            return
        shown = self._run(key)
        _write_end(shown.writer, found[0], len(shown.epochs))
        shown.is_finished = True

    def _state(self, key: str) -> tuple[Path, int, int] | None:
        working = self.archive.working
        for path in (
            working.unfinished_checkpoint(self.study.name, key),
            working.checkpoint(self.study.name, key),
        ):
            if path.is_file():
                facts = path.stat()
                return path, facts.st_mtime_ns, facts.st_size
        return None

    def _run(self, key: str, *, anew: bool = False) -> _Shown:
        if key not in self._shown or anew:
            if key in self._shown:
                self._shown[key].writer.close()
            place = self.folder / run_name(key, self.configurations)
            # From step 0 on, what earlier files of this run hold is out of date.
            self._shown[key] = _Shown(self._writer(str(place), purge_step=0))
        return self._shown[key]


def follow(
    follower: Follower, seconds: float | None = None, until: float = math.inf
) -> tuple[int, int]:
    """Update TensorBoard's files once, or every so many seconds until every run is finished.

    Parameters
    ----------
    follower : Follower
    seconds : float, optional
        Time between two updates; without it there is one.
    until : float
        Seconds after which it ends in any case.

    Returns
    -------
    tuple of int
        Numbers of runs that are begun, and finished.
    """
    begun = time.monotonic()
    try:
        follower.update()
        while (
            seconds is not None
            and follower.finished < len(follower.configurations)
            and time.monotonic() - begun < until
        ):
            time.sleep(arguments.number("seconds", seconds, above=0))
            follower.update()
    finally:
        follower.close()
    return follower.begun, follower.finished


def run_name(key: str, configurations: Mapping[str, Configuration]) -> str:
    """Return a run's name: the values in which the runs differ, and the beginning of its key.

    Parameters
    ----------
    key : str
        Key of the run.
    configurations : mapping of str to dict
        Configurations of all runs, by key.
    """
    own = configurations[key]
    several = [n for n, v in own.items() if any(c.get(n) != v for c in configurations.values())]
    text = ",".join(f"{name}={own[name]}" for name in several)
    text = re.sub(r"[^\w=.,+-]", "_", text)[:LONGEST]
    return f"{text},{key[:8]}".lstrip(",")


def _write_end(writer: Any, record: Record, epoch: int) -> None:
    """Write a record's numbers, and its configuration as TensorBoard's hyperparameters."""
    from torch.utils.tensorboard.summary import hparams

    numbers = {f"record/{name}": value for name, value in _numbers(record.metrics)}
    for name, value in numbers.items():
        writer.add_scalar(name, value, epoch)
    given = {n: v if v is not None else "none" for n, v in record.configuration.items()}
    for summary in hparams(given, dict.fromkeys(numbers, 0.0)):
        writer.file_writer.add_summary(summary)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a mapping of mappings, with their names joined; lists are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)


def _is_history(history: Any) -> TypeGuard[list[dict[str, Any]]]:
    """Return whether a checkpoint's entry is a history of `train`; studies may keep other files."""
    return isinstance(history, list) and all(
        isinstance(epoch, Mapping) and isinstance(epoch.get("epoch"), int) for epoch in history
    )


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("TensorBoard is not installed: run `pip install tensorboard`.") from None
    return SummaryWriter
